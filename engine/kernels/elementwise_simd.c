/*
 * elementwise_simd.c - functions of vectors: norm, softmax, gelu, quantisation of activations,
 * sums.
 *
 * Element i sits in lane i mod 16; a last, partial group of lanes is read and written without
 * touching memory beyond it, and its missing lanes count as +0 in sums (which leaves a sum as it
 * is) or as -inf in maxima. Order of additions: 16 partial sums by lane, then folds of the upper
 * half onto the lower. No state; any thread.
 */
#include <float.h>

#include "kernels/simd.h"

/* 8 -> 4 -> 2 -> 1 by adding the upper half to the lower */
XM_INLINE float fold_eight(__m256 x)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

XM_INLINE float sum_of(xm_lanes partial)
{
    return fold_eight(xm_lanes_fold(partial));
}

/* The largest lane; no lane is NaN. */
XM_INLINE float largest_of(xm_lanes x)
{
    __m256 eight = xm_lanes_fold_max(x);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));

    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

XM_INLINE xm_lanes load_rest(const float *x, size_t count)
{
    return xm_lanes_load_first(x, count, xm_lanes_set(0.0f));
}

/* NaN are passed over; the sums that follow show them. */
static float maximum(const float *x, size_t count)
{
    xm_lanes lowest = xm_lanes_set(-INFINITY);
    xm_lanes m = lowest;
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        m = xm_lanes_max(xm_lanes_load(x + i), m);
    if (i < count)
        m = xm_lanes_max(xm_lanes_load_first(x + i, count - i, lowest), m);
    return largest_of(m);
}

void XM_VARIANT(xm_softmax)(float *x, size_t count)
{
    xm_lanes m = xm_lanes_set(maximum(x, count));
    xm_lanes partial = xm_lanes_set(0.0f);
    size_t rest = count % 16;
    size_t whole = count - rest;

    for (size_t i = 0; i < whole; i += 16) {
        xm_lanes e = xm_lanes_exp(xm_lanes_sub(xm_lanes_load(x + i), m));
        partial = xm_lanes_add(partial, e);
        xm_lanes_store(x + i, e);
    }
    if (rest) {
        xm_lanes e = xm_lanes_exp(xm_lanes_sub(load_rest(x + whole, rest), m));
        partial = xm_lanes_add(partial, xm_lanes_keep_first(e, rest));
        xm_lanes_store_first(x + whole, rest, e);
    }

    xm_lanes sum = xm_lanes_set(sum_of(partial));
    for (size_t i = 0; i < whole; i += 16)
        xm_lanes_store(x + i, xm_lanes_div(xm_lanes_load(x + i), sum));
    if (rest)
        xm_lanes_store_first(x + whole, rest, xm_lanes_div(load_rest(x + whole, rest), sum));
}

float XM_VARIANT(xm_log_sum_exp)(const float *x, size_t count)
{
    float highest = maximum(x, count);
    xm_lanes m = xm_lanes_set(highest);
    xm_lanes partial = xm_lanes_set(0.0f);
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        partial = xm_lanes_add(partial, xm_lanes_exp(xm_lanes_sub(xm_lanes_load(x + i), m)));
    if (i < count) {
        xm_lanes e = xm_lanes_exp(xm_lanes_sub(load_rest(x + i, count - i), m));
        partial = xm_lanes_add(partial, xm_lanes_keep_first(e, count - i));
    }
    return highest + logf(sum_of(partial));
}

static float sum(const float *x, size_t count)
{
    xm_lanes partial = xm_lanes_set(0.0f);
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        partial = xm_lanes_add(partial, xm_lanes_load(x + i));
    if (i < count)
        partial = xm_lanes_add(partial, load_rest(x + i, count - i));
    return sum_of(partial);
}

