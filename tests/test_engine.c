/*
 * test_engine.c - the engine end to end over a tiny random model: text and stop strings,
 * cancellation, exact usage under load, refusals, routing, shutdown.
 */
#include "engine_fixture.h"
#include "usage_identities.h"

#include "base/memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- text ------------------------------------------------------------------------------------- */

static void greedy_ascii(call *c)
{
    static xmoe_logit_bias bans[VOCABULARY]; /* all but printable ASCII */
    size_t count = 0;
    for (int32_t t = 0; t < VOCABULARY; t++) {
        size_t length;
        const char *bytes = xmoe_token_bytes(engine_model, t, &length);
        if (length == 0 || bytes[0] < ' ' || bytes[0] > '~')
            bans[count++] = (xmoe_logit_bias){t, -100};
    }
    c->params.sampling.logit_bias = bans;
    c->params.sampling.logit_bias_count = count;
    c->params.sampling.temperature = 1;
    c->params.max_tokens = 24;
}

static void a_stop_string_is_found_over_token_boundaries(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    for (int32_t n = 1; n < 6; n++) {
        call *whole = call_new(n);
        greedy_ascii(whole);
        call_run(engine, whole);
        const told_choice *w = &whole->choices[0];
        assert_int_equal(w->finish, XMOE_FINISH_LENGTH);
        assert_true(w->text_length >= 20);
        for (size_t at = 3; at < 12; at += 2)
            for (size_t length = 1; length < 7; length++) {
                char stop[8] = {0};
                memcpy(stop, w->text + at, length);
                const char *stops[] = {"never to be seen in it", stop};
                call *c = call_new(n);
                greedy_ascii(c);
                c->params.stop = stops;
                c->params.stop_count = 2;
                call_run(engine, c);
                const told_choice *told = &c->choices[0];
                size_t first = (size_t)(strstr(w->text, stop) - w->text);
                assert_int_equal(told->finish, XMOE_FINISH_STOP);
                assert_int_equal(told->text_length, first);
                assert_memory_equal(told->text, w->text, first);
                free(c);
            }
        free(whole);
    }
    xmoe_engine_free(engine);
}

/* A beginning of a stop string at the end of the output is text after all. */
static void held_back_text_is_released_at_the_end(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    call *whole = call_new(2), *c = call_new(2);
    greedy_ascii(whole);
    greedy_ascii(c);
    call_run(engine, whole);
    char stop[8] = {0};
    memcpy(stop, whole->choices[0].text + whole->choices[0].text_length - 3, 3);
    strcat(stop, "\n\n");
    const char *stops[] = {stop};
    c->params.stop = stops;
    c->params.stop_count = 1;
    call_run(engine, c);
    call_assert_same_choice(&whole->choices[0], &c->choices[0]);
    free(whole);
    free(c);
    xmoe_engine_free(engine);
}

static void the_end_of_text_token_stops_without_its_text(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    xmoe_logit_bias bias = {256, 50}; /* <|endoftext|> */
    for (int32_t ignore = 0; ignore < 2; ignore++) {
        call *c = call_new(1);
        c->params.sampling.logit_bias = &bias;
        c->params.sampling.logit_bias_count = 1;
        c->params.ignore_eos = ignore;
        call_run(engine, c);
        assert_int_equal(c->finish, ignore ? XMOE_FINISH_LENGTH : XMOE_FINISH_STOP);
        assert_int_equal(c->choices[0].count, ignore ? c->params.max_tokens : 1);
        assert_int_equal(c->choices[0].tokens[0], 256);
        assert_int_equal(c->choices[0].text_length, 0);
        free(c);
    }
    xmoe_engine_free(engine);
}

/* --- cancellation ----------------------------------------------------------------------------- */

