/*
 * jinja_methods.c - methods of strings, lists, dicts and loops.
 */
#include "jinja_run.h"

static xm_jinja_value strip_sides(xm_jinja_run *run, xm_jinja_string self,
                                  const xm_jinja_arguments *arguments, bool left, bool right)
{
    const xm_jinja_value *characters = xm_jinja_argument(arguments, 0, "chars");
    xm_jinja_string set = {0};
    bool given = characters && characters->type != XM_JINJA_NONE;
    if (given)
        set = xm_jinja_argument_string(run, arguments, 0, "chars");
    return xm_jinja_text(xm_jinja_strip(&run->job, self, given ? &set : NULL, left, right));
}

#define METHOD(name)                                                                               \
    static xm_jinja_value name(xm_jinja_run *run, xm_jinja_value self,                             \
                               const xm_jinja_arguments *arguments)

METHOD(strip)
{
    return strip_sides(run, self.string, arguments, true, true);
}

METHOD(lstrip)
{
    return strip_sides(run, self.string, arguments, true, false);
}

METHOD(rstrip)
{
    return strip_sides(run, self.string, arguments, false, true);
}

METHOD(split)
{
    const xm_jinja_value *given = xm_jinja_argument(arguments, 0, "sep");
    int64_t most = xm_jinja_argument_integer(run, arguments, 1, "maxsplit", -1);
    if (!given || given->type == XM_JINJA_NONE)
        return xm_jinja_split(&run->job, self.string, NULL, most);
    xm_jinja_string separator = xm_jinja_argument_string(run, arguments, 0, "sep");
    return xm_jinja_split(&run->job, self.string, &separator, most);
}

METHOD(rsplit)
{
    return xm_jinja_split_right(&run->job, self.string,
                                xm_jinja_argument_string(run, arguments, 0, "sep"),
                                xm_jinja_argument_integer(run, arguments, 1, "maxsplit", -1));
}

METHOD(splitlines)
{
    return xm_jinja_split_lines(&run->job, self.string,
                                xm_jinja_argument_truth(run, arguments, 0, "keepends", false));
}

/* str.startswith and endswith take one string or a tuple of them. */
static bool meets(xm_jinja_run *run, xm_jinja_string self, const xm_jinja_arguments *arguments,
                  bool (*test)(xm_jinja_string, xm_jinja_string))
{
    const xm_jinja_value *given = xm_jinja_argument(arguments, 0, "prefix");
    xm_jinja_step(&run->job, self.length / 64); /* no more is compared of one text */
    if (!given || given->type != XM_JINJA_LIST || !given->list->tuple)
        return test(self, xm_jinja_argument_string(run, arguments, 0, "prefix"));
    for (size_t i = 0; i < given->list->count; i++) {
        xm_jinja_step(&run->job, 1 + self.length / 64);
        if (given->list->items[i].type == XM_JINJA_STRING &&
            test(self, given->list->items[i].string))
            return true;
    }
    return false;
}

METHOD(startswith)
{
    return xm_jinja_boolean(meets(run, self.string, arguments, xm_jinja_starts));
}

METHOD(endswith)
{
    return xm_jinja_boolean(meets(run, self.string, arguments, xm_jinja_ends));
}

METHOD(removeprefix)
{
    xm_jinja_string prefix = xm_jinja_argument_string(run, arguments, 0, "prefix");
    size_t from = xm_jinja_starts(self.string, prefix) ? prefix.length : 0;
    return xm_jinja_text(xm_jinja_cut(self.string, from, self.string.length));
}

METHOD(removesuffix)
{
    xm_jinja_string suffix = xm_jinja_argument_string(run, arguments, 0, "suffix");
    size_t cut = xm_jinja_ends(self.string, suffix) ? suffix.length : 0;
    return xm_jinja_text(xm_jinja_cut(self.string, 0, self.string.length - cut));
}

METHOD(upper)
{
    (void)arguments;
    return xm_jinja_text(xm_jinja_in_case(&run->job, self.string, XM_JINJA_UPPER));
}

METHOD(lower)
{
    (void)arguments;
    return xm_jinja_text(xm_jinja_in_case(&run->job, self.string, XM_JINJA_LOWER));
}

METHOD(title)
{
    (void)arguments;
    return xm_jinja_text(xm_jinja_in_case(&run->job, self.string, XM_JINJA_TITLE));
}

