/*
 * cli_output.c - what tools print besides their output proper: messages, formatted quantities, the
 * progress meter; and the few lookups that all share (bundled model, whole files, Ctrl-C).
 */
#include "cli.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *program_name = "xmoe";
static volatile sig_atomic_t interrupted;

/* --- messages ----------------------------------------------------------------------------------
 */

void cli_name(const char *name)
{
    program_name = name;
}

static void print_message(const char *format, va_list arguments)
{
    fflush(stdout);
    fprintf(stderr, "%s: ", program_name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

void cli_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
}

int cli_fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
    return CLI_FAILED;
}

int cli_finish(int status)
{
    bool written = fflush(stdout) == 0 && ferror(stdout) == 0;
    return status == CLI_OK && !written ? cli_fail("cannot write to stdout") : status;
}

int cli_wrong(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
    return CLI_USAGE;
}

/* --- signals, clock ----------------------------------------------------------------------------
 */

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

void cli_catch_interrupt(void)
{
    /* SA_RESETHAND: the second Ctrl-C ends a tool that does not come to look. */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool cli_interrupted(void)
{
    return interrupted != 0;
}

double cli_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* --- files -------------------------------------------------------------------------------------
 */

const char *cli_default_model(void)
{
    static char path[PATH_MAX];
    static const char *const places[] = {"/../models/", "/../share/xmoe/"};
    char program[PATH_MAX - 64];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length > 0) {
        program[length] = '\0';
        *strrchr(program, '/') = '\0';
        for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
            snprintf(path, sizeof path, "%s%sxmoe-small.gguf", program, places[i]);
            if (access(path, R_OK) == 0) {
                return path;
            }
        }
    }
    snprintf(path, sizeof path, "models/xmoe-small.gguf");
    return access(path, R_OK) == 0 ? path : NULL;
}

const char *cli_find_model(const char *path)
{
    if (path == NULL) {
        path = cli_default_model();
    }
    if (path == NULL) {
        cli_warn("no model: give one with --model FILE (the bundled models/xmoe-small.gguf was "
                 "found neither beside the program nor here)");
    }
    return path;
}

static char *read_stream(FILE *stream, size_t *length)
{
    char *data = NULL;
    size_t capacity = 0;
    *length = 0;
    while (true) {
        if (capacity - *length < 2) {
            capacity = capacity == 0 ? 1 << 16 : capacity * 2;
            char *grown = realloc(data, capacity);
            if (grown == NULL) {
                free(data);
                errno = ENOMEM;
                return NULL;
            }
            data = grown;
        }
        size_t got = fread(data + *length, 1, capacity - 1 - *length, stream);
        *length += got;
        if (got == 0) {
            break;
        }
    }
    if (ferror(stream)) {
        free(data);
        return NULL;
    }
    data[*length] = '\0';
    return data;
}

char *cli_read_file(const char *path, size_t *length)
{
    bool from_stdin = strcmp(path, "-") == 0;
    FILE *stream = from_stdin ? stdin : fopen(path, "rb");
    char *data = stream != NULL ? read_stream(stream, length) : NULL;
    if (data == NULL) {
        cli_warn("%s: %s", from_stdin ? "stdin" : path, strerror(errno));
    }
    if (stream != NULL && !from_stdin) {
        fclose(stream);
    }
    return data;
}

/* --- quantities --------------------------------------------------------------------------------
 */

static char *format_scaled(char *buffer, double number, double base, const char *const *units)
{
    int unit = 0;
    while (number >= base && unit < 4) {
        number /= base;
        unit++;
    }
    int digits = unit == 0 || number >= 100 ? 0 : number >= 10 ? 1 : 2;
    snprintf(buffer, 32, "%.*f%s", digits, number, units[unit]);
    return buffer;
}

char *cli_format_count(char *buffer, double count)
{
    static const char *const units[] = {"", " k", " M", " G", " T"};
    return format_scaled(buffer, count, 1000, units);
}

char *cli_format_bytes(char *buffer, double bytes)
{
    static const char *const units[] = {" B", " KiB", " MiB", " GiB", " TiB"};
    return format_scaled(buffer, bytes, 1024, units);
}

char *cli_format_time(char *buffer, double seconds)
{
    long long whole = (long long)(seconds + 0.5);
    if (whole >= 3600) {
        snprintf(buffer, 32, "%lld:%02lld:%02lld", whole / 3600, whole / 60 % 60, whole % 60);
    } else {
        snprintf(buffer, 32, "%lld:%02lld", whole / 60, whole % 60);
    }
    return buffer;
}

/* --- progress ----------------------------------------------------------------------------------
 */

void cli_progress_start(cli_progress *progress, const char *unit, bool quiet)
{
    *progress =
        (cli_progress){.unit = unit, .quiet = quiet, .terminal = isatty(STDERR_FILENO) == 1};
}

static void draw(cli_progress *progress, double now, uint64_t done, uint64_t total)
{
    char amount[32], rate[32], elapsed[32], left[32] = "-";
    bool bytes = strcmp(progress->unit, "bytes") == 0;
    double seconds = now - progress->started;
    double speed = seconds > 0 ? (double)(done - progress->first) / seconds : 0;
    double percent = total > 0 ? 100.0 * (double)done / (double)total : 100;
    if (bytes) {
        cli_format_bytes(amount, (double)done);
        cli_format_bytes(rate, speed);
    } else {
        cli_format_count(amount, (double)done);
        cli_format_count(rate, speed);
        if (speed < 10) {
            snprintf(rate, sizeof rate, "%.2f", speed);
        }
    }
    if (speed > 0) {
        cli_format_time(left, (double)(total - done) / speed);
    }
    fprintf(stderr, "%s%s %3.0f%%  %s%s%s  %s%s%s/s  %s elapsed, %s left%s",
            progress->terminal ? "\r\033[K" : "", progress->what, percent, amount, bytes ? "" : " ",
            bytes ? "" : progress->unit, rate, bytes ? "" : " ", bytes ? "" : progress->unit,
            cli_format_time(elapsed, seconds), left, progress->terminal ? "" : "\n");
    fflush(stderr);
    progress->drawn = progress->terminal;
}

bool cli_progress_report(void *context, const char *what, uint64_t done, uint64_t total)
{
    cli_progress *progress = context;
    double now = cli_seconds();
    if (progress->started <= 0 || strcmp(progress->what, what) != 0) {
        snprintf(progress->what, sizeof progress->what, "%s", what);
        progress->started = now;
        progress->shown = now;
        progress->first = done;
    }
    double interval = progress->terminal ? 0.2 : 10;
    if (!progress->quiet && now - progress->shown >= interval) {
        progress->shown = now;
        draw(progress, now, done, total);
    }
    return !cli_interrupted();
}

void cli_progress_clear(cli_progress *progress)
{
    if (progress->drawn) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        progress->drawn = false;
    }
}
