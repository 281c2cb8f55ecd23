/*
 * json_schema.c - see json_schema.h: keywords, types, references and combinations. Pure functions
 * over their arguments; any thread.
 */
#include "json_schema.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_schema_parts.h"

#define DEPTH      100      /* of schemas within schemas */
#define WORK       67108864 /* see xm_schema_spend: half a second */
#define PART_WORK  1024     /* of a part of allOf, what it holds aside */
#define NODE_WORK  64       /* of copying a value of JSON, its text aside */
#define TEXT_BYTES 8388608  /* of the rules of one grammar */
#define TYPES      7        /* that JSON has, integer included */

/* --- failure and paths ------------------------------------------------------------------------ */

bool xm_schema_fail(xm_schema_builder *b, const char *format, ...)
{
    char reason[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    return xm_problem_field(b->problem, b->param, "the schema at '#%s': %s", b->path, reason);
}

bool xm_schema_no_memory(xm_schema_builder *b)
{
    return xm_problem_set(b->problem, 503, "out_of_memory", NULL, "out of memory");
}

bool xm_schema_spend(xm_schema_builder *b, size_t work)
{
    b->rules->work += work;
    return b->rules->work <= WORK ||
           xm_schema_fail(b, "with its references and 'allOf' the schema is too large");
}

size_t xm_schema_down(xm_schema_builder *b, const char *key, int index)
{
    size_t length = strlen(b->path);
    if (key)
        snprintf(b->path + length, sizeof b->path - length, "/%s", key);
    else
        snprintf(b->path + length, sizeof b->path - length, "/%d", index);
    return length;
}

void xm_schema_up(xm_schema_builder *b, size_t mark)
{
    b->path[mark] = '\0';
}

/* --- keywords --------------------------------------------------------------------------------- */

enum {
    ANNOTATION = 1,
    ANY = 2, /* type, enum and what combines schemas */
    OBJECT = 4,
    ARRAY = 8,
    STRING = 16,
    NUMBER = 32,
    TYPED = OBJECT | ARRAY | STRING | NUMBER
};

static const struct {
    const char *name;
    int kind;
} keywords[] = {
    {"title", ANNOTATION},
    {"description", ANNOTATION},
    {"default", ANNOTATION},
    {"examples", ANNOTATION},
    {"example", ANNOTATION},
    {"$schema", ANNOTATION},
    {"$id", ANNOTATION},
    {"$comment", ANNOTATION},
    {"deprecated", ANNOTATION},
    {"readOnly", ANNOTATION},
    {"writeOnly", ANNOTATION},
    {"$defs", ANNOTATION},
    {"definitions", ANNOTATION},
    {"discriminator", ANNOTATION},
    {"type", ANY},
    {"nullable", ANY},
    {"enum", ANY},
    {"const", ANY},
    {"anyOf", ANY},
    {"oneOf", ANY},
    {"allOf", ANY},
    {"$ref", ANY},
    {"properties", OBJECT},
    {"required", OBJECT},
    {"minProperties", OBJECT},
    {"maxProperties", OBJECT},
    {"additionalProperties", OBJECT},
    {"items", ARRAY},
    {"prefixItems", ARRAY},
    {"minItems", ARRAY},
    {"maxItems", ARRAY},
    {"minLength", STRING},
    {"maxLength", STRING},
    {"pattern", STRING},
    {"format", STRING},
    {"minimum", NUMBER},
    {"maximum", NUMBER},
    {"exclusiveMinimum", NUMBER},
    {"exclusiveMaximum", NUMBER},
};

/* 0: not known. */
static int kind_of(const char *keyword)
{
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++)
        if (strcmp(keyword, keywords[i].name) == 0)
            return keywords[i].kind;
    return 0;
}

