/*
 * jinja_evaluate.c - expressions to values.
 */
#include <string.h>

#include "jinja_run.h"

static __attribute__((noreturn)) void fail_undefined(xm_jinja_run *run, xm_jinja_value value)
{
    xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "'%.100s' is undefined",
                  value.name ? value.name : "a value");
}

static xm_jinja_value bound(xm_jinja_run *run, const xm_jinja_builtin *method, xm_jinja_value self)
{
    xm_jinja_callable *callable = xm_jinja_allocate(&run->job, sizeof *callable);
    callable->builtin = method;
    callable->self = self;
    return (xm_jinja_value){.type = XM_JINJA_CALLABLE, .callable = callable};
}

static xm_jinja_value neighbour(const xm_jinja_loop *loop, size_t index, const char *name)
{
    return index < loop->count ? loop->items[index] : xm_jinja_undefined(name);
}

static xm_jinja_value loop_attribute(const xm_jinja_loop *loop, const char *name)
{
    int64_t index = (int64_t)loop->index, count = (int64_t)loop->count;
    if (strcmp(name, "first") == 0)
        return xm_jinja_boolean(index == 0);
    if (strcmp(name, "last") == 0)
        return xm_jinja_boolean(index + 1 == count);
    if (strcmp(name, "previtem") == 0)
        return neighbour(loop, loop->index - 1, name); /* before the first: SIZE_MAX */
    if (strcmp(name, "nextitem") == 0)
        return neighbour(loop, loop->index + 1, name);
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {{"index", index + 1},        {"index0", index},
                   {"revindex", count - index}, {"revindex0", count - index - 1},
                   {"length", count},           {"depth", loop->depth},
                   {"depth0", loop->depth - 1}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(numbers[i].name, name) == 0)
            return xm_jinja_integer(numbers[i].value);
    return xm_jinja_undefined(name);
}

xm_jinja_value xm_jinja_attribute(xm_jinja_run *run, xm_jinja_value value, const char *name)
{
    if (value.type == XM_JINJA_UNDEFINED)
        fail_undefined(run, value);
    if (value.type == XM_JINJA_LOOP) {
        const xm_jinja_builtin *method = xm_jinja_find_method(value, name);
        return method ? bound(run, method, value) : loop_attribute(value.loop, name);
    }
    const xm_jinja_builtin *method = xm_jinja_find_method(value, name);
    if (method)
        return bound(run, method, value);
    const xm_jinja_value *found =
        value.type == XM_JINJA_DICT ? xm_jinja_find_name(&run->job, value.dict, name) : NULL;
    return found ? *found : xm_jinja_undefined(name);
}

/* The text of a key, with a NUL, for messages and for names of methods. */
static const char *key_name(xm_jinja_run *run, xm_jinja_value key)
{
    if (key.type != XM_JINJA_STRING)
        return "an item";
    char *name = xm_jinja_allocate(&run->job, key.string.length + 1);
    memcpy(name, key.string.bytes, key.string.length);
    return name;
}

xm_jinja_value xm_jinja_item(xm_jinja_run *run, xm_jinja_value value, xm_jinja_value key)
{
    if (value.type == XM_JINJA_UNDEFINED)
        fail_undefined(run, value);
    if (value.type == XM_JINJA_DICT) {
        const xm_jinja_value *found = xm_jinja_find(&run->job, value.dict, key);
        if (found)
            return *found;
    }
    if (key.type == XM_JINJA_STRING) {
        const char *name = key_name(run, key);
        const xm_jinja_builtin *method = xm_jinja_find_method(value, name);
        return method ? bound(run, method, value) : xm_jinja_undefined(name);
    }
    if (key.type != XM_JINJA_INTEGER ||
        (value.type != XM_JINJA_LIST && value.type != XM_JINJA_STRING))
        return xm_jinja_undefined("an item");
    int64_t count = (int64_t)xm_jinja_length(&run->job, value);
    int64_t index = key.integer < 0 ? key.integer + count : key.integer;
    if (index < 0 || index >= count)
        return xm_jinja_undefined("an item");
    if (value.type == XM_JINJA_LIST)
        return value.list->items[index];
    int64_t end = index + 1;
    return xm_jinja_text(xm_jinja_slice(&run->job, value.string, &index, &end, 1));
}

