/*
 * test_train_ranks.c - several ranks train one model: the same bits at any number of ranks, and
 * what goes wrong on one is heard on all. Ranks are threads here; tools_test.sh has them as
 * processes under mpirun.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "thread_ranks.h"
#include "train_fixture.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_RANKS = 4, MOST_STEPS = 8 };

typedef enum { NOTHING, NO_INIT_FILE, OTHER_SEED, POISON, OTHER_PARAMETER } mishap;

/* What a run does, and what came of it. */
typedef struct {
    xm_trainer_options options;
    uint64_t steps;
    const char *save, *load; /* paths or NULL */
    mishap mishap;           /* on rank 1 */
    xmoe_status status[MOST_RANKS];
    xmoe_error error[MOST_RANKS];
    xm_step_report reports[MOST_RANKS][MOST_STEPS];
    float *parameters[MOST_RANKS]; /* at the end, from malloc */
    size_t total;
} run_job;

static void spoil(const xm_trainer *trainer, float value)
{
    float *parameters = (float *)xm_trainer_parameters(trainer); /* only a test may */
    parameters[xm_trainer_network(trainer)->blocks[1].attn_qkv_weight] = value;
}

static xmoe_status take_steps(run_job *job, const xm_ranks *ranks, train_run *r, xmoe_error *error)
{
    xmoe_status status = XMOE_OK;
    if (job->load != NULL)
        status = xm_trainer_load(r->trainer, job->load, error);
    if (status == XMOE_OK && ranks->rank == 1 && job->mishap == POISON)
        spoil(r->trainer, NAN);
    if (status == XMOE_OK && ranks->rank == 1 && job->mishap == OTHER_PARAMETER)
        spoil(r->trainer, 0.5f);
    for (uint64_t i = xm_trainer_steps_done(r->trainer); i < job->steps && status == XMOE_OK; i++)
        status = xm_trainer_step(r->trainer, &job->reports[ranks->rank][i], error);
    if (status == XMOE_OK && job->save != NULL)
        status = xm_trainer_save(r->trainer, job->save, error);
    return status;
}

static void rank_main(void *context, const xm_ranks *ranks)
{
    run_job *job = context;
    train_run r;
    xmoe_error *error = &job->error[ranks->rank];
    xm_trainer_options options = job->options;
    options.ranks = ranks;
    options.threads = 1 + ranks->rank % 2;
    if (ranks->rank == 1 && job->mishap == NO_INIT_FILE)
        options.init = "/nowhere/model.gguf";
    if (ranks->rank == 1 && job->mishap == OTHER_SEED)
        options.seed++;
    xmoe_status status = train_open(&r, 1, error);
    if (status == XMOE_OK)
        status = xm_trainer_create(&options, &r.corpus, &r.trainer, error);
    if (status == XMOE_OK)
        status = take_steps(job, ranks, &r, error);
    if (r.trainer != NULL) {
        job->total = xm_trainer_network(r.trainer)->total;
        float *copy = malloc(job->total * sizeof *copy);
        if (copy != NULL)
            memcpy(copy, xm_trainer_parameters(r.trainer), job->total * sizeof *copy);
        job->parameters[ranks->rank] = copy;
    }
    job->status[ranks->rank] = status;
    train_finish(&r);
}

static void free_job(run_job *job)
{
    for (int32_t rank = 0; rank < MOST_RANKS; rank++)
        free(job->parameters[rank]);
    free(job);
}

static run_job *new_job(uint64_t steps)
{
    run_job *job = calloc(1, sizeof *job);
    assert_non_null(job);
    job->options = train_toy_options();
    job->options.groups = 4;
    job->steps = steps;
    return job;
}

/* The vocabulary and the token caches: made before ranks read them at once. */
static void make_corpus(void)
{
    train_run r;
    assert_int_equal(train_open(&r, 1, NULL), XMOE_OK);
    train_finish(&r);
}

