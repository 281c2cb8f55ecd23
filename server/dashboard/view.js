/*
 * view.js - which usage is looked at (time, phase, colour, snapshot), fetching it, and showing it in
 * map, table, legend and readout. `view.usage` is the object on the screen, exactly as the API gave
 * it: what is downloaded is what is seen.
 */
const pollEvery = 2000, streamEvery = 1000; /* ms */

function segmented(id, choices, initial, onChange) {
  for (const [value, text, title] of choices) {
    const label = make('label'), input = make('input');
    Object.assign(input, {type: 'radio', name: id, value, checked: value === initial});
    label.append(input, text);
    label.title = title ?? '';
    $(id).append(label);
  }
  $(id).addEventListener('change', (event) => onChange(event.target.value));
}

function chooseSegment(id, value) {
  const input = $(id).querySelector(`input[value="${value}"]`);
  if (input && !input.checked) {
    input.checked = true;
    input.dispatchEvent(new Event('change', {bubbles: true}));
  }
}

const view = {
  source: 'live', phase: 'all', scale: 'share', compare: '',
  usage: null, /* shown now */
  stale: false, /* live and quiet: what is shown is the last that was not empty */
  round: new AbortController(), /* ends when the source changes */
  picked: null,

  get windowName() {
    return {live: 'last interval', all: 'since start'}[this.source] ?? `last ${this.source} s`;
  }
};

const map = new HeatMap($('map'), $('map-canvas'), $('map-cursor'), (row, column, byKey) => {
  view.picked = row < 0 ? null : [row, column];
  table.pick(row);
  showReadout(byKey);
});
const table = new LayerTable($('layers'));

segmented('source', [
  ['live', 'live', 'the last second, as it comes'], ['10', '10 s'], ['60', '1 min'], ['300', '5 min'],
  ['3600', '1 h'], ['all', 'since start', 'since the server started or its counters were reset']
], view.source, (value) => changeView({source: value}));
segmented('phase', [
  ['all', 'all'], ['prefill', 'prefill', 'tokens of prompts'], ['decode', 'decode', 'generated tokens']
], view.phase, (value) => changeView({phase: value}));
segmented('scale', [
  ['share', 'share', 'by how many tokens the expert served'], ['weight', 'weight', 'by the routing weights of those tokens']
], view.scale, (value) => {
  view.scale = value;
  showUsage(view.usage);
});
$('quiet-button').addEventListener('click', () => chooseSegment('source', 'all'));

function changeView(change) {
  Object.assign(view, change);
  view.usage = null;
  view.round.abort(new DOMException('another view', 'AbortError'));
  view.round = new AbortController();
}

/* --- fetching --- */

function usageQuery() {
  const query = new URLSearchParams({phase: view.phase});
  if (view.source !== 'all')
    query.set('window', view.source);
  if (view.compare)
    query.set('compare', view.compare);
  return `v1/experts/usage?${query}`;
}

async function pollUsage(signal) {
  for (;;) {
    showUsage(await getJson(usageQuery(), signal));
    await pause(pollEvery, signal);
  }
}

async function streamUsage(signal) {
  let seen = false, told = false;
  const path = `v1/experts/usage/stream?interval=${streamEvery}&phase=${view.phase}`;
  for await (const event of events(path, {signal, silence: 10 * streamEvery})) {
    const usage = JSON.parse(event);
    seen ||= usage.tokens > 0;
    view.stale = usage.tokens === 0 && seen;
    if (view.stale)
      showStale();
    else
      showUsage(usage);
    if (!seen && !told) {
      told = true;
      showQuiet(await getJson(`v1/experts/usage?phase=${view.phase}`, signal));
    }
  }
  throw new Unreachable('the stream has ended');
}

/* Waits until the page can be seen. */
async function visible(signal) {
  if (!document.hidden)
    return;
  const done = new AbortController();
  try {
    await new Promise((resolve, reject) => {
      document.addEventListener('visibilitychange', () => document.hidden || resolve(), {signal: done.signal});
      signal.addEventListener('abort', () => reject(signal.reason), {signal: done.signal});
    });
  } finally {
    done.abort();
  }
}

/* Keeps the view up to date until signal ends or the server is lost. Hidden pages ask nothing. */
async function watchUsage(signal) {
  const hide = () => document.hidden && changeView({});
  document.addEventListener('visibilitychange', hide);
  try {
    for (;;) {
      const {round} = view;
      const either = AbortSignal.any([signal, round.signal]);
      try {
        await visible(either);
        await (view.source === 'live' ? streamUsage(either) : pollUsage(either));
      } catch (error) {
        if (signal.aborted || !round.signal.aborted)
          throw error;
      }
    }
  } finally {
    document.removeEventListener('visibilitychange', hide);
  }
}

/* --- showing --- */

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/* Per layer the parts of its experts, by tokens or by weight. */
function shares(layer) {
  const numbers = view.scale === 'share' ? layer.counts : layer.weights;
  const total = view.scale === 'share' ? layer.activations : sum(numbers);
  return numbers.map((number) => (total > 0 ? number / total : 0));
}

/* Bends a scale from 0 to 1 so that the even share gets the middle colour: a balanced layer looks
 * balanced. Not beyond the power 0.4, however busy one expert is. */
function bentScale(even) {
  const power = even < 1 ? Math.max(0.4, Math.log(0.5) / Math.log(even)) : 1;
  return (part) => part ** power;
}

