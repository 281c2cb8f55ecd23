/*
 * output_file.h - a file that appears whole or not at all: it is written under a name of its own
 * beside the target and takes the target's name when it is complete and on the disk. Functions
 * print their message on stderr.
 */
#ifndef XMOE_TOOLS_OUTPUT_FILE_H
#define XMOE_TOOLS_OUTPUT_FILE_H

#include <stdbool.h>
#include <stdio.h>

typedef struct {
    const char *path; /* the caller's; must live until the end */
    char *temporary;
    FILE *stream; /* write here */
} output_file;    /* start with {0}; output_abandon in any state */

/* A target that exists must be a regular file; it keeps its content until output_finish. */
bool output_open(output_file *file, const char *path);
/* False after a message if a write has failed so far: long work can stop early. */
bool output_good(const output_file *file);
/* Gives the file its name. On failure nothing is left of it. */
bool output_finish(output_file *file);
/* Removes what was not finished; after output_finish it does nothing. */
void output_abandon(output_file *file);

#endif
