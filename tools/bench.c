/*
 * bench.c - xmoe-bench: how fast the engine is, beside what the machine allows.
 *
 * Without --model it writes a model of random weights once (8 MoE layers of 64 experts of 512, d
 * 1024, 16 heads, 32,000 tokens, Q8_0: 604 M parameters, 0.64 GB) and uses it again while the file
 * is there. Random weights cost what trained ones cost; the router's spread is chosen so that the
 * threshold has something to choose.
 *
 * All that is measured takes turns, round after round, so that a disturbance of the machine falls
 * on everything alike; medians over the rounds are reported with minimum and maximum. The limits
 * (memory bandwidth, multiply-adds) are measured by the same number of threads in the same rounds.
 */
#include "bench_machine.h"
#include "bench_model.h"
#include "bench_report.h"
#include "cli.h"
#include "session.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BISECTION_STEPS = 10, BISECTION_TOKENS = 128, DECODE_PROMPT = 8, OVERHEAD_TOKENS = 256 };

typedef struct {
    session_settings session;
    xmoe_random_model shape;
    const char *model_file;
    cli_floats thresholds;
    int32_t repeats, generate, prompt_tokens, max_sequences;
    bool make_only, csv, json;
} settings;

typedef struct {
    settings *set;
    tool_session session;
    tool_session tiny; /* the model with next to no weights */
    bench_machine machine;
    bench_results *results;
    char labels[CLI_MAX_FLOATS + 4][24];
    int32_t label_count;
} bench;

/* --- models ------------------------------------------------------------------------------------
 */

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static void set_engine_options(xmoe_engine_options *options, const settings *set,
                               const xmoe_model_info *info)
{
    xmoe_engine_default_options(options);
    options->max_sequences = set->max_sequences;
    options->queue_length = set->max_sequences;
    options->prefix_cache = false;
    uint64_t positions =
        (uint64_t)set->max_sequences * (uint64_t)(DECODE_PROMPT + set->generate + 16);
    options->kv_bytes =
        positions * 4 * (uint64_t)info->layer_count * (uint64_t)info->embedding_length;
}

static int open_model(bench *run)
{
    settings *set = run->set;
    xmoe_engine_options options;
    int status = session_load(&run->session, &set->session);
    if (status != CLI_OK) {
        return status;
    }
    const xmoe_model_info *info = run->session.info;
    if (info->context_length < 2 * DECODE_PROMPT) {
        return cli_fail("the model's context of %d tokens is too short to measure",
                        info->context_length);
    }
    if (set->prompt_tokens == 0) {
        set->prompt_tokens = smaller(512, info->context_length - 1);
    }
    if (set->generate == 0) {
        set->generate = smaller(64, info->context_length - DECODE_PROMPT);
    }
    if (set->prompt_tokens + 1 > info->context_length ||
        DECODE_PROMPT + set->generate > info->context_length) {
        return cli_wrong("--prompt and --tokens do not fit the model's context of %d tokens",
                         info->context_length);
    }
    set_engine_options(&options, set, info);
    return session_start(&run->session, &set->session, &options);
}

/* The model with next to no weights; its file is not needed after loading. */
static int open_tiny_model(bench *run)
{
    const xmoe_random_model shape = bench_model_tiny();
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/xmoe-bench-tiny-XXXXXX", bench_temporary_directory());
    int descriptor = mkstemp(path);
    if (descriptor < 0) {
        return cli_fail("%s: %s", path, strerror(errno));
    }
    close(descriptor);
    const session_settings tiny = {.model = path,
                                   .isa = run->set->session.isa,
                                   .threads = run->set->session.threads,
                                   .quiet = true};
    int status = bench_model_write(&shape, path, true);
    if (status == CLI_OK) {
        xmoe_engine_options options;
        xmoe_engine_default_options(&options);
        options.kv_bytes = 1; /* one full context is always provided for */
        status = session_open(&run->tiny, &tiny, &options);
    }
    unlink(path);
    return status;
}

/* --- what is measured --------------------------------------------------------------------------
 */

static bench_variant *add_variant(bench *run, bench_kind kind, const char *label)
{
    bench_variant *variant = &run->results->variants[run->results->count++];
    *variant = (bench_variant){.kind = kind,
                               .label = label,
                               .sequences = 1,
                               .prompt_tokens = DECODE_PROMPT,
                               .generate = run->set->generate,
                               .routing = run->session.routing};
    return variant;
}

static int32_t bisection_tokens(const bench *run)
{
    return smaller(BISECTION_TOKENS, run->session.info->context_length - 1);
}

/* Threshold that makes the mean number of active experts on random tokens `wanted`. */
static bool find_threshold(bench *run, double wanted, float *threshold)
{
    float low = 0, high = 1;
    for (int32_t step = 0; step < BISECTION_STEPS; step++) {
        xmoe_routing routing = run->session.routing;
        load_result result;
        *threshold = (low + high) / 2;
        routing_set_threshold(&routing, *threshold);
        const load_shape shape = {.sequences = 1,
                                  .prompt_tokens = bisection_tokens(run),
                                  .generate = 1,
                                  .routing = &routing,
                                  .seed = 7};
        if (!load_run(run->session.engine, &shape, &result)) {
            return false;
        }
        if (result.mean_active < wanted) {
            low = *threshold;
        } else {
            high = *threshold;
        }
    }
    return true;
}

