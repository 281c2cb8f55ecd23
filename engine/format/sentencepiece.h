/*
 * sentencepiece.h - SentencePiece's BPE (Kudo and Richardson 2018): a text's characters are merged,
 * always the neighbours that make the token of highest score, of equal ones the leftmost, until
 * none do; what is then no token becomes tokens of its single bytes.
 *
 * Tables are immutable once made; any thread.
 */
#ifndef XM_FORMAT_SENTENCEPIECE_H
#define XM_FORMAT_SENTENCEPIECE_H

#include "base/error.h"
#include "format/gguf.h"
#include "format/token_list.h"

typedef struct xm_sentencepiece xm_sentencepiece;

/* words[token]: as in the file, with U+2581 for a space; length 0: not made by merges. Words and
 * scores outlive the table. byte_tokens: of each byte, -1: none. unknown: in place of bytes without
 * a token; -1: they are left out. */
xmoe_status xm_sentencepiece_create(const xm_string *words, const float *scores, size_t count,
                                    const int32_t byte_tokens[256], int32_t unknown,
                                    xm_sentencepiece **sentencepiece, xmoe_error *error);
void xm_sentencepiece_free(xm_sentencepiece *sentencepiece);

/* Appends the tokens of a text, a space put before it where `space` is set. Bytes that are not
 * UTF-8 stand for themselves. XMOE_ERROR_MEMORY or XMOE_OK. */
xmoe_status xm_sentencepiece_encode(const xm_sentencepiece *sentencepiece, const char *text,
                                    size_t length, bool space, xm_token_list *tokens);

#endif
