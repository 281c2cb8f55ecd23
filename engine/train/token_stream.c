/*
 * token_stream.c - see token_stream.h.
 */
#include "train/token_stream.h"

#include "base/random.h"

enum { DOMAIN_DRAW = 0x646f6d61, POSITION_DRAW = 0x706f7369 }; /* keys of the two draws */

int32_t xm_token_stream_domain(const xm_token_stream *stream, uint64_t step, int32_t sequence)
{
    double total = 0;
    for (int32_t i = 0; i < stream->domain_count; i++)
        total += stream->domains[i].weight;
    /* One shift per step; the sequences stand at equal distances behind it. */
    double shift = xm_random_uniform(stream->seed ^ DOMAIN_DRAW, step, 0);
    double place = total * ((double)sequence + shift) / (double)stream->sequences;
    int32_t last = 0;
    for (int32_t i = 0; i < stream->domain_count; i++) {
        if (stream->domains[i].weight <= 0)
            continue;
        last = i;
        place -= stream->domains[i].weight;
        if (place < 0)
            break;
    }
    return last;
}

void xm_token_stream_window(const xm_token_stream *stream, uint64_t step, int32_t sequence,
                            int32_t *tokens, int32_t *targets)
{
    const xm_stream_domain *domain =
        &stream->domains[xm_token_stream_domain(stream, step, sequence)];
    size_t starts = domain->count - (size_t)stream->length;
    uint64_t bits = xm_random_bits(stream->seed ^ POSITION_DRAW, step, (uint64_t)sequence);
    const uint16_t *window = domain->tokens + bits % starts;
    for (int32_t i = 0; i < stream->length; i++) {
        tokens[i] = window[i];
        targets[i] = window[i + 1];
    }
}
