/* memory.c - see memory.h. */
#include "base/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* The one mutable global of the engine: the tests' fault injection. */
static _Atomic int64_t allocations_left = -1;

void xm_memory_fail_after(int64_t n)
{
    atomic_store(&allocations_left, n);
}

static bool allocation_fails(void)
{
    if (atomic_load_explicit(&allocations_left, memory_order_relaxed) < 0)
        return false;
    return atomic_fetch_sub(&allocations_left, 1) == 0;
}

bool xm_multiply(size_t a, size_t b, size_t *result)
{
    return !__builtin_mul_overflow(a, b, result);
}

bool xm_add(size_t a, size_t b, size_t *result)
{
    return !__builtin_add_overflow(a, b, result);
}

void *xm_calloc(size_t count, size_t size)
{
    if (allocation_fails())
        return NULL;
    return calloc(count > 0 ? count : 1, size > 0 ? size : 1);
}

void *xm_calloc_aligned(size_t count, size_t size)
{
    size_t bytes;
    if (!xm_multiply(count, size, &bytes) || !xm_add(bytes, 63, &bytes) || allocation_fails())
        return NULL;
    bytes &= ~(size_t)63;
    if (bytes == 0)
        bytes = 64;
    void *memory = aligned_alloc(64, bytes);
    if (memory != NULL)
        memset(memory, 0, bytes);
    return memory;
}

void *xm_realloc(void *memory, size_t count, size_t size)
{
    size_t bytes;
    if (!xm_multiply(count, size, &bytes) || allocation_fails())
        return NULL;
    return realloc(memory, bytes > 0 ? bytes : 1);
}

char *xm_strdup(const char *text)
{
    size_t length = strlen(text) + 1;
    char *copy = xm_calloc(length, 1);
    if (copy != NULL)
        memcpy(copy, text, length);
    return copy;
}

void xm_free(void *memory)
{
    free(memory);
}
