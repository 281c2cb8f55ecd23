/*
 * pages.h - placing large arrays (weights, KV cache) in memory: zeroed, aligned, backed by pages
 * only as they are touched (by the thread that touches them first), and by huge pages where large:
 * a decoding step reads gigabytes and jumps between thousands of blocks.
 */
#ifndef XM_MODEL_PAGES_H
#define XM_MODEL_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How much to xm_calloc for `bytes` to be placed; false if that overflows. */
bool xm_pages_size(size_t bytes, size_t *size);
/* Where they start in memory of xm_pages_size. */
uint8_t *xm_pages_place(void *memory, size_t bytes);

#endif
