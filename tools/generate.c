/*
 * generate.c - xmoe-generate: continues one prompt and streams the text to stdout.
 *
 * Events arrive on the scheduler's thread, which must not wait for a slow terminal: the callback
 * copies the text into an outbox and the main thread writes it. Ctrl-C cancels the request; what
 * was generated so far stays, and the summary still comes.
 */
#include "cli.h"
#include "session.h"
#include "usage_report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the callback hands to the main thread; all under the gate's lock. */
typedef struct {
    flight_gate gate;
    char *text; /* all text so far */
    size_t length, capacity;
    bool out_of_memory;
    xmoe_finish finish;
    xmoe_request_summary summary;
    xmoe_error error;
} outbox;

typedef struct {
    session_settings session;
    xmoe_sampling sampling;
    int32_t max_tokens;
    uint64_t kv_bytes;
    const char *stop;
    bool special, bos, echo, ignore_eos, expert_usage, json;
} settings;

/* --- scheduler thread --------------------------------------------------------------------------
 */

static void add_text(outbox *box, const char *text, size_t length)
{
    if (box->capacity - box->length < length) {
        size_t capacity = 2 * box->capacity + length + 256;
        char *grown = realloc(box->text, capacity);
        if (grown == NULL) {
            box->out_of_memory = true;
            return;
        }
        box->text = grown;
        box->capacity = capacity;
    }
    if (length > 0) {
        memcpy(box->text + box->length, text, length);
        box->length += length;
    }
}

static void take_end(outbox *box, const xmoe_event *event)
{
    box->summary = *event->summary;
    if (event->finish != XMOE_FINISH_NONE) {
        box->finish = event->finish;
    }
    if (event->error != NULL) {
        box->error = *event->error;
    }
}

static void on_event(void *context, const xmoe_event *event)
{
    outbox *box = context;
    if (event->kind == XMOE_EVENT_END) {
        take_end(box, event);
        gate_leave(&box->gate);
        return;
    }
    pthread_mutex_lock(&box->gate.lock);
    if (event->kind == XMOE_EVENT_TOKEN || event->kind == XMOE_EVENT_CHOICE) {
        add_text(box, event->text, event->text_length);
    }
    if (event->kind == XMOE_EVENT_CHOICE) {
        box->finish = event->finish;
    }
    gate_notify_locked(&box->gate);
    pthread_mutex_unlock(&box->gate.lock);
}

/* --- main thread -------------------------------------------------------------------------------
 */

/* Writes what is new in the outbox. False if stdout takes no more. */
static bool write_news(outbox *box, size_t *written)
{
    char piece[4096];
    while (true) {
        pthread_mutex_lock(&box->gate.lock);
        size_t count = box->length - *written;
        count = count < sizeof piece ? count : sizeof piece;
        if (count > 0) {
            memcpy(piece, box->text + *written, count);
        }
        pthread_mutex_unlock(&box->gate.lock);
        if (count == 0) {
            return fflush(stdout) == 0;
        }
        if (fwrite(piece, 1, count, stdout) != count) {
            return false;
        }
        *written += count;
    }
}

/* Streams until the request has ended. A stdout that is gone or Ctrl-C cancels it. */
static bool stream(xmoe_engine *engine, uint64_t request, outbox *box, bool stream_text)
{
    size_t written = 0;
    uint64_t seen = 0;
    bool good = true, cancelled = false;
    bool running = true;
    while (running) {
        running = !gate_wait_news(&box->gate, &seen);
        if (stream_text && good) {
            good = write_news(box, &written);
        }
        if (!cancelled && (!good || cli_interrupted())) {
            xmoe_request_cancel(engine, request);
            cancelled = true;
        }
    }
    if (stream_text && good) {
        good = write_news(box, &written) && putchar('\n') != EOF && fflush(stdout) == 0;
    }
    return good;
}

static void write_json(const settings *set, const xmoe_model_info *info, const outbox *box,
                       const xmoe_usage *usage)
{
    const xmoe_request_summary *summary = &box->summary;
    json_writer json = {.out = stdout};
    json_open_object(&json, NULL);
    json_text(&json, "text", box->length > 0 ? box->text : "", box->length);
    json_string(&json, "finish", finish_name(box->finish));
    json_unsigned(&json, "seed", set->sampling.seed);
    json_unsigned(&json, "prompt_tokens", summary->prompt_tokens);
    json_unsigned(&json, "completion_tokens", summary->completion_tokens);
    json_number(&json, "prompt_seconds", summary->prompt_seconds);
    json_number(&json, "decode_seconds", summary->decode_seconds);
    json_number(&json, "mean_active_experts", summary->mean_active_experts);
    json_number(&json, "expert_bytes_per_token", summary->expert_bytes_per_token);
    if (usage != NULL) {
        usage_write_json(&json, "expert_usage", info->name, usage);
    }
    json_close_object(&json);
}

