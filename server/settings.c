/*
 * settings.c - the table of settings, and how their values are checked, kept and printed.
 *
 * Where the values come from is settings_source.c.
 */
#include "settings.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_write.h"

#define AT(member)  offsetof(xm_settings, member)
#define INT32_LIMIT 2147483647.0

/* A table reads better than it wraps. */
/* clang-format off */
const xm_setting xm_setting_table[] = {
    {"model.path", XM_SETTING_STRING, AT(model_path), 0, 0, NULL, "", false, false,
     "GGUF file to serve; empty: the bundled model"},
    {"model.alias", XM_SETTING_STRING, AT(model_alias), 0, 0, NULL, "", false, false,
     "the model's id in the API; empty: the file's name without .gguf"},
    {"model.context_length", XM_SETTING_INTEGER, AT(model_context_length), 0, INT32_LIMIT, NULL, "0", false, false,
     "longest sequence in tokens, prompt and answer; 0: what the model was made for"},
    {"http.host", XM_SETTING_STRING, AT(http_host), 0, 0, NULL, "127.0.0.1", false, false,
     "address or name to listen on, IPv4 or IPv6"},
    {"http.port", XM_SETTING_INTEGER, AT(http_port), 0, 65535, NULL, "8080", false, false,
     "TCP port; 0 takes a free one and logs it"},
    {"http.threads", XM_SETTING_INTEGER, AT(http_threads), 1, 256, NULL, "4", false, false,
     "threads that read requests and write answers"},
    {"http.connections", XM_SETTING_INTEGER, AT(http_connections), 1, 100000, NULL, "2048", false, false,
     "connections open at once"},
    {"http.api_keys", XM_SETTING_LIST, AT(http_api_keys), 0, 0, NULL, "", true, true,
     "keys of which a request must bring one as `Authorization: Bearer KEY` or `X-Api-Key: KEY`; none: open to all"},
    {"http.api_key_file", XM_SETTING_STRING, AT(http_api_key_file), 0, 0, NULL, "", true, false,
     "file with further keys, one per line"},
    {"http.cors_origin", XM_SETTING_STRING, AT(http_cors_origin), 0, 0, NULL, "", true, false,
     "value of Access-Control-Allow-Origin, such as * or https://example.org; empty: no CORS headers"},
    {"engine.threads", XM_SETTING_INTEGER, AT(engine_threads), 0, 1024, NULL, "0", false, false,
     "compute threads; 0: all CPUs"},
    {"engine.isa", XM_SETTING_CHOICE, AT(engine_isa), 0, 0, "auto scalar avx2 avx512", "auto", false, false,
     "instruction set of the kernels; auto: the best of this CPU"},
    {"engine.max_sequences", XM_SETTING_INTEGER, AT(engine_max_sequences), 1, 4096, NULL, "64", false, false,
     "sequences that run at once"},
    {"engine.step_tokens", XM_SETTING_INTEGER, AT(engine_step_tokens), 1, 65536, NULL, "256", false, false,
     "tokens that one step of the model works on at most"},
    {"engine.queue_length", XM_SETTING_INTEGER, AT(engine_queue_length), 1, 1000000, NULL, "256", false, false,
     "requests that may wait; more are refused with 429"},
    {"engine.kv_bytes", XM_SETTING_INTEGER, AT(engine_kv_bytes), 0, 1e15, NULL, "536870912", false, false,
     "memory of the KV cache in bytes; one sequence of full context always fits"},
    {"engine.kv_type", XM_SETTING_CHOICE, AT(engine_kv_type), 0, 0, "f16 f32", "f16", false, false,
     "number type of keys and values"},
    {"engine.prefix_cache", XM_SETTING_BOOL, AT(engine_prefix_cache), 0, 0, NULL, "true", false, false,
     "keep the KV blocks of finished prompts for prompts that begin alike"},
    {"usage.window_seconds", XM_SETTING_INTEGER, AT(usage_window_seconds), 1, 3600, NULL, "3600", false, false,
     "history of expert usage kept for ?window="},
    {"usage.window_bytes", XM_SETTING_INTEGER, AT(usage_window_bytes), 0, 1e15, NULL, "67108864", false, false,
     "memory bound of that history in bytes"},
    {"usage.file", XM_SETTING_STRING, AT(usage_file), 0, 0, NULL, "", false, false,
     "file that keeps the counters of expert usage over restarts; empty: none"},
    {"usage.save_seconds", XM_SETTING_INTEGER, AT(usage_save_seconds), 1, 86400, NULL, "60", true, false,
     "how often usage.file is written; also at the end"},
    {"usage.directory", XM_SETTING_STRING, AT(usage_directory), 0, 0, NULL, "", false, false,
     "directory that keeps the snapshots of expert usage over restarts, as ID.json; empty: none"},
    {"usage.snapshots", XM_SETTING_INTEGER, AT(usage_snapshots), 0, 10000, NULL, "32", true, false,
     "snapshots of expert usage that are kept at most"},
    {"trace.bytes", XM_SETTING_INTEGER, AT(trace_bytes), 0, 1e15, NULL, "0", false, false,
     "memory of the trace of expert choices that GET /v1/experts/trace shows; 0: off"},
    {"trace.file", XM_SETTING_STRING, AT(trace_file), 0, 0, NULL, "", false, false,
     "file that every choice of experts is appended to, as JSON lines if it ends in .jsonl, else CSV; empty: none"},
    {"router.type", XM_SETTING_CHOICE, AT(router_type), 0, 0, "model threshold top_k dense sigmoid", "model", true, false,
     "default routing; model: as the file says"},
    {"router.threshold", XM_SETTING_NUMBER, AT(router_threshold), 0, 1, NULL, "0", true, false,
     "threshold in (0, 1], alone it makes the type threshold; 0: as the file says"},
    {"router.top_k", XM_SETTING_INTEGER, AT(router_top_k), 0, 65535, NULL, "0", true, false,
     "k of type top_k, alone it makes the type that; 0: as the file says"},
    {"router.min_experts", XM_SETTING_INTEGER, AT(router_min_experts), 0, 65535, NULL, "0", true, false,
     "least experts per token and layer; 0: as the file says"},
    {"router.max_experts", XM_SETTING_INTEGER, AT(router_max_experts), 0, 65535, NULL, "0", true, false,
     "most experts per token and layer; 0: as the file says"},
    {"router.normalize", XM_SETTING_CHOICE, AT(router_normalize), 0, 0, "model true false", "model", true, false,
     "divide the chosen experts' weights by their sum; model: as the file says"},
    {"limits.body_bytes", XM_SETTING_INTEGER, AT(limits_body_bytes), 1, 1e9, NULL, "2097152", true, false,
     "longest request body; more is refused with 413"},
    {"limits.body_seconds", XM_SETTING_INTEGER, AT(limits_body_seconds), 1, 3600, NULL, "30", true, false,
     "time for a request to arrive in full, then 408"},
    {"limits.idle_seconds", XM_SETTING_INTEGER, AT(limits_idle_seconds), 1, 86400, NULL, "75", true, false,
     "time that a connection may stay open between requests"},
    {"limits.prompts", XM_SETTING_INTEGER, AT(limits_prompts), 1, 10000, NULL, "128", true, false,
     "prompts in one request"},
    {"limits.choices", XM_SETTING_INTEGER, AT(limits_choices), 1, 128, NULL, "128", true, false,
     "largest n and best_of"},
    {"limits.max_tokens", XM_SETTING_INTEGER, AT(limits_max_tokens), 0, INT32_LIMIT, NULL, "0", true, false,
     "most tokens per choice, whatever is asked; 0: up to the context"},
    {"limits.request_seconds", XM_SETTING_INTEGER, AT(limits_request_seconds), 0, 86400, NULL, "0", true, false,
     "longest time of a generation, then it ends with finish_reason length; 0: no limit"},
    {"limits.stream_bytes", XM_SETTING_INTEGER, AT(limits_stream_bytes), 65536, 1e9, NULL, "16777216", true, false,
     "events waiting for a client that reads slowly; more: the stream is cut"},
    {"limits.stall_seconds", XM_SETTING_INTEGER, AT(limits_stall_seconds), 1, 3600, NULL, "60", true, false,
     "time that a client may leave its answer unread, then it is cut"},
    {"limits.drain_seconds", XM_SETTING_INTEGER, AT(limits_drain_seconds), 0, 86400, NULL, "30", true, false,
     "time for running requests to finish after SIGTERM"},
    {"limits.retry_seconds", XM_SETTING_INTEGER, AT(limits_retry_seconds), 1, 3600, NULL, "1", true, false,
     "Retry-After of 429 and 503"},
    {"stream.ping_seconds", XM_SETTING_INTEGER, AT(stream_ping_seconds), 1, 3600, NULL, "20", true, false,
     "an event stream with nothing to say sends a comment this often"},
    {"metrics.expert_tokens", XM_SETTING_CHOICE, AT(metrics_expert_tokens), 0, 0, "off layer full", "layer", true, false,
     "xmoe_expert_tokens_total: not at all, summed per layer, or one series per layer and expert"},
    {"log.level", XM_SETTING_CHOICE, AT(log_level), 0, 0, "debug info warning error", "info", true, false,
     "least severe lines that are written to stderr"},
    {"log.format", XM_SETTING_CHOICE, AT(log_format), 0, 0, "text json", "text", true, false,
     "lines for people or one JSON object per line"},
};
/* clang-format on */
const size_t xm_setting_count = sizeof xm_setting_table / sizeof *xm_setting_table;

