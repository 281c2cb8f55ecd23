/*
 * router.c - see router.h. Pure functions; any thread.
 *
 * Sorted only as far as needed: the scores become a heap, from which the next best is taken until
 * the rule says stop. That costs E + n log E for n experts, whatever the rule.
 */
#include "moe/router.h"

#include <math.h>
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

/* --- scores ----------------------------------------------------------------------------------- */

void xm_score_experts(const xm_kernels *kernels, const xm_gate_rules *rules, float *logits,
                      int32_t experts)
{
    if (rules->score == XM_SCORE_SOFTMAX)
        kernels->softmax(logits, (size_t)experts);
    if (rules->score == XM_SCORE_SIGMOID)
        for (int32_t e = 0; e < experts; e++) /* double: the same on every C library */
            logits[e] = (float)(1.0 / (1.0 + exp(-(double)logits[e])));
}

/* Scores of the ranked experts from all logits. An expert counts beside the one of rank r, whose
 * logit is m, if (m - logit) / max(|logit|, m) is at most 0.02 and it does not rank before. */
static void sparse_mixer(const float *logits, int32_t experts, const uint16_t *ranked,
                         int32_t count, float *scores)
{
    bool before[XM_MAX_EXPERTS] = {false};
    for (int32_t r = 0; r < count; r++) {
        float m = logits[ranked[r]];
        double sum = 0.0;
        for (int32_t e = 0; e < experts; e++) {
            float size = fabsf(logits[e]) > m ? fabsf(logits[e]) : m;
            if (!before[e] && !((m - logits[e]) / size > 0.02f))
                sum += exp((double)logits[e] - (double)m);
        }
        scores[r] = (float)(1.0 / sum);
        before[ranked[r]] = true;
    }
}

/* --- ranking ---------------------------------------------------------------------------------- */

static float ranking_score(const xm_gate_rules *rules, const float *scores, int32_t expert)
{
    return rules->selection_bias != NULL ? scores[expert] + rules->selection_bias[expert]
                                         : scores[expert];
}

/* What a group is worth: its best ranking score, or the sum of its two best. */
static float group_worth(const xm_gate_rules *rules, const float *scores, int32_t first,
                         int32_t last)
{
    float best = -INFINITY, second = -INFINITY;
    for (int32_t e = first; e < last; e++) {
        float score = ranking_score(rules, scores, e);
        if (score > best) {
            second = best;
            best = score;
        } else if (score > second) {
            second = score;
        }
    }
    return rules->group_by_top_two ? best + second : best;
}

/* Puts into the heap the experts of the groups that may be chosen from; returns how many. */
static int32_t fill_from_groups(const xm_gate_rules *rules, const float *scores, int32_t experts,
                                uint64_t *heap)
{
    uint64_t best[XM_MAX_EXPERTS];
    int32_t size = experts / rules->groups, count = 0;
    for (int32_t g = 0; g < rules->groups; g++)
        best[g] = rank_key(group_worth(rules, scores, g * size, (g + 1) * size), g);
    for (int32_t at = rules->groups / 2 - 1; at >= 0; at--)
        sift_down(best, rules->groups, at);
    /* NOLINTBEGIN(clang-analyzer-core.*): groups > 0, so that best has values */
    for (int32_t left = rules->groups - 1; left >= rules->groups - rules->groups_used; left--) {
        int32_t group = key_expert(best[0]);
        best[0] = best[left];
        sift_down(best, left, 0);
        for (int32_t e = group * size; e < (group + 1) * size; e++)
            heap[count++] = rank_key(ranking_score(rules, scores, e), e);
    }
    /* NOLINTEND(clang-analyzer-core.*) */
    return count;
}

/* A heap of the experts that may be chosen; returns how many. */
static int32_t make_heap(const xm_gate_rules *rules, const float *scores, int32_t experts,
                         uint64_t *heap)
{
    int32_t count = experts;
    if (rules->groups > 0)
        count = fill_from_groups(rules, scores, experts, heap);
    else
        for (int32_t e = 0; e < experts; e++)
            heap[e] = rank_key(ranking_score(rules, scores, e), e);
    for (int32_t at = count / 2 - 1; at >= 0; at--)
        sift_down(heap, count, at);
    return count;
}

