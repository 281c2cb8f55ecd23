/* scheduler.c - the step, and the beginnings and ends of requests. See scheduler.h and
 * scheduler_state.h. */
#include "serve/scheduler.h"

#include "base/memory.h"
#include "serve/scheduler_state.h"
#include "serve/stats.h"

#include <string.h>

/* --- creation --- */

static xmoe_status create_tables(xm_scheduler *s, xmoe_error *error)
{
    size_t sequences = (size_t)s->options.max_sequences, length = (size_t)s->table_length;
    s->running = xm_calloc(sequences, sizeof(xm_sequence *));
    s->tables = xm_calloc(sequences * length, sizeof(int32_t));
    s->free_tables = xm_calloc(sequences, sizeof(int32_t *));
    s->outcomes = xm_calloc(XM_MAX_OUTCOMES, sizeof *s->outcomes);
    s->scratch = xm_calloc((size_t)s->threads, sizeof *s->scratch);
    if (s->running == NULL || s->tables == NULL || s->free_tables == NULL || s->outcomes == NULL ||
        s->scratch == NULL)
        return xm_fail_memory(error, "scheduler", sequences * length * sizeof(int32_t));
    for (size_t i = 0; i < sequences; i++)
        s->free_tables[i] = s->tables + i * length;
    s->free_table_count = s->options.max_sequences;
    return XMOE_OK;
}

xmoe_status xm_scheduler_create(const xm_scheduler_options *options, xm_scheduler **scheduler,
                                xmoe_error *error)
{
    *scheduler = NULL;
    xm_scheduler *s = xm_calloc(1, sizeof *s);
    if (s == NULL)
        return xm_fail_memory(error, "scheduler", sizeof *s);
    s->options = *options;
    s->info = &options->model->info;
    s->table_length = (s->info->context_length + XM_KV_TOKENS - 1) / XM_KV_TOKENS;
    s->threads = xm_pool_threads(options->pool);
    xm_stats_init(&s->stats, s->info->context_length);
    xmoe_status status = create_tables(s, error);
    if (status == XMOE_OK)
        status = xm_block_pool_create(options->block_count, options->secret, &s->blocks, error);
    if (status == XMOE_OK)
        status = xm_batch_init(&s->batch, options->max_sequences, options->step_tokens, error);
    for (int32_t i = 0; status == XMOE_OK && i < s->threads; i++)
        status = xm_sampler_scratch_init(&s->scratch[i], s->info->vocabulary_size, error);
    if (status != XMOE_OK) {
        xm_scheduler_free(s);
        return status;
    }
    *scheduler = s;
    return XMOE_OK;
}

void xm_scheduler_free(xm_scheduler *s)
{
    if (s == NULL)
        return;
    for (int32_t i = 0; s->scratch != NULL && i < s->threads; i++)
        xm_sampler_scratch_free(&s->scratch[i]);
    xm_batch_free(&s->batch);
    xm_block_pool_free(s->blocks);
    xm_free(s->running);
    xm_free(s->tables);
    xm_free(s->free_tables);
    xm_free(s->outcomes);
    xm_free(s->scratch);
    xm_free(s);
}

/* --- requests --- */

/* The k that a threshold's bounds are made of, whatever the type by default is. */
static int32_t trained_top_k(const xmoe_model *model)
{
    bool any = model->info.moe_layer_count > 0;
    return any ? model->layers[model->moe_layers[0]].moe.rules.trained_top_k : 0;
}

void xm_scheduler_submit(xm_scheduler *s, xm_request *request)
{
    request->next = NULL;
    request->previous = s->last_request;
    if (s->last_request != NULL)
        s->last_request->next = request;
    else
        s->requests = request;
    s->last_request = request;
    request->root = xm_block_hash_root(s->blocks, &request->routing, s->options.model->moe_layers,
                                       s->info->moe_layer_count, s->info->expert_count,
                                       trained_top_k(s->options.model));
    xm_admission_wait(s, &request->sequences[0]);
    s->unstarted++;
    s->stats.requests_submitted++;
}

