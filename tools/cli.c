/*
 * cli.c - parsing and help. Messages, files and the progress meter are in cli_output.c. Nothing
 * here exits: cli_parse tells main() what to return.
 */
#include "cli.h"

#include "xmoe.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- values ------------------------------------------------------------------------------------
 */

static bool in_range(const cli_flag *flag, double number)
{
    if (isnan(number)) {
        return false;
    }
    if (!(flag->minimum < flag->maximum)) {
        return true;
    }
    if (flag->above_minimum ? number <= flag->minimum : number < flag->minimum) {
        return false;
    }
    return number <= flag->maximum;
}

static bool wrong_value(const cli_flag *flag, const char *text, const char *expected)
{
    if (flag->minimum < flag->maximum) {
        cli_wrong("--%s: '%s' is not %s %s %g and at most %g", flag->name, text, expected,
                  flag->above_minimum ? "above" : "of at least", flag->minimum, flag->maximum);
    } else {
        cli_wrong("--%s: '%s' is not %s", flag->name, text, expected);
    }
    return false;
}

static bool parse_int(const cli_flag *flag, const char *text)
{
    char *end;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || number < INT32_MIN || number > INT32_MAX ||
        !in_range(flag, (double)number)) {
        return wrong_value(flag, text, "a whole number");
    }
    *(int32_t *)flag->value = (int32_t)number;
    return true;
}

static bool parse_size(const cli_flag *flag, const char *text)
{
    static const char suffixes[] = "KMG";
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    bool good = end != text && text[0] >= '0' && text[0] <= '9' && errno == 0;
    const char *suffix = good && *end != '\0' ? strchr(suffixes, *end) : NULL;
    if (suffix != NULL) {
        int shift = 10 * (int)(suffix - suffixes + 1);
        good = number <= UINT64_MAX >> shift;
        number <<= shift;
        end++;
    }
    if (!good || *end != '\0' || !in_range(flag, (double)number)) {
        return wrong_value(flag, text, "a whole number (K, M, G may follow)");
    }
    *(uint64_t *)flag->value = number;
    return true;
}

static bool parse_real(const cli_flag *flag, const char *text, double *number)
{
    char *end;
    errno = 0;
    *number = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(*number) || !in_range(flag, *number)) {
        return wrong_value(flag, text, "a number");
    }
    return true;
}

static bool parse_floats(const cli_flag *flag, const char *text)
{
    cli_floats *list = flag->value;
    list->count = 0;
    while (true) {
        char item[64];
        size_t length = strcspn(text, ",");
        if (length >= sizeof item || list->count == CLI_MAX_FLOATS) {
            cli_wrong("--%s: at most %d numbers, separated by commas", flag->name, CLI_MAX_FLOATS);
            return false;
        }
        memcpy(item, text, length);
        item[length] = '\0';
        double number;
        if (!parse_real(flag, item, &number)) {
            return false;
        }
        list->values[list->count++] = (float)number;
        if (text[length] == '\0') {
            return true;
        }
        text += length + 1;
    }
}

static bool parse_string(const cli_flag *flag, const char *text)
{
    const char *choice = flag->choices;
    size_t length = strlen(text);
    while (choice != NULL) {
        size_t choice_length = strcspn(choice, "|");
        if (choice_length == length && memcmp(choice, text, length) == 0) {
            break;
        }
        if (choice[choice_length] == '\0') {
            cli_wrong("--%s: '%s' is none of %s", flag->name, text, flag->choices);
            return false;
        }
        choice += choice_length + 1;
    }
    *(const char **)flag->value = text;
    return true;
}

static bool parse_strings(const cli_flag *flag, const char *text)
{
    cli_strings *list = flag->value;
    if (list->count == CLI_MAX_STRINGS) {
        cli_wrong("--%s: at most %d times", flag->name, CLI_MAX_STRINGS);
        return false;
    }
    list->values[list->count++] = text;
    return true;
}

