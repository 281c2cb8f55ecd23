/* request.c - see request.h. */
#include "serve/request.h"

#include "base/memory.h"
#include "model/model.h"

#include <math.h>
#include <string.h>

void xmoe_request_default_params(xmoe_request_params *params)
{
    *params =
        (xmoe_request_params){.max_tokens = 16,
                              .choices = 1,
                              .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
                              .cache_prompt = true};
}

/* --- checks --- */

static xmoe_status check_prompt(const xmoe_model_info *info, const xmoe_request_params *p,
                                xmoe_error *error)
{
    if (p->prompt == NULL || p->prompt_length == 0)
        return xm_fail_argument(error, "prompt",
                                "the prompt is empty; at least one token is needed");
    int64_t context = info->context_length, reserved = p->max_tokens > 0 ? 1 : 0;
    if (p->prompt_length > (size_t)(context - reserved))
        return xm_fail(error, XMOE_ERROR_TOO_LONG,
                       "the prompt has %zu tokens%s, the model's context %lld", p->prompt_length,
                       reserved ? " and leaves no room for output" : "", (long long)context);
    for (size_t i = 0; i < p->prompt_length; i++)
        if (p->prompt[i] < 0 || p->prompt[i] >= info->vocabulary_size)
            return xm_fail_argument(error, "prompt",
                                    "prompt token %zu is %d, the vocabulary has 0..%d", i,
                                    p->prompt[i], info->vocabulary_size - 1);
    return XMOE_OK;
}

static xmoe_status check_sampling(const xmoe_model_info *info, const xmoe_sampling *s,
                                  xmoe_error *error)
{
    if (!(s->temperature >= 0 && s->temperature < INFINITY))
        return xm_fail_argument(error, "temperature", "temperature is %g, must be 0 or more",
                                (double)s->temperature);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return xm_fail_argument(error, "top_p", "top_p is %g, must be in (0, 1]", (double)s->top_p);
    if (s->top_k < 0)
        return xm_fail_argument(error, "top_k", "top_k is %d, must be 0 (off) or more", s->top_k);
    if (!(s->min_p >= 0 && s->min_p < 1))
        return xm_fail_argument(error, "min_p", "min_p is %g, must be in [0, 1)", (double)s->min_p);
    if (!(fabsf(s->presence_penalty) <= 1e6F))
        return xm_fail_argument(error, "presence_penalty",
                                "presence_penalty is %g, must be in [-1e6, 1e6]",
                                (double)s->presence_penalty);
    if (!(fabsf(s->frequency_penalty) <= 1e6F))
        return xm_fail_argument(error, "frequency_penalty",
                                "frequency_penalty is %g, must be in [-1e6, 1e6]",
                                (double)s->frequency_penalty);
    if (!(s->repetition_penalty > 0 && s->repetition_penalty < INFINITY))
        return xm_fail_argument(error, "repetition_penalty",
                                "repetition_penalty is %g, must be above 0",
                                (double)s->repetition_penalty);
    if (s->logit_bias == NULL && s->logit_bias_count > 0)
        return xm_fail_argument(error, "logit_bias", "logit_bias is missing, its count is %zu",
                                s->logit_bias_count);
    for (size_t i = 0; i < s->logit_bias_count; i++) {
        const xmoe_logit_bias *b = &s->logit_bias[i];
        if (b->token < 0 || b->token >= info->vocabulary_size)
            return xm_fail_argument(error, "logit_bias", "token %d is not in the vocabulary 0..%d",
                                    b->token, info->vocabulary_size - 1);
        if (!isfinite(b->bias))
            return xm_fail_argument(error, "logit_bias", "the bias of token %d is not finite",
                                    b->token);
    }
    return XMOE_OK;
}