static float sum_of_squares(const float *x, size_t count, xm_lanes mean)
{
    xm_lanes partial = xm_lanes_set(0.0f);
    size_t i = 0;

    for (; i + 16 <= count; i += 16) {
        xm_lanes d = xm_lanes_sub(xm_lanes_load(x + i), mean);
        partial = xm_lanes_add(partial, xm_lanes_mul(d, d));
    }
    if (i < count) {
        xm_lanes d = xm_lanes_sub(load_rest(x + i, count - i), mean);
        d = xm_lanes_keep_first(xm_lanes_mul(d, d), count - i);
        partial = xm_lanes_add(partial, d);
    }
    return sum_of(partial);
}

XM_INLINE xm_lanes normalised(xm_lanes x, xm_lanes mean, xm_lanes inverse, xm_lanes weight,
                              xm_lanes bias)
{
    xm_lanes unit = xm_lanes_mul(xm_lanes_sub(x, mean), inverse);

    return xm_lanes_add(xm_lanes_mul(unit, weight), bias);
}

void XM_VARIANT(xm_layer_norm)(const float *x, const float *weight, const float *bias,
                               float epsilon, size_t count, float *out)
{
    xm_lanes mean = xm_lanes_set(sum(x, count) / (float)count);
    float variance = sum_of_squares(x, count, mean) / (float)count;
    xm_lanes inverse = xm_lanes_set(1.0f / sqrtf(variance + epsilon));
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        xm_lanes_store(out + i, normalised(xm_lanes_load(x + i), mean, inverse,
                                           xm_lanes_load(weight + i), xm_lanes_load(bias + i)));
    if (i < count) {
        size_t rest = count - i;
        xm_lanes_store_first(out + i, rest,
                             normalised(load_rest(x + i, rest), mean, inverse,
                                        load_rest(weight + i, rest), load_rest(bias + i, rest)));
    }
}

void XM_VARIANT(xm_rms_norm)(const float *x, const float *weight, float epsilon, size_t count,
                             float *out)
{
    float mean = sum_of_squares(x, count, xm_lanes_set(0.0f)) / (float)count;
    xm_lanes inverse = xm_lanes_set(1.0f / sqrtf(mean + epsilon));
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        xm_lanes_store(out + i, xm_lanes_mul(xm_lanes_mul(xm_lanes_load(x + i), inverse),
                                             xm_lanes_load(weight + i)));
    if (i < count) {
        xm_lanes unit = xm_lanes_mul(load_rest(x + i, count - i), inverse);

        xm_lanes_store_first(out + i, count - i,
                             xm_lanes_mul(unit, load_rest(weight + i, count - i)));
    }
}

XM_INLINE xm_lanes gelu(xm_lanes x)
{
    xm_lanes slope =
        xm_lanes_fma(xm_lanes_mul(x, x), xm_lanes_set(XM_GELU_B), xm_lanes_set(XM_GELU_A));
    xm_lanes e = xm_lanes_exp(xm_lanes_mul(x, slope));
    xm_lanes numerator = xm_lanes_max(xm_lanes_set(-FLT_MAX), x);

    return xm_lanes_div(numerator, xm_lanes_add(xm_lanes_set(1.0f), e));
}

void XM_VARIANT(xm_gelu)(float *x, size_t count)
{
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        xm_lanes_store(x + i, gelu(xm_lanes_load(x + i)));
    if (i < count)
        xm_lanes_store_first(x + i, count - i, gelu(load_rest(x + i, count - i)));
}

/* x / (1 + exp(-steepness * x)) */
XM_INLINE xm_lanes weighed_sigmoid(xm_lanes x, float steepness)
{
    xm_lanes e = xm_lanes_exp(xm_lanes_mul(xm_lanes_set(-steepness), x));
    xm_lanes numerator = xm_lanes_max(xm_lanes_set(-FLT_MAX), x);

    return xm_lanes_div(numerator, xm_lanes_add(xm_lanes_set(1.0f), e));
}

XM_INLINE xm_lanes swiglu(xm_lanes gate, xm_lanes up)
{
    return xm_lanes_mul(weighed_sigmoid(gate, 1.0f), up);
}

