/*
 * generate_params.c - see generate_params.h. Runs on the HTTP threads.
 *
 * Names, ranges and defaults are OpenAI's; where others have a value for "off" (top_k -1, top_p 0)
 * it is understood. Fields that nobody knows are ignored; fields that are known and would change
 * the answer in a way that is not on offer are refused.
 */
#include "generate_params.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "chat_template.h"
#include "infill.h"
#include "router_json.h"

static bool read_sampling(const cJSON *body, xmoe_sampling *sampling, xm_problem *problem)
{
    sampling->temperature = 1;
    int32_t top_k = 0;
    if (!xm_json_read_float(body, "temperature", 0, 2, &sampling->temperature, problem) ||
        !xm_json_read_float(body, "top_p", 0, 1, &sampling->top_p, problem) ||
        !xm_json_read_int32(body, "top_k", -1, INT32_MAX, &top_k, problem) ||
        !xm_json_read_float(body, "min_p", 0, 1, &sampling->min_p, problem) ||
        !xm_json_read_float(body, "presence_penalty", -2, 2, &sampling->presence_penalty,
                            problem) ||
        !xm_json_read_float(body, "frequency_penalty", -2, 2, &sampling->frequency_penalty,
                            problem) ||
        !xm_json_read_float(body, "repetition_penalty", 0.01, 100, &sampling->repetition_penalty,
                            problem))
        return false;
    sampling->top_k = top_k > 0 ? top_k : 0;
    /* The closed ends of the ranges mean: the most probable token alone. */
    if (!(sampling->top_p > 0))
        sampling->top_p = 1e-6f;
    if (sampling->min_p >= 1)
        sampling->min_p = 0.999999f;
    return true;
}

static bool read_seed(const cJSON *body, xmoe_sampling *sampling, xm_problem *problem)
{
    const cJSON *member = xm_json_member(body, "seed");
    if (!member) {
        if (getrandom(&sampling->seed, sizeof sampling->seed, 0) != sizeof sampling->seed)
            return xm_problem_set(problem, 500, "internal_error", NULL, "no random seed to be had");
        return true;
    }
    int64_t seed = 0;
    if (!xm_json_whole(member, INT64_MIN, INT64_MAX, &seed))
        return xm_problem_field(problem, "seed", "'seed' must be a whole number of 64 bits");
    sampling->seed = (uint64_t)seed;
    return true;
}

static bool read_logit_bias(const cJSON *body, int32_t vocabulary, xm_generate_params *params,
                            xm_problem *problem)
{
    const cJSON *member = xm_json_member(body, "logit_bias");
    if (!member)
        return true;
    if (!cJSON_IsObject(member))
        return xm_problem_field(problem, "logit_bias",
                                "'logit_bias' must be an object of token ids");
    size_t count = (size_t)cJSON_GetArraySize(member), used = 0;
    params->logit_bias = calloc(count + 1, sizeof *params->logit_bias);
    if (!params->logit_bias)
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    for (const cJSON *item = member->child; item; item = item->next) {
        char *end = NULL;
        long token = strtol(item->string, &end, 10);
        if (item->string[0] < '0' || item->string[0] > '9' || *end || token >= vocabulary)
            return xm_problem_field(problem, "logit_bias",
                                    "'logit_bias': '%.20s' is not a token id below %d",
                                    item->string, vocabulary);
        if (!cJSON_IsNumber(item) || !(item->valuedouble >= -100 && item->valuedouble <= 100))
            return xm_problem_field(problem, "logit_bias",
                                    "'logit_bias': the bias of %ld must be from -100 to 100",
                                    token);
        params->logit_bias[used++] = (xmoe_logit_bias){(int32_t)token, (float)item->valuedouble};
    }
    params->engine.sampling.logit_bias = params->logit_bias;
    params->engine.sampling.logit_bias_count = used;
    return true;
}

static bool add_stop(xm_generate_params *params, const char *text, xm_problem *problem)
{
    char *copy = strdup(text);
    if (!copy)
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    params->stop[params->engine.stop_count++] = copy;
    return true;
}

