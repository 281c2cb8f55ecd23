/*
 * test_train_torch.c - loss, routing and gradients of the trainer against PyTorch's autograd in
 * float64, on networks of four blocks, for every router and architecture (fixtures/make_train.py
 * says how the numbers were made and what the lines of the fixture mean). PyTorch itself is not
 * needed here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "train/pass.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIXTURE "tests/fixtures/train/torch.txt"

enum {
    MAX_ROWS = 32,
    MAX_BLOCKS = 4,
    MAX_PARAMETERS = 64,
    MAX_SAMPLES = 96,
    MAX_CASES = 9,
    MAX_NETWORKS = 8
};

/* The fixture is float64 and the trainer F32: what is left is the trainer's rounding, 6e-8 per
 * operation, grown by sums of up to 300 terms and by four blocks of backward pass. Found on this
 * network: losses within 2e-7, gradients within 6e-6 of their tensor's RMS. A wrong term, row or
 * factor moves a gradient by a good share of its RMS. */
static const double loss_bound = 1e-5; /* relative */
static const double gradient_bound = 1e-4;

typedef struct {
    char name[64];
    size_t count, step, samples;
    double weighted, squares; /* sum of element i times i % 7 - 3; sum of squares */
    float sample[MAX_SAMPLES];
} gradient_record;

typedef struct {
    char name[32];
    const xm_router_kind *router;
    float threshold;
    int32_t top_k;
    xm_pass_options options;
    double loss, balance_loss, entropy, z_loss, sparsity;
    double wanted, dropped; /* pairs */
    double active[MAX_BLOCKS], losses[MAX_ROWS];
    gradient_record gradients[MAX_PARAMETERS];
    int32_t gradient_count;
} torch_case;

typedef struct {
    xm_network_shape shape;
    int32_t sequences, length, rows;
    int32_t tokens[MAX_ROWS], targets[MAX_ROWS];
    xm_network *layout; /* where the tensors lie: the same for every case */
    float *parameters;
    int32_t tensor_count;
    torch_case cases[MAX_CASES];
    int32_t case_count;
} torch_network;

typedef struct {
    torch_network networks[MAX_NETWORKS];
    int32_t count;
} torch_fixture;

/* --- reading ---------------------------------------------------------------------------------- */

static double read_number(FILE *file)
{
    double value = 0;
    assert_int_equal(fscanf(file, "%lf", &value), 1);
    return value;
}

static int32_t read_integer(FILE *file)
{
    int32_t value = 0;
    assert_int_equal(fscanf(file, "%" SCNd32, &value), 1);
    return value;
}

/* Expects this word and returns the integer that follows. */
static int32_t read_named(FILE *file, const char *name)
{
    char word[32] = "";
    assert_int_equal(fscanf(file, "%31s", word), 1);
    assert_string_equal(word, name);
    return read_integer(file);
}

static const xm_router_kind *read_router(FILE *file)
{
    char name[32] = "";
    assert_int_equal(fscanf(file, "%31s", name), 1);
    const xm_router_kind *kind = xm_router_kind_by_name(name, strlen(name));
    if (kind == NULL)
        fail_msg("%s is no router", name);
    return kind;
}

