/*
 * kernels.h - the arithmetic of the forward pass: one table of functions per instruction set.
 *
 * Every variant (scalar, avx2, avx512) gives the same bits. The order of additions and every
 * rounding is part of each function's contract below, so that a result depends neither on the
 * machine, nor on the threads, nor on which rows share a batch. scalar.c is the reference and says
 * it in plain loops; a SIMD variant computes 16 outputs side by side, never parts of one sum,
 * unless the contract says "16 partial sums". fma(a, b, c) rounds once everywhere (fmaf in the
 * reference).
 *
 * Where a result is NaN, it is NaN in all variants; which NaN (sign, payload) is not promised.
 * Denormals are kept. All kernels want the default rounding mode.
 *
 * Weights are packed once at load (pack.c) into panels of 16 output rows with the rows' elements
 * side by side, the same layout for all variants. A panel holds, for k columns:
 *
 *   F32         float [k][16]
 *   F16, BF16   uint16_t [k][16]
 *   all others  blocks of the type's 32 or 256 columns, as layout.h says, by what the type's coding
 *               (format/weight_coding.h) has:
 *
 *     head      F16 scale[16] (MXFP4: E8M0 exponent[16]), and with minima F16 minimum[16]
 *     then per 32 columns, a part:
 *       int8 scale[16] per group of 16 or 32 columns, and with minima uint8 minimum[16] per group,
 *               if groups have integers of their own (K types, IQ4_XS)
 *       codes   int8:       int8 [16][16 rows][2]: pair j of row r is columns 2j and 2j + 1
 *               otherwise:  uint8 [8][16 rows][2]: the low nibble of [j][r][s] is the low nibble of
 *                           column 2j + s, the high nibble that of column 2(j + 8) + s
 *       high    codes of 5 or 6 bits: uint8 [2 halves][bits - 4][16 rows][2], planes of the bits
 *               above the nibbles: half h is columns 16h to 16h + 15; its pair j has its field (1
 *               bit, or 2) in plane j / (fields of a byte), the lowest field first
 *
 * So a matrix takes what it takes in the file plus up to 3 %: 4.5 bits of Q4_K become 4.63 (6 bits
 * of scale become 8), 6.56 of Q6_K stay. Codes of 2 and 3 bits are kept as nibbles for now (Q2_K
 * 5.13 bits instead of 2.63, Q3_K 4.56 instead of 3.44): planes without nibbles would keep theirs.
 *
 * Rows beyond the matrix in its last panel are zero bytes, which give zero outputs. Panels are
 * multiples of 32 bytes; their data need the alignment of elements only, 64 bytes are faster.
 *
 * Activations meet blocks as int16 with one scale per 32 columns: products of int8 and int16 add up
 * exactly in int32 (32 * 128 * 32767 < 2^31), and the rounding of activations to 15 bits stays far
 * below that of the weights.
 */
#ifndef XM_KERNELS_KERNELS_H
#define XM_KERNELS_KERNELS_H

#include "base/error.h"
#include "format/weight_type.h"

enum { XM_PANEL = 16 };     /* output rows of a panel, and lanes of every SIMD variant */
enum { XM_KV_TOKENS = 16 }; /* tokens of a KV block: a block's keys are one panel */

/* Rows of activations in the forms that kernels take, F32 or int16 (i16, scales and sums, made by
 * quantize_i16); a form that no kernel in use takes may be NULL. Row i starts at f32 + i * stride,
 * i16 + i * stride, scales + i * (stride / 32), sums + i * (stride / 16). stride is a multiple of
 * 32. Columns beyond k are not read. */
typedef struct {
    float *f32;
    int16_t *i16;
    float *scales; /* per 32 columns */
    int32_t *sums; /* per 16 columns: of i16 */
    size_t stride;
} xm_activations;

/* One call of a panel kernel: 16 outputs for each of row_count rows. */
typedef struct {
    const void *panel;
    size_t columns; /* k; whole blocks of the type */
    const xm_activations *x;
    const int32_t *rows; /* [row_count] row numbers in x */
    int32_t row_count;
    const float *bias; /* [lanes], added last; NULL: none */
    float *out;        /* output i, lane l at out[i * out_stride + l] */
    size_t out_stride;
    int32_t lanes; /* 1..16: outputs to write */
} xm_panel_job;

/* Attention of `heads` query heads that share one head of keys and values, at consecutive
 * positions: query i is head i % heads of position i / heads. Position p sees the tokens up to its
 * own, of which there are first_count + p, or the last `window` of them. Tokens lie in KV blocks of
 * 16: keys of a block are [key_length][16 tokens], values [16 tokens][value_length], F32 or F16. A
 * whole block is readable memory, but what lies beyond a query's tokens has no effect, whatever it
 * is. */
typedef struct {
    const float *query; /* position p, head h at query + p * query_stride + h * key_length */
    size_t query_stride;
    int32_t heads;       /* >= 1 */
    int32_t query_count; /* 1..16, whole positions */
    int32_t first_count; /* >= 1 */
    int32_t window;      /* tokens that a position sees at most; 0: all up to its own */
    int32_t key_length, value_length;
    float scale;
    const float *sinks;      /* [heads]: the score of one more token, without a value; NULL: none */
    const void *const *keys; /* per KV block */
    const void *const *values; /* per KV block */
    float *scores;             /* scratch: query_count * scores_stride floats */
    size_t scores_stride;      /* >= tokens of the last query + 1, rounded up to 16 */
    float *out;                /* position p, head h at out + p * out_stride + h * value_length */
    size_t out_stride;
} xm_attention_job;

typedef void (*xm_panel_fn)(const xm_panel_job *job);

