/*
 * json_schema_values.c - rules for strings and numbers, and those that all schemas share.
 */
#include <stdio.h>
#include <string.h>

#include "json_pattern.h"
#include "json_schema_parts.h"

#define DIGITS 18 /* of whole numbers: they fit 64 bits */

static const cJSON *member_of(const cJSON *schema, const char *key)
{
    return cJSON_GetObjectItemCaseSensitive(schema, key);
}

/* --- shared rules ----------------------------------------------------------------------------- */

#define TEXT(x)   #x
#define NUMBER(x) TEXT(x)

/* Escaped are neither NUL nor half a surrogate pair. Days fit their months, leap years included. */
static const struct {
    xm_shared_rule rule;
    unsigned needs;
    const char *name, *body;
} shared_rules[] = {
    {XM_SHARED_VALUE, XM_SHARED_OBJECT | XM_SHARED_ARRAY | XM_SHARED_STRING | XM_SHARED_NUMBER,
     "json-value",
     "json-object | json-array | json-string | json-number | \"true\" | \"false\" | \"null\""},
    {XM_SHARED_OBJECT, XM_SHARED_VALUE | XM_SHARED_STRING | XM_SHARED_BLANK, "json-object",
     "\"{\" json-blank (json-member (\",\" json-blank json-member)* json-blank)? \"}\"\n"
     "json-member ::= json-string \":\" json-blank json-value"},
    {XM_SHARED_ARRAY, XM_SHARED_VALUE | XM_SHARED_BLANK, "json-array",
     "\"[\" json-blank (json-value (\",\" json-blank json-value)* json-blank)? \"]\""},
    {XM_SHARED_STRING, XM_SHARED_CHARACTER, "json-string", "\"\\\"\" json-character* \"\\\"\""},
    {XM_SHARED_CHARACTER, 0, "json-character",
     "[^\"\\\\\\x00-\\x1F] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" json-unit)\n"
     "json-unit ::= \"000\" [1-9A-Fa-f] | \"00\" [1-9A-Fa-f] json-hex | \"0\" [1-9A-Fa-f] "
     "json-hex{2} | [1-9A-CE-Fa-ce-f] json-hex{3} | [Dd] ([0-7] json-hex{2} | [89ABab] json-hex{2} "
     "\"\\\\u\" [Dd] [C-Fc-f] json-hex{2})\n"
     "json-hex ::= [0-9A-Fa-f]"},
    {XM_SHARED_PLAIN, 0, "json-plain", "[^\"\\\\\\x00-\\x1F]"},
    {XM_SHARED_NUMBER, XM_SHARED_INTEGER, "json-number",
     "json-integer (\".\" [0-9]{1,18})? ([eE] [+\\-]? [0-9]{1,2})?"},
    {XM_SHARED_INTEGER, 0, "json-integer", "\"-\"? (\"0\" | [1-9] [0-9]{0,17})"},
    {XM_SHARED_BLANK, 0, "json-blank", "(\" \" | \"\\n\" \" \"{0," NUMBER(XM_SCHEMA_INDENT) "})?"},
    {XM_SHARED_DATE, 0, "json-date",
     "json-year \"-\" (json-month \"-\" (\"0\" [1-9] | \"1\" [0-9] | \"2\" [0-8]) | json-month-30 "
     "\"-\" (\"29\" | \"30\") | json-month-31 \"-31\") | json-leap-year \"-02-29\"\n"
     "json-month ::= \"0\" [1-9] | \"1\" [0-2]\n"
     "json-month-30 ::= \"0\" [13-9] | \"1\" [0-2]\n"
     "json-month-31 ::= \"0\" [13578] | \"10\" | \"12\"\n"
     "json-year ::= \"000\" [1-9] | \"00\" [1-9] [0-9] | \"0\" [1-9] [0-9]{2} | [1-9] [0-9]{3}\n"
     "json-leap ::= \"0\" [48] | [2468] [048] | [13579] [26]\n"
     "json-leap-year ::= [0-9]{2} json-leap | json-leap \"00\""},
    {XM_SHARED_TIME, 0, "json-time",
     "([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9] \":\" [0-5] [0-9] (\".\" [0-9]{1,6})? (\"Z\" | "
     "[+\\-] ([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9])"},
};

enum { SHARED = sizeof shared_rules / sizeof *shared_rules };

void xm_schema_share(xm_schema_builder *b, xm_text *out, xm_shared_rule rule)
{
    for (int i = 0; i < SHARED; i++)
        if (shared_rules[i].rule == rule)
            xm_text_format(out, "%s ", shared_rules[i].name);
    b->rules->shared |= rule;
}

bool xm_schema_rules_end(xm_schema_rules *rules, xm_problem *problem)
{
    unsigned before = 0, needed = rules->shared;
    while (needed != before) {
        before = needed;
        for (int i = 0; i < SHARED; i++)
            needed |= needed & shared_rules[i].rule ? shared_rules[i].needs : 0;
    }
    for (int i = 0; i < SHARED; i++)
        if (needed & shared_rules[i].rule)
            xm_text_format(&rules->text, "%s ::= %s\n", shared_rules[i].name, shared_rules[i].body);
    return !rules->text.failed ||
           xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
}

