/* tiles.c - see tiles.h. */
#include "moe/tiles.h"

enum {
    TASKS_PER_THREAD = 4,
    SMALL_WORK = 1 << 16, /* multiplications: a microsecond or two of one core */
};

static int32_t divide_up(int32_t a, int32_t b)
{
    return (a + b - 1) / b;
}

xm_tiles xm_tiles_plan(int32_t rows, int32_t panels, int32_t threads)
{
    xm_tiles tiles = {.rows = rows, .panels = panels};
    tiles.row_tiles = divide_up(rows, XM_ROW_TILE);
    int32_t ranges = divide_up(threads * TASKS_PER_THREAD, tiles.row_tiles);
    tiles.chunk = panels / ranges;
    tiles.chunk -= tiles.chunk % 2;
    if (tiles.chunk < 2)
        tiles.chunk = 2;
    tiles.chunks = divide_up(panels, tiles.chunk);
    tiles.tasks = tiles.chunks * tiles.row_tiles;
    return tiles;
}

xm_tile xm_tiles_at(const xm_tiles *tiles, int32_t task)
{
    int32_t panel = task / tiles->row_tiles * tiles->chunk;
    int32_t row = task % tiles->row_tiles * XM_ROW_TILE;
    int32_t panels_left = tiles->panels - panel, rows_left = tiles->rows - row;
    return (xm_tile){
        .first_row = row,
        .last_row = row + (rows_left < XM_ROW_TILE ? rows_left : XM_ROW_TILE),
        .first_panel = panel,
        .last_panel = panel + (panels_left < tiles->chunk ? panels_left : tiles->chunk),
    };
}

xm_pool *xm_pool_for(xm_pool *pool, size_t multiplications)
{
    return multiplications < SMALL_WORK ? NULL : pool;
}
