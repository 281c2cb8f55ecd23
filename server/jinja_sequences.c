/*
 * jinja_sequences.c - the filters of lists, dicts and other sequences.
 */
#include <string.h>

#include "jinja_run.h"

#define FILTER(name)                                                                               \
    static xm_jinja_value name(xm_jinja_run *run, xm_jinja_value self,                             \
                               const xm_jinja_arguments *arguments)

/* "a.b.0" of a value, as attribute= and selectattr take it. */
static xm_jinja_value path_of(xm_jinja_run *run, xm_jinja_value value, xm_jinja_value path)
{
    if (path.type == XM_JINJA_INTEGER)
        return xm_jinja_item(run, value, path);
    xm_jinja_string dot = xm_jinja_literal(".");
    if (path.type != XM_JINJA_STRING)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "an attribute must be a string, not %s",
                      xm_jinja_type_name(path));
    const xm_jinja_list *parts = xm_jinja_split(&run->job, path.string, &dot, -1).list;
    for (size_t i = 0; i < parts->count; i++) {
        xm_jinja_value part = parts->items[i];
        int64_t index = 0;
        size_t digits = 0;
        for (; digits < part.string.length && digits < 10; digits++) {
            char digit = part.string.bytes[digits];
            if (digit < '0' || digit > '9')
                break;
            index = index * 10 + (digit - '0');
        }
        if (digits > 0 && digits == part.string.length)
            part = xm_jinja_integer(index);
        value = xm_jinja_item(run, value, part);
    }
    return value;
}

FILTER(length)
{
    (void)arguments;
    return xm_jinja_integer((int64_t)xm_jinja_length(&run->job, self));
}

FILTER(first)
{
    (void)arguments;
    const xm_jinja_list *list = xm_jinja_iterate(&run->job, self);
    return list->count ? list->items[0] : xm_jinja_undefined("the first of nothing");
}

FILTER(last)
{
    (void)arguments;
    const xm_jinja_list *list = xm_jinja_iterate(&run->job, self);
    return list->count ? list->items[list->count - 1] : xm_jinja_undefined("the last of nothing");
}

FILTER(to_list)
{
    (void)arguments;
    const xm_jinja_list *from = xm_jinja_iterate(&run->job, self);
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    for (size_t i = 0; i < from->count; i++)
        xm_jinja_append(&run->job, list, from->items[i]);
    return list;
}

FILTER(reverse)
{
    (void)arguments;
    int64_t back = -1;
    if (self.type == XM_JINJA_STRING)
        return xm_jinja_text(xm_jinja_slice(&run->job, self.string, NULL, NULL, back));
    const xm_jinja_list *from = xm_jinja_iterate(&run->job, self);
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    for (size_t i = from->count; i-- > 0;)
        xm_jinja_append(&run->job, list, from->items[i]);
    return list;
}

FILTER(items)
{
    if (self.type == XM_JINJA_UNDEFINED)
        return xm_jinja_new_list(&run->job, false);
    const xm_jinja_builtin *method =
        self.type == XM_JINJA_DICT ? xm_jinja_find_method(self, "items") : NULL;
    if (!method)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "items needs a dict, not %s",
                      xm_jinja_type_name(self));
    return method->function(run, self, arguments);
}

FILTER(join)
{
    const xm_jinja_value *separator = xm_jinja_argument(arguments, 0, "d");
    const xm_jinja_value *attribute = xm_jinja_argument(arguments, 1, "attribute");
    const xm_jinja_list *list = xm_jinja_iterate(&run->job, self);
    xm_jinja_builder builder = {.job = &run->job};
    for (size_t i = 0; i < list->count; i++) {
        if (i && separator)
            xm_jinja_add(&builder, xm_jinja_to_string(&run->job, *separator));
        xm_jinja_value item = attribute ? path_of(run, list->items[i], *attribute) : list->items[i];
        xm_jinja_add(&builder, xm_jinja_to_string(&run->job, item));
    }
    return xm_jinja_text(xm_jinja_built(&builder));
}

/* What is left of the arguments after the first few. */
static xm_jinja_arguments rest(const xm_jinja_arguments *arguments, size_t from)
{
    xm_jinja_arguments left = *arguments;
    size_t skipped = from < left.count ? from : left.count;
    left.items += skipped;
    left.count -= skipped;
    return left;
}

static const xm_jinja_builtin *find(xm_jinja_run *run, const xm_jinja_arguments *arguments,
                                    size_t index, const char *what,
                                    const xm_jinja_builtin *(*table)(xm_jinja_string))
{
    xm_jinja_string name = xm_jinja_argument_string(run, arguments, index, what);
    const xm_jinja_builtin *found = table(name);
    if (!found)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "the %s '%.*s' is not known here", what,
                      (int)(name.length < 60 ? name.length : 60), name.bytes);
    return found;
}

