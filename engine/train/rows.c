/*
 * rows.c - see rows.h. Built for the instruction sets named in XM_CLONES; the loader picks one.
 *
 * The optimisation level is raised here because these loops are worth it whatever the tree is built
 * with; no-trapping-math lets the compiler use blends and changes no value. Additions are not
 * reordered: sums are written in lanes.
 */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3,no-trapping-math")
#endif

#include "train/rows.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define XM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define XM_CLONES
#endif
#define XM_INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };
/* Never passed by value: that would need one calling convention for all instruction sets. */
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t lane_mask __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

#define LOAD(x) (*(const lanes *)(x))

XM_INLINE float add_lanes(const lanes *sums)
{
    float v[LANES];
    memcpy(v, sums, sizeof v);
    for (int32_t half = LANES / 2; half > 0; half /= 2)
        for (int32_t i = 0; i < half; i++)
            v[i] += v[i + half];
    return v[0];
}

/* exp: 2^n * e^r, |r| <= ln(2)/2, Taylor to r^7: relative error below 2e-7 for -87 <= x <= 88,
 * beyond which it stays at the end's value. NaN and infinities give NaN, so that they are not lost.
 */
XM_INLINE float exp_approximation(float x)
{
    float y = x > -87.0f ? x : -87.0f; /* NaN too: it must not become an integer */
    y = y < 88.0f ? y : 88.0f;
    float n = (y * 1.44269504f + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: rounds to nearest */
    float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;   /* ln(2) in two parts */
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t exponent = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &exponent, sizeof power);
    return p * power + (x - x);
}

/* Square root of x >= 0: the well-known first guess of 1/sqrt(x) from the bits, three Newton steps
 * (relative error below 3e-7). sqrtf may set errno, which keeps a loop from being vectorised. */
XM_INLINE float square_root(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = 0x5f3759df - (bits >> 1);
    float y;
    memcpy(&y, &bits, sizeof y);
    y = y * (1.5f - 0.5f * x * y * y);
    y = y * (1.5f - 0.5f * x * y * y);
    y = y * (1.5f - 0.5f * x * y * y);
    return x * y;
}

XM_CLONES float xm_row_dot(const float *a, const float *b, size_t count)
{
    lanes sum = {0};
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        sum += LOAD(a + i) * LOAD(b + i);
    float rest = 0;
    for (; i < count; i++)
        rest += a[i] * b[i];
    return add_lanes(&sum) + rest;
}

XM_CLONES void xm_row_add_scaled(float *restrict y, const float *restrict x, float scale,
                                 size_t count)
{
    for (size_t i = 0; i < count; i++)
        y[i] += scale * x[i];
}

XM_CLONES void xm_row_scale(float *y, const float *x, float scale, size_t count)
{
    for (size_t i = 0; i < count; i++)
        y[i] = scale * x[i];
}

XM_CLONES void xm_row_sum(float *y, const float *a, const float *b, size_t count)
{
    for (size_t i = 0; i < count; i++)
        y[i] = a[i] + b[i];
}

XM_CLONES double xm_row_square_sum(const float *x, size_t count)
{
    double total = 0;
    for (size_t begin = 0; begin < count; begin += 4096) {
        size_t end = begin + 4096 < count ? begin + 4096 : count;
        lanes sum = {0};
        size_t i = begin;
        for (; i + LANES <= end; i += LANES)
            sum += LOAD(x + i) * LOAD(x + i);
        float rest = 0;
        for (; i < end; i++)
            rest += x[i] * x[i];
        total += (double)add_lanes(&sum) + (double)rest;
    }
    return total;
}

XM_CLONES void xm_rows_column_sums(float *restrict sums, const float *restrict x, size_t rows,
                                   size_t columns, size_t stride)
{
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++)
            sums[column] += x[row * stride + column];
}

XM_CLONES void xm_rows_add_bias(float *restrict y, const float *restrict bias, size_t rows,
                                size_t columns, size_t stride)
{
    for (size_t row = 0; row < rows; row++)
        for (size_t column = 0; column < columns; column++)
            y[row * stride + column] += bias[column];
}

