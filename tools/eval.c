/*
 * eval.c - xmoe-eval: how well a model predicts text, at one or many routings.
 *
 * What is counted: every token of every document, each once. The first is predicted from the
 * begin-of-text token alone; separators between documents are neither predicted nor counted. A
 * document longer than the context is cut into windows of the context's length that begin every
 * `stride` tokens; of a window only the tokens that no earlier window scored are counted, so each
 * has at least context - stride tokens before it (or all there are). Bits per byte are the summed
 * nats over ln 2, divided by the bytes of the documents' text (documents.h): all bytes are
 * predicted, so figures of models with different vocabularies compare.
 *
 * Windows go through the engine as requests that only score their prompt, several in flight, with
 * the prefix cache off: speed and expert usage are those of all positions computed, those that
 * overlapping windows compute again included.
 */
#include "cli.h"
#include "documents.h"
#include "eval_report.h"
#include "session.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    session_settings session;
    cli_floats thresholds;
    int32_t window, stride, parallel, documents;
    bool kv_f32, expert_usage, csv, json;
} settings;

typedef struct evaluation evaluation;

/* One request: tokens [start, start + length) of a document; those from `first` on are counted. */
typedef struct {
    evaluation *owner;
    size_t document;
    size_t start, first;
    int32_t length;
    double nats;
    bool scored;
} window;

struct evaluation {
    const settings *set;
    tool_session session;
    document_list documents;
    window *windows;
    size_t window_count, window_capacity;
    const char *const *files;
    int32_t file_count;
    double *document_nats;
    uint64_t positions_done, positions_total; /* over all routings, for the progress meter */
    cli_progress progress;
    flight_gate gate;
    xmoe_error error; /* first of a request; under the gate's lock */
    bool failed;
};

/* --- windows -----------------------------------------------------------------------------------
 */

static bool add_window(evaluation *run, const window *item)
{
    if (run->window_count == run->window_capacity) {
        size_t capacity = run->window_capacity == 0 ? 256 : 2 * run->window_capacity;
        window *windows = realloc(run->windows, capacity * sizeof *windows);
        if (windows == NULL) {
            return false;
        }
        run->windows = windows;
        run->window_capacity = capacity;
    }
    run->windows[run->window_count++] = *item;
    return true;
}

static bool plan_windows(evaluation *run)
{
    const size_t length = (size_t)run->set->window, stride = (size_t)run->set->stride;
    for (size_t d = 0; d < run->documents.count; d++) {
        const size_t count = run->documents.items[d].count;
        size_t scored = 1; /* tokens before this one are counted; the first is begin-of-text */
        for (size_t start = 0; scored < count; start += stride) {
            size_t end = start + length < count ? start + length : count;
            const window item = {.owner = run,
                                 .document = d,
                                 .start = start,
                                 .first = scored,
                                 .length = (int32_t)(end - start)};
            if (!add_window(run, &item)) {
                return false;
            }
            run->positions_total += end - start;
            scored = end;
        }
    }
    return true;
}

/* Scheduler thread. */
static void on_event(void *context, const xmoe_event *event)
{
    window *item = context;
    if (event->kind == XMOE_EVENT_PROMPT) {
        double nats = 0;
        for (size_t i = item->first - item->start; i < (size_t)item->length; i++) {
            nats -= (double)event->prompt_logprobs[i];
        }
        item->nats = nats;
        item->scored = true;
    } else if (event->kind == XMOE_EVENT_END) {
        evaluation *run = item->owner;
        pthread_mutex_lock(&run->gate.lock);
        if (event->error != NULL && !run->failed) {
            run->error = *event->error;
            run->failed = true;
        }
        pthread_mutex_unlock(&run->gate.lock);
        gate_leave(&run->gate);
    }
}

