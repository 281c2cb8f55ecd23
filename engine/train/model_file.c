/*
 * model_file.c - see model_file.h.
 */
#include "train/model_file.h"

#include "base/memory.h"

#include <stdio.h>
#include <string.h>

/* A key of the architecture: "llama.context_length". */
static const char *key_of(char name[64], const xm_network_shape *s, const char *rest)
{
    snprintf(name, 64, "%s.%s", xm_architecture_name(s->architecture), rest);
    return name;
}

static void write_router_keys(xm_gguf_writer *writer, const xm_network_shape *s)
{
    char name[64];
    bool xmoe = s->architecture == XM_ARCHITECTURE_XMOE;
    int32_t top_k = xmoe || s->router == XMOE_ROUTER_TOP_K ? s->top_k : s->experts;
    if (top_k > s->experts) /* a default that the router did not use: dense, hash, ... */
        top_k = s->experts;
    xm_gguf_writer_u32(writer, key_of(name, s, "expert_count"), (uint32_t)s->experts);
    xm_gguf_writer_u32(writer, key_of(name, s, "expert_feed_forward_length"),
                       (uint32_t)s->expert_feed_forward);
    xm_gguf_writer_string(writer, key_of(name, s, "router.type"),
                          xm_router_kind_of(s->gate, s->router)->name);
    xm_gguf_writer_f32(writer, key_of(name, s, "router.threshold"), s->threshold);
    /* Who knows no other router takes these many of the best: of the families' files all, where
     * the network was trained with a threshold. */
    xm_gguf_writer_u32(writer, key_of(name, s, "expert_used_count"), (uint32_t)top_k);
    if (xmoe)
        xm_gguf_writer_bool(writer, "xmoe.router.normalize", false);
    if (s->router_views > 1) {
        xm_gguf_writer_u32(writer, key_of(name, s, "router.views"), (uint32_t)s->router_views);
        xm_gguf_writer_f32(writer, key_of(name, s, "router.view_temperature"), s->view_temperature);
    }
    if (s->gate == XM_GATE_RECURRENT)
        xm_gguf_writer_u32(writer, "xmoe.router.state_length", (uint32_t)s->router_state);
}

