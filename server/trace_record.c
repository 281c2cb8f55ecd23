/*
 * trace_record.c - see trace_record.h.
 *
 * Weights are written with nine digits, which any float reads back from; the fewest that do would
 * be found by trial, at a multiple of the time.
 */
#include "trace_record.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "usage_json.h"

typedef struct {
    int32_t choice, position;
    uint16_t id_length;
    uint8_t phase; /* xmoe_phase */
} record_head;

static const char *const format_names[] = {"csv", "jsonl"};

bool xm_trace_format_parse(const char *name, xm_trace_format *format)
{
    for (int i = 0; i < 2; i++) {
        if (strcmp(name, format_names[i]) == 0) {
            *format = (xm_trace_format)i;
            return true;
        }
    }
    return false;
}

const char *xm_trace_format_head(xm_trace_format format)
{
    return format == XM_TRACE_CSV ? "request,phase,position,layer,rank,expert,weight\n" : "";
}

size_t xm_trace_record_limit(int32_t moe_layers, int32_t experts)
{
    size_t layer = sizeof(uint16_t) + (size_t)experts * (sizeof(uint16_t) + sizeof(float));
    return sizeof(record_head) + XM_TRACE_ID_LENGTH + (size_t)moe_layers * layer;
}

size_t xm_trace_record_begin(unsigned char *to, const char *id, int32_t choice,
                             const xmoe_route *route)
{
    size_t id_length = strnlen(id, XM_TRACE_ID_LENGTH);
    record_head head;
    memset(&head, 0, sizeof head); /* its padding too */
    head.choice = choice;
    head.position = route->position;
    head.id_length = (uint16_t)id_length;
    head.phase = (uint8_t)route->phase;
    memcpy(to, &head, sizeof head);
    memcpy(to + sizeof head, id, id_length);
    return sizeof head + id_length;
}

size_t xm_trace_record_layer(unsigned char *to, const xmoe_route *route)
{
    uint16_t count = (uint16_t)route->count;
    size_t experts = count * sizeof *route->experts, weights = count * sizeof *route->weights;
    memcpy(to, &count, sizeof count);
    memcpy(to + sizeof count, route->experts, experts);
    memcpy(to + sizeof count + experts, route->weights, weights);
    return sizeof count + experts + weights;
}

bool xm_trace_record_is_of(const void *bytes, size_t length, const void *id)
{
    record_head head;
    size_t wanted = strlen(id);
    memcpy(&head, bytes, sizeof head);
    return head.id_length == wanted && length >= sizeof head + wanted &&
           memcmp((const unsigned char *)bytes + sizeof head, id, wanted) == 0;
}

/* One layer, taken out of the bytes. */
typedef struct {
    int32_t number;
    uint16_t count;
    const unsigned char *experts, *weights; /* unaligned */
} record_layer;

static uint16_t expert_of(const record_layer *layer, uint16_t rank)
{
    uint16_t expert;
    memcpy(&expert, layer->experts + rank * sizeof expert, sizeof expert);
    return expert;
}

static double weight_of(const record_layer *layer, uint16_t rank)
{
    float weight;
    memcpy(&weight, layer->weights + rank * sizeof weight, sizeof weight);
    return (double)weight;
}

/* start: what the rows of this position have in common, "request,phase,position". */
static void write_csv(const record_layer *layer, const char *start, xm_text *out)
{
    for (uint16_t rank = 0; rank < layer->count; rank++)
        xm_text_format(out, "%s,%" PRId32 ",%u,%u,%.9g\n", start, layer->number, rank + 1u,
                       expert_of(layer, rank), weight_of(layer, rank));
}

/* start: the members that the lines of this position have in common, with an open brace. */
static void write_jsonl(const record_layer *layer, const char *start, xm_text *out)
{
    xm_text_format(out, "%s,\"layer\":%" PRId32 ",\"experts\":[", start, layer->number);
    for (uint16_t rank = 0; rank < layer->count; rank++)
        xm_text_format(out, "%s%u", rank ? "," : "", expert_of(layer, rank));
    xm_text_puts(out, "],\"weights\":[");
    for (uint16_t rank = 0; rank < layer->count; rank++)
        xm_text_format(out, "%s%.9g", rank ? "," : "", weight_of(layer, rank));
    xm_text_puts(out, "]}\n");
}

void xm_trace_record_write(const void *bytes, const int32_t *layers, int32_t layer_count,
                           xm_trace_format format, xm_text *out)
{
    record_head head;
    memcpy(&head, bytes, sizeof head);
    const unsigned char *at = (const unsigned char *)bytes + sizeof head;
    const char *id = (const char *)at, *phase = xm_usage_phase_name((xmoe_phase)head.phase);
    int length = head.id_length;
    char start[XM_TRACE_ID_LENGTH + 128]; /* ids need no escapes: see the exchange's */
    if (format == XM_TRACE_CSV)
        snprintf(start, sizeof start, "%.*s,%s,%" PRId32, length, id, phase, head.position);
    else
        snprintf(start, sizeof start,
                 "{\"request\":\"%.*s\",\"choice\":%" PRId32
                 ",\"phase\":\"%s\",\"position\":%" PRId32,
                 length, id, head.choice, phase, head.position);
    at += head.id_length;
    for (int32_t i = 0; i < layer_count; i++) {
        record_layer layer = {.number = layers[i]};
        memcpy(&layer.count, at, sizeof layer.count);
        layer.experts = at + sizeof layer.count;
        layer.weights = layer.experts + layer.count * sizeof(uint16_t);
        at = layer.weights + layer.count * sizeof(float);
        if (format == XM_TRACE_CSV)
            write_csv(&layer, start, out);
        else
            write_jsonl(&layer, start, out);
    }
}
