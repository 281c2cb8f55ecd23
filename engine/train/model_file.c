/*
 * model_file.c - see model_file.h.
 */
#include "train/model_file.h"

#include "base/memory.h"
#include "train/gate_hash.h"

#include <stdio.h>
#include <string.h>

static void write_keys(xm_gguf_writer *writer, const xm_network_shape *s,
                       const xm_model_labels *labels)
{
    xm_gguf_writer_string(writer, "general.architecture", "xmoe");
    if (labels->name != NULL)
        xm_gguf_writer_string(writer, "general.name", labels->name);
    if (labels->license != NULL)
        xm_gguf_writer_string(writer, "general.license", labels->license);
    if (labels->description != NULL)
        xm_gguf_writer_string(writer, "general.description", labels->description);
    xm_gguf_writer_u32(writer, "xmoe.context_length", (uint32_t)s->context);
    xm_gguf_writer_u32(writer, "xmoe.embedding_length", (uint32_t)s->width);
    xm_gguf_writer_u32(writer, "xmoe.block_count", (uint32_t)s->blocks);
    xm_gguf_writer_u32(writer, "xmoe.attention.head_count", (uint32_t)s->heads);
    xm_gguf_writer_f32(writer, "xmoe.attention.layer_norm_epsilon", s->epsilon);
    xm_gguf_writer_u32(writer, "xmoe.feed_forward_length", (uint32_t)s->feed_forward);
    xm_gguf_writer_u32(writer, "xmoe.expert_count", (uint32_t)s->experts);
    xm_gguf_writer_u32(writer, "xmoe.expert_feed_forward_length", (uint32_t)s->expert_feed_forward);
    xm_gguf_writer_string(writer, "xmoe.router.type", xm_router_kind_of(s->gate, s->router)->name);
    xm_gguf_writer_f32(writer, "xmoe.router.threshold", s->threshold);
    xm_gguf_writer_u32(writer, "xmoe.expert_used_count", (uint32_t)s->top_k);
    xm_gguf_writer_bool(writer, "xmoe.router.normalize", false);
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

static xmoe_status read_counts(const xm_gguf *file, xm_network_shape *s, xmoe_error *error)
{
    const struct {
        const char *key;
        int32_t *value;
    } keys[] = {
        {"xmoe.context_length", &s->context},
        {"xmoe.embedding_length", &s->width},
        {"xmoe.block_count", &s->blocks},
        {"xmoe.attention.head_count", &s->heads},
        {"xmoe.feed_forward_length", &s->feed_forward},
        {"xmoe.expert_count", &s->experts},
        {"xmoe.expert_feed_forward_length", &s->expert_feed_forward},
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        uint32_t value = 0;
        xmoe_status status = xm_gguf_get_u32(file, keys[i].key, &value, NULL, error);
        if (status != XMOE_OK)
            return status;
        if (value > INT32_MAX)
            return xm_fail(error, XMOE_ERROR_FORMAT, "%s is %u", keys[i].key, value);
        *keys[i].value = (int32_t)value;
    }
    return XMOE_OK;
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

static xmoe_status read_router(const xm_gguf *file, xm_network_shape *s, xmoe_error *error)
{
    xm_string type = {"threshold", 9};
    bool found = false, normalize = false;
    uint32_t top_k = 1;
    s->threshold = 0.9f;
    xmoe_status status = xm_gguf_get_string(file, "xmoe.router.type", &type, &found, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_f32(file, "xmoe.router.threshold", &s->threshold, &found, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_u32(file, "xmoe.expert_used_count", &top_k, &found, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_bool(file, "xmoe.router.normalize", &normalize, &found, error);
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
    if (architecture.length != 4 || memcmp(architecture.data, "xmoe", 4) != 0)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "general.architecture is not xmoe: the trainer knows no other");
    if (xm_gguf_find_tensor(file, "output.weight") != NULL)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "output.weight: the trainer knows only tied output matrices");
    const xm_gguf_tensor *embedding = xm_gguf_find_tensor(file, "token_embd.weight");
    if (embedding == NULL || embedding->shape[1] > 65535)
        return xm_fail(error, XMOE_ERROR_FORMAT, "token_embd.weight is missing or too large");
    shape->vocabulary = (int32_t)embedding->shape[1];
    status = read_counts(file, shape, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_f32(file, "xmoe.attention.layer_norm_epsilon", &shape->epsilon, NULL,
                                 error);
    if (status == XMOE_OK && (shape->blocks < 1 || shape->blocks > XMOE_MAX_LAYERS))
        status = xm_fail(error, XMOE_ERROR_FORMAT, "xmoe.block_count is %d", shape->blocks);
    if (status == XMOE_OK)
        status = read_pattern(file, shape, error);
    return status == XMOE_OK ? read_router(file, shape, error) : status;
}

xmoe_status xm_model_file_read(const xm_gguf *file, const xm_network *network, float *parameters,
                               xmoe_error *error)
{
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, p->name);
        if (tensor == NULL)
            return xm_fail(error, XMOE_ERROR_FORMAT, "%s has no tensor %s", xm_gguf_path(file),
                           p->name);
        if (tensor->traits == NULL)
            return xm_fail(error, XMOE_ERROR_UNSUPPORTED, "%s is of type %u", p->name,
                           tensor->type_number);
        for (int32_t j = 0; j < 3; j++)
            if (tensor->shape[j] != p->shape[j] || tensor->shape[3] != 1)
                return xm_fail(error, XMOE_ERROR_FORMAT,
                               "%s: dimension %d is %llu, this network has %llu", p->name, j,
                               (unsigned long long)tensor->shape[j],
                               (unsigned long long)p->shape[j]);
        xm_weights_to_f32(tensor->traits, tensor->data, parameters + p->offset, p->count);
        xmoe_status status =
            p->fixed ? xm_hash_check(p, parameters + p->offset, network->shape.experts, error)
                     : XMOE_OK;
        if (status != XMOE_OK)
            return status;
    }
    return XMOE_OK;
}
