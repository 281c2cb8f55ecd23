/*
 * pack.c - packed matrices: panels of 16 output rows (layout: kernels.h), their making from GGUF
 * rows, single rows back to F32, and the loop that runs a kernel over panels.
 *
 * Packing runs once at load, split by panels over threads; the loop over panels is what a compute
 * thread runs. Shapes were checked by whoever bound the tensor: columns of block types are whole
 * blocks of 32.
 */
#include <string.h>

#include "kernels/kernels.h"

enum {
    BLOCK = 32,                              /* columns of a block of Q8_0 and Q4_0 */
    SCALES_BYTES = XM_PANEL * 2,             /* F16 scales of a packed block */
    Q8_BYTES = SCALES_BYTES + 32 * XM_PANEL, /* a packed block, with its scales */
    Q4_BYTES = SCALES_BYTES + 16 * XM_PANEL,
    Q8_SOURCE_BYTES = 34, /* one row's block in a GGUF file */
    Q4_SOURCE_BYTES = 18,
    MOST_SUMS = 1024, /* blocks of a row whose sums are kept for a run over panels: 4 KB of stack */
};

bool xm_type_takes_i16(xm_weight_type type)
{
    return type == XM_TYPE_Q8_0 || type == XM_TYPE_Q4_0;
}

size_t xm_panel_bytes(xm_weight_type type, size_t columns)
{
    switch (type) {
    case XM_TYPE_F32:
        return columns * XM_PANEL * 4;
    case XM_TYPE_F16:
    case XM_TYPE_BF16:
        return columns * XM_PANEL * 2;
    case XM_TYPE_Q8_0:
        return columns / BLOCK * Q8_BYTES;
    case XM_TYPE_Q4_0:
        return columns / BLOCK * Q4_BYTES;
    }
    return 0;
}

/* --- packing one row (lane) of a zeroed panel --- */

static void pack_elements(const uint8_t *source, size_t columns, size_t bytes, size_t lane,
                          uint8_t *panel)
{
    for (size_t c = 0; c < columns; c++)
        memcpy(panel + (c * XM_PANEL + lane) * bytes, source + c * bytes, bytes);
}

static void pack_q8_0(const uint8_t *source, size_t columns, size_t lane, uint8_t *panel)
{
    for (size_t b = 0; b < columns / BLOCK; b++, source += Q8_SOURCE_BYTES, panel += Q8_BYTES) {
        memcpy(panel + lane * 2, source, 2);
        for (size_t j = 0; j < 16; j++)
            memcpy(panel + SCALES_BYTES + (j * XM_PANEL + lane) * 2, source + 2 + j * 2, 2);
    }
}

/* A GGUF byte i holds columns i and i + 16; those of a packed byte are 16 apart too, so bytes move
 * whole. */
static void pack_q4_0(const uint8_t *source, size_t columns, size_t lane, uint8_t *panel)
{
    for (size_t b = 0; b < columns / BLOCK; b++, source += Q4_SOURCE_BYTES, panel += Q4_BYTES) {
        memcpy(panel + lane * 2, source, 2);
        for (size_t j = 0; j < 8; j++)
            memcpy(panel + SCALES_BYTES + (j * XM_PANEL + lane) * 2, source + 2 + j * 2, 2);
    }
}

static void pack_row(xm_weight_type type, const uint8_t *source, size_t columns, size_t lane,
                     uint8_t *panel)
{
    switch (type) {
    case XM_TYPE_F32:
        pack_elements(source, columns, 4, lane, panel);
        break;
    case XM_TYPE_F16:
    case XM_TYPE_BF16:
        pack_elements(source, columns, 2, lane, panel);
        break;
    case XM_TYPE_Q8_0:
        pack_q8_0(source, columns, lane, panel);
        break;
    case XM_TYPE_Q4_0:
        pack_q4_0(source, columns, lane, panel);
        break;
    }
}

static size_t source_row_bytes(xm_weight_type type, size_t columns)
{
    const xm_weight_traits *traits = xm_weight_traits_of((uint32_t)type);

    return columns / traits->block_elements * traits->block_bytes;
}

