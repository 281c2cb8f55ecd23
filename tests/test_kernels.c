/*
 * Tests of the kernels: every variant that this CPU runs gives the bits of the scalar reference, at
 * awkward sizes and with extreme values, and reads and writes nothing beyond its arrays (run it
 * under the address sanitizer: arrays are allocated to the byte); a row's or query's result is the
 * same alone as in company; and the reference itself agrees with double precision.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "kernels/kernels.h"

static const xm_kernels *tables[4];
static int32_t table_count;

static int setup(void **state)
{
    (void)state;
    table_count = xm_kernels_available(tables);
    return table_count > 0 ? 0 : -1;
}

/* --- data --- */

static uint64_t draws;

static uint64_t random_bits(void)
{
    return xm_random_bits(7, 1, draws++);
}

static float random_normal(void)
{
    return (float)xm_random_normal(7, 2, draws++);
}

enum { PLAIN, EXTREME, MODES };

/* EXTREME: any F32 at all in one of eight places: NaN, infinities, denormals, huge, tiny, -0. */
static float random_value(int mode)
{
    static const float special[] = {NAN,     INFINITY, -INFINITY, 0.0f,   -0.0f,    1e-45f,
                                    -1e-40f, FLT_MIN,  FLT_MAX,   -3e38f, 1e-30f,   88.5f,
                                    -87.0f,  -87.5f,   -104.0f,   65504,  -65520.0f};
    uint32_t bits = (uint32_t)random_bits();
    float any;

    if (mode == PLAIN || bits % 8 != 0)
        return random_normal();
    if (bits % 16 == 0)
        return special[random_bits() % (sizeof special / sizeof *special)];
    bits = (uint32_t)random_bits();
    memcpy(&any, &bits, sizeof any);
    return any;
}

static float *random_floats(size_t count, int mode)
{
    float *x = malloc(count * sizeof *x);

    assert_non_null(x);
    for (size_t i = 0; i < count; i++)
        x[i] = random_value(mode);
    return x;
}

static void *copy_of(const void *data, size_t bytes)
{
    void *copy = malloc(bytes);

    assert_non_null(copy);
    memcpy(copy, data, bytes);
    return copy;
}

/* Equal bits, or both NaN. */
static void expect_same(const char *what, const char *isa, const float *expected,
                        const float *found, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (isnan(expected[i]) && isnan(found[i]))
            continue;
        if (memcmp(&expected[i], &found[i], sizeof *expected) != 0)
            fail_msg("%s, %s: element %zu of %zu is %a, expected %a", what, isa, i, count,
                     (double)found[i], (double)expected[i]);
    }
}

static void expect_near(const char *what, double found, double expected, double bound)
{
    if (!(fabs(found - expected) <= bound))
        fail_msg("%s: %.9g, expected %.9g within %.3g", what, found, expected, bound);
}

/* --- activations and panels --- */

typedef struct {
    xm_activations x;
    float *exact; /* [rows][stride] what x.f32 holds */
    size_t rows, columns;
} activations;

static activations make_activations(size_t rows, size_t columns, int mode)
{
    size_t stride = (columns + 31) / 32 * 32;
    activations a = {.rows = rows, .columns = columns};

    a.exact = random_floats(rows * stride, mode);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = columns; c < stride; c++)
            a.exact[r * stride + c] = 0.0f;
    a.x = (xm_activations){
        .f32 = a.exact,
        .i16 = malloc(rows * stride * sizeof *a.x.i16),
        .scales = malloc(rows * stride / 32 * sizeof *a.x.scales),
        .stride = stride,
    };
    assert_non_null(a.x.i16);
    assert_non_null(a.x.scales);
    tables[0]->quantize_i16(a.x.f32, rows * stride, a.x.i16, a.x.scales);
    return a;
}

static void free_activations(activations *a)
{
    free(a->exact);
    free(a->x.i16);
    free(a->x.scales);
}

