/*
 * index_map.h - a hash table from 64-bit keys to indices, emptied at no cost.
 *
 * Not thread-safe.
 */
#ifndef XM_GRAMMAR_INDEX_MAP_H
#define XM_GRAMMAR_INDEX_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t key;
    int32_t value;
    uint32_t round; /* slots of earlier rounds are free */
} xm_index_slot;

typedef struct {
    xm_index_slot *slots; /* [capacity], a power of two, less than two thirds full */
    size_t capacity, count;
    uint32_t round;
} xm_index_map; /* start with {0}; the owner calls xm_index_map_free */

/* The place of key's value: a new one holds -1. NULL for lack of memory. It stays valid until the
 * next call. */
int32_t *xm_index_map_at(xm_index_map *map, uint64_t key);
void xm_index_map_clear(xm_index_map *map);
void xm_index_map_free(xm_index_map *map);

#endif
