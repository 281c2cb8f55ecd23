/*
 * test_server_trace_ring.c - the ring behind the trace against a plain list of the same records:
 * what is kept, what readers see and miss, also while another thread appends.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../server/trace_record.h"
#include "../server/trace_ring.h"

#define CAPACITY 1000

static uint64_t random_state = 7;

static uint32_t draw(uint32_t below)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % below;
}

/* Record number n is n and then length - 4 times its low byte; it has n % 5 rows. */
static uint32_t make(unsigned char *bytes, uint32_t number, uint32_t length)
{
    memset(bytes, (unsigned char)number, length);
    memcpy(bytes, &number, sizeof number);
    return number % 5;
}

typedef struct {
    uint32_t number, length;
} listed;

static uint32_t length_at(const unsigned char *piece, uint32_t *number)
{
    uint32_t length;
    memcpy(&length, piece, sizeof length);
    memcpy(number, piece + sizeof length, sizeof *number);
    for (uint32_t i = 4; i < length; i++)
        assert_int_equal(piece[4 + i], (unsigned char)*number);
    return length;
}

/* Reads all that is there in pieces of a random size: ascending numbers, nothing torn. Returns how
 * many; first and last get the outermost. */
static size_t read_all(xm_trace_ring *ring, xm_trace_cursor *cursor, uint32_t *first,
                       uint32_t *last)
{
    unsigned char piece[700];
    size_t count = 0, length;
    while ((length = xm_trace_ring_read(ring, cursor, UINT64_MAX, piece, 404 + draw(296))) > 0) {
        for (size_t at = 0; at < length;) {
            uint32_t number;
            at += 4 + length_at(piece + at, &number);
            assert_true(count == 0 || number == *last + 1);
            if (count++ == 0)
                *first = number;
            *last = number;
        }
    }
    return count;
}

static void the_newest_stay(void **state)
{
    (void)state;
    unsigned char bytes[CAPACITY + 1];
    static listed list[4000];
    xm_trace_ring *ring = xm_trace_ring_create(CAPACITY);
    assert_non_null(ring);
    uint32_t appended = 0;
    uint64_t rows = 0;
    xm_trace_cursor follower = xm_trace_ring_oldest(ring);
    uint64_t followed = 0;
    while (appended < 4000) {
        uint32_t length = 4 + draw(draw(50) ? 120 : 390);
        xm_trace_record record = {bytes, length, make(bytes, appended, length)};
        rows += record.rows;
        list[appended] = (listed){appended, length};
        appended++;
        xm_trace_ring_append(ring, &record, 1);
        if (draw(10))
            continue;
        uint32_t first = 0, last = 0;
        xm_trace_cursor cursor = xm_trace_ring_oldest(ring);
        size_t count = read_all(ring, &cursor, &first, &last);
        assert_int_equal(last, appended - 1);
        assert_int_equal(count, appended - first);
        assert_true(cursor.lost == 0 && cursor.row == rows);
        size_t used = 0; /* as many as there is room for */
        for (uint32_t i = first; i < appended; i++)
            used += list[i].length + 20;
        assert_true(used <= CAPACITY);
        assert_true(first == 0 || used + list[first - 1].length + 20 > CAPACITY);
        count = read_all(ring, &follower, &first, &last);
        for (uint32_t i = first; count && i <= last; i++)
            followed += i % 5;
        assert_true(followed + follower.lost == follower.row && follower.row == rows);
    }
    assert_true(follower.lost > 0);
    /* One that is longer than the ring goes by and is counted. */
    xm_trace_record giant = {bytes, CAPACITY, 3};
    uint32_t first, last;
    read_all(ring, &follower, &first, &last);
    xm_trace_ring_append(ring, &giant, 1);
    uint64_t lost = follower.lost;
    assert_int_equal(read_all(ring, &follower, &first, &last), 0);
    assert_true(follower.lost == lost + 3 && follower.row == rows + 3);
    xm_trace_ring_free(ring);
}

static bool is_even(const void *bytes, size_t length, const void *context)
{
    uint32_t number;
    (void)context;
    assert_true(length <= XM_TRACE_PEEK);
    memcpy(&number, bytes, sizeof number);
    return number % 2 == 0;
}

