/*
 * jinja_format.c - Python's two ways of filling in a text: "%s" % values and "{}".format(values).
 */
#include <stdio.h>
#include <string.h>

#include "jinja_run.h"

typedef struct {
    char flags[8];
    int width, precision; /* precision -1: none */
    char type;
} specification;

static int read_number(xm_jinja_string format, size_t *at)
{
    int number = 0;
    for (; *at < format.length && format.bytes[*at] >= '0' && format.bytes[*at] <= '9'; ++*at)
        number = number < 1000 ? number * 10 + (format.bytes[*at] - '0') : number;
    return number;
}

/* flags width .precision type, from *at. */
static specification read_specification(xm_jinja_run *run, xm_jinja_string format, size_t *at)
{
    specification spec = {.precision = -1};
    for (size_t flags = 0; *at < format.length && strchr("-+ 0#", format.bytes[*at]); ++*at)
        if (flags + 1 < sizeof spec.flags)
            spec.flags[flags++] = format.bytes[*at];
    spec.width = read_number(format, at);
    if (*at < format.length && format.bytes[*at] == '.') {
        ++*at;
        spec.precision = read_number(format, at);
    }
    if (*at >= format.length || spec.width > 200 || spec.precision > 60)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME,
                      "a format is cut short, or wider than 200 or more precise than 60");
    spec.type = format.bytes[(*at)++];
    return spec;
}

static void add_padded(xm_jinja_builder *builder, const specification *spec, xm_jinja_string text)
{
    if (spec->precision >= 0) {
        int64_t end = spec->precision;
        text = xm_jinja_slice(builder->job, text, NULL, &end, 1);
    }
    size_t characters = xm_jinja_characters(builder->job, text), width = (size_t)spec->width;
    size_t missing = width > characters ? width - characters : 0;
    bool left = strchr(spec->flags, '-') != NULL;
    xm_jinja_pad(builder, ' ', left ? 0 : missing);
    xm_jinja_add(builder, text);
    xm_jinja_pad(builder, ' ', left ? missing : 0);
}

static void add_number(xm_jinja_run *run, xm_jinja_builder *builder, const specification *spec,
                       xm_jinja_value value)
{
    char format[40], text[400];
    bool whole = strchr("dixX", spec->type) != NULL;
    if (!xm_jinja_is_number(value))
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "%%%c needs a number, not %s", spec->type,
                      xm_jinja_type_name(value));
    int used = snprintf(format, sizeof format, "%%%s%.0d", spec->flags, spec->width);
    if (spec->precision >= 0)
        used += snprintf(format + used, sizeof format - (size_t)used, ".%d", spec->precision);
    snprintf(format + used, sizeof format - (size_t)used, "%s%c", whole ? "ll" : "", spec->type);
    double number = xm_jinja_number(value);
    if (whole && value.type == XM_JINJA_FLOAT && !(number > -9e18 && number < 9e18))
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "an integer is out of range");
    long long integer = value.type == XM_JINJA_INTEGER ? value.integer : (long long)number;
    /* The format is made here, of flags, numbers and one of the letters below. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (whole)
        snprintf(text, sizeof text, format, integer);
    else
        snprintf(text, sizeof text, format, number);
#pragma GCC diagnostic pop
    xm_jinja_puts(builder, text);
}

static void add_value(xm_jinja_run *run, xm_jinja_builder *builder, const specification *spec,
                      xm_jinja_value value)
{
    if (spec->type == 's')
        add_padded(builder, spec, xm_jinja_to_string(&run->job, value));
    else if (spec->type == 'r')
        add_padded(builder, spec, xm_jinja_repr(&run->job, value));
    else if (strchr("dixXfFeEgG", spec->type))
        add_number(run, builder, spec, value);
    else
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "the format '%%%c' is not supported",
                      spec->type);
}

xm_jinja_string xm_jinja_percent(xm_jinja_run *run, xm_jinja_string format, xm_jinja_value values)
{
    bool tuple = values.type == XM_JINJA_LIST && values.list->tuple;
    size_t count = tuple ? values.list->count : 1, next = 0;
    const xm_jinja_value *items = tuple ? values.list->items : &values;
    xm_jinja_builder builder = {.job = &run->job};
    for (size_t at = 0, from = 0; at < format.length; from = at) {
        const char *percent = memchr(format.bytes + at, '%', format.length - at);
        at = percent ? (size_t)(percent - format.bytes) : format.length;
        xm_jinja_add(&builder, xm_jinja_cut(format, from, at));
        if (!percent)
            break;
        at++;
        specification spec = read_specification(run, format, &at);
        if (spec.type == '%') {
            xm_jinja_puts(&builder, "%");
            continue;
        }
        if (next == count)
            xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "a format has more places than values");
        add_value(run, &builder, &spec, items[next++]);
    }
    if (next < count && !(values.type == XM_JINJA_DICT))
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "a format has fewer places than values");
    return xm_jinja_built(&builder);
}

/* What {}, {0} or {name} stands for. */
static xm_jinja_value field(xm_jinja_run *run, xm_jinja_string name,
                            const xm_jinja_arguments *arguments, size_t *next)
{
    size_t index = 0, at = 0;
    if (name.length == 0) {
        index = (*next)++;
        at = 0;
    } else {
        index = (size_t)read_number(name, &at);
    }
    if (at == name.length && index < arguments->count)
        return arguments->items[index];
    for (size_t i = 0; name.length && i < arguments->named_count; i++)
        if (xm_jinja_string_is(name, arguments->names[i]))
            return arguments->named[i];
    xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "format: there is nothing for {%.*s}",
                  (int)(name.length < 40 ? name.length : 40), name.bytes);
}

xm_jinja_string xm_jinja_braces(xm_jinja_run *run, xm_jinja_string format,
                                const xm_jinja_arguments *arguments)
{
    xm_jinja_builder builder = {.job = &run->job};
    size_t next = 0;
    for (size_t at = 0; at < format.length;) {
        size_t from = at;
        while (at < format.length && format.bytes[at] != '{' && format.bytes[at] != '}')
            at++;
        xm_jinja_add(&builder, xm_jinja_cut(format, from, at));
        if (at == format.length)
            break;
        if (at + 1 < format.length && format.bytes[at + 1] == format.bytes[at]) {
            xm_jinja_add(&builder, xm_jinja_cut(format, at, at + 1));
            at += 2;
            continue;
        }
        size_t end = at + 1;
        while (end < format.length && format.bytes[end] != '}' && format.bytes[end] != '{')
            end++;
        if (format.bytes[at] == '}' || end == format.length || format.bytes[end] == '{')
            xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "format: a bracket stands alone");
        xm_jinja_value value = field(run, xm_jinja_cut(format, at + 1, end), arguments, &next);
        xm_jinja_add(&builder, xm_jinja_to_string(&run->job, value));
        at = end + 1;
    }
    return xm_jinja_built(&builder);
}