/* Which kinds of keywords the schema has; false if one is not known. */
static bool find_kinds(xm_schema_builder *b, const cJSON *schema, int *kinds)
{
    *kinds = 0;
    for (const cJSON *member = schema->child; member; member = member->next) {
        int kind = kind_of(member->string);
        if (kind == 0)
            return xm_schema_fail(b, "keyword '%.60s' is not supported", member->string);
        *kinds |= kind;
    }
    return true;
}

/* True if all keywords that are no annotations are among these (NULL at the end). */
static bool only(xm_schema_builder *b, const cJSON *schema, const char *main_keyword,
                 const char *other)
{
    for (const cJSON *member = schema->child; member; member = member->next)
        if (kind_of(member->string) != ANNOTATION && strcmp(member->string, main_keyword) != 0 &&
            (!other || strcmp(member->string, other) != 0))
            return xm_schema_fail(b, "'%.60s' beside '%s' is not supported", member->string,
                                  main_keyword);
    return true;
}

static const cJSON *member_of(const cJSON *schema, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(schema, key);
}

bool xm_schema_count(xm_schema_builder *b, const cJSON *schema, const char *key, int32_t *count)
{
    const cJSON *member = member_of(schema, key);
    *count = -1;
    if (!member)
        return true;
    double value = cJSON_IsNumber(member) ? member->valuedouble : -1;
    if (!(value >= 0 && value <= XM_SCHEMA_COUNT && value == (double)(int32_t)value))
        return xm_schema_fail(b, "'%s' must be a whole number from 0 to %d", key, XM_SCHEMA_COUNT);
    *count = (int32_t)value;
    return true;
}

/* --- rules ------------------------------------------------------------------------------------ */

void xm_schema_literal(xm_text *text, const char *bytes)
{
    xm_text_puts(text, "\"");
    for (const char *c = bytes; *c; c++) {
        if (*c == '"' || *c == '\\')
            xm_text_puts(text, "\\");
        if (*c == '\n' || *c == '\r' || *c == '\t')
            xm_text_puts(text, *c == '\n' ? "\\n" : *c == '\r' ? "\\r" : "\\t");
        else
            xm_text_add(text, c, 1);
    }
    xm_text_puts(text, "\"");
}

/* A line of a rule that has a number. */
static bool write_rule(xm_schema_builder *b, int32_t number, xm_text *body)
{
    xm_text *text = &b->rules->text;
    xm_text_format(text, "%s-%d ::= ", b->name, number);
    xm_text_add(text, body->data ? body->data : "", body->length);
    xm_text_puts(text, "\n");
    bool good = !text->failed && !body->failed;
    xm_text_free(body);
    return good || xm_schema_no_memory(b);
}

bool xm_schema_close_rule(xm_schema_builder *b, xm_text *body, xm_text *out)
{
    int32_t number = b->next++;
    xm_text_format(out, "%s-%d ", b->name, number);
    return write_rule(b, number, body);
}

bool xm_schema_rule(xm_schema_builder *b, const cJSON *schema, xm_text *out)
{
    xm_text body = {0};
    if (xm_schema_value(b, schema, &body))
        return xm_schema_close_rule(b, &body, out);
    xm_text_free(&body);
    return false;
}

/* --- references ------------------------------------------------------------------------------- */

/* The part of the document at a JSON pointer; NULL if there is none, or with a problem. */
static const cJSON *follow(xm_schema_builder *b, const char *pointer)
{
    const cJSON *at = b->root;
    while (at && *pointer == '/') {
        char key[256];
        if (!xm_schema_spend(b, (size_t)cJSON_GetArraySize(at)))
            return NULL;
        size_t length = 0;
        for (pointer++; *pointer && *pointer != '/' && length + 1 < sizeof key; pointer++) {
            char c = *pointer;
            if (c == '~' && (pointer[1] == '0' || pointer[1] == '1'))
                c = *++pointer == '0' ? '~' : '/';
            key[length++] = c;
        }
        key[length] = '\0';
        at = cJSON_IsArray(at) ? cJSON_GetArrayItem(at, atoi(key)) : member_of(at, key);
    }
    return *pointer ? NULL : at;
}

