/*
 * jinja_expression.c - tokens to a tree: expressions, from the weakest binding to the strongest:
 * x if y else z; or; and; not; comparisons; + -; ~; * / // %; **; signs; filters and tests;
 * .name [item] (call).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "jinja_syntax.h"

#define OPERATOR XM_JINJA_TOKEN_OPERATOR
#define WORD     XM_JINJA_TOKEN_NAME

static xm_jinja_node *parse_unary(xm_jinja_parser *parser, bool with_filters);
static xm_jinja_node *parse_primary(xm_jinja_parser *parser);
static xm_jinja_node *parse_postfix(xm_jinja_parser *parser, xm_jinja_node *node);

static xm_jinja_node *new_pair(xm_jinja_parser *parser, xm_jinja_node_kind kind, xm_jinja_node *a,
                               xm_jinja_node *b)
{
    xm_jinja_node *node = xm_jinja_new_node(parser, kind);
    node->a = a;
    node->b = b;
    return node;
}

static xm_jinja_node *constant(xm_jinja_parser *parser, xm_jinja_value value)
{
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_CONSTANT);
    node->value = value;
    return node;
}

/* A level of operators that all associate to the left. */
typedef struct {
    const char *token;
    xm_jinja_operator operation;
} binary;

static const binary powers[] = {{"**", XM_JINJA_POWER}, {NULL, 0}};
static const binary products[] = {{"*", XM_JINJA_MULTIPLY},
                                  {"/", XM_JINJA_DIVIDE},
                                  {"//", XM_JINJA_FLOOR_DIVIDE},
                                  {"%", XM_JINJA_MODULO},
                                  {NULL, 0}};
static const binary joins[] = {{"~", XM_JINJA_CONCATENATE}, {NULL, 0}};
static const binary sums[] = {{"+", XM_JINJA_ADD}, {"-", XM_JINJA_SUBTRACT}, {NULL, 0}};
enum { LEVELS = 4 };
static const binary *const levels[LEVELS] = {sums, joins, products, powers};

static xm_jinja_node *parse_binary(xm_jinja_parser *parser, size_t level)
{
    if (level == LEVELS)
        return parse_unary(parser, true);
    xm_jinja_node *left = parse_binary(parser, level + 1);
    const binary *found = levels[level];
    int links = 0;
    while (found->token) {
        if (!xm_jinja_accept(parser, OPERATOR, found->token)) {
            found++;
            continue;
        }
        if (++links > XM_JINJA_DEPTH_LIMIT) /* each makes the tree deeper */
            xm_jinja_fail(parser->job, XM_JINJA_LIMIT, "more than %d operators in a row",
                          XM_JINJA_DEPTH_LIMIT);
        xm_jinja_node *right = parse_binary(parser, level + 1);
        left = new_pair(parser, XM_JINJA_NODE_BINARY, left, right);
        left->operation = found->operation;
        found = levels[level];
    }
    return left;
}

static bool accept_comparison(xm_jinja_parser *parser, xm_jinja_operator *operation)
{
    static const binary comparisons[] = {{"==", XM_JINJA_EQUAL},  {"!=", XM_JINJA_UNEQUAL},
                                         {"<", XM_JINJA_LESS},    {"<=", XM_JINJA_LESS_EQUAL},
                                         {">", XM_JINJA_GREATER}, {">=", XM_JINJA_GREATER_EQUAL}};
    for (size_t i = 0; i < sizeof comparisons / sizeof *comparisons; i++)
        if (xm_jinja_accept(parser, OPERATOR, comparisons[i].token)) {
            *operation = comparisons[i].operation;
            return true;
        }
    *operation = XM_JINJA_IN;
    if (xm_jinja_accept(parser, WORD, "in"))
        return true;
    *operation = XM_JINJA_NOT_IN;
    if (!xm_jinja_is(parser, WORD, "not") || parser->at[1].kind != WORD ||
        !xm_jinja_string_is(parser->at[1].text, "in"))
        return false;
    parser->at += 2;
    return true;
}

