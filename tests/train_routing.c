/* train_routing.c - see train_routing.h. */
#include "train_routing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void choose(const xm_network_shape *s, const double *p, int *rank)
{
    double before = 0;
    memset(rank, 0, EXPERTS * sizeof *rank);
    for (int r = 1; r <= EXPERTS; r++) {
        bool take =
            s->router == XMOE_ROUTER_DENSE || (s->router == XMOE_ROUTER_TOP_K && r <= s->top_k) ||
            (s->router == XMOE_ROUTER_THRESHOLD && (r == 1 || before < (double)s->threshold));
        int best = -1;
        for (int e = 0; e < EXPERTS; e++)
            if (rank[e] == 0 && (best < 0 || p[e] > p[best]))
                best = e;
        if (s->router == XMOE_ROUTER_SIGMOID)
            take = r == 1 || p[best] > (double)s->threshold;
        if (!take)
            break;
        rank[best] = r;
        before += p[best];
    }
}

/* Each expert keeps those of its rows for which fewer than capacity others come first. */
static void limit(routing *r, int capacity)
{
    for (int e = 0; e < EXPERTS; e++)
        for (int row = 0; row < ROWS; row++) {
            int first = 0;
            for (int other = 0; other < ROWS; other++)
                first += r->rank[other][e] > 0 &&
                         (r->rank[other][e] < r->rank[row][e] ||
                          (r->rank[other][e] == r->rank[row][e] && r->p[other][e] > r->p[row][e]));
            r->kept[row][e] = r->rank[row][e] > 0 && first < capacity;
        }
}

static double auxiliary(const batch_problem *problem, const routing *r)
{
    double balance = 0, entropy = 0, z = 0;
    for (int e = 0; e < EXPERTS; e++) {
        double mean = 0, top = 0;
        for (int row = 0; row < ROWS; row++) {
            mean += r->p[row][e] / ROWS;
            bool best = true;
            for (int other = 0; other < EXPERTS; other++)
                best = best && r->p[row][other] <= r->p[row][e];
            top += best ? 1.0 / ROWS : 0;
            entropy -= r->p[row][e] * log(r->p[row][e]) / ROWS;
        }
        balance += EXPERTS * mean * top;
    }
    for (int row = 0; row < ROWS; row++) {
        double sum = 0;
        for (int e = 0; e < EXPERTS; e++)
            sum += exp(r->z[row][e]);
        z += log(sum) * log(sum) / ROWS;
    }
    return (double)problem->options.balance_weight * balance +
           (double)problem->options.entropy_weight * entropy +
           (double)problem->options.z_weight * z;
}

static void score(xm_gate gate, const double *z, double *p)
{
    double sum = 0;
    for (int e = 0; e < EXPERTS; e++)
        sum += exp(z[e]);
    for (int e = 0; e < EXPERTS; e++)
        p[e] = gate == XM_GATE_SIGMOID || gate == XM_GATE_BASE ? 1 / (1 + exp(-z[e]))
                                                               : exp(z[e]) / sum;
}

/* Gates of all pairs that count: those chosen and within the capacity. */
static void softmax_gates(const batch_problem *problem, routing *r)
{
    double factor = (double)problem->options.capacity_factor;
    double wanted = ceil((double)ROWS / EXPERTS * factor);
    int capacity = factor <= 0 ? ROWS : (int)fmax(wanted, problem->options.min_capacity);
    limit(r, capacity);
    memcpy(r->gate, r->p, sizeof r->gate);
}

/* All pairs count. Returns the weighted sparsity loss. */
static double sigmoid_gates(const batch_problem *problem, anchor *a, routing *r)
{
    double sum = 0;
    for (int row = 0; row < ROWS; row++)
        for (int e = 0; e < EXPERTS; e++) {
            double s = r->p[row][e];
            if (!a->set) {
                a->m[row][e] = r->rank[row][e] > 0;
                a->c[row][e] = s;
            }
            r->kept[row][e] = true;
            r->gate[row][e] = (a->m[row][e] + s - a->c[row][e]) * s;
            sum += r->gate[row][e];
        }
    a->set = true;
    return (double)problem->options.sparsity_weight * sum / ROWS / EXPERTS;
}

static void one_each(routing *r, const uint16_t *expert_of, bool weighted)
{
    memset(r->kept, 0, sizeof r->kept);
    for (int row = 0; row < ROWS; row++) {
        r->kept[row][expert_of[row]] = true;
        for (int e = 0; e < EXPERTS; e++)
            r->gate[row][e] = weighted ? r->p[row][e] : 1;
    }
}

static void hash_gates(const batch_problem *problem, const double *table, routing *r)
{
    uint16_t expert_of[ROWS];
    for (int row = 0; row < ROWS; row++)
        expert_of[row] = (uint16_t)table[problem->tokens[row]];
    one_each(r, expert_of, false);
}

static void base_gates(routing *r)
{
    uint16_t expert_of[ROWS];
    float z[ROWS * EXPERTS];
    xm_assigner assigner;
    for (int i = 0; i < ROWS * EXPERTS; i++)
        z[i] = (float)r->z[i / EXPERTS][i % EXPERTS];
    if (xm_assigner_create(ROWS, EXPERTS, &assigner, NULL) != XMOE_OK)
        abort();
    xm_assign(&assigner, z, expert_of, 1);
    xm_assigner_free(&assigner);
    one_each(r, expert_of, true);
}

double train_route(const batch_problem *problem, const double *w, int block, routing *r)
{
    const xm_network_shape *s = &problem->network->shape;
    if (s->gate == XM_GATE_HASH) {
        hash_gates(problem, w + problem->network->blocks[block].hash, r);
        return 0;
    }
    for (int row = 0; row < ROWS; row++) {
        score(s->gate, r->z[row], r->p[row]);
        choose(s, r->p[row], r->rank[row]);
    }
    if (s->gate == XM_GATE_SIGMOID)
        return sigmoid_gates(problem, &problem->anchors[block], r);
    if (s->gate == XM_GATE_BASE) {
        base_gates(r);
        return 0;
    }
    softmax_gates(problem, r);
    return auxiliary(problem, r);
}
