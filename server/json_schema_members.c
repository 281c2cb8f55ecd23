/*
 * json_schema_members.c - rules for objects and arrays.
 *
 * What may be left out is written from back to front: of each place in the list there is a rule for
 * the rest where something came before, which begins with a comma, and one where nothing did.
 */
#include "json_schema_parts.h"

#include <stdlib.h>
#include <string.h>

static const cJSON *member_of(const cJSON *schema, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(schema, key);
}

static void blank(xm_schema_builder *b, xm_text *out)
{
    xm_schema_share(b, out, XM_SHARED_BLANK);
}

static void comma(xm_schema_builder *b, xm_text *out)
{
    xm_text_puts(out, "\",\" ");
    blank(b, out);
}

/* {low,high} of a repetition; high -1: no end. */
static void repeat(xm_text *out, int32_t low, int32_t high)
{
    xm_text_format(out, high < 0 ? "{%d,} " : "{%d,%d} ", low, high);
}

/* One of `item` or more with commas between, low to high (-1: no end), where high is not 0. */
static void list(xm_schema_builder *b, xm_text *out, const char *item, int32_t low, int32_t high)
{
    low = low > 1 ? low : 1;
    xm_text_puts(out, item);
    if (high == 1)
        return;
    xm_text_puts(out, "(");
    comma(b, out);
    xm_text_puts(out, item);
    xm_text_puts(out, ")");
    repeat(out, low - 1, high < 0 ? -1 : high - 1);
}

/* --- keys of additional members --------------------------------------------------------------- */

static size_t character_at(const char *text)
{
    return xm_text_character(text, strlen(text));
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A character in a class of a grammar. */
static void put_in_class(xm_text *out, const char *character, size_t length)
{
    if (strchr("]\\^-[", *character))
        xm_text_puts(out, "\\");
    xm_text_add(out, character, length);
}

/* The rest of a key that begins like all of names[0..count), sorted, from their offset on, and is
 * none of them; the name of its rule is appended to out. */
static bool other_key(xm_schema_builder *b, char **names, size_t count, size_t offset, xm_text *out)
{
    xm_text body = {0}, others = {0};
    bool taken = names[0][offset] == '\0'; /* the key may not end here */
    bool good = true;
    size_t first = 0;
    while (first < count && names[first][offset] == '\0')
        first++;
    xm_text_puts(&body, "(");
    while (first < count && good) {
        size_t length = character_at(names[first] + offset), end = first + 1;
        while (end < count && strncmp(names[first] + offset, names[end] + offset, length) == 0)
            end++;
        char character[8] = {0};
        memcpy(character, names[first] + offset, length);
        put_in_class(&others, character, length);
        xm_schema_literal(&body, character);
        xm_text_puts(&body, " ");
        good = other_key(b, names + first, end - first, offset + length, &body);
        xm_text_puts(&body, "| ");
        first = end;
    }
    xm_text_format(&body, "[^\"\\\\\\x00-\\x1F%s] ", others.data ? others.data : "");
    xm_schema_share(b, &body, XM_SHARED_PLAIN);
    xm_text_puts(&body, taken ? "*) " : "*)? ");
    xm_text_free(&others);
    if (good)
        return xm_schema_close_rule(b, &body, out);
    xm_text_free(&body);
    return false;
}

/* A name that a key without escapes can be. */
static bool is_plain(const char *name)
{
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == '"' || *c == '\\')
            return false;
    return strlen(name) <= 200;
}

/* A key that is not among the properties, with its quotes. */
static bool additional_key(xm_schema_builder *b, const cJSON *properties, xm_text *out)
{
    size_t count = 0;
    char **names = calloc((size_t)cJSON_GetArraySize(properties) + 1, sizeof *names);
    if (!names)
        return xm_schema_no_memory(b);
    bool good = true;
    for (const cJSON *p = properties ? properties->child : NULL; p && good; p = p->next) {
        if (is_plain(p->string))
            names[count++] = p->string;
        else if (strlen(p->string) > 200)
            good = xm_schema_fail(b, "a property's name is too long for additional ones beside it");
    }
    xm_text_puts(out, "\"\\\"\" ");
    if (count > 0 && good) {
        qsort(names, count, sizeof *names, compare_names);
        good = other_key(b, names, count, 0, out);
    } else {
        xm_schema_share(b, out, XM_SHARED_CHARACTER);
        xm_text_puts(out, "* ");
    }
    xm_text_puts(out, "\"\\\"\" ");
    free(names);
    return good;
}

