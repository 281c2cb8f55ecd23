/*
 * expert_trace.c - see expert_trace.h.
 */
#include "expert_trace.h"

#include <stdlib.h>
#include <string.h>

#include "generation.h"

#define PIECE_BYTES 65536 /* of a reader: what one hold of the ring's mutex copies */

struct xm_expert_trace {
    xm_trace_ring *ring;
    int32_t layers[XMOE_MAX_LAYERS]; /* numbers of the MoE layers */
    int32_t layer_count;
    size_t record_limit;
    /* The scheduler's: the positions of the step under way. */
    unsigned char *places;    /* [place_count][record_limit] */
    xm_trace_record *records; /* [place_count]: what each place holds so far */
    size_t place_count;
};

xm_expert_trace *xm_expert_trace_create(const xmoe_model *model, size_t ring_bytes,
                                        size_t step_tokens)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    xm_expert_trace *trace = calloc(1, sizeof *trace);
    if (!trace)
        return NULL;
    for (int32_t layer = 0; layer < info->layer_count; layer++)
        if (xmoe_model_layer_is_moe(model, layer))
            trace->layers[trace->layer_count++] = layer;
    trace->record_limit = xm_trace_record_limit(trace->layer_count, info->expert_count);
    trace->place_count = step_tokens;
    trace->places = calloc(step_tokens, trace->record_limit); /* what is never used costs nothing */
    trace->records = calloc(step_tokens, sizeof *trace->records);
    trace->ring = xm_trace_ring_create(ring_bytes);
    if (trace->places && trace->records && trace->ring)
        return trace;
    xm_expert_trace_free(trace);
    return NULL;
}

void xm_expert_trace_free(xm_expert_trace *trace)
{
    if (!trace)
        return;
    xm_trace_ring_free(trace->ring);
    free(trace->places);
    free(trace->records);
    free(trace);
}

xm_trace_ring *xm_expert_trace_ring(xm_expert_trace *trace)
{
    return trace->ring;
}

static void begin_record(xm_expert_trace *trace, size_t row, const xmoe_route *route)
{
    int32_t number = 0;
    const char *id = xm_generation_of_route(route->context, route->choice, &number);
    unsigned char *place = trace->places + row * trace->record_limit;
    trace->records[row] = (xm_trace_record){
        .bytes = place, .length = (uint32_t)xm_trace_record_begin(place, id, number, route)};
}

/* Rows of a step keep their places from layer to layer, and there are never more than step_tokens.
 */
void xm_expert_trace_take(void *context, int32_t layer, const xmoe_route *routes, int32_t count)
{
    xm_expert_trace *trace = context;
    size_t rows = (size_t)count < trace->place_count ? (size_t)count : trace->place_count;
    for (size_t row = 0; row < rows; row++) {
        if (layer == trace->layers[0])
            begin_record(trace, row, &routes[row]);
        xm_trace_record *record = &trace->records[row];
        unsigned char *place = trace->places + row * trace->record_limit;
        record->length += (uint32_t)xm_trace_record_layer(place + record->length, &routes[row]);
        record->rows += (uint32_t)routes[row].count;
    }
    if (layer == trace->layers[trace->layer_count - 1])
        xm_trace_ring_append(trace->ring, trace->records, rows);
}

bool xm_trace_reader_open(xm_expert_trace *trace, xm_trace_reader *reader)
{
    size_t longest = sizeof(uint32_t) + trace->record_limit;
    reader->trace = trace;
    reader->capacity = longest > PIECE_BYTES ? longest : PIECE_BYTES;
    reader->piece = malloc(reader->capacity);
    reader->cursor = xm_trace_ring_oldest(trace->ring);
    return reader->piece != NULL;
}

void xm_trace_reader_close(xm_trace_reader *reader)
{
    free(reader->piece);
    reader->piece = NULL;
}

bool xm_trace_reader_next(xm_trace_reader *reader, uint64_t end, const char *id,
                          xm_trace_format format, xm_text *out, uint64_t *rows)
{
    const xm_expert_trace *trace = reader->trace;
    uint64_t row = reader->cursor.row, lost = reader->cursor.lost;
    size_t length =
        xm_trace_ring_read(trace->ring, &reader->cursor, end, reader->piece, reader->capacity);
    for (size_t at = 0; at < length;) {
        uint32_t size;
        memcpy(&size, reader->piece + at, sizeof size);
        at += sizeof size;
        if (!id || xm_trace_record_is_of(reader->piece + at, size, id))
            xm_trace_record_write(reader->piece + at, trace->layers, trace->layer_count, format,
                                  out);
        at += size;
    }
    if (rows)
        *rows = reader->cursor.row - row - (reader->cursor.lost - lost);
    return length > 0;
}
