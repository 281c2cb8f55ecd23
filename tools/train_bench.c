/*
 * train_bench.c - see train_bench.h.
 *
 * As in training, every thread has a group of its own: it runs the layer over the group's rows,
 * single-threaded, all threads at once. Counted are the multiply-adds of the router and of the kept
 * (row, expert) pairs, times two; backward they are twice those of forward. "Products alone" are
 * the very products of the layer, same sizes, same operands, without what stands between them.
 * What is measured takes turns, round after round; medians are printed.
 */
#include "train_bench.h"

#include "base/memory.h"
#include "base/random.h"
#include "cli.h"
#include "spread.h"
#include "train/gemm_peak.h"
#include "train/linear.h"
#include "train/moe.h"

#include <math.h>
#include <stdio.h>

enum { ROUNDS = 15, PEAK_ROUNDS = 3 };
enum { FORWARD, BACKWARD, FORWARD_PRODUCTS, BACKWARD_PRODUCTS, PARTS };

/* One thread's layer; all arrays are its own, as in training. */
typedef struct {
    xm_train_moe_layer layer;
    xm_train_moe_scratch scratch;
    float *h, *y, *dy, *dh, *gradients;
    xm_compute compute;
    double seconds[PARTS]; /* of one repeat, in the last round */
} group;

typedef struct {
    const xm_gemm *gemm;
    int32_t rows, width, hidden, experts, threads, repeats;
    float *parameters;
    xm_train_moe_weights weights;
    group *groups; /* [threads] */
} bench;

static float *random_floats(size_t count, uint64_t stream, double deviation)
{
    float *values = xm_calloc_aligned(count, sizeof *values);
    for (size_t i = 0; values != NULL && i < count; i++)
        values[i] = (float)(deviation * xm_random_normal(1, stream, i));
    return values;
}

/* The layer's parameters one after the other; the same layout serves for the gradients. */
static size_t parameter_count(const bench *b)
{
    size_t e = (size_t)b->experts, d = (size_t)b->width, f = (size_t)b->hidden;
    return e * d + 2 * e * f * d + e * f + e * d;
}

static xm_train_moe_gradients layout(const bench *b, float *at)
{
    size_t e = (size_t)b->experts, d = (size_t)b->width, f = (size_t)b->hidden;
    return (xm_train_moe_gradients){.gate.weight = at,
                                    .up = at + e * d,
                                    .down = at + e * d + e * f * d,
                                    .up_bias = at + e * d + 2 * e * f * d,
                                    .down_bias = at + e * d + 2 * e * f * d + e * f};
}

static bool make_parameters(bench *b, const xm_network_shape *shape)
{
    size_t router = (size_t)b->experts * (size_t)b->width;
    b->parameters = random_floats(parameter_count(b), 1, (double)shape->init_std);
    if (b->parameters == NULL)
        return false;
    for (size_t i = 0; i < router; i++)
        b->parameters[i] *= shape->router_std / shape->init_std / sqrtf((float)b->width);
    xm_train_moe_gradients w = layout(b, b->parameters);
    b->weights =
        (xm_train_moe_weights){.width = b->width,
                               .hidden = b->hidden,
                               .experts = b->experts,
                               .gate = {.width = b->width, .views = 1, .weight = w.gate.weight},
                               .up = w.up,
                               .up_bias = w.up_bias,
                               .down = w.down,
                               .down_bias = w.down_bias};
    return true;
}

static xmoe_status make_group(bench *b, const xm_route_rule *rule, int32_t index, xmoe_error *error)
{
    group *g = &b->groups[index];
    xmoe_status status = xm_routes_create(rule, b->rows, b->experts, &g->layer.routes, error);
    if (status != XMOE_OK)
        return status;
    size_t slots = g->layer.routes.slots, rows = (size_t)b->rows, d = (size_t)b->width,
           f = (size_t)b->hidden;
    uint64_t stream = 2 * (uint64_t)index + 2;
    float **arrays[] = {&g->layer.gathered,
                        &g->layer.before,
                        &g->layer.activated,
                        &g->scratch.out,
                        &g->scratch.dout,
                        &g->scratch.dhidden,
                        &g->scratch.dgate,
                        &g->scratch.dlogits,
                        &g->y,
                        &g->dh,
                        &g->gradients};
    const size_t counts[] = {slots * d,
                             slots * f,
                             slots * f,
                             slots * d,
                             slots * d,
                             slots * f,
                             slots,
                             rows * (size_t)b->experts,
                             rows * d,
                             rows * d,
                             parameter_count(b)};
    g->h = random_floats(rows * d, stream, 1.0); /* as a LayerNorm leaves it */
    g->dy = random_floats(rows * d, stream + 1, 1e-3);
    g->compute.gemm = b->gemm;
    if (b->gemm->scratch_bytes > 0)
        g->compute.scratch = xm_calloc_aligned(1, b->gemm->scratch_bytes);
    bool fine = g->h != NULL && g->dy != NULL &&
                (g->compute.scratch != NULL || b->gemm->scratch_bytes == 0);
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0] && fine; i++)
        fine = (*arrays[i] = xm_calloc_aligned(counts[i], sizeof(float))) != NULL;
    return fine ? XMOE_OK : xm_fail_memory(error, "a layer", slots * d * sizeof(float));
}

