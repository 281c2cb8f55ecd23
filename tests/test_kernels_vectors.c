/*
 * test_kernels_vectors.c - functions of vectors (norm, softmax, gelu, sums) and attention: bits of
 * every variant against the scalar reference, the reference against double precision, a query alone
 * against the same query in company, and failures (NaN, infinity) that must stay visible.
 */
#include "kernel_data.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* --- functions of vectors --- */

enum {
    SOFTMAX,
    LOG_SUM_EXP,
    LAYER_NORM,
    RMS_NORM,
    GELU,
    SWIGLU,
    SWIGLU_CLAMPED,
    ADD,
    SCALED_ADD,
    FUNCTIONS
};

/* Runs a function in place over x; y and z are further arguments. */
static void run_function(const xm_kernels *k, int function, float *x, const float *y,
                         const float *z, size_t count)
{
    switch (function) {
    case SOFTMAX:
        k->softmax(x, count);
        break;
    case LOG_SUM_EXP:
        x[0] = k->log_sum_exp(x, count);
        break;
    case LAYER_NORM:
        k->layer_norm(x, y, z, 1e-5f, count, x);
        break;
    case RMS_NORM:
        k->rms_norm(x, y, 1e-5f, count, x);
        break;
    case GELU:
        k->gelu(x, count);
        break;
    case SWIGLU:
        k->swiglu(y, x, count);
        break;
    case SWIGLU_CLAMPED:
        k->swiglu_clamped(y, x, count);
        break;
    case ADD:
        k->add(x, y, count);
        break;
    default:
        k->scaled_add(x, z[0], y, count);
    }
}

static void test_functions_same_bits(void **state)
{
    static const char *const names[] = {"softmax",        "log_sum_exp", "layer_norm",
                                        "rms_norm",       "gelu",        "swiglu",
                                        "swiglu_clamped", "add",         "scaled_add"};

    (void)state;
    for (int function = 0; function < FUNCTIONS; function++)
        for (int mode = 0; mode < MODES; mode++)
            for (size_t round = 0; round < 140; round++) {
                size_t count = round % 70 == 69 ? 1023 : round % 70 + 1;
                /* softmax and norm turn all to NaN at one infinity: keep some calls free of it */
                int x_mode = function <= RMS_NORM && round < 70 ? PLAIN : mode;
                float *x = random_floats(count, x_mode);
                float *y = random_floats(count, mode);
                float *z = random_floats(count, mode);
                float *expected;

                for (size_t i = 0; mode == EXTREME && i < count; i++)
                    x[i] *= function == GELU ? 4.0f : 30.0f;
                expected = copy_of(x, count * sizeof *x);
                run_function(tables[0], function, expected, y, z, count);
                for (int32_t t = 1; t < table_count; t++) {
                    float *found = copy_of(x, count * sizeof *x);
                    run_function(tables[t], function, found, y, z, count);
                    expect_same(names[function], tables[t]->name, expected, found, count);
                    free(found);
                }
                free(expected);
                free(z);
                free(y);
                free(x);
            }
}

/* softmax of {0, x} shows the exponential: p_1 = e / (1 + e), three roundings after exp's 2 ulp. */
static void test_exp_accuracy(void **state)
{
    (void)state;
    for (int i = 0; i <= 87000; i++) {
        float x = -(float)i / 1000.0f;
        float pair[2] = {0.0f, x};
        double e = exp((double)x);

        tables[0]->softmax(pair, 2);
        expect_near("exp", (double)pair[1], e / (1 + e), 4 * 0x1p-24 * 2 * e / (1 + e));
    }
    for (int i = 0; i < 3; i++) {
        float pair[2] = {0.0f, (float[]){-87.1f, -1e30f, -INFINITY}[i]};
        tables[0]->softmax(pair, 2);
        assert_true(pair[0] == 1.0f && pair[1] == 0.0f);
    }
}

static void test_softmax_against_double(void **state)
{
    (void)state;
    for (size_t count = 1; count <= 1000; count += 37) {
        float *x = random_floats(count, PLAIN);
        float *p = copy_of(x, count * sizeof *x);
        double sum = 0, total = 0;

        for (size_t i = 0; i < count; i++)
            sum += exp((double)x[i]);
        expect_near("log_sum_exp", (double)tables[0]->log_sum_exp(x, count), log(sum), 2e-6);
        tables[0]->softmax(p, count);
        for (size_t i = 0; i < count; i++) {
            double exact = exp((double)x[i]) / sum;
            expect_near("softmax", (double)p[i], exact, 1e-5 * exact);
            total += (double)p[i];
        }
        expect_near("sum of softmax", total, 1, 1e-5);
        free(p);
        free(x);
    }
}