static void print_summary(const outbox *box)
{
    const xmoe_request_summary *summary = &box->summary;
    char bytes[32];
    double prompt_rate =
        summary->prompt_seconds > 0 ? (double)summary->prompt_tokens / summary->prompt_seconds : 0;
    /* The first token belongs to the prompt's time. */
    double decode_rate = summary->decode_seconds > 0 && summary->completion_tokens > 1
                             ? (double)(summary->completion_tokens - 1) / summary->decode_seconds
                             : 0;
    cli_warn("prompt %llu tokens (%.0f/s), generated %llu (%.1f/s), %.2f experts per token and "
             "layer, %s of expert weights per token, finish: %s",
             (unsigned long long)summary->prompt_tokens, prompt_rate,
             (unsigned long long)summary->completion_tokens, decode_rate,
             summary->mean_active_experts, cli_format_bytes(bytes, summary->expert_bytes_per_token),
             finish_name(box->finish));
}

static int report(const settings *set, const tool_session *session, const outbox *box)
{
    xmoe_error error;
    xmoe_usage *usage = NULL;
    /* The engine has served this request only, so its usage is the request's. */
    if (set->expert_usage &&
        xmoe_usage_get(session->engine, -1, XMOE_PHASE_ALL, 0, &usage, &error) != XMOE_OK) {
        return cli_fail("%s", error.message);
    }
    if (set->json) {
        write_json(set, session->info, box, usage);
    }
    if (!set->session.quiet) {
        print_summary(box);
    }
    if (usage != NULL && !set->json) {
        usage_print(stderr, usage);
    }
    xmoe_usage_free(usage);
    return CLI_OK;
}

/* Prompt tokens from malloc: begin-of-text where asked for or where there is nothing else. */
static int make_prompt(const settings *set, const tool_session *session, const char *text,
                       size_t length, int32_t **tokens, size_t *count)
{
    xmoe_error error;
    if (xmoe_tokenize(session->model, text, length, !set->bos, set->special, tokens, count,
                      &error) != XMOE_OK) {
        return cli_fail("%s", error.message);
    }
    if (!set->bos && *count > 0) {
        return CLI_OK;
    }
    if (session->info->bos_token < 0) {
        return cli_fail(*count == 0 ? "the prompt is empty and the model has no token to begin with"
                                    : "--bos: the model has no token to begin with");
    }
    int32_t *longer = realloc(*tokens, (*count + 1) * sizeof **tokens);
    if (longer == NULL) {
        return cli_fail("out of memory");
    }
    memmove(longer + 1, longer, *count * sizeof *longer);
    longer[0] = session->info->bos_token;
    *tokens = longer;
    (*count)++;
    return CLI_OK;
}

static int run(const settings *set, const tool_session *session, const char *text, size_t length)
{
    outbox box = {.finish = XMOE_FINISH_NONE};
    xmoe_request_params params;
    xmoe_error error;
    int32_t *tokens = NULL;
    size_t count;
    uint64_t request;
    bool written = true;
    gate_init(&box.gate);
    int status = make_prompt(set, session, text, length, &tokens, &count);
    if (status != CLI_OK) {
        goto done;
    }
    xmoe_request_default_params(&params);
    params.prompt = tokens;
    params.prompt_length = count;
    params.max_tokens = set->max_tokens;
    params.sampling = set->sampling;
    params.stop = &set->stop;
    params.stop_count = set->stop != NULL ? 1 : 0;
    params.ignore_eos = set->ignore_eos;
    params.on_event = on_event;
    params.context = &box;
    if (set->echo && !set->json) {
        fwrite(text, 1, length, stdout);
    }
    gate_enter(&box.gate);
    if (xmoe_request_submit(session->engine, &params, &request, &error) != XMOE_OK) {
        status = cli_fail("%s", error.message);
        goto done;
    }
    written = stream(session->engine, request, &box, !set->json);
    if (box.finish == XMOE_FINISH_ERROR) {
        status = cli_fail("%s", box.error.message);
    } else if (box.out_of_memory || !written) {
        status = cli_fail(written ? "out of memory" : "cannot write to stdout");
    } else {
        status = report(set, session, &box);
    }
    if (status == CLI_OK && cli_interrupted()) {
        status = CLI_INTERRUPTED;
    }
done:
    free(tokens);
    free(box.text);
    gate_free(&box.gate);
    return status;
}

/* The prompt's text from malloc: the argument, or stdin without its last newline. */
static char *read_prompt(const cli_arguments *arguments, size_t *length)
{
    if (arguments->count > 0 && strcmp(arguments->values[0], "-") != 0) {
        *length = strlen(arguments->values[0]);
        return strdup(arguments->values[0]);
    }
    char *text = cli_read_file("-", length);
    if (text != NULL && *length > 0 && text[*length - 1] == '\n') {
        (*length)--;
    }
    return text;
}

