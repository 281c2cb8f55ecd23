/*
 * batch.c - one step's tokens: which sequences give how many, the model's run over them, and the
 * accounting and tracing of experts from what the routers report.
 */
#include "base/memory.h"
#include "serve/scheduler_state.h"

#include "serve/stats.h"

xmoe_status xm_batch_init(xm_batch *batch, int32_t max_sequences, int32_t step_tokens,
                          xmoe_error *error)
{
    size_t sequences = (size_t)max_sequences, tokens = (size_t)step_tokens;
    batch->entries = xm_calloc(sequences, sizeof *batch->entries);
    batch->decoding = xm_calloc(sequences, sizeof(xm_sequence *));
    batch->segments = xm_calloc(sequences, sizeof *batch->segments);
    batch->tokens = xm_calloc(tokens, sizeof *batch->tokens);
    batch->is_decode = xm_calloc(tokens, 1);
    batch->routes = xm_calloc(tokens, sizeof *batch->routes);
    if (batch->entries == NULL || batch->decoding == NULL || batch->segments == NULL ||
        batch->tokens == NULL || batch->is_decode == NULL || batch->routes == NULL)
        return xm_fail_memory(error, "batch", tokens * sizeof *batch->routes);
    return XMOE_OK;
}

void xm_batch_free(xm_batch *batch)
{
    xm_free(batch->entries);
    xm_free(batch->decoding);
    xm_free(batch->segments);
    xm_free(batch->tokens);
    xm_free(batch->is_decode);
    xm_free(batch->routes);
}

/* --- choice --- */

static int32_t pending(const xm_sequence *sequence)
{
    return xm_sequence_length(sequence) - sequence->computed;
}

static bool is_decoding(const xm_sequence *sequence)
{
    return sequence->output_length > 0 && pending(sequence) == 1;
}

static void add_entry(xm_scheduler *s, xm_sequence *sequence, int32_t count)
{
    sequence->last_turn = ++s->turns;
    s->batch.entries[s->batch.entry_count++] =
        (xm_batch_entry){.sequence = sequence, .position = sequence->computed, .count = count};
}

/* Whether a had its last turn before b. */
static bool waits_longer(const xm_sequence *a, const xm_sequence *b)
{
    return a->last_turn != b->last_turn ? a->last_turn < b->last_turn : xm_sequence_before(a, b);
}

/* Moves the sequence at `at` down to its place in a heap with the longest waiting one first. */
static void sift_down(xm_sequence **heap, int32_t count, int32_t at)
{
    xm_sequence *sequence = heap[at];
    for (int32_t child = 2 * at + 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && waits_longer(heap[child + 1], heap[child]))
            child++;
        if (waits_longer(sequence, heap[child]))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = sequence;
}

/* Tokens of the budget that decoding must leave to prompts: a quarter, if they need it. With a
 * budget of 1 they alternate. */
static int32_t share_of_prompts(const xm_scheduler *s, int32_t budget)
{
    int32_t share = budget > 1 ? (budget + 3) / 4 : (int32_t)(s->stats.steps % 2);
    int32_t needed = 0;
    for (int32_t i = 0; i < s->running_count && needed < share; i++)
        needed += is_decoding(s->running[i]) ? 0 : pending(s->running[i]);
    return needed < share ? needed : share;
}

/* One token for each decoding sequence; in turns if there are more of them than budget. Returns
 * what is left of it. */
static int32_t choose_decoding(xm_scheduler *s, int32_t budget)
{
    xm_sequence **decoding = s->batch.decoding;
    int32_t count = 0, limit = budget - share_of_prompts(s, budget);
    for (int32_t i = 0; i < s->running_count; i++)
        if (is_decoding(s->running[i]))
            decoding[count++] = s->running[i];
    if (count <= limit) {
        for (int32_t i = 0; i < count; i++)
            add_entry(s, decoding[i], 1);
        return budget - count;
    }
    for (int32_t at = count / 2 - 1; at >= 0; at--)
        sift_down(decoding, count, at);
    for (int32_t i = 0; i < limit; i++) {
        add_entry(s, decoding[0], 1);
        decoding[0] = decoding[--count];
        sift_down(decoding, count, 0);
    }
    return budget - limit;
}

static void choose_prompts(xm_scheduler *s, int32_t budget)
{
    for (int32_t i = 0; i < s->running_count && budget > 0; i++) {
        xm_sequence *sequence = s->running[i];
        if (is_decoding(sequence))
            continue;
        xm_admission_reuse(s, sequence);
        int32_t count = pending(sequence) < budget ? pending(sequence) : budget;
        add_entry(s, sequence, count);
        budget -= count;
    }
}

/* Gives every chosen sequence its blocks, and leaves out those that were preempted for others. */
static void secure_blocks(xm_scheduler *s)
{
    xm_batch *batch = &s->batch;
    for (int32_t i = 0; i < batch->entry_count; i++)
        if (batch->entries[i].sequence->state == XM_SEQUENCE_RUNNING)
            xm_admission_grow(s, batch->entries[i].sequence);
    int32_t kept = 0;
    for (int32_t i = 0; i < batch->entry_count; i++)
        if (batch->entries[i].sequence->state == XM_SEQUENCE_RUNNING)
            batch->entries[kept++] = batch->entries[i];
    batch->entry_count = kept;
}

/* Rows that give logits: those that score prompt tokens, and the sequence's last one, if it
 * samples. */
