/*
 * trace_file.c - see trace_file.h.
 */
#include "trace_file.h"

#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FORMAT_VERSION = 1, HEADER_SUMS = 32, HEADER_FIXED = 48, BLOCK_POSITIONS = 4096 };

/* --- numbers -----------------------------------------------------------------------------------
 */

static void put(FILE *out, uint64_t value, int32_t bytes)
{
    for (int32_t i = 0; i < bytes; i++) {
        putc_unlocked((int)(value >> (8 * i) & 0xFF), out);
    }
}

static void pad(FILE *out, uint64_t written, uint64_t multiple)
{
    for (; written % multiple != 0; written++) {
        putc_unlocked(0, out);
    }
}

/* Half precision of a weight, which lies in [0, 1]; rounds to nearest, ties to even. A carry out of
 * the fraction lands in the exponent, where it belongs. */
static uint16_t half(float weight)
{
    if (weight < 0x1p-14F) {
        return (uint16_t)lrintf(weight * 0x1p24F); /* subnormal: multiples of 2^-24 */
    }
    int exponent;
    float fraction = frexpf(weight, &exponent); /* [1/2, 1) */
    return (uint16_t)(((exponent + 14) << 10) + (int)lrintf(fraction * 2048) - 1024);
}

/* --- binary ------------------------------------------------------------------------------------
 */

/* The sums are left zero until trace_finish. */
static void write_header(const trace_file *trace, const xmoe_model_info *info, int32_t begin_token)
{
    FILE *out = trace->file.stream;
    const uint64_t name = strlen(info->name);
    const uint64_t used = HEADER_FIXED + 4 * (uint64_t)trace->layer_count + name;
    fputs("XMTR", out);
    put(out, FORMAT_VERSION, 4);
    put(out, (used + 7) / 8 * 8, 4);
    put(out, (uint64_t)info->expert_count, 4);
    put(out, (uint64_t)trace->layer_count, 4);
    put(out, (uint64_t)trace->index_bytes, 4);
    put(out, (uint32_t)begin_token, 4);
    put(out, name, 4);
    put(out, 0, 8);
    put(out, 0, 8);
    for (int32_t i = 0; i < trace->layer_count; i++) {
        put(out, (uint64_t)trace->layers[i], 4);
    }
    fputs(info->name, out);
    pad(out, used, 8);
}

/* Positions whose routes begin at counts, experts and weights. */
static void write_block(const trace_file *trace, const int32_t *tokens, size_t positions,
                        const uint16_t *counts, size_t choices, const uint16_t *experts,
                        const float *weights)
{
    FILE *out = trace->file.stream;
    const size_t cells = positions * (size_t)trace->layer_count;
    put(out, positions, 4);
    put(out, choices, 4);
    for (size_t i = 0; i < positions; i++) {
        put(out, (uint32_t)tokens[i], 4);
    }
    for (size_t i = 0; i < choices; i++) {
        put(out, half(weights[i]), 2);
    }
    for (size_t i = 0; i < cells; i++) {
        put(out, counts[i], trace->index_bytes);
    }
    for (size_t i = 0; i < choices; i++) {
        put(out, experts[i], trace->index_bytes);
    }
    pad(out, 2 * choices + (cells + choices) * (uint64_t)trace->index_bytes, 4);
}

/* --- CSV ---------------------------------------------------------------------------------------
 */

static void write_rows(const trace_file *trace, const int32_t *tokens, size_t positions,
                       const uint16_t *counts, const uint16_t *experts, const float *weights)
{
    for (size_t p = 0; p < positions; p++) {
        unsigned long long position = trace->positions + p;
        for (int32_t m = 0; m < trace->layer_count; m++) {
            for (uint16_t left = *counts++; left > 0; left--) {
                fprintf(trace->file.stream, "%llu,%d,%d,%d,%.9g\n", position, tokens[p],
                        trace->layers[m], *experts++, (double)*weights++);
            }
        }
    }
}