/* --- objects ---------------------------------------------------------------------------------- */

static bool is_required(const cJSON *required, const char *name)
{
    for (const cJSON *item = required ? required->child : NULL; item; item = item->next)
        if (cJSON_IsString(item) && strcmp(item->valuestring, name) == 0)
            return true;
    return false;
}

/* `"name" ":" value` as a rule. */
static bool write_member(xm_schema_builder *b, const cJSON *property, xm_text *out)
{
    xm_text body = {0};
    cJSON *name = cJSON_CreateString(property->string);
    char *text = name ? cJSON_PrintUnformatted(name) : NULL;
    cJSON_Delete(name);
    if (!text)
        return xm_schema_no_memory(b);
    xm_schema_literal(&body, text);
    cJSON_free(text);
    xm_text_puts(&body, " \":\" ");
    blank(b, &body);
    size_t mark = xm_schema_down(b, "properties", 0);
    xm_schema_down(b, property->string, 0);
    if (!xm_schema_value(b, property, &body)) {
        xm_text_free(&body);
        return false;
    }
    xm_schema_up(b, mark);
    return xm_schema_close_rule(b, &body, out);
}

/* Any number of additional members: *extra is one, empty if there are none. */
static bool write_extra(xm_schema_builder *b, const cJSON *schema, const cJSON *properties,
                        xm_text *extra)
{
    const cJSON *additional = member_of(schema, "additionalProperties");
    if (additional ? cJSON_IsFalse(additional) : properties && properties->child)
        return true;
    xm_text body = {0};
    size_t mark = xm_schema_down(b, "additionalProperties", 0);
    bool good = additional_key(b, properties, &body);
    xm_text_puts(&body, "\":\" ");
    blank(b, &body);
    if (!additional)
        xm_schema_share(b, &body, XM_SHARED_VALUE);
    else
        good = good && xm_schema_value(b, additional, &body);
    xm_schema_up(b, mark);
    if (good)
        return xm_schema_close_rule(b, &body, extra);
    xm_text_free(&body);
    return false;
}

/* What may follow at a place in the list of members; names of rules. */
typedef struct {
    xm_text some; /* something came before: begins with a comma, or is nothing */
    xm_text none; /* nothing did: at least one member; empty where there can be none */
} rest;

static void free_rest(rest *r)
{
    xm_text_free(&r->some);
    xm_text_free(&r->none);
}

/* One member, of that name, before the rest. */
static bool put_before(xm_schema_builder *b, const char *member, bool required, rest *r)
{
    rest fresh = {0};
    xm_text some = {0}, none = {0};
    xm_text_puts(&some, "(");
    comma(b, &some);
    xm_text_format(&some, "%s)%s %s", member, required ? "" : "?",
                   r->some.data ? r->some.data : "");
    xm_text_format(&none, "%s%s", member, r->some.data ? r->some.data : "");
    if (!required && r->none.data)
        xm_text_format(&none, "| %s", r->none.data);
    bool good = !r->some.failed && !r->none.failed && !some.failed;
    free_rest(r);
    good = xm_schema_close_rule(b, &some, &fresh.some) && good;
    good = xm_schema_close_rule(b, &none, &fresh.none) && good;
    *r = fresh;
    return good || b->problem->status || xm_schema_no_memory(b);
}

/* The rest behind the named members. */
static bool begin_rest(xm_schema_builder *b, const cJSON *schema, const cJSON *properties, rest *r)
{
    xm_text extra = {0}, some = {0}, none = {0};
    bool good = write_extra(b, schema, properties, &extra);
    if (good && extra.data) {
        xm_text_puts(&some, "(");
        comma(b, &some);
        xm_text_format(&some, "%s)* ", extra.data);
        list(b, &none, extra.data, 1, -1);
        good = xm_schema_close_rule(b, &some, &r->some);
        good = xm_schema_close_rule(b, &none, &r->none) && good;
    }
    xm_text_free(&extra);
    return good;
}

