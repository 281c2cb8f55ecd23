/*
 * tiles.js - the figures on top: each a value, a note and its last two minutes as a line. All come
 * from differences between readings of /metrics.
 */
const historyLength = 60; /* readings, two seconds apart */
const minute = 60; /* seconds over which middles and rates of rare events are taken */

class Tile {
  constructor(title, explanation) {
    this.box = make('div', 'tile');
    this.box.title = explanation;
    this.value = make('div', 'value', '–');
    this.note = make('div', 'note', '\u00a0');
    this.svg = makeSvg('area', 'line');
    this.svg.setAttribute('viewBox', `0 0 ${historyLength - 1} 1`);
    this.box.append(make('h3', '', title), this.value, this.note, this.svg);
    this.history = [];
  }

  /* number goes into the line, null leaves a gap; shown is [text, unit]. */
  show(number, shown, note) {
    this.value.replaceChildren(shown[0], ...(shown[1] ? [make('small', '', shown[1])] : []));
    setText(this.note, note);
    this.history = [...this.history, number].slice(-historyLength);
    this.draw();
  }

  draw() {
    const most = Math.max(...this.history.map((number) => number ?? 0)) || 1;
    const from = historyLength - this.history.length;
    let line = '', area = '', open = -1;
    this.history.forEach((number, i) => {
      if (number === null) {
        open = -1;
        return;
      }
      const place = `${from + i} ${(0.97 - 0.92 * number / most).toFixed(4)}`;
      line += `${open < 0 ? 'M' : 'L'}${place}`;
      area += `${open < 0 ? `M${from + i} 1L` : 'L'}${place}`;
      open = from + i;
      if (i + 1 === this.history.length || this.history[i + 1] === null)
        area += `L${open} 1Z`;
    });
    this.svg.children[0].setAttribute('d', area);
    this.svg.children[1].setAttribute('d', line);
  }
}

const tiles = {
  speed: new Tile('Tokens per second', 'Tokens generated per second, all requests together'),
  requests: new Tile('Requests running', 'Requests in the running batch, and in the queue'),
  active: new Tile('Experts per token', 'Mean experts that a token took per layer'),
  read: new Tile('Expert weights read', 'Bytes of expert weights read per token: what decoding mostly waits for'),
  first: new Tile('Time to first token', 'From submission to the first token, in the last minute'),
  next: new Tile('Time per token', 'Between two tokens of a choice, in the last minute'),
  cache: new Tile('KV cache used', 'Part of the KV cache that running sequences use'),
  prefix: new Tile('Prefix cache hits', 'Part of the prompt tokens that were found in the prefix cache')
};
$('tiles').append(...Object.values(tiles).map(({box}) => box));

let readings = [];

function forgetReadings() {
  readings = [];
  for (const tile of Object.values(tiles))
    tile.history = [];
}

const ratio = (above, below) => (below > 0 ? above / below : null);
const orDash = (number, format) => (number === null ? ['–', ''] : format(number));

function showLoad(now, rate, delta) {
  const {numbers} = now;
  tiles.speed.show(rate('generation_tokens_total'), [short(rate('generation_tokens_total')), ''],
    `${short(rate('prompt_tokens_total'))} of prompts`);
  tiles.requests.show(numbers.num_requests_running, [whole(numbers.num_requests_running), ''],
    `${whole(numbers.num_requests_waiting)} waiting`);
  const active = ratio(delta('active_experts_sum'), delta('active_experts_count'));
  tiles.active.show(active, orDash(active, (number) => [number.toFixed(2), `of ${map.experts}`]),
    active === null ? 'no token' : `${percent(active / map.experts)} of the experts`);
  const each = ratio(delta('expert_bytes_read_total'), delta('iteration_tokens_total_sum'));
  tiles.read.show(each, orDash(each, bytes), each === null ? 'per token' : `per token; ${joined(bytes(rate('expert_bytes_read_total')))}/s`);
  tiles.cache.show(numbers.kv_cache_usage_perc, [percent(numbers.kv_cache_usage_perc), ''],
    `${whole(numbers.kv_blocks_used)} of ${whole(numbers.kv_blocks)} blocks`);
}

/* Middles and rates of the last minute, or since start where that is empty. */
function showLatency(now, then) {
  for (const [tile, name] of [[tiles.first, histogramNames[0]], [tiles.next, histogramNames[1]]]) {
    const [seconds, kind] = middleBetween(name, now, then) ?? [null];
    tile.show(seconds, orDash(seconds, duration), kind ? `${kind}, last minute` : 'none in the last minute');
  }
  const change = (name) => now.numbers[name] - then.numbers[name];
  const recent = ratio(change('prefix_cache_hits_total'), change('prefix_cache_queries_total'));
  const ever = ratio(now.numbers.prefix_cache_hits_total, now.numbers.prefix_cache_queries_total);
  tiles.prefix.show(recent, orDash(recent ?? ever, (part) => [percent(part), '']),
    recent !== null ? 'tokens, last minute' : ever !== null ? 'tokens, since start' : 'no prompt yet');
}

function showReading(now) {
  const before = readings[readings.length - 1];
  if (before && now.numbers.process_start_time_seconds !== before.numbers.process_start_time_seconds)
    forgetReadings();
  const last = readings[readings.length - 1] ?? now;
  readings = [...readings.filter(({at}) => now.at - at <= minute + pollEvery / 1000), now];
  const delta = (name) => Math.max(0, now.numbers[name] - last.numbers[name]);
  showLoad(now, (name) => ratio(delta(name), now.at - last.at) ?? 0, delta);
  showLatency(now, readings[0]);
}

async function watchMetrics(signal) {
  for (;;) {
    await visible(signal);
    showReading(readMetrics(await getText('metrics', signal)));
    await pause(pollEvery, signal);
  }
}