typedef struct xm_kernels {
    const char *name;

    /* out = x . W^T + bias for one panel, by the number of its weight type; NULL for numbers that
     * are no type:
     *
     *   F32 F16 BF16   two sums, over even and over odd columns, each acc = fma(w, x, acc) in order
     *                  of columns from +0; result (even + odd), then + bias. Weights convert
     *                  exactly. Any k >= 1.
     *   all others     per group of 16 or 32 columns, in order: s = sum of value * x in int32
     *                  (exact); w_scale = scale * (float)group's scale (exact), or the scale alone;
     *                  acc = fma((float)s, w_scale * x_scale, acc) from +0; then with minima
     *                  acc = fma(w_minimum, (float)x_sum * x_scale, acc), w_minimum like w_scale,
     *                  x_sum the group's sum of x in int32. After all groups + bias. */
    xm_panel_fn panels[XM_TYPE_NUMBERS];

    /* Per 32 values: scale = max|x| / 32767, q = round-to-nearest-even(x * (1 / scale)); per 16 of
     * them their sum in sums. count is a multiple of 32. A block whose maximum is below 2^-100
     * counts as zeros: scale 0, q 0. A block with a NaN or infinity anywhere gets scale NaN, q 0,
     * so that every output that meets it is NaN: the failure stays visible. */
    void (*quantize_i16)(const float *x, size_t count, int16_t *q, float *scales, int32_t *sums);

    /* Scores s_t = scale * (q . k_t) with the dot as in F32 panels over key_length; softmax as
     * below over the query's tokens, the sink last; out_d = acc over tokens in order, acc =
     * fma(p_t, v_t[d], acc) from +0. Leaves p_t in scores; those beyond the query's tokens are
     * undefined. */
    void (*attention_f32)(const xm_attention_job *job);
    void (*attention_f16)(const xm_attention_job *job);

    /* In place, count >= 1. m = max; e_i = exp(x_i - m) (the shared polynomial, exp.h); sum in 16
     * partial sums (i mod 16, in order), folded 16->8->4->2->1 by adding the upper half to the
     * lower; x_i = e_i / sum. All NaN if an x_i is NaN or +inf, or if all are -inf. */
    void (*softmax)(float *x, size_t count);
    /* log(sum exp x_i) = m + logf(sum) with the same m, exp and partial sums; logf is libm's. */
    float (*log_sum_exp)(const float *x, size_t count);
    /* mean = sum x_i / count, variance = sum (x_i - mean)^2 / count, both sums by 16 partial sums
     * folded as above; out = (x - mean) * (1 / sqrt(variance + epsilon)) * weight + bias, left to
     * right, no fma. count >= 1. out may be x. */
    void (*layer_norm)(const float *x, const float *weight, const float *bias, float epsilon,
                       size_t count, float *out);
    /* mean = sum x_i^2 / count by 16 partial sums folded as above; out = x * (1 / sqrt(mean +
     * epsilon)) * weight, left to right. count >= 1. out may be x. */
    void (*rms_norm)(const float *x, const float *weight, float epsilon, size_t count, float *out);
    /* In place: x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))), computed as x / (1 +
     * exp(-2u)) with the shared exp (exp.h); within 1e-6 relative or 1e-7 absolute of the exact
     * value. -inf gives -0, +inf +inf, NaN NaN. */
    void (*gelu)(float *x, size_t count);
    /* up = gate / (1 + exp(-gate)) * up in place, with the shared exp. A gate of -inf counts as the
     * lowest finite number. */
    void (*swiglu)(const float *gate, float *up, size_t count);
    /* GPT-OSS: g = gate, at most 7; u = up, within -7 to 7; up = g / (1 + exp(-1.702 g)) * (u + 1).
     */
    void (*swiglu_clamped)(const float *gate, float *up, size_t count);
    void (*add)(float *x, const float *y, size_t count); /* x += y */
    void (*scaled_add)(float *x, float scale, const float *y,
                       size_t count); /* x = fma(scale, y, x) */
} xm_kernels;

/* The table for isa ("scalar", "avx2", "avx512"); NULL: $XMOE_ISA if set, else the best that this
 * CPU runs. Error if unknown or not runnable here. avx512 needs F, BW, DQ, VL and VNNI. */
xmoe_status xm_kernels_select(const char *isa, const xm_kernels **kernels, xmoe_error *error);
/* The variants that this CPU can run, scalar first; for tests. Returns how many (at most 4). */
int32_t xm_kernels_available(const xm_kernels *tables[4]);

/* --- packed matrices (pack.c) --- */

typedef struct {
    xm_weight_type type;
    int32_t rows, columns;
    int32_t panels;     /* ceil(rows / 16) */
    size_t panel_bytes; /* xm_panel_bytes(type, columns), a multiple of 32 */
    const uint8_t *data;
} xm_matrix;

/* True if a matrix of this type takes int16 activations rather than F32. */
bool xm_type_takes_i16(xm_weight_type type);
/* Bytes of one packed panel of so many columns. */
size_t xm_panel_bytes(xm_weight_type type, size_t columns);
/* Packs panels [first, last) of a row-major GGUF matrix into out + first * panel_bytes. */
void xm_pack_panels(xm_weight_type type, const void *source, size_t rows, size_t columns,
                    int32_t first, int32_t last, uint8_t *out);
/* Row `row` of a packed matrix back to F32 (embedding look-up): values[columns]. */
void xm_unpack_row(const xm_matrix *matrix, int32_t row, float *values);

/* Runs panels [first, last) of a matrix over rows: the result of rows[i] and output o goes to
 * out[i * out_stride + o]. bias (by output) may be NULL. */
void xm_matrix_panels(const xm_kernels *kernels, const xm_matrix *matrix, const float *bias,
                      const xm_activations *x, const int32_t *rows, int32_t row_count,
                      int32_t first, int32_t last, float *out, size_t out_stride);

#endif
