/*
 * tiles.h - how a matrix product is cut into the tasks of a parallel region: ranges of panels times
 * tiles of rows. Every output is one dot product whoever computes it, so the cut never changes a
 * result.
 */
#ifndef XM_MOE_TILES_H
#define XM_MOE_TILES_H

#include "base/pool.h"

enum { XM_ROW_TILE = 64 }; /* rows whose activations stay in a core's cache beside a panel */

typedef struct {
    int32_t rows, panels;  /* of the product */
    int32_t row_tiles;     /* of XM_ROW_TILE rows */
    int32_t chunk, chunks; /* panels of a range (even, so that its columns are whole blocks of 32),
                              and how many ranges */
    int32_t tasks;
} xm_tiles;

typedef struct {
    int32_t first_row, last_row;
    int32_t first_panel, last_panel; /* both exclusive at the end */
} xm_tile;

/* Some tasks per thread, so that threads that start late or run slower take fewer. */
xm_tiles xm_tiles_plan(int32_t rows, int32_t panels, int32_t threads);
/* Tasks that share panels follow each other. */
xm_tile xm_tiles_at(const xm_tiles *tiles, int32_t task);

/* The pool, or NULL (the caller alone) for work so small that waking others costs more than it
 * saves. */
xm_pool *xm_pool_for(xm_pool *pool, size_t multiplications);

#endif
