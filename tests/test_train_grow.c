/*
 * test_train_grow.c - a network that starts from a smaller model computes what that one computes,
 * and then learns on; what cannot grow is refused by name.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "train_fixture.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void steps(train_run *r, int count)
{
    xm_step_report report;
    for (int i = 0; i < count; i++)
        assert_int_equal(xm_trainer_step(r->trainer, &report, NULL), XMOE_OK);
}

static double validate(train_run *r)
{
    xm_evaluation evaluations[2];
    assert_int_equal(xm_trainer_validate(r->trainer, 0, evaluations, NULL), XMOE_OK);
    return evaluations[0].nats + evaluations[1].nats;
}

/* Trains a small model into a file; returns its loss over the validation text. */
static double make_small(const xm_trainer_options *options, const char *path)
{
    train_run r;
    train_start(&r, options, 2);
    steps(&r, 12);
    double nats = validate(&r);
    const xm_model_labels labels = {.name = "small"};
    assert_int_equal(xm_model_file_write(path, xm_trainer_network(r.trainer), &r.corpus.vocabulary,
                                         &labels, xm_trainer_parameters(r.trainer), NULL),
                     XMOE_OK);
    train_finish(&r);
    return nats;
}

static void check_growth(const xm_trainer_options *small, const xm_trainer_options *large)
{
    char path[TRAIN_PATH_SIZE];
    train_path(path, "small.gguf");
    double before = make_small(small, path);
    xm_trainer_options options = *large;
    options.init = path;
    options.seed = small->seed + 1;
    train_run r;
    train_start(&r, &options, 2);
    double grown = validate(&r);
    if (!(fabs(grown - before) < 1e-5 * before))
        fail_msg("%g nats before growing, %g after", before, grown);
    steps(&r, 12);
    assert_true(validate(&r) < 0.98 * grown);
    train_finish(&r);
}

static void test_same_shape(void **state)
{
    (void)state;
    const xm_trainer_options options = train_toy_options();
    check_growth(&options, &options);
}

/* One more way to grow at a time, and at last all. */
static void test_every_way(void **state)
{
    (void)state;
    const xm_trainer_options small = train_toy_options();
    xm_trainer_options all = small;
    for (int way = 0; way < 3; way++) {
        xm_trainer_options large = small;
        xm_network_shape *shapes[] = {&large.shape, &all.shape};
        for (int i = 0; i < 2; i++) {
            shapes[i]->blocks += way == 0 ? 3 : 0; /* a dense one and one with experts, at least */
            shapes[i]->feed_forward += way == 1 ? 20 : 0;
            shapes[i]->expert_feed_forward += way == 2 ? 12 : 0;
        }
        check_growth(&small, &large);
    }
    check_growth(&small, &all);
}

static void test_gated_experts(void **state)
{
    (void)state;
    xm_trainer_options small = train_toy_options();
    small.shape.architecture = XM_ARCHITECTURE_OLMOE;
    small.shape.moe_every = 1;
    xm_trainer_options large = small;
    large.shape.blocks++;
    large.shape.expert_feed_forward += 8;
    check_growth(&small, &large);
}

/* A longer context has windows that the small model cannot see: the tensors tell. */
static void test_longer_context(void **state)
{
    (void)state;
    xm_trainer_options options = train_toy_options();
    char path[TRAIN_PATH_SIZE];
    train_path(path, "small.gguf");
    train_run small, large;
    (void)make_small(&options, path);
    options.init = path;
    train_start(&small, &options, 1);
    options.shape.context *= 2;
    train_start(&large, &options, 1);
    const xm_network *a = xm_trainer_network(small.trainer), *b = xm_trainer_network(large.trainer);
    const float *x = xm_trainer_parameters(small.trainer),
                *y = xm_trainer_parameters(large.trainer);
    for (int32_t i = 0; i < a->parameter_count; i++)
        assert_memory_equal(x + a->parameters[i].offset, y + b->parameters[i].offset,
                            a->parameters[i].count * sizeof(float));
    train_finish(&small);
    train_finish(&large);
}

static void refuse_over(const xm_trainer_options *options, train_run *r, xmoe_status status,
                        const char *words)
{
    xmoe_error error = {0};
    assert_int_equal(xm_trainer_create(options, &r->corpus, &r->trainer, &error), status);
    if (strstr(error.message, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.message, words);
    train_finish(r);
}

static void refuse(const xm_trainer_options *options, xmoe_status status, const char *words)
{
    train_run r;
    assert_int_equal(train_open(&r, 1, NULL), XMOE_OK);
    refuse_over(options, &r, status, words);
}

static void test_refusals(void **state)
{
    (void)state;
    xm_trainer_options options = train_toy_options();
    char path[TRAIN_PATH_SIZE];
    train_path(path, "small.gguf");
    (void)make_small(&options, path);
    options.init = path;
    const xm_network_shape shape = options.shape;
    options.shape.experts = shape.experts + 1;
    refuse(&options, XMOE_ERROR_FORMAT, "blk.1.ffn_gate_inp.weight: dimension 1");
    options.shape = shape;
    options.shape.expert_feed_forward--;
    refuse(&options, XMOE_ERROR_FORMAT, "blk.1.ffn_up_exps.weight: dimension 1");
    options.shape = shape;
    options.shape.blocks--;
    options.shape.moe_every = 1;
    refuse(&options, XMOE_ERROR_FORMAT, "has 2 blocks, this network 1");
    options.shape = shape;
    options.shape.width *= 2;
    refuse(&options, XMOE_ERROR_FORMAT, "token_embd.weight: dimension 0");
    options.shape = shape;
    options.shape.moe_every = 1;
    refuse(&options, XMOE_ERROR_FORMAT, "has no tensor blk.0.ffn_gate_inp.weight");

    /* What tensors do not show. */
    options.shape = shape;
    options.shape.heads *= 2;
    refuse(&options, XMOE_ERROR_ARGUMENT, "heads, this run");
    options.shape = shape;
    options.shape.epsilon *= 2;
    refuse(&options, XMOE_ERROR_ARGUMENT, "epsilon");
    options.shape = shape;
    train_run r;
    assert_int_equal(train_open(&r, 1, NULL), XMOE_OK);
    xm_merge *last = &r.corpus.vocabulary.merges[r.corpus.vocabulary.merge_count - 1];
    *last = (xm_merge){.left = last->right, .right = last->left};
    refuse_over(&options, &r, XMOE_ERROR_ARGUMENT, "another vocabulary");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_shape),    cmocka_unit_test(test_every_way),
        cmocka_unit_test(test_gated_experts), cmocka_unit_test(test_longer_context),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, train_set_up, train_tear_down);
}
