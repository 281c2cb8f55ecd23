/*
 * answer_parts.c - the members that whole answers and chunks have in common.
 */
#include "answer.h"
#include "router_json.h"
#include "server.h"
#include "usage_json.h"

xmoe_request_summary xm_answer_summary(const xm_generation *generation)
{
    xmoe_request_summary sum = {0};
    double weight = 0;
    for (size_t i = 0; i < generation->params.prompt_count; i++) {
        const xm_event *end = generation->parts[i].end;
        const xmoe_request_summary *part = end ? end->event.summary : NULL;
        if (!part)
            continue;
        double tokens =
            (double)(part->prompt_tokens - part->cached_tokens + part->completion_tokens);
        sum.prompt_tokens += part->prompt_tokens;
        sum.cached_tokens += part->cached_tokens;
        sum.completion_tokens += part->completion_tokens;
        sum.queue_seconds += part->queue_seconds;
        sum.prompt_seconds += part->prompt_seconds;
        sum.decode_seconds += part->decode_seconds;
        sum.mean_active_experts += tokens * part->mean_active_experts;
        sum.expert_bytes_per_token += tokens * part->expert_bytes_per_token;
        weight += tokens;
    }
    if (weight > 0) {
        sum.mean_active_experts /= weight;
        sum.expert_bytes_per_token /= weight;
    }
    return sum;
}

void xm_answer_prompt_details(const xmoe_request_summary *summary, xm_json *json)
{
    xm_json_open(json, "prompt_tokens_details", '{');
    xm_json_uint(json, "cached_tokens", summary->cached_tokens);
    xm_json_close(json, '}');
}

void xm_answer_usage(const xm_generation *generation, xm_json *json)
{
    xmoe_request_summary sum = xm_answer_summary(generation);
    xm_json_open(json, "usage", '{');
    xm_json_uint(json, "prompt_tokens", sum.prompt_tokens);
    xm_json_uint(json, "completion_tokens", sum.completion_tokens);
    xm_json_uint(json, "total_tokens", sum.prompt_tokens + sum.completion_tokens);
    xm_answer_prompt_details(&sum, json);
    xm_json_close(json, '}');
}

static double per(double amount, double count)
{
    return count > 0 ? amount / count : 0;
}

void xm_answer_timings(const xmoe_request_summary *summary, xm_json *json)
{
    double prompt = (double)(summary->prompt_tokens - summary->cached_tokens);
    double predicted = (double)summary->completion_tokens;
    xm_json_open(json, "timings", '{');
    xm_json_uint(json, "cache_n", summary->cached_tokens);
    xm_json_uint(json, "prompt_n", summary->prompt_tokens - summary->cached_tokens);
    xm_json_double(json, "prompt_ms", summary->prompt_seconds * 1e3);
    xm_json_double(json, "prompt_per_token_ms", per(summary->prompt_seconds * 1e3, prompt));
    xm_json_double(json, "prompt_per_second", per(prompt, summary->prompt_seconds));
    xm_json_uint(json, "predicted_n", summary->completion_tokens);
    xm_json_double(json, "predicted_ms", summary->decode_seconds * 1e3);
    xm_json_double(json, "predicted_per_token_ms", per(summary->decode_seconds * 1e3, predicted));
    xm_json_double(json, "predicted_per_second", per(predicted, summary->decode_seconds));
    xm_json_double(json, "queue_ms", summary->queue_seconds * 1e3);
    xm_json_double(json, "mean_active_experts", summary->mean_active_experts);
    xm_json_double(json, "expert_bytes_per_token", summary->expert_bytes_per_token);
    xm_json_close(json, '}');
}

/* One object for one prompt; for several an array, in their order. */
static void write_expert_usage(xm_generation *generation, xm_json *json)
{
    const xm_server *server = generation->exchange->server;
    size_t count = generation->params.prompt_count;
    if (count > 1)
        xm_json_open(json, "expert_usage", '[');
    for (size_t i = 0; i < count; i++) {
        const char *key = count > 1 ? NULL : "expert_usage";
        const xm_event *end = generation->parts[i].end;
        if (end && end->event.usage)
            xm_usage_write(server->model, server->model_id, end->event.usage,
                           &generation->params.routing, NULL, json, key);
        else
            xm_json_null(json, key);
    }
    if (count > 1)
        xm_json_close(json, ']');
}