static bool parse_bool(const cli_flag *flag, const char *text, bool negated)
{
    bool value = true;
    if (text != NULL && strcmp(text, "false") == 0) {
        value = false;
    } else if (text != NULL && strcmp(text, "true") != 0) {
        cli_wrong("--%s: '%s' is neither true nor false", flag->name, text);
        return false;
    }
    *(bool *)flag->value = value != negated;
    return true;
}

static bool parse_value(const cli_flag *flag, const char *text)
{
    double number;
    switch (flag->type) {
    case CLI_BOOL:
        return parse_bool(flag, text, false);
    case CLI_INT:
        return parse_int(flag, text);
    case CLI_SIZE:
        return parse_size(flag, text);
    case CLI_STRING:
        return parse_string(flag, text);
    case CLI_FLOATS:
        return parse_floats(flag, text);
    case CLI_STRINGS:
        return parse_strings(flag, text);
    case CLI_FLOAT:
        if (!parse_real(flag, text, &number)) {
            return false;
        }
        *(float *)flag->value = (float)number;
        return true;
    case CLI_DOUBLE:
        return parse_real(flag, text, flag->value);
    }
    return false;
}

/* --- help --------------------------------------------------------------------------------------
 */

enum { HELP_COLUMN = 30, HELP_WIDTH = 90 };

/* Text from HELP_COLUMN on, broken between words and behind "|". The first line continues what was
 * printed. */
