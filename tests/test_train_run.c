/*
 * test_train_run.c - a whole training run on toy text: the loss falls, a resumed run goes on bit
 * for bit at any number of threads, files that do not belong are refused, and a run that diverges
 * says where. Works in a temporary directory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/memory.h"
#include "train_fixture.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static double step(train_run *r, int count)
{
    xm_step_report report = {0};
    xmoe_error error;
    for (int i = 0; i < count; i++)
        if (xm_trainer_step(r->trainer, &report, &error) != XMOE_OK)
            fail_msg("%s", error.message);
    return report.result.loss;
}

static void test_loss_falls(void **state)
{
    (void)state;
    const xm_trainer_options options = train_toy_options();
    train_run r;
    train_start(&r, &options, 2);
    xm_evaluation before[2], after[2];
    assert_int_equal(xm_trainer_validate(r.trainer, 0, before, NULL), XMOE_OK);
    double first = step(&r, 1), last = step(&r, 39);
    assert_int_equal(xm_trainer_validate(r.trainer, 0, after, NULL), XMOE_OK);
    double uniform = log(xm_vocabulary_size(&r.corpus.vocabulary));
    assert_true(fabs(first - uniform) < 0.2);
    assert_true(last < 0.6 * first);
    assert_true(xm_bits_per_byte(&after[0]) < 0.6 * xm_bits_per_byte(&before[0]));
    /* Every token but the first is predicted once, every byte of text belongs to one. */
    assert_int_equal(after[0].tokens, r.corpus.valid[0].count - 1);
    assert_int_equal(after[0].bytes, r.corpus.valid[0].text_bytes);
    train_finish(&r);
}

/* Three MoE blocks, the last followed by a dense one. */
static xm_trainer_options recurrent_options(void)
{
    xm_trainer_options options = train_toy_options();
    options.shape.gate = XM_GATE_RECURRENT;
    options.shape.router_state = 8;
    options.shape.blocks = 7;
    return options;
}

static void check_resume(const xm_trainer_options *options)
{
    char path[256];
    train_path(path, "checkpoint");
    train_run whole;
    train_start(&whole, options, 1);
    (void)step(&whole, 6);
    train_run part;
    train_start(&part, options, 2);
    (void)step(&part, 3);
    assert_int_equal(xm_trainer_save(part.trainer, path, NULL), XMOE_OK);
    train_finish(&part);
    train_run rest;
    train_start(&rest, options, 3);
    assert_int_equal(xm_trainer_load(rest.trainer, path, NULL), XMOE_OK);
    assert_int_equal(xm_trainer_steps_done(rest.trainer), 3);
    (void)step(&rest, 3);
    assert_memory_equal(xm_trainer_parameters(whole.trainer), xm_trainer_parameters(rest.trainer),
                        xm_trainer_network(whole.trainer)->total * sizeof(float));
    train_finish(&whole);
    train_finish(&rest);
}

static void test_resume_to_the_bit(void **state)
{
    (void)state;
    xm_trainer_options options = train_toy_options();
    options.precision = XM_PRECISION_F32;
    check_resume(&options);
    options.rule.kind = XM_OPTIMIZER_MUON;
    check_resume(&options);
    options.precision = XM_PRECISION_AUTO;
    check_resume(&options);
    options = recurrent_options();
    check_resume(&options);
    options.recompute = true;
    check_resume(&options);
}

/* Where there is BF16, a run in it learns as one in F32 does, and neither goes on as the other. */
static void test_bf16(void **state)
{
    (void)state;
    const xm_gemm *gemm = NULL;
    if (xm_gemm_select(XM_PRECISION_BF16, &gemm, NULL) != XMOE_OK) {
        print_message("this CPU does not multiply BF16\n");
        skip();
    }
    xm_trainer_options options = train_toy_options();
    char path[256];
    xmoe_error error;
    double losses[2];
    train_path(path, "precision");
    for (int i = 0; i < 2; i++) {
        train_run r;
        options.precision = i == 0 ? XM_PRECISION_BF16 : XM_PRECISION_F32;
        train_start(&r, &options, 2);
        losses[i] = step(&r, 30);
        if (i == 0) {
            assert_int_equal(xm_trainer_save(r.trainer, path, NULL), XMOE_OK);
        } else {
            assert_int_equal(xm_trainer_load(r.trainer, path, &error), XMOE_ERROR_FORMAT);
            assert_non_null(strstr(error.message, "precision bf16, this run is in f32"));
        }
        train_finish(&r);
    }
    assert_true(losses[0] != losses[1]);
    if (!(fabs(losses[0] - losses[1]) < 0.03 * losses[1]))
        fail_msg("loss %g in BF16, %g in F32", losses[0], losses[1]);
}

