/*
 * scalar.c - the reference kernels: what kernels.h promises, in plain loops without SIMD.
 *
 * Every other variant must give the same bits. It is written to be read, shares no code with the
 * SIMD files (only the numbers of exp.h and layout.h), and is what machines other than x86-64 run.
 * Functions keep no state and may be called from any thread.
 */
#include "kernels/variants.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/exp.h"
#include "kernels/layout.h"

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

/* A part of 32 columns: values of columns, and per group of them w_scale and w_minimum. */
typedef struct {
    int8_t values[XM_PART][XM_PANEL];
    float scales[2][XM_PANEL], minima[2][XM_PANEL];
} unpacked_part;

static uint8_t code_at(const xm_weight_coding *coding, const xm_panel_layout *at,
                       const uint8_t *part, size_t column, size_t lane)
{
    size_t half = column / 16, pair = column % 16 / 2, s = column % 2;
    const uint8_t *codes = part + at->codes;
    int code;

    if (coding->bits == 8)
        return codes[(column / 2 * XM_PANEL + lane) * 2 + s];
    code = codes[(pair * XM_PANEL + lane) * 2 + s] >> 4 * half & 15;
    if (coding->bits == 5)
        code |= (part[at->high + (half * XM_PANEL + lane) * 2 + s] >> pair & 1) << 4;
    if (coding->bits == 6) {
        size_t plane = 2 * half + pair / 4;
        code |= (part[at->high + (plane * XM_PANEL + lane) * 2 + s] >> 2 * (pair % 4) & 3) << 4;
    }
    return (uint8_t)code;
}

static void unpack_part(const xm_weight_coding *coding, const xm_panel_layout *at,
                        const uint8_t *block, const uint8_t *part, unpacked_part *out)
{
    const uint16_t *head = (const uint16_t *)(const void *)block;

    for (size_t c = 0; c < XM_PART; c++)
        for (size_t l = 0; l < XM_PANEL; l++)
            out->values[c][l] = (int8_t)xm_weight_value(coding, code_at(coding, at, part, c, l));
    for (size_t g = 0; g < at->groups; g++)
        for (size_t l = 0; l < XM_PANEL; l++) {
            float scale = coding->power_of_two ? xm_e8m0_to_f32(block[l]) : xm_f16_to_f32(head[l]);
            float minimum = coding->minimum ? xm_f16_to_f32(head[at->head_minima / 2 + l]) : 0.0f;

            if (coding->group_scales)
                scale *= (float)(int8_t)part[g * XM_PANEL + l];
            if (coding->group_scales && coding->minimum)
                minimum *= (float)part[at->minima + g * XM_PANEL + l];
            out->scales[g][l] = scale;
            out->minima[g][l] = minimum;
        }
}

/* acc[l] += part . x of its 32 columns, group by group. */
static void add_part(const xm_weight_coding *coding, const unpacked_part *part, const int16_t *x,
                     float x_scale, float acc[XM_PANEL])
{
    for (size_t first = 0; first < XM_PART; first += coding->group) {
        size_t g = first / coding->group;
        int32_t sum[XM_PANEL] = {0}, x_sum = 0;

        for (size_t c = first; c < first + coding->group; c++) {
            for (size_t l = 0; l < XM_PANEL; l++)
                sum[l] += part->values[c][l] * x[c];
            x_sum += x[c];
        }
        for (size_t l = 0; l < XM_PANEL; l++) {
            acc[l] = fmaf((float)sum[l], part->scales[g][l] * x_scale, acc[l]);
            if (coding->minimum)
                acc[l] = fmaf(part->minima[g][l], (float)x_sum * x_scale, acc[l]);
        }
    }
}

static void panel_blocks(const xm_panel_job *job, xm_weight_type type)
{
    const xm_weight_coding coding = xm_weight_coding_of(type);
    const xm_panel_layout at = xm_panel_layout_of(coding);

    for (int32_t i = 0; i < job->row_count; i++) {
        size_t row = (size_t)job->rows[i];
        const int16_t *x = job->x->i16 + row * job->x->stride;
        const float *x_scales = job->x->scales + row * (job->x->stride / 32);
        float acc[XM_PANEL] = {0.0f};

        for (size_t c = 0; c < job->columns; c += XM_PART) {
            const uint8_t *block = (const uint8_t *)job->panel + c / at.columns * at.block_bytes;
            size_t p = c % at.columns / XM_PART;
            unpacked_part part;

            unpack_part(&coding, &at, block, block + at.head_bytes + p * at.part_bytes, &part);
            add_part(&coding, &part, x + c, x_scales[c / 32], acc);
        }
        write_outputs(job, i, acc);
    }
}

static void panel_q8_0(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q8_0);
}

static void panel_q4_0(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q4_0);
}

static void panel_q4_1(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q4_1);
}

static void panel_q5_0(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q5_0);
}

static void panel_q5_1(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q5_1);
}

static void panel_q2_k(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q2_K);
}

static void panel_q3_k(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q3_K);
}

static void panel_q4_k(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q4_K);
}

static void panel_q5_k(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q5_K);
}

static void panel_q6_k(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_Q6_K);
}

static void panel_iq4_nl(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_IQ4_NL);
}

static void panel_iq4_xs(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_IQ4_XS);
}

static void panel_mxfp4(const xm_panel_job *job)
{
    panel_blocks(job, XM_TYPE_MXFP4);
}

