/*
 * json_check.h - is this byte string one JSON value, to the letter of RFC 8259?
 */
#ifndef XM_SERVER_JSON_CHECK_H
#define XM_SERVER_JSON_CHECK_H

#include <stdbool.h>
#include <stddef.h>

/* NULL if it is, of at most so many values; else what is wrong (static storage), with the byte
 * offset in *where. */
const char *xm_json_check(const char *bytes, size_t length, size_t most_values, size_t *where);

#endif
