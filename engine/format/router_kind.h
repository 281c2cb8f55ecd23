/*
 * router_kind.h - the table of what the key xmoe.router.type may say: where router logits come
 * from, what they become, and how experts are chosen from that. One row per value; the trainer
 * writes it, the engine reads it (model/ROUTERS.md has the formulas).
 */
#ifndef XM_FORMAT_ROUTER_KIND_H
#define XM_FORMAT_ROUTER_KIND_H

#include "xmoe.h"

#include <stddef.h>

/* How a row of h becomes the scores of experts. */
typedef enum {
    XM_GATE_SOFTMAX,  /* softmax(W h) */
    XM_GATE_SIGMOID,  /* sigmoid(W h), each expert by itself */
    XM_GATE_BASE,     /* the same; trained with an even assignment of rows (BASE layers) */
    XM_GATE_HASH,     /* none: a token id has its expert, with weight 1 (hash layers) */
    XM_GATE_RECURRENT /* softmax(W s), s a state that goes from MoE layer to MoE layer (RMoE) */
} xm_gate;

typedef struct {
    const char *name;
    xm_gate gate;
    xmoe_router_type chooses; /* by default; a request may ask for another */
    int32_t top_k;            /* type top_k: k, where the kind says it; 0: the file does */
} xm_router_kind;

/* Views of a router (moe/views.h): so many logits for every expert, of gate softmax. */
enum { XM_MAX_ROUTER_VIEWS = 64 };

/* Longest state of a recurrent router (moe/recurrent.h). */
enum { XM_MAX_ROUTER_STATE = 4096 };

/* For messages. */
#define XM_ROUTER_KIND_NAMES "threshold, top_k, dense, sigmoid, base, hash or recurrent"

/* NULL if there is no such value. The name need not end with a NUL. */
const xm_router_kind *xm_router_kind_by_name(const char *name, size_t length);
/* NULL if no value says this. */
const xm_router_kind *xm_router_kind_of(xm_gate gate, xmoe_router_type chooses);

/* Whether an entry of a hash layer's table, kept as F32, is one of its experts. */
bool xm_is_expert(float entry, int32_t experts);

#endif
