/*
 * json_read.h - a client's JSON, checked strictly before cJSON builds its tree.
 *
 * Refused, each with a message that says where: anything that is not RFC 8259 JSON from the first
 * byte to the last, invalid UTF-8, escaped NUL and lone surrogates, numbers that no double holds,
 * duplicate keys, nesting deeper than XM_JSON_DEPTH, more than XM_JSON_VALUES values. What is left
 * has one meaning for every parser.
 *
 * The readers below take a member of an object with its type and range. A member that is absent or
 * null leaves *value alone. They return false with a filled problem that names the member.
 */
#ifndef XM_SERVER_JSON_READ_H
#define XM_SERVER_JSON_READ_H

#include <cjson/cJSON.h>

#include "problem.h"

#define XM_JSON_DEPTH  64
#define XM_JSON_VALUES 500000

/* Parses length bytes; NULL with a problem of status 400. The caller frees with cJSON_Delete. */
cJSON *xm_json_parse(const char *bytes, size_t length, xm_problem *problem);
/* The same for what is no request's body: messages call it by its name ("the file"), and it may
 * have so many values. */
cJSON *xm_json_parse_named(const char *name, size_t most_values, const char *bytes, size_t length,
                           xm_problem *problem);

/* The member, or NULL where it is absent or null. */
const cJSON *xm_json_member(const cJSON *object, const char *key);

bool xm_json_read_bool(const cJSON *object, const char *key, bool *value, xm_problem *problem);
bool xm_json_read_int(const cJSON *object, const char *key, int64_t minimum, int64_t maximum,
                      int64_t *value, xm_problem *problem);
bool xm_json_read_int32(const cJSON *object, const char *key, int32_t minimum, int32_t maximum,
                        int32_t *value, xm_problem *problem);
bool xm_json_read_float(const cJSON *object, const char *key, double minimum, double maximum,
                        float *value, xm_problem *problem);
/* *value lives as long as the tree. */
bool xm_json_read_string(const cJSON *object, const char *key, const char **value,
                         xm_problem *problem);

/* True if the value is a whole number in [minimum, maximum]. */
bool xm_json_whole(const cJSON *value, int64_t minimum, int64_t maximum, int64_t *number);

#endif
