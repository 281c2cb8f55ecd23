/*
 * split.h - cuts text into the pieces that byte-level BPE merges within. How is a rule that belongs
 * to a vocabulary (tokenizer.ggml.pre); GPT-2's is also the one that vocabularies are learned with.
 */
#ifndef XM_FORMAT_SPLIT_H
#define XM_FORMAT_SPLIT_H

#include "base/error.h"
#include "format/gguf.h"

/* A way to split, and what goes with it in the vocabularies that use it. */
typedef struct xm_split_rule xm_split_rule;

/* By the name in tokenizer.ggml.pre; NULL if none has it. */
const xm_split_rule *xm_split_rule_of(xm_string name);
const xm_split_rule *xm_split_gpt2(void);
/* All names, "gpt-2, llama-bpe, ..."; for messages. Writes at most size bytes. */
void xm_split_rule_names(char *text, size_t size);
/* A piece that is a token as a whole is taken as it is, whatever merges would make of it. */
bool xm_split_rule_takes_whole(const xm_split_rule *rule);
/* Texts begin with the begin-of-text token unless the file says otherwise. */
bool xm_split_rule_adds_bos(const xm_split_rule *rule);

/* A compiled rule; immutable, any thread. */
typedef struct xm_splitter xm_splitter;

xmoe_status xm_splitter_create(const xm_split_rule *rule, xm_splitter **splitter,
                               xmoe_error *error);
void xm_splitter_free(xm_splitter *splitter);

/* One piece of the text given to xm_split; another status than XMOE_OK ends the split. */
typedef xmoe_status (*xm_piece_fn)(void *context, const char *piece, size_t length);

/* Calls each for every piece, from left to right; together the pieces are the text. Bytes that are
 * not UTF-8 are split as U+FFFD would be; pieces hold them as they are. */
xmoe_status xm_split(const xm_splitter *splitter, const char *text, size_t length, xm_piece_fn each,
                     void *context, xmoe_error *error);

#endif