bool xm_schema_rules_add_object(xm_schema_rules *rules, const char *name, xm_problem *problem)
{
    xm_text_format(&rules->text, "%s ::= json-object\n", name);
    rules->shared |= XM_SHARED_OBJECT;
    return !rules->text.failed ||
           xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
}

/* --- strings ---------------------------------------------------------------------------------- */

static const struct {
    const char *name, *body;
    unsigned needs;
} formats[] = {
    {"date", "json-date ", XM_SHARED_DATE},
    {"time", "json-time ", XM_SHARED_TIME},
    {"date-time", "json-date \"T\" json-time ", XM_SHARED_DATE | XM_SHARED_TIME},
    {"uuid",
     "[0-9a-f]{8} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{12} ", 0},
    {"email",
     "[A-Za-z0-9_+\\-]+ (\".\" [A-Za-z0-9_+\\-]+)* \"@\" [A-Za-z0-9]+ (\"-\" [A-Za-z0-9]+)* (\".\" "
     "[A-Za-z0-9]+ (\"-\" [A-Za-z0-9]+)*)+ ",
     0},
    {"ipv4",
     "((\"25\" [0-5] | \"2\" [0-4] [0-9] | \"1\" [0-9]{2} | [1-9]? [0-9]) \".\"){3} (\"25\" [0-5] "
     "| "
     "\"2\" [0-4] [0-9] | \"1\" [0-9]{2} | [1-9]? [0-9]) ",
     0},
};

static bool write_format(xm_schema_builder *b, const cJSON *format, xm_text *out)
{
    const char *name = cJSON_IsString(format) ? format->valuestring : "";
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (strcmp(name, formats[i].name) == 0) {
            xm_text_format(out, "\"\\\"\" %s\"\\\"\" ", formats[i].body);
            b->rules->shared |= formats[i].needs;
            return true;
        }
    return xm_schema_fail(b, "'format' '%.60s' is not supported", name);
}

static bool write_pattern(xm_schema_builder *b, const cJSON *pattern, xm_text *out)
{
    char message[200] = "";
    if (!cJSON_IsString(pattern))
        return xm_schema_fail(b, "'pattern' must be a string");
    xm_text_puts(out, "\"\\\"\" ");
    if (!xm_json_pattern(pattern->valuestring, "json-character", out, message, sizeof message))
        return xm_schema_fail(b, "%s", message);
    b->rules->shared |= XM_SHARED_CHARACTER;
    xm_text_puts(out, "\"\\\"\" ");
    return true;
}

bool xm_schema_string(xm_schema_builder *b, const cJSON *schema, xm_text *out)
{
    const cJSON *pattern = member_of(schema, "pattern"), *format = member_of(schema, "format");
    int32_t low = -1, high = -1;
    if (!xm_schema_count(b, schema, "minLength", &low) ||
        !xm_schema_count(b, schema, "maxLength", &high))
        return false;
    if ((pattern != NULL) + (format != NULL) + (low > 0 || high >= 0) > 1)
        return xm_schema_fail(b, "only one of 'pattern', 'format' and a length is supported");
    if (pattern)
        return write_pattern(b, pattern, out);
    if (format)
        return write_format(b, format, out);
    if (low <= 0 && high < 0) {
        xm_schema_share(b, out, XM_SHARED_STRING);
        return true;
    }
    low = low > 0 ? low : 0;
    if (high >= 0 && high < low)
        return xm_schema_fail(b, "'maxLength' is below 'minLength'");
    xm_text_puts(out, "\"\\\"\" ");
    xm_schema_share(b, out, XM_SHARED_CHARACTER);
    if (high < 0)
        xm_text_format(out, "{%d,} \"\\\"\" ", low);
    else
        xm_text_format(out, "{%d,%d} \"\\\"\" ", low, high);
    return true;
}

/* --- numbers ---------------------------------------------------------------------------------- */

/* Digits as long as `low` that lie between low and high, of the same length. */
static void between(xm_text *out, const char *low, const char *high)
{
    char ends[2][DIGITS + 2];
    size_t length = strlen(low), same = 0;
    while (same < length && low[same] == high[same])
        same++;
    if (same > 0)
        xm_text_format(out, "\"%.*s\" ", (int)same, low);
    low += same;
    high += same;
    length -= same;
    if (length == 0)
        return;
    memset(ends[0], '0', length);
    memset(ends[1], '9', length);
    ends[0][length] = ends[1][length] = '\0';
    if (length == 1 || (strcmp(low + 1, ends[0] + 1) == 0 && strcmp(high + 1, ends[1] + 1) == 0)) {
        xm_text_format(out, "[%c-%c] ", *low, *high);
        if (length > 1)
            xm_text_format(out, "[0-9]{%zu} ", length - 1);
        return;
    }
    xm_text_format(out, "(\"%c\" ", *low);
    between(out, low + 1, ends[1] + 1);
    if (*low + 1 < *high)
        xm_text_format(out, "| [%c-%c] [0-9]{%zu} ", *low + 1, *high - 1, length - 1);
    xm_text_format(out, "| \"%c\" ", *high);
    between(out, ends[0] + 1, high + 1);
    xm_text_puts(out, ") ");
}

