/*
 * outcome.c - from a step's logits to tokens, scores and ends.
 *
 * Rows of logits are collected as outcomes and computed in one parallel region, each a pure
 * function of its row and its sequence; then they are applied one after the other, in order of
 * rows, on the scheduler's thread.
 */
#include "serve/scheduler_state.h"

#include "serve/stats.h"

#include <math.h>

/* --- computing --- */

static void compute(void *context, int32_t task, int32_t thread)
{
    xm_scheduler *s = context;
    xm_outcome *o = &s->outcomes[task];
    xm_sequence *sequence = o->sequence;
    const xm_request *request = sequence->request;
    const xm_kernels *kernels = s->options.model->kernels;
    uint64_t *allowed = NULL;
    o->status = XM_SAMPLE_OK;
    o->match = XM_MATCH_OK;
    if (o->scored_position == 0 && request->params.grammar != NULL) {
        allowed = s->scratch[thread].allowed;
        o->match = xm_matcher_allowed(&sequence->matcher, !request->params.ignore_eos, allowed);
        if (o->match != XM_MATCH_OK)
            return;
    }
    if (o->scored_position == 0) {
        xm_sample_input input = {.logits = o->logits,
                                 .prompt = request->params.prompt,
                                 .prompt_length = request->prompt_length,
                                 .output = sequence->output,
                                 .output_length = sequence->output_length,
                                 .sampling = &request->params.sampling,
                                 .allowed = allowed,
                                 .choice = sequence->choice};
        o->status = xm_sample(kernels, &s->scratch[thread], &input, &o->token);
    } else {
        o->token = request->params.prompt[o->scored_position];
    }
    if (o->status != XM_SAMPLE_OK)
        return;
    xm_logprobs(kernels, o->logits, s->info->vocabulary_size, o->token, &o->logprob, o->top,
                request->params.top_logprobs);
    if (isnan(o->logprob))
        o->status = XM_SAMPLE_NOT_FINITE;
}

/* --- applying --- */

static void end_with_error(xm_scheduler *s, xm_request *request, xmoe_status status,
                           const char *message)
{
    xmoe_error error;
    xm_fail(&error, status, "%s", message);
    xm_scheduler_end_request(s, request, XMOE_FINISH_ERROR, &error);
}

/* Counts the token that was taken. */
static void note_token_time(xm_scheduler *s, xm_sequence *sequence, int64_t now)
{
    xm_request *request = sequence->request;
    if (request->completion_tokens == 0) {
        request->first_token_ns = now;
        s->stats.prompt_tokens += (uint64_t)request->prompt_length;
        xm_histogram_observe(&s->stats.time_to_first_token,
                             xm_event_seconds(request->submitted_ns, now));
        xm_histogram_observe(&s->stats.prefill_time, xm_event_seconds(request->started_ns, now));
    }
    if (sequence->output_length > 1)
        xm_histogram_observe(&s->stats.inter_token, xm_event_seconds(sequence->last_token_ns, now));
    sequence->last_token_ns = now;
    s->stats.generation_tokens++;
    request->completion_tokens++;
}

/* Ends a choice whose grammar gives no token, or is more than can be done. */
static void end_by_grammar(xm_scheduler *s, xm_sequence *sequence, xm_match_status match)
{
    xm_request *request = sequence->request;
    bool ends = match == XM_MATCH_NOTHING && xm_matcher_may_end(&sequence->matcher);
    if (ends && sequence->choice == 0 && request->completion_tokens == 0)
        s->stats.prompt_tokens += (uint64_t)request->prompt_length;
    if (ends)
        xm_scheduler_end_sequence(s, sequence, XMOE_FINISH_STOP);
    else if (match == XM_MATCH_NOTHING)
        end_with_error(s, request, XMOE_ERROR_ARGUMENT,
                       "the grammar needs text that no token of the model's vocabulary gives");
    else if (match == XM_MATCH_AMBIGUOUS)
        end_with_error(s, request, XMOE_ERROR_ARGUMENT,
                       "the grammar is too ambiguous: too many ways to read the output so far");
    else
        end_with_error(s, request, XMOE_ERROR_MEMORY, "out of memory for the grammar");
}