static void write_keys(xm_gguf_writer *writer, const xm_network_shape *s,
                       const xm_model_labels *labels)
{
    char name[64];
    bool xmoe = s->architecture == XM_ARCHITECTURE_XMOE;
    int32_t hidden =
        s->architecture == XM_ARCHITECTURE_OLMOE ? s->expert_feed_forward : s->feed_forward;
    xm_gguf_writer_string(writer, "general.architecture", xm_architecture_name(s->architecture));
    if (labels->name != NULL)
        xm_gguf_writer_string(writer, "general.name", labels->name);
    if (labels->license != NULL)
        xm_gguf_writer_string(writer, "general.license", labels->license);
    if (labels->description != NULL)
        xm_gguf_writer_string(writer, "general.description", labels->description);
    xm_gguf_writer_u32(writer, key_of(name, s, "context_length"), (uint32_t)s->context);
    xm_gguf_writer_u32(writer, key_of(name, s, "embedding_length"), (uint32_t)s->width);
    xm_gguf_writer_u32(writer, key_of(name, s, "block_count"), (uint32_t)s->blocks);
    xm_gguf_writer_u32(writer, key_of(name, s, "attention.head_count"), (uint32_t)s->heads);
    xm_gguf_writer_f32(
        writer,
        key_of(name, s, xmoe ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon"),
        s->epsilon);
    xm_gguf_writer_u32(writer, key_of(name, s, "feed_forward_length"), (uint32_t)hidden);
    if (!xmoe) {
        xm_gguf_writer_u32(writer, key_of(name, s, "attention.head_count_kv"), (uint32_t)s->heads);
        xm_gguf_writer_u32(writer, key_of(name, s, "rope.dimension_count"),
                           (uint32_t)(s->width / s->heads));
        xm_gguf_writer_f32(writer, key_of(name, s, "rope.freq_base"), (float)XM_ROPE_BASE);
    }
    if (s->architecture != XM_ARCHITECTURE_LLAMA)
        write_router_keys(writer, s);
}

static void write_tokenizer(xm_gguf_writer *writer, const xm_vocabulary *vocabulary,
                            const xm_vocabulary_strings *strings)
{
    size_t size = (size_t)xm_vocabulary_size(vocabulary);
    xm_gguf_writer_string(writer, "tokenizer.ggml.model", "gpt2");
    xm_gguf_writer_string(writer, "tokenizer.ggml.pre", "gpt-2");
    xm_gguf_writer_strings(writer, "tokenizer.ggml.tokens", strings->tokens, size);
    xm_gguf_writer_i32s(writer, "tokenizer.ggml.token_type", strings->types, size);
    xm_gguf_writer_strings(writer, "tokenizer.ggml.merges", strings->merges,
                           (size_t)vocabulary->merge_count);
    xm_gguf_writer_u32(writer, "tokenizer.ggml.bos_token_id", XM_END_OF_TEXT);
    xm_gguf_writer_u32(writer, "tokenizer.ggml.eos_token_id", XM_END_OF_TEXT);
}

xmoe_status xm_model_file_write(const char *path, const xm_network *network,
                                const xm_vocabulary *vocabulary, const xm_model_labels *labels,
                                const float *parameters, xmoe_error *error)
{
    xm_vocabulary_strings strings;
    xm_gguf_writer *writer = NULL;
    xmoe_status status = xm_vocabulary_make_strings(vocabulary, &strings, error);
    if (status == XMOE_OK)
        status = xm_gguf_writer_create(path, &writer, error);
    if (status == XMOE_OK) {
        write_keys(writer, &network->shape, labels);
        write_tokenizer(writer, vocabulary, &strings);
        for (int32_t i = 0; i < network->parameter_count; i++) {
            const xm_parameter *p = &network->parameters[i];
            xm_gguf_writer_tensor(writer, p->name, XM_TYPE_F32, p->dimensions, p->shape);
        }
        xm_gguf_writer_begin(writer);
        for (int32_t i = 0; i < network->parameter_count; i++) {
            const xm_parameter *p = &network->parameters[i];
            xm_gguf_writer_data(writer, parameters + p->offset, p->count * sizeof *parameters);
        }
        status = xm_gguf_writer_finish(writer, error);
    }
    xm_vocabulary_strings_free(&strings);
    return status;
}

static xmoe_status read_count(const xm_gguf *file, const char *key, int32_t *value,
                              xmoe_error *error)
{
    uint32_t count = 0;
    xmoe_status status = xm_gguf_get_u32(file, key, &count, NULL, error);
    if (status == XMOE_OK && count > INT32_MAX)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s is %u", key, count);
    *value = (int32_t)count;
    return status;
}

static xmoe_status read_counts(const xm_gguf *file, xm_network_shape *s, xmoe_error *error)
{
    bool llama = s->architecture == XM_ARCHITECTURE_LLAMA;
    const struct {
        const char *key;
        int32_t *value;
        bool there;
    } keys[] = {
        {"context_length", &s->context, true},
        {"embedding_length", &s->width, true},
        {"block_count", &s->blocks, true},
        {"attention.head_count", &s->heads, true},
        {"feed_forward_length", &s->feed_forward, true},
        {"expert_count", &s->experts, !llama},
        {"expert_feed_forward_length", &s->expert_feed_forward, !llama},
    };
    xmoe_status status = XMOE_OK;
    char name[64];
    s->experts = s->expert_feed_forward = 1;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0] && status == XMOE_OK; i++)
        if (keys[i].there)
            status = read_count(file, key_of(name, s, keys[i].key), keys[i].value, error);
    if (status != XMOE_OK)
        return status;
    const char *epsilon = s->architecture == XM_ARCHITECTURE_XMOE
                              ? "attention.layer_norm_epsilon"
                              : "attention.layer_norm_rms_epsilon";
    return xm_gguf_get_f32(file, key_of(name, s, epsilon), &s->epsilon, NULL, error);
}

