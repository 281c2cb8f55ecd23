/*
 * jinja_print.c - values as Python writes them: str(), repr() and json.dumps().
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "jinja_string.h"

/* repr() of a float: the fewest digits that read back the same; an exponent below 1e-4 and from
 * 1e16 on. */
static void add_float(xm_jinja_builder *builder, double number)
{
    char text[40], digits[40];
    int precision = 0;
    if (isnan(number) || isinf(number)) {
        xm_jinja_puts(builder, isnan(number) ? "nan" : number < 0 ? "-inf" : "inf");
        return;
    }
    do
        snprintf(text, sizeof text, "%.*e", precision, number);
    while (strtod(text, NULL) != number && ++precision < 17);
    int exponent = atoi(strchr(text, 'e') + 1);
    if (number != 0 && (exponent < -4 || exponent >= 16)) {
        *strchr(text, 'e') = '\0';
        xm_jinja_format(builder, "%se%c%02d", text, exponent < 0 ? '-' : '+', abs(exponent));
        return;
    }
    int decimals = precision - exponent;
    snprintf(digits, sizeof digits, "%.*f", decimals < 1 ? 1 : decimals, number);
    xm_jinja_puts(builder, digits);
}

/* Python takes double quotes where the text has single ones only. */
static void add_quoted(xm_jinja_builder *builder, xm_jinja_string string)
{
    bool has_single = string.length && memchr(string.bytes, '\'', string.length);
    bool has_double = string.length && memchr(string.bytes, '"', string.length);
    char quote = has_single && !has_double ? '"' : '\'';
    xm_jinja_pad(builder, quote, 1);
    for (size_t at = 0, size; at < string.length; at += size) {
        size = xm_jinja_character_size(string, at);
        unsigned char byte = (unsigned char)string.bytes[at];
        if (byte == '\n' || byte == '\r' || byte == '\t')
            xm_jinja_puts(builder, byte == '\n' ? "\\n" : byte == '\r' ? "\\r" : "\\t");
        else if (byte < 0x20 || byte == 0x7f)
            xm_jinja_format(builder, "\\x%02x", byte);
        else {
            if (byte == '\\' || byte == (unsigned char)quote)
                xm_jinja_puts(builder, "\\");
            xm_jinja_add(builder, xm_jinja_cut(string, at, at + size));
        }
    }
    xm_jinja_pad(builder, quote, 1);
}

static void add_repr(xm_jinja_builder *builder, xm_jinja_value value);

static void add_list(xm_jinja_builder *builder, const xm_jinja_list *list)
{
    xm_jinja_puts(builder, list->tuple ? "(" : "[");
    for (size_t i = 0; i < list->count; i++) {
        if (i)
            xm_jinja_puts(builder, ", ");
        add_repr(builder, list->items[i]);
    }
    if (list->tuple && list->count == 1)
        xm_jinja_puts(builder, ",");
    xm_jinja_puts(builder, list->tuple ? ")" : "]");
}

static void add_dict(xm_jinja_builder *builder, const xm_jinja_dict *dict)
{
    xm_jinja_puts(builder, "{");
    for (size_t i = 0; i < dict->count; i++) {
        if (i)
            xm_jinja_puts(builder, ", ");
        add_repr(builder, dict->keys[i]);
        xm_jinja_puts(builder, ": ");
        add_repr(builder, dict->values[i]);
    }
    xm_jinja_puts(builder, "}");
}

static void add_repr(xm_jinja_builder *builder, xm_jinja_value value)
{
    xm_jinja_job *job = builder->job;
    xm_jinja_descend(job);
    switch (value.type) {
    case XM_JINJA_UNDEFINED:
        xm_jinja_puts(builder, "Undefined");
        break;
    case XM_JINJA_NONE:
        xm_jinja_puts(builder, "None");
        break;
    case XM_JINJA_BOOLEAN:
        xm_jinja_puts(builder, value.boolean ? "True" : "False");
        break;
    case XM_JINJA_INTEGER:
        xm_jinja_format(builder, "%lld", (long long)value.integer);
        break;
    case XM_JINJA_FLOAT:
        add_float(builder, value.number);
        break;
    case XM_JINJA_STRING:
        add_quoted(builder, value.string);
        break;
    case XM_JINJA_LIST:
        add_list(builder, value.list);
        break;
    case XM_JINJA_DICT:
        if (!value.dict->is_namespace) {
            add_dict(builder, value.dict);
            break;
        }
        /* fall through */
    default:
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "a %s cannot be printed", xm_jinja_type_name(value));
    }
    xm_jinja_rise(job);
}

xm_jinja_string xm_jinja_repr(xm_jinja_job *job, xm_jinja_value value)
{
    xm_jinja_builder builder = {.job = job};
    add_repr(&builder, value);
    return xm_jinja_built(&builder);
}

xm_jinja_string xm_jinja_to_string(xm_jinja_job *job, xm_jinja_value value)
{
    if (value.type == XM_JINJA_STRING)
        return value.string;
    if (value.type == XM_JINJA_UNDEFINED)
        return xm_jinja_literal("");
    return xm_jinja_repr(job, value);
}

/* --- JSON --------------------------------------------------------------------------------------
 */

static void add_json_escape(xm_jinja_builder *builder, uint32_t code)
{
    if (code >= 0x10000) {
        code -= 0x10000;
        xm_jinja_format(builder, "\\u%04x\\u%04x", 0xd800 + (code >> 10), 0xdc00 + (code & 0x3ff));
    } else {
        xm_jinja_format(builder, "\\u%04x", code);
    }
}

