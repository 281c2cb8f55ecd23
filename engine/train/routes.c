/*
 * routes.c - see routes.h.
 *
 * Rows are ranked in parallel; dropping and the sort into slots run on the caller: they are some
 * ten thousand integer operations per step. For type threshold the sum of the probabilities taken
 * so far is kept in float and compared as the engine does: strictly below the threshold.
 */
#include "train/routes.h"

#include "base/memory.h"
#include "train/rows.h"

#include <math.h>
#include <string.h>

enum { DROPPED = UINT16_MAX, ROW_TASK = 256 };

int32_t xm_route_capacity(const xm_route_rule *rule, int32_t rows, int32_t experts)
{
    if (rule->capacity_factor <= 0.0f)
        return rows;
    double capacity = ceil((double)rows / experts * (double)rule->capacity_factor);
    if (capacity < rule->min_capacity)
        capacity = rule->min_capacity;
    return capacity < rows ? (int32_t)capacity : rows;
}

/* Whether gradients reach experts that were not chosen. */
static bool passes_straight(const xm_route_rule *rule)
{
    return rule->gate == XM_GATE_SIGMOID && rule->training;
}

static bool assigns_evenly(const xm_route_rule *rule)
{
    return rule->gate == XM_GATE_BASE && rule->training;
}

xmoe_status xm_routes_create(const xm_route_rule *rule, int32_t rows, int32_t experts,
                             xm_routes *routes, xmoe_error *error)
{
    size_t n = (size_t)rows, e = (size_t)experts;
    if (rule->entropy_weight > 0.0f && rule->gate != XM_GATE_SOFTMAX)
        return xm_fail_argument(error, "entropy_weight",
                                "the entropy loss is for routers with a softmax");
    if (rule->z_weight > 0.0f && rule->gate != XM_GATE_SOFTMAX)
        return xm_fail_argument(error, "z_weight", "the z-loss is for routers with a softmax");
    if (rule->sparsity_weight > 0.0f && rule->gate != XM_GATE_SIGMOID)
        return xm_fail_argument(error, "sparsity_weight",
                                "the sparsity loss is for router sigmoid");
    size_t per_row = rule->type == XMOE_ROUTER_TOP_K && rule->top_k < experts
                         ? (size_t)rule->top_k
                         : e; /* pairs at most */
    *routes = (xm_routes){
        .rule = *rule,
        .rows = rows,
        .experts = experts,
        .capacity = rule->gate == XM_GATE_SOFTMAX ? xm_route_capacity(rule, rows, experts) : rows};
    routes->slots =
        (size_t)routes->capacity * e < n * per_row ? (size_t)routes->capacity * e : n * per_row;
    routes->probabilities = xm_calloc_aligned(n * e, sizeof(float));
    routes->log_sums = xm_calloc(n, sizeof(float));
    routes->chosen = xm_calloc(n * e, sizeof(uint16_t));
    routes->wanted = xm_calloc(n, sizeof(int32_t));
    routes->listed = xm_calloc(n, sizeof(int32_t));
    routes->row_begin = xm_calloc(n + 1, sizeof(int32_t));
    routes->row_slots = xm_calloc(routes->slots, sizeof(int32_t));
    routes->expert_begin = xm_calloc(e + 1, sizeof(int32_t));
    routes->slot_row = xm_calloc(routes->slots, sizeof(int32_t));
    routes->slot_gate = xm_calloc(routes->slots, sizeof(float));
    routes->order = xm_calloc(e, sizeof(int32_t));
    routes->keys = xm_calloc(n, sizeof(uint64_t));
    routes->top1 = xm_calloc(e, sizeof(float));
    routes->mean_p = xm_calloc(e, sizeof(float));
    if (routes->probabilities == NULL || routes->chosen == NULL || routes->wanted == NULL ||
        routes->listed == NULL || routes->row_begin == NULL || routes->row_slots == NULL ||
        routes->expert_begin == NULL || routes->slot_row == NULL || routes->slot_gate == NULL ||
        routes->order == NULL || routes->keys == NULL || routes->top1 == NULL ||
        routes->mean_p == NULL || routes->log_sums == NULL) {
        xm_routes_free(routes);
        return xm_fail_memory(error, "routes of a MoE layer", routes->slots * sizeof(float));
    }
    if (assigns_evenly(rule))
        return xm_assigner_create(rows, experts, &routes->assigner, error);
    return XMOE_OK;
}

