/*
 * vocabulary.c - see vocabulary.h.
 */
#include "train/vocabulary.h"

#include "base/memory.h"
#include "base/random.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char end_of_text[] = "<|endoftext|>";

int32_t xm_vocabulary_size(const xm_vocabulary *vocabulary)
{
    return XM_FIRST_MERGE + vocabulary->merge_count;
}

uint64_t xm_vocabulary_hash(const xm_vocabulary *vocabulary)
{
    uint64_t hash = xm_random_mix((uint64_t)vocabulary->merge_count);
    for (int32_t i = 0; i < vocabulary->merge_count; i++)
        hash = xm_random_mix(hash ^ ((uint64_t)(uint32_t)vocabulary->merges[i].left << 32 |
                                     (uint32_t)vocabulary->merges[i].right));
    return hash;
}

void xm_vocabulary_free(xm_vocabulary *vocabulary)
{
    xm_free(vocabulary->merges);
    *vocabulary = (xm_vocabulary){0};
}

/* Under another name first: a run that is killed here leaves no half vocabulary behind. */
xmoe_status xm_vocabulary_save(const xm_vocabulary *vocabulary, const char *path, xmoe_error *error)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.partial", path) >= (int)sizeof temporary)
        return xm_fail_argument(error, "vocabulary", "the path of the vocabulary is too long");
    FILE *file = fopen(temporary, "w");
    if (file == NULL)
        return xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", temporary, strerror(errno));
    fprintf(file, "xmoe-vocabulary 1 %d\n", xm_vocabulary_size(vocabulary));
    for (int32_t i = 0; i < vocabulary->merge_count; i++)
        fprintf(file, "%d %d\n", vocabulary->merges[i].left, vocabulary->merges[i].right);
    bool failed = ferror(file) != 0;
    if (fclose(file) != 0 || failed || rename(temporary, path) != 0) {
        xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", path, strerror(errno));
        remove(temporary);
        return XMOE_ERROR_IO;
    }
    return XMOE_OK;
}

static xmoe_status read_merges(FILE *file, const char *path, xm_vocabulary *vocabulary,
                               xmoe_error *error)
{
    for (int32_t i = 0; i < vocabulary->merge_count; i++) {
        xm_merge merge;
        if (fscanf(file, "%d %d", &merge.left, &merge.right) != 2)
            return xm_fail(error, XMOE_ERROR_FORMAT, "%s ends after %d of %d merges", path, i,
                           vocabulary->merge_count);
        int32_t made = XM_FIRST_MERGE + i;
        if (merge.left < 0 || merge.right < 0 || merge.left >= made || merge.right >= made ||
            merge.left == XM_END_OF_TEXT || merge.right == XM_END_OF_TEXT)
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "%s, merge %d: joins tokens %d and %d, of which one does not exist yet",
                           path, i, merge.left, merge.right);
        vocabulary->merges[i] = merge;
    }
    return XMOE_OK;
}

xmoe_status xm_vocabulary_load(const char *path, xm_vocabulary *vocabulary, xmoe_error *error)
{
    *vocabulary = (xm_vocabulary){0};
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return xm_fail(error, XMOE_ERROR_IO, "cannot read %s: %s", path, strerror(errno));
    xmoe_status status;
    int32_t size = 0;
    if (fscanf(file, "xmoe-vocabulary 1 %d", &size) != 1 || size < XM_FIRST_MERGE || size > 65535) {
        status = xm_fail(error, XMOE_ERROR_FORMAT,
                         "%s does not begin with \"xmoe-vocabulary 1 SIZE\"", path);
        goto done;
    }
    vocabulary->merge_count = size - XM_FIRST_MERGE;
    vocabulary->merges = xm_calloc((size_t)vocabulary->merge_count, sizeof(xm_merge));
    status = vocabulary->merges == NULL ? xm_fail_memory(error, "vocabulary", (size_t)size)
                                        : read_merges(file, path, vocabulary, error);
done:
    fclose(file);
    if (status != XMOE_OK)
        xm_vocabulary_free(vocabulary);
    return status;
}

/* Room for the printable forms: a token's is the sum of its parts', a merge has one more byte. */
static xmoe_status measure(const xm_vocabulary *vocabulary, uint32_t *lengths, size_t *total,
                           xmoe_error *error)
{
    *total = sizeof end_of_text - 1;
    for (int32_t byte = 0; byte < 256; byte++) {
        lengths[byte] = xm_byte_to_printable((uint8_t)byte) < 0x80 ? 1 : 2;
        *total += lengths[byte];
    }
    lengths[XM_END_OF_TEXT] = sizeof end_of_text - 1;
    for (int32_t i = 0; i < vocabulary->merge_count; i++) {
        uint32_t length =
            lengths[vocabulary->merges[i].left] + lengths[vocabulary->merges[i].right];
        if (length > 65536)
            return xm_fail(error, XMOE_ERROR_FORMAT, "merge %d makes a token of %u bytes", i,
                           length);
        lengths[XM_FIRST_MERGE + i] = length;
        *total += 2 * (size_t)length + 1;
    }
    return XMOE_OK;
}

