/*
 * answer_embeddings.c - embeddings as JSON: OpenAI's list, numbers or base64, or llama-server's
 * bare one. HTTP threads only.
 */
#include <math.h>

#include "answer.h"

/* What the numbers are multiplied with: of the first `count` numbers, to length 1 if asked for. */
static double scale_of(const xm_generation *generation, const float *values, int32_t count)
{
    double squares = 0;
    for (int32_t i = 0; i < count; i++)
        squares += (double)values[i] * (double)values[i];
    return generation->params.normalize && squares > 0 ? 1 / sqrt(squares) : 1;
}

static void write_numbers(const float *values, int32_t count, double scale, const char *key,
                          xm_json *json)
{
    xm_json_open(json, key, '[');
    for (int32_t i = 0; i < count; i++)
        xm_json_float(json, NULL, (float)((double)values[i] * scale));
    xm_json_close(json, ']');
}

/* RFC 4648, section 4, over the floats' bytes. */
static void write_base64(const float *values, int32_t count, double scale, const char *key,
                         xm_json *json)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    xm_text text = {0};
    uint32_t bits = 0;
    int held = 0; /* bits not yet written */
    for (int32_t i = 0; i < 4 * count; i++) {
        union {
            float value;
            uint32_t bits;
        } number = {(float)((double)values[i / 4] * scale)};
        bits = bits << 8 | (number.bits >> i % 4 * 8 & 255);
        for (held += 8; held >= 6; held -= 6)
            xm_text_add(&text, &digits[bits >> (held - 6) & 63], 1);
    }
    if (held > 0)
        xm_text_add(&text, &digits[bits << (6 - held) & 63], 1);
    xm_text_add(&text, "==", held == 2 ? 2 : held == 4 ? 1 : 0);
    json->out->failed = json->out->failed || text.failed;
    xm_json_bytes(json, key, text.data ? text.data : "", text.length);
    xm_text_free(&text);
}

static void write_item(const xm_generation *generation, size_t index, xm_json *json)
{
    const xm_generate_params *params = &generation->params;
    const float *values = generation->parts[index].end->event.embedding;
    double scale = scale_of(generation, values, params->dimensions);
    xm_json_open(json, NULL, '{');
    if (params->embedding != XM_EMBEDDING_LISTS)
        xm_json_string(json, "object", "embedding");
    xm_json_uint(json, "index", index);
    if (params->embedding == XM_EMBEDDING_LISTS) {
        xm_json_open(json, "embedding", '[');
        write_numbers(values, params->dimensions, scale, NULL, json);
        xm_json_close(json, ']');
    } else if (params->embedding == XM_EMBEDDING_BASE64) {
        write_base64(values, params->dimensions, scale, "embedding", json);
    } else {
        write_numbers(values, params->dimensions, scale, "embedding", json);
    }
    xm_json_close(json, '}');
}

static void write_usage(const xm_generation *generation, xm_json *json)
{
    xmoe_request_summary sum = xm_answer_summary(generation);
    xm_json_open(json, "usage", '{');
    xm_json_uint(json, "prompt_tokens", sum.prompt_tokens);
    xm_json_uint(json, "total_tokens", sum.prompt_tokens);
    xm_answer_prompt_details(&sum, json);
    xm_json_close(json, '}');
}

void xm_answer_embeddings(xm_generation *generation, xm_json *json)
{
    bool lists = generation->params.embedding == XM_EMBEDDING_LISTS;
    if (!lists) {
        xm_json_open(json, NULL, '{');
        xm_json_string(json, "object", "list");
    }
    xm_json_open(json, lists ? NULL : "data", '[');
    for (size_t i = 0; i < generation->params.prompt_count; i++)
        write_item(generation, i, json);
    xm_json_close(json, ']');
    if (lists)
        return;
    xm_json_string(json, "model", generation->model);
    write_usage(generation, json);
    xm_answer_extras(generation, json);
    xm_json_close(json, '}');
}