XM_INLINE float row_maximum(const float *x, size_t count)
{
    lanes best = {0};
    for (int32_t lane = 0; lane < LANES; lane++)
        best[lane] = x[0];
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        lanes v = LOAD(x + i);
        lane_mask more = v > best;
        best = (lanes)(((lane_mask)v & more) | ((lane_mask)best & ~more));
    }
    float maximum = best[0];
    for (int32_t lane = 1; lane < LANES; lane++)
        maximum = best[lane] > maximum ? best[lane] : maximum;
    for (; i < count; i++)
        maximum = x[i] > maximum ? x[i] : maximum;
    return maximum;
}

XM_INLINE float row_total(const float *x, size_t count)
{
    lanes sum = {0};
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        sum += LOAD(x + i);
    float rest = 0;
    for (; i < count; i++)
        rest += x[i];
    return add_lanes(&sum) + rest;
}

XM_CLONES float xm_row_softmax(float *x, float scale, size_t count)
{
    float maximum = row_maximum(x, count) * scale; /* scale > 0 */
    for (size_t i = 0; i < count; i++)
        x[i] = exp_approximation(x[i] * scale - maximum);
    float total = row_total(x, count);
    float factor = 1.0f / total;
    for (size_t i = 0; i < count; i++)
        x[i] *= factor;
    return maximum + logf(total);
}

XM_CLONES void xm_row_exp(float *x, float scale, float log_sum, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = exp_approximation(x[i] * scale - log_sum);
}

XM_CLONES void xm_row_softmax_backward(float *restrict dp, const float *restrict p, float mean_dp,
                                       float scale, size_t count)
{
    for (size_t i = 0; i < count; i++)
        dp[i] = p[i] * (dp[i] - mean_dp) * scale;
}

XM_CLONES void xm_row_sigmoid(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = 1.0f / (1.0f + exp_approximation(-x[i]));
}

XM_CLONES void xm_row_gru(float *restrict gates, const float *restrict from_state,
                          const float *restrict before, float *restrict after, size_t count)
{
    float *update = gates + count, *n = gates + 2 * count;
    for (size_t i = 0; i < count; i++) {
        float reset = 1.0f / (1.0f + exp_approximation(-(gates[i] + from_state[i])));
        float z = 1.0f / (1.0f + exp_approximation(-(update[i] + from_state[count + i])));
        float v = n[i] + reset * from_state[2 * count + i];
        float tanh_v = 2.0f / (1.0f + exp_approximation(-2.0f * v)) - 1.0f;
        gates[i] = reset;
        update[i] = z;
        n[i] = tanh_v;
        after[i] = (1.0f - z) * tanh_v + z * before[i];
    }
}

XM_CLONES void xm_row_gru_backward(float *restrict dgates, float *restrict dfrom_state,
                                   float *restrict dstate, const float *restrict gates,
                                   const float *restrict candidate, const float *restrict before,
                                   size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float reset = gates[i], z = gates[count + i], n = gates[2 * count + i], g = dstate[i];
        float dn = g * (1.0f - z) * (1.0f - n * n);
        float dz = g * (before[i] - n) * z * (1.0f - z);
        float dreset = dn * candidate[i] * reset * (1.0f - reset);
        dgates[i] = dfrom_state[i] = dreset;
        dgates[count + i] = dfrom_state[count + i] = dz;
        dgates[2 * count + i] = dn;
        dfrom_state[2 * count + i] = dn * reset;
        dstate[i] = g * z;
    }
}

#define GELU_TWO_C 1.59576912f /* 2 * sqrt(2 / pi) */
#define GELU_CUBIC 0.044715f

XM_CLONES void xm_row_gelu(float *restrict y, const float *restrict x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float v = x[i];
        float u = GELU_TWO_C * (v + GELU_CUBIC * v * v * v);
        y[i] = v / (1.0f + exp_approximation(-u));
    }
}

XM_CLONES void xm_row_gelu_backward(float *dx, const float *dy, const float *x, float scale,
                                    size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float v = x[i];
        float u = GELU_TWO_C * (v + GELU_CUBIC * v * v * v);
        float s = 1.0f / (1.0f + exp_approximation(-u));
        float slope = s + v * s * (1.0f - s) * GELU_TWO_C * (1.0f + 3.0f * GELU_CUBIC * v * v);
        dx[i] = scale * dy[i] * slope;
    }
}

XM_CLONES void xm_row_swiglu(float *restrict y, const float *restrict gate,
                             const float *restrict up, size_t count)
{
    for (size_t i = 0; i < count; i++)
        y[i] = gate[i] / (1.0f + exp_approximation(-gate[i])) * up[i];
}

