/*
 * trace_file.h - writes which experts every position took: a trace, as CSV or, where the file's
 * name ends in .xmt, in the compact binary form below. tools/read_trace.py reads both.
 *
 * CSV: the header line position,token,layer,expert,weight and one line per chosen expert, in order
 * of position, layer and rank. Positions count from 0 over all that is traced, without gaps.
 *
 * .xmt, version 1. Everything is little endian and nothing stands between the fields.
 *
 *     header                                        block of n positions and c choices
 *      0  u8[4]  "XMTR"                             u32     n, at most 4096
 *      4  u32    version: 1                         u32     c
 *      8  u32    bytes of the header                i32[n]  tokens
 *     12  u32    experts of a layer                 f16[c]  weights
 *     16  u32    M, the number of MoE layers        uint[n][M]  counts: experts taken
 *     20  u32    bytes of a uint: 1 or 2            uint[c] experts
 *     24  i32    token that begins a document, or   zeros to a multiple of 4 bytes
 *                -1
 *     28  u32    bytes of the model's name
 *     32  u64    positions in all blocks
 *     40  u64    choices in all blocks
 *     48  u32[M] numbers of the MoE layers, ascending
 *         u8[]   the model's name, UTF-8, then zeros to a multiple of 8 bytes
 *
 * Blocks follow the header until all positions are there; the file ends with the last one. Of a
 * position, the layers follow each other, of a layer its experts in order of rank, so weights and
 * experts are cut into layers by counts. A uint has one byte if a layer has at most 255 experts.
 * f16 is IEEE half precision: 11 significant bits. With numpy, of a block at offset `at`:
 *
 *     n, c = numpy.frombuffer(data, "<u4", 2, at)
 *     tokens = numpy.frombuffer(data, "<i4", n, at + 8)
 *     weights = numpy.frombuffer(data, "<f2", c, at + 8 + 4 * n)
 *     counts = numpy.frombuffer(data, "<u1", n * M, at + 8 + 4 * n + 2 * c).reshape(n, M)
 *     experts = numpy.frombuffer(data, "<u1", c, at + 8 + 4 * n + 2 * c + n * M)
 */
#ifndef XMOE_TOOLS_TRACE_FILE_H
#define XMOE_TOOLS_TRACE_FILE_H

#include "output_file.h"

#include "xmoe.h"

typedef struct {
    output_file file;
    bool binary;
    int32_t index_bytes; /* of a uint, as above */
    int32_t layer_count;
    int32_t layers[XMOE_MAX_LAYERS];
    uint64_t positions, choices; /* written so far */
} trace_file;                    /* start with {0} */

/* Starts the trace of a model's choices; begin_token: see the header. Functions that return false
 * have printed a message. */
bool trace_open(trace_file *trace, const char *path, const xmoe_model *model, int32_t begin_token);
/* Appends the positions of routed, tokens[i] being that of the i-th; none may be unknown. */
bool trace_write(trace_file *trace, const int32_t *tokens, const xmoe_routed_experts *routed);
/* The file takes its name. */
bool trace_finish(trace_file *trace);
/* Removes a trace that was not finished; fine in any state. */
void trace_abandon(trace_file *trace);

/* A copy, in one piece of memory for free(), of the positions from index `first` (at most
 * position_count) on; NULL where memory ran out. None may be unknown. */
xmoe_routed_experts *trace_copy_routes(const xmoe_routed_experts *routed, int32_t first);

#endif
