/*
 * test_engine_embedding.c - embeddings of prompts: what pooling means, and that a vector is the
 * same to the bit whatever the steps, the threads and the company.
 */
#include "engine_fixture.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 512 };

typedef struct {
    float values[MOST];
    int32_t length;
    xmoe_finish finish;
    xmoe_request_summary summary;
    bool ended;
} told_embedding;

static int32_t width(void)
{
    return xmoe_model_get_info(engine_model)->embedding_length;
}

static void on_event(void *context, const xmoe_event *event)
{
    told_embedding *told = context;
    if (event->kind != XMOE_EVENT_END)
        return;
    pthread_mutex_lock(&call_mutex);
    told->finish = event->finish;
    told->summary = *event->summary;
    told->length = event->embedding_length;
    if (event->embedding != NULL)
        memcpy(told->values, event->embedding, (size_t)told->length * sizeof(float));
    told->ended = true;
    pthread_cond_broadcast(&call_changed);
    pthread_mutex_unlock(&call_mutex);
}

static void submit(xmoe_engine *engine, const call *c, xmoe_pooling pooling, told_embedding *told)
{
    xmoe_request_params params = c->params;
    xmoe_error error;
    uint64_t id;
    memset(told, 0, sizeof *told);
    params.max_tokens = 0;
    params.routed_experts = false;
    params.pooling = pooling;
    params.on_event = on_event;
    params.context = told;
    if (xmoe_request_submit(engine, &params, &id, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

static void wait_for(told_embedding *told)
{
    pthread_mutex_lock(&call_mutex);
    while (!told->ended)
        pthread_cond_wait(&call_changed, &call_mutex);
    pthread_mutex_unlock(&call_mutex);
    assert_int_equal(told->finish, XMOE_FINISH_LENGTH);
    assert_int_equal(told->length, width());
}

static told_embedding embed(xmoe_engine *engine, const call *c, xmoe_pooling pooling)
{
    told_embedding told;
    submit(engine, c, pooling, &told);
    wait_for(&told);
    assert_int_equal(told.summary.prompt_tokens, c->params.prompt_length);
    assert_int_equal(told.summary.cached_tokens, 0);
    assert_int_equal(told.summary.completion_tokens, 0);
    return told;
}

/* The last state of each beginning of a prompt is the state of that position. */
static void test_poolings(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    call *c = call_new(5);
    double sum[MOST] = {0};
    size_t whole = c->params.prompt_length;
    assert_true(whole > 4);
    told_embedding mean = embed(engine, c, XMOE_POOLING_MEAN);
    told_embedding first = embed(engine, c, XMOE_POOLING_FIRST);
    told_embedding last = embed(engine, c, XMOE_POOLING_LAST);
    for (c->params.prompt_length = 1; c->params.prompt_length <= whole; c->params.prompt_length++) {
        told_embedding at = embed(engine, c, XMOE_POOLING_LAST);
        for (int32_t i = 0; i < width(); i++)
            sum[i] += (double)at.values[i];
        size_t bytes = (size_t)width() * sizeof(float);
        if (c->params.prompt_length == 1)
            assert_memory_equal(at.values, first.values, bytes);
        if (c->params.prompt_length == whole)
            assert_memory_equal(at.values, last.values, bytes);
    }
    double length = 0;
    for (int32_t i = 0; i < width(); i++) {
        assert_true(fabs(sum[i] / (double)whole - (double)mean.values[i]) < 1e-6);
        length += (double)mean.values[i] * (double)mean.values[i];
    }
    assert_true(length > 0.01);
    free(c);
    xmoe_engine_free(engine);
}

/* Alone on one thread in one step, then in pieces, on threads, beside generations that take each
 * other's blocks. */
static void test_same_in_any_company(void **state)
{
    (void)state;
    enum { TEXTS = 8 };
    told_embedding alone[TEXTS], together[TEXTS];
    call *texts[TEXTS], *others[TEXTS];
    xmoe_engine *engine = engine_create_small();
    for (int32_t n = 0; n < TEXTS; n++) {
        texts[n] = call_new(n);
        alone[n] = embed(engine, texts[n], XMOE_POOLING_MEAN);
    }
    xmoe_engine_free(engine);
    xmoe_engine_options options = engine_small_options();
    options.threads = 3;
    options.step_tokens = 7;
    options.kv_bytes = 1; /* one sequence of full context */
    engine = engine_create(&options);
    for (int32_t n = 0; n < TEXTS; n++) {
        others[n] = call_new(n);
        others[n]->params.max_tokens = 60;
        call_submit(engine, others[n]);
        submit(engine, texts[n], XMOE_POOLING_MEAN, &together[n]);
    }
    for (int32_t n = 0; n < TEXTS; n++) {
        call_wait(others[n]);
        wait_for(&together[n]);
        assert_memory_equal(together[n].values, alone[n].values, sizeof alone[n].values);
        free(others[n]);
        free(texts[n]);
    }
    xmoe_engine_free(engine);
}

/* Nothing of the prefix cache is read, and nothing put there. */
static void test_beside_the_prefix_cache(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    call *c = call_new(2), *again = call_new(2);
    assert_true(c->params.prompt_length > 17);
    told_embedding before = embed(engine, c, XMOE_POOLING_MEAN);
    call_run(engine, c);
    assert_int_equal(c->summary.cached_tokens, 0);
    told_embedding after = embed(engine, again, XMOE_POOLING_MEAN);
    assert_memory_equal(before.values, after.values, sizeof before.values);
    free(c);
    free(again);
    xmoe_engine_free(engine);
}

static void expect_refused(xmoe_engine *engine, const xmoe_request_params *params)
{
    xmoe_error error = {0};
    uint64_t id;
    assert_int_equal(xmoe_request_submit(engine, params, &id, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "pooling");
}

static void test_refusals(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    call *c = call_new(2);
    c->params.pooling = XMOE_POOLING_LAST;
    expect_refused(engine, &c->params);
    c->params.max_tokens = 0;
    c->params.choices = 2;
    expect_refused(engine, &c->params);
    c->params.choices = 1;
    c->params.pooling = (xmoe_pooling)4;
    expect_refused(engine, &c->params);
    c->params.pooling = (xmoe_pooling)-1;
    expect_refused(engine, &c->params);
    free(c);
    xmoe_engine_free(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_poolings),
        cmocka_unit_test(test_same_in_any_company),
        cmocka_unit_test(test_beside_the_prefix_cache),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, engine_load_model, engine_free_model);
}
