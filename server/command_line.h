/*
 * command_line.h - flags, and the files that are looked for when a flag does not name them.
 */
#ifndef XM_SERVER_COMMAND_LINE_H
#define XM_SERVER_COMMAND_LINE_H

#include <stdio.h>

#include "settings.h"

#define XM_FLAG_LIMIT 128

typedef struct {
    bool help, version, print_config;
    const char *config; /* --config, or NULL */
    xm_setting_flag flags[XM_FLAG_LIMIT];
    size_t flag_count;
    char *owned[XM_FLAG_LIMIT]; /* copies that flags point into */
} xm_command_line;

/* False with a message. argv must outlive the result. */
bool xm_command_line_parse(int argc, char **argv, xm_command_line *line, char *message,
                           size_t size);
void xm_command_line_free(xm_command_line *line);
void xm_command_line_help(FILE *file);

/* The first of the usual places that has the file; false if none has. */
bool xm_find_config(char *path, size_t size);
bool xm_find_model(char *path, size_t size);

/* Settings from all sources, as the command line asks. NULL with a message. */
xm_settings *xm_command_line_settings(const xm_command_line *line, char *message, size_t size);

#endif