static xm_network *make_network(const xm_network_shape *shape, const xm_router_kind *router,
                                float threshold, int32_t top_k)
{
    xm_network_shape whole = *shape;
    whole.gate = router->gate;
    whole.router = router->chooses;
    whole.threshold = threshold;
    whole.top_k = top_k;
    whole.init_std = 0.02f; /* not used: the weights come from the fixture */
    xm_network *network = NULL;
    xmoe_error error;
    if (xm_network_create(&whole, &network, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return network;
}

static void read_network(FILE *file, torch_network *f)
{
    xm_network_shape *s = &f->shape;
    char architecture[16] = "";
    assert_int_equal(fscanf(file, "%15s", architecture), 1);
    assert_true(xm_architecture_parse(architecture, &s->architecture));
    const xm_router_kind *router = read_router(file);
    s->moe_every = read_integer(file);
    (void)read_integer(file); /* the seed */
    s->vocabulary = read_named(file, "vocabulary");
    s->context = read_named(file, "context");
    s->width = read_named(file, "width");
    s->blocks = read_named(file, "blocks");
    s->heads = read_named(file, "heads");
    s->feed_forward = read_named(file, "feed_forward");
    s->experts = read_named(file, "experts");
    s->expert_feed_forward = read_named(file, "expert_feed_forward");
    s->router_views = read_named(file, "views");
    assert_int_equal(fscanf(file, " temperature %f", &s->view_temperature), 1);
    s->router_state = read_named(file, "state");
    assert_int_equal(fscanf(file, " epsilon %f", &s->epsilon), 1);
    f->sequences = read_named(file, "sequences");
    f->length = read_named(file, "length");
    f->rows = f->sequences * f->length;
    assert_true(f->rows > 0 && f->rows <= MAX_ROWS && s->blocks <= MAX_BLOCKS);
    f->layout = make_network(s, router, 1.0f, 1);
    f->parameters = xm_calloc_aligned(f->layout->total, sizeof(float));
}

static void read_tensor(FILE *file, torch_network *f)
{
    char name[64] = "";
    size_t count = 0;
    assert_int_equal(fscanf(file, "%63s %zu ", name, &count), 2);
    const xm_parameter *p = xm_network_find(f->layout, name);
    if (p == NULL || p->count != count)
        fail_msg("%s of %zu elements is not a tensor of the trainer's network", name, count);
    for (size_t i = 0; i < count; i++) {
        unsigned int digits = 0;
        assert_int_equal(fscanf(file, "%4x", &digits), 1);
        f->parameters[p->offset + i] = (float)(int16_t)digits / 4096.0f;
    }
    f->tensor_count++;
}

static void read_case(FILE *file, const torch_network *f, torch_case *c)
{
    assert_int_equal(fscanf(file, "%31s", c->name), 1);
    c->router = read_router(file);
    c->threshold = (float)read_number(file);
    c->top_k = read_integer(file);
    c->options =
        (xm_pass_options){.sequences = f->sequences, .length = f->length, .training = true};
    c->options.capacity_factor = (float)read_number(file);
    c->options.min_capacity = read_integer(file);
    c->options.balance_weight = (float)read_number(file);
    c->options.entropy_weight = (float)read_number(file);
    c->options.z_weight = (float)read_number(file);
    c->options.sparsity_weight = (float)read_number(file);
}

static void read_result(FILE *file, const torch_network *f, torch_case *c)
{
    c->loss = read_number(file);
    c->balance_loss = read_number(file);
    c->entropy = read_number(file);
    c->z_loss = read_number(file);
    c->sparsity = read_number(file);
    c->wanted = read_number(file);
    c->dropped = read_number(file);
    for (int32_t block = 0; block < f->shape.blocks; block++)
        c->active[block] = read_number(file);
}

static void read_gradient(FILE *file, torch_case *c)
{
    assert_true(c->gradient_count < MAX_PARAMETERS);
    gradient_record *g = &c->gradients[c->gradient_count++];
    assert_int_equal(fscanf(file, "%63s %zu %zu", g->name, &g->count, &g->step), 3);
    g->weighted = read_number(file);
    g->squares = read_number(file);
    assert_true(g->count > 0 && g->step > 0);
    g->samples = (g->count - 1) / g->step + 1;
    assert_true(g->samples <= MAX_SAMPLES);
    for (size_t i = 0; i < g->samples; i++) {
        uint32_t bits = 0;
        assert_int_equal(fscanf(file, "%8" SCNx32, &bits), 1);
        memcpy(&g->sample[i], &bits, sizeof bits);
    }
}

/* The rest of a line whose first word is this. */
static void read_line(FILE *file, const char *word, torch_fixture *fixture)
{
    if (strcmp(word, "network") == 0) {
        assert_true(fixture->count < MAX_NETWORKS);
        read_network(file, &fixture->networks[fixture->count++]);
        return;
    }
    assert_true(fixture->count > 0);
    torch_network *f = &fixture->networks[fixture->count - 1];
    torch_case *c = &f->cases[f->case_count > 0 ? f->case_count - 1 : 0];
    if (strcmp(word, "tokens") == 0) {
        for (int32_t row = 0; row < f->rows; row++)
            f->tokens[row] = read_integer(file);
    } else if (strcmp(word, "targets") == 0) {
        for (int32_t row = 0; row < f->rows; row++)
            f->targets[row] = read_integer(file);
    } else if (strcmp(word, "tensor") == 0) {
        read_tensor(file, f);
    } else if (strcmp(word, "case") == 0) {
        assert_true(f->case_count < MAX_CASES);
        read_case(file, f, &f->cases[f->case_count++]);
    } else if (strcmp(word, "result") == 0) {
        read_result(file, f, c);
    } else if (strcmp(word, "losses") == 0) {
        for (int32_t row = 0; row < f->rows; row++)
            c->losses[row] = read_number(file);
    } else if (strcmp(word, "gradient") == 0) {
        read_gradient(file, c);
    } else {
        fail_msg("%s: unknown line %s", FIXTURE, word);
    }
}

static int read_fixture(void **state)
{
    FILE *file = fopen(FIXTURE, "r");
    if (file == NULL)
        fail_msg("cannot open %s: run this test in the root of the source tree", FIXTURE);
    torch_fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    char word[16];
    assert_int_equal(fscanf(file, "#%*[^\n]"), 0); /* the origin */
    while (fscanf(file, "%15s", word) == 1)
        read_line(file, word, f);
    fclose(file);
    assert_true(f->count > 0);
    for (int32_t i = 0; i < f->count; i++)
        assert_int_equal(f->networks[i].tensor_count, f->networks[i].layout->parameter_count);
    *state = f;
    return 0;
}

static int free_fixture(void **state)
{
    torch_fixture *f = *state;
    for (int32_t i = 0; i < f->count; i++) {
        xm_network_free(f->networks[i].layout);
        xm_free(f->networks[i].parameters);
    }
    free(f);
    return 0;
}

/* --- comparing -------------------------------------------------------------------------------- */

typedef struct {
    double error; /* in units of the tensor's RMS */
    char what[160];
} worst_gradient;

static void note(worst_gradient *worst, double error, const char *name, const char *part,
                 double found, double expected)
{
    if (error <= worst->error) /* an error that is NaN is the worst */
        return;
    worst->error = isnan(error) ? HUGE_VAL : error;
    snprintf(worst->what, sizeof worst->what, "%s, %s: %.8g, PyTorch %.8g", name, part, found,
             expected);
}

/* gradients: of the tensor. The two sums cover the elements that are not in the sample; with n
 * independent errors of one size they move by 2 sqrt(n) and by 2 / sqrt(n) times that. */
static void compare_tensor(const gradient_record *g, const float *gradients, worst_gradient *worst)
{
    const double rms = sqrt(g->squares / (double)g->count);
    double weighted = 0, squares = 0;
    assert_true(rms > 0);
    for (size_t i = 0; i < g->count; i++) {
        double found = (double)gradients[i];
        weighted += found * ((double)(i % 7) - 3);
        squares += found * found;
        if (i % g->step != 0)
            continue;
        double expected = (double)g->sample[i / g->step];
        char part[32];
        snprintf(part, sizeof part, "element %zu", i);
        note(worst, fabs(found - expected) / rms, g->name, part, found, expected);
    }
    note(worst, fabs(weighted - g->weighted) / (2 * sqrt((double)g->count) * rms), g->name,
         "weighted sum", weighted, g->weighted);
    note(worst, fabs(squares - g->squares) / g->squares, g->name, "sum of squares", squares,
         g->squares);
}

static void compare_gradients(const torch_case *c, const xm_network *network,
                              const float *gradients)
{
    worst_gradient worst = {.error = -1};
    bool seen[MAX_PARAMETERS] = {false};
    for (int32_t i = 0; i < c->gradient_count; i++) {
        const gradient_record *g = &c->gradients[i];
        const xm_parameter *p = xm_network_find(network, g->name);
        assert_non_null(p);
        assert_int_equal(p->count, g->count);
        assert_false(seen[p - network->parameters]);
        seen[p - network->parameters] = true;
        compare_tensor(g, gradients + p->offset, &worst);
    }
    int32_t trained = 0;
    for (int32_t i = 0; i < network->parameter_count; i++)
        trained += !network->parameters[i].fixed;
    assert_int_equal(c->gradient_count, trained);
    if (!(worst.error <= gradient_bound))
        fail_msg("case %s: worst gradient is %s (off by %.3g of the tensor's RMS, bound %g)",
                 c->name, worst.what, worst.error, gradient_bound);
}

static void compare_number(const torch_case *c, const char *what, double found, double expected)
{
    if (!(fabs(found - expected) <= loss_bound * fabs(expected)))
        fail_msg("case %s: %s is %.9g, PyTorch %.9g", c->name, what, found, expected);
}

static void compare_result(const torch_network *f, const torch_case *c, const xm_pass *pass,
                           const xm_pass_result *result)
{
    int32_t counted = 0;
    compare_number(c, "loss", result->loss, c->loss);
    compare_number(c, "balance loss", result->balance_loss, c->balance_loss);
    compare_number(c, "entropy", result->entropy, c->entropy);
    compare_number(c, "z-loss", result->z_loss, c->z_loss);
    compare_number(c, "sparsity", result->sparsity, c->sparsity);
    compare_number(c, "share of dropped pairs", result->dropped, c->dropped / fmax(1, c->wanted));
    for (int32_t block = 0; block < f->shape.blocks; block++)
        compare_number(c, "pairs of a block", result->active[block], c->active[block]);
    for (int32_t row = 0; row < f->rows; row++) {
        compare_number(c, "loss of a row", (double)xm_pass_losses(pass)[row], c->losses[row]);
        counted += f->targets[row] >= 0;
    }
    assert_int_equal(result->tokens, counted);
    assert_true(counted < f->rows);
}

static void check_case(const torch_fixture *fixture, const char *name)
{
    const torch_network *f = NULL;
    const torch_case *c = NULL;
    for (int32_t n = 0; n < fixture->count; n++)
        for (int32_t i = 0; i < fixture->networks[n].case_count; i++)
            if (strcmp(fixture->networks[n].cases[i].name, name) == 0) {
                f = &fixture->networks[n];
                c = &f->cases[i];
            }
    if (c == NULL)
        fail_msg("%s has no case %s", FIXTURE, name);
    xm_network *network = make_network(&f->shape, c->router, c->threshold, c->top_k);
    float *gradients = xm_calloc_aligned(network->total, sizeof(float));
    xm_pool *pool = NULL;
    xm_pass *pass = NULL;
    xm_pass_result result;
    assert_int_equal(xm_pool_create(2, &pool, NULL), XMOE_OK);
    assert_int_equal(xm_pass_create(network, pool, &c->options, &pass, NULL), XMOE_OK);
    xm_pass_run(pass, f->parameters, f->tokens, f->targets, gradients, &result);
    compare_result(f, c, pass, &result);
    compare_gradients(c, network, gradients);
    xm_pass_free(pass);
    xm_pool_free(pool);
    xm_network_free(network);
    xm_free(gradients);
}

static void test_threshold(void **state)
{
    check_case(*state, "threshold");
}

static void test_capacity(void **state)
{
    check_case(*state, "capacity");
}

static void test_least_capacity_and_entropy(void **state)
{
    check_case(*state, "least_capacity");
}

static void test_top_k(void **state)
{
    check_case(*state, "top_k");
}

static void test_dense(void **state)
{
    check_case(*state, "dense");
}

static void test_switch(void **state)
{
    check_case(*state, "switch");
}

static void test_sigmoid(void **state)
{
    check_case(*state, "sigmoid");
}

static void test_base(void **state)
{
    check_case(*state, "base");
}

static void test_hash(void **state)
{
    check_case(*state, "hash");
}

static void test_z(void **state)
{
    check_case(*state, "z");
}

static void test_views(void **state)
{
    check_case(*state, "views");
    check_case(*state, "views_top_k");
}

static void test_recurrent(void **state)
{
    check_case(*state, "recurrent");
    check_case(*state, "recurrent_capacity");
}

static void test_olmoe(void **state)
{
    check_case(*state, "olmoe");
}

static void test_llama(void **state)
{
    check_case(*state, "llama");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threshold),
        cmocka_unit_test(test_capacity),
        cmocka_unit_test(test_least_capacity_and_entropy),
        cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_switch),
        cmocka_unit_test(test_sigmoid),
        cmocka_unit_test(test_base),
        cmocka_unit_test(test_hash),
        cmocka_unit_test(test_z),
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_recurrent),
        cmocka_unit_test(test_olmoe),
        cmocka_unit_test(test_llama),
    };
    return cmocka_run_group_tests(tests, read_fixture, free_fixture);
}