static xm_jinja_node *parse_comparison(xm_jinja_parser *parser)
{
    xm_jinja_node *left = parse_binary(parser, 0);
    xm_jinja_node *node = NULL;
    xm_jinja_operator operation;
    while (accept_comparison(parser, &operation)) {
        if (!node)
            node = new_pair(parser, XM_JINJA_NODE_COMPARE, left, NULL);
        node->operators = xm_jinja_grow(parser->job, node->operators, node->first.count,
                                        &node->operator_capacity, sizeof *node->operators);
        node->operators[node->first.count] = operation;
        xm_jinja_add_node(parser, &node->first, parse_binary(parser, 0));
    }
    return node ? node : left;
}

static xm_jinja_node *parse_not(xm_jinja_parser *parser)
{
    if (!xm_jinja_accept(parser, WORD, "not"))
        return parse_comparison(parser);
    xm_jinja_descend(parser->job);
    xm_jinja_node *node = new_pair(parser, XM_JINJA_NODE_NOT, parse_not(parser), NULL);
    xm_jinja_rise(parser->job);
    return node;
}

/* Long chains lean to the right, so that running them needs no more depth than parsing. */
static xm_jinja_node *parse_and(xm_jinja_parser *parser)
{
    xm_jinja_node *left = parse_not(parser);
    if (!xm_jinja_accept(parser, WORD, "and"))
        return left;
    xm_jinja_descend(parser->job);
    xm_jinja_node *node = new_pair(parser, XM_JINJA_NODE_AND, left, parse_and(parser));
    xm_jinja_rise(parser->job);
    return node;
}

xm_jinja_node *xm_jinja_parse_plain_expression(xm_jinja_parser *parser)
{
    xm_jinja_descend(parser->job);
    xm_jinja_node *node = parse_and(parser);
    if (xm_jinja_accept(parser, WORD, "or"))
        node = new_pair(parser, XM_JINJA_NODE_OR, node, xm_jinja_parse_plain_expression(parser));
    xm_jinja_rise(parser->job);
    return node;
}

xm_jinja_node *xm_jinja_parse_expression(xm_jinja_parser *parser)
{
    parser->job->line = parser->at->line;
    xm_jinja_node *node = xm_jinja_parse_plain_expression(parser);
    if (!xm_jinja_accept(parser, WORD, "if"))
        return node;
    xm_jinja_descend(parser->job);
    xm_jinja_node *condition = xm_jinja_parse_plain_expression(parser);
    node = new_pair(parser, XM_JINJA_NODE_CONDITIONAL, condition, node);
    if (xm_jinja_accept(parser, WORD, "else"))
        node->c = xm_jinja_parse_expression(parser);
    xm_jinja_rise(parser->job);
    return node;
}

static bool ends_tuple(const xm_jinja_parser *parser)
{
    return parser->at->kind == XM_JINJA_TOKEN_PRINT_END ||
           parser->at->kind == XM_JINJA_TOKEN_BLOCK_END || xm_jinja_is(parser, OPERATOR, ")") ||
           xm_jinja_is(parser, OPERATOR, "=");
}

xm_jinja_node *xm_jinja_parse_tuple(xm_jinja_parser *parser)
{
    xm_jinja_node *node = xm_jinja_parse_expression(parser);
    if (!xm_jinja_is(parser, OPERATOR, ","))
        return node;
    xm_jinja_node *tuple = xm_jinja_new_node(parser, XM_JINJA_NODE_TUPLE);
    xm_jinja_add_node(parser, &tuple->first, node);
    while (xm_jinja_accept(parser, OPERATOR, ",") && !ends_tuple(parser))
        xm_jinja_add_node(parser, &tuple->first, xm_jinja_parse_expression(parser));
    return tuple;
}

static xm_jinja_node *parse_one_target(xm_jinja_parser *parser, bool attributes)
{
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None", "not",
                                           "and",  "or",    "if",   "else", "in",    "is"};
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++)
        if (xm_jinja_is(parser, WORD, reserved[i]))
            xm_jinja_unexpected(parser, "a name to assign to");
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_NAME);
    node->name = xm_jinja_expect_name(parser, "a name to assign to");
    if (!attributes || !xm_jinja_accept(parser, OPERATOR, "."))
        return node;
    node = new_pair(parser, XM_JINJA_NODE_ATTRIBUTE, node, NULL);
    node->name = xm_jinja_expect_name(parser, "a name to assign to");
    return node;
}