METHOD(capitalize)
{
    (void)arguments;
    return xm_jinja_text(xm_jinja_in_case(&run->job, self.string, XM_JINJA_CAPITAL));
}

METHOD(replace)
{
    return xm_jinja_text(
        xm_jinja_replace(&run->job, self.string, xm_jinja_argument_string(run, arguments, 0, "old"),
                         xm_jinja_argument_string(run, arguments, 1, "new"),
                         xm_jinja_argument_integer(run, arguments, 2, "count", -1)));
}

static xm_jinja_value position(xm_jinja_run *run, xm_jinja_string self, size_t at)
{
    if (at == XM_JINJA_NOWHERE)
        return xm_jinja_integer(-1);
    return xm_jinja_integer((int64_t)xm_jinja_characters(&run->job, xm_jinja_cut(self, 0, at)));
}

METHOD(find)
{
    xm_jinja_string piece = xm_jinja_argument_string(run, arguments, 0, "sub");
    return position(run, self.string, xm_jinja_search(&run->job, self.string, piece, 0));
}

METHOD(rfind)
{
    xm_jinja_string piece = xm_jinja_argument_string(run, arguments, 0, "sub");
    xm_jinja_step(&run->job, (self.string.length / 16 + 1) * (piece.length / 64 + 1));
    for (size_t at = self.string.length + 1; at-- > 0;)
        if (xm_jinja_starts(xm_jinja_cut(self.string, at, self.string.length), piece))
            return position(run, self.string, at);
    return xm_jinja_integer(-1);
}

METHOD(count)
{
    xm_jinja_string piece = xm_jinja_argument_string(run, arguments, 0, "sub");
    const xm_jinja_list *pieces = xm_jinja_split(&run->job, self.string, &piece, -1).list;
    return xm_jinja_integer((int64_t)pieces->count - 1);
}

METHOD(join)
{
    const xm_jinja_value *given = xm_jinja_argument(arguments, 0, "iterable");
    const xm_jinja_list *list = xm_jinja_iterate(&run->job, given ? *given : xm_jinja_none());
    xm_jinja_builder builder = {.job = &run->job};
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].type != XM_JINJA_STRING)
            xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "join needs strings, not %s",
                          xm_jinja_type_name(list->items[i]));
        if (i)
            xm_jinja_add(&builder, self.string);
        xm_jinja_add(&builder, list->items[i].string);
    }
    return xm_jinja_text(xm_jinja_built(&builder));
}

METHOD(format)
{
    return xm_jinja_text(xm_jinja_braces(run, self.string, arguments));
}

/* True where there are characters, all of them ASCII ones in the given ranges. */
static bool all_within(xm_jinja_string text, const char *ranges)
{
    for (size_t i = 0; i < text.length; i++) {
        const char *range = ranges;
        while (*range && !(text.bytes[i] >= range[0] && text.bytes[i] <= range[1]))
            range += 2;
        if (!*range)
            return false;
    }
    return text.length > 0;
}

METHOD(is_digits)
{
    (void)run, (void)arguments;
    return xm_jinja_boolean(all_within(self.string, "09"));
}

METHOD(is_blank)
{
    (void)arguments;
    size_t left = xm_jinja_strip(&run->job, self.string, NULL, true, true).length;
    return xm_jinja_boolean(self.string.length > 0 && left == 0);
}

static const xm_jinja_builtin string_methods[] = {
    {"strip", strip, "chars "},
    {"lstrip", lstrip, "chars "},
    {"rstrip", rstrip, "chars "},
    {"split", split, "sep maxsplit "},
    {"rsplit", rsplit, "sep maxsplit "},
    {"splitlines", splitlines, "keepends "},
    {"startswith", startswith, "prefix "},
    {"endswith", endswith, "prefix "},
    {"removeprefix", removeprefix, "prefix "},
    {"removesuffix", removesuffix, "suffix "},
    {"upper", upper, ""},
    {"lower", lower, ""},
    {"title", title, ""},
    {"capitalize", capitalize, ""},
    {"replace", replace, "old new count "},
    {"find", find, "sub "},
    {"rfind", rfind, "sub "},
    {"count", count, "sub "},
    {"join", join, "iterable "},
    {"format", format, NULL},
    {"isdigit", is_digits, ""},
    {"isspace", is_blank, ""},
};

/* --- dicts and lists ---------------------------------------------------------------------------
 */

METHOD(items)
{
    (void)arguments;
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    for (size_t i = 0; i < self.dict->count; i++)
        xm_jinja_append(&run->job, list,
                        xm_jinja_pair(&run->job, self.dict->keys[i], self.dict->values[i]));
    return list;
}

