/*
 * tokenizer.c - a vocabulary from a file or memory, and text to tokens: special tokens first, the
 * GPT-2 split between them (split.c), merges within a piece (bpe.c). See tokenizer.h.
 *
 * Immutable once made; any thread. Refuses vocabularies that are not GPT-2's kind or that do not
 * fit together, naming the key and the entry.
 */
#include "format/tokenizer.h"

#include "base/memory.h"
#include "format/bpe.h"
#include "format/split.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>

enum {
    TYPE_NORMAL = 1,
    TYPE_CONTROL = 3,
    TYPE_USER_DEFINED = 4,
    TYPE_LAST = 6, /* 2 unknown, 5 unused, 6 byte: never made from text */
};

/* A token that its text stands for as a whole. */
typedef struct {
    xm_string text;
    int32_t token;
} literal;

struct xm_tokenizer {
    size_t size;
    int32_t bos, eos;
    char *arena;       /* the bytes of all tokens */
    xm_string *bytes;  /* by token */
    xm_string *words;  /* the same for normal tokens, length 0 for others */
    bool *special;     /* control tokens */
    literal *literals; /* control and user-defined tokens, sorted by text */
    size_t literal_count;
    bool literal_starts[256]; /* first bytes of literals */
    xm_bpe *bpe;
    xm_splitter *splitter;
};

/* --- GPT-2's printable alphabet --------------------------------------------------------------- */

/* Bytes that are printable in Latin-1 stand for themselves; the other 68 are U+0100 and up. */
static bool stands_for_itself(uint32_t byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) ||
           (byte >= 174 && byte <= 255);
}

uint32_t xm_byte_to_printable(uint8_t byte)
{
    if (stands_for_itself(byte))
        return byte;
    if (byte <= 32)
        return 256u + byte;
    return byte == 173 ? 323 : 256u + 33 + byte - 127; /* 127..160 */
}

int32_t xm_printable_to_byte(uint32_t code_point)
{
    if (code_point < 256)
        return stands_for_itself(code_point) ? (int32_t)code_point : -1;
    if (code_point <= 288)
        return (int32_t)(code_point - 256);
    if (code_point <= 322)
        return (int32_t)(code_point - 289 + 127);
    return code_point == 323 ? 173 : -1;
}

/* --- creation --------------------------------------------------------------------------------- */

/* Fills bytes and words: normal tokens from the printable alphabet, others as they are. */
static xmoe_status read_tokens(xm_tokenizer *tokenizer, const xm_string *tokens,
                               const int32_t *types, xmoe_error *error)
{
    size_t total = 0;
    for (size_t i = 0; i < tokenizer->size; i++)
        total += tokens[i].length;
    char *next = tokenizer->arena = xm_calloc(total, 1);
    if (next == NULL)
        return xm_fail_memory(error, "vocabulary", total);
    for (size_t i = 0; i < tokenizer->size; i++) {
        size_t length = tokens[i].length;
        if (types[i] < TYPE_NORMAL || types[i] > TYPE_LAST)
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "tokenizer.ggml.token_type: type of token %zu is %d, expected 1 to %d",
                           i, types[i], TYPE_LAST);
        if (length == 0)
            return xm_fail(error, XMOE_ERROR_FORMAT, "tokenizer.ggml.tokens: token %zu is empty",
                           i);
        if (types[i] != TYPE_NORMAL)
            memcpy(next, tokens[i].data, length);
        else if (!xm_bpe_parse_printable(tokens[i], next, &length))
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "tokenizer.ggml.tokens: token %zu is not in GPT-2's byte alphabet", i);
        tokenizer->bytes[i] = (xm_string){next, length};
        if (types[i] == TYPE_NORMAL)
            tokenizer->words[i] = tokenizer->bytes[i];
        tokenizer->special[i] = types[i] == TYPE_CONTROL;
        next += length;
    }
    return XMOE_OK;
}

static int compare_texts(xm_string a, xm_string b)
{
    size_t shorter = a.length < b.length ? a.length : b.length;
    int order = memcmp(a.data, b.data, shorter);
    if (order != 0)
        return order;
    return a.length < b.length ? -1 : a.length > b.length;
}

static int compare_literals(const void *a, const void *b)
{
    return compare_texts(((const literal *)a)->text, ((const literal *)b)->text);
}

