/*
 * program_check.c - see xm_program_check: both checks walk over each node once.
 */
#include "base/memory.h"
#include "grammar/program.h"

#include <string.h>

typedef struct {
    const xm_gbnf *tree;
    const xm_program *program;
    bool *ends;       /* [rules]: can end */
    bool *nullable;   /* [rules]: can end without reading */
    bool *seen;       /* [nodes] */
    int32_t *stack;   /* [2 * nodes + rules]: nodes to walk on from */
    int32_t *waiting; /* [rules]: calls that go on once the rule is known to end; a list */
    int32_t *waits;   /* [nodes]: the rest of that list */
    int32_t *callees; /* [calls]: rules called before anything is read, those of a rule together */
    size_t *callee_end; /* [rules] */
} checker;

/* Finds the rules that can end: walks from all entries at once; a call is passed when its rule is
 * known to end. Through bytes and tokens only if through is set. */
static void find_ends(checker *c, bool through, bool *ends)
{
    const xm_program *p = c->program;
    size_t depth = 0;
    memset(c->seen, 0, p->node_count * sizeof *c->seen);
    for (size_t i = 0; i < p->rule_count; i++) {
        c->waiting[i] = -1;
        c->stack[depth++] = p->entries[i];
    }
    while (depth > 0) {
        int32_t at = c->stack[--depth];
        const xm_node *node = &p->nodes[at];
        if (c->seen[at])
            continue;
        c->seen[at] = true;
        if (node->kind == XM_NODE_SPLIT) {
            c->stack[depth++] = node->next;
            c->stack[depth++] = node->operand;
        } else if (node->kind == XM_NODE_RETURN && !ends[node->operand]) {
            ends[node->operand] = true;
            for (int32_t call = c->waiting[node->operand]; call >= 0; call = c->waits[call])
                c->stack[depth++] = p->nodes[call].next;
        } else if (node->kind == XM_NODE_CALL && !ends[node->operand]) {
            c->waits[at] = c->waiting[node->operand];
            c->waiting[node->operand] = at;
        } else if (node->kind == XM_NODE_CALL || (through && node->kind != XM_NODE_RETURN)) {
            c->stack[depth++] = node->next;
        }
    }
}

/* Where a rule that has a name begins, for a message; parts of rules have none. */
static size_t place_of(const checker *c, size_t rule)
{
    return rule < c->tree->rule_count ? c->tree->rules[rule].mentioned : 0;
}

static int shown_length(const checker *c, size_t rule)
{
    size_t length = c->tree->rules[rule].name_length;
    return length < 100 ? (int)length : 100;
}

static xmoe_status check_ends(const checker *c, xmoe_error *error)
{
    for (size_t i = 0; i < c->tree->rule_count; i++)
        if (!c->ends[i])
            return xm_gbnf_fail(c->tree, place_of(c, i), error, "rule '%.*s' can never end",
                                shown_length(c, i), c->tree->text + c->tree->rules[i].name);
    return XMOE_OK;
}

/* Of each rule, the rules that it calls before it has read anything. */
static void find_callees(checker *c)
{
    const xm_program *p = c->program;
    size_t count = 0;
    memset(c->seen, 0, p->node_count * sizeof *c->seen);
    for (size_t i = 0; i < p->rule_count; i++) {
        size_t depth = 0;
        c->stack[depth++] = p->entries[i];
        while (depth > 0) {
            int32_t at = c->stack[--depth];
            const xm_node *node = &p->nodes[at];
            if (c->seen[at])
                continue;
            c->seen[at] = true;
            if (node->kind == XM_NODE_CALL)
                c->callees[count++] = node->operand;
            if (node->kind == XM_NODE_SPLIT)
                c->stack[depth++] = node->operand;
            if (node->kind == XM_NODE_SPLIT ||
                (node->kind == XM_NODE_CALL && c->nullable[node->operand]))
                c->stack[depth++] = node->next;
        }
        c->callee_end[i] = count;
    }
}

/* A circle of such calls is left recursion: a walk in depth, with `at` the place in the list of
 * callees of each rule on the path. */
static xmoe_status check_recursion(checker *c, size_t *at, xmoe_error *error)
{
    enum { FRESH, OPEN, DONE };
    size_t rules = c->program->rule_count;
    uint8_t *state = (uint8_t *)c->seen; /* of rules, of which there are fewer than nodes */
    memset(state, FRESH, rules);
    for (size_t i = 0; i < rules; i++) {
        size_t depth = 0;
        if (state[i] != FRESH)
            continue;
        c->stack[depth++] = (int32_t)i;
        state[i] = OPEN;
        at[i] = i > 0 ? c->callee_end[i - 1] : 0;
        while (depth > 0) {
            size_t rule = (size_t)c->stack[depth - 1];
            if (at[rule] == c->callee_end[rule]) {
                state[rule] = DONE;
                depth--;
                continue;
            }
            size_t callee = (size_t)c->callees[at[rule]++];
            if (state[callee] == OPEN) {
                while (callee >= c->tree->rule_count) /* name a rule of the circle that has one */
                    callee = (size_t)c->stack[--depth];
                return xm_gbnf_fail(c->tree, place_of(c, callee), error,
                                    "rule '%.*s' is left-recursive: it can call itself before it "
                                    "has read anything",
                                    shown_length(c, callee),
                                    c->tree->text + c->tree->rules[callee].name);
            }
            if (state[callee] == FRESH) {
                state[callee] = OPEN;
                at[callee] = callee > 0 ? c->callee_end[callee - 1] : 0;
                c->stack[depth++] = (int32_t)callee;
            }
        }
    }
    return XMOE_OK;
}

xmoe_status xm_program_check(const xm_gbnf *tree, const xm_program *program, xmoe_error *error)
{
    size_t nodes = program->node_count, rules = program->rule_count;
    checker c = {.tree = tree,
                 .program = program,
                 .ends = xm_calloc(rules, sizeof(bool)),
                 .nullable = xm_calloc(rules, sizeof(bool)),
                 .seen = xm_calloc(nodes, sizeof(bool)),
                 .stack = xm_calloc(2 * nodes + rules, sizeof(int32_t)),
                 .waiting = xm_calloc(rules, sizeof(int32_t)),
                 .waits = xm_calloc(nodes, sizeof(int32_t)),
                 .callees = xm_calloc(nodes, sizeof(int32_t)),
                 .callee_end = xm_calloc(rules, sizeof(size_t))};
    size_t *at = xm_calloc(rules, sizeof *at);
    xmoe_status status = XMOE_OK;
    if (c.ends == NULL || c.nullable == NULL || c.seen == NULL || c.stack == NULL ||
        c.waiting == NULL || c.waits == NULL || c.callees == NULL || c.callee_end == NULL ||
        at == NULL) {
        status = xm_fail_memory(error, "grammar", nodes * sizeof(int32_t));
    } else {
        find_ends(&c, true, c.ends);
        find_ends(&c, false, c.nullable);
        find_callees(&c);
        status = check_ends(&c, error);
        if (status == XMOE_OK)
            status = check_recursion(&c, at, error);
    }
    xm_free(c.ends);
    xm_free(c.nullable);
    xm_free(c.seen);
    xm_free(c.stack);
    xm_free(c.waiting);
    xm_free(c.waits);
    xm_free(c.callees);
    xm_free(c.callee_end);
    xm_free(at);
    return status;
}
