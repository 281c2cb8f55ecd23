/*
 * jinja_run.c - see jinja.h: parsing and rendering as a whole, statements, scopes.
 *
 * Loops, macros and blocks have a scope of their own: what is set there is gone after them, as in
 * jinja2. `if` has none.
 */
#include <stdlib.h>
#include <string.h>

#include "jinja_run.h"

typedef enum { NEXT, BREAK, CONTINUE } flow;

static flow run_body(xm_jinja_run *run, const xm_jinja_nodes *body);

void xm_jinja_assign(xm_jinja_run *run, const char *name, xm_jinja_value value)
{
    xm_jinja_scope *scope = run->scope;
    xm_jinja_step(&run->job, scope->count / 16);
    for (size_t i = 0; i < scope->count; i++)
        if (strcmp(scope->names[i], name) == 0) {
            scope->values[i] = value;
            return;
        }
    scope->names = xm_jinja_grow(&run->job, scope->names, scope->count, &scope->name_capacity,
                                 sizeof *scope->names);
    scope->values = xm_jinja_grow(&run->job, scope->values, scope->count, &scope->value_capacity,
                                  sizeof *scope->values);
    scope->names[scope->count] = name;
    scope->values[scope->count++] = value;
}

const xm_jinja_value *xm_jinja_look_up(xm_jinja_run *run, const char *name)
{
    for (const xm_jinja_scope *scope = run->scope; scope; scope = scope->parent) {
        xm_jinja_step(&run->job, scope->count / 16);
        for (size_t i = 0; i < scope->count; i++)
            if (strcmp(scope->names[i], name) == 0)
                return &scope->values[i];
    }
    return NULL;
}

/* The scope that was there before, to be put back. */
static xm_jinja_scope *enter(xm_jinja_run *run, xm_jinja_scope *parent)
{
    xm_jinja_scope *before = run->scope;
    run->scope = xm_jinja_allocate(&run->job, sizeof *run->scope);
    run->scope->parent = parent;
    return before;
}

/* Runs a body in a scope of its own and gives back what it wrote. */
static xm_jinja_value capture(xm_jinja_run *run, const xm_jinja_nodes *body)
{
    xm_jinja_builder builder = {.job = &run->job};
    xm_jinja_builder *out = run->out;
    xm_jinja_scope *before = enter(run, run->scope);
    run->out = &builder;
    run_body(run, body);
    run->out = out;
    run->scope = before;
    return xm_jinja_text(xm_jinja_built(&builder));
}

static void assign_one(xm_jinja_run *run, const xm_jinja_node *target, xm_jinja_value value)
{
    if (target->kind == XM_JINJA_NODE_NAME) {
        xm_jinja_assign(run, target->name, value);
        return;
    }
    xm_jinja_value object = xm_jinja_evaluate(run, target->a);
    if (object.type != XM_JINJA_DICT || !object.dict->is_namespace)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME,
                      "members of a %s cannot be set, only those of a "
                      "namespace",
                      xm_jinja_type_name(object));
    xm_jinja_insert(&run->job, object.dict, xm_jinja_text(xm_jinja_literal(target->name)), value);
}

static void assign(xm_jinja_run *run, const xm_jinja_node *target, xm_jinja_value value)
{
    if (target->kind != XM_JINJA_NODE_TUPLE) {
        assign_one(run, target, value);
        return;
    }
    const xm_jinja_list *list = xm_jinja_iterate(&run->job, value);
    if (list->count != target->first.count)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "%zu values cannot be assigned to %zu names",
                      list->count, target->first.count);
    for (size_t i = 0; i < list->count; i++)
        assign_one(run, target->first.items[i], list->items[i]);
}

/* The items that the loop's filter leaves. */
static xm_jinja_list *filtered(xm_jinja_run *run, const xm_jinja_node *node,
                               const xm_jinja_list *list)
{
    xm_jinja_value kept = xm_jinja_new_list(&run->job, false);
    for (size_t i = 0, count = list->count; i < count; i++) {
        xm_jinja_value item = list->items[i];
        xm_jinja_scope *before = enter(run, run->scope);
        assign(run, node->a, item);
        if (xm_jinja_truth(&run->job, xm_jinja_evaluate(run, node->c)))
            xm_jinja_append(&run->job, kept, item);
        run->scope = before;
    }
    return kept.list;
}

