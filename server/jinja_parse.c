/*
 * jinja_parse.c - tokens to a tree: statements.
 */
#include <stdio.h>
#include <string.h>

#include "jinja_syntax.h"

xm_jinja_node *xm_jinja_new_node(xm_jinja_parser *parser, xm_jinja_node_kind kind)
{
    xm_jinja_node *node = xm_jinja_allocate(parser->job, sizeof *node);
    node->kind = kind;
    node->line = parser->at->line;
    return node;
}

void xm_jinja_add_node(xm_jinja_parser *parser, xm_jinja_nodes *nodes, xm_jinja_node *node)
{
    nodes->items = xm_jinja_grow(parser->job, nodes->items, nodes->count, &nodes->capacity,
                                 sizeof(xm_jinja_node *));
    nodes->items[nodes->count++] = node;
}

void xm_jinja_add_name(xm_jinja_parser *parser, xm_jinja_node *node, const char *name)
{
    for (size_t i = 0; i < node->name_count; i++)
        if (strcmp(node->names[i], name) == 0)
            xm_jinja_fail(parser->job, XM_JINJA_SYNTAX, "'%s' is named twice", name);
    node->names = xm_jinja_grow(parser->job, node->names, node->name_count, &node->name_capacity,
                                sizeof *node->names);
    node->names[node->name_count++] = name;
}

void xm_jinja_unexpected(xm_jinja_parser *parser, const char *wanted)
{
    const xm_jinja_token *token = parser->at;
    int length = token->text.length > 40 ? 40 : (int)token->text.length;
    parser->job->line = token->line;
    xm_jinja_fail(parser->job, XM_JINJA_SYNTAX, "unexpected '%.*s' where %s should stand", length,
                  token->text.bytes, wanted);
}

bool xm_jinja_is(const xm_jinja_parser *parser, xm_jinja_token_kind kind, const char *text)
{
    return parser->at->kind == kind && (!text || xm_jinja_string_is(parser->at->text, text));
}

bool xm_jinja_accept(xm_jinja_parser *parser, xm_jinja_token_kind kind, const char *text)
{
    if (!xm_jinja_is(parser, kind, text))
        return false;
    parser->at++;
    return true;
}

void xm_jinja_expect(xm_jinja_parser *parser, xm_jinja_token_kind kind, const char *text)
{
    char wanted[32];
    snprintf(wanted, sizeof wanted, "'%s'", text);
    if (!xm_jinja_accept(parser, kind, text))
        xm_jinja_unexpected(parser, wanted);
}

const char *xm_jinja_expect_name(xm_jinja_parser *parser, const char *what)
{
    if (!xm_jinja_is(parser, XM_JINJA_TOKEN_NAME, NULL))
        xm_jinja_unexpected(parser, what);
    xm_jinja_string text = parser->at->text;
    char *name = xm_jinja_allocate(parser->job, text.length + 1);
    memcpy(name, text.bytes, text.length);
    parser->at++;
    return name;
}

static void expect_block_end(xm_jinja_parser *parser)
{
    xm_jinja_expect(parser, XM_JINJA_TOKEN_BLOCK_END, "%}");
}

static bool accept_word(xm_jinja_parser *parser, const char *word)
{
    return xm_jinja_accept(parser, XM_JINJA_TOKEN_NAME, word);
}

static void parse_until(xm_jinja_parser *parser, xm_jinja_nodes *body, const char *const *ends);

/* The body of a block to its end tag, which is passed. */
static void parse_body(xm_jinja_parser *parser, xm_jinja_nodes *body, const char *end)
{
    const char *const ends[] = {end, NULL};
    expect_block_end(parser);
    parse_until(parser, body, ends);
    parser->at += 2;
    expect_block_end(parser);
}

static xm_jinja_node *parse_if(xm_jinja_parser *parser)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_IF);
    node->a = xm_jinja_parse_tuple(parser);
    expect_block_end(parser);
    parse_until(parser, &node->first, ends);
    parser->at++;
    if (accept_word(parser, "elif")) {
        xm_jinja_descend(parser->job);
        xm_jinja_add_node(parser, &node->second, parse_if(parser));
        xm_jinja_rise(parser->job);
        return node;
    }
    if (accept_word(parser, "else"))
        parse_body(parser, &node->second, "endif");
    else {
        parser->at++;
        expect_block_end(parser);
    }
    return node;
}

