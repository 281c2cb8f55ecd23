/*
 * scalar.c - the reference kernels: what kernels.h promises, in plain loops without SIMD.
 *
 * Every other variant must give the same bits. It is written to be read, shares no code with the
 * SIMD files (only the numbers of exp.h), and is what machines other than x86-64 run. Functions
 * keep no state and may be called from any thread.
 */
#include "kernels/variants.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/exp.h"

/* --- panels --- */

/* Element `index` of weights of one of the float types, as F32. */
typedef float (*load_fn)(const void *weights, size_t index);

static float load_f32(const void *weights, size_t index)
{
    return ((const float *)weights)[index];
}

static float load_f16(const void *weights, size_t index)
{
    return xm_f16_to_f32(((const uint16_t *)weights)[index]);
}

static float load_bf16(const void *weights, size_t index)
{
    return xm_bf16_to_f32(((const uint16_t *)weights)[index]);
}

/* dot[l] = x . column-wise panel [columns][16]: two sums, over even and over odd columns, each in
 * order of columns; then even + odd. */
static void float_dots(const void *panel, load_fn load, const float *x, size_t columns,
                       float dot[XM_PANEL])
{
    float sums[2][XM_PANEL] = {{0.0f}};

    for (size_t c = 0; c < columns; c++)
        for (size_t l = 0; l < XM_PANEL; l++)
            sums[c % 2][l] = fmaf(load(panel, c * XM_PANEL + l), x[c], sums[c % 2][l]);
    for (size_t l = 0; l < XM_PANEL; l++)
        dot[l] = sums[0][l] + sums[1][l];
}

static void write_outputs(const xm_panel_job *job, int32_t row, const float dot[XM_PANEL])
{
    float *out = job->out + (size_t)row * job->out_stride;

    for (int32_t l = 0; l < job->lanes; l++)
        out[l] = job->bias ? dot[l] + job->bias[l] : dot[l];
}

static void panel_float(const xm_panel_job *job, load_fn load)
{
    for (int32_t i = 0; i < job->row_count; i++) {
        const float *x = job->x->f32 + (size_t)job->rows[i] * job->x->stride;
        float dot[XM_PANEL];

        float_dots(job->panel, load, x, job->columns, dot);
        write_outputs(job, i, dot);
    }
}

static void panel_f32(const xm_panel_job *job)
{
    panel_float(job, load_f32);
}

static void panel_f16(const xm_panel_job *job)
{
    panel_float(job, load_f16);
}

static void panel_bf16(const xm_panel_job *job)
{
    panel_float(job, load_bf16);
}

/* Unpacks the block of 32 columns at `block` to w[column][lane]. */
typedef void (*block_fn)(const uint8_t *block, int8_t w[32][XM_PANEL]);

static void block_q8_0(const uint8_t *block, int8_t w[32][XM_PANEL])
{
    const int8_t *q = (const int8_t *)block + 2 * XM_PANEL;

    for (size_t j = 0; j < 16; j++)
        for (size_t l = 0; l < XM_PANEL; l++)
            for (size_t s = 0; s < 2; s++)
                w[2 * j + s][l] = q[(j * XM_PANEL + l) * 2 + s];
}

static void block_q4_0(const uint8_t *block, int8_t w[32][XM_PANEL])
{
    const uint8_t *q = block + 2 * XM_PANEL;

    for (size_t j = 0; j < 8; j++)
        for (size_t l = 0; l < XM_PANEL; l++)
            for (size_t s = 0; s < 2; s++) {
                uint8_t both = q[(j * XM_PANEL + l) * 2 + s];
                w[2 * j + s][l] = (int8_t)((both & 15) - 8);
                w[2 * (j + 8) + s][l] = (int8_t)((both >> 4) - 8);
            }
}

