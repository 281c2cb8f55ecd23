/*
 * split.c - splits a text by PCRE2 with its JIT, stage by stage. See split.h; the patterns are in
 * split_rules.c.
 */
#include "format/split.h"

#include "base/memory.h"
#include "format/split_rules.h"
#include "format/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

enum {
    JIT_STACK_START = 32 * 1024, /* bytes */
    JIT_STACK_MAX = 1024 * 1024,
    MATCH_LIMIT = 10 * 1000 * 1000,
    HEAP_LIMIT = 64 * 1024, /* KiB; without JIT only */
    STAND_IN = 0x01,        /* in place of a byte that is not UTF-8: no letter, number or space, as
                             * U+FFFD is none (which is a symbol, though) */
};

struct xm_splitter {
    const xm_split_rule *rule;
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *codes[XM_SPLIT_STAGES]; /* NULL: no further stage */
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

static xmoe_status compile_stage(xm_splitter *splitter, int stage, pcre2_compile_context *context,
                                 xmoe_error *error)
{
    const xm_split_stage *source = &splitter->rule->stages[stage];
    uint32_t options = PCRE2_UTF | PCRE2_UCP | (source->covers ? PCRE2_ANCHORED : 0);
    int problem = PCRE2_ERROR_NOMEMORY;
    PCRE2_SIZE offset = 0;
    splitter->codes[stage] = pcre2_compile((PCRE2_SPTR)source->pattern, PCRE2_ZERO_TERMINATED,
                                           options, &problem, &offset, context);
    if (splitter->codes[stage] != NULL) {
        /* Machines that forbid executable memory run the same patterns interpreted. */
        if (pcre2_jit_compile(splitter->codes[stage], PCRE2_JIT_COMPLETE) != 0)
            splitter->jit = false;
        return XMOE_OK;
    }
    if (problem == PCRE2_ERROR_HEAP_FAILED || problem == PCRE2_ERROR_NOMEMORY)
        return xm_fail_memory(error, "text splitter", strlen(source->pattern));
    return xm_fail(error, XMOE_ERROR_INTERNAL, "PCRE2 refuses a split pattern (error %d)", problem);
}

xmoe_status xm_splitter_create(const xm_split_rule *rule, xm_splitter **splitter_out,
                               xmoe_error *error)
{
    *splitter_out = NULL;
    xm_splitter *splitter = xm_calloc(1, sizeof *splitter);
    if (splitter == NULL)
        return xm_fail_memory(error, "text splitter", sizeof *splitter);
    splitter->rule = rule;
    splitter->jit = true;
    splitter->memory = pcre2_general_context_create(allocate, release, NULL);
    if (splitter->memory != NULL)
        splitter->limits = pcre2_match_context_create(splitter->memory);
    pcre2_compile_context *context =
        splitter->memory != NULL ? pcre2_compile_context_create(splitter->memory) : NULL;
    xmoe_status status = XMOE_OK;
    if (splitter->limits == NULL || context == NULL) {
        status = xm_fail_memory(error, "text splitter", sizeof *splitter);
    } else {
        pcre2_set_match_limit(splitter->limits, MATCH_LIMIT);
        pcre2_set_heap_limit(splitter->limits, HEAP_LIMIT);
    }
    for (int i = 0; status == XMOE_OK && i < XM_SPLIT_STAGES && rule->stages[i].pattern; i++)
        status = compile_stage(splitter, i, context, error);
    pcre2_compile_context_free(context);
    if (status != XMOE_OK) {
        xm_splitter_free(splitter);
        return status;
    }
    *splitter_out = splitter;
    return XMOE_OK;
}

void xm_splitter_free(xm_splitter *splitter)
{
    if (splitter == NULL)
        return;
    for (int i = 0; i < XM_SPLIT_STAGES; i++)
        pcre2_code_free(splitter->codes[i]);
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

/* Shortcut for letters with a space before or none where all is ASCII: most of most texts. 0: the
 * pattern must decide. */
static size_t ascii_word(const char *text, size_t length)
{
    size_t i = text[0] == ' ' ? 1 : 0;
    size_t start = i;
    while (i < length && is_ascii_letter(text[i]))
        i++;
    bool decided = i == length || (unsigned char)text[i] < 0x80;
    return i > start && decided ? i : 0;
}

/* A text being split. */
typedef struct {
    const xm_splitter *splitter;
    pcre2_match_context *limits;
    pcre2_match_data *match;
    const char *text, *valid; /* as given, and with stand-ins (may be the same) */
    xm_piece_fn each;
    void *context;
    xmoe_error *error;
} splitting;

/* The first match of a stage in [*first, end): from *first to *last. Without one, both are end. */
static xmoe_status find_match(const splitting *job, int stage, size_t start, size_t *first,
                              size_t *last, size_t end)
{
    const xm_splitter *splitter = job->splitter;
    PCRE2_SPTR subject = (PCRE2_SPTR)job->valid + start;
    size_t length = end - start, from = *first - start;
    int problem = splitter->jit ? pcre2_jit_match(splitter->codes[stage], subject, length, from,
                                                  PCRE2_NO_UTF_CHECK, job->match, job->limits)
                                : pcre2_match(splitter->codes[stage], subject, length, from,
                                              PCRE2_NO_UTF_CHECK, job->match, job->limits);
    const PCRE2_SIZE *range = pcre2_get_ovector_pointer(job->match);
    bool covers = splitter->rule->stages[stage].covers;
    *last = end;
    if (problem > 0 && range[1] > range[0]) {
        *first = start + range[0];
        *last = start + range[1];
    } else if (problem == PCRE2_ERROR_NOMATCH && !covers) {
        *first = end;
    } else {
        return problem == PCRE2_ERROR_NOMEMORY
                   ? xm_fail_memory(job->error, "splitting a text", length)
                   : xm_fail(job->error, XMOE_ERROR_INTERNAL,
                             "PCRE2 cannot split a text (error %d)", problem);
    }
    return XMOE_OK;
}

/* Gives [start, end) to the stage, whose pieces go to the next one. */
static xmoe_status split_stage(const splitting *job, int stage, size_t start, size_t end)
{
    const xm_splitter *splitter = job->splitter;
    if (stage == XM_SPLIT_STAGES || splitter->codes[stage] == NULL)
        return job->each(job->context, job->text + start, end - start);
    bool last_stage = stage + 1 == XM_SPLIT_STAGES || splitter->codes[stage + 1] == NULL;
    xmoe_status status = XMOE_OK;
    for (size_t at = start; at < end && status == XMOE_OK;) {
        size_t first = at, last = end, word = 0;
        if (last_stage && splitter->rule->ascii_words)
            word = ascii_word(job->valid + at, end - at);
        if (word > 0)
            last = at + word;
        else
            status = find_match(job, stage, start, &first, &last, end);
        if (status == XMOE_OK && first > at)
            status = split_stage(job, stage + 1, at, first);
        if (status == XMOE_OK && last > first)
            status = split_stage(job, stage + 1, first, last);
        at = last;
    }
    return status;
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
    } else {
        if (splitter->jit)
            pcre2_jit_stack_assign(limits, NULL, stack);
        splitting job = {.splitter = splitter,
                         .limits = limits,
                         .match = match,
                         .text = text,
                         .valid = copy != NULL ? copy : text,
                         .each = each,
                         .context = context,
                         .error = error};
        status = split_stage(&job, 0, 0, length);
    }
    pcre2_match_context_free(limits);
    pcre2_match_data_free(match);
    pcre2_jit_stack_free(stack);
    xm_free(copy);
    return status;
}
