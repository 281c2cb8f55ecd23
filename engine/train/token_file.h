/*
 * token_file.h - a text file as tokens, made once and kept in a cache file beside the training run.
 *
 * Text is UTF-8; a document ends with a line that holds only <|endoftext|>. Its tokens are one
 * end-of-text token, then each document's tokens followed by one more. Bytes of separator lines are
 * not text: they do not count in bits per byte.
 */
#ifndef XM_TRAIN_TOKEN_FILE_H
#define XM_TRAIN_TOKEN_FILE_H

#include "base/pool.h"
#include "train/vocabulary.h"

typedef struct {
    uint16_t *tokens;
    size_t count;
    uint64_t text_bytes; /* of all documents, without separator lines */
} xm_token_file;

/* Reads the cache file if it was made from this text (size and time of change) with this
 * vocabulary; else encodes the text on the pool and writes the cache. cache NULL: no cache. */
xmoe_status xm_token_file_open(const char *text_path, const char *cache_path,
                               const xm_vocabulary *vocabulary, const xm_tokenizer *tokenizer,
                               xm_pool *pool, xm_token_file *file, xmoe_error *error);
/* The tokens of a text in memory. */
xmoe_status xm_token_file_encode(const char *text, size_t length, const xm_tokenizer *tokenizer,
                                 xm_pool *pool, xm_token_file *file, xmoe_error *error);
void xm_token_file_free(xm_token_file *file);

/* Whole file in memory (xm_free). */
xmoe_status xm_read_text(const char *path, char **text, size_t *length, xmoe_error *error);

/* Bytes of the document at text[0 .. length), and, in *next, where the one after it begins. */
size_t xm_document_length(const char *text, size_t length, size_t *next);

#endif