static xm_jinja_value slice(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_value value = xm_jinja_evaluate(run, node->a);
    int64_t numbers[3] = {0, 0, 1};
    const int64_t *bounds[3] = {0};
    for (int i = 0; i < 3; i++) {
        if (!node->first.items[i])
            continue;
        xm_jinja_value bound_value = xm_jinja_evaluate(run, node->first.items[i]);
        if (bound_value.type == XM_JINJA_NONE)
            continue;
        if (bound_value.type != XM_JINJA_INTEGER)
            xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "a slice needs integers, not %s",
                          xm_jinja_type_name(bound_value));
        numbers[i] = bound_value.integer;
        bounds[i] = &numbers[i];
    }
    if (value.type == XM_JINJA_STRING)
        return xm_jinja_text(
            xm_jinja_slice(&run->job, value.string, bounds[0], bounds[1], numbers[2]));
    if (value.type == XM_JINJA_UNDEFINED)
        fail_undefined(run, value);
    if (value.type != XM_JINJA_LIST)
        return xm_jinja_undefined("a slice");
    xm_jinja_value list = xm_jinja_new_list(&run->job, value.list->tuple);
    int64_t first = 0;
    size_t taken = 0;
    xm_jinja_slice_bounds(&run->job, value.list->count, bounds[0], bounds[1], numbers[2], &first,
                          &taken);
    for (size_t i = 0; i < taken; i++)
        xm_jinja_append(&run->job, list, value.list->items[first + (int64_t)i * numbers[2]]);
    return list;
}

static xm_jinja_value *evaluate_all(xm_jinja_run *run, const xm_jinja_nodes *nodes)
{
    xm_jinja_value *values = xm_jinja_allocate_items(&run->job, nodes->count, sizeof *values);
    for (size_t i = 0; i < nodes->count; i++)
        values[i] = xm_jinja_evaluate(run, nodes->items[i]);
    return values;
}

static xm_jinja_arguments evaluate_arguments(xm_jinja_run *run, const xm_jinja_node *node)
{
    return (xm_jinja_arguments){evaluate_all(run, &node->first), node->first.count, node->names,
                                evaluate_all(run, &node->second), node->second.count};
}

static xm_jinja_value call(xm_jinja_run *run, xm_jinja_value callee,
                           const xm_jinja_arguments *arguments, const xm_jinja_callable *caller)
{
    if (callee.type == XM_JINJA_UNDEFINED)
        fail_undefined(run, callee);
    if (callee.type != XM_JINJA_CALLABLE)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "a %s cannot be called",
                      xm_jinja_type_name(callee));
    const xm_jinja_callable *callable = callee.callable;
    if (callable->builtin)
        return xm_jinja_call(run, callable->builtin, callable->self, arguments);
    xm_jinja_callable macro = *callable;
    macro.caller = caller;
    return xm_jinja_run_macro(run, &macro, arguments);
}

xm_jinja_value xm_jinja_evaluate_call(xm_jinja_run *run, const xm_jinja_node *node,
                                      const xm_jinja_callable *caller)
{
    xm_jinja_value callee = xm_jinja_evaluate(run, node->a);
    xm_jinja_arguments arguments = evaluate_arguments(run, node);
    run->job.line = node->line;
    return call(run, callee, &arguments, caller);
}

static xm_jinja_value call_builtin(xm_jinja_run *run, const xm_jinja_node *node,
                                   xm_jinja_value operand)
{
    xm_jinja_arguments arguments = evaluate_arguments(run, node);
    run->job.line = node->line;
    return xm_jinja_call(run, node->builtin, operand, &arguments);
}

xm_jinja_value xm_jinja_evaluate_filters(xm_jinja_run *run, const xm_jinja_node *node,
                                         xm_jinja_value made)
{
    xm_jinja_descend(&run->job);
    if (node->a)
        made = xm_jinja_evaluate_filters(run, node->a, made);
    xm_jinja_rise(&run->job);
    return call_builtin(run, node, made);
}

static xm_jinja_value look_up(xm_jinja_run *run, const char *name)
{
    const xm_jinja_value *found = xm_jinja_look_up(run, name);
    if (found)
        return *found;
    const xm_jinja_builtin *function = xm_jinja_find_function(name);
    return function ? bound(run, function, xm_jinja_none()) : xm_jinja_undefined(name);
}