static void test_failures_stay_visible(void **state)
{
    (void)state;
    for (int32_t t = 0; t < table_count; t++)
        for (size_t bad = 0; bad < 20; bad++)
            for (int kind = 0; kind < 2; kind++) {
                float x[20] = {0};
                x[bad] = kind ? NAN : INFINITY;
                assert_true(isnan(tables[t]->log_sum_exp(x, 20)));
                tables[t]->softmax(x, 20);
                for (size_t i = 0; i < 20; i++)
                    assert_true(isnan(x[i]));
            }
}

static void test_swiglu_against_double(void **state)
{
    (void)state;
    for (float g = -30.0f; g < 30.0f; g += 0.37f)
        for (float u = -9.0f; u < 9.0f; u += 0.61f) {
            double gate = (double)g, limited = fmin(gate, 7.0);
            double up = fmax(fmin((double)u, 7.0), -7.0);
            double plain = gate / (1.0 + exp(-gate)) * (double)u;
            double clamped = limited / (1.0 + exp(-1.702 * limited)) * (up + 1.0);
            float x = u;

            tables[0]->swiglu(&g, &x, 1);
            expect_near("swiglu", (double)x, plain, 1e-6 * fabs(plain) + 1e-12);
            x = u;
            tables[0]->swiglu_clamped(&g, &x, 1);
            expect_near("swiglu_clamped", (double)x, clamped, 4e-6 * fabs(clamped) + 1e-12);
        }
}

static void test_norms_against_double(void **state)
{
    (void)state;
    for (size_t count = 2; count <= 1000; count += 61) {
        float *x = random_floats(count, PLAIN);
        float *w = random_floats(count, PLAIN);
        float *b = random_floats(count, PLAIN);
        float *out = malloc(count * sizeof *out);
        double mean = 0, variance = 0;

        assert_non_null(out);
        for (size_t i = 0; i < count; i++)
            mean += (double)x[i] / (double)count;
        for (size_t i = 0; i < count; i++)
            variance += pow((double)x[i] - mean, 2) / (double)count;
        double squares = 0;
        for (size_t i = 0; i < count; i++)
            squares += (double)x[i] * (double)x[i] / (double)count;
        tables[0]->rms_norm(x, w, 1e-5f, count, out);
        for (size_t i = 0; i < count; i++) {
            double exact = (double)x[i] / sqrt(squares + (double)1e-5f) * (double)w[i];
            expect_near("rms_norm", (double)out[i], exact, 1e-6 * fabs(exact));
        }
        tables[0]->layer_norm(x, w, b, 1e-5f, count, out);
        for (size_t i = 0; i < count; i++) {
            double unit = ((double)x[i] - mean) / sqrt(variance + (double)1e-5f);
            expect_near("layer_norm", (double)out[i], unit * (double)w[i] + (double)b[i],
                        2e-6 * (fabs(unit * (double)w[i]) + fabs((double)b[i]) + 1));
        }
        free(out);
        free(b);
        free(w);
        free(x);
    }
}

static void test_gelu_against_double(void **state)
{
    float edge[] = {-INFINITY, INFINITY, NAN, -FLT_MAX, FLT_MAX, -0.0f};

    (void)state;
    for (int i = -12000; i <= 12000; i++) {
        float x = (float)i / 1000.0f;
        double exact = (double)x / 2 *
                       (1 + tanh(sqrt(2 / acos(-1)) *
                                 ((double)x + 0.044715 * (double)x * (double)x * (double)x)));
        float found = x;

        tables[0]->gelu(&found, 1);
        expect_near("gelu", (double)found, exact, fmax(1e-6 * fabs(exact), 1e-7));
    }
    tables[0]->gelu(edge, 6);
    assert_true(edge[0] == 0.0f && edge[1] == INFINITY && isnan(edge[2]));
    assert_true(edge[3] == 0.0f && edge[4] == FLT_MAX && edge[5] == 0.0f);
}

