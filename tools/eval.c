/*
 * eval.c - xmoe-eval: how well a model predicts text, at one or many routings, and which experts
 * worked on it.
 *
 * What is counted: every token of every document, each once. The first is predicted from the
 * begin-of-text token alone; separators between documents are neither predicted nor counted.
 * Documents longer than the context are cut into windows (eval_windows.h). Bits per byte are the
 * summed nats over ln 2, divided by the bytes of the documents' text (documents.h): all bytes are
 * predicted, so figures of models with different vocabularies compare.
 *
 * Speed and expert usage are those of all positions computed, those that overlapping windows
 * compute again included; a trace has every position once.
 */
#include "eval_report.h"
#include "eval_windows.h"
#include "usage_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    session_settings session;
    cli_floats thresholds;
    int32_t window, stride, parallel, documents;
    bool kv_f32, expert_usage, csv, json;
    const char *trace, *usage_file, *importance, *window_file;
} settings;

typedef struct {
    const settings *set;
    tool_session session;
    eval_windows windows;
    const char *const *files;
    int32_t file_count;
    double *document_nats;
    trace_file trace;
    output_file usage_file, window_file;
} evaluation;

/* --- figures -----------------------------------------------------------------------------------
 */

/* Standard error of sum(nats) / sum(units) over documents as independent samples (the linearised
 * ratio estimator); NaN for fewer than two. units: tokens, or bytes. */