static void a_cancelled_request_gives_everything_back(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    call *c = call_new(1);
    c->params.max_tokens = CONTEXT;
    c->params.choices = 3;
    c->cancel_at_token = engine; /* from inside its callback */
    call_run(engine, c);
    assert_int_equal(c->finish, XMOE_FINISH_CANCELLED);
    assert_true(c->choices[0].count <= 1);
    for (int32_t i = 0; i < 3; i++)
        assert_int_equal(c->choices[i].finish, XMOE_FINISH_CANCELLED);
    xmoe_engine_stats stats = engine_stats(engine); /* END comes after the figures */
    assert_int_equal(stats.kv_blocks_used, 0);
    assert_int_equal(stats.requests_cancelled, 1);
    xmoe_request_cancel(engine, c->id); /* ended and unknown ids are ignored */
    xmoe_request_cancel(engine, 987654321);
    free(c);
    xmoe_engine_free(engine);
}

/* --- usage under load ------------------------------------------------------------------------- */

static xmoe_usage *usage_of(xmoe_engine *engine, xmoe_phase phase)
{
    xmoe_usage *usage;
    assert_int_equal(xmoe_usage_get(engine, -1, phase, 0, &usage, NULL), XMOE_OK);
    usage_assert_identities(usage);
    return usage;
}

/* Without preemption, the engine's usage is the sum of its requests' own, cancelled ones too. */
static void usage_is_exact_under_load_with_cancellations(void **state)
{
    (void)state;
    enum { CALLS = 64 };
    xmoe_engine_options options = engine_small_options();
    options.threads = 2;
    options.step_tokens = 48;
    options.max_sequences = 256; /* no choice has to wait and be computed again */
    options.kv_bytes = 64 << 20;
    xmoe_engine *engine = engine_create(&options);
    call *calls[CALLS];
    for (int32_t i = 0; i < CALLS; i++) {
        calls[i] = call_new(i % 40); /* some share their prompts */
        calls[i]->params.choices = 1 + i % 3;
        calls[i]->params.max_tokens = 40;
        call_submit(engine, calls[i]);
        if (i % 5 == 0) {
            call_wait_for_tokens(calls[i / 2], 3);
            xmoe_request_cancel(engine, calls[i / 2]->id);
        }
        xmoe_usage_free(usage_of(engine, (xmoe_phase)(i % 3)));
    }
    uint64_t counts[MOE_LAYERS][EXPERTS] = {0}, tokens = 0, cancelled = 0;
    double weights = 0;
    for (int32_t i = 0; i < CALLS; i++) {
        call_wait(calls[i]);
        cancelled += calls[i]->finish == XMOE_FINISH_CANCELLED;
        tokens += calls[i]->usage_tokens;
        for (int32_t l = 0; l < MOE_LAYERS; l++)
            for (int32_t e = 0; e < EXPERTS; e++) {
                counts[l][e] += calls[i]->usage_counts[l][e];
                weights += calls[i]->usage_weights[l][e];
            }
        free(calls[i]);
    }
    xmoe_engine_stats stats = engine_stats(engine);
    assert_int_equal(stats.preemptions, 0);
    assert_int_equal(stats.requests_cancelled, cancelled);
    assert_int_equal(stats.requests_length, CALLS - cancelled);
    assert_true(cancelled > 0);
    xmoe_usage *all = usage_of(engine, XMOE_PHASE_ALL);
    xmoe_usage *prefill = usage_of(engine, XMOE_PHASE_PREFILL);
    xmoe_usage *decode = usage_of(engine, XMOE_PHASE_DECODE);
    assert_int_equal(all->tokens, tokens);
    assert_int_equal(prefill->tokens + decode->tokens, tokens);
    for (int32_t l = 0; l < MOE_LAYERS; l++) {
        assert_memory_equal(all->layers[l].counts, counts[l], sizeof counts[l]);
        for (int32_t e = 0; e < EXPERTS; e++)
            weights -= all->layers[l].weights[e];
    }
    assert_true(fabs(weights) < 1e-9);
    xmoe_usage_free(all);
    xmoe_usage_free(prefill);
    xmoe_usage_free(decode);
    xmoe_engine_free(engine);
}

/* --- refusals --------------------------------------------------------------------------------- */