static flow run_for(xm_jinja_run *run, const xm_jinja_node *node)
{
    const xm_jinja_list *list = xm_jinja_iterate(&run->job, xm_jinja_evaluate(run, node->b));
    if (node->c)
        list = filtered(run, node, list);
    if (list->count == 0)
        return run_body(run, &node->second);
    xm_jinja_loop *loop = xm_jinja_allocate(&run->job, sizeof *loop);
    *loop = (xm_jinja_loop){list->items, 0, list->count, ++run->loop_depth};
    for (; loop->index < loop->count; loop->index++) {
        xm_jinja_scope *before = enter(run, run->scope);
        xm_jinja_assign(run, "loop", (xm_jinja_value){.type = XM_JINJA_LOOP, .loop = loop});
        assign(run, node->a, loop->items[loop->index]);
        flow next = run_body(run, &node->first);
        run->scope = before;
        if (next == BREAK)
            break;
    }
    run->loop_depth--;
    return NEXT;
}

static xm_jinja_value new_macro(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_callable *callable = xm_jinja_allocate(&run->job, sizeof *callable);
    callable->macro = node;
    callable->scope = run->scope;
    return (xm_jinja_value){.type = XM_JINJA_CALLABLE, .callable = callable};
}

/* Gives the macro's parameters their values: by position, by name, by default. */
static void assign_parameters(xm_jinja_run *run, const xm_jinja_node *macro,
                              const xm_jinja_arguments *arguments)
{
    if (arguments->count > macro->name_count)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "macro '%.60s' takes %zu arguments, not %zu",
                      macro->name, macro->name_count, arguments->count);
    size_t used = arguments->count, without = macro->name_count - macro->second.count;
    for (size_t i = 0; i < macro->name_count; i++) {
        const xm_jinja_value *given = xm_jinja_argument(arguments, i, macro->names[i]);
        used += i >= arguments->count && given;
        if (given)
            xm_jinja_assign(run, macro->names[i], *given);
        else if (i >= without)
            xm_jinja_assign(run, macro->names[i],
                            xm_jinja_evaluate(run, macro->second.items[i - without]));
        else
            xm_jinja_assign(run, macro->names[i], xm_jinja_undefined(macro->names[i]));
    }
    if (used < arguments->count + arguments->named_count)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME,
                      "macro '%.60s' is given a named argument that it does not take", macro->name);
}

xm_jinja_value xm_jinja_run_macro(xm_jinja_run *run, const xm_jinja_callable *callable,
                                  const xm_jinja_arguments *arguments)
{
    xm_jinja_descend(&run->job);
    xm_jinja_scope *before = enter(run, callable->scope);
    assign_parameters(run, callable->macro, arguments);
    if (callable->caller)
        xm_jinja_assign(run, "caller",
                        (xm_jinja_value){.type = XM_JINJA_CALLABLE, .callable = callable->caller});
    xm_jinja_value text = capture(run, &callable->macro->first);
    run->scope = before;
    xm_jinja_rise(&run->job);
    return text;
}

static void print(xm_jinja_run *run, xm_jinja_value value)
{
    xm_jinja_add(run->out, xm_jinja_to_string(&run->job, value));
}

static void run_block(xm_jinja_run *run, const xm_jinja_node *node)
{
    xm_jinja_value text = capture(run, &node->first);
    if (node->b)
        text = xm_jinja_evaluate_filters(run, node->b, text);
    if (node->kind == XM_JINJA_NODE_SET_BLOCK)
        assign(run, node->a, text);
    else
        print(run, text);
}

static flow run_statement(xm_jinja_run *run, const xm_jinja_node *node)
{
    switch (node->kind) {
    case XM_JINJA_NODE_TEXT:
        xm_jinja_add(run->out, node->value.string);
        break;
    case XM_JINJA_NODE_PRINT:
        print(run, xm_jinja_evaluate(run, node->a));
        break;
    case XM_JINJA_NODE_IF:
        return run_body(run, xm_jinja_truth(&run->job, xm_jinja_evaluate(run, node->a))
                                 ? &node->first
                                 : &node->second);
    case XM_JINJA_NODE_FOR:
        return run_for(run, node);
    case XM_JINJA_NODE_SET:
        assign(run, node->a, xm_jinja_evaluate(run, node->b));
        break;
    case XM_JINJA_NODE_MACRO:
        xm_jinja_assign(run, node->name, new_macro(run, node));
        break;
    case XM_JINJA_NODE_CALL_BLOCK:
        print(run, xm_jinja_evaluate_call(run, node->a, new_macro(run, node->b).callable));
        break;
    case XM_JINJA_NODE_BREAK:
        return BREAK;
    case XM_JINJA_NODE_CONTINUE:
        return CONTINUE;
    default: /* SET_BLOCK, FILTER_BLOCK, BODY */
        run_block(run, node);
        break;
    }
    return NEXT;
}

