/*
 * print_logits.c - reads token ids from stdin until its end and writes to stdout, as F32, the
 * logits that a model gives after each: for parity_llama_cpp.py, which compiles it. One sequence in
 * one step, keys and values in F32.
 */
#include "model/forward.h"
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST_TOKENS = 4096 };

static int print_logits(const xmoe_model *model, const int32_t *tokens, int32_t count)
{
    int32_t blocks[MOST_TOKENS / XM_KV_TOKENS];
    xmoe_error error = {0};
    xm_pool *pool = NULL;
    xm_kv_cache *cache = NULL;
    xm_forward *forward = NULL;
    xmoe_routing routing;
    size_t values = (size_t)count * (size_t)model->info.vocabulary_size, written = 0;
    for (int32_t i = 0; i < MOST_TOKENS / XM_KV_TOKENS; i++)
        blocks[i] = i;
    xmoe_model_default_routing(model, &routing);
    if (xm_pool_create(2, &pool, &error) != XMOE_OK ||
        xm_kv_cache_create(model, MOST_TOKENS / XM_KV_TOKENS, true, &cache, &error) != XMOE_OK ||
        xm_forward_create(model, pool, cache, count, &forward, &error) != XMOE_OK) {
        fprintf(stderr, "%s\n", error.message);
    } else {
        const xm_segment segment = {
            .tokens = tokens, .token_count = count, .blocks = blocks, .routing = &routing};
        const float *logits = xm_forward_step(forward, &segment, 1, NULL, NULL);
        written = fwrite(logits, sizeof *logits, values, stdout);
    }
    xm_forward_free(forward);
    xm_kv_cache_free(cache);
    xm_pool_free(pool);
    return written == values ? 0 : 1;
}

int main(int count, char **arguments)
{
    static int32_t tokens[MOST_TOKENS];
    int32_t token_count = 0;
    xmoe_error error = {0};
    xmoe_model *model = NULL;
    while (token_count < MOST_TOKENS && scanf("%d", &tokens[token_count]) == 1)
        token_count++;
    if (count != 2 || token_count == 0) {
        fprintf(stderr, "Usage: print_logits MODEL <TOKENS\n");
        return 2;
    }
    if (xmoe_model_load(arguments[1], NULL, &model, &error) != XMOE_OK) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    int32_t limit = model->info.vocabulary_size;
    for (int32_t i = 0; i < token_count; i++)
        if (tokens[i] < 0 || tokens[i] >= limit || token_count > model->info.context_length) {
            fprintf(stderr, "token %d, %d tokens: too large for the model\n", tokens[i],
                    token_count);
            xmoe_model_free(model);
            return 1;
        }
    int status = print_logits(model, tokens, token_count);
    xmoe_model_free(model);
    return status;
}
