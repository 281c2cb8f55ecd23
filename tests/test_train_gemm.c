/*
 * test_train_gemm.c - the matrix products of training against double precision, in F32 and, where
 * this CPU has it, in BF16: all forms, odd sizes, strides, what they may read and write, numbers
 * that are not finite; and that BF16 trains like F32.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "train/pass.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const xm_gemm *find(xm_precision precision)
{
    const xm_gemm *gemm = NULL;
    xm_gemm_setup();
    if (xm_gemm_select(precision, &gemm, NULL) != XMOE_OK) {
        print_message("this CPU does not multiply BF16\n");
        skip();
    }
    return gemm;
}

/* --- operands that end where memory ends -------------------------------------------------------
 */

typedef struct {
    char *pages;
    size_t bytes;
    float *values;
} edge;

static edge make_edge(size_t count)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = count * sizeof(float);
    edge e = {.bytes = (size + page - 1) / page * page + page};
    e.pages = mmap(NULL, e.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(e.pages != MAP_FAILED);
    assert_int_equal(mprotect(e.pages + e.bytes - page, page, PROT_NONE), 0);
    e.values = (float *)(void *)(e.pages + e.bytes - page - size);
    return e;
}

static void free_edge(edge *e)
{
    munmap(e->pages, e->bytes);
}

/* --- a product in double -----------------------------------------------------------------------
 */

enum { NT, NN, TN, FORMS };

typedef struct {
    int form;
    int32_t m, n, k, a_stride, b_stride, c_stride;
} problem;

static size_t rows_of_a(const problem *p)
{
    return (size_t)(p->form == TN ? p->k : p->m);
}

static size_t rows_of_b(const problem *p)
{
    return (size_t)(p->form == NT ? p->n : p->k);
}

static int32_t columns_of_a(const problem *p)
{
    return p->form == TN ? p->m : p->k;
}

static int32_t columns_of_b(const problem *p)
{
    return p->form == NT ? p->k : p->n;
}

static float a_at(const problem *p, const float *a, int32_t i, int32_t l)
{
    return p->form == TN ? a[l * p->a_stride + i] : a[i * p->a_stride + l];
}

static float b_at(const problem *p, const float *b, int32_t l, int32_t j)
{
    return p->form == NT ? b[j * p->b_stride + l] : b[l * p->b_stride + j];
}

/* To BF16: the upper half of an F32, to nearest, ties to even. */
static float rounded(const xm_gemm *gemm, float x)
{
    uint32_t bits;
    if (gemm->precision == XM_PRECISION_F32 || !isfinite(x))
        return x;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
    memcpy(&x, &bits, sizeof bits);
    return fabsf(x) < FLT_MIN ? 0.0f : x;
}

static void multiply(const xm_gemm *gemm, void *scratch, const problem *p, const float *a,
                     const float *b, float beta, float *c)
{
    const xm_gemm_fn forms[] = {gemm->nt, gemm->nn, gemm->tn};
    forms[p->form](scratch, p->m, p->n, p->k, a, p->a_stride, b, p->b_stride, beta, c, p->c_stride);
}

static void *make_scratch(const xm_gemm *gemm)
{
    return gemm->scratch_bytes > 0 ? xm_calloc_aligned(1, gemm->scratch_bytes) : NULL;
}

static void fill(float *values, size_t count, uint64_t stream)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (float)xm_random_normal(7, stream, i);
}

/* c against double: the sums of both are off by at most k roundings of what they add. */
static void compare(const xm_gemm *gemm, const problem *p, const float *a, const float *b,
                    float beta, const float *before, const float *c)
{
    for (int32_t i = 0; i < p->m; i++)
        for (int32_t j = 0; j < p->n; j++) {
            size_t at = (size_t)i * (size_t)p->c_stride + (size_t)j;
            double sum = beta == 0.0f ? 0.0 : (double)(beta * before[at]), size = fabs(sum);
            for (int32_t l = 0; l < p->k; l++) {
                double term = (double)rounded(gemm, a_at(p, a, i, l)) *
                              (double)rounded(gemm, b_at(p, b, l, j));
                sum += term;
                size += fabs(term);
            }
            double bound = (p->k + 2) * (double)FLT_EPSILON * size;
            if (!(fabs((double)c[at] - sum) <= bound))
                fail_msg("form %d, %d x %d x %d, beta %g: c[%d][%d] is %.9g, in double %.9g",
                         p->form, p->m, p->n, p->k, (double)beta, i, j, (double)c[at], sum);
        }
}