static flow run_body(xm_jinja_run *run, const xm_jinja_nodes *body)
{
    flow next = NEXT;
    xm_jinja_descend(&run->job);
    for (size_t i = 0; i < body->count && next == NEXT; i++) {
        run->job.line = body->items[i]->line;
        xm_jinja_step(&run->job, 1);
        next = run_statement(run, body->items[i]);
    }
    xm_jinja_rise(&run->job);
    return next;
}

/* --- the way in --------------------------------------------------------------------------------
 */

struct xm_jinja {
    xm_jinja_block *blocks; /* of the parse: they hold the tree */
    const xm_jinja_node *root;
};

static void parse(xm_jinja_job *job, xm_jinja *jinja, const char *source, size_t length)
{
    if (setjmp(job->escape) == 0) {
        if (length > XM_JINJA_SOURCE_LIMIT)
            xm_jinja_fail(job, XM_JINJA_LIMIT, "the template has more than %zu bytes",
                          XM_JINJA_SOURCE_LIMIT);
        jinja->root = xm_jinja_parse_tokens(job, xm_jinja_lex(job, source, length));
    }
    jinja->blocks = job->blocks;
}

xm_jinja *xm_jinja_parse(const char *source, size_t length, xm_jinja_error *error)
{
    *error = (xm_jinja_error){0};
    xm_jinja *jinja = calloc(1, sizeof *jinja);
    xm_jinja_job *job = calloc(1, sizeof *job);
    if (jinja && job) {
        job->error = error;
        parse(job, jinja, source, length);
    } else {
        *error = (xm_jinja_error){.failure = XM_JINJA_MEMORY, .message = "out of memory"};
    }
    free(job);
    if (error->failure == XM_JINJA_NO_ERROR)
        return jinja;
    xm_jinja_free(jinja);
    return NULL;
}

void xm_jinja_free(xm_jinja *jinja)
{
    if (jinja)
        xm_jinja_free_blocks(jinja->blocks);
    free(jinja);
}

static void render(xm_jinja_run *run, const xm_jinja *jinja, const xm_jinja_variable *variables,
                   size_t count, xm_jinja_output *output)
{
    const xm_jinja_builder *builder = &run->document;
    run->document.job = &run->job;
    run->out = &run->document;
    enter(run, NULL);
    for (size_t i = 0; i < count; i++)
        xm_jinja_assign(run, variables[i].name,
                        xm_jinja_from_json(&run->job, variables[i].value, variables[i].input));
    enter(run, run->scope);
    run_body(run, &jinja->root->first);
    xm_text_add(&output->text, builder->length ? builder->bytes : "", builder->length);
    if (xm_text_reserve(&output->input, builder->length)) {
        if (builder->marks)
            memcpy(output->input.data, builder->marks, builder->length);
        else
            memset(output->input.data, 0, builder->length);
        output->input.length = builder->length;
    }
    if (output->text.failed || output->input.failed)
        xm_jinja_fail(&run->job, XM_JINJA_MEMORY, "out of memory");
}

bool xm_jinja_render(const xm_jinja *jinja, const xm_jinja_variable *variables, size_t count,
                     time_t now, xm_jinja_output *output, xm_jinja_error *error)
{
    *error = (xm_jinja_error){0};
    xm_jinja_run *run = calloc(1, sizeof *run);
    if (!run) {
        *error = (xm_jinja_error){.failure = XM_JINJA_MEMORY, .message = "out of memory"};
        return false;
    }
    run->job.error = error;
    run->job.line = 1;
    run->now = now;
    if (setjmp(run->job.escape) == 0)
        render(run, jinja, variables, count, output);
    xm_jinja_free_blocks(run->job.blocks);
    free(run);
    return error->failure == XM_JINJA_NO_ERROR;
}

void xm_jinja_output_free(xm_jinja_output *output)
{
    xm_text_free(&output->text);
    xm_text_free(&output->input);
}
