/*
 * jinja_run.h - one rendering of a template: its scopes, its output, and what calls share.
 */
#ifndef XM_SERVER_JINJA_RUN_H
#define XM_SERVER_JINJA_RUN_H

#include "jinja_string.h"
#include "jinja_syntax.h"

typedef struct xm_jinja_scope xm_jinja_scope;
struct xm_jinja_scope {
    xm_jinja_scope *parent;
    const char **names;
    xm_jinja_value *values;
    size_t count, name_capacity, value_capacity;
};

struct xm_jinja_loop {
    const xm_jinja_value *items;
    size_t index, count;
    int64_t depth;
};

struct xm_jinja_run {
    xm_jinja_job job;
    xm_jinja_scope *scope;
    xm_jinja_builder document; /* the text that is being made */
    xm_jinja_builder *out;     /* where output goes: the document, or a block within it */
    int64_t loop_depth;
    time_t now;
};

/* jinja_run.c */
void xm_jinja_assign(xm_jinja_run *run, const char *name, xm_jinja_value value);
/* NULL where no scope has it. */
const xm_jinja_value *xm_jinja_look_up(xm_jinja_run *run, const char *name);
/* Runs a macro; its text. */
xm_jinja_value xm_jinja_run_macro(xm_jinja_run *run, const xm_jinja_callable *callable,
                                  const xm_jinja_arguments *arguments);

/* jinja_evaluate.c */
xm_jinja_value xm_jinja_evaluate(xm_jinja_run *run, const xm_jinja_node *node);
/* The filters of a block over what it made. */
xm_jinja_value xm_jinja_evaluate_filters(xm_jinja_run *run, const xm_jinja_node *node,
                                         xm_jinja_value made);
xm_jinja_value xm_jinja_evaluate_call(xm_jinja_run *run, const xm_jinja_node *node,
                                      const xm_jinja_callable *caller);
/* value.name and value[key]; undefined where there is no such thing. */
xm_jinja_value xm_jinja_attribute(xm_jinja_run *run, xm_jinja_value value, const char *name);
xm_jinja_value xm_jinja_item(xm_jinja_run *run, xm_jinja_value value, xm_jinja_value key);

/* jinja_arithmetic.c: a operator b, for those that are not comparisons; % of strings too. */
xm_jinja_value xm_jinja_calculate(xm_jinja_run *run, xm_jinja_operator operation, xm_jinja_value a,
                                  xm_jinja_value b);
bool xm_jinja_is_true_that(xm_jinja_run *run, xm_jinja_operator operation, xm_jinja_value a,
                           xm_jinja_value b);

/* jinja_format.c: Python's "..." % values and "...".format(values). */
xm_jinja_string xm_jinja_percent(xm_jinja_run *run, xm_jinja_string format, xm_jinja_value values);
xm_jinja_string xm_jinja_braces(xm_jinja_run *run, xm_jinja_string format,
                                const xm_jinja_arguments *arguments);

/* jinja_functions.c */
const xm_jinja_builtin *xm_jinja_find_function(const char *name);
/* A row of a table by name, or NULL. */
const xm_jinja_builtin *xm_jinja_find_in(const xm_jinja_builtin *table, size_t count,
                                         xm_jinja_string name);
/* Checks the arguments against the parameters and calls. */
xm_jinja_value xm_jinja_call(xm_jinja_run *run, const xm_jinja_builtin *builtin,
                             xm_jinja_value self, const xm_jinja_arguments *arguments);
/* An argument by position or name; NULL where it is not given. */
const xm_jinja_value *xm_jinja_argument(const xm_jinja_arguments *arguments, size_t index,
                                        const char *name);
/* The same with a type and a value for where it is not given; ..._string fails without one. */
int64_t xm_jinja_argument_integer(xm_jinja_run *run, const xm_jinja_arguments *arguments,
                                  size_t index, const char *name, int64_t absent);
bool xm_jinja_argument_truth(xm_jinja_run *run, const xm_jinja_arguments *arguments, size_t index,
                             const char *name, bool absent);
xm_jinja_string xm_jinja_argument_string(xm_jinja_run *run, const xm_jinja_arguments *arguments,
                                         size_t index, const char *name);

/* jinja_methods.c: of strings, lists and dicts; NULL where the type has no such method. */
const xm_jinja_builtin *xm_jinja_find_method(xm_jinja_value value, const char *name);

/* jinja_filters.c, jinja_sequences.c: the filters of single values, and those of sequences. */
const xm_jinja_builtin *xm_jinja_find_sequence_filter(xm_jinja_string name);

#endif