static void quantize_i16(const float *x, size_t count, int16_t *q, float *scales, int32_t *sums)
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
        sums[2 * b] = sums[2 * b + 1] = 0;
        for (size_t i = 0; i < 32; i++)
            sums[2 * b + i / 16] += q[i];
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

static void rms_norm(const float *x, const float *weight, float epsilon, size_t count, float *out)
{
    float squares[16] = {0.0f};
    float inverse;

    for (size_t i = 0; i < count; i++)
        squares[i % 16] += x[i] * x[i];
    inverse = 1.0f / sqrtf(fold(squares) / (float)count + epsilon);
    for (size_t i = 0; i < count; i++)
        out[i] = x[i] * inverse * weight[i];
}

static void gelu(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float argument = x[i] * fmaf(x[i] * x[i], XM_GELU_B, XM_GELU_A);
        float numerator = -FLT_MAX > x[i] ? -FLT_MAX : x[i]; /* -inf / inf would be NaN */

        x[i] = numerator / (1.0f + shared_exp(argument));
    }
}

/* x / (1 + exp(-steepness * x)) */
static float weighed_sigmoid(float x, float steepness)
{
    float numerator = -FLT_MAX > x ? -FLT_MAX : x; /* -inf / inf would be NaN */

    return numerator / (1.0f + shared_exp(-steepness * x));
}

static void swiglu(const float *gate, float *up, size_t count)
{
    for (size_t i = 0; i < count; i++)
        up[i] = weighed_sigmoid(gate[i], 1.0f) * up[i];
}

static void swiglu_clamped(const float *gate, float *up, size_t count)
{
    for (size_t i = 0; i < count; i++) { /* NaN stays NaN */
        float g = XM_SWIGLU_LIMIT < gate[i] ? XM_SWIGLU_LIMIT : gate[i];
        float u = XM_SWIGLU_LIMIT < up[i] ? XM_SWIGLU_LIMIT : up[i];

        u = u < -XM_SWIGLU_LIMIT ? -XM_SWIGLU_LIMIT : u;
        up[i] = weighed_sigmoid(g, XM_SWIGLU_STEEPNESS) * (u + 1.0f);
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

/* One query: `from` is the first token that it sees, `tokens` counts those up to its own. */
static void attend_query(const xm_attention_job *job, load_fn load, const float *query,
                         const float *sink, size_t from, size_t tokens, float *scores, float *out)
{
    for (size_t t = from / XM_KV_TOKENS * XM_KV_TOKENS; t < tokens; t += XM_KV_TOKENS) {
        float dot[XM_PANEL];

        float_dots(job->keys[t / XM_KV_TOKENS], load, query, (size_t)job->key_length, dot);
        for (size_t l = 0; l < XM_KV_TOKENS && t + l < tokens; l++)
            scores[t + l] = job->scale * dot[l];
    }
    if (sink)
        scores[tokens] = *sink;
    softmax(scores + from, tokens - from + (sink ? 1 : 0));
    for (size_t d = 0; d < (size_t)job->value_length; d++) {
        float acc = 0.0f;

        for (size_t t = from; t < tokens; t++) {
            const void *values = job->values[t / XM_KV_TOKENS];
            acc = fmaf(scores[t], load(values, t % XM_KV_TOKENS * (size_t)job->value_length + d),
                       acc);
        }
        out[d] = acc;
    }
}

static void attention(const xm_attention_job *job, load_fn load)
{
    for (int32_t i = 0; i < job->query_count; i++) {
        size_t position = (size_t)(i / job->heads), head = (size_t)(i % job->heads);
        size_t tokens = (size_t)job->first_count + position, window = (size_t)job->window;

        attend_query(job, load,
                     job->query + position * job->query_stride + head * (size_t)job->key_length,
                     job->sinks ? job->sinks + head : NULL,
                     window > 0 && tokens > window ? tokens - window : 0, tokens,
                     job->scores + (size_t)i * job->scores_stride,
                     job->out + position * job->out_stride + head * (size_t)job->value_length);
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
    .panels =
        {
            [XM_TYPE_F32] = panel_f32,
            [XM_TYPE_F16] = panel_f16,
            [XM_TYPE_BF16] = panel_bf16,
            [XM_TYPE_Q8_0] = panel_q8_0,
            [XM_TYPE_Q4_0] = panel_q4_0,
            [XM_TYPE_Q4_1] = panel_q4_1,
            [XM_TYPE_Q5_0] = panel_q5_0,
            [XM_TYPE_Q5_1] = panel_q5_1,
            [XM_TYPE_Q2_K] = panel_q2_k,
            [XM_TYPE_Q3_K] = panel_q3_k,
            [XM_TYPE_Q4_K] = panel_q4_k,
            [XM_TYPE_Q5_K] = panel_q5_k,
            [XM_TYPE_Q6_K] = panel_q6_k,
            [XM_TYPE_IQ4_NL] = panel_iq4_nl,
            [XM_TYPE_IQ4_XS] = panel_iq4_xs,
            [XM_TYPE_MXFP4] = panel_mxfp4,
        },
    .quantize_i16 = quantize_i16,
    .attention_f32 = attention_f32,
    .attention_f16 = attention_f16,
    .softmax = softmax,
    .log_sum_exp = log_sum_exp,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .gelu = gelu,
    .swiglu = swiglu,
    .swiglu_clamped = swiglu_clamped,
    .add = add,
    .scaled_add = scaled_add,
};
