/*
 * pack.c - packed matrices: panels of 16 output rows (layout: kernels.h), their making from GGUF
 * rows, single rows back to F32, and the loop that runs a kernel over panels.
 *
 * Packing runs once at load, split by panels over threads; the loop over panels is what a compute
 * thread runs. Shapes were checked by whoever bound the tensor: columns of block types are whole
 * blocks.
 */
#include <string.h>

#include "kernels/layout.h"

enum { PANEL_MULTIPLE = 32 }; /* bytes of a panel */

/* Bytes of an element of a plain type. */
static size_t element_bytes(xm_weight_type type)
{
    return xm_weight_traits_of((uint32_t)type)->block_bytes;
}

bool xm_type_takes_i16(xm_weight_type type)
{
    return xm_weight_coding_of(type).bits != 0;
}

size_t xm_panel_bytes(xm_weight_type type, size_t columns)
{
    xm_weight_coding coding = xm_weight_coding_of(type);
    size_t bytes;

    if (coding.bits == 0)
        return columns * XM_PANEL * element_bytes(type);
    bytes = columns / coding.elements * xm_panel_layout_of(coding).block_bytes;
    return (bytes + PANEL_MULTIPLE - 1) / PANEL_MULTIPLE * PANEL_MULTIPLE;
}

/* --- packing one row (lane) of a panel --- */

static void pack_elements(const uint8_t *source, size_t columns, size_t bytes, size_t lane,
                          uint8_t *panel)
{
    for (size_t c = 0; c < columns; c++)
        memcpy(panel + (c * XM_PANEL + lane) * bytes, source + c * bytes, bytes);
}

static void pack_int8(const uint8_t codes[XM_PART], size_t lane, uint8_t *out)
{
    for (size_t j = 0; j < 16; j++)
        memcpy(out + (j * XM_PANEL + lane) * 2, codes + 2 * j, 2);
}

static void pack_nibbles(const uint8_t codes[XM_PART], size_t lane, uint8_t *out)
{
    for (size_t j = 0; j < 8; j++)
        for (size_t s = 0; s < 2; s++)
            out[(j * XM_PANEL + lane) * 2 + s] =
                (uint8_t)((codes[2 * j + s] & 15) | codes[16 + 2 * j + s] << 4);
}

/* width: bits above the nibble, 1 or 2. */
static void pack_high(const uint8_t codes[XM_PART], size_t width, size_t lane, uint8_t *out)
{
    size_t fields = 8 / width; /* of a byte */

    for (size_t plane = 0; plane < 2 * width; plane++)
        for (size_t s = 0; s < 2; s++) {
            const uint8_t *first = codes + plane / width * 16 + plane % width * fields * 2 + s;
            unsigned byte = 0;

            for (size_t f = 0; f < fields; f++)
                byte |= (unsigned)(first[2 * f] >> 4) << f * width;
            out[(plane * XM_PANEL + lane) * 2 + s] = (uint8_t)byte;
        }
}

static void pack_block(const xm_weight_coding *coding, const xm_panel_layout *at,
                       const xm_weight_block *block, size_t lane, uint8_t *out)
{
    if (coding->power_of_two)
        out[lane] = (uint8_t)block->scale;
    else
        memcpy(out + lane * 2, &block->scale, 2);
    if (coding->minimum)
        memcpy(out + at->head_minima + lane * 2, &block->minimum, 2);

    for (size_t p = 0; p < at->parts; p++) {
        uint8_t *part = out + at->head_bytes + p * at->part_bytes;
        const uint8_t *codes = block->codes + p * XM_PART;

        for (size_t g = 0; g < at->groups && coding->group_scales; g++) {
            part[g * XM_PANEL + lane] = (uint8_t)block->scales[p * at->groups + g];
            if (coding->minimum)
                part[at->minima + g * XM_PANEL + lane] = block->minima[p * at->groups + g];
        }
        if (coding->bits == 8)
            pack_int8(codes, lane, part + at->codes);
        else
            pack_nibbles(codes, lane, part + at->codes);
        if (coding->bits == 5 || coding->bits == 6)
            pack_high(codes, coding->bits - 4, lane, part + at->high);
    }
}

static void pack_row(const xm_weight_traits *traits, const uint8_t *source, size_t columns,
                     size_t lane, uint8_t *panel)
{
    const xm_weight_coding coding = xm_weight_coding_of(traits->type);

    if (coding.bits == 0) {
        pack_elements(source, columns, traits->block_bytes, lane, panel);
        return;
    }
    const xm_panel_layout at = xm_panel_layout_of(coding);
    for (size_t b = 0; b < columns / at.columns; b++) {
        xm_weight_block block;

        traits->split(source + b * traits->block_bytes, &block);
        pack_block(&coding, &at, &block, lane, panel + b * at.block_bytes);
    }
}

