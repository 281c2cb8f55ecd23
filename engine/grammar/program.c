/*
 * program.c - see program.h: from the tree of a grammar to nodes.
 *
 * An expression is compiled for the node that follows it, from back to front, so every node knows
 * its successors when it is made. What is repeated a number of times becomes a rule of its own, so
 * that a repetition costs two nodes.
 */
#include "grammar/program.h"

#include "base/memory.h"
#include "grammar/index_map.h"

#include <string.h>

typedef struct {
    const xm_gbnf *tree;
    xm_program *program;
    xm_index_map ranges; /* (low, high) of a byte -> its set */
    xm_index_map shared; /* of a class: (set, next) -> node; next -> set of first bytes */
    xmoe_error *error;
    xmoe_status status;
} compiler;

static int32_t compile(compiler *c, int32_t expression, int32_t next);

/* --- making ----------------------------------------------------------------------------------- */

static bool fail_memory(compiler *c)
{
    if (c->status == XMOE_OK)
        c->status = xm_fail_memory(c->error, "grammar", c->program->node_count * sizeof(xm_node));
    return false;
}

/* Doubles an array that is full. */
static bool grow(compiler *c, void **items, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return true;
    size_t wanted = *capacity == 0 ? 64 : 2 * *capacity;
    void *grown = xm_realloc(*items, wanted, size);
    if (grown == NULL)
        return fail_memory(c);
    *items = grown;
    *capacity = wanted;
    return true;
}

/* Returns the node, or -1 after a failure. */
static int32_t add_node(compiler *c, xm_node_kind kind, int32_t next, int32_t operand)
{
    xm_program *p = c->program;
    if (c->status != XMOE_OK)
        return -1;
    if (p->node_count >= XM_PROGRAM_NODES) {
        c->status = xm_fail_argument(
            c->error, "grammar",
            "the grammar with its repetitions is too large: more than %d parts", XM_PROGRAM_NODES);
        return -1;
    }
    if (!grow(c, (void **)&p->nodes, p->node_count, &p->node_capacity, sizeof *p->nodes))
        return -1;
    p->nodes[p->node_count] = (xm_node){kind, next, operand};
    return (int32_t)p->node_count++;
}

static int32_t add_set(compiler *c)
{
    xm_program *p = c->program;
    if (!grow(c, (void **)&p->sets, p->set_count, &p->set_capacity, sizeof *p->sets))
        return -1;
    p->sets[p->set_count] = (xm_byte_set){0};
    return (int32_t)p->set_count++;
}

static void put_bytes(xm_byte_set *set, uint32_t low, uint32_t high)
{
    for (uint32_t byte = low; byte <= high; byte++)
        set->bits[byte >> 6] |= UINT64_C(1) << (byte & 63);
}

/* The set of the bytes low to high, made once. */
static int32_t range_set(compiler *c, uint8_t low, uint8_t high)
{
    int32_t *place = xm_index_map_at(&c->ranges, (uint64_t)low << 8 | high);
    if (place == NULL) {
        fail_memory(c);
        return -1;
    }
    if (*place < 0) {
        *place = add_set(c);
        if (*place >= 0)
            put_bytes(&c->program->sets[*place], low, high);
    }
    return *place;
}

static int32_t add_range(compiler *c, uint8_t low, uint8_t high, int32_t next)
{
    int32_t set = range_set(c, low, high);
    return set < 0 ? -1 : add_node(c, XM_NODE_SET, next, set);
}

static int32_t add_rule(compiler *c)
{
    xm_program *p = c->program;
    if (!grow(c, (void **)&p->entries, p->rule_count, &p->rule_capacity, sizeof *p->entries))
        return -1;
    p->entries[p->rule_count] = -1;
    return (int32_t)p->rule_count++;
}

static bool compile_rule(compiler *c, int32_t rule, int32_t body)
{
    int32_t end = add_node(c, XM_NODE_RETURN, -1, rule);
    int32_t entry = end < 0 ? -1 : compile(c, body, end);
    c->program->entries[rule] = entry;
    return entry >= 0;
}

/* --- expressions ------------------------------------------------------------------------------ */

static int32_t compile_string(compiler *c, const xm_expression *e, int32_t next)
{
    for (int32_t i = e->count - 1; i >= 0 && next >= 0; i--) {
        uint8_t byte = (uint8_t)c->tree->bytes[e->first + i];
        next = add_range(c, byte, byte, next);
    }
    return next;
}

