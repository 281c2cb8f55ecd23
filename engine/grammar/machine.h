/*
 * machine.h - runs a program over bytes, remembering what it has found out.
 *
 * A state is the set of all runs that are alive after some text: pairs of a node and a stack.
 * States and stacks are kept once each, so a state is a number, and where a byte leads from it is
 * looked up after the first time (as in lazy automata of regular expressions; the states here are
 * of a pushdown one and may be infinitely many). What a machine may keep is bounded: when it is
 * FULL, the owner takes the state over to a new machine.
 *
 * A call's frame is left out where the call is the last thing of its rule, so that lists written as
 * right recursion need no stack. Runs with more than XM_MACHINE_DEPTH frames are given up.
 *
 * With a trigger there are states before the grammar begins: how much of the trigger the text ends
 * with (Knuth, Morris, Pratt 1977).
 *
 * Not thread-safe: the owner (grammar.h) has a lock.
 */
#ifndef XM_GRAMMAR_MACHINE_H
#define XM_GRAMMAR_MACHINE_H

#include "grammar/program.h"

enum {
    XM_MACHINE_DEPTH = 1000,        /* frames on a stack */
    XM_MACHINE_STATES = 20000,      /* kept by one machine */
    XM_MACHINE_SET = 16384,         /* pairs of node and stack that one state may come of */
    XM_MACHINE_WORK = 500000,       /* such pairs, or 16 frames of a stack, that it looks at */
    XM_MACHINE_MASK_BYTES = 8 << 20 /* of masks; at least a few are kept */
};

enum { XM_STATE_DEAD = 0, XM_STATE_START = 1 }; /* of every machine */

typedef enum {
    XM_MACHINE_OK,
    XM_MACHINE_FULL,
    XM_MACHINE_AMBIGUOUS, /* more than XM_MACHINE_SET */
    XM_MACHINE_DEEP,      /* all runs of the beginning have more than XM_MACHINE_DEPTH frames */
    XM_MACHINE_NO_MEMORY
} xm_machine_status;

typedef struct {
    const xm_program *program;
    const xm_token_tree *tokens;
    const char *trigger; /* NULL: none */
    size_t trigger_length;
    const size_t *failure; /* [trigger_length] of the trigger, as in text_stream.h */
} xm_machine_options;      /* all of it outlives the machine */

typedef struct xm_machine xm_machine;

xm_machine_status xm_machine_create(const xm_machine_options *options, xm_machine **machine);
void xm_machine_free(xm_machine *machine);

/* The state after one more byte. */
xm_machine_status xm_machine_step(xm_machine *machine, int32_t state, uint8_t byte, int32_t *next);
/* The state after a token; one that ends the text leads on where the grammar names it, and before
 * the grammar begins. */
xm_machine_status xm_machine_token(xm_machine *machine, int32_t state, int32_t token,
                                   int32_t *next);
/* The tokens that lead to a live state; those that end the text are left out. The words live until
 * the next call that makes a mask. */
xm_machine_status xm_machine_mask(xm_machine *machine, int32_t state, const uint64_t **words);
/* The state of `to` that is the same as state of `from`. */
xm_machine_status xm_machine_copy(xm_machine *to, const xm_machine *from, int32_t state,
                                  int32_t *copy);

/* The grammar may end here. */
bool xm_machine_may_end(const xm_machine *machine, int32_t state);
/* Nothing can follow. */
bool xm_machine_is_last(const xm_machine *machine, int32_t state);
/* The trigger has not been seen. */
bool xm_machine_is_free(const xm_machine *machine, int32_t state);

#endif
