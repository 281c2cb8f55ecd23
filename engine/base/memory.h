/*
 * memory.h - allocation with overflow checks and, for tests, failure on purpose.
 *
 * Everything the engine allocates goes through here. Tests set xm_memory_fail_after to n to make
 * the n-th allocation from then on fail; raising n until a task succeeds runs each of its failure
 * paths.
 */
#ifndef XM_BASE_MEMORY_H
#define XM_BASE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* count * size bytes, zeroed; NULL on overflow or lack of memory. Never NULL for 0 bytes. */
void *xm_calloc(size_t count, size_t size);
/* count * size bytes at a 64-byte boundary, zeroed. Freed with xm_free too. */
void *xm_calloc_aligned(size_t count, size_t size);
/* Resizes; on failure the old block stays. New bytes are not zeroed. */
void *xm_realloc(void *memory, size_t count, size_t size);
char *xm_strdup(const char *text);
void xm_free(void *memory);

/* a * b or a + b into *result; false on overflow. */
bool xm_multiply(size_t a, size_t b, size_t *result);
bool xm_add(size_t a, size_t b, size_t *result);

/* Tests only: the allocation after n more fails; negative: none does. */
void xm_memory_fail_after(int64_t n);

#endif