static const cJSON *resolve(xm_schema_builder *b, const cJSON *reference)
{
    const char *text = cJSON_IsString(reference) ? reference->valuestring : "";
    const cJSON *target = text[0] == '#' ? follow(b, text + 1) : NULL;
    if (!target && !b->problem->status)
        xm_schema_fail(b,
                       "'$ref' leads nowhere: '%.100s' (only references within the schema, "
                       "such as '#/$defs/name', are supported)",
                       text);
    return target;
}

/* The rule of what is referred to; it is written when all else is. */
static bool write_reference(xm_schema_builder *b, const cJSON *schema, xm_text *out)
{
    const cJSON *target = resolve(b, member_of(schema, "$ref"));
    size_t i = 0;
    if (!target || !only(b, schema, "$ref", "nullable") || !xm_schema_spend(b, b->target_count))
        return false;
    while (i < b->target_count && b->targets[i].schema != target)
        i++;
    if (i == b->target_count) {
        if (i == b->target_capacity) {
            size_t capacity = 2 * i + 8;
            xm_schema_target *grown = realloc(b->targets, capacity * sizeof *grown);
            if (!grown)
                return xm_schema_no_memory(b);
            b->targets = grown;
            b->target_capacity = capacity;
        }
        b->targets[b->target_count++] = (xm_schema_target){target, b->next++};
    }
    xm_text_format(out, "%s-%d ", b->name, b->targets[i].rule);
    return true;
}

static bool write_targets(xm_schema_builder *b)
{
    while (b->written < b->target_count) {
        xm_schema_target target = b->targets[b->written++];
        xm_text body = {0};
        snprintf(b->path, sizeof b->path, "(of a $ref)");
        if (!xm_schema_value(b, target.schema, &body)) {
            xm_text_free(&body);
            return false;
        }
        if (!write_rule(b, target.rule, &body))
            return false;
    }
    return true;
}

static bool write_constants(xm_schema_builder *b, const cJSON *schema, const char *keyword,
                            xm_text *out)
{
    const cJSON *values = member_of(schema, keyword);
    bool single = strcmp(keyword, "const") == 0;
    if (!only(b, schema, keyword, "type"))
        return false;
    if (!single && !cJSON_IsArray(values))
        return xm_schema_fail(b, "'enum' must be a list");
    return xm_schema_constants(b, single ? values : values->child, single,
                               member_of(schema, "type"), out);
}

/* --- combinations ----------------------------------------------------------------------------- */

static bool write_choice(xm_schema_builder *b, const cJSON *schema, const char *keyword,
                         xm_text *out)
{
    const cJSON *choices = member_of(schema, keyword);
    if (!only(b, schema, keyword, "nullable"))
        return false;
    if (!cJSON_IsArray(choices) || !choices->child)
        return xm_schema_fail(b, "'%s' must be a list, not empty", keyword);
    size_t mark = xm_schema_down(b, keyword, 0);
    int index = 0;
    xm_text_puts(out, "(");
    for (const cJSON *choice = choices->child; choice; choice = choice->next, index++) {
        size_t inner = xm_schema_down(b, NULL, index);
        xm_text_puts(out, index > 0 ? "| " : "");
        if (!xm_schema_rule(b, choice, out))
            return false;
        xm_schema_up(b, inner);
    }
    xm_text_puts(out, ") ");
    xm_schema_up(b, mark);
    return true;
}

/* Pays for a copy of the value, or for comparing it with another: cJSON looks for each member of an
 * object among all of the other's. */
static bool pay_for(xm_schema_builder *b, const cJSON *value)
{
    size_t members = (size_t)cJSON_GetArraySize(value), work = NODE_WORK + members;
    if (cJSON_IsObject(value))
        work += members * members;
    if (cJSON_IsString(value))
        work += strlen(value->valuestring);
    if (!xm_schema_spend(b, work))
        return false;
    for (const cJSON *item = value->child; item; item = item->next)
        if (!pay_for(b, item))
            return false;
    return true;
}

