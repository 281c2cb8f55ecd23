/*
 * usage.c - xmoe-usage: expert usage as files: shown, fetched from a server, added up, compared and
 * drawn. One function per command; what they share is in usage_file.h and its neighbours.
 */
#include "cli.h"
#include "output_file.h"
#include "usage_compare.h"
#include "usage_draw.h"
#include "usage_fetch.h"
#include "usage_report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What the flags were set to; zero and NULL: not given. */
typedef struct {
    const char *phase, *title, *snapshot, *api_key;
    int32_t top;
    double timeout;
    bool json;
} settings;

/* --- show --------------------------------------------------------------------------------------
 */

static const char *format_date(int64_t seconds, char text[32])
{
    struct tm date;
    const time_t moment = (time_t)seconds;
    if (gmtime_r(&moment, &date) == NULL ||
        strftime(text, 32, "%Y-%m-%d %H:%M:%S UTC", &date) == 0) {
        snprintf(text, 32, "%lld", (long long)seconds);
    }
    return text;
}

static int show(const settings *set, char **paths, int count)
{
    (void)count;
    usage_file file;
    if (!usage_file_read(&file, paths[0])) {
        return CLI_FAILED;
    }
    const xmoe_usage *usage = usage_file_phase(&file, set->phase, paths[0]);
    if (usage != NULL && set->json) {
        json_writer json = {.out = stdout};
        usage_write_json(&json, NULL, file.model, usage);
    } else if (usage != NULL) {
        char text[32];
        printf("model:   %s\nphase:   %s\n", file.model, usage_phase_name(usage->phase));
        if (usage->window_seconds > 0) {
            printf("window:  %d s\n", usage->window_seconds);
        } else {
            printf("since:   %s\n", format_date(usage->since, text));
        }
        if (file.created > 0) {
            printf("created: %s\n", format_date(file.created, text));
        }
        putchar('\n');
        usage_print(stdout, usage);
    }
    usage_file_free(&file);
    return usage != NULL ? CLI_OK : CLI_FAILED;
}

/* --- save --------------------------------------------------------------------------------------
 */

static int save(const settings *set, char **arguments, int count)
{
    (void)count;
    const fetch_settings fetch = {.url = arguments[0],
                                  .snapshot = set->snapshot,
                                  .api_key =
                                      set->api_key != NULL ? set->api_key : getenv("XMOE_API_KEY"),
                                  .timeout = set->timeout > 0 ? set->timeout : 30};
    usage_file file;
    if (!usage_fetch(&fetch, &file)) {
        return CLI_FAILED;
    }
    usage_file_set_id(&file, arguments[1]);
    bool good = usage_file_write(&file, arguments[1]);
    usage_file_free(&file);
    return good ? CLI_OK : CLI_FAILED;
}

/* --- merge -------------------------------------------------------------------------------------
 */

/* Adds one more file to the sum, phase by phase; a phase that one of them lacks is dropped. */
static bool add_to(usage_file *sum, const usage_file *next, const char *path)
{
    bool left = false;
    for (int32_t i = 0; i < XMOE_PHASES; i++) {
        xmoe_error error;
        xmoe_usage *merged = NULL;
        if (sum->phases[i] != NULL && next->phases[i] != NULL &&
            xmoe_usage_merge(sum->phases[i], next->phases[i], &merged, &error) != XMOE_OK) {
            cli_fail("%s: %s", path, error.message);
            return false;
        }
        xmoe_usage_free(sum->phases[i]);
        sum->phases[i] = merged;
        left = left || merged != NULL;
    }
    if (!left) {
        cli_fail("%s: has no phase in common with those before it", path);
        return false;
    }
    if (strcmp(sum->model, next->model) != 0) {
        cli_warn("%s is of model '%s', the first is of '%s'", path, next->model, sum->model);
    }
    sum->created = next->created > sum->created ? next->created : sum->created;
    return true;
}

static int merge(const settings *set, char **paths, int count)
{
    (void)set;
    usage_file sum;
    bool good = usage_file_read(&sum, paths[1]);
    for (int i = 2; i < count && good; i++) {
        usage_file next;
        good = usage_file_read(&next, paths[i]) && add_to(&sum, &next, paths[i]);
        usage_file_free(&next);
    }
    if (good) {
        usage_file_set_id(&sum, paths[0]);
        good = usage_file_write(&sum, paths[0]);
    }
    usage_file_free(&sum);
    return good ? CLI_OK : CLI_FAILED;
}