static bool submit(evaluation *run, window *item, const xmoe_routing *routing)
{
    xmoe_request_params params;
    xmoe_error error;
    uint64_t request;
    xmoe_request_default_params(&params);
    params.prompt = run->documents.items[item->document].tokens + item->start;
    params.prompt_length = (size_t)item->length;
    params.max_tokens = 0;
    params.prompt_logprobs = true;
    params.cache_prompt = false;
    params.routing = routing;
    params.on_event = on_event;
    params.context = item;
    item->scored = false;
    gate_enter(&run->gate);
    if (xmoe_request_submit(run->session.engine, &params, &request, &error) != XMOE_OK) {
        gate_leave(&run->gate);
        cli_fail("%s", error.message);
        return false;
    }
    return true;
}

/* Scores the windows of one file; true when all are there. */
static bool score_file(evaluation *run, int32_t file, const xmoe_routing *routing)
{
    bool good = true;
    for (size_t i = 0; i < run->window_count && good; i++) {
        window *item = &run->windows[i];
        if (run->documents.items[item->document].file != file) {
            continue;
        }
        good = gate_wait(&run->gate, run->set->parallel) && submit(run, item, routing);
        run->positions_done += (uint64_t)item->length;
        good = good && cli_progress_report(&run->progress, "scoring", run->positions_done,
                                           run->positions_total);
    }
    good = gate_wait(&run->gate, 1) && good;
    cli_progress_clear(&run->progress);
    if (run->failed) {
        cli_fail("%s", run->error.message);
        return false;
    }
    return good;
}

/* --- figures -----------------------------------------------------------------------------------
 */

/* Standard error of sum(nats) / sum(units) over documents as independent samples (the linearised
 * ratio estimator); NaN for fewer than two. units: tokens, or bytes. */
static double standard_error(const evaluation *run, int32_t file, bool bytes)
{
    double nats = 0, units = 0, squares = 0;
    size_t count = 0;
    for (size_t pass = 0; pass < 2; pass++) {
        for (size_t d = 0; d < run->documents.count; d++) {
            const document *item = &run->documents.items[d];
            if (file >= 0 && item->file != file) {
                continue;
            }
            double size = bytes ? (double)item->bytes : (double)(item->count - 1);
            if (pass == 0) {
                nats += run->document_nats[d];
                units += size;
                count++;
            } else {
                double residual = run->document_nats[d] - nats / units * size;
                squares += residual * residual;
            }
        }
    }
    if (count < 2) {
        return (double)NAN;
    }
    return sqrt(squares * (double)count / (double)(count - 1)) / units;
}

/* Figures of one file (-1: all) after it was scored. */
static void sum_up(evaluation *run, int32_t file, eval_row *row)
{
    for (size_t d = 0; d < run->documents.count; d++) {
        const document *item = &run->documents.items[d];
        if (file < 0 || item->file == file) {
            run->document_nats[d] = 0;
            row->documents++;
            row->tokens += item->count - 1;
            row->bytes += item->bytes;
        }
    }
    for (size_t i = 0; i < run->window_count; i++) {
        const window *item = &run->windows[i];
        if (file < 0 || run->documents.items[item->document].file == file) {
            run->document_nats[item->document] += item->nats;
            row->nats += item->nats;
            row->positions += (uint64_t)item->length;
        }
    }
    row->loss_error = standard_error(run, file, false);
    row->bits_per_byte_error = standard_error(run, file, true) / log(2);
}

/* What the engine counted since `earlier` (NULL: since its reset). */
static bool take_usage(evaluation *run, const xmoe_usage *earlier, xmoe_usage **usage)
{
    xmoe_error error;
    xmoe_usage *now;
    if (xmoe_usage_get(run->session.engine, -1, XMOE_PHASE_ALL, 0, &now, &error) != XMOE_OK) {
        cli_fail("%s", error.message);
        return false;
    }
    if (earlier == NULL) {
        *usage = now;
        return true;
    }
    xmoe_status status = xmoe_usage_difference(now, earlier, usage, &error);
    xmoe_usage_free(now);
    if (status != XMOE_OK) {
        cli_fail("%s", error.message);
    }
    return status == XMOE_OK;
}