/* Between rows nothing is written. */
static void check_gaps(const problem *p, const float *before, const float *c)
{
    for (int32_t i = 0; i + 1 < p->m; i++)
        for (int32_t j = p->n; j < p->c_stride; j++) {
            size_t at = (size_t)i * (size_t)p->c_stride + (size_t)j;
            assert_memory_equal(&before[at], &c[at], sizeof(float));
        }
}

static void check_product(const xm_gemm *gemm, void *scratch, int form, int32_t m, int32_t n,
                          int32_t k, int32_t gap, float beta)
{
    problem p = {.form = form, .m = m, .n = n, .k = k, .c_stride = n + gap};
    p.a_stride = columns_of_a(&p) + gap;
    p.b_stride = columns_of_b(&p) + gap;
    /* The last row ends with its last column. */
    size_t a_count = rows_of_a(&p) * (size_t)p.a_stride - (size_t)gap;
    size_t b_count = rows_of_b(&p) * (size_t)p.b_stride - (size_t)gap;
    size_t c_count = (size_t)m * (size_t)p.c_stride - (size_t)gap;
    edge a = make_edge(a_count), b = make_edge(b_count), c = make_edge(c_count);
    float *before = malloc(c_count * sizeof *before);
    fill(a.values, a_count, 1);
    fill(b.values, b_count, 2);
    fill(c.values, c_count, 3);
    for (size_t i = 0; beta == 0.0f && i < c_count; i++)
        c.values[i] = NAN; /* must not be read */
    memcpy(before, c.values, c_count * sizeof *before);
    multiply(gemm, scratch, &p, a.values, b.values, beta, c.values);
    compare(gemm, &p, a.values, b.values, beta, before, c.values);
    check_gaps(&p, before, c.values);
    free(before);
    free_edge(&a);
    free_edge(&b);
    free_edge(&c);
}

static void check_sizes(const xm_gemm *gemm)
{
    static const int32_t sizes[][3] = {{1, 1, 1},     {1, 1, 2},     {2, 3, 1},      {3, 2, 5},
                                       {4, 16, 31},   {5, 17, 32},   {8, 31, 33},    {9, 32, 64},
                                       {12, 33, 63},  {13, 48, 65},  {16, 16, 16},   {17, 1, 100},
                                       {1, 100, 17},  {24, 40, 96},  {100, 192, 96}, {37, 70, 385},
                                       {193, 30, 50}, {20, 515, 40}, {6, 20, 800},   {30, 64, 129}};
    void *scratch = make_scratch(gemm);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int form = NT; form < FORMS; form++) {
            const int32_t *s = sizes[i];
            check_product(gemm, scratch, form, s[0], s[1], s[2], 0, 0.0f);
            check_product(gemm, scratch, form, s[0], s[1], s[2], 3, 1.0f);
        }
    xm_free(scratch);
}

static void test_f32(void **state)
{
    (void)state;
    check_sizes(find(XM_PRECISION_F32));
}

static void test_bf16(void **state)
{
    (void)state;
    check_sizes(find(XM_PRECISION_BF16));
}

/* --- particular numbers ------------------------------------------------------------------------
 */

static float one_product(const xm_gemm *gemm, float a, float b)
{
    void *scratch = make_scratch(gemm);
    float c = NAN;
    gemm->nt(scratch, 1, 1, 1, &a, 1, &b, 1, 0.0f, &c, 1);
    xm_free(scratch);
    return c;
}

