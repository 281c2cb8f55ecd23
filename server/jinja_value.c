/*
 * jinja_value.c - see jinja_value.h.
 */
#include "jinja_value.h"

#include <math.h>
#include <string.h>

#include "jinja_string.h"

xm_jinja_string xm_jinja_literal(const char *text)
{
    return (xm_jinja_string){text, NULL, strlen(text)};
}

bool xm_jinja_string_is(xm_jinja_string string, const char *text)
{
    return string.length == strlen(text) && memcmp(string.bytes, text, string.length) == 0;
}

/* The order of bytes is the order of code points. */
int xm_jinja_string_compare(xm_jinja_string a, xm_jinja_string b)
{
    size_t common = a.length < b.length ? a.length : b.length;
    int order = common ? memcmp(a.bytes, b.bytes, common) : 0;
    return order ? order : (a.length > b.length) - (a.length < b.length);
}

xm_jinja_value xm_jinja_new_list(xm_jinja_job *job, bool tuple)
{
    xm_jinja_value value = {.type = XM_JINJA_LIST};
    value.list = xm_jinja_allocate(job, sizeof *value.list);
    value.list->tuple = tuple;
    return value;
}

void xm_jinja_append(xm_jinja_job *job, xm_jinja_value list, xm_jinja_value item)
{
    xm_jinja_list *to = list.list;
    xm_jinja_step(job, 1);
    to->items = xm_jinja_grow(job, to->items, to->count, &to->capacity, sizeof *to->items);
    to->items[to->count++] = item;
}

xm_jinja_value xm_jinja_pair(xm_jinja_job *job, xm_jinja_value first, xm_jinja_value second)
{
    xm_jinja_value pair = xm_jinja_new_list(job, true);
    xm_jinja_append(job, pair, first);
    xm_jinja_append(job, pair, second);
    return pair;
}

xm_jinja_value xm_jinja_new_dict(xm_jinja_job *job)
{
    xm_jinja_value value = {.type = XM_JINJA_DICT};
    value.dict = xm_jinja_allocate(job, sizeof *value.dict);
    return value;
}

xm_jinja_value *xm_jinja_find(xm_jinja_job *job, const xm_jinja_dict *dict, xm_jinja_value key)
{
    xm_jinja_step(job, dict->count / 16);
    for (size_t i = 0; i < dict->count; i++)
        if (xm_jinja_equal(job, dict->keys[i], key))
            return &dict->values[i];
    return NULL;
}

const xm_jinja_value *xm_jinja_find_name(xm_jinja_job *job, const xm_jinja_dict *dict,
                                         const char *name)
{
    return xm_jinja_find(job, dict, xm_jinja_text(xm_jinja_literal(name)));
}

void xm_jinja_insert(xm_jinja_job *job, xm_jinja_dict *dict, xm_jinja_value key,
                     xm_jinja_value value)
{
    if (key.type == XM_JINJA_LIST || key.type == XM_JINJA_DICT || key.type == XM_JINJA_UNDEFINED)
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "a %s cannot be a key", xm_jinja_type_name(key));
    xm_jinja_value *found = xm_jinja_find(job, dict, key);
    if (found) {
        *found = value;
        return;
    }
    xm_jinja_step(job, 1);
    dict->keys =
        xm_jinja_grow(job, dict->keys, dict->count, &dict->key_capacity, sizeof *dict->keys);
    dict->values =
        xm_jinja_grow(job, dict->values, dict->count, &dict->value_capacity, sizeof *dict->values);
    dict->keys[dict->count] = key;
    dict->values[dict->count++] = value;
}

static xm_jinja_value json_string(xm_jinja_job *job, const char *text, bool input)
{
    xm_jinja_string string = {NULL, NULL, strlen(text)};
    char *bytes = xm_jinja_allocate_items(job, string.length, 1);
    memcpy(bytes, text, string.length);
    string.bytes = bytes;
    if (input && string.length) {
        char *marks = xm_jinja_allocate_items(job, string.length, 1);
        memset(marks, 1, string.length);
        string.marks = marks;
    }
    return xm_jinja_text(string);
}

static xm_jinja_value json_number(double number)
{
    bool whole = number == floor(number) && fabs(number) < 9007199254740992.0;
    return whole ? xm_jinja_integer((int64_t)number) : xm_jinja_float(number);
}

