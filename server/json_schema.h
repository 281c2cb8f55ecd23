/*
 * json_schema.h - from a JSON schema to rules of a grammar (xmoe.h, Grammars).
 *
 * What comes out describes exactly the documents that are valid, written in one way: members in the
 * order in which the schema names them, then additional ones; between tokens of JSON at most one
 * space, or a line break with at most XM_SCHEMA_INDENT blanks, so that no output runs away in
 * blanks. Understood are: type (also a list), enum, const, properties, required,
 * additionalProperties, minProperties and maxProperties of free objects, items, prefixItems,
 * minItems, maxItems, minLength, maxLength, pattern (json_pattern.h), format (date, time,
 * date-time, uuid, email, ipv4, uri), minimum, maximum and their exclusive forms of integers,
 * anyOf, oneOf, allOf of objects, $ref within the document, nullable, true and false. Annotations
 * are ignored. Any other keyword is refused by name and path.
 */
#ifndef XM_SERVER_JSON_SCHEMA_H
#define XM_SERVER_JSON_SCHEMA_H

#include <cjson/cJSON.h>

#include "problem.h"
#include "text.h"

#define XM_SCHEMA_INDENT 20

/* Rules under way; several schemas may share one text. Start with {0}; the owner calls
 * xm_text_free(&rules.text). */
typedef struct {
    xm_text text;
    unsigned shared; /* which of the rules that all schemas share are needed */
} xm_schema_rules;

/* Appends the rule `name` ([a-z0-9-]+, not "root" unless it is the only one) for a schema, and
 * rules that it needs, whose names begin with `name`-. False with a 400 whose param is `param`
 * (such as "response_format") and whose message names path and keyword. */
bool xm_schema_rules_add(xm_schema_rules *rules, const char *name, const cJSON *schema,
                         const char *param, xm_problem *problem);
/* Appends the shared rules ("json-" something); call once, after the last schema. False for lack of
 * memory. */
bool xm_schema_rules_end(xm_schema_rules *rules, xm_problem *problem);

#endif