/* Adds the token to output and text; returns how the sequence ends by it, if it does. */
static xmoe_finish take_token(const xm_scheduler *s, xm_sequence *sequence, int32_t token,
                              xm_match_status *match)
{
    const xm_request *request = sequence->request;
    if (!xm_sequence_push(sequence, token))
        return XMOE_FINISH_ERROR;
    if (xmoe_token_is_end(s->options.model, token)) { /* its text is never shown */
        if (!request->params.ignore_eos)
            return XMOE_FINISH_STOP;
    } else {
        size_t length;
        const char *bytes = xmoe_token_bytes(s->options.model, token, &length);
        if (!request->params.special_text && xmoe_token_is_special(s->options.model, token))
            length = 0;
        bool stopped = xm_text_stream_push(&sequence->text, bytes, length, &request->stops);
        if (sequence->text.text.failed)
            return XMOE_FINISH_ERROR;
        if (stopped)
            return XMOE_FINISH_STOP;
    }
    if (request->params.grammar != NULL) {
        *match = xm_matcher_take(&sequence->matcher, token);
        if (*match != XM_MATCH_OK)
            return XMOE_FINISH_ERROR;
        if (xm_matcher_must_end(&sequence->matcher))
            return XMOE_FINISH_STOP;
    }
    return sequence->output_length == request->max_tokens ? XMOE_FINISH_LENGTH : XMOE_FINISH_NONE;
}

static void apply_token(xm_scheduler *s, xm_outcome *o)
{
    xm_sequence *sequence = o->sequence;
    int64_t now = xm_clock_now(&s->options.clock);
    xmoe_finish finish = take_token(s, sequence, o->token, &o->match);
    if (o->match != XM_MATCH_OK) {
        end_by_grammar(s, sequence, o->match);
        return;
    }
    if (finish == XMOE_FINISH_ERROR) {
        end_with_error(s, sequence->request, XMOE_ERROR_MEMORY, "out of memory for a token");
        return;
    }
    note_token_time(s, sequence, now);
    xm_event_token(s, sequence, o, now);
    if (finish != XMOE_FINISH_NONE)
        xm_scheduler_end_sequence(s, sequence, finish);
    else if (sequence->state == XM_SEQUENCE_UNBORN) /* there was no room for it to join */
        xm_admission_wait(s, sequence);
}

static void apply(xm_scheduler *s, xm_outcome *o)
{
    xm_request *request = o->sequence->request;
    if (o->sequence->state == XM_SEQUENCE_ENDED)
        return;
    if (o->match != XM_MATCH_OK) {
        end_by_grammar(s, o->sequence, o->match);
    } else if (o->status == XM_SAMPLE_NOT_FINITE) {
        end_with_error(s, request, XMOE_ERROR_INTERNAL,
                       "the model gave a logit that is NaN or infinite");
    } else if (o->status == XM_SAMPLE_ALL_BANNED) {
        end_with_error(s, request, XMOE_ERROR_ARGUMENT,
                       request->params.grammar == NULL
                           ? "logit_bias bans every token"
                           : "logit_bias bans every token that the grammar allows");
    } else if (o->scored_position > 0) {
        request->prompt_logprobs[o->scored_position] = o->logprob;
        request->scored = o->scored_position + 1;
    } else {
        apply_token(s, o);
    }
}

static void flush(xm_scheduler *s)
{
    xm_pool_run(s->options.pool, s->outcome_count, compute, s);
    for (int32_t i = 0; i < s->outcome_count; i++)
        apply(s, &s->outcomes[i]);
    s->outcome_count = 0;
}

/* --- collecting --- */

