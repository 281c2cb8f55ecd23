/* infill.c - see infill.h. Each token has the key of newer files, and perhaps that of older ones.
 */
#include "model/infill.h"

static xmoe_status read_id(const xm_gguf *file, const char *key, int32_t vocabulary_size,
                           int32_t *id, xmoe_error *error)
{
    uint32_t value = 0;
    bool found;
    xmoe_status status = xm_gguf_get_u32(file, key, &value, &found, error);
    if (status != XMOE_OK || !found)
        return status;
    if (value >= (uint32_t)vocabulary_size)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: key '%s' is %u, the vocabulary has 0..%d",
                       xm_gguf_path(file), key, value, vocabulary_size - 1);
    *id = (int32_t)value;
    return XMOE_OK;
}

xmoe_status xm_infill_read(const xm_gguf *file, int32_t vocabulary_size, xmoe_infill_tokens *tokens,
                           xmoe_error *error)
{
    *tokens = (xmoe_infill_tokens){-1, -1, -1, -1, -1};
    const struct {
        const char *key;
        int32_t *id;
    } rows[] = {
        {"tokenizer.ggml.prefix_token_id", &tokens->prefix},
        {"tokenizer.ggml.suffix_token_id", &tokens->suffix},
        {"tokenizer.ggml.middle_token_id", &tokens->middle},
        {"tokenizer.ggml.fim_pre_token_id", &tokens->prefix},
        {"tokenizer.ggml.fim_suf_token_id", &tokens->suffix},
        {"tokenizer.ggml.fim_mid_token_id", &tokens->middle},
        {"tokenizer.ggml.fim_rep_token_id", &tokens->repository},
        {"tokenizer.ggml.fim_sep_token_id", &tokens->file},
    };
    xmoe_status status = XMOE_OK;
    for (size_t i = 0; i < sizeof rows / sizeof *rows && status == XMOE_OK; i++)
        status = read_id(file, rows[i].key, vocabulary_size, rows[i].id, error);
    return status;
}