void xm_routes_free(xm_routes *routes)
{
    xm_assigner_free(&routes->assigner);
    xm_free(routes->probabilities);
    xm_free(routes->log_sums);
    xm_free(routes->chosen);
    xm_free(routes->wanted);
    xm_free(routes->listed);
    xm_free(routes->row_begin);
    xm_free(routes->row_slots);
    xm_free(routes->expert_begin);
    xm_free(routes->slot_row);
    xm_free(routes->slot_gate);
    xm_free(routes->order);
    xm_free(routes->keys);
    xm_free(routes->top1);
    xm_free(routes->mean_p);
    *routes = (xm_routes){0};
}

/* The best expert that was not taken yet. */
static int32_t next_best(const float *p, int32_t experts, const bool *taken)
{
    int32_t best = -1;
    for (int32_t e = 0; e < experts; e++)
        if (!taken[e] && (best < 0 || p[e] > p[best]))
            best = e;
    return best;
}

/* Whether the row takes no more after `wanted` experts with scores of this sum, the next one's
 * being `next`. */
static bool is_enough(const xm_route_rule *rule, int32_t wanted, float sum, float next)
{
    switch (rule->type) {
    case XMOE_ROUTER_THRESHOLD:
        return rule->threshold < 1.0f && wanted > 0 && !(sum < rule->threshold);
    case XMOE_ROUTER_SIGMOID:
        return wanted > 0 && !(next > rule->threshold);
    case XMOE_ROUTER_TOP_K:
        return wanted >= rule->top_k;
    case XMOE_ROUTER_DENSE:
        break;
    }
    return false;
}

/* Ranks the experts of one row as far as they are chosen, or all where those not chosen are listed
 * too. taken is scratch. */
static void choose_row(const xm_routes *routes, int32_t row, bool *taken)
{
    const xm_route_rule *rule = &routes->rule;
    size_t start = (size_t)row * (size_t)routes->experts;
    const float *p = routes->probabilities + start;
    int32_t listed = 0, wanted = 0;
    bool enough = false;
    float sum = 0.0f;
    memset(taken, 0, (size_t)routes->experts);
    while (listed < routes->experts) {
        int32_t best = next_best(p, routes->experts, taken);
        enough = enough || is_enough(rule, wanted, sum, p[best]);
        if (enough && !passes_straight(rule))
            break;
        taken[best] = true;
        routes->chosen[start + (size_t)listed++] = (uint16_t)best;
        sum += p[best];
        wanted += !enough;
    }
    routes->wanted[row] = wanted;
    routes->listed[row] = listed;
}

static void choose_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const xm_routes *routes = context;
    size_t experts = (size_t)routes->experts;
    bool taken[4096]; /* the most experts that a network may have */
    int32_t end = xm_task_end(routes->rows, ROW_TASK, task);
    for (int32_t row = task * ROW_TASK; row < end; row++) {
        float *p = routes->probabilities + (size_t)row * experts;
        if (routes->rule.gate == XM_GATE_SOFTMAX)
            routes->log_sums[row] = xm_row_softmax(p, 1.0f, experts);
        else
            xm_row_sigmoid(p, experts);
        if (!assigns_evenly(&routes->rule)) /* else it is done */
            choose_row(routes, row, taken);
    }
}

static void sift_down(uint64_t *keys, size_t root, size_t count)
{
    uint64_t moved = keys[root];
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= count)
            break;
        if (child + 1 < count && keys[child + 1] > keys[child])
            child++;
        if (keys[child] <= moved)
            break;
        keys[root] = keys[child];
        root = child;
    }
    keys[root] = moved;
}