static char *append(char *at, xm_string text)
{
    memcpy(at, text.data, text.length);
    return at + text.length;
}

static void fill(const xm_vocabulary *vocabulary, const uint32_t *lengths,
                 xm_vocabulary_strings *strings)
{
    char *at = strings->memory;
    for (int32_t id = 0; id < XM_FIRST_MERGE; id++) {
        strings->tokens[id] = (xm_string){at, lengths[id]};
        strings->types[id] = id == XM_END_OF_TEXT ? 3 : 1; /* control, normal */
        uint32_t point = id < 256 ? xm_byte_to_printable((uint8_t)id) : 0;
        if (id == XM_END_OF_TEXT) {
            memcpy(at, end_of_text, sizeof end_of_text - 1);
        } else if (point < 0x80) {
            at[0] = (char)point;
        } else { /* below 0x800 */
            at[0] = (char)(0xc0 | point >> 6);
            at[1] = (char)(0x80 | (point & 0x3f));
        }
        at += lengths[id];
    }
    for (int32_t i = 0; i < vocabulary->merge_count; i++) {
        xm_string left = strings->tokens[vocabulary->merges[i].left];
        xm_string right = strings->tokens[vocabulary->merges[i].right];
        strings->tokens[XM_FIRST_MERGE + i] = (xm_string){at, left.length + right.length};
        strings->types[XM_FIRST_MERGE + i] = 1;
        at = append(append(at, left), right);
        strings->merges[i] = (xm_string){at, left.length + 1 + right.length};
        at = append(append(append(at, left), (xm_string){" ", 1}), right);
    }
}

xmoe_status xm_vocabulary_make_strings(const xm_vocabulary *vocabulary,
                                       xm_vocabulary_strings *strings, xmoe_error *error)
{
    size_t size = (size_t)xm_vocabulary_size(vocabulary), total = 0;
    *strings = (xm_vocabulary_strings){0};
    uint32_t *lengths = xm_calloc(size, sizeof *lengths);
    strings->tokens = xm_calloc(size, sizeof(xm_string));
    strings->types = xm_calloc(size, sizeof(int32_t));
    strings->merges = xm_calloc((size_t)vocabulary->merge_count, sizeof(xm_string));
    xmoe_status status;
    if (lengths == NULL || strings->tokens == NULL || strings->types == NULL ||
        strings->merges == NULL) {
        status = xm_fail_memory(error, "vocabulary", size * sizeof(xm_string));
        goto done;
    }
    status = measure(vocabulary, lengths, &total, error);
    if (status != XMOE_OK)
        goto done;
    strings->memory = xm_calloc(total, 1);
    if (strings->memory == NULL)
        status = xm_fail_memory(error, "vocabulary", total);
    else
        fill(vocabulary, lengths, strings);
done:
    xm_free(lengths);
    if (status != XMOE_OK)
        xm_vocabulary_strings_free(strings);
    return status;
}

void xm_vocabulary_strings_free(xm_vocabulary_strings *strings)
{
    xm_free(strings->tokens);
    xm_free(strings->types);
    xm_free(strings->merges);
    xm_free(strings->memory);
    *strings = (xm_vocabulary_strings){0};
}

xmoe_status xm_vocabulary_tokenizer(const xm_vocabulary *vocabulary, xm_tokenizer **tokenizer,
                                    xmoe_error *error)
{
    *tokenizer = NULL;
    xm_vocabulary_strings strings;
    xmoe_status status = xm_vocabulary_make_strings(vocabulary, &strings, error);
    const xm_tokenizer_source source = {
        .split = xm_split_gpt2(),
        .tokens = strings.tokens,
        .types = strings.types,
        .token_count = (size_t)xm_vocabulary_size(vocabulary),
        .merges = strings.merges,
        .merge_count = (size_t)vocabulary->merge_count,
        .bos = XM_END_OF_TEXT,
        .eos = XM_END_OF_TEXT,
    };
    if (status == XMOE_OK)
        status = xm_tokenizer_create(&source, tokenizer, error);
    xm_vocabulary_strings_free(&strings);
    return status;
}