function showShares(usage) {
  const parts = usage.layers.map(shares).flat();
  const counts = usage.layers.flatMap((layer) => layer.counts);
  const even = 1 / (usage.layers[0]?.experts ?? 1);
  const end = Math.min(1, Math.max(2 * even, ...parts));
  const place = bentScale(even / end);
  map.setValues(parts.map((part, i) => (counts[i] ? place(part / end) : -1)), 'share');
  setText($('legend-low'), '0');
  setText($('legend-high'), `${percent(end)} of its layer’s ${view.scale === 'share' ? 'choices' : 'weight'}`);
  showMark(place(even / end), `even: ${percent(even)}`);
}

function showChange(usage) {
  const changes = usage.layers.flatMap((layer) => layer.share_change ?? layer.counts.map(() => null));
  const most = Math.max(1e-4, ...changes.map(Math.abs));
  map.setValues(changes.map((change) => (change === null ? -1 : 0.5 + change / most / 2)), 'change');
  setText($('legend-low'), `−${percent(most)}`);
  setText($('legend-high'), `+${percent(most)} of its layer’s choices`);
  showMark(0.5, 'no change');
}

function showMark(place, text) {
  const mark = $('legend-even');
  mark.hidden = place > 1;
  mark.style.width = '100%';
  mark.firstChild.style.left = mark.lastChild.style.left = `${place * 100}%`;
  setText(mark.lastChild, text);
}

function showSummary(usage) {
  const {summary} = usage, experts = usage.layers[0]?.experts ?? 0;
  if (!usage.tokens) {
    setText($('summary'), `No token ${view.source === 'all' ? '' : 'in the '}${view.windowName}.`);
    return;
  }
  const parts = [[whole(usage.tokens)], ` token${usage.tokens === 1 ? '' : 's'}, each with `,
    [summary.mean_active.toFixed(2)], ` of ${experts} experts on average (`,
    [percent(summary.active_fraction)], '); balance ', [summary.load_balance.toFixed(2)], '; ',
    [whole(summary.dead_experts)], ` of ${whole(experts * summary.moe_layers)} dead`];
  if (usage.compare && usage.compare.divergence !== null)
    parts.push('; drift ', [`${short(usage.compare.divergence)} bits`]);
  setParts($('summary'), [...parts, '.']);
}

function showUsage(usage) {
  if (!usage)
    return;
  view.usage = usage;
  view.stale = false;
  view.shownAt = Date.now();
  $('map').classList.remove('stale');
  const comparing = Boolean(usage.compare);
  $('experts').classList.toggle('comparing', comparing);
  document.querySelector('.empty-key').hidden = comparing;
  (comparing ? showChange : showShares)(usage);
  paintRamp($('legend-ramp'), map.scale);
  table.show(usage.layers);
  showSummary(usage);
  showReadout(false);
  if (usage.tokens)
    $('quiet').hidden = true;
  else if (view.source !== 'live')
    showQuiet(view.source === 'all' ? usage : null);
}

/* Live, and nothing ran in the last interval: the last picture stays, dimmed. */
function showStale() {
  $('map').classList.add('stale');
  const seconds = Math.round((Date.now() - view.shownAt) / 1000);
  setText($('summary'), `Quiet now. This is what ran ${plural(seconds, 'second')} ago.`);
}

function quietText(total) {
  if (!map.layers.length)
    return 'This model has no experts: all its layers are dense.';
  if (total?.tokens)
    return `Nothing runs right now. Since start, ${plural(total.tokens, 'token')} went through the experts.`;
  if (view.source === 'live' || view.source === 'all')
    return 'Nothing runs yet. Press Run in the playground, or send a request to the API.';
  return `Nothing ran in the ${view.windowName}.`;
}

/* Says that nothing runs and what to do; total: the usage since start, or null. */
function showQuiet(total) {
  $('quiet').hidden = view.usage?.tokens > 0;
  setText($('quiet-text'), quietText(total));
  $('quiet-button').hidden = !map.layers.length || view.source === 'all' || total?.tokens === 0;
}

function describeCell(usage, row, expert) {
  const layer = usage.layers[row], share = layer.activations ? layer.counts[expert] / layer.activations : 0;
  const parts = [[`Layer ${layer.layer}, expert ${expert}`], ': ', [whole(layer.counts[expert])],
    ` token${layer.counts[expert] === 1 ? '' : 's'}, `, [percent(share)],
    ` of the layer’s choices (even is ${percent(1 / layer.experts)})`];
  if (layer.counts[expert])
    parts.push(', routing weight ', [short(layer.weights[expert])], `, ${short(layer.weights[expert] / layer.counts[expert])} each time it is taken`);
  if (layer.share_change)
    parts.push('; in the snapshot ', [percent(share - layer.share_change[expert])]);
  return parts;
}

function showReadout(spoken) {
  const readout = $('readout'), {usage, picked} = view;
  if (!usage || !picked || !usage.layers[picked[0]]) {
    setText(readout, 'Point at a cell, or move over the map with the arrow keys, to read its numbers.');
    return;
  }
  setParts(readout, describeCell(usage, ...picked));
  $('map-row').setAttribute('aria-rowindex', picked[0] + 1);
  $('map-cell').setAttribute('aria-colindex', picked[1] + 1);
  setText($('map-cell'), readout.textContent);
  if (spoken)
    setText($('spoken'), readout.textContent);
}

function setModelShape(layers, experts) {
  const same = layers.join() === map.layers.join() && experts === map.experts;
  map.setShape(layers, experts);
  if (!same)
    table.setShape(layers);
  showReadout(false);
}

theme.listeners.push(() => paintRamp($('legend-ramp'), map.scale));
