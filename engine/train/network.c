/*
 * network.c - see network.h. The order of the tensors is that of the GGUF file.
 */
#include "train/network.h"

#include "base/memory.h"
#include "base/random.h"
#include "train/gate_hash.h"
#include "train/views.h"

#include <stdio.h>
#include <string.h>

enum { PER_BLOCK = 16, OUTSIDE = 8 };

static const char *const architecture_names[] = {"xmoe", "llama", "olmoe"};
enum { ARCHITECTURES = sizeof architecture_names / sizeof architecture_names[0] };

const char *xm_architecture_name(xm_architecture architecture)
{
    return architecture_names[architecture];
}

bool xm_architecture_parse(const char *name, xm_architecture *architecture)
{
    for (int32_t i = 0; i < ARCHITECTURES; i++)
        if (strcmp(name, architecture_names[i]) == 0) {
            *architecture = (xm_architecture)i;
            return true;
        }
    return false;
}

/* What the served form of an architecture cannot be. */
static xmoe_status check_architecture(const xm_network_shape *s, xmoe_error *error)
{
    if (s->architecture == XM_ARCHITECTURE_XMOE)
        return XMOE_OK;
    const char *name = xm_architecture_name(s->architecture);
    if (s->gate != XM_GATE_SOFTMAX)
        return xm_fail_argument(error, "router",
                                "%s: its files know no routers but threshold, "
                                "top_k and dense",
                                name);
    if (s->width / s->heads % 2 != 0)
        return xm_fail_argument(error, "heads",
                                "%s: rotary positions need an even head size, not %d", name,
                                s->width / s->heads);
    int32_t moe_every = s->architecture == XM_ARCHITECTURE_OLMOE ? 1 : 0;
    if (s->moe_every != moe_every)
        return xm_fail_argument(error, "moe_every", "moe_every is %d, must be %d for %s (%s)",
                                s->moe_every, moe_every, name,
                                moe_every == 1 ? "experts in all blocks" : "no experts");
    return XMOE_OK;
}

static xmoe_status check_views(const xm_network_shape *s, xmoe_error *error)
{
    if (s->router_views > 1 &&
        (s->architecture != XM_ARCHITECTURE_XMOE || s->gate != XM_GATE_SOFTMAX))
        return xm_fail_argument(error, "router_views",
                                "router_views is %d: only routers threshold, top_k and dense of "
                                "architecture xmoe have views",
                                s->router_views);
    if (!(s->view_temperature > 0.0f && isfinite(s->view_temperature)))
        return xm_fail_argument(error, "view_temperature",
                                "view_temperature is %g, must be above 0",
                                (double)s->view_temperature);
    return XMOE_OK;
}

