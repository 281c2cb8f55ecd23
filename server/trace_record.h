/*
 * trace_record.h - one position of the trace: which experts it took, with which weights, in every
 * MoE layer. As bytes, made by the scheduler's thread layer by layer, and as lines of text.
 *
 * The bytes are of this process alone: a head, the request's id, then of each MoE layer in order a
 * count (uint16_t), so many experts (uint16_t) and so many weights (float), unaligned.
 */
#ifndef XM_SERVER_TRACE_RECORD_H
#define XM_SERVER_TRACE_RECORD_H

#include "json_write.h"
#include "xmoe.h"

#define XM_TRACE_ID_LENGTH 80 /* more than the id of any answer */

typedef enum { XM_TRACE_CSV, XM_TRACE_JSONL } xm_trace_format;

/* "csv", "jsonl"; false for another word. */
bool xm_trace_format_parse(const char *name, xm_trace_format *format);
/* First line of such a text; "" where there is none. */
const char *xm_trace_format_head(xm_trace_format format);

/* Most bytes of a record. */
size_t xm_trace_record_limit(int32_t moe_layers, int32_t experts);
/* Both append at `to` and return how many bytes. id is cut to its limit; choice is the number to be
 * shown. */
size_t xm_trace_record_begin(unsigned char *to, const char *id, int32_t choice,
                             const xmoe_route *route);
size_t xm_trace_record_layer(unsigned char *to, const xmoe_route *route);

/* Whether it is of that request; for xm_trace_ring_last. id: const char *. */
bool xm_trace_record_is_of(const void *bytes, size_t length, const void *id);
/* Its lines, in order of layer and rank; layers: the numbers of the MoE layers. */
void xm_trace_record_write(const void *bytes, const int32_t *layers, int32_t layer_count,
                           xm_trace_format format, xm_text *out);

#endif
