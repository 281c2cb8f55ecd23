/*
 * jinja_filters.c - the filters of single values. Those of sequences: jinja_sequences.c.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "jinja_run.h"

#define FILTER(name)                                                                               \
    static xm_jinja_value name(xm_jinja_run *run, xm_jinja_value self,                             \
                               const xm_jinja_arguments *arguments)

FILTER(same)
{
    (void)run, (void)arguments;
    return self;
}

FILTER(to_string)
{
    (void)arguments;
    return xm_jinja_text(xm_jinja_to_string(&run->job, self));
}

static xm_jinja_value in_case(xm_jinja_run *run, xm_jinja_value self, xm_jinja_case to)
{
    return xm_jinja_text(xm_jinja_in_case(&run->job, xm_jinja_to_string(&run->job, self), to));
}

FILTER(upper)
{
    (void)arguments;
    return in_case(run, self, XM_JINJA_UPPER);
}

FILTER(lower)
{
    (void)arguments;
    return in_case(run, self, XM_JINJA_LOWER);
}

FILTER(capitalize)
{
    (void)arguments;
    return in_case(run, self, XM_JINJA_CAPITAL);
}

/* The filter begins words after blanks and -({[< only, which str.title does not. */
FILTER(title)
{
    (void)arguments;
    xm_jinja_string text = xm_jinja_to_string(&run->job, self);
    xm_jinja_builder builder = {.job = &run->job};
    for (size_t from = 0, to; from < text.length; from = to) {
        bool break_here = strchr("-({[< \t\n\r\v\f", text.bytes[from]) != NULL;
        to = from + 1;
        while (to < text.length &&
               (strchr("-({[< \t\n\r\v\f", text.bytes[to]) != NULL) == break_here)
            to++;
        xm_jinja_string piece = xm_jinja_cut(text, from, to);
        xm_jinja_add(&builder, xm_jinja_in_case(&run->job, piece, XM_JINJA_CAPITAL));
    }
    return xm_jinja_text(xm_jinja_built(&builder));
}

FILTER(trim)
{
    xm_jinja_string text = xm_jinja_to_string(&run->job, self), set = {0};
    const xm_jinja_value *given = xm_jinja_argument(arguments, 0, "chars");
    bool characters = given && given->type != XM_JINJA_NONE;
    if (characters)
        set = xm_jinja_argument_string(run, arguments, 0, "chars");
    return xm_jinja_text(xm_jinja_strip(&run->job, text, characters ? &set : NULL, true, true));
}

FILTER(replace)
{
    return xm_jinja_text(
        xm_jinja_replace(&run->job, xm_jinja_to_string(&run->job, self),
                         xm_jinja_argument_string(run, arguments, 0, "old"),
                         xm_jinja_argument_string(run, arguments, 1, "new"),
                         xm_jinja_argument_integer(run, arguments, 2, "count", -1)));
}

FILTER(default_to)
{
    const xm_jinja_value *value = xm_jinja_argument(arguments, 0, "default_value");
    bool falsy = xm_jinja_argument_truth(run, arguments, 1, "boolean", false);
    if (self.type != XM_JINJA_UNDEFINED && !(falsy && !xm_jinja_truth(&run->job, self)))
        return self;
    return value ? *value : xm_jinja_text(xm_jinja_literal(""));
}

FILTER(format)
{
    xm_jinja_value values = xm_jinja_new_list(&run->job, true);
    for (size_t i = 0; i < arguments->count; i++)
        xm_jinja_append(&run->job, values, arguments->items[i]);
    return xm_jinja_text(xm_jinja_percent(run, xm_jinja_to_string(&run->job, self), values));
}

FILTER(indent)
{
    const xm_jinja_value *given = xm_jinja_argument(arguments, 0, "width");
    bool first = xm_jinja_argument_truth(run, arguments, 1, "first", false);
    bool blank = xm_jinja_argument_truth(run, arguments, 2, "blank", false);
    xm_jinja_builder blanks = {.job = &run->job}, builder = {.job = &run->job};
    if (given && given->type == XM_JINJA_STRING) {
        xm_jinja_add(&blanks, given->string);
    } else {
        int64_t width = xm_jinja_argument_integer(run, arguments, 0, "width", 4);
        xm_jinja_pad(&blanks, ' ', width > 0 ? (size_t)width : 0);
    }
    xm_jinja_string text = xm_jinja_concatenate(&run->job, xm_jinja_to_string(&run->job, self),
                                                xm_jinja_literal("\n"));
    const xm_jinja_list *lines = xm_jinja_split_lines(&run->job, text, false).list;
    for (size_t i = 0; i < lines->count; i++) {
        bool indented = i ? blank || lines->items[i].string.length > 0 : first;
        if (i)
            xm_jinja_puts(&builder, "\n");
        if (indented)
            xm_jinja_add(&builder, xm_jinja_built(&blanks));
        xm_jinja_add(&builder, lines->items[i].string);
    }
    return xm_jinja_text(xm_jinja_built(&builder));
}

/* A string with a NUL behind it, for strtod; blanks at its end are left out. */
static const char *number_text(xm_jinja_run *run, xm_jinja_string text)
{
    text = xm_jinja_strip(&run->job, text, NULL, true, true);
    char *copy = xm_jinja_allocate(&run->job, text.length + 1);
    memcpy(copy, text.bytes, text.length);
    return copy;
}

static bool parse_float(xm_jinja_run *run, xm_jinja_value value, double *number)
{
    if (xm_jinja_is_number(value)) {
        *number = xm_jinja_number(value);
        return true;
    }
    if (value.type != XM_JINJA_STRING)
        return false;
    char *end = NULL;
    const char *text = number_text(run, value.string);
    *number = strtod(text, &end);
    return end > text && !*end && !strpbrk(text, "xXpP");
}