/* Rows of a GGUF matrix. EXTREME: random bytes, so any scale and value. */
static uint8_t *random_weights(const xm_weight_traits *type, size_t rows, size_t columns, int mode)
{
    size_t row_bytes = columns / type->block_elements * type->block_bytes;
    uint8_t *source = malloc(rows * row_bytes);
    float *values = random_floats(columns, PLAIN);

    assert_non_null(source);
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < columns; c++)
            values[c] = random_normal();
        type->from_f32(values, source + r * row_bytes, columns);
    }
    if (mode == EXTREME)
        for (size_t i = 0; i < rows * row_bytes; i++)
            source[i] = random_bits() % 4 == 0 ? (uint8_t)random_bits() : source[i];
    free(values);
    return source;
}

static xm_matrix pack(const xm_weight_traits *type, const uint8_t *source, size_t rows,
                      size_t columns)
{
    xm_matrix m = {
        .type = type->type,
        .rows = (int32_t)rows,
        .columns = (int32_t)columns,
        .panels = (int32_t)((rows + XM_PANEL - 1) / XM_PANEL),
        .panel_bytes = xm_panel_bytes(type->type, columns),
    };
    uint8_t *data = malloc((size_t)m.panels * m.panel_bytes);

    assert_non_null(data);
    memset(data, 0xa5, (size_t)m.panels * m.panel_bytes);
    xm_pack_panels(type->type, source, rows, columns, 0, m.panels, data);
    m.data = data;
    return m;
}

static xm_matrix random_matrix(const xm_weight_traits *type, size_t rows, size_t columns, int mode)
{
    uint8_t *source = random_weights(type, rows, columns, mode);
    xm_matrix m = pack(type, source, rows, columns);

    free(source);
    return m;
}

static void free_matrix(xm_matrix *m)
{
    free((void *)(uintptr_t)m->data);
}

/* Column counts that suit the type's blocks, 0-terminated. */
static const size_t *column_counts(const xm_weight_traits *type)
{
    static const size_t any[] = {1, 2, 7, 32, 33, 96, 1023, 0};
    static const size_t blocks[] = {32, 64, 96, 1024, 0};

    return type->block_elements == 1 ? any : blocks;
}

/* --- matrices --- */

/* out[row_count][rows of m], every byte between set to a pattern first. */
static float *run_matrix(const xm_kernels *kernels, const xm_matrix *m, const float *bias,
                         const activations *a, const int32_t *rows, int32_t row_count)
{
    size_t count = (size_t)row_count * (size_t)m->rows;
    float *out = malloc(count * sizeof *out);

    assert_non_null(out);
    memset(out, 0x5a, count * sizeof *out);
    xm_matrix_panels(kernels, m, bias, &a->x, rows, row_count, 0, m->panels, out, (size_t)m->rows);
    return out;
}

/* Rows in an order that is not ascending and repeats one. */
static void list_rows(int32_t *rows, int32_t row_count, size_t available)
{
    for (int32_t i = 0; i < row_count; i++)
        rows[i] = (int32_t)((size_t)(i * 5 + 3) % available);
}

static void compare_matrix(const xm_weight_traits *type, size_t outputs, size_t columns, int mode)
{
    enum { MOST = 19 };
    xm_matrix m = random_matrix(type, outputs, columns, mode);
    activations a = make_activations(MOST, columns, mode);
    float *bias = random_floats(outputs, mode);
    int32_t rows[MOST];

    for (int32_t count = 1; count <= MOST; count++) {
        const float *b = count % 2 ? bias : NULL;
        float *expected;

        list_rows(rows, count, MOST);
        expected = run_matrix(tables[0], &m, b, &a, rows, count);
        for (int32_t t = 1; t < table_count; t++) {
            float *found = run_matrix(tables[t], &m, b, &a, rows, count);
            expect_same(type->name, tables[t]->name, expected, found, (size_t)count * outputs);
            free(found);
        }
        free(expected);
    }
    free(bias);
    free_activations(&a);
    free_matrix(&m);
}

static void test_panels_same_bits(void **state)
{
    size_t types;
    const xm_weight_traits *all = xm_weight_traits_all(&types);

    (void)state;
    for (size_t i = 0; i < types; i++)
        for (int mode = 0; mode < MODES; mode++) {
            for (const size_t *k = column_counts(&all[i]); *k; k++)
                compare_matrix(&all[i], 17, *k, mode);
            for (size_t outputs = 1; outputs <= 16; outputs++)
                compare_matrix(&all[i], outputs, 64, mode);
        }
}

