/*
 * gbnf.h - the text of a grammar read into a tree.
 *
 * The notation is llama.cpp's GBNF as xmoe.h describes it. A rule ends with its line, except after
 * ::= and |, and inside of parentheses. The tree lives in arrays and refers by index; it is needed
 * until the program (program.h) is made.
 */
#ifndef XM_GRAMMAR_GBNF_H
#define XM_GRAMMAR_GBNF_H

#include "base/error.h"
#include "grammar/ranges.h"
#include "grammar/token_tree.h"

enum {
    XM_GBNF_BYTES = 1 << 20,       /* longest text */
    XM_GBNF_DEPTH = 200,           /* of nested parentheses */
    XM_GBNF_REPETITIONS = 100000,  /* largest number in {} */
    XM_GBNF_UNLIMITED = INT32_MAX, /* {m,} */
    XM_GBNF_NONE = -1
};

typedef enum {
    XM_EXPRESSION_STRING,   /* bytes [first, first + count) of the tree's bytes */
    XM_EXPRESSION_CLASS,    /* ranges [first, first + count) */
    XM_EXPRESSION_TOKEN,    /* token `first` */
    XM_EXPRESSION_RULE,     /* rule `first` */
    XM_EXPRESSION_SEQUENCE, /* children from `first` on, linked by next */
    XM_EXPRESSION_CHOICE,   /* one of the children */
    XM_EXPRESSION_REPEAT    /* child `first`, minimum to maximum times */
} xm_expression_kind;

typedef struct {
    xm_expression_kind kind;
    int32_t first, count;
    int32_t minimum, maximum;
    int32_t next; /* sibling, or XM_GBNF_NONE */
} xm_expression;

typedef struct {
    size_t name, name_length; /* where in the text */
    int32_t body;             /* XM_GBNF_NONE: not defined (yet) */
    size_t mentioned;         /* offset of the first mention */
} xm_gbnf_rule;

typedef struct {
    const char *text; /* the caller's */
    size_t length;
    xm_expression *expressions;
    size_t expression_count, expression_capacity;
    xm_code_range *ranges; /* of a class: ascending, apart, no surrogates */
    size_t range_count, range_capacity;
    char *bytes;
    size_t byte_count, byte_capacity;
    xm_gbnf_rule *rules;
    size_t rule_count, rule_capacity;
    int32_t root;
} xm_gbnf;

/* All rules mentioned are defined, and "root" is. The owner calls xm_gbnf_free in either case. */
xmoe_status xm_gbnf_read(const char *text, size_t length, const xm_token_tree *tokens,
                         xm_gbnf *tree, xmoe_error *error);
void xm_gbnf_free(xm_gbnf *tree);

/* XMOE_ERROR_ARGUMENT for "grammar" with line and column of the offset, and the formatted reason.
 */
xmoe_status xm_gbnf_fail(const xm_gbnf *tree, size_t offset, xmoe_error *error, const char *format,
                         ...) __attribute__((format(printf, 4, 5)));

#endif