static size_t add_flags(settings *set, cli_flag *rows)
{
    xmoe_sampling *sampling = &set->sampling;
    const cli_flag flags[] = {
        {.name = "max-tokens",
         .argument = "N",
         .type = CLI_INT,
         .value = &set->max_tokens,
         .minimum = 1,
         .maximum = INT32_MAX,
         .help = "tokens to generate at most"},
        {.name = "temperature",
         .argument = "X",
         .type = CLI_FLOAT,
         .value = &sampling->temperature,
         .maximum = 100,
         .help = "0: always the most probable token"},
        {.name = "top-p",
         .argument = "P",
         .type = CLI_FLOAT,
         .value = &sampling->top_p,
         .maximum = 1,
         .above_minimum = true,
         .help = "sample from the most probable tokens that add up to P; 1: off"},
        {.name = "top-k",
         .argument = "K",
         .type = CLI_INT,
         .value = &sampling->top_k,
         .maximum = INT32_MAX,
         .help = "sample from the K most probable tokens; 0: off"},
        {.name = "min-p",
         .argument = "P",
         .type = CLI_FLOAT,
         .value = &sampling->min_p,
         .maximum = 1,
         .help = "leave out tokens below P times the most probable; 0: off"},
        {.name = "repetition-penalty",
         .argument = "X",
         .type = CLI_FLOAT,
         .value = &sampling->repetition_penalty,
         .maximum = 100,
         .above_minimum = true,
         .help = "above 1: tokens seen before become less probable"},
        {.name = "presence-penalty",
         .argument = "X",
         .type = CLI_FLOAT,
         .value = &sampling->presence_penalty,
         .minimum = -100,
         .maximum = 100,
         .help = "taken once from the logit of tokens generated before"},
        {.name = "frequency-penalty",
         .argument = "X",
         .type = CLI_FLOAT,
         .value = &sampling->frequency_penalty,
         .minimum = -100,
         .maximum = 100,
         .help = "taken per occurrence from the logit of tokens generated before"},
        {.name = "seed",
         .argument = "N",
         .type = CLI_SIZE,
         .value = &sampling->seed,
         .help = "same seed, same text"},
        {.name = "stop",
         .argument = "TEXT",
         .type = CLI_STRING,
         .value = &set->stop,
         .help = "end before this text"},
        {.name = "ignore-eos",
         .type = CLI_BOOL,
         .value = &set->ignore_eos,
         .help = "go on after the end-of-text token"},
        {.name = "special",
         .type = CLI_BOOL,
         .value = &set->special,
         .help = "<|endoftext|> and the like in the prompt are tokens, not text"},
        {.name = "bos",
         .type = CLI_BOOL,
         .value = &set->bos,
         .help = "put the begin-of-text token before the prompt; an empty prompt always gets it"},
        {.name = "echo", .type = CLI_BOOL, .value = &set->echo, .help = "print the prompt first"},
        {.name = "expert-usage",
         .type = CLI_BOOL,
         .value = &set->expert_usage,
         .help = "show which experts worked: a table on stderr, with --json part of it"},
        {.name = "json",
         .type = CLI_BOOL,
         .value = &set->json,
         .help = "one JSON object on stdout at the end, instead of streaming text"},
        {.name = "kv-bytes",
         .argument = "N",
         .type = CLI_SIZE,
         .value = &set->kv_bytes,
         .default_text = "one full context",
         .help = "memory of the KV cache (K, M, G)"},
    };
    memcpy(rows, flags, sizeof flags);
    return sizeof flags / sizeof flags[0];
}

int main(int argc, char **argv)
{
    /* One sequence of full context is always provided for, whatever kv_bytes says. */
    settings set = {.max_tokens = 128, .kv_bytes = 1};
    xmoe_request_params defaults;
    xmoe_request_default_params(&defaults);
    set.sampling = defaults.sampling;
    cli_flag flags[SESSION_FLAGS + 24];
    size_t count = session_add_flags(&set.session, flags);
    count += add_flags(&set, flags + count);
    const cli_program program = {
        .name = "xmoe-generate",
        .usage = "[PROMPT]",
        .description = "Continues PROMPT and streams the text to stdout. Without PROMPT, or with "
                       "-, the prompt is\nread from stdin (one newline at its end is dropped). "
                       "Ctrl-C ends the text early.",
        .examples = "  xmoe-generate 'Once upon a time'\n"
                    "  xmoe-generate --threshold 0.5 --expert-usage --temperature 0 < prompt.txt\n"
                    "  xmoe-generate --json --expert-usage 'int main' | jq .expert_usage.summary\n",
        .flags = flags,
        .flag_count = count,
        .maximum_arguments = 1,
    };
    cli_arguments arguments;
    if (!cli_parse(&program, argc, argv, &arguments)) {
        return arguments.status;
    }
    cli_catch_interrupt();
    size_t length;
    char *text = read_prompt(&arguments, &length);
    if (text == NULL) {
        return CLI_FAILED;
    }
    tool_session session = {0};
    xmoe_engine_options options;
    xmoe_engine_default_options(&options);
    options.kv_bytes = set.kv_bytes;
    int status = session_open(&session, &set.session, &options);
    if (status == CLI_OK) {
        status = run(&set, &session, text, length);
    }
    session_close(&session);
    free(text);
    return cli_finish(status);
}
