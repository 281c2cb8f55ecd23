/*
 * tokenizer.c - a vocabulary from memory, and text to tokens: special tokens first, what lies
 * between them by the split (split.c) and merges (bpe.c), or by SentencePiece (sentencepiece.c).
 * See tokenizer.h; vocabularies in files are read by tokenizer_file.c.
 *
 * Immutable once made; any thread. Refuses vocabularies that do not fit together, naming the key
 * and the entry.
 */
#include "format/tokenizer.h"

#include "base/memory.h"
#include "format/bpe.h"
#include "format/sentencepiece.h"
#include "format/utf8.h"

#include <stdlib.h>
#include <string.h>

enum {
    TYPE_NORMAL = 1,
    TYPE_UNKNOWN = 2,
    TYPE_CONTROL = 3,
    TYPE_USER_DEFINED = 4,
    TYPE_UNUSED = 5,
    TYPE_BYTE = 6,
};

enum { LITERAL_BYTES = 4096 }; /* at each place of a text so much may be compared in vain */

/* A token that its text stands for as a whole. */
typedef struct {
    xm_string text;
    int32_t token;
    bool special; /* only where special tokens are parsed */
} literal;

struct xm_tokenizer {
    size_t size;
    int32_t bos, eos;
    bool add_bos, add_eos, add_space;
    char *arena;       /* the bytes of all tokens */
    xm_string *bytes;  /* by token: what it decodes to */
    xm_string *words;  /* by token: what merges find it by, length 0 where they never make it */
    uint8_t *types;    /* by token */
    bool *ends;        /* by token */
    float *scores;     /* of SentencePiece */
    literal *literals; /* control and user-defined tokens, sorted by text */
    size_t literal_count;
    bool literal_starts[256]; /* first bytes of literals */
    xm_bpe *bpe;              /* and splitter: byte-level, else NULL */
    xm_splitter *splitter;
    xm_sentencepiece *sentencepiece; /* or NULL */
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

/* The byte that "<0xXX>" names; -1 if it names none. */
static int32_t named_byte(xm_string text)
{
    if (text.length != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>')
        return -1;
    char digits[3] = {text.data[3], text.data[4], '\0'}, *end;
    long value = strtol(digits, &end, 16);
    return *end == '\0' && digits[0] != '+' && digits[0] != '-' && digits[0] != ' ' ? (int32_t)value
                                                                                    : -1;
}

/* What a SentencePiece token decodes to: spaces for U+2581. Writes to out. */
static size_t unmark_spaces(xm_string text, char *out)
{
    size_t used = 0;
    for (size_t i = 0; i < text.length;) {
        bool mark = i + 3 <= text.length && memcmp(text.data + i, "\xe2\x96\x81", 3) == 0;
        out[used++] = mark ? ' ' : text.data[i];
        i += mark ? 3 : 1;
    }
    return used;
}

static xmoe_status read_byte_level(xm_tokenizer *tokenizer, size_t i, xm_string text, char *next,
                                   xmoe_error *error)
{
    size_t length = text.length;
    bool normal = tokenizer->types[i] == TYPE_NORMAL;
    if (length == 0)
        return xm_fail(error, XMOE_ERROR_FORMAT, "tokenizer.ggml.tokens: token %zu is empty", i);
    if (!normal)
        memcpy(next, text.data, length);
    else if (!xm_bpe_parse_printable(text, next, &length))
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "tokenizer.ggml.tokens: token %zu is not in GPT-2's byte alphabet", i);
    tokenizer->bytes[i] = (xm_string){next, length};
    if (normal)
        tokenizer->words[i] = tokenizer->bytes[i];
    return XMOE_OK;
}

/* next: room for the text twice, as it is and decoded. */
static xmoe_status read_sentencepiece(xm_tokenizer *tokenizer, size_t i, xm_string text, char *next,
                                      xmoe_error *error)
{
    char *decoded = next + text.length;
    size_t length = text.length;
    memcpy(next, text.data, length);
    if (tokenizer->types[i] == TYPE_BYTE) {
        int32_t byte = named_byte(text);
        if (byte < 0)
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "tokenizer.ggml.tokens: token %zu is a byte, but not named <0x00> to "
                           "<0xFF>",
                           i);
        *decoded = (char)byte;
        length = 1;
    } else {
        length = unmark_spaces(text, decoded);
    }
    tokenizer->bytes[i] = (xm_string){decoded, length};
    if (tokenizer->types[i] == TYPE_NORMAL)
        tokenizer->words[i] = (xm_string){next, text.length};
    return XMOE_OK;
}