static xmoe_status check_rest(const xmoe_request_params *p, xmoe_error *error)
{
    if (p->on_event == NULL)
        return xm_fail_argument(error, "on_event", "there is no event callback");
    if (p->max_tokens < 0)
        return xm_fail_argument(error, "max_tokens", "max_tokens is %d, must be 0 or more",
                                p->max_tokens);
    if (p->choices < 1 || p->choices > XM_MAX_CHOICES)
        return xm_fail_argument(error, "choices", "choices is %d, must be 1..%d", p->choices,
                                XM_MAX_CHOICES);
    if (p->top_logprobs < 0 || p->top_logprobs > XMOE_MAX_TOP_LOGPROBS)
        return xm_fail_argument(error, "top_logprobs", "top_logprobs is %d, must be 0..%d",
                                p->top_logprobs, XMOE_MAX_TOP_LOGPROBS);
    if (p->stop_count > XM_MAX_STOPS)
        return xm_fail_argument(error, "stop", "%zu stop strings, at most %d are allowed",
                                p->stop_count, XM_MAX_STOPS);
    for (size_t i = 0; i < p->stop_count; i++)
        if (p->stop == NULL || p->stop[i] == NULL || p->stop[i][0] == '\0')
            return xm_fail_argument(error, "stop", "stop string %zu is empty", i);
    if (p->pooling < XMOE_POOLING_NONE || p->pooling > XMOE_POOLING_LAST)
        return xm_fail_argument(error, "pooling", "pooling is %d, which is none", (int)p->pooling);
    if (p->pooling != XMOE_POOLING_NONE && (p->max_tokens > 0 || p->choices > 1))
        return xm_fail_argument(error, "pooling",
                                "an embedding takes max_tokens 0 and one choice, not %d and %d",
                                p->max_tokens, p->choices);
    if (!(p->deadline_seconds >= 0 && p->deadline_seconds < 1e9))
        return xm_fail_argument(error, "deadline_seconds",
                                "deadline_seconds is %g, must be 0 (none) or more",
                                p->deadline_seconds);
    return XMOE_OK;
}

static xmoe_status check(const xmoe_model *model, const xmoe_request_params *p, xmoe_error *error)
{
    xmoe_status status = check_rest(p, error);
    if (status == XMOE_OK)
        status = check_prompt(&model->info, p, error);
    if (status == XMOE_OK)
        status = check_sampling(&model->info, &p->sampling, error);
    if (status == XMOE_OK && p->top_logprobs > model->info.vocabulary_size)
        status =
            xm_fail_argument(error, "top_logprobs", "top_logprobs is %d, the vocabulary has %d",
                             p->top_logprobs, model->info.vocabulary_size);
    if (status == XMOE_OK && p->grammar != NULL && xm_grammar_tree(p->grammar) != model->token_tree)
        status = xm_fail_argument(error, "grammar", "the grammar was made for another model");
    if (status == XMOE_OK && p->routing != NULL)
        status = xmoe_routing_check(model, p->routing, error);
    return status;
}

/* --- copies --- */

/* A copy of count elements; NULL only for lack of memory. */
static void *copy(const void *from, size_t count, size_t size)
{
    void *to = xm_calloc(count, size);
    if (to != NULL && count > 0)
        memcpy(to, from, count * size);
    return to;
}

/* Replaces the pointers of r->params by copies; on failure xm_request_free undoes the rest. */
static bool copy_params(xm_request *r, const xmoe_request_params *params)
{
    r->params = *params;
    if (r->params.grammar != NULL)
        xmoe_grammar_hold(r->params.grammar);
    r->params.routing = NULL;
    r->params.stop = NULL;
    r->params.sampling.logit_bias = NULL;
    r->params.prompt = copy(params->prompt, params->prompt_length, sizeof(int32_t));
    if (r->params.prompt == NULL)
        return false;
    r->params.sampling.logit_bias = copy(
        params->sampling.logit_bias, params->sampling.logit_bias_count, sizeof(xmoe_logit_bias));
    return r->params.sampling.logit_bias != NULL &&
           xm_stop_set_init(&r->stops, params->stop, params->stop_count);
}

/* All positions must be computed here: none may come from the prefix cache. */
static bool create_pooled(xm_request *r, const xmoe_model_info *info)
{
    if (r->params.pooling == XMOE_POOLING_NONE)
        return true;
    r->params.cache_prompt = false;
    r->embedding_length = info->embedding_length;
    r->pooled.pooling = r->params.pooling;
    r->pooled.sum = xm_calloc((size_t)info->embedding_length, sizeof *r->pooled.sum);
    r->embedding = xm_calloc((size_t)info->embedding_length, sizeof *r->embedding);
    return r->pooled.sum != NULL && r->embedding != NULL;
}