static xmoe_status check_shape(const xm_network_shape *s, xmoe_error *error)
{
    const struct {
        const char *name;
        int32_t value, least, most;
    } ranges[] = {
        {"vocabulary", s->vocabulary, 257, 65535},
        {"context", s->context, 2, 65536},
        {"width", s->width, 8, 16384},
        {"blocks", s->blocks, 1, XMOE_MAX_LAYERS},
        {"heads", s->heads, 1, 1024},
        {"feed_forward", s->feed_forward, 1, 65536},
        {"experts", s->experts, 1, 4096},
        {"expert_feed_forward", s->expert_feed_forward, 1, 65536},
        {"moe_every", s->moe_every, 0, XMOE_MAX_LAYERS},
        {"top_k", s->top_k, 1, 4096},
        {"router_views", s->router_views, 1, XM_MAX_ROUTER_VIEWS},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (ranges[i].value < ranges[i].least || ranges[i].value > ranges[i].most)
            return xm_fail_argument(error, ranges[i].name, "%s is %d, must be %d to %d",
                                    ranges[i].name, ranges[i].value, ranges[i].least,
                                    ranges[i].most);
    if (s->width % s->heads != 0)
        return xm_fail_argument(error, "heads", "width %d is not a multiple of heads %d", s->width,
                                s->heads);
    const xm_router_kind *kind = xm_router_kind_of(s->gate, s->router);
    if (kind == NULL)
        return xm_fail_argument(error, "router", "gate %d and router type %d do not go together",
                                (int)s->gate, (int)s->router);
    if (kind->top_k > 0 && s->top_k != kind->top_k)
        return xm_fail_argument(error, "top_k", "top_k is %d, must be %d with this router",
                                s->top_k, kind->top_k);
    if (!(s->threshold > 0.0f && s->threshold <= 1.0f))
        return xm_fail_argument(error, "threshold", "threshold is %g, must be in (0, 1]",
                                (double)s->threshold);
    if (s->gate == XM_GATE_RECURRENT &&
        (s->router_state < 1 || s->router_state > XM_MAX_ROUTER_STATE))
        return xm_fail_argument(error, "router_state", "router_state is %d, must be 1 to %d",
                                s->router_state, XM_MAX_ROUTER_STATE);
    if (!(s->epsilon > 0.0f) || !(s->init_std > 0.0f) || !(s->router_std >= 0.0f))
        return xm_fail_argument(error, "init_std", "epsilon and init_std must be positive");
    xmoe_status status = check_views(s, error);
    return status == XMOE_OK ? check_architecture(s, error) : status;
}

/* Appends a tensor [inner] or [inner, outer] or [inner, outer, experts]; returns its offset. */
static size_t append(xm_network *network, const char *name, int32_t inner, int32_t outer,
                     int32_t experts)
{
    xm_parameter *p = &network->parameters[network->parameter_count++];
    snprintf(p->name, sizeof p->name, "%s", name);
    p->dimensions = experts > 0 ? 3 : outer > 0 ? 2 : 1;
    p->shape[0] = (uint64_t)inner;
    p->shape[1] = outer > 0 ? (uint64_t)outer : 1;
    p->shape[2] = experts > 0 ? (uint64_t)experts : 1;
    p->count = (size_t)(p->shape[0] * p->shape[1] * p->shape[2]);
    p->offset = network->total;
    network->total += p->count;
    return p->offset;
}

static xm_parameter *last(const xm_network *network)
{
    return &network->parameters[network->parameter_count - 1];
}

static size_t append_matrix(xm_network *network, const char *name, int32_t inner, int32_t outer,
                            int32_t experts, float init_std)
{
    size_t offset = append(network, name, inner, outer, experts);
    xm_parameter *p = last(network);
    p->decay = true;
    p->matrix = true;
    p->init_std = init_std;
    p->map_rows = outer;
    return offset;
}

static const char *block_name(char name[64], int32_t block, const char *rest)
{
    snprintf(name, 64, "blk.%d.%s", block, rest);
    return name;
}

static size_t append_constant(xm_network *network, const char *name, int32_t inner, float value)
{
    size_t offset = append(network, name, inner, 0, 0);
    last(network)->init_value = value;
    return offset;
}

static bool has_biases(const xm_network *network)
{
    return network->shape.architecture == XM_ARCHITECTURE_XMOE;
}

/* The tensor NAME.bias of a block, where the architecture has biases. */
static size_t append_bias(xm_network *network, int32_t block, const char *name, int32_t inner,
                          int32_t outer)
{
    char full[64];
    return has_biases(network) ? append(network, block_name(full, block, name), inner, outer, 0)
                               : XM_NO_TENSOR;
}

static size_t append_norm(xm_network *network, int32_t block, const char *name)
{
    char full[64];
    return append_constant(network, block_name(full, block, name), network->shape.width, 1.0f);
}

/* An FFN of `hidden` units, or `experts` of them; suffix: of the tensors' names. */
static void append_ffn(xm_network *network, int32_t block, const char *suffix, int32_t hidden,
                       int32_t experts)
{
    const xm_network_shape *s = &network->shape;
    const float residual_std = s->init_std / sqrtf(2.0f * (float)s->blocks);
    xm_block_offsets *o = &network->blocks[block];
    char part[48], name[64];
    o->gate_weight = XM_NO_TENSOR;
    if (s->architecture != XM_ARCHITECTURE_XMOE) {
        snprintf(part, sizeof part, "ffn_gate%s.weight", suffix);
        o->gate_weight = append_matrix(network, block_name(name, block, part), s->width, hidden,
                                       experts, s->init_std);
    }
    snprintf(part, sizeof part, "ffn_up%s.weight", suffix);
    o->up_weight = append_matrix(network, block_name(name, block, part), s->width, hidden, experts,
                                 s->init_std);
    snprintf(part, sizeof part, "ffn_up%s.bias", suffix);
    o->up_bias = append_bias(network, block, part, hidden, experts);
    snprintf(part, sizeof part, "ffn_down%s.weight", suffix);
    o->down_weight = append_matrix(network, block_name(name, block, part), hidden, s->width,
                                   experts, residual_std);
    snprintf(part, sizeof part, "ffn_down%s.bias", suffix);
    o->down_bias = append_bias(network, block, part, s->width, experts);
}

/* F32 in every file. */
static size_t append_router_matrix(xm_network *network, const char *name, int32_t inner,
                                   int32_t outer, float init_std)
{
    size_t offset = append_matrix(network, name, inner, outer, 0, init_std);
    last(network)->matrix = false;
    last(network)->map_rows = 0;
    return offset;
}

/* The root of the mean square of a GRU's first state, (1 - sigmoid(a)) * tanh(b), where a and b are
 * normal with standard deviation 1. */
#define FIRST_STATE 0.34f

/* A normalised row has length sqrt(d), so its product with a row of standard deviation
 * router_std / sqrt(d) has router_std. A recurrent router's state is of r values instead, which
 * are of FIRST_STATE at the first MoE block and grow somewhat behind it. */
static void append_router(xm_network *network, int32_t block)
{
    const xm_network_shape *s = &network->shape;
    xm_block_offsets *o = &network->blocks[block];
    char name[64];
    o->router_weight = o->router_projection = o->hash = XM_NO_TENSOR;
    if (s->gate == XM_GATE_HASH) {
        o->hash = append(network, block_name(name, block, "ffn_hash.weight"), s->vocabulary, 0, 0);
        last(network)->fixed = true;
        return;
    }
    int32_t inner = s->width;
    float length = sqrtf((float)s->width);
    if (s->gate == XM_GATE_RECURRENT) {
        o->router_projection =
            append_router_matrix(network, block_name(name, block, "ffn_gate_inp_projection.weight"),
                                 s->width, s->router_state, 1.0f / length);
        inner = s->router_state;
        length = FIRST_STATE * sqrtf((float)inner);
    }
    o->router_weight =
        append_router_matrix(network, block_name(name, block, "ffn_gate_inp.weight"), inner,
                             s->router_views * s->experts, s->router_std / length);
}

/* The cell of a recurrent router, where there are MoE blocks. Projected rows have a standard
 * deviation of 1, and so have their products. */
static void append_gru(xm_network *network)
{
    const xm_network_shape *s = &network->shape;
    network->gru_input_weight = network->gru_input_bias = XM_NO_TENSOR;
    network->gru_state_weight = network->gru_state_bias = XM_NO_TENSOR;
    if (s->gate != XM_GATE_RECURRENT || s->moe_every == 0 || s->moe_every > s->blocks)
        return;
    const int32_t r = s->router_state;
    const float deviation = 1.0f / sqrtf((float)r);
    network->gru_input_weight =
        append_router_matrix(network, "router_gru_input.weight", r, 3 * r, deviation);
    network->gru_input_bias = append(network, "router_gru_input.bias", 3 * r, 0, 0);
    network->gru_state_weight =
        append_router_matrix(network, "router_gru_state.weight", r, 3 * r, deviation);
    network->gru_state_bias = append(network, "router_gru_state.bias", 3 * r, 0, 0);
}

/* The rows of queries, keys and values are one matrix here in any case; xmoe's files have them as
 * one tensor, others as three. */
static void append_projections(xm_network *network, int32_t block)
{
    const xm_network_shape *s = &network->shape;
    xm_block_offsets *o = &network->blocks[block];
    char name[64];
    o->attn_qkv_bias = o->attn_q_norm_weight = o->attn_k_norm_weight = XM_NO_TENSOR;
    if (s->architecture == XM_ARCHITECTURE_XMOE) {
        o->attn_qkv_weight = append_matrix(network, block_name(name, block, "attn_qkv.weight"),
                                           s->width, 3 * s->width, 0, s->init_std);
        last(network)->map_rows = s->width;
        o->attn_qkv_bias = append_bias(network, block, "attn_qkv.bias", 3 * s->width, 0);
        return;
    }
    o->attn_qkv_weight = append_matrix(network, block_name(name, block, "attn_q.weight"), s->width,
                                       s->width, 0, s->init_std);
    append_matrix(network, block_name(name, block, "attn_k.weight"), s->width, s->width, 0,
                  s->init_std);
    append_matrix(network, block_name(name, block, "attn_v.weight"), s->width, s->width, 0,
                  s->init_std);
    if (s->architecture == XM_ARCHITECTURE_OLMOE) {
        o->attn_q_norm_weight = append_norm(network, block, "attn_q_norm.weight");
        o->attn_k_norm_weight = append_norm(network, block, "attn_k_norm.weight");
    }
}

static void append_block(xm_network *network, int32_t block)
{
    const xm_network_shape *s = &network->shape;
    const float residual_std = s->init_std / sqrtf(2.0f * (float)s->blocks);
    xm_block_offsets *o = &network->blocks[block];
    char name[64];
    o->moe = s->moe_every > 0 && block % s->moe_every == s->moe_every - 1;
    o->attn_norm_weight = append_norm(network, block, "attn_norm.weight");
    o->attn_norm_bias = append_bias(network, block, "attn_norm.bias", s->width, 0);
    append_projections(network, block);
    o->attn_output_weight = append_matrix(network, block_name(name, block, "attn_output.weight"),
                                          s->width, s->width, 0, residual_std);
    o->attn_output_bias = append_bias(network, block, "attn_output.bias", s->width, 0);
    o->ffn_norm_weight = append_norm(network, block, "ffn_norm.weight");
    o->ffn_norm_bias = append_bias(network, block, "ffn_norm.bias", s->width, 0);
    if (o->moe) {
        append_router(network, block);
        append_ffn(network, block, "_exps", s->expert_feed_forward, s->experts);
    } else {
        append_ffn(network, block, "", s->feed_forward, 0);
    }
}

static xm_network_shape with_defaults(xm_network_shape shape)
{
    if (shape.router_views == 0)
        shape.router_views = 1;
    if (shape.view_temperature == 0.0f)
        shape.view_temperature = XM_VIEW_TEMPERATURE;
    return shape;
}

xmoe_status xm_network_create(const xm_network_shape *shape, xm_network **network_out,
                              xmoe_error *error)
{
    *network_out = NULL;
    const xm_network_shape whole = with_defaults(*shape);
    shape = &whole;
    xmoe_status status = check_shape(shape, error);
    if (status != XMOE_OK)
        return status;
    xm_network *network = xm_calloc(1, sizeof *network);
    if (network == NULL)
        return xm_fail_memory(error, "network", sizeof *network);
    network->shape = *shape;
    size_t most = (size_t)shape->blocks * PER_BLOCK + OUTSIDE;
    network->parameters = xm_calloc(most, sizeof *network->parameters);
    network->blocks = xm_calloc((size_t)shape->blocks, sizeof *network->blocks);
    if (network->parameters == NULL || network->blocks == NULL) {
        xm_network_free(network);
        return xm_fail_memory(error, "tensor table", most * sizeof *network->parameters);
    }
    network->token_embedding = append_matrix(network, "token_embd.weight", shape->width,
                                             shape->vocabulary, 0, shape->init_std);
    last(network)->map_rows = 0;
    network->position_embedding = XM_NO_TENSOR;
    if (shape->architecture == XM_ARCHITECTURE_XMOE) {
        network->position_embedding = append_matrix(network, "position_embd.weight", shape->width,
                                                    shape->context, 0, shape->init_std);
        last(network)->matrix = false; /* stays F32 */
        last(network)->map_rows = 0;
    }
    for (int32_t block = 0; block < shape->blocks; block++)
        append_block(network, block);
    network->output_norm_weight =
        append_constant(network, "output_norm.weight", shape->width, 1.0f);
    network->output_norm_bias = has_biases(network)
                                    ? append(network, "output_norm.bias", shape->width, 0, 0)
                                    : XM_NO_TENSOR;
    append_gru(network);
    *network_out = network;
    return XMOE_OK;
}

void xm_network_free(xm_network *network)
{
    if (network == NULL)
        return;
    xm_free(network->parameters);
    xm_free(network->blocks);
    xm_free(network);
}

void xm_network_init(const xm_network *network, uint64_t seed, float *parameters)
{
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        float *values = parameters + p->offset;
        if (p->fixed) {
            xm_hash_scatter(seed, (uint64_t)i, network->shape.experts, p->count, values);
            continue;
        }
        for (size_t j = 0; j < p->count; j++)
            values[j] = p->init_std > 0.0f
                            ? p->init_std * (float)xm_random_normal(seed, (uint64_t)i, j)
                            : p->init_value;
    }
}

