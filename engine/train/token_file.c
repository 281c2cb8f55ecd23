/*
 * token_file.c - see token_file.h. The text is encoded in parts that end between documents, one
 * task each; parts are joined in order, so the result does not depend on the threads.
 */
#include "train/token_file.h"

#include "base/memory.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static const char separator[] = "<|endoftext|>\n";
enum { PART_BYTES = 1 << 18, SEPARATOR_LENGTH = sizeof separator - 1 };

typedef struct {
    char magic[8];
    uint64_t vocabulary;
    uint64_t source_bytes;
    int64_t source_seconds, source_nanoseconds; /* time of change */
    uint64_t text_bytes;
    uint64_t count;
} cache_header;

typedef struct {
    size_t begin, end; /* of the text */
    int32_t *tokens;   /* malloc'ed by the tokenizer's buffers, joined later */
    size_t count, capacity;
    uint64_t text_bytes;
    xmoe_error error;
} text_part;

typedef struct {
    const char *text;
    const xm_tokenizer *tokenizer;
    text_part *parts;
} encode_job;

xmoe_status xm_read_text(const char *path, char **text, size_t *length, xmoe_error *error)
{
    *text = NULL;
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return xm_fail(error, XMOE_ERROR_IO, "cannot read %s: %s", path, strerror(errno));
    xmoe_status status = XMOE_OK;
    struct stat info;
    if (fstat(fileno(file), &info) != 0) {
        status = xm_fail(error, XMOE_ERROR_IO, "cannot read %s: %s", path, strerror(errno));
    } else {
        *length = (size_t)info.st_size;
        *text = xm_calloc(*length + 1, 1);
        if (*text == NULL)
            status = xm_fail_memory(error, path, *length);
        else if (fread(*text, 1, *length, file) != *length)
            status = xm_fail(error, XMOE_ERROR_IO, "cannot read %s: it ends early", path);
    }
    fclose(file);
    if (status != XMOE_OK) {
        xm_free(*text);
        *text = NULL;
    }
    return status;
}

size_t xm_document_length(const char *text, size_t length, size_t *next)
{
    for (size_t line = 0; line < length;) {
        if (length - line >= SEPARATOR_LENGTH - 1 &&
            memcmp(text + line, separator, SEPARATOR_LENGTH - 1) == 0) {
            size_t after = line + SEPARATOR_LENGTH - 1;
            if (after == length || text[after] == '\n') {
                *next = after == length ? length : after + 1;
                return line;
            }
        }
        const char *newline = memchr(text + line, '\n', length - line);
        line = newline == NULL ? length : (size_t)(newline - text) + 1;
    }
    *next = length;
    return length;
}

static xmoe_status append_tokens(text_part *part, const int32_t *tokens, size_t count)
{
    size_t needed = part->count + count + 1; /* and the end-of-text token */
    if (needed > part->capacity) {
        size_t wanted = 2 * needed;
        int32_t *grown = xm_realloc(part->tokens, wanted, sizeof *grown);
        if (grown == NULL)
            return xm_fail_memory(&part->error, "tokens of a text", wanted * sizeof *grown);
        part->tokens = grown;
        part->capacity = wanted;
    }
    if (count > 0)
        memcpy(part->tokens + part->count, tokens, count * sizeof *tokens);
    part->count += count;
    part->tokens[part->count++] = XM_END_OF_TEXT;
    return XMOE_OK;
}

static void encode_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const encode_job *job = context;
    text_part *part = &job->parts[task];
    for (size_t at = part->begin; at < part->end;) {
        size_t next = 0, count = 0;
        size_t length = xm_document_length(job->text + at, part->end - at, &next);
        int32_t *tokens = NULL;
        xmoe_status status = xm_tokenizer_encode(job->tokenizer, job->text + at, length, false,
                                                 false, &tokens, &count, &part->error);
        if (status == XMOE_OK)
            status = append_tokens(part, tokens, count);
        xm_free(tokens);
        if (status != XMOE_OK)
            return;
        part->text_bytes += length;
        at += next;
    }
}

/* Cuts the text into parts of at least PART_BYTES that end with a document. */
static size_t cut_parts(const char *text, size_t length, text_part *parts)
{
    size_t count = 0, begin = 0;
    for (size_t at = 0; at < length;) {
        size_t next = 0;
        (void)xm_document_length(text + at, length - at, &next);
        at += next;
        if (at - begin >= PART_BYTES || at == length) {
            parts[count++] = (text_part){.begin = begin, .end = at};
            begin = at;
        }
    }
    return count;
}

