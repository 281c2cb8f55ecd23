/*
 * random_model.c - writes a valid xmoe file with random weights, for tests and benchmarks.
 *
 * Every weight is a pure function of (seed, tensor, element), so the same shape and seed give the
 * same file, whoever makes it. Scales are chosen so that the model behaves like a trained one where
 * it matters to an engine: activations stay near 1, router logits have the asked-for spread and
 * output logits a standard deviation of about 1.5. Runs on the caller's thread and a pool that
 * lives as long as the call; weights stream through one buffer, so size is bounded by the disk.
 */
#include "base/error.h"
#include "base/memory.h"
#include "base/pool.h"
#include "base/random.h"
#include "format/gguf.h"
#include "model/random_vocabulary.h"
#include "moe/router.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    NAME_BYTES = 64,
    BUFFER_ELEMENTS = 1 << 20, /* elements that are made and written at a time, about */
    PIECE_ELEMENTS = 1 << 13,  /* of one task */
    LARGEST = 1 << 20,         /* of any dimension: far above any real one */
    WIDEST = 1 << 16,          /* of d; both are what loading accepts */
};

/* One tensor of the file, in the order in which they are written. */
typedef struct {
    char name[NAME_BYTES];
    xm_weight_type type;
    int32_t dimensions;
    uint64_t shape[3];
    float mean, deviation; /* of its elements */
} planned_tensor;

typedef struct {
    const xmoe_random_model *shape;
    xm_weight_type type;
    planned_tensor *tensors;
    size_t count;
    uint64_t elements;
    xm_gguf_writer *writer;
    xm_pool *pool;
    uint8_t *buffer;
    xmoe_progress_fn progress;
    void *progress_context;
} random_file;

static uint64_t element_count(const planned_tensor *tensor)
{
    return tensor->shape[0] * tensor->shape[1] * tensor->shape[2];
}

/* --- what the file holds ---------------------------------------------------------------------- */

static void plan(random_file *file, const char *name, xm_weight_type type, uint64_t columns,
                 uint64_t rows, uint64_t matrices, float mean, float deviation)
{
    planned_tensor *tensor = &file->tensors[file->count++];
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->type = type;
    tensor->shape[0] = columns;
    tensor->shape[1] = rows;
    tensor->shape[2] = matrices;
    tensor->dimensions = matrices > 1 ? 3 : rows > 1 ? 2 : 1;
    tensor->mean = mean;
    tensor->deviation = deviation;
    file->elements += element_count(tensor);
}

/* A weight [columns, rows, matrices] and its bias; outputs for inputs of about 1 have deviation
 * `gain`. */
static void plan_linear(random_file *file, int32_t layer, const char *part, const char *suffix,
                        uint64_t columns, uint64_t rows, uint64_t matrices, float gain)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "blk.%d.%s%s.weight", layer, part, suffix);
    plan(file, name, file->type, columns, rows, matrices, 0.0f, gain / sqrtf((float)columns));
    snprintf(name, sizeof name, "blk.%d.%s%s.bias", layer, part, suffix);
    plan(file, name, XM_TYPE_F32, rows, matrices, 1, 0.0f, 0.1f * gain);
}

static void plan_norm(random_file *file, const char *prefix)
{
    char name[NAME_BYTES];
    uint64_t width = (uint64_t)file->shape->embedding_length;
    snprintf(name, sizeof name, "%s.weight", prefix);
    plan(file, name, XM_TYPE_F32, width, 1, 1, 1.0f, 0.1f);
    snprintf(name, sizeof name, "%s.bias", prefix);
    plan(file, name, XM_TYPE_F32, width, 1, 1, 0.0f, 0.05f);
}

static bool is_moe_layer(const xmoe_random_model *shape, int32_t layer)
{
    return shape->moe_every > 0 && layer % shape->moe_every == shape->moe_every - 1;
}