/* The trainer knows one pattern: every moe_every-th block. */
static xmoe_status read_pattern(const xm_gguf *file, xm_network_shape *s, xmoe_error *error)
{
    s->moe_every = 0;
    for (int32_t block = 0; block < s->blocks; block++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", block);
        bool moe = xm_gguf_find_tensor(file, name) != NULL;
        snprintf(name, sizeof name, "blk.%d.ffn_hash.weight", block);
        moe = moe || xm_gguf_find_tensor(file, name) != NULL;
        if (moe && s->moe_every == 0)
            s->moe_every = block + 1;
        if (moe != (s->moe_every > 0 && block % s->moe_every == s->moe_every - 1))
            return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                           "MoE blocks do not follow each other at equal distances (block %d)",
                           block);
    }
    return XMOE_OK;
}

static xmoe_status check_rope(const xm_gguf *file, const xm_network_shape *s, xmoe_error *error)
{
    char key[64];
    bool found = false;
    xm_string scaling = {"none", 4};
    float base = XM_ROPE_BASE;
    uint32_t size = s->heads > 0 ? (uint32_t)(s->width / s->heads) : 0, turned = size;
    if (s->architecture == XM_ARCHITECTURE_XMOE)
        return XMOE_OK;
    xmoe_status status =
        xm_gguf_get_f32(file, key_of(key, s, "rope.freq_base"), &base, &found, error);
    if (status == XMOE_OK)
        status =
            xm_gguf_get_u32(file, key_of(key, s, "rope.dimension_count"), &turned, &found, error);
    if (status == XMOE_OK)
        status =
            xm_gguf_get_string(file, key_of(key, s, "rope.scaling.type"), &scaling, &found, error);
    if (status == XMOE_OK && (base != (float)XM_ROPE_BASE || turned != size ||
                              scaling.length != 4 || memcmp(scaling.data, "none", 4) != 0))
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "%s.rope.*: the trainer turns whole heads by base %d, not scaled",
                       xm_architecture_name(s->architecture), XM_ROPE_BASE);
    return status;
}

/* Texts are encoded with XM_END_OF_TEXT between documents, and tokens must be rows of the
 * embedding. */
static xmoe_status check_tokenizer(const xm_gguf *file, const xm_network_shape *s,
                                   xmoe_error *error)
{
    xm_string *tokens = NULL;
    size_t count = 0;
    uint32_t end = 0;
    xmoe_status status =
        xm_gguf_get_strings(file, "tokenizer.ggml.tokens", &tokens, &count, NULL, error);
    xm_free(tokens);
    if (status == XMOE_OK && count != (size_t)s->vocabulary)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%zu tokens, but token_embd.weight has %d rows",
                       count, s->vocabulary);
    if (status == XMOE_OK)
        status = xm_gguf_get_u32(file, "tokenizer.ggml.eos_token_id", &end, NULL, error);
    if (status == XMOE_OK && end != XM_END_OF_TEXT)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "tokenizer.ggml.eos_token_id is %u: the trainer knows vocabularies of its "
                       "own, where it is %d (xmoe-eval measures all)",
                       end, XM_END_OF_TEXT);
    return status;
}

/* xm_network_create says what is wrong with them. */
static xmoe_status read_views(const xm_gguf *file, xm_network_shape *s, xmoe_error *error)
{
    char key[64];
    bool found = false;
    uint32_t views = 1;
    xmoe_status status =
        xm_gguf_get_u32(file, key_of(key, s, "router.views"), &views, &found, error);
    s->router_views = views <= XM_MAX_ROUTER_VIEWS ? (int32_t)views : XM_MAX_ROUTER_VIEWS + 1;
    if (status != XMOE_OK || views == 1)
        return status;
    if (views == 0)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s is 0", key);
    return xm_gguf_get_f32(file, key_of(key, s, "router.view_temperature"), &s->view_temperature,
                           NULL, error);
}

