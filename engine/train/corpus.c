/*
 * corpus.c - see corpus.h.
 */
#include "train/corpus.h"

#include "base/memory.h"
#include "train/bpe_learn.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_SIZE = 4096, SAMPLE_PART = 1 << 16 };

static xmoe_status join_path(char path[PATH_SIZE], const char *directory, const char *name,
                             const char *suffix, xmoe_error *error)
{
    if (snprintf(path, PATH_SIZE, "%s/%s%s", directory, name, suffix) >= PATH_SIZE)
        return xm_fail_argument(error, "directory", "the path %.60s... is too long", directory);
    return XMOE_OK;
}

static bool report(xmoe_progress_fn progress, void *context, const char *what, int32_t done,
                   int32_t total)
{
    return progress == NULL || progress(context, what, (uint64_t)done, (uint64_t)total);
}

/* Adds the share of a domain's text, in parts taken at equal distances, each cut at line ends. */
static xmoe_status add_sample(xm_bpe_learner *learner, const char *text, size_t length,
                              double share, xmoe_error *error)
{
    size_t at = 0;
    double debt = 0; /* parts that the share still owes */
    while (at < length) {
        size_t end = at + SAMPLE_PART < length ? at + SAMPLE_PART : length;
        const char *newline = memchr(text + end, '\n', length - end);
        end = end == length || newline == NULL ? length : (size_t)(newline - text) + 1;
        debt += share;
        if (debt >= 1.0) {
            debt -= 1.0;
            for (size_t document = at; document < end;) {
                size_t next = 0;
                size_t bytes = xm_document_length(text + document, end - document, &next);
                xmoe_status status = xm_bpe_learner_add(learner, text + document, bytes, error);
                if (status != XMOE_OK)
                    return status;
                document += next;
            }
        }
        at = end;
    }
    return XMOE_OK;
}

static xmoe_status learn_vocabulary(const xm_corpus_options *options, xm_vocabulary *vocabulary,
                                    xmoe_progress_fn progress, void *context, xmoe_error *error)
{
    char path[PATH_SIZE];
    double total = 0;
    xm_bpe_learner *learner = NULL;
    xmoe_status status = XMOE_OK;
    for (int32_t i = 0; i < options->domain_count && status == XMOE_OK; i++) {
        struct stat info = {0};
        status = join_path(path, options->data, options->names[i], ".train.txt", error);
        if (status == XMOE_OK && stat(path, &info) != 0)
            status = xm_fail(error, XMOE_ERROR_IO, "cannot find %s", path);
        total += (double)info.st_size;
    }
    if (status == XMOE_OK)
        status = xm_bpe_learner_create(&learner, error);
    double share = total > 0 ? (double)options->sample_bytes / total : 1.0;
    for (int32_t i = 0; i < options->domain_count && status == XMOE_OK; i++) {
        char *text = NULL;
        size_t length = 0;
        if (!report(progress, context, "learning the vocabulary", i, options->domain_count))
            status = xm_fail(error, XMOE_ERROR_ARGUMENT, "stopped");
        if (status == XMOE_OK)
            status = join_path(path, options->data, options->names[i], ".train.txt", error);
        if (status == XMOE_OK)
            status = xm_read_text(path, &text, &length, error);
        if (status == XMOE_OK)
            status = add_sample(learner, text, length, share < 1.0 ? share : 1.0, error);
        xm_free(text);
    }
    if (status == XMOE_OK)
        status = xm_bpe_learner_finish(learner, options->vocabulary, vocabulary, error);
    xm_bpe_learner_free(learner);
    return status;
}

static xmoe_status open_vocabulary(const xm_corpus_options *options, xm_corpus *corpus,
                                   xmoe_progress_fn progress, void *context, xmoe_error *error)
{
    char path[PATH_SIZE];
    xmoe_status status = join_path(path, options->directory, "vocabulary", ".txt", error);
    if (status != XMOE_OK)
        return status;
    if (access(path, F_OK) == 0) {
        status = xm_vocabulary_load(path, &corpus->vocabulary, error);
    } else {
        status = learn_vocabulary(options, &corpus->vocabulary, progress, context, error);
        if (status == XMOE_OK)
            status = xm_vocabulary_save(&corpus->vocabulary, path, error);
    }
    if (status == XMOE_OK)
        status = xm_vocabulary_tokenizer(&corpus->vocabulary, &corpus->tokenizer, error);
    return status;
}

static xmoe_status open_text(const xm_corpus_options *options, const xm_corpus *corpus,
                             const char *name, const char *part, xm_pool *pool, xm_token_file *file,
                             xmoe_error *error)
{
    char text_path[PATH_SIZE], cache_path[PATH_SIZE], suffix[32];
    snprintf(suffix, sizeof suffix, ".%s.txt", part);
    xmoe_status status = join_path(text_path, options->data, name, suffix, error);
    snprintf(suffix, sizeof suffix, ".%s.tokens", part);
    if (status == XMOE_OK)
        status = join_path(cache_path, options->directory, name, suffix, error);
    if (status == XMOE_OK)
        status = xm_token_file_open(text_path, cache_path, &corpus->vocabulary, corpus->tokenizer,
                                    pool, file, error);
    return status;
}

xmoe_status xm_corpus_open(const xm_corpus_options *options, xm_pool *pool,
                           xmoe_progress_fn progress, void *progress_context, xm_corpus *corpus,
                           xmoe_error *error)
{
    *corpus = (xm_corpus){.domain_count = options->domain_count};
    if (options->domain_count < 1 || options->domain_count > XM_MAX_DOMAINS)
        return xm_fail_argument(error, "domains", "%d domains, must be 1 to %d",
                                options->domain_count, XM_MAX_DOMAINS);
    xmoe_status status = open_vocabulary(options, corpus, progress, progress_context, error);
    for (int32_t i = 0; i < options->domain_count && status == XMOE_OK; i++) {
        corpus->names[i] = options->names[i];
        if (!report(progress, progress_context, "tokenising", i, options->domain_count))
            status = xm_fail(error, XMOE_ERROR_ARGUMENT, "stopped");
        if (status == XMOE_OK)
            status = open_text(options, corpus, options->names[i], "train", pool, &corpus->train[i],
                               error);
        if (status == XMOE_OK)
            status = open_text(options, corpus, options->names[i], "valid", pool, &corpus->valid[i],
                               error);
        corpus->stream[i] =
            (xm_stream_domain){.tokens = corpus->train[i].tokens,
                               .count = corpus->train[i].count,
                               .weight = options->weights[i] > 0 ? options->weights[i]
                                                                 : (double)corpus->train[i].count};
    }
    if (status != XMOE_OK)
        xm_corpus_free(corpus);
    return status;
}

void xm_corpus_free(xm_corpus *corpus)
{
    for (int32_t i = 0; i < corpus->domain_count; i++) {
        xm_token_file_free(&corpus->train[i]);
        xm_token_file_free(&corpus->valid[i]);
    }
    xm_tokenizer_free(corpus->tokenizer);
    xm_vocabulary_free(&corpus->vocabulary);
    *corpus = (xm_corpus){0};
}