static void the_last_rows_are_found(void **state)
{
    (void)state;
    unsigned char bytes[200];
    xm_trace_ring *ring = xm_trace_ring_create(20000);
    for (uint32_t number = 0; number < 1000; number++) {
        uint32_t length = 4 + draw(190);
        xm_trace_record record = {bytes, length, make(bytes, number, length)};
        xm_trace_ring_append(ring, &record, 1);
    }
    uint32_t oldest, first, last;
    uint64_t end = 0;
    xm_trace_cursor cursor = xm_trace_ring_oldest(ring);
    read_all(ring, &cursor, &oldest, &last);
    for (uint64_t limit = 1; limit < 400; limit += 7) {
        for (int even = 0; even < 2; even++) {
            uint32_t wanted = 1000; /* the first that is given */
            uint64_t sum = 0;
            for (uint32_t number = 1000; number-- > oldest;) {
                if (even && number % 2)
                    continue;
                sum += number % 5;
                if (sum > limit)
                    break;
                wanted = number;
            }
            cursor = xm_trace_ring_last(ring, limit, even ? is_even : NULL, NULL, &end);
            assert_true(end == xm_trace_ring_newest(ring).at);
            size_t count = read_all(ring, &cursor, &first, &last);
            assert_int_equal(count, 1000 - wanted);
            assert_true(count == 0 || first == wanted);
        }
    }
    xm_trace_ring_free(ring);
}

enum { THREADED = 100000 };

static void *append_many(void *argument)
{
    unsigned char bytes[8][64];
    xm_trace_record records[8];
    for (uint32_t number = 0; number < THREADED; number += 8) {
        for (uint32_t i = 0; i < 8; i++)
            records[i] = (xm_trace_record){bytes[i], 64, make(bytes[i], number + i, 64)};
        xm_trace_ring_append(argument, records, 8);
    }
    return NULL;
}

/* Whatever a reader misses is counted, whatever it gets is whole and in order. */
static void readers_and_appender_meet(void **state)
{
    (void)state;
    xm_trace_ring *ring = xm_trace_ring_create(1 << 16);
    xm_trace_cursor cursor = xm_trace_ring_oldest(ring);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, append_many, ring), 0);
    unsigned char piece[4096];
    uint64_t rows = 0;
    uint32_t next = 0;
    for (bool more = true; more;) {
        size_t length = xm_trace_ring_read(ring, &cursor, UINT64_MAX, piece, sizeof piece);
        if (length == 0)
            xm_trace_ring_wait(ring, &cursor, 1);
        for (size_t at = 0; at < length;) {
            uint32_t number;
            at += 4 + length_at(piece + at, &number);
            assert_true(number >= next);
            next = number + 1;
            rows += number % 5;
            more = next < THREADED;
        }
    }
    pthread_join(thread, NULL);
    assert_true(rows + cursor.lost == cursor.row);
    assert_true(cursor.row == 2 * (uint64_t)THREADED); /* 0 to 4, two in the mean */
    xm_trace_ring_free(ring);
}

static void records_become_lines(void **state)
{
    (void)state;
    const uint16_t experts[] = {7, 65535, 0};
    const float weights[] = {0.5f, 0.1f, 1e-20f};
    xmoe_route route = {.position = 41,
                        .phase = XMOE_PHASE_DECODE,
                        .count = 3,
                        .experts = experts,
                        .weights = weights};
    const int32_t layers[] = {1, 30};
    unsigned char *bytes = malloc(xm_trace_record_limit(2, 3));
    size_t length = xm_trace_record_begin(bytes, "cmpl-a", 2, &route);
    length += xm_trace_record_layer(bytes + length, &route);
    route.count = 1;
    length += xm_trace_record_layer(bytes + length, &route);
    assert_true(length <= xm_trace_record_limit(2, 3));
    assert_true(xm_trace_record_is_of(bytes, length, "cmpl-a"));
    assert_false(xm_trace_record_is_of(bytes, length, "cmpl-"));
    assert_false(xm_trace_record_is_of(bytes, length, "cmpl-aa"));
    xm_text text = {0};
    xm_text_puts(&text, xm_trace_format_head(XM_TRACE_CSV));
    xm_trace_record_write(bytes, layers, 2, XM_TRACE_CSV, &text);
    assert_string_equal(text.data, "request,phase,position,layer,rank,expert,weight\n"
                                   "cmpl-a,decode,41,1,1,7,0.5\n"
                                   "cmpl-a,decode,41,1,2,65535,0.100000001\n"
                                   "cmpl-a,decode,41,1,3,0,9.99999968e-21\n"
                                   "cmpl-a,decode,41,30,1,7,0.5\n");
    xm_text_clear(&text);
    xm_trace_record_write(bytes, layers, 2, XM_TRACE_JSONL, &text);
    assert_string_equal(
        text.data,
        "{\"request\":\"cmpl-a\",\"choice\":2,\"phase\":\"decode\",\"position\":41,\"layer\":1,"
        "\"experts\":[7,65535,0],\"weights\":[0.5,0.100000001,9.99999968e-21]}\n"
        "{\"request\":\"cmpl-a\",\"choice\":2,\"phase\":\"decode\",\"position\":41,\"layer\":30,"
        "\"experts\":[7],\"weights\":[0.5]}\n");
    xm_text_free(&text);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_newest_stay),
        cmocka_unit_test(the_last_rows_are_found),
        cmocka_unit_test(readers_and_appender_meet),
        cmocka_unit_test(records_become_lines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