static bool check_names(xm_schema_builder *b, const cJSON *properties, const cJSON *required)
{
    if (properties && !cJSON_IsObject(properties))
        return xm_schema_fail(b, "'properties' must be an object");
    if (required && !cJSON_IsArray(required))
        return xm_schema_fail(b, "'required' must be a list");
    size_t members = (size_t)cJSON_GetArraySize(properties);
    size_t names = (size_t)cJSON_GetArraySize(required);
    if (members > XM_SCHEMA_MEMBERS || names > XM_SCHEMA_MEMBERS)
        return xm_schema_fail(b, "more than %d members are named", XM_SCHEMA_MEMBERS);
    if (!xm_schema_spend(b, 2 * members * names))
        return false;
    for (const cJSON *item = required ? required->child : NULL; item; item = item->next) {
        if (!cJSON_IsString(item))
            return xm_schema_fail(b, "'required' must hold strings");
        if (!member_of(properties, item->valuestring))
            return xm_schema_fail(b, "'required' names '%.60s', which is not among 'properties'",
                                  item->valuestring);
    }
    return true;
}

/* Members in their order, back to front; *needed: there must be one. */
static bool write_members(xm_schema_builder *b, const cJSON *schema, rest *r, bool *needed)
{
    const cJSON *properties = member_of(schema, "properties");
    const cJSON *required = member_of(schema, "required");
    *needed = false;
    if (!check_names(b, properties, required) || !begin_rest(b, schema, properties, r))
        return false;
    if (!properties || !properties->child)
        return true;
    for (const cJSON *p = properties->child->prev; p; p = p == properties->child ? NULL : p->prev) {
        bool must = is_required(required, p->string);
        xm_text member = {0};
        *needed |= must;
        bool good =
            write_member(b, p, &member) && put_before(b, member.data ? member.data : "", must, r);
        xm_text_free(&member);
        if (!good)
            return false;
    }
    return true;
}

/* Free objects with a number of members. */
static bool write_counted(xm_schema_builder *b, const cJSON *schema, int32_t low, int32_t high,
                          xm_text *out)
{
    xm_text extra = {0};
    if (!write_extra(b, schema, NULL, &extra))
        return false;
    if (!extra.data)
        return xm_schema_fail(b, "'minProperties' and 'maxProperties' need additional members");
    xm_text_puts(out, low < 1 && high != 0 ? "(" : "");
    if (high != 0) {
        list(b, out, extra.data, low, high);
        blank(b, out);
    }
    xm_text_puts(out, low < 1 && high != 0 ? ")? " : "");
    xm_text_free(&extra);
    return true;
}

bool xm_schema_object(xm_schema_builder *b, const cJSON *schema, xm_text *out)
{
    const cJSON *properties = member_of(schema, "properties");
    int32_t low = -1, high = -1;
    xm_text body = {0};
    rest r = {0};
    bool needed = false, good = true;
    if (!xm_schema_count(b, schema, "minProperties", &low) ||
        !xm_schema_count(b, schema, "maxProperties", &high))
        return false;
    bool counted = low >= 0 || high >= 0;
    if (counted && properties && properties->child)
        return xm_schema_fail(b, "'minProperties' and 'maxProperties' beside 'properties' are not "
                                 "supported");
    if (high >= 0 && high < low)
        return xm_schema_fail(b, "'maxProperties' is below 'minProperties'");
    xm_text_puts(&body, "\"{\" ");
    blank(b, &body);
    if (counted) {
        good = check_names(b, properties, member_of(schema, "required")) &&
               write_counted(b, schema, low, high, &body);
    } else {
        good = write_members(b, schema, &r, &needed);
        if (r.none.data) {
            xm_text_format(&body, "%s%s", needed ? "" : "(", r.none.data);
            blank(b, &body);
            xm_text_puts(&body, needed ? "" : ")? ");
        }
    }
    xm_text_puts(&body, "\"}\" ");
    free_rest(&r);
    if (good)
        return xm_schema_close_rule(b, &body, out);
    xm_text_free(&body);
    return false;
}

