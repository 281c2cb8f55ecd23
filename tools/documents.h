/*
 * documents.h - text files as documents and tokens, for xmoe-eval and xmoe-bench.
 *
 * Documents of a file are separated by lines that hold only <|endoftext|>. All bytes but those of
 * the separator lines are text that must be predicted, the newline before a separator line
 * included: the trainer cuts its text the same way. Empty documents are left out.
 */
#ifndef XMOE_TOOLS_DOCUMENTS_H
#define XMOE_TOOLS_DOCUMENTS_H

#include "xmoe.h"

typedef struct {
    int32_t file;    /* index of its file */
    size_t bytes;    /* of its text */
    int32_t *tokens; /* begin-of-text, then the text's tokens */
    size_t count;    /* of tokens, begin-of-text included: at least 2 */
} document;

typedef struct {
    document *items;
    size_t count, capacity;
} document_list; /* start with {0}; documents_free in any state */

/* The token that stands before a document's first; -1: none. */
int32_t documents_begin_token(const xmoe_model *model);

/* Appends the documents of one file ("-": stdin), at most limit (0: all); false after a message. */
bool documents_add_file(document_list *list, const xmoe_model *model, const char *path,
                        int32_t file, int32_t limit);
void documents_free(document_list *list);

#endif