void xm_scheduler_cancel_all(xm_scheduler *s)
{
    for (xm_request *request = s->requests; request != NULL; request = request->next)
        atomic_store(&request->cancelled, true);
}

bool xm_scheduler_has_work(const xm_scheduler *s)
{
    return s->requests != NULL;
}

static void unlink_request(xm_scheduler *s, xm_request *request)
{
    if (request->previous != NULL)
        request->previous->next = request->next;
    else
        s->requests = request->next;
    if (request->next != NULL)
        request->next->previous = request->previous;
    else
        s->last_request = request->previous;
}

/* How the whole request counts: what cut any of its choices short, else how they stopped. */
static xmoe_finish worst_finish(const xm_request *request)
{
    static const xmoe_finish order[] = {XMOE_FINISH_ERROR, XMOE_FINISH_CANCELLED,
                                        XMOE_FINISH_DEADLINE, XMOE_FINISH_LENGTH};
    for (size_t o = 0; o < sizeof order / sizeof *order; o++)
        for (int32_t i = 0; i < request->params.choices; i++)
            if (request->sequences[i].finish == order[o])
                return order[o];
    return XMOE_FINISH_STOP;
}

/* What the END event says: an error, or what all choices share, else how the others stopped. */
static xmoe_finish told_finish(const xm_request *request)
{
    xmoe_finish first = request->sequences[0].finish;
    bool shared = true, length = false;
    for (int32_t i = 0; i < request->params.choices; i++) {
        shared &= request->sequences[i].finish == first;
        length |= request->sequences[i].finish == XMOE_FINISH_LENGTH;
    }
    if (worst_finish(request) == XMOE_FINISH_ERROR)
        return XMOE_FINISH_ERROR;
    return shared ? first : length ? XMOE_FINISH_LENGTH : XMOE_FINISH_STOP;
}

static void count_end(xm_scheduler *s, const xm_request *request)
{
    xmoe_engine_stats *stats = &s->stats;
    uint64_t *counters[] = {[XMOE_FINISH_STOP] = &stats->requests_stop,
                            [XMOE_FINISH_LENGTH] = &stats->requests_length,
                            [XMOE_FINISH_CANCELLED] = &stats->requests_cancelled,
                            [XMOE_FINISH_DEADLINE] = &stats->requests_deadline,
                            [XMOE_FINISH_ERROR] = &stats->requests_error};
    ++*counters[worst_finish(request)];
    xm_histogram_observe(&stats->end_to_end,
                         xm_event_seconds(request->submitted_ns, request->ended_ns));
    xm_histogram_observe(&stats->prompt_length, request->prompt_length);
    xm_histogram_observe(&stats->generation_length, (double)request->completion_tokens);
    bool has_token = request->completion_tokens > 0;
    if (request->started)
        stats->prompt_seconds += xm_event_seconds(
            request->started_ns, has_token ? request->first_token_ns : request->ended_ns);
    if (!has_token)
        return;
    double decode = xm_event_seconds(request->first_token_ns, request->ended_ns);
    stats->decode_seconds += decode;
    xm_histogram_observe(&stats->decode_time, decode);
}

/* The last choice has ended: the END event follows at the end of the step. */
static void complete(xm_scheduler *s, xm_request *request)
{
    request->ended_ns = xm_clock_now(&s->options.clock);
    if (!request->started)
        s->unstarted--;
    count_end(s, request);
    unlink_request(s, request);
    request->next = NULL;
    if (s->last_ended != NULL)
        s->last_ended->next = request;
    else
        s->ended = request;
    s->last_ended = request;
}

void xm_scheduler_end_sequence(xm_scheduler *s, xm_sequence *sequence, xmoe_finish finish)
{
    xm_request *request = sequence->request;
    xm_admission_remove(s, sequence);
    sequence->state = XM_SEQUENCE_ENDED;
    sequence->finish = finish;
    if (!xm_event_choice(sequence))
        xm_fail(&request->error, XMOE_ERROR_MEMORY, "out of memory for the results of a choice");
    if (--request->live == 0)
        complete(s, request);
}

