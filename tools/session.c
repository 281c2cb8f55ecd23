/*
 * session.c - see session.h.
 */
#include "session.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

size_t session_add_flags(session_settings *settings, cli_flag *rows)
{
    const cli_flag flags[SESSION_FLAGS] = {
        {.name = "model",
         .argument = "FILE",
         .type = CLI_STRING,
         .value = &settings->model,
         .default_text = "the bundled models/xmoe-small.gguf",
         .help = "GGUF model"},
        {.name = "context-length",
         .argument = "N",
         .type = CLI_INT,
         .value = &settings->context_length,
         .minimum = 1,
         .maximum = INT32_MAX,
         .default_text = "the model's own",
         .help = "longest sequence, where the model's is longer"},
        {.name = "threads",
         .argument = "N",
         .type = CLI_INT,
         .value = &settings->threads,
         .maximum = 1024,
         .default_text = "all CPUs",
         .help = "compute threads"},
        {.name = "isa",
         .argument = "NAME",
         .type = CLI_STRING,
         .value = &settings->isa,
         .choices = "scalar|avx2|avx512",
         .default_text = "the best of this CPU",
         .help = "kernels to use"},
        {.name = "router",
         .argument = "TYPE",
         .type = CLI_STRING,
         .value = &settings->router,
         .choices = "threshold|top_k|dense|sigmoid",
         .default_text = "the model's own",
         .help = "how experts are chosen"},
        {.name = "threshold",
         .argument = "T",
         .type = CLI_FLOAT,
         .value = &settings->threshold,
         .maximum = 1,
         .above_minimum = true,
         .default_text = "the model's own",
         .help = "probability that a token's experts add up to, or above which one is taken "
                 "(sigmoid); implies --router threshold on models of another type"},
        {.name = "top-k-experts",
         .argument = "K",
         .type = CLI_INT,
         .value = &settings->top_k,
         .minimum = 1,
         .maximum = INT32_MAX,
         .default_text = "the model's own",
         .help = "experts per token; implies --router top_k"},
        {.name = "min-experts",
         .argument = "N",
         .type = CLI_INT,
         .value = &settings->min_experts,
         .minimum = 1,
         .maximum = INT32_MAX,
         .default_text = "the model's own",
         .help = "floor of experts per token"},
        {.name = "max-experts",
         .argument = "N",
         .type = CLI_INT,
         .value = &settings->max_experts,
         .minimum = 1,
         .maximum = INT32_MAX,
         .default_text = "the model's own",
         .help = "cap of experts per token"},
        {.name = "quiet",
         .type = CLI_BOOL,
         .value = &settings->quiet,
         .help = "no progress and no remarks on stderr"},
    };
    memcpy(rows, flags, sizeof flags);
    return SESSION_FLAGS;
}

/* --- routing -----------------------------------------------------------------------------------
 */

static int apply_router_type(const session_settings *settings, xmoe_router_type *type)
{
    if (settings->threshold > 0 && settings->top_k > 0 && settings->router == NULL) {
        return cli_wrong("--threshold and --top-k-experts together need --router to say which");
    }
    if (settings->router != NULL) {
        if (!xmoe_router_type_parse(settings->router, type)) {
            return cli_wrong("--router: unknown type '%s'", settings->router);
        }
    } else if (settings->threshold > 0 && *type != XMOE_ROUTER_SIGMOID) {
        *type = XMOE_ROUTER_THRESHOLD;
    } else if (settings->top_k > 0) {
        *type = XMOE_ROUTER_TOP_K;
    }
    return CLI_OK;
}

static int apply_routing(const session_settings *settings, const xmoe_model *model,
                         xmoe_routing *routing)
{
    xmoe_error error;
    xmoe_model_default_routing(model, routing);
    for (int32_t i = 0; i < routing->layer_count; i++) {
        xmoe_router *router = &routing->layers[i];
        int status = apply_router_type(settings, &router->type);
        if (status != CLI_OK) {
            return status;
        }
        if (settings->threshold > 0) {
            router->threshold = settings->threshold;
        }
        if (settings->top_k > 0) {
            router->top_k = settings->top_k;
        }
        if (settings->min_experts > 0) {
            router->min_experts = settings->min_experts;
        }
        if (settings->max_experts > 0) {
            router->max_experts = settings->max_experts;
        }
    }
    if (xmoe_routing_check(model, routing, &error) != XMOE_OK) {
        return cli_wrong("%s", error.message);
    }
    return CLI_OK;
}

