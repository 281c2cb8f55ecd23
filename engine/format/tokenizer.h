/*
 * tokenizer.h - a vocabulary, text to tokens and back: byte-level BPE with the splits of split.h,
 * or SentencePiece's BPE; special tokens; streaming text out.
 *
 * A tokenizer is immutable once made and may be used from any thread; each encode allocates its own
 * scratch. Merges are applied with a heap, so a long piece costs n log n.
 *
 * Normalisation that Hugging Face's tokenizers do before the split (NFC of Qwen and OLMo) is not
 * done: text is encoded as the bytes it has.
 */
#ifndef XM_FORMAT_TOKENIZER_H
#define XM_FORMAT_TOKENIZER_H

#include "base/buffer.h"
#include "base/error.h"
#include "format/gguf.h"
#include "format/split.h"

typedef struct xm_tokenizer xm_tokenizer;

/* A vocabulary in memory, as xm_gguf_get_strings would give its parts. Types are GGUF's: 1 normal;
 * 3 control (special) tokens stand for their text as a whole where special tokens are parsed, 4
 * user-defined ones everywhere; 2 unknown and 5 unused are never made from text; 6 is the byte that
 * "<0xXX>" names, for SentencePiece. */
typedef struct {
    const xm_split_rule *split; /* NULL: SentencePiece */
    const xm_string *tokens;    /* byte-level: normal ones in GPT-2's printable alphabet */
    const int32_t *types;
    size_t token_count;
    const xm_string *merges; /* byte-level: "left right" in the same alphabet, by rank */
    size_t merge_count;
    const float *scores;      /* SentencePiece */
    bool add_space;           /* SentencePiece: a space is put before the text */
    int32_t bos, eos;         /* -1: none */
    bool add_bos, add_eos;    /* a text begins, or ends, with that token */
    const int32_t *more_ends; /* tokens that end a text or turn besides eos and those known by */
    size_t more_end_count;    /* their text */
} xm_tokenizer_source;

/* From the tokenizer.ggml.* keys of a file; everything is checked, and the message names the key.
 */
xmoe_status xm_tokenizer_from_gguf(const xm_gguf *file, xm_tokenizer **tokenizer,
                                   xmoe_error *error);
/* Copies what it needs of the source. */
xmoe_status xm_tokenizer_create(const xm_tokenizer_source *source, xm_tokenizer **tokenizer,
                                xmoe_error *error);
void xm_tokenizer_free(xm_tokenizer *tokenizer);

int32_t xm_tokenizer_size(const xm_tokenizer *tokenizer);
int32_t xm_tokenizer_bos(const xm_tokenizer *tokenizer);
int32_t xm_tokenizer_eos(const xm_tokenizer *tokenizer);
bool xm_tokenizer_adds_bos(const xm_tokenizer *tokenizer);
bool xm_tokenizer_adds_eos(const xm_tokenizer *tokenizer);
/* True if encoding puts a space before a text, which decoding a whole text takes off again. */
bool xm_tokenizer_adds_space(const xm_tokenizer *tokenizer);
bool xm_tokenizer_is_special(const xm_tokenizer *tokenizer, int32_t token);
/* True for tokens after which a text, or a speaker's turn, has ended. */
bool xm_tokenizer_is_end(const xm_tokenizer *tokenizer, int32_t token);
/* True for tokens that stand for text: not special, unknown or unused. */
bool xm_tokenizer_is_text(const xm_tokenizer *tokenizer, int32_t token);
/* Raw bytes of a token; length 0 for ids out of range. */
const char *xm_tokenizer_bytes(const xm_tokenizer *tokenizer, int32_t token, size_t *length);

/* See xmoe_tokenize. Bytes that are not UTF-8 are split as U+FFFD would be, and encoded as the
 * bytes they are. *tokens is malloc'ed. */
xmoe_status xm_tokenizer_encode(const xm_tokenizer *tokenizer, const char *text, size_t length,
                                bool add_special, bool parse_special, int32_t **tokens,
                                size_t *count, xmoe_error *error);

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