static void free_bench(bench *b)
{
    for (int32_t i = 0; b->groups != NULL && i < b->threads; i++) {
        group *g = &b->groups[i];
        float *arrays[] = {g->layer.gathered,
                           g->layer.before,
                           g->layer.activated,
                           g->scratch.out,
                           g->scratch.dout,
                           g->scratch.dhidden,
                           g->scratch.dgate,
                           g->scratch.dlogits,
                           g->h,
                           g->y,
                           g->dy,
                           g->dh,
                           g->gradients};
        for (size_t k = 0; k < sizeof arrays / sizeof arrays[0]; k++)
            xm_free(arrays[k]);
        xm_free(g->compute.scratch);
        xm_routes_free(&g->layer.routes);
    }
    xm_free(b->groups);
    xm_free(b->parameters);
}

static void forward_products(const bench *b, group *g)
{
    const xm_routes *routes = &g->layer.routes;
    int32_t d = b->width, f = b->hidden;
    const xm_compute f32 = xm_compute_f32(NULL); /* the router's */
    xm_linear_forward(&f32, g->h, b->weights.gate.weight, NULL, g->scratch.dlogits, b->rows, d,
                      b->experts);
    for (int32_t e = 0; e < b->experts; e++) {
        size_t first = (size_t)routes->expert_begin[e], matrix = (size_t)e * (size_t)f * (size_t)d;
        int32_t rows = routes->expert_begin[e + 1] - routes->expert_begin[e];
        b->gemm->nt(g->compute.scratch, rows, f, d, g->layer.gathered + first * (size_t)d, d,
                    b->weights.up + matrix, d, 0.0f, g->layer.before + first * (size_t)f, f);
        b->gemm->nt(g->compute.scratch, rows, d, f, g->layer.before + first * (size_t)f, f,
                    b->weights.down + matrix, f, 0.0f, g->scratch.out + first * (size_t)d, d);
    }
}

static void backward_products(const bench *b, group *g)
{
    const xm_routes *routes = &g->layer.routes;
    const xm_train_moe_gradients to = layout(b, g->gradients);
    int32_t d = b->width, f = b->hidden;
    for (int32_t e = 0; e < b->experts; e++) {
        size_t first = (size_t)routes->expert_begin[e], matrix = (size_t)e * (size_t)f * (size_t)d;
        int32_t rows = routes->expert_begin[e + 1] - routes->expert_begin[e];
        const float *h = g->layer.gathered + first * (size_t)d;
        float *dout = g->scratch.dout + first * (size_t)d;
        float *du = g->scratch.dhidden + first * (size_t)f;
        b->gemm->nn(g->compute.scratch, rows, f, d, dout, d, b->weights.down + matrix, f, 0.0f, du,
                    f);
        b->gemm->tn(g->compute.scratch, d, f, rows, dout, d, du, f, 1.0f, to.down + matrix, f);
        b->gemm->tn(g->compute.scratch, f, d, rows, du, f, h, d, 1.0f, to.up + matrix, d);
        b->gemm->nn(g->compute.scratch, rows, d, f, du, f, b->weights.up + matrix, d, 0.0f,
                    g->scratch.out + first * (size_t)d, d);
    }
    const xm_compute f32 = xm_compute_f32(NULL);
    xm_linear_backward_weight(&f32, g->scratch.dlogits, g->h, to.gate.weight, NULL, b->rows, d,
                              b->experts);
    xm_linear_backward_input(&f32, g->scratch.dlogits, b->weights.gate.weight, g->dh, b->rows, d,
                             b->experts, true);
}

static void run_part(const bench *b, group *g, int32_t part)
{
    xm_train_moe_gradients gradients = layout(b, g->gradients);
    switch (part) {
    case FORWARD:
        xm_train_moe_forward(&g->compute, &b->weights, &g->layer, &g->scratch, g->h, NULL, g->h,
                             g->y);
        break;
    case BACKWARD:
        xm_train_moe_backward(&g->compute, &b->weights, &gradients, &g->layer, &g->scratch, g->h,
                              g->dy, g->dh);
        break;
    case FORWARD_PRODUCTS:
        forward_products(b, g);
        break;
    default:
        backward_products(b, g);
        break;
    }
}

static void round_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const bench *b = context;
    group *g = &b->groups[task];
    for (int32_t part = 0; part < PARTS; part++)
        g->seconds[part] = 0;
    for (int32_t i = 0; i < b->repeats; i++)
        for (int32_t part = 0; part < PARTS; part++) {
            double began = cli_seconds();
            run_part(b, g, part);
            g->seconds[part] += (cli_seconds() - began) / b->repeats;
        }
}

/* Operations of one pass forward over a group. */
static double forward_flops(const bench *b, const group *g)
{
    double pairs = g->layer.routes.expert_begin[b->experts];
    return 2.0 * b->rows * b->experts * b->width + pairs * 4.0 * b->width * b->hidden;
}