METHOD(keys)
{
    (void)arguments;
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    for (size_t i = 0; i < self.dict->count; i++)
        xm_jinja_append(&run->job, list, self.dict->keys[i]);
    return list;
}

METHOD(values)
{
    (void)arguments;
    xm_jinja_value list = xm_jinja_new_list(&run->job, false);
    for (size_t i = 0; i < self.dict->count; i++)
        xm_jinja_append(&run->job, list, self.dict->values[i]);
    return list;
}

METHOD(get)
{
    const xm_jinja_value *key = xm_jinja_argument(arguments, 0, "key");
    const xm_jinja_value *found = key ? xm_jinja_find(&run->job, self.dict, *key) : NULL;
    const xm_jinja_value *absent = xm_jinja_argument(arguments, 1, "default");
    return found ? *found : absent ? *absent : xm_jinja_none();
}

METHOD(update)
{
    const xm_jinja_value *other = xm_jinja_argument(arguments, 0, "other");
    if (!other || other->type != XM_JINJA_DICT)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "update needs a dict");
    for (size_t i = 0; i < other->dict->count; i++)
        xm_jinja_insert(&run->job, self.dict, other->dict->keys[i], other->dict->values[i]);
    return xm_jinja_none();
}

METHOD(append)
{
    const xm_jinja_value *item = xm_jinja_argument(arguments, 0, "object");
    if (!item || self.list->tuple)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "append needs a list and an item");
    xm_jinja_append(&run->job, self, *item);
    return xm_jinja_none();
}

METHOD(pop)
{
    int64_t size = (int64_t)self.list->count;
    int64_t index = xm_jinja_argument_integer(run, arguments, 0, "index", -1);
    index += index < 0 ? size : 0;
    if (index < 0 || index >= size || self.list->tuple)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "pop: there is no such item");
    xm_jinja_value item = self.list->items[index];
    for (size_t i = (size_t)index + 1; i < self.list->count; i++)
        self.list->items[i - 1] = self.list->items[i];
    xm_jinja_step(&run->job, (size_t)(size - index) / 16);
    self.list->count--;
    return item;
}

METHOD(pop_key)
{
    const xm_jinja_value *key = xm_jinja_argument(arguments, 0, "key");
    const xm_jinja_value *absent = xm_jinja_argument(arguments, 1, "default");
    xm_jinja_value *found = key ? xm_jinja_find(&run->job, self.dict, *key) : NULL;
    if (!found && !absent)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "pop: there is no such key");
    if (!found)
        return *absent;
    xm_jinja_value value = *found;
    xm_jinja_step(&run->job, self.dict->count / 16);
    for (size_t i = (size_t)(found - self.dict->values) + 1; i < self.dict->count; i++) {
        self.dict->keys[i - 1] = self.dict->keys[i];
        self.dict->values[i - 1] = self.dict->values[i];
    }
    self.dict->count--;
    return value;
}

static const xm_jinja_builtin dict_methods[] = {
    {"items", items, ""},         {"keys", keys, ""},           {"values", values, ""},
    {"get", get, "key default "}, {"update", update, "other "}, {"pop", pop_key, "key default "},
};

static const xm_jinja_builtin list_methods[] = {
    {"append", append, "object "},
    {"pop", pop, "index "},
};

METHOD(cycle)
{
    if (!arguments->count)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "cycle needs items");
    return arguments->items[self.loop->index % arguments->count];
}

static const xm_jinja_builtin loop_methods[] = {{"cycle", cycle, NULL}};

const xm_jinja_builtin *xm_jinja_find_method(xm_jinja_value value, const char *name)
{
    xm_jinja_string text = xm_jinja_literal(name);
    switch (value.type) {
    case XM_JINJA_STRING:
        return xm_jinja_find_in(string_methods, sizeof string_methods / sizeof *string_methods,
                                text);
    case XM_JINJA_LIST:
        return xm_jinja_find_in(list_methods, sizeof list_methods / sizeof *list_methods, text);
    case XM_JINJA_DICT:
        if (value.dict->is_namespace)
            return NULL;
        return xm_jinja_find_in(dict_methods, sizeof dict_methods / sizeof *dict_methods, text);
    case XM_JINJA_LOOP:
        return xm_jinja_find_in(loop_methods, 1, text);
    default:
        return NULL;
    }
}
