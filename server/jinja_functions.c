/*
 * jinja_functions.c - arguments, and the functions that templates find without asking.
 */
#include <stdio.h>
#include <string.h>

#include "jinja_run.h"

const xm_jinja_builtin *xm_jinja_find_in(const xm_jinja_builtin *table, size_t count,
                                         xm_jinja_string name)
{
    for (size_t i = 0; i < count; i++)
        if (xm_jinja_string_is(name, table[i].name))
            return &table[i];
    return NULL;
}

/* Parameters are "a b ": whether a name is among them, and how many there are. */
static bool is_parameter(const char *parameters, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = parameters; *at; at = strchr(at, ' ') + 1)
        if (strncmp(at, name, length) == 0 && at[length] == ' ')
            return true;
    return false;
}

xm_jinja_value xm_jinja_call(xm_jinja_run *run, const xm_jinja_builtin *builtin,
                             xm_jinja_value self, const xm_jinja_arguments *arguments)
{
    size_t most = 0;
    if (builtin->parameters) { /* else it takes any */
        for (const char *at = builtin->parameters; *at; at++)
            most += *at == ' ';
        if (arguments->count > most)
            xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "'%s' takes at most %zu arguments, not %zu",
                          builtin->name, most, arguments->count);
        for (size_t i = 0; i < arguments->named_count; i++)
            if (!is_parameter(builtin->parameters, arguments->names[i]))
                xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "'%s' takes no argument '%.60s'",
                              builtin->name, arguments->names[i]);
    }
    xm_jinja_descend(&run->job);
    xm_jinja_value value = builtin->function(run, self, arguments);
    xm_jinja_rise(&run->job);
    return value;
}

const xm_jinja_value *xm_jinja_argument(const xm_jinja_arguments *arguments, size_t index,
                                        const char *name)
{
    if (index < arguments->count)
        return &arguments->items[index];
    for (size_t i = 0; i < arguments->named_count; i++)
        if (strcmp(arguments->names[i], name) == 0)
            return &arguments->named[i];
    return NULL;
}

int64_t xm_jinja_argument_integer(xm_jinja_run *run, const xm_jinja_arguments *arguments,
                                  size_t index, const char *name, int64_t absent)
{
    const xm_jinja_value *value = xm_jinja_argument(arguments, index, name);
    if (!value)
        return absent;
    if (value->type == XM_JINJA_BOOLEAN)
        return value->boolean;
    if (value->type != XM_JINJA_INTEGER)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "the argument '%s' must be an integer, not %s",
                      name, xm_jinja_type_name(*value));
    return value->integer;
}

bool xm_jinja_argument_truth(xm_jinja_run *run, const xm_jinja_arguments *arguments, size_t index,
                             const char *name, bool absent)
{
    const xm_jinja_value *value = xm_jinja_argument(arguments, index, name);
    return value ? xm_jinja_truth(&run->job, *value) : absent;
}

xm_jinja_string xm_jinja_argument_string(xm_jinja_run *run, const xm_jinja_arguments *arguments,
                                         size_t index, const char *name)
{
    const xm_jinja_value *value = xm_jinja_argument(arguments, index, name);
    if (!value || value->type != XM_JINJA_STRING)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "the argument '%s' must be a string, not %s",
                      name, value ? xm_jinja_type_name(*value) : "left out");
    return value->string;
}

/* --- functions ---------------------------------------------------------------------------------
 */

static xm_jinja_value range(xm_jinja_run *run, xm_jinja_value self,
                            const xm_jinja_arguments *arguments)
{
    (void)self;
    int64_t first = xm_jinja_argument_integer(run, arguments, 0, "start", 0);
    int64_t stop = xm_jinja_argument_integer(run, arguments, 1, "stop", first);
    int64_t step = xm_jinja_argument_integer(run, arguments, 2, "step", 1);
    if (arguments->count < 2)
        first = 0;
    if (arguments->count < 1 || step == 0)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "range needs a stop, and a step that is not 0");
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    for (int64_t i = first; step > 0 ? i < stop : i > stop;) {
        if (list.list->count == 100000)
            xm_jinja_fail(&run->job, XM_JINJA_LIMIT, "a range has more than 100000 numbers");
        xm_jinja_append(&run->job, list, xm_jinja_integer(i));
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    return list;
}

static xm_jinja_value make_dict(xm_jinja_run *run, xm_jinja_value self,
                                const xm_jinja_arguments *arguments)
{
    (void)self;
    xm_jinja_value value = xm_jinja_new_dict(&run->job);
    for (size_t i = 0; i < arguments->count; i++) {
        if (arguments->items[i].type != XM_JINJA_DICT)
            xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "a dict is made from dicts and names only");
        const xm_jinja_dict *from = arguments->items[i].dict;
        for (size_t j = 0; j < from->count; j++)
            xm_jinja_insert(&run->job, value.dict, from->keys[j], from->values[j]);
    }
    for (size_t i = 0; i < arguments->named_count; i++)
        xm_jinja_insert(&run->job, value.dict, xm_jinja_text(xm_jinja_literal(arguments->names[i])),
                        arguments->named[i]);
    return value;
}

static xm_jinja_value make_namespace(xm_jinja_run *run, xm_jinja_value self,
                                     const xm_jinja_arguments *arguments)
{
    xm_jinja_value value = make_dict(run, self, arguments);
    value.dict->is_namespace = true;
    return value;
}

static xm_jinja_value raise_exception(xm_jinja_run *run, xm_jinja_value self,
                                      const xm_jinja_arguments *arguments)
{
    (void)self;
    const xm_jinja_value *message = xm_jinja_argument(arguments, 0, "message");
    xm_jinja_string text =
        xm_jinja_to_string(&run->job, message ? *message : xm_jinja_undefined(NULL));
    size_t length = text.length < 300 ? text.length : 300;
    while (!xm_text_is_utf8(text.bytes, length)) /* no half characters */
        length--;
    xm_jinja_fail(&run->job, XM_JINJA_RAISED, "%.*s", (int)length, text.bytes);
}

static xm_jinja_value strftime_now(xm_jinja_run *run, xm_jinja_value self,
                                   const xm_jinja_arguments *arguments)
{
    (void)self;
    char format[128], text[512];
    struct tm broken;
    xm_jinja_string given = xm_jinja_argument_string(run, arguments, 0, "format");
    if (given.length >= sizeof format)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "strftime_now: the format is too long");
    memcpy(format, given.bytes, given.length);
    format[given.length] = '\0';
    localtime_r(&run->now, &broken);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t length = strftime(text, sizeof text, format, &broken); /* it only reads the time */
#pragma GCC diagnostic pop
    char *bytes = xm_jinja_allocate_items(&run->job, length, 1);
    memcpy(bytes, text, length);
    char *marks = given.marks ? xm_jinja_allocate_items(&run->job, length, 1) : NULL;
    if (marks)
        memset(marks, 1, length);
    return xm_jinja_text((xm_jinja_string){bytes, marks, length});
}

static const xm_jinja_builtin functions[] = {
    {"range", range, "start stop step "},      {"dict", make_dict, NULL},
    {"namespace", make_namespace, NULL},       {"raise_exception", raise_exception, "message "},
    {"strftime_now", strftime_now, "format "},
};

const xm_jinja_builtin *xm_jinja_find_function(const char *name)
{
    return xm_jinja_find_in(functions, sizeof functions / sizeof *functions,
                            xm_jinja_literal(name));
}
