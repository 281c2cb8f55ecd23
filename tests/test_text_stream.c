/*
 * test_text_stream.c - text out of token bytes: characters kept whole, stop strings found however
 * the bytes are cut, held-back text released.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/random.h"
#include "serve/text_stream.h"

#include <string.h>

typedef struct {
    char text[256];
    size_t length;
    bool stopped;
} result;

static void give_out(xm_text_stream *stream, result *r)
{
    memcpy(r->text + r->length, stream->text.data != NULL ? stream->text.data : "",
           stream->released);
    r->length += stream->released;
    r->text[r->length] = '\0';
    xm_text_stream_consume(stream);
}

/* Pushes text in pieces whose lengths depend on seed (0: all at once). */
static result stream_text(const char *text, size_t length, const char *const *stops, size_t count,
                          uint64_t seed)
{
    xm_text_stream stream = {0};
    xm_stop_set set = {0};
    result r = {0};
    assert_true(xm_stop_set_init(&set, stops, count));
    for (size_t at = 0; at < length && !r.stopped;) {
        size_t piece = seed == 0 ? length : 1 + xm_random_bits(seed, 1, at) % 4;
        piece = piece < length - at ? piece : length - at;
        r.stopped = xm_text_stream_push(&stream, text + at, piece, &set);
        at += piece;
        give_out(&stream, &r);
    }
    xm_text_stream_finish(&stream);
    give_out(&stream, &r);
    xm_text_stream_free(&stream);
    xm_stop_set_free(&set);
    return r;
}

static void assert_streams_to(const char *text, const char *const *stops, size_t count,
                              const char *expected, bool stopped)
{
    for (uint64_t seed = 0; seed < 40; seed++) {
        result r = stream_text(text, strlen(text), stops, count, seed);
        assert_string_equal(r.text, expected);
        assert_int_equal(r.stopped, stopped);
    }
}

static void stops_are_found_however_the_text_is_cut(void **state)
{
    (void)state;
    const char *one[] = {"END"};
    const char *nested[] = {"abcd", "bc", "\n\nUser:"};
    const char *accents[] = {"\xC3\xA9t\xC3\xA9"}; /* été */
    assert_streams_to("some text END more", one, 1, "some text ", true);
    assert_streams_to("EEENEND", one, 1, "EEEN", true);
    assert_streams_to("ENENEN", one, 1, "ENENEN", false);
    assert_streams_to("EN", one, 1, "EN", false);
    assert_streams_to("END", one, 1, "", true);
    assert_streams_to("x\n\nUser: hello", nested, 3, "x", true);
    assert_streams_to("x\n\nUse: a", nested, 3, "x\n\nUse: a", false);
    assert_streams_to("en \xC3\xA9t\xC3\xA9 !", accents, 1, "en ", true);
    assert_streams_to("en \xC3\xA9t\xC3\xA8 !", accents, 1, "en \xC3\xA9t\xC3\xA8 !", false);
    assert_streams_to("no stops at all", NULL, 0, "no stops at all", false);
}

/* As if one had looked after every byte: the order of the list and the cuts do not matter. */
static void the_first_complete_stop_wins(void **state)
{
    (void)state;
    const char *stops[] = {"late", "early"};
    const char *inside[] = {"abcd", "bc"};
    const char *behind[] = {"cd", "abcd"};
    assert_streams_to("this is early, not late", stops, 2, "this is ", true);
    assert_streams_to("xabcd", inside, 2, "xa", true);
    assert_streams_to("xabc", inside, 2, "xa", true);
    assert_streams_to("xabcd", behind, 2, "x", true);
}

static void nothing_of_a_possible_stop_is_shown_early(void **state)
{
    (void)state;
    const char *strings[] = {"stop!"};
    xm_stop_set stops = {0};
    xm_text_stream stream = {0};
    assert_true(xm_stop_set_init(&stops, strings, 1));
    assert_false(xm_text_stream_push(&stream, "go st", 5, &stops));
    assert_int_equal(stream.released, 3);
    xm_text_stream_consume(&stream);
    assert_false(xm_text_stream_push(&stream, "op", 2, &stops));
    assert_int_equal(stream.released, 0);
    xm_text_stream_consume(&stream);
    assert_false(xm_text_stream_push(&stream, " it", 3, &stops));
    assert_int_equal(stream.released, 7);
    assert_memory_equal(stream.text.data, "stop it", 7);
    xm_text_stream_free(&stream);
    xm_stop_set_free(&stops);
}

static void characters_come_whole(void **state)
{
    (void)state;
    const xm_stop_set none = {0};
    xm_text_stream stream = {0};
    assert_false(xm_text_stream_push(&stream, "\xF0\x9F", 2, &none));
    assert_int_equal(stream.released, 0);
    assert_false(xm_text_stream_push(&stream, "\x8C\x8D", 2, &none));
    assert_int_equal(stream.released, 4);
    xm_text_stream_consume(&stream);
    assert_false(xm_text_stream_push(&stream, "a\xE2\x82", 3, &none));
    assert_int_equal(stream.released, 1);
    xm_text_stream_finish(&stream); /* cannot become a character any more */
    assert_int_equal(stream.released, 4);
    assert_memory_equal(stream.text.data, "a\xEF\xBF\xBD", 4);
    xm_text_stream_free(&stream);
}

/* Against a search after every byte, over texts and stops of two letters. */
static void random_texts_are_cut_where_a_naive_search_cuts(void **state)
{
    (void)state;
    for (uint64_t n = 0; n < 3000; n++) {
        char text[41] = {0}, stop_text[3][8] = {{0}}, expected[41];
        const char *stops[3] = {stop_text[0], stop_text[1], stop_text[2]};
        for (uint64_t i = 0; i < 40; i++)
            text[i] = "ab"[xm_random_bits(n, 1, i) % 2];
        for (uint64_t s = 0; s < 3; s++)
            for (uint64_t i = 0; i < 3 + xm_random_bits(n, 2, s) % 5; i++)
                stop_text[s][i] = "ab"[xm_random_bits(n, 3 + s, i) % 2];
        bool stopped = false;
        strcpy(expected, text);
        for (size_t end = 1; end <= 40 && !stopped; end++)
            for (size_t start = 0; start < end && !stopped; start++)
                for (size_t s = 0; s < 3 && !stopped; s++)
                    if (strlen(stops[s]) == end - start &&
                        memcmp(text + start, stops[s], end - start) == 0) {
                        stopped = true;
                        expected[start] = '\0';
                    }
        result r = stream_text(text, 40, stops, 3, n);
        assert_string_equal(r.text, expected);
        assert_int_equal(r.stopped, stopped);
    }
}

/* A stop string that is no UTF-8 can match no character's inside. */
static void a_stop_never_splits_a_character(void **state)
{
    (void)state;
    const char *stops[] = {"\xA9"};
    assert_streams_to("caf\xC3\xA9!", stops, 1, "caf\xC3\xA9!", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stops_are_found_however_the_text_is_cut),
        cmocka_unit_test(the_first_complete_stop_wins),
        cmocka_unit_test(nothing_of_a_possible_stop_is_shown_early),
        cmocka_unit_test(random_texts_are_cut_where_a_naive_search_cuts),
        cmocka_unit_test(characters_come_whole),
        cmocka_unit_test(a_stop_never_splits_a_character),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