/* Drops the pairs of an expert beyond its capacity: kept are lower ranks first, among equals larger
 * p, then lower rows. A key orders so: 12 bits of rank, 30 of p inverted, 22 of the row. The
 * smallest keys are kept by a heap whose root is the worst kept so far. */
static void drop_beyond_capacity(xm_routes *routes, int32_t expert)
{
    size_t experts = (size_t)routes->experts, kept = 0, capacity = (size_t)routes->capacity;
    uint64_t *keys = routes->keys;
    for (int32_t row = 0; row < routes->rows; row++) {
        uint16_t *chosen = routes->chosen + (size_t)row * experts;
        for (int32_t rank = 0; rank < routes->wanted[row]; rank++) {
            if (chosen[rank] != expert)
                continue;
            uint32_t bits;
            memcpy(&bits, &routes->probabilities[(size_t)row * experts + (size_t)expert],
                   sizeof bits);
            uint64_t inverted = UINT64_C(0x3fffffff) - (bits & UINT32_C(0x3fffffff));
            uint64_t key = (uint64_t)rank << 52 | inverted << 22 | (uint64_t)row;
            if (kept < capacity) {
                keys[kept++] = key;
                if (kept == capacity)
                    for (size_t root = capacity / 2; root-- > 0;)
                        sift_down(keys, root, capacity);
                continue;
            }
            uint64_t loser = key;
            if (key < keys[0]) {
                loser = keys[0];
                keys[0] = key;
                sift_down(keys, 0, capacity);
            }
            size_t loser_row = (size_t)(loser & UINT32_C(0x3fffff));
            routes->chosen[loser_row * experts + (size_t)(loser >> 52)] = DROPPED;
            routes->dropped++;
        }
    }
}

static void count_pairs(xm_routes *routes)
{
    memset(routes->expert_begin, 0, ((size_t)routes->experts + 1) * sizeof(int32_t));
    for (int32_t row = 0; row < routes->rows; row++) {
        const uint16_t *chosen = routes->chosen + (size_t)row * (size_t)routes->experts;
        for (int32_t rank = 0; rank < routes->listed[row]; rank++)
            if (chosen[rank] != DROPPED)
                routes->expert_begin[chosen[rank] + 1]++;
    }
}

static void order_experts(xm_routes *routes)
{
    for (int32_t e = 0; e < routes->experts; e++) {
        int32_t size = routes->expert_begin[e + 1] - routes->expert_begin[e], at = e;
        for (; at > 0; at--) {
            int32_t other = routes->order[at - 1];
            if (routes->expert_begin[other + 1] - routes->expert_begin[other] >= size)
                break;
            routes->order[at] = other;
        }
        routes->order[at] = e;
    }
}

static void fill_slots(xm_routes *routes)
{
    size_t experts = (size_t)routes->experts;
    for (size_t e = 0; e < experts; e++)
        routes->expert_begin[e + 1] += routes->expert_begin[e];
    order_experts(routes);
    int32_t pair = 0;
    for (int32_t row = 0; row < routes->rows; row++) {
        const uint16_t *chosen = routes->chosen + (size_t)row * experts;
        routes->row_begin[row] = pair;
        for (int32_t rank = 0; rank < routes->listed[row]; rank++) {
            if (chosen[rank] == DROPPED)
                continue;
            int32_t slot = routes->expert_begin[chosen[rank]]++;
            routes->slot_row[slot] = row;
            routes->slot_gate[slot] =
                rank < routes->wanted[row]
                    ? routes->probabilities[(size_t)row * experts + chosen[rank]]
                    : 0.0f;
            routes->row_slots[pair++] = slot;
        }
    }
    routes->row_begin[routes->rows] = pair;
    for (size_t e = experts; e > 0; e--) /* each begin has moved to its end: shift back */
        routes->expert_begin[e] = routes->expert_begin[e - 1];
    routes->expert_begin[0] = 0;
}