/* --- the file ----------------------------------------------------------------------------------
 */

bool trace_open(trace_file *trace, const char *path, const xmoe_model *model, int32_t begin_token)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    const char *dot = strrchr(path, '.');
    *trace = (trace_file){.binary = dot != NULL && strcmp(dot, ".xmt") == 0,
                          .index_bytes = info->expert_count <= UINT8_MAX ? 1 : 2};
    for (int32_t layer = 0; layer < info->layer_count; layer++) {
        if (xmoe_model_layer_is_moe(model, layer)) {
            trace->layers[trace->layer_count++] = layer;
        }
    }
    if (!output_open(&trace->file, path)) {
        return false;
    }
    if (trace->binary) {
        write_header(trace, info, begin_token);
    } else {
        fputs("position,token,layer,expert,weight\n", trace->file.stream);
    }
    return output_good(&trace->file);
}

static size_t count_choices(const uint16_t *counts, size_t cells)
{
    size_t choices = 0;
    for (size_t i = 0; i < cells; i++) {
        choices += counts[i];
    }
    return choices;
}

bool trace_write(trace_file *trace, const int32_t *tokens, const xmoe_routed_experts *routed)
{
    const uint16_t *counts = routed->counts, *experts = routed->experts;
    const float *weights = routed->weights;
    const size_t total = (size_t)routed->position_count;
    for (size_t begin = 0; begin < total; begin += BLOCK_POSITIONS) {
        size_t positions = total - begin < BLOCK_POSITIONS ? total - begin : BLOCK_POSITIONS;
        size_t cells = positions * (size_t)trace->layer_count;
        size_t choices = count_choices(counts, cells);
        if (trace->binary) {
            write_block(trace, tokens + begin, positions, counts, choices, experts, weights);
        } else {
            write_rows(trace, tokens + begin, positions, counts, experts, weights);
        }
        counts += cells;
        experts += choices;
        weights += choices;
        trace->positions += positions;
        trace->choices += choices;
    }
    return output_good(&trace->file);
}

bool trace_finish(trace_file *trace)
{
    FILE *out = trace->file.stream;
    if (trace->binary) {
        if (fseek(out, HEADER_SUMS, SEEK_SET) != 0) {
            cli_fail("cannot write %s: %s", trace->file.path, strerror(errno));
            trace_abandon(trace);
            return false;
        }
        put(out, trace->positions, 8);
        put(out, trace->choices, 8);
    }
    return output_finish(&trace->file);
}

void trace_abandon(trace_file *trace)
{
    output_abandon(&trace->file);
}

xmoe_routed_experts *trace_copy_routes(const xmoe_routed_experts *routed, int32_t first)
{
    const size_t layers = (size_t)routed->moe_layers;
    const size_t skipped = (size_t)first * layers;
    const size_t cells = (size_t)routed->position_count * layers - skipped;
    const size_t skipped_choices = count_choices(routed->counts, skipped);
    const size_t choices = count_choices(routed->counts + skipped, cells);
    xmoe_routed_experts *copy = malloc(sizeof *copy + choices * (sizeof(float) + sizeof(uint16_t)) +
                                       cells * sizeof(uint16_t));
    if (copy == NULL) {
        return NULL;
    }
    float *weights = (float *)(void *)(copy + 1);
    uint16_t *experts = (uint16_t *)(void *)(weights + choices), *counts = experts + choices;
    for (size_t i = 0; i < choices; i++) {
        weights[i] = routed->weights[skipped_choices + i];
        experts[i] = routed->experts[skipped_choices + i];
    }
    for (size_t i = 0; i < cells; i++) {
        counts[i] = routed->counts[skipped + i];
    }
    *copy = (xmoe_routed_experts){.first_position = routed->first_position + first,
                                  .position_count = routed->position_count - first,
                                  .moe_layers = routed->moe_layers,
                                  .counts = counts,
                                  .experts = experts,
                                  .weights = weights};
    return copy;
}
