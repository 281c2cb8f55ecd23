/*
 * problem.c - see problem.h.
 */
#include "problem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void fill(xm_problem *problem, int status, const char *code, const char *param,
                 const char *format, va_list arguments)
{
    problem->status = status;
    problem->code = code;
    snprintf(problem->param, sizeof problem->param, "%s", param ? param : "");
    vsnprintf(problem->message, sizeof problem->message, format, arguments);
}

bool xm_problem_set(xm_problem *problem, int status, const char *code, const char *param,
                    const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fill(problem, status, code, param, format, arguments);
    va_end(arguments);
    return false;
}

bool xm_problem_field(xm_problem *problem, const char *param, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fill(problem, 400, "invalid_value", param, format, arguments);
    va_end(arguments);
    return false;
}

/* The engine's names of fields that are called otherwise in a request body. */
static const char *field_name(const char *parameter)
{
    static const struct {
        const char *engine, *body;
    } names[] = {{"choices", "n"},
                 {"prompt_length", "prompt"},
                 {"stop_count", "stop"},
                 {"top_logprobs", "logprobs"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(parameter, names[i].engine) == 0)
            return names[i].body;
    return parameter;
}

bool xm_problem_engine(xm_problem *problem, const xmoe_error *error, const char *param)
{
    const char *message = error->message;
    switch (error->status) {
    case XMOE_ERROR_ARGUMENT:
        if (error->parameter[0])
            param = field_name(error->parameter);
        return xm_problem_field(problem, param, "%s", message);
    case XMOE_ERROR_TOO_LONG:
        return xm_problem_set(problem, 400, "context_length_exceeded", param, "%s", message);
    case XMOE_ERROR_BUSY:
        return xm_problem_set(problem, 429, "queue_full", NULL, "%s", message);
    case XMOE_ERROR_DRAINING:
        return xm_problem_set(problem, 503, "draining", NULL, "%s", message);
    case XMOE_ERROR_UNSUPPORTED:
        return xm_problem_set(problem, 501, "unsupported", NULL, "%s", message);
    case XMOE_ERROR_MEMORY:
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "%s", message);
    default:
        return xm_problem_set(problem, 500, "internal_error", NULL, "%s", message);
    }
}

static const char *type_name(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 408:
        return "timeout_error";
    case 429:
        return "rate_limit_error";
    case 501:
        return "not_supported_error";
    case 503:
        return "unavailable_error";
    default:
        return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void xm_problem_write(const xm_problem *problem, xm_json *json)
{
    xm_json_open(json, NULL, '{');
    xm_json_open(json, "error", '{');
    xm_json_string(json, "message", problem->message);
    xm_json_string(json, "type", type_name(problem->status));
    xm_json_string(json, "param", problem->param[0] ? problem->param : NULL);
    xm_json_string(json, "code", problem->code);
    xm_json_close(json, '}');
    xm_json_close(json, '}');
}
