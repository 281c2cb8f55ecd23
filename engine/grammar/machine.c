/* machine.c - see machine.h: stacks, states and steps. The masks are in mask.c. */
#include "base/memory.h"
#include "base/random.h"
#include "grammar/machine_state.h"

#include <stdlib.h>
#include <string.h>

static uint64_t pack(int32_t node, int32_t frame)
{
    return (uint64_t)(uint32_t)node << 32 | (uint32_t)frame;
}

static xm_machine_status push_item(xm_item_list *list, uint64_t item)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity == 0 ? 64 : 2 * list->capacity;
        uint64_t *grown = xm_realloc(list->items, capacity, sizeof *grown);
        if (grown == NULL)
            return XM_MACHINE_NO_MEMORY;
        list->items = grown;
        list->capacity = capacity;
    }
    list->items[list->count++] = item;
    return XM_MACHINE_OK;
}

/* --- gathering a set of items ----------------------------------------------------------------- */

static void begin_gathering(xm_machine *m)
{
    xm_index_map_clear(&m->visited);
    m->gathered.count = 0;
    m->gathered_may_end = false;
}

/* The frame for a return to node, above parent; -1 if the stack is too deep. */
static xm_machine_status push_frame(xm_machine *m, int32_t node, int32_t parent, int32_t *frame)
{
    *frame = -1;
    if (m->frames[parent].depth == XM_MACHINE_DEPTH)
        return XM_MACHINE_OK;
    int32_t *place = xm_index_map_at(&m->frame_index, pack(node, parent));
    if (place == NULL)
        return XM_MACHINE_NO_MEMORY;
    if (*place < 0) {
        if (m->frame_count == m->frame_capacity) {
            xm_frame *grown = xm_realloc(m->frames, 2 * m->frame_capacity, sizeof *grown);
            if (grown == NULL)
                return XM_MACHINE_NO_MEMORY;
            m->frames = grown;
            m->frame_capacity *= 2;
        }
        m->frames[m->frame_count] = (xm_frame){node, parent, m->frames[parent].depth + 1};
        *place = (int32_t)m->frame_count++;
    }
    *frame = *place;
    return XM_MACHINE_OK;
}

/* A call leads to its rule's entry, with a frame unless nothing follows. */
static xm_machine_status follow_call(xm_machine *m, const xm_node *node, int32_t frame)
{
    const xm_program *p = m->options.program;
    if (p->nodes[node->next].kind != XM_NODE_RETURN) {
        xm_machine_status status = push_frame(m, node->next, frame, &frame);
        if (status != XM_MACHINE_OK || frame < 0)
            return status;
    }
    return push_item(&m->pending, pack(p->entries[node->operand], frame));
}

static xm_machine_status follow(xm_machine *m, uint64_t item)
{
    const xm_node *node = &m->options.program->nodes[item >> 32];
    int32_t frame = (int32_t)(uint32_t)item;
    const xm_frame *top = &m->frames[frame];
    xm_machine_status status = XM_MACHINE_OK;
    switch (node->kind) {
    case XM_NODE_SET:
    case XM_NODE_TOKEN:
        return push_item(&m->gathered, item);
    case XM_NODE_SPLIT:
        status = push_item(&m->pending, pack(node->next, frame));
        return status != XM_MACHINE_OK ? status
                                       : push_item(&m->pending, pack(node->operand, frame));
    case XM_NODE_CALL:
        return follow_call(m, node, frame);
    case XM_NODE_RETURN:
        if (frame != 0)
            return push_item(&m->pending, pack(top->node, top->parent));
        m->gathered_may_end = true;
        return XM_MACHINE_OK;
    }
    return status;
}

/* Adds what can be read next by a run that is at node: follows all that reads nothing. */
static xm_machine_status gather(xm_machine *m, int32_t node, int32_t frame)
{
    m->pending.count = 0;
    xm_machine_status status = push_item(&m->pending, pack(node, frame));
    while (status == XM_MACHINE_OK && m->pending.count > 0) {
        uint64_t item = m->pending.items[--m->pending.count];
        int32_t *visited = xm_index_map_at(&m->visited, item);
        if (visited == NULL)
            return XM_MACHINE_NO_MEMORY;
        if (*visited >= 0)
            continue;
        *visited = 0;
        if (m->visited.count > XM_MACHINE_SET)
            return XM_MACHINE_AMBIGUOUS;
        if (++m->work > XM_MACHINE_WORK)
            return XM_MACHINE_FULL;
        status = follow(m, item);
    }
    return status;
}

/* --- states ----------------------------------------------------------------------------------- */