/* One file at one routing: a row of the report. */
static bool evaluate_file(evaluation *run, int32_t file, const xmoe_routing *routing, eval_row *row)
{
    xmoe_usage *before = NULL;
    if (!take_usage(run, NULL, &before)) {
        return false;
    }
    double started = cli_seconds();
    bool good = score_file(run, file, routing);
    if (good) {
        row->seconds = cli_seconds() - started;
        row->file = run->files[file];
        sum_up(run, file, row);
        good = take_usage(run, before, &row->usage);
    }
    xmoe_usage_free(before);
    return good;
}

/* All files at one routing, and their sum where there are several. */
static bool evaluate_routing(evaluation *run, const xmoe_routing *routing, eval_report *report)
{
    xmoe_error error;
    double seconds = 0;
    if (xmoe_usage_reset(run->session.engine, NULL, &error) != XMOE_OK) {
        cli_fail("%s", error.message);
        return false;
    }
    for (int32_t file = 0; file < run->file_count; file++) {
        eval_row row = {0};
        eval_row_set_routing(&row, run->session.model, routing);
        if (!evaluate_file(run, file, routing, &row) || !eval_report_add(report, &row)) {
            return false;
        }
        seconds += row.seconds;
    }
    if (run->file_count == 1) {
        return true;
    }
    eval_row sum = {.file = "all", .seconds = seconds};
    eval_row_set_routing(&sum, run->session.model, routing);
    sum_up(run, -1, &sum);
    return take_usage(run, NULL, &sum.usage) && eval_report_add(report, &sum);
}

static bool evaluate(evaluation *run, eval_report *report)
{
    const cli_floats *thresholds = &run->set->thresholds;
    if (thresholds->count == 0) {
        return evaluate_routing(run, &run->session.routing, report);
    }
    run->positions_total *= (uint64_t)thresholds->count;
    for (int32_t i = 0; i < thresholds->count; i++) {
        xmoe_routing routing = run->session.routing;
        routing_set_threshold(&routing, thresholds->values[i]);
        if (!evaluate_routing(run, &routing, report)) {
            return false;
        }
    }
    return true;
}

/* --- set-up ------------------------------------------------------------------------------------
 */

/* Bytes of keys and values of `parallel` windows. */
static uint64_t kv_bytes(const settings *set, const xmoe_model_info *info)
{
    uint64_t positions = ((uint64_t)set->window + 16) * (uint64_t)set->parallel;
    uint64_t per_position = 2 * (uint64_t)info->layer_count * (uint64_t)info->embedding_length;
    return positions * per_position * (set->kv_f32 ? 4 : 2);
}

static int prepare(evaluation *run, settings *set)
{
    int status = session_load(&run->session, &set->session);
    if (status != CLI_OK) {
        return status;
    }
    const xmoe_model_info *info = run->session.info;
    set->window = set->window == 0 ? info->context_length : set->window;
    set->stride = set->stride == 0 ? (set->window + 1) / 2 : set->stride;
    if (set->window < 2 || set->window > info->context_length) {
        return cli_wrong("--window: %d is not within 2 and the model's context of %d tokens",
                         set->window, info->context_length);
    }
    if (set->stride >= set->window) {
        return cli_wrong("--stride: %d must be below the window of %d tokens", set->stride,
                         set->window);
    }
    for (int32_t file = 0; file < run->file_count; file++) {
        size_t before = run->documents.count;
        if (!documents_add_file(&run->documents, run->session.model, run->files[file], file,
                                set->documents)) {
            return CLI_FAILED;
        }
        if (run->documents.count == before) {
            return cli_fail("%s: no text in it", run->files[file]);
        }
    }
    run->document_nats = calloc(run->documents.count, sizeof *run->document_nats);
    if (run->document_nats == NULL || !plan_windows(run)) {
        return cli_fail("out of memory");
    }
    xmoe_engine_options options;
    xmoe_engine_default_options(&options);
    options.max_sequences = set->parallel;
    options.queue_length = set->parallel;
    options.prefix_cache = false;
    options.kv_f32 = set->kv_f32;
    options.kv_bytes = kv_bytes(set, info);
    return session_start(&run->session, &set->session, &options);
}