/* --- compare, draw -----------------------------------------------------------------------------
 */

/* Reads one side; side->file is file, which the caller frees in any case. */
static bool read_side(const settings *set, const char *path, usage_file *file, usage_side *side)
{
    *side = (usage_side){.path = path, .file = file};
    if (usage_file_read(file, path)) {
        side->usage = usage_file_phase(file, set->phase, path);
    }
    return side->usage != NULL;
}

static int compare(const settings *set, char **paths, int count)
{
    (void)count;
    const int32_t top = set->top > 0 ? set->top : 4;
    usage_file files[2] = {0};
    usage_side a, b;
    bool good = read_side(set, paths[0], &files[0], &a) &&
                read_side(set, paths[1], &files[1], &b) && usage_comparable(&a, &b) &&
                (set->json ? usage_compare_json(&a, &b, top) : usage_compare_print(&a, &b, top));
    usage_file_free(&files[0]);
    usage_file_free(&files[1]);
    return good ? CLI_OK : CLI_FAILED;
}

static void make_title(const settings *set, const usage_side *a, const usage_side *b, char *text,
                       size_t size)
{
    const char *phase = usage_phase_name(a->usage->phase);
    if (set->title != NULL) {
        snprintf(text, size, "%s", set->title);
    } else if (b == NULL) {
        snprintf(text, size, "Experts of %s: %llu tokens, phase %s", a->file->model,
                 (unsigned long long)a->usage->tokens, phase);
    } else {
        snprintf(text, size, "Experts of %s: from %s to %s, phase %s", a->file->model,
                 a->file->id[0] != '\0' ? a->file->id : "A",
                 b->file->id[0] != '\0' ? b->file->id : "B", phase);
    }
}

static int draw(const settings *set, char **paths, int count)
{
    const bool two = count == 3;
    const char *target = paths[count - 1];
    const size_t length = strlen(target);
    usage_file files[2] = {0};
    usage_side a, b = {0};
    char title[512];
    if (length < 4 || strcmp(target + length - 4, ".svg") != 0) {
        return cli_wrong("draw: '%s' is to become the picture, but does not end in .svg", target);
    }
    bool good = read_side(set, paths[0], &files[0], &a) &&
                (!two || (read_side(set, paths[1], &files[1], &b) && usage_comparable(&a, &b)));
    if (good) {
        output_file output = {0};
        make_title(set, &a, two ? &b : NULL, title, sizeof title);
        good = output_open(&output, target);
        if (good) {
            usage_draw(output.stream, title, a.usage, b.usage);
            good = output_finish(&output);
        }
    }
    usage_file_free(&files[0]);
    usage_file_free(&files[1]);
    return good ? CLI_OK : CLI_FAILED;
}

/* --- command line ------------------------------------------------------------------------------
 */

enum { PHASE = 1, JSON = 2, TOP = 4, TITLE = 8, SNAPSHOT = 16, API_KEY = 32, TIMEOUT = 64 };

typedef struct {
    const char *name, *usage;
    int minimum, maximum; /* arguments after the name; maximum < 0: any number */
    unsigned flags;       /* that go with it */
    int (*run)(const settings *set, char **arguments, int count);
} command;

static const command commands[] = {
    {"show", "FILE", 1, 1, PHASE | JSON, show},
    {"save", "URL FILE", 2, 2, SNAPSHOT | API_KEY | TIMEOUT, save},
    {"merge", "OUT FILE FILE...", 3, -1, 0, merge},
    {"compare", "A B", 2, 2, PHASE | JSON | TOP, compare},
    {"draw", "FILE [B] OUT.svg", 2, 3, PHASE | TITLE, draw},
};

/* The name of a flag that was given and does not go with the command; NULL: none. */
static const char *stray_flag(const settings *set, unsigned allowed)
{
    const struct {
        const char *name;
        unsigned bit;
        bool given;
    } flags[] = {
        {"phase", PHASE, set->phase != NULL},
        {"json", JSON, set->json},
        {"top", TOP, set->top > 0},
        {"title", TITLE, set->title != NULL},
        {"snapshot", SNAPSHOT, set->snapshot != NULL},
        {"api-key", API_KEY, set->api_key != NULL},
        {"timeout", TIMEOUT, set->timeout > 0},
    };
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        if (flags[i].given && (flags[i].bit & allowed) == 0) {
            return flags[i].name;
        }
    }
    return NULL;
}

