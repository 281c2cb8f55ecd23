/*
 * cli.h - the command line that all tools of xmoe share: a table of flags, help, messages, the
 * progress meter, and where the bundled model lies.
 *
 * A tool describes itself with a cli_program, calls cli_parse first in main() and leaves with the
 * status it is told. Flags are written --name value or --name=value; booleans --name or --no-name;
 * "--" ends the flags. Exit codes of every tool: 0 done, 1 failed, 2 the command line is wrong, 130
 * stopped by Ctrl-C. Output proper goes to stdout, everything else to stderr.
 */
#ifndef XMOE_TOOLS_CLI_H
#define XMOE_TOOLS_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

typedef enum {
    CLI_BOOL,   /* bool * */
    CLI_INT,    /* int32_t * */
    CLI_SIZE,   /* uint64_t *, suffix K, M or G counts in 1024s */
    CLI_FLOAT,  /* float * */
    CLI_DOUBLE, /* double * */
    CLI_STRING, /* const char **, points into argv */
    CLI_FLOATS, /* cli_floats *, written 0.5,0.7,1 */
    CLI_STRINGS /* cli_strings *, one more each time the flag is given; point into argv */
} cli_type;

#define CLI_MAX_FLOATS 64
typedef struct {
    float values[CLI_MAX_FLOATS];
    int32_t count;
} cli_floats;

#define CLI_MAX_STRINGS 64
typedef struct {
    const char *values[CLI_MAX_STRINGS];
    int32_t count;
} cli_strings;

/* One row of a tool's table. What *value holds before parsing is the default that --help shows. */
typedef struct {
    const char *name;     /* without the dashes */
    const char *argument; /* what help calls the value, e.g. "N"; not for CLI_BOOL */
    cli_type type;
    void *value;
    double minimum, maximum;  /* numbers must lie in it where minimum < maximum */
    bool above_minimum;       /* the minimum itself is not allowed */
    const char *choices;      /* CLI_STRING: allowed values, "a|b|c"; NULL: any */
    const char *default_text; /* shown instead of the default value; "" shows none */
    const char *help;
} cli_flag;

typedef struct {
    const char *name;        /* "xmoe-generate" */
    const char *usage;       /* what follows "[flags]", e.g. "[PROMPT]" */
    const char *description; /* one paragraph; newlines are kept */
    const char *examples;    /* ready lines, or NULL */
    const cli_flag *flags;
    size_t flag_count;
    int minimum_arguments, maximum_arguments; /* positional; maximum < 0: any number */
} cli_program;

typedef struct {
    char **values; /* positional arguments, in argv's memory */
    int count;
    int status; /* exit status when cli_parse returned false */
} cli_arguments;

/* Reads the command line into the flags' values; reorders argv. False: help or version was printed
 * (status 0) or a message about a mistake (status 2), and the tool should leave with status. */
bool cli_parse(const cli_program *program, int argc, char **argv, cli_arguments *arguments);

/* Sets the name that messages begin with; cli_parse does it. */
void cli_name(const char *name);
/* "name: message" on stderr, after flushing stdout; cli_fail returns CLI_FAILED and cli_wrong
 * CLI_USAGE, so that main can return them. */
void cli_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
int cli_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
int cli_wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What main returns: status, or CLI_FAILED with a message if that is CLI_OK but the output proper
 * could not be written. */
int cli_finish(int status);

/* Turns SIGINT and SIGTERM into a flag; a second signal kills. */
void cli_catch_interrupt(void);
bool cli_interrupted(void);

/* Seconds on a clock that never goes back. */
double cli_seconds(void);

/* Path of the bundled model (../models or ../share/xmoe beside the program, or ./models), or NULL
 * where there is none. Static storage. */
const char *cli_default_model(void);
/* path, or the bundled model where path is NULL; NULL after a message where neither exists. */
const char *cli_find_model(const char *path);

/* Whole file ("-": stdin) in memory from malloc, NUL added; NULL after a message. */
char *cli_read_file(const char *path, size_t *length);

/* 1234567 as "1.2 M", 2147483648 as "2.00 GiB" and 3725 seconds as "1:02:05"; buffer of >= 32. */
char *cli_format_count(char *buffer, double count);
char *cli_format_bytes(char *buffer, double bytes);
char *cli_format_time(char *buffer, double seconds);

/* Progress on stderr: what is done, percentage, rate, time elapsed and left. On a terminal one line
 * that is redrawn; elsewhere a line at most every ten seconds. */
typedef struct {
    const char *unit; /* of done and total: "tokens"; "bytes" are scaled by 1024 */
    bool quiet;
    bool terminal;
    bool drawn; /* a redrawn line is on the terminal now */
    char what[64];
    double started, shown; /* cli_seconds */
    uint64_t first;        /* done when this `what` began: resumed work has its own rate */
} cli_progress;

void cli_progress_start(cli_progress *progress, const char *unit, bool quiet);
/* An xmoe_progress_fn: context is the cli_progress; false after Ctrl-C (cli_catch_interrupt). */
bool cli_progress_report(void *context, const char *what, uint64_t done, uint64_t total);
/* Takes the redrawn line away, so that other lines can be printed. */
void cli_progress_clear(cli_progress *progress);

#endif
