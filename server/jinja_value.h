/*
 * jinja_value.h - what templates compute with: Python's values, as far as templates use them.
 *
 * Values are passed by value; lists and dicts are references, as in Python. Strings are UTF-8 and
 * counted in characters where Python counts them (slices, length). Integers are of 64 bits and an
 * overflow is an error. cJSON keeps no difference between 1 and 1.0: a whole number is an integer.
 */
#ifndef XM_SERVER_JINJA_VALUE_H
#define XM_SERVER_JINJA_VALUE_H

#include "jinja_job.h"

typedef enum {
    XM_JINJA_UNDEFINED, /* a name or member that is not there: prints as nothing */
    XM_JINJA_NONE,
    XM_JINJA_BOOLEAN,
    XM_JINJA_INTEGER,
    XM_JINJA_FLOAT,
    XM_JINJA_STRING,
    XM_JINJA_LIST, /* tuples too */
    XM_JINJA_DICT, /* namespaces too */
    XM_JINJA_CALLABLE,
    XM_JINJA_LOOP
} xm_jinja_type;

typedef struct {
    const char *bytes; /* no NUL at the end */
    const char *marks; /* per byte: 1 where it came from input; NULL: none did */
    size_t length;
} xm_jinja_string;

typedef struct xm_jinja_list xm_jinja_list;
typedef struct xm_jinja_dict xm_jinja_dict;
typedef struct xm_jinja_callable xm_jinja_callable;
typedef struct xm_jinja_loop xm_jinja_loop;

typedef struct {
    xm_jinja_type type;
    union {
        bool boolean;
        int64_t integer;
        double number;
        xm_jinja_string string;
        xm_jinja_list *list;
        xm_jinja_dict *dict;
        const xm_jinja_callable *callable;
        xm_jinja_loop *loop;
        const char *name; /* UNDEFINED: what is not there, for messages */
    };
} xm_jinja_value;

struct xm_jinja_list {
    xm_jinja_value *items;
    size_t count, capacity;
    bool tuple;
};

struct xm_jinja_dict {
    xm_jinja_value *keys, *values; /* in order of insertion */
    size_t count, key_capacity, value_capacity;
    bool is_namespace;
};

/* The arguments of a call, a filter or a test (whose operand is not among them). */
typedef struct {
    const xm_jinja_value *items;
    size_t count;
    const char *const *names; /* of the named ones */
    const xm_jinja_value *named;
    size_t named_count;
} xm_jinja_arguments;

typedef struct xm_jinja_run xm_jinja_run;

/* What a template can call. self: the operand of filters and tests, the object of methods. */
typedef xm_jinja_value (*xm_jinja_function)(xm_jinja_run *run, xm_jinja_value self,
                                            const xm_jinja_arguments *arguments);

typedef struct {
    const char *name;
    xm_jinja_function function;
    const char *parameters; /* those it takes, in order, with a blank after each: "a b " */
} xm_jinja_builtin;

struct xm_jinja_callable {
    const xm_jinja_builtin *builtin; /* or: */
    const struct xm_jinja_node *macro;
    xm_jinja_value self;             /* of a builtin that is a method */
    struct xm_jinja_scope *scope;    /* where the macro stands */
    const xm_jinja_callable *caller; /* of a call block's body */
};

static inline xm_jinja_value xm_jinja_none(void)
{
    return (xm_jinja_value){.type = XM_JINJA_NONE};
}

static inline xm_jinja_value xm_jinja_undefined(const char *name)
{
    return (xm_jinja_value){.type = XM_JINJA_UNDEFINED, .name = name};
}

static inline xm_jinja_value xm_jinja_boolean(bool boolean)
{
    return (xm_jinja_value){.type = XM_JINJA_BOOLEAN, .boolean = boolean};
}

static inline xm_jinja_value xm_jinja_integer(int64_t integer)
{
    return (xm_jinja_value){.type = XM_JINJA_INTEGER, .integer = integer};
}

static inline xm_jinja_value xm_jinja_float(double number)
{
    return (xm_jinja_value){.type = XM_JINJA_FLOAT, .number = number};
}

static inline xm_jinja_value xm_jinja_text(xm_jinja_string string)
{
    return (xm_jinja_value){.type = XM_JINJA_STRING, .string = string};
}

xm_jinja_string xm_jinja_literal(const char *text); /* of static storage */
bool xm_jinja_string_is(xm_jinja_string string, const char *text);
int xm_jinja_string_compare(xm_jinja_string a, xm_jinja_string b);

xm_jinja_value xm_jinja_new_list(xm_jinja_job *job, bool tuple);
void xm_jinja_append(xm_jinja_job *job, xm_jinja_value list, xm_jinja_value item);
xm_jinja_value xm_jinja_pair(xm_jinja_job *job, xm_jinja_value first, xm_jinja_value second);

xm_jinja_value xm_jinja_new_dict(xm_jinja_job *job);
/* NULL where it has no such key. */
xm_jinja_value *xm_jinja_find(xm_jinja_job *job, const xm_jinja_dict *dict, xm_jinja_value key);
const xm_jinja_value *xm_jinja_find_name(xm_jinja_job *job, const xm_jinja_dict *dict,
                                         const char *name);
void xm_jinja_insert(xm_jinja_job *job, xm_jinja_dict *dict, xm_jinja_value key,
                     xm_jinja_value value);

/* A copy of the whole tree; input: mark its strings. */
xm_jinja_value xm_jinja_from_json(xm_jinja_job *job, const cJSON *json, bool input);

bool xm_jinja_truth(const xm_jinja_job *job, xm_jinja_value value);
bool xm_jinja_is_number(xm_jinja_value value); /* booleans too, as in Python */
double xm_jinja_number(xm_jinja_value value);  /* of one that is */
bool xm_jinja_equal(xm_jinja_job *job, xm_jinja_value a, xm_jinja_value b);
/* Below 0, 0 or above 0; fails for values without an order. */
int xm_jinja_compare(xm_jinja_job *job, xm_jinja_value a, xm_jinja_value b);
bool xm_jinja_contains(xm_jinja_job *job, xm_jinja_value container, xm_jinja_value item);
/* Items of a list, keys of a dict, characters of a string; fails for what has none. */
xm_jinja_list *xm_jinja_iterate(xm_jinja_job *job, xm_jinja_value value);
/* Python's len. */
size_t xm_jinja_length(xm_jinja_job *job, xm_jinja_value value);
const char *xm_jinja_type_name(xm_jinja_value value); /* Python's */

/* jinja_print.c: str(), repr() and json.dumps of Python. */
xm_jinja_string xm_jinja_to_string(xm_jinja_job *job, xm_jinja_value value);
xm_jinja_string xm_jinja_repr(xm_jinja_job *job, xm_jinja_value value);
typedef struct {
    int indent; /* blanks a level; below 0: all in one line */
    const char *item_separator, *key_separator;
    bool sort_keys, ascii;
} xm_jinja_json_style;
xm_jinja_string xm_jinja_to_json(xm_jinja_job *job, xm_jinja_value value,
                                 const xm_jinja_json_style *style);

#endif