static void *field(xm_settings *settings, const xm_setting *setting)
{
    return (char *)settings + setting->offset;
}

static const void *const_field(const xm_settings *settings, const xm_setting *setting)
{
    return (const char *)settings + setting->offset;
}

static bool is_text(const xm_setting *setting)
{
    return setting->type == XM_SETTING_STRING || setting->type == XM_SETTING_LIST ||
           setting->type == XM_SETTING_CHOICE;
}

void xm_setting_variable(const xm_setting *setting, char *name, size_t size)
{
    snprintf(name, size, "XMOE_%s", setting->name);
    for (char *c = name; *c; c++)
        *c = *c == '.' ? '_' : (char)toupper((unsigned char)*c);
}

void xm_setting_flag_name(const xm_setting *setting, char *name, size_t size)
{
    snprintf(name, size, "%s", setting->name);
    for (char *c = name; *c; c++)
        if (*c == '.' || *c == '_')
            *c = '-';
}

static bool complain(const xm_setting *setting, const char *source, const char *value,
                     const char *wanted, char *message, size_t size)
{
    snprintf(message, size, "setting '%s' from %s: '%.80s' is not %s", setting->name, source,
             setting->secret ? "(hidden)" : value, wanted);
    return false;
}

static bool is_choice(const char *choices, const char *value)
{
    size_t length = strlen(value);
    for (const char *word = choices; *word;) {
        size_t span = strcspn(word, " ");
        if (span == length && strncmp(word, value, length) == 0)
            return true;
        word += span + (word[span] == ' ');
    }
    return false;
}