static void damage(const char *path, long at)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, at, SEEK_SET), 0);
    int byte = fgetc(file);
    assert_int_equal(fseek(file, at, SEEK_SET), 0);
    fputc(byte ^ 1, file);
    fclose(file);
}

/* A run of these options does not go on from a checkpoint of others. */
static void refuse_checkpoint(const xm_trainer_options *options, const char *path,
                              const char *words)
{
    train_run r;
    xmoe_error error = {0};
    train_start(&r, options, 1);
    assert_int_equal(xm_trainer_load(r.trainer, path, &error), XMOE_ERROR_FORMAT);
    if (strstr(error.message, words) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", error.message, words);
    train_finish(&r);
}

static void test_checkpoints_that_do_not_fit(void **state)
{
    (void)state;
    xm_trainer_options options = train_toy_options();
    char path[256], other[256];
    xmoe_error error;
    train_path(path, "other");
    train_path(other, "recurrent");
    train_run r;
    train_start(&r, &options, 1);
    assert_int_equal(xm_trainer_load(r.trainer, path, &error), XMOE_ERROR_IO);
    assert_int_equal(xm_trainer_save(r.trainer, path, NULL), XMOE_OK);
    train_finish(&r);

    options.shape.experts = 5;
    refuse_checkpoint(&options, path, "experts 6, this run has 5");

    options = train_toy_options();
    options.rule.kind = XM_OPTIMIZER_MUON;
    refuse_checkpoint(&options, path, "optimizer adamw, this run has muon");

    options = train_toy_options();
    options.groups = 1;
    refuse_checkpoint(&options, path, "groups 2, this run has 1");

    options = train_toy_options();
    options.seed = 10;
    refuse_checkpoint(&options, path, "seed 9");

    options = recurrent_options();
    train_start(&r, &options, 1);
    assert_int_equal(xm_trainer_load(r.trainer, path, &error), XMOE_ERROR_FORMAT);
    assert_int_equal(xm_trainer_save(r.trainer, other, NULL), XMOE_OK);
    train_finish(&r);
    options.shape.router_state = 9;
    refuse_checkpoint(&options, other, "router_state 8, this run has 9");

    options = train_toy_options();
    train_start(&r, &options, 1);
    damage(path, 5000);
    assert_int_equal(xm_trainer_load(r.trainer, path, &error), XMOE_ERROR_FORMAT);
    assert_non_null(strstr(error.message, "damaged"));
    assert_int_equal(truncate(path, 6000), 0);
    assert_int_equal(xm_trainer_load(r.trainer, path, &error), XMOE_ERROR_FORMAT);
    assert_non_null(strstr(error.message, "ends early"));
    assert_int_equal(truncate(path, 10), 0);
    assert_int_equal(xm_trainer_load(r.trainer, path, &error), XMOE_ERROR_FORMAT);
    damage(path, 0);
    train_finish(&r);
}

static void test_divergence_stops(void **state)
{
    (void)state;
    xm_trainer_options options = train_toy_options();
    options.rule.peak_rate = 1e38;
    options.rule.warmup_steps = 0;
    train_run r;
    train_start(&r, &options, 1);
    xm_step_report report;
    xmoe_error error = {0};
    xmoe_status status = XMOE_OK;
    for (int i = 0; i < 4 && status == XMOE_OK; i++)
        status = xm_trainer_step(r.trainer, &report, &error);
    assert_int_equal(status, XMOE_ERROR_INTERNAL);
    assert_non_null(strstr(error.message, "step "));
    assert_non_null(strstr(error.message, "not finite"));
    train_finish(&r);
}

/* Wherever memory runs out, no trainer is made, and nothing leaks. */
static void test_creation_without_memory(void **state)
{
    (void)state;
    const xm_trainer_options options = train_toy_options();
    train_run r;
    assert_int_equal(train_open(&r, 1, NULL), XMOE_OK);
    xmoe_status status = XMOE_ERROR_MEMORY;
    for (int allowed = 0; status != XMOE_OK; allowed++) {
        xmoe_error error = {0};
        xm_memory_fail_after(allowed);
        status = xm_trainer_create(&options, &r.corpus, &r.trainer, &error);
        xm_memory_fail_after(-1);
        if (status != XMOE_OK) {
            assert_int_equal(status, XMOE_ERROR_MEMORY);
            assert_null(r.trainer);
        }
        assert_true(allowed < 10000);
    }
    train_finish(&r);
}

/* Starts from a model that has one number that is not finite, and takes a step. */
static void check_place(const char *tensor, bool recompute, const char *place)
{
    xm_trainer_options options = train_toy_options();
    char path[TRAIN_PATH_SIZE];
    train_path(path, "broken.gguf");
    train_run r;
    train_start(&r, &options, 1);
    const xm_network *network = xm_trainer_network(r.trainer);
    float *parameters = xm_calloc(network->total, sizeof *parameters);
    assert_non_null(parameters);
    memcpy(parameters, xm_trainer_parameters(r.trainer), network->total * sizeof *parameters);
    for (int32_t i = 0; i < network->parameter_count; i++)
        if (strcmp(network->parameters[i].name, tensor) == 0)
            parameters[network->parameters[i].offset] = INFINITY;
    const xm_model_labels labels = {.name = "broken"};
    assert_int_equal(
        xm_model_file_write(path, network, &r.corpus.vocabulary, &labels, parameters, NULL),
        XMOE_OK);
    xm_free(parameters);
    train_finish(&r);

    options.init = path;
    options.recompute = recompute;
    train_start(&r, &options, 1);
    xm_step_report report;
    xmoe_error error = {0};
    assert_int_equal(xm_trainer_step(r.trainer, &report, &error), XMOE_ERROR_INTERNAL);
    if (strstr(error.message, place) == NULL)
        fail_msg("%s: \"%s\" does not say \"%s\"", tensor, error.message, place);
    train_finish(&r);
}

static void test_divergence_has_a_place(void **state)
{
    (void)state;
    check_place("position_embd.weight", false, "the embedding");
    check_place("blk.0.attn_output.bias", false, "block 0, attention");
    check_place("blk.0.ffn_down.bias", false, "block 0, FFN");
    check_place("blk.1.attn_output.bias", false, "block 1, attention");
    check_place("blk.1.ffn_down_exps.bias", false, "block 1, FFN");
    check_place("output_norm.bias", false, "the output layer");
    check_place("blk.0.attn_output.bias", true, "block 0");
    check_place("blk.1.attn_output.bias", true, "block 1");
    check_place("output_norm.bias", true, "the output layer");
}

static void test_too_little_text(void **state)
{
    (void)state;
    xm_trainer_options options = train_toy_options();
    train_run r;
    train_start(&r, &options, 1);
    options.shape.context = 60000;
    xm_trainer *trainer = NULL;
    xmoe_error error;
    assert_int_equal(xm_trainer_create(&options, &r.corpus, &trainer, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "context");
    assert_null(trainer);
    train_finish(&r);
}

/* --- the loop --------------------------------------------------------------------------------- */

typedef struct {
    int reports, validations, stop_after;
} listener;

static void on_report(void *context, const xm_run_report *report)
{
    listener *heard = context;
    heard->reports++;
    heard->validations += report->valid_bits != NULL;
    assert_true(report->tokens_per_second > 0 && report->mean_active >= 1);
}

static bool should_stop(void *context)
{
    listener *heard = context;
    return heard->stop_after > 0 && --heard->stop_after == 0;
}

static int count_lines(const char *path)
{
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    int lines = 0;
    for (int c = fgetc(file); c != EOF; c = fgetc(file))
        lines += c == '\n';
    fclose(file);
    return lines;
}

static void test_loop(void **state)
{
    (void)state;
    const xm_trainer_options options = train_toy_options();
    char log[256], checkpoint[256];
    train_path(log, "log.csv");
    train_path(checkpoint, "loop");
    listener heard = {.stop_after = 5};
    const xm_run_plan plan = {.log_path = log,
                              .checkpoint_path = checkpoint,
                              .log_every = 2,
                              .validate_every = 4,
                              .validation_windows = 2,
                              .on_report = on_report,
                              .should_stop = should_stop,
                              .context = &heard};
    train_run r;
    train_start(&r, &options, 2);
    assert_int_equal(xm_run(r.trainer, &r.corpus, &plan, 10, NULL), XMOE_OK);
    assert_int_equal(xm_trainer_steps_done(r.trainer), 5); /* stopped, with a checkpoint */
    assert_int_equal(heard.reports, 3);                    /* steps 2, 4, 5 */
    train_finish(&r);
    train_start(&r, &options, 2);
    assert_int_equal(xm_trainer_load(r.trainer, checkpoint, NULL), XMOE_OK);
    assert_int_equal(xm_run(r.trainer, &r.corpus, &plan, 10, NULL), XMOE_OK);
    assert_int_equal(xm_trainer_steps_done(r.trainer), 10);
    assert_int_equal(heard.reports, 6);     /* and 6, 8, 10 */
    assert_int_equal(heard.validations, 3); /* steps 4, 8 and the last */
    assert_int_equal(count_lines(log), 7);
    train_finish(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_falls),
        cmocka_unit_test(test_resume_to_the_bit),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_checkpoints_that_do_not_fit),
        cmocka_unit_test(test_divergence_stops),
        cmocka_unit_test(test_divergence_has_a_place),
        cmocka_unit_test(test_creation_without_memory),
        cmocka_unit_test(test_too_little_text),
        cmocka_unit_test(test_loop),
    };
    return cmocka_run_group_tests(tests, train_set_up, train_tear_down);
}