void xm_scheduler_end_request(xm_scheduler *s, xm_request *request, xmoe_finish finish,
                              const xmoe_error *error)
{
    if (error != NULL)
        request->error = *error;
    for (int32_t i = 0; i < request->params.choices; i++)
        if (request->sequences[i].state != XM_SEQUENCE_ENDED)
            xm_scheduler_end_sequence(s, &request->sequences[i], finish);
}

/* --- the step --- */

static void end_cut_short(xm_scheduler *s)
{
    int64_t now = xm_clock_now(&s->options.clock);
    xm_request *next;
    for (xm_request *request = s->requests; request != NULL; request = next) {
        next = request->next;
        if (atomic_load_explicit(&request->cancelled, memory_order_relaxed))
            xm_scheduler_end_request(s, request, XMOE_FINISH_CANCELLED, NULL);
        else if (now >= request->deadline_ns)
            xm_scheduler_end_request(s, request, XMOE_FINISH_DEADLINE, NULL);
    }
}

static void tell_ended(xm_scheduler *s)
{
    while (s->ended != NULL) {
        xm_request *request = s->ended;
        s->ended = request->next;
        if (s->ended == NULL)
            s->last_ended = NULL;
        xm_event_end(s, request, told_finish(request));
        if (s->options.release != NULL)
            s->options.release(s->options.context, request);
        else
            xm_request_free(request);
    }
}

void xm_scheduler_step(xm_scheduler *s)
{
    end_cut_short(s);
    xm_admission_admit(s);
    if (s->running_count > 0) {
        s->stats.steps++;
        xm_batch_choose(s);
        if (s->batch.entry_count > 0)
            xm_outcome_treat(s, xm_batch_run(s));
    }
    if (s->options.publish != NULL)
        s->options.publish(s->options.context);
    tell_ended(s);
}

/* --- figures --- */

void xm_scheduler_stats(const xm_scheduler *s, xmoe_engine_stats *stats)
{
    *stats = s->stats;
    for (const xm_request *request = s->requests; request != NULL; request = request->next) {
        stats->requests_running += request->running > 0;
        stats->requests_waiting += request->running == 0;
    }
    stats->sequences_running = s->running_count;
    stats->kv_blocks_total = xm_block_pool_total(s->blocks);
    stats->kv_blocks_used = xm_block_pool_held(s->blocks);
    stats->kv_blocks_cached = xm_block_pool_cached(s->blocks);
}

static void fill_slot(const xm_scheduler *s, const xm_request *request, xmoe_slot *slot)
{
    const xm_sequence *first = &request->sequences[0];
    int32_t done =
        first->computed < request->prompt_length ? first->computed : request->prompt_length;
    *slot = (xmoe_slot){.request = request->id,
                        .processing = request->running > 0,
                        .prompt_tokens = request->prompt_length,
                        .prompt_done = first->output_length > 0 ? request->prompt_length : done,
                        .cached_tokens = request->cached_tokens,
                        .generated_tokens = (int32_t)request->completion_tokens,
                        .max_tokens = request->max_tokens,
                        .choices = request->params.choices,
                        .sampling = request->params.sampling};
    slot->sampling.logit_bias = NULL;
    slot->sampling.logit_bias_count = 0;
    if (s->info->moe_layer_count > 0)
        slot->router = request->routing.layers[s->options.model->moe_layers[0]];
}

int32_t xm_scheduler_slots(const xm_scheduler *s, xmoe_slot *slots, int32_t capacity)
{
    int32_t count = 0;
    for (int32_t running = 1; running >= 0; running--)
        for (const xm_request *request = s->requests; request != NULL; request = request->next)
            if (count < capacity && (request->running > 0) == running)
                fill_slot(s, request, &slots[count++]);
    return count;
}

int32_t xm_scheduler_unstarted(const xm_scheduler *s)
{
    return s->unstarted;
}

const xm_block_pool *xm_scheduler_blocks(const xm_scheduler *s)
{
    return s->blocks;
}