static xmoe_status join_parts(const text_part *parts, size_t count, xm_token_file *file,
                              xmoe_error *error)
{
    size_t total = 1;
    for (size_t i = 0; i < count; i++) {
        if (parts[i].error.status != XMOE_OK) {
            if (error != NULL)
                *error = parts[i].error;
            return parts[i].error.status;
        }
        total += parts[i].count;
    }
    file->tokens = xm_calloc(total, sizeof *file->tokens);
    if (file->tokens == NULL)
        return xm_fail_memory(error, "tokens of a text", total * sizeof *file->tokens);
    file->tokens[file->count++] = XM_END_OF_TEXT;
    for (size_t i = 0; i < count; i++) {
        file->text_bytes += parts[i].text_bytes;
        for (size_t j = 0; j < parts[i].count; j++)
            file->tokens[file->count++] = (uint16_t)parts[i].tokens[j];
    }
    return XMOE_OK;
}

xmoe_status xm_token_file_encode(const char *text, size_t length, const xm_tokenizer *tokenizer,
                                 xm_pool *pool, xm_token_file *file, xmoe_error *error)
{
    *file = (xm_token_file){0};
    if (xm_tokenizer_size(tokenizer) > UINT16_MAX)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED, "vocabularies above 65535 tokens");
    encode_job job = {.text = text, .tokenizer = tokenizer};
    job.parts = xm_calloc(length / PART_BYTES + 1, sizeof *job.parts);
    if (job.parts == NULL)
        return xm_fail_memory(error, "parts of a text", length);
    size_t count = cut_parts(text, length, job.parts);
    xm_pool_run(pool, (int32_t)count, encode_task, &job);
    xmoe_status status = join_parts(job.parts, count, file, error);
    for (size_t i = 0; i < count; i++)
        xm_free(job.parts[i].tokens);
    xm_free(job.parts);
    return status;
}

void xm_token_file_free(xm_token_file *file)
{
    xm_free(file->tokens);
    *file = (xm_token_file){0};
}

/* False where the cache is absent or of something else; it is then made anew. */
static bool read_cache(const char *path, const cache_header *expected, xm_token_file *file)
{
    FILE *cache = fopen(path, "rb");
    if (cache == NULL)
        return false;
    cache_header header;
    bool fine = fread(&header, sizeof header, 1, cache) == 1 &&
                memcmp(header.magic, expected->magic, sizeof header.magic) == 0 &&
                header.vocabulary == expected->vocabulary &&
                header.source_bytes == expected->source_bytes &&
                header.source_seconds == expected->source_seconds &&
                header.source_nanoseconds == expected->source_nanoseconds &&
                header.count <= 2 * header.source_bytes + 2;
    if (fine) {
        file->tokens = xm_calloc((size_t)header.count, sizeof *file->tokens);
        fine = file->tokens != NULL && fread(file->tokens, sizeof *file->tokens,
                                             (size_t)header.count, cache) == header.count;
        file->count = (size_t)header.count;
        file->text_bytes = header.text_bytes;
    }
    fclose(cache);
    if (!fine)
        xm_token_file_free(file);
    return fine;
}

static xmoe_status write_cache(const char *path, cache_header header, const xm_token_file *file,
                               xmoe_error *error)
{
    header.count = file->count;
    header.text_bytes = file->text_bytes;
    FILE *cache = fopen(path, "wb");
    if (cache == NULL)
        return xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", path, strerror(errno));
    bool fine = fwrite(&header, sizeof header, 1, cache) == 1 &&
                fwrite(file->tokens, sizeof *file->tokens, file->count, cache) == file->count;
    if (fclose(cache) != 0 || !fine) {
        remove(path);
        return xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    return XMOE_OK;
}

xmoe_status xm_token_file_open(const char *text_path, const char *cache_path,
                               const xm_vocabulary *vocabulary, const xm_tokenizer *tokenizer,
                               xm_pool *pool, xm_token_file *file, xmoe_error *error)
{
    *file = (xm_token_file){0};
    struct stat info;
    if (stat(text_path, &info) != 0)
        return xm_fail(error, XMOE_ERROR_IO, "cannot read %s: %s", text_path, strerror(errno));
    const cache_header header = {.magic = "XMTOKEN1",
                                 .vocabulary = xm_vocabulary_hash(vocabulary),
                                 .source_bytes = (uint64_t)info.st_size,
                                 .source_seconds = info.st_mtim.tv_sec,
                                 .source_nanoseconds = info.st_mtim.tv_nsec};
    if (cache_path != NULL && read_cache(cache_path, &header, file))
        return XMOE_OK;
    char *text = NULL;
    size_t length = 0;
    xmoe_status status = xm_read_text(text_path, &text, &length, error);
    if (status == XMOE_OK)
        status = xm_token_file_encode(text, length, tokenizer, pool, file, error);
    if (status == XMOE_OK && cache_path != NULL)
        status = write_cache(cache_path, header, file, error);
    xm_free(text);
    if (status != XMOE_OK)
        xm_token_file_free(file);
    return status;
}
