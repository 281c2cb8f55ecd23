/* pages.c - see pages.h. The advice to the kernel may be refused; that costs speed only. */
#include "model/pages.h"

#include "base/memory.h"

#include <sys/mman.h>

enum { CACHE_LINE = 64, HUGE_PAGE = 2 << 20 };

static size_t alignment_of(size_t bytes)
{
    return bytes >= HUGE_PAGE ? HUGE_PAGE : CACHE_LINE;
}

bool xm_pages_size(size_t bytes, size_t *size)
{
    return xm_add(bytes, alignment_of(bytes), size);
}

uint8_t *xm_pages_place(void *memory, size_t bytes)
{
    size_t alignment = alignment_of(bytes);
    uint8_t *start = (uint8_t *)memory + (-(uintptr_t)memory & (alignment - 1));
    if (alignment == HUGE_PAGE)
        madvise(start, bytes & ~(size_t)(HUGE_PAGE - 1), MADV_HUGEPAGE);
    return start;
}
