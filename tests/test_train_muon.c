/*
 * test_train_muon.c - Muon: orthogonalisation of matrices whose singular values are known, the
 * update against the formulas in double, and which tensors it takes and which it leaves to AdamW.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "train/optimizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- in double -------------------------------------------------------------------------------- */

/* Five rounds on a singular value. */
static double rounds(double s)
{
    for (int round = 0; round < 5; round++)
        s = 3.4445 * s - 4.7750 * pow(s, 3) + 2.0315 * pow(s, 5);
    return s;
}

/* x [rows][columns] by the iteration itself, with rows <= columns or not. */
static void orthogonalise(double *x, int32_t rows, int32_t columns)
{
    double norm = 0;
    for (int32_t i = 0; i < rows * columns; i++)
        norm += x[i] * x[i];
    for (int32_t i = 0; i < rows * columns; i++)
        x[i] /= sqrt(norm);
    double *a = calloc((size_t)(rows * rows), sizeof *a);
    double *b = calloc((size_t)(rows * rows), sizeof *b);
    double *next = calloc((size_t)(rows * columns), sizeof *next);
    for (int round = 0; round < 5; round++) {
        memset(a, 0, (size_t)(rows * rows) * sizeof *a);
        for (int32_t i = 0; i < rows; i++)
            for (int32_t j = 0; j < rows; j++)
                for (int32_t k = 0; k < columns; k++)
                    a[i * rows + j] += x[i * columns + k] * x[j * columns + k];
        for (int32_t i = 0; i < rows; i++)
            for (int32_t j = 0; j < rows; j++) {
                double sum = 0;
                for (int32_t k = 0; k < rows; k++)
                    sum += a[i * rows + k] * a[k * rows + j];
                b[i * rows + j] = -4.7750 * a[i * rows + j] + 2.0315 * sum;
            }
        for (int32_t i = 0; i < rows; i++)
            for (int32_t j = 0; j < columns; j++) {
                next[i * columns + j] = 3.4445 * x[i * columns + j];
                for (int32_t k = 0; k < rows; k++)
                    next[i * columns + j] += b[i * rows + k] * x[k * columns + j];
            }
        memcpy(x, next, (size_t)(rows * columns) * sizeof *x);
    }
    free(a);
    free(b);
    free(next);
}

/* --- orthogonalisation ------------------------------------------------------------------------ */

/* Element (i, j) of an orthogonal matrix of this size: I - 2 v v^T / v.v */
static double reflection(uint64_t seed, int32_t size, int32_t i, int32_t j)
{
    double square = 0;
    for (int32_t k = 0; k < size; k++)
        square += pow(xm_random_normal(seed, 0, (uint64_t)k), 2);
    return (i == j ? 1 : 0) - 2 * xm_random_normal(seed, 0, (uint64_t)i) *
                                  xm_random_normal(seed, 0, (uint64_t)j) / square;
}

static void check_known(int32_t rows, int32_t columns)
{
    int32_t side = rows < columns ? rows : columns;
    size_t count = (size_t)rows * (size_t)columns;
    double values[64], norm = 0;
    float *x = xm_calloc_aligned(count, sizeof *x);
    float *scratch = xm_calloc_aligned(xm_orthogonalise_scratch(rows, columns), sizeof *scratch);
    double *expected = calloc(count, sizeof *expected);
    for (int32_t k = 0; k < side; k++) {
        values[k] = 3.0 * pow(0.05, (double)k / side); /* from 3 down to 0.15 */
        norm += values[k] * values[k];
    }
    for (int32_t i = 0; i < rows; i++)
        for (int32_t j = 0; j < columns; j++) {
            double before = 0, after = 0;
            for (int32_t k = 0; k < side; k++) {
                double uv = reflection(1, rows, i, k) * reflection(2, columns, k, j);
                before += uv * values[k];
                after += uv * rounds(values[k] / sqrt(norm));
            }
            x[i * columns + j] = (float)before;
            expected[i * columns + j] = after;
        }
    for (int32_t k = 0; k < side; k++) {
        double value = rounds(values[k] / sqrt(norm));
        assert_true(value > 0.65 && value < 1.25);
    }
    xm_orthogonalise(&xm_gemm_f32, NULL, x, rows, columns, scratch);
    for (size_t i = 0; i < count; i++)
        if (fabs((double)x[i] - expected[i]) > 1e-4)
            fail_msg("%d x %d, element %zu: %g, expected %g", rows, columns, i, (double)x[i],
                     expected[i]);
    xm_free(x);
    xm_free(scratch);
    free(expected);
}