static int32_t logits_from(const xm_batch_entry *entry)
{
    const xm_request *request = entry->sequence->request;
    if (request->prompt_logprobs != NULL && request->scored < request->prompt_length) {
        int32_t from = request->scored - 1 - entry->position;
        return from < 0 ? 0 : from > entry->count ? entry->count : from;
    }
    bool ends = entry->position + entry->count == xm_sequence_length(entry->sequence);
    return ends && request->max_tokens > 0 ? entry->count - 1 : entry->count;
}

static void lay_out(xm_batch *batch)
{
    batch->rows = 0;
    for (int32_t i = 0; i < batch->entry_count; i++) {
        xm_batch_entry *entry = &batch->entries[i];
        const xm_sequence *sequence = entry->sequence;
        xm_request *request = sequence->request;
        entry->row = batch->rows;
        entry->logits_from = logits_from(entry);
        xm_sequence_tokens(sequence, entry->position, entry->count, batch->tokens + batch->rows);
        for (int32_t j = 0; j < entry->count; j++)
            batch->is_decode[batch->rows + j] = entry->position + j >= request->prompt_length;
        batch->segments[i] =
            (xm_segment){.tokens = batch->tokens + batch->rows,
                         .token_count = entry->count,
                         .position = entry->position,
                         .blocks = sequence->blocks,
                         .routing = &request->routing,
                         .logits_from = entry->logits_from,
                         .pooled = request->embedding != NULL ? &request->pooled : NULL};
        batch->rows += entry->count;
    }
}

void xm_batch_choose(xm_scheduler *s)
{
    s->batch.entry_count = 0;
    int32_t left = choose_decoding(s, s->options.step_tokens);
    choose_prompts(s, left);
    secure_blocks(s);
    lay_out(&s->batch);
}

/* --- run --- */

/* The first computation of these rows counts for the request's own figures. */
static void account(const xm_scheduler *s, const xm_batch_entry *entry, int32_t moe_layer,
                    const xm_selection *selection)
{
    xm_sequence *sequence = entry->sequence;
    xm_request *request = sequence->request;
    int32_t experts = s->info->expert_count;
    int32_t again = sequence->counted - entry->position; /* rows that were computed before */
    for (int32_t i = again < 0 ? 0 : again; i < entry->count; i++) {
        int32_t row = entry->row + i, count = selection->count[row];
        const uint16_t *chosen = selection->expert + (size_t)row * (size_t)selection->experts;
        const float *weights = selection->weight + (size_t)row * (size_t)selection->experts;
        request->layer_positions++;
        request->activations += (uint64_t)count;
        if (request->usage != NULL) {
            uint64_t *record = xm_usage_view_record(request->usage, moe_layer);
            xm_usage_add_position(record, experts, count, chosen, weights);
            record[XM_USAGE_STEPS]++; /* each position a step of its own: no company counts */
            record[XM_USAGE_DISTINCT] += (uint64_t)count;
        }
        if (request->params.routed_experts)
            xm_route_log_append(&sequence->routes, moe_layer, count, chosen, weights);
    }
}

/* What the trace is told of each row and stays the same from layer to layer. */
static void prepare_routes(xm_batch *batch)
{
    for (int32_t i = 0; i < batch->entry_count; i++) {
        const xm_batch_entry *entry = &batch->entries[i];
        const xm_request *request = entry->sequence->request;
        for (int32_t j = 0; j < entry->count; j++) {
            int32_t row = entry->row + j;
            xmoe_phase phase = batch->is_decode[row] ? XMOE_PHASE_DECODE : XMOE_PHASE_PREFILL;
            batch->routes[row] = (xmoe_route){.request = request->id,
                                              .context = request->params.context,
                                              .choice = entry->sequence->choice,
                                              .position = entry->position + j,
                                              .phase = phase};
        }
    }
}

static void tell_trace(const xm_scheduler *s, int32_t moe_layer, const xm_selection *selection)
{
    xmoe_route *routes = s->batch.routes;
    for (int32_t row = 0; row < selection->rows; row++) {
        size_t at = (size_t)row * (size_t)selection->experts;
        routes[row].count = selection->count[row];
        routes[row].experts = selection->expert + at;
        routes[row].weights = selection->weight + at;
    }
    xm_trace_routes(s->options.trace, s->options.model->moe_layers[moe_layer], routes,
                    selection->rows);
}

static void on_routed(void *context, int32_t moe_layer, const xm_selection *selection)
{
    xm_scheduler *s = context;
    xm_usage_route(s->options.usage, moe_layer, selection, s->batch.is_decode);
    for (int32_t i = 0; i < s->batch.entry_count; i++)
        account(s, &s->batch.entries[i], moe_layer, selection);
    if (s->batch.traced)
        tell_trace(s, moe_layer, selection);
}

const float *xm_batch_run(xm_scheduler *s)
{
    xm_batch *batch = &s->batch;
    const xm_backend *backend = &s->options.backend;
    batch->traced = s->options.trace != NULL && xm_trace_begin_step(s->options.trace);
    if (batch->traced)
        prepare_routes(batch);
    const float *logits =
        backend->step(backend->context, batch->segments, batch->entry_count, on_routed, s);
    s->stats.expert_bytes_read += xm_usage_commit(s->options.usage) * s->info->expert_bytes;
    if (batch->traced)
        xm_trace_end_step(s->options.trace); /* what it was told of is in the counters now */
    xm_histogram_observe(&s->stats.step_tokens, batch->rows);
    for (int32_t i = 0; i < batch->entry_count; i++) {
        xm_sequence *sequence = batch->entries[i].sequence;
        sequence->computed += batch->entries[i].count;
        if (sequence->counted < sequence->computed)
            sequence->counted = sequence->computed;
        xm_admission_index(s, sequence);
    }
    return logits;
}
