/*
 * log.h - lines on stderr, as text or as JSON, one write per line. May be called from any thread.
 *
 * Prompts, answers and keys are never logged.
 */
#ifndef XM_SERVER_LOG_H
#define XM_SERVER_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    XM_LOG_DEBUG,
    XM_LOG_INFO,
    XM_LOG_WARNING,
    XM_LOG_ERROR,
    XM_LOG_SILENT /* as a setting only: no lines at all */
} xm_log_level;

/* level and format by their names in the settings. */
void xm_log_configure(const char *level, const char *format);
void xm_log_set_level(xm_log_level level);

void xm_log_line(xm_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

typedef struct {
    const char *id, *method, *path;
    int status;
    uint64_t bytes; /* of the answer's body */
    double seconds;
    bool generated; /* the two below are known */
    uint64_t prompt_tokens, completion_tokens;
} xm_log_answer;

/* The line of one answered request, level info. */
void xm_log_request(const xm_log_answer *answer);

#endif