static bool set_text(xm_settings *settings, const xm_setting *setting, const char *value,
                     const char *source, char *message, size_t size)
{
    if (setting->type == XM_SETTING_CHOICE && !is_choice(setting->choices, value)) {
        char wanted[128];
        snprintf(wanted, sizeof wanted, "one of: %s", setting->choices);
        return complain(setting, source, value, wanted, message, size);
    }
    char **member = field(settings, setting);
    char *copy = strdup(value);
    if (!copy) {
        snprintf(message, size, "out of memory");
        return false;
    }
    free(*member);
    *member = copy;
    return true;
}

static bool set_number(xm_settings *settings, const xm_setting *setting, const char *value,
                       const char *source, char *message, size_t size)
{
    bool whole = setting->type == XM_SETTING_INTEGER;
    char *end = NULL;
    errno = 0;
    double number = strtod(value, &end);
    bool good = end != value && *end == '\0' && !isspace((unsigned char)*value) &&
                isfinite(number) && number >= setting->minimum && number <= setting->maximum &&
                (!whole || number == floor(number));
    if (!good) {
        char wanted[128];
        snprintf(wanted, sizeof wanted, "a %s from %.15g to %.15g",
                 whole ? "whole number" : "number", setting->minimum, setting->maximum);
        return complain(setting, source, value, wanted, message, size);
    }
    if (whole)
        *(int64_t *)field(settings, setting) = (int64_t)number;
    else
        *(double *)field(settings, setting) = number;
    return true;
}

bool xm_settings_set(xm_settings *settings, const xm_setting *setting, const char *value,
                     const char *source, char *message, size_t size)
{
    if (is_text(setting))
        return set_text(settings, setting, value, source, message, size);
    if (setting->type != XM_SETTING_BOOL)
        return set_number(settings, setting, value, source, message, size);
    bool yes = strcmp(value, "true") == 0 || strcmp(value, "1") == 0 || strcmp(value, "on") == 0;
    bool no = strcmp(value, "false") == 0 || strcmp(value, "0") == 0 || strcmp(value, "off") == 0;
    if (!yes && !no)
        return complain(setting, source, value, "true or false", message, size);
    *(bool *)field(settings, setting) = yes;
    return true;
}

