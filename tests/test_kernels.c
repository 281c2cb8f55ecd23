/*
 * test_kernels.c - matrices: packing, panel kernels, quantisation of activations, choice of a
 * variant. Every variant that this CPU runs gives the bits of the scalar reference, at awkward
 * sizes and with extreme values; a row's result is the same alone as in company; the reference
 * itself agrees with double precision.
 */
#include "kernel_data.h"

#include "format/weight_coding.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

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
        .sums = malloc(rows * stride / 16 * sizeof *a.x.sums),
        .stride = stride,
    };
    assert_non_null(a.x.i16);
    assert_non_null(a.x.scales);
    assert_non_null(a.x.sums);
    tables[0]->quantize_i16(a.x.f32, rows * stride, a.x.i16, a.x.scales, a.x.sums);
    return a;
}

static void free_activations(activations *a)
{
    free(a->exact);
    free(a->x.i16);
    free(a->x.scales);
    free(a->x.sums);
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
        xm_weights_from_f32(type, values, NULL, source + r * row_bytes, columns);
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
    static const size_t large_blocks[] = {256, 512, 768, 0};

    if (type->block_elements == 1)
        return any;
    return type->block_elements == 32 ? blocks : large_blocks;
}

/* A few blocks. */
static size_t some_columns(const xm_weight_traits *type)
{
    return type->block_elements == 256 ? 512 : 96;
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
                compare_matrix(&all[i], outputs, some_columns(&all[i]), mode);
        }
}

static void test_rows_alone_and_in_company(void **state)
{
    enum { ROWS = 19, OUTPUTS = 21 };
    size_t types;
    const xm_weight_traits *all = xm_weight_traits_all(&types);
    int32_t rows[ROWS];

    (void)state;
    list_rows(rows, ROWS, ROWS);
    for (size_t i = 0; i < types; i++) {
        activations a = make_activations(ROWS, some_columns(&all[i]), PLAIN);
        xm_matrix m = random_matrix(&all[i], OUTPUTS, some_columns(&all[i]), PLAIN);

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
        free_activations(&a);
    }
}

/* An activation as the type's kernel sees it. */
static double seen(const activations *a, xm_weight_type type, size_t row, size_t column)
{
    size_t i = row * a->x.stride + column;

    if (!xm_type_takes_i16(type))
        return (double)a->x.f32[i];
    return (double)a->x.i16[i] * (double)a->x.scales[i / 32];
}

/* The largest magnitude among the values of the block around element c. */
static double block_largest(const float *w, size_t columns, size_t c)
{
    double largest = 0;

    for (size_t i = c / 256 * 256; i < columns && i < c / 256 * 256 + 256; i++)
        largest = fmax(largest, fabs((double)w[i]));
    return largest;
}

/* Bound: each of at most k + 3 roundings on a row's way loses half an ulp of a partial sum, which
 * is at most the sum of absolute products. With minima these are products of the parts of a
 * weight, each at most twice the largest weight of the block. */
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
                        if (xm_weight_coding_of(m.type).minimum)
                            absolute += 4 * fabs(seen(&a, m.type, r, c)) * block_largest(w, *k, c);
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
    enum { MOST = 512 };
    size_t types;
    const xm_weight_traits *all = xm_weight_traits_all(&types);

    (void)state;
    for (size_t i = 0; i < types; i++)
        for (size_t j = 0; j < sizeof row_counts / sizeof *row_counts; j++) {
            size_t rows = row_counts[j], columns = some_columns(&all[i]);
            size_t row_bytes = columns / all[i].block_elements * all[i].block_bytes;
            uint8_t *source = random_weights(&all[i], rows, columns, EXTREME);
            xm_matrix m = pack(&all[i], source, rows, columns);
            uint8_t *parts = copy_of(m.data, (size_t)m.panels * m.panel_bytes);
            float expected[MOST], found[MOST];

            assert_int_equal(m.panel_bytes % 32, 0);
            for (size_t r = 0; r < rows; r++) {
                xm_weights_to_f32(&all[i], source + r * row_bytes, expected, columns);
                xm_unpack_row(&m, (int32_t)r, found);
                expect_same("unpack", all[i].name, expected, found, columns);
            }
            for (int32_t p = m.panels; p-- > 0;)
                xm_pack_panels(all[i].type, source, rows, columns, p, p + 1, parts);
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

    (void)state;
    for (size_t i = 0; i < types; i++) {
        static const int32_t row = 0;
        activations a = make_activations(1, some_columns(&all[i]), PLAIN);
        xm_matrix m = random_matrix(&all[i], 5, some_columns(&all[i]), PLAIN);
        float *out;

        m.rows = 16;
        out = run_matrix(tables[0], &m, NULL, &a, &row, 1);
        for (size_t o = 5; o < 16; o++)
            assert_true(out[o] == 0.0f);
        assert_true(out[4] != 0.0f);
        free(out);
        free_matrix(&m);
        free_activations(&a);
    }
}