/* Fills types, bytes and words. */
static xmoe_status read_tokens(xm_tokenizer *tokenizer, const xm_tokenizer_source *source,
                               xmoe_error *error)
{
    size_t total = 0;
    xmoe_status status = XMOE_OK;
    for (size_t i = 0; i < tokenizer->size; i++)
        total += 2 * source->tokens[i].length;
    char *next = tokenizer->arena = xm_calloc(total, 1);
    if (next == NULL)
        return xm_fail_memory(error, "vocabulary", total);
    for (size_t i = 0; i < tokenizer->size && status == XMOE_OK; i++) {
        if (source->types[i] < TYPE_NORMAL || source->types[i] > TYPE_BYTE)
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "tokenizer.ggml.token_type: type of token %zu is %d, expected 1 to %d",
                           i, source->types[i], TYPE_BYTE);
        tokenizer->types[i] = (uint8_t)source->types[i];
        status = source->split != NULL
                     ? read_byte_level(tokenizer, i, source->tokens[i], next, error)
                     : read_sentencepiece(tokenizer, i, source->tokens[i], next, error);
        next += 2 * source->tokens[i].length;
    }
    return status;
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

static bool is_literal(const xm_tokenizer *tokenizer, size_t token)
{
    return (tokenizer->types[token] == TYPE_CONTROL ||
            tokenizer->types[token] == TYPE_USER_DEFINED) &&
           tokenizer->bytes[token].length > 0;
}