static void plan_layer(random_file *file, int32_t layer)
{
    const xmoe_random_model *shape = file->shape;
    char name[NAME_BYTES];
    uint64_t d = (uint64_t)shape->embedding_length;
    bool moe = is_moe_layer(shape, layer);
    uint64_t experts = moe ? (uint64_t)shape->expert_count : 1;
    uint64_t hidden =
        (uint64_t)(moe ? shape->expert_feed_forward_length : shape->feed_forward_length);
    const char *suffix = moe ? "_exps" : "";
    float residual = 1.0f / sqrtf((float)shape->layer_count);

    snprintf(name, sizeof name, "blk.%d.attn_norm", layer);
    plan_norm(file, name);
    plan_linear(file, layer, "attn_qkv", "", d, 3 * d, 1, 1.0f);
    plan_linear(file, layer, "attn_output", "", d, d, 1, residual);
    snprintf(name, sizeof name, "blk.%d.ffn_norm", layer);
    plan_norm(file, name);
    if (moe) {
        snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", layer);
        plan(file, name, XM_TYPE_F32, d, experts, 1, 0.0f, shape->router_spread / sqrtf((float)d));
    }
    plan_linear(file, layer, "ffn_up", suffix, d, hidden, experts, 1.0f);
    plan_linear(file, layer, "ffn_down", suffix, hidden, d, experts, 1.5f * residual);
}

static xmoe_status plan_tensors(random_file *file, xmoe_error *error)
{
    const xmoe_random_model *shape = file->shape;
    uint64_t d = (uint64_t)shape->embedding_length;
    float table = 1.5f / sqrtf((float)d);
    size_t most = 5 + 13 * (size_t)shape->layer_count;

    file->tensors = xm_calloc(most, sizeof *file->tensors);
    if (file->tensors == NULL)
        return xm_fail_memory(error, "list of tensors", most * sizeof *file->tensors);
    plan(file, "token_embd.weight", file->type, d, (uint64_t)shape->vocabulary_size, 1, 0.0f,
         shape->tied_output ? table : 0.5f);
    plan(file, "position_embd.weight", XM_TYPE_F32, d, (uint64_t)shape->context_length, 1, 0.0f,
         shape->tied_output ? table : 0.5f);
    for (int32_t layer = 0; layer < shape->layer_count; layer++)
        plan_layer(file, layer);
    plan_norm(file, "output_norm");
    if (!shape->tied_output)
        plan(file, "output.weight", file->type, d, (uint64_t)shape->vocabulary_size, 1, 0.0f,
             table);
    return XMOE_OK;
}

static void write_keys(xm_gguf_writer *writer, const xmoe_random_model *shape)
{
    xm_gguf_writer_string(writer, "general.architecture", "xmoe");
    xm_gguf_writer_string(writer, "general.name", "random");
    if (shape->chat_template)
        xm_gguf_writer_string(writer, "tokenizer.chat_template", shape->chat_template);
    xm_gguf_writer_string(writer, "general.description", "random weights, for tests");
    xm_gguf_writer_u32(writer, "xmoe.context_length", (uint32_t)shape->context_length);
    xm_gguf_writer_u32(writer, "xmoe.embedding_length", (uint32_t)shape->embedding_length);
    xm_gguf_writer_u32(writer, "xmoe.block_count", (uint32_t)shape->layer_count);
    xm_gguf_writer_u32(writer, "xmoe.attention.head_count", (uint32_t)shape->head_count);
    xm_gguf_writer_f32(writer, "xmoe.attention.layer_norm_epsilon", 1e-5f);
    xm_gguf_writer_u32(writer, "xmoe.feed_forward_length", (uint32_t)shape->feed_forward_length);
    xm_gguf_writer_u32(writer, "xmoe.expert_count", (uint32_t)shape->expert_count);
    xm_gguf_writer_u32(writer, "xmoe.expert_feed_forward_length",
                       (uint32_t)shape->expert_feed_forward_length);
    xm_gguf_writer_string(writer, "xmoe.router.type", xmoe_router_type_name(shape->router.type));
    if (xmoe_router_type_has_threshold(shape->router.type))
        xm_gguf_writer_f32(writer, "xmoe.router.threshold", shape->router.threshold);
    if (shape->router.type == XMOE_ROUTER_TOP_K)
        xm_gguf_writer_u32(writer, "xmoe.expert_used_count", (uint32_t)shape->router.top_k);
    xm_gguf_writer_bool(writer, "xmoe.router.normalize", shape->router.normalize);
}