static void add_threshold(bench *run, float threshold)
{
    char *label = run->labels[run->label_count++];
    snprintf(label, sizeof run->labels[0], "threshold %.3g", (double)threshold);
    bench_variant *variant = add_variant(run, BENCH_DECODE, label);
    routing_set_threshold(&variant->routing, threshold);
}

/* The thresholds asked for; else those that give the model's own mean of active experts and half
 * of it, and 1: all experts. */
static bool add_thresholds(bench *run)
{
    const cli_floats *asked = &run->set->thresholds;
    for (int32_t i = 0; i < asked->count; i++) {
        add_threshold(run, asked->values[i]);
    }
    if (asked->count > 0 || run->session.info->moe_layer_count == 0) {
        return true;
    }
    load_result own;
    const load_shape shape = {.sequences = 1,
                              .prompt_tokens = bisection_tokens(run),
                              .generate = 1,
                              .routing = &run->session.routing,
                              .seed = 7};
    if (!load_run(run->session.engine, &shape, &own)) {
        return false;
    }
    for (int32_t part = 1; part <= 2; part++) {
        float threshold;
        if (!find_threshold(run, own.mean_active / part, &threshold)) {
            return false;
        }
        add_threshold(run, threshold);
    }
    add_threshold(run, 1);
    return true;
}

static bool plan(bench *run)
{
    add_variant(run, BENCH_BANDWIDTH, "");
    add_variant(run, BENCH_PEAK, "");
    for (int32_t sequences = 1; sequences <= run->set->max_sequences; sequences *= 2) {
        add_variant(run, BENCH_DECODE, "the model's own")->sequences = sequences;
    }
    if (!add_thresholds(run)) {
        return false;
    }
    bench_variant *prefill = add_variant(run, BENCH_PREFILL, "the model's own");
    prefill->prompt_tokens = run->set->prompt_tokens;
    prefill->generate = 1;
    bench_variant *overhead = add_variant(run, BENCH_OVERHEAD, "");
    overhead->generate = OVERHEAD_TOKENS;
    overhead->routing = run->tiny.routing;
    return true;
}

static bool measure(bench *run, bench_variant *variant, uint64_t seed)
{
    double *sample = &variant->samples[variant->sample_count];
    if (variant->kind == BENCH_BANDWIDTH) {
        *sample = bench_machine_bandwidth(&run->machine);
    } else if (variant->kind == BENCH_PEAK) {
        *sample = bench_machine_peak(&run->machine);
    } else {
        const load_shape shape = {.sequences = variant->sequences,
                                  .prompt_tokens = variant->prompt_tokens,
                                  .generate = variant->generate,
                                  .routing = &variant->routing,
                                  .seed = seed};
        xmoe_engine *engine =
            variant->kind == BENCH_OVERHEAD ? run->tiny.engine : run->session.engine;
        if (!load_run(engine, &shape, &variant->last)) {
            return false;
        }
        *sample = variant->kind == BENCH_PREFILL ? variant->last.prompt_tokens_per_second
                                                 : variant->last.tokens_per_second;
    }
    variant->sample_count++;
    return true;
}

/* Rounds over all variants; the first is a warm-up and is thrown away. */
static bool measure_all(bench *run)
{
    const int32_t count = run->results->count;
    const uint64_t total = (uint64_t)(run->set->repeats + 1) * (uint64_t)count;
    uint64_t done = 0;
    cli_progress progress;
    bool good = true;
    cli_progress_start(&progress, "runs", run->set->session.quiet);
    for (int32_t round = 0; round <= run->set->repeats && good; round++) {
        for (int32_t i = 0; i < count && good; i++) {
            bench_variant *variant = &run->results->variants[i];
            good = cli_progress_report(&progress, "measuring", done++, total) &&
                   measure(run, variant, (uint64_t)round * 1000 + 1);
            if (round == 0) {
                variant->sample_count = 0;
            }
        }
    }
    cli_progress_clear(&progress);
    return good;
}

static void print_results(const bench *run)
{
    if (run->set->json) {
        bench_write_json(run->results);
    } else if (run->set->csv) {
        bench_print_csv(run->results);
    } else {
        bench_print(run->results);
    }
}

static int run_bench(bench *run)
{
    int status = open_model(run);
    status = status == CLI_OK ? open_tiny_model(run) : status;
    if (status != CLI_OK) {
        return status;
    }
    const xmoe_model_info *info = run->session.info;
    const int32_t threads =
        run->set->session.threads > 0 ? run->set->session.threads : bench_cpu_count();
    /* All but F32, F16 and BF16 are multiplied as integers. */
    bool integer =
        strstr(info->quantization, "F32") == NULL && strstr(info->quantization, "F16") == NULL;
    if (!bench_machine_open(&run->machine, threads, info->isa, integer)) {
        return cli_fail("out of memory");
    }
    run->results->info = info;
    run->results->threads = threads;
    run->results->peak_name = bench_machine_peak_name(&run->machine);
    if (!plan(run) || !measure_all(run)) {
        return cli_interrupted() ? CLI_INTERRUPTED : CLI_FAILED;
    }
    print_results(run);
    return cli_finish(CLI_OK);
}

