/*
 * test_block_pool.c - block pool: a random walk beside a simple model of it, eviction order, hash
 * chains and the equality of routers that choose alike.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "base/random.h"
#include "kernels/kernels.h"
#include "serve/block_pool.h"

#include <string.h>

static void assert_sound(const xm_block_pool *pool)
{
    const char *what = "";
    if (!xm_block_pool_check(pool, &what))
        fail_msg("%s", what);
}

static xm_block_pool *create(int32_t blocks)
{
    xm_block_pool *pool;
    assert_int_equal(xm_block_pool_create(blocks, 12345, &pool, NULL), XMOE_OK);
    return pool;
}

static xm_block_hash key(uint64_t n)
{
    return (xm_block_hash){xm_random_mix(n), n};
}

static void random_walk_keeps_all_invariants(void **state)
{
    (void)state;
    enum { BLOCKS = 40, STEPS = 20000, KEYS = 60 };
    xm_block_pool *pool = create(BLOCKS);
    int32_t references[BLOCKS] = {0}, held = 0;
    for (uint64_t step = 0; step < STEPS; step++) {
        uint64_t bits = xm_random_bits(1, 2, step);
        int32_t block = (int32_t)((bits >> 8) % BLOCKS);
        uint64_t name = (bits >> 24) % KEYS;
        switch (bits % 5) {
        case 0:
        case 1: {
            int32_t taken = xm_block_pool_take(pool);
            assert_int_equal(taken >= 0, held < BLOCKS);
            if (taken < 0)
                break;
            assert_int_equal(references[taken], 0);
            references[taken] = 1;
            held++;
            break;
        }
        case 2: {
            int32_t found = xm_block_pool_find(pool, key(name));
            if (found < 0)
                break;
            xm_block_pool_hold(pool, found);
            held += references[found]++ == 0;
            break;
        }
        case 3:
            if (references[block] == 0)
                break;
            xm_block_pool_release(pool, block);
            held -= --references[block] == 0;
            break;
        default:
            if (references[block] > 0)
                xm_block_pool_index(pool, block, key(name));
        }
        assert_int_equal(xm_block_pool_held(pool), held);
        assert_int_equal(xm_block_pool_available(pool), BLOCKS - held);
        assert_int_equal(xm_block_pool_references(pool, block), references[block]);
        if (step % 16 == 0)
            assert_sound(pool);
    }
    assert_sound(pool);
    xm_block_pool_free(pool);
}

static void eviction_takes_the_least_recently_used(void **state)
{
    (void)state;
    xm_block_pool *pool = create(4);
    int32_t blocks[4];
    for (uint64_t i = 0; i < 4; i++) {
        blocks[i] = xm_block_pool_take(pool);
        xm_block_pool_index(pool, blocks[i], key(i));
    }
    assert_int_equal(xm_block_pool_take(pool), -1);
    for (int32_t i = 0; i < 4; i++)
        xm_block_pool_release(pool, blocks[i]);
    assert_int_equal(xm_block_pool_cached(pool), 4);
    xm_block_pool_hold(pool, xm_block_pool_find(pool, key(0))); /* used again: now the newest */
    xm_block_pool_release(pool, blocks[0]);
    assert_int_equal(xm_block_pool_take(pool), blocks[1]);
    assert_int_equal(xm_block_pool_take(pool), blocks[2]);
    assert_int_equal(xm_block_pool_find(pool, key(1)), -1);
    assert_int_equal(xm_block_pool_find(pool, key(3)), blocks[3]);
    assert_int_equal(xm_block_pool_find(pool, key(0)), blocks[0]);
    assert_sound(pool);
    xm_block_pool_free(pool);
}

static void a_hash_belongs_to_one_block(void **state)
{
    (void)state;
    xm_block_pool *pool = create(2);
    int32_t first = xm_block_pool_take(pool), second = xm_block_pool_take(pool);
    xm_block_pool_index(pool, first, key(1));
    xm_block_pool_index(pool, second, key(1));
    assert_int_equal(xm_block_pool_find(pool, key(1)), first);
    xm_block_pool_release(pool, second); /* not indexed: free, not cached */
    assert_int_equal(xm_block_pool_cached(pool), 0);
    assert_sound(pool);
    xm_block_pool_free(pool);
}

/* --- hashes ----------------------------------------------------------------------------------- */

static bool same(xm_block_hash a, xm_block_hash b)
{
    return a.a == b.a && a.b == b.b;
}

static void chains_tell_tokens_order_and_parents_apart(void **state)
{
    (void)state;
    int32_t tokens[XM_KV_TOKENS], other[XM_KV_TOKENS];
    for (int32_t i = 0; i < XM_KV_TOKENS; i++)
        tokens[i] = other[i] = i;
    xm_block_hash parent = key(1), child = xm_block_hash_next(parent, tokens);
    assert_true(same(child, xm_block_hash_next(parent, other)));
    assert_false(same(child, xm_block_hash_next(key(2), tokens)));
    for (int32_t i = 0; i < XM_KV_TOKENS; i++) {
        other[i] ^= 1;
        assert_false(same(child, xm_block_hash_next(parent, other)));
        other[i] ^= 1;
    }
    other[0] = 1;
    other[1] = 0;
    assert_false(same(child, xm_block_hash_next(parent, other)));
}

static xm_block_hash trained_root(const xm_block_pool *pool, xmoe_router router,
                                  int32_t trained_top_k)
{
    static const int32_t layers[] = {1, 3};
    xmoe_routing routing = {.layer_count = 4};
    routing.layers[0].top_k = 77; /* dense layers do not count */
    routing.layers[1] = routing.layers[3] = router;
    return xm_block_hash_root(pool, &routing, layers, 2, 8, trained_top_k);
}