/* --- how many --------------------------------------------------------------------------------- */

/* Bounds on the number of experts, whatever the scores: equal where those do not matter. */
typedef struct {
    int32_t least, most;
    int32_t share; /* ranks that a threshold looks at; 0: all, with scores as they are */
} count_bounds;

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static int32_t larger(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static count_bounds bounds_of(const xmoe_router *router, const xm_gate_rules *rules,
                              int32_t experts)
{
    count_bounds bounds = {.least = experts, .most = experts};
    if (router->type == XMOE_ROUTER_TOP_K)
        bounds.least = bounds.most = smaller(router->top_k, experts);
    if (router->type == XMOE_ROUTER_THRESHOLD && rules->trained_top_k > 0)
        bounds.share = bounds.least = bounds.most =
            smaller(larger(rules->trained_top_k, router->max_experts), experts);
    else if (router->type == XMOE_ROUTER_THRESHOLD && rules->score == XM_SCORE_SIGMOID)
        bounds.share = experts;
    if (router->type == XMOE_ROUTER_SIGMOID ||
        (router->type == XMOE_ROUTER_THRESHOLD && !(router->threshold >= 1.0f)))
        bounds.least = 1;
    int32_t floor = larger(1, smaller(router->min_experts, experts));
    bounds.least = larger(bounds.least, floor);
    bounds.most = larger(bounds.most, floor);
    if (router->max_experts > 0)
        bounds.most = smaller(bounds.most, router->max_experts);
    bounds.least = smaller(bounds.least, bounds.most);
    return bounds;
}

/* How many of the ranked ones a threshold takes, where it looks at the first `share`. */
static int32_t count_of_share(float threshold, count_bounds bounds, const float *scores)
{
    float total = 0.0f, taken = 0.0f;
    int32_t count = 0;
    for (int32_t r = 0; r < bounds.share; r++)
        total += scores[r];
    while (count < bounds.most && (count < bounds.least || taken < threshold))
        taken += scores[count++] / total;
    return count;
}

/* Whether the scores say that no more are taken after those that add up to `taken`. */
static bool is_enough(const xmoe_router *router, float taken, float next)
{
    return router->type == XMOE_ROUTER_SIGMOID ? !(next > router->threshold)
                                               : !(taken < router->threshold);
}

static void weigh(const xmoe_router *router, const xm_gate_rules *rules, float *weights,
                  int32_t count)
{
    float sum = 0.0f;
    for (int32_t i = 0; i < count; i++)
        sum += weights[i];
    sum += rules->normalize_epsilon;
    for (int32_t i = 0; i < count; i++) {
        if (router->normalize)
            weights[i] /= sum;
        weights[i] *= rules->weight_scale;
    }
}

int32_t xm_route(const xmoe_router *router, const xm_gate_rules *rules, const float *scores,
                 int32_t experts, uint16_t *chosen, float *weights)
{
    uint64_t heap[XM_MAX_EXPERTS];
    int32_t allowed = make_heap(rules, scores, experts, heap), count = 0;
    count_bounds bounds = bounds_of(router, rules, allowed);
    int32_t ranked = larger(bounds.most, bounds.share);
    float taken = 0.0f; /* scores of those ranked so far */

    for (int32_t left = allowed - 1; left >= 0 && count < ranked; left--) {
        /* heap[0 .. left] is set; the analyzer loses count. */
        int32_t expert = key_expert(heap[0]); /* NOLINT(clang-analyzer-core.CallAndMessage) */
        if (bounds.share == 0 && count >= bounds.least && is_enough(router, taken, scores[expert]))
            break;
        heap[0] = heap[left];
        sift_down(heap, left, 0);
        chosen[count] = (uint16_t)expert;
        weights[count++] = scores[expert];
        taken += scores[expert];
    }
    if (rules->score == XM_SCORE_SPARSE_MIXER)
        sparse_mixer(scores, experts, chosen, count, weights);
    if (bounds.share > 0)
        count = count_of_share(router->threshold, bounds, weights);
    weigh(router, rules, weights, count);
    return count;
}