static bool add_copy(xm_schema_builder *b, cJSON *to, const cJSON *item)
{
    if (!pay_for(b, item))
        return false;
    cJSON *copy = cJSON_Duplicate(item, true);
    if (copy && item->string ? cJSON_AddItemToObject(to, item->string, copy)
                             : copy && cJSON_AddItemToArray(to, copy))
        return true;
    cJSON_Delete(copy);
    return xm_schema_no_memory(b);
}

static bool is_equal(xm_schema_builder *b, const cJSON *value, const cJSON *other, bool *equal)
{
    *equal = false;
    if (!pay_for(b, value))
        return false;
    *equal = cJSON_Compare(value, other, true);
    return true;
}

/* Each of these properties that `known` does not have joins it. */
static bool merge_properties(xm_schema_builder *b, cJSON *known, const cJSON *properties)
{
    for (const cJSON *item = properties->child; item; item = item->next) {
        if (!xm_schema_spend(b, (size_t)cJSON_GetArraySize(known)))
            return false;
        const cJSON *same = member_of(known, item->string);
        bool equal = true;
        if (!(same ? is_equal(b, item, same, &equal) : add_copy(b, known, item)))
            return false;
        if (!equal)
            return xm_schema_fail(b, "'allOf' gives property '%.60s' two schemas", item->string);
    }
    return true;
}

/* Each of these names that `known` does not have joins it. */
static bool merge_required(xm_schema_builder *b, cJSON *known, const cJSON *required)
{
    for (const cJSON *item = required->child; item; item = item->next) {
        const cJSON *same = known->child;
        if (!xm_schema_spend(b, (size_t)cJSON_GetArraySize(known)))
            return false;
        if (!cJSON_IsString(item))
            return xm_schema_fail(b, "'required' must hold strings");
        while (same && !(cJSON_IsString(same) && strcmp(same->valuestring, item->valuestring) == 0))
            same = same->next;
        if (!same && !add_copy(b, known, item))
            return false;
    }
    return true;
}

/* One keyword of a part of allOf joins what the parts before it had. */
static bool merge_member(xm_schema_builder *b, cJSON *merged, const cJSON *member)
{
    cJSON *known = cJSON_GetObjectItemCaseSensitive(merged, member->string);
    if (kind_of(member->string) == ANNOTATION || strcmp(member->string, "allOf") == 0)
        return true;
    if (cJSON_GetArraySize(member) > XM_SCHEMA_MEMBERS)
        return xm_schema_fail(b, "'%.60s' has more than %d entries", member->string,
                              XM_SCHEMA_MEMBERS);
    if (!known)
        return add_copy(b, merged, member);
    if (strcmp(member->string, "properties") == 0 && cJSON_IsObject(member))
        return merge_properties(b, known, member);
    if (strcmp(member->string, "required") == 0 && cJSON_IsArray(member))
        return merge_required(b, known, member);
    bool equal;
    if (!is_equal(b, member, known, &equal))
        return false;
    return equal || xm_schema_fail(b, "'allOf' has two different '%.60s'", member->string);
}