/* map(attribute="name", default=value) or map("filter", arguments). */
FILTER(map)
{
    const xm_jinja_list *from = xm_jinja_iterate(&run->job, self);
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    const xm_jinja_value *attribute = xm_jinja_argument(arguments, SIZE_MAX, "attribute");
    const xm_jinja_value *absent = xm_jinja_argument(arguments, SIZE_MAX, "default");
    const xm_jinja_builtin *filter =
        attribute ? NULL : find(run, arguments, 0, "filter", xm_jinja_find_filter);
    xm_jinja_arguments left = rest(arguments, 1);
    for (size_t i = 0; i < from->count; i++) {
        xm_jinja_value item = attribute ? path_of(run, from->items[i], *attribute)
                                        : xm_jinja_call(run, filter, from->items[i], &left);
        if (attribute && absent && item.type == XM_JINJA_UNDEFINED)
            item = *absent;
        xm_jinja_append(&run->job, list, item);
    }
    return list;
}

/* The items for which the test, of an attribute where one is named first, is `wanted`. */
static xm_jinja_value choose(xm_jinja_run *run, xm_jinja_value self,
                             const xm_jinja_arguments *arguments, bool attribute, bool wanted)
{
    const xm_jinja_list *from = xm_jinja_iterate(&run->job, self);
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    if (attribute && !arguments->count)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "selectattr needs an attribute");
    const xm_jinja_builtin *test = arguments->count > (size_t)attribute
                                       ? find(run, arguments, attribute, "test", xm_jinja_find_test)
                                       : NULL;
    xm_jinja_arguments left = rest(arguments, 1 + (size_t)attribute);
    for (size_t i = 0; i < from->count; i++) {
        xm_jinja_value item = from->items[i];
        xm_jinja_value tested = attribute ? path_of(run, item, arguments->items[0]) : item;
        if (test)
            tested = xm_jinja_call(run, test, tested, &left);
        if (xm_jinja_truth(&run->job, tested) == wanted)
            xm_jinja_append(&run->job, list, item);
    }
    return list;
}

FILTER(select_items)
{
    return choose(run, self, arguments, false, true);
}

FILTER(reject)
{
    return choose(run, self, arguments, false, false);
}

FILTER(selectattr)
{
    return choose(run, self, arguments, true, true);
}

FILTER(rejectattr)
{
    return choose(run, self, arguments, true, false);
}

/* What items are compared by: an attribute, in lower case unless case counts. */
static xm_jinja_value *sort_keys(xm_jinja_run *run, const xm_jinja_list *list,
                                 const xm_jinja_value *attribute, bool with_case)
{
    xm_jinja_value *keys = xm_jinja_allocate_items(&run->job, list->count, sizeof *keys);
    for (size_t i = 0; i < list->count; i++) {
        keys[i] = attribute ? path_of(run, list->items[i], *attribute) : list->items[i];
        if (!with_case && keys[i].type == XM_JINJA_STRING)
            keys[i] = xm_jinja_text(xm_jinja_in_case(&run->job, keys[i].string, XM_JINJA_LOWER));
    }
    return keys;
}

/* Merge sort of positions: equal ones keep their order, also backwards, as in Python. */
static void sort_positions(xm_jinja_run *run, const xm_jinja_value *keys, bool backwards,
                           size_t *positions, size_t *spare, size_t count)
{
    if (count < 2)
        return;
    size_t half = count / 2, left = 0, right = half, used = 0;
    sort_positions(run, keys, backwards, positions, spare, half);
    sort_positions(run, keys, backwards, positions + half, spare, count - half);
    xm_jinja_step(&run->job, count);
    while (left < half && right < count) {
        int order = xm_jinja_compare(&run->job, keys[positions[right]], keys[positions[left]]);
        bool take_right = backwards ? order > 0 : order < 0;
        spare[used++] = take_right ? positions[right++] : positions[left++];
    }
    while (left < half)
        spare[used++] = positions[left++];
    memcpy(positions, spare, used * sizeof *positions);
}

static xm_jinja_value sorted(xm_jinja_run *run, const xm_jinja_list *from,
                             const xm_jinja_value *attribute, bool with_case, bool backwards)
{
    const xm_jinja_value *keys = sort_keys(run, from, attribute, with_case);
    size_t *positions = xm_jinja_allocate_items(&run->job, from->count, sizeof *positions);
    size_t *spare = xm_jinja_allocate_items(&run->job, from->count, sizeof *spare);
    for (size_t i = 0; i < from->count; i++)
        positions[i] = i;
    sort_positions(run, keys, backwards, positions, spare, from->count);
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    for (size_t i = 0; i < from->count; i++)
        xm_jinja_append(&run->job, list, from->items[positions[i]]);
    return list;
}

FILTER(sort)
{
    return sorted(run, xm_jinja_iterate(&run->job, self),
                  xm_jinja_argument(arguments, 2, "attribute"),
                  xm_jinja_argument_truth(run, arguments, 1, "case_sensitive", false),
                  xm_jinja_argument_truth(run, arguments, 0, "reverse", false));
}