const xm_parameter *xm_network_parameter_at(const xm_network *network, size_t offset)
{
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        if (offset >= p->offset && offset - p->offset < p->count)
            return p;
    }
    return NULL;
}

const xm_parameter *xm_network_find(const xm_network *network, const char *name)
{
    for (int32_t i = 0; i < network->parameter_count; i++)
        if (strcmp(network->parameters[i].name, name) == 0)
            return &network->parameters[i];
    return NULL;
}

/* Of one MoE block. */
static double router_flops(const xm_network_shape *s)
{
    double d = s->width, r = s->router_state;
    if (s->gate == XM_GATE_HASH)
        return 0;
    if (s->gate == XM_GATE_RECURRENT)
        return 2.0 * (d * r + 6.0 * r * r + r * s->experts);
    return 2.0 * d * s->router_views * s->experts;
}

double xm_network_forward_flops(const xm_network *network, double mean_active)
{
    const xm_network_shape *s = &network->shape;
    double d = s->width, flops = 2.0 * d * s->vocabulary;
    double matrices = s->architecture == XM_ARCHITECTURE_XMOE ? 2.0 : 3.0; /* of an FFN */
    double gate = router_flops(s);
    for (int32_t block = 0; block < s->blocks; block++) {
        flops += 2.0 * d * 4.0 * d + 2.0 * d * s->context; /* causal: half of the scores */
        flops += network->blocks[block].moe
                     ? gate + mean_active * matrices * 2.0 * d * s->expert_feed_forward
                     : matrices * 2.0 * d * s->feed_forward;
    }
    return flops;
}