static void test_rows_alone_and_in_company(void **state)
{
    enum { ROWS = 19, OUTPUTS = 21, COLUMNS = 96 };
    size_t types;
    const xm_weight_traits *all = xm_weight_traits_all(&types);
    activations a = make_activations(ROWS, COLUMNS, PLAIN);
    int32_t rows[ROWS];

    (void)state;
    list_rows(rows, ROWS, ROWS);
    for (size_t i = 0; i < types; i++) {
        xm_matrix m = random_matrix(&all[i], OUTPUTS, COLUMNS, PLAIN);

        for (int32_t t = 0; t < table_count; t++) {
            float *together = run_matrix(tables[t], &m, NULL, &a, rows, ROWS);
            for (int32_t r = 0; r < ROWS; r++) {
                float *alone = run_matrix(tables[t], &m, NULL, &a, &rows[r], 1);
                assert_memory_equal(alone, together + r * OUTPUTS, OUTPUTS * sizeof *alone);
                free(alone);
            }
            free(together);
        }
        free_matrix(&m);
    }
    free_activations(&a);
}

/* An activation as the type's kernel sees it. */
static double seen(const activations *a, xm_weight_type type, size_t row, size_t column)
{
    size_t i = row * a->x.stride + column;

    if (!xm_type_takes_i16(type))
        return (double)a->x.f32[i];
    return (double)a->x.i16[i] * (double)a->x.scales[i / 32];
}

/* Bound: each of at most k + 3 roundings on a row's way loses half an ulp of a partial sum, which
 * is at most the sum of absolute products. */
static void test_panels_against_double(void **state)
{
    enum { ROWS = 3, OUTPUTS = 18 };
    static const int32_t rows[ROWS] = {0, 1, 2};
    size_t types;
    const xm_weight_traits *all = xm_weight_traits_all(&types);

    (void)state;
    for (size_t i = 0; i < types; i++)
        for (const size_t *k = column_counts(&all[i]); *k; k++) {
            xm_matrix m = random_matrix(&all[i], OUTPUTS, *k, PLAIN);
            activations a = make_activations(ROWS, *k, PLAIN);
            float *w = malloc(*k * sizeof *w);
            float *out = run_matrix(tables[0], &m, NULL, &a, rows, ROWS);

            assert_non_null(w);
            for (int32_t o = 0; o < OUTPUTS; o++) {
                xm_unpack_row(&m, o, w);
                for (size_t r = 0; r < ROWS; r++) {
                    double sum = 0, absolute = 0;
                    for (size_t c = 0; c < *k; c++) {
                        double product = (double)w[c] * seen(&a, m.type, r, c);
                        sum += product;
                        absolute += fabs(product);
                    }
                    expect_near(all[i].name, (double)out[r * OUTPUTS + (size_t)o], sum,
                                (double)(*k + 3) * 0x1p-24 * absolute);
                }
            }
            free(out);
            free(w);
            free_activations(&a);
            free_matrix(&m);
        }
}

static void test_pack_round_trip(void **state)
{
    static const size_t row_counts[] = {1, 15, 16, 17, 40};
    enum { COLUMNS = 96 };
    size_t types;
    const xm_weight_traits *all = xm_weight_traits_all(&types);

    (void)state;
    for (size_t i = 0; i < types; i++)
        for (size_t j = 0; j < sizeof row_counts / sizeof *row_counts; j++) {
            size_t rows = row_counts[j];
            size_t row_bytes = COLUMNS / all[i].block_elements * all[i].block_bytes;
            uint8_t *source = random_weights(&all[i], rows, COLUMNS, EXTREME);
            xm_matrix m = pack(&all[i], source, rows, COLUMNS);
            uint8_t *parts = copy_of(m.data, (size_t)m.panels * m.panel_bytes);
            float expected[COLUMNS], found[COLUMNS];

            assert_int_equal(m.panel_bytes % 32, 0);
            for (size_t r = 0; r < rows; r++) {
                all[i].to_f32(source + r * row_bytes, expected, COLUMNS);
                xm_unpack_row(&m, (int32_t)r, found);
                expect_same("unpack", all[i].name, expected, found, COLUMNS);
            }
            for (int32_t p = m.panels; p-- > 0;)
                xm_pack_panels(all[i].type, source, rows, COLUMNS, p, p + 1, parts);
            assert_memory_equal(parts, m.data, (size_t)m.panels * m.panel_bytes);
            free(parts);
            free_matrix(&m);
            free(source);
        }
}