static bool read_stop(const cJSON *body, xm_generate_params *params, xm_problem *problem)
{
    const cJSON *member = xm_json_member(body, "stop");
    params->engine.stop = (const char *const *)params->stop;
    const xm_chat_format *format = params->chat ? params->format : NULL;
    const char *own = !format ? NULL : format->source ? format->form->stop : XM_CHAT_STOP;
    if (own && !add_stop(params, own, problem))
        return false;
    if (!member)
        return true;
    if (cJSON_IsString(member) && member->valuestring[0])
        return add_stop(params, member->valuestring, problem);
    if (!cJSON_IsArray(member) || cJSON_GetArraySize(member) > XM_STOP_LIMIT)
        return xm_problem_field(problem, "stop",
                                "'stop' must be a string or up to %d strings, none empty",
                                XM_STOP_LIMIT);
    for (const cJSON *item = member->child; item; item = item->next) {
        if (!cJSON_IsString(item) || !item->valuestring[0])
            return xm_problem_field(problem, "stop", "'stop' must hold strings, none empty");
        if (!add_stop(params, item->valuestring, problem))
            return false;
    }
    return true;
}

/* A number for completions, a flag with a number beside it for chat. */
static bool read_logprobs(const cJSON *body, xm_generate_params *params, xm_problem *problem)
{
    int32_t *top = &params->engine.top_logprobs;
    if (!params->chat) {
        params->logprobs = xm_json_member(body, "logprobs") != NULL;
        if (!xm_json_read_int32(body, "logprobs", 0, 5, top, problem))
            return false;
        params->engine.prompt_logprobs = params->logprobs && params->echo;
        return true;
    }
    if (!xm_json_read_bool(body, "logprobs", &params->logprobs, problem) ||
        !xm_json_read_int32(body, "top_logprobs", 0, XMOE_MAX_TOP_LOGPROBS, top, problem))
        return false;
    if (xm_json_member(body, "top_logprobs") && !params->logprobs)
        return xm_problem_field(problem, "top_logprobs", "'top_logprobs' needs 'logprobs': true");
    return true;
}

static bool read_choices(const cJSON *body, const xm_settings *settings, xm_generate_params *params,
                         xm_problem *problem)
{
    int32_t most = (int32_t)settings->limits_choices;
    params->n = 1;
    if (!xm_json_read_int32(body, "n", 1, most, &params->n, problem))
        return false;
    int32_t best_of = params->n;
    if (!params->chat && !xm_json_read_int32(body, "best_of", 1, most, &best_of, problem))
        return false;
    if (best_of < params->n)
        return xm_problem_field(problem, "best_of", "'best_of' must not be less than 'n'");
    if (params->stream && best_of > params->n)
        return xm_problem_field(problem, "best_of",
                                "'best_of' above 'n' cannot be streamed: the best are known last");
    params->engine.choices = best_of;
    return true;
}

/* Without a limit a chat answer may take what the context leaves; the engine cuts to the context.
 */
static bool read_max_tokens(const cJSON *body, const xm_settings *settings,
                            const xmoe_model_info *info, xm_generate_params *params,
                            xm_problem *problem)
{
    int32_t tokens = params->chat ? info->context_length : 16;
    int32_t least = params->chat ? 1 : 0;
    if (!xm_json_read_int32(body, "max_tokens", least, INT32_MAX, &tokens, problem))
        return false;
    if (params->chat &&
        !xm_json_read_int32(body, "max_completion_tokens", 1, INT32_MAX, &tokens, problem))
        return false;
    if (settings->limits_max_tokens > 0 && tokens > settings->limits_max_tokens)
        tokens = (int32_t)settings->limits_max_tokens;
    params->engine.max_tokens = tokens < info->context_length ? tokens : info->context_length;
    return true;
}

static bool read_stream(const cJSON *body, xm_generate_params *params, xm_problem *problem)
{
    if (!xm_json_read_bool(body, "stream", &params->stream, problem))
        return false;
    const cJSON *options = xm_json_member(body, "stream_options");
    if (!options)
        return true;
    if (!cJSON_IsObject(options))
        return xm_problem_field(problem, "stream_options", "'stream_options' must be an object");
    if (!params->stream)
        return xm_problem_field(problem, "stream_options", "'stream_options' needs 'stream': true");
    return xm_json_read_bool(options, "include_usage", &params->include_usage, problem);
}