static void test_rounding(void **state)
{
    (void)state;
    const xm_gemm *gemm = find(XM_PRECISION_BF16);
    const float ulp = 0x1p-7f;                                                    /* of BF16 at 1 */
    assert_true(one_product(gemm, 1.0f + 0.5f * ulp, 1.0f) == 1.0f);              /* tie: even */
    assert_true(one_product(gemm, 1.0f + 1.5f * ulp, 1.0f) == 1.0f + 2.0f * ulp); /* tie: even */
    assert_true(one_product(gemm, 1.0f + 0.51f * ulp, 1.0f) == 1.0f + ulp);
    assert_true(one_product(gemm, 1.0f, 1.0f + 0.49f * ulp) == 1.0f);
    assert_true(one_product(gemm, 1.0f + ulp, 1.0f + ulp) == (1.0f + ulp) * (1.0f + ulp));
    assert_true(one_product(gemm, 0x1p-127f, 0x1p20f) == 0.0f); /* as contracted */
}

static void test_not_finite(void **state)
{
    (void)state;
    const xm_precision precisions[] = {XM_PRECISION_F32, XM_PRECISION_AUTO};
    for (size_t i = 0; i < 2; i++) {
        const xm_gemm *gemm = find(precisions[i]);
        assert_true(isnan(one_product(gemm, NAN, 1.0f)));
        assert_true(isnan(one_product(gemm, 0.0f, INFINITY)));
        assert_true(isinf(one_product(gemm, -INFINITY, 2.0f)));
        /* A row with one does not touch the others. */
        float a[2 * 40], b[40], c[2];
        void *scratch = make_scratch(gemm);
        for (size_t j = 0; j < 40; j++)
            a[j] = a[40 + j] = b[j] = 1.0f;
        a[17] = NAN;
        gemm->nt(scratch, 2, 1, 40, a, 40, b, 40, 0.0f, c, 1);
        assert_true(isnan(c[0]));
        assert_true(c[1] == 40.0f);
        xm_free(scratch);
    }
}

static void test_cut_does_not_matter(void **state)
{
    (void)state;
    enum { M = 61, N = 83, K = 401 };
    const xm_gemm *gemm = find(XM_PRECISION_BF16);
    void *scratch = make_scratch(gemm);
    float *a = calloc(M * K, sizeof *a), *b = calloc(N * K, sizeof *b);
    float *whole = calloc(M * N, sizeof *whole), *parts = calloc(M * N, sizeof *parts);
    fill(a, M * K, 1);
    fill(b, N * K, 2);
    gemm->nt(scratch, M, N, K, a, K, b, K, 0.0f, whole, N);
    for (int32_t i = 0; i < M; i += 7)
        for (int32_t j = 0; j < N; j += 19)
            gemm->nt(scratch, M - i < 7 ? M - i : 7, N - j < 19 ? N - j : 19, K, a + i * K, K,
                     b + j * K, K, 0.0f, parts + i * N + j, N);
    assert_memory_equal(whole, parts, M * N * sizeof *whole);
    xm_free(scratch);
    free(a);
    free(b);
    free(whole);
    free(parts);
}

static void test_selection(void **state)
{
    (void)state;
    const xm_gemm *gemm = NULL, *best = NULL;
    xmoe_error error;
    assert_int_equal(xm_gemm_select(XM_PRECISION_F32, &gemm, NULL), XMOE_OK);
    assert_ptr_equal(gemm, &xm_gemm_f32);
    assert_int_equal(xm_gemm_select(XM_PRECISION_AUTO, &best, NULL), XMOE_OK);
    if (xm_gemm_select(XM_PRECISION_BF16, &gemm, &error) == XMOE_OK) {
        assert_int_equal(gemm->precision, XM_PRECISION_BF16);
        assert_ptr_equal(gemm, best);
    } else {
        assert_non_null(strstr(error.message, "AVX512_BF16"));
        assert_ptr_equal(best, &xm_gemm_f32);
    }
    assert_string_equal(xm_precision_name(XM_PRECISION_F32), "f32");
    assert_string_equal(xm_precision_name(XM_PRECISION_BF16), "bf16");
    assert_string_equal(xm_precision_name(XM_PRECISION_AUTO), "auto");
}

/* --- a network ---------------------------------------------------------------------------------
 */

enum { ROWS = 64 };

typedef struct {
    const xm_network *network;
    const float *parameters;
    int32_t tokens[ROWS], targets[ROWS];
} batch;