/* --- attention --- */

typedef struct {
    bool half, sinks;
    size_t key_length, value_length;
    int32_t heads, positions, first_count, window;
} attention_shape;

typedef struct {
    xm_attention_job job;
    attention_shape shape;
    float *query, *sinks;
    void **keys, **values; /* [blocks], each allocated to the byte */
    size_t blocks, tokens;
} attention;

static size_t from_token(const attention_shape *shape, int32_t position)
{
    int32_t from = shape->first_count + position - shape->window;
    return shape->window > 0 && from > 0 ? (size_t)from : 0;
}

/* Elements of a KV block, to the byte. */
static void *kv_block(bool half, float *values, size_t elements)
{
    const xm_weight_traits *f16 = xm_weight_traits_of(XM_TYPE_F16);
    void *block;

    if (!half)
        return values;
    block = malloc(elements * 2);
    assert_non_null(block);
    xm_weights_from_f32(f16, values, NULL, block, elements);
    free(values);
    return block;
}

/* Tokens that no query sees, behind the last one or before the first one's window, are NaN: nothing
 * may come from there. */
static attention make_attention(attention_shape shape)
{
    attention a = {.shape = shape, .tokens = (size_t)(shape.first_count + shape.positions - 1)};
    size_t heads = (size_t)shape.heads, queries = heads * (size_t)shape.positions;
    size_t from = from_token(&shape, 0);

    a.blocks = (a.tokens + XM_KV_TOKENS - 1) / XM_KV_TOKENS;
    a.query = random_floats(queries * shape.key_length, PLAIN);
    a.sinks = random_floats(heads, PLAIN);
    a.keys = calloc(a.blocks, sizeof *a.keys);
    a.values = calloc(a.blocks, sizeof *a.values);
    assert_true(a.keys && a.values);
    for (size_t b = 0; b < a.blocks; b++) {
        float *keys = random_floats(XM_KV_TOKENS * shape.key_length, PLAIN);
        float *values = random_floats(XM_KV_TOKENS * shape.value_length, PLAIN);

        for (size_t slot = 0; slot < XM_KV_TOKENS; slot++) {
            size_t t = b * XM_KV_TOKENS + slot;

            if (t >= from && t < a.tokens)
                continue;
            for (size_t i = 0; i < shape.key_length; i++)
                keys[i * XM_KV_TOKENS + slot] = NAN;
            for (size_t i = 0; i < shape.value_length; i++)
                values[slot * shape.value_length + i] = NAN;
        }
        a.keys[b] = kv_block(shape.half, keys, XM_KV_TOKENS * shape.key_length);
        a.values[b] = kv_block(shape.half, values, XM_KV_TOKENS * shape.value_length);
    }
    a.job = (xm_attention_job){
        .query = a.query,
        .query_stride = heads * shape.key_length,
        .heads = shape.heads,
        .query_count = (int32_t)queries,
        .first_count = shape.first_count,
        .window = shape.window,
        .key_length = (int32_t)shape.key_length,
        .value_length = (int32_t)shape.value_length,
        .scale = 1.0f / sqrtf((float)shape.key_length),
        .sinks = shape.sinks ? a.sinks : NULL,
        .keys = (const void *const *)a.keys,
        .values = (const void *const *)a.values,
        .scores_stride = (a.tokens + 1 + XM_KV_TOKENS - 1) / XM_KV_TOKENS * XM_KV_TOKENS,
        .out_stride = heads * shape.value_length,
    };
    return a;
}

static void free_attention(attention *a)
{
    for (size_t b = 0; b < a->blocks; b++) {
        free(a->keys[b]);
        free(a->values[b]);
    }
    free(a->keys);
    free(a->values);
    free(a->query);
    free(a->sinks);
}

/* out[queries][value_length] */
static float *run_attention(const xm_kernels *kernels, xm_attention_job job, bool half)
{
    float *out = malloc((size_t)(job.query_count * job.value_length) * sizeof *out);

    job.scores = malloc((size_t)job.query_count * job.scores_stride * sizeof *job.scores);
    job.out = out;
    assert_true(out && job.scores);
    (half ? kernels->attention_f16 : kernels->attention_f32)(&job);
    free(job.scores);
    return out;
}

