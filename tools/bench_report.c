/*
 * bench_report.c - see bench_report.h. The rooflines are computed here, from the best round of the
 * machine's limits:
 *
 *   decode    a step reads the experts it touches, the shared weights, and the keys and values of
 *             its sequences once: tokens/s <= sequences * bandwidth / (bytes of a step)
 *   prefill   tokens/s <= peak multiply-adds/s / (multiply-adds of a token)
 *
 * Multiply-adds leave out experts that all tokens share, and latent attention is counted as if its
 * heads were not: of such models the limit of a prefill is about right only.
 */
#include "bench_report.h"

#include "cli.h"
#include "json.h"
#include "spread.h"

#include <stdio.h>
#include <string.h>

static spread_figures spread_of_variant(const bench_variant *variant)
{
    double sorted[BENCH_MAX_REPEATS];
    const size_t count = (size_t)variant->sample_count;
    memcpy(sorted, variant->samples, count * sizeof *sorted);
    return spread_of(sorted, count);
}

/* Of the first variant of a kind. */
static spread_figures spread_of_kind(const bench_results *results, bench_kind kind)
{
    for (int32_t i = 0; i < results->count; i++) {
        if (results->variants[i].kind == kind) {
            return spread_of_variant(&results->variants[i]);
        }
    }
    return (spread_figures){0};
}

/* --- derived figures ---------------------------------------------------------------------------
 */

/* Keys and values that one decoded token reads (F16). */
static double kv_bytes(const bench_results *results, const bench_variant *variant)
{
    const xmoe_model_info *info = results->info;
    return variant->last.mean_position * 2 * 2 * info->layer_count * info->kv_head_count *
           info->head_length;
}

static double step_bytes(const bench_results *results, const bench_variant *variant)
{
    return variant->last.expert_bytes + (double)results->info->shared_bytes +
           variant->sequences * kv_bytes(results, variant);
}

/* Multiply-adds of a prompt token, attention at its mean length; logits only of the last token. */
static double prefill_multiply_adds(const bench_results *results, const bench_variant *variant)
{
    const xmoe_model_info *info = results->info;
    double d = info->embedding_length, prompt = variant->prompt_tokens;
    double dense = info->layer_count - info->moe_layer_count;
    double queries = (double)info->head_count * info->head_length;
    double keys = (double)info->kv_head_count * info->head_length;
    double attention = info->layer_count * (2 * d * queries + 2 * d * keys + prompt * queries);
    double experts = variant->last.mean_active * (double)info->expert_multiply_adds;
    double moe = info->moe_layer_count * (experts + d * info->expert_count);
    double matrices = strcmp(info->architecture, "xmoe") == 0 ? 2 : 3; /* of an FFN: gated or not */
    return attention + moe + dense * matrices * d * info->feed_forward_length +
           d * info->vocabulary_size / prompt;
}

static double roofline(const bench_results *results, const bench_variant *variant)
{
    if (variant->kind == BENCH_DECODE) {
        return variant->sequences * spread_of_kind(results, BENCH_BANDWIDTH).maximum /
               step_bytes(results, variant);
    }
    if (variant->kind == BENCH_PREFILL) {
        return spread_of_kind(results, BENCH_PEAK).maximum /
               prefill_multiply_adds(results, variant);
    }
    return 0;
}

/* The decoding of one sequence with the model's own routing: always the first of its kind. */
static double one_sequence(const bench_results *results)
{
    return spread_of_kind(results, BENCH_DECODE).median;
}

/* --- table -------------------------------------------------------------------------------------
 */

static void print_machine(const bench_results *results)
{
    const xmoe_model_info *info = results->info;
    char parameters[32], bytes[32], expert[32], shared[32];
    printf("model      %s: %s parameters, %s, %s\n", info->name,
           cli_format_count(parameters, (double)info->parameter_count),
           cli_format_bytes(bytes, (double)info->weight_bytes), info->quantization);
    printf("           %d layers (%d MoE), d %d, %d experts of %d (%s each), %s shared\n",
           info->layer_count, info->moe_layer_count, info->embedding_length, info->expert_count,
           info->expert_feed_forward_length, cli_format_bytes(expert, (double)info->expert_bytes),
           cli_format_bytes(shared, (double)info->shared_bytes));
    printf("machine    %d threads, kernels %s\n", results->threads, info->isa);
}

static void print_limits(const bench_results *results)
{
    for (int32_t i = 0; i < results->count; i++) {
        const bench_variant *variant = &results->variants[i];
        spread_figures spread = spread_of_variant(variant);
        if (variant->kind == BENCH_BANDWIDTH) {
            printf("           reads memory at %.1f GB/s (%.1f-%.1f)\n", spread.median / 1e9,
                   spread.minimum / 1e9, spread.maximum / 1e9);
        } else if (variant->kind == BENCH_PEAK) {
            printf("           %.1f G multiply-adds/s (%.1f-%.1f): %s\n", spread.median / 1e9,
                   spread.minimum / 1e9, spread.maximum / 1e9, results->peak_name);
        }
    }
}

static void print_decode(const bench_results *results)
{
    printf("\ndecode (medians; expert, shared and KV bytes of a step against the bandwidth)\n");
    printf("  %-16s %5s %7s %9s %10s %9s %9s %17s %6s %6s\n", "routing", "seqs", "active",
           "distinct", "bytes/step", "roofline", "tokens/s", "(min-max)", "of it", "x one");
    for (int32_t i = 0; i < results->count; i++) {
        const bench_variant *variant = &results->variants[i];
        if (variant->kind != BENCH_DECODE) {
            continue;
        }
        char bytes[32], range[40];
        spread_figures spread = spread_of_variant(variant);
        double limit = roofline(results, variant);
        snprintf(range, sizeof range, "(%.1f-%.1f)", spread.minimum, spread.maximum);
        printf("  %-16s %5d %7.2f %9.1f %10s %9.1f %9.1f %17s %5.0f%% %6.2f\n", variant->label,
               variant->sequences, variant->last.mean_active, variant->last.distinct,
               cli_format_bytes(bytes, step_bytes(results, variant)), limit, spread.median, range,
               100 * spread.median / limit, spread.median / one_sequence(results));
    }
}

