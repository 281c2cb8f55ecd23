/*
 * expert_dropout.c - see expert_dropout.h.
 */
#include "train/expert_dropout.h"

#include "base/random.h"

enum { DRAWS = 4 }; /* of 16 bits, from one random word */

void xm_expert_dropout_apply(const xm_expert_dropout *dropout, int32_t row, int32_t expert,
                             float *values, size_t hidden)
{
    uint32_t left_out = (uint32_t)(dropout->rate * 65536.0f); /* draws below this */
    if (left_out == 0)
        return;
    float scale = 65536.0f / (65536.0f - (float)left_out);
    uint64_t stream = (uint64_t)(uint32_t)dropout->block << 32 | (uint32_t)expert;
    uint64_t pair = xm_random_bits(dropout->key, stream, (uint64_t)row);
    for (size_t i = 0; i < hidden; i++) {
        uint64_t word = xm_random_mix(pair ^ i / DRAWS);
        uint32_t draw = (uint32_t)(word >> (16 * (i % DRAWS))) & UINT32_C(0xffff);
        values[i] = draw < left_out ? 0.0f : values[i] * scale;
    }
}