static double standard_error(const evaluation *run, int32_t file, bool bytes)
{
    double nats = 0, units = 0, squares = 0;
    size_t count = 0;
    for (size_t pass = 0; pass < 2; pass++) {
        for (size_t d = 0; d < run->windows.documents.count; d++) {
            const document *item = &run->windows.documents.items[d];
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
    for (size_t d = 0; d < run->windows.documents.count; d++) {
        const document *item = &run->windows.documents.items[d];
        if (file < 0 || item->file == file) {
            run->document_nats[d] = 0;
            row->documents++;
            row->tokens += item->count - 1;
            row->bytes += item->bytes;
        }
    }
    for (size_t i = 0; i < run->windows.count; i++) {
        const eval_window *item = &run->windows.items[i];
        if (file < 0 || run->windows.documents.items[item->document].file == file) {
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

/* The loss of every window of a file, from which the difference of two models on the same windows
 * gets its own, much smaller, standard error. */
static void write_windows(evaluation *run, int32_t file, const char *routing)
{
    FILE *stream = run->window_file.stream;
    for (size_t i = 0; i < run->windows.count; i++) {
        const eval_window *item = &run->windows.items[i];
        if (run->windows.documents.items[item->document].file == file) {
            fprintf(stream, "%s,%zu,%zu,%zu,%.9g,", routing, item->document, item->start,
                    item->start + (size_t)item->length - item->first, item->nats);
            eval_print_csv_text(stream, run->files[file]);
            putc('\n', stream);
        }
    }
}

/* One file at one routing: a row of the report. */
static bool evaluate_file(evaluation *run, int32_t file, const xmoe_routing *routing, eval_row *row)
{
    xmoe_usage *before = NULL;
    if (!take_usage(run, NULL, &before)) {
        return false;
    }
    double started = cli_seconds();
    bool good = windows_score_file(&run->windows, run->session.engine, file, routing);
    if (good) {
        row->seconds = cli_seconds() - started;
        row->file = run->files[file];
        sum_up(run, file, row);
        if (run->window_file.stream != NULL) {
            write_windows(run, file, row->routing);
        }
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
    run->windows.to_score = run->windows.positions;
    if (thresholds->count == 0) {
        return evaluate_routing(run, &run->session.routing, report);
    }
    run->windows.to_score *= (uint64_t)thresholds->count;
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

/* Before the long work, so that a name that cannot be written is known at once. */
static bool open_outputs(evaluation *run)
{
    const settings *set = run->set;
    if (set->trace != NULL) {
        run->windows.trace = &run->trace;
        if (!trace_open(&run->trace, set->trace, run->session.model,
                        documents_begin_token(run->session.model))) {
            return false;
        }
    }
    if (set->window_file != NULL) {
        if (!output_open(&run->window_file, set->window_file)) {
            return false;
        }
        fprintf(run->window_file.stream, "routing,document,start,tokens,nats,file\n");
    }
    return set->usage_file == NULL || output_open(&run->usage_file, set->usage_file);
}

/* Completes the files asked for, after all is scored. */
static bool finish_outputs(evaluation *run)
{
    const settings *set = run->set;
    if (set->trace != NULL && !trace_finish(&run->trace)) {
        return false;
    }
    xmoe_error error;
    if (set->importance != NULL &&
        xmoe_engine_write_importance(run->session.engine, set->importance, run->files[0], &error) !=
            XMOE_OK) {
        cli_fail("%s", error.message);
        return false;
    }
    if (set->window_file != NULL && !output_finish(&run->window_file)) {
        return false;
    }
    if (set->usage_file == NULL) {
        return true;
    }
    usage_file usage = {.created = time(NULL)};
    usage_file_set_id(&usage, set->usage_file);
    usage_file_set_model(&usage, cli_find_model(set->session.model));
    if (xmoe_usage_get_phases(run->session.engine, usage.phases, &error) != XMOE_OK) {
        cli_fail("%s", error.message);
        return false;
    }
    usage_file_print(run->usage_file.stream, &usage);
    usage_file_free(&usage);
    return output_finish(&run->usage_file);
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
        size_t before = run->windows.documents.count;
        if (!documents_add_file(&run->windows.documents, run->session.model, run->files[file], file,
                                set->documents)) {
            return CLI_FAILED;
        }
        if (run->windows.documents.count == before) {
            return cli_fail("%s: no text in it", run->files[file]);
        }
    }
    run->document_nats = calloc(run->windows.documents.count, sizeof *run->document_nats);
    if (run->document_nats == NULL ||
        !windows_plan(&run->windows, (size_t)set->window, (size_t)set->stride)) {
        return cli_fail("out of memory");
    }
    if (!open_outputs(run)) {
        return CLI_FAILED;
    }
    xmoe_engine_options options;
    xmoe_engine_default_options(&options);
    options.max_sequences = set->parallel;
    options.queue_length = set->parallel;
    options.prefix_cache = false;
    options.kv_f32 = set->kv_f32;
    options.kv_bytes = kv_bytes(set, info);
    options.measure_importance = set->importance != NULL;
    return session_start(&run->session, &set->session, &options);
}

static int run_evaluation(settings *set, const char *const *files, int32_t file_count)
{
    evaluation run = {.set = set, .files = files, .file_count = file_count};
    eval_report report = {0};
    windows_init(&run.windows, set->session.quiet);
    run.windows.parallel = set->parallel;
    int status = prepare(&run, set);
    if (status == CLI_OK && !(evaluate(&run, &report) && finish_outputs(&run))) {
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
    free(run.document_nats);
    windows_free(&run.windows);
    trace_abandon(&run.trace);
    output_abandon(&run.usage_file);
    output_abandon(&run.window_file);
    return status;
}

int main(int argc, char **argv)
{
    settings set = {.parallel = 4};
    cli_flag flags[SESSION_FLAGS + 13];
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
        {.name = "trace",
         .argument = "FILE",
         .type = CLI_STRING,
         .value = &set.trace,
         .help = "write which experts every position took, each position once: CSV, or binary "
                 "where the name ends in .xmt (tools/read_trace.py reads both)"},
        {.name = "usage-file",
         .argument = "FILE",
         .type = CLI_STRING,
         .value = &set.usage_file,
         .help = "write the usage of all files as a snapshot for xmoe-usage or a server"},
        {.name = "window-file",
         .argument = "FILE",
         .type = CLI_STRING,
         .value = &set.window_file,
         .help = "write the loss of every window, as CSV: for paired comparisons of models"},
        {.name = "importance",
         .argument = "FILE",
         .type = CLI_STRING,
         .value = &set.importance,
         .help = "write how much each input of each matrix mattered on these texts, for "
                 "xmoe-quantize --importance"},
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
            "stride tokens before it.\n"
            "Expert usage is that of all positions computed, those of overlaps too.",
        .examples = "  xmoe-eval test.txt\n"
                    "  xmoe-eval --thresholds 0.3,0.5,0.7,0.9,1 --csv en.txt fr.txt > curve.csv\n"
                    "  xmoe-eval --trace en.xmt --usage-file en.json en.txt\n"
                    "  xmoe-eval --model model.gguf --importance importance.gguf en.txt fr.txt\n"
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
    if (set.csv && set.expert_usage) {
        return cli_wrong("--expert-usage is in no column: --json has it");
    }
    if ((set.trace != NULL || set.usage_file != NULL || set.importance != NULL) &&
        set.thresholds.count > 1) {
        return cli_wrong("--trace, --usage-file and --importance are of one routing: with "
                         "--thresholds give one");
    }
    cli_catch_interrupt();
    return cli_finish(run_evaluation(&set, (const char *const *)arguments.values, arguments.count));
}
