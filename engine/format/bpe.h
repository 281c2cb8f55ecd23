/*
 * bpe.h - the vocabulary and merges of byte-level BPE, and merging one piece of text.
 *
 * Merges are applied one at a time: always the pair of lowest rank, of equal ones the leftmost.
 * Tables are immutable once made; a workspace belongs to one thread.
 */
#ifndef XM_FORMAT_BPE_H
#define XM_FORMAT_BPE_H

#include "base/error.h"
#include "format/gguf.h"
#include "format/token_list.h"

typedef struct xm_bpe xm_bpe;

/* words[id]: raw bytes of the token, which must outlive the table; length 0: not made by merges.
 * merges: "left right" in GPT-2's printable alphabet, in order of rank. Bytes
 * that no token stands for are left out of what is made. Checked: no two tokens have the same
 * bytes, both sides and the result of a merge are tokens, no merge comes twice. takes_whole: a
 * piece that is a token is taken as it is, whatever merges would make of it. */
xmoe_status xm_bpe_create(const xm_string *words, size_t word_count, const xm_string *merges,
                          size_t merge_count, bool takes_whole, xm_bpe **bpe, xmoe_error *error);
void xm_bpe_free(xm_bpe *bpe);

/* A growing list of tokens and the scratch of long pieces; start with {0}. */
typedef struct {
    xm_token_list list;
    struct xm_bpe_symbol *symbols; /* of one long piece */
    uint64_t *heap;
    size_t symbol_capacity;
} xm_bpe_workspace;

/* Appends the tokens of one piece (of less than 2^31 bytes). XMOE_ERROR_MEMORY or XMOE_OK. */
xmoe_status xm_bpe_merge(const xm_bpe *bpe, const char *piece, size_t length,
                         xm_bpe_workspace *workspace);
/* Frees the scratch; the list stays the caller's. */
void xm_bpe_workspace_free(xm_bpe_workspace *workspace);

/* The bytes of a text in GPT-2's printable alphabet into out (as many bytes as the text at most).
 * False if it holds anything else. */
bool xm_bpe_parse_printable(xm_string text, char *out, size_t *length);

#endif
