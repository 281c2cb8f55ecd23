/*
 * jinja.h - the templates that models bring for their chats: a small, strict, sandboxed interpreter
 * of the part of Jinja that they use, with the meaning it has in Hugging Face's transformers
 * (jinja2 with trim_blocks, lstrip_blocks and loop controls; Python's rules of printing, comparing
 * and slicing). What it does not know is an error that names line and construct, never a guess.
 *
 * A template is as untrusted as the file that it comes from: it sees the variables it is given and
 * nothing else, and steps, memory and depth are bounded.
 *
 * Every byte of the output knows whether it came from a variable that is marked as input. Slices,
 * joins, replacements, formats and filters keep the marks of the bytes they copy. So a caller can
 * take <|im_end|> for a token where the template wrote it, and for text where a user did.
 *
 * jinja_lex.c     text to tokens, whitespace control
 * jinja_parse.c   tokens to a tree: statements; jinja_expression.c: expressions
 * jinja_run.c     statements, scopes, the way in; jinja_evaluate.c: expressions
 * jinja_value.c   values; jinja_string.c: strings of marked bytes; jinja_print.c: as text and JSON
 * jinja_filters.c, jinja_sequences.c, jinja_tests.c, jinja_methods.c, jinja_functions.c: what
 *                 templates call, each with its table of names
 */
#ifndef XM_SERVER_JINJA_H
#define XM_SERVER_JINJA_H

#include <cjson/cJSON.h>
#include <time.h>

#include "text.h"

typedef enum {
    XM_JINJA_NO_ERROR,
    XM_JINJA_SYNTAX,  /* not a template, or one that uses what is not known here */
    XM_JINJA_RUNTIME, /* it does what cannot be done, such as adding a number to a string */
    XM_JINJA_RAISED,  /* it called raise_exception: the message is its own */
    XM_JINJA_LIMIT,   /* it took too many steps, too much memory or too deep a nesting */
    XM_JINJA_MEMORY
} xm_jinja_failure;

typedef struct {
    xm_jinja_failure failure;
    int line; /* of the template, from 1 */
    char message[384];
} xm_jinja_error;

typedef struct xm_jinja xm_jinja;

/* NULL with an error. The template is immutable: any number of threads may render it. */
xm_jinja *xm_jinja_parse(const char *source, size_t length, xm_jinja_error *error);
void xm_jinja_free(xm_jinja *jinja); /* NULL is fine */

typedef struct {
    const char *name;
    const cJSON *value; /* NULL: none, Python's None */
    bool input;         /* its strings and names of members are marked */
} xm_jinja_variable;

typedef struct {
    xm_text text;  /* what the template wrote */
    xm_text input; /* as many bytes: 1 where text came from input, else 0 */
} xm_jinja_output; /* start with {0}; freed with xm_jinja_output_free */

/* now: what strftime_now tells of. Fills *output, or false with an error. */
bool xm_jinja_render(const xm_jinja *jinja, const xm_jinja_variable *variables, size_t count,
                     time_t now, xm_jinja_output *output, xm_jinja_error *error);
void xm_jinja_output_free(xm_jinja_output *output);

#endif
