/*
 * clock.h - time as an injected dependency, so that the scheduler's tests can run on a simulated
 * one.
 */
#ifndef XM_BASE_CLOCK_H
#define XM_BASE_CLOCK_H

#include <stdint.h>

typedef struct {
    int64_t (*monotonic_ns)(void *context); /* never goes back; for durations */
    int64_t (*unix_seconds)(void *context); /* wall clock; for time stamps */
    void *context;
} xm_clock;

/* The machine's clocks. */
xm_clock xm_clock_system(void);

static inline int64_t xm_clock_now(const xm_clock *clock)
{
    return clock->monotonic_ns(clock->context);
}

#endif