static void panel_blocks(const xm_panel_job *job, block_fn unpack, size_t block_bytes)
{
    for (int32_t i = 0; i < job->row_count; i++) {
        size_t row = (size_t)job->rows[i];
        const int16_t *x = job->x->i16 + row * job->x->stride;
        const float *x_scales = job->x->scales + row * (job->x->stride / 32);
        float acc[XM_PANEL] = {0.0f};

        for (size_t b = 0; b < job->columns / 32; b++) {
            const uint8_t *block = (const uint8_t *)job->panel + b * block_bytes;
            int8_t w[32][XM_PANEL];
            int32_t sum[XM_PANEL] = {0};

            unpack(block, w);
            for (size_t c = 0; c < 32; c++)
                for (size_t l = 0; l < XM_PANEL; l++)
                    sum[l] += w[c][l] * x[b * 32 + c];
            for (size_t l = 0; l < XM_PANEL; l++) {
                float w_scale = xm_f16_to_f32(((const uint16_t *)(const void *)block)[l]);
                acc[l] = fmaf((float)sum[l], w_scale * x_scales[b], acc[l]);
            }
        }
        write_outputs(job, i, acc);
    }
}

static void panel_q8_0(const xm_panel_job *job)
{
    panel_blocks(job, block_q8_0, 2 * XM_PANEL + 32 * XM_PANEL);
}

static void panel_q4_0(const xm_panel_job *job)
{
    panel_blocks(job, block_q4_0, 2 * XM_PANEL + 16 * XM_PANEL);
}

static void quantize_i16(const float *x, size_t count, int16_t *q, float *scales)
{
    for (size_t b = 0; b < count / 32; b++, x += 32, q += 32) {
        float largest = 0.0f;
        bool finite = true;

        for (size_t i = 0; i < 32; i++) {
            finite = finite && isfinite(x[i]);
            if (fabsf(x[i]) > largest)
                largest = fabsf(x[i]);
        }
        memset(q, 0, 32 * sizeof *q);
        if (!finite)
            scales[b] = NAN;
        else if (largest < XM_QUANTIZE_TINY)
            scales[b] = 0.0f;
        else {
            scales[b] = largest / 32767.0f;
            for (size_t i = 0; i < 32; i++)
                q[i] = (int16_t)rintf(x[i] * (1.0f / scales[b]));
        }
    }
}

static void block_sums(const int16_t *q, size_t count, int32_t *sums)
{
    for (size_t b = 0; b < count / 32; b++) {
        sums[b] = 0;
        for (size_t i = 0; i < 32; i++)
            sums[b] += q[b * 32 + i];
    }
}

/* --- functions of vectors --- */

