/*
 * pass_state.h - what a pass (pass.h) owns: the activations of every block and the scratch of all.
 */
#ifndef XM_TRAIN_PASS_STATE_H
#define XM_TRAIN_PASS_STATE_H

#include "train/attention.h"
#include "train/moe.h"
#include "train/pass.h"
#include "train/query_key.h"

/* Activations of one block; rows = sequences * length. Blocks share one set of arrays, all but
 * x_in where a backward pass makes them again, and x_in too where there is none. */
typedef struct {
    float *x_in, *x_mid;                /* [rows][d]: before attention, before the FFN */
    float *attn_norm, *attn_statistics; /* [rows][d], [rows][2] */
    float *qkv, *log_sums, *attended;   /* [rows][3d], [rows][heads], [rows][d] */
    float *raw, *raw_inverses;          /* see query_key.h; with a norm of q and k only */
    float *ffn_norm, *ffn_statistics;   /* [rows][d], [rows][2] */
    float *gates, *before, *activated;  /* [rows][ff]: dense FFN around GELU or SwiGLU (gates) */
    xm_train_moe_layer moe;
    xm_recurrent_layer recurrent; /* of gate recurrent; the state is each block's own */
} xm_block_state;

struct xm_pass {
    const xm_network *network;
    xm_compute compute;
    xm_pass_options options;
    int32_t rows;
    xm_attention_shape attention;
    xm_query_key_shape query_key; /* rows 0: learned positions */
    xm_block_state *blocks;
    float *x_out; /* [rows][d]: after the last block */
    float *out_norm, *out_statistics;
    float *losses; /* [rows] */
    float *logits; /* [XM_LOSS_ROWS][vocabulary] */
    float *attention_scratch;
    const int32_t *tokens; /* of the run */
    xm_train_moe_scratch moe;
    xm_recurrent_scratch recurrent;
    /* training only */
    float *dx, *dnorm; /* [rows][d] */
    float *dqkv;       /* [rows][3d] */
    float *dhidden;    /* [rows][ff] */
    float *dup;        /* [rows][ff], SwiGLU */
    float *norm_partial, *query_key_partial;
    void **owned; /* every array above */
    size_t owned_count, owned_capacity;
    bool failed; /* an allocation did */
};

/* pass_arrays.c: network, pool and products, options, rows and attention are set; makes the rest.
 */
xmoe_status xm_pass_create_arrays(xm_pass *pass, xmoe_error *error);
void xm_pass_free_arrays(xm_pass *pass);

#endif
