/*
 * lanes_avx2.h - the types and functions of lanes.h on AVX2, FMA and F16C, two registers each; and
 * the tile sizes that fit its 16 registers. Included by lanes.h only.
 */
#ifndef XM_KERNELS_LANES_AVX2_H
#define XM_KERNELS_LANES_AVX2_H

enum {
    XM_FLOAT_TILE = 3,   /* rows at once: 2 sums each, a weight per column parity */
    XM_BLOCK_TILE = 4,   /* rows at once: an int sum each; float sums wait in memory */
    XM_VALUE_CHUNKS = 1, /* 16 columns of values at once for each of several queries */
};

typedef struct {
    __m256 low, high;
} xm_lanes;

typedef struct {
    __m256i low, high;
} xm_ints, xm_pairs;

XM_INLINE xm_lanes xm_lanes_set(float x)
{
    return (xm_lanes){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

XM_INLINE xm_lanes xm_lanes_load(const float *p)
{
    return (xm_lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

XM_INLINE void xm_lanes_store(float *p, xm_lanes x)
{
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}

/* All ones in the first n lanes. */
XM_INLINE xm_ints xm_first_lanes(size_t n)
{
    __m256i count = _mm256_set1_epi32((int)n);

    return (xm_ints){_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
                     _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}

/* The first n <= 16 lanes from memory, the others from rest; reads no byte beyond. */
XM_INLINE xm_lanes xm_lanes_load_first(const float *p, size_t n, xm_lanes rest)
{
    xm_ints mask = xm_first_lanes(n);
    __m256 low = _mm256_maskload_ps(p, mask.low);
    __m256 high = _mm256_maskload_ps(p + 8, mask.high);

    return (xm_lanes){_mm256_blendv_ps(rest.low, low, _mm256_castsi256_ps(mask.low)),
                      _mm256_blendv_ps(rest.high, high, _mm256_castsi256_ps(mask.high))};
}

XM_INLINE void xm_lanes_store_first(float *p, size_t n, xm_lanes x)
{
    xm_ints mask = xm_first_lanes(n);

    _mm256_maskstore_ps(p, mask.low, x.low);
    _mm256_maskstore_ps(p + 8, mask.high, x.high);
}

/* The lanes from n on become +0. */
XM_INLINE xm_lanes xm_lanes_keep_first(xm_lanes x, size_t n)
{
    xm_ints mask = xm_first_lanes(n);

    return (xm_lanes){_mm256_and_ps(x.low, _mm256_castsi256_ps(mask.low)),
                      _mm256_and_ps(x.high, _mm256_castsi256_ps(mask.high))};
}

XM_INLINE xm_lanes xm_lanes_load_f16(const uint16_t *p)
{
    const __m128i *halves = (const __m128i *)(const void *)p;

    return (xm_lanes){_mm256_cvtph_ps(_mm_loadu_si128(halves)),
                      _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

XM_INLINE xm_lanes xm_lanes_load_f16_first(const uint16_t *p, size_t n)
{
    uint16_t copy[16] = {0};

    memcpy(copy, p, n * sizeof *p);
    return xm_lanes_load_f16(copy);
}

XM_INLINE __m256 xm_bf16_half(const uint16_t *p)
{
    __m128i halves = _mm_loadu_si128((const __m128i *)(const void *)p);

    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

XM_INLINE xm_lanes xm_lanes_load_bf16(const uint16_t *p)
{
    return (xm_lanes){xm_bf16_half(p), xm_bf16_half(p + 8)};
}

/* 16 int8 */
XM_INLINE xm_lanes xm_lanes_load_i8(const uint8_t *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);

    return (xm_lanes){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                      _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

XM_INLINE __m256 xm_e8m0_half(__m128i bytes)
{
    __m256i e = _mm256_cvtepu8_epi32(bytes);
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i denormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x200000), e);
    __m256i small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);

    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, denormal, small));
}

/* 16 E8M0 exponents e as 2^(e - 128), denormals for 0 and 1 */
XM_INLINE xm_lanes xm_lanes_load_e8m0(const uint8_t *p)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);

    return (xm_lanes){xm_e8m0_half(bytes), xm_e8m0_half(_mm_srli_si128(bytes, 8))};
}

/* Rounds to the nearest (even) integers, which must fit int16. */
XM_INLINE void xm_lanes_store_i16(int16_t *p, xm_lanes x)
{
    __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));

    _mm256_storeu_si256((__m256i *)(void *)p, _mm256_permute4x64_epi64(mixed, 0xd8));
}

