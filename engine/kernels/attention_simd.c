/*
 * attention_simd.c - attention of heads that share keys and values, over KV blocks: scores,
 * softmax, weighted values.
 *
 * A tile of queries shares the loads of keys and values; each query's arithmetic is the same as
 * alone: its scores are float dots over key blocks (16 tokens side by side, float_dots.h), its
 * output columns are sums acc = fma(p_t, v_t[d], acc) over tokens in order from +0, 16 columns side
 * by side. A key block is read whole; scores of tokens beyond a query's own are left out of all
 * that follows, and no value of such a token is read for it. No state; any thread.
 */
#include "kernels/float_dots.h"
#include "kernels/simd.h"

/* Tokens up to the query's own. */
XM_INLINE size_t tokens_of(const xm_attention_job *job, int query)
{
    return (size_t)(job->first_count + query / job->heads);
}

/* The first of them that it sees. */
XM_INLINE size_t first_of(const xm_attention_job *job, int query)
{
    size_t tokens = tokens_of(job, query), window = (size_t)job->window;

    return window > 0 && tokens > window ? tokens - window : 0;
}

/* --- scores --- */

XM_INLINE void score_tile(const xm_attention_job *job, xm_weight_type type, int queries, int first)
{
    const float *query[XM_MOST_TILE];
    size_t tokens = tokens_of(job, first + queries - 1);

#pragma GCC unroll 8
    for (int i = 0; i < queries; i++) {
        int position = (first + i) / job->heads, head = (first + i) % job->heads;

        query[i] =
            job->query + (size_t)position * job->query_stride + (size_t)(head * job->key_length);
    }
    for (size_t t = first_of(job, first) & ~(size_t)15; t < tokens; t += XM_KV_TOKENS) {
        xm_lanes dot[XM_MOST_TILE];
        float *scores = job->scores + (size_t)first * job->scores_stride + t;

        xm_float_dots(type, queries, false, job->keys[t / XM_KV_TOKENS], (size_t)job->key_length,
                      query, dot);
#pragma GCC unroll 8
        for (int i = 0; i < queries; i++)
            xm_lanes_store(scores + (size_t)i * job->scores_stride,
                           xm_lanes_mul(xm_lanes_set(job->scale), dot[i]));
    }
}

/* Scores of one query to weights. */
XM_INLINE void soften(const xm_attention_job *job, int query)
{
    float *scores = job->scores + (size_t)query * job->scores_stride;
    size_t first = first_of(job, query), count = tokens_of(job, query) - first;

    if (job->sinks) {
        scores[first + count] = job->sinks[query % job->heads];
        count++;
    }
    XM_VARIANT(xm_softmax)(scores + first, count);
}

/* --- values --- */

enum {
    TILE_QUERIES = 4, /* queries at once over values */
    MOST_CHUNKS = 4,  /* chunks (16 columns of values) at once for a query alone */
};

/* The 16 columns of values from element `index` on, or the first `width` of them. */
XM_INLINE xm_lanes load_values(xm_weight_type type, const void *values, size_t index, size_t width)
{
    if (width == 16)
        return xm_lanes_hold(xm_weights_load(type, values, index));
    if (type == XM_TYPE_F16)
        return xm_lanes_load_f16_first((const uint16_t *)values + index, width);
    return xm_lanes_load_first((const float *)values + index, width, xm_lanes_set(0.0f));
}

/* acc[i][c] += p_i[t] * v_t over tokens [from, to), for `queries` queries and `chunks` chunks of
 * columns from `column` on; p: scores of the first query. */
XM_INLINE void add_values(const xm_attention_job *job, xm_weight_type type, int queries, int chunks,
                          size_t column, size_t width, const float *p, size_t from, size_t to,
                          xm_lanes acc[][MOST_CHUNKS])
{
    size_t length = (size_t)job->value_length;

    for (size_t t = from; t < to; t++) {
        const void *block = job->values[t / XM_KV_TOKENS];
        size_t index = t % XM_KV_TOKENS * length + column;
        xm_lanes weight[TILE_QUERIES];

#pragma GCC unroll 4
        for (int i = 0; i < queries; i++)
            weight[i] = xm_lanes_set(p[(size_t)i * job->scores_stride + t]);
#pragma GCC unroll 4
        for (int c = 0; c < chunks; c++) {
            xm_lanes v = load_values(type, block, index + (size_t)c * 16, width);
#pragma GCC unroll 4
            for (int i = 0; i < queries; i++)
                acc[i][c] = xm_lanes_fma(weight[i], v, acc[i][c]);
        }
    }
}

