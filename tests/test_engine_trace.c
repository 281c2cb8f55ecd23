/*
 * test_engine_trace.c - the trace of every choice of experts: equal to the counters and to each
 * request's routed experts, whole steps at a time, safe to set while the engine works; and counters
 * of all phases, whole while they are restored.
 */
#include "engine_fixture.h"

#include "serve/trace.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { STEP_TOKENS = 24 };
static const int32_t layer_numbers[MOE_LAYERS] = {1, 3};

/* What a listener was told, counted as xmoe.h says that the counters do. Indexed by xmoe_phase.
 * Nothing guards it: the engine promises that it is called on one thread, and no more after
 * xmoe_engine_set_trace. */
typedef struct {
    uint64_t calls, rows;
    uint64_t steps[XMOE_PHASES][MOE_LAYERS], distinct[XMOE_PHASES][MOE_LAYERS];
    uint64_t histogram[XMOE_PHASES][MOE_LAYERS][EXPERTS + 1];
    uint64_t counts[XMOE_PHASES][MOE_LAYERS][EXPERTS];
    uint64_t weights[XMOE_PHASES][MOE_LAYERS][EXPERTS]; /* in 2^-28 */
} heard;

static int32_t moe_layer_of(int32_t layer)
{
    assert_true(layer == layer_numbers[0] || layer == layer_numbers[1]);
    return layer == layer_numbers[0] ? 0 : 1;
}

static void hear_phase(heard *h, int32_t layer, xmoe_phase phase, const xmoe_route *routes,
                       int32_t count)
{
    bool touched[EXPERTS] = {false}, used = false;
    for (int32_t r = 0; r < count; r++) {
        const xmoe_route *route = &routes[r];
        if (phase != XMOE_PHASE_ALL && phase != route->phase)
            continue;
        used = true;
        h->histogram[phase][layer][route->count]++;
        for (int32_t i = 0; i < route->count; i++) {
            uint16_t expert = route->experts[i];
            touched[expert] = true;
            h->counts[phase][layer][expert]++;
            h->weights[phase][layer][expert] += (uint64_t)(route->weights[i] * 0x1p28F + 0.5F);
        }
    }
    h->steps[phase][layer] += used;
    for (int32_t e = 0; e < EXPERTS; e++)
        h->distinct[phase][layer] += touched[e];
}

static void hear(void *context, int32_t layer, const xmoe_route *routes, int32_t count)
{
    heard *h = context;
    assert_in_range(count, 1, STEP_TOKENS);
    assert_int_equal(layer, layer_numbers[h->calls % MOE_LAYERS]); /* every layer of every step */
    h->calls++;
    h->rows += (uint64_t)count;
    for (xmoe_phase phase = XMOE_PHASE_ALL; phase <= XMOE_PHASE_DECODE; phase++)
        hear_phase(h, moe_layer_of(layer), phase, routes, count);
}

static void assert_heard(const heard *h, const xmoe_usage *usage)
{
    xmoe_phase phase = usage->phase;
    assert_int_equal(usage->layer_count, MOE_LAYERS);
    for (int32_t i = 0; i < MOE_LAYERS; i++) {
        const xmoe_layer_usage *l = &usage->layers[i];
        assert_int_equal(l->layer, layer_numbers[i]);
        assert_int_equal(l->steps, h->steps[phase][i]);
        assert_int_equal(l->distinct, h->distinct[phase][i]);
        assert_memory_equal(l->active_histogram, h->histogram[phase][i],
                            sizeof h->histogram[phase][i]);
        assert_memory_equal(l->counts, h->counts[phase][i], sizeof h->counts[phase][i]);
        for (int32_t e = 0; e < EXPERTS; e++)
            assert_true(l->weights[e] == (double)h->weights[phase][i][e] * 0x1p-28);
    }
}

static void assert_heard_all(const heard *h, xmoe_engine *engine)
{
    xmoe_usage *phases[XMOE_PHASES];
    assert_int_equal(xmoe_usage_get_phases(engine, phases, NULL), XMOE_OK);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++) {
        assert_heard(h, phases[phase]);
        xmoe_usage_free(phases[phase]);
    }
}