/* --- weights ---------------------------------------------------------------------------------- */

/* Sum of four uniform 16-bit numbers, which is near enough to a normal distribution and fast:
 * deviation 1. */
static float draw(uint64_t key, uint64_t element)
{
    uint64_t bits = xm_random_mix(key ^ element);
    int32_t sum = (int32_t)(bits & 0xffff) + (int32_t)(bits >> 16 & 0xffff) +
                  (int32_t)(bits >> 32 & 0xffff) + (int32_t)(bits >> 48);
    return (float)(sum - 2 * 0xffff) * (1.7320508f / 0x1p16f);
}

/* The elements [first, last) of a tensor as they lie in the file. */
typedef struct {
    const planned_tensor *tensor;
    const xm_weight_traits *traits;
    uint64_t key;
    uint64_t first, last;
    uint8_t *out;
} piece;

static void make_piece(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const piece *all = context;
    float values[PIECE_ELEMENTS];
    uint64_t from = all->first + (uint64_t)task * PIECE_ELEMENTS;
    uint64_t left = all->last - from;
    size_t count = left < PIECE_ELEMENTS ? (size_t)left : PIECE_ELEMENTS;
    size_t blocks = (size_t)(from - all->first) / all->traits->block_elements;

    for (size_t i = 0; i < count; i++)
        values[i] = all->tensor->mean + all->tensor->deviation * draw(all->key, from + i);
    xm_weights_from_f32(all->traits, values, NULL, all->out + blocks * all->traits->block_bytes,
                        count);
}

static xmoe_status write_tensor(random_file *file, size_t index, uint64_t *done, xmoe_error *error)
{
    piece part = {.tensor = &file->tensors[index], .out = file->buffer};
    uint64_t elements = element_count(part.tensor);
    part.traits = xm_weight_traits_of((uint32_t)part.tensor->type);
    part.key = xm_random_bits(file->shape->seed, 1, index);
    for (part.first = 0; part.first < elements; part.first = part.last) {
        uint64_t left = elements - part.first;
        uint64_t count = left < BUFFER_ELEMENTS ? left : BUFFER_ELEMENTS;
        part.last = part.first + count;
        xm_pool_run(file->pool, (int32_t)((count + PIECE_ELEMENTS - 1) / PIECE_ELEMENTS),
                    make_piece, &part);
        xm_gguf_writer_data(file->writer, file->buffer,
                            (size_t)count / part.traits->block_elements * part.traits->block_bytes);
        *done += count;
        if (file->progress != NULL &&
            !file->progress(file->progress_context, part.tensor->name, *done, file->elements))
            return xm_fail_argument(error, "progress", "stopped while the model was written");
    }
    return XMOE_OK;
}

/* --- the call --------------------------------------------------------------------------------- */

static xmoe_status check_range(const char *name, int32_t value, int32_t least, int32_t most,
                               xmoe_error *error)
{
    if (value < least || value > most)
        return xm_fail_argument(error, name, "%s is %d, expected %d to %d", name, value, least,
                                most);
    return XMOE_OK;
}

static xmoe_status check_blocks(const xm_weight_traits *traits, const char *name, int32_t value,
                                xmoe_error *error)
{
    if ((uint32_t)value % traits->block_elements != 0)
        return xm_fail_argument(error, name, "%s is %d, not whole blocks of %u as %s needs", name,
                                value, traits->block_elements, traits->name);
    return XMOE_OK;
}

static xmoe_status check_router(const xmoe_random_model *shape, xmoe_error *error)
{
    const xmoe_router *router = &shape->router;
    if (xmoe_router_type_name(router->type) == NULL)
        return xm_fail_argument(error, "router", "router type %d is unknown", (int)router->type);
    if (xmoe_router_type_has_threshold(router->type) &&
        !(router->threshold > 0.0f && router->threshold <= 1.0f))
        return xm_fail_argument(error, "threshold", "threshold is %g, expected above 0 to 1",
                                (double)router->threshold);
    if (router->type == XMOE_ROUTER_TOP_K && shape->moe_every > 0)
        return check_range("top_k", router->top_k, 1, shape->expert_count, error);
    return XMOE_OK;
}