/* The members of an object are all different: server/json_read.h sees to it. */
static xm_jinja_value json_object(xm_jinja_job *job, const cJSON *json, bool input)
{
    xm_jinja_value value = xm_jinja_new_dict(job);
    xm_jinja_dict *dict = value.dict;
    size_t count = (size_t)cJSON_GetArraySize(json);
    dict->keys = xm_jinja_allocate_items(job, count, sizeof *dict->keys);
    dict->values = xm_jinja_allocate_items(job, count, sizeof *dict->values);
    dict->key_capacity = dict->value_capacity = count;
    for (const cJSON *item = json->child; item; item = item->next) {
        dict->keys[dict->count] = json_string(job, item->string, input);
        dict->values[dict->count++] = xm_jinja_from_json(job, item, input);
    }
    return value;
}

xm_jinja_value xm_jinja_from_json(xm_jinja_job *job, const cJSON *json, bool input)
{
    xm_jinja_value value = xm_jinja_none();
    xm_jinja_descend(job);
    if (cJSON_IsBool(json))
        value = xm_jinja_boolean(cJSON_IsTrue(json));
    else if (cJSON_IsNumber(json))
        value = json_number(json->valuedouble);
    else if (cJSON_IsString(json))
        value = json_string(job, json->valuestring, input);
    else if (cJSON_IsObject(json))
        value = json_object(job, json, input);
    else if (cJSON_IsArray(json)) {
        value = xm_jinja_new_list(job, false);
        for (const cJSON *item = json->child; item; item = item->next)
            xm_jinja_append(job, value, xm_jinja_from_json(job, item, input));
    }
    xm_jinja_rise(job);
    return value;
}

bool xm_jinja_truth(const xm_jinja_job *job, xm_jinja_value value)
{
    (void)job;
    switch (value.type) {
    case XM_JINJA_UNDEFINED:
    case XM_JINJA_NONE:
        return false;
    case XM_JINJA_BOOLEAN:
        return value.boolean;
    case XM_JINJA_INTEGER:
        return value.integer != 0;
    case XM_JINJA_FLOAT:
        return value.number != 0;
    case XM_JINJA_STRING:
        return value.string.length > 0;
    case XM_JINJA_LIST:
        return value.list->count > 0;
    case XM_JINJA_DICT:
        return value.dict->count > 0 || value.dict->is_namespace;
    default:
        return true;
    }
}

bool xm_jinja_is_number(xm_jinja_value value)
{
    return value.type == XM_JINJA_BOOLEAN || value.type == XM_JINJA_INTEGER ||
           value.type == XM_JINJA_FLOAT;
}

double xm_jinja_number(xm_jinja_value value)
{
    if (value.type == XM_JINJA_FLOAT)
        return value.number;
    return value.type == XM_JINJA_BOOLEAN ? value.boolean : (double)value.integer;
}

static bool equal_lists(xm_jinja_job *job, const xm_jinja_list *a, const xm_jinja_list *b)
{
    if (a->count != b->count || a->tuple != b->tuple)
        return false;
    for (size_t i = 0; i < a->count; i++)
        if (!xm_jinja_equal(job, a->items[i], b->items[i]))
            return false;
    return true;
}

static bool equal_dicts(xm_jinja_job *job, const xm_jinja_dict *a, const xm_jinja_dict *b)
{
    if (a->count != b->count)
        return false;
    for (size_t i = 0; i < a->count; i++) {
        const xm_jinja_value *other = xm_jinja_find(job, b, a->keys[i]);
        if (!other || !xm_jinja_equal(job, a->values[i], *other))
            return false;
    }
    return true;
}

bool xm_jinja_equal(xm_jinja_job *job, xm_jinja_value a, xm_jinja_value b)
{
    if (xm_jinja_is_number(a) && xm_jinja_is_number(b)) {
        bool whole = a.type == XM_JINJA_INTEGER && b.type == XM_JINJA_INTEGER;
        return whole ? a.integer == b.integer : xm_jinja_number(a) == xm_jinja_number(b);
    }
    if (a.type != b.type)
        return false;
    if (a.type == XM_JINJA_STRING && a.string.length != b.string.length)
        return false;
    if (a.type == XM_JINJA_STRING) {
        xm_jinja_step(job, a.string.length / 64);
        return memcmp(a.string.bytes, b.string.bytes, a.string.length) == 0;
    }
    bool same = a.type <= XM_JINJA_NONE;
    xm_jinja_descend(job);
    xm_jinja_step(job, 1);
    if (a.type == XM_JINJA_LIST)
        same = a.list == b.list || equal_lists(job, a.list, b.list);
    else if (a.type == XM_JINJA_DICT)
        same = a.dict == b.dict || equal_dicts(job, a.dict, b.dict);
    else if (a.type == XM_JINJA_CALLABLE)
        same = a.callable == b.callable;
    else if (a.type == XM_JINJA_LOOP)
        same = a.loop == b.loop;
    xm_jinja_rise(job);
    return same;
}

