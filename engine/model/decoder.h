/*
 * decoder.h - the decoder that most families share: pre-norm blocks of attention with rotary
 * positions and of a gated FFN, dense or of experts. A family says what it has of it (xm_decoder)
 * and calls xm_decoder_bind; keys and tensors are those that the wider GGUF world writes.
 */
#ifndef XM_MODEL_DECODER_H
#define XM_MODEL_DECODER_H

#include "model/bind.h"

typedef enum {
    XM_QK_NORM_NONE,
    XM_QK_NORM_HEADS, /* of each head */
    XM_QK_NORM_ROWS   /* of all heads as one row */
} xm_qk_norm;

typedef struct {
    xm_norm_kind norm;
    bool rope_halves;      /* see xm_rope */
    bool yarn_whole_pairs; /* see xm_rope_scaling */
    bool yarn_in_scale;    /* YaRN's magnitude is in the scale of scores (DeepSeek) */
    xm_qk_norm qk_norm;
    xm_presence qkv_bias, attention_output_bias, output_bias;
    bool latent; /* multi-head latent attention */
    bool sinks;
    bool alternate_windows; /* layers 0, 2, ... see attention.sliding_window tokens, others all */
    bool multipliers;       /* of embedding, residual stream, scores and logits (Granite) */
    const char *ffn_norm;   /* the tensor's name */
    xm_activation activation;

    /* Experts. XM_OPTIONAL: where expert_count is above 0. */
    xm_presence experts;
    bool leading_dense;         /* the first layers may be dense */
    xm_score score;             /* unless the file says: expert_gating_func */
    bool normalize;             /* unless the file says: expert_weights_norm */
    bool biases;                /* of the router and the experts */
    bool selection_bias;        /* exp_probs_b, where it is there */
    bool hidden_from_dense;     /* without a key of their own, experts are as wide as a dense FFN */
    xm_presence shared_experts; /* XM_OPTIONAL: where a key gives their size */
    bool shared_gate;           /* a sigmoid weighs them */
} xm_decoder;

/* A decoder being bound: what its keys say that only binding needs. */
typedef struct {
    xm_loader *loader;
    const xm_decoder *decoder;
    int32_t first_moe_layer; /* layers from this one on have experts, where there are some */
    int32_t query_rank;      /* of latent attention; 0: queries are made in one product */
    int32_t window;          /* of layers that have one; 0: none */
    xm_gate_rules rules;     /* but for each layer's selection bias */
} xm_decoder_job;

/* Reads keys and binds all tensors: what xm_family's bind does. */
xmoe_status xm_decoder_bind(xm_loader *loader, const xm_decoder *decoder, xmoe_error *error);

/* decoder_keys.c: fills the job and, of the model, info, attention and scales. */
xmoe_status xm_decoder_read_keys(xm_decoder_job *job, xmoe_error *error);
/* decoder_rope.c: the model's attention.rope, and what scalings add to attention.scale. */
xmoe_status xm_decoder_read_rope(xm_decoder_job *job, xmoe_error *error);

#endif
