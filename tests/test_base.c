/*
 * test_base.c - the base floor: errors, allocation, buffers, random numbers, the thread pool.
 */
#include "base/buffer.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/memory.h"
#include "base/pool.h"
#include "base/random.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static void error_carries_parameter_and_message(void **state)
{
    (void)state;
    xmoe_error error;
    assert_int_equal(xm_fail_argument(&error, "threshold", "%d is out of range", 7),
                     XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "threshold");
    assert_string_equal(error.message, "7 is out of range");
    assert_int_equal(xm_fail(&error, XMOE_ERROR_IO, "cannot read %s", "x"), XMOE_ERROR_IO);
    assert_string_equal(error.parameter, "");
    assert_int_equal(xm_fail(NULL, XMOE_ERROR_IO, "no one listens"), XMOE_ERROR_IO);
}

static void error_message_is_cut_not_overrun(void **state)
{
    (void)state;
    xmoe_error error;
    char longer[2 * sizeof error.message];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    xm_fail_argument(&error, longer, "%s", longer);
    assert_int_equal(strlen(error.message), sizeof error.message - 1);
    assert_int_equal(strlen(error.parameter), sizeof error.parameter - 1);
}

static void allocation_refuses_overflow(void **state)
{
    (void)state;
    assert_null(xm_calloc_aligned(SIZE_MAX / 2, 3));
    assert_null(xm_calloc_aligned(SIZE_MAX, 1));
    assert_null(xm_realloc(NULL, SIZE_MAX / 2, 3));
    size_t result;
    assert_false(xm_multiply(SIZE_MAX, 2, &result));
    assert_false(xm_add(SIZE_MAX, 1, &result));
    assert_true(xm_multiply(6, 7, &result));
    assert_int_equal(result, 42);
}

static void aligned_allocation_is_aligned_and_zero(void **state)
{
    (void)state;
    for (size_t bytes = 0; bytes < 200; bytes += 13) {
        unsigned char *memory = xm_calloc_aligned(bytes, 1);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 64, 0);
        for (size_t i = 0; i < bytes; i++)
            assert_int_equal(memory[i], 0);
        xm_free(memory);
    }
}

static void the_nth_allocation_fails_on_purpose(void **state)
{
    (void)state;
    xm_memory_fail_after(1);
    void *first = xm_calloc(1, 1);
    void *second = xm_calloc(1, 1);
    xm_memory_fail_after(-1);
    void *third = xm_calloc(1, 1);
    assert_non_null(first);
    assert_null(second);
    assert_non_null(third);
    xm_free(first);
    xm_free(third);
}

static void buffer_appends_and_consumes(void **state)
{
    (void)state;
    xm_buffer buffer = {0};
    for (int i = 0; i < 1000; i++)
        xm_buffer_format(&buffer, "%d,", i);
    assert_false(buffer.failed);
    assert_int_equal(buffer.length, 10 * 2 + 90 * 3 + 900 * 4);
    assert_memory_equal(buffer.data, "0,1,2,", 6);
    xm_buffer_consume(&buffer, 4);
    assert_memory_equal(buffer.data, "2,3,", 4);
    xm_buffer_consume(&buffer, buffer.length + 5);
    assert_int_equal(buffer.length, 0);
    xm_buffer_append(&buffer, "a\0b", 3);
    assert_int_equal(buffer.length, 3);
    assert_int_equal(buffer.data[3], '\0');
    xm_buffer_free(&buffer);
}

static void buffer_remembers_failure(void **state)
{
    (void)state;
    xm_buffer buffer = {0};
    xm_memory_fail_after(0);
    xm_buffer_text(&buffer, "lost");
    xm_memory_fail_after(-1);
    xm_buffer_text(&buffer, "too late");
    assert_true(buffer.failed);
    assert_int_equal(buffer.length, 0);
    xm_buffer_free(&buffer);
}

static void random_draws_depend_on_all_keys(void **state)
{
    (void)state;
    assert_int_equal(xm_random_bits(1, 2, 3), xm_random_bits(1, 2, 3));
    assert_int_not_equal(xm_random_bits(1, 2, 3), xm_random_bits(2, 2, 3));
    assert_int_not_equal(xm_random_bits(1, 2, 3), xm_random_bits(1, 3, 3));
    assert_int_not_equal(xm_random_bits(1, 2, 3), xm_random_bits(1, 2, 4));
}