static xmoe_status sort_literals(xm_tokenizer *tokenizer, xmoe_error *error)
{
    size_t count = 0;
    for (size_t i = 0; i < tokenizer->size; i++)
        count += is_literal(tokenizer, i);
    tokenizer->literals = xm_calloc(count, sizeof *tokenizer->literals);
    if (tokenizer->literals == NULL)
        return xm_fail_memory(error, "special tokens", count * sizeof *tokenizer->literals);
    for (size_t i = 0; i < tokenizer->size; i++) {
        if (!is_literal(tokenizer, i))
            continue;
        if (tokenizer->bytes[i].length > LITERAL_BYTES)
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "tokenizer.ggml.tokens: special token %zu has %zu bytes, at most %d", i,
                           tokenizer->bytes[i].length, LITERAL_BYTES);
        tokenizer->literals[tokenizer->literal_count++] =
            (literal){tokenizer->bytes[i], (int32_t)i, tokenizer->types[i] == TYPE_CONTROL};
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

/* --- ends of texts and turns --- */

/* -1 if there is no special token with this text. */
static int32_t find_special(const xm_tokenizer *tokenizer, const char *text)
{
    literal wanted = {.text = {text, strlen(text)}};
    const literal *found = tokenizer->literal_count == 0
                               ? NULL
                               : bsearch(&wanted, tokenizer->literals, tokenizer->literal_count,
                                         sizeof *tokenizer->literals, compare_literals);
    return found != NULL && found->special ? found->token : -1;
}

/* Files name one end-of-text token, but chat models end their turns with others. GPT-OSS ends a
 * message with <|end|> and goes on; its turns end with <|return|> or <|call|>. */
static xmoe_status mark_ends(xm_tokenizer *tokenizer, const xm_tokenizer_source *source,
                             xmoe_error *error)
{
    static const char deepseek_end[] = "<\xef\xbd\x9c"
                                       "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>";
    static const char *const known[] = {
        "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>",
        "<end_of_turn>", "<|return|>",      "<|call|>",   "</s>",       "<EOT>",      deepseek_end,
    };
    for (size_t i = 0; i < source->more_end_count; i++) {
        xmoe_status status =
            check_id(tokenizer, "tokenizer.ggml.eot_token_id", source->more_ends[i], error);
        if (status != XMOE_OK)
            return status;
        if (source->more_ends[i] >= 0)
            tokenizer->ends[source->more_ends[i]] = true;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int32_t token = find_special(tokenizer, known[i]);
        if (token >= 0)
            tokenizer->ends[token] = true;
    }
    int32_t end = find_special(tokenizer, "<|end|>");
    if (end >= 0 && find_special(tokenizer, "<|return|>") >= 0 &&
        find_special(tokenizer, "<|call|>") >= 0)
        tokenizer->ends[end] = false;
    if (tokenizer->eos >= 0)
        tokenizer->ends[tokenizer->eos] = true;
    return XMOE_OK;
}

/* --- all of it --- */

static xmoe_status build_sentencepiece(xm_tokenizer *tokenizer, const xm_tokenizer_source *source,
                                       xmoe_error *error)
{
    int32_t byte_tokens[256], unknown = -1;
    for (int byte = 0; byte < 256; byte++)
        byte_tokens[byte] = -1;
    tokenizer->scores = xm_calloc(tokenizer->size, sizeof *tokenizer->scores);
    if (tokenizer->scores == NULL)
        return xm_fail_memory(error, "scores", tokenizer->size * sizeof *tokenizer->scores);
    memcpy(tokenizer->scores, source->scores, tokenizer->size * sizeof *tokenizer->scores);
    for (size_t i = 0; i < tokenizer->size; i++) {
        if (tokenizer->types[i] == TYPE_BYTE)
            byte_tokens[(unsigned char)tokenizer->bytes[i].data[0]] = (int32_t)i;
        if (tokenizer->types[i] == TYPE_UNKNOWN && unknown < 0)
            unknown = (int32_t)i;
        if (!(tokenizer->scores[i] == tokenizer->scores[i]))
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "tokenizer.ggml.scores: score of token %zu is not a number", i);
    }
    return xm_sentencepiece_create(tokenizer->words, tokenizer->scores, tokenizer->size,
                                   byte_tokens, unknown, &tokenizer->sentencepiece, error);
}

static xmoe_status build_merges(xm_tokenizer *tokenizer, const xm_tokenizer_source *source,
                                xmoe_error *error)
{
    if (source->split == NULL)
        return build_sentencepiece(tokenizer, source, error);
    xmoe_status status =
        xm_bpe_create(tokenizer->words, tokenizer->size, source->merges, source->merge_count,
                      xm_split_rule_takes_whole(source->split), &tokenizer->bpe, error);
    if (status == XMOE_OK)
        status = xm_splitter_create(source->split, &tokenizer->splitter, error);
    return status;
}

static xmoe_status build(xm_tokenizer *tokenizer, const xm_tokenizer_source *source,
                         xmoe_error *error)
{
    tokenizer->bytes = xm_calloc(tokenizer->size, sizeof *tokenizer->bytes);
    tokenizer->words = xm_calloc(tokenizer->size, sizeof *tokenizer->words);
    tokenizer->types = xm_calloc(tokenizer->size, sizeof *tokenizer->types);
    tokenizer->ends = xm_calloc(tokenizer->size, sizeof *tokenizer->ends);
    if (tokenizer->bytes == NULL || tokenizer->words == NULL || tokenizer->types == NULL ||
        tokenizer->ends == NULL)
        return xm_fail_memory(error, "vocabulary", tokenizer->size * sizeof *tokenizer->bytes);
    xmoe_status status;
    if ((status = check_id(tokenizer, "tokenizer.ggml.bos_token_id", tokenizer->bos, error)) !=
            XMOE_OK ||
        (status = check_id(tokenizer, "tokenizer.ggml.eos_token_id", tokenizer->eos, error)) !=
            XMOE_OK ||
        (status = read_tokens(tokenizer, source, error)) != XMOE_OK ||
        (status = sort_literals(tokenizer, error)) != XMOE_OK ||
        (status = mark_ends(tokenizer, source, error)) != XMOE_OK)
        return status;
    return build_merges(tokenizer, source, error);
}

