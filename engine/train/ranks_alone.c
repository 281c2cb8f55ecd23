/*
 * ranks_alone.c - see ranks.h: one process that trains alone.
 */
#include "train/ranks.h"

xmoe_status xm_ranks_start(xm_ranks *ranks, xmoe_error *error)
{
    (void)error;
    *ranks = (xm_ranks){.rank = 0, .count = 1};
    return XMOE_OK;
}

void xm_ranks_end(xm_ranks *ranks)
{
    *ranks = (xm_ranks){0};
}
