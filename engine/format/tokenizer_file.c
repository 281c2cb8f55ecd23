/*
 * tokenizer_file.c - the vocabulary of a GGUF file, from its tokenizer.ggml.* keys. See
 * tokenizer.h. Runs on the thread that loads a model. What the file leaves out has the defaults
 * that llama.cpp gives it, but for ids of begin and end, which then are none, and texts of no named
 * rule, which are split by GPT-2's.
 */
#include "format/tokenizer.h"

#include "base/memory.h"
#include "format/utf8.h"

#include <stdio.h>
#include <string.h>

/* What was read; arrays are freed together. */
typedef struct {
    const xm_gguf *file;
    xm_tokenizer_source source;
    xm_string *tokens, *merges;
    int32_t *types;
    float *scores;
    int32_t ends[2];
} reading;

static xmoe_status fail_unknown(const xm_gguf *file, const char *key, xm_string value,
                                const char *known, xmoe_error *error)
{
    char shown[40];
    xm_utf8_printable(value.data, value.length, shown, sizeof shown);
    return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                   "%.100s: %s is '%s', this engine knows only %.240s", xm_gguf_path(file), key,
                   shown, known);
}

static bool is_text(xm_string value, const char *text)
{
    return value.length == strlen(text) && memcmp(value.data, text, value.length) == 0;
}

/* -1 where the key is absent. */
static xmoe_status read_id(const xm_gguf *file, const char *key, int32_t *id, xmoe_error *error)
{
    uint32_t value = 0;
    bool found;
    *id = -1;
    xmoe_status status = xm_gguf_get_u32(file, key, &value, &found, error);
    if (status != XMOE_OK || !found)
        return status;
    if (value > INT32_MAX)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: %s is %u, no possible token",
                       xm_gguf_path(file), key, value);
    *id = (int32_t)value;
    return XMOE_OK;
}

static xmoe_status read_ids(reading *r, xmoe_error *error)
{
    const struct {
        const char *key;
        int32_t *id;
    } ids[] = {
        {"tokenizer.ggml.bos_token_id", &r->source.bos},
        {"tokenizer.ggml.eos_token_id", &r->source.eos},
        {"tokenizer.ggml.eot_token_id", &r->ends[0]},
        {"tokenizer.ggml.eom_token_id", &r->ends[1]},
    };
    xmoe_status status = XMOE_OK;
    for (size_t i = 0; i < sizeof ids / sizeof *ids && status == XMOE_OK; i++)
        status = read_id(r->file, ids[i].key, ids[i].id, error);
    r->source.more_ends = r->ends;
    r->source.more_end_count = 2;
    return status;
}

static xmoe_status check_count(const reading *r, const char *key, size_t count, xmoe_error *error)
{
    if (count == r->source.token_count)
        return XMOE_OK;
    return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: %s has %zu entries for %zu tokens",
                   xm_gguf_path(r->file), key, count, r->source.token_count);
}

static xmoe_status read_tokens(reading *r, xmoe_error *error)
{
    const char *key = "tokenizer.ggml.token_type";
    size_t type_count = 0;
    xmoe_status status = xm_gguf_get_strings(r->file, "tokenizer.ggml.tokens", &r->tokens,
                                             &r->source.token_count, NULL, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_i32s(r->file, key, &r->types, &type_count, NULL, error);
    if (status == XMOE_OK)
        status = check_count(r, key, type_count, error);
    r->source.tokens = r->tokens;
    r->source.types = r->types;
    return status;
}

/* tokenizer.ggml.pre names the split; files from before there were several have GPT-2's. */
static xmoe_status read_byte_level(reading *r, xmoe_error *error)
{
    const char *key = "tokenizer.ggml.pre";
    xm_string pre = {"gpt-2", 5};
    bool found;
    xmoe_status status = xm_gguf_get_string(r->file, key, &pre, &found, error);
    if (status != XMOE_OK)
        return status;
    r->source.split = xm_split_rule_of(pre);
    if (r->source.split == NULL) {
        char known[256];
        xm_split_rule_names(known, sizeof known);
        return fail_unknown(r->file, key, pre, known, error);
    }
    r->source.add_bos = xm_split_rule_adds_bos(r->source.split);
    status = xm_gguf_get_strings(r->file, "tokenizer.ggml.merges", &r->merges,
                                 &r->source.merge_count, NULL, error);
    r->source.merges = r->merges;
    return status;
}

static xmoe_status read_sentencepiece(reading *r, xmoe_error *error)
{
    const char *key = "tokenizer.ggml.scores";
    size_t count = 0;
    bool found;
    xmoe_status status = xm_gguf_get_f32s(r->file, key, &r->scores, &count, NULL, error);
    if (status == XMOE_OK)
        status = check_count(r, key, count, error);
    r->source.scores = r->scores;
    r->source.add_bos = true;
    r->source.add_space = true;
    if (status == XMOE_OK)
        status = xm_gguf_get_bool(r->file, "tokenizer.ggml.add_space_prefix", &r->source.add_space,
                                  &found, error);
    return status;
}

static xmoe_status read_all(reading *r, xmoe_error *error)
{
    xm_string model = {0};
    bool found;
    xmoe_status status = xm_gguf_get_string(r->file, "tokenizer.ggml.model", &model, NULL, error);
    if (status == XMOE_OK)
        status = read_ids(r, error);
    if (status == XMOE_OK)
        status = read_tokens(r, error);
    if (status != XMOE_OK)
        return status;
    if (is_text(model, "gpt2"))
        status = read_byte_level(r, error);
    else if (is_text(model, "llama"))
        status = read_sentencepiece(r, error);
    else
        status = fail_unknown(r->file, "tokenizer.ggml.model", model, "gpt2 and llama", error);
    if (status == XMOE_OK)
        status = xm_gguf_get_bool(r->file, "tokenizer.ggml.add_bos_token", &r->source.add_bos,
                                  &found, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_bool(r->file, "tokenizer.ggml.add_eos_token", &r->source.add_eos,
                                  &found, error);
    return status;
}

xmoe_status xm_tokenizer_from_gguf(const xm_gguf *file, xm_tokenizer **tokenizer, xmoe_error *error)
{
    reading r = {.file = file};
    *tokenizer = NULL;
    xmoe_status status = read_all(&r, error);
    if (status == XMOE_OK)
        status = xm_tokenizer_create(&r.source, tokenizer, error);
    xm_free(r.tokens);
    xm_free(r.merges);
    xm_free(r.types);
    xm_free(r.scores);
    return status;
}
