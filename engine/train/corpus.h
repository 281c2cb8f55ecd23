/*
 * corpus.h - the texts of a training run: for every domain D of a directory, D.train.txt and
 * D.valid.txt, as tokens of one vocabulary that is learned from them once.
 *
 * The run's own directory keeps the vocabulary ("vocabulary.txt") and the token caches.
 */
#ifndef XM_TRAIN_CORPUS_H
#define XM_TRAIN_CORPUS_H

#include "train/token_file.h"
#include "train/token_stream.h"

enum { XM_MAX_DOMAINS = 16 };

typedef struct {
    const char *data;                  /* where the texts are */
    const char *directory;             /* of the run */
    const char *names[XM_MAX_DOMAINS]; /* of the domains */
    double weights[XM_MAX_DOMAINS];    /* 0: the number of training tokens */
    int32_t domain_count;
    int32_t vocabulary;    /* tokens, if it has to be learned */
    uint64_t sample_bytes; /* of text to learn it from, over all domains */
} xm_corpus_options;

typedef struct {
    int32_t domain_count;
    const char *names[XM_MAX_DOMAINS];
    xm_vocabulary vocabulary;
    xm_tokenizer *tokenizer;
    xm_token_file train[XM_MAX_DOMAINS], valid[XM_MAX_DOMAINS];
    xm_stream_domain stream[XM_MAX_DOMAINS];
} xm_corpus;

/* progress may be NULL; it hears what is being made. */
xmoe_status xm_corpus_open(const xm_corpus_options *options, xm_pool *pool,
                           xmoe_progress_fn progress, void *progress_context, xm_corpus *corpus,
                           xmoe_error *error);
void xm_corpus_free(xm_corpus *corpus);

#endif
