/*
 * start.js - the page's life: find the server, watch it, and when it is lost try again, later and
 * later, until it is back; then begin anew, for it may serve another model.
 */
const firstDelay = 500, longestDelay = 8000; /* ms */

function showState(state, text) {
  $('status').dataset.state = state;
  setText($('status-text'), text);
}

function showBanner(text) {
  $('banner').hidden = !text;
  setText($('banner-text'), text);
}

function describeRouter(router) {
  const threshold = Number((router.threshold ?? 0).toPrecision(3));
  const rule = {
    threshold: `threshold ${threshold}`, sigmoid: `sigmoid above ${threshold}`,
    top_k: `top ${router.top_k}`, dense: 'all experts'
  }[router.type];
  const bounds = [router.min_experts > 1 ? `at least ${router.min_experts}` : '', router.max_experts ? `at most ${router.max_experts}` : ''];
  return [rule ? `router: ${rule}` : '', ...bounds].filter((text) => text).join(', ');
}

function showModel(model, router) {
  const {shape} = model;
  document.title = `${model.id} · xmoe`;
  setText($('model'), model.id);
  setText($('shape'), `${plural(shape.moe_layers, 'MoE layer')} × ${shape.experts} experts, ${scaled(shape.parameters, 1000, ['', ' k', ' M', ' G']).join('')} parameters, ${model.quantization}`);
  setText($('router'), describeRouter(router));
  playground.setModel(model.router, shape.experts, shape.context_length);
}

/* --- the key --- */

let tellKey = () => {};

function askForKey() {
  const dialog = $('key-dialog');
  if (dialog.open)
    return;
  if (sessionStorage.getItem(keyName) !== null)
    setText($('key-note'), 'That key was refused. Another?');
  sessionStorage.removeItem(keyName);
  $('key-input').value = '';
  dialog.showModal();
}
const keyGiven = () => new Promise((resolve) => {
  tellKey = resolve;
});
$('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem(keyName, $('key-input').value.trim());
  $('key-dialog').close();
});
$('key-dialog').addEventListener('close', () => tellKey());
$('forget-key').addEventListener('click', () => {
  sessionStorage.removeItem(keyName);
  location.reload();
});

/* --- life --- */

/* Runs until the server is lost: then it throws. */
async function watchServer(signal, onServing) {
  await getText('ready', signal);
  const [models, router] = await Promise.all([getJson('v1/models', signal), getJson('v1/router', signal)]);
  const model = models.data[0];
  const first = await getJson('v1/experts/usage', signal);
  setModelShape(first.layers.map(({layer}) => layer), model.shape.experts);
  showModel(model, router);
  await loadSnapshots(signal);
  $('forget-key').hidden = sessionStorage.getItem(keyName) === null;
  onServing();
  await Promise.all([watchUsage(signal), watchMetrics(signal)]);
}

/* Waits, counting down in the banner; the button ends it. */
async function waitToRetry(reason, delay) {
  const until = performance.now() + delay;
  const now = new AbortController();
  $('retry').onclick = () => now.abort();
  for (let left = delay; left > 0 && !now.signal.aborted; left = until - performance.now()) {
    showBanner(`${reason}, trying again in ${Math.ceil(left / 1000)} s.`);
    await pause(Math.min(left, 1000), now.signal).catch(() => {});
  }
  showBanner(`${reason}, trying again …`);
}

/* What to tell of a failure, as [state, status, banner]. */
function explain(error) {
  if (error instanceof Refused && error.status === 503)
    return ['loading', 'not ready', `The server is not ready: ${error.message}`];
  if (error instanceof Refused)
    return ['lost', 'refused', `The server refuses: ${error.message}`];
  if (error instanceof Unreachable)
    return ['lost', 'connection lost', 'Connection lost'];
  console.error(error);
  return ['lost', 'error in the page', `This page has a fault (${error.message})`];
}

async function live() {
  for (let delay = firstDelay;;) {
    const session = new AbortController();
    try {
      await watchServer(session.signal, () => {
        delay = firstDelay;
        showBanner('');
        showState('serving', 'serving');
      });
    } catch (error) {
      session.abort();
      if (error instanceof Refused && error.status === 401) {
        showState('locked', 'key needed');
        showBanner('');
        const given = keyGiven();
        askForKey();
        await given;
        continue;
      }
      const [state, status, banner] = explain(error);
      showState(state, status);
      await waitToRetry(banner, delay);
      delay = Math.min(2 * delay, longestDelay);
    }
  }
}

theme.apply();
live();
