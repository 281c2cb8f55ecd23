/*
 * machine_state.h - what the files of a machine (machine.c, mask.c) share.
 */
#ifndef XM_GRAMMAR_MACHINE_STATE_H
#define XM_GRAMMAR_MACHINE_STATE_H

#include "grammar/index_map.h"
#include "grammar/machine.h"

enum { XM_UNKNOWN = -1 };

/* Where to go on after a call. Frame 0 is the empty stack. */
typedef struct {
    int32_t node, parent, depth;
} xm_frame;

typedef struct {
    size_t first, count; /* items */
    uint64_t hash;
    int32_t free; /* 0: in the grammar; else bytes of the trigger that were seen, plus 1 */
    bool may_end;
    int32_t mask; /* XM_UNKNOWN, or its place */
    int32_t like; /* XM_UNKNOWN, or the state whose mask is also this one's */
} xm_state;

typedef struct {
    uint64_t *items; /* node in the high, frame in the low half */
    size_t count, capacity;
} xm_item_list;

/* Masks are kept in a list by last use. */
typedef struct {
    int32_t state, newer, older;
} xm_mask;

struct xm_machine {
    xm_machine_options options;
    xm_frame *frames;
    size_t frame_count, frame_capacity;
    xm_index_map frame_index; /* (node, parent) -> frame */

    xm_state *states;
    size_t state_count, state_capacity;
    xm_item_list items; /* of all states, ascending within each */
    int32_t *steps;     /* [state_capacity][byte classes]: XM_UNKNOWN or a state */
    int32_t *table;     /* [table_size], a power of two: hash -> state, XM_UNKNOWN: free */
    size_t table_size;
    int32_t
        *free_states; /* [trigger_length + 1]: XM_UNKNOWN, or the state where so much was seen */
    size_t work;

    xm_item_list pending, gathered; /* of the set being made */
    bool gathered_may_end;
    xm_index_map visited;

    xm_mask *masks;       /* [mask_limit] */
    uint64_t *mask_words; /* [mask_limit][words] */
    int32_t mask_count, mask_capacity, mask_limit, newest, oldest;
    int32_t *path; /* [depth of the vocabulary + 1]: states of a walk */
};

/* machine.c: the state with the same tokens whose repetitions have no more passes left than a token
 * has bytes: in a long string all states but the last share one mask. */
xm_machine_status xm_machine_like(xm_machine *machine, int32_t state, int32_t *like);

/* mask.c */
bool xm_mask_init(xm_machine *machine);
void xm_mask_free(xm_machine *machine);

#endif