/* Mean share of the gates of a row. */
static void measure_sparsity(xm_routes *routes)
{
    double sum = 0;
    for (int32_t slot = 0; slot < routes->expert_begin[routes->experts]; slot++)
        sum += (double)routes->slot_gate[slot];
    routes->sparsity = (float)(sum / routes->rows / routes->experts);
}

static void measure_balance(xm_routes *routes)
{
    size_t experts = (size_t)routes->experts, rows = (size_t)routes->rows;
    memset(routes->top1, 0, experts * sizeof(float));
    memset(routes->mean_p, 0, experts * sizeof(float));
    float share = 1.0f / (float)rows;
    for (size_t row = 0; row < rows; row++) {
        const float *p = routes->probabilities + row * experts;
        size_t best = 0;
        for (size_t e = 1; e < experts; e++)
            best = p[e] > p[best] ? e : best;
        routes->top1[best] += share;
    }
    xm_rows_column_sums(routes->mean_p, routes->probabilities, rows, experts, experts);
    xm_row_scale(routes->mean_p, routes->mean_p, share, experts);
    routes->balance_loss =
        (float)routes->experts * xm_row_dot(routes->mean_p, routes->top1, experts);
}

static float row_entropy(const float *p, size_t experts)
{
    float entropy = 0.0f;
    for (size_t e = 0; e < experts; e++)
        entropy -= p[e] * logf(p[e] > 1e-30f ? p[e] : 1e-30f);
    return entropy;
}

static void measure_entropy(xm_routes *routes)
{
    size_t experts = (size_t)routes->experts;
    double sum = 0;
    for (size_t row = 0; row < (size_t)routes->rows; row++)
        sum += (double)row_entropy(routes->probabilities + row * experts, experts);
    routes->entropy = (float)(sum / routes->rows);
}

static void measure_z(xm_routes *routes)
{
    double sum = 0;
    for (int32_t row = 0; row < routes->rows; row++)
        sum += (double)routes->log_sums[row] * (double)routes->log_sums[row];
    routes->z_loss = (float)(sum / routes->rows);
}

/* One expert for each row; chosen[row * experts] is set. */
static void choose_one_each(xm_routes *routes)
{
    for (int32_t row = 0; row < routes->rows; row++)
        routes->wanted[row] = routes->listed[row] = 1;
}

void xm_routes_look_up(xm_routes *routes, const float *expert_of, const int32_t *tokens)
{
    for (int32_t row = 0; row < routes->rows; row++) {
        size_t start = (size_t)row * (size_t)routes->experts;
        routes->chosen[start] = (uint16_t)expert_of[tokens[row]];
        routes->probabilities[start + routes->chosen[start]] = 1.0f;
    }
    choose_one_each(routes);
    count_pairs(routes);
    fill_slots(routes);
}

void xm_routes_choose(xm_routes *routes, xm_pool *pool)
{
    if (assigns_evenly(&routes->rule)) {
        xm_assign(&routes->assigner, routes->probabilities, routes->chosen,
                  (size_t)routes->experts);
        choose_one_each(routes);
    }
    xm_pool_run(pool, xm_task_count(routes->rows, ROW_TASK), choose_task, routes);
    bool softmax = routes->rule.gate == XM_GATE_SOFTMAX;
    if (softmax)
        measure_balance(routes);
    routes->dropped = 0;
    count_pairs(routes);
    bool changed = false;
    for (int32_t e = 0; e < routes->experts; e++)
        if (routes->expert_begin[e + 1] > routes->capacity) {
            drop_beyond_capacity(routes, e);
            changed = true;
        }
    if (changed)
        count_pairs(routes);
    fill_slots(routes);
    if (routes->rule.gate == XM_GATE_SIGMOID)
        measure_sparsity(routes);
    if (softmax && routes->rule.entropy_weight > 0.0f)
        measure_entropy(routes);
    if (softmax && routes->rule.z_weight > 0.0f)
        measure_z(routes);
}

typedef struct {
    const xm_routes *routes;
    const float *dgate;
    float *dlogits;
} backward_job;

