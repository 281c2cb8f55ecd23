/*
 * forward_state.h - what the parts of the forward pass share: the rows of the step at work, their
 * activations, norms and matrix products over them. forward.c owns it; the parts are
 * self_attention.c, latent_attention.c and feed_forward.c.
 *
 * All of it runs on the scheduler's thread, which opens the parallel regions; what follows a
 * product element by element runs in the task that made the elements, so that a layer needs few
 * regions.
 */
#ifndef XM_MODEL_FORWARD_STATE_H
#define XM_MODEL_FORWARD_STATE_H

#include "model/attention.h"
#include "moe/activations.h"
#include "moe/observer.h"
#include "moe/tiles.h"

typedef struct xm_latent_rows xm_latent_rows;

struct xm_forward {
    const xmoe_model *model;
    const xm_kernels *kernels;
    xm_pool *pool;
    xm_kv_cache *cache;
    int32_t max_rows;
    const xm_input_observer *observer; /* or NULL */
    xm_moe_scratch *moe;               /* NULL without MoE layers */
    xm_router_states *states;          /* NULL without a recurrent router */
    xm_attention attention;

    /* Rows of the step. */
    int32_t rows;
    int32_t *ordinal;            /* [max_rows]: 0, 1, 2, ... */
    int32_t *token;              /* [max_rows] */
    int32_t *position;           /* [max_rows] */
    const xm_segment **segment;  /* [max_rows] */
    const xmoe_router **routers; /* [max_rows]: of the layer at work */
    float *turns;                /* [max_rows][rope dimensions]: see xm_rope_turns */
    int32_t logit_rows;
    int32_t *logit_row; /* [max_rows]: rows that give logits */
    int32_t pooled_rows;
    int32_t *pooled_row; /* [max_rows]: rows whose final state a segment's `pooled` takes */

    /* Activations; d is the width of the residual stream. */
    float *x; /* [max_rows][x_stride]: the residual stream */
    size_t x_stride;
    xm_activations normed; /* [max_rows][d]: norm(x) */
    float *qkv;            /* [max_rows][qkv_stride]: of all heads q, then k, then v */
    size_t qkv_stride;
    xm_latent_rows *latent;  /* of latent attention, or NULL */
    xm_activations attended; /* [max_rows][heads * value length] */
    xm_activations hidden;   /* [max_rows][ff]: of dense FFNs and shared experts */
    float *gate;             /* [max_rows][hidden.stride]: their gates */
    float *shared_weight;    /* [max_rows]: of shared experts */
    float *update;           /* [max_rows][x_stride]: what is added to x */
    float *logits;           /* [max_rows][vocabulary] */
};

/* --- work that goes row by row --- */

enum { XM_ROWS_PER_TASK = 8 };

int32_t xm_row_tasks(int32_t rows);
/* The rows of task `task`: [*first, returned). */
int32_t xm_task_rows(int32_t rows, int32_t task, int32_t *first);

/* normed[i] = norm(x[from[i]]), also in int16 if `quantize`. */
void xm_normalize(const xm_forward *forward, const xm_norm *norm, const int32_t *from, int32_t rows,
                  bool quantize);

/* True if a product with this weight takes int16 rows; an absent one takes none. */
static inline bool xm_takes_i16(const xm_linear *linear)
{
    return linear->weight.rows > 0 && xm_type_takes_i16(linear->weight.type);
}

/* --- products of rows with matrices --- */

typedef struct xm_product xm_product;

/* After the columns [first, last) of a row have been computed. */
typedef void (*xm_finish_fn)(const xm_product *product, int32_t row, size_t first, size_t last);

/* out[row] = linear(in[row]); with `gate`, gate_out[row] = gate(in[row]) of the same columns before
 * finish, which may be NULL. */
struct xm_product {
    const xm_forward *forward;
    const xm_linear *linear;
    const xm_activations *in;
    float *out;
    size_t out_stride;
    const xm_linear *gate; /* of the same shape, or NULL */
    float *gate_out;       /* rows as far apart as those of out */
    xm_finish_fn finish;
    const void *finish_context;
    xm_tiles tiles; /* set by xm_products_run */
};

/* Some products over the step's first `rows` rows of their inputs, in one parallel region. */
void xm_products_run(const xm_forward *forward, xm_product *products, int32_t count, int32_t rows);

/* A finish that adds what was computed to the residual stream, times the model's residual scale. */
void xm_finish_residual(const xm_product *product, int32_t row, size_t first, size_t last);

/* --- parts of a layer: x += part(norm(x)) --- */

void xm_self_attention(xm_forward *forward, int32_t layer);

/* Of multi-head latent attention. */
xmoe_status xm_latent_rows_create(const xmoe_model *model, int32_t max_rows, xm_latent_rows **rows,
                                  xmoe_error *error);
void xm_latent_rows_free(xm_latent_rows *rows);
void xm_latent_attention(xm_forward *forward, int32_t layer);

void xm_dense_feed_forward(xm_forward *forward, const xm_layer *layer);
/* The selection of the layer's routed experts is valid until the next MoE layer. */
void xm_expert_feed_forward(xm_forward *forward, int32_t layer, xm_selection *selection);

#endif
