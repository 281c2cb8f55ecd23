/* index_map.c - see index_map.h: open addressing with linear probing. */
#include "grammar/index_map.h"

#include "base/memory.h"
#include "base/random.h"

static xm_index_slot *find(xm_index_slot *slots, size_t capacity, uint32_t round, uint64_t key)
{
    size_t at = (size_t)xm_random_mix(key) & (capacity - 1);
    while (slots[at].round == round && slots[at].key != key)
        at = (at + 1) & (capacity - 1);
    return &slots[at];
}

static bool grow(xm_index_map *map)
{
    size_t capacity = map->capacity == 0 ? 32 : 2 * map->capacity;
    xm_index_slot *slots = xm_calloc(capacity, sizeof *slots);
    if (slots == NULL)
        return false;
    for (size_t i = 0; i < map->capacity; i++) {
        xm_index_slot slot = map->slots[i];
        if (slot.round != map->round)
            continue;
        slot.round = 1;
        *find(slots, capacity, 1, slot.key) = slot;
    }
    xm_free(map->slots);
    map->slots = slots;
    map->capacity = capacity;
    map->round = 1;
    return true;
}

int32_t *xm_index_map_at(xm_index_map *map, uint64_t key)
{
    if (map->count + 1 > map->capacity / 3 * 2 && !grow(map))
        return NULL;
    xm_index_slot *slot = find(map->slots, map->capacity, map->round, key);
    if (slot->round != map->round) {
        *slot = (xm_index_slot){key, -1, map->round};
        map->count++;
    }
    return &slot->value;
}

void xm_index_map_clear(xm_index_map *map)
{
    map->count = 0;
    if (++map->round != 0)
        return;
    for (size_t i = 0; i < map->capacity; i++) /* rounds begin anew */
        map->slots[i].round = 0;
    map->round = 1;
}

void xm_index_map_free(xm_index_map *map)
{
    xm_free(map->slots);
    *map = (xm_index_map){0};
}