XM_CLONES void xm_row_swiglu_backward(float *dgate, float *restrict dup, const float *dy,
                                      const float *restrict gate, const float *restrict up,
                                      float scale, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float v = gate[i], g = scale * dy[i];
        float s = 1.0f / (1.0f + exp_approximation(-v));
        dup[i] = g * v * s;
        dgate[i] = g * up[i] * s * (1.0f + v * (1.0f - s));
    }
}

XM_CLONES void xm_row_layer_norm(float *restrict y, const float *restrict x,
                                 const float *restrict weight, const float *restrict bias,
                                 float epsilon, float *mean_out, float *inverse_out, size_t count)
{
    float mean = row_total(x, count) / (float)count;
    lanes sum = {0};
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        lanes v = LOAD(x + i) - mean;
        sum += v * v;
    }
    float rest = 0;
    for (; i < count; i++)
        rest += (x[i] - mean) * (x[i] - mean);
    float variance = (add_lanes(&sum) + rest) / (float)count;
    float inverse = 1.0f / sqrtf(variance + epsilon);
    for (i = 0; i < count; i++)
        y[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
    *mean_out = mean;
    *inverse_out = inverse;
}

XM_CLONES void xm_row_layer_norm_backward(float *restrict dx, float *restrict dweight,
                                          float *restrict dbias, const float *restrict dy,
                                          const float *restrict x, const float *restrict weight,
                                          float mean, float inverse, size_t count)
{
    lanes sum = {0}, sum_x = {0}; /* of g = dy * weight, and of g * normalised x */
    float rest = 0, rest_x = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        lanes g = LOAD(dy + i) * LOAD(weight + i);
        sum += g;
        sum_x += g * ((LOAD(x + i) - mean) * inverse);
    }
    for (; i < count; i++) {
        float g = dy[i] * weight[i];
        rest += g;
        rest_x += g * ((x[i] - mean) * inverse);
    }
    float mean_g = (add_lanes(&sum) + rest) / (float)count;
    float mean_gx = (add_lanes(&sum_x) + rest_x) / (float)count;
    for (i = 0; i < count; i++) {
        float normal = (x[i] - mean) * inverse;
        dweight[i] += dy[i] * normal;
        dbias[i] += dy[i];
        dx[i] += inverse * (dy[i] * weight[i] - mean_g - normal * mean_gx);
    }
}

XM_CLONES void xm_row_rms_norm(float *restrict y, const float *restrict x,
                               const float *restrict weight, float epsilon, float *inverse_out,
                               size_t count)
{
    lanes sum = {0};
    float rest = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        sum += LOAD(x + i) * LOAD(x + i);
    for (; i < count; i++)
        rest += x[i] * x[i];
    float inverse = 1.0f / sqrtf((add_lanes(&sum) + rest) / (float)count + epsilon);
    for (i = 0; i < count; i++)
        y[i] = x[i] * inverse * weight[i];
    *inverse_out = inverse;
}

XM_CLONES void xm_row_rms_norm_backward(float *restrict dx, float *restrict dweight,
                                        const float *restrict dy, const float *restrict x,
                                        const float *restrict weight, float inverse, size_t count)
{
    lanes sum = {0}; /* of dy * weight * normalised x */
    float rest = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        sum += LOAD(dy + i) * LOAD(weight + i) * (LOAD(x + i) * inverse);
    for (; i < count; i++)
        rest += dy[i] * weight[i] * (x[i] * inverse);
    float mean = (add_lanes(&sum) + rest) / (float)count;
    for (i = 0; i < count; i++) {
        float normal = x[i] * inverse;
        dweight[i] += dy[i] * normal;
        dx[i] += inverse * (dy[i] * weight[i] - normal * mean);
    }
}

XM_CLONES void xm_row_adam(float *restrict weight, const float *restrict gradient,
                           float *restrict first, float *restrict second, const xm_adam_step *step,
                           size_t count)
{
    const xm_adam_step s = *step;
    for (size_t i = 0; i < count; i++) {
        float g = gradient[i] * s.gradient_scale;
        float m = s.beta1 * first[i] + (1.0f - s.beta1) * g;
        float v = s.beta2 * second[i] + (1.0f - s.beta2) * g * g;
        first[i] = m;
        second[i] = v;
        float update = s.rate * m / (square_root(v * s.second_scale) + s.epsilon);
        weight[i] = weight[i] - s.decay * weight[i] - update;
    }
}
