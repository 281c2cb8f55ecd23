/*
 * train_fixture.h - toy texts in a temporary directory, and a training run small enough for tests.
 */
#ifndef XMOE_TESTS_TRAIN_FIXTURE_H
#define XMOE_TESTS_TRAIN_FIXTURE_H

#include "train/run.h"

/* Of a cmocka group: makes the directory with the texts of two domains, and removes it. */
int train_set_up(void **state);
int train_tear_down(void **state);

enum { TRAIN_PATH_SIZE = 256 };
/* The path of a file in the directory. */
void train_path(char path[TRAIN_PATH_SIZE], const char *name);

/* A model of two blocks, the second MoE. */
xm_trainer_options train_toy_options(void);

typedef struct {
    xm_pool *pool;
    xm_corpus corpus;
    xm_trainer *trainer;
} train_run;

/* Opens the corpus; *r must stay where it is: a trainer points into it. Returns the status so that
 * threads other than cmocka's may use it. */
xmoe_status train_open(train_run *r, int32_t threads, xmoe_error *error);
/* The same with the trainer; fails the test where it fails. */
void train_start(train_run *r, const xm_trainer_options *options, int32_t threads);
void train_finish(train_run *r);

#endif
