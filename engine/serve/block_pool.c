/*
 * block_pool.c - see block_pool.h.
 *
 * The blocks' entries form doubly linked lists by number: the free list, the LRU list (head is the
 * oldest) and the chains of the hash table. A block is on at most one of free and LRU, so these
 * share the links next/previous.
 */
#include "serve/block_pool.h"

#include "base/memory.h"
#include "base/random.h"
#include "kernels/kernels.h"

#include <string.h>

enum { NONE = -1 };

typedef struct {
    int32_t references;
    int32_t next, previous; /* free or LRU list */
    bool indexed;
    int32_t chain_next, chain_previous; /* hash chain, where indexed */
    xm_block_hash hash;
} entry;

typedef struct {
    int32_t head, tail, count;
} list;

struct xm_block_pool {
    int32_t total;
    int32_t held;
    entry *entries; /* [total] */
    list free, lru;
    int32_t *buckets; /* [bucket_mask + 1]: first block of each chain, or NONE */
    uint64_t bucket_mask;
    uint64_t secret;
};

static void list_append(xm_block_pool *pool, list *l, int32_t block)
{
    entry *e = &pool->entries[block];
    e->next = NONE;
    e->previous = l->tail;
    if (l->tail != NONE)
        pool->entries[l->tail].next = block;
    else
        l->head = block;
    l->tail = block;
    l->count++;
}

static void list_remove(xm_block_pool *pool, list *l, int32_t block)
{
    entry *e = &pool->entries[block];
    if (e->previous != NONE)
        pool->entries[e->previous].next = e->next;
    else
        l->head = e->next;
    if (e->next != NONE)
        pool->entries[e->next].previous = e->previous;
    else
        l->tail = e->previous;
    e->next = e->previous = NONE;
    l->count--;
}

xmoe_status xm_block_pool_create(int32_t blocks, uint64_t secret, xm_block_pool **pool_out,
                                 xmoe_error *error)
{
    *pool_out = NULL;
    uint64_t buckets = 16;
    while (buckets < 2 * (uint64_t)blocks)
        buckets *= 2;
    xm_block_pool *pool = xm_calloc(1, sizeof *pool);
    entry *entries = xm_calloc((size_t)blocks, sizeof *entries);
    int32_t *heads = xm_calloc(buckets, sizeof *heads);
    if (pool == NULL || entries == NULL || heads == NULL) {
        xm_free(pool);
        xm_free(entries);
        xm_free(heads);
        return xm_fail_memory(error, "KV block table", (size_t)blocks * sizeof *entries);
    }
    *pool = (xm_block_pool){.total = blocks,
                            .entries = entries,
                            .free = {NONE, NONE, 0},
                            .lru = {NONE, NONE, 0},
                            .buckets = heads,
                            .bucket_mask = buckets - 1,
                            .secret = secret};
    for (uint64_t i = 0; i < buckets; i++)
        heads[i] = NONE;
    for (int32_t block = 0; block < blocks; block++)
        list_append(pool, &pool->free, block);
    *pool_out = pool;
    return XMOE_OK;
}

void xm_block_pool_free(xm_block_pool *pool)
{
    if (pool == NULL)
        return;
    xm_free(pool->entries);
    xm_free(pool->buckets);
    xm_free(pool);
}

/* --- the prefix index --- */

static int32_t *bucket_of(const xm_block_pool *pool, xm_block_hash hash)
{
    return &pool->buckets[hash.a & pool->bucket_mask];
}

static void unindex(xm_block_pool *pool, int32_t block)
{
    entry *e = &pool->entries[block];
    if (e->chain_previous != NONE)
        pool->entries[e->chain_previous].chain_next = e->chain_next;
    else
        *bucket_of(pool, e->hash) = e->chain_next;
    if (e->chain_next != NONE)
        pool->entries[e->chain_next].chain_previous = e->chain_previous;
    e->indexed = false;
}

void xm_block_pool_index(xm_block_pool *pool, int32_t block, xm_block_hash hash)
{
    entry *e = &pool->entries[block];
    if (e->indexed || xm_block_pool_find(pool, hash) != NONE)
        return;
    int32_t *head = bucket_of(pool, hash);
    e->indexed = true;
    e->hash = hash;
    e->chain_previous = NONE;
    e->chain_next = *head;
    if (*head != NONE)
        pool->entries[*head].chain_previous = block;
    *head = block;
}

int32_t xm_block_pool_find(const xm_block_pool *pool, xm_block_hash hash)
{
    int32_t block = *bucket_of(pool, hash);
    while (block != NONE) {
        const entry *e = &pool->entries[block];
        if (e->hash.a == hash.a && e->hash.b == hash.b)
            return block;
        block = e->chain_next;
    }
    return NONE;
}

/* --- references --- */

int32_t xm_block_pool_take(xm_block_pool *pool)
{
    int32_t block = pool->free.head;
    if (block != NONE) {
        list_remove(pool, &pool->free, block);
    } else {
        block = pool->lru.head;
        if (block == NONE)
            return -1;
        list_remove(pool, &pool->lru, block);
        unindex(pool, block);
    }
    pool->entries[block].references = 1;
    pool->held++;
    return block;
}

void xm_block_pool_hold(xm_block_pool *pool, int32_t block)
{
    entry *e = &pool->entries[block];
    if (e->references == 0) {
        list_remove(pool, &pool->lru, block);
        pool->held++;
    }
    e->references++;
}

void xm_block_pool_release(xm_block_pool *pool, int32_t block)
{
    entry *e = &pool->entries[block];
    if (--e->references > 0)
        return;
    pool->held--;
    list_append(pool, e->indexed ? &pool->lru : &pool->free, block);
}

