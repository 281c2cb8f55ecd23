/*
 * actions.js - what can be done with the usage on the screen: download it, save and compare
 * snapshots, reset the counters.
 */
function saveFile(name, type, text) {
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([text], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function usageCsv(usage) {
  const rows = usage.layers.flatMap((layer) =>
    layer.counts.map((tokens, expert) => `${layer.layer},${expert},${tokens},${layer.weights[expert]}`));
  return `layer,expert,tokens,weight\n${rows.join('\n')}\n`;
}

function download(extension, type, write) {
  if (!view.usage)
    return;
  const window = view.source === 'all' || view.source === 'live' ? view.source : `${view.source}s`;
  saveFile(`xmoe-usage-${view.usage.model}-${view.phase}-${window}.${extension}`, type, write(view.usage));
}
$('download-json').addEventListener('click', () =>
  download('json', 'application/json', (usage) => `${JSON.stringify(usage, null, 1)}\n`));
$('download-csv').addEventListener('click', () => download('csv', 'text/csv', usageCsv));

/* A question in a dialog; field: the first value of its text field, or null for none. Gives the
 * text, "" without a field, null when cancelled. */
function ask({title, note, yes, field = null}) {
  const dialog = $('ask-dialog'), input = $('ask-input');
  setText($('ask-title'), title);
  setText($('ask-note'), note);
  setText($('ask-yes'), yes);
  $('ask-field').hidden = input.disabled = field === null;
  input.required = field !== null;
  input.value = field ?? '';
  return new Promise((resolve) => {
    let answer = null;
    const done = new AbortController();
    const on = (target, name, listener) => target.addEventListener(name, listener, {signal: done.signal});
    on($('ask-form'), 'submit', (event) => {
      event.preventDefault();
      answer = input.value;
      dialog.close();
    });
    on($('ask-no'), 'click', () => dialog.close());
    on(dialog, 'close', () => {
      done.abort();
      resolve(answer);
    });
    dialog.showModal();
  });
}

/* Does work and says how it went. */
async function act(work, success) {
  try {
    await work();
    setText($('action-note'), success);
  } catch (error) {
    setText($('action-note'), `That failed: ${error.message}.`);
  }
}

const snapshotsPath = 'v1/experts/snapshots';

async function loadSnapshots(signal) {
  const {data} = await getJson(snapshotsPath, signal);
  const select = $('compare');
  select.replaceChildren(new Option('nothing', ''), ...data.map(({id, tokens}) => new Option(`${id} (${plural(tokens, 'token')})`, id)));
  if (!data.some(({id}) => id === view.compare))
    compareWith('');
  select.value = view.compare;
}

/* The stream has no comparison: the last ten seconds stand for it. */
function compareWith(id) {
  $('compare').value = id;
  $('snapshot-delete').hidden = !id;
  $('source').querySelector('[value="live"]').disabled = Boolean(id);
  for (const input of $('scale').querySelectorAll('input'))
    input.disabled = Boolean(id);
  if (id === view.compare)
    return;
  changeView({compare: id});
  if (id && view.source === 'live')
    chooseSegment('source', '10');
}
$('compare').addEventListener('change', (event) => compareWith(event.target.value));

$('snapshot-save').addEventListener('click', async () => {
  const id = await ask({
    title: 'Save a snapshot', yes: 'Save', field: new Date().toISOString().slice(0, 19).replaceAll(':', ''),
    note: 'The counters since start are kept under this name, to compare later usage with. A snapshot of the same name is replaced.'
  });
  if (id === null)
    return;
  await act(async () => {
    await call(`${snapshotsPath}/${encodeURIComponent(id)}`, {method: 'PUT'});
    await loadSnapshots();
  }, `Saved as ${id}.`);
});

$('snapshot-delete').addEventListener('click', async () => {
  const id = view.compare;
  const sure = await ask({title: `Delete ${id}?`, yes: 'Delete', note: 'The snapshot is removed from the server for everybody.'});
  if (sure === null)
    return;
  await act(async () => {
    await call(`${snapshotsPath}/${encodeURIComponent(id)}`, {method: 'DELETE'});
    await loadSnapshots();
  }, `${id} is deleted.`);
});

$('reset').addEventListener('click', async () => {
  const sure = await ask({title: 'Reset the counters?', yes: 'Reset', note: 'The usage of all experts since start is set to zero, for everybody who looks at this server.'});
  if (sure === null)
    return;
  await act(async () => {
    await call('v1/experts/usage/reset', {method: 'POST'});
    changeView({});
  }, 'The counters are zero.');
});
