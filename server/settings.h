/*
 * settings.h - every knob of the server, from one table.
 *
 * A row of the table is a name ("limits.body_bytes"), a type with its range, a default and a line
 * of help. From it follow the member of the configuration file ({"limits": {"body_bytes": ...}}),
 * the variable of the environment (XMOE_LIMITS_BODY_BYTES), the flag (--limits-body-bytes) and the
 * line of --print-config. Later sources win: defaults, file, environment, flags.
 *
 * A loaded xm_settings is immutable and counted: whoever answers a request holds the settings that
 * the request began with, also across a reload.
 */
#ifndef XM_SERVER_SETTINGS_H
#define XM_SERVER_SETTINGS_H

#include <stdatomic.h>

#include "json_read.h"
#include "text.h"

typedef struct {
    char *model_path, *model_alias;
    int64_t model_context_length;
    char *http_host, *http_cors_origin;
    char *http_api_keys; /* separated by commas; "" asks for none */
    char *http_api_key_file;
    int64_t http_port, http_threads, http_connections;
    char *engine_isa, *engine_kv_type;
    int64_t engine_threads, engine_max_sequences, engine_step_tokens, engine_queue_length;
    int64_t engine_kv_bytes;
    bool engine_prefix_cache;
    int64_t usage_window_seconds, usage_window_bytes;
    char *usage_file, *usage_directory;
    int64_t usage_save_seconds, usage_snapshots;
    int64_t trace_bytes;
    char *trace_file;
    char *router_type;
    double router_threshold;
    int64_t router_top_k, router_min_experts, router_max_experts;
    char *router_normalize;
    int64_t limits_body_bytes, limits_body_seconds, limits_idle_seconds;
    int64_t limits_prompts, limits_choices, limits_max_tokens, limits_request_seconds;
    int64_t limits_stream_bytes, limits_stall_seconds, limits_drain_seconds, limits_retry_seconds;
    int64_t stream_ping_seconds;
    char *metrics_expert_tokens;
    char *log_level, *log_format;

    atomic_int references;
} xm_settings;

typedef enum {
    XM_SETTING_STRING,
    XM_SETTING_LIST,   /* of strings; kept joined by commas */
    XM_SETTING_CHOICE, /* one of the words in choices */
    XM_SETTING_INTEGER,
    XM_SETTING_NUMBER,
    XM_SETTING_BOOL
} xm_setting_type;

typedef struct {
    const char *name;
    xm_setting_type type;
    size_t offset;            /* in xm_settings */
    double minimum, maximum;  /* of numbers, both allowed */
    const char *choices;      /* words separated by spaces */
    const char *default_text; /* as a flag would give it */
    bool reloadable;          /* read again on SIGHUP */
    bool secret;              /* never printed */
    const char *help;
} xm_setting;

extern const xm_setting xm_setting_table[];
extern const size_t xm_setting_count;

/* A flag or variable given by its text; source says where it came from ("--http-port"). False with
 * a message that names setting, source and what would be right. */
bool xm_settings_set(xm_settings *settings, const xm_setting *setting, const char *value,
                     const char *source, char *message, size_t size);

typedef struct {
    const xm_setting *setting;
    const char *value;
    const char *source;
} xm_setting_flag;

/* Defaults, then the file (NULL: none), then environ, then the flags in order. NULL with a message
 * on the first fault. The caller owns one reference. */
xm_settings *xm_settings_load(const char *file, char *const *environment,
                              const xm_setting_flag *flags, size_t flag_count, char *message,
                              size_t size);
xm_settings *xm_settings_hold(xm_settings *settings);
void xm_settings_release(xm_settings *settings);

/* A copy of old whose reloadable settings are those of fresh; NULL without memory. */
xm_settings *xm_settings_reload(const xm_settings *old, const xm_settings *fresh);

/* As a configuration file, secrets left out. */
void xm_settings_print(const xm_settings *settings, xm_text *out);

/* "limits.body_bytes" -> "XMOE_LIMITS_BODY_BYTES" or "limits-body-bytes". */
void xm_setting_variable(const xm_setting *setting, char *name, size_t size);
void xm_setting_flag_name(const xm_setting *setting, char *name, size_t size);

/* Parts of xm_settings_load, in settings_source.c. */
bool xm_settings_read_file(xm_settings *settings, const char *path, char *message, size_t size);
bool xm_settings_read_environment(xm_settings *settings, char *const *environment, char *message,
                                  size_t size);
/* Adds the keys of http.api_key_file to http.api_keys. */
bool xm_settings_read_keys(xm_settings *settings, char *message, size_t size);

#endif
