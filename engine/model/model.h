/*
 * model.h - a loaded model: its file, tokenizer, kernels, and weights bound once to names.
 *
 * A family (general.architecture) is one row of xm_families: how to read its hyper-parameters and
 * bind its tensors. Binding compares every tensor's type and shape with the expected one; the
 * message of a mismatch prints both. Matrices are packed into panels at load (kernels/kernels.h),
 * in parallel; after that the map of the file is needed for its strings only. The model is
 * immutable after loading.
 */
#ifndef XM_MODEL_MODEL_H
#define XM_MODEL_MODEL_H

#include "format/gguf.h"
#include "format/tokenizer.h"
#include "grammar/vocabulary.h"
#include "kernels/kernels.h"
#include "moe/moe.h"

typedef struct {
    const float *weight, *bias; /* [d] */
} xm_norm;

typedef struct {
    xm_matrix weight;
    const float *bias; /* [rows] or NULL */
} xm_linear;

typedef struct {
    xm_norm attention_norm;
    xm_linear qkv;              /* [3d x d]: q rows, k rows, v rows */
    xm_linear attention_output; /* [d x d] */
    xm_norm ffn_norm;
    bool is_moe;
    int32_t moe_index;  /* among MoE layers, where is_moe */
    xm_linear up, down; /* dense FFN, where not is_moe */
    xm_moe_layer moe;   /* where is_moe */
} xm_layer;

struct xmoe_model {
    xmoe_model_info info;
    xm_gguf *file;
    xm_tokenizer *tokenizer;
    xm_vocabulary *vocabulary; /* the same for grammars */
    const xm_kernels *kernels;
    float norm_epsilon;
    xm_matrix token_embedding;       /* [vocabulary x d]: looked up by row */
    const float *position_embedding; /* [context][d] */
    xm_norm output_norm;
    xm_matrix output;    /* [vocabulary x d]; may be the token embedding's */
    xm_layer *layers;    /* [info.layer_count] */
    int32_t *moe_layers; /* [info.moe_layer_count]: layer of each MoE layer */
    void *arena;         /* owns all weights and strings (model.c) */
};

#endif
