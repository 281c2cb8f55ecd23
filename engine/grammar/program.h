/*
 * program.h - a grammar as a program for a machine that reads bytes (Thompson 1968, with calls).
 *
 * A run is at one node and has a stack of nodes to return to. SET reads a byte, TOKEN a whole
 * token; SPLIT, CALL and RETURN read nothing. What a grammar describes are the texts that some run
 * from the root's entry can read to a RETURN on an empty stack. Every node is on a way to such an
 * end, and no rule calls itself before it has read something: a machine's closures are finite, and
 * where a run is alive there is a way to go on.
 */
#ifndef XM_GRAMMAR_PROGRAM_H
#define XM_GRAMMAR_PROGRAM_H

#include "grammar/gbnf.h"

enum { XM_PROGRAM_NODES = 1 << 19 }; /* most that a grammar may become */

typedef enum {
    XM_NODE_SET,   /* a byte of set `operand`, then next */
    XM_NODE_TOKEN, /* token `operand`, then next */
    XM_NODE_SPLIT, /* both next and operand */
    XM_NODE_CALL,  /* rule `operand`, then next */
    XM_NODE_RETURN /* the end of rule `operand` */
} xm_node_kind;

typedef struct {
    xm_node_kind kind;
    int32_t next, operand;
} xm_node;

typedef struct {
    uint64_t bits[4];
} xm_byte_set;

static inline bool xm_byte_set_has(const xm_byte_set *set, uint8_t byte)
{
    return (set->bits[byte >> 6] >> (byte & 63) & 1) != 0;
}

/* The passes of a repetition that are all alike: pass i from the last one has the nodes
 * [first + i * stride, first + (i + 1) * stride), each leading to its like of the pass after. */
typedef struct {
    int32_t first, stride, count;
} xm_pass_chain;

typedef struct {
    xm_node *nodes;
    size_t node_count, node_capacity;
    xm_byte_set *sets;
    size_t set_count, set_capacity;
    xm_pass_chain *chains; /* ascending */
    size_t chain_count, chain_capacity;
    int32_t *entries; /* [rule_count] */
    size_t rule_count, rule_capacity;
    int32_t root;             /* a rule */
    uint8_t byte_class[256];  /* bytes of one class are in the same sets */
    uint8_t example[256];     /* of each class, one byte */
    int32_t byte_class_count; /* 1 to 256 */
} xm_program;

/* The owner calls xm_program_free in either case. */
xmoe_status xm_program_create(const xm_gbnf *tree, xm_program *program, xmoe_error *error);
void xm_program_free(xm_program *program);

/* A node from which as many passes of the repetition follow as from `node`, but no more than
 * `most`: runs from either read the same texts of up to `most` bytes and the beginnings of longer
 * ones. */
int32_t xm_program_with_passes(const xm_program *program, int32_t node, int32_t most);

/* program_check.c: refuses rules that can never end, and left recursion. Rules from
 * tree->rule_count on are parts of others. */
xmoe_status xm_program_check(const xm_gbnf *tree, const xm_program *program, xmoe_error *error);

#endif
