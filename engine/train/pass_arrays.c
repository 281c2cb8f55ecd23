/*
 * pass_arrays.c - see pass_state.h: makes and frees the arrays of a pass.
 */
#include "train/pass_state.h"

#include "base/memory.h"
#include "train/linear.h"
#include "train/loss.h"

static float *own(xm_pass *pass, size_t a, size_t b)
{
    if (pass->failed)
        return NULL;
    size_t count = 0;
    float *array = xm_multiply(a, b, &count) ? xm_calloc_aligned(count, sizeof *array) : NULL;
    if (array == NULL || pass->owned_count == pass->owned_capacity)
        pass->failed = true;
    else
        pass->owned[pass->owned_count++] = array;
    return array;
}

static void create_block_arrays(xm_pass *pass, xm_block_state *state)
{
    const xm_network_shape *s = &pass->network->shape;
    size_t rows = (size_t)pass->rows, d = (size_t)s->width;
    state->x_in = own(pass, rows, d);
    state->x_mid = own(pass, rows, d);
    state->attn_norm = own(pass, rows, d);
    state->attn_statistics = own(pass, rows, 2);
    state->qkv = own(pass, rows, 3 * d);
    state->log_sums = own(pass, rows, (size_t)s->heads);
    state->attended = own(pass, rows, d);
    if (s->architecture == XM_ARCHITECTURE_OLMOE) {
        state->raw = own(pass, rows, 2 * d);
        state->raw_inverses = own(pass, rows, 2);
    }
    state->ffn_norm = own(pass, rows, d);
    state->ffn_statistics = own(pass, rows, 2);
}

/* shared: of a layer before, whose products need not be kept; the scratch is shared in any case. */
static void create_views(xm_pass *pass, xm_train_views *views, const xm_train_views *shared)
{
    const xm_network_shape *s = &pass->network->shape;
    size_t rows = (size_t)pass->rows, products = (size_t)s->router_views * (size_t)s->experts;
    if (s->router_views == 1)
        return;
    views->logits = shared != NULL ? shared->logits : own(pass, rows, products);
    if (pass->options.training && pass->moe.dviews == NULL)
        pass->moe.dviews = own(pass, rows, products);
    views->gradients = pass->moe.dviews;
}

/* The state is needed by the block behind even where all else is made again. */
static void create_recurrent(xm_pass *pass, xm_block_state *state, const xm_block_state *shared)
{
    size_t rows = (size_t)pass->rows, r = (size_t)pass->network->shape.router_state;
    if (shared != NULL) {
        state->recurrent = shared->recurrent;
    } else {
        state->recurrent.x = own(pass, rows, r);
        state->recurrent.gates = own(pass, rows, 3 * r);
        state->recurrent.candidate = own(pass, rows, r);
    }
    state->recurrent.state = own(pass, rows, r);
    if (pass->recurrent.zero != NULL)
        return;
    pass->recurrent.zero = own(pass, rows, r);
    pass->recurrent.from_state = own(pass, rows, 3 * r);
    if (pass->options.training) {
        pass->recurrent.dgates = own(pass, rows, 3 * r);
        pass->recurrent.dx = own(pass, rows, r);
        pass->recurrent.dstate = own(pass, rows, r);
    }
}