int32_t xm_block_pool_references(const xm_block_pool *pool, int32_t block)
{
    return pool->entries[block].references;
}

int32_t xm_block_pool_total(const xm_block_pool *pool)
{
    return pool->total;
}

int32_t xm_block_pool_held(const xm_block_pool *pool)
{
    return pool->held;
}

int32_t xm_block_pool_cached(const xm_block_pool *pool)
{
    return pool->lru.count;
}

int32_t xm_block_pool_available(const xm_block_pool *pool)
{
    return pool->free.count + pool->lru.count;
}

/* --- hashes --- */

/* Two lanes of SplitMix64's finaliser, told apart by a constant. */
static xm_block_hash mix(xm_block_hash hash, uint64_t word)
{
    return (xm_block_hash){xm_random_mix(hash.a ^ word),
                           xm_random_mix(hash.b ^ (word + UINT64_C(0xD6E8FEB86659FD93)))};
}

/* What a router does, in a form that is equal for equal behaviour: either always the same number
 * of experts (type top_k, no bounds), or a threshold below 1 with the bounds that can matter. A
 * threshold without a cap takes at most the choices that a model was trained with. */
static xmoe_router canonical(xmoe_router r, int32_t experts, int32_t trained_top_k)
{
    int32_t floor = r.min_experts < 1 ? 1 : r.min_experts, most = experts;
    if (r.type == XMOE_ROUTER_THRESHOLD && r.max_experts <= 0 && trained_top_k > 0)
        most = floor > trained_top_k ? floor : trained_top_k;
    int32_t cap = r.max_experts <= 0 || r.max_experts > experts ? most : r.max_experts;
    floor = floor > cap ? cap : floor;
    int32_t fixed = 0;
    if (floor == cap)
        fixed = cap;
    else if (r.type == XMOE_ROUTER_SIGMOID && r.threshold >= 1)
        fixed = floor;
    else if (r.type == XMOE_ROUTER_DENSE || (r.type == XMOE_ROUTER_THRESHOLD && r.threshold >= 1))
        fixed = cap;
    else if (r.type == XMOE_ROUTER_TOP_K)
        fixed = r.top_k < floor ? floor : r.top_k > cap ? cap : r.top_k;
    if (fixed > 0)
        return (xmoe_router){.type = XMOE_ROUTER_TOP_K, .top_k = fixed, .normalize = r.normalize};
    return (xmoe_router){.type = r.type, /* threshold or sigmoid */
                         .threshold = r.threshold,
                         .min_experts = floor,
                         .max_experts = cap,
                         .normalize = r.normalize};
}

xm_block_hash xm_block_hash_root(const xm_block_pool *pool, const xmoe_routing *routing,
                                 const int32_t *moe_layers, int32_t moe_layer_count,
                                 int32_t experts, int32_t trained_top_k)
{
    xm_block_hash hash = mix((xm_block_hash){pool->secret, ~pool->secret}, pool->secret);
    for (int32_t i = 0; i < moe_layer_count; i++) {
        xmoe_router r = canonical(routing->layers[moe_layers[i]], experts, trained_top_k);
        uint32_t threshold;
        memcpy(&threshold, &r.threshold, sizeof threshold);
        hash = mix(hash, (uint64_t)r.type << 33 | (uint64_t)r.normalize << 32 | threshold);
        hash = mix(hash, (uint64_t)(uint32_t)r.top_k << 40 |
                             (uint64_t)(uint32_t)r.min_experts << 20 | (uint32_t)r.max_experts);
    }
    return hash;
}

xm_block_hash xm_block_hash_next(xm_block_hash parent, const int32_t *tokens)
{
    for (int32_t i = 0; i < XM_KV_TOKENS; i += 2)
        parent = mix(parent, (uint64_t)(uint32_t)tokens[i] << 32 | (uint32_t)tokens[i + 1]);
    return parent;
}

/* --- invariants --- */

/* Walks a list; false if links, membership or count are wrong. */
static bool list_is_sound(const xm_block_pool *pool, const list *l, bool indexed)
{
    int32_t count = 0, previous = NONE;
    for (int32_t block = l->head; block != NONE; block = pool->entries[block].next) {
        const entry *e = &pool->entries[block];
        if (++count > pool->total || e->previous != previous || e->references != 0 ||
            e->indexed != indexed)
            return false;
        previous = block;
    }
    return count == l->count && l->tail == previous;
}

bool xm_block_pool_check(const xm_block_pool *pool, const char **what)
{
    int32_t held = 0, indexed = 0, chained = 0;
    for (int32_t block = 0; block < pool->total; block++) {
        const entry *e = &pool->entries[block];
        *what = "a reference count is negative";
        if (e->references < 0)
            return false;
        held += e->references > 0;
        indexed += e->indexed;
        *what = "an indexed block is not found by its hash";
        if (e->indexed && xm_block_pool_find(pool, e->hash) != block)
            return false;
    }
    for (uint64_t i = 0; i <= pool->bucket_mask; i++)
        for (int32_t block = pool->buckets[i]; block != NONE && chained <= pool->total;
             block = pool->entries[block].chain_next)
            chained++;
    *what = "the index holds blocks that are not marked, or the reverse";
    if (chained != indexed)
        return false;
    *what = "the free list is broken";
    if (!list_is_sound(pool, &pool->free, false))
        return false;
    *what = "the LRU list is broken";
    if (!list_is_sound(pool, &pool->lru, true))
        return false;
    *what = "held, free and cached blocks do not add up";
    return held == pool->held && held + pool->free.count + pool->lru.count == pool->total;
}