static xm_jinja_node *parse_for(xm_jinja_parser *parser)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_FOR);
    node->a = xm_jinja_parse_target(parser, false);
    xm_jinja_expect(parser, XM_JINJA_TOKEN_NAME, "in");
    node->b = xm_jinja_parse_plain_expression(parser);
    if (accept_word(parser, "if"))
        node->c = xm_jinja_parse_expression(parser);
    expect_block_end(parser);
    parser->loops++;
    parse_until(parser, &node->first, ends);
    parser->loops--;
    parser->at++;
    if (accept_word(parser, "else"))
        parse_body(parser, &node->second, "endfor");
    else {
        parser->at++;
        expect_block_end(parser);
    }
    return node;
}

static xm_jinja_node *parse_set(xm_jinja_parser *parser)
{
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_SET);
    node->a = xm_jinja_parse_target(parser, true);
    if (xm_jinja_accept(parser, XM_JINJA_TOKEN_OPERATOR, "=")) {
        node->b = xm_jinja_parse_tuple(parser);
        expect_block_end(parser);
        return node;
    }
    node->kind = XM_JINJA_NODE_SET_BLOCK;
    node->b = xm_jinja_parse_filters(parser, NULL);
    parse_body(parser, &node->first, "endset");
    return node;
}

static void parse_parameters(xm_jinja_parser *parser, xm_jinja_node *node)
{
    xm_jinja_expect(parser, XM_JINJA_TOKEN_OPERATOR, "(");
    while (!xm_jinja_accept(parser, XM_JINJA_TOKEN_OPERATOR, ")")) {
        if (node->name_count)
            xm_jinja_expect(parser, XM_JINJA_TOKEN_OPERATOR, ",");
        xm_jinja_add_name(parser, node, xm_jinja_expect_name(parser, "a parameter"));
        if (xm_jinja_accept(parser, XM_JINJA_TOKEN_OPERATOR, "="))
            xm_jinja_add_node(parser, &node->second, xm_jinja_parse_expression(parser));
        else if (node->second.count)
            xm_jinja_fail(parser->job, XM_JINJA_SYNTAX,
                          "a parameter without default follows one with");
    }
}

static xm_jinja_node *parse_macro(xm_jinja_parser *parser)
{
    int loops = parser->loops;
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_MACRO);
    node->name = xm_jinja_expect_name(parser, "the macro's name");
    parse_parameters(parser, node);
    parser->loops = 0;
    parse_body(parser, &node->first, "endmacro");
    parser->loops = loops;
    return node;
}

static xm_jinja_node *parse_call_block(xm_jinja_parser *parser)
{
    int loops = parser->loops;
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_CALL_BLOCK);
    node->b = xm_jinja_new_node(parser, XM_JINJA_NODE_MACRO);
    node->b->name = "caller";
    if (xm_jinja_is(parser, XM_JINJA_TOKEN_OPERATOR, "("))
        parse_parameters(parser, node->b);
    node->a = xm_jinja_parse_expression(parser);
    if (node->a->kind != XM_JINJA_NODE_CALL)
        xm_jinja_unexpected(parser, "a call");
    parser->loops = 0;
    parse_body(parser, &node->b->first, "endcall");
    parser->loops = loops;
    return node;
}

static xm_jinja_node *parse_filter_block(xm_jinja_parser *parser)
{
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_FILTER_BLOCK);
    /* The first filter has no bar before it: one is put there, over what was the word "filter". */
    static const xm_jinja_token bar = {XM_JINJA_TOKEN_OPERATOR, 0, {"|", NULL, 1}};
    size_t count = 0;
    while (parser->at[count].kind != XM_JINJA_TOKEN_BLOCK_END &&
           parser->at[count].kind != XM_JINJA_TOKEN_END)
        count++;
    xm_jinja_token *tokens = xm_jinja_allocate_items(parser->job, count + 2, sizeof *tokens);
    tokens[0] = bar;
    memcpy(tokens + 1, parser->at, (count + 1) * sizeof *tokens);
    xm_jinja_parser inner = {parser->job, tokens, parser->loops};
    node->b = xm_jinja_parse_filters(&inner, NULL);
    if (inner.at != tokens + count + 1)
        xm_jinja_unexpected(&inner, "the end of the tag");
    parser->at += count;
    parse_body(parser, &node->first, "endfilter");
    return node;
}