static void assert_refused(xmoe_engine *engine, const call *c, xmoe_status status,
                           const char *parameter)
{
    xmoe_error error = {0};
    uint64_t id;
    assert_int_equal(xmoe_request_submit(engine, &c->params, &id, &error), status);
    assert_int_equal(error.status, status);
    assert_string_equal(error.parameter, parameter);
    assert_true(error.message[0] != '\0');
}

#define REFUSED(field, value, status, parameter)                                                   \
    do {                                                                                           \
        call *refused = call_new(1);                                                               \
        refused->field = value;                                                                    \
        assert_refused(engine, refused, status, parameter);                                        \
        free(refused);                                                                             \
    } while (0)

static void wrong_parameters_are_named(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    const char *empty[] = {"a", ""};
    xmoe_logit_bias outside = {VOCABULARY, 1};
    REFUSED(params.prompt_length, 0, XMOE_ERROR_ARGUMENT, "prompt");
    REFUSED(prompt[0], VOCABULARY, XMOE_ERROR_ARGUMENT, "prompt");
    REFUSED(prompt[0], -1, XMOE_ERROR_ARGUMENT, "prompt");
    REFUSED(params.prompt_length, CONTEXT, XMOE_ERROR_TOO_LONG, "");
    REFUSED(params.max_tokens, -1, XMOE_ERROR_ARGUMENT, "max_tokens");
    REFUSED(params.choices, 0, XMOE_ERROR_ARGUMENT, "choices");
    REFUSED(params.choices, 129, XMOE_ERROR_ARGUMENT, "choices");
    REFUSED(params.sampling.temperature, -1, XMOE_ERROR_ARGUMENT, "temperature");
    REFUSED(params.sampling.temperature, NAN, XMOE_ERROR_ARGUMENT, "temperature");
    REFUSED(params.sampling.top_p, 0, XMOE_ERROR_ARGUMENT, "top_p");
    REFUSED(params.sampling.top_p, 1.5F, XMOE_ERROR_ARGUMENT, "top_p");
    REFUSED(params.sampling.top_k, -1, XMOE_ERROR_ARGUMENT, "top_k");
    REFUSED(params.sampling.min_p, 1, XMOE_ERROR_ARGUMENT, "min_p");
    REFUSED(params.sampling.presence_penalty, NAN, XMOE_ERROR_ARGUMENT, "presence_penalty");
    REFUSED(params.sampling.frequency_penalty, -2e6F, XMOE_ERROR_ARGUMENT, "frequency_penalty");
    REFUSED(params.sampling.repetition_penalty, 0, XMOE_ERROR_ARGUMENT, "repetition_penalty");
    REFUSED(params.top_logprobs, 21, XMOE_ERROR_ARGUMENT, "top_logprobs");
    REFUSED(params.deadline_seconds, -1, XMOE_ERROR_ARGUMENT, "deadline_seconds");
    REFUSED(params.on_event, NULL, XMOE_ERROR_ARGUMENT, "on_event");
    REFUSED(routing.layers[1].threshold, 2, XMOE_ERROR_ARGUMENT, "threshold");
    REFUSED(routing.layers[3].min_experts, 0, XMOE_ERROR_ARGUMENT, "min_experts");
    REFUSED(params.stop_count, 1, XMOE_ERROR_ARGUMENT, "stop"); /* of NULL */
    REFUSED(params.sampling.logit_bias_count, 1, XMOE_ERROR_ARGUMENT, "logit_bias");
    call *c = call_new(1);
    c->params.stop = empty;
    c->params.stop_count = 2;
    assert_refused(engine, c, XMOE_ERROR_ARGUMENT, "stop");
    c->params.stop_count = 17;
    assert_refused(engine, c, XMOE_ERROR_ARGUMENT, "stop");
    c->params.stop_count = 0;
    c->params.sampling.logit_bias = &outside;
    c->params.sampling.logit_bias_count = 1;
    assert_refused(engine, c, XMOE_ERROR_ARGUMENT, "logit_bias");
    free(c);
    assert_int_equal(engine_stats(engine).requests_submitted, 0);
    xmoe_engine_free(engine);
}

