/* gbnf.c - see gbnf.h: a recursive descent over the text. */
#include "grammar/gbnf.h"

#include "base/memory.h"
#include "format/utf8.h"
#include "grammar/index_map.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    xm_gbnf *tree;
    const xm_token_tree *tokens;
    size_t at;
    int32_t depth;               /* of parentheses */
    xm_index_map names;          /* hash of a rule's name -> its index; probed further on a clash */
    xm_code_range *class_ranges; /* of the class being read, in its order */
    size_t class_count, class_capacity;
    xmoe_error *error;
    xmoe_status status; /* of the first failure */
} reader;

/* --- failure ---------------------------------------------------------------------------------- */

xmoe_status xm_gbnf_fail(const xm_gbnf *tree, size_t offset, xmoe_error *error, const char *format,
                         ...)
{
    char reason[320];
    int line = 1, column = 1;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    for (size_t i = 0; i < offset && i < tree->length; i++) {
        bool ends = tree->text[i] == '\n';
        line += ends;
        column = ends ? 1 : column + (((unsigned char)tree->text[i] & 0xC0) != 0x80);
    }
    return xm_fail_argument(error, "grammar", "line %d, column %d: %s", line, column, reason);
}

#define fail_at(r, offset, ...)                                                                    \
    ((r)->status = xm_gbnf_fail((r)->tree, (offset), (r)->error, __VA_ARGS__), false)

static bool fail_memory(reader *r)
{
    r->status = xm_fail_memory(r->error, "grammar", r->tree->length);
    return false;
}

/* --- growing arrays --------------------------------------------------------------------------- */

/* Room for `more` elements behind count; the new memory, or NULL and the old one stays. */
static void *room(void *items, size_t count, size_t more, size_t *capacity, size_t size)
{
    if (count + more <= *capacity)
        return items;
    size_t wanted = *capacity < 16 ? 16 : 2 * *capacity;
    while (wanted < count + more)
        wanted *= 2;
    void *grown = xm_realloc(items, wanted, size);
    if (grown != NULL)
        *capacity = wanted;
    return grown;
}

static int32_t add_expression(reader *r, xm_expression expression)
{
    xm_gbnf *t = r->tree;
    xm_expression *grown = room(t->expressions, t->expression_count, 1, &t->expression_capacity,
                                sizeof *t->expressions);
    if (grown == NULL) {
        fail_memory(r);
        return XM_GBNF_NONE;
    }
    t->expressions = grown;
    expression.next = XM_GBNF_NONE;
    t->expressions[t->expression_count] = expression;
    return (int32_t)t->expression_count++;
}

static bool add_bytes(reader *r, const unsigned char *bytes, size_t length)
{
    xm_gbnf *t = r->tree;
    char *grown = room(t->bytes, t->byte_count, length, &t->byte_capacity, 1);
    if (grown == NULL)
        return fail_memory(r);
    t->bytes = grown;
    memcpy(t->bytes + t->byte_count, bytes, length);
    t->byte_count += length;
    return true;
}

static bool add_class_range(reader *r, uint32_t low, uint32_t high)
{
    xm_code_range *grown =
        room(r->class_ranges, r->class_count, 1, &r->class_capacity, sizeof *r->class_ranges);
    if (grown == NULL)
        return fail_memory(r);
    r->class_ranges = grown;
    r->class_ranges[r->class_count++] = (xm_code_range){low, high};
    return true;
}

/* --- characters ------------------------------------------------------------------------------- */

static int peek(const reader *r)
{
    return r->at < r->tree->length ? (unsigned char)r->tree->text[r->at] : -1;
}

/* Skips blanks and comments, and line ends where these do not matter. */
static void skip_blanks(reader *r, bool lines)
{
    for (int c; (c = peek(r)) >= 0; r->at++) {
        if (c == '#')
            while (peek(r) >= 0 && peek(r) != '\n' && peek(r) != '\r')
                r->at++;
        c = peek(r);
        if (c != ' ' && c != '\t' && !(lines && (c == '\n' || c == '\r')))
            return;
    }
}