static int run_command(const settings *set, const cli_arguments *arguments)
{
    const int count = arguments->count - 1;
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        const command *item = &commands[i];
        if (strcmp(arguments->values[0], item->name) != 0) {
            continue;
        }
        const char *stray = stray_flag(set, item->flags);
        if (stray != NULL) {
            return cli_wrong("--%s does not go with %s", stray, item->name);
        }
        if (count < item->minimum || (item->maximum >= 0 && count > item->maximum)) {
            return cli_wrong("expected: xmoe-usage %s %s", item->name, item->usage);
        }
        int status = cli_finish(item->run(set, arguments->values + 1, count));
        return status != CLI_OK && cli_interrupted() ? CLI_INTERRUPTED : status;
    }
    return cli_wrong("unknown command '%s' (see --help)", arguments->values[0]);
}

int main(int argc, char **argv)
{
    settings set = {0};
    const cli_flag flags[] = {
        {.name = "phase",
         .argument = "NAME",
         .type = CLI_STRING,
         .value = &set.phase,
         .choices = "all|prefill|decode",
         .default_text = "all, or what the file holds",
         .help = "show, compare, draw: positions of prompts, generated ones or both"},
        {.name = "json",
         .type = CLI_BOOL,
         .value = &set.json,
         .help = "show, compare: JSON output"},
        {.name = "top",
         .argument = "N",
         .type = CLI_INT,
         .value = &set.top,
         .minimum = 1,
         .maximum = 1024,
         .default_text = "4",
         .help = "compare: experts to name that moved most"},
        {.name = "title",
         .argument = "TEXT",
         .type = CLI_STRING,
         .value = &set.title,
         .default_text = "model, tokens and phase",
         .help = "draw: what stands above the map"},
        {.name = "snapshot",
         .argument = "ID",
         .type = CLI_STRING,
         .value = &set.snapshot,
         .default_text = "the counters of now",
         .help = "save: one that the server keeps"},
        {.name = "api-key",
         .argument = "KEY",
         .type = CLI_STRING,
         .value = &set.api_key,
         .default_text = "$XMOE_API_KEY",
         .help = "save: key of the server"},
        {.name = "timeout",
         .argument = "SECONDS",
         .type = CLI_DOUBLE,
         .value = &set.timeout,
         .maximum = 86400,
         .above_minimum = true,
         .default_text = "30",
         .help = "save: how long each of its three requests may take"},
    };
    const cli_program program = {
        .name = "xmoe-usage",
        .usage = "COMMAND ARGUMENT...",
        .description =
            "Files of expert usage: a server's snapshots, objects of GET /v1/experts/usage, and "
            "what\nxmoe-eval --usage-file writes. Commands:\n\n"
            "  show FILE             a table of the layers\n"
            "  save URL FILE         fetch the counters of a running server\n"
            "  merge OUT FILE FILE...\n"
            "                        add files up\n"
            "  compare A B           which experts moved from A to B: per layer the "
            "Jensen-Shannon\n"
            "                        divergence of their shares in bits (0: alike, 1: no expert in "
            "common),\n"
            "                        those that grew and fell most, those that only one uses\n"
            "  draw FILE OUT.svg     a heat map, layers by experts\n"
            "  draw A B OUT.svg      the same of what moved from A to B\n\n"
            "A share is a part of the layer's activations.",
        .examples = "  xmoe-usage save http://127.0.0.1:8080 monday.json\n"
                    "  xmoe-eval --usage-file en.json en.txt && xmoe-eval --usage-file de.json "
                    "de.txt\n"
                    "  xmoe-usage compare en.json de.json\n"
                    "  xmoe-usage draw en.json de.json moved.svg\n",
        .flags = flags,
        .flag_count = sizeof flags / sizeof flags[0],
        .minimum_arguments = 1,
        .maximum_arguments = -1,
    };
    cli_arguments arguments;
    if (!cli_parse(&program, argc, argv, &arguments)) {
        return arguments.status;
    }
    cli_catch_interrupt();
    return run_command(&set, &arguments);
}
