/*
 * test_utf8.c - bytes that may not be UTF-8: text streamed out in whole characters, text split on
 * the way in, and GPT-2's printable alphabet of bytes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "format/split.h"
#include "format/tokenizer.h"
#include "format/utf8.h"

#include <string.h>

#define R "\xEF\xBF\xBD"

static const struct {
    const char *bytes, *text;
} streams[] = {
    {"plain", "plain"},
    {"h\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80!", "h\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80!"},
    {"\xF0\x9F\x98\x80\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80\xF0\x9F\x98\x80"},
    {"\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80", "\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80"},
    {"\xE2\x82", R},
    {"\xF0\x9F\x98", R},
    {"\xC3", R},
    {"\xFF", R},
    {"\xC3\xC3\xA9", R "\xC3\xA9"},
    {"\xE2\x82"
     "A",
     R "A"},
    /* Tables 3-8 to 3-11 of the Unicode standard. */
    {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82"
     "A",
     R R R R R R R R "A"},
    {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF"
     "A",
     R R R R R R R R "A"},
    {"\xF4\x91\x92\x93\xFF"
     "A\x80\xBF"
     "B",
     R R R R R "A" R R "B"},
    {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF"
     "A",
     R R R R "A"},
};

/* However the bytes are cut, the same text comes out, and only whole characters on the way. */
static void test_stream(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof streams / sizeof *streams; s++) {
        size_t length = strlen(streams[s].bytes);
        for (unsigned int cuts = 0; cuts < 1u << (length - 1); cuts += length < 12 ? 1 : 5) {
            xm_utf8_stream stream = {0};
            xm_buffer out = {0};
            for (size_t start = 0, i = 1; i <= length; i++) {
                if (i < length && (cuts >> (i - 1) & 1) == 0)
                    continue;
                xm_utf8_stream_push(&stream, streams[s].bytes + start, i - start, &out);
                assert_memory_equal(out.data != NULL ? out.data : "", streams[s].text, out.length);
                start = i;
            }
            xm_utf8_stream_end(&stream, &out);
            xm_utf8_stream_end(&stream, &out); /* nothing more */
            assert_string_equal(out.data, streams[s].text);
            xm_buffer_free(&out);
        }
    }
}

static xmoe_status note_piece(void *context, const char *piece, size_t length)
{
    (void)piece;
    size_t **next = context;
    *(*next)++ = length;
    return XMOE_OK;
}

/* Bytes that are not UTF-8 are cut as U+FFFD is: its class is that of '!'. */
static void test_split_of_invalid_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t lengths[6];
    } cases[] = {
        {"ab\xFF\xFE!cd", {2, 3, 2}},      {"x \xFFy", {1, 2, 1}},
        {"\xE2\x82 \xE2\x82\xAC", {2, 4}}, {"a\xC3", {1, 1}},
        {"1\xED\xA0\x80z", {1, 3, 1}},     {"  \x80'll", {1, 3, 2}},
        {"\xF4\x90\x80\x80 a", {4, 2}},
    };
    xm_splitter *splitter;
    assert_int_equal(xm_splitter_create(xm_split_gpt2(), &splitter, NULL), XMOE_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t lengths[32] = {0}, *next = lengths;
        assert_int_equal(
            xm_split(splitter, cases[i].text, strlen(cases[i].text), note_piece, &next, NULL),
            XMOE_OK);
        assert_memory_equal(lengths, cases[i].lengths, sizeof cases[i].lengths);
    }
    xm_splitter_free(splitter);
}

static void test_printable_alphabet(void **state)
{
    (void)state;
    bool taken[324] = {false};
    for (int byte = 0; byte < 256; byte++) {
        uint32_t code_point = xm_byte_to_printable((uint8_t)byte);
        assert_in_range(code_point, 33, 323);
        assert_false(taken[code_point]);
        taken[code_point] = true;
        assert_int_equal(xm_printable_to_byte(code_point), byte);
    }
    assert_int_equal(xm_byte_to_printable(' '), 0x120);
    assert_int_equal(xm_byte_to_printable('\n'), 0x10A);
    for (uint32_t code_point = 0; code_point < 70000; code_point++)
        if (code_point > 323 || !taken[code_point])
            assert_int_equal(xm_printable_to_byte(code_point), -1);
}

/* Text for messages: whole characters, no control sequences, never more than fits. */
static void test_printable_text(void **state)
{
    (void)state;
    static const struct {
        const char *text, *shown; /* in 8 bytes with the NUL */
    } cases[] = {
        {"", ""},
        {"seven77", "seven77"},
        {"eight888", "eigh..."},
        {"a\x1b[2J\x7f", "a?[2J?"},
        {"\xC2\x9B"
         "0m",
         "?0m"},
        {"\xFF\xC3x", "??x"},
        {"abc\xE2\x82\xAC", "abc\xE2\x82\xAC"},
        {"ab\xE2\x82\xAC\xE2\x82\xAC", "ab..."},
        {"abc\xC3\xA9\xC3\xA9\xC3\xA9", "abc..."},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char out[8];
        xm_utf8_printable(cases[i].text, strlen(cases[i].text), out, sizeof out);
        assert_string_equal(out, cases[i].shown);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_split_of_invalid_bytes),
        cmocka_unit_test(test_printable_alphabet),
        cmocka_unit_test(test_printable_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
