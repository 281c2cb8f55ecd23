/*
 * test_moe.c - one MoE layer against sums in double precision, and to the bit against itself: in
 * any company, on any number of threads, in one wave or many; and the parts that it is made of: the
 * grouping of rows by expert and the cuts of work into tasks.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "moe/activations.h"
#include "moe/dispatch.h"
#include "moe/moe.h"
#include "moe/tiles.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- a random layer --------------------------------------------------------------------------- */

/* A packed layer, and the values that its weights stand for. */
typedef struct {
    xm_moe_layer layer;
    float *router, *up, *down;  /* [E][d], [E][hidden][d], [E][d][hidden] */
    float *up_bias, *down_bias; /* [E][hidden], [E][d] */
    uint8_t *packed[3];
    xm_matrix *matrices;
} test_layer;

static float *random_values(size_t count, double deviation, uint64_t seed)
{
    float *values = malloc(count * sizeof *values);
    assert_non_null(values);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(deviation * xm_random_normal(seed, 3, i));
    return values;
}

/* Rounds values to what the type can hold, and packs `count` matrices of rows x columns. */
static uint8_t *pack(xm_weight_type type, float *values, int32_t rows, int32_t columns,
                     int32_t count, xm_matrix *matrices)
{
    const xm_weight_traits *traits = xm_weight_traits_of((uint32_t)type);
    size_t elements = (size_t)rows * (size_t)columns;
    size_t bytes = elements / traits->block_elements * traits->block_bytes;
    int32_t panels = (rows + XM_PANEL - 1) / XM_PANEL;
    size_t panel_bytes = xm_panel_bytes(type, (size_t)columns);
    uint8_t *raw = malloc(bytes);
    uint8_t *packed = aligned_alloc(64, ((size_t)(count * panels) * panel_bytes + 63) / 64 * 64);
    assert_true(raw != NULL && packed != NULL);
    for (int32_t i = 0; i < count; i++) {
        uint8_t *out = packed + (size_t)(i * panels) * panel_bytes;
        xm_weights_from_f32(traits, values + (size_t)i * elements, NULL, raw, elements);
        xm_weights_to_f32(traits, raw, values + (size_t)i * elements, elements);
        xm_pack_panels(type, raw, (size_t)rows, (size_t)columns, 0, panels, out);
        matrices[i] = (xm_matrix){.type = type,
                                  .rows = rows,
                                  .columns = columns,
                                  .panels = panels,
                                  .panel_bytes = panel_bytes,
                                  .data = out};
    }
    free(raw);
    return packed;
}

static test_layer make_layer(xm_weight_type type, int32_t experts, int32_t hidden, int32_t width)
{
    size_t e = (size_t)experts, h = (size_t)hidden, d = (size_t)width;
    test_layer t = {
        .router = random_values(e * d, 2.0 / sqrt((double)d), 1),
        .up = random_values(e * h * d, 1.0 / sqrt((double)d), 2),
        .down = random_values(e * h * d, 1.0 / sqrt((double)h), 3),
        .up_bias = random_values(e * h, 0.1, 4),
        .down_bias = random_values(e * d, 0.1, 5),
        .matrices = calloc(2 * e, sizeof(xm_matrix)),
    };
    assert_non_null(t.matrices);
    t.layer = (xm_moe_layer){.experts = experts,
                             .hidden = hidden,
                             .width = width,
                             .up = t.matrices,
                             .down = t.matrices + e,
                             .up_bias = t.up_bias,
                             .down_bias = t.down_bias,
                             .rules = {.weight_scale = 1.0f},
                             .output_scale = 1.0f};
    t.packed[0] = pack(XM_TYPE_F32, t.router, experts, width, 1, &t.layer.router);
    t.packed[1] = pack(type, t.up, hidden, width, experts, t.layer.up);
    t.packed[2] = pack(type, t.down, width, hidden, experts, t.layer.down);
    return t;
}

static void free_layer(test_layer *t)
{
    free(t->router);
    free(t->up);
    free(t->down);
    free(t->up_bias);
    free(t->down_bias);
    free(t->matrices);
    for (int i = 0; i < 3; i++)
        free(t->packed[i]);
}

/* --- running it ------------------------------------------------------------------------------- */

/* Rows of input with int16 forms, their routers, and the residual before. */
typedef struct {
    xm_activations h;
    const xmoe_router **routers;
    float *residual;
    int32_t rows, width;
} test_rows;