static float *gradients_of(const batch *b, const xm_gemm *gemm, int32_t threads, double *loss)
{
    const xm_pass_options options = {.sequences = 2,
                                     .length = ROWS / 2,
                                     .balance_weight = 0.01f,
                                     .training = true,
                                     .gemm = gemm};
    float *gradients = xm_calloc_aligned(b->network->total, sizeof *gradients);
    xm_pool *pool = NULL;
    xm_pass *pass = NULL;
    xm_pass_result result;
    assert_int_equal(xm_pool_create(threads, &pool, NULL), XMOE_OK);
    assert_int_equal(xm_pass_create(b->network, pool, &options, &pass, NULL), XMOE_OK);
    xm_pass_run(pass, b->parameters, b->tokens, b->targets, gradients, &result);
    *loss = result.loss;
    xm_pass_free(pass);
    xm_pool_free(pool);
    return gradients;
}

/* Rounding to 8 bits is off by at most 2^-8 and by 2^-9.6 in the mean square; a dozen products deep
 * that is one or two percent of a gradient. A wrong operand gives another direction. */
static void compare_directions(const xm_network *network, const float *f32, const float *bf16)
{
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        double dot = 0, a = 0, b = 0;
        for (size_t j = p->offset; j < p->offset + p->count; j++) {
            dot += (double)f32[j] * (double)bf16[j];
            a += (double)f32[j] * (double)f32[j];
            b += (double)bf16[j] * (double)bf16[j];
        }
        if (!(dot > 0.998 * sqrt(a * b)) || !(fabs(sqrt(a / b) - 1) < 0.03))
            fail_msg("%s: cosine %.5f, lengths %.4g and %.4g", p->name, dot / sqrt(a * b), sqrt(a),
                     sqrt(b));
    }
}

static void check_network(xm_architecture architecture)
{
    const xm_gemm *gemm = find(XM_PRECISION_BF16);
    const xm_network_shape shape = {.architecture = architecture,
                                    .vocabulary = 300,
                                    .context = ROWS / 2,
                                    .width = 48,
                                    .blocks = 2,
                                    .heads = 2,
                                    .feed_forward = 64,
                                    .experts = 4,
                                    .expert_feed_forward = 24,
                                    .moe_every = architecture == XM_ARCHITECTURE_OLMOE ? 1 : 2,
                                    .epsilon = 1e-5f,
                                    /* which experts are chosen must not hang on rounding */
                                    .router = XMOE_ROUTER_DENSE,
                                    .threshold = 1.0f,
                                    .top_k = 1,
                                    .init_std = 0.15f,
                                    .router_std = 1.0f};
    xm_network *network = NULL;
    assert_int_equal(xm_network_create(&shape, &network, NULL), XMOE_OK);
    float *parameters = xm_calloc_aligned(network->total, sizeof *parameters);
    xm_network_init(network, 5, parameters);
    batch b = {.network = network, .parameters = parameters};
    for (int32_t row = 0; row < ROWS; row++) {
        b.tokens[row] = (int32_t)(xm_random_bits(1, 1, (uint64_t)row) % 300);
        b.targets[row] = (int32_t)(xm_random_bits(1, 2, (uint64_t)row) % 300);
    }
    double loss_f32, loss_bf16, again;
    float *f32 = gradients_of(&b, NULL, 1, &loss_f32);
    float *bf16 = gradients_of(&b, gemm, 1, &loss_bf16);
    float *threads = gradients_of(&b, gemm, 3, &again);
    assert_true(fabs(loss_bf16 - loss_f32) < 0.005 * loss_f32);
    assert_true(loss_bf16 != loss_f32);
    compare_directions(network, f32, bf16);
    assert_memory_equal(bf16, threads, network->total * sizeof *bf16);
    assert_true(again == loss_bf16);
    xm_free(f32);
    xm_free(bf16);
    xm_free(threads);
    xm_free(parameters);
    xm_network_free(network);
}

static void test_gradients_of_xmoe(void **state)
{
    (void)state;
    check_network(XM_ARCHITECTURE_XMOE);
}

static void test_gradients_of_olmoe(void **state)
{
    (void)state;
    check_network(XM_ARCHITECTURE_OLMOE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_cut_does_not_matter),
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_gradients_of_xmoe),
        cmocka_unit_test(test_gradients_of_olmoe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
