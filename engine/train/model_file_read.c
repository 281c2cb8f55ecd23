/*
 * model_file_read.c - the tensors of a file as the parameters of a network, as large as it or
 * larger: see model_file.h. Runs on the thread that makes the trainer or the evaluator.
 */
#include "train/model_file.h"

#include "base/memory.h"
#include "train/gate_hash.h"

#include <stdio.h>
#include <string.h>

static bool is_part(const xm_parameter *p, const char *part)
{
    return strstr(p->name, part) != NULL;
}

static bool is_weight(const xm_parameter *p)
{
    return is_part(p, ".weight");
}

/* Whether the network's tensor may be larger than the file's in this dimension (0: contiguous). The
 * router's ffn_gate_inp is not among them: it grows with the experts. */
static bool may_grow(const xm_parameter *p, int32_t dimension)
{
    bool up = is_part(p, ".ffn_up.") || is_part(p, ".ffn_up_exps.");
    bool gate = is_part(p, ".ffn_gate.") || is_part(p, ".ffn_gate_exps.");
    if (dimension == 1)
        return is_weight(p) && (up || gate || is_part(p, "position_embd"));
    return dimension == 0 && (is_weight(p) ? is_part(p, ".ffn_down") : up);
}

static xmoe_status check_shape(const xm_parameter *p, const xm_gguf_tensor *tensor, bool grow,
                               xmoe_error *error)
{
    if (tensor->traits == NULL)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED, "%s is of type %u", p->name,
                       tensor->type_number);
    for (int32_t i = 0; i < 3; i++) {
        bool fits = tensor->shape[i] == p->shape[i] ||
                    (grow && tensor->shape[i] < p->shape[i] && may_grow(p, i));
        if (!fits || tensor->shape[3] != 1)
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "%s: dimension %d is %llu, this network has %llu", p->name, i,
                           (unsigned long long)tensor->shape[i], (unsigned long long)p->shape[i]);
    }
    return XMOE_OK;
}

/* Lays `from`, of the file's shape, over the beginning of each dimension of the network's tensor.
 * Where rows are longer than the file's, the rest of them becomes 0. */
static void overlay(const xm_parameter *p, const uint64_t *shape, const float *from, float *to)
{
    size_t inner = (size_t)shape[0], wide = (size_t)p->shape[0];
    for (uint64_t k = 0; k < shape[2]; k++)
        for (uint64_t j = 0; j < shape[1]; j++) {
            float *row = to + (size_t)(k * p->shape[1] + j) * wide;
            memcpy(row, from + (size_t)(k * shape[1] + j) * inner, inner * sizeof *row);
            memset(row + inner, 0, (wide - inner) * sizeof *row);
        }
}

static xmoe_status read_tensor(const xm_gguf *file, const xm_network *network,
                               const xm_parameter *p, bool grow, float *values, xmoe_error *error)
{
    const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, p->name);
    if (tensor == NULL)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s has no tensor %s", xm_gguf_path(file),
                       p->name);
    xmoe_status status = check_shape(p, tensor, grow, error);
    if (status != XMOE_OK)
        return status;
    size_t count = (size_t)(tensor->shape[0] * tensor->shape[1] * tensor->shape[2]);
    float *read = xm_calloc(count, sizeof *read);
    if (read == NULL)
        return xm_fail_memory(error, p->name, count * sizeof *read);
    xm_weights_to_f32(tensor->traits, tensor->data, read, count);
    overlay(p, tensor->shape, read, values);
    xm_free(read);
    return p->fixed ? xm_hash_check(p, values, network->shape.experts, error) : XMOE_OK;
}

/* Blocks that the file has. */
static int32_t count_blocks(const xm_gguf *file)
{
    char name[64];
    for (int32_t block = 0;; block++) {
        snprintf(name, sizeof name, "blk.%d.attn_norm.weight", block);
        if (xm_gguf_find_tensor(file, name) == NULL)
            return block;
    }
}

/* -1: of no block. */
static int32_t block_of(const xm_parameter *p)
{
    int block = -1;
    return sscanf(p->name, "blk.%d.", &block) == 1 ? block : -1;
}

xmoe_status xm_model_file_read(const xm_gguf *file, const xm_network *network, float *parameters,
                               xmoe_error *error)
{
    xmoe_status status = XMOE_OK;
    for (int32_t i = 0; i < network->parameter_count && status == XMOE_OK; i++) {
        const xm_parameter *p = &network->parameters[i];
        status = read_tensor(file, network, p, false, parameters + p->offset, error);
    }
    return status;
}

static xmoe_status check_vocabulary(const xm_gguf *file, const xm_vocabulary *vocabulary,
                                    xmoe_error *error)
{
    xm_vocabulary_strings ours = {0};
    xm_string *theirs = NULL;
    size_t count = 0;
    xmoe_status status = xm_vocabulary_make_strings(vocabulary, &ours, error);
    if (status == XMOE_OK)
        status = xm_gguf_get_strings(file, "tokenizer.ggml.tokens", &theirs, &count, NULL, error);
    bool equal = status == XMOE_OK && count == (size_t)xm_vocabulary_size(vocabulary);
    for (size_t i = 0; i < count && equal; i++)
        equal = theirs[i].length == ours.tokens[i].length &&
                memcmp(theirs[i].data, ours.tokens[i].data, theirs[i].length) == 0;
    if (status == XMOE_OK && !equal)
        status = xm_fail_argument(error, "init",
                                  "%s is of another vocabulary than this run: put the "
                                  "vocabulary.txt that it was trained with into the directory",
                                  xm_gguf_path(file));
    xm_free(theirs);
    xm_vocabulary_strings_free(&ours);
    return status;
}

/* What tensors do not show. */
static xmoe_status check_function(const xm_gguf *file, const xm_network_shape *shape,
                                  xmoe_error *error)
{
    xm_network_shape found;
    xmoe_status status = xm_model_file_shape(file, &found, error);
    if (status != XMOE_OK)
        return status;
    if (found.architecture != shape->architecture)
        return xm_fail_argument(error, "architecture", "%s is of architecture %s, this run of %s",
                                xm_gguf_path(file), xm_architecture_name(found.architecture),
                                xm_architecture_name(shape->architecture));
    if (found.heads != shape->heads)
        return xm_fail_argument(error, "heads", "%s has %d heads, this run %d", xm_gguf_path(file),
                                found.heads, shape->heads);
    if (found.epsilon != shape->epsilon)
        return xm_fail_argument(error, "init", "%s has norms with epsilon %g, this run %g",
                                xm_gguf_path(file), (double)found.epsilon, (double)shape->epsilon);
    return XMOE_OK;
}

xmoe_status xm_model_file_grow(const xm_gguf *file, const xm_vocabulary *vocabulary,
                               const xm_network *network, float *parameters, xmoe_error *error)
{
    int32_t blocks = count_blocks(file);
    if (blocks > network->shape.blocks)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s has %d blocks, this network %d",
                       xm_gguf_path(file), blocks, network->shape.blocks);
    xmoe_status status = check_function(file, &network->shape, error);
    if (status == XMOE_OK)
        status = check_vocabulary(file, vocabulary, error);
    for (int32_t i = 0; i < network->parameter_count && status == XMOE_OK; i++) {
        const xm_parameter *p = &network->parameters[i];
        float *values = parameters + p->offset;
        if (block_of(p) >= blocks) {
            if (is_part(p, ".attn_output.") || is_part(p, ".ffn_down"))
                memset(values, 0, p->count * sizeof *values);
            continue;
        }
        status = read_tensor(file, network, p, true, values, error);
    }
    return status;
}