XM_INLINE xm_lanes xm_lanes_add(xm_lanes a, xm_lanes b)
{
    return (xm_lanes){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

XM_INLINE xm_lanes xm_lanes_sub(xm_lanes a, xm_lanes b)
{
    return (xm_lanes){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}

XM_INLINE xm_lanes xm_lanes_mul(xm_lanes a, xm_lanes b)
{
    return (xm_lanes){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

XM_INLINE xm_lanes xm_lanes_div(xm_lanes a, xm_lanes b)
{
    return (xm_lanes){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}

/* a * b + c, rounded once */
XM_INLINE xm_lanes xm_lanes_fma(xm_lanes a, xm_lanes b, xm_lanes c)
{
    return (xm_lanes){_mm256_fmadd_ps(a.low, b.low, c.low),
                      _mm256_fmadd_ps(a.high, b.high, c.high)};
}

/* x, of which the compiler no longer knows that it came from memory: else it would load it anew for
 * each use. */
XM_INLINE xm_lanes xm_lanes_hold(xm_lanes x)
{
    __asm__("" : "+x"(x.low), "+x"(x.high));
    return x;
}

/* a > b ? a : b, so b if either is NaN */
XM_INLINE xm_lanes xm_lanes_max(xm_lanes a, xm_lanes b)
{
    return (xm_lanes){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

XM_INLINE xm_lanes xm_lanes_abs(xm_lanes x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);

    return (xm_lanes){_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

/* a < b ? x : y */
XM_INLINE xm_lanes xm_lanes_where_less(xm_lanes a, xm_lanes b, xm_lanes x, xm_lanes y)
{
    return (xm_lanes){_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
                      _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}

/* True if every lane is below the limit (so none is NaN). */
XM_INLINE bool xm_lanes_all_less(xm_lanes x, float limit)
{
    __m256 bound = _mm256_set1_ps(limit);
    __m256 low = _mm256_cmp_ps(x.low, bound, _CMP_LT_OQ);
    __m256 high = _mm256_cmp_ps(x.high, bound, _CMP_LT_OQ);

    return _mm256_movemask_ps(_mm256_and_ps(low, high)) == 0xff;
}

XM_INLINE __m256 xm_power_half(__m256 t)
{
    __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(t), 23);

    return _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(0x3f800000)));
}

/* 2^n for t = XM_EXP_SHIFT + n */
XM_INLINE xm_lanes xm_lanes_power_of_two(xm_lanes t)
{
    return (xm_lanes){xm_power_half(t.low), xm_power_half(t.high)};
}

/* The eight sums of lower and upper half. */
XM_INLINE __m256 xm_lanes_fold(xm_lanes x)
{
    return _mm256_add_ps(x.low, x.high);
}

XM_INLINE __m256 xm_lanes_fold_max(xm_lanes x)
{
    return _mm256_max_ps(x.low, x.high);
}

XM_INLINE xm_ints xm_ints_zero(void)
{
    return (xm_ints){_mm256_setzero_si256(), _mm256_setzero_si256()};
}

XM_INLINE xm_lanes xm_ints_to_lanes(xm_ints x)
{
    return (xm_lanes){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}

XM_INLINE xm_ints xm_ints_set(int32_t x)
{
    return (xm_ints){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

XM_INLINE xm_ints xm_ints_add(xm_ints a, xm_ints b)
{
    return (xm_ints){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

/* 32 int8 */
XM_INLINE xm_pairs xm_pairs_load_i8(const uint8_t *p)
{
    const __m128i *bytes = (const __m128i *)(const void *)p;

    return (xm_pairs){_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes)),
                      _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + 1))};
}

/* 32 bytes of two nibbles: the low and the high ones as they are, 0..15. */
XM_INLINE void xm_pairs_load_u4(const uint8_t *p, xm_pairs *low, xm_pairs *high)
{
    const __m128i *bytes = (const __m128i *)(const void *)p;
    __m256i mask = _mm256_set1_epi16(15);
    __m256i first = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes));
    __m256i second = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes + 1));

    *low = (xm_pairs){_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)};
    *high = (xm_pairs){_mm256_srli_epi16(first, 4), _mm256_srli_epi16(second, 4)};
}

/* 32 bytes of two nibbles: what the table has for the low and for the high ones. */
XM_INLINE void xm_pairs_load_table(const uint8_t *p, const int8_t table[16], xm_pairs *low,
                                   xm_pairs *high)
{
    __m256i nibble = _mm256_set1_epi8(15);
    __m256i values =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)table));
    __m256i bytes = _mm256_loadu_si256((const __m256i *)(const void *)p);
    __m256i first = _mm256_shuffle_epi8(values, _mm256_and_si256(bytes, nibble));
    __m256i second =
        _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));

    *low = (xm_pairs){_mm256_cvtepi8_epi16(_mm256_castsi256_si128(first)),
                      _mm256_cvtepi8_epi16(_mm256_extracti128_si256(first, 1))};
    *high = (xm_pairs){_mm256_cvtepi8_epi16(_mm256_castsi256_si128(second)),
                       _mm256_cvtepi8_epi16(_mm256_extracti128_si256(second, 1))};
}

/* 32 bytes as they are, 0..255 */
XM_INLINE xm_pairs xm_pairs_load_u8(const uint8_t *p)
{
    const __m128i *bytes = (const __m128i *)(const void *)p;

    return (xm_pairs){_mm256_cvtepu8_epi16(_mm_loadu_si128(bytes)),
                      _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes + 1))};
}

/* w | (x << up & mask); up < 0: x >> -up. Constants. */
XM_INLINE xm_pairs xm_pairs_or_bits(xm_pairs w, xm_pairs x, int up, int mask)
{
    __m256i bits = _mm256_set1_epi16((short)mask);
    __m256i low = up > 0 ? _mm256_slli_epi16(x.low, up) : _mm256_srli_epi16(x.low, -up);
    __m256i high = up > 0 ? _mm256_slli_epi16(x.high, up) : _mm256_srli_epi16(x.high, -up);

    return (xm_pairs){_mm256_or_si256(w.low, _mm256_and_si256(low, bits)),
                      _mm256_or_si256(w.high, _mm256_and_si256(high, bits))};
}

/* sum + w[0] * x[0] + w[1] * x[1] in every lane, the same pair x for all lanes */
XM_INLINE xm_ints xm_ints_dot(xm_ints sum, xm_pairs w, const int16_t x[2])
{
    int32_t pair;
    __m256i both;

    memcpy(&pair, x, sizeof pair);
    both = _mm256_set1_epi32(pair);
    sum.low = _mm256_add_epi32(sum.low, _mm256_madd_epi16(w.low, both));
    sum.high = _mm256_add_epi32(sum.high, _mm256_madd_epi16(w.high, both));
    /* The compiler would rearrange a long row of integer additions, and spill their terms. */
    __asm__("" : "+x"(sum.low), "+x"(sum.high));
    return sum;
}

#endif