/* --- quantisation of activations --- */

static void test_quantize_same_bits(void **state)
{
    enum { COUNT = 32 * 50 };
    int16_t expected[COUNT], found[COUNT];
    float expected_scales[COUNT / 32], found_scales[COUNT / 32];
    int32_t expected_sums[COUNT / 16], found_sums[COUNT / 16];

    (void)state;
    for (int mode = 0; mode < MODES; mode++)
        for (int round = 0; round < 20; round++) {
            float *x = random_floats(COUNT, mode);

            for (size_t i = 0; i < COUNT; i++) /* most EXTREME blocks free of NaN, some tiny */
                if (i / 32 % 4 && !isfinite(x[i]))
                    x[i] = 0.0f;
                else if (i / 32 % 4 == 3)
                    x[i] *= i / 32 % 8 == 3 ? 0x1p-100f : 1e-38f;
            tables[0]->quantize_i16(x, COUNT, expected, expected_scales, expected_sums);
            for (int32_t t = 1; t < table_count; t++) {
                tables[t]->quantize_i16(x, COUNT, found, found_scales, found_sums);
                assert_memory_equal(expected, found, sizeof expected);
                assert_memory_equal(expected_sums, found_sums, sizeof expected_sums);
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
        int32_t sums[2];
        float scale;

        tables[t]->quantize_i16(x, 32, q, &scale, sums);
        assert_true(scale == 0.0f && q[0] == 0);
        x[3] = 0x1p-101f;
        tables[t]->quantize_i16(x, 32, q, &scale, sums);
        assert_true(scale == 0.0f && q[3] == 0);
        for (size_t bad = 0; bad < 32; bad += 5) {
            x[3] = 1.0f;
            x[bad] = bad % 2 ? NAN : -INFINITY;
            tables[t]->quantize_i16(x, 32, q, &scale, sums);
            assert_true(isnan(scale) && q[3] == 0 && q[bad] == 0);
            x[bad] = 0.0f;
        }
        for (int round = 0; round < 200; round++) {
            float size = ldexpf(1.0f, round - 95);
            for (size_t i = 0; i < 32; i++)
                x[i] = size * random_normal();
            x[round % 32] = round % 2 ? -5.0f * size : 5.0f * size;
            tables[t]->quantize_i16(x, 32, q, &scale, sums);
            assert_int_equal(abs(q[round % 32]), 32767);
            for (size_t i = 0; i < 32; i++)
                expect_near("dequantised", (double)q[i] * (double)scale, (double)x[i],
                            0.503 * (double)scale);
            for (size_t i = 0; i < 32; i++)
                sums[i / 16] -= q[i];
            assert_true(sums[0] == 0 && sums[1] == 0);
        }
    }
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
        cmocka_unit_test(test_select),
    };

    return cmocka_run_group_tests(tests, kernel_setup, NULL);
}
