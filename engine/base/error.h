/*
 * error.h - how functions below the public header report failure.
 *
 * A function that can fail returns xmoe_status and takes an xmoe_error * that may be NULL. The
 * place that detects the failure writes the message with xm_fail; those above pass the status on.
 */
#ifndef XM_BASE_ERROR_H
#define XM_BASE_ERROR_H

#include "xmoe.h"

/* Fills *error (if not NULL) and returns status. */
xmoe_status xm_fail(xmoe_error *error, xmoe_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* XMOE_ERROR_ARGUMENT with the parameter's name. */
xmoe_status xm_fail_argument(xmoe_error *error, const char *parameter, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* XMOE_ERROR_MEMORY for so many bytes of what. */
xmoe_status xm_fail_memory(xmoe_error *error, const char *what, size_t bytes);

#endif
