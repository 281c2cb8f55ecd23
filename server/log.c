/*
 * log.c - see log.h. The level and the format are the only state; both may change while serving.
 */
#include "log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "json_write.h"

static const char *const level_names[] = {"debug", "info", "warning", "error"};

static atomic_int minimum_level = XM_LOG_INFO;
static atomic_bool json_lines;

void xm_log_set_level(xm_log_level level)
{
    minimum_level = level;
}

void xm_log_configure(const char *level, const char *format)
{
    for (int i = 0; i < 4; i++)
        if (strcmp(level, level_names[i]) == 0)
            minimum_level = i;
    json_lines = strcmp(format, "json") == 0;
}

static void time_stamp(char *stamp, size_t size)
{
    struct timespec now;
    struct tm parts;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    char seconds[32];
    strftime(seconds, sizeof seconds, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(stamp, size, "%s.%03ldZ", seconds, now.tv_nsec / 1000000);
}

static void emit(xm_text *line)
{
    xm_text_add(line, "\n", 1);
    if (!line->failed) {
        ssize_t written = write(STDERR_FILENO, line->data, line->length);
        (void)written; /* a log that cannot be written must not stop the server */
    }
    xm_text_free(line);
}

/* Opens a line: stamp and level. JSON lines stay open for members. */
static xm_json begin(xm_text *line, xm_log_level level)
{
    char stamp[64];
    time_stamp(stamp, sizeof stamp);
    xm_json json = {line, false};
    if (json_lines) {
        xm_json_open(&json, NULL, '{');
        xm_json_string(&json, "time", stamp);
        xm_json_string(&json, "level", level_names[level]);
    } else {
        xm_text_format(line, "%s %-7s ", stamp, level_names[level]);
    }
    return json;
}

void xm_log_line(xm_log_level level, const char *format, ...)
{
    if ((int)level < minimum_level)
        return;
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    xm_text line = {0};
    bool as_json = json_lines;
    xm_json json = begin(&line, level);
    if (as_json) {
        xm_json_string(&json, "message", message);
        xm_json_close(&json, '}');
    } else {
        xm_text_add_utf8(&line, message, strlen(message));
    }
    emit(&line);
}

static void request_as_json(xm_json *json, const xm_log_answer *answer)
{
    xm_json_string(json, "message", "request");
    xm_json_string(json, "request_id", answer->id);
    xm_json_string(json, "method", answer->method);
    xm_json_string(json, "path", answer->path);
    xm_json_int(json, "status", answer->status);
    xm_json_uint(json, "bytes", answer->bytes);
    xm_json_float(json, "seconds", (float)answer->seconds);
    if (answer->generated) {
        xm_json_uint(json, "prompt_tokens", answer->prompt_tokens);
        xm_json_uint(json, "completion_tokens", answer->completion_tokens);
    }
    xm_json_close(json, '}');
}

/* Paths come from clients: what is not printable ASCII is shown as '?'. */
static void add_printable(xm_text *line, const char *string)
{
    for (; *string; string++)
        xm_text_add(line, *string > 0x20 && *string < 0x7f ? string : "?", 1);
}

void xm_log_request(const xm_log_answer *answer)
{
    if (XM_LOG_INFO < minimum_level)
        return;
    xm_text line = {0};
    bool as_json = json_lines;
    xm_json json = begin(&line, XM_LOG_INFO);
    if (as_json) {
        request_as_json(&json, answer);
    } else {
        xm_text_format(&line, "%s ", answer->id);
        add_printable(&line, answer->method);
        xm_text_puts(&line, " ");
        add_printable(&line, answer->path);
        xm_text_format(&line, " %d %llu bytes %.3f ms", answer->status,
                       (unsigned long long)answer->bytes, answer->seconds * 1e3);
        if (answer->generated)
            xm_text_format(&line, " %llu + %llu tokens", (unsigned long long)answer->prompt_tokens,
                           (unsigned long long)answer->completion_tokens);
    }
    emit(&line);
}