/* --- arrays ----------------------------------------------------------------------------------- */

/* Items behind the given ones; an expression that begins with a comma where `some` is set. */
static bool write_items(xm_schema_builder *b, const cJSON *items, bool some, int32_t low,
                        int32_t high, xm_text *out)
{
    xm_text item = {0};
    size_t mark = xm_schema_down(b, "items", 0);
    bool good = true;
    if (items)
        good = xm_schema_rule(b, items, &item);
    else
        xm_schema_share(b, &item, XM_SHARED_VALUE);
    xm_schema_up(b, mark);
    low = low > 0 ? low : 0;
    if (good && some) {
        xm_text_puts(out, "(");
        comma(b, out);
        xm_text_format(out, "%s)", item.data ? item.data : "");
        repeat(out, low, high);
    } else if (good) {
        xm_text_puts(out, low == 0 ? "(" : "");
        list(b, out, item.data ? item.data : "", low, high);
        xm_text_puts(out, low == 0 ? ")? " : "");
    }
    xm_text_free(&item);
    return good;
}

/* prefixItems, back to front: each, where it may be left out, with all that follows. */
static bool write_tuple(xm_schema_builder *b, const cJSON *schema, const cJSON *prefix, int32_t low,
                        int32_t high, xm_text *out)
{
    const cJSON *items = member_of(schema, "items");
    int32_t count = cJSON_GetArraySize(prefix), i = count;
    bool more = (items && !cJSON_IsFalse(items)) || low > count, good = true;
    xm_text after = {0};
    if (count > XM_SCHEMA_MEMBERS)
        return xm_schema_fail(b, "'prefixItems' has more than %d entries", XM_SCHEMA_MEMBERS);
    if (more && (high < 0 || high > count))
        good = write_items(b, cJSON_IsFalse(items) ? NULL : items, true, low - count,
                           high < 0 ? -1 : high - count, &after);
    for (const cJSON *p = prefix->child->prev; p && good; p = p == prefix->child ? NULL : p->prev) {
        xm_text body = {0};
        bool optional = --i >= (low > 0 ? low : 0);
        if (high >= 0 && i >= high)
            continue;
        size_t mark = xm_schema_down(b, "prefixItems", 0);
        xm_schema_down(b, NULL, i);
        if (i > 0)
            comma(b, &body);
        good = xm_schema_value(b, p, &body);
        xm_schema_up(b, mark);
        xm_text_puts(&body, after.data ? after.data : "");
        xm_text_clear(&after);
        if (good)
            good = xm_schema_close_rule(b, &body, &after);
        else
            xm_text_free(&body);
        xm_text_puts(&after, optional ? "? " : "");
    }
    xm_text_puts(out, after.data ? after.data : "");
    xm_text_free(&after);
    return good;
}

bool xm_schema_array(xm_schema_builder *b, const cJSON *schema, xm_text *out)
{
    const cJSON *items = member_of(schema, "items"), *prefix = member_of(schema, "prefixItems");
    int32_t low = -1, high = -1;
    xm_text body = {0};
    bool good = true;
    if (!xm_schema_count(b, schema, "minItems", &low) ||
        !xm_schema_count(b, schema, "maxItems", &high))
        return false;
    if (high >= 0 && high < low)
        return xm_schema_fail(b, "'maxItems' is below 'minItems'");
    if (prefix && (!cJSON_IsArray(prefix) || !prefix->child))
        return xm_schema_fail(b, "'prefixItems' must be a list, not empty");
    xm_text_puts(&body, "\"[\" ");
    blank(b, &body);
    if (prefix)
        good = write_tuple(b, schema, prefix, low, high, &body);
    else if (cJSON_IsFalse(items) && low > 0)
        good = xm_schema_fail(b, "'minItems' asks for items that 'items' forbids");
    else if (!cJSON_IsFalse(items) && high != 0)
        good = write_items(b, items, false, low, high, &body);
    blank(b, &body);
    xm_text_puts(&body, "\"]\" ");
    if (good)
        return xm_schema_close_rule(b, &body, out);
    xm_text_free(&body);
    return false;
}
