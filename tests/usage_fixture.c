/* usage_fixture.c - see usage_fixture.h. */
#include "usage_fixture.h"

#include "base/random.h"

#include <string.h>

const int32_t usage_layer_numbers[LAYERS] = {1, 3, 4};
int64_t usage_seconds;

static int64_t test_monotonic(void *context)
{
    (void)context;
    return usage_seconds * 1000000000;
}

static int64_t test_unix(void *context)
{
    (void)context;
    return 1000000 + usage_seconds;
}

xm_usage *usage_counters_of(const int32_t *layers, int32_t layer_count, int32_t experts)
{
    xm_usage_options options = {.layers = layers,
                                .layer_count = layer_count,
                                .experts = experts,
                                .window_seconds = 60,
                                .window_bytes = 1 << 20,
                                .clock = {test_monotonic, test_unix, NULL}};
    xm_usage *usage;
    assert_int_equal(xm_usage_create(&options, &usage, NULL), XMOE_OK);
    return usage;
}

xm_usage *usage_counters(void)
{
    return usage_counters_of(usage_layer_numbers, LAYERS, EXPERTS);
}

void usage_count_steps(xm_usage *usage, uint64_t from, uint64_t to)
{
    for (uint64_t step = from; step < to; step++) {
        for (int32_t layer = 0; layer < LAYERS; layer++) {
            int32_t count[ROWS];
            uint16_t expert[ROWS * EXPERTS];
            float weight[ROWS * EXPERTS];
            uint8_t is_decode[ROWS];
            for (int32_t r = 0; r < ROWS; r++) {
                uint64_t bits = xm_random_bits(step, (uint64_t)layer, (uint64_t)r);
                is_decode[r] = xm_random_bits(step, 9, (uint64_t)r) % 3 == 0;
                count[r] = 1 + (int32_t)(bits % 4);
                for (int32_t i = 0; i < count[r]; i++) {
                    expert[r * EXPERTS + i] = (uint16_t)((bits / 8 + (uint64_t)i) % EXPERTS);
                    weight[r * EXPERTS + i] = (float)(bits >> 40) * 0x1p-24F / (float)(i + 1);
                }
            }
            xm_selection selection = {ROWS, EXPERTS, count, expert, weight};
            xm_usage_route(usage, layer, &selection, is_decode);
        }
        xm_usage_commit(usage);
    }
}

xmoe_usage *usage_get(xm_usage *usage, xmoe_phase phase, int32_t window)
{
    xmoe_usage *snapshot;
    assert_int_equal(xm_usage_snapshot(usage, -1, phase, window, &snapshot, NULL), XMOE_OK);
    return snapshot;
}

void usage_get_phases(xm_usage *usage, xmoe_usage *phases[XMOE_PHASES])
{
    assert_int_equal(xm_usage_snapshot_phases(usage, phases, NULL), XMOE_OK);
}

void usage_free_phases(xmoe_usage *phases[XMOE_PHASES])
{
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        xmoe_usage_free(phases[phase]);
}

xmoe_usage *usage_made_of(const xmoe_usage *from)
{
    xmoe_usage *usage;
    xmoe_error error;
    if (xmoe_usage_create(from->phase, from->since, from->layers, from->layer_count, &usage,
                          &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return usage;
}

void usage_assert_same(const xmoe_usage *a, const xmoe_usage *b)
{
    assert_int_equal(a->phase, b->phase);
    assert_int_equal(a->tokens, b->tokens);
    assert_int_equal(a->dead_experts, b->dead_experts);
    assert_true(a->load_balance == b->load_balance && a->mean_active == b->mean_active);
    assert_int_equal(a->layer_count, b->layer_count);
    for (int32_t i = 0; i < a->layer_count; i++) {
        const xmoe_layer_usage *x = &a->layers[i], *y = &b->layers[i];
        size_t experts = (size_t)x->experts;
        assert_int_equal(x->layer, y->layer);
        assert_int_equal(x->experts, y->experts);
        assert_int_equal(x->tokens, y->tokens);
        assert_int_equal(x->activations, y->activations);
        assert_int_equal(x->steps, y->steps);
        assert_int_equal(x->distinct, y->distinct);
        assert_true(x->entropy == y->entropy && x->cv == y->cv);
        assert_memory_equal(x->active_histogram, y->active_histogram,
                            (experts + 1) * sizeof(uint64_t));
        assert_memory_equal(x->counts, y->counts, experts * sizeof(uint64_t));
        assert_memory_equal(x->weights, y->weights, experts * sizeof(double));
    }
}

void usage_assert_same_phases(xmoe_usage *a[XMOE_PHASES], xmoe_usage *b[XMOE_PHASES])
{
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        usage_assert_same(a[phase], b[phase]);
}