/* The bytes of a piece but the first, and then next; equal ends of pieces are shared. */
static int32_t compile_tail(compiler *c, const xm_byte_ranges *piece, int32_t next)
{
    for (int32_t i = piece->length - 1; i > 0 && next >= 0; i--) {
        int32_t set = range_set(c, piece->low[i], piece->high[i]);
        int32_t *place =
            set < 0 ? NULL
                    : xm_index_map_at(&c->shared, (uint64_t)(uint32_t)set << 32 | (uint32_t)next);
        if (place == NULL) {
            fail_memory(c);
            return -1;
        }
        if (*place < 0)
            *place = add_node(c, XM_NODE_SET, next, set);
        next = *place;
    }
    return next;
}

/* One node for all first bytes that go on alike. */
static int32_t compile_class(compiler *c, const xm_expression *e, int32_t next)
{
    static const uint64_t first_bytes = UINT64_MAX << 32; /* marks keys of first bytes */
    xm_program *p = c->program;
    int32_t entry = -1;
    xm_index_map_clear(&c->shared);
    for (int32_t r = 0; r < e->count; r++) {
        xm_byte_ranges pieces[XM_RANGES_PIECES];
        size_t count = xm_ranges_split(c->tree->ranges[e->first + r], pieces);
        for (size_t i = 0; i < count; i++) {
            int32_t tail = compile_tail(c, &pieces[i], next);
            int32_t *place =
                tail < 0 ? NULL : xm_index_map_at(&c->shared, first_bytes | (uint32_t)tail);
            if (place == NULL) {
                fail_memory(c);
                return -1;
            }
            if (*place < 0) {
                *place = add_set(c);
                int32_t node = *place < 0 ? -1 : add_node(c, XM_NODE_SET, tail, *place);
                entry = node < 0 || entry < 0 ? node : add_node(c, XM_NODE_SPLIT, node, entry);
                if (entry < 0)
                    return -1;
            }
            put_bytes(&p->sets[*place], pieces[i].low[0], pieces[i].high[0]);
        }
    }
    return entry;
}

static int32_t compile_sequence(compiler *c, const xm_expression *e, int32_t next)
{
    const xm_expression *expressions = c->tree->expressions;
    size_t count = 0;
    for (int32_t child = e->first; child >= 0; child = expressions[child].next)
        count++;
    int32_t *children = xm_calloc(count, sizeof *children);
    if (children == NULL) {
        fail_memory(c);
        return -1;
    }
    count = 0;
    for (int32_t child = e->first; child >= 0; child = expressions[child].next)
        children[count++] = child;
    while (count > 0 && next >= 0)
        next = compile(c, children[--count], next);
    xm_free(children);
    return next;
}

static int32_t compile_choice(compiler *c, const xm_expression *e, int32_t next)
{
    int32_t entry = -1;
    for (int32_t child = e->first; child >= 0; child = c->tree->expressions[child].next) {
        int32_t branch = compile(c, child, next);
        if (branch < 0)
            return -1;
        entry = entry < 0 ? branch : add_node(c, XM_NODE_SPLIT, entry, branch);
        if (entry < 0)
            return -1;
    }
    return entry;
}

/* One pass of the repeated expression, then next. */
static int32_t compile_once(compiler *c, const xm_expression *e, int32_t rule, int32_t next)
{
    if (rule >= 0)
        return add_node(c, XM_NODE_CALL, next, rule);
    return compile(c, e->first, next);
}

static bool add_chain(compiler *c, int32_t first, int32_t stride, int32_t count)
{
    xm_program *p = c->program;
    if (count < 2)
        return true;
    if (!grow(c, (void **)&p->chains, p->chain_count, &p->chain_capacity, sizeof *p->chains))
        return false;
    p->chains[p->chain_count++] = (xm_pass_chain){first, stride, count};
    return true;
}

