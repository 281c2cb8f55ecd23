/*
 * random_vocabulary.c - see random_vocabulary.h.
 *
 * Merged tokens are the strings of a leading space or lower-case letter and more letters, shorter
 * ones first: each is the merge of the string without its last letter, and that letter. So every
 * token is unique, its parts come before it, and ordinary text meets some of them.
 */
#include "model/random_vocabulary.h"

#include "base/memory.h"
#include "format/tokenizer.h"

#include <string.h>

enum {
    LETTERS = 26,
    STARTS = LETTERS + 1, /* the space, then the letters */
    END_OF_TEXT = 256,
    TOKEN_BYTES = 16, /* longest text of a token, in UTF-8: 2 + 4 letters reach 12 million */
    NORMAL = 1,       /* token types of GGUF */
    CONTROL = 3,
};

typedef struct {
    xm_string *tokens; /* [size] */
    xm_string *merges; /* [size - XM_BASE_VOCABULARY] */
    int32_t *types;    /* [size] */
    char *text;        /* what they point into */
    size_t used;
} vocabulary;

/* Two bytes are enough for the printable alphabet, which ends at U+0143. */
static size_t write_utf8(uint32_t code_point, char *out)
{
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    out[0] = (char)(0xc0 | code_point >> 6);
    out[1] = (char)(0x80 | (code_point & 0x3f));
    return 2;
}

/* first and second, one after the other (with `gap` spaces between them) as a new string. */
static xm_string join(vocabulary *words, xm_string first, size_t gap, xm_string second)
{
    char *start = words->text + words->used;
    memcpy(start, first.data, first.length);
    memset(start + first.length, ' ', gap);
    memcpy(start + first.length + gap, second.data, second.length);
    words->used += first.length + gap + second.length;
    return (xm_string){start, first.length + gap + second.length};
}

static void add_bytes(vocabulary *words)
{
    for (int32_t byte = 0; byte < 256; byte++) {
        char *start = words->text + words->used;
        size_t length = write_utf8(xm_byte_to_printable((uint8_t)byte), start);
        words->used += length;
        words->tokens[byte] = (xm_string){start, length};
        words->types[byte] = NORMAL;
    }
    words->tokens[END_OF_TEXT] = (xm_string){"<|endoftext|>", 13};
    words->types[END_OF_TEXT] = CONTROL;
}

/* Prefixes are taken in order: first the STARTS single characters, then the merged tokens as they
 * were made; each gives LETTERS new ones. */
static void add_merges(vocabulary *words, int32_t size)
{
    for (int32_t i = 0; i < size - XM_BASE_VOCABULARY; i++) {
        int32_t prefix = i / LETTERS;
        int32_t token = prefix >= STARTS ? XM_BASE_VOCABULARY + prefix - STARTS
                        : prefix == 0    ? ' '
                                         : 'a' + prefix - 1;
        xm_string first = words->tokens[token];
        xm_string letter = words->tokens['a' + i % LETTERS];
        words->tokens[XM_BASE_VOCABULARY + i] = join(words, first, 0, letter);
        words->types[XM_BASE_VOCABULARY + i] = NORMAL;
        words->merges[i] = join(words, first, 1, letter);
    }
}

xmoe_status xm_random_vocabulary_write(xm_gguf_writer *writer, int32_t size, xmoe_error *error)
{
    size_t count = (size_t)size;
    vocabulary words = {
        .tokens = xm_calloc(count, sizeof *words.tokens),
        .merges = xm_calloc(count, sizeof *words.merges),
        .types = xm_calloc(count, sizeof *words.types),
        .text = xm_calloc(count, 2 * TOKEN_BYTES),
    };
    xmoe_status status = XMOE_OK;
    if (words.tokens == NULL || words.merges == NULL || words.types == NULL || words.text == NULL) {
        status = xm_fail_memory(error, "vocabulary", count * 2 * TOKEN_BYTES);
        goto done;
    }
    add_bytes(&words);
    add_merges(&words, size);
    xm_gguf_writer_string(writer, "tokenizer.ggml.model", "gpt2");
    xm_gguf_writer_string(writer, "tokenizer.ggml.pre", "gpt-2");
    xm_gguf_writer_strings(writer, "tokenizer.ggml.tokens", words.tokens, count);
    xm_gguf_writer_i32s(writer, "tokenizer.ggml.token_type", words.types, count);
    xm_gguf_writer_strings(writer, "tokenizer.ggml.merges", words.merges,
                           count - XM_BASE_VOCABULARY);
    xm_gguf_writer_u32(writer, "tokenizer.ggml.bos_token_id", END_OF_TEXT);
    xm_gguf_writer_u32(writer, "tokenizer.ggml.eos_token_id", END_OF_TEXT);
done:
    xm_free(words.tokens);
    xm_free(words.merges);
    xm_free(words.types);
    xm_free(words.text);
    return status;
}