/* Rows beyond the matrix give zero outputs, whatever memory held before. */
static void test_padding_is_zero(void **state)
{
    size_t types;
    const xm_weight_traits *all = xm_weight_traits_all(&types);
    activations a = make_activations(1, 64, PLAIN);

    (void)state;
    for (size_t i = 0; i < types; i++) {
        static const int32_t row = 0;
        xm_matrix m = random_matrix(&all[i], 5, 64, PLAIN);
        float *out;

        m.rows = 16;
        out = run_matrix(tables[0], &m, NULL, &a, &row, 1);
        for (size_t o = 5; o < 16; o++)
            assert_true(out[o] == 0.0f);
        assert_true(out[4] != 0.0f);
        free(out);
        free_matrix(&m);
    }
    free_activations(&a);
}

/* --- quantisation of activations --- */

static void test_quantize_same_bits(void **state)
{
    enum { COUNT = 32 * 50 };
    int16_t expected[COUNT], found[COUNT];
    float expected_scales[COUNT / 32], found_scales[COUNT / 32];

    (void)state;
    for (int mode = 0; mode < MODES; mode++)
        for (int round = 0; round < 20; round++) {
            float *x = random_floats(COUNT, mode);

            for (size_t i = 0; i < COUNT; i++) /* most EXTREME blocks free of NaN, some tiny */
                if (i / 32 % 4 && !isfinite(x[i]))
                    x[i] = 0.0f;
                else if (i / 32 % 4 == 3)
                    x[i] *= i / 32 % 8 == 3 ? 0x1p-100f : 1e-38f;
            tables[0]->quantize_i16(x, COUNT, expected, expected_scales);
            for (int32_t t = 1; t < table_count; t++) {
                tables[t]->quantize_i16(x, COUNT, found, found_scales);
                assert_memory_equal(expected, found, sizeof expected);
                expect_same("scales", tables[t]->name, expected_scales, found_scales, COUNT / 32);
            }
            free(x);
        }
}

static void test_quantize_contract(void **state)
{
    (void)state;
    for (int32_t t = 0; t < table_count; t++) {
        float x[32] = {0};
        int16_t q[32];
        float scale;

        tables[t]->quantize_i16(x, 32, q, &scale);
        assert_true(scale == 0.0f && q[0] == 0);
        x[3] = 0x1p-101f;
        tables[t]->quantize_i16(x, 32, q, &scale);
        assert_true(scale == 0.0f && q[3] == 0);
        for (size_t bad = 0; bad < 32; bad += 5) {
            x[3] = 1.0f;
            x[bad] = bad % 2 ? NAN : -INFINITY;
            tables[t]->quantize_i16(x, 32, q, &scale);
            assert_true(isnan(scale) && q[3] == 0 && q[bad] == 0);
            x[bad] = 0.0f;
        }
        for (int round = 0; round < 200; round++) {
            float size = ldexpf(1.0f, round - 95);
            for (size_t i = 0; i < 32; i++)
                x[i] = size * random_normal();
            x[round % 32] = round % 2 ? -5.0f * size : 5.0f * size;
            tables[t]->quantize_i16(x, 32, q, &scale);
            assert_int_equal(abs(q[round % 32]), 32767);
            for (size_t i = 0; i < 32; i++)
                expect_near("dequantised", (double)q[i] * (double)scale, (double)x[i],
                            0.503 * (double)scale);
        }
    }
}

/* --- functions of vectors --- */