static xm_block_hash root_of(const xm_block_pool *pool, xmoe_router router)
{
    return trained_root(pool, router, 0);
}

static void equal_behaviour_has_equal_roots(void **state)
{
    (void)state;
    static const xmoe_router groups[][5] = {
        {{XMOE_ROUTER_SIGMOID, 0.7F, 0, 1, 0, false},
         {XMOE_ROUTER_SIGMOID, 0.7F, 5, 0, 8, false},
         {XMOE_ROUTER_SIGMOID, 0.7F, 2, 1, 9, false},
         {XMOE_ROUTER_SIGMOID, 0.7F, 0, 1, 0, false},
         {XMOE_ROUTER_SIGMOID, 0.7F, 0, 1, 0, false}},
        {{XMOE_ROUTER_DENSE, 0, 0, 1, 0, false},
         {XMOE_ROUTER_DENSE, 0.5F, 3, 8, 8, false},
         {XMOE_ROUTER_THRESHOLD, 1, 0, 1, 0, false},
         {XMOE_ROUTER_TOP_K, 0, 8, 1, 0, false},
         {XMOE_ROUTER_TOP_K, 0.3F, 100, 1, 100, false}},
        {{XMOE_ROUTER_TOP_K, 0, 3, 1, 0, false},
         {XMOE_ROUTER_SIGMOID, 1, 0, 3, 0, false},
         {XMOE_ROUTER_DENSE, 0, 0, 1, 3, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 0, 3, 3, false},
         {XMOE_ROUTER_THRESHOLD, 1, 9, 2, 3, false}},
        {{XMOE_ROUTER_THRESHOLD, 0.7F, 0, 1, 0, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 5, 0, 8, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 2, 1, 9, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 0, 1, 0, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 0, 1, 0, false}},
        {{XMOE_ROUTER_THRESHOLD, 0.7F, 0, 2, 0, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 0, 2, 0, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 0, 2, 8, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 0, 2, 0, false},
         {XMOE_ROUTER_THRESHOLD, 0.7F, 0, 2, 0, false}},
    };
    enum { GROUPS = sizeof groups / sizeof *groups };
    xm_block_pool *pool = create(1);
    for (int32_t i = 0; i < GROUPS * 5; i++)
        for (int32_t j = 0; j < GROUPS * 5; j++)
            assert_int_equal(
                same(root_of(pool, groups[i / 5][i % 5]), root_of(pool, groups[j / 5][j % 5])),
                i / 5 == j / 5);
    xmoe_router router = groups[1][0];
    router.normalize = true;
    assert_false(same(root_of(pool, router), root_of(pool, groups[1][0])));
    router = groups[3][0];
    router.threshold = 0.71F;
    assert_false(same(root_of(pool, router), root_of(pool, groups[3][0])));
    xm_block_pool_free(pool);
}

/* With k = 2, a threshold looks at the first two ranks, or at max_experts if that is more. */
static void trained_top_k_bounds_thresholds(void **state)
{
    (void)state;
    static const xmoe_router dense = {XMOE_ROUTER_DENSE, 0, 0, 1, 0, false};
    static const xmoe_router two = {XMOE_ROUTER_TOP_K, 0, 2, 1, 0, false};
    static const xmoe_router three = {XMOE_ROUTER_TOP_K, 0, 3, 1, 0, false};
    static const xmoe_router one[] = {{XMOE_ROUTER_THRESHOLD, 1, 0, 1, 0, false},
                                      {XMOE_ROUTER_THRESHOLD, 1, 0, 3, 0, false},
                                      {XMOE_ROUTER_THRESHOLD, 1, 0, 1, 8, false}};
    static const xmoe_router half[] = {{XMOE_ROUTER_THRESHOLD, 0.5F, 0, 1, 0, false},
                                       {XMOE_ROUTER_THRESHOLD, 0.5F, 0, 1, 2, false},
                                       {XMOE_ROUTER_THRESHOLD, 0.5F, 0, 1, 8, false}};
    xm_block_pool *pool = create(1);
    assert_true(same(trained_root(pool, one[0], 2), trained_root(pool, two, 2)));
    assert_true(same(trained_root(pool, one[1], 2), trained_root(pool, three, 2)));
    assert_true(same(trained_root(pool, one[2], 2), trained_root(pool, dense, 2)));
    assert_false(same(trained_root(pool, one[0], 2), trained_root(pool, dense, 2)));
    assert_true(same(trained_root(pool, half[0], 2), trained_root(pool, half[1], 2)));
    assert_false(same(trained_root(pool, half[0], 2), trained_root(pool, half[2], 2)));
    xm_block_pool_free(pool);
}

static void failed_allocations_leave_nothing(void **state)
{
    (void)state;
    xm_block_pool *pool = NULL;
    xmoe_error error;
    int64_t n = 0;
    for (;; n++) {
        xm_memory_fail_after(n);
        xmoe_status status = xm_block_pool_create(8, 1, &pool, &error);
        xm_memory_fail_after(-1);
        if (status == XMOE_OK)
            break;
        assert_int_equal(status, XMOE_ERROR_MEMORY);
        assert_null(pool);
    }
    assert_true(n >= 3);
    xm_block_pool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_walk_keeps_all_invariants),
        cmocka_unit_test(eviction_takes_the_least_recently_used),
        cmocka_unit_test(a_hash_belongs_to_one_block),
        cmocka_unit_test(chains_tell_tokens_order_and_parents_apart),
        cmocka_unit_test(equal_behaviour_has_equal_roots),
        cmocka_unit_test(trained_top_k_bounds_thresholds),
        cmocka_unit_test(failed_allocations_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