static void collect(xm_scheduler *s, xm_sequence *sequence, const float *logits,
                    int32_t scored_position)
{
    if (s->outcome_count == XM_MAX_OUTCOMES)
        flush(s);
    xm_outcome *o = &s->outcomes[s->outcome_count++];
    const xm_request *request = sequence->request;
    o->sequence = sequence;
    o->logits = logits;
    o->scored_position = scored_position;
    o->top = scored_position == 0 ? o->sampled_top
                                  : request->prompt_top + (size_t)scored_position *
                                                              (size_t)request->params.top_logprobs;
}

/* From the pooled states; false if it is not finite. */
static bool make_embedding(xm_request *request)
{
    const xm_pooled *pooled = &request->pooled;
    double share = pooled->pooling == XMOE_POOLING_MEAN ? 1.0 / pooled->positions : 1.0;
    bool finite = true;
    for (int32_t i = 0; i < request->embedding_length; i++) {
        request->embedding[i] = (float)(pooled->sum[i] * share);
        finite = finite && isfinite(request->embedding[i]);
    }
    return finite;
}

/* The prompt is complete: each choice samples its first token from the same row. */
static void begin_output(xm_scheduler *s, xm_request *request, const float *logits)
{
    if (request->prompt_logprobs != NULL) {
        flush(s);
        if (request->live == 0)
            return;
        xm_event_prompt(request);
    }
    if (request->embedding != NULL && !make_embedding(request)) {
        end_with_error(s, request, XMOE_ERROR_INTERNAL,
                       "the model gave a state that is NaN or infinite");
        return;
    }
    if (request->max_tokens == 0) {
        s->stats.prompt_tokens += (uint64_t)request->prompt_length;
        xm_scheduler_end_request(s, request, XMOE_FINISH_LENGTH, NULL);
        return;
    }
    xm_admission_fork(s, request);
    for (int32_t i = 0; i < request->params.choices; i++)
        collect(s, &request->sequences[i], logits, 0);
}

static void tell_progress(const xm_batch_entry *entry)
{
    xm_request *request = entry->sequence->request;
    int32_t done = entry->position + entry->count;
    done = done < request->prompt_length ? done : request->prompt_length;
    if (!request->params.return_progress || entry->sequence->choice != 0 ||
        done <= request->progress)
        return;
    request->progress = done;
    xm_event_progress(request, done);
}

/* Treats one entry, whose first row of logits is given. */
static void treat(xm_scheduler *s, const xm_batch_entry *entry, const float *logits)
{
    xm_sequence *sequence = entry->sequence;
    xm_request *request = sequence->request;
    size_t vocabulary = (size_t)s->info->vocabulary_size;
    if (sequence->state != XM_SEQUENCE_RUNNING)
        return;
    if (xm_route_log_failed(&sequence->routes)) {
        end_with_error(s, request, XMOE_ERROR_MEMORY, "out of memory for routed experts");
        return;
    }
    tell_progress(entry);
    int32_t end = entry->position + entry->count;
    for (int32_t i = entry->logits_from; i < entry->count; i++) {
        int32_t next = entry->position + i + 1; /* position of the token that this row predicts */
        if (next < request->prompt_length && request->prompt_logprobs != NULL)
            collect(s, sequence, logits + (size_t)(i - entry->logits_from) * vocabulary, next);
    }
    if (end < xm_sequence_length(sequence))
        return;
    const float *last = NULL; /* none where nothing is sampled */
    if (entry->logits_from < entry->count)
        last = logits + (size_t)(entry->count - 1 - entry->logits_from) * vocabulary;
    if (sequence->output_length == 0)
        begin_output(s, request, last);
    else
        collect(s, sequence, last, 0);
}

void xm_outcome_treat(xm_scheduler *s, const float *logits)
{
    for (int32_t i = 0; i < s->batch.entry_count; i++) {
        const xm_batch_entry *entry = &s->batch.entries[i];
        treat(s, entry, logits);
        logits += (size_t)(entry->count - entry->logits_from) * (size_t)s->info->vocabulary_size;
    }
    flush(s);
}