/* g[e] += the gradient of the gate of each expert that the row kept. */
static void collect_gates(const xm_routes *routes, int32_t row, const float *dgate, float *g)
{
    const uint16_t *chosen = routes->chosen + (size_t)row * (size_t)routes->experts;
    int32_t pair = routes->row_begin[row];
    for (int32_t rank = 0; rank < routes->listed[row]; rank++)
        if (chosen[rank] != DROPPED)
            g[chosen[rank]] += dgate[routes->row_slots[pair++]];
}

/* With g the gradient of p, dlogit = p * (g - sum(p * g)). The shares of entropy and z-loss are
 * added to the logits' gradient directly: d entropy / d logit = -p * (log p + entropy), and with L
 * the log of the row's sum, d L^2 / d logit = 2 L p. */
static void softmax_backward(const xm_routes *routes, int32_t row, const float *dgate, float *g)
{
    size_t experts = (size_t)routes->experts;
    const float *p = routes->probabilities + (size_t)row * experts;
    float share = 1.0f / (float)routes->rows;
    float entropy_scale = routes->rule.entropy_weight * share;
    xm_row_scale(g, routes->top1, routes->rule.balance_weight * (float)routes->experts * share,
                 experts);
    collect_gates(routes, row, dgate, g);
    xm_row_softmax_backward(g, p, xm_row_dot(p, g, experts), 1.0f, experts);
    if (entropy_scale > 0.0f) {
        float entropy = row_entropy(p, experts);
        for (size_t e = 0; e < experts; e++)
            g[e] -= entropy_scale * p[e] * (logf(p[e] > 1e-30f ? p[e] : 1e-30f) + entropy);
    }
    if (routes->rule.z_weight > 0.0f)
        xm_row_add_scaled(g, p, 2.0f * routes->rule.z_weight * share * routes->log_sums[row],
                          experts);
}

/* (m + s) s (1 - s), straight through the decision: see routes.h. */
static void sigmoid_backward(const xm_routes *routes, int32_t row, const float *dgate, float *g)
{
    size_t experts = (size_t)routes->experts;
    const float *s = routes->probabilities + (size_t)row * experts;
    const uint16_t *chosen = routes->chosen + (size_t)row * experts;
    float sparsity = routes->rule.sparsity_weight / (float)routes->rows / (float)experts;
    for (size_t e = 0; e < experts; e++)
        g[e] = sparsity;
    collect_gates(routes, row, dgate, g);
    for (int32_t rank = 0; rank < routes->listed[row]; rank++) {
        int32_t e = chosen[rank];
        float open = rank < routes->wanted[row] ? 1.0f : 0.0f;
        g[e] *= (open + s[e]) * s[e] * (1.0f - s[e]);
    }
}

/* The sigmoid of the one expert that the row has. */
static void base_backward(const xm_routes *routes, int32_t row, const float *dgate, float *g)
{
    size_t experts = (size_t)routes->experts;
    const float *s = routes->probabilities + (size_t)row * experts;
    memset(g, 0, experts * sizeof *g);
    collect_gates(routes, row, dgate, g);
    for (size_t e = 0; e < experts; e++)
        g[e] *= s[e] * (1.0f - s[e]);
}

static void backward_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const backward_job *job = context;
    const xm_routes *routes = job->routes;
    int32_t end = xm_task_end(routes->rows, ROW_TASK, task);
    for (int32_t row = task * ROW_TASK; row < end; row++) {
        float *g = job->dlogits + (size_t)row * (size_t)routes->experts;
        if (routes->rule.gate == XM_GATE_SIGMOID)
            sigmoid_backward(routes, row, job->dgate, g);
        else if (routes->rule.gate == XM_GATE_BASE)
            base_backward(routes, row, job->dgate, g);
        else
            softmax_backward(routes, row, job->dgate, g);
    }
}

void xm_routes_backward(const xm_routes *routes, xm_pool *pool, const float *dgate, float *dlogits)
{
    backward_job job = {.routes = routes, .dgate = dgate, .dlogits = dlogits};
    xm_pool_run(pool, xm_task_count(routes->rows, ROW_TASK), backward_task, &job);
}