static const xmoe_router router_kinds[] = {
    {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.7f, .min_experts = 1},
    {.type = XMOE_ROUTER_TOP_K, .top_k = 2, .min_experts = 1, .normalize = true},
    {.type = XMOE_ROUTER_DENSE, .min_experts = 1},
    {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.99f, .min_experts = 1, .max_experts = 3},
};

enum { ROUTER_KINDS = sizeof router_kinds / sizeof *router_kinds };

/* kind < 0: every row another kind. */
static test_rows make_rows(const xm_kernels *kernels, int32_t rows, int32_t width, int32_t kind)
{
    test_rows r = {.rows = rows, .width = width};
    assert_true(xm_activations_create((size_t)rows, (size_t)width, &r.h));
    r.routers = calloc((size_t)rows, sizeof *r.routers);
    r.residual = random_values((size_t)(rows * width), 1.0, 6);
    assert_non_null(r.routers);
    for (int32_t i = 0; i < rows; i++) {
        float *row = r.h.f32 + (size_t)i * r.h.stride;
        for (int32_t c = 0; c < width; c++)
            row[c] = (float)xm_random_normal(7, (uint64_t)i, (uint64_t)c);
        if (width % 32 == 0)
            xm_activations_quantize(kernels, &r.h, (size_t)i, 0, (size_t)width);
        r.routers[i] = &router_kinds[kind < 0 ? i % ROUTER_KINDS : kind];
    }
    return r;
}

static void free_rows(test_rows *r)
{
    xm_activations_free(&r->h);
    free(r->routers);
    free(r->residual);
}

/* The rows' residuals after the layer, to be freed. */
static float *run_layer(const xm_kernels *kernels, xm_pool *pool, xm_moe_scratch *scratch,
                        const test_layer *t, const test_rows *r, xm_selection *selection)
{
    size_t count = (size_t)(r->rows * r->width);
    float *out = malloc(count * sizeof *out);
    assert_non_null(out);
    memcpy(out, r->residual, count * sizeof *out);
    const xm_moe_rows rows = {.count = r->rows, .routers = r->routers};
    xm_moe_forward(kernels, pool, scratch, &t->layer, &r->h, &rows, out, (size_t)r->width,
                   selection);
    return out;
}

static xm_moe_scratch *make_scratch(int32_t rows, const test_layer *t)
{
    xm_moe_scratch *scratch;
    assert_int_equal(xm_moe_scratch_create(rows, t->layer.experts, t->layer.rules.views,
                                           t->layer.hidden, t->layer.width, t->layer.gate != NULL,
                                           &scratch, NULL),
                     XMOE_OK);
    return scratch;
}

/* --- against double precision ----------------------------------------------------------------- */