static xm_jinja_value sequence(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_value list = xm_jinja_new_list(&run->job, node->kind == XM_JINJA_NODE_TUPLE);
    for (size_t i = 0; i < node->first.count; i++)
        xm_jinja_append(&run->job, list, xm_jinja_evaluate(run, node->first.items[i]));
    return list;
}

static xm_jinja_value dict(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_value value = xm_jinja_new_dict(&run->job);
    for (size_t i = 0; i < node->first.count; i++) {
        xm_jinja_value key = xm_jinja_evaluate(run, node->first.items[i]);
        xm_jinja_insert(&run->job, value.dict, key, xm_jinja_evaluate(run, node->second.items[i]));
    }
    return value;
}

/* a < b <= c holds where each link does; the rest is not looked at after one that does not. */
static xm_jinja_value compare(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_value left = xm_jinja_evaluate(run, node->a);
    for (size_t i = 0; i < node->first.count; i++) {
        xm_jinja_value right = xm_jinja_evaluate(run, node->first.items[i]);
        if (!xm_jinja_is_true_that(run, node->operators[i], left, right))
            return xm_jinja_boolean(false);
        left = right;
    }
    return xm_jinja_boolean(true);
}

static xm_jinja_value sign(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_value value = xm_jinja_evaluate(run, node->a);
    xm_jinja_operator operation =
        node->kind == XM_JINJA_NODE_NEGATIVE ? XM_JINJA_SUBTRACT : XM_JINJA_ADD;
    if (!xm_jinja_is_number(value))
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "a %s has no sign", xm_jinja_type_name(value));
    if (value.type == XM_JINJA_FLOAT && operation == XM_JINJA_SUBTRACT)
        return xm_jinja_float(-value.number);
    return xm_jinja_calculate(run, operation, xm_jinja_integer(0), value);
}

static xm_jinja_value logic(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_value value = xm_jinja_evaluate(run, node->a);
    bool truth = xm_jinja_truth(&run->job, value);
    switch (node->kind) {
    case XM_JINJA_NODE_NOT:
        return xm_jinja_boolean(!truth);
    case XM_JINJA_NODE_AND:
        return truth ? xm_jinja_evaluate(run, node->b) : value;
    case XM_JINJA_NODE_OR:
        return truth ? value : xm_jinja_evaluate(run, node->b);
    default:
        if (truth)
            return xm_jinja_evaluate(run, node->b);
        return node->c ? xm_jinja_evaluate(run, node->c) : xm_jinja_undefined("an if without else");
    }
}

static xm_jinja_value evaluate(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_value a;
    switch (node->kind) {
    case XM_JINJA_NODE_CONSTANT:
        return node->value;
    case XM_JINJA_NODE_NAME:
        return look_up(run, node->name);
    case XM_JINJA_NODE_LIST:
    case XM_JINJA_NODE_TUPLE:
        return sequence(run, node);
    case XM_JINJA_NODE_DICT:
        return dict(run, node);
    case XM_JINJA_NODE_ATTRIBUTE:
        return xm_jinja_attribute(run, xm_jinja_evaluate(run, node->a), node->name);
    case XM_JINJA_NODE_ITEM:
        a = xm_jinja_evaluate(run, node->a);
        return xm_jinja_item(run, a, xm_jinja_evaluate(run, node->b));
    case XM_JINJA_NODE_SLICE:
        return slice(run, node);
    case XM_JINJA_NODE_CALL:
        return xm_jinja_evaluate_call(run, node, NULL);
    case XM_JINJA_NODE_FILTER:
    case XM_JINJA_NODE_TEST:
        return call_builtin(run, node, xm_jinja_evaluate(run, node->a));
    case XM_JINJA_NODE_NEGATIVE:
    case XM_JINJA_NODE_POSITIVE:
        return sign(run, node);
    case XM_JINJA_NODE_BINARY:
        a = xm_jinja_evaluate(run, node->a);
        return xm_jinja_calculate(run, node->operation, a, xm_jinja_evaluate(run, node->b));
    case XM_JINJA_NODE_COMPARE:
        return compare(run, node);
    default:
        return logic(run, node);
    }
}

xm_jinja_value xm_jinja_evaluate(xm_jinja_run *run, const xm_jinja_node *node)
{
    run->job.line = node->line;
    xm_jinja_step(&run->job, 1);
    xm_jinja_descend(&run->job);
    xm_jinja_value value = evaluate(run, node);
    xm_jinja_rise(&run->job);
    return value;
}
