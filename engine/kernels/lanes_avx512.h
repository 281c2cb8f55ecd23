/*
 * lanes_avx512.h - the types and functions of lanes.h on AVX-512 (F, BW, DQ, VL, VNNI), one
 * register each; and the tile sizes that fit its 32 registers. Included by lanes.h only.
 */
#ifndef XM_KERNELS_LANES_AVX512_H
#define XM_KERNELS_LANES_AVX512_H

enum {
    XM_FLOAT_TILE = 8,   /* rows at once: 2 sums each, a weight per column parity */
    XM_BLOCK_TILE = 8,   /* rows at once: an int and a float sum each */
    XM_VALUE_CHUNKS = 4, /* 16 columns of values at once for each of several queries */
};

typedef __m512 xm_lanes;
typedef __m512i xm_ints;
typedef __m512i xm_pairs;

XM_INLINE xm_lanes xm_lanes_set(float x)
{
    return _mm512_set1_ps(x);
}

XM_INLINE xm_lanes xm_lanes_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

XM_INLINE void xm_lanes_store(float *p, xm_lanes x)
{
    _mm512_storeu_ps(p, x);
}

XM_INLINE __mmask16 xm_first_lanes(size_t n)
{
    return (__mmask16)((1u << n) - 1);
}

/* The first n <= 16 lanes from memory, the others from rest; reads no byte beyond. */
XM_INLINE xm_lanes xm_lanes_load_first(const float *p, size_t n, xm_lanes rest)
{
    return _mm512_mask_loadu_ps(rest, xm_first_lanes(n), p);
}

XM_INLINE void xm_lanes_store_first(float *p, size_t n, xm_lanes x)
{
    _mm512_mask_storeu_ps(p, xm_first_lanes(n), x);
}

/* The lanes from n on become +0. */
XM_INLINE xm_lanes xm_lanes_keep_first(xm_lanes x, size_t n)
{
    return _mm512_maskz_mov_ps(xm_first_lanes(n), x);
}

XM_INLINE xm_lanes xm_lanes_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

XM_INLINE xm_lanes xm_lanes_load_f16_first(const uint16_t *p, size_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(xm_first_lanes(n), p));
}

XM_INLINE xm_lanes xm_lanes_load_bf16(const uint16_t *p)
{
    __m256i halves = _mm256_loadu_si256((const __m256i *)(const void *)p);

    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

/* 16 int8 */
XM_INLINE xm_lanes xm_lanes_load_i8(const uint8_t *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);

    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

/* 16 E8M0 exponents e as 2^(e - 128), denormals for 0 and 1 */
XM_INLINE xm_lanes xm_lanes_load_e8m0(const uint8_t *p)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    __m512i denormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x200000), e);
    __mmask16 small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));

    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, small, denormal));
}

/* Rounds to the nearest (even) integers, which must fit int16. */
XM_INLINE void xm_lanes_store_i16(int16_t *p, xm_lanes x)
{
    __m256i halves = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));

    _mm256_storeu_si256((__m256i *)(void *)p, halves);
}

XM_INLINE xm_lanes xm_lanes_add(xm_lanes a, xm_lanes b)
{
    return _mm512_add_ps(a, b);
}

XM_INLINE xm_lanes xm_lanes_sub(xm_lanes a, xm_lanes b)
{
    return _mm512_sub_ps(a, b);
}

XM_INLINE xm_lanes xm_lanes_mul(xm_lanes a, xm_lanes b)
{
    return _mm512_mul_ps(a, b);
}

XM_INLINE xm_lanes xm_lanes_div(xm_lanes a, xm_lanes b)
{
    return _mm512_div_ps(a, b);
}