/* A loop without end holds the last of the passes that must be. */
static int32_t compile_repeat(compiler *c, const xm_expression *e, int32_t next)
{
    bool unlimited = e->maximum == XM_GBNF_UNLIMITED;
    int32_t passes = unlimited ? e->minimum : e->maximum, rule = -1, at = next;
    if (passes > 1) {
        rule = add_rule(c);
        if (rule < 0 || !compile_rule(c, rule, e->first))
            return -1;
    }
    if (unlimited) {
        int32_t loop = add_node(c, XM_NODE_SPLIT, next, next);
        int32_t pass = loop < 0 ? -1 : compile_once(c, e, rule, loop);
        if (pass < 0)
            return -1;
        c->program->nodes[loop].operand = pass;
        at = passes > 0 ? pass : loop;
        passes--;
    }
    int32_t optional = passes > e->minimum ? passes - e->minimum : 0;
    int32_t first = (int32_t)c->program->node_count;
    for (int32_t i = passes; i > 0 && at >= 0; i--) {
        at = compile_once(c, e, rule, at);
        if (i > e->minimum && at >= 0)
            at = add_node(c, XM_NODE_SPLIT, next, at);
    }
    if (rule >= 0 && at >= 0 &&
        !(add_chain(c, first, 2, optional) &&
          add_chain(c, first + 2 * optional, 1, passes - optional)))
        return -1;
    return at;
}

static int32_t compile(compiler *c, int32_t expression, int32_t next)
{
    const xm_expression *e = &c->tree->expressions[expression];
    switch (e->kind) {
    case XM_EXPRESSION_STRING:
        return compile_string(c, e, next);
    case XM_EXPRESSION_CLASS:
        return compile_class(c, e, next);
    case XM_EXPRESSION_TOKEN:
        return add_node(c, XM_NODE_TOKEN, next, e->first);
    case XM_EXPRESSION_RULE:
        return add_node(c, XM_NODE_CALL, next, e->first);
    case XM_EXPRESSION_SEQUENCE:
        return compile_sequence(c, e, next);
    case XM_EXPRESSION_CHOICE:
        return compile_choice(c, e, next);
    case XM_EXPRESSION_REPEAT:
        return compile_repeat(c, e, next);
    }
    return -1;
}

/* --- classes of bytes ------------------------------------------------------------------------- */

/* Splits classes by one set after the other until bytes of a class are alike in all of them. */
static void find_byte_classes(xm_program *p)
{
    p->byte_class_count = 1;
    for (size_t s = 0; s < p->set_count && p->byte_class_count < 256; s++) {
        int16_t inside[256]; /* of each class, the one of its members in this set */
        int32_t members[256] = {0}, found[256] = {0}, before = p->byte_class_count;
        for (int b = 0; b < 256; b++) {
            members[p->byte_class[b]]++;
            found[p->byte_class[b]] += xm_byte_set_has(&p->sets[s], (uint8_t)b);
        }
        for (int32_t i = 0; i < before; i++) {
            bool splits = found[i] > 0 && found[i] < members[i];
            inside[i] = (int16_t)(splits ? p->byte_class_count++ : i);
        }
        for (int b = 0; b < 256; b++)
            if (xm_byte_set_has(&p->sets[s], (uint8_t)b))
                p->byte_class[b] = (uint8_t)inside[p->byte_class[b]];
    }
    for (int b = 0; b < 256; b++)
        p->example[p->byte_class[b]] = (uint8_t)b;
}

xmoe_status xm_program_create(const xm_gbnf *tree, xm_program *program, xmoe_error *error)
{
    *program = (xm_program){.root = tree->root};
    compiler c = {.tree = tree, .program = program, .error = error};
    for (size_t i = 0; i < tree->rule_count && c.status == XMOE_OK; i++)
        add_rule(&c);
    for (size_t i = 0; i < tree->rule_count && c.status == XMOE_OK; i++)
        compile_rule(&c, (int32_t)i, tree->rules[i].body);
    xm_index_map_free(&c.ranges);
    xm_index_map_free(&c.shared);
    if (c.status != XMOE_OK)
        return c.status;
    find_byte_classes(program);
    return xm_program_check(tree, program, error);
}

int32_t xm_program_with_passes(const xm_program *p, int32_t node, int32_t most)
{
    size_t low = 0, high = p->chain_count; /* chains before low begin no later than the node */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (p->chains[middle].first <= node)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return node;
    const xm_pass_chain *chain = &p->chains[low - 1];
    int32_t passes = (node - chain->first) / chain->stride;
    if (passes >= chain->count || passes <= most)
        return node;
    return node - (passes - most) * chain->stride;
}

void xm_program_free(xm_program *program)
{
    xm_free(program->chains);
    xm_free(program->nodes);
    xm_free(program->sets);
    xm_free(program->entries);
    *program = (xm_program){0};
}