static bool merge_part(xm_schema_builder *b, cJSON *merged, const cJSON *part, int depth)
{
    if (depth > DEPTH)
        return xm_schema_fail(b, "'allOf' is nested too deeply");
    if (!xm_schema_spend(b, PART_WORK))
        return false;
    for (; part && cJSON_IsObject(part) && member_of(part, "$ref"); depth++) {
        if (depth > DEPTH)
            return xm_schema_fail(b, "'$ref' goes round in circles");
        if (!only(b, part, "$ref", NULL))
            return false;
        part = resolve(b, member_of(part, "$ref"));
    }
    if (!part)
        return false;
    if (!cJSON_IsObject(part))
        return cJSON_IsTrue(part) || xm_schema_fail(b, "a part of 'allOf' is no schema");
    const cJSON *parts = member_of(part, "allOf"), *extra = member_of(part, "additionalProperties");
    if (extra && !cJSON_IsTrue(extra))
        return xm_schema_fail(b, "'additionalProperties' in 'allOf' or beside it is not supported");
    for (const cJSON *inner = parts ? parts->child : NULL; inner; inner = inner->next)
        if (!merge_part(b, merged, inner, depth + 1))
            return false;
    for (const cJSON *member = part->child; member; member = member->next)
        if (!merge_member(b, merged, member))
            return false;
    return true;
}

/* Parts become one schema, which is then treated as if it had been written so. */
static bool write_all_of(xm_schema_builder *b, const cJSON *schema, xm_text *out)
{
    cJSON **grown = realloc(b->merged, (b->merged_count + 1) * sizeof(cJSON *));
    cJSON *merged = cJSON_CreateObject();
    if (grown)
        b->merged = grown;
    if (!grown || !merged) {
        cJSON_Delete(merged);
        return xm_schema_no_memory(b);
    }
    b->merged[b->merged_count++] = merged;
    if (!cJSON_IsArray(member_of(schema, "allOf")))
        return xm_schema_fail(b, "'allOf' must be a list");
    return merge_part(b, merged, schema, 0) && xm_schema_value(b, merged, out);
}

/* --- types ------------------------------------------------------------------------------------ */

static bool write_type(xm_schema_builder *b, const cJSON *schema, const char *type, xm_text *out)
{
    if (strcmp(type, "object") == 0)
        return xm_schema_object(b, schema, out);
    if (strcmp(type, "array") == 0)
        return xm_schema_array(b, schema, out);
    if (strcmp(type, "string") == 0)
        return xm_schema_string(b, schema, out);
    if (strcmp(type, "integer") == 0 || strcmp(type, "number") == 0)
        return xm_schema_number(b, schema, type[0] == 'i', out);
    if (strcmp(type, "boolean") == 0)
        return xm_text_puts(out, "(\"true\" | \"false\") "), true;
    if (strcmp(type, "null") == 0)
        return xm_text_puts(out, "\"null\" "), true;
    return xm_schema_fail(b, "there is no type '%.60s'", type);
}

static bool write_types(xm_schema_builder *b, const cJSON *schema, const cJSON *types, xm_text *out)
{
    xm_text_puts(out, "(");
    for (const cJSON *type = types->child; type; type = type->next) {
        if (!cJSON_IsString(type))
            return xm_schema_fail(b, "'type' must be a string or a list of strings");
        xm_text_puts(out, type == types->child ? "" : "| ");
        if (!write_type(b, schema, type->valuestring, out))
            return false;
    }
    xm_text_puts(out, ") ");
    return types->child || xm_schema_fail(b, "'type' allows nothing");
}

/* Without `type`, keywords of one type imply it. */
static bool write_implied(xm_schema_builder *b, const cJSON *schema, int kinds, xm_text *out)
{
    switch (kinds & TYPED) {
    case 0:
        return xm_schema_share(b, out, XM_SHARED_VALUE), true;
    case OBJECT:
        return xm_schema_object(b, schema, out);
    case ARRAY:
        return xm_schema_array(b, schema, out);
    case STRING:
        return xm_schema_string(b, schema, out);
    case NUMBER:
        return xm_schema_number(b, schema, false, out);
    default:
        return xm_schema_fail(b, "'type' is needed beside keywords of several types");
    }
}

/* A keyword of another type than the schema's has no effect by the standard; it is most likely a
 * mistake, and refused. */