FILTER(dictsort)
{
    const xm_jinja_value *by = xm_jinja_argument(arguments, 1, "by");
    xm_jinja_arguments none = {0};
    xm_jinja_value position = xm_jinja_integer(0);
    if (by) {
        xm_jinja_string text = xm_jinja_argument_string(run, arguments, 1, "by");
        position.integer = xm_jinja_string_is(text, "value");
        if (!position.integer && !xm_jinja_string_is(text, "key"))
            xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "dictsort: by is key or value");
    }
    return sorted(run, items(run, self, &none).list, &position,
                  xm_jinja_argument_truth(run, arguments, 0, "case_sensitive", false),
                  xm_jinja_argument_truth(run, arguments, 2, "reverse", false));
}

FILTER(unique)
{
    const xm_jinja_list *from = xm_jinja_iterate(&run->job, self);
    const xm_jinja_value *keys =
        sort_keys(run, from, xm_jinja_argument(arguments, 1, "attribute"),
                  xm_jinja_argument_truth(run, arguments, 0, "case_sensitive", false));
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    xm_jinja_value seen = xm_jinja_new_list(&run->job, false);
    for (size_t i = 0; i < from->count; i++) {
        if (xm_jinja_contains(&run->job, seen, keys[i]))
            continue;
        xm_jinja_append(&run->job, seen, keys[i]);
        xm_jinja_append(&run->job, list, from->items[i]);
    }
    return list;
}

static xm_jinja_value extreme(xm_jinja_run *run, xm_jinja_value self,
                              const xm_jinja_arguments *arguments, int wanted)
{
    const xm_jinja_list *from = xm_jinja_iterate(&run->job, self);
    const xm_jinja_value *keys =
        sort_keys(run, from, xm_jinja_argument(arguments, 1, "attribute"),
                  xm_jinja_argument_truth(run, arguments, 0, "case_sensitive", false));
    size_t best = 0;
    for (size_t i = 1; i < from->count; i++)
        if (xm_jinja_compare(&run->job, keys[i], keys[best]) * wanted > 0)
            best = i;
    return from->count ? from->items[best] : xm_jinja_undefined("the extreme of nothing");
}

FILTER(minimum)
{
    return extreme(run, self, arguments, -1);
}

FILTER(maximum)
{
    return extreme(run, self, arguments, 1);
}

FILTER(sum)
{
    const xm_jinja_value *attribute = xm_jinja_argument(arguments, 0, "attribute");
    const xm_jinja_value *start = xm_jinja_argument(arguments, 1, "start");
    const xm_jinja_list *list = xm_jinja_iterate(&run->job, self);
    xm_jinja_value total = start ? *start : xm_jinja_integer(0);
    for (size_t i = 0; i < list->count; i++)
        total = xm_jinja_calculate(run, XM_JINJA_ADD, total,
                                   attribute ? path_of(run, list->items[i], *attribute)
                                             : list->items[i]);
    return total;
}

FILTER(batch)
{
    int64_t size = xm_jinja_argument_integer(run, arguments, 0, "linecount", 0);
    const xm_jinja_value *filling = xm_jinja_argument(arguments, 1, "fill_with");
    const xm_jinja_list *from = xm_jinja_iterate(&run->job, self);
    xm_jinja_value list = xm_jinja_new_list(&run->job, false), line = {0};
    if (size < 1 || size > 100000)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "batch needs a size from 1 to 100000");
    for (size_t i = 0; i < from->count; i++) {
        if (i % (size_t)size == 0) {
            line = xm_jinja_new_list(&run->job, false);
            xm_jinja_append(&run->job, list, line);
        }
        xm_jinja_append(&run->job, line, from->items[i]);
    }
    while (filling && from->count && line.list->count < (size_t)size)
        xm_jinja_append(&run->job, line, *filling);
    return list;
}

static const xm_jinja_builtin filters[] = {
    {"length", length, ""},
    {"count", length, ""},
    {"first", first, ""},
    {"last", last, ""},
    {"list", to_list, ""},
    {"reverse", reverse, ""},
    {"items", items, ""},
    {"join", join, "d attribute "},
    {"map", map, NULL},
    {"select", select_items, NULL},
    {"reject", reject, NULL},
    {"selectattr", selectattr, NULL},
    {"rejectattr", rejectattr, NULL},
    {"sort", sort, "reverse case_sensitive attribute "},
    {"dictsort", dictsort, "case_sensitive by reverse "},
    {"unique", unique, "case_sensitive attribute "},
    {"min", minimum, "case_sensitive attribute "},
    {"max", maximum, "case_sensitive attribute "},
    {"sum", sum, "attribute start "},
    {"batch", batch, "linecount fill_with "},
};

const xm_jinja_builtin *xm_jinja_find_sequence_filter(xm_jinja_string name)
{
    return xm_jinja_find_in(filters, sizeof filters / sizeof *filters, name);
}