static xmoe_status read_router(const xm_gguf *file, xm_network_shape *s, xmoe_error *error)
{
    const char *usual = s->architecture == XM_ARCHITECTURE_OLMOE ? "top_k" : "threshold";
    xm_string type = {usual, strlen(usual)};
    char key[64];
    bool found = false, normalize = false;
    uint32_t top_k = 1;
    s->threshold = 0.9f;
    xmoe_status status =
        xm_gguf_get_string(file, key_of(key, s, "router.type"), &type, &found, error);
    if (status == XMOE_OK)
        status =
            xm_gguf_get_f32(file, key_of(key, s, "router.threshold"), &s->threshold, &found, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_u32(file, key_of(key, s, "expert_used_count"), &top_k, &found, error);
    if (status == XMOE_OK)
        status =
            xm_gguf_get_bool(file, key_of(key, s, "router.normalize"), &normalize, &found, error);
    if (status != XMOE_OK)
        return status;
    const xm_router_kind *kind = xm_router_kind_by_name(type.data, type.length);
    if (kind == NULL)
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "xmoe.router.type is \"%.*s\", expected " XM_ROUTER_KIND_NAMES,
                       type.length < 31 ? (int)type.length : 31, type.data);
    s->gate = kind->gate;
    s->router = kind->chooses;
    s->top_k = kind->top_k > 0 ? kind->top_k : top_k < 4096 ? (int32_t)top_k : 4096;
    if (normalize)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "xmoe.router.normalize: the trainer does not normalise chosen weights");
    if (kind->gate == XM_GATE_RECURRENT)
        return read_count(file, "xmoe.router.state_length", &s->router_state, error);
    return XMOE_OK;
}

xmoe_status xm_model_file_shape(const xm_gguf *file, xm_network_shape *shape, xmoe_error *error)
{
    *shape = (xm_network_shape){.init_std = 0.02f, .router_std = 1.0f};
    xm_string architecture;
    xmoe_status status =
        xm_gguf_get_string(file, "general.architecture", &architecture, NULL, error);
    if (status != XMOE_OK)
        return status;
    char known[16];
    snprintf(known, sizeof known, "%.*s", architecture.length < 15 ? (int)architecture.length : 15,
             architecture.data);
    if (!xm_architecture_parse(known, &shape->architecture))
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "general.architecture is '%s': the trainer knows xmoe, llama and olmoe",
                       known);
    if (xm_gguf_find_tensor(file, "output.weight") != NULL)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "output.weight: the trainer knows only tied output matrices");
    const xm_gguf_tensor *embedding = xm_gguf_find_tensor(file, "token_embd.weight");
    if (embedding == NULL || embedding->shape[1] > 65535)
        return xm_fail(error, XMOE_ERROR_FORMAT, "token_embd.weight is missing or too large");
    shape->vocabulary = (int32_t)embedding->shape[1];
    status = read_counts(file, shape, error);
    if (status == XMOE_OK && (shape->blocks < 1 || shape->blocks > XMOE_MAX_LAYERS))
        status = xm_fail(error, XMOE_ERROR_FORMAT, "xmoe.block_count is %d", shape->blocks);
    if (status == XMOE_OK)
        status = read_pattern(file, shape, error);
    if (status == XMOE_OK)
        status = read_router(file, shape, error);
    if (status == XMOE_OK)
        status = check_rope(file, shape, error);
    if (status == XMOE_OK)
        status = check_tokenizer(file, shape, error);
    return status == XMOE_OK ? read_views(file, shape, error) : status;
}