/* A panel is at most a few hundred KB and stays in the cache while its 16 rows are spread in it. */
void xm_pack_panels(xm_weight_type type, const void *source, size_t rows, size_t columns,
                    int32_t first, int32_t last, uint8_t *out)
{
    size_t panel_bytes = xm_panel_bytes(type, columns);
    size_t row_bytes = source_row_bytes(type, columns);

    for (size_t p = (size_t)first; p < (size_t)last; p++) {
        uint8_t *panel = out + p * panel_bytes;
        size_t row = p * XM_PANEL;

        if (row + XM_PANEL > rows)
            memset(panel, 0, panel_bytes);
        for (size_t lane = 0; lane < XM_PANEL && row + lane < rows; lane++)
            pack_row(type, (const uint8_t *)source + (row + lane) * row_bytes, columns, lane,
                     panel);
    }
}

/* --- one row back to F32 --- */

/* The packed pairs (or elements) of one lane, `bytes` wide and XM_PANEL apart, side by side again.
 */
static void gather(const uint8_t *panel, size_t lane, size_t count, size_t bytes, uint8_t *row)
{
    for (size_t i = 0; i < count; i++)
        memcpy(row + i * bytes, panel + (i * XM_PANEL + lane) * bytes, bytes);
}

static void unpack_block(xm_weight_type type, const uint8_t *packed, size_t lane, float *values)
{
    uint8_t block[Q8_SOURCE_BYTES];

    memcpy(block, packed + lane * 2, 2);
    gather(packed + SCALES_BYTES, lane, type == XM_TYPE_Q8_0 ? 16 : 8, 2, block + 2);
    xm_weight_traits_of((uint32_t)type)->to_f32(block, values, BLOCK);
}

void xm_unpack_row(const xm_matrix *matrix, int32_t row, float *values)
{
    size_t columns = (size_t)matrix->columns;
    size_t lane = (size_t)row % XM_PANEL;
    const uint8_t *panel = matrix->data + (size_t)row / XM_PANEL * matrix->panel_bytes;

    switch (matrix->type) {
    case XM_TYPE_F32:
        gather(panel, lane, columns, 4, (uint8_t *)values);
        break;
    case XM_TYPE_F16:
        for (size_t c = 0; c < columns; c++)
            values[c] = xm_f16_to_f32(((const uint16_t *)(const void *)panel)[c * XM_PANEL + lane]);
        break;
    case XM_TYPE_BF16:
        for (size_t c = 0; c < columns; c++)
            values[c] =
                xm_bf16_to_f32(((const uint16_t *)(const void *)panel)[c * XM_PANEL + lane]);
        break;
    case XM_TYPE_Q8_0:
    case XM_TYPE_Q4_0:
        for (size_t b = 0; b < columns / BLOCK; b++)
            unpack_block(matrix->type, panel + b * xm_panel_bytes(matrix->type, BLOCK), lane,
                         values + b * BLOCK);
        break;
    }
}

/* --- running panels --- */

typedef void (*panel_fn)(const xm_panel_job *job);

static panel_fn panel_kernel(const xm_kernels *kernels, xm_weight_type type)
{
    switch (type) {
    case XM_TYPE_F32:
        return kernels->panel_f32;
    case XM_TYPE_F16:
        return kernels->panel_f16;
    case XM_TYPE_BF16:
        return kernels->panel_bf16;
    case XM_TYPE_Q8_0:
        return kernels->panel_q8_0;
    case XM_TYPE_Q4_0:
        return kernels->panel_q4_0;
    }
    return NULL;
}

void xm_matrix_panels(const xm_kernels *kernels, const xm_matrix *matrix, const float *bias,
                      const xm_activations *x, const int32_t *rows, int32_t row_count,
                      int32_t first, int32_t last, float *out, size_t out_stride)
{
    panel_fn run = panel_kernel(kernels, matrix->type);
    size_t columns = (size_t)matrix->columns;
    int32_t sums[MOST_SUMS];
    bool sum = matrix->type == XM_TYPE_Q4_0 && row_count == 1 && last - first > 1 &&
               columns / BLOCK <= MOST_SUMS;

    if (sum)
        kernels->block_sums(x->i16 + (size_t)rows[0] * x->stride, columns, sums);

    for (int32_t p = first; p < last; p++) {
        int32_t output = p * XM_PANEL;
        int32_t left = matrix->rows - output;
        xm_panel_job job = {
            .panel = matrix->data + (size_t)p * matrix->panel_bytes,
            .columns = columns,
            .x = x,
            .rows = rows,
            .row_count = row_count,
            .bias = bias ? bias + output : NULL,
            .out = out + output,
            .out_stride = out_stride,
            .lanes = left < XM_PANEL ? left : XM_PANEL,
            .block_sums = sum ? sums : NULL,
        };
        run(&job);
    }
}