xm_settings *xm_settings_load(const char *file, char *const *environment,
                              const xm_setting_flag *flags, size_t flag_count, char *message,
                              size_t size)
{
    xm_settings *settings = calloc(1, sizeof *settings);
    if (!settings) {
        snprintf(message, size, "out of memory");
        return NULL;
    }
    settings->references = 1;
    bool good = true;
    for (size_t i = 0; i < xm_setting_count && good; i++)
        good = xm_settings_set(settings, &xm_setting_table[i], xm_setting_table[i].default_text,
                               "the defaults", message, size);
    good = good && (!file || xm_settings_read_file(settings, file, message, size));
    good = good &&
           (!environment || xm_settings_read_environment(settings, environment, message, size));
    for (size_t i = 0; i < flag_count && good; i++)
        good = xm_settings_set(settings, flags[i].setting, flags[i].value, flags[i].source, message,
                               size);
    if (good && xm_settings_read_keys(settings, message, size))
        return settings;
    xm_settings_release(settings);
    return NULL;
}

xm_settings *xm_settings_hold(xm_settings *settings)
{
    atomic_fetch_add(&settings->references, 1);
    return settings;
}

void xm_settings_release(xm_settings *settings)
{
    if (!settings || atomic_fetch_sub(&settings->references, 1) > 1)
        return;
    for (size_t i = 0; i < xm_setting_count; i++)
        if (is_text(&xm_setting_table[i]))
            free(*(char **)field(settings, &xm_setting_table[i]));
    free(settings);
}

xm_settings *xm_settings_reload(const xm_settings *old, const xm_settings *fresh)
{
    xm_settings *settings = calloc(1, sizeof *settings);
    if (!settings)
        return NULL;
    settings->references = 1;
    for (size_t i = 0; i < xm_setting_count; i++) {
        const xm_setting *setting = &xm_setting_table[i];
        const void *from = const_field(setting->reloadable ? fresh : old, setting);
        void *to = field(settings, setting);
        if (is_text(setting)) {
            char *copy = strdup(*(char *const *)from);
            if (!copy) {
                xm_settings_release(settings);
                return NULL;
            }
            *(char **)to = copy;
        } else if (setting->type == XM_SETTING_INTEGER) {
            *(int64_t *)to = *(const int64_t *)from;
        } else if (setting->type == XM_SETTING_NUMBER) {
            *(double *)to = *(const double *)from;
        } else {
            *(bool *)to = *(const bool *)from;
        }
    }
    return settings;
}

static void print_list(xm_json *json, const char *key, const char *list)
{
    xm_json_open(json, key, '[');
    for (const char *item = list; *item;) {
        size_t span = strcspn(item, ",");
        xm_json_bytes(json, NULL, item, span);
        item += span + (item[span] == ',');
    }
    xm_json_close(json, ']');
}

static void print_value(const xm_settings *settings, const xm_setting *setting, const char *key,
                        xm_json *json)
{
    const void *value = const_field(settings, setting);
    if (setting->type == XM_SETTING_LIST)
        print_list(json, key, *(char *const *)value);
    else if (is_text(setting))
        xm_json_string(json, key, *(char *const *)value);
    else if (setting->type == XM_SETTING_INTEGER)
        xm_json_int(json, key, *(const int64_t *)value);
    else if (setting->type == XM_SETTING_NUMBER)
        xm_json_double(json, key, *(const double *)value);
    else
        xm_json_bool(json, key, *(const bool *)value);
}

void xm_settings_print(const xm_settings *settings, xm_text *out)
{
    xm_json json = {out, false};
    char section[32] = "";
    xm_text_puts(out, "{");
    for (size_t i = 0; i < xm_setting_count; i++) {
        const xm_setting *setting = &xm_setting_table[i];
        size_t span = strcspn(setting->name, ".");
        if (setting->secret)
            continue;
        bool same = strlen(section) == span && strncmp(section, setting->name, span) == 0;
        if (!same) {
            xm_text_format(out, "%s\n    \"%.*s\": {", section[0] ? "\n    }," : "", (int)span,
                           setting->name);
            snprintf(section, sizeof section, "%.*s", (int)span, setting->name);
        }
        xm_text_format(out, "%s\n        \"%s\": ", same ? "," : "", setting->name + span + 1);
        json.comma = false;
        print_value(settings, setting, NULL, &json);
    }
    xm_text_puts(out, "\n    }\n}\n");
}
