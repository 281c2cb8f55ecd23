/*
 * split.c - the GPT-2 split by PCRE2 with its JIT. See split.h.
 *
 * The pattern of GPT-2 (Radford et al. 2019) is
 *
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * Here \s is spelled out as Unicode's White_Space (PCRE2's \s has U+180E too), and letters and
 * numbers that Unicode 15 to 16 added are named, so that an older PCRE2 (10.42 knows Unicode 14)
 * cuts as Hugging Face's tokenizers do. Every character belongs to one alternative and none
 * backtracks by more than one character, so the time is linear in the text, whatever it holds.
 */
#include "format/split.h"

#include "base/memory.h"
#include "format/tokenizer.h"
#include "format/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#define SPACE                                                                                      \
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"        \
    "\\x{205f}\\x{3000}"

/* General categories L and N of Unicode 16 minus those of Unicode 14. */
#define NEW_LETTERS                                                                                \
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"               \
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"         \
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}"           \
    "\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}"          \
    "\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}"                    \
    "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"                     \
    "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"          \
    "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"

#define NEW_NUMBERS                                                                                \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"         \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"         \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

#define LETTER "\\p{L}" NEW_LETTERS
#define NUMBER "\\p{N}" NEW_NUMBERS

const char xm_gpt2_split_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTER "]+| ?[" NUMBER "]+| ?[^" SPACE LETTER NUMBER "]+|"
    "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+";

enum {
    JIT_STACK_START = 32 * 1024, /* bytes */
    JIT_STACK_MAX = 1024 * 1024,
    MATCH_LIMIT = 10 * 1000 * 1000,
    HEAP_LIMIT = 64 * 1024, /* KiB; without JIT only */
    STAND_IN = 0x01,        /* in place of a byte that is not UTF-8; of U+FFFD's class */
};

struct xm_splitter {
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *code;
    bool jit;
};

static void *allocate(size_t bytes, void *context)
{
    (void)context;
    return xm_calloc(bytes, 1);
}

static void release(void *memory, void *context)
{
    (void)context;
    xm_free(memory);
}

xmoe_status xm_splitter_create(xm_splitter **splitter_out, xmoe_error *error)
{
    *splitter_out = NULL;
    xm_splitter *splitter = xm_calloc(1, sizeof *splitter);
    if (splitter == NULL)
        return xm_fail_memory(error, "text splitter", sizeof *splitter);
    int problem = PCRE2_ERROR_NOMEMORY;
    PCRE2_SIZE offset = 0;
    splitter->memory = pcre2_general_context_create(allocate, release, NULL);
    if (splitter->memory != NULL)
        splitter->limits = pcre2_match_context_create(splitter->memory);
    pcre2_compile_context *context =
        splitter->memory != NULL ? pcre2_compile_context_create(splitter->memory) : NULL;
    if (splitter->limits != NULL && context != NULL) {
        pcre2_set_match_limit(splitter->limits, MATCH_LIMIT);
        pcre2_set_heap_limit(splitter->limits, HEAP_LIMIT);
        splitter->code =
            pcre2_compile((PCRE2_SPTR)xm_gpt2_split_pattern, PCRE2_ZERO_TERMINATED,
                          PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &problem, &offset, context);
    }
    pcre2_compile_context_free(context);
    if (splitter->code == NULL) {
        xm_splitter_free(splitter);
        if (problem == PCRE2_ERROR_HEAP_FAILED || problem == PCRE2_ERROR_NOMEMORY)
            return xm_fail_memory(error, "text splitter", sizeof xm_gpt2_split_pattern);
        return xm_fail(error, XMOE_ERROR_INTERNAL, "PCRE2 refuses the split pattern (error %d)",
                       problem);
    }
    /* Machines that forbid executable memory run the same pattern interpreted. */
    splitter->jit = pcre2_jit_compile(splitter->code, PCRE2_JIT_COMPLETE) == 0;
    *splitter_out = splitter;
    return XMOE_OK;
}

void xm_splitter_free(xm_splitter *splitter)
{
    if (splitter == NULL)
        return;
    pcre2_code_free(splitter->code);
    pcre2_match_context_free(splitter->limits);
    pcre2_general_context_free(splitter->memory);
    xm_free(splitter);
}