static xmoe_status check_shape(const xmoe_random_model *shape, const xm_weight_traits *traits,
                               xmoe_error *error)
{
    const struct {
        const char *name;
        int32_t value, least, most;
        bool whole_blocks;
    } checks[] = {
        {"context_length", shape->context_length, 1, LARGEST, false},
        {"embedding_length", shape->embedding_length, 1, WIDEST, true},
        {"layer_count", shape->layer_count, 1, XMOE_MAX_LAYERS, false},
        {"head_count", shape->head_count, 1, shape->embedding_length, false},
        {"feed_forward_length", shape->feed_forward_length, 1, LARGEST, true},
        {"expert_count", shape->expert_count, 1, XM_MAX_EXPERTS, false},
        {"expert_feed_forward_length", shape->expert_feed_forward_length, 1, LARGEST, true},
        {"vocabulary_size", shape->vocabulary_size, XM_BASE_VOCABULARY, LARGEST, false},
        {"moe_every", shape->moe_every, 0, XMOE_MAX_LAYERS, false},
    };
    xmoe_status status = XMOE_OK;
    for (size_t i = 0; i < sizeof checks / sizeof *checks && status == XMOE_OK; i++) {
        status =
            check_range(checks[i].name, checks[i].value, checks[i].least, checks[i].most, error);
        if (status == XMOE_OK && checks[i].whole_blocks)
            status = check_blocks(traits, checks[i].name, checks[i].value, error);
    }
    if (status == XMOE_OK && shape->embedding_length % shape->head_count != 0)
        status = xm_fail_argument(error, "head_count", "%d heads do not divide width %d",
                                  shape->head_count, shape->embedding_length);
    if (status == XMOE_OK && !(shape->router_spread >= 0.0f && shape->router_spread < 1000.0f))
        status = xm_fail_argument(error, "router_spread", "router_spread is %g, expected 0 to 1000",
                                  (double)shape->router_spread);
    return status != XMOE_OK ? status : check_router(shape, error);
}

/* All of the file after its writer was made. */
static xmoe_status write_file(random_file *file, xmoe_error *error)
{
    xmoe_status status = plan_tensors(file, error);
    if (status == XMOE_OK)
        status = xm_pool_create(0, &file->pool, error);
    if (status != XMOE_OK)
        return status;
    file->buffer = xm_calloc(BUFFER_ELEMENTS, sizeof(float));
    if (file->buffer == NULL)
        return xm_fail_memory(error, "write buffer", BUFFER_ELEMENTS * sizeof(float));
    write_keys(file->writer, file->shape);
    status = xm_random_vocabulary_write(file->writer, file->shape->vocabulary_size, error);
    if (status != XMOE_OK)
        return status;
    for (size_t i = 0; i < file->count; i++)
        xm_gguf_writer_tensor(file->writer, file->tensors[i].name, file->tensors[i].type,
                              file->tensors[i].dimensions, file->tensors[i].shape);
    xm_gguf_writer_begin(file->writer);
    uint64_t done = 0;
    for (size_t i = 0; i < file->count && status == XMOE_OK; i++)
        status = write_tensor(file, i, &done, error);
    return status;
}

xmoe_status xmoe_random_model_write(const char *path, const xmoe_random_model *shape,
                                    xmoe_progress_fn progress, void *progress_context,
                                    xmoe_error *error)
{
    const xm_weight_traits *traits = xm_weight_traits_by_name(shape->type);
    if (traits == NULL)
        return xm_fail_argument(error, "type", "weight type \"%.32s\" is unknown",
                                shape->type != NULL ? shape->type : "");
    random_file file = {.shape = shape,
                        .type = traits->type,
                        .progress = progress,
                        .progress_context = progress_context};
    xmoe_status status = check_shape(shape, traits, error);
    if (status == XMOE_OK)
        status = xm_gguf_writer_create(path, &file.writer, error);
    if (status != XMOE_OK)
        return status;
    status = write_file(&file, error);
    if (status == XMOE_OK)
        status = xm_gguf_writer_finish(file.writer, error);
    else
        xm_gguf_writer_abandon(file.writer);
    xm_pool_free(file.pool);
    xm_free(file.tensors);
    xm_free(file.buffer);
    return status;
}