static void engine_options_are_checked(void **state)
{
    (void)state;
    xmoe_engine_options options = engine_small_options();
    xmoe_engine *engine;
    xmoe_error error;
    options.step_tokens = 0;
    assert_int_equal(xmoe_engine_create(engine_model, &options, &engine, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "step_tokens");
    assert_null(engine);
    options = engine_small_options();
    options.max_sequences = 0;
    assert_int_equal(xmoe_engine_create(engine_model, &options, &engine, &error),
                     XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "max_sequences");
}

static void open_gate(bool *gate)
{
    pthread_mutex_lock(&call_mutex);
    *gate = true;
    pthread_cond_broadcast(&call_changed);
    pthread_mutex_unlock(&call_mutex);
}

static void a_full_queue_and_a_draining_engine_refuse(void **state)
{
    (void)state;
    xmoe_engine_options options = engine_small_options();
    options.max_sequences = 1;
    options.queue_length = 3;
    xmoe_engine *engine = engine_create(&options);
    bool gate = false;
    call *calls[8], *more = call_new(9);
    for (int32_t i = 0; i < 8; i++)
        calls[i] = call_new(i);
    calls[0]->gate = &gate; /* holds the scheduler in its first event */
    call_submit(engine, calls[0]);
    int32_t queued = 0;
    xmoe_error error;
    while (queued < 7 && xmoe_request_submit(engine, &calls[queued + 1]->params,
                                             &calls[queued + 1]->id, &error) == XMOE_OK)
        queued++;
    assert_in_range(queued, 2, 6); /* 3 wait, and some were taken before the gate was reached */
    assert_int_equal(error.status, XMOE_ERROR_BUSY);
    xmoe_engine_drain(engine);
    assert_refused(engine, more, XMOE_ERROR_DRAINING, "");
    open_gate(&gate);
    for (int32_t i = 0; i <= queued; i++) { /* those submitted go on */
        call_wait(calls[i]);
        assert_int_equal(calls[i]->finish, XMOE_FINISH_LENGTH);
    }
    for (int32_t i = 0; i < 8; i++)
        free(calls[i]);
    free(more);
    xmoe_engine_free(engine);
}

static void freeing_ends_all_requests(void **state)
{
    (void)state;
    enum { CALLS = 20 };
    xmoe_engine_options options = engine_small_options();
    options.max_sequences = 4;
    options.step_tokens = 4;
    xmoe_engine *engine = engine_create(&options);
    call *calls[CALLS];
    for (int32_t i = 0; i < CALLS; i++) {
        calls[i] = call_new(i);
        calls[i]->params.max_tokens = CONTEXT;
        call_submit(engine, calls[i]);
    }
    xmoe_engine_free(engine);
    for (int32_t i = 0; i < CALLS; i++) {
        assert_int_equal(calls[i]->ends, 1);
        free(calls[i]);
    }
}

/* --- routing and slots ------------------------------------------------------------------------ */

static void the_default_routing_is_taken_at_submission(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    xmoe_routing routing;
    xmoe_engine_get_routing(engine, &routing);
    for (int32_t n = 1; n <= EXPERTS; n += 4) {
        for (int32_t i = 0; i < routing.layer_count; i++)
            routing.layers[i] =
                (xmoe_router){.type = XMOE_ROUTER_TOP_K, .top_k = n, .min_experts = 1};
        assert_int_equal(xmoe_engine_set_routing(engine, &routing, NULL), XMOE_OK);
        call *c = call_new(1);
        c->params.routing = NULL;
        call_run(engine, c);
        assert_true(c->summary.mean_active_experts == n);
        assert_int_equal(c->summary.cached_tokens, 0); /* another routing's prefix is not its own */
        xmoe_model_info info = *xmoe_model_get_info(engine_model);
        assert_true(c->summary.expert_bytes_per_token ==
                    (double)n * MOE_LAYERS * (double)info.expert_bytes);
        free(c);
    }
    routing.layers[1].top_k = 0;
    xmoe_error error;
    assert_int_equal(xmoe_engine_set_routing(engine, &routing, &error), XMOE_ERROR_ARGUMENT);
    assert_string_equal(error.parameter, "top_k");
    assert_ptr_equal(xmoe_engine_model(engine), engine_model);
    xmoe_engine_free(engine);
}

static void slots_and_figures_can_be_read_while_it_runs(void **state)
{
    (void)state;
    xmoe_engine *engine = engine_create_small();
    call *c = call_new(1);
    bool gate = false;
    c->params.max_tokens = CONTEXT;
    call_submit(engine, c);
    call_wait_for_tokens(c, 2);
    pthread_mutex_lock(&call_mutex);
    c->gate = &gate; /* stop it between two tokens */
    pthread_mutex_unlock(&call_mutex);
    xmoe_slot slots[4];
    int32_t count = xmoe_engine_get_slots(engine, slots, 4);
    xmoe_engine_stats stats = engine_stats(engine);
    if (c->ends == 0 && count == 1) {
        assert_int_equal(slots[0].request, c->id);
        assert_int_equal(slots[0].prompt_tokens, c->params.prompt_length);
        assert_true(stats.sequences_running <= 1 && stats.steps > 0);
    }
    assert_int_equal(xmoe_engine_get_slots(engine, slots, 0), 0);
    open_gate(&gate);
    call_wait(c);
    free(c);
    xmoe_engine_free(engine);
}

static void a_model_without_experts_serves_too(void **state)
{
    (void)state;
    xmoe_model *with_experts = engine_model;
    assert_int_equal(engine_write_and_load(0), 0);
    xmoe_engine *engine = engine_create_small();
    call *c = call_new(1);
    call_run(engine, c);
    assert_int_equal(c->finish, XMOE_FINISH_LENGTH);
    assert_true(c->summary.mean_active_experts == 0);
    assert_int_equal(c->choices[0].routed_pairs, 0);
    xmoe_usage *usage = usage_of(engine, XMOE_PHASE_ALL);
    assert_int_equal(usage->layer_count, 0);
    assert_int_equal(usage->tokens, 0);
    xmoe_usage_free(usage);
    free(c);
    xmoe_engine_free(engine);
    xmoe_model_free(engine_model);
    engine_model = with_experts;
}

/* --- creation --------------------------------------------------------------------------------- */

static void failed_allocations_at_creation_leave_nothing(void **state)
{
    (void)state;
    xmoe_engine_options options = engine_small_options();
    options.kv_bytes = 0;
    xmoe_engine *engine = NULL;
    int64_t n = 0;
    for (;; n++) {
        xmoe_error error;
        xm_memory_fail_after(n);
        xmoe_status status = xmoe_engine_create(engine_model, &options, &engine, &error);
        xm_memory_fail_after(-1);
        if (status == XMOE_OK)
            break;
        assert_int_equal(status, XMOE_ERROR_MEMORY);
        assert_null(engine);
    }
    assert_true(n > 15);
    xmoe_engine_free(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stop_string_is_found_over_token_boundaries),
        cmocka_unit_test(held_back_text_is_released_at_the_end),
        cmocka_unit_test(the_end_of_text_token_stops_without_its_text),
        cmocka_unit_test(a_cancelled_request_gives_everything_back),
        cmocka_unit_test(usage_is_exact_under_load_with_cancellations),
        cmocka_unit_test(wrong_parameters_are_named),
        cmocka_unit_test(engine_options_are_checked),
        cmocka_unit_test(a_full_queue_and_a_draining_engine_refuse),
        cmocka_unit_test(freeing_ends_all_requests),
        cmocka_unit_test(the_default_routing_is_taken_at_submission),
        cmocka_unit_test(slots_and_figures_can_be_read_while_it_runs),
        cmocka_unit_test(a_model_without_experts_serves_too),
        cmocka_unit_test(failed_allocations_at_creation_leave_nothing),
    };
    return cmocka_run_group_tests(tests, engine_load_model, engine_free_model);
}