void xm_answer_extras(xm_generation *generation, xm_json *json)
{
    xmoe_request_summary sum = xm_answer_summary(generation);
    xm_answer_timings(&sum, json);
    xm_router_write(generation->exchange->server->model, &generation->params.routing, json,
                    "router");
    if (generation->params.engine.expert_usage)
        write_expert_usage(generation, json);
}

/* One cell of routed experts: [3, 7], or null where it is not known. */
static size_t write_cell(const xmoe_routed_experts *routed, size_t cell, size_t at, bool weights,
                         xm_json *json)
{
    uint16_t count = routed->counts[cell];
    if (count == XMOE_ROUTED_UNKNOWN) {
        xm_json_null(json, NULL);
        return at;
    }
    xm_json_open(json, NULL, '[');
    for (uint16_t i = 0; i < count; i++, at++)
        if (weights)
            xm_json_float(json, NULL, routed->weights[at]);
        else
            xm_json_int(json, NULL, routed->experts[at]);
    xm_json_close(json, ']');
    return at;
}

/* [position][MoE layer][rank] */
static void write_cells(const xmoe_routed_experts *routed, bool weights, xm_json *json)
{
    size_t at = 0, layers = (size_t)routed->moe_layers;
    xm_json_open(json, weights ? "weights" : "experts", '[');
    for (size_t position = 0; position < (size_t)routed->position_count; position++) {
        xm_json_open(json, NULL, '[');
        for (size_t layer = 0; layer < layers; layer++)
            at = write_cell(routed, position * layers + layer, at, weights, json);
        xm_json_close(json, ']');
    }
    xm_json_close(json, ']');
}

void xm_answer_routed(const xm_generation *generation, const xm_choice *choice, xm_json *json)
{
    if (!generation->params.engine.routed_experts || choice->finish == XMOE_FINISH_NONE)
        return;
    if (!choice->routed) {
        xm_json_null(json, "routed_experts");
        return;
    }
    const xmoe_model *model = generation->exchange->server->model;
    const xmoe_routed_experts *routed = choice->routed->event.routed;
    xm_json_open(json, "routed_experts", '{');
    xm_json_int(json, "first_position", routed->first_position);
    xm_json_open(json, "layers", '[');
    for (int32_t layer = 0; layer < xmoe_model_get_info(model)->layer_count; layer++)
        if (xmoe_model_layer_is_moe(model, layer))
            xm_json_int(json, NULL, layer);
    xm_json_close(json, ']');
    write_cells(routed, false, json);
    write_cells(routed, true, json);
    xm_json_close(json, '}');
}

void xm_answer_reply(const xm_choice *choice, bool delta, xm_json *json)
{
    const xm_reply *reply = &choice->reply;
    if (reply->thoughts.length)
        xm_json_bytes(json, "reasoning_content", reply->thoughts.data, reply->thoughts.length);
    if (reply->calls_written == reply->calls.count)
        return;
    xm_json_open(json, "tool_calls", '[');
    for (size_t i = reply->calls_written; i < reply->calls.count; i++) {
        const xm_tool_call *call = &reply->calls.items[i];
        xm_json_open(json, NULL, '{');
        if (delta)
            xm_json_uint(json, "index", i);
        xm_json_string(json, "id", call->id);
        xm_json_string(json, "type", "function");
        xm_json_open(json, "function", '{');
        xm_json_string(json, "name", call->name);
        xm_json_string(json, "arguments", call->arguments);
        xm_json_close(json, '}');
        xm_json_close(json, '}');
    }
    xm_json_close(json, ']');
}

/* A request that ran out of its time is cut like one that ran out of tokens. */
const char *xm_answer_finish_reason(const xm_choice *choice)
{
    switch (choice->finish) {
    case XMOE_FINISH_NONE:
        return NULL;
    case XMOE_FINISH_STOP:
        return choice->reply.calls.count ? "tool_calls" : "stop";
    default:
        return "length";
    }
}