XM_INLINE xm_lanes swiglu_clamped(xm_lanes gate, xm_lanes up)
{
    xm_lanes most = xm_lanes_set(XM_SWIGLU_LIMIT), least = xm_lanes_set(-XM_SWIGLU_LIMIT);

    gate = xm_lanes_where_less(most, gate, most, gate);
    up = xm_lanes_where_less(most, up, most, up);
    up = xm_lanes_where_less(up, least, least, up);
    return xm_lanes_mul(weighed_sigmoid(gate, XM_SWIGLU_STEEPNESS),
                        xm_lanes_add(up, xm_lanes_set(1.0f)));
}

void XM_VARIANT(xm_swiglu)(const float *gate, float *up, size_t count)
{
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        xm_lanes_store(up + i, swiglu(xm_lanes_load(gate + i), xm_lanes_load(up + i)));
    if (i < count)
        xm_lanes_store_first(up + i, count - i,
                             swiglu(load_rest(gate + i, count - i), load_rest(up + i, count - i)));
}

void XM_VARIANT(xm_swiglu_clamped)(const float *gate, float *up, size_t count)
{
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        xm_lanes_store(up + i, swiglu_clamped(xm_lanes_load(gate + i), xm_lanes_load(up + i)));
    if (i < count)
        xm_lanes_store_first(
            up + i, count - i,
            swiglu_clamped(load_rest(gate + i, count - i), load_rest(up + i, count - i)));
}

void XM_VARIANT(xm_add)(float *x, const float *y, size_t count)
{
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        xm_lanes_store(x + i, xm_lanes_add(xm_lanes_load(x + i), xm_lanes_load(y + i)));
    if (i < count) {
        xm_lanes s = xm_lanes_add(load_rest(x + i, count - i), load_rest(y + i, count - i));
        xm_lanes_store_first(x + i, count - i, s);
    }
}

void XM_VARIANT(xm_scaled_add)(float *x, float scale, const float *y, size_t count)
{
    xm_lanes factor = xm_lanes_set(scale);
    size_t i = 0;

    for (; i + 16 <= count; i += 16)
        xm_lanes_store(x + i, xm_lanes_fma(factor, xm_lanes_load(y + i), xm_lanes_load(x + i)));
    if (i < count) {
        size_t rest = count - i;
        xm_lanes_store_first(x + i, rest,
                             xm_lanes_fma(factor, load_rest(y + i, rest), load_rest(x + i, rest)));
    }
}

/* One block of 32. */
static float quantize_block(const float *x, int16_t *q)
{
    xm_lanes low = xm_lanes_load(x);
    xm_lanes high = xm_lanes_load(x + 16);
    xm_lanes size = xm_lanes_max(xm_lanes_abs(low), xm_lanes_abs(high));
    float largest, scale;

    /* max gives its second operand where the first is NaN: ask both halves. */
    if (!xm_lanes_all_less(xm_lanes_abs(low), INFINITY) || !xm_lanes_all_less(size, INFINITY)) {
        memset(q, 0, 32 * sizeof *q);
        return NAN;
    }
    largest = largest_of(size);
    if (largest < XM_QUANTIZE_TINY) {
        memset(q, 0, 32 * sizeof *q);
        return 0.0f;
    }
    scale = largest / 32767.0f;
    xm_lanes inverse = xm_lanes_set(1.0f / scale);
    xm_lanes_store_i16(q, xm_lanes_mul(low, inverse));
    xm_lanes_store_i16(q + 16, xm_lanes_mul(high, inverse));
    return scale;
}

/* The sum of 16. */
static int32_t integer_sum(const int16_t *q)
{
    __m256i all = _mm256_loadu_si256((const __m256i *)(const void *)q);
    __m256i eight = _mm256_madd_epi16(all, _mm256_set1_epi16(1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));

    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

void XM_VARIANT(xm_quantize_i16)(const float *x, size_t count, int16_t *q, float *scales,
                                 int32_t *sums)
{
    for (size_t b = 0; b < count / 32; b++) {
        scales[b] = quantize_block(x + b * 32, q + b * 32);
        sums[2 * b] = integer_sum(q + b * 32);
        sums[2 * b + 1] = integer_sum(q + b * 32 + 16);
    }
}
