/*
 * network.h - the shape of a model in training, and where each of its tensors lies.
 *
 * All parameters are one array of floats; gradients and the optimiser's moments are arrays of the
 * same layout. A tensor has the name and the shape (contiguous dimension first) that it has in the
 * GGUF file, so exporting is copying. Immutable once made, but for the temperature of a router's
 * views, which a trainer sets between its steps; any thread may read it.
 */
#ifndef XM_TRAIN_NETWORK_H
#define XM_TRAIN_NETWORK_H

#include "base/error.h"
#include "format/router_kind.h"

/* What a block is made of; by name, the general.architecture of the network's files. */
typedef enum {
    XM_ARCHITECTURE_XMOE,  /* GPT-2's blocks: LayerNorm, learned positions, GELU, biases */
    XM_ARCHITECTURE_LLAMA, /* RMSNorm, rotary positions, SwiGLU, no biases; dense */
    XM_ARCHITECTURE_OLMOE, /* as llama, with queries and keys normalised and experts in all blocks
                            */
} xm_architecture;

const char *xm_architecture_name(xm_architecture architecture);
bool xm_architecture_parse(const char *name, xm_architecture *architecture);

/* Rotary positions turn by base^(-2i/size) per token. */
enum { XM_ROPE_BASE = 10000 };

typedef struct {
    xm_architecture architecture;
    int32_t vocabulary; /* V */
    int32_t context;    /* S, tokens of a sequence */
    int32_t width;      /* d */
    int32_t blocks;
    int32_t heads;               /* head size = width / heads */
    int32_t feed_forward;        /* hidden size of a dense FFN */
    int32_t experts;             /* E */
    int32_t expert_feed_forward; /* hidden size of one expert */
    int32_t moe_every;           /* block b is MoE if b % moe_every == moe_every - 1; 0: none */
    float epsilon;               /* of norms */
    xm_gate gate;                /* gate and router are a row of format/router_kind.h */
    xmoe_router_type router;     /* how experts are chosen from the gate's scores */
    float threshold;             /* of routers threshold and sigmoid */
    int32_t top_k;               /* of router top_k */
    int32_t router_views;        /* V: logits of each expert, mixed into one (views.h); 0: one */
    float view_temperature;      /* of the mix; 0: XM_VIEW_TEMPERATURE */
    int32_t router_state;        /* of gate recurrent: length of the state, r */
    float init_std;              /* standard deviation of initial matrices */
    float router_std;            /* standard deviation of the router's logits at the start */
} xm_network_shape;

typedef struct {
    char name[64]; /* as in GGUF */
    int32_t dimensions;
    uint64_t shape[3]; /* contiguous first */
    size_t offset;     /* into the parameter array */
    size_t count;
    float init_std;   /* normal with this standard deviation; 0: constant */
    float init_value; /* the constant */
    bool decay;       /* weight decay applies */
    bool matrix;      /* stored in the file's weight type; else F32 */
    bool fixed;       /* not trained: its gradient stays 0 */
    int32_t map_rows; /* rows of each matrix in it, where these map one row to another (attention,
                         FFNs, experts); 0: tables of rows, the router, vectors */
} xm_parameter;

/* The offset of a tensor that the architecture does not have. */
#define XM_NO_TENSOR SIZE_MAX

/* Offsets of a block's tensors. Dense and MoE blocks share up/down: a dense FFN is one expert. */
typedef struct {
    bool moe;
    size_t attn_norm_weight, attn_norm_bias;       /* [d] */
    size_t attn_q_norm_weight, attn_k_norm_weight; /* [d] */
    size_t attn_qkv_weight, attn_qkv_bias;         /* [3d][d], [3d] */
    size_t attn_output_weight, attn_output_bias;   /* [d][d], [d] */
    size_t ffn_norm_weight, ffn_norm_bias;         /* [d] */
    size_t router_weight;                          /* [V][E][d]; recurrent: [E][r]; not hash */
    size_t router_projection;                      /* gate recurrent: [r][d] */
    size_t hash;                                   /* gate hash: [vocabulary] experts of tokens */
    size_t gate_weight;                            /* [E][ff][d] */
    size_t up_weight, up_bias;                     /* [E][ff][d], [E][ff] */
    size_t down_weight, down_bias;                 /* [E][d][ff], [E][d] */
} xm_block_offsets;

typedef struct {
    xm_network_shape shape;
    xm_parameter *parameters;
    int32_t parameter_count;
    size_t total; /* floats */
    size_t token_embedding, position_embedding;
    size_t output_norm_weight, output_norm_bias;
    size_t gru_input_weight, gru_input_bias; /* gate recurrent: [3r][r], [3r] */
    size_t gru_state_weight, gru_state_bias; /* likewise */
    xm_block_offsets *blocks;
} xm_network;

/* Checks the shape (ARGUMENT, naming the field) and lays the tensors out. */
xmoe_status xm_network_create(const xm_network_shape *shape, xm_network **network,
                              xmoe_error *error);
void xm_network_free(xm_network *network);

/* Initial values; a pure function of network and seed. */
void xm_network_init(const xm_network *network, uint64_t seed, float *parameters);

/* The parameter that holds the float at this offset. */
const xm_parameter *xm_network_parameter_at(const xm_network *network, size_t offset);
/* NULL if there is none of that name. */
const xm_parameter *xm_network_find(const xm_network *network, const char *name);

/* Multiply-adds times two of one token's forward pass, with mean_active experts per MoE block. */
double xm_network_forward_flops(const xm_network *network, double mean_active);

#endif
