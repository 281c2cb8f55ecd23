/*
 * command_line.c - see command_line.h.
 *
 * Every setting has its flag by its full name (--limits-body-bytes 1000, or with =); the ones that
 * are typed most have a short one.
 */
#include "command_line.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static const struct {
    const char *flag, *setting;
} short_names[] = {{"model", "model.path"}, {"alias", "model.alias"},      {"host", "http.host"},
                   {"port", "http.port"},   {"threads", "engine.threads"}, {"trace", "trace.file"}};

static const xm_setting *find_setting(const char *flag, size_t length)
{
    for (size_t i = 0; i < xm_setting_count; i++) {
        char name[96];
        xm_setting_flag_name(&xm_setting_table[i], name, sizeof name);
        for (size_t s = 0; s < sizeof short_names / sizeof *short_names; s++)
            if (strlen(short_names[s].flag) == length &&
                strncmp(short_names[s].flag, flag, length) == 0 &&
                strcmp(short_names[s].setting, xm_setting_table[i].name) == 0)
                return &xm_setting_table[i];
        if (strlen(name) == length && strncmp(name, flag, length) == 0)
            return &xm_setting_table[i];
        if (strlen(xm_setting_table[i].name) == length &&
            strncmp(xm_setting_table[i].name, flag, length) == 0)
            return &xm_setting_table[i];
    }
    return NULL;
}

static bool add_setting(xm_command_line *line, const xm_setting *setting, const char *value,
                        const char *name, size_t length)
{
    char source[128];
    if (line->flag_count == XM_FLAG_LIMIT)
        return false;
    snprintf(source, sizeof source, "the flag --%.*s", (int)length, name);
    size_t i = line->flag_count++;
    line->owned[i] = strdup(source);
    line->flags[i] = (xm_setting_flag){setting, value, line->owned[i] ? line->owned[i] : name};
    return true;
}

/* --set name=value */
static bool add_assignment(xm_command_line *line, const char *text, char *message, size_t size)
{
    size_t length = strcspn(text, "=");
    const xm_setting *setting = find_setting(text, length);
    if (!setting || text[length] != '=') {
        snprintf(message, size, "--set %.80s: expected the name of a setting, '=' and its value",
                 text);
        return false;
    }
    return add_setting(line, setting, text + length + 1, text, length);
}

/* One flag with its value; *used is set if the value was the next argument. */
static bool parse_flag(xm_command_line *line, const char *name, const char *next, bool *used,
                       char *message, size_t size)
{
    size_t length = strcspn(name, "=");
    const char *value = name[length] ? name + length + 1 : next;
    bool config = length == 6 && strncmp(name, "config", 6) == 0;
    bool set = length == 3 && strncmp(name, "set", 3) == 0;
    const xm_setting *setting = config || set ? NULL : find_setting(name, length);
    if (!config && !set && !setting) {
        snprintf(message, size, "unknown flag --%.80s; --help lists what there is", name);
        return false;
    }
    if (!value) {
        snprintf(message, size, "the flag --%.80s needs a value", name);
        return false;
    }
    *used = !name[length];
    if (config) {
        line->config = value;
        return true;
    }
    if (set)
        return add_assignment(line, value, message, size);
    if (add_setting(line, setting, value, name, length))
        return true;
    snprintf(message, size, "too many flags");
    return false;
}

bool xm_command_line_parse(int argc, char **argv, xm_command_line *line, char *message, size_t size)
{
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        bool used = false;
        if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
            line->help = true;
        } else if (strcmp(argument, "--version") == 0) {
            line->version = true;
        } else if (strcmp(argument, "--print-config") == 0) {
            line->print_config = true;
        } else if (strcmp(argument, "-m") == 0) {
            if (!parse_flag(line, "model", argv[i + 1], &used, message, size))
                return false;
        } else if (strncmp(argument, "--", 2) == 0) {
            if (!parse_flag(line, argument + 2, argv[i + 1], &used, message, size))
                return false;
        } else {
            snprintf(message, size, "unexpected argument '%.80s'; --help lists what there is",
                     argument);
            return false;
        }
        i += used;
    }
    return true;
}

void xm_command_line_free(xm_command_line *line)
{
    for (size_t i = 0; i < line->flag_count; i++)
        free(line->owned[i]);
    line->flag_count = 0;
}

void xm_command_line_help(FILE *file)
{
    fprintf(file, "xmoe-server: serves a sparse mixture-of-experts model over HTTP.\n\n"
                  "  xmoe-server [--model FILE] [--host ADDRESS] [--port N] [--threads N]\n"
                  "              [--trace FILE]\n\n"
                  "Without flags it serves the bundled model on 127.0.0.1:8080.\n\n"
                  "  --config FILE     JSON file with settings (also: XMOE_CONFIG)\n"
                  "  --set NAME=VALUE  any setting by its name\n"
                  "  --print-config    print the settings in force and exit\n"
                  "  --version         print the version and exit\n"
                  "  --help            this text\n\n"
                  "Settings, each also in the file as {\"section\": {\"name\": ...}} and in the\n"
                  "environment as XMOE_SECTION_NAME. Flags win over the environment, it over the\n"
                  "file, that over the default in brackets. Those marked * are read again on\n"
                  "SIGHUP.\n\n");
    for (size_t i = 0; i < xm_setting_count; i++) {
        const xm_setting *setting = &xm_setting_table[i];
        char name[96];
        xm_setting_flag_name(setting, name, sizeof name);
        fprintf(file, "  --%s%s\n      %s [%s]\n", name, setting->reloadable ? " *" : "",
                setting->help, setting->default_text);
    }
}

/* <directory of the program>/suffix */
static bool beside_program(const char *suffix, char *path, size_t size)
{
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0)
        return false;
    program[length] = '\0';
    char *slash = strrchr(program, '/');
    if (!slash)
        return false;
    *slash = '\0';
    int written = snprintf(path, size, "%s/%s", program, suffix);
    return written > 0 && (size_t)written < size && access(path, R_OK) == 0;
}

bool xm_find_config(char *path, size_t size)
{
    return beside_program("../config/xmoe.json", path, size) ||
           beside_program("../share/xmoe/xmoe.json", path, size);
}

bool xm_find_model(char *path, size_t size)
{
    if (beside_program("../models/xmoe-small.gguf", path, size) ||
        beside_program("../share/xmoe/xmoe-small.gguf", path, size))
        return true;
    snprintf(path, size, "models/xmoe-small.gguf");
    return access(path, R_OK) == 0;
}

xm_settings *xm_command_line_settings(const xm_command_line *line, char *message, size_t size)
{
    char found[PATH_MAX];
    const char *config = line->config ? line->config : getenv("XMOE_CONFIG");
    if ((!config || !config[0]) && xm_find_config(found, sizeof found))
        config = found;
    return xm_settings_load(config && config[0] ? config : NULL, environ, line->flags,
                            line->flag_count, message, size);
}
