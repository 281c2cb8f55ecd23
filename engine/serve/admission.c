/*
 * admission.c - who runs, and on which blocks.
 *
 * Invariants between steps:
 *   - running is in order of priority; every running sequence has blocks for at least the positions
 *     it has computed, and no other sequence holds any;
 *   - a block that is written next is held by one sequence alone: full blocks are shared as they
 *     are, the partial last block of a prompt is copied for each further choice;
 *   - nobody is admitted past an older waiting sequence, so an old request is never overtaken.
 * A sequence gets blocks for all its tokens when it is admitted, so only decoding runs out of them.
 */
#include "serve/scheduler_state.h"

#include "serve/stats.h"

static int32_t blocks_for(int32_t positions)
{
    return (positions + XM_KV_TOKENS - 1) / XM_KV_TOKENS;
}

/* --- lists --- */

void xm_admission_wait(xm_scheduler *s, xm_sequence *sequence)
{
    xm_sequence *after = s->last_waiting;
    while (after != NULL && xm_sequence_before(sequence, after))
        after = after->previous;
    sequence->state = XM_SEQUENCE_WAITING;
    sequence->previous = after;
    sequence->next = after != NULL ? after->next : s->waiting;
    if (sequence->next != NULL)
        sequence->next->previous = sequence;
    else
        s->last_waiting = sequence;
    if (after != NULL)
        after->next = sequence;
    else
        s->waiting = sequence;
}

static void leave_waiting(xm_scheduler *s, xm_sequence *sequence)
{
    if (sequence->previous != NULL)
        sequence->previous->next = sequence->next;
    else
        s->waiting = sequence->next;
    if (sequence->next != NULL)
        sequence->next->previous = sequence->previous;
    else
        s->last_waiting = sequence->previous;
    sequence->next = sequence->previous = NULL;
}

static void join_running(xm_scheduler *s, xm_sequence *sequence)
{
    int32_t at = s->running_count++;
    for (; at > 0 && xm_sequence_before(sequence, s->running[at - 1]); at--)
        s->running[at] = s->running[at - 1];
    s->running[at] = sequence;
    sequence->state = XM_SEQUENCE_RUNNING;
    sequence->request->running++;
}

/* Last block first, so that a chain's beginning stays in the cache longest. */
static void give_back_blocks(xm_scheduler *s, xm_sequence *sequence)
{
    while (sequence->block_count > 0)
        xm_block_pool_release(s->blocks, sequence->blocks[--sequence->block_count]);
    s->free_tables[s->free_table_count++] = sequence->blocks;
    sequence->blocks = NULL;
    sequence->computed = sequence->indexed_blocks = 0;
}

void xm_admission_remove(xm_scheduler *s, xm_sequence *sequence)
{
    if (sequence->state == XM_SEQUENCE_WAITING)
        leave_waiting(s, sequence);
    if (sequence->state != XM_SEQUENCE_RUNNING)
        return;
    int32_t at = 0;
    while (s->running[at] != sequence)
        at++;
    s->running_count--;
    sequence->request->running--;
    for (; at < s->running_count; at++)
        s->running[at] = s->running[at + 1];
    give_back_blocks(s, sequence);
}

/* --- admission --- */

/* Prompts whose log-probabilities are wanted must be computed whole, but only once. */
static bool may_use_cache(const xm_scheduler *s, const xm_request *request)
{
    return s->options.prefix_cache && request->params.cache_prompt &&
           (!request->params.prompt_logprobs || request->scored == request->prompt_length);
}

/* The cached block that the sequence can go on with behind what is computed and indexed, held once
 * more; -1 if there is none. The last token is always left to compute: its logits are needed. */
static int32_t hold_next(xm_scheduler *s, xm_sequence *sequence)
{
    int32_t at = sequence->indexed_blocks, tokens[XM_KV_TOKENS];
    if (!may_use_cache(s, sequence->request) || at * XM_KV_TOKENS != sequence->computed ||
        at >= (xm_sequence_length(sequence) - 1) / XM_KV_TOKENS)
        return -1;
    xm_sequence_tokens(sequence, at * XM_KV_TOKENS, XM_KV_TOKENS, tokens);
    xm_block_hash hash = xm_block_hash_next(sequence->chain, tokens);
    int32_t block = xm_block_pool_find(s->blocks, hash);
    if (block < 0)
        return -1;
    xm_block_pool_hold(s->blocks, block);
    sequence->chain = hash;
    sequence->indexed_blocks++;
    sequence->computed += XM_KV_TOKENS;
    return block;
}

/* Holds the longest chain of cached blocks that the sequence begins with. */
static void hold_prefix(xm_scheduler *s, xm_sequence *sequence)
{
    int32_t block;
    sequence->chain = sequence->request->root;
    while ((block = hold_next(s, sequence)) >= 0)
        sequence->blocks[sequence->block_count++] = block;
}

/* Positions that came from the cache before they were ever computed by this request. */
static void note_cached(xm_scheduler *s, xm_sequence *sequence)
{
    int32_t cached = sequence->computed - sequence->counted;
    if (cached <= 0)
        return;
    s->stats.prefix_hits += (uint64_t)cached;
    sequence->request->cached_tokens += cached;
    sequence->counted = sequence->computed;
    if (sequence->request->params.routed_experts)
        xm_route_log_skip(&sequence->routes, cached);
}