xm_jinja_node *xm_jinja_parse_target(xm_jinja_parser *parser, bool attributes)
{
    bool bracket = xm_jinja_accept(parser, OPERATOR, "(");
    xm_jinja_node *node = parse_one_target(parser, attributes);
    if (xm_jinja_is(parser, OPERATOR, ",")) {
        xm_jinja_node *tuple = xm_jinja_new_node(parser, XM_JINJA_NODE_TUPLE);
        xm_jinja_add_node(parser, &tuple->first, node);
        while (xm_jinja_accept(parser, OPERATOR, ",") && !ends_tuple(parser))
            xm_jinja_add_node(parser, &tuple->first, parse_one_target(parser, attributes));
        node = tuple;
    }
    if (bracket)
        xm_jinja_expect(parser, OPERATOR, ")");
    return node;
}

/* (a, b, name=c): the opening bracket has been passed. */
static void parse_arguments(xm_jinja_parser *parser, xm_jinja_node *node)
{
    bool comma = true;
    while (!xm_jinja_accept(parser, OPERATOR, ")")) {
        if (!comma)
            xm_jinja_unexpected(parser, "','");
        bool named = parser->at->kind == WORD && parser->at[1].kind == OPERATOR &&
                     xm_jinja_string_is(parser->at[1].text, "=");
        if (named) {
            xm_jinja_add_name(parser, node, xm_jinja_expect_name(parser, "an argument"));
            parser->at++;
            xm_jinja_add_node(parser, &node->second, xm_jinja_parse_expression(parser));
        } else if (node->second.count) {
            xm_jinja_unexpected(parser, "a named argument");
        } else {
            xm_jinja_add_node(parser, &node->first, xm_jinja_parse_expression(parser));
        }
        comma = xm_jinja_accept(parser, OPERATOR, ",");
    }
}

static void find_builtin(xm_jinja_parser *parser, xm_jinja_node *node, const char *what,
                         const xm_jinja_builtin *(*find)(xm_jinja_string))
{
    node->name = xm_jinja_expect_name(parser, what);
    node->builtin = find(xm_jinja_literal(node->name));
    if (!node->builtin) {
        parser->job->line = node->line;
        xm_jinja_fail(parser->job, XM_JINJA_SYNTAX, "%s '%.60s' is not known here", what,
                      node->name);
    }
}

static xm_jinja_node *parse_filter(xm_jinja_parser *parser, xm_jinja_node *operand)
{
    xm_jinja_node *node = new_pair(parser, XM_JINJA_NODE_FILTER, operand, NULL);
    find_builtin(parser, node, "the filter", xm_jinja_find_filter);
    if (xm_jinja_accept(parser, OPERATOR, "("))
        parse_arguments(parser, node);
    return node;
}

/* A test's one argument may stand without brackets. */
static bool begins_argument(const xm_jinja_parser *parser)
{
    switch (parser->at->kind) {
    case XM_JINJA_TOKEN_NAME:
        return !xm_jinja_is(parser, WORD, "else") && !xm_jinja_is(parser, WORD, "or") &&
               !xm_jinja_is(parser, WORD, "and") && !xm_jinja_is(parser, WORD, "if") &&
               !xm_jinja_is(parser, WORD, "not") && !xm_jinja_is(parser, WORD, "in");
    case XM_JINJA_TOKEN_STRING:
    case XM_JINJA_TOKEN_INTEGER:
    case XM_JINJA_TOKEN_FLOAT:
        return true;
    default:
        return xm_jinja_is(parser, OPERATOR, "[") || xm_jinja_is(parser, OPERATOR, "{");
    }
}

static xm_jinja_node *parse_test(xm_jinja_parser *parser, xm_jinja_node *operand)
{
    bool negated = xm_jinja_accept(parser, WORD, "not");
    xm_jinja_node *node = new_pair(parser, XM_JINJA_NODE_TEST, operand, NULL);
    find_builtin(parser, node, "the test", xm_jinja_find_test);
    if (xm_jinja_accept(parser, OPERATOR, "("))
        parse_arguments(parser, node);
    else if (begins_argument(parser)) {
        if (xm_jinja_is(parser, WORD, "is"))
            xm_jinja_unexpected(parser, "the test's argument");
        xm_jinja_add_node(parser, &node->first, parse_postfix(parser, parse_primary(parser)));
    }
    return negated ? new_pair(parser, XM_JINJA_NODE_NOT, node, NULL) : node;
}

