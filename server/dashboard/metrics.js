/*
 * metrics.js - what the tiles need of /metrics: gauges, counters summed over their labels, and
 * histograms, and the differences between two readings.
 */

/* Lines "name{labels} value" or "name value" of the wanted names, as {name: [{labels, value}]}. */
function parseMetrics(text, names) {
  const found = Object.fromEntries(names.map((name) => [name, []]));
  for (const line of text.split('\n')) {
    const name = /^\w*/.exec(line)[0];
    if (!(name in found))
      continue;
    const close = Math.max(line.lastIndexOf('}'), name.length);
    found[name].push({labels: line.slice(name.length + 1, close), value: Number(line.slice(close + 1))});
  }
  return found;
}

const histogramNames = ['xmoe_time_to_first_token_seconds', 'xmoe_inter_token_latency_seconds'];
const numberNames = [
  'xmoe_num_requests_running', 'xmoe_num_requests_waiting', 'xmoe_num_sequences_running',
  'xmoe_kv_cache_usage_perc', 'xmoe_kv_blocks_used', 'xmoe_kv_blocks_cached', 'xmoe_kv_blocks',
  'xmoe_prompt_tokens_total', 'xmoe_generation_tokens_total', 'xmoe_prefix_cache_queries_total',
  'xmoe_prefix_cache_hits_total', 'xmoe_expert_bytes_read_total', 'xmoe_iteration_tokens_total_sum',
  'xmoe_active_experts_sum', 'xmoe_active_experts_count', 'process_start_time_seconds'
];

/* One reading: {at, numbers: {name: sum}, histograms: {name: {bounds, below, sum, count}}}. */
function readMetrics(text) {
  const parts = ['bucket', 'sum', 'count'];
  const found = parseMetrics(text, [...numberNames, ...histogramNames.flatMap((name) => parts.map((part) => `${name}_${part}`))]);
  const numbers = Object.fromEntries(numberNames.map((name) => [name.replace('xmoe_', ''), sum(found[name].map(({value}) => value))]));
  const histograms = Object.fromEntries(histogramNames.map((name) => [name, {
    bounds: found[`${name}_bucket`].map(({labels}) => Number(/le="([^"]*)"/.exec(labels)[1].replace('+Inf', 'Infinity'))),
    below: found[`${name}_bucket`].map(({value}) => value),
    sum: found[`${name}_sum`][0]?.value ?? 0,
    count: found[`${name}_count`][0]?.value ?? 0
  }]));
  return {at: performance.now() / 1000, numbers, histograms};
}

/* The middle of what was counted between two readings, as [seconds, "median" or "mean"], or null where
 * nothing was. The median is found in its bucket as Prometheus does it; in the first bucket, which
 * tells nothing but its bound, the mean stands for it. */
function middleBetween(name, now, then) {
  const {bounds, below, sum: total, count} = now.histograms[name], before = then.histograms[name];
  const added = count - before.count;
  if (!(added > 0))
    return null;
  const counts = below.map((each, i) => each - before.below[i]);
  const i = counts.findIndex((each) => each >= added / 2);
  if (i === 0)
    return [(total - before.sum) / added, 'mean'];
  if (bounds[i] === Infinity)
    return [bounds[i - 1], 'median'];
  const part = (added / 2 - counts[i - 1]) / (counts[i] - counts[i - 1]);
  return [bounds[i - 1] + (bounds[i] - bounds[i - 1]) * part, 'median'];
}
