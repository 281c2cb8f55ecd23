/*
 * test_weight_type.c - every row of the weight type table against the gguf Python package
 * (fixtures/make_weight_types.py says how its values were made), and rounding of F16 and BF16 over
 * all their values. Runs in the root of the source tree.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/random.h"
#include "format/weight_coding.h"
#include "xmoe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 256 }; /* elements per line of the fixture: a block, 32 at least */

static size_t count_of(const xm_weight_traits *traits)
{
    return traits->block_elements < 32 ? 32 : traits->block_elements;
}

static size_t parse_hex(const char *hex, unsigned char *out)
{
    size_t length = strlen(hex) / 2;
    for (size_t i = 0; i < length; i++) {
        unsigned int byte;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        out[i] = (unsigned char)byte;
    }
    return length;
}

static void test_agrees_with_gguf_package(void **state)
{
    (void)state;
    FILE *file = fopen("tests/fixtures/weight_types.txt", "r");
    if (file == NULL)
        fail_msg("no fixture: run this test in the root of the source tree");
    static char block_hex[8 * MOST + 1], values_hex[8 * MOST + 1];
    char direction, name[16];
    int lines = 0, lines_of_type[XM_TYPE_NUMBERS] = {0};
    while (fscanf(file, " %c %15s %2048s %2048s", &direction, name, block_hex, values_hex) == 4) {
        const xm_weight_traits *traits = xm_weight_traits_by_name(name);
        assert_non_null(traits);
        size_t count = count_of(traits);
        unsigned char block[4 * MOST], packed[4 * MOST];
        float values[MOST], unpacked[MOST];
        size_t bytes = parse_hex(block_hex, block);
        assert_int_equal(bytes, count / traits->block_elements * traits->block_bytes);
        assert_int_equal(parse_hex(values_hex, (unsigned char *)values), count * sizeof *values);
        lines++;
        if (direction == 'q') {
            xm_weights_from_f32(traits, values, NULL, packed, count);
            if (memcmp(packed, block, bytes) != 0)
                fail_msg("line %d: %s packs otherwise", lines, name);
        } else {
            xm_weights_to_f32(traits, block, unpacked, count);
            if (memcmp(unpacked, values, count * sizeof *values) != 0)
                fail_msg("line %d: %s unpacks otherwise", lines, name);
        }
        lines_of_type[traits->type]++;
    }
    fclose(file);
    size_t types;
    const xm_weight_traits *rows = xm_weight_traits_all(&types);
    for (size_t i = 0; i < types; i++)
        assert_true(lines_of_type[rows[i].type] >= 14);
}

static void test_table(void **state)
{
    (void)state;
    size_t count;
    const xm_weight_traits *rows = xm_weight_traits_all(&count);
    char names[200] = "";
    for (size_t i = 0; i < count; i++) {
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i > 0 ? "|" : "",
                 rows[i].name);
        assert_ptr_equal(xm_weight_traits_of((uint32_t)rows[i].type), &rows[i]);
        assert_ptr_equal(xm_weight_traits_by_name(rows[i].name), &rows[i]);
        assert_in_range(rows[i].type, 0, XM_TYPE_NUMBERS - 1);
        xm_weight_coding coding = xm_weight_coding_of(rows[i].type);
        assert_int_equal(coding.bits != 0, rows[i].split != NULL);
        if (coding.bits == 0) {
            assert_int_equal(rows[i].block_elements, 1);
            continue;
        }
        assert_int_equal(coding.elements, rows[i].block_elements);
        assert_true(coding.group == 16 || coding.group == 32);
        assert_in_range(coding.elements / coding.group, 1, XM_BLOCK_GROUPS);
    }
    assert_string_equal(names, xmoe_weight_types());
    assert_null(xm_weight_traits_of(9));
    assert_null(xm_weight_traits_of(UINT32_MAX));
    assert_null(xm_weight_traits_by_name("Q4_2"));
    assert_null(xm_weight_traits_by_name(""));
}

/* Any block taken apart and put together is the same block. */
static void test_split_and_join(void **state)
{
    (void)state;
    size_t count;
    const xm_weight_traits *rows = xm_weight_traits_all(&count);
    for (size_t i = 0; i < count; i++)
        for (uint64_t round = 0; rows[i].split != NULL && round < 100; round++) {
            uint8_t block[4 * MOST], again[4 * MOST];
            xm_weight_block parts;
            for (uint32_t j = 0; j < rows[i].block_bytes; j++)
                block[j] = (uint8_t)xm_random_bits(4, round, j);
            memset(again, 0xa5, sizeof again);
            rows[i].split(block, &parts);
            rows[i].join(&parts, again);
            assert_memory_equal(block, again, rows[i].block_bytes);
        }
}

/* Values of one magnitude per block. */
static void block_normals(const xm_weight_traits *traits, float *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double size = pow(2.0, (double)(i / count_of(traits) % 16) - 4.0);
        values[i] = (float)(xm_random_normal(1, 2, i) * size);
    }
}