static void print_wrapped(const char *text)
{
    int column = HELP_COLUMN;
    while (*text != '\0') {
        int length = (int)strcspn(text, " |");
        length += text[length] == '|';
        if (column > HELP_COLUMN && column + length > HELP_WIDTH) {
            printf("\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        printf("%.*s", length, text);
        column += length;
        text += length;
        bool space = *text == ' ';
        while (*text == ' ') {
            text++;
        }
        if (space && *text != '\0') {
            putchar(' ');
            column++;
        }
    }
    putchar('\n');
}

/* " (default ...)" or "". Sizes are shown as given on the command line. */
static void format_default(const cli_flag *flag, char *buffer, size_t size)
{
    buffer[0] = '\0';
    if (flag->default_text != NULL) {
        if (flag->default_text[0] != '\0') {
            snprintf(buffer, size, " (default: %s)", flag->default_text);
        }
        return;
    }
    switch (flag->type) {
    case CLI_BOOL:
        snprintf(buffer, size, "%s", *(bool *)flag->value ? " (default: on)" : "");
        break;
    case CLI_INT:
        snprintf(buffer, size, " (default: %d)", *(int32_t *)flag->value);
        break;
    case CLI_SIZE:
        snprintf(buffer, size, " (default: %llu)", *(unsigned long long *)flag->value);
        break;
    case CLI_FLOAT:
        snprintf(buffer, size, " (default: %g)", (double)*(float *)flag->value);
        break;
    case CLI_DOUBLE:
        snprintf(buffer, size, " (default: %g)", *(double *)flag->value);
        break;
    case CLI_STRING:
        if (*(const char **)flag->value != NULL) {
            snprintf(buffer, size, " (default: %s)", *(const char **)flag->value);
        }
        break;
    case CLI_FLOATS:
    case CLI_STRINGS:
        break;
    }
}

static void print_flag(const char *name, const char *argument, const char *help)
{
    int printed = printf("  --%s%s%s", name, argument[0] != '\0' ? " " : "", argument);
    if (printed >= HELP_COLUMN - 1) {
        printf("\n%*s", HELP_COLUMN, "");
    } else {
        printf("%*s", HELP_COLUMN - printed, "");
    }
    print_wrapped(help);
}

static void print_help(const cli_program *program)
{
    printf("Usage: %s [flags]%s%s\n\n%s\n\nFlags:\n", program->name,
           program->usage[0] != '\0' ? " " : "", program->usage, program->description);
    for (size_t i = 0; i < program->flag_count; i++) {
        const cli_flag *flag = &program->flags[i];
        char name[64], help[768], choices[160] = "", shown[160];
        bool on = flag->type == CLI_BOOL && flag->default_text == NULL && *(bool *)flag->value;
        snprintf(name, sizeof name, "%s%s", on ? "[no-]" : "", flag->name);
        if (flag->choices != NULL) {
            snprintf(choices, sizeof choices, ": %s", flag->choices);
        }
        format_default(flag, shown, sizeof shown);
        snprintf(help, sizeof help, "%s%s%s", flag->help, choices, shown);
        print_flag(name, flag->type == CLI_BOOL ? "" : flag->argument, help);
    }
    print_flag("help", "", "this text");
    print_flag("version", "", "name and version");
    printf("\nExit codes: 0 done, 1 failed, 2 wrong command line, 130 stopped by Ctrl-C.\n");
    if (program->examples != NULL) {
        printf("\nExamples:\n%s", program->examples);
    }
}

/* --- the command line --------------------------------------------------------------------------
 */

static const cli_flag *find_flag(const cli_program *program, const char *name, size_t length)
{
    for (size_t i = 0; i < program->flag_count; i++) {
        const cli_flag *flag = &program->flags[i];
        if (strlen(flag->name) == length && memcmp(flag->name, name, length) == 0) {
            return flag;
        }
    }
    return NULL;
}

/* One flag at argv[*index]; steps *index over a value given as its own argument. */
static bool parse_flag(const cli_program *program, int argc, char **argv, int *index)
{
    const char *name = argv[*index] + 2;
    size_t length = strcspn(name, "=");
    const char *text = name[length] == '=' ? name + length + 1 : NULL;
    const cli_flag *flag = find_flag(program, name, length);
    if (flag == NULL && length > 3 && memcmp(name, "no-", 3) == 0) {
        flag = find_flag(program, name + 3, length - 3);
        if (flag != NULL && flag->type == CLI_BOOL) {
            return parse_bool(flag, text, true);
        }
        flag = NULL;
    }
    if (flag == NULL) {
        cli_wrong("unknown flag --%.*s (see --help)", (int)length, name);
        return false;
    }
    if (text == NULL && flag->type != CLI_BOOL) {
        if (*index + 1 >= argc) {
            cli_wrong("--%s: its value %s is missing", flag->name, flag->argument);
            return false;
        }
        text = argv[++*index];
    }
    return parse_value(flag, text);
}

static bool check_count(const cli_program *program, cli_arguments *arguments)
{
    if (arguments->count < program->minimum_arguments) {
        arguments->status = cli_wrong("an argument is missing, expected: %s [flags] %s",
                                      program->name, program->usage);
        return false;
    }
    if (program->maximum_arguments >= 0 && arguments->count > program->maximum_arguments) {
        arguments->status = cli_wrong("unexpected argument '%s' (see --help)",
                                      arguments->values[program->maximum_arguments]);
        return false;
    }
    return true;
}

bool cli_parse(const cli_program *program, int argc, char **argv, cli_arguments *arguments)
{
    *arguments = (cli_arguments){.values = argv + 1};
    cli_name(program->name);
    bool flags_ended = false;
    for (int i = 1; i < argc; i++) {
        const char *text = argv[i];
        if (flags_ended || text[0] != '-' || text[1] == '\0') {
            arguments->values[arguments->count++] = argv[i];
        } else if (strcmp(text, "--") == 0) {
            flags_ended = true;
        } else if (strcmp(text, "--help") == 0 || strcmp(text, "-h") == 0) {
            print_help(program);
            return false;
        } else if (strcmp(text, "--version") == 0) {
            printf("%s %s\n", program->name, xmoe_version());
            return false;
        } else if (text[1] != '-') {
            arguments->status = cli_wrong("unknown flag %s (see --help)", text);
            return false;
        } else if (!parse_flag(program, argc, argv, &i)) {
            arguments->status = CLI_USAGE;
            return false;
        }
    }
    return check_count(program, arguments);
}
