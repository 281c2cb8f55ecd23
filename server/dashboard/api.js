/*
 * api.js - access to the server that the page came from: JSON, event streams, the reader's key.
 *
 * Paths are relative, so that the page works below a proxy's prefix too. Three things can go wrong
 * and each has its class: nobody answers (Unreachable), the answer is an error (Refused), or the
 * caller gave up (the signal's reason).
 */
class Unreachable extends Error {}

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const keyName = 'xmoe.key';

function requestHeaders(hasBody) {
  const headers = {};
  const key = sessionStorage.getItem(keyName);
  if (key)
    headers.Authorization = `Bearer ${key}`;
  if (hasBody)
    headers['Content-Type'] = 'application/json';
  return headers;
}

async function refusal(response) {
  const text = await response.text().catch(() => '');
  try {
    return new Refused(response.status, JSON.parse(text).error.message);
  } catch {
    return new Refused(response.status, `the server answered ${response.status}`);
  }
}

/* The response, once its status is good. */
async function call(path, {method = 'GET', body, signal} = {}) {
  let response;
  try {
    response = await fetch(path, {
      method, signal, cache: 'no-store',
      headers: requestHeaders(body !== undefined),
      body: body === undefined ? undefined : JSON.stringify(body)
    });
  } catch (error) {
    if (signal?.aborted && error.name !== 'TimeoutError')
      throw signal.reason;
    throw new Unreachable('the server does not answer');
  }
  if (!response.ok)
    throw await refusal(response);
  return response;
}

const patience = 15000; /* ms for an answer that needs no work */

const withPatience = (signal) =>
  AbortSignal.any([AbortSignal.timeout(patience), ...(signal ? [signal] : [])]);

async function getText(path, signal) {
  const response = await call(path, {signal: withPatience(signal)});
  return response.text().catch(() => {
    if (signal?.aborted)
      throw signal.reason;
    throw new Unreachable('the answer broke off');
  });
}

const getJson = async (path, signal) => JSON.parse(await getText(path, signal));

/* The next piece of a stream; silence of so many milliseconds counts as a lost connection. */
async function readPiece(reader, silence) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Unreachable('the stream has fallen silent')), silence);
  });
  try {
    return await Promise.race([reader.read(), late]);
  } finally {
    clearTimeout(timer);
  }
}

/* The data of each event of a stream, as text. Fetch instead of EventSource, which sends no key. */
async function* events(path, {silence = 60000, ...options}) {
  const response = await call(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  try {
    for (;;) {
      const {value, done} = await readPiece(reader, silence);
      if (done)
        return;
      buffer += value;
      for (let end = buffer.indexOf('\n\n'); end >= 0; end = buffer.indexOf('\n\n')) {
        const event = buffer.slice(0, end);
        buffer = buffer.slice(end + 2);
        if (event.startsWith('data: '))
          yield event.slice(6);
      }
    }
  } catch (error) {
    if (options.signal?.aborted)
      throw options.signal.reason;
    throw error instanceof Unreachable ? error : new Unreachable('the stream broke off');
  } finally {
    reader.cancel().catch(() => {});
  }
}