xmoe_status xm_tokenizer_create(const xm_tokenizer_source *source, xm_tokenizer **tokenizer_out,
                                xmoe_error *error)
{
    *tokenizer_out = NULL;
    if (source->token_count > INT32_MAX)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "tokenizer.ggml.tokens: more than 2^31 tokens");
    xm_tokenizer *tokenizer = xm_calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL)
        return xm_fail_memory(error, "tokenizer", sizeof *tokenizer);
    tokenizer->size = source->token_count;
    tokenizer->bos = source->bos;
    tokenizer->eos = source->eos;
    tokenizer->add_bos = source->add_bos && source->bos >= 0;
    tokenizer->add_eos = source->add_eos && source->eos >= 0;
    tokenizer->add_space = source->add_space && source->split == NULL;
    xmoe_status status = build(tokenizer, source, error);
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
    xm_sentencepiece_free(tokenizer->sentencepiece);
    xm_free(tokenizer->arena);
    xm_free(tokenizer->bytes);
    xm_free(tokenizer->words);
    xm_free(tokenizer->types);
    xm_free(tokenizer->ends);
    xm_free(tokenizer->scores);
    xm_free(tokenizer->literals);
    xm_free(tokenizer);
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

bool xm_tokenizer_adds_bos(const xm_tokenizer *tokenizer)
{
    return tokenizer->add_bos;
}

bool xm_tokenizer_adds_eos(const xm_tokenizer *tokenizer)
{
    return tokenizer->add_eos;
}

bool xm_tokenizer_adds_space(const xm_tokenizer *tokenizer)
{
    return tokenizer->add_space;
}

bool xm_tokenizer_is_special(const xm_tokenizer *tokenizer, int32_t token)
{
    return is_token(tokenizer, token) && tokenizer->types[token] == TYPE_CONTROL;
}

bool xm_tokenizer_is_end(const xm_tokenizer *tokenizer, int32_t token)
{
    return is_token(tokenizer, token) && tokenizer->ends[token];
}