static xmoe_status sort_literals(xm_tokenizer *tokenizer, const int32_t *types, xmoe_error *error)
{
    size_t count = 0;
    for (size_t i = 0; i < tokenizer->size; i++)
        count += types[i] == TYPE_CONTROL || types[i] == TYPE_USER_DEFINED;
    tokenizer->literals = xm_calloc(count, sizeof *tokenizer->literals);
    if (tokenizer->literals == NULL)
        return xm_fail_memory(error, "special tokens", count * sizeof *tokenizer->literals);
    for (size_t i = 0; i < tokenizer->size; i++) {
        if (types[i] != TYPE_CONTROL && types[i] != TYPE_USER_DEFINED)
            continue;
        tokenizer->literals[tokenizer->literal_count++] =
            (literal){tokenizer->bytes[i], (int32_t)i};
        tokenizer->literal_starts[(unsigned char)tokenizer->bytes[i].data[0]] = true;
    }
    qsort(tokenizer->literals, count, sizeof *tokenizer->literals, compare_literals);
    for (size_t i = 1; i < count; i++) {
        const literal *pair = &tokenizer->literals[i - 1];
        if (compare_literals(&pair[0], &pair[1]) == 0)
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "tokenizer.ggml.tokens: special tokens %d and %d are the same",
                           pair[0].token, pair[1].token);
    }
    return XMOE_OK;
}

static xmoe_status check_id(const xm_tokenizer *tokenizer, const char *key, int32_t id,
                            xmoe_error *error)
{
    if (id >= -1 && (id < 0 || (size_t)id < tokenizer->size))
        return XMOE_OK;
    return xm_fail(error, XMOE_ERROR_FORMAT, "%s is %d, but there are %zu tokens", key, id,
                   tokenizer->size);
}

static xmoe_status build(xm_tokenizer *tokenizer, const xm_string *tokens, const int32_t *types,
                         const xm_string *merges, size_t merge_count, xmoe_error *error)
{
    tokenizer->bytes = xm_calloc(tokenizer->size, sizeof *tokenizer->bytes);
    tokenizer->words = xm_calloc(tokenizer->size, sizeof *tokenizer->words);
    tokenizer->special = xm_calloc(tokenizer->size, sizeof *tokenizer->special);
    if (tokenizer->bytes == NULL || tokenizer->words == NULL || tokenizer->special == NULL)
        return xm_fail_memory(error, "vocabulary", tokenizer->size * sizeof *tokenizer->bytes);
    xmoe_status status = check_id(tokenizer, "tokenizer.ggml.bos_token_id", tokenizer->bos, error);
    if (status == XMOE_OK)
        status = check_id(tokenizer, "tokenizer.ggml.eos_token_id", tokenizer->eos, error);
    if (status == XMOE_OK)
        status = read_tokens(tokenizer, tokens, types, error);
    if (status == XMOE_OK)
        status = sort_literals(tokenizer, types, error);
    if (status == XMOE_OK)
        status = xm_bpe_create(tokenizer->words, tokenizer->size, merges, merge_count,
                               &tokenizer->bpe, error);
    if (status == XMOE_OK)
        status = xm_splitter_create(&tokenizer->splitter, error);
    return status;
}

xmoe_status xm_tokenizer_create(const xm_string *tokens, const int32_t *types, size_t token_count,
                                const xm_string *merges, size_t merge_count, int32_t bos,
                                int32_t eos, xm_tokenizer **tokenizer_out, xmoe_error *error)
{
    *tokenizer_out = NULL;
    if (token_count > INT32_MAX)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "tokenizer.ggml.tokens: more than 2^31 tokens");
    xm_tokenizer *tokenizer = xm_calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL)
        return xm_fail_memory(error, "tokenizer", sizeof *tokenizer);
    tokenizer->size = token_count;
    tokenizer->bos = bos;
    tokenizer->eos = eos;
    xmoe_status status = build(tokenizer, tokens, types, merges, merge_count, error);
    if (status != XMOE_OK) {
        xm_tokenizer_free(tokenizer);
        return status;
    }
    *tokenizer_out = tokenizer;
    return XMOE_OK;
}

void xm_tokenizer_free(xm_tokenizer *tokenizer)
{
    if (tokenizer == NULL)
        return;
    xm_splitter_free(tokenizer->splitter);
    xm_bpe_free(tokenizer->bpe);
    xm_free(tokenizer->arena);
    xm_free(tokenizer->bytes);
    xm_free(tokenizer->words);
    xm_free(tokenizer->special);
    xm_free(tokenizer->literals);
    xm_free(tokenizer);
}

/* --- from a file ------------------------------------------------------------------------------ */

