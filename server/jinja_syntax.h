/*
 * jinja_syntax.h - a template as tokens, and as the tree that is run.
 */
#ifndef XM_SERVER_JINJA_SYNTAX_H
#define XM_SERVER_JINJA_SYNTAX_H

#include "jinja_value.h"

/* --- tokens ------------------------------------------------------------------------------------
 */

typedef enum {
    XM_JINJA_TOKEN_TEXT,
    XM_JINJA_TOKEN_PRINT, /* {{ */
    XM_JINJA_TOKEN_PRINT_END,
    XM_JINJA_TOKEN_BLOCK, /* {% */
    XM_JINJA_TOKEN_BLOCK_END,
    XM_JINJA_TOKEN_NAME,
    XM_JINJA_TOKEN_STRING, /* text: what it means, without quotes and escapes */
    XM_JINJA_TOKEN_INTEGER,
    XM_JINJA_TOKEN_FLOAT,
    XM_JINJA_TOKEN_OPERATOR,
    XM_JINJA_TOKEN_END
} xm_jinja_token_kind;

typedef struct {
    xm_jinja_token_kind kind;
    int line;
    xm_jinja_string text;
} xm_jinja_token;

/* All tokens, the last of kind END. */
const xm_jinja_token *xm_jinja_lex(xm_jinja_job *job, const char *source, size_t length);

/* --- tree --------------------------------------------------------------------------------------
 */

typedef enum {
    /* statements */
    XM_JINJA_NODE_TEXT,         /* value */
    XM_JINJA_NODE_PRINT,        /* a */
    XM_JINJA_NODE_IF,           /* a: condition; first: body; second: else */
    XM_JINJA_NODE_FOR,          /* a: target; b: iterable; c: filter or NULL; first: body; second:
                                   else */
    XM_JINJA_NODE_SET,          /* a: target; b: value */
    XM_JINJA_NODE_SET_BLOCK,    /* a: target; b: filters over NULL, or NULL; first: body */
    XM_JINJA_NODE_MACRO,        /* name; names: parameters; second: defaults of the last of them;
                                   first: body */
    XM_JINJA_NODE_CALL_BLOCK,   /* a: the call; b: a MACRO without name: the body */
    XM_JINJA_NODE_FILTER_BLOCK, /* b: filters over NULL; first: body */
    XM_JINJA_NODE_BODY,         /* first */
    XM_JINJA_NODE_BREAK,
    XM_JINJA_NODE_CONTINUE,
    /* expressions */
    XM_JINJA_NODE_CONSTANT,    /* value */
    XM_JINJA_NODE_NAME,        /* name */
    XM_JINJA_NODE_LIST,        /* first */
    XM_JINJA_NODE_TUPLE,       /* first */
    XM_JINJA_NODE_DICT,        /* first: keys; second: values */
    XM_JINJA_NODE_ATTRIBUTE,   /* a.name */
    XM_JINJA_NODE_ITEM,        /* a[b] */
    XM_JINJA_NODE_SLICE,       /* a[first[0]:first[1]:first[2]], each of which may be NULL */
    XM_JINJA_NODE_CALL,        /* a(first, names=second) */
    XM_JINJA_NODE_FILTER,      /* a | name(first, names=second); a NULL: what a block made */
    XM_JINJA_NODE_TEST,        /* a is name(first, names=second) */
    XM_JINJA_NODE_NEGATIVE,    /* -a */
    XM_JINJA_NODE_POSITIVE,    /* +a */
    XM_JINJA_NODE_NOT,         /* not a */
    XM_JINJA_NODE_AND,         /* a and b */
    XM_JINJA_NODE_OR,          /* a or b */
    XM_JINJA_NODE_BINARY,      /* a operator b */
    XM_JINJA_NODE_COMPARE,     /* a operators[0] first[0] operators[1] first[1]... */
    XM_JINJA_NODE_CONDITIONAL, /* b if a else c; c may be NULL */
} xm_jinja_node_kind;

typedef enum {
    XM_JINJA_ADD,
    XM_JINJA_SUBTRACT,
    XM_JINJA_MULTIPLY,
    XM_JINJA_DIVIDE,
    XM_JINJA_FLOOR_DIVIDE,
    XM_JINJA_MODULO,
    XM_JINJA_POWER,
    XM_JINJA_CONCATENATE,
    XM_JINJA_EQUAL,
    XM_JINJA_UNEQUAL,
    XM_JINJA_LESS,
    XM_JINJA_LESS_EQUAL,
    XM_JINJA_GREATER,
    XM_JINJA_GREATER_EQUAL,
    XM_JINJA_IN,
    XM_JINJA_NOT_IN
} xm_jinja_operator;

typedef struct xm_jinja_node xm_jinja_node;

typedef struct {
    xm_jinja_node **items;
    size_t count, capacity;
} xm_jinja_nodes;

struct xm_jinja_node {
    xm_jinja_node_kind kind;
    int line;
    xm_jinja_operator operation;
    const char *name;
    const xm_jinja_builtin *builtin; /* FILTER, TEST: what is called */
    xm_jinja_value value;
    xm_jinja_node *a, *b, *c;
    xm_jinja_nodes first, second;
    const char **names;
    size_t name_count, name_capacity;
    xm_jinja_operator *operators; /* as many as first has */
    size_t operator_capacity;
};

/* The whole template as a BODY. */
xm_jinja_node *xm_jinja_parse_tokens(xm_jinja_job *job, const xm_jinja_token *tokens);

/* --- between jinja_parse.c and jinja_expression.c ------------------------------------------------
 */

typedef struct {
    xm_jinja_job *job;
    const xm_jinja_token *at;
    int loops; /* for statements around the present place, within its macro */
} xm_jinja_parser;

xm_jinja_node *xm_jinja_new_node(xm_jinja_parser *parser, xm_jinja_node_kind kind);
void xm_jinja_add_node(xm_jinja_parser *parser, xm_jinja_nodes *nodes, xm_jinja_node *node);
void xm_jinja_add_name(xm_jinja_parser *parser, xm_jinja_node *node, const char *name);
/* Whether the present token is this; accept also goes past it, expect fails where it is not. */
bool xm_jinja_is(const xm_jinja_parser *parser, xm_jinja_token_kind kind, const char *text);
bool xm_jinja_accept(xm_jinja_parser *parser, xm_jinja_token_kind kind, const char *text);
void xm_jinja_expect(xm_jinja_parser *parser, xm_jinja_token_kind kind, const char *text);
const char *xm_jinja_expect_name(xm_jinja_parser *parser, const char *what);
__attribute__((noreturn)) void xm_jinja_unexpected(xm_jinja_parser *parser, const char *wanted);

xm_jinja_node *xm_jinja_parse_expression(xm_jinja_parser *parser);
/* Without the "x if y" form, as a for statement needs it. */
xm_jinja_node *xm_jinja_parse_plain_expression(xm_jinja_parser *parser);
/* One expression, or several with commas between, which are a tuple. */
xm_jinja_node *xm_jinja_parse_tuple(xm_jinja_parser *parser);
/* A name, ns.name or names with commas: what set and for assign to. */
xm_jinja_node *xm_jinja_parse_target(xm_jinja_parser *parser, bool attributes);
/* | filter | filter over a node, which may be NULL. */
xm_jinja_node *xm_jinja_parse_filters(xm_jinja_parser *parser, xm_jinja_node *operand);

/* NULL where there is none. */
const xm_jinja_builtin *xm_jinja_find_filter(xm_jinja_string name);
const xm_jinja_builtin *xm_jinja_find_test(xm_jinja_string name);

#endif
