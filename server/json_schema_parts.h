/*
 * json_schema_parts.h - what the files that turn schemas into rules share:
 *   json_schema.c         which keywords there are, types, references, combinations
 *   json_schema_constants.c the values that are given
 *   json_schema_members.c objects and arrays
 *   json_schema_values.c  strings and numbers, and the rules that all schemas share
 *
 * An expression for a schema is appended to a text; where it needs rules of its own, these are
 * complete lines in rules->text before the expression is. All functions return false with a filled
 * problem.
 */
#ifndef XM_SERVER_JSON_SCHEMA_PARTS_H
#define XM_SERVER_JSON_SCHEMA_PARTS_H

#include <stdint.h>

#include "json_schema.h"

#define XM_SCHEMA_COUNT   100000 /* largest number of items, characters or members */
#define XM_SCHEMA_MEMBERS 2000   /* named in one object */

typedef struct {
    const cJSON *schema;
    int32_t rule;
} xm_schema_target;

typedef struct {
    xm_schema_rules *rules;
    const cJSON *root;
    const char *name, *param;
    int32_t next;              /* number of the next rule: `name`-`next` */
    xm_schema_target *targets; /* of references; those from `written` on have no rule yet */
    size_t target_count, target_capacity, written;
    cJSON **merged; /* schemas made of allOf; owned */
    size_t merged_count;
    char path[256]; /* of the schema being read, as a JSON pointer */
    int depth;      /* of schemas within schemas */
    xm_problem *problem;
} xm_schema_builder;

/* Rules that all schemas share. */
typedef enum {
    XM_SHARED_VALUE = 1,
    XM_SHARED_OBJECT = 2,
    XM_SHARED_ARRAY = 4,
    XM_SHARED_STRING = 8,
    XM_SHARED_CHARACTER = 16,
    XM_SHARED_NUMBER = 32,
    XM_SHARED_INTEGER = 64,
    XM_SHARED_BLANK = 128,
    XM_SHARED_DATE = 256,
    XM_SHARED_TIME = 512,
    XM_SHARED_PLAIN = 1024 /* a character of a string that needs no escape */
} xm_shared_rule;

/* Appends the name of a shared rule. */
void xm_schema_share(xm_schema_builder *builder, xm_text *out, xm_shared_rule rule);

/* Fails with the path and a reason. */
bool xm_schema_fail(xm_schema_builder *builder, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
bool xm_schema_no_memory(xm_schema_builder *builder);

/* Charges `work`, in comparisons of two names or bytes copied, to the rules under way. False where
 * they have had too much: references and allOf can ask for far more than the request has bytes. */
bool xm_schema_spend(xm_schema_builder *builder, size_t work);

/* Goes down to a part of the schema, named by key or index (key NULL); returns what xm_schema_up
 * needs. */
size_t xm_schema_down(xm_schema_builder *builder, const char *key, int index);
void xm_schema_up(xm_schema_builder *builder, size_t mark);

/* The expression for a schema, in parentheses where it needs them. */
bool xm_schema_value(xm_schema_builder *builder, const cJSON *schema, xm_text *out);
/* The same as a rule of its own, whose name is appended. */
bool xm_schema_rule(xm_schema_builder *builder, const cJSON *schema, xm_text *out);
/* Makes `body` a rule, appends its name to out, and frees body. */
bool xm_schema_close_rule(xm_schema_builder *builder, xm_text *body, xm_text *out);
/* A member of the schema that must be a whole number from 0 to XM_SCHEMA_COUNT; -1 where it is
 * missing. */
bool xm_schema_count(xm_schema_builder *builder, const cJSON *schema, const char *key,
                     int32_t *count);

/* json_schema_constants.c: any of the list that begins with `first` (single: that one alone) that
 * has the type (NULL: any). */
bool xm_schema_constants(xm_schema_builder *builder, const cJSON *first, bool single,
                         const cJSON *type, xm_text *out);

/* json_schema_members.c */
bool xm_schema_object(xm_schema_builder *builder, const cJSON *schema, xm_text *out);
bool xm_schema_array(xm_schema_builder *builder, const cJSON *schema, xm_text *out);
/* json_schema_values.c */
bool xm_schema_string(xm_schema_builder *builder, const cJSON *schema, xm_text *out);
bool xm_schema_number(xm_schema_builder *builder, const cJSON *schema, bool whole, xm_text *out);

#endif
