/* json_pattern.c - see json_pattern.h: a recursive descent that writes as it reads. */
#include "json_pattern.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH  40  /* of groups */
#define RANGES 400 /* of a class */

typedef struct {
    uint32_t low, high;
} range;

typedef struct {
    const char *at, *plain;
    xm_text *out;
    int depth;
    range ranges[RANGES]; /* of the class being read */
    int range_count;
    char *message;
    size_t size;
} reader;

static bool fail(reader *r, const char *reason)
{
    snprintf(r->message, r->size, "'pattern' near '%.20s': %s", r->at, reason);
    return false;
}

/* --- classes ---------------------------------------------------------------------------------- */

static bool add_range(reader *r, uint32_t low, uint32_t high)
{
    if (r->range_count == RANGES)
        return fail(r, "the class is too large");
    if (low > high)
        return fail(r, "a range ends before it begins");
    r->ranges[r->range_count++] = (range){low, high};
    return true;
}

static int compare(const void *a, const void *b)
{
    const range *x = a, *y = b;
    return x->low < y->low ? -1 : x->low > y->low;
}

/* ranges[from..) become their complement. */
static bool complement(reader *r, int from)
{
    range old[RANGES];
    int count = r->range_count - from;
    uint32_t next = 0;
    memcpy(old, r->ranges + from, (size_t)count * sizeof *old);
    qsort(old, (size_t)count, sizeof *old, compare);
    r->range_count = from;
    for (int i = 0; i < count; i++) {
        if (old[i].low > next && !add_range(r, next, old[i].low - 1))
            return false;
        next = old[i].high + 1 > next ? old[i].high + 1 : next;
    }
    return next > 0x10FFFF || add_range(r, next, 0x10FFFF);
}

/* \d \w \s \D \W \S */
static bool add_named(reader *r, char name)
{
    static const range digits[] = {{'0', '9'}},
                       spaces[] = {{9, 13},          {32, 32},         {0xA0, 0xA0},
                                   {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029},
                                   {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000},
                                   {0xFEFF, 0xFEFF}},
                       words[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    char small = (char)(name | 0x20);
    const range *list = small == 'd' ? digits : small == 'w' ? words : spaces;
    int count = small == 'd' ? 1 : small == 'w' ? 4 : 10, from = r->range_count;
    for (int i = 0; i < count; i++)
        if (!add_range(r, list[i].low, list[i].high))
            return false;
    return name == small || complement(r, from);
}

static void put_code(reader *r, uint32_t c)
{
    xm_text_format(r->out, "\\U%08X", c);
}

static bool is_surrogate(uint32_t c)
{
    return c >= 0xD800 && c <= 0xDFFF;
}

/* low to high without what JSON escapes; appended to a class. */
static int put_unescaped(reader *r, range part)
{
    static const range plain[] = {
        {0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0xD7FF}, {0xE000, 0x10FFFF}};
    int made = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t low = part.low > plain[i].low ? part.low : plain[i].low;
        uint32_t high = part.high < plain[i].high ? part.high : plain[i].high;
        if (low > high)
            continue;
        put_code(r, low);
        xm_text_puts(r->out, "-");
        put_code(r, high);
        made++;
    }
    return made;
}

static bool in_class(const reader *r, uint32_t c)
{
    for (int i = 0; i < r->range_count; i++)
        if (c >= r->ranges[i].low && c <= r->ranges[i].high)
            return true;
    return false;
}

/* The class as JSON writes its characters. */
static bool write_class(reader *r)
{
    static const char escaped[] = "\"\\\n\r\t\b\f", *const forms[] = {
                                                        "\\\\\\\"", "\\\\\\\\", "\\\\n", "\\\\r",
                                                        "\\\\t",    "\\\\b",    "\\\\f"};
    xm_text_puts(r->out, "(");
    size_t before = r->out->length;
    int made = 0;
    xm_text_puts(r->out, "[");
    for (int i = 0; i < r->range_count; i++)
        made += put_unescaped(r, r->ranges[i]);
    if (made > 0)
        xm_text_puts(r->out, "] ");
    else
        r->out->length = before;
    for (int i = 0; escaped[i]; i++)
        if (in_class(r, (unsigned char)escaped[i]))
            xm_text_format(r->out, "%s\"%s\" ", made++ ? "| " : "", forms[i]);
    for (uint32_t c = 1; c < 0x20; c++)
        if (!strchr(escaped, (int)c) && in_class(r, c))
            xm_text_format(r->out, "%s\"\\\\u%04x\" ", made++ ? "| " : "", c);
    xm_text_puts(r->out, ") ");
    return made > 0 || fail(r, "a class matches nothing");
}

/* --- characters ------------------------------------------------------------------------------- */

static bool read_hex(reader *r, int digits, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < digits; i++, r->at++) {
        char c = *r->at, small = (char)(c | 0x20);
        if (!((c >= '0' && c <= '9') || (small >= 'a' && small <= 'f')))
            return fail(r, "hexadecimal digits are missing");
        *value = *value * 16 + (uint32_t)(c <= '9' ? c - '0' : small - 'a' + 10);
    }
    return !is_surrogate(*value) || fail(r, "surrogates are not supported");
}