static xmoe_status create_moe(xm_pass *pass, xm_block_state *state, const xm_block_state *shared,
                              xmoe_error *error)
{
    const xm_network_shape *s = &pass->network->shape;
    bool recurrent = s->gate == XM_GATE_RECURRENT; /* its logits are scored as threshold's are */
    const xm_route_rule rule = {.gate = recurrent ? XM_GATE_SOFTMAX : s->gate,
                                .type = s->router,
                                .threshold = s->threshold,
                                .top_k = s->top_k,
                                .capacity_factor = pass->options.capacity_factor,
                                .min_capacity = pass->options.min_capacity,
                                .balance_weight = pass->options.balance_weight,
                                .entropy_weight = pass->options.entropy_weight,
                                .z_weight = pass->options.z_weight,
                                .sparsity_weight = pass->options.sparsity_weight,
                                .training = pass->options.training};
    xmoe_status status = xm_routes_create(&rule, pass->rows, s->experts, &state->moe.routes, error);
    if (status != XMOE_OK)
        return status;
    state->moe.dropout = (xm_expert_dropout){.rate = pass->options.expert_dropout,
                                             .block = (int32_t)(state - pass->blocks)};
    size_t slots = state->moe.routes.slots, hidden = (size_t)s->expert_feed_forward;
    bool gated = s->architecture != XM_ARCHITECTURE_XMOE;
    create_views(pass, &state->moe.views, shared != NULL ? &shared->moe.views : NULL);
    if (shared != NULL) {
        state->moe.gathered = shared->moe.gathered;
        state->moe.gates = shared->moe.gates;
        state->moe.before = shared->moe.before;
        state->moe.activated = shared->moe.activated;
    } else {
        state->moe.gathered = own(pass, slots, (size_t)s->width);
        state->moe.gates = gated ? own(pass, slots, hidden) : NULL;
        state->moe.before = own(pass, slots, hidden);
        state->moe.activated = own(pass, slots, hidden);
    }
    if (recurrent)
        create_recurrent(pass, state, shared);
    if (pass->moe.out == NULL) {
        pass->moe.out = own(pass, slots, (size_t)s->width);
        if (pass->options.training) {
            pass->moe.dout = own(pass, slots, (size_t)s->width);
            pass->moe.dhidden = own(pass, slots, hidden);
            pass->moe.dgates = gated ? own(pass, slots, hidden) : NULL;
            pass->moe.dgate = own(pass, slots, 1);
            pass->moe.dlogits = own(pass, (size_t)pass->rows, (size_t)s->experts);
        }
    }
    return XMOE_OK;
}

/* A block's own arrays or, of what it need not keep, those of a block before it. */
static xmoe_status create_block(xm_pass *pass, int32_t block, const xm_block_state *dense,
                                const xm_block_state *moe, xmoe_error *error)
{
    const xm_network_shape *s = &pass->network->shape;
    xm_block_state *state = &pass->blocks[block];
    bool share = !pass->options.training || pass->options.recompute;
    size_t rows = (size_t)pass->rows, ff = (size_t)s->feed_forward;
    if (block > 0 && share) {
        *state = pass->blocks[0];
        state->moe = (xm_train_moe_layer){0};
        state->gates = state->before = state->activated = NULL;
        if (pass->options.training)
            state->x_in = own(pass, rows, (size_t)s->width);
    } else {
        create_block_arrays(pass, state);
    }
    if (pass->network->blocks[block].moe)
        return create_moe(pass, state, share ? moe : NULL, error);
    if (share && dense != NULL) {
        state->gates = dense->gates;
        state->before = dense->before;
        state->activated = dense->activated;
        return XMOE_OK;
    }
    state->gates = s->architecture != XM_ARCHITECTURE_XMOE ? own(pass, rows, ff) : NULL;
    state->before = own(pass, rows, ff);
    state->activated = own(pass, rows, ff);
    return XMOE_OK;
}

static xmoe_status create_blocks(xm_pass *pass, xmoe_error *error)
{
    const xm_block_state *dense = NULL, *moe = NULL; /* the first of each */
    for (int32_t block = 0; block < pass->network->shape.blocks; block++) {
        xmoe_status status = create_block(pass, block, dense, moe, error);
        if (status != XMOE_OK)
            return status;
        const xm_block_state **first = pass->network->blocks[block].moe ? &moe : &dense;
        if (*first == NULL)
            *first = &pass->blocks[block];
    }
    return XMOE_OK;
}