/* --- command line ------------------------------------------------------------------------------
 */

static size_t add_flags(settings *set, cli_flag *rows)
{
    const cli_flag flags[] = {
        {.name = "repeats",
         .argument = "N",
         .type = CLI_INT,
         .value = &set->repeats,
         .minimum = 1,
         .maximum = BENCH_MAX_REPEATS,
         .help = "rounds that count; one more is a warm-up"},
        {.name = "tokens",
         .argument = "N",
         .type = CLI_INT,
         .value = &set->generate,
         .default_text = "64, or what fits the context",
         .minimum = 2,
         .maximum = 1 << 20,
         .help = "tokens that each sequence decodes"},
        {.name = "prompt",
         .argument = "N",
         .type = CLI_INT,
         .value = &set->prompt_tokens,
         .default_text = "512, or what fits the context",
         .minimum = 1,
         .maximum = 1 << 20,
         .help = "tokens of the prompt that measures prefill"},
        {.name = "max-sequences",
         .argument = "N",
         .type = CLI_INT,
         .value = &set->max_sequences,
         .minimum = 1,
         .maximum = 256,
         .help = "decode 1, 2, 4 ... sequences at once, up to this many"},
        {.name = "thresholds",
         .argument = "T,T,...",
         .type = CLI_FLOATS,
         .value = &set->thresholds,
         .maximum = 1,
         .above_minimum = true,
         .default_text = "those that give the model's mean of active experts and half of it; 1",
         .help = "decode one sequence at each of these"},
        {.name = "model-file",
         .argument = "FILE",
         .type = CLI_STRING,
         .value = &set->model_file,
         .default_text = "in $TMPDIR or /tmp, named by its shape",
         .help = "where the random model is kept; written where it is not there yet"},
        {.name = "make-only",
         .type = CLI_BOOL,
         .value = &set->make_only,
         .help = "write the random model, even over an old file, and stop"},
        {.name = "csv", .type = CLI_BOOL, .value = &set->csv, .help = "comma-separated output"},
        {.name = "json", .type = CLI_BOOL, .value = &set->json, .help = "JSON output"},
    };
    memcpy(rows, flags, sizeof flags);
    size_t count = sizeof flags / sizeof flags[0];
    return count + bench_model_add_flags(&set->shape, rows + count);
}

/* Makes sure that there is a model to measure and that the session knows its path. */
static int find_or_make_model(settings *set, char *path, size_t size)
{
    if (set->session.model != NULL && !set->make_only) {
        return CLI_OK;
    }
    if (set->model_file != NULL) {
        snprintf(path, size, "%s", set->model_file);
    } else {
        bench_model_path(&set->shape, path, size);
    }
    set->session.model = path;
    if (!set->make_only && access(path, R_OK) == 0) {
        return CLI_OK;
    }
    if (!set->session.quiet) {
        cli_warn("writing the random model %s", path);
    }
    return bench_model_write(&set->shape, path, set->session.quiet);
}

int main(int argc, char **argv)
{
    settings set = {.shape = bench_model_default(), .repeats = 5, .max_sequences = 32};
    cli_flag flags[SESSION_FLAGS + BENCH_MODEL_FLAGS + 9];
    size_t count = session_add_flags(&set.session, flags);
    flags[0].default_text = "a random one, see below"; /* --model */
    count += add_flags(&set, flags + count);
    const cli_program program = {
        .name = "xmoe-bench",
        .usage = "",
        .description =
            "Measures decoding of one and of many sequences, thresholds, prefill and the overhead "
            "of a step,\nbeside the limits of this machine: memory bandwidth and multiply-adds per "
            "second, measured by\nthe same number of threads. Everything takes turns; medians are "
            "printed with minimum and\nmaximum. Without --model a random model of 0.64 GB is "
            "written "
            "once and kept.",
        .examples = "  xmoe-bench\n"
                    "  xmoe-bench --model models/xmoe-small.gguf --thresholds 0.5,0.9 --csv\n"
                    "  xmoe-bench --make-only --model-file tiny.gguf --layers 2 --embedding 64\n",
        .flags = flags,
        .flag_count = count,
    };
    cli_arguments arguments;
    if (!cli_parse(&program, argc, argv, &arguments)) {
        return arguments.status;
    }
    if (set.csv && set.json) {
        return cli_wrong("--csv and --json exclude each other");
    }
    cli_catch_interrupt();
    char path[PATH_MAX];
    int status = find_or_make_model(&set, path, sizeof path);
    if (status != CLI_OK || set.make_only) {
        return status;
    }
    bench_results *results = calloc(1, sizeof *results);
    if (results == NULL) {
        return cli_fail("out of memory");
    }
    bench run = {.set = &set, .results = results};
    status = run_bench(&run);
    bench_machine_close(&run.machine);
    session_close(&run.tiny);
    session_close(&run.session);
    free(results);
    return status;
}