static uint32_t decode(const char *text, size_t length)
{
    static const unsigned char masks[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
    uint32_t c = (unsigned char)text[0] & masks[length];
    for (size_t i = 1; i < length; i++)
        c = c << 6 | ((unsigned char)text[i] & 0x3F);
    return c;
}

/* One character, or a named class, whose ranges are added (*named). */
static bool read_character(reader *r, uint32_t *value, bool *named)
{
    static const char names[] = "nrtfv0", values[] = "\n\r\t\f\v";
    *named = false;
    if (*r->at != '\\') {
        size_t length = xm_text_character(r->at, strnlen(r->at, 4));
        *value = decode(r->at, length);
        r->at += length;
        return true;
    }
    char c = r->at[1];
    const char *known = c ? strchr(names, c) : NULL;
    if (c && strchr("dwsDWS", c)) {
        r->at += 2;
        *named = true;
        return add_named(r, c);
    }
    if (c == 'x' || c == 'u') {
        r->at += 2;
        return read_hex(r, c == 'x' ? 2 : 4, value);
    }
    if (!known && (!c || strchr("bBpPkc123456789", c) || (unsigned char)c >= 0x80))
        return fail(r, "this escape is not supported");
    if (!known && ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')))
        return fail(r, "this escape is not known");
    *value = known ? (unsigned char)values[known - names] : (unsigned char)c;
    r->at += 2;
    return true;
}

static bool read_class(reader *r)
{
    bool negated = *++r->at == '^';
    r->at += negated;
    r->range_count = 0;
    while (*r->at != ']') {
        uint32_t low = 0, high = 0;
        bool named = false;
        if (!*r->at)
            return fail(r, "a class is not closed");
        if (!read_character(r, &low, &named))
            return false;
        if (named)
            continue;
        high = low;
        if (*r->at == '-' && r->at[1] && r->at[1] != ']') {
            r->at++;
            if (!read_character(r, &high, &named))
                return false;
            if (named)
                return fail(r, "a range cannot end in a class");
        }
        if (!add_range(r, low, high))
            return false;
    }
    r->at++;
    return (!negated || complement(r, 0)) && write_class(r);
}

/* --- expressions ------------------------------------------------------------------------------ */

static bool read_quantifier(reader *r)
{
    char *out_of_digits = NULL;
    if (*r->at == '*' || *r->at == '+' || *r->at == '?') {
        xm_text_add(r->out, r->at++, 1);
    } else if (*r->at == '{') {
        const char *start = r->at++;
        long low = strtol(r->at, &out_of_digits, 10), high = low;
        bool good = r->at[0] >= '0' && r->at[0] <= '9';
        r->at = out_of_digits;
        if (good && *r->at == ',') {
            high = -1;
            if (*++r->at != '}') {
                good = *r->at >= '0' && *r->at <= '9';
                high = strtol(r->at, &out_of_digits, 10);
                r->at = out_of_digits;
            }
        }
        if (!good || *r->at != '}' || low > 10000 || high > 10000 || (high >= 0 && high < low)) {
            r->at = start;
            return fail(r, "a wrong repetition (numbers go up to 10000)");
        }
        r->at++;
        if (high < 0)
            xm_text_format(r->out, "{%ld,}", low);
        else
            xm_text_format(r->out, "{%ld,%ld}", low, high);
    } else {
        return true;
    }
    xm_text_puts(r->out, " ");
    r->at += *r->at == '?';
    return !*r->at || !strchr("*+?{", *r->at) || fail(r, "a repetition of a repetition");
}

static bool read_choice(reader *r, bool top);

static bool read_group(reader *r)
{
    r->at++;
    if (*r->at == '?') {
        if (r->at[1] != ':')
            return fail(r, "only plain groups are supported");
        r->at += 2;
    }
    if (++r->depth > DEPTH)
        return fail(r, "groups are nested too deeply");
    xm_text_puts(r->out, "(");
    if (!read_choice(r, false))
        return false;
    if (*r->at != ')')
        return fail(r, "a group is not closed");
    r->at++;
    r->depth--;
    xm_text_puts(r->out, ") ");
    return true;
}

static bool read_atom(reader *r)
{
    uint32_t value = 0;
    bool named = false;
    r->range_count = 0;
    switch (*r->at) {
    case '(':
        return read_group(r);
    case '[':
        return read_class(r);
    case '.':
        r->at++;
        return add_range(r, '\n', '\n') && add_range(r, '\r', '\r') &&
               add_range(r, 0x2028, 0x2029) && complement(r, 0) && write_class(r);
    case '^':
    case '$':
        return fail(r, "anchors are supported only at the beginning and end of alternatives");
    case '*':
    case '+':
    case '?':
    case '{':
        return fail(r, "there is nothing to repeat");
    default:
        if (!read_character(r, &value, &named))
            return false;
        return (named || add_range(r, value, value)) && write_class(r);
    }
}

/* An alternative; of the whole pattern, with what may stand around it. */
static bool read_sequence(reader *r, bool top)
{
    bool begins = top && *r->at == '^', ends = false;
    r->at += begins;
    if (top && !begins)
        xm_text_format(r->out, "%s* ", r->plain);
    while (*r->at && *r->at != '|' && *r->at != ')' && !ends) {
        if (top && *r->at == '$' && (!r->at[1] || r->at[1] == '|')) {
            r->at++;
            ends = true;
        } else if (!read_atom(r) || !read_quantifier(r)) {
            return false;
        }
    }
    if (top && !ends)
        xm_text_format(r->out, "%s* ", r->plain);
    return true;
}

static bool read_choice(reader *r, bool top)
{
    for (;;) {
        if (!read_sequence(r, top))
            return false;
        if (*r->at != '|')
            return true;
        r->at++;
        xm_text_puts(r->out, "| ");
    }
}

bool xm_json_pattern(const char *pattern, const char *plain, xm_text *out, char *message,
                     size_t size)
{
    reader r = {.at = pattern, .plain = plain, .out = out, .message = message, .size = size};
    xm_text_puts(out, "(");
    if (!read_choice(&r, true))
        return false;
    if (*r.at)
        return fail(&r, "a parenthesis too many");
    xm_text_puts(out, ") ");
    return true;
}
