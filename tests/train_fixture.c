/*
 * train_fixture.c - see train_fixture.h.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "train_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char directory[] = "/tmp/xmoe-test-train-XXXXXX";

void train_path(char path[TRAIN_PATH_SIZE], const char *name)
{
    snprintf(path, TRAIN_PATH_SIZE, "%s/%s", directory, name);
}

static void write_text(const char *name, const char *const *sentences, int count, int repeats)
{
    char path[TRAIN_PATH_SIZE];
    train_path(path, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int i = 0; i < repeats; i++)
        fprintf(file, "%s %s\n%s", sentences[i % count], sentences[i * i % count],
                i % 5 == 4 ? "<|endoftext|>\n" : "");
    fclose(file);
}

static const char *const prose[] = {"The cat sat on the mat.", "A dog ran over the hill.",
                                    "The sun rose over the sea.", "They sat and ran."};
static const char *const source[] = {"int a = 1;", "if (a > 2) return;", "for (;;) a = a + 1;"};

int train_set_up(void **state)
{
    (void)state;
    if (mkdtemp(directory) == NULL)
        return -1;
    write_text("prose.train.txt", prose, 4, 300);
    write_text("prose.valid.txt", prose, 4, 40);
    write_text("source.train.txt", source, 3, 200);
    write_text("source.valid.txt", source, 3, 30);
    return 0;
}

int train_tear_down(void **state)
{
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s", directory);
    return system(command);
}

xm_trainer_options train_toy_options(void)
{
    return (xm_trainer_options){.shape = {.context = 24,
                                          .width = 32,
                                          .blocks = 2,
                                          .heads = 2,
                                          .feed_forward = 64,
                                          .experts = 6,
                                          .expert_feed_forward = 16,
                                          .moe_every = 2,
                                          .epsilon = 1e-5f,
                                          .threshold = 0.8f,
                                          .top_k = 2,
                                          .init_std = 0.02f,
                                          .router_std = 1.0f},
                                .sequences = 4,
                                .groups = 2,
                                .rule = {.peak_rate = 1e-2,
                                         .momentum = 0.9,
                                         .final_rate = 1e-3,
                                         .warmup_steps = 4,
                                         .total_steps = 40,
                                         .beta1 = 0.9,
                                         .beta2 = 0.95,
                                         .weight_decay = 0.1,
                                         .clip = 1.0},
                                .capacity_factor = 2.0f,
                                .min_capacity = 4,
                                .balance_weight = 0.01f,
                                .seed = 9};
}

xmoe_status train_open(train_run *r, int32_t threads, xmoe_error *error)
{
    *r = (train_run){0};
    const xm_corpus_options corpus = {.data = directory,
                                      .directory = directory,
                                      .names = {"prose", "source"},
                                      .domain_count = 2,
                                      .vocabulary = 300,
                                      .sample_bytes = 1 << 20};
    xmoe_status status = xm_pool_create(threads, &r->pool, error);
    if (status == XMOE_OK)
        status = xm_corpus_open(&corpus, r->pool, NULL, NULL, &r->corpus, error);
    return status;
}

void train_start(train_run *r, const xm_trainer_options *options, int32_t threads)
{
    xm_trainer_options mine = *options;
    mine.threads = threads;
    xmoe_error error = {0};
    if (train_open(r, threads, &error) != XMOE_OK ||
        xm_trainer_create(&mine, &r->corpus, &r->trainer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

void train_finish(train_run *r)
{
    xm_trainer_free(r->trainer);
    xm_corpus_free(&r->corpus);
    xm_pool_free(r->pool);
}
