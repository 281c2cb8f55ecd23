/*
 * problem.h - what went wrong with a request, in the shape of OpenAI's error object.
 */
#ifndef XM_SERVER_PROBLEM_H
#define XM_SERVER_PROBLEM_H

#include "json_write.h"
#include "xmoe.h"

typedef struct {
    int status;       /* HTTP status; 0: no problem */
    const char *code; /* static storage, or NULL */
    char param[64];   /* the field at fault, or "" */
    char message[512];
} xm_problem;

/* Fills *problem; always returns false, so that checks can `return xm_problem_set(...)`. code and
 * param may be NULL. */
bool xm_problem_set(xm_problem *problem, int status, const char *code, const char *param,
                    const char *format, ...) __attribute__((format(printf, 5, 6)));
/* 400 that names the field. */
bool xm_problem_field(xm_problem *problem, const char *param, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* From a failed call of the engine. param is used where the error names no field of its own. */
bool xm_problem_engine(xm_problem *problem, const xmoe_error *error, const char *param);

/* {"error": {"message", "type", "param", "code"}} */
void xm_problem_write(const xm_problem *problem, xm_json *json);

#endif
