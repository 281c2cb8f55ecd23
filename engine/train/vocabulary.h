/*
 * vocabulary.h - a byte-level BPE vocabulary as the trainer makes it: ids 0..255 are the bytes, 256
 * is <|endoftext|>, and each merge after that joins two tokens before it.
 *
 * Kept in a text file ("xmoe-vocabulary 1 SIZE", then one line "LEFT RIGHT" of ids per merge), from
 * which every token follows. Refuses a file whose merges name later tokens.
 */
#ifndef XM_TRAIN_VOCABULARY_H
#define XM_TRAIN_VOCABULARY_H

#include "format/gguf.h"
#include "format/tokenizer.h"

enum { XM_END_OF_TEXT = 256, XM_FIRST_MERGE = 257 };

typedef struct {
    int32_t left, right; /* token ids */
} xm_merge;

typedef struct {
    xm_merge *merges; /* merge i makes token XM_FIRST_MERGE + i */
    int32_t merge_count;
} xm_vocabulary;

int32_t xm_vocabulary_size(const xm_vocabulary *vocabulary);
/* Equal for equal vocabularies; marks files that were made with one. */
uint64_t xm_vocabulary_hash(const xm_vocabulary *vocabulary);
void xm_vocabulary_free(xm_vocabulary *vocabulary);

xmoe_status xm_vocabulary_save(const xm_vocabulary *vocabulary, const char *path,
                               xmoe_error *error);
xmoe_status xm_vocabulary_load(const char *path, xm_vocabulary *vocabulary, xmoe_error *error);

/* As GGUF files name it: tokens and merges in GPT-2's printable alphabet. */
typedef struct {
    xm_string *tokens;
    int32_t *types;
    xm_string *merges;
    char *memory; /* what the strings point into */
} xm_vocabulary_strings;

xmoe_status xm_vocabulary_make_strings(const xm_vocabulary *vocabulary,
                                       xm_vocabulary_strings *strings, xmoe_error *error);
void xm_vocabulary_strings_free(xm_vocabulary_strings *strings);
xmoe_status xm_vocabulary_tokenizer(const xm_vocabulary *vocabulary, xm_tokenizer **tokenizer,
                                    xmoe_error *error);

#endif