/* The largest error of an element, as a share of the block's largest, with room for the rounding of
 * scales: half a step, or a whole one where codes reach further below 0 than above. Where scales
 * are searched for the least sum, one element may be two steps off. */
static float coarseness(const xm_weight_traits *traits)
{
    const xm_weight_coding coding = xm_weight_coding_of(traits->type);
    if (coding.bits == 0 || coding.bits == 8)
        return 0x1p-7f;
    if (coding.values != NULL)
        return 0.26f;
    float step = 2.0f / (float)((1 << coding.bits) - coding.minimum);
    return step * (coding.group_scales ? 2.0f : coding.minimum ? 0.52f : 1.05f);
}

/* What is unpacked is near, whatever the address of the blocks; plain types keep what they hold. */
static void test_round_trip_of_every_row(void **state)
{
    (void)state;
    enum { ELEMENTS = 4096 };
    size_t count;
    const xm_weight_traits *rows = xm_weight_traits_all(&count);
    unsigned char *memory = malloc(1 + 2 * ELEMENTS * sizeof(float));
    unsigned char *blocks = memory + 1, *again = blocks + ELEMENTS * sizeof(float);
    static float values[ELEMENTS], first[ELEMENTS], second[ELEMENTS];
    for (size_t i = 0; i < count; i++) {
        int block = (int)count_of(&rows[i]);
        block_normals(&rows[i], values, ELEMENTS);
        xm_weights_from_f32(&rows[i], values, NULL, blocks, ELEMENTS);
        xm_weights_to_f32(&rows[i], blocks, first, ELEMENTS);
        xm_weights_from_f32(&rows[i], first, NULL, again, ELEMENTS);
        xm_weights_to_f32(&rows[i], again, second, ELEMENTS);
        if (rows[i].block_elements == 1)
            assert_memory_equal(first, second, sizeof first);
        for (int j = 0; j < ELEMENTS; j++) {
            float largest = 0.0f; /* of its block */
            for (int k = j / block * block; k < j / block * block + block; k++)
                largest = fmaxf(largest, fabsf(values[k]));
            if (!(fabsf(values[j] - first[j]) <= largest * coarseness(&rows[i])))
                fail_msg("%s: element %d: %g of at most %g becomes %g", rows[i].name, j,
                         (double)values[j], (double)largest, (double)first[j]);
        }
    }
    free(memory);
}

/* Sum of weight * error^2 over values; weight 1 if NULL. */
static double squared_error(const float *values, const float *decoded, const float *weights,
                            size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        double error = (double)decoded[i] - (double)values[i];
        sum += error * error * (weights != NULL ? (double)weights[i] : 1.0);
    }
    return sum;
}

/* Elements as codes of a group whose scale just covers its range, as an exact float: a simple
 * quantiser that spends no bits on scales. */
static void plain_quantiser(const xm_weight_coding *coding, const float *values, float *decoded,
                            size_t count)
{
    for (size_t first = 0; first < count; first += coding->group) {
        const float *x = values + first;
        float low = 0.0f, high = 0.0f;
        for (size_t i = 0; i < coding->group; i++) {
            low = fminf(low, x[i]);
            high = fmaxf(high, x[i]);
        }
        float half = (float)(1 << (coding->bits - 1)) - 1.0f;
        float scale =
            coding->minimum ? (high - low) / (2.0f * half + 1.0f) : fmaxf(high, -low) / half;
        float offset = coding->minimum ? low : 0.0f;
        for (size_t i = 0; i < coding->group; i++)
            decoded[first + i] = roundf((x[i] - offset) / scale) * scale + offset;
    }
}

/* Types whose scales are searched beat the simple quantiser at their number of bits, and attend to
 * what is important. */
static void test_searched_scales(void **state)
{
    (void)state;
    enum { ELEMENTS = 256 * 40 };
    static float values[ELEMENTS], decoded[ELEMENTS], weighted[ELEMENTS], plain[ELEMENTS];
    static float importance[ELEMENTS];
    static unsigned char blocks[ELEMENTS * sizeof(float)];
    size_t count;
    const xm_weight_traits *rows = xm_weight_traits_all(&count);
    for (uint64_t i = 0; i < ELEMENTS; i++) {
        values[i] = 0.02f * (float)xm_random_normal(5, 2, i);
        importance[i] = expf(1.5f * (float)xm_random_normal(6, 2, i));
    }
    for (size_t i = 0; i < count; i++) {
        const xm_weight_coding coding = xm_weight_coding_of(rows[i].type);
        if (!coding.group_scales)
            continue;
        xm_weights_from_f32(&rows[i], values, NULL, blocks, ELEMENTS);
        xm_weights_to_f32(&rows[i], blocks, decoded, ELEMENTS);
        plain_quantiser(&coding, values, plain, ELEMENTS);
        double found = squared_error(values, decoded, NULL, ELEMENTS);
        double simple = squared_error(values, plain, NULL, ELEMENTS);
        if (!(found < 0.95 * simple))
            fail_msg("%s: squared error %g, a simple quantiser has %g", rows[i].name, found,
                     simple);
        xm_weights_from_f32(&rows[i], values, importance, blocks, ELEMENTS);
        xm_weights_to_f32(&rows[i], blocks, weighted, ELEMENTS);
        assert_true(squared_error(values, weighted, NULL, ELEMENTS) > found);
        assert_true(squared_error(values, weighted, importance, ELEMENTS) <
                    0.97 * squared_error(values, decoded, importance, ELEMENTS));
    }
}