/* Memory for one sequence of full context, so that company leads to preemption. */
static xmoe_engine *crowded_engine(void)
{
    xmoe_engine_options options = engine_small_options();
    options.step_tokens = STEP_TOKENS;
    options.kv_bytes = 0;
    return engine_create(&options);
}

/* --- what it tells ---------------------------------------------------------------------------- */

static void the_trace_is_what_the_counters_count(void **state)
{
    (void)state;
    enum { CALLS = 16 };
    xmoe_engine *engine = crowded_engine();
    heard h = {0};
    call *calls[CALLS];
    xmoe_engine_set_trace(engine, hear, &h);
    for (int32_t n = 0; n < CALLS; n++) {
        calls[n] = call_new(n);
        calls[n]->params.choices = 1 + n % 3;
        call_submit(engine, calls[n]);
    }
    for (int32_t n = 0; n < CALLS; n++)
        call_wait(calls[n]);
    xmoe_engine_set_trace(engine, NULL, NULL);
    assert_true(engine_stats(engine).preemptions > 0); /* positions were computed again */
    assert_true(h.steps[XMOE_PHASE_PREFILL][0] > 0 && h.steps[XMOE_PHASE_DECODE][0] > 0);
    assert_heard_all(&h, engine);

    heard before = h; /* not set, it is told of nothing */
    call *last = call_new(0);
    call_run(engine, last);
    free(last);
    assert_memory_equal(&h, &before, sizeof h);
    for (int32_t n = 0; n < CALLS; n++)
        free(calls[n]);
    xmoe_engine_free(engine);
}

/* What each position of a call took, by choice. */
typedef struct {
    const call *of;
    xmoe_route routes[MAX_CHOICES][CONTEXT][MOE_LAYERS];
    uint16_t experts[MAX_CHOICES][CONTEXT][MOE_LAYERS][EXPERTS];
    float weights[MAX_CHOICES][CONTEXT][MOE_LAYERS][EXPERTS];
} kept_routes;

static void keep(void *context, int32_t layer, const xmoe_route *routes, int32_t count)
{
    kept_routes *kept = context;
    int32_t moe_layer = moe_layer_of(layer);
    for (int32_t r = 0; r < count; r++) {
        const xmoe_route *route = &routes[r];
        if (route->context != kept->of)
            continue;
        assert_in_range(route->choice, 0, MAX_CHOICES - 1);
        assert_in_range(route->position, 0, CONTEXT - 1);
        kept->routes[route->choice][route->position][moe_layer] = *route;
        size_t n = (size_t)route->count;
        memcpy(kept->experts[route->choice][route->position][moe_layer], route->experts,
               n * sizeof(uint16_t));
        memcpy(kept->weights[route->choice][route->position][moe_layer], route->weights,
               n * sizeof(float));
    }
}

static void assert_kept_choice(const kept_routes *kept, int32_t choice)
{
    const call *c = kept->of;
    const told_choice *told = &c->choices[choice];
    int32_t prompt = (int32_t)c->params.prompt_length, pair = 0;
    for (int32_t i = 0; i < told->routed_positions; i++)
        for (int32_t layer = 0; layer < MOE_LAYERS; layer++) {
            int32_t position = choice == 0 ? i : prompt + i;
            int32_t count = told->routed_counts[i * MOE_LAYERS + layer];
            const xmoe_route *route = &kept->routes[choice][position][layer];
            assert_int_equal(route->request, c->id);
            assert_int_equal(route->phase,
                             position < prompt ? XMOE_PHASE_PREFILL : XMOE_PHASE_DECODE);
            assert_int_equal(route->count, count);
            assert_memory_equal(kept->experts[choice][position][layer], told->routed_experts + pair,
                                (size_t)count * sizeof(uint16_t));
            assert_memory_equal(kept->weights[choice][position][layer], told->routed_weights + pair,
                                (size_t)count * sizeof(float));
            pair += count;
        }
    assert_int_equal(pair, told->routed_pairs);
}