static int hex_value(int c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool read_hex(reader *r, int digits, uint32_t *value)
{
    size_t start = r->at - 2;
    *value = 0;
    for (int i = 0; i < digits; i++, r->at++) {
        int digit = hex_value(peek(r));
        if (digit < 0)
            return fail_at(r, start, "this escape needs %d hexadecimal digits", digits);
        *value = *value * 16 + (uint32_t)digit;
    }
    if (*value > 0x10FFFF || (*value >= 0xD800 && *value <= 0xDFFF))
        return fail_at(r, start, "U+%X is not a character", *value);
    return true;
}

static bool read_escape(reader *r, uint32_t *value)
{
    static const char names[] = "tnr\\\"[]-^", values[] = "\t\n\r\\\"[]-^";
    int c = ++r->at < r->tree->length ? peek(r) : 0;
    const char *known = c > 0 ? strchr(names, c) : NULL;
    r->at += c > 0;
    if (c == 'x' || c == 'u' || c == 'U')
        return read_hex(r, c == 'x' ? 2 : c == 'u' ? 4 : 8, value);
    if (known == NULL)
        return fail_at(r, r->at - (c > 0 ? 2 : 1), "unknown escape");
    *value = (unsigned char)values[known - names];
    return true;
}

static bool read_character(reader *r, uint32_t *value)
{
    if (peek(r) == '\\')
        return read_escape(r, value);
    size_t length = xm_utf8_decode((const unsigned char *)r->tree->text + r->at,
                                   r->tree->length - r->at, value);
    if (length == 0)
        return fail_at(r, r->at, "this byte is not UTF-8");
    r->at += length;
    return true;
}

/* --- elements --------------------------------------------------------------------------------- */

static bool read_string(reader *r, int32_t *expression)
{
    size_t start = r->at++, first = r->tree->byte_count;
    while (peek(r) != '"') {
        uint32_t value = 0;
        unsigned char bytes[4];
        if (peek(r) < 0)
            return fail_at(r, start, "this string is not closed");
        if (!read_character(r, &value) || !add_bytes(r, bytes, xm_ranges_encode(value, bytes)))
            return false;
    }
    r->at++;
    *expression =
        add_expression(r, (xm_expression){.kind = XM_EXPRESSION_STRING,
                                          .first = (int32_t)first,
                                          .count = (int32_t)(r->tree->byte_count - first)});
    return *expression != XM_GBNF_NONE;
}

/* What was read of a class becomes its expression. */
static bool finish_class(reader *r, size_t start, bool negated, int32_t *expression)
{
    xm_gbnf *t = r->tree;
    size_t count = xm_ranges_sort(r->class_ranges, r->class_count);
    size_t most = 2 * count + 2; /* the complement's, and a cut around the surrogates */
    xm_code_range *grown = room(t->ranges, t->range_count, most, &t->range_capacity, sizeof *grown);
    if (grown == NULL)
        return fail_memory(r);
    t->ranges = grown;
    count = xm_ranges_finish(r->class_ranges, count, negated, t->ranges + t->range_count);
    if (count == 0)
        return fail_at(r, start, "this class matches nothing");
    *expression = add_expression(r, (xm_expression){.kind = XM_EXPRESSION_CLASS,
                                                    .first = (int32_t)t->range_count,
                                                    .count = (int32_t)count});
    t->range_count += count;
    return *expression != XM_GBNF_NONE;
}

static bool read_class(reader *r, int32_t *expression)
{
    size_t start = r->at++;
    bool negated = peek(r) == '^';
    r->at += negated;
    r->class_count = 0;
    while (peek(r) != ']') {
        uint32_t low = 0, high = 0;
        size_t range = r->at;
        if (peek(r) < 0)
            return fail_at(r, start, "this class is not closed");
        if (!read_character(r, &low))
            return false;
        high = low;
        if (peek(r) == '-' && r->at + 1 < r->tree->length && r->tree->text[r->at + 1] != ']') {
            r->at++;
            if (!read_character(r, &high))
                return false;
        }
        if (high < low)
            return fail_at(r, range, "this range ends before it begins");
        if (!add_class_range(r, low, high))
            return false;
    }
    r->at++;
    return finish_class(r, start, negated, expression);
}

/* <[ID]> or <text>. */
static bool read_token(reader *r, int32_t *expression)
{
    xm_gbnf *t = r->tree;
    size_t start = r->at;
    while (peek(r) >= 0 && peek(r) != '>' && peek(r) != '\n')
        r->at++;
    if (peek(r) != '>')
        return fail_at(r, start, "this token is not closed by '>'");
    const char *text = t->text + start;
    size_t length = ++r->at - start;
    int64_t token = -1;
    if (length > 4 && text[1] == '[' && text[length - 2] == ']') {
        token = 0;
        for (size_t i = 2; i < length - 2; i++) {
            if (text[i] < '0' || text[i] > '9' || token > INT32_MAX)
                return fail_at(r, start, "<[...]> must hold the id of a token");
            token = 10 * token + (text[i] - '0');
        }
        if (token >= r->tokens->size)
            return fail_at(r, start, "there is no token %lld", (long long)token);
    } else {
        char shown[64];
        xm_utf8_printable(text, length, shown, sizeof shown);
        token = xm_token_tree_find(r->tokens, text, length);
        if (token < 0)
            return fail_at(r, start, "the model has no token %s", shown);
    }
    *expression =
        add_expression(r, (xm_expression){.kind = XM_EXPRESSION_TOKEN, .first = (int32_t)token});
    return *expression != XM_GBNF_NONE;
}

/* --- names ------------------------------------------------------------------------------------ */

static bool is_name_character(int c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_';
}

static uint64_t hash_name(const char *name, size_t length)
{
    uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)name[i]) * UINT64_C(1099511628211);
    return hash;
}