/* Of all threads together, operations per second. */
static double rate_of(const bench *b, int32_t part)
{
    double rate = 0;
    for (int32_t i = 0; i < b->threads; i++)
        rate += forward_flops(b, &b->groups[i]) / b->groups[i].seconds[part];
    return part == BACKWARD || part == BACKWARD_PRODUCTS ? 2 * rate : rate;
}

/* Pairs that were kept, over all groups. */
static double kept_pairs(const bench *b)
{
    double pairs = 0;
    for (int32_t i = 0; i < b->threads; i++)
        pairs += b->groups[i].layer.routes.expert_begin[b->experts];
    return pairs;
}

static void print_row(const char *what, double rate, double products, double peak)
{
    printf("%-9s %10.1f %16.1f %7.0f %% %14.0f %%\n", what, rate * 1e-9, products * 1e-9,
           100 * rate / products, 100 * rate / peak);
}

static xmoe_status run(bench *b, xm_workers *workers, xmoe_error *error)
{
    double rates[PARTS][ROUNDS], peaks[PEAK_ROUNDS];
    b->repeats = 1;
    for (int32_t i = 0; i < 2; i++) /* warms up; the second tells how long a repeat takes */
        xm_workers_run(workers, b->threads, round_task, b);
    b->repeats = 1 + (int32_t)(0.02 / b->groups[0].seconds[FORWARD]);
    for (size_t round = 0; round < ROUNDS; round++) {
        xm_workers_run(workers, b->threads, round_task, b);
        for (int32_t part = 0; part < PARTS; part++)
            rates[part][round] = rate_of(b, part);
        if (round % (ROUNDS / PEAK_ROUNDS) != 0)
            continue;
        xmoe_status status =
            xm_gemm_peak(workers, b->gemm, &peaks[round / (ROUNDS / PEAK_ROUNDS)], error);
        if (status != XMOE_OK)
            return status;
    }
    double peak = spread_of(peaks, PEAK_ROUNDS).median;
    printf(
        "One MoE layer: d %d, %d experts of %d, %d rows a thread, %d thread%s; %.2f experts a row "
        "kept\n",
        b->width, b->experts, b->hidden, b->rows, b->threads, b->threads > 1 ? "s" : "",
        kept_pairs(b) / b->threads / b->rows);
    printf("Products in %s (%s kernels) on a square of 1024: %.1f GFLOP/s\n\n",
           xm_precision_name(b->gemm->precision), xm_gemm_kernels(b->gemm), peak * 1e-9);
    printf("%-9s %10s %16s %9s %16s\n", "", "GFLOP/s", "products alone", "of them",
           "of the square");
    print_row("forward", spread_of(rates[FORWARD], ROUNDS).median,
              spread_of(rates[FORWARD_PRODUCTS], ROUNDS).median, peak);
    print_row("backward", spread_of(rates[BACKWARD], ROUNDS).median,
              spread_of(rates[BACKWARD_PRODUCTS], ROUNDS).median, peak);
    return XMOE_OK;
}

int train_bench(const xm_trainer_options *options)
{
    const xm_network_shape *shape = &options->shape;
    if (shape->architecture != XM_ARCHITECTURE_XMOE || shape->gate != XM_GATE_SOFTMAX ||
        shape->router_views > 1 || shape->moe_every == 0)
        return cli_wrong("--bench measures layers of architecture xmoe with router threshold, "
                         "top_k, switch or dense and one view");
    if (options->expert_dropout > 0.0f)
        return cli_wrong("--bench measures layers without dropout");
    if (options->sequences % options->groups != 0)
        return cli_wrong("--groups is %d, must divide --sequences, %d", options->groups,
                         options->sequences);
    bench b = {.rows = options->sequences / options->groups * shape->context,
               .width = shape->width,
               .hidden = shape->expert_feed_forward,
               .experts = shape->experts};
    const xm_route_rule rule = {.type = shape->router,
                                .threshold = shape->threshold,
                                .top_k = shape->top_k,
                                .capacity_factor = options->capacity_factor,
                                .min_capacity = options->min_capacity,
                                .balance_weight = options->balance_weight,
                                .entropy_weight = options->entropy_weight,
                                .z_weight = options->z_weight};
    xmoe_error error = {.message = "out of memory"};
    xm_workers *workers = NULL;
    xmoe_status status = xm_workers_create(options->threads, &workers, &error);
    if (status == XMOE_OK)
        status = xm_gemm_select(options->precision, &b.gemm, &error);
    if (status == XMOE_OK) {
        xm_gemm_setup();
        b.threads = xm_workers_threads(workers);
        b.groups = xm_calloc((size_t)b.threads, sizeof *b.groups);
        if (b.groups == NULL || !make_parameters(&b, shape))
            status = XMOE_ERROR_MEMORY;
    }
    for (int32_t i = 0; i < b.threads && status == XMOE_OK; i++)
        status = make_group(&b, &rule, i, &error);
    if (status == XMOE_OK)
        status = run(&b, workers, &error);
    free_bench(&b);
    xm_workers_free(workers);
    return status == XMOE_OK ? CLI_OK : cli_fail("%s", error.message);
}