/* The string key must have this value; one that may be absent is fine without. */
static xmoe_status expect_string(const xm_gguf *file, const char *key, const char *expected,
                                 bool optional, xmoe_error *error)
{
    xm_string value = {0};
    bool found = true;
    xmoe_status status = xm_gguf_get_string(file, key, &value, optional ? &found : NULL, error);
    if (status != XMOE_OK || !found)
        return status;
    if (value.length == strlen(expected) && memcmp(value.data, expected, value.length) == 0)
        return XMOE_OK;
    char shown[40];
    xm_utf8_printable(value.data, value.length, shown, sizeof shown);
    return xm_fail(error, XMOE_ERROR_UNSUPPORTED, "%.200s: %s is '%s', this engine knows only '%s'",
                   xm_gguf_path(file), key, shown, expected);
}

/* -1 where the key is absent. */
static xmoe_status read_id(const xm_gguf *file, const char *key, int32_t *id, xmoe_error *error)
{
    uint32_t value = 0;
    bool found;
    *id = -1;
    xmoe_status status = xm_gguf_get_u32(file, key, &value, &found, error);
    if (status != XMOE_OK || !found)
        return status;
    if (value > INT32_MAX)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%.200s: %s is %u, no possible token",
                       xm_gguf_path(file), key, value);
    *id = (int32_t)value;
    return XMOE_OK;
}

xmoe_status xm_tokenizer_from_gguf(const xm_gguf *file, xm_tokenizer **tokenizer, xmoe_error *error)
{
    *tokenizer = NULL;
    xm_string *tokens = NULL, *merges = NULL;
    int32_t *types = NULL;
    size_t token_count = 0, type_count = 0, merge_count = 0;
    int32_t bos, eos;
    xmoe_status status = expect_string(file, "tokenizer.ggml.model", "gpt2", false, error);
    if (status == XMOE_OK)
        status = expect_string(file, "tokenizer.ggml.pre", "gpt-2", true, error);
    if (status == XMOE_OK)
        status = read_id(file, "tokenizer.ggml.bos_token_id", &bos, error);
    if (status == XMOE_OK)
        status = read_id(file, "tokenizer.ggml.eos_token_id", &eos, error);
    if (status == XMOE_OK)
        status =
            xm_gguf_get_strings(file, "tokenizer.ggml.tokens", &tokens, &token_count, NULL, error);
    if (status == XMOE_OK)
        status =
            xm_gguf_get_i32s(file, "tokenizer.ggml.token_type", &types, &type_count, NULL, error);
    if (status == XMOE_OK)
        status =
            xm_gguf_get_strings(file, "tokenizer.ggml.merges", &merges, &merge_count, NULL, error);
    if (status == XMOE_OK && type_count != token_count)
        status = xm_fail(error, XMOE_ERROR_FORMAT,
                         "%.200s: tokenizer.ggml.token_type has %zu entries for %zu tokens",
                         xm_gguf_path(file), type_count, token_count);
    if (status == XMOE_OK)
        status = xm_tokenizer_create(tokens, types, token_count, merges, merge_count, bos, eos,
                                     tokenizer, error);
    xm_free(tokens);
    xm_free(types);
    xm_free(merges);
    return status;
}

/* --- looking up ------------------------------------------------------------------------------- */

int32_t xm_tokenizer_size(const xm_tokenizer *tokenizer)
{
    return (int32_t)tokenizer->size;
}