static void assert_same(const run_job *a, const run_job *b, int32_t ranks)
{
    for (int32_t rank = 0; rank < ranks; rank++) {
        if (b->status[rank] != XMOE_OK)
            fail_msg("%s", b->error[rank].message);
        assert_non_null(b->parameters[rank]);
        assert_memory_equal(a->parameters[0], b->parameters[rank], a->total * sizeof(float));
        for (uint64_t i = 0; i < a->steps; i++) {
            const xm_step_report *x = &a->reports[0][i], *y = &b->reports[rank][i];
            assert_true(x->norm == y->norm && x->result.loss == y->result.loss);
            assert_true(x->result.tokens == y->result.tokens);
            assert_true(x->result.active[1] == y->result.active[1]);
        }
    }
}

static void test_same_bits_at_any_number_of_ranks(void **state)
{
    (void)state;
    make_corpus();
    run_job *alone = new_job(6);
    thread_ranks_run(1, rank_main, alone);
    assert_int_equal(alone->status[0], XMOE_OK);
    assert_true(alone->reports[0][5].result.loss < alone->reports[0][0].result.loss);
    for (int32_t ranks = 2; ranks <= 4; ranks += 2) {
        run_job *several = new_job(6);
        thread_ranks_run(ranks, rank_main, several);
        assert_same(alone, several, ranks);
        free_job(several);
    }
    free_job(alone);
}

/* More parameters than travel between ranks at once. */
static void test_large_gradients(void **state)
{
    (void)state;
    make_corpus();
    run_job *jobs[2];
    for (int i = 0; i < 2; i++) {
        jobs[i] = new_job(2);
        jobs[i]->options.shape.experts = 40;
        jobs[i]->options.shape.expert_feed_forward = 1000;
        jobs[i]->options.shape.context = 8;
        thread_ranks_run(i == 0 ? 1 : 4, rank_main, jobs[i]);
    }
    assert_true(jobs[0]->total > 2u << 20);
    assert_same(jobs[0], jobs[1], 4);
    free_job(jobs[0]);
    free_job(jobs[1]);
}

static void test_resume_on_another_number_of_ranks(void **state)
{
    (void)state;
    char path[TRAIN_PATH_SIZE];
    train_path(path, "ranks-checkpoint");
    make_corpus();
    run_job *whole = new_job(6), *first = new_job(3), *rest = new_job(6);
    first->save = rest->load = path;
    thread_ranks_run(1, rank_main, whole);
    thread_ranks_run(2, rank_main, first);
    assert_int_equal(first->status[1], XMOE_OK);
    thread_ranks_run(4, rank_main, rest);
    memcpy(rest->reports[0], first->reports[0], 3 * sizeof rest->reports[0][0]);
    for (int32_t rank = 0; rank < 4; rank++) {
        assert_int_equal(rest->status[rank], XMOE_OK);
        assert_memory_equal(whole->parameters[0], rest->parameters[rank],
                            whole->total * sizeof(float));
    }
    free_job(whole);
    free_job(first);
    free_job(rest);
}

/* Every rank must come back with this status and a message that holds this text. */
static void assert_all_fail(mishap wrong, const char *save, xmoe_status status, const char *text)
{
    make_corpus();
    run_job *job = new_job(2);
    job->mishap = wrong;
    job->save = save;
    thread_ranks_run(2, rank_main, job);
    for (int32_t rank = 0; rank < 2; rank++) {
        assert_int_equal(job->status[rank], status);
        if (strstr(job->error[rank].message, text) == NULL)
            fail_msg("rank %d says '%s', not '%s'", rank, job->error[rank].message, text);
    }
    free_job(job);
}

static void test_failures_reach_all(void **state)
{
    (void)state;
    char path[TRAIN_PATH_SIZE];
    train_path(path, "never-written");
    assert_all_fail(NO_INIT_FILE, NULL, XMOE_ERROR_IO, "rank 1: ");
    assert_all_fail(NO_INIT_FILE, NULL, XMOE_ERROR_IO, "/nowhere/model.gguf");
    assert_all_fail(OTHER_SEED, NULL, XMOE_ERROR_INTERNAL, "rank 1 differs from rank 0");
    assert_all_fail(
        POISON, NULL, XMOE_ERROR_INTERNAL,
        "step 1: the loss is not finite; the first such value is in block 1, attention");
    assert_all_fail(OTHER_PARAMETER, path, XMOE_ERROR_INTERNAL, "parameters");
    assert_int_not_equal(access(path, F_OK), 0);
}