void xm_admission_reuse(xm_scheduler *s, xm_sequence *sequence)
{
    for (;;) {
        int32_t at = sequence->indexed_blocks, block = hold_next(s, sequence);
        if (block < 0)
            break;
        xm_block_pool_release(s->blocks, sequence->blocks[at]);
        sequence->blocks[at] = block;
    }
    note_cached(s, sequence);
}

static void note_start(xm_scheduler *s, xm_request *request)
{
    if (request->started)
        return;
    request->started = true;
    request->started_ns = xm_clock_now(&s->options.clock);
    s->unstarted--;
    xm_histogram_observe(&s->stats.queue_time,
                         xm_event_seconds(request->submitted_ns, request->started_ns));
    if (may_use_cache(s, request))
        s->stats.prefix_queries += (uint64_t)request->prompt_length;
}

/* Beside its own blocks, an admitted sequence must leave one for each running one to grow into, or
 * it would soon be preempted again. */
static bool try_admit(xm_scheduler *s, xm_sequence *sequence)
{
    int32_t reserve = s->running_count;
    if (s->running_count == s->options.max_sequences ||
        (reserve > 0 && xm_block_pool_available(s->blocks) <= reserve))
        return false;
    sequence->blocks = s->free_tables[--s->free_table_count];
    hold_prefix(s, sequence);
    int32_t total = blocks_for(xm_sequence_length(sequence));
    if (reserve > 0 &&
        xm_block_pool_available(s->blocks) < total - sequence->block_count + reserve) {
        give_back_blocks(s, sequence);
        return false;
    }
    while (sequence->block_count < total)
        sequence->blocks[sequence->block_count++] = xm_block_pool_take(s->blocks);
    leave_waiting(s, sequence);
    join_running(s, sequence);
    note_cached(s, sequence);
    note_start(s, sequence->request);
    return true;
}

void xm_admission_admit(xm_scheduler *s)
{
    while (s->waiting != NULL && try_admit(s, s->waiting))
        ;
}

/* --- growth and preemption --- */

static void preempt(xm_scheduler *s, xm_sequence *sequence)
{
    xm_admission_remove(s, sequence);
    xm_admission_wait(s, sequence);
    s->stats.preemptions++;
}

bool xm_admission_grow(xm_scheduler *s, xm_sequence *sequence)
{
    if (sequence->computed < sequence->block_count * XM_KV_TOKENS)
        return true;
    int32_t block;
    while ((block = xm_block_pool_take(s->blocks)) < 0) {
        xm_sequence *youngest = s->running[s->running_count - 1];
        preempt(s, youngest);
        if (youngest == sequence)
            return false;
    }
    sequence->blocks[sequence->block_count++] = block;
    return true;
}

/* --- further choices --- */

/* Joins a choice to the blocks of the first; false if there is no room now. */
static bool try_fork(xm_scheduler *s, const xm_sequence *first, xm_sequence *sequence)
{
    int32_t prompt_length = sequence->request->prompt_length;
    if (s->running_count == s->options.max_sequences ||
        xm_block_pool_available(s->blocks) <= s->running_count ||
        (s->waiting != NULL && xm_sequence_before(s->waiting, sequence)))
        return false;
    sequence->blocks = s->free_tables[--s->free_table_count];
    int32_t full = prompt_length / XM_KV_TOKENS;
    for (; sequence->block_count < full; sequence->block_count++) {
        int32_t block = first->blocks[sequence->block_count];
        xm_block_pool_hold(s->blocks, block);
        sequence->blocks[sequence->block_count] = block;
    }
    if (prompt_length % XM_KV_TOKENS != 0) {
        int32_t block = xm_block_pool_take(s->blocks);
        s->options.backend.copy_block(s->options.backend.context, first->blocks[full], block);
        sequence->blocks[sequence->block_count++] = block;
    }
    sequence->computed = prompt_length;
    sequence->indexed_blocks = first->indexed_blocks;
    sequence->chain = first->chain;
    join_running(s, sequence);
    return true;
}

void xm_admission_fork(xm_scheduler *s, xm_request *request)
{
    for (int32_t i = 1; i < request->params.choices; i++)
        if (!try_fork(s, &request->sequences[0], &request->sequences[i]))
            return;
}

void xm_admission_index(xm_scheduler *s, xm_sequence *sequence)
{
    if (!s->options.prefix_cache || !sequence->request->params.cache_prompt)
        return;
    while ((sequence->indexed_blocks + 1) * XM_KV_TOKENS <= sequence->computed) {
        int32_t tokens[XM_KV_TOKENS], at = sequence->indexed_blocks++;
        xm_sequence_tokens(sequence, at * XM_KV_TOKENS, XM_KV_TOKENS, tokens);
        sequence->chain = xm_block_hash_next(sequence->chain, tokens);
        xm_block_pool_index(s->blocks, sequence->blocks[at], sequence->chain);
    }
}
