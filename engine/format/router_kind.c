/*
 * router_kind.c - see router_kind.h.
 */
#include "format/router_kind.h"

#include <string.h>

static const xm_router_kind kinds[] = {
    {"threshold", XM_GATE_SOFTMAX, XMOE_ROUTER_THRESHOLD, 0},
    {"top_k", XM_GATE_SOFTMAX, XMOE_ROUTER_TOP_K, 0},
    {"dense", XM_GATE_SOFTMAX, XMOE_ROUTER_DENSE, 0},
    {"sigmoid", XM_GATE_SIGMOID, XMOE_ROUTER_SIGMOID, 0},
    {"base", XM_GATE_BASE, XMOE_ROUTER_TOP_K, 1},
    {"hash", XM_GATE_HASH, XMOE_ROUTER_TOP_K, 1},
    {"recurrent", XM_GATE_RECURRENT, XMOE_ROUTER_THRESHOLD, 0},
};

enum { KINDS = sizeof kinds / sizeof *kinds };

const xm_router_kind *xm_router_kind_by_name(const char *name, size_t length)
{
    for (size_t i = 0; i < KINDS; i++)
        if (strlen(kinds[i].name) == length && memcmp(kinds[i].name, name, length) == 0)
            return &kinds[i];
    return NULL;
}

const xm_router_kind *xm_router_kind_of(xm_gate gate, xmoe_router_type chooses)
{
    for (size_t i = 0; i < KINDS; i++)
        if (kinds[i].gate == gate && kinds[i].chooses == chooses)
            return &kinds[i];
    return NULL;
}

bool xm_is_expert(float entry, int32_t experts)
{
    return entry >= 0.0f && entry < (float)experts && entry == (float)(int32_t)entry;
}