static int run_evaluation(settings *set, const char *const *files, int32_t file_count)
{
    evaluation run = {.set = set, .files = files, .file_count = file_count};
    eval_report report = {0};
    gate_init(&run.gate);
    cli_progress_start(&run.progress, "positions", set->session.quiet);
    int status = prepare(&run, set);
    if (status == CLI_OK && !evaluate(&run, &report)) {
        status = cli_interrupted() ? CLI_INTERRUPTED : CLI_FAILED;
    }
    if (report.count > 0) {
        const eval_style style = {.csv = set->csv,
                                  .json = set->json,
                                  .usage = set->expert_usage,
                                  .window = set->window,
                                  .stride = set->stride};
        eval_report_print(&report, run.session.info, &style);
    }
    session_close(&run.session); /* ends what is in flight, so windows can go after it */
    eval_report_free(&report);
    free(run.windows);
    free(run.document_nats);
    documents_free(&run.documents);
    gate_free(&run.gate);
    return status;
}

int main(int argc, char **argv)
{
    settings set = {.parallel = 4};
    cli_flag flags[SESSION_FLAGS + 9];
    size_t count = session_add_flags(&set.session, flags);
    const cli_flag own[] = {
        {.name = "thresholds",
         .argument = "T,T,...",
         .type = CLI_FLOATS,
         .value = &set.thresholds,
         .maximum = 1,
         .above_minimum = true,
         .help = "measure at each of these thresholds"},
        {.name = "window",
         .argument = "N",
         .type = CLI_INT,
         .value = &set.window,
         .minimum = 2,
         .maximum = INT32_MAX,
         .default_text = "the model's context",
         .help = "tokens that are looked at together"},
        {.name = "stride",
         .argument = "N",
         .type = CLI_INT,
         .value = &set.stride,
         .minimum = 1,
         .maximum = INT32_MAX,
         .default_text = "half a window",
         .help = "tokens between the starts of windows"},
        {.name = "documents",
         .argument = "N",
         .type = CLI_INT,
         .value = &set.documents,
         .maximum = INT32_MAX,
         .default_text = "all",
         .help = "only the first N documents of each file"},
        {.name = "parallel",
         .argument = "N",
         .type = CLI_INT,
         .value = &set.parallel,
         .minimum = 1,
         .maximum = 256,
         .help = "windows in flight"},
        {.name = "kv-f32",
         .type = CLI_BOOL,
         .value = &set.kv_f32,
         .help = "keep keys and values in F32 instead of F16"},
        {.name = "expert-usage",
         .type = CLI_BOOL,
         .value = &set.expert_usage,
         .help = "add a table of each layer's experts (with --json: all counters)"},
        {.name = "csv", .type = CLI_BOOL, .value = &set.csv, .help = "comma-separated output"},
        {.name = "json", .type = CLI_BOOL, .value = &set.json, .help = "JSON output"},
    };
    memcpy(flags + count, own, sizeof own);
    const cli_program program = {
        .name = "xmoe-eval",
        .usage = "FILE...",
        .description =
            "Measures how well a model predicts text files (-: stdin): loss in nats per token, "
            "bits per\nbyte, perplexity, speed, and which experts worked. Lines <|endoftext|> "
            "separate documents;\nthey are neither predicted nor counted, every other byte is. A "
            "document's first token is\npredicted from the begin-of-text token. Long documents are "
            "cut into overlapping windows;\neach token is counted once, with at least window - "
            "stride tokens before it.",
        .examples = "  xmoe-eval test.txt\n"
                    "  xmoe-eval --thresholds 0.3,0.5,0.7,0.9,1 --csv en.txt fr.txt > curve.csv\n"
                    "  xzcat test.txt.xz | xmoe-eval --documents 20 --expert-usage -\n",
        .flags = flags,
        .flag_count = count + sizeof own / sizeof own[0],
        .minimum_arguments = 1,
        .maximum_arguments = -1,
    };
    cli_arguments arguments;
    if (!cli_parse(&program, argc, argv, &arguments)) {
        return arguments.status;
    }
    if (set.csv && set.json) {
        return cli_wrong("--csv and --json exclude each other");
    }
    cli_catch_interrupt();
    return run_evaluation(&set, (const char *const *)arguments.values, arguments.count);
}
