/* word_table.c - see word_table.h. */
#include "format/word_table.h"

#include "base/memory.h"
#include "base/random.h"

#include <string.h>
#include <sys/random.h>

enum { EMPTY = -1 };

static uint64_t hash_bytes(uint64_t key, const char *bytes, size_t length)
{
    uint64_t hash = key ^ length;
    for (; length >= 8; bytes += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, bytes, sizeof word);
        hash = xm_random_mix(hash ^ word);
    }
    uint64_t rest = 0;
    memcpy(&rest, bytes, length);
    return xm_random_mix(hash ^ rest);
}

/* The slot of these bytes, or the empty one where they would go. */
static int32_t *find_slot(const xm_word_table *table, const char *bytes, size_t length)
{
    for (size_t i = (size_t)hash_bytes(table->key, bytes, length) & table->mask;;
         i = (i + 1) & table->mask) {
        int32_t *slot = &table->slots[i];
        if (*slot == EMPTY)
            return slot;
        xm_string word = table->words[*slot];
        if (word.length == length && memcmp(word.data, bytes, length) == 0)
            return slot;
    }
}

xmoe_status xm_word_table_fill(xm_word_table *table, const xm_string *words, size_t count,
                               xmoe_error *error)
{
    size_t slots = 16;
    while (slots < 2 * count)
        slots *= 2;
    table->words = words;
    table->mask = slots - 1;
    if (getrandom(&table->key, sizeof table->key, 0) != (ssize_t)sizeof table->key)
        return xm_fail(error, XMOE_ERROR_INTERNAL, "the system gives no random numbers");
    table->slots = xm_calloc(slots, sizeof *table->slots);
    if (table->slots == NULL)
        return xm_fail_memory(error, "vocabulary", slots * sizeof *table->slots);
    for (size_t i = 0; i < slots; i++)
        table->slots[i] = EMPTY;
    for (size_t i = 0; i < count; i++) {
        if (words[i].length == 0)
            continue;
        int32_t *slot = find_slot(table, words[i].data, words[i].length);
        if (*slot != EMPTY)
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "tokenizer.ggml.tokens: tokens %d and %zu are the same", *slot, i);
        *slot = (int32_t)i;
        if (words[i].length > table->longest)
            table->longest = words[i].length;
    }
    return XMOE_OK;
}

void xm_word_table_free(xm_word_table *table)
{
    xm_free(table->slots);
    *table = (xm_word_table){0};
}

int32_t xm_word_table_find(const xm_word_table *table, const char *bytes, size_t length)
{
    return *find_slot(table, bytes, length);
}