/* Reads a name; *rule is its index, a new one if it was never mentioned. */
static bool read_name(reader *r, int32_t *rule)
{
    xm_gbnf *t = r->tree;
    size_t start = r->at;
    while (is_name_character(peek(r)))
        r->at++;
    size_t length = r->at - start;
    if (length == 0)
        return fail_at(r, start, "a rule's name is expected here");
    for (uint64_t key = hash_name(t->text + start, length);; key++) {
        int32_t *place = xm_index_map_at(&r->names, key);
        if (place == NULL)
            return fail_memory(r);
        if (*place >= 0) {
            const xm_gbnf_rule *known = &t->rules[*place];
            *rule = *place;
            if (known->name_length == length &&
                memcmp(t->text + known->name, t->text + start, length) == 0)
                return true;
            continue;
        }
        xm_gbnf_rule *grown = room(t->rules, t->rule_count, 1, &t->rule_capacity, sizeof *grown);
        if (grown == NULL)
            return fail_memory(r);
        t->rules = grown;
        t->rules[t->rule_count] = (xm_gbnf_rule){start, length, XM_GBNF_NONE, start};
        *rule = *place = (int32_t)t->rule_count++;
        return true;
    }
}

/* --- expressions ------------------------------------------------------------------------------ */

static bool read_number(reader *r, int32_t *value)
{
    size_t start = r->at;
    int64_t number = 0;
    for (; peek(r) >= '0' && peek(r) <= '9'; r->at++) {
        number = 10 * number + (peek(r) - '0');
        if (number > XM_GBNF_REPETITIONS)
            return fail_at(r, start, "at most %d repetitions are allowed", XM_GBNF_REPETITIONS);
    }
    if (r->at == start)
        return fail_at(r, start, "a number is expected here");
    *value = (int32_t)number;
    return true;
}

/* {m} {m,} {,n} {m,n} */
static bool read_braces(reader *r, int32_t *minimum, int32_t *maximum)
{
    size_t start = r->at++;
    *minimum = 0;
    *maximum = XM_GBNF_UNLIMITED;
    skip_blanks(r, false);
    bool has_minimum = peek(r) != ',';
    if (has_minimum && !read_number(r, minimum))
        return false;
    skip_blanks(r, false);
    if (peek(r) == ',') {
        r->at++;
        skip_blanks(r, false);
        if ((peek(r) != '}' || !has_minimum) && !read_number(r, maximum))
            return false;
    } else {
        *maximum = *minimum;
    }
    skip_blanks(r, false);
    if (peek(r) != '}')
        return fail_at(r, start, "this repetition is not closed by '}'");
    r->at++;
    if (*maximum < *minimum)
        return fail_at(r, start, "this repetition's maximum is below its minimum");
    return true;
}

/* Any of ? * + {} behind an element. */
static bool read_repetitions(reader *r, bool lines, int32_t *expression)
{
    for (int count = 0;; count++) {
        int32_t minimum = 0, maximum = XM_GBNF_UNLIMITED;
        skip_blanks(r, lines);
        int c = peek(r);
        if (count == 8 && (c == '{' || c == '?' || c == '*' || c == '+'))
            return fail_at(r, r->at, "too many repetitions of one another");
        if (c == '{') {
            if (!read_braces(r, &minimum, &maximum))
                return false;
        } else if (c == '?' || c == '*' || c == '+') {
            minimum = c == '+';
            maximum = c == '?' ? 1 : XM_GBNF_UNLIMITED;
            r->at++;
        } else {
            return true;
        }
        *expression = add_expression(r, (xm_expression){.kind = XM_EXPRESSION_REPEAT,
                                                        .first = *expression,
                                                        .minimum = minimum,
                                                        .maximum = maximum});
        if (*expression == XM_GBNF_NONE)
            return false;
    }
}

static bool read_choice(reader *r, bool lines, int32_t *expression);

static bool read_group(reader *r, int32_t *expression)
{
    size_t start = r->at++;
    if (++r->depth > XM_GBNF_DEPTH)
        return fail_at(r, start, "parentheses are nested deeper than %d", XM_GBNF_DEPTH);
    if (!read_choice(r, true, expression))
        return false;
    if (peek(r) != ')')
        return fail_at(r, start, "this parenthesis is not closed");
    r->at++;
    r->depth--;
    return true;
}