FILTER(to_integer)
{
    const xm_jinja_value *given = xm_jinja_argument(arguments, 0, "default");
    xm_jinja_value absent = given ? *given : xm_jinja_integer(0);
    int64_t base = xm_jinja_argument_integer(run, arguments, 1, "base", 10);
    double number = 0;
    if (self.type == XM_JINJA_INTEGER)
        return self;
    if (self.type == XM_JINJA_STRING && base >= 2 && base <= 36) {
        char *end = NULL;
        const char *text = number_text(run, self.string);
        errno = 0;
        long long integer = strtoll(text, &end, (int)base);
        if (end > text && !*end && !errno)
            return xm_jinja_integer(integer);
    }
    if (!parse_float(run, self, &number) || !(number > -9.2e18 && number < 9.2e18))
        return absent;
    return xm_jinja_integer((int64_t)number);
}

FILTER(to_float)
{
    const xm_jinja_value *given = xm_jinja_argument(arguments, 0, "default");
    double number = 0;
    if (parse_float(run, self, &number))
        return xm_jinja_float(number);
    return given ? *given : xm_jinja_float(0);
}

FILTER(absolute)
{
    (void)arguments;
    if (!xm_jinja_is_number(self))
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "abs needs a number, not %s",
                      xm_jinja_type_name(self));
    if (self.type == XM_JINJA_FLOAT)
        return xm_jinja_float(fabs(self.number));
    xm_jinja_value zero = xm_jinja_integer(0);
    return xm_jinja_calculate(
        run, xm_jinja_compare(&run->job, self, zero) < 0 ? XM_JINJA_SUBTRACT : XM_JINJA_ADD, zero,
        self);
}

/* Always a float, but for a whole number rounded to whole ones, as in jinja2. */
FILTER(rounded)
{
    double number = 0;
    int64_t precision = xm_jinja_argument_integer(run, arguments, 0, "precision", 0);
    const xm_jinja_value *method = xm_jinja_argument(arguments, 1, "method");
    if (!parse_float(run, self, &number) || precision < 0 || precision > 15)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME,
                      "round needs a number and a precision from 0 to 15");
    double scale = pow(10, (double)precision);
    if (!method ||
        (method->type == XM_JINJA_STRING && xm_jinja_string_is(method->string, "common")))
        number = nearbyint(number * scale) / scale;
    else if (method->type == XM_JINJA_STRING && xm_jinja_string_is(method->string, "ceil"))
        number = ceil(number * scale) / scale;
    else if (method->type == XM_JINJA_STRING && xm_jinja_string_is(method->string, "floor"))
        number = floor(number * scale) / scale;
    else
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "round: the method is common, ceil or floor");
    return xm_jinja_float(number);
}

/* Two separators, as json.dumps takes them. */
static void read_separators(xm_jinja_run *run, const xm_jinja_value *given,
                            xm_jinja_json_style *style)
{
    if (!given || given->type == XM_JINJA_NONE)
        return;
    if (given->type != XM_JINJA_LIST || given->list->count != 2)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "tojson: separators must be two strings");
    const char *texts[2];
    for (int i = 0; i < 2; i++) {
        xm_jinja_string text = xm_jinja_to_string(&run->job, given->list->items[i]);
        char *copy = xm_jinja_allocate(&run->job, text.length + 1);
        memcpy(copy, text.bytes, text.length);
        texts[i] = copy;
    }
    style->item_separator = texts[0];
    style->key_separator = texts[1];
}

/* transformers' own, which keeps characters as they are and knows nothing of HTML. */
FILTER(to_json)
{
    const xm_jinja_value *given = xm_jinja_argument(arguments, 1, "indent");
    bool indented = given && given->type != XM_JINJA_NONE;
    int64_t width = indented ? xm_jinja_argument_integer(run, arguments, 1, "indent", 0) : -1;
    xm_jinja_json_style style = {
        .indent = width < 0    ? (indented ? 0 : -1)
                  : width > 64 ? 64
                               : (int)width,
        .item_separator = indented ? "," : ", ",
        .key_separator = ": ",
        .sort_keys = xm_jinja_argument_truth(run, arguments, 3, "sort_keys", false),
        .ascii = xm_jinja_argument_truth(run, arguments, 0, "ensure_ascii", false)};
    read_separators(run, xm_jinja_argument(arguments, 2, "separators"), &style);
    return xm_jinja_text(xm_jinja_to_json(&run->job, self, &style));
}

static const xm_jinja_builtin filters[] = {
    {"safe", same, ""},
    {"string", to_string, ""},
    {"upper", upper, ""},
    {"lower", lower, ""},
    {"capitalize", capitalize, ""},
    {"title", title, ""},
    {"trim", trim, "chars "},
    {"replace", replace, "old new count "},
    {"default", default_to, "default_value boolean "},
    {"d", default_to, "default_value boolean "},
    {"format", format, NULL},
    {"indent", indent, "width first blank "},
    {"int", to_integer, "default base "},
    {"float", to_float, "default "},
    {"abs", absolute, ""},
    {"round", rounded, "precision method "},
    {"tojson", to_json, "ensure_ascii indent separators sort_keys "},
};

const xm_jinja_builtin *xm_jinja_find_filter(xm_jinja_string name)
{
    const xm_jinja_builtin *found =
        xm_jinja_find_in(filters, sizeof filters / sizeof *filters, name);
    return found ? found : xm_jinja_find_sequence_filter(name);
}