void routing_set_threshold(xmoe_routing *routing, float threshold)
{
    for (int32_t i = 0; i < routing->layer_count; i++) {
        if (routing->layers[i].type != XMOE_ROUTER_SIGMOID) {
            routing->layers[i].type = XMOE_ROUTER_THRESHOLD;
        }
        routing->layers[i].threshold = threshold;
    }
}

/* --- model and engine --------------------------------------------------------------------------
 */

int session_load(tool_session *session, const session_settings *settings)
{
    const char *path = cli_find_model(settings->model);
    if (path == NULL) {
        return CLI_FAILED;
    }
    xmoe_error error;
    cli_progress progress;
    cli_progress_start(&progress, "bytes", settings->quiet);
    const xmoe_model_options options = {.isa = settings->isa,
                                        .threads = settings->threads,
                                        .context_length = settings->context_length,
                                        .progress = cli_progress_report,
                                        .progress_context = &progress};
    xmoe_status status = xmoe_model_load(path, &options, &session->model, &error);
    cli_progress_clear(&progress);
    if (cli_interrupted()) {
        return CLI_INTERRUPTED;
    }
    if (status != XMOE_OK) {
        return cli_fail("%s", error.message);
    }
    session->info = xmoe_model_get_info(session->model);
    return apply_routing(settings, session->model, &session->routing);
}

int session_start(tool_session *session, const session_settings *settings,
                  xmoe_engine_options *options)
{
    xmoe_error error;
    options->threads = settings->threads;
    if (xmoe_engine_create(session->model, options, &session->engine, &error) != XMOE_OK ||
        xmoe_engine_set_routing(session->engine, &session->routing, &error) != XMOE_OK) {
        return cli_fail("%s", error.message);
    }
    return CLI_OK;
}

int session_open(tool_session *session, const session_settings *settings,
                 xmoe_engine_options *options)
{
    int status = session_load(session, settings);
    return status == CLI_OK ? session_start(session, settings, options) : status;
}

void session_close(tool_session *session)
{
    if (session->engine != NULL) {
        xmoe_engine_free(session->engine);
    }
    xmoe_model_free(session->model);
    *session = (tool_session){0};
}

const char *finish_name(xmoe_finish finish)
{
    static const char *const names[] = {
        [XMOE_FINISH_NONE] = "running",      [XMOE_FINISH_STOP] = "stop",
        [XMOE_FINISH_LENGTH] = "length",     [XMOE_FINISH_CANCELLED] = "cancelled",
        [XMOE_FINISH_DEADLINE] = "deadline", [XMOE_FINISH_ERROR] = "error",
    };
    return names[finish];
}

/* --- gate --------------------------------------------------------------------------------------
 */

void gate_init(flight_gate *gate)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    gate->running = 0;
    gate->news = 0;
}

void gate_free(flight_gate *gate)
{
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->lock);
}

void gate_enter(flight_gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->running++;
    pthread_mutex_unlock(&gate->lock);
}

void gate_leave(flight_gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    gate->running--;
    gate_notify_locked(gate);
    pthread_mutex_unlock(&gate->lock);
}

void gate_notify_locked(flight_gate *gate)
{
    gate->news++;
    pthread_cond_signal(&gate->changed);
}

/* A signal does not wake a wait on a condition: look around ten times a second. */
static void wait_briefly(flight_gate *gate)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 100000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&gate->changed, &gate->lock, &until);
}

bool gate_wait(flight_gate *gate, int32_t below)
{
    pthread_mutex_lock(&gate->lock);
    while (gate->running >= below && !cli_interrupted()) {
        wait_briefly(gate);
    }
    bool reached = gate->running < below;
    pthread_mutex_unlock(&gate->lock);
    return reached;
}

bool gate_wait_news(flight_gate *gate, uint64_t *seen)
{
    pthread_mutex_lock(&gate->lock);
    if (gate->running > 0 && gate->news == *seen) {
        wait_briefly(gate);
    }
    *seen = gate->news;
    bool none = gate->running == 0;
    pthread_mutex_unlock(&gate->lock);
    return none;
}