/* One element; XM_GBNF_NONE where none begins. */
static bool read_element(reader *r, int32_t *expression)
{
    static const xm_code_range any[] = {{0, 0x10FFFF}};
    int32_t rule = 0;
    *expression = XM_GBNF_NONE;
    switch (peek(r)) {
    case '"':
        return read_string(r, expression);
    case '[':
        return read_class(r, expression);
    case '(':
        return read_group(r, expression);
    case '<':
        return read_token(r, expression);
    case '.':
        r->class_count = 0;
        return add_class_range(r, any->low, any->high) &&
               finish_class(r, r->at++, false, expression);
    default:
        if (!is_name_character(peek(r)))
            return true;
        if (!read_name(r, &rule))
            return false;
        *expression = add_expression(r, (xm_expression){.kind = XM_EXPRESSION_RULE, .first = rule});
        return *expression != XM_GBNF_NONE;
    }
}

/* Hangs a child behind the last one of parent. */
static void append(reader *r, int32_t parent, int32_t *last, int32_t child)
{
    xm_expression *expressions = r->tree->expressions;
    if (*last == XM_GBNF_NONE)
        expressions[parent].first = child;
    else
        expressions[*last].next = child;
    *last = child;
}

static bool read_sequence(reader *r, bool lines, int32_t *expression)
{
    int32_t last = XM_GBNF_NONE;
    *expression =
        add_expression(r, (xm_expression){.kind = XM_EXPRESSION_SEQUENCE, .first = XM_GBNF_NONE});
    if (*expression == XM_GBNF_NONE)
        return false;
    for (;;) {
        int32_t element;
        skip_blanks(r, lines);
        if (!read_element(r, &element))
            return false;
        if (element == XM_GBNF_NONE)
            return true;
        if (!read_repetitions(r, lines, &element))
            return false;
        append(r, *expression, &last, element);
    }
}

static bool read_choice(reader *r, bool lines, int32_t *expression)
{
    int32_t last = XM_GBNF_NONE;
    *expression =
        add_expression(r, (xm_expression){.kind = XM_EXPRESSION_CHOICE, .first = XM_GBNF_NONE});
    if (*expression == XM_GBNF_NONE)
        return false;
    for (;;) {
        int32_t sequence;
        skip_blanks(r, true);
        if (!read_sequence(r, lines, &sequence))
            return false;
        append(r, *expression, &last, sequence);
        if (peek(r) != '|')
            return true;
        r->at++;
    }
}

static bool read_rule(reader *r)
{
    size_t start = r->at;
    int32_t rule = 0, body = 0;
    if (!read_name(r, &rule))
        return false;
    skip_blanks(r, false);
    if (r->tree->length - r->at < 3 || memcmp(r->tree->text + r->at, "::=", 3) != 0)
        return fail_at(r, r->at, "'::=' is expected here");
    r->at += 3;
    if (r->tree->rules[rule].body != XM_GBNF_NONE)
        return fail_at(r, start, "this rule is defined a second time");
    if (!read_choice(r, false, &body))
        return false;
    if (peek(r) >= 0 && peek(r) != '\n' && peek(r) != '\r')
        return fail_at(r, r->at, "the rule's line cannot go on like this");
    r->tree->rules[rule].body = body;
    return true;
}

static bool read_rules(reader *r)
{
    xm_gbnf *t = r->tree;
    if (t->length > XM_GBNF_BYTES)
        return fail_at(r, 0, "the grammar has %zu bytes, at most %d are allowed", t->length,
                       XM_GBNF_BYTES);
    t->root = XM_GBNF_NONE;
    for (skip_blanks(r, true); peek(r) >= 0; skip_blanks(r, true))
        if (!read_rule(r))
            return false;
    for (size_t i = 0; i < t->rule_count; i++) {
        const xm_gbnf_rule *rule = &t->rules[i];
        const char *name = t->text + rule->name;
        int shown = rule->name_length < 100 ? (int)rule->name_length : 100;
        if (rule->body == XM_GBNF_NONE)
            return fail_at(r, rule->mentioned, "there is no rule '%.*s'", shown, name);
        if (rule->name_length == 4 && memcmp(name, "root", 4) == 0)
            t->root = (int32_t)i;
    }
    if (t->root == XM_GBNF_NONE)
        return fail_at(r, 0, "there is no rule 'root'");
    return true;
}

xmoe_status xm_gbnf_read(const char *text, size_t length, const xm_token_tree *tokens,
                         xm_gbnf *tree, xmoe_error *error)
{
    *tree = (xm_gbnf){.text = text, .length = length};
    reader r = {.tree = tree, .tokens = tokens, .error = error};
    read_rules(&r);
    xm_index_map_free(&r.names);
    xm_free(r.class_ranges);
    return r.status;
}

void xm_gbnf_free(xm_gbnf *tree)
{
    xm_free(tree->expressions);
    xm_free(tree->ranges);
    xm_free(tree->bytes);
    xm_free(tree->rules);
    *tree = (xm_gbnf){0};
}