/* What other code leaves undefined: values that are not finite, scales without a reciprocal. Runs
 * under the undefined behaviour sanitizer too. */
static void test_values_that_do_not_fit(void **state)
{
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-45f, -1e-38f, 1e30f};
    enum { KINDS = sizeof odd / sizeof *odd };
    size_t count;
    const xm_weight_traits *rows = xm_weight_traits_all(&count);
    for (size_t i = 0; i < count; i++)
        for (int mask = 1; mask < 1 << KINDS; mask++) {
            float values[MOST] = {0};
            unsigned char block[MOST * sizeof(float)];
            for (int j = 0; j < MOST; j++)
                if (mask >> j % KINDS & 1)
                    values[j] = odd[j % KINDS];
            xm_weights_from_f32(&rows[i], values, NULL, block, count_of(&rows[i]));
            xm_weights_to_f32(&rows[i], block, values, count_of(&rows[i]));
        }
}

/* --- single values ---------------------------------------------------------------------------- */

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* A half's value by its definition. */
static double half_value(uint16_t half)
{
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    double magnitude = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return half & 0x8000 ? -magnitude : magnitude;
}

static void test_every_half(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t half = (uint16_t)i;
        float value = xm_f16_to_f32(half);
        if ((half & 0x7fff) > 0x7c00) {
            assert_true(isnan(value));
            assert_int_equal(xm_f32_to_f16(value), half | 0x200); /* quiet */
            continue;
        }
        if ((half & 0x7fff) == 0x7c00)
            assert_true(isinf(value) && (value < 0) == (half >> 15));
        else
            assert_true((double)value == half_value(half));
        assert_int_equal(bits_of(value) >> 31, half >> 15);
        assert_int_equal(xm_f32_to_f16(value), half);
    }
}

/* Between every two neighbours: the middle goes to the even one, all else to the nearer. */
static void test_rounding_to_half(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 0x7c00; i++) {
        uint16_t low = (uint16_t)i, high = (uint16_t)(i + 1);
        double high_value = high == 0x7c00 ? 65536.0 : half_value(high); /* as if it went on */
        float middle = (float)((half_value(low) + high_value) / 2);
        assert_int_equal(xm_f32_to_f16(middle), low & 1 ? high : low);
        assert_int_equal(xm_f32_to_f16(nextafterf(middle, 0.0f)), low);
        assert_int_equal(xm_f32_to_f16(nextafterf(middle, INFINITY)), high);
        assert_int_equal(xm_f32_to_f16(-middle), 0x8000 | (low & 1 ? high : low));
    }
    assert_int_equal(xm_f32_to_f16(3e38f), 0x7c00);
    assert_int_equal(xm_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(xm_f32_to_f16(1e-45f), 0);
    assert_int_equal(xm_f32_to_f16(-1e-45f), 0x8000);
}

static void test_every_bf16(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t brain = (uint16_t)i;
        float value = xm_bf16_to_f32(brain);
        assert_int_equal(bits_of(value), i << 16);
        if ((brain & 0x7fff) > 0x7f80) {
            assert_int_equal(xm_f32_to_bf16(value), brain | 0x40);
            continue;
        }
        assert_int_equal(xm_f32_to_bf16(value), brain);
        if ((brain & 0x7fff) == 0x7f80)
            continue;
        uint32_t middle = i << 16 | 0x8000;
        float tie;
        memcpy(&tie, &middle, sizeof tie);
        assert_int_equal(xm_f32_to_bf16(tie), brain & 1 ? brain + 1 : brain);
        float away = tie < 0 ? -INFINITY : INFINITY;
        assert_int_equal(xm_f32_to_bf16(nextafterf(tie, 0.0f)), brain);
        assert_int_equal(xm_f32_to_bf16(nextafterf(tie, away)), brain + 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_agrees_with_gguf_package),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_split_and_join),
        cmocka_unit_test(test_round_trip_of_every_row),
        cmocka_unit_test(test_searched_scales),
        cmocka_unit_test(test_values_that_do_not_fit),
        cmocka_unit_test(test_every_half),
        cmocka_unit_test(test_rounding_to_half),
        cmocka_unit_test(test_every_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