static void test_groups_that_ranks_cannot_share(void **state)
{
    (void)state;
    make_corpus();
    run_job *job = new_job(1);
    job->options.groups = 2;
    thread_ranks_run(4, rank_main, job);
    for (int32_t rank = 0; rank < 4; rank++) {
        assert_int_equal(job->status[rank], XMOE_ERROR_ARGUMENT);
        assert_string_equal(job->error[rank].parameter, "groups");
        assert_non_null(strstr(job->error[rank].message, "multiple of the ranks, 4"));
    }
    free_job(job);
}

/* --- the loop --------------------------------------------------------------------------------- */

typedef struct {
    uint64_t done[2];
    double valid[2];
    _Atomic int reports;
    char log[TRAIN_PATH_SIZE], checkpoint[TRAIN_PATH_SIZE];
    xmoe_status status[2];
} loop_job;

static void on_report(void *context, const xm_run_report *report)
{
    loop_job *job = context;
    atomic_fetch_add(&job->reports, 1);
    if (report->valid_bits != NULL)
        memcpy(job->valid, report->valid_bits, sizeof job->valid);
}

/* Rank 1 asks to stop after its fourth step. */
static bool stop_on_rank_1(void *context)
{
    int *calls = context;
    return ++*calls == 4;
}

static bool never_stop(void *context)
{
    (void)context;
    return false;
}

static void loop_main(void *context, const xm_ranks *ranks)
{
    loop_job *job = context;
    train_run r;
    xm_trainer_options options = train_toy_options();
    options.ranks = ranks;
    options.threads = 1;
    int calls = 0;
    xm_run_plan plan = {.log_path = job->log,
                        .checkpoint_path = job->checkpoint,
                        .log_every = 1,
                        .validate_every = 2,
                        .on_report = ranks->rank == 0 ? on_report : NULL,
                        .context = job};
    if (ranks->rank == 1) {
        plan.should_stop = stop_on_rank_1;
        plan.context = &calls;
    } else {
        plan.should_stop = never_stop;
    }
    xmoe_status status = train_open(&r, 1, NULL);
    if (status == XMOE_OK)
        status = xm_trainer_create(&options, &r.corpus, &r.trainer, NULL);
    if (status == XMOE_OK)
        status = xm_run(r.trainer, &r.corpus, &plan, 10, NULL);
    job->status[ranks->rank] = status;
    job->done[ranks->rank] = r.trainer != NULL ? xm_trainer_steps_done(r.trainer) : 0;
    train_finish(&r);
}

static void test_loop_stops_together(void **state)
{
    (void)state;
    make_corpus();
    loop_job job = {0};
    train_path(job.log, "ranks.csv");
    train_path(job.checkpoint, "ranks-loop");
    thread_ranks_run(2, loop_main, &job);
    for (int32_t rank = 0; rank < 2; rank++) {
        assert_int_equal(job.status[rank], XMOE_OK);
        assert_int_equal(job.done[rank], 4);
    }
    assert_int_equal(job.reports, 4);
    assert_int_equal(access(job.checkpoint, F_OK), 0);
    /* A domain that rank 1 measured is known to rank 0. */
    assert_true(job.valid[0] > 0 && job.valid[1] > 0 && isfinite(job.valid[1]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits_at_any_number_of_ranks),
        cmocka_unit_test(test_large_gradients),
        cmocka_unit_test(test_resume_on_another_number_of_ranks),
        cmocka_unit_test(test_failures_reach_all),
        cmocka_unit_test(test_groups_that_ranks_cannot_share),
        cmocka_unit_test(test_loop_stops_together),
    };
    return cmocka_run_group_tests(tests, train_set_up, train_tear_down);
}