static bool read_extras(const cJSON *body, xm_generate_params *params, xm_problem *problem)
{
    xmoe_request_params *engine = &params->engine;
    const char *user = NULL;
    bool skip_special = true;
    bool good = xm_json_read_bool(body, "expert_usage", &engine->expert_usage, problem) &&
                xm_json_read_bool(body, "routed_experts", &engine->routed_experts, problem) &&
                xm_json_read_bool(body, "cache_prompt", &engine->cache_prompt, problem) &&
                xm_json_read_bool(body, "ignore_eos", &engine->ignore_eos, problem) &&
                xm_json_read_bool(body, "skip_special_tokens", &skip_special, problem) &&
                xm_json_read_bool(body, "return_progress", &engine->return_progress, problem) &&
                xm_json_read_bool(body, "timings_per_token", &params->timings_per_token, problem) &&
                xm_json_read_string(body, "user", &user, problem);
    engine->special_text = !skip_special;
    return good;
}

/* The routing is fixed here even where the request brings none, so that the answer can say which it
 * was. params->routing holds the engine's default on entry. */
bool xm_routing_read(const xmoe_model *model, const cJSON *body, xm_generate_params *params,
                     xm_problem *problem)
{
    const cJSON *router = xm_json_member(body, "router");
    params->engine.routing = &params->routing;
    if (!router)
        return true;
    if (!cJSON_IsObject(router))
        return xm_problem_field(problem, "router", "'router' must be an object");
    return xm_router_apply(model, router, "router.", &params->routing, problem);
}

static bool refuse(const cJSON *body, xm_problem *problem)
{
    const cJSON *suffix = xm_json_member(body, "suffix");
    if (suffix && !(cJSON_IsString(suffix) && !suffix->valuestring[0]))
        return xm_problem_field(problem, "suffix", "'suffix' is not supported");
    return true;
}

/* The form that the answer must have. It begins with the answer, so there is no thought before it.
 */
static bool read_form(const cJSON *body, xm_generate_params *params, xm_problem *problem)
{
    xmoe_grammar *form = NULL;
    if (!xm_response_format_read(params->grammars, body, &form, problem))
        return false;
    if (!form)
        return true;
    if (params->reply.tools) {
        xmoe_grammar_free(form);
        return xm_problem_field(problem, "response_format",
                                "an answer's form cannot be asked for beside 'tools', but with "
                                "'tool_choice': \"none\"");
    }
    params->engine.grammar = form;
    params->reply.begins_thinking = false;
    return true;
}

bool xm_generate_params_read(const xmoe_model *model, const xm_settings *settings,
                             const cJSON *body, xm_generate_params *params, xm_problem *problem)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    xmoe_request_params *engine = &params->engine;
    bool echo = false;
    xmoe_request_default_params(engine);
    if (!refuse(body, problem) || !read_stream(body, params, problem) ||
        !xm_json_read_bool(body, "echo", &echo, problem))
        return false;
    params->echo = echo && !params->chat;
    engine->deadline_seconds = (double)settings->limits_request_seconds;
    return read_sampling(body, &engine->sampling, problem) &&
           read_seed(body, &engine->sampling, problem) &&
           read_logit_bias(body, info->vocabulary_size, params, problem) &&
           read_stop(body, params, problem) && read_logprobs(body, params, problem) &&
           read_choices(body, settings, params, problem) &&
           read_max_tokens(body, settings, info, params, problem) &&
           read_extras(body, params, problem) && xm_routing_read(model, body, params, problem) &&
           (params->infill ? xm_infill_prompt_read(model, settings, body, params, problem)
                           : xm_prompts_read(model, settings, body, params, problem)) &&
           read_form(body, params, problem);
}

void xm_generate_params_free(xm_generate_params *params)
{
    for (size_t i = 0; i < params->prompt_count; i++) {
        free(params->prompts[i].tokens);
        xm_text_free(&params->prompts[i].text);
    }
    free(params->prompts);
    free(params->logit_bias);
    cJSON_Delete(params->reply.tools);
    xmoe_grammar_free(params->engine.grammar);
    for (size_t i = 0; i <= XM_STOP_LIMIT; i++)
        free(params->stop[i]);
}