static void each_position_is_told_as_its_request_is(void **state)
{
    (void)state;
    enum { COMPANY = 5 };
    xmoe_engine *engine = crowded_engine();
    kept_routes *kept = calloc(1, sizeof *kept);
    call *c = call_new(7), *company[COMPANY];
    c->params.choices = 3;
    c->params.cache_prompt = false;
    kept->of = c;
    xmoe_engine_set_trace(engine, keep, kept);
    call_submit(engine, c);
    for (int32_t n = 0; n < COMPANY; n++)
        call_submit(engine, company[n] = call_new(n));
    for (int32_t n = 0; n < COMPANY; n++) {
        call_wait(company[n]);
        free(company[n]);
    }
    call_wait(c);
    xmoe_engine_set_trace(engine, NULL, NULL);
    for (int32_t choice = 0; choice < 3; choice++)
        assert_kept_choice(kept, choice);
    assert_true(c->choices[0].routed_positions > (int32_t)c->params.prompt_length);
    free(kept);
    free(c);
    xmoe_engine_free(engine);
}

/* --- when it is set --------------------------------------------------------------------------- */

static void assert_whole_steps(const heard *h)
{
    assert_int_equal(h->calls % MOE_LAYERS, 0);
    assert_int_equal(h->rows % MOE_LAYERS, 0);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        assert_int_equal(h->steps[phase][0], h->steps[phase][1]);
}

static bool all_ended(call *const *calls, int32_t count)
{
    bool ended = true;
    pthread_mutex_lock(&call_mutex);
    for (int32_t n = 0; n < count; n++)
        ended &= calls[n]->ends > 0;
    pthread_mutex_unlock(&call_mutex);
    return ended;
}

/* Listeners take turns while the engine works: what one was told may be read and cleared as soon as
 * it is no more set. What all were told together is what was counted. */
static void listeners_take_turns_at_work(void **state)
{
    (void)state;
    enum { COMPANY = 5, LISTENERS = 3, TURNS = 30 };
    xmoe_engine *engine = crowded_engine();
    heard listeners[LISTENERS] = {0}, *set = &listeners[0];
    uint64_t calls = 0, rows = 0;
    int32_t turns_at_work = 0;
    xmoe_engine_set_trace(engine, hear, set);
    while (turns_at_work < TURNS) {
        call *company[COMPANY];
        for (int32_t n = 0; n < COMPANY; n++)
            call_submit(engine, company[n] = call_new(n));
        while (!all_ended(company, COMPANY)) {
            heard *before = set;
            set = &listeners[(set - listeners + 1) % LISTENERS];
            xmoe_engine_set_trace(engine, hear, set);
            assert_whole_steps(before);
            turns_at_work += before->calls > 0;
            calls += before->calls;
            rows += before->rows;
            *before = (heard){0};
        }
        for (int32_t n = 0; n < COMPANY; n++)
            free(company[n]);
    }
    xmoe_engine_set_trace(engine, NULL, NULL);
    xmoe_usage *usage;
    assert_int_equal(xmoe_usage_get(engine, -1, XMOE_PHASE_ALL, 0, &usage, NULL), XMOE_OK);
    assert_int_equal(calls + set->calls, MOE_LAYERS * usage->layers[0].steps);
    assert_int_equal(rows + set->rows, MOE_LAYERS * usage->tokens);
    xmoe_usage_free(usage);
    xmoe_engine_free(engine);
}

/* A listener that takes turns with others at a lock of its own. */
typedef struct {
    pthread_mutex_t mutex;
    uint64_t rows;
} locked_count;

static void count_locked(void *context, int32_t layer, const xmoe_route *routes, int32_t count)
{
    (void)layer;
    (void)routes;
    locked_count *locked = context;
    pthread_mutex_lock(&locked->mutex);
    locked->rows += (uint64_t)count;
    pthread_mutex_unlock(&locked->mutex);
}

typedef struct {
    xmoe_engine *engine;
    locked_count locked;
    atomic_bool done;
} setter_context;

static void *set_and_clear(void *argument)
{
    setter_context *s = argument;
    for (uint64_t n = 0; !atomic_load(&s->done); n++) {
        xmoe_engine_set_trace(s->engine, n % 3 == 0 ? NULL : count_locked, &s->locked);
        pthread_mutex_lock(&s->locked.mutex);
        s->locked.rows++;
        pthread_mutex_unlock(&s->locked.mutex);
    }
    return NULL;
}