/* The engine's own turns, so that what is trained is what is served. */
static void create_rotary(xm_pass *pass)
{
    const xm_network_shape *s = &pass->network->shape;
    int32_t size = s->width / s->heads, length = pass->options.length;
    if (s->architecture == XM_ARCHITECTURE_XMOE)
        return;
    float *turns = own(pass, (size_t)length, (size_t)size);
    xm_rope rope = {.dimensions = size,
                    .halves = s->architecture == XM_ARCHITECTURE_OLMOE,
                    .magnitude = 1.0f,
                    .frequencies = own(pass, 1, (size_t)size / 2)};
    if (pass->failed)
        return;
    xm_rope_make_frequencies(&(xm_rope_scaling){.base = XM_ROPE_BASE, .factor = 1.0}, &rope);
    for (int32_t position = 0; position < length; position++)
        xm_rope_turns(&rope, position, turns + (size_t)position * (size_t)size);
    pass->query_key = (xm_query_key_shape){.rows = pass->rows,
                                           .length = length,
                                           .width = s->width,
                                           .heads = s->heads,
                                           .epsilon = s->epsilon,
                                           .rope = rope,
                                           .turns = turns};
}

static void create_shared(xm_pass *pass)
{
    const xm_network_shape *s = &pass->network->shape;
    size_t rows = (size_t)pass->rows, d = (size_t)s->width;
    pass->x_out = own(pass, rows, d);
    pass->out_norm = own(pass, rows, d);
    pass->out_statistics = own(pass, rows, 2);
    pass->losses = own(pass, rows, 1);
    pass->logits = own(pass, rows < XM_LOSS_ROWS ? rows : XM_LOSS_ROWS, (size_t)s->vocabulary);
    size_t gemm_scratch = pass->compute.gemm->scratch_bytes / sizeof(float);
    if (gemm_scratch > 0)
        pass->compute.scratch =
            (char *)own(pass, (size_t)xm_pool_threads(pass->compute.pool), gemm_scratch);
    pass->attention_scratch = own(pass, (size_t)xm_pool_threads(pass->compute.pool),
                                  xm_attention_scratch(&pass->attention));
    if (pass->options.training) {
        pass->dx = own(pass, rows, d);
        pass->dnorm = own(pass, rows, d);
        pass->dqkv = own(pass, rows, 3 * d);
        pass->dhidden = own(pass, rows, (size_t)s->feed_forward);
        if (s->architecture != XM_ARCHITECTURE_XMOE)
            pass->dup = own(pass, rows, (size_t)s->feed_forward);
        pass->norm_partial = own(pass, XM_NORM_CHUNKS * 2, d);
        pass->query_key_partial = own(pass, XM_QUERY_KEY_CHUNKS * 3, d);
    }
}

xmoe_status xm_pass_create_arrays(xm_pass *pass, xmoe_error *error)
{
    size_t blocks = (size_t)pass->network->shape.blocks;
    pass->owned_capacity = 24 * blocks + 40;
    pass->owned = xm_calloc(pass->owned_capacity, sizeof *pass->owned);
    pass->blocks = xm_calloc(blocks, sizeof *pass->blocks);
    pass->failed = pass->owned == NULL || pass->blocks == NULL;
    xmoe_status status = pass->failed ? XMOE_OK : create_blocks(pass, error);
    if (status != XMOE_OK)
        return status;
    create_shared(pass);
    create_rotary(pass);
    if (pass->failed)
        return xm_fail_memory(error, "activations of a training batch",
                              (size_t)pass->rows * (size_t)pass->network->shape.width *
                                  sizeof(float));
    return XMOE_OK;
}

void xm_pass_free_arrays(xm_pass *pass)
{
    for (size_t i = 0; i < pass->owned_count; i++)
        xm_free(pass->owned[i]);
    if (pass->blocks != NULL)
        for (int32_t block = 0; block < pass->network->shape.blocks; block++)
            xm_routes_free(&pass->blocks[block].moe.routes);
    xm_free(pass->blocks);
    xm_free(pass->owned);
}