int xm_jinja_compare(xm_jinja_job *job, xm_jinja_value a, xm_jinja_value b)
{
    if (a.type == XM_JINJA_INTEGER && b.type == XM_JINJA_INTEGER)
        return (a.integer > b.integer) - (a.integer < b.integer);
    if (xm_jinja_is_number(a) && xm_jinja_is_number(b)) {
        double first = xm_jinja_number(a), second = xm_jinja_number(b);
        return (first > second) - (first < second);
    }
    if (a.type == XM_JINJA_STRING && b.type == XM_JINJA_STRING) {
        xm_jinja_step(job, a.string.length / 64);
        return xm_jinja_string_compare(a.string, b.string);
    }
    if (a.type != XM_JINJA_LIST || b.type != XM_JINJA_LIST)
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "%s and %s have no order", xm_jinja_type_name(a),
                      xm_jinja_type_name(b));
    xm_jinja_descend(job);
    int order = 0;
    for (size_t i = 0; !order && i < a.list->count && i < b.list->count; i++) {
        xm_jinja_step(job, 1);
        if (!xm_jinja_equal(job, a.list->items[i], b.list->items[i]))
            order = xm_jinja_compare(job, a.list->items[i], b.list->items[i]);
    }
    xm_jinja_rise(job);
    return order ? order : (a.list->count > b.list->count) - (a.list->count < b.list->count);
}

bool xm_jinja_contains(xm_jinja_job *job, xm_jinja_value container, xm_jinja_value item)
{
    if (container.type == XM_JINJA_STRING) {
        if (item.type != XM_JINJA_STRING)
            xm_jinja_fail(job, XM_JINJA_RUNTIME, "'in' of a string needs a string, not %s",
                          xm_jinja_type_name(item));
        return xm_jinja_search(job, container.string, item.string, 0) != XM_JINJA_NOWHERE;
    }
    if (container.type == XM_JINJA_DICT)
        return xm_jinja_find(job, container.dict, item) != NULL;
    const xm_jinja_list *list = xm_jinja_iterate(job, container);
    xm_jinja_step(job, list->count / 16);
    for (size_t i = 0; i < list->count; i++)
        if (xm_jinja_equal(job, list->items[i], item))
            return true;
    return false;
}

xm_jinja_list *xm_jinja_iterate(xm_jinja_job *job, xm_jinja_value value)
{
    if (value.type == XM_JINJA_LIST)
        return value.list;
    xm_jinja_value list = xm_jinja_new_list(job, false);
    if (value.type == XM_JINJA_DICT && !value.dict->is_namespace) {
        for (size_t i = 0; i < value.dict->count; i++)
            xm_jinja_append(job, list, value.dict->keys[i]);
    } else if (value.type == XM_JINJA_STRING) {
        for (size_t at = 0, size; at < value.string.length; at += size) {
            size = xm_jinja_character_size(value.string, at);
            xm_jinja_append(job, list, xm_jinja_text(xm_jinja_cut(value.string, at, at + size)));
        }
    } else if (value.type != XM_JINJA_UNDEFINED) {
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "%s is not iterable", xm_jinja_type_name(value));
    }
    return list.list;
}

size_t xm_jinja_length(xm_jinja_job *job, xm_jinja_value value)
{
    switch (value.type) {
    case XM_JINJA_UNDEFINED:
        return 0;
    case XM_JINJA_STRING:
        return xm_jinja_characters(job, value.string);
    case XM_JINJA_LIST:
        return value.list->count;
    case XM_JINJA_DICT:
        return value.dict->count;
    default:
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "%s has no length", xm_jinja_type_name(value));
    }
}

const char *xm_jinja_type_name(xm_jinja_value value)
{
    static const char *const names[] = {"undefined", "NoneType", "bool", "int",      "float",
                                        "str",       "list",     "dict", "callable", "loop"};
    if (value.type == XM_JINJA_LIST && value.list->tuple)
        return "tuple";
    return names[value.type];
}
