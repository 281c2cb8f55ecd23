/*
 * mask.c - the tokens that a state allows: a walk over the tree of the vocabulary, whose dead
 * branches are skipped whole. Masks are kept, those used last longest.
 */
#include "base/memory.h"
#include "grammar/machine_state.h"

#include <string.h>

enum { FEWEST_MASKS = 8 };

static size_t words_of(const xm_machine *m)
{
    return xm_token_words(m->options.tokens->size);
}

bool xm_mask_init(xm_machine *m)
{
    size_t words = words_of(m), limit = XM_MACHINE_MASK_BYTES / (words * sizeof(uint64_t) + 1);
    limit = limit < FEWEST_MASKS ? FEWEST_MASKS : limit;
    limit = limit < XM_MACHINE_STATES ? limit : XM_MACHINE_STATES;
    m->mask_limit = (int32_t)limit;
    m->newest = m->oldest = XM_UNKNOWN;
    m->path = xm_calloc((size_t)m->options.tokens->depth + 1, sizeof *m->path);
    return m->path != NULL;
}

void xm_mask_free(xm_machine *m)
{
    xm_free(m->masks);
    xm_free(m->mask_words);
    xm_free(m->path);
}

/* --- the list by last use --------------------------------------------------------------------- */

static void unlink_mask(xm_machine *m, int32_t mask)
{
    int32_t newer = m->masks[mask].newer, older = m->masks[mask].older;
    *(newer >= 0 ? &m->masks[newer].older : &m->newest) = older;
    *(older >= 0 ? &m->masks[older].newer : &m->oldest) = newer;
}

static void link_newest(xm_machine *m, int32_t mask)
{
    m->masks[mask].newer = XM_UNKNOWN;
    m->masks[mask].older = m->newest;
    *(m->newest >= 0 ? &m->masks[m->newest].newer : &m->oldest) = mask;
    m->newest = mask;
}

static bool grow_masks(xm_machine *m)
{
    size_t capacity = m->mask_count == 0 ? FEWEST_MASKS : 2 * (size_t)m->mask_count;
    capacity = capacity < (size_t)m->mask_limit ? capacity : (size_t)m->mask_limit;
    xm_mask *masks = xm_realloc(m->masks, capacity, sizeof *masks);
    if (masks != NULL)
        m->masks = masks;
    uint64_t *words =
        masks == NULL ? NULL : xm_realloc(m->mask_words, capacity * words_of(m), sizeof *words);
    if (words == NULL)
        return false;
    m->mask_words = words;
    m->mask_capacity = (int32_t)capacity;
    return true;
}

/* A place for a new mask: a fresh one, or that of the mask that was not used for longest. It is on
 * no list. -1 for lack of memory. */
static int32_t take_place(xm_machine *m)
{
    if (m->mask_count < m->mask_limit) {
        if (m->mask_count == m->mask_capacity && !grow_masks(m))
            return -1;
        return m->mask_count++;
    }
    int32_t mask = m->oldest;
    unlink_mask(m, mask);
    if (m->masks[mask].state != XM_UNKNOWN)
        m->states[m->masks[mask].state].mask = XM_UNKNOWN;
    return mask;
}

/* --- making a mask ---------------------------------------------------------------------------- */

static void allow(uint64_t *words, int32_t token)
{
    words[token >> 6] |= UINT64_C(1) << (token & 63);
}

static xm_machine_status walk(xm_machine *m, int32_t state, uint64_t *words)
{
    const xm_token_tree *v = m->options.tokens;
    m->path[0] = state;
    for (int32_t i = 0; i < v->node_count;) {
        const xm_token_tree_node *node = &v->nodes[i];
        int32_t next;
        xm_machine_status status = xm_machine_step(m, m->path[node->depth - 1], node->byte, &next);
        if (status != XM_MACHINE_OK)
            return status;
        if (next == XM_STATE_DEAD) {
            i = node->end;
            continue;
        }
        m->path[node->depth] = next;
        for (int32_t token = node->token; token >= 0; token = v->same[token])
            allow(words, token);
        i++;
    }
    return XM_MACHINE_OK;
}

/* Special tokens: where all is free, by their bytes; else where the grammar has them. */
static xm_machine_status add_specials(xm_machine *m, int32_t state, uint64_t *words)
{
    const xm_token_tree *v = m->options.tokens;
    const xm_program *p = m->options.program;
    xm_machine_status status = XM_MACHINE_OK;
    const xm_state s = m->states[state];
    for (int32_t i = 0; s.free != 0 && i < v->special_count && status == XM_MACHINE_OK; i++) {
        int32_t next;
        status = xm_machine_token(m, state, v->specials[i], &next);
        if (status == XM_MACHINE_OK && next != XM_STATE_DEAD)
            allow(words, v->specials[i]);
    }
    for (size_t i = s.first; i < s.first + s.count; i++) {
        const xm_node *node = &p->nodes[m->items.items[i] >> 32];
        if (node->kind == XM_NODE_TOKEN)
            allow(words, node->operand);
    }
    return status;
}

xm_machine_status xm_machine_mask(xm_machine *m, int32_t state, const uint64_t **words)
{
    xm_machine_status status = xm_machine_like(m, state, &state);
    if (status != XM_MACHINE_OK)
        return status;
    int32_t mask = m->states[state].mask;
    if (mask != XM_UNKNOWN) {
        unlink_mask(m, mask);
        link_newest(m, mask);
        *words = m->mask_words + (size_t)mask * words_of(m);
        return XM_MACHINE_OK;
    }
    mask = take_place(m);
    if (mask < 0)
        return XM_MACHINE_NO_MEMORY;
    uint64_t *fresh = m->mask_words + (size_t)mask * words_of(m);
    memset(fresh, 0, words_of(m) * sizeof *fresh);
    m->masks[mask].state = XM_UNKNOWN;
    status = walk(m, state, fresh);
    if (status == XM_MACHINE_OK)
        status = add_specials(m, state, fresh);
    link_newest(m, mask);
    if (status != XM_MACHINE_OK)
        return status;
    m->masks[mask].state = state;
    m->states[state].mask = mask;
    *words = fresh;
    return XM_MACHINE_OK;
}