static double gelu(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* y += weight * expert(h) */
static void add_expert(const test_layer *t, int32_t expert, const float *h, double weight,
                       double *y)
{
    size_t hidden = (size_t)t->layer.hidden, d = (size_t)t->layer.width, e = (size_t)expert;
    double *a = calloc(hidden, sizeof *a);
    assert_non_null(a);
    for (size_t i = 0; i < hidden; i++) {
        double sum = (double)t->up_bias[e * hidden + i];
        for (size_t c = 0; c < d; c++)
            sum += (double)t->up[(e * hidden + i) * d + c] * (double)h[c];
        a[i] = gelu(sum);
    }
    for (size_t c = 0; c < d; c++) {
        double sum = (double)t->down_bias[e * d + c];
        for (size_t i = 0; i < hidden; i++)
            sum += (double)t->down[(e * d + c) * hidden + i] * a[i];
        y[c] += weight * sum;
    }
    free(a);
}

/* The probabilities that the selection shows are the softmax of the gate's logits. */
static void check_weights(const test_layer *t, const float *h, const xmoe_router *router,
                          const uint16_t *experts, const float *weights, int32_t count)
{
    double logits[64], sum = 0.0, chosen = 0.0;
    for (int32_t e = 0; e < t->layer.experts; e++) {
        logits[e] = 0.0;
        for (int32_t c = 0; c < t->layer.width; c++)
            logits[e] += (double)t->router[e * t->layer.width + c] * (double)h[c];
        sum += exp(logits[e]);
    }
    for (int32_t i = 0; i < count; i++)
        chosen += exp(logits[experts[i]]) / sum;
    for (int32_t i = 0; i < count; i++) {
        double p = exp(logits[experts[i]]) / sum;
        assert_float_equal(weights[i], (float)(router->normalize ? p / chosen : p), 1e-5);
    }
}

static void compare_with_double(const xm_kernels *kernels, xm_weight_type type, int32_t experts,
                                int32_t hidden, int32_t width)
{
    enum { ROWS = 21 };
    test_layer t = make_layer(type, experts, hidden, width);
    test_rows r = make_rows(kernels, ROWS, width, -1);
    xm_moe_scratch *scratch = make_scratch(ROWS, &t);
    xm_selection s;
    float *out = run_layer(kernels, NULL, scratch, &t, &r, &s);
    double *y = calloc((size_t)width, sizeof *y);
    assert_non_null(y);
    assert_int_equal(s.rows, ROWS);
    assert_int_equal(s.experts, experts);
    for (int32_t row = 0; row < ROWS; row++) {
        const float *h = r.h.f32 + (size_t)row * r.h.stride;
        const uint16_t *chosen = s.expert + row * experts;
        const float *weights = s.weight + row * experts;
        check_weights(&t, h, r.routers[row], chosen, weights, s.count[row]);
        for (int32_t c = 0; c < width; c++)
            y[c] = (double)r.residual[row * width + c];
        for (int32_t i = 0; i < s.count[row]; i++)
            add_expert(&t, chosen[i], h, (double)weights[i], y);
        for (int32_t c = 0; c < width; c++)
            assert_float_equal(out[row * width + c], (float)y[c], 1e-3);
    }
    free(y);
    free(out);
    xm_moe_scratch_free(scratch);
    free_rows(&r);
    free_layer(&t);
}

static void equals_sums_in_double_precision(void **state)
{
    (void)state;
    size_t types;
    const xm_weight_traits *traits = xm_weight_traits_all(&types);
    const xm_kernels *tables[4];
    int32_t variants = xm_kernels_available(tables);
    for (int32_t v = 0; v < variants; v++)
        for (size_t i = 0; i < types; i++) {
            bool wide = traits[i].block_elements == 256;
            compare_with_double(tables[v], traits[i].type, wide ? 4 : 8, wide ? 256 : 96,
                                wide ? 256 : 64);
            if (traits[i].block_elements == 1) {
                compare_with_double(tables[v], traits[i].type, 5, 33, 27);
                compare_with_double(tables[v], traits[i].type, 1, 1, 1);
            }
        }
}

static void biases_may_be_absent(void **state)
{
    (void)state;
    const xm_kernels *tables[4];
    xm_kernels_available(tables);
    test_layer t = make_layer(XM_TYPE_F32, 4, 24, 32);
    test_rows r = make_rows(tables[0], 6, 32, 0);
    xm_moe_scratch *scratch = make_scratch(6, &t);
    xm_selection s;
    memset(t.up_bias, 0, 4 * 24 * sizeof(float));
    memset(t.down_bias, 0, 4 * 32 * sizeof(float));
    float *zeros = run_layer(tables[0], NULL, scratch, &t, &r, &s);
    t.layer.up_bias = t.layer.down_bias = NULL;
    float *absent = run_layer(tables[0], NULL, scratch, &t, &r, &s);
    assert_memory_equal(zeros, absent, 6 * 32 * sizeof(float));
    free(zeros);
    free(absent);
    xm_moe_scratch_free(scratch);
    free_rows(&r);
    free_layer(&t);
}

/* --- to the bit ------------------------------------------------------------------------------- */

/* All rows at once, on 1 to 3 threads, against each row alone. */
static void company_and_threads_change_nothing(void **state)
{
    (void)state;
    enum { ROWS = 150, WIDTH = 96 };
    static const xm_weight_type types[] = {XM_TYPE_F16, XM_TYPE_Q8_0};
    const xm_kernels *tables[4];
    const xm_kernels *kernels = tables[xm_kernels_available(tables) - 1];
    for (size_t i = 0; i < 2; i++) {
        test_layer t = make_layer(types[i], 16, 64, WIDTH);
        test_rows r = make_rows(kernels, ROWS, WIDTH, -1);
        xm_moe_scratch *scratch = make_scratch(ROWS, &t);
        xm_selection s;
        float *expected = NULL;
        for (int32_t threads = 1; threads <= 3; threads++) {
            xm_pool *pool;
            assert_int_equal(xm_pool_create(threads, &pool, NULL), XMOE_OK);
            float *out = run_layer(kernels, pool, scratch, &t, &r, &s);
            if (expected != NULL)
                assert_memory_equal(out, expected, ROWS * WIDTH * sizeof *out);
            free(expected);
            expected = out;
            xm_pool_free(pool);
        }
        for (int32_t row = 0; row < ROWS; row++) {
            float one[WIDTH];
            size_t stride = r.h.stride;
            xm_activations h = {.f32 = r.h.f32 + (size_t)row * stride,
                                .i16 = r.h.i16 + (size_t)row * stride,
                                .scales = r.h.scales + (size_t)row * (stride / 32),
                                .sums = r.h.sums + (size_t)row * (stride / 16),
                                .stride = stride};
            memcpy(one, r.residual + row * WIDTH, sizeof one);
            const xm_moe_rows single = {.count = 1, .routers = r.routers + row};
            xm_moe_forward(kernels, NULL, scratch, &t.layer, &h, &single, one, WIDTH, &s);
            assert_memory_equal(one, expected + row * WIDTH, sizeof one);
        }
        free(expected);
        xm_moe_scratch_free(scratch);
        free_rows(&r);
        free_layer(&t);
    }
}

/* So many pairs of rows and experts that they cannot all be in the scratch: a scratch of fewer rows
 * (which has room for all pairs of those) gives the same. */
static void waves_change_nothing(void **state)
{
    (void)state;
    enum { ROWS = 96, WIDTH = 32, HIDDEN = 1024, EXPERTS = 32 }; /* 3072 pairs of 6 KiB */
    const xm_kernels *tables[4];
    const xm_kernels *kernels = tables[xm_kernels_available(tables) - 1];
    test_layer t = make_layer(XM_TYPE_Q4_0, EXPERTS, HIDDEN, WIDTH);
    test_rows r = make_rows(kernels, ROWS, WIDTH, 2);
    xm_moe_scratch *scratch = make_scratch(ROWS, &t), *small = make_scratch(8, &t);
    xm_selection s;
    float *waves = run_layer(kernels, NULL, scratch, &t, &r, &s);
    for (int32_t first = 0; first < ROWS; first += 8) {
        float part[8 * WIDTH];
        size_t stride = r.h.stride;
        xm_activations h = {.f32 = r.h.f32 + (size_t)first * stride,
                            .i16 = r.h.i16 + (size_t)first * stride,
                            .scales = r.h.scales + (size_t)first * (stride / 32),
                            .sums = r.h.sums + (size_t)first * (stride / 16),
                            .stride = stride};
        memcpy(part, r.residual + first * WIDTH, sizeof part);
        const xm_moe_rows some = {.count = 8, .routers = r.routers};
        xm_moe_forward(kernels, NULL, small, &t.layer, &h, &some, part, WIDTH, &s);
        assert_memory_equal(part, waves + first * WIDTH, sizeof part);
    }
    free(waves);
    xm_moe_scratch_free(scratch);
    xm_moe_scratch_free(small);
    free_rows(&r);
    free_layer(&t);
}

/* One scratch serves layers of different sizes, one after the other. */
static void scratch_serves_smaller_layers(void **state)
{
    (void)state;
    const xm_kernels *tables[4];
    xm_kernels_available(tables);
    test_layer large = make_layer(XM_TYPE_F32, 9, 40, 48), small = make_layer(XM_TYPE_F32, 3, 7, 5);
    test_rows many = make_rows(tables[0], 12, 48, -1), few = make_rows(tables[0], 4, 5, -1);
    xm_moe_scratch *shared = make_scratch(12, &large), *own = make_scratch(4, &small);
    xm_selection s;
    free(run_layer(tables[0], NULL, shared, &large, &many, &s));
    float *out = run_layer(tables[0], NULL, shared, &small, &few, &s);
    float *expected = run_layer(tables[0], NULL, own, &small, &few, &s);
    assert_memory_equal(out, expected, 4 * 5 * sizeof *out);
    free(out);
    free(expected);
    xm_moe_scratch_free(shared);
    xm_moe_scratch_free(own);
    free_rows(&many);
    free_rows(&few);
    free_layer(&large);
    free_layer(&small);
}

/* --- parts ------------------------------------------------------------------------------------ */

enum { GROUP_ROWS = 40, GROUP_EXPERTS = 13 };

typedef struct {
    int32_t count[GROUP_ROWS];
    uint16_t expert[GROUP_ROWS * GROUP_EXPERTS];
    float weight[GROUP_ROWS * GROUP_EXPERTS];
} selection_arrays;

/* Each row takes some experts in some order, from a stride through all; expert 5 gets no row. */
static xm_selection random_selection(selection_arrays *a)
{
    for (int32_t r = 0; r < GROUP_ROWS; r++) {
        uint64_t bits = xm_random_bits(4, 0, (uint64_t)r);
        int32_t wanted = 1 + (int32_t)(bits % GROUP_EXPERTS);
        int32_t step = 1 + (int32_t)((bits >> 8) % (GROUP_EXPERTS - 1)); /* 13 is prime */
        a->count[r] = 0;
        for (int32_t i = 0; i < wanted; i++) {
            int32_t expert = (int32_t)(bits >> 16 & 0xff) + i * step;
            int32_t at = r * GROUP_EXPERTS + a->count[r];
            if (expert % GROUP_EXPERTS == 5)
                continue;
            a->expert[at] = (uint16_t)(expert % GROUP_EXPERTS);
            a->weight[at] = (float)(100 * r + expert % GROUP_EXPERTS);
            a->count[r]++;
        }
    }
    return (xm_selection){.rows = GROUP_ROWS,
                          .experts = GROUP_EXPERTS,
                          .count = a->count,
                          .expert = a->expert,
                          .weight = a->weight};
}

static void pairs_are_sorted_by_expert_and_row(void **state)
{
    (void)state;
    selection_arrays arrays;
    xm_selection selection = random_selection(&arrays);
    xm_dispatch dispatch;
    assert_true(xm_dispatch_create(GROUP_ROWS, GROUP_EXPERTS, &dispatch));
    xm_dispatch_group(&dispatch, &selection);
    int32_t pairs = 0;
    for (int32_t r = 0; r < GROUP_ROWS; r++)
        pairs += arrays.count[r];
    assert_int_equal(dispatch.offset[0], 0);
    assert_int_equal(dispatch.offset[GROUP_EXPERTS], pairs);
    assert_int_equal(dispatch.offset[5], dispatch.offset[6]);
    for (int32_t e = 0; e < GROUP_EXPERTS; e++)
        for (int32_t i = dispatch.offset[e]; i < dispatch.offset[e + 1]; i++) {
            if (i > dispatch.offset[e])
                assert_true(dispatch.row[i] > dispatch.row[i - 1]);
            assert_float_equal(dispatch.weight[i], (float)(100 * dispatch.row[i] + e), 0.0);
        }
    xm_dispatch_free(&dispatch);
}

static void waves_cover_all_experts(void **state)
{
    (void)state;
    selection_arrays arrays;
    xm_selection selection = random_selection(&arrays);
    xm_dispatch dispatch;
    assert_true(xm_dispatch_create(GROUP_ROWS, GROUP_EXPERTS, &dispatch));
    xm_dispatch_group(&dispatch, &selection);
    for (int32_t capacity = GROUP_ROWS; capacity < 400; capacity += 7) {
        int32_t waves = 0;
        for (int32_t first = 0, last; first < GROUP_EXPERTS; first = last, waves++) {
            last = xm_dispatch_wave(&dispatch, first, GROUP_EXPERTS, capacity);
            assert_true(last > first && last <= GROUP_EXPERTS);
            assert_true(dispatch.offset[last] - dispatch.offset[first] <= capacity);
        }
        assert_true(capacity < dispatch.offset[GROUP_EXPERTS] || waves == 1);
    }
    xm_dispatch_free(&dispatch);
}

/* Every panel of every touched expert is in exactly one task; ranges begin at even panels; no task
 * is much larger than a fair share. */
static void tasks_cover_all_panels(void **state)
{
    (void)state;
    enum { PANELS = 25 };
    selection_arrays arrays;
    xm_selection selection = random_selection(&arrays);
    xm_dispatch dispatch;
    xm_expert_task *tasks = calloc((size_t)xm_dispatch_max_tasks(GROUP_EXPERTS), sizeof *tasks);
    assert_non_null(tasks);
    assert_true(xm_dispatch_create(GROUP_ROWS, GROUP_EXPERTS, &dispatch));
    xm_dispatch_group(&dispatch, &selection);
    for (int32_t threads = 1; threads < 600; threads = threads * 2 + 1) {
        int32_t seen[GROUP_EXPERTS][PANELS] = {{0}};
        int32_t count = xm_dispatch_plan(&dispatch, 0, GROUP_EXPERTS, PANELS, threads, tasks);
        assert_in_range(count, 1, xm_dispatch_max_tasks(GROUP_EXPERTS));
        for (int32_t i = 0; i < count; i++) {
            assert_int_equal(tasks[i].first % 2, 0);
            assert_true(tasks[i].last > tasks[i].first);
            for (int32_t p = tasks[i].first; p < tasks[i].last; p++)
                seen[tasks[i].expert][p]++;
        }
        for (int32_t e = 0; e < GROUP_EXPERTS; e++)
            for (int32_t p = 0; p < PANELS; p++)
                assert_int_equal(seen[e][p], dispatch.offset[e + 1] > dispatch.offset[e]);
    }
    free(tasks);
    xm_dispatch_free(&dispatch);
}

/* One token with three experts of 24 panels gives every one of 8 threads work. */
static void one_token_spreads_over_threads(void **state)
{
    (void)state;
    int32_t count = 3;
    uint16_t experts[GROUP_EXPERTS] = {7, 2, 11};
    float weights[GROUP_EXPERTS] = {0.5f, 0.25f, 0.125f};
    xm_selection selection = {
        .rows = 1, .experts = GROUP_EXPERTS, .count = &count, .expert = experts, .weight = weights};
    xm_dispatch dispatch;
    xm_expert_task *tasks = calloc((size_t)xm_dispatch_max_tasks(GROUP_EXPERTS), sizeof *tasks);
    assert_non_null(tasks);
    assert_true(xm_dispatch_create(1, GROUP_EXPERTS, &dispatch));
    xm_dispatch_group(&dispatch, &selection);
    int32_t made = xm_dispatch_plan(&dispatch, 0, GROUP_EXPERTS, 24, 8, tasks);
    assert_true(made >= 24);
    for (int32_t i = 0; i < made; i++)
        assert_true(tasks[i].last - tasks[i].first <= 3);
    free(tasks);
    xm_dispatch_free(&dispatch);
}

static void tiles_cover_the_product(void **state)
{
    (void)state;
    static const int32_t sizes[] = {1, 2, 3, 15, 63, 64, 65, 200};
    for (size_t i = 0; i < 8; i++)
        for (size_t j = 0; j < 8; j++)
            for (int32_t threads = 1; threads <= 64; threads *= 4) {
                static uint8_t seen[200][200];
                xm_tiles tiles = xm_tiles_plan(sizes[i], sizes[j], threads);
                memset(seen, 0, sizeof seen);
                for (int32_t task = 0; task < tiles.tasks; task++) {
                    xm_tile tile = xm_tiles_at(&tiles, task);
                    assert_int_equal(tile.first_panel % 2, 0);
                    assert_true(tile.last_row <= sizes[i] && tile.last_panel <= sizes[j]);
                    for (int32_t r = tile.first_row; r < tile.last_row; r++)
                        for (int32_t p = tile.first_panel; p < tile.last_panel; p++)
                            seen[r][p]++;
                }
                for (int32_t r = 0; r < sizes[i]; r++)
                    for (int32_t p = 0; p < sizes[j]; p++)
                        assert_int_equal(seen[r][p], 1);
            }
}

static void lack_of_memory_is_reported(void **state)
{
    (void)state;
    int32_t failures = 0;
    for (xmoe_status status = XMOE_ERROR_MEMORY; status != XMOE_OK; failures++) {
        xm_moe_scratch *scratch;
        xm_memory_fail_after(failures);
        status = xm_moe_scratch_create(8, 4, 2, 32, 32, true, &scratch, NULL);
        xm_memory_fail_after(-1);
        assert_true(status == XMOE_OK || status == XMOE_ERROR_MEMORY);
        assert_true((scratch != NULL) == (status == XMOE_OK));
        xm_moe_scratch_free(scratch);
    }
    assert_true(failures > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_sums_in_double_precision),
        cmocka_unit_test(biases_may_be_absent),
        cmocka_unit_test(company_and_threads_change_nothing),
        cmocka_unit_test(waves_change_nothing),
        cmocka_unit_test(scratch_serves_smaller_layers),
        cmocka_unit_test(pairs_are_sorted_by_expert_and_row),
        cmocka_unit_test(waves_cover_all_experts),
        cmocka_unit_test(tasks_cover_all_panels),
        cmocka_unit_test(one_token_spreads_over_threads),
        cmocka_unit_test(tiles_cover_the_product),
        cmocka_unit_test(lack_of_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