/* --- one text --------------------------------------------------------------------------------- */

/* The first byte of text from `start` on that is part of no character; length if there is none. */
static size_t find_invalid(const char *text, size_t start, size_t length)
{
    const unsigned char *bytes = (const unsigned char *)text;
    while (start < length) {
        size_t character = xm_utf8_length(bytes + start, length - start);
        if (character == 0)
            return start;
        start += character;
    }
    return length;
}

/* A copy of the text in which a stand-in replaces each byte that is not UTF-8: pieces have the same
 * places in both. */
static char *valid_copy(const char *text, size_t length, size_t first_invalid)
{
    char *copy = xm_calloc(length, 1);
    if (copy == NULL)
        return NULL;
    memcpy(copy, text, length);
    for (size_t i = first_invalid; i < length; i = find_invalid(text, i + 1, length))
        copy[i] = STAND_IN;
    return copy;
}

static bool is_ascii_letter(char byte)
{
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
}

/* Shortcut for " ?\p{L}+" where all is ASCII: most of most texts. 0: the pattern must decide. */
static size_t ascii_word(const char *text, size_t length)
{
    size_t i = text[0] == ' ' ? 1 : 0;
    size_t start = i;
    while (i < length && is_ascii_letter(text[i]))
        i++;
    bool decided = i == length || (unsigned char)text[i] < 0x80;
    return i > start && decided ? i : 0;
}

/* Length of the piece at start, 0 on failure (*problem is PCRE2's number). */
static size_t next_piece(const xm_splitter *splitter, pcre2_match_context *context,
                         pcre2_match_data *match, const char *text, size_t start, size_t length,
                         int *problem)
{
    size_t word = ascii_word(text + start, length - start);
    if (word > 0)
        return word;
    PCRE2_SPTR subject = (PCRE2_SPTR)text;
    *problem = splitter->jit ? pcre2_jit_match(splitter->code, subject, length, start,
                                               PCRE2_NO_UTF_CHECK, match, context)
                             : pcre2_match(splitter->code, subject, length, start,
                                           PCRE2_NO_UTF_CHECK, match, context);
    if (*problem <= 0)
        return 0;
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(match);
    return ends[1] - start;
}

xmoe_status xm_split(const xm_splitter *splitter, const char *text, size_t length, xm_piece_fn each,
                     void *context, xmoe_error *error)
{
    xmoe_status status = XMOE_OK;
    pcre2_jit_stack *stack = NULL;
    char *copy = NULL;
    pcre2_match_context *limits = pcre2_match_context_copy(splitter->limits);
    pcre2_match_data *match = pcre2_match_data_create(1, splitter->memory);
    if (splitter->jit)
        stack = pcre2_jit_stack_create(JIT_STACK_START, JIT_STACK_MAX, splitter->memory);
    size_t invalid = find_invalid(text, 0, length);
    if (invalid < length)
        copy = valid_copy(text, length, invalid);
    if (limits == NULL || match == NULL || (splitter->jit && stack == NULL) ||
        (invalid < length && copy == NULL)) {
        status = xm_fail_memory(error, "splitting a text", length);
        goto done;
    }
    if (splitter->jit)
        pcre2_jit_stack_assign(limits, NULL, stack);
    for (size_t start = 0; start < length && status == XMOE_OK;) {
        int problem = 0;
        size_t piece = next_piece(splitter, limits, match, copy != NULL ? copy : text, start,
                                  length, &problem);
        if (piece == 0) {
            status = problem == PCRE2_ERROR_NOMEMORY
                         ? xm_fail_memory(error, "splitting a text", length)
                         : xm_fail(error, XMOE_ERROR_INTERNAL,
                                   "PCRE2 cannot split a text (error %d)", problem);
            break;
        }
        status = each(context, text + start, piece);
        start += piece;
    }
done:
    pcre2_match_context_free(limits);
    pcre2_match_data_free(match);
    pcre2_jit_stack_free(stack);
    xm_free(copy);
    return status;
}