/* a * b + c, rounded once */
XM_INLINE xm_lanes xm_lanes_fma(xm_lanes a, xm_lanes b, xm_lanes c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* x, of which the compiler no longer knows that it came from memory: else it would load it anew for
 * each use. */
XM_INLINE xm_lanes xm_lanes_hold(xm_lanes x)
{
    __asm__("" : "+v"(x));
    return x;
}

/* a > b ? a : b, so b if either is NaN */
XM_INLINE xm_lanes xm_lanes_max(xm_lanes a, xm_lanes b)
{
    return _mm512_max_ps(a, b);
}

XM_INLINE xm_lanes xm_lanes_abs(xm_lanes x)
{
    return _mm512_abs_ps(x);
}

/* a < b ? x : y */
XM_INLINE xm_lanes xm_lanes_where_less(xm_lanes a, xm_lanes b, xm_lanes x, xm_lanes y)
{
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}

/* True if every lane is below the limit (so none is NaN). */
XM_INLINE bool xm_lanes_all_less(xm_lanes x, float limit)
{
    return _mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_LT_OQ) == 0xffff;
}

/* 2^n for t = XM_EXP_SHIFT + n */
XM_INLINE xm_lanes xm_lanes_power_of_two(xm_lanes t)
{
    __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(t), 23);

    return _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(0x3f800000)));
}

/* The eight sums of lower and upper half. */
XM_INLINE __m256 xm_lanes_fold(xm_lanes x)
{
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

XM_INLINE __m256 xm_lanes_fold_max(xm_lanes x)
{
    return _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}

XM_INLINE xm_ints xm_ints_zero(void)
{
    return _mm512_setzero_si512();
}

XM_INLINE xm_lanes xm_ints_to_lanes(xm_ints x)
{
    return _mm512_cvtepi32_ps(x);
}

XM_INLINE xm_ints xm_ints_set(int32_t x)
{
    return _mm512_set1_epi32(x);
}

XM_INLINE xm_ints xm_ints_add(xm_ints a, xm_ints b)
{
    return _mm512_add_epi32(a, b);
}

/* 32 int8 */
XM_INLINE xm_pairs xm_pairs_load_i8(const uint8_t *p)
{
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* 32 bytes of two nibbles: the low and the high ones as they are, 0..15. */
XM_INLINE void xm_pairs_load_u4(const uint8_t *p, xm_pairs *low, xm_pairs *high)
{
    __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));

    *low = _mm512_and_si512(words, _mm512_set1_epi16(15));
    *high = _mm512_srli_epi16(words, 4);
}

/* 32 bytes of two nibbles: what the table has for the low and for the high ones. */
XM_INLINE void xm_pairs_load_table(const uint8_t *p, const int8_t table[16], xm_pairs *low,
                                   xm_pairs *high)
{
    __m256i nibble = _mm256_set1_epi8(15);
    __m256i values =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
    __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)p);
    __m256i above = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble);

    *low = _mm512_cvtepi8_epi16(_mm256_shuffle_epi8(values, _mm256_and_si256(bytes, nibble)));
    *high = _mm512_cvtepi8_epi16(_mm256_shuffle_epi8(values, above));
}

/* 32 bytes as they are, 0..255 */
XM_INLINE xm_pairs xm_pairs_load_u8(const uint8_t *p)
{
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* w | (x << up & mask); up < 0: x >> -up. Constants. */
XM_INLINE xm_pairs xm_pairs_or_bits(xm_pairs w, xm_pairs x, int up, int mask)
{
    __m512i bits = _mm512_set1_epi16((short)mask);
    __m512i moved = up > 0 ? _mm512_slli_epi16(x, up) : _mm512_srli_epi16(x, -up);

    return _mm512_or_si512(w, _mm512_and_si512(moved, bits));
}

/* sum + w[0] * x[0] + w[1] * x[1] in every lane, the same pair x for all lanes */
XM_INLINE xm_ints xm_ints_dot(xm_ints sum, xm_pairs w, const int16_t x[2])
{
    int32_t pair;

    memcpy(&pair, x, sizeof pair);
    return _mm512_dpwssd_epi32(sum, w, _mm512_set1_epi32(pair));
}

#endif