int32_t xm_tokenizer_bos(const xm_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int32_t xm_tokenizer_eos(const xm_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

static bool is_token(const xm_tokenizer *tokenizer, int32_t token)
{
    return token >= 0 && (size_t)token < tokenizer->size;
}

bool xm_tokenizer_is_special(const xm_tokenizer *tokenizer, int32_t token)
{
    return is_token(tokenizer, token) && tokenizer->special[token];
}

const char *xm_tokenizer_bytes(const xm_tokenizer *tokenizer, int32_t token, size_t *length)
{
    xm_string bytes = is_token(tokenizer, token) ? tokenizer->bytes[token] : (xm_string){"", 0};
    *length = bytes.length;
    return bytes.data;
}

/* --- encoding --------------------------------------------------------------------------------- */

typedef struct {
    const xm_tokenizer *tokenizer;
    xm_bpe_workspace workspace;
    xmoe_error *error;
} encoding;

static xmoe_status encode_piece(void *context, const char *piece, size_t length)
{
    encoding *job = context;
    xmoe_status status = xm_bpe_merge(job->tokenizer->bpe, piece, length, &job->workspace);
    if (status != XMOE_OK)
        xm_fail_memory(job->error, "tokens of a text", length * sizeof(int32_t));
    return status;
}

/* The first of literals [low, high), sorted by their byte at place, where that byte is not below
 * byte. */
static const literal *first_from(const literal *low, const literal *high, size_t place,
                                 unsigned int byte)
{
    while (low < high) {
        const literal *middle = low + (high - low) / 2;
        if ((unsigned char)middle->text.data[place] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest literal that the text starts with, or NULL. Narrows the range of those that agree
 * with the text byte by byte. */
static const literal *match_literal(const xm_tokenizer *tokenizer, const char *text, size_t length)
{
    const literal *low = tokenizer->literals, *high = low + tokenizer->literal_count;
    const literal *longest = NULL;
    for (size_t i = 0; low < high; i++) {
        if (low->text.length == i) /* the shortest comes first */
            longest = low++;
        if (i == length)
            break;
        unsigned int byte = (unsigned char)text[i];
        low = first_from(low, high, i, byte);
        high = first_from(low, high, i, byte + 1);
    }
    return longest;
}

/* Where the next literal starts; length if there is none. No byte of it has a mark. */
static size_t find_literal(const xm_tokenizer *tokenizer, const char *text, const char *marks,
                           size_t start, size_t length, const literal **found)
{
    size_t end = marks ? start : length; /* of the bytes without mark from i on */
    for (size_t i = start; i < length; i++) {
        if (!tokenizer->literal_starts[(unsigned char)text[i]])
            continue;
        if (end < i)
            end = i;
        while (end < length && !marks[end])
            end++;
        *found = match_literal(tokenizer, text + i, end - i);
        if (*found != NULL)
            return i;
    }
    *found = NULL;
    return length;
}

static xmoe_status encode_plain(encoding *job, const char *text, size_t length)
{
    if (length == 0)
        return XMOE_OK;
    return xm_split(job->tokenizer->splitter, text, length, encode_piece, job, job->error);
}

static xmoe_status encode_with_literals(encoding *job, const char *text, const char *marks,
                                        size_t length)
{
    xmoe_status status = XMOE_OK;
    for (size_t start = 0; start < length && status == XMOE_OK;) {
        const literal *found;
        size_t at = find_literal(job->tokenizer, text, marks, start, length, &found);
        status = encode_plain(job, text + start, at - start);
        start = at;
        if (status != XMOE_OK || found == NULL)
            continue;
        start += found->text.length;
        if (!xm_bpe_append(&job->workspace, found->token))
            status = xm_fail_memory(job->error, "tokens of a text", length);
    }
    return status;
}

static xmoe_status encode(const xm_tokenizer *tokenizer, const char *text, const char *marks,
                          size_t length, bool parse_special, int32_t **tokens, size_t *count,
                          xmoe_error *error)
{
    *tokens = NULL;
    *count = 0;
    if (length > INT32_MAX)
        return xm_fail_argument(error, "text", "a text of %zu bytes is too long", length);
    encoding job = {.tokenizer = tokenizer, .error = error};
    xmoe_status status = parse_special ? encode_with_literals(&job, text, marks, length)
                                       : encode_plain(&job, text, length);
    xm_bpe_workspace_free(&job.workspace);
    if (status == XMOE_OK && job.workspace.tokens == NULL) {
        job.workspace.tokens = xm_calloc(1, sizeof(int32_t)); /* never NULL, not even for 0 */
        if (job.workspace.tokens == NULL)
            status = xm_fail_memory(error, "tokens of a text", sizeof(int32_t));
    }
    if (status != XMOE_OK) {
        xm_free(job.workspace.tokens);
        return status;
    }
    *tokens = job.workspace.tokens;
    *count = job.workspace.count;
    return XMOE_OK;
}

xmoe_status xm_tokenizer_encode(const xm_tokenizer *tokenizer, const char *text, size_t length,
                                bool parse_special, int32_t **tokens, size_t *count,
                                xmoe_error *error)
{
    return encode(tokenizer, text, NULL, length, parse_special, tokens, count, error);
}

xmoe_status xm_tokenizer_encode_marked(const xm_tokenizer *tokenizer, const char *text,
                                       const char *marks, size_t length, int32_t **tokens,
                                       size_t *count, xmoe_error *error)
{
    return encode(tokenizer, text, marks, length, true, tokens, count, error);
}