/* Whole numbers from low to high, 0 <= low <= high, as alternatives. */
static void magnitudes(xm_text *out, int64_t low, int64_t high)
{
    for (bool first = true; low <= high; first = false) {
        char least[24], most[24];
        int64_t last = 9; /* of as many digits as low */
        while (last < low)
            last = last * 10 + 9;
        last = last < high ? last : high;
        snprintf(least, sizeof least, "%lld", (long long)low);
        snprintf(most, sizeof most, "%lld", (long long)last);
        xm_text_puts(out, first ? "" : "| ");
        between(out, least, most);
        low = last + 1;
    }
}

#define LARGEST INT64_C(999999999999999999) /* of DIGITS digits */

typedef struct {
    int64_t low, high; /* whole numbers in it, both included */
    bool low_open,
        high_open; /* of numbers: the bound itself, one below low or above high, is not in */
} bounds;

static bool read_bound(xm_schema_builder *b, const cJSON *schema, const char *key, bool *there,
                       int64_t *value)
{
    const cJSON *member = member_of(schema, key);
    *there = member != NULL;
    if (!member)
        return true;
    if (!cJSON_IsNumber(member) || !(member->valuedouble >= -1e15 && member->valuedouble <= 1e15) ||
        member->valuedouble != (double)(int64_t)member->valuedouble)
        return xm_schema_fail(b, "'%s' is supported as a whole number up to 10^15", key);
    *value = (int64_t)member->valuedouble;
    return true;
}

static bool read_bounds(xm_schema_builder *b, const cJSON *schema, bounds *r, bool *bounded)
{
    int64_t low = 0, high = 0, open_low = 0, open_high = 0;
    bool has_low, has_high, has_open_low, has_open_high;
    if (!read_bound(b, schema, "minimum", &has_low, &low) ||
        !read_bound(b, schema, "maximum", &has_high, &high) ||
        !read_bound(b, schema, "exclusiveMinimum", &has_open_low, &open_low) ||
        !read_bound(b, schema, "exclusiveMaximum", &has_open_high, &open_high))
        return false;
    *bounded = has_low || has_high || has_open_low || has_open_high;
    *r = (bounds){has_low ? low : -LARGEST, has_high ? high : LARGEST, false, false};
    if (has_open_low && open_low >= r->low) {
        r->low = open_low;
        r->low_open = true;
    }
    if (has_open_high && open_high <= r->high) {
        r->high = open_high;
        r->high_open = true;
    }
    return true;
}

/* Numbers of one sign whose size lies between low and high, with a fraction unless `whole`. */
static void sizes(xm_text *out, int64_t low, int64_t high, bool low_open, bool high_open,
                  bool whole)
{
    const char *between_parts = "";
    if (whole) {
        magnitudes(out, low, high);
        return;
    }
    if (low_open && low < high) { /* above low, but below the next whole number */
        magnitudes(out, low, low);
        xm_text_puts(out, "\".\" \"0\"{0,17} [1-9] [0-9]{0,17} ");
        between_parts = "| ";
    }
    if (low + low_open < high) {
        xm_text_format(out, "%s(", between_parts);
        magnitudes(out, low + low_open, high - 1);
        xm_text_puts(out, ") (\".\" [0-9]{1,18})? ");
        between_parts = "| ";
    }
    if (!high_open && !(low_open && low == high)) {
        xm_text_puts(out, between_parts);
        magnitudes(out, high, high);
        xm_text_puts(out, "(\".\" \"0\"{1,18})? ");
    }
}

bool xm_schema_number(xm_schema_builder *b, const cJSON *schema, bool whole, xm_text *out)
{
    bounds r;
    bool bounded = false, negative, positive;
    if (!read_bounds(b, schema, &r, &bounded))
        return false;
    if (!bounded) {
        xm_schema_share(b, out, whole ? XM_SHARED_INTEGER : XM_SHARED_NUMBER);
        return true;
    }
    if (whole) {
        r.low += r.low_open;
        r.high -= r.high_open;
        r.low_open = r.high_open = false;
    }
    if (r.low > r.high || (r.low == r.high && (r.low_open || r.high_open)))
        return xm_schema_fail(b, "no number is within the bounds");
    negative = r.low < 0;
    positive = r.high > 0 || (r.high == 0 && !r.high_open);
    xm_text_puts(out, "(");
    if (negative) {
        bool reaches = r.high >= 0; /* zero */
        xm_text_puts(out, "\"-\" (");
        sizes(out, reaches ? whole : -r.high, -r.low, reaches ? !whole : r.high_open, r.low_open,
              whole);
        xm_text_puts(out, ") ");
    }
    if (positive) {
        xm_text_puts(out, negative ? "| (" : "(");
        sizes(out, r.low > 0 ? r.low : 0, r.high, r.low > 0 || r.low == 0 ? r.low_open : false,
              r.high_open, whole);
        xm_text_puts(out, ") ");
    }
    xm_text_puts(out, ") ");
    return true;
}