static void many_threads_may_set_it(void **state)
{
    (void)state;
    enum { THREADS = 3 };
    setter_context s = {.engine = crowded_engine(), .locked = {PTHREAD_MUTEX_INITIALIZER, 0}};
    pthread_t threads[THREADS];
    for (int32_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, set_and_clear, &s), 0);
    for (int32_t n = 0; n < 6; n++) {
        call *c = call_new(n);
        call_run(s.engine, c);
        assert_int_equal(c->finish, XMOE_FINISH_LENGTH);
        free(c);
    }
    atomic_store(&s.done, true);
    for (int32_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    xmoe_engine_set_trace(s.engine, count_locked, &s.locked);
    xmoe_engine_free(s.engine); /* with one set */
}

static void note_call(void *context, int32_t layer, const xmoe_route *routes, int32_t count)
{
    (void)layer;
    (void)routes;
    (void)count;
    *(bool *)context = true;
}

typedef struct {
    xm_trace *trace;
    bool called;
} late_setter;

static void *set_late(void *argument)
{
    late_setter *setter = argument;
    xm_trace_set(setter->trace, note_call, &setter->called);
    return NULL;
}

/* One step follows the other without a pause: who waits for the end of one need not wait for the
 * next. */
static void setting_waits_for_one_step_only(void **state)
{
    (void)state;
    late_setter setter = {0};
    assert_int_equal(xm_trace_create(&setter.trace, NULL), XMOE_OK);
    assert_false(xm_trace_begin_step(setter.trace));
    for (int32_t round = 0; round < 20; round++) {
        bool first_called = false;
        setter.called = false;
        xm_trace_set(setter.trace, note_call, &first_called);
        assert_true(xm_trace_begin_step(setter.trace));
        xm_trace_routes(setter.trace, 0, NULL, 0);
        assert_true(first_called);
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, set_late, &setter), 0);
        while (!setter.called) {
            usleep(1000); /* it comes to wait */
            xm_trace_end_step(setter.trace);
            xm_trace_begin_step(setter.trace);
            xm_trace_routes(setter.trace, 0, NULL, 0);
        }
        pthread_join(thread, NULL); /* while a step runs */
        xm_trace_end_step(setter.trace);
    }
    xm_trace_free(setter.trace);
}

/* --- a request's own ----------------------------------------------------------------------------
 */

typedef struct {
    bool ended, same;
} own_usage;

/* Each position is a step of its own, and the numbers make the same usage again. */
static bool is_own_usage(const xmoe_usage *usage)
{
    xmoe_usage *made;
    if (xmoe_usage_create(usage->phase, usage->since, usage->layers, usage->layer_count, &made,
                          NULL) != XMOE_OK)
        return false;
    bool good = usage->tokens > 0;
    for (int32_t i = 0; i < usage->layer_count; i++) {
        const xmoe_layer_usage *l = &usage->layers[i], *m = &made->layers[i];
        good &= l->steps == l->tokens && l->distinct == l->activations;
        good &= m->steps == l->steps && m->distinct == l->distinct;
        good &= m->tokens == l->tokens && m->activations == l->activations;
        good &= memcmp(m->weights, l->weights, EXPERTS * sizeof(double)) == 0;
        good &= xmoe_usage_divergence(l, m) == 0;
    }
    xmoe_usage_free(made);
    return good;
}

static void keep_own(void *context, const xmoe_event *event)
{
    own_usage *own = context;
    if (event->kind != XMOE_EVENT_END)
        return;
    pthread_mutex_lock(&call_mutex);
    own->same = event->usage != NULL && is_own_usage(event->usage);
    own->ended = true;
    pthread_cond_broadcast(&call_changed);
    pthread_mutex_unlock(&call_mutex);
}