enum { SOFTMAX, LOG_SUM_EXP, LAYER_NORM, GELU, ADD, SCALED_ADD, FUNCTIONS };

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
    case GELU:
        k->gelu(x, count);
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
    static const char *const names[] = {"softmax", "log_sum_exp", "layer_norm",
                                        "gelu",    "add",         "scaled_add"};

    (void)state;
    for (int function = 0; function < FUNCTIONS; function++)
        for (int mode = 0; mode < MODES; mode++)
            for (size_t round = 0; round < 140; round++) {
                size_t count = round % 70 == 69 ? 1023 : round % 70 + 1;
                /* softmax and norm turn all to NaN at one infinity: keep some calls free of it */
                int x_mode = function <= LAYER_NORM && round < 70 ? PLAIN : mode;
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

static void test_layer_norm_against_double(void **state)
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
    xm_attention_job job;
    float *query;
    void **keys, **values; /* [blocks], each allocated to the byte */
    size_t blocks, tokens;
    bool half;
} attention;

/* Beyond the last query's tokens, keys and values are NaN: nothing may come from there. */
static attention make_attention(bool half, size_t length, int32_t queries, int32_t first_count)
{
    attention a = {.half = half, .tokens = (size_t)(first_count + queries - 1)};
    size_t elements = XM_KV_TOKENS * length;

    a.blocks = (a.tokens + XM_KV_TOKENS - 1) / XM_KV_TOKENS;
    a.query = random_floats((size_t)queries * length, PLAIN);
    a.keys = calloc(a.blocks, sizeof *a.keys);
    a.values = calloc(a.blocks, sizeof *a.values);
    assert_true(a.keys && a.values);
    for (size_t b = 0; b < a.blocks; b++) {
        float *keys = random_floats(elements, PLAIN);
        float *values = random_floats(elements, PLAIN);
        size_t used = a.tokens - b * XM_KV_TOKENS; /* may be over 16 */

        for (size_t i = 0; i < elements; i++) {
            keys[i] = i % XM_KV_TOKENS < used ? keys[i] : NAN;
            values[i] = i / length < used ? values[i] : NAN;
        }
        a.keys[b] = keys;
        a.values[b] = values;
        if (half) {
            const xm_weight_traits *f16 = xm_weight_traits_of(XM_TYPE_F16);
            a.keys[b] = malloc(elements * 2);
            a.values[b] = malloc(elements * 2);
            assert_true(a.keys[b] && a.values[b]);
            f16->from_f32(keys, a.keys[b], elements);
            f16->from_f32(values, a.values[b], elements);
            free(keys);
            free(values);
        }
    }
    a.job = (xm_attention_job){
        .query = a.query,
        .query_stride = length,
        .query_count = queries,
        .first_count = first_count,
        .head_length = (int32_t)length,
        .scale = 1.0f / sqrtf((float)length),
        .keys = (const void *const *)a.keys,
        .values = (const void *const *)a.values,
        .scores_stride = a.blocks * XM_KV_TOKENS,
        .out_stride = length,
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
}

/* out[queries][head_length] */
static float *run_attention(const xm_kernels *kernels, xm_attention_job job, bool half)
{
    float *out = malloc((size_t)job.query_count * job.out_stride * sizeof *out);

    job.scores = malloc((size_t)job.query_count * job.scores_stride * sizeof *job.scores);
    job.out = out;
    assert_true(out && job.scores);
    (half ? kernels->attention_f16 : kernels->attention_f32)(&job);
    free(job.scores);
    return out;
}

static float kv_element(const void *block, bool half, size_t index)
{
    return half ? xm_f16_to_f32(((const uint16_t *)block)[index]) : ((const float *)block)[index];
}

/* Weights that sum to 1 over values of size 1..4: errors stay around a few ulp of 1. */
static void check_attention_exactly(const attention *a, const float *out)
{
    size_t length = (size_t)a->job.head_length;

    for (int32_t i = 0; i < a->job.query_count; i++) {
        size_t tokens = (size_t)(a->job.first_count + i);
        double *sums = calloc(length, sizeof *sums);
        double total = 0;

        assert_non_null(sums);
        for (size_t t = 0; t < tokens; t++) {
            size_t b = t / XM_KV_TOKENS, slot = t % XM_KV_TOKENS;
            double dot = 0, e;

            for (size_t d = 0; d < length; d++)
                dot += (double)a->query[(size_t)i * length + d] *
                       (double)kv_element(a->keys[b], a->half, d * XM_KV_TOKENS + slot);
            e = exp(dot * (double)a->job.scale);
            total += e;
            for (size_t d = 0; d < length; d++)
                sums[d] += e * (double)kv_element(a->values[b], a->half, slot * length + d);
        }
        for (size_t d = 0; d < length; d++)
            expect_near("attention", (double)out[(size_t)i * length + d], sums[d] / total, 2e-5);
        free(sums);
    }
}

static void check_attention(bool half, size_t length, int32_t queries, int32_t first_count)
{
    attention a = make_attention(half, length, queries, first_count);
    size_t count = (size_t)queries * length;
    float *expected = run_attention(tables[0], a.job, half);

    check_attention_exactly(&a, expected);
    for (int32_t t = 0; t < table_count; t++) {
        float *found = run_attention(tables[t], a.job, half);

        expect_same("attention", tables[t]->name, expected, found, count);
        for (int32_t i = 0; i < queries; i++) {
            xm_attention_job job = a.job;
            float *alone;

            job.query += (size_t)i * job.query_stride;
            job.query_count = 1;
            job.first_count += i;
            alone = run_attention(tables[t], job, half);
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
            check_attention(false, lengths[l], (int32_t)(l + f * 5) % 16 + 1, first_counts[f]);
            check_attention(true, lengths[l], (int32_t)(l * 3 + f * 7) % 16 + 1, first_counts[f]);
        }
    for (int32_t queries = 1; queries <= 16; queries++)
        check_attention(queries % 2, 64, queries, 12);
}

/* --- choice of a variant --- */

static void test_select(void **state)
{
    const xm_kernels *kernels;
    xmoe_error error;

    (void)state;
    assert_string_equal(tables[0]->name, "scalar");
    for (int32_t t = 0; t < table_count; t++) {
        assert_int_equal(xm_kernels_select(tables[t]->name, &kernels, &error), XMOE_OK);
        assert_ptr_equal(kernels, tables[t]);
        setenv("XMOE_ISA", tables[t]->name, 1);
        assert_int_equal(xm_kernels_select(NULL, &kernels, &error), XMOE_OK);
        assert_ptr_equal(kernels, tables[t]);
    }
    assert_int_equal(xm_kernels_select("scalar", &kernels, &error), XMOE_OK);
    assert_ptr_equal(kernels, tables[0]);
    setenv("XMOE_ISA", "sse9", 1);
    assert_int_equal(xm_kernels_select(NULL, &kernels, &error), XMOE_ERROR_ARGUMENT);
    assert_null(kernels);
    assert_non_null(strstr(error.message, "XMOE_ISA"));
    assert_non_null(strstr(error.message, "sse9"));
    unsetenv("XMOE_ISA");
    assert_int_equal(xm_kernels_select(NULL, &kernels, &error), XMOE_OK);
    assert_ptr_equal(kernels, tables[table_count - 1]);
    assert_int_equal(xm_kernels_select("avx", &kernels, &error), XMOE_ERROR_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_panels_same_bits),
        cmocka_unit_test(test_rows_alone_and_in_company),
        cmocka_unit_test(test_panels_against_double),
        cmocka_unit_test(test_pack_round_trip),
        cmocka_unit_test(test_padding_is_zero),
        cmocka_unit_test(test_quantize_same_bits),
        cmocka_unit_test(test_quantize_contract),
        cmocka_unit_test(test_functions_same_bits),
        cmocka_unit_test(test_exp_accuracy),
        cmocka_unit_test(test_softmax_against_double),
        cmocka_unit_test(test_failures_stay_visible),
        cmocka_unit_test(test_layer_norm_against_double),
        cmocka_unit_test(test_gelu_against_double),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_select),
    };

    return cmocka_run_group_tests(tests, setup, NULL);
}