static bool check_kinds(xm_schema_builder *b, const cJSON *schema, const cJSON *type)
{
    static const struct {
        const char *type;
        int kind;
    } kinds[] = {{"object", OBJECT}, {"array", ARRAY},    {"string", STRING},
                 {"number", NUMBER}, {"integer", NUMBER}, {"boolean", 0}};
    int allowed = ANNOTATION | ANY;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        for (const cJSON *t = cJSON_IsArray(type) ? type->child : type; t;
             t = cJSON_IsArray(type) ? t->next : NULL)
            if (cJSON_IsString(t) && strcmp(t->valuestring, kinds[i].type) == 0)
                allowed |= kinds[i].kind;
    for (const cJSON *member = schema->child; member; member = member->next)
        if (!(kind_of(member->string) & allowed))
            return xm_schema_fail(b, "'%.60s' does not go with the type", member->string);
    return true;
}

static bool write_schema(xm_schema_builder *b, const cJSON *schema, int kinds, xm_text *out)
{
    static const char *const choices[] = {"anyOf", "oneOf"}, *const values[] = {"enum", "const"};
    const cJSON *type = member_of(schema, "type");
    if (cJSON_GetArraySize(type) > TYPES)
        return xm_schema_fail(b, "'type' has more than %d entries", TYPES);
    if (member_of(schema, "$ref"))
        return write_reference(b, schema, out);
    if (member_of(schema, "allOf"))
        return write_all_of(b, schema, out);
    for (int i = 0; i < 2; i++) {
        if (member_of(schema, choices[i]))
            return write_choice(b, schema, choices[i], out);
        if (member_of(schema, values[i]))
            return write_constants(b, schema, values[i], out);
    }
    if (!type)
        return write_implied(b, schema, kinds, out);
    if (!check_kinds(b, schema, type))
        return false;
    if (cJSON_IsArray(type))
        return write_types(b, schema, type, out);
    if (!cJSON_IsString(type))
        return xm_schema_fail(b, "'type' must be a string or a list of strings");
    return write_type(b, schema, type->valuestring, out);
}

bool xm_schema_value(xm_schema_builder *b, const cJSON *schema, xm_text *out)
{
    int kinds = 0;
    if (cJSON_IsTrue(schema)) {
        xm_schema_share(b, out, XM_SHARED_VALUE);
        return true;
    }
    if (!cJSON_IsObject(schema))
        return xm_schema_fail(b, cJSON_IsFalse(schema) ? "nothing is valid here"
                                                       : "a schema must be an object");
    if (++b->depth > DEPTH)
        return xm_schema_fail(b, "the schema is nested too deeply");
    if (!find_kinds(b, schema, &kinds))
        return false;
    bool nullable = cJSON_IsTrue(member_of(schema, "nullable"));
    xm_text_puts(out, nullable ? "(\"null\" | " : "");
    if (!write_schema(b, schema, kinds, out))
        return false;
    xm_text_puts(out, nullable ? ") " : "");
    b->depth--;
    return b->rules->text.length + out->length <= TEXT_BYTES ||
           xm_schema_fail(b, "the schema makes too large a grammar");
}

/* --- the whole -------------------------------------------------------------------------------- */

bool xm_schema_rules_add(xm_schema_rules *rules, const char *name, const cJSON *schema,
                         const char *param, xm_problem *problem)
{
    xm_schema_builder b = {.rules = rules,
                           .root = schema,
                           .name = name,
                           .param = param,
                           .next = 1,
                           .problem = problem};
    xm_text body = {0};
    bool good = xm_schema_value(&b, schema, &body) && write_targets(&b);
    if (good) {
        xm_text_format(&rules->text, "%s ::= ", name);
        xm_text_add(&rules->text, body.data ? body.data : "", body.length);
        xm_text_puts(&rules->text, "\n");
        good = (!rules->text.failed && !body.failed) || xm_schema_no_memory(&b);
    }
    xm_text_free(&body);
    for (size_t i = 0; i < b.merged_count; i++)
        cJSON_Delete(b.merged[i]);
    free(b.merged);
    free(b.targets);
    return good;
}