static void a_requests_own_usage_is_a_usage_too(void **state)
{
    (void)state;
    xmoe_engine *engine = crowded_engine();
    own_usage own = {0};
    call *c = call_new(2);
    c->params.choices = 2;
    c->params.on_event = keep_own;
    c->params.context = &own;
    call_submit(engine, c);
    pthread_mutex_lock(&call_mutex);
    while (!own.ended)
        pthread_cond_wait(&call_changed, &call_mutex);
    pthread_mutex_unlock(&call_mutex);
    assert_true(own.same);
    free(c);
    xmoe_engine_free(engine);
}

/* --- counters of all phases ------------------------------------------------------------------- */

typedef struct {
    xmoe_engine *engine;
    atomic_bool done;
    atomic_uint looks;
    uint64_t broken;
} phase_reader;

static void *read_phases(void *argument)
{
    phase_reader *reader = argument;
    for (; !atomic_load(&reader->done); atomic_fetch_add(&reader->looks, 1)) {
        xmoe_usage *p[XMOE_PHASES];
        if (xmoe_usage_get_phases(reader->engine, p, NULL) != XMOE_OK) {
            reader->broken++;
            continue;
        }
        for (int32_t i = 0; i < MOE_LAYERS; i++) {
            const xmoe_layer_usage *all = &p[XMOE_PHASE_ALL]->layers[i];
            const xmoe_layer_usage *prefill = &p[XMOE_PHASE_PREFILL]->layers[i];
            const xmoe_layer_usage *decode = &p[XMOE_PHASE_DECODE]->layers[i];
            reader->broken += all->tokens != prefill->tokens + decode->tokens;
            reader->broken += all->activations != prefill->activations + decode->activations;
            reader->broken += all->steps > prefill->steps + decode->steps;
            reader->broken += all->tokens != p[XMOE_PHASE_ALL]->tokens; /* of the first layer */
        }
        for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
            xmoe_usage_free(p[phase]);
    }
    return NULL;
}

static void phases_stay_whole_while_restored(void **state)
{
    (void)state;
    enum { LOOKS = 50 };
    phase_reader reader = {.engine = crowded_engine()};
    xmoe_engine *old = crowded_engine();
    call *c = call_new(3);
    call_run(old, c);
    free(c);
    xmoe_usage *saved[XMOE_PHASES];
    assert_int_equal(xmoe_usage_get_phases(old, saved, NULL), XMOE_OK);
    xmoe_engine_free(old);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, read_phases, &reader), 0);
    heard h = {0};
    xmoe_engine_set_trace(reader.engine, hear, &h);
    int32_t rounds = 0;
    for (; rounds < 3 || atomic_load(&reader.looks) < LOOKS; rounds++) {
        c = call_new(rounds % 8);
        call_submit(reader.engine, c);
        const xmoe_usage *given[XMOE_PHASES] = {saved[0], saved[1], saved[2]};
        assert_int_equal(xmoe_usage_restore(reader.engine, given, NULL), XMOE_OK);
        call_wait(c);
        free(c);
    }
    xmoe_engine_set_trace(reader.engine, NULL, NULL);
    atomic_store(&reader.done, true);
    pthread_join(thread, NULL);
    assert_int_equal(reader.broken, 0);
    xmoe_usage *all;
    assert_int_equal(xmoe_usage_get(reader.engine, -1, XMOE_PHASE_ALL, 0, &all, NULL), XMOE_OK);
    assert_int_equal(MOE_LAYERS * all->tokens,
                     h.rows + MOE_LAYERS * (uint64_t)rounds * saved[XMOE_PHASE_ALL]->tokens);
    xmoe_usage_free(all);
    for (int32_t phase = 0; phase < XMOE_PHASES; phase++)
        xmoe_usage_free(saved[phase]);
    xmoe_engine_free(reader.engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_trace_is_what_the_counters_count),
        cmocka_unit_test(each_position_is_told_as_its_request_is),
        cmocka_unit_test(listeners_take_turns_at_work),
        cmocka_unit_test(many_threads_may_set_it),
        cmocka_unit_test(setting_waits_for_one_step_only),
        cmocka_unit_test(a_requests_own_usage_is_a_usage_too),
        cmocka_unit_test(phases_stay_whole_while_restored),
    };
    return cmocka_run_group_tests(tests, engine_load_model, engine_free_model);
}