bool xm_tokenizer_is_text(const xm_tokenizer *tokenizer, int32_t token)
{
    if (!is_token(tokenizer, token))
        return false;
    uint8_t type = tokenizer->types[token];
    return type == TYPE_NORMAL || type == TYPE_USER_DEFINED || type == TYPE_BYTE;
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
    bool parse_special;
    size_t unmarked_end; /* of the bytes without mark from where literals are looked for */
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
static const literal *match_literal(const encoding *job, const char *text, size_t length)
{
    const literal *low = job->tokenizer->literals, *high = low + job->tokenizer->literal_count;
    const literal *longest = NULL;
    for (size_t i = 0; low < high; i++) {
        if (low->text.length == i) { /* the shortest comes first */
            if (job->parse_special || !low->special)
                longest = low;
            low++;
        }
        if (i == length)
            break;
        unsigned int byte = (unsigned char)text[i];
        low = first_from(low, high, i, byte);
        high = first_from(low, high, i, byte + 1);
    }
    return longest;
}

/* Where the next literal starts; length if there is none. No byte of it has a mark. */
static size_t find_literal(encoding *job, const char *text, const char *marks, size_t start,
                           size_t length, const literal **found)
{
    size_t end = marks ? job->unmarked_end : length;
    for (size_t i = start; i < length; i++) {
        if (!job->tokenizer->literal_starts[(unsigned char)text[i]])
            continue;
        if (end < i)
            end = i;
        while (end < length && !marks[end])
            end++;
        job->unmarked_end = end;
        *found = match_literal(job, text + i, end - i);
        if (*found != NULL)
            return i;
    }
    *found = NULL;
    return length;
}

static xmoe_status encode_plain(encoding *job, const char *text, size_t length)
{
    const xm_tokenizer *tokenizer = job->tokenizer;
    if (length == 0)
        return XMOE_OK;
    if (tokenizer->sentencepiece != NULL) {
        xmoe_status status = xm_sentencepiece_encode(tokenizer->sentencepiece, text, length,
                                                     tokenizer->add_space, &job->workspace.list);
        return status == XMOE_OK ? status : xm_fail_memory(job->error, "tokens of a text", length);
    }
    return xm_split(job->tokenizer->splitter, text, length, encode_piece, job, job->error);
}

static xmoe_status encode_with_literals(encoding *job, const char *text, const char *marks,
                                        size_t length)
{
    xmoe_status status = XMOE_OK;
    for (size_t start = 0; start < length && status == XMOE_OK;) {
        const literal *found;
        size_t at = find_literal(job, text, marks, start, length, &found);
        status = encode_plain(job, text + start, at - start);
        start = at;
        if (status != XMOE_OK || found == NULL)
            continue;
        start += found->text.length;
        if (!xm_token_list_append(&job->workspace.list, found->token))
            status = xm_fail_memory(job->error, "tokens of a text", length);
    }
    return status;
}

static bool append_if(encoding *job, bool wanted, int32_t token)
{
    return !wanted || xm_token_list_append(&job->workspace.list, token);
}

static xmoe_status encode(encoding *job, const char *text, const char *marks, size_t length,
                          bool add_special, int32_t **tokens, size_t *count)
{
    const xm_tokenizer *tokenizer = job->tokenizer;
    xm_token_list *list = &job->workspace.list;
    *tokens = NULL;
    *count = 0;
    if (length > INT32_MAX)
        return xm_fail_argument(job->error, "text", "a text of %zu bytes is too long", length);
    xmoe_status status = XMOE_OK;
    if (append_if(job, add_special && tokenizer->add_bos, tokenizer->bos))
        status = encode_with_literals(job, text, marks, length);
    else
        status = xm_fail_memory(job->error, "tokens of a text", length);
    if (status == XMOE_OK && !append_if(job, add_special && tokenizer->add_eos, tokenizer->eos))
        status = xm_fail_memory(job->error, "tokens of a text", length);
    xm_bpe_workspace_free(&job->workspace);
    if (status == XMOE_OK && list->tokens == NULL) {
        list->tokens = xm_calloc(1, sizeof(int32_t)); /* never NULL, not even for 0 */
        if (list->tokens == NULL)
            status = xm_fail_memory(job->error, "tokens of a text", sizeof(int32_t));
    }
    if (status != XMOE_OK) {
        xm_free(list->tokens);
        return status;
    }
    *tokens = list->tokens;
    *count = list->count;
    return XMOE_OK;
}

xmoe_status xm_tokenizer_encode(const xm_tokenizer *tokenizer, const char *text, size_t length,
                                bool add_special, bool parse_special, int32_t **tokens,
                                size_t *count, xmoe_error *error)
{
    encoding job = {.tokenizer = tokenizer, .parse_special = parse_special, .error = error};
    return encode(&job, text, NULL, length, add_special, tokens, count);
}

xmoe_status xm_tokenizer_encode_marked(const xm_tokenizer *tokenizer, const char *text,
                                       const char *marks, size_t length, int32_t **tokens,
                                       size_t *count, xmoe_error *error)
{
    encoding job = {.tokenizer = tokenizer, .parse_special = true, .error = error};
    return encode(&job, text, marks, length, false, tokens, count);
}