static double kv_element(const void *block, bool half, size_t index)
{
    return (double)(half ? xm_f16_to_f32(((const uint16_t *)block)[index])
                         : ((const float *)block)[index]);
}

/* Weights that sum to 1 over values of size 1..4: errors stay around a few ulp of 1. */
static void check_attention_exactly(const attention *a, const float *out)
{
    const attention_shape *s = &a->shape;

    for (size_t i = 0; i < (size_t)a->job.query_count; i++) {
        int32_t position = (int32_t)i / s->heads;
        double sums[256] = {0}, total = 0;

        if (s->sinks)
            total = exp((double)a->sinks[i % (size_t)s->heads]);
        for (size_t t = from_token(s, position); t < (size_t)(s->first_count + position); t++) {
            size_t b = t / XM_KV_TOKENS, slot = t % XM_KV_TOKENS;
            double dot = 0, e;

            for (size_t d = 0; d < s->key_length; d++)
                dot += (double)a->query[i * s->key_length + d] *
                       kv_element(a->keys[b], s->half, d * XM_KV_TOKENS + slot);
            e = exp(dot * (double)a->job.scale);
            total += e;
            for (size_t d = 0; d < s->value_length; d++)
                sums[d] += e * kv_element(a->values[b], s->half, slot * s->value_length + d);
        }
        for (size_t d = 0; d < s->value_length; d++)
            expect_near("attention", (double)out[i * s->value_length + d], sums[d] / total, 2e-5);
    }
}

/* Also alone: one position and one head of it. */
static void check_attention(attention_shape shape)
{
    attention a = make_attention(shape);
    size_t length = shape.value_length, count = (size_t)a.job.query_count * length;
    float *expected = run_attention(tables[0], a.job, shape.half);

    check_attention_exactly(&a, expected);
    for (int32_t t = 0; t < table_count; t++) {
        float *found = run_attention(tables[t], a.job, shape.half);

        expect_same("attention", tables[t]->name, expected, found, count);
        for (int32_t i = 0; i < a.job.query_count; i++) {
            xm_attention_job job = a.job;
            float *alone;

            job.query += (size_t)i * shape.key_length;
            job.heads = job.query_count = 1;
            job.first_count += i / shape.heads;
            if (shape.sinks)
                job.sinks += i % shape.heads;
            alone = run_attention(tables[t], job, shape.half);
            expect_same("query alone", tables[t]->name, alone, expected + (size_t)i * length,
                        length);
            free(alone);
        }
        free(found);
    }
    free(expected);
    free_attention(&a);
}

static void test_attention(void **state)
{
    static const size_t lengths[] = {1, 8, 16, 20, 33, 64, 80, 128, 150};
    static const int32_t first_counts[] = {1, 2, 15, 16, 17, 100};

    (void)state;
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (size_t f = 0; f < sizeof first_counts / sizeof *first_counts; f++) {
            attention_shape shape = {
                .half = (l + f) % 2,
                .key_length = lengths[l],
                .value_length = lengths[l],
                .heads = 1,
                .positions = (int32_t)(l + f * 5) % 16 + 1,
                .first_count = first_counts[f],
            };

            check_attention(shape);
            shape.half = !shape.half;
            shape.sinks = f % 2;
            shape.window = (int32_t)(l * 7 + f * 3) % 24 + 1;
            check_attention(shape);
        }
    for (int32_t queries = 1; queries <= 16; queries++)
        for (int32_t heads = 1; heads <= queries; heads++) {
            if (queries % heads == 0)
                check_attention((attention_shape){.half = queries % 2,
                                                  .sinks = heads % 2 == 0,
                                                  .key_length = 48,
                                                  .value_length = 40,
                                                  .heads = heads,
                                                  .positions = queries / heads,
                                                  .first_count = 12,
                                                  .window = heads % 3 == 0 ? 5 : 0});
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_functions_same_bits),    cmocka_unit_test(test_exp_accuracy),
        cmocka_unit_test(test_softmax_against_double), cmocka_unit_test(test_failures_stay_visible),
        cmocka_unit_test(test_norms_against_double),   cmocka_unit_test(test_swiglu_against_double),
        cmocka_unit_test(test_gelu_against_double),    cmocka_unit_test(test_attention),
    };

    return cmocka_run_group_tests(tests, kernel_setup, NULL);
}