/* Columns [column, column + 16 * chunks) of the outputs of `queries` queries: each one's own first
 * tokens (those that a later query's window has left), then the tokens that all of them see
 * together, then each query's own last ones. width: columns of a chunk, a constant 16 except at the
 * end of a row, in a chunk alone. */
XM_INLINE void value_tile(const xm_attention_job *job, xm_weight_type type, int queries, int chunks,
                          int first, size_t column, size_t width)
{
    const float *p = job->scores + (size_t)first * job->scores_stride;
    size_t from = first_of(job, first + queries - 1), to = tokens_of(job, first);
    xm_lanes acc[TILE_QUERIES][MOST_CHUNKS];

    if (from > to)
        from = to;
#pragma GCC unroll 4
    for (int i = 0; i < queries; i++)
#pragma GCC unroll 4
        for (int c = 0; c < chunks; c++)
            acc[i][c] = xm_lanes_set(0.0f);
#pragma GCC unroll 4
    for (int i = 0; i < queries; i++)
        add_values(job, type, 1, chunks, column, width, p + (size_t)i * job->scores_stride,
                   first_of(job, first + i), from, acc + i);
    add_values(job, type, queries, chunks, column, width, p, from, to, acc);
#pragma GCC unroll 4
    for (int i = 0; i < queries; i++) {
        int position = (first + i) / job->heads, head = (first + i) % job->heads;
        float *out = job->out + (size_t)position * job->out_stride +
                     (size_t)(head * job->value_length) + column;
        size_t own = first_of(job, first + i);

        add_values(job, type, 1, chunks, column, width, p + (size_t)i * job->scores_stride,
                   own > to ? own : to, tokens_of(job, first + i), acc + i);
#pragma GCC unroll 4
        for (int c = 0; c < chunks; c++)
            if (width == 16)
                xm_lanes_store(out + c * 16, acc[i][c]);
            else
                xm_lanes_store_first(out, width, acc[i][c]);
    }
}

/* All columns of the outputs of `queries` queries, as many chunks at once as given while they last.
 */
XM_INLINE void value_tiles(const xm_attention_job *job, xm_weight_type type, int queries,
                           int chunks, int first)
{
    size_t length = (size_t)job->value_length;
    size_t column = 0;

    for (; column + 16 * (size_t)chunks <= length; column += 16 * (size_t)chunks)
        value_tile(job, type, queries, chunks, first, column, 16);
    if (chunks > 1)
        for (; column + 16 <= length; column += 16)
            value_tile(job, type, queries, 1, first, column, 16);
    if (column < length)
        value_tile(job, type, queries, 1, first, column, length - column);
}

/* --- all of it --- */

XM_INLINE void attention(const xm_attention_job *job, xm_weight_type type)
{
    int queries = job->query_count;
    int i = 0;

    for (; queries - i >= XM_FLOAT_TILE; i += XM_FLOAT_TILE)
        score_tile(job, type, XM_FLOAT_TILE, i);
    if (XM_FLOAT_TILE > 4 && queries - i >= 4) {
        score_tile(job, type, 4, i);
        i += 4;
    }
    for (; i < queries; i++)
        score_tile(job, type, 1, i);
    for (i = 0; i < queries; i++)
        soften(job, i);
    for (i = 0; queries - i >= TILE_QUERIES; i += TILE_QUERIES)
        value_tiles(job, type, TILE_QUERIES, XM_VALUE_CHUNKS, i);
    for (; i < queries; i++)
        value_tiles(job, type, 1, MOST_CHUNKS, i);
}

void XM_VARIANT(xm_attention_f32)(const xm_attention_job *job)
{
    attention(job, XM_TYPE_F32);
}

void XM_VARIANT(xm_attention_f16)(const xm_attention_job *job)
{
    attention(job, XM_TYPE_F16);
}