/* See exp.h for the steps. */
static float shared_exp(float x)
{
    float t = fmaf(x, XM_EXP_LOG2E, XM_EXP_SHIFT);
    float n = t - XM_EXP_SHIFT;
    float r = fmaf(n, -XM_EXP_LN2_LOW, fmaf(n, -XM_EXP_LN2_HIGH, x));
    float p = fmaf(XM_EXP_C6, r, XM_EXP_C5);
    uint32_t bits;
    float power;

    p = fmaf(p, r, XM_EXP_C4);
    p = fmaf(p, r, XM_EXP_C3);
    p = fmaf(p, r, XM_EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    memcpy(&bits, &t, sizeof bits);
    bits = (bits << 23) + 0x3f800000u;
    memcpy(&power, &bits, sizeof power);
    if (x < XM_EXP_LOWEST)
        return 0.0f;
    return x > XM_EXP_HIGHEST ? INFINITY : p * power;
}

/* 16 partial sums to one: the upper half is added to the lower until one is left. */
static float fold(float partial[16])
{
    for (size_t half = 8; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++)
            partial[i] += partial[i + half];
    return partial[0];
}

static float maximum(const float *x, size_t count)
{
    float m = -INFINITY;

    for (size_t i = 0; i < count; i++)
        m = x[i] > m ? x[i] : m; /* passes over NaN, which the sum then shows */
    return m;
}

static void softmax(float *x, size_t count)
{
    float m = maximum(x, count);
    float partial[16] = {0.0f};
    float sum;

    for (size_t i = 0; i < count; i++) {
        x[i] = shared_exp(x[i] - m);
        partial[i % 16] += x[i];
    }
    sum = fold(partial);
    for (size_t i = 0; i < count; i++)
        x[i] /= sum;
}

static float log_sum_exp(const float *x, size_t count)
{
    float m = maximum(x, count);
    float partial[16] = {0.0f};

    for (size_t i = 0; i < count; i++)
        partial[i % 16] += shared_exp(x[i] - m);
    return m + logf(fold(partial));
}

static void layer_norm(const float *x, const float *weight, const float *bias, float epsilon,
                       size_t count, float *out)
{
    float sums[16] = {0.0f};
    float squares[16] = {0.0f};
    float mean, inverse;

    for (size_t i = 0; i < count; i++)
        sums[i % 16] += x[i];
    mean = fold(sums) / (float)count;
    for (size_t i = 0; i < count; i++)
        squares[i % 16] += (x[i] - mean) * (x[i] - mean);
    inverse = 1.0f / sqrtf(fold(squares) / (float)count + epsilon);
    for (size_t i = 0; i < count; i++)
        out[i] = (x[i] - mean) * inverse * weight[i] + bias[i];
}

static void gelu(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float argument = x[i] * fmaf(x[i] * x[i], XM_GELU_B, XM_GELU_A);
        float numerator = -FLT_MAX > x[i] ? -FLT_MAX : x[i]; /* -inf / inf would be NaN */

        x[i] = numerator / (1.0f + shared_exp(argument));
    }
}

static void add(float *x, const float *y, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] += y[i];
}

static void scaled_add(float *x, float scale, const float *y, size_t count)
{
    for (size_t i = 0; i < count; i++)
        x[i] = fmaf(scale, y[i], x[i]);
}

/* --- attention --- */

static void attention(const xm_attention_job *job, load_fn load)
{
    size_t length = (size_t)job->head_length;

    for (int32_t i = 0; i < job->query_count; i++) {
        const float *query = job->query + (size_t)i * job->query_stride;
        float *scores = job->scores + (size_t)i * job->scores_stride;
        float *out = job->out + (size_t)i * job->out_stride;
        size_t tokens = (size_t)job->first_count + (size_t)i;

        for (size_t t = 0; t < tokens; t += XM_KV_TOKENS) {
            float dot[XM_PANEL];

            float_dots(job->keys[t / XM_KV_TOKENS], load, query, length, dot);
            for (size_t l = 0; l < XM_KV_TOKENS && t + l < tokens; l++)
                scores[t + l] = job->scale * dot[l];
        }
        softmax(scores, tokens);
        for (size_t d = 0; d < length; d++) {
            float acc = 0.0f;

            for (size_t t = 0; t < tokens; t++) {
                const void *values = job->values[t / XM_KV_TOKENS];
                acc = fmaf(scores[t], load(values, t % XM_KV_TOKENS * length + d), acc);
            }
            out[d] = acc;
        }
    }
}

static void attention_f32(const xm_attention_job *job)
{
    attention(job, load_f32);
}

static void attention_f16(const xm_attention_job *job)
{
    attention(job, load_f16);
}

const xm_kernels xm_kernels_scalar = {
    .name = "scalar",
    .panel_f32 = panel_f32,
    .panel_f16 = panel_f16,
    .panel_bf16 = panel_bf16,
    .panel_q8_0 = panel_q8_0,
    .panel_q4_0 = panel_q4_0,
    .quantize_i16 = quantize_i16,
    .block_sums = block_sums,
    .attention_f32 = attention_f32,
    .attention_f16 = attention_f16,
    .softmax = softmax,
    .log_sum_exp = log_sum_exp,
    .layer_norm = layer_norm,
    .gelu = gelu,
    .add = add,
    .scaled_add = scaled_add,
};