/* A panel is at most a few hundred KB and stays in the cache while its 16 rows are spread in it. */
void xm_pack_panels(xm_weight_type type, const void *source, size_t rows, size_t columns,
                    int32_t first, int32_t last, uint8_t *out)
{
    const xm_weight_traits *traits = xm_weight_traits_of((uint32_t)type);
    size_t panel_bytes = xm_panel_bytes(type, columns);
    size_t row_bytes = columns / traits->block_elements * traits->block_bytes;

    for (size_t p = (size_t)first; p < (size_t)last; p++) {
        uint8_t *panel = out + p * panel_bytes;
        size_t row = p * XM_PANEL;

        if (row + XM_PANEL > rows)
            memset(panel, 0, panel_bytes);
        for (size_t lane = 0; lane < XM_PANEL && row + lane < rows; lane++)
            pack_row(traits, (const uint8_t *)source + (row + lane) * row_bytes, columns, lane,
                     panel);
    }
}

/* --- one row back to F32 --- */

static void unpack_codes(const xm_weight_coding *coding, const xm_panel_layout *at,
                         const uint8_t *part, size_t lane, uint8_t codes[XM_PART])
{
    size_t width = coding->bits == 5 || coding->bits == 6 ? coding->bits - 4u : 0;

    for (size_t c = 0; c < XM_PART; c++) {
        size_t half = c / 16, pair = c % 16 / 2, s = c % 2;
        const uint8_t *here = part + at->codes + lane * 2 + s;

        if (coding->bits == 8) {
            codes[c] = here[c / 2 * XM_PANEL * 2];
            continue;
        }
        codes[c] = here[pair * XM_PANEL * 2] >> half * 4 & 15;
        if (width != 0) {
            size_t plane = half * width + pair / (8 / width), field = pair % (8 / width);
            unsigned byte = part[at->high + (plane * XM_PANEL + lane) * 2 + s];

            codes[c] |= (uint8_t)((byte >> field * width & ((1u << width) - 1)) << 4);
        }
    }
}

static void unpack_block(const xm_weight_coding *coding, const xm_panel_layout *at,
                         const uint8_t *packed, size_t lane, xm_weight_block *block)
{
    *block = (xm_weight_block){0};
    if (coding->power_of_two)
        block->scale = packed[lane];
    else
        memcpy(&block->scale, packed + lane * 2, 2);
    if (coding->minimum)
        memcpy(&block->minimum, packed + at->head_minima + lane * 2, 2);

    for (size_t p = 0; p < at->parts; p++) {
        const uint8_t *part = packed + at->head_bytes + p * at->part_bytes;

        for (size_t g = 0; g < at->groups && coding->group_scales; g++) {
            block->scales[p * at->groups + g] = (int8_t)part[g * XM_PANEL + lane];
            if (coding->minimum)
                block->minima[p * at->groups + g] = part[at->minima + g * XM_PANEL + lane];
        }
        unpack_codes(coding, at, part, lane, block->codes + p * XM_PART);
    }
}

/* The elements of one lane, `bytes` wide and XM_PANEL apart, side by side again. */
static void gather(const uint8_t *panel, size_t lane, size_t count, size_t bytes, uint8_t *row)
{
    for (size_t i = 0; i < count; i++)
        memcpy(row + i * bytes, panel + (i * XM_PANEL + lane) * bytes, bytes);
}

void xm_unpack_row(const xm_matrix *matrix, int32_t row, float *values)
{
    const xm_weight_coding coding = xm_weight_coding_of(matrix->type);
    size_t columns = (size_t)matrix->columns;
    size_t lane = (size_t)row % XM_PANEL;
    const uint8_t *panel = matrix->data + (size_t)row / XM_PANEL * matrix->panel_bytes;

    if (coding.bits == 0) {
        const xm_weight_traits *traits = xm_weight_traits_of((uint32_t)matrix->type);
        uint8_t elements[1024];
        size_t most = sizeof elements / traits->block_bytes;

        for (size_t c = 0; c < columns; c += most) {
            size_t count = columns - c < most ? columns - c : most;

            gather(panel + c * XM_PANEL * traits->block_bytes, lane, count, traits->block_bytes,
                   elements);
            xm_weights_to_f32(traits, elements, values + c, count);
        }
        return;
    }
    const xm_panel_layout at = xm_panel_layout_of(coding);
    for (size_t b = 0; b < columns / at.columns; b++) {
        xm_weight_block block;

        unpack_block(&coding, &at, panel + b * at.block_bytes, lane, &block);
        xm_weight_block_to_f32(&coding, &block, values + b * at.columns);
    }
}

/* --- running panels --- */

void xm_matrix_panels(const xm_kernels *kernels, const xm_matrix *matrix, const float *bias,
                      const xm_activations *x, const int32_t *rows, int32_t row_count,
                      int32_t first, int32_t last, float *out, size_t out_stride)
{
    xm_panel_fn run = kernels->panels[matrix->type];

    for (int32_t p = first; p < last; p++) {
        int32_t output = p * XM_PANEL;
        int32_t left = matrix->rows - output;
        xm_panel_job job = {
            .panel = matrix->data + (size_t)p * matrix->panel_bytes,
            .columns = (size_t)matrix->columns,
            .x = x,
            .rows = rows,
            .row_count = row_count,
            .bias = bias ? bias + output : NULL,
            .out = out + output,
            .out_stride = out_stride,
            .lanes = left < XM_PANEL ? left : XM_PANEL,
        };
        run(&job);
    }
}
