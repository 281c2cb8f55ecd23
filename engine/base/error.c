/* error.c - see error.h. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>

xmoe_status xm_fail(xmoe_error *error, xmoe_status status, const char *format, ...)
{
    if (error != NULL) {
        error->status = status;
        error->parameter[0] = '\0';
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return status;
}

xmoe_status xm_fail_argument(xmoe_error *error, const char *parameter, const char *format, ...)
{
    if (error != NULL) {
        error->status = XMOE_ERROR_ARGUMENT;
        snprintf(error->parameter, sizeof error->parameter, "%s", parameter);
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return XMOE_ERROR_ARGUMENT;
}

xmoe_status xm_fail_memory(xmoe_error *error, const char *what, size_t bytes)
{
    return xm_fail(error, XMOE_ERROR_MEMORY, "out of memory: %zu bytes for %s", bytes, what);
}