static void check_links(xm_jinja_parser *parser, int links)
{
    if (links > XM_JINJA_DEPTH_LIMIT)
        xm_jinja_fail(parser->job, XM_JINJA_LIMIT,
                      "more than %d members, calls or filters in a row", XM_JINJA_DEPTH_LIMIT);
}

xm_jinja_node *xm_jinja_parse_filters(xm_jinja_parser *parser, xm_jinja_node *operand)
{
    for (int links = 0; xm_jinja_accept(parser, OPERATOR, "|"); check_links(parser, ++links))
        operand = parse_filter(parser, operand);
    return operand;
}

static xm_jinja_node *parse_filters_and_tests(xm_jinja_parser *parser, xm_jinja_node *node)
{
    for (int links = 0;; check_links(parser, ++links)) {
        if (xm_jinja_accept(parser, OPERATOR, "|"))
            node = parse_filter(parser, node);
        else if (xm_jinja_accept(parser, WORD, "is"))
            node = parse_test(parser, node);
        else if (xm_jinja_is(parser, OPERATOR, "("))
            node = parse_postfix(parser, node);
        else
            return node;
    }
}

static xm_jinja_node *parse_unary(xm_jinja_parser *parser, bool with_filters)
{
    bool minus = xm_jinja_accept(parser, OPERATOR, "-");
    xm_jinja_node *node = NULL;
    xm_jinja_descend(parser->job);
    if (minus || xm_jinja_accept(parser, OPERATOR, "+"))
        node = new_pair(parser, minus ? XM_JINJA_NODE_NEGATIVE : XM_JINJA_NODE_POSITIVE,
                        parse_unary(parser, false), NULL);
    else
        node = parse_primary(parser);
    node = parse_postfix(parser, node);
    if (with_filters)
        node = parse_filters_and_tests(parser, node);
    xm_jinja_rise(parser->job);
    return node;
}

static xm_jinja_node *parse_list(xm_jinja_parser *parser)
{
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_LIST);
    while (!xm_jinja_accept(parser, OPERATOR, "]")) {
        if (node->first.count) {
            xm_jinja_expect(parser, OPERATOR, ",");
            if (xm_jinja_accept(parser, OPERATOR, "]"))
                break;
        }
        xm_jinja_add_node(parser, &node->first, xm_jinja_parse_expression(parser));
    }
    return node;
}

static xm_jinja_node *parse_dict(xm_jinja_parser *parser)
{
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_DICT);
    while (!xm_jinja_accept(parser, OPERATOR, "}")) {
        if (node->first.count) {
            xm_jinja_expect(parser, OPERATOR, ",");
            if (xm_jinja_accept(parser, OPERATOR, "}"))
                break;
        }
        xm_jinja_add_node(parser, &node->first, xm_jinja_parse_expression(parser));
        xm_jinja_expect(parser, OPERATOR, ":");
        xm_jinja_add_node(parser, &node->second, xm_jinja_parse_expression(parser));
    }
    return node;
}

static xm_jinja_node *parse_bracket(xm_jinja_parser *parser)
{
    if (xm_jinja_accept(parser, OPERATOR, ")"))
        return xm_jinja_new_node(parser, XM_JINJA_NODE_TUPLE);
    xm_jinja_node *node = xm_jinja_parse_tuple(parser);
    xm_jinja_expect(parser, OPERATOR, ")");
    return node;
}

static xm_jinja_node *parse_number(xm_jinja_parser *parser)
{
    char text[64];
    const xm_jinja_token *token = parser->at++;
    size_t length = token->text.length < sizeof text ? token->text.length : sizeof text - 1;
    memcpy(text, token->text.bytes, length);
    text[length] = '\0';
    errno = 0;
    xm_jinja_value value = token->kind == XM_JINJA_TOKEN_FLOAT
                               ? xm_jinja_float(strtod(text, NULL))
                               : xm_jinja_integer(strtoll(text, NULL, 10));
    if (errno || length < token->text.length)
        xm_jinja_fail(parser->job, XM_JINJA_SYNTAX, "the number %s is out of range", text);
    return constant(parser, value);
}