/* {% generation %} marks what the model said, for training: here it is its content. */
static xm_jinja_node *parse_generation(xm_jinja_parser *parser)
{
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_BODY);
    parse_body(parser, &node->first, "endgeneration");
    return node;
}

static xm_jinja_node *parse_break(xm_jinja_parser *parser)
{
    bool breaks = xm_jinja_string_is(parser->at[-1].text, "break");
    if (!parser->loops)
        xm_jinja_fail(parser->job, XM_JINJA_SYNTAX, "'%s' stands outside of a loop",
                      breaks ? "break" : "continue");
    xm_jinja_node *node =
        xm_jinja_new_node(parser, breaks ? XM_JINJA_NODE_BREAK : XM_JINJA_NODE_CONTINUE);
    expect_block_end(parser);
    return node;
}

static const struct {
    const char *word;
    xm_jinja_node *(*parse)(xm_jinja_parser *parser);
} statements[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call_block},
    {"filter", parse_filter_block},
    {"generation", parse_generation},
    {"break", parse_break},
    {"continue", parse_break},
};

static xm_jinja_node *parse_statement(xm_jinja_parser *parser)
{
    parser->job->line = parser->at->line;
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (accept_word(parser, statements[i].word))
            return statements[i].parse(parser);
    int length = parser->at->text.length > 40 ? 40 : (int)parser->at->text.length;
    xm_jinja_fail(parser->job, XM_JINJA_SYNTAX, "the statement '%.*s' is not known here", length,
                  parser->at->text.bytes);
}

static xm_jinja_node *parse_print(xm_jinja_parser *parser)
{
    xm_jinja_node *node = xm_jinja_new_node(parser, XM_JINJA_NODE_PRINT);
    node->a = xm_jinja_parse_tuple(parser);
    xm_jinja_expect(parser, XM_JINJA_TOKEN_PRINT_END, "}}");
    return node;
}

/* Stops before "{% end". ends NULL: at the end of the template. */
static void parse_until(xm_jinja_parser *parser, xm_jinja_nodes *body, const char *const *ends)
{
    int begun = parser->at->line;
    xm_jinja_descend(parser->job);
    for (; parser->at->kind != XM_JINJA_TOKEN_END; xm_jinja_step(parser->job, 1)) {
        xm_jinja_node *node = NULL;
        for (size_t i = 0; ends && ends[i]; i++)
            if (parser->at->kind == XM_JINJA_TOKEN_BLOCK &&
                parser->at[1].kind == XM_JINJA_TOKEN_NAME &&
                xm_jinja_string_is(parser->at[1].text, ends[i])) {
                xm_jinja_rise(parser->job);
                return;
            }
        if (parser->at->kind == XM_JINJA_TOKEN_TEXT) {
            node = xm_jinja_new_node(parser, XM_JINJA_NODE_TEXT);
            node->value = xm_jinja_text(parser->at++->text);
        } else if (xm_jinja_accept(parser, XM_JINJA_TOKEN_PRINT, NULL)) {
            node = parse_print(parser);
        } else {
            parser->at++; /* {% */
            node = parse_statement(parser);
        }
        xm_jinja_add_node(parser, body, node);
    }
    xm_jinja_rise(parser->job);
    if (!ends)
        return;
    parser->job->line = begun;
    size_t last = 0;
    while (ends[last + 1])
        last++;
    xm_jinja_fail(parser->job, XM_JINJA_SYNTAX, "the block that begins here has no '%s'",
                  ends[last]);
}

xm_jinja_node *xm_jinja_parse_tokens(xm_jinja_job *job, const xm_jinja_token *tokens)
{
    xm_jinja_parser parser = {job, tokens, 0};
    xm_jinja_node *node = xm_jinja_new_node(&parser, XM_JINJA_NODE_BODY);
    parse_until(&parser, &node->first, NULL);
    return node;
}
