/*
 * machine_share.c - see machine_share.h. Idle time is the first line of Linux's /proc/stat.
 */
#include "train/machine_share.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* Of the CPU time that the threads could have had: below it they were kept from running. */
static const double starved = 0.8;
/* Of the CPUs beyond the one in use: above it they are free. */
static const double free_share = 0.75;

static double seconds_of(clockid_t clock)
{
    struct timespec time;
    return clock_gettime(clock, &time) == 0 ? (double)time.tv_sec + (double)time.tv_nsec * 1e-9 : 0;
}

/* Idle time of all CPUs together; negative where it is not known. */
static double idle_seconds(void)
{
    FILE *file = fopen("/proc/stat", "r");
    if (file == NULL)
        return -1;
    unsigned long long user, nice, system, idle;
    int fields = fscanf(file, "cpu %llu %llu %llu %llu", &user, &nice, &system, &idle);
    fclose(file);
    return fields == 4 ? (double)idle / (double)sysconf(_SC_CLK_TCK) : -1;
}

xm_machine_share xm_machine_share_start(int32_t threads)
{
    return (xm_machine_share){.threads = threads,
                              .wall = seconds_of(CLOCK_MONOTONIC),
                              .process = seconds_of(CLOCK_PROCESS_CPUTIME_ID),
                              .idle = idle_seconds()};
}

bool xm_machine_share_judge(xm_machine_share *share)
{
    xm_machine_share now = xm_machine_share_start(share->threads);
    double wall = now.wall - share->wall;
    if (share->threads > 1 && now.idle >= 0 && share->idle >= 0 && wall > 0) {
        double used = (now.process - share->process) / wall; /* CPUs */
        double idle = (now.idle - share->idle) / wall;
        now.alone = share->alone ? idle < free_share * (share->threads - 1)
                                 : used < starved * share->threads;
    }
    *share = now;
    return now.alone;
}
