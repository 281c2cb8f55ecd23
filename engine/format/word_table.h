/*
 * word_table.h - finds a token by its bytes: a hash table with a random key, so that no file can
 * choose tokens that all fall on one slot; results do not depend on the key. Immutable once filled.
 */
#ifndef XM_FORMAT_WORD_TABLE_H
#define XM_FORMAT_WORD_TABLE_H

#include "base/error.h"
#include "format/gguf.h"

typedef struct {
    uint64_t key;
    const xm_string *words; /* by token; outlive the table */
    int32_t *slots;         /* open addressing, at most half full; -1: empty */
    size_t mask;
    size_t longest; /* bytes */
} xm_word_table;    /* start with {0} */

/* Of the words that are not empty; two that are the same are an error. */
xmoe_status xm_word_table_fill(xm_word_table *table, const xm_string *words, size_t count,
                               xmoe_error *error);
void xm_word_table_free(xm_word_table *table);
/* -1 if no token has these bytes. */
int32_t xm_word_table_find(const xm_word_table *table, const char *bytes, size_t length);

#endif