static uint32_t code_point(const unsigned char *byte, size_t size)
{
    uint32_t code = size == 2 ? byte[0] & 0x1fu : size == 3 ? byte[0] & 0x0fu : byte[0] & 0x07u;
    for (size_t i = 1; i < size; i++)
        code = code << 6 | (byte[i] & 0x3fu);
    return size == 1 ? byte[0] : code;
}

static void add_json_string(xm_jinja_builder *builder, xm_jinja_string string, bool ascii)
{
    static const char plain[] = "\"\\\n\r\t\f\b", escaped[] = "\"\\nrtfb";
    size_t from = 0;
    xm_jinja_puts(builder, "\"");
    for (size_t at = 0, size; at < string.length; at += size) {
        size = xm_jinja_character_size(string, at);
        unsigned char byte = (unsigned char)string.bytes[at];
        const char *special = byte ? strchr(plain, byte) : NULL;
        if (!special && byte >= 0x20 && (size == 1 || !ascii))
            continue;
        xm_jinja_add(builder, xm_jinja_cut(string, from, at));
        if (special)
            xm_jinja_format(builder, "\\%c", escaped[special - plain]);
        else
            add_json_escape(builder, code_point((const unsigned char *)string.bytes + at, size));
        from = at + size;
    }
    xm_jinja_add(builder, xm_jinja_cut(string, from, string.length));
    xm_jinja_puts(builder, "\"");
}

static void add_json(xm_jinja_builder *builder, xm_jinja_value value,
                     const xm_jinja_json_style *style, int depth);

static void new_line(xm_jinja_builder *builder, const xm_jinja_json_style *style, int depth)
{
    if (style->indent < 0)
        return;
    xm_jinja_puts(builder, "\n");
    xm_jinja_pad(builder, ' ', (size_t)style->indent * (size_t)depth);
}

static void add_json_list(xm_jinja_builder *builder, const xm_jinja_list *list,
                          const xm_jinja_json_style *style, int depth)
{
    xm_jinja_puts(builder, "[");
    for (size_t i = 0; i < list->count; i++) {
        if (i)
            xm_jinja_puts(builder, style->item_separator);
        new_line(builder, style, depth + 1);
        add_json(builder, list->items[i], style, depth + 1);
    }
    if (list->count)
        new_line(builder, style, depth);
    xm_jinja_puts(builder, "]");
}

/* Positions of the keys in the order in which they are written: insertion sort, which leaves equal
 * ones alone. */
static size_t *key_order(xm_jinja_job *job, const xm_jinja_dict *dict, bool sorted)
{
    size_t *order = xm_jinja_allocate_items(job, dict->count, sizeof *order);
    for (size_t i = 0; i < dict->count; i++) {
        size_t at = i;
        for (; sorted && at > 0; at--) {
            xm_jinja_step(job, 1);
            if (xm_jinja_compare(job, dict->keys[order[at - 1]], dict->keys[i]) <= 0)
                break;
            order[at] = order[at - 1];
        }
        order[at] = i;
    }
    return order;
}

static void add_json_key(xm_jinja_builder *builder, xm_jinja_value key, bool ascii)
{
    xm_jinja_string text = {0};
    if (key.type == XM_JINJA_STRING)
        text = key.string;
    else if (key.type == XM_JINJA_NONE)
        text = xm_jinja_literal("null");
    else if (key.type == XM_JINJA_BOOLEAN)
        text = xm_jinja_literal(key.boolean ? "true" : "false");
    else
        text = xm_jinja_repr(builder->job, key);
    add_json_string(builder, text, ascii);
}

static void add_json_dict(xm_jinja_builder *builder, const xm_jinja_dict *dict,
                          const xm_jinja_json_style *style, int depth)
{
    const size_t *order = key_order(builder->job, dict, style->sort_keys);
    xm_jinja_puts(builder, "{");
    for (size_t i = 0; i < dict->count; i++) {
        if (i)
            xm_jinja_puts(builder, style->item_separator);
        new_line(builder, style, depth + 1);
        add_json_key(builder, dict->keys[order[i]], style->ascii);
        xm_jinja_puts(builder, style->key_separator);
        add_json(builder, dict->values[order[i]], style, depth + 1);
    }
    if (dict->count)
        new_line(builder, style, depth);
    xm_jinja_puts(builder, "}");
}

static void add_json(xm_jinja_builder *builder, xm_jinja_value value,
                     const xm_jinja_json_style *style, int depth)
{
    xm_jinja_job *job = builder->job;
    xm_jinja_descend(job);
    if (value.type == XM_JINJA_NONE)
        xm_jinja_puts(builder, "null");
    else if (value.type == XM_JINJA_BOOLEAN)
        xm_jinja_puts(builder, value.boolean ? "true" : "false");
    else if (value.type == XM_JINJA_FLOAT && !isfinite(value.number))
        xm_jinja_puts(builder, isnan(value.number) ? "NaN"
                               : value.number < 0  ? "-Infinity"
                                                   : "Infinity");
    else if (value.type == XM_JINJA_INTEGER || value.type == XM_JINJA_FLOAT)
        add_repr(builder, value);
    else if (value.type == XM_JINJA_STRING)
        add_json_string(builder, value.string, style->ascii);
    else if (value.type == XM_JINJA_LIST)
        add_json_list(builder, value.list, style, depth);
    else if (value.type == XM_JINJA_DICT && !value.dict->is_namespace)
        add_json_dict(builder, value.dict, style, depth);
    else
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "tojson: a %s cannot be JSON",
                      xm_jinja_type_name(value));
    xm_jinja_rise(job);
}

xm_jinja_string xm_jinja_to_json(xm_jinja_job *job, xm_jinja_value value,
                                 const xm_jinja_json_style *style)
{
    xm_jinja_builder builder = {.job = job};
    add_json(&builder, value, style, 0);
    return xm_jinja_built(&builder);
}
