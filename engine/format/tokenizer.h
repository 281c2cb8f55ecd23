/*
 * tokenizer.h - byte-level BPE with the GPT-2 split (Radford et al. 2019), and streaming text out.
 *
 * A tokenizer is immutable once made and may be used from any thread; each encode allocates its own
 * scratch. Merges are applied by rank with a heap, so a long piece costs n log n.
 */
#ifndef XM_FORMAT_TOKENIZER_H
#define XM_FORMAT_TOKENIZER_H

#include "base/buffer.h"
#include "base/error.h"
#include "format/gguf.h"

typedef struct xm_tokenizer xm_tokenizer;

/* The GPT-2 split as a PCRE2 pattern (UTF, UCP). Who learns a vocabulary splits with split.h. */
extern const char xm_gpt2_split_pattern[];

/* From the tokenizer.ggml.* keys of a file; everything is checked (model "gpt2", token count, merge
 * parts that exist, ids in range, every single byte present). */
xmoe_status xm_tokenizer_from_gguf(const xm_gguf *file, xm_tokenizer **tokenizer,
                                   xmoe_error *error);
/* From memory, as xm_gguf_get_strings would give them: tokens and merges in GPT-2's printable byte
 * alphabet, types as in GGUF: 1 normal; 3 control (special) and 4 user-defined stand for their text
 * as a whole, where special tokens are parsed; 2, 5 and 6 are never made from text. bos/eos: -1 for
 * none. */
xmoe_status xm_tokenizer_create(const xm_string *tokens, const int32_t *types, size_t token_count,
                                const xm_string *merges, size_t merge_count, int32_t bos,
                                int32_t eos, xm_tokenizer **tokenizer, xmoe_error *error);
void xm_tokenizer_free(xm_tokenizer *tokenizer);

int32_t xm_tokenizer_size(const xm_tokenizer *tokenizer);
int32_t xm_tokenizer_bos(const xm_tokenizer *tokenizer);
int32_t xm_tokenizer_eos(const xm_tokenizer *tokenizer);
bool xm_tokenizer_is_special(const xm_tokenizer *tokenizer, int32_t token);
/* Raw bytes of a token; length 0 for ids out of range. */
const char *xm_tokenizer_bytes(const xm_tokenizer *tokenizer, int32_t token, size_t *length);

/* See xmoe_tokenize. Bytes that are not UTF-8 are split as U+FFFD would be, and encoded as the
 * bytes they are. *tokens is malloc'ed. */
xmoe_status xm_tokenizer_encode(const xm_tokenizer *tokenizer, const char *text, size_t length,
                                bool parse_special, int32_t **tokens, size_t *count,
                                xmoe_error *error);

/* See xmoe_tokenize_marked. */
xmoe_status xm_tokenizer_encode_marked(const xm_tokenizer *tokenizer, const char *text,
                                       const char *marks, size_t length, int32_t **tokens,
                                       size_t *count, xmoe_error *error);

/* Bytes in, whole characters out: holds back an unfinished UTF-8 sequence, replaces what can never
 * become a character by U+FFFD (maximal subparts, as the Unicode standard recommends). */
typedef struct {
    unsigned char held[4];
    int32_t held_length;
} xm_utf8_stream; /* start with {0} */

void xm_utf8_stream_push(xm_utf8_stream *stream, const char *bytes, size_t length, xm_buffer *out);
/* What is still held becomes one U+FFFD. */
void xm_utf8_stream_end(xm_utf8_stream *stream, xm_buffer *out);

/* GPT-2's printable alphabet: byte <-> code point (used when writing vocabularies). */
uint32_t xm_byte_to_printable(uint8_t byte);
/* -1 if the code point stands for no byte. */
int32_t xm_printable_to_byte(uint32_t code_point);

#endif