static void random_moments_are_right(void **state)
{
    (void)state;
    enum { DRAWS = 100000 };
    double uniform = 0, normal = 0, square = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        double u = xm_random_uniform(7, 1, i);
        assert_true(u >= 0 && u < 1);
        uniform += u;
        double z = xm_random_normal(7, 2, i);
        normal += z;
        square += z * z;
    }
    assert_true(fabs(uniform / DRAWS - 0.5) < 0.005); /* 5 standard errors */
    assert_true(fabs(normal / DRAWS) < 0.016);        /* 5 */
    assert_true(fabs(square / DRAWS - 1.0) < 0.0224); /* 5 */
}

typedef struct {
    _Atomic int32_t *runs; /* per task */
    _Atomic int64_t sum;
    int32_t threads;
    _Atomic int32_t bad_thread;
} region;

static void count_task(void *context, int32_t task, int32_t thread)
{
    region *self = context;
    atomic_fetch_add(&self->runs[task], 1);
    atomic_fetch_add(&self->sum, task);
    if (thread < 0 || thread >= self->threads)
        atomic_store(&self->bad_thread, 1);
}

static void run_regions(int32_t threads, int32_t regions)
{
    enum { MOST = 257 };
    xm_pool *pool;
    assert_int_equal(xm_pool_create(threads, &pool, NULL), XMOE_OK);
    assert_int_equal(xm_pool_threads(pool), threads);
    _Atomic int32_t runs[MOST];
    for (int32_t i = 0; i < regions; i++) {
        int32_t tasks = i % MOST;
        for (int32_t task = 0; task < MOST; task++)
            atomic_store(&runs[task], 0);
        region self = {.runs = runs, .threads = threads};
        xm_pool_run(pool, tasks, count_task, &self);
        for (int32_t task = 0; task < MOST; task++)
            assert_int_equal(runs[task], task < tasks ? 1 : 0);
        assert_int_equal(self.sum, (int64_t)tasks * (tasks - 1) / 2);
        assert_int_equal(self.bad_thread, 0);
    }
    xm_pool_free(pool);
}

static void pool_runs_each_task_once(void **state)
{
    (void)state;
    run_regions(1, 300);
    run_regions(2, 3000);
    run_regions(5, 1000);
}

static void pool_workers_wake_from_sleep(void **state)
{
    (void)state;
    xm_pool *pool;
    assert_int_equal(xm_pool_create(3, &pool, NULL), XMOE_OK);
    for (int32_t i = 0; i < 20; i++) {
        _Atomic int32_t runs[64] = {0};
        region self = {.runs = runs, .threads = 3};
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL); /* longer than the spin */
        xm_pool_run(pool, 64, count_task, &self);
        assert_int_equal(self.sum, 63 * 32);
    }
    xm_pool_free(pool);
}

static void pool_without_threads_runs_on_the_caller(void **state)
{
    (void)state;
    _Atomic int32_t runs[8] = {0};
    region self = {.runs = runs, .threads = 1};
    xm_pool_run(NULL, 8, count_task, &self);
    assert_int_equal(self.sum, 28);
    assert_int_equal(xm_pool_threads(NULL), 1);
    xm_pool_free(NULL);
}

static void clock_does_not_go_back(void **state)
{
    (void)state;
    xm_clock clock = xm_clock_system();
    int64_t before = xm_clock_now(&clock);
    for (int32_t i = 0; i < 1000; i++) {
        int64_t now = xm_clock_now(&clock);
        assert_true(now >= before);
        before = now;
    }
    assert_true(clock.unix_seconds(clock.context) > 1700000000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(error_carries_parameter_and_message),
        cmocka_unit_test(error_message_is_cut_not_overrun),
        cmocka_unit_test(allocation_refuses_overflow),
        cmocka_unit_test(aligned_allocation_is_aligned_and_zero),
        cmocka_unit_test(the_nth_allocation_fails_on_purpose),
        cmocka_unit_test(buffer_appends_and_consumes),
        cmocka_unit_test(buffer_remembers_failure),
        cmocka_unit_test(random_draws_depend_on_all_keys),
        cmocka_unit_test(random_moments_are_right),
        cmocka_unit_test(pool_runs_each_task_once),
        cmocka_unit_test(pool_workers_wake_from_sleep),
        cmocka_unit_test(pool_without_threads_runs_on_the_caller),
        cmocka_unit_test(clock_does_not_go_back),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
