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

const histogramNames = ['xmoe_time_to_first_token_seconds_bucket', 'xmoe_inter_token_latency_seconds_bucket'];
const numberNames = [
  'xmoe_num_requests_running', 'xmoe_num_requests_waiting', 'xmoe_num_sequences_running',
  'xmoe_kv_cache_usage_perc', 'xmoe_kv_blocks_used', 'xmoe_kv_blocks_cached', 'xmoe_kv_blocks',
  'xmoe_prompt_tokens_total', 'xmoe_generation_tokens_total', 'xmoe_prefix_cache_queries_total',
  'xmoe_prefix_cache_hits_total', 'xmoe_expert_bytes_read_total', 'xmoe_iteration_tokens_total_sum',
  'xmoe_active_experts_sum', 'xmoe_active_experts_count', 'process_start_time_seconds'
];

/* One reading: {at, numbers: {name: sum}, buckets: {name: {bounds, below}}}. */
function readMetrics(text) {
  const found = parseMetrics(text, [...numberNames, ...histogramNames]);
  const numbers = Object.fromEntries(numberNames.map((name) => [name.replace('xmoe_', ''), sum(found[name].map(({value}) => value))]));
  const buckets = Object.fromEntries(histogramNames.map((name) => [name, {
    bounds: found[name].map(({labels}) => Number(/le="([^"]*)"/.exec(labels)[1].replace('+Inf', 'Infinity'))),
    below: found[name].map(({value}) => value)
  }]));
  return {at: performance.now() / 1000, numbers, buckets};
}

/* The median of what was counted between two readings, from its bucket as Prometheus does it; null
 * where nothing was. */
function medianBetween(name, now, then) {
  const {bounds, below} = now.buckets[name], before = then.buckets[name].below;
  const counts = below.map((count, i) => count - (before[i] ?? 0));
  const total = counts[counts.length - 1] ?? 0;
  if (!(total > 0))
    return null;
  const i = counts.findIndex((count) => count >= total / 2);
  const low = i ? bounds[i - 1] : 0, under = i ? counts[i - 1] : 0;
  if (bounds[i] === Infinity)
    return low;
  return low + (bounds[i] - low) * (total / 2 - under) / (counts[i] - under);
}