static void test_known_singular_values(void **state)
{
    (void)state;
    const int32_t sizes[][2] = {{1, 1}, {1, 7}, {7, 1}, {16, 16}, {12, 40}, {40, 12}, {33, 35}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_known(sizes[i][0], sizes[i][1]);
}

static void test_zero_stays_zero(void **state)
{
    (void)state;
    float x[6] = {0}, scratch[14];
    const float zero[6] = {0};
    assert_int_equal(xm_orthogonalise_scratch(2, 3), 14);
    xm_orthogonalise(&xm_gemm_f32, NULL, x, 2, 3, scratch);
    assert_memory_equal(x, zero, sizeof x);
}

/* --- the optimiser ---------------------------------------------------------------------------- */

static xm_network *make_network(xm_architecture architecture)
{
    const xm_network_shape shape = {.architecture = architecture,
                                    .vocabulary = 260,
                                    .context = 12,
                                    .width = 16,
                                    .blocks = 2,
                                    .heads = 2,
                                    .feed_forward = 24,
                                    .experts = 5,
                                    .expert_feed_forward = 8,
                                    .moe_every = architecture == XM_ARCHITECTURE_OLMOE ? 1 : 2,
                                    .epsilon = 1e-5f,
                                    .threshold = 0.75f,
                                    .top_k = 2,
                                    .init_std = 0.05f,
                                    .router_std = 1.0f};
    xm_network *network = NULL;
    assert_int_equal(xm_network_create(&shape, &network, NULL), XMOE_OK);
    return network;
}

static const xm_optimizer_rule rule = {.kind = XM_OPTIMIZER_MUON,
                                       .peak_rate = 0.01,
                                       .final_rate = 0.001,
                                       .warmup_steps = 2,
                                       .total_steps = 6,
                                       .beta1 = 0.9,
                                       .beta2 = 0.95,
                                       .weight_decay = 0.1,
                                       .momentum = 0.9,
                                       .clip = 1.0};

static const xm_ranks alone = {.rank = 0, .count = 1};

static float gradient_at(int64_t step, size_t i)
{
    return 0.02f * (float)xm_random_normal(6, (uint64_t)step, i);
}

/* Three steps from the same start, with the norm of each step's gradient. */
static float *three_steps(const xm_network *network, xm_optimizer_kind kind, int32_t threads,
                          double norms[3])
{
    float *parameters = xm_calloc_aligned(network->total, sizeof(float));
    float *gradients = xm_calloc_aligned(network->total, sizeof(float));
    xm_workers *workers = NULL;
    xm_optimizer optimizer;
    assert_int_equal(xm_workers_create(threads, &workers, NULL), XMOE_OK);
    assert_int_equal(
        xm_optimizer_create(network, kind, &xm_gemm_f32, workers, &alone, &optimizer, NULL),
        XMOE_OK);
    xm_network_init(network, 3, parameters);
    for (int64_t step = 0; step < 3; step++) {
        for (size_t i = 0; i < network->total; i++)
            gradients[i] = gradient_at(step, i);
        assert_int_equal(
            xm_gradient_mean(&optimizer, (float *const[]){gradients}, 1, &norms[step], NULL),
            XMOE_OK);
        xm_optimizer_step(&optimizer, &rule, step, norms[step], gradients, parameters);
    }
    xm_optimizer_free(&optimizer);
    xm_workers_free(workers);
    xm_free(gradients);
    return parameters;
}

/* One matrix of the network after the three steps, by the formulas of muon.h. */
static void check_matrix(const xm_network *network, const xm_parameter *p, size_t offset,
                         const float *start, const float *got, const double norms[3])
{
    int32_t rows = p->map_rows, columns = (int32_t)p->shape[0], count = rows * columns;
    double *w = calloc((size_t)count, sizeof *w), *m = calloc((size_t)count, sizeof *m);
    double *u = calloc((size_t)count, sizeof *u);
    for (int32_t i = 0; i < count; i++)
        w[i] = (double)start[offset + (size_t)i];
    for (int64_t step = 0; step < 3; step++) {
        double rate = xm_learning_rate(&rule, step);
        for (int32_t i = 0; i < count; i++) {
            double g = (double)gradient_at(step, offset + (size_t)i) / fmax(1, norms[step]);
            m[i] = 0.9 * m[i] + g;
            u[i] = g + 0.9 * m[i];
        }
        orthogonalise(u, rows, columns);
        for (int32_t i = 0; i < count; i++)
            w[i] -= rate * (0.1 * w[i] + 0.2 * sqrt(fmax(rows, columns)) * u[i]);
    }
    for (int32_t i = 0; i < count; i++)
        if (fabs(w[i] - (double)got[offset + (size_t)i]) > 2e-6)
            fail_msg("%s of %d blocks, element %d: %.9g, in double %.9g", p->name,
                     network->shape.blocks, i, (double)got[offset + (size_t)i], w[i]);
    free(w);
    free(m);
    free(u);
}

static bool is_map(const char *name)
{
    return strncmp(name, "blk.", 4) == 0 && strstr(name, "bias") == NULL &&
           strstr(name, "norm") == NULL && strstr(name, "ffn_gate_inp") == NULL;
}

static void check_architecture(xm_architecture architecture)
{
    xm_network *network = make_network(architecture);
    double norms[3], same[3];
    float *start = xm_calloc_aligned(network->total, sizeof(float));
    xm_network_init(network, 3, start);
    float *muon = three_steps(network, XM_OPTIMIZER_MUON, 1, norms);
    float *threads = three_steps(network, XM_OPTIMIZER_MUON, 3, same);
    float *adamw = three_steps(network, XM_OPTIMIZER_ADAMW, 2, same);
    assert_true(norms[0] > rule.clip);
    assert_memory_equal(muon, threads, network->total * sizeof(float));
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        if (is_map(p->name) != (p->map_rows > 0))
            fail_msg("%s has matrices of %d rows", p->name, p->map_rows);
        if (p->map_rows == 0) {
            assert_memory_equal(muon + p->offset, adamw + p->offset, p->count * sizeof(float));
            continue;
        }
        /* An expert's matrix, or queries, keys and values, each by itself. */
        bool of_width = strstr(p->name, "attn") != NULL || strstr(p->name, "down") != NULL;
        int32_t hidden = strstr(p->name, "exps") != NULL ? 8 : 24;
        assert_int_equal(p->map_rows, of_width ? 16 : hidden);
        size_t size = (size_t)p->map_rows * p->shape[0];
        for (size_t at = 0; at < p->count; at += size)
            check_matrix(network, p, p->offset + at, start, muon, norms);
    }
    xm_free(start);
    xm_free(muon);
    xm_free(threads);
    xm_free(adamw);
    xm_network_free(network);
}

static void test_update(void **state)
{
    (void)state;
    check_architecture(XM_ARCHITECTURE_XMOE);
    check_architecture(XM_ARCHITECTURE_OLMOE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_singular_values),
        cmocka_unit_test(test_zero_stays_zero),
        cmocka_unit_test(test_update),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