static bool create_results(xm_request *r, const xmoe_model *model)
{
    const xmoe_model_info *info = &model->info;
    if (!create_pooled(r, info))
        return false;
    size_t prompt = (size_t)r->prompt_length, top = (size_t)r->params.top_logprobs;
    if (r->params.prompt_logprobs) {
        r->prompt_logprobs = xm_calloc(prompt, sizeof(float));
        r->prompt_top = xm_calloc(prompt * top, sizeof(xmoe_token_logprob));
        if (r->prompt_logprobs == NULL || r->prompt_top == NULL)
            return false;
        r->prompt_logprobs[0] = NAN;
        for (size_t i = 0; i < top; i++)
            r->prompt_top[i] = (xmoe_token_logprob){-1, NAN};
    }
    return !r->params.expert_usage ||
           xm_usage_view_create(model->moe_layers, info->moe_layer_count, info->expert_count,
                                &r->usage, NULL) == XMOE_OK;
}

static bool create_sequences(xm_request *r, const xmoe_model_info *info)
{
    r->sequences = xm_calloc((size_t)r->params.choices, sizeof *r->sequences);
    if (r->sequences == NULL)
        return false;
    r->live = r->params.choices;
    for (int32_t i = 0; i < r->params.choices; i++) {
        xm_sequence *s = &r->sequences[i];
        s->request = r;
        s->choice = i;
        s->counted = i == 0 ? 0 : r->prompt_length;
        if (r->params.grammar != NULL)
            xm_matcher_init(&s->matcher, r->params.grammar);
        if (r->params.routed_experts &&
            xm_route_log_init(&s->routes, info->moe_layer_count, NULL) != XMOE_OK)
            return false;
    }
    return true;
}

xmoe_status xm_request_create(const xmoe_model *model, const xmoe_request_params *params,
                              const xmoe_routing *routing, const xm_clock *clock,
                              xm_request **request, xmoe_error *error)
{
    *request = NULL;
    xmoe_status status = check(model, params, error);
    if (status != XMOE_OK)
        return status;
    xm_request *r = xm_calloc(1, sizeof *r);
    if (r == NULL || !copy_params(r, params))
        goto no_memory;
    int32_t room = model->info.context_length - (int32_t)params->prompt_length;
    r->routing = params->routing != NULL ? *params->routing : *routing;
    r->prompt_length = (int32_t)params->prompt_length;
    r->max_tokens = params->max_tokens < room ? params->max_tokens : room;
    r->scored = 1;
    r->submitted_ns = xm_clock_now(clock);
    r->submitted_unix = clock->unix_seconds(clock->context);
    r->deadline_ns = params->deadline_seconds > 0
                         ? r->submitted_ns + (int64_t)(params->deadline_seconds * 1e9)
                         : INT64_MAX;
    if (!create_results(r, model) || !create_sequences(r, &model->info))
        goto no_memory;
    *request = r;
    return XMOE_OK;

no_memory:
    xm_request_free(r);
    return xm_fail_memory(error, "request", sizeof *r + params->prompt_length * sizeof(int32_t));
}

void xm_request_free(xm_request *r)
{
    if (r == NULL)
        return;
    for (int32_t i = 0; r->sequences != NULL && i < r->params.choices; i++) {
        xm_free(r->sequences[i].output);
        xm_text_stream_free(&r->sequences[i].text);
        xm_matcher_free(&r->sequences[i].matcher);
        xm_route_log_free(&r->sequences[i].routes);
    }
    xmoe_grammar_free(r->params.grammar);
    xm_stop_set_free(&r->stops);
    xm_free((void *)r->params.prompt);
    xm_free((void *)r->params.sampling.logit_bias);
    xm_free(r->sequences);
    xm_usage_view_free(r->usage);
    xm_free(r->prompt_logprobs);
    xm_free(r->prompt_top);
    xm_free(r->pooled.sum);
    xm_free(r->embedding);
    xm_free(r);
}

/* --- sequences --- */

void xm_sequence_tokens(const xm_sequence *sequence, int32_t position, int32_t count, int32_t *out)
{
    int32_t prompt_length = sequence->request->prompt_length;
    for (int32_t i = 0; i < count; i++) {
        int32_t at = position + i;
        out[i] = at < prompt_length ? sequence->request->params.prompt[at]
                                    : sequence->output[at - prompt_length];
    }
}

bool xm_sequence_push(xm_sequence *sequence, int32_t token)
{
    if (sequence->output_length == sequence->output_capacity) {
        int32_t capacity = sequence->output_capacity < 32 ? 32 : 2 * sequence->output_capacity;
        int32_t *output = xm_realloc(sequence->output, (size_t)capacity, sizeof *output);
        if (output == NULL)
            return false;
        sequence->output = output;
        sequence->output_capacity = capacity;
    }
    sequence->output[sequence->output_length++] = token;
    return true;
}