static xm_jinja_node *parse_word(xm_jinja_parser *parser)
{
    if (xm_jinja_accept(parser, WORD, "true") || xm_jinja_accept(parser, WORD, "True"))
        return constant(parser, xm_jinja_boolean(true));
    if (xm_jinja_accept(parser, WORD, "false") || xm_jinja_accept(parser, WORD, "False"))
        return constant(parser, xm_jinja_boolean(false));
    if (xm_jinja_accept(parser, WORD, "none") || xm_jinja_accept(parser, WORD, "None"))
        return constant(parser, xm_jinja_none());
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_NAME);
    node->name = xm_jinja_expect_name(parser, "an expression");
    return node;
}

static xm_jinja_node *parse_primary(xm_jinja_parser *parser)
{
    if (parser->at->kind == WORD)
        return parse_word(parser);
    if (parser->at->kind == XM_JINJA_TOKEN_STRING) {
        xm_jinja_node *node = constant(parser, xm_jinja_text(parser->at->text));
        for (parser->at++; parser->at->kind == XM_JINJA_TOKEN_STRING; parser->at++) {
            xm_jinja_string *text = &node->value.string; /* strings side by side are one */
            char *joined = xm_jinja_allocate(parser->job, text->length + parser->at->text.length);
            memcpy(joined, text->bytes, text->length);
            memcpy(joined + text->length, parser->at->text.bytes, parser->at->text.length);
            *text = (xm_jinja_string){joined, NULL, text->length + parser->at->text.length};
        }
        return node;
    }
    if (parser->at->kind == XM_JINJA_TOKEN_INTEGER || parser->at->kind == XM_JINJA_TOKEN_FLOAT)
        return parse_number(parser);
    if (xm_jinja_accept(parser, OPERATOR, "("))
        return parse_bracket(parser);
    if (xm_jinja_accept(parser, OPERATOR, "["))
        return parse_list(parser);
    if (xm_jinja_accept(parser, OPERATOR, "{"))
        return parse_dict(parser);
    xm_jinja_unexpected(parser, "an expression");
}

/* [item] or [from:to:step]; the opening bracket has been passed. */
static xm_jinja_node *parse_subscript(xm_jinja_parser *parser, xm_jinja_node *operand)
{
    xm_jinja_node *node = new_pair(parser, XM_JINJA_NODE_ITEM, operand, NULL);
    xm_jinja_node *bounds[3] = {0};
    int count = 0;
    bool slice = false;
    while (!xm_jinja_accept(parser, OPERATOR, "]")) {
        if (xm_jinja_accept(parser, OPERATOR, ":")) {
            slice = true;
            if (++count > 2)
                xm_jinja_unexpected(parser, "']'");
        } else if (bounds[count]) {
            xm_jinja_unexpected(parser, "']'");
        } else {
            bounds[count] = xm_jinja_parse_expression(parser);
        }
    }
    if (slice) {
        node->kind = XM_JINJA_NODE_SLICE;
        for (int i = 0; i < 3; i++)
            xm_jinja_add_node(parser, &node->first, bounds[i]);
    } else if (!bounds[0]) {
        parser->at--;
        xm_jinja_unexpected(parser, "an expression");
    }
    node->b = bounds[0];
    return node;
}

static xm_jinja_node *parse_postfix(xm_jinja_parser *parser, xm_jinja_node *node)
{
    for (int links = 0;; check_links(parser, ++links)) {
        if (xm_jinja_accept(parser, OPERATOR, ".")) {
            if (parser->at->kind == XM_JINJA_TOKEN_INTEGER) {
                xm_jinja_node *item = parse_number(parser);
                node = new_pair(parser, XM_JINJA_NODE_ITEM, node, item);
                continue;
            }
            node = new_pair(parser, XM_JINJA_NODE_ATTRIBUTE, node, NULL);
            node->name = xm_jinja_expect_name(parser, "the name of a member");
        } else if (xm_jinja_accept(parser, OPERATOR, "[")) {
            node = parse_subscript(parser, node);
        } else if (xm_jinja_accept(parser, OPERATOR, "(")) {
            node = new_pair(parser, XM_JINJA_NODE_CALL, node, NULL);
            parse_arguments(parser, node);
        } else {
            return node;
        }
    }
}
