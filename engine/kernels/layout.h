/*
 * layout.h - where things lie in a packed block of 16 rows (the picture: head of kernels.h), made
 * from the type's coding; constants where the type is one.
 */
#ifndef XM_KERNELS_LAYOUT_H
#define XM_KERNELS_LAYOUT_H

#include "format/weight_coding.h"
#include "kernels/kernels.h"

enum { XM_PART = 32 }; /* columns of a part */

/* In bytes, from the start of the block, or of a part. The head's scales and a part's come first.
 */
typedef struct {
    size_t columns; /* of a block */
    size_t parts;   /* of a block */
    size_t groups;  /* of a part: 1 or 2 */
    size_t head_minima, head_bytes;
    size_t minima, codes, high;
    size_t part_bytes, block_bytes;
} xm_panel_layout;

static inline __attribute__((always_inline)) xm_panel_layout
xm_panel_layout_of(xm_weight_coding coding)
{
    xm_panel_layout at = {.columns = coding.elements, .groups = (size_t)XM_PART / coding.group};
    size_t group_bytes = coding.group_scales ? at.groups * XM_PANEL : 0;

    at.parts = at.columns / XM_PART;
    at.head_minima = (coding.power_of_two ? 1u : 2u) * XM_PANEL;
    at.head_bytes = at.head_minima + (coding.minimum ? 2 * XM_PANEL : 0);
    at.minima = group_bytes;
    at.codes = at.minima + (coding.minimum ? group_bytes : 0);
    at.high = at.codes + (coding.bits == 8 ? 32u : 16u) * XM_PANEL;
    at.part_bytes = at.high;
    if (coding.bits == 5 || coding.bits == 6)
        at.part_bytes += (size_t)(coding.bits - 4) * 4 * XM_PANEL;
    at.block_bytes = at.head_bytes + at.parts * at.part_bytes;
    return at;
}

#endif
