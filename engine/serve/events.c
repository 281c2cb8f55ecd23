/* events.c - what requests are told: fills xmoe_event and calls back, on the scheduler's thread. */
#include "base/memory.h"
#include "serve/scheduler_state.h"

double xm_event_seconds(int64_t from_ns, int64_t to_ns)
{
    return (double)(to_ns - from_ns) * 1e-9;
}

static void emit(const xm_request *request, xmoe_event *event)
{
    event->request = request->id;
    request->params.on_event(request->params.context, event);
}

static xmoe_request_summary summarise(const xm_scheduler *s, const xm_request *r, int64_t now)
{
    xmoe_request_summary summary = {.prompt_tokens = (uint64_t)r->prompt_length,
                                    .cached_tokens = (uint64_t)r->cached_tokens,
                                    .completion_tokens = r->completion_tokens};
    bool has_token = r->completion_tokens > 0;
    summary.queue_seconds = xm_event_seconds(r->submitted_ns, r->started ? r->started_ns : now);
    if (r->started)
        summary.prompt_seconds =
            xm_event_seconds(r->started_ns, has_token ? r->first_token_ns : now);
    if (has_token)
        summary.decode_seconds = xm_event_seconds(r->first_token_ns, now);
    if (r->layer_positions > 0) {
        summary.mean_active_experts = (double)r->activations / (double)r->layer_positions;
        summary.expert_bytes_per_token = summary.mean_active_experts *
                                         (double)s->info->moe_layer_count *
                                         (double)s->info->expert_bytes;
    }
    return summary;
}

void xm_event_progress(const xm_request *request, int32_t done)
{
    xmoe_event event = {.kind = XMOE_EVENT_PROGRESS,
                        .prompt_total = request->prompt_length,
                        .prompt_cached = request->cached_tokens,
                        .prompt_done = done};
    emit(request, &event);
}

void xm_event_prompt(const xm_request *request)
{
    xmoe_event event = {.kind = XMOE_EVENT_PROMPT,
                        .top_count = request->params.top_logprobs,
                        .prompt_logprobs = request->prompt_logprobs,
                        .prompt_top = request->prompt_top};
    emit(request, &event);
}

/* Released text, never NULL. */
static void set_text(const xm_text_stream *stream, xmoe_event *event)
{
    event->text = stream->text.data != NULL ? stream->text.data : "";
    event->text_length = stream->released;
}

void xm_event_token(const xm_scheduler *s, xm_sequence *sequence, const xm_outcome *outcome,
                    int64_t now)
{
    const xm_request *request = sequence->request;
    xmoe_request_summary summary = summarise(s, request, now);
    xmoe_event event = {.kind = XMOE_EVENT_TOKEN,
                        .choice = sequence->choice,
                        .token = outcome->token,
                        .logprob = outcome->logprob,
                        .top = outcome->top,
                        .top_count = request->params.top_logprobs,
                        .summary = &summary};
    set_text(&sequence->text, &event);
    emit(request, &event);
    xm_text_stream_consume(&sequence->text);
}

bool xm_event_choice(xm_sequence *sequence)
{
    const xm_request *request = sequence->request;
    xmoe_routed_experts routed;
    void *memory = NULL;
    bool wants_routed = request->params.routed_experts;
    bool complete =
        !wants_routed || (!xm_route_log_failed(&sequence->routes) &&
                          xm_route_log_weave(&sequence->routes, &routed, &memory, NULL) == XMOE_OK);
    xm_text_stream_finish(&sequence->text);
    complete &= !sequence->text.text.failed;
    if (!complete)
        sequence->finish = XMOE_FINISH_ERROR;
    xmoe_event event = {
        .kind = XMOE_EVENT_CHOICE, .choice = sequence->choice, .finish = sequence->finish};
    set_text(&sequence->text, &event);
    if (wants_routed && complete) {
        routed.first_position = sequence->choice == 0 ? 0 : request->prompt_length;
        event.routed = &routed;
    }
    emit(request, &event);
    xm_text_stream_consume(&sequence->text);
    xm_free(memory);
    return complete;
}

/* The request's own usage, NULL if it was not asked for. */
static const xmoe_usage *own_usage(const xm_request *request)
{
    if (request->usage == NULL)
        return NULL;
    request->usage->usage.phase = XMOE_PHASE_ALL;
    request->usage->usage.since = request->submitted_unix;
    xm_usage_view_derive(request->usage);
    return &request->usage->usage;
}

void xm_event_end(const xm_scheduler *s, const xm_request *request, xmoe_finish finish)
{
    xmoe_request_summary summary = summarise(s, request, request->ended_ns);
    xmoe_event event = {.kind = XMOE_EVENT_END,
                        .finish = finish,
                        .summary = &summary,
                        .usage = own_usage(request),
                        .error = finish == XMOE_FINISH_ERROR ? &request->error : NULL};
    if (finish == XMOE_FINISH_LENGTH && request->embedding != NULL) {
        event.embedding = request->embedding;
        event.embedding_length = request->embedding_length;
    }
    emit(request, &event);
}
