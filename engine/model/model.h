/*
 * model.h - a loaded model: its file, tokenizer, kernels, and weights bound once to names.
 *
 * A family (general.architecture) is one row of a table (family.h): how to read its
 * hyper-parameters and bind its tensors. Binding compares every tensor's type and shape with the
 * expected one; the message of a mismatch prints both. Matrices are packed into panels at load
 * (kernels/kernels.h), in parallel; after that the map of the file is needed for its strings only.
 * The model is immutable after loading.
 *
 * What families have in common is described here by values (a bias or none, a window or none), so
 * that one forward pass (forward.c) serves all of them.
 */
#ifndef XM_MODEL_MODEL_H
#define XM_MODEL_MODEL_H

#include "format/gguf.h"
#include "format/tokenizer.h"
#include "grammar/token_tree.h"
#include "kernels/kernels.h"
#include "model/rope.h"
#include "moe/moe.h"

typedef enum {
    XM_NORM_LAYER, /* mean and variance; weight and bias */
    XM_NORM_RMS    /* root of the mean square; weight only */
} xm_norm_kind;

typedef struct {
    const float *weight, *bias; /* [d]; bias NULL for XM_NORM_RMS */
} xm_norm;

/* A product with a matrix; weight.rows is 0 where the model has none. */
typedef struct {
    xm_matrix weight;
    const float *bias; /* [rows] or NULL */
} xm_linear;

/* What attention has in common in all layers. */
typedef struct {
    int32_t heads, kv_heads;          /* heads is a multiple of kv_heads */
    int32_t key_length, value_length; /* of a head in the KV cache */
    float scale;                      /* of query . key */
    bool norm_whole_rows; /* query_norm and key_norm are over all heads together, else over each */
    xm_rope rope;
    /* Multi-head latent attention (DeepSeek-V2, section 2.1) where latent_length is not 0: keys and
     * values of all heads are made from one latent vector. The cache holds it, with the part of the
     * key that turns behind it (key_length = latent_length + turning_length, value_length =
     * latent_length, kv_heads = 1), and queries are brought into its space instead. */
    int32_t latent_length;
    int32_t plain_length, turning_length; /* a head's query: what has no position, what turns */
    int32_t head_value_length;            /* of a head's value, made from the latent */
} xm_attention_shape;

/* Weights of latent attention of one layer. */
typedef struct {
    xm_linear query_down; /* [rank x d]; may be absent */
    const float *query_norm;
    xm_linear query;          /* [heads * (plain + turning) x rank or d] */
    xm_linear latent;         /* [latent + turning x d] */
    const float *latent_norm; /* of the latent part */
    xm_matrix *key_up;        /* [heads]: [latent x plain], takes a query to the latent space */
    xm_matrix *value_up;      /* [heads]: [head value x latent] */
} xm_latent_weights;

typedef struct {
    xm_linear project[3]; /* rows of q, of k, of v; or one with all of them, in this order */
    int32_t project_count;
    const float *query_norm, *key_norm; /* RMS norm of q and k before they turn, or NULL */
    xm_latent_weights *latent;          /* instead of all above, or NULL */
    xm_linear output;                   /* [d x heads * value length] */
    const float *sinks;                 /* [heads]: score of a token without value, or NULL */
    int32_t window;                     /* tokens that a token sees, itself included; 0: all */
} xm_attention_weights;

/* down . activation(gate . x, up . x) */
typedef struct {
    xm_activation activation;
    xm_linear gate; /* absent for XM_ACTIVATION_GELU */
    xm_linear up, down;
} xm_feed_forward;

typedef struct {
    xm_norm attention_norm;
    xm_attention_weights attention;
    xm_norm ffn_norm;
    bool is_moe;
    int32_t moe_index;   /* among MoE layers, where is_moe */
    xm_feed_forward ffn; /* where is_moe: of the experts that all tokens share; may be absent */
    xm_matrix
        ffn_gate;     /* [1 x d]: sigmoid(ffn_gate . x) scales the shared experts; may be absent */
    xm_moe_layer moe; /* where is_moe */
} xm_layer;

/* Where the matrices of a tensor lie packed. */
typedef struct {
    const xm_gguf_tensor *tensor;
    const uint8_t *data; /* of the first */
    size_t stride;       /* bytes from one to the next */
    size_t count;
} xm_named_matrices;

struct xmoe_model {
    xmoe_model_info info;
    xm_gguf *file;
    xm_tokenizer *tokenizer;
    xm_token_tree *token_tree; /* the same for grammars */
    const xm_kernels *kernels;
    xm_norm_kind norm_kind;
    float norm_epsilon;
    float embedding_scale; /* of token embeddings */
    float residual_scale;  /* of what attention and FFN add to the residual stream */
    float logit_scale;
    xm_attention_shape attention;
    int32_t shared_hidden;           /* hidden size of shared experts; 0: none */
    xm_matrix token_embedding;       /* [vocabulary x d]: looked up by row */
    const float *position_embedding; /* [context][d], or NULL where positions turn (rope) */
    xm_norm output_norm;
    xm_linear output;         /* [vocabulary x d]; may be the token embedding's */
    xm_layer *layers;         /* [info.layer_count] */
    int32_t *moe_layers;      /* [info.moe_layer_count]: layer of each MoE layer */
    xm_named_matrices *named; /* [named_count], in order of data; without those transposed */
    size_t named_count;
    void *arena; /* owns all weights and strings (loader.c) */
};

#endif
