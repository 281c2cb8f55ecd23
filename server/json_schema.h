/*
 * json_schema.h - from a JSON schema to rules of a grammar (xmoe.h, Grammars).
 *
 * What the rules describe are documents that are valid, each written in one way:
 *   - members in the order in which the schema names them, then additional ones, which there are
 * only where additionalProperties says so or no properties are named; beside named ones, their keys
 *     have no escapes
 *   - items behind prefixItems only where `items` says so
 *   - between tokens of JSON nothing, one blank, or a line break and up to XM_SCHEMA_INDENT blanks,
 * and none before commas and colons, so that no output runs away in blanks
 *   - integers of up to 18 digits and without fraction; numbers with as many before and behind the
 * point, exponents of two digits
 *   - strings under a pattern, format, const or enum with no more escapes than JSON needs
 *   - keywords that are about one type imply that type where `type` is missing
 *   - oneOf is read as anyOf
 *
 * Understood are: type (also a list), nullable, enum, const, properties, required,
 * additionalProperties; minProperties and maxProperties where no properties are named; items,
 * prefixItems, minItems, maxItems; minLength, maxLength, pattern (json_pattern.h), format (date,
 * time, date-time, uuid, email, ipv4); minimum, maximum, exclusiveMinimum, exclusiveMaximum, which
 * for numbers must be whole; anyOf, oneOf, allOf of what can be merged into one schema, $ref within
 * the document; true. Annotations are ignored. Any other keyword is refused by name and path.
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
    size_t work;     /* spent on all of them, see xm_schema_spend */
} xm_schema_rules;

/* Appends the rule `name` ([a-z0-9-]+, not beginning with "json-") for a schema, and rules that it
 * needs, whose names begin with `name` and a minus. False with a 400 whose param is `param` (such
 * as "response_format") and whose message names path and keyword. */
bool xm_schema_rules_add(xm_schema_rules *rules, const char *name, const cJSON *schema,
                         const char *param, xm_problem *problem);
/* Appends the rule `name` for any JSON object. */
bool xm_schema_rules_add_object(xm_schema_rules *rules, const char *name, xm_problem *problem);
/* Appends the shared rules; call once, after the last schema. */
bool xm_schema_rules_end(xm_schema_rules *rules, xm_problem *problem);

/* Appends a string of a grammar that stands for these bytes, quotes included. */
void xm_schema_literal(xm_text *text, const char *bytes);

#endif
