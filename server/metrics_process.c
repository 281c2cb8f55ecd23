/*
 * metrics_process.c - the process in /metrics, under the names that Prometheus' own libraries use.
 */
#include <dirent.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include "metrics.h"

static void add(xm_metrics *metrics, const char *name, const char *type, double value,
                const char *help)
{
    xm_text_format(metrics->out, "# HELP %s %s\n# TYPE %s %s\n%s %.17g\n", name, help, name, type,
                   name, value);
}

/* The second number of /proc/self/statm; 0 where there is none. */
static double resident_bytes(void)
{
    long long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file)
        return 0;
    if (fscanf(file, "%lld %lld", &total, &resident) != 2)
        resident = 0;
    fclose(file);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

static double open_descriptors(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    if (!directory)
        return 0;
    for (const struct dirent *entry; (entry = readdir(directory));)
        count += entry->d_name[0] != '.';
    closedir(directory);
    return count - 1; /* without the directory's own */
}

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

void xm_metrics_process(xm_metrics *metrics, const xm_server *server)
{
    struct rusage usage = {0};
    struct rlimit limit = {0};
    getrusage(RUSAGE_SELF, &usage);
    getrlimit(RLIMIT_NOFILE, &limit);
    add(metrics, "process_cpu_seconds_total", "counter",
        seconds(usage.ru_utime) + seconds(usage.ru_stime), "CPU time of all threads.");
    add(metrics, "process_resident_memory_bytes", "gauge", resident_bytes(), "Resident memory.");
    add(metrics, "process_open_fds", "gauge", open_descriptors(), "Open file descriptors.");
    add(metrics, "process_max_fds", "gauge", (double)limit.rlim_cur, "Most descriptors allowed.");
    add(metrics, "process_start_time_seconds", "gauge", (double)server->started,
        "Start in Unix time.");
}