static int compare_items(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static uint64_t hash_gathered(const xm_machine *m, int32_t free)
{
    uint64_t hash = xm_random_mix((uint64_t)free << 1 | m->gathered_may_end);
    for (size_t i = 0; i < m->gathered.count; i++)
        hash = xm_random_mix(hash ^ m->gathered.items[i]);
    return hash;
}

static bool is_gathered(const xm_machine *m, const xm_state *s, uint64_t hash, int32_t free)
{
    return s->hash == hash && s->free == free && s->may_end == m->gathered_may_end &&
           s->count == m->gathered.count &&
           (s->count == 0 ||
            memcmp(m->items.items + s->first, m->gathered.items, s->count * sizeof(uint64_t)) == 0);
}

/* Where the table has the state of this hash that `free` and what is gathered make, or would. */
static size_t find_place(const xm_machine *m, uint64_t hash, int32_t free)
{
    size_t at = hash & (m->table_size - 1);
    while (m->table[at] != XM_UNKNOWN && !is_gathered(m, &m->states[m->table[at]], hash, free))
        at = (at + 1) & (m->table_size - 1);
    return at;
}

static bool grow_states(xm_machine *m)
{
    size_t capacity = m->state_capacity == 0 ? 64 : 2 * m->state_capacity;
    size_t classes = (size_t)m->options.program->byte_class_count;
    int32_t *table = xm_calloc(4 * capacity, sizeof *table);
    xm_state *states = xm_realloc(m->states, capacity, sizeof *states);
    if (states != NULL)
        m->states = states;
    int32_t *steps = table == NULL || states == NULL
                         ? NULL
                         : xm_realloc(m->steps, capacity * classes, sizeof *steps);
    if (steps == NULL) {
        xm_free(table);
        return false;
    }
    m->steps = steps;
    m->state_capacity = capacity;
    xm_free(m->table);
    m->table = table;
    m->table_size = 4 * capacity;
    for (size_t i = 0; i < m->table_size; i++)
        table[i] = XM_UNKNOWN;
    for (size_t i = 0; i < m->state_count; i++) {
        size_t at = m->states[i].hash & (m->table_size - 1);
        while (table[at] != XM_UNKNOWN)
            at = (at + 1) & (m->table_size - 1);
        table[at] = (int32_t)i;
    }
    return true;
}

/* The state that `free` and what is gathered make. */
static xm_machine_status make_state(xm_machine *m, int32_t free, int32_t *state)
{
    if (m->gathered.count > 1)
        qsort(m->gathered.items, m->gathered.count, sizeof(uint64_t), compare_items);
    uint64_t hash = hash_gathered(m, free);
    if (m->state_count == m->state_capacity && !grow_states(m))
        return XM_MACHINE_NO_MEMORY;
    size_t at = find_place(m, hash, free), classes = (size_t)m->options.program->byte_class_count;
    *state = m->table[at];
    if (*state != XM_UNKNOWN)
        return XM_MACHINE_OK;
    if (m->state_count == XM_MACHINE_STATES)
        return XM_MACHINE_FULL;
    size_t first = m->items.count;
    for (size_t i = 0; i < m->gathered.count; i++)
        if (push_item(&m->items, m->gathered.items[i]) != XM_MACHINE_OK)
            return XM_MACHINE_NO_MEMORY;
    *state = (int32_t)m->state_count;
    m->states[m->state_count++] = (xm_state){.first = first,
                                             .count = m->gathered.count,
                                             .hash = hash,
                                             .free = free,
                                             .may_end = m->gathered_may_end,
                                             .mask = XM_UNKNOWN,
                                             .like = XM_UNKNOWN};
    m->table[at] = *state;
    for (size_t i = 0; i < classes; i++)
        m->steps[(size_t)*state * classes + i] = XM_UNKNOWN;
    return XM_MACHINE_OK;
}

/* --- steps ------------------------------------------------------------------------------------ */

static xm_machine_status begin_grammar(xm_machine *m, int32_t *state)
{
    const xm_program *p = m->options.program;
    begin_gathering(m);
    xm_machine_status status = gather(m, p->entries[p->root], 0);
    if (status == XM_MACHINE_OK)
        status = make_state(m, 0, state);
    /* Some text is in every grammar, so all runs were given up. */
    return status == XM_MACHINE_OK && *state == XM_STATE_DEAD ? XM_MACHINE_DEEP : status;
}

/* Before the grammar. */
static xm_machine_status step_free(xm_machine *m, int32_t state, uint8_t byte, int32_t *next)
{
    const xm_machine_options *o = &m->options;
    size_t matched = (size_t)m->states[state].free - 1;
    while (matched > 0 && (uint8_t)o->trigger[matched] != byte)
        matched = o->failure[matched - 1];
    matched += (uint8_t)o->trigger[matched] == byte;
    *next = m->free_states[matched];
    if (*next != XM_UNKNOWN)
        return XM_MACHINE_OK;
    begin_gathering(m);
    xm_machine_status status = matched == o->trigger_length
                                   ? begin_grammar(m, next)
                                   : make_state(m, (int32_t)matched + 1, next);
    if (status == XM_MACHINE_OK)
        m->free_states[matched] = *next;
    return status;
}

xm_machine_status xm_machine_step(xm_machine *m, int32_t state, uint8_t byte, int32_t *next)
{
    const xm_program *p = m->options.program;
    const xm_state s = m->states[state];
    if (s.free != 0)
        return step_free(m, state, byte, next);
    size_t place = (size_t)state * (size_t)p->byte_class_count + p->byte_class[byte];
    *next = m->steps[place];
    if (*next != XM_UNKNOWN)
        return XM_MACHINE_OK;
    xm_machine_status status = XM_MACHINE_OK;
    begin_gathering(m);
    for (size_t i = s.first; i < s.first + s.count && status == XM_MACHINE_OK; i++) {
        uint64_t item = m->items.items[i];
        const xm_node *node = &p->nodes[item >> 32];
        if (node->kind == XM_NODE_SET && xm_byte_set_has(&p->sets[node->operand], byte))
            status = gather(m, node->next, (int32_t)(uint32_t)item);
    }
    if (status == XM_MACHINE_OK)
        status = make_state(m, 0, next);
    if (status == XM_MACHINE_OK)
        m->steps[place] = *next;
    return status;
}

static bool takes_token(const xm_machine *m, uint64_t item, int32_t token)
{
    const xm_node *node = &m->options.program->nodes[item >> 32];
    return node->kind == XM_NODE_TOKEN && node->operand == token;
}

/* Adds to *next, which is where the token's bytes lead, what runs become that take it whole. */
static xm_machine_status join_token(xm_machine *m, int32_t state, int32_t token, int32_t *next)
{
    const xm_state bytes = m->states[*next], before = m->states[state];
    xm_machine_status status = XM_MACHINE_OK;
    size_t i = before.first, end = before.first + before.count;
    while (i < end && !takes_token(m, m->items.items[i], token))
        i++;
    if (i == end)
        return XM_MACHINE_OK;
    begin_gathering(m);
    m->gathered_may_end = bytes.may_end;
    for (; i < end && status == XM_MACHINE_OK; i++) {
        uint64_t item = m->items.items[i];
        if (takes_token(m, item, token))
            status = gather(m, m->options.program->nodes[item >> 32].next, (int32_t)(uint32_t)item);
    }
    for (i = bytes.first; i < bytes.first + bytes.count && status == XM_MACHINE_OK; i++)
        status =
            gather(m, (int32_t)(m->items.items[i] >> 32), (int32_t)(uint32_t)m->items.items[i]);
    return status == XM_MACHINE_OK ? make_state(m, 0, next) : status;
}

xm_machine_status xm_machine_token(xm_machine *m, int32_t state, int32_t token, int32_t *next)
{
    const xm_tokenizer *tokenizer = m->options.tokens->tokenizer;
    bool free = m->states[state].free != 0;
    size_t length = 0;
    const char *bytes = xm_tokenizer_bytes(tokenizer, token, &length);
    xm_machine_status status = XM_MACHINE_OK;
    *next = state;
    if (!free && (length == 0 || xm_tokenizer_is_special(tokenizer, token)))
        *next = XM_STATE_DEAD;
    for (size_t i = 0; i < length && status == XM_MACHINE_OK && *next != XM_STATE_DEAD; i++)
        status = xm_machine_step(m, *next, (uint8_t)bytes[i], next);
    if (status == XM_MACHINE_OK && !free)
        status = join_token(m, state, token, next);
    return status;
}

/* --- states with the same mask ---------------------------------------------------------------- */

/* A stack of `from` in `to`, its frames from the bottom up, with none of more than `most` passes.
 */
static xm_machine_status rebuild_frame(xm_machine *to, const xm_machine *from, int32_t frame,
                                       int32_t most, int32_t *rebuilt)
{
    int32_t nodes[XM_MACHINE_DEPTH], depth = 0;
    for (; frame != 0; frame = from->frames[frame].parent)
        nodes[depth++] =
            xm_program_with_passes(from->options.program, from->frames[frame].node, most);
    to->work += (size_t)depth / 16;
    xm_machine_status status = to->work > XM_MACHINE_WORK ? XM_MACHINE_FULL : XM_MACHINE_OK;
    *rebuilt = 0;
    while (depth > 0 && status == XM_MACHINE_OK)
        status = push_frame(to, nodes[--depth], *rebuilt, rebuilt);
    return status;
}

xm_machine_status xm_machine_like(xm_machine *m, int32_t state, int32_t *like)
{
    const xm_state s = m->states[state];
    xm_machine_status status = XM_MACHINE_OK;
    *like = m->options.program->chain_count == 0 ? state : s.like; /* nothing to shorten */
    if (*like != XM_UNKNOWN)
        return XM_MACHINE_OK;
    begin_gathering(m);
    m->gathered_may_end = s.may_end;
    for (size_t i = s.first; i < s.first + s.count && status == XM_MACHINE_OK; i++) {
        uint64_t item = m->items.items[i];
        int32_t frame = 0;
        status = rebuild_frame(m, m, (int32_t)(uint32_t)item, m->options.tokens->depth, &frame);
        if (status == XM_MACHINE_OK)
            status = push_item(&m->gathered, pack((int32_t)(item >> 32), frame));
    }
    if (status == XM_MACHINE_OK)
        status = make_state(m, s.free, like);
    if (status == XM_MACHINE_OK)
        m->states[state].like = *like;
    return status;
}

/* --- whole machines --------------------------------------------------------------------------- */

static xm_machine_status make_first_states(xm_machine *m)
{
    int32_t state;
    bool triggered = m->options.trigger != NULL;
    begin_gathering(m);
    xm_machine_status status = make_state(m, 0, &state); /* XM_STATE_DEAD */
    if (status != XM_MACHINE_OK)
        return status;
    if (triggered)
        status = make_state(m, 1, &state); /* XM_STATE_START; and what it leads to, as a check */
    return status == XM_MACHINE_OK ? begin_grammar(m, &state) : status;
}

xm_machine_status xm_machine_create(const xm_machine_options *options, xm_machine **machine)
{
    *machine = NULL;
    xm_machine *m = xm_calloc(1, sizeof *m);
    if (m == NULL)
        return XM_MACHINE_NO_MEMORY;
    m->options = *options;
    m->frame_capacity = 64;
    m->frame_count = 1;
    m->frames = xm_calloc(m->frame_capacity, sizeof *m->frames);
    m->free_states = xm_calloc(options->trigger_length + 1, sizeof *m->free_states);
    xm_machine_status status = XM_MACHINE_NO_MEMORY;
    if (m->frames != NULL && m->free_states != NULL && xm_mask_init(m)) {
        for (size_t i = 0; i <= options->trigger_length; i++)
            m->free_states[i] = XM_UNKNOWN;
        status = make_first_states(m);
    }
    if (status == XM_MACHINE_OK)
        *machine = m;
    else
        xm_machine_free(m);
    return status;
}

void xm_machine_free(xm_machine *m)
{
    if (m == NULL)
        return;
    xm_mask_free(m);
    xm_index_map_free(&m->frame_index);
    xm_index_map_free(&m->visited);
    xm_free(m->frames);
    xm_free(m->free_states);
    xm_free(m->states);
    xm_free(m->items.items);
    xm_free(m->steps);
    xm_free(m->table);
    xm_free(m->pending.items);
    xm_free(m->gathered.items);
    xm_free(m);
}

xm_machine_status xm_machine_copy(xm_machine *to, const xm_machine *from, int32_t state,
                                  int32_t *copy)
{
    const xm_state *s = &from->states[state];
    xm_machine_status status = XM_MACHINE_OK;
    begin_gathering(to);
    to->gathered_may_end = s->may_end;
    for (size_t i = s->first; i < s->first + s->count && status == XM_MACHINE_OK; i++) {
        uint64_t item = from->items.items[i];
        int32_t frame = 0;
        status = rebuild_frame(to, from, (int32_t)(uint32_t)item, INT32_MAX, &frame);
        if (status == XM_MACHINE_OK)
            status = gather(to, (int32_t)(item >> 32), frame);
    }
    return status == XM_MACHINE_OK ? make_state(to, s->free, copy) : status;
}

bool xm_machine_may_end(const xm_machine *m, int32_t state)
{
    return m->states[state].may_end;
}

bool xm_machine_is_last(const xm_machine *m, int32_t state)
{
    return m->states[state].count == 0 && m->states[state].free == 0;
}

bool xm_machine_is_free(const xm_machine *m, int32_t state)
{
    return m->states[state].free != 0;
}
