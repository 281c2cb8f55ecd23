/*
 * usage_file.h - expert usage as a file: the server's snapshot document (all three phases), or one
 * plain object of GET /v1/experts/usage.
 *
 *     {"object": "experts.snapshot", "id", "model", "created", "experts",
 *      "phases": {"all": USAGE, "prefill": USAGE, "decode": USAGE}}
 *
 * A file is untrusted: nothing is allocated from its numbers, arrays must have the lengths that go
 * with each other, and the counters pass xmoe_usage_create.
 */
#ifndef XMOE_TOOLS_USAGE_FILE_H
#define XMOE_TOOLS_USAGE_FILE_H

#include "xmoe.h"

#include <stdio.h>

enum { USAGE_ID_BYTES = 65, USAGE_MODEL_BYTES = 160 }; /* with their NUL */

typedef struct {
    char id[USAGE_ID_BYTES];         /* "" in a plain usage object */
    char model[USAGE_MODEL_BYTES];   /* its name where the usage was counted */
    int64_t created;                 /* Unix time; 0 in a plain usage object */
    xmoe_usage *phases[XMOE_PHASES]; /* all, or the one of a plain usage object; owned */
} usage_file;                        /* start with {0}; usage_file_free in any state */

/* Reads JSON text; on failure *file stays empty and the message says what is wrong where. */
xmoe_status usage_file_parse(const char *text, size_t length, usage_file *file, xmoe_error *error);
/* The same from a file ("-": stdin); false after a message that names it. */
bool usage_file_read(usage_file *file, const char *path);
void usage_file_free(usage_file *file);

/* The phase asked for by name; NULL: "all", or the only one there is. Else NULL and a message that
 * names the file by path. */
const xmoe_usage *usage_file_phase(const usage_file *file, const char *phase, const char *path);

/* Takes the model's name from its file as a server does: the base name without .gguf. */
void usage_file_set_model(usage_file *file, const char *path);

/* Takes the id from the name that the file will have: its base name without .json, with characters
 * that no id has replaced. */
void usage_file_set_id(usage_file *file, const char *path);

/* True for an id that a server takes: [A-Za-z0-9._-]{1,64}, not beginning with a dot. */
bool usage_id_is_valid(const char *id);

/* As JSON: a snapshot document, or a plain usage object where only one phase is there. */
void usage_file_print(FILE *out, const usage_file *file);
/* The same as a file that appears whole or not at all; false after a message. */
bool usage_file_write(const usage_file *file, const char *path);

#endif