static void print_rest(const bench_results *results)
{
    for (int32_t i = 0; i < results->count; i++) {
        const bench_variant *variant = &results->variants[i];
        spread_figures spread = spread_of_variant(variant);
        if (variant->kind == BENCH_PREFILL) {
            double limit = roofline(results, variant);
            printf("\nprefill    %d tokens at %.1f tokens/s (%.1f-%.1f), %.2f experts active, "
                   "%.1f M multiply-adds per token:\n           %.0f%% of the peak (%.1f "
                   "tokens/s)\n",
                   variant->prompt_tokens, spread.median, spread.minimum, spread.maximum,
                   variant->last.mean_active, prefill_multiply_adds(results, variant) / 1e6,
                   100 * spread.median / limit, limit);
        } else if (variant->kind == BENCH_OVERHEAD) {
            printf("\noverhead   %.1f us per step (%.1f-%.1f) of a model with next to no weights\n",
                   1e6 / spread.median, 1e6 / spread.maximum, 1e6 / spread.minimum);
        }
    }
}

void bench_print(const bench_results *results)
{
    print_machine(results);
    print_limits(results);
    print_decode(results);
    print_rest(results);
}

/* --- CSV and JSON ------------------------------------------------------------------------------
 */

static const char *const kind_names[] = {
    [BENCH_BANDWIDTH] = "bandwidth", [BENCH_PEAK] = "peak",         [BENCH_DECODE] = "decode",
    [BENCH_PREFILL] = "prefill",     [BENCH_OVERHEAD] = "overhead",
};
static const char *const kind_units[] = {
    [BENCH_BANDWIDTH] = "bytes/s", [BENCH_PEAK] = "multiply-adds/s", [BENCH_DECODE] = "tokens/s",
    [BENCH_PREFILL] = "tokens/s",  [BENCH_OVERHEAD] = "steps/s",
};

void bench_print_csv(const bench_results *results)
{
    printf("measure,routing,sequences,median,minimum,maximum,unit,roofline,mean_active,distinct,"
           "step_bytes\n");
    for (int32_t i = 0; i < results->count; i++) {
        const bench_variant *variant = &results->variants[i];
        spread_figures spread = spread_of_variant(variant);
        printf("%s,%s,%d,%.6g,%.6g,%.6g,%s,", kind_names[variant->kind], variant->label,
               variant->sequences, spread.median, spread.minimum, spread.maximum,
               kind_units[variant->kind]);
        if (variant->kind == BENCH_DECODE) {
            printf("%.6g,%.6g,%.6g,%.6g\n", roofline(results, variant), variant->last.mean_active,
                   variant->last.distinct, step_bytes(results, variant));
        } else if (variant->kind == BENCH_PREFILL) {
            printf("%.6g,%.6g,,\n", roofline(results, variant), variant->last.mean_active);
        } else {
            printf(",,,\n");
        }
    }
}

static void write_variant(json_writer *json, const bench_results *results,
                          const bench_variant *variant)
{
    spread_figures spread = spread_of_variant(variant);
    json_open_object(json, NULL);
    json_string(json, "measure", kind_names[variant->kind]);
    json_string(json, "unit", kind_units[variant->kind]);
    json_number(json, "median", spread.median);
    json_number(json, "minimum", spread.minimum);
    json_number(json, "maximum", spread.maximum);
    if (variant->kind == BENCH_DECODE || variant->kind == BENCH_PREFILL) {
        json_string(json, "routing", variant->label);
        json_integer(json, "sequences", variant->sequences);
        json_number(json, "roofline", roofline(results, variant));
        json_number(json, "mean_active", variant->last.mean_active);
    }
    if (variant->kind == BENCH_DECODE) {
        json_number(json, "distinct", variant->last.distinct);
        json_number(json, "step_bytes", step_bytes(results, variant));
        json_number(json, "expert_bytes", variant->last.expert_bytes);
        json_number(json, "kv_bytes", kv_bytes(results, variant));
    } else if (variant->kind == BENCH_PREFILL) {
        json_integer(json, "prompt_tokens", variant->prompt_tokens);
        json_number(json, "multiply_adds_per_token", prefill_multiply_adds(results, variant));
    }
    json_close_object(json);
}

void bench_write_json(const bench_results *results)
{
    const xmoe_model_info *info = results->info;
    json_writer json = {.out = stdout};
    json_open_object(&json, NULL);
    json_open_object(&json, "model");
    json_string(&json, "name", info->name);
    json_string(&json, "quantization", info->quantization);
    json_unsigned(&json, "parameters", info->parameter_count);
    json_unsigned(&json, "weight_bytes", info->weight_bytes);
    json_unsigned(&json, "expert_bytes", info->expert_bytes);
    json_unsigned(&json, "shared_bytes", info->shared_bytes);
    json_close_object(&json);
    json_open_object(&json, "machine");
    json_integer(&json, "threads", results->threads);
    json_string(&json, "isa", info->isa);
    json_string(&json, "peak", results->peak_name);
    json_close_object(&json);
    json_open_array(&json, "results");
    for (int32_t i = 0; i < results->count; i++) {
        write_variant(&json, results, &results->variants[i]);
    }
    json_close_array(&json);
    json_close_object(&json);
}
