/*
 * router.c - see router.h. Pure functions; any thread.
 *
 * Sorted only as far as needed: the probabilities become a heap, from which the next best is taken
 * until the rule says stop. That costs E + n log E for n chosen experts, whatever the rule.
 */
#include "moe/router.h"

#include <string.h>

/* A number that orders (probability, expert) as the router wants them: larger is better. NaN is
 * below everything, -0 equals +0, and among equals the lower expert is better. */
static uint64_t rank_key(float probability, int32_t expert)
{
    uint32_t order = 0;
    if (probability == probability) {
        float value = probability + 0.0f; /* -0 becomes +0 */
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    }
    return (uint64_t)order << 32 | (UINT32_MAX - (uint32_t)expert);
}

static int32_t key_expert(uint64_t key)
{
    return (int32_t)(UINT32_MAX - (uint32_t)key);
}

/* Moves the key at `at` down to its place in a heap with the largest key first. */
static void sift_down(uint64_t *heap, int32_t count, int32_t at)
{
    uint64_t key = heap[at];
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && heap[child + 1] > heap[child])
            child++;
        if (heap[child] < key)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
}

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* How many experts at least and at most, whatever the probabilities: equal but for a threshold
 * below 1. */
static void count_bounds(const xmoe_router *router, int32_t experts, int32_t *least, int32_t *most)
{
    *least = *most = experts;
    if (router->type == XMOE_ROUTER_TOP_K)
        *least = *most = smaller(router->top_k, experts);
    else if (router->type == XMOE_ROUTER_THRESHOLD && !(router->threshold >= 1.0f))
        *least = 1;
    int32_t floor = router->min_experts > 1 ? smaller(router->min_experts, experts) : 1;
    if (*least < floor)
        *least = floor;
    if (*most < floor)
        *most = floor;
    if (router->max_experts > 0)
        *most = smaller(*most, router->max_experts);
    *least = smaller(*least, *most);
}

static void normalize(float *weights, int32_t count)
{
    float sum = 0.0f;
    for (int32_t i = 0; i < count; i++)
        sum += weights[i];
    for (int32_t i = 0; i < count; i++)
        weights[i] /= sum;
}

int32_t xm_route(const xmoe_router *router, const float *p, int32_t experts, uint16_t *chosen,
                 float *weights)
{
    uint64_t heap[XM_MAX_EXPERTS];
    int32_t least, most, count = 0;
    float taken = 0.0f; /* probability of those chosen so far */

    for (int32_t e = 0; e < experts; e++)
        heap[e] = rank_key(p[e], e);
    for (int32_t at = experts / 2 - 1; at >= 0; at--)
        sift_down(heap, experts, at);
    count_bounds(router, experts, &least, &most);
    for (int32_t left = experts - 1; left >= 0 && count < most; left--) {
        if (count >= least && !(taken < router->threshold))
            break;
        /* heap[0 .. left] is set; the analyzer loses count. */
        int32_t expert = key_expert(heap[0]); /* NOLINT(clang-analyzer-core.CallAndMessage) */
        heap[0] = heap[left];
        sift_down(heap, left, 0);
        chosen[count] = (uint16_t)expert;
        weights[count++] = p[expert];
        taken += p[expert];
    }
    if (router->normalize)
        normalize(weights, count);
    return count;
}
