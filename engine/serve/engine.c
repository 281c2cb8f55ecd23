/*
 * engine.c - the engine behind the public header: owns the compute pool, the KV cache, the forward
 * pass, the scheduler and the thread "sched" that alone steps it.
 *
 * Shared state, all guarded by `mutex`:
 *   inbox, inbox_count    requests submitted but not yet seen by the scheduler
 *   live                  requests whose END event has not been sent (for cancel)
 *   wake_up, draining, stopping, next_id
 *   unstarted             requests in the scheduler that have not run yet
 *   routing               default for requests that bring none
 *   stats, slots          copies made at the end of each step
 * The mutex is held for copies and list work only, never while a step computes or a callback runs.
 * Expert usage and trace have their own (usage.c, trace.c).
 */
#include "base/memory.h"
#include "model/forward.h"
#include "model/importance_meter.h"
#include "model/model.h"
#include "serve/scheduler.h"
#include "serve/stats.h"

#include <pthread.h>
#include <string.h>
#include <sys/random.h>

struct xmoe_engine {
    const xmoe_model *model;
    xmoe_engine_options options;
    xm_clock clock;
    xm_pool *pool;
    xm_kv_cache *cache;
    xm_forward *forward;
    xm_importance_meter *importance; /* NULL unless measured */
    xm_usage *usage;
    xm_trace *trace;
    xm_scheduler *scheduler; /* the thread's alone, once it runs */
    pthread_t thread;

    pthread_mutex_t mutex;
    pthread_cond_t wake;
    xm_request *inbox, *inbox_last; /* by engine_next */
    xm_request *live;               /* by engine_next; requests in the inbox are not in it */
    int32_t inbox_count, unstarted;
    bool wake_up; /* a cancellation waits for the next step */
    bool draining, stopping;
    uint64_t next_id;
    xmoe_routing routing;
    xmoe_engine_stats stats;
    xmoe_slot *slots; /* [slot_capacity] */
    int32_t slot_count, slot_capacity;
};

void xmoe_engine_default_options(xmoe_engine_options *options)
{
    *options = (xmoe_engine_options){.max_sequences = 64,
                                     .step_tokens = 256,
                                     .queue_length = 256,
                                     .kv_bytes = UINT64_C(512) << 20,
                                     .prefix_cache = true,
                                     .usage_window_seconds = 3600,
                                     .usage_window_bytes = UINT64_C(64) << 20};
}

/* --- the scheduler's thread --- */

static const float *run_forward(void *context, const xm_segment *segments, int32_t segment_count,
                                xm_routed_fn routed, void *routed_context)
{
    xmoe_engine *engine = context;
    return xm_forward_step(engine->forward, segments, segment_count, routed, routed_context);
}

static void copy_block(void *context, int32_t from, int32_t to)
{
    xmoe_engine *engine = context;
    xm_kv_copy_block(engine->cache, from, to);
}

/* At the end of a step: what others may read. */
static void publish(void *context)
{
    xmoe_engine *engine = context;
    pthread_mutex_lock(&engine->mutex);
    xm_scheduler_stats(engine->scheduler, &engine->stats);
    engine->slot_count =
        xm_scheduler_slots(engine->scheduler, engine->slots, engine->slot_capacity);
    engine->unstarted = xm_scheduler_unstarted(engine->scheduler);
    pthread_mutex_unlock(&engine->mutex);
}

static void release(void *context, xm_request *request)
{
    xmoe_engine *engine = context;
    pthread_mutex_lock(&engine->mutex);
    if (request->engine_previous != NULL)
        request->engine_previous->engine_next = request->engine_next;
    else
        engine->live = request->engine_next;
    if (request->engine_next != NULL)
        request->engine_next->engine_previous = request->engine_previous;
    pthread_mutex_unlock(&engine->mutex);
    xm_request_free(request);
}

/* Moves the inbox to the scheduler. The caller holds the mutex, which submitting inside needs for
 * the links only. */
static void take_inbox(xmoe_engine *engine)
{
    while (engine->inbox != NULL) {
        xm_request *request = engine->inbox;
        engine->inbox = request->engine_next;
        request->engine_previous = NULL;
        request->engine_next = engine->live;
        if (engine->live != NULL)
            engine->live->engine_previous = request;
        engine->live = request;
        xm_scheduler_submit(engine->scheduler, request);
    }
    engine->inbox_last = NULL;
    engine->unstarted += engine->inbox_count;
    engine->stats.requests_waiting += engine->inbox_count;
    engine->stats.requests_submitted += (uint64_t)engine->inbox_count;
    engine->inbox_count = 0;
}

/* Waits for work, then lets the scheduler step; ends when the engine stops and all requests have
 * ended. */
static void *scheduler_main(void *context)
{
    xmoe_engine *engine = context;
    for (;;) {
        pthread_mutex_lock(&engine->mutex);
        while (engine->inbox == NULL && !engine->wake_up && !engine->stopping &&
               !xm_scheduler_has_work(engine->scheduler))
            pthread_cond_wait(&engine->wake, &engine->mutex);
        engine->wake_up = false;
        take_inbox(engine);
        bool stopping = engine->stopping;
        pthread_mutex_unlock(&engine->mutex);
        if (stopping)
            xm_scheduler_cancel_all(engine->scheduler);
        xm_scheduler_step(engine->scheduler);
        if (stopping && !xm_scheduler_has_work(engine->scheduler))
            return NULL;
    }
}

/* --- creation --- */

static xmoe_status check_options(const xmoe_engine_options *o, xmoe_error *error)
{
    if (o->threads < 0 || o->threads > 4096)
        return xm_fail_argument(error, "threads", "threads is %d, must be 0 (all CPUs) to 4096",
                                o->threads);
    if (o->max_sequences < 1 || o->max_sequences > 65536)
        return xm_fail_argument(error, "max_sequences", "max_sequences is %d, must be 1..65536",
                                o->max_sequences);
    if (o->step_tokens < 1 || o->step_tokens > 65536)
        return xm_fail_argument(error, "step_tokens", "step_tokens is %d, must be 1..65536",
                                o->step_tokens);
    if (o->queue_length < 1 || o->queue_length > 1000000)
        return xm_fail_argument(error, "queue_length", "queue_length is %d, must be 1..1000000",
                                o->queue_length);
    if (o->usage_window_seconds < 0 || o->usage_window_seconds > 3600)
        return xm_fail_argument(error, "usage_window_seconds",
                                "usage_window_seconds is %d, must be 0..3600",
                                o->usage_window_seconds);
    return XMOE_OK;
}

/* Blocks that kv_bytes pays for, but never less than one sequence of full context. */
static int32_t block_count(const xmoe_model *model, const xmoe_engine_options *options)
{
    uint64_t bytes = xm_kv_block_bytes(model, options->kv_f32);
    uint64_t count = options->kv_bytes / (bytes > 0 ? bytes : 1);
    uint64_t least = ((uint64_t)model->info.context_length + XM_KV_TOKENS - 1) / XM_KV_TOKENS;
    count = count < least ? least : count;
    return count < INT32_MAX / 2 ? (int32_t)count : INT32_MAX / 2;
}

static xmoe_status create_usage(xmoe_engine *engine, xmoe_error *error)
{
    const xmoe_model *model = engine->model;
    xm_usage_options options = {.layers = model->moe_layers,
                                .layer_count = model->info.moe_layer_count,
                                .experts = model->info.expert_count,
                                .window_seconds = engine->options.usage_window_seconds,
                                .window_bytes = engine->options.usage_window_bytes,
                                .clock = engine->clock};
    return xm_usage_create(&options, &engine->usage, error);
}

static xmoe_status create_scheduler(xmoe_engine *engine, int32_t blocks, xmoe_error *error)
{
    uint64_t secret = 0;
    if (getrandom(&secret, sizeof secret, 0) != (ssize_t)sizeof secret)
        return xm_fail(error, XMOE_ERROR_INTERNAL, "the system gives no random numbers");
    xm_scheduler_options options = {.model = engine->model,
                                    .pool = engine->pool,
                                    .backend = {run_forward, copy_block, engine},
                                    .usage = engine->usage,
                                    .trace = engine->trace,
                                    .clock = engine->clock,
                                    .block_count = blocks,
                                    .max_sequences = engine->options.max_sequences,
                                    .step_tokens = engine->options.step_tokens,
                                    .prefix_cache = engine->options.prefix_cache,
                                    .secret = secret,
                                    .publish = publish,
                                    .release = release,
                                    .context = engine};
    return xm_scheduler_create(&options, &engine->scheduler, error);
}

static xmoe_status create_parts(xmoe_engine *engine, xmoe_error *error)
{
    int32_t blocks = block_count(engine->model, &engine->options);
    engine->slot_capacity = engine->options.max_sequences + engine->options.queue_length;
    engine->slots = xm_calloc((size_t)engine->slot_capacity, sizeof *engine->slots);
    if (engine->slots == NULL)
        return xm_fail_memory(error, "slots", sizeof *engine->slots);
    xmoe_status status = xm_pool_create(engine->options.threads, &engine->pool, error);
    if (status == XMOE_OK)
        status = xm_kv_cache_create(engine->model, blocks, engine->options.kv_f32, &engine->cache,
                                    error);
    if (status == XMOE_OK)
        status = xm_forward_create(engine->model, engine->pool, engine->cache,
                                   engine->options.step_tokens, &engine->forward, error);
    if (status == XMOE_OK && engine->options.measure_importance)
        status = xm_importance_meter_create(engine->model, &engine->importance, error);
    if (status == XMOE_OK && engine->importance != NULL)
        xm_forward_observe(engine->forward, xm_importance_meter_observer(engine->importance));
    if (status == XMOE_OK)
        status = create_usage(engine, error);
    if (status == XMOE_OK)
        status = xm_trace_create(&engine->trace, error);
    if (status == XMOE_OK)
        status = create_scheduler(engine, blocks, error);
    return status;
}

static void destroy(xmoe_engine *engine)
{
    xm_scheduler_free(engine->scheduler);
    xm_trace_free(engine->trace);
    xm_usage_free(engine->usage);
    xm_forward_free(engine->forward);
    xm_importance_meter_free(engine->importance);
    xm_kv_cache_free(engine->cache);
    xm_pool_free(engine->pool);
    pthread_cond_destroy(&engine->wake);
    pthread_mutex_destroy(&engine->mutex);
    xm_free(engine->slots);
    xm_free(engine);
}

xmoe_status xmoe_engine_create(const xmoe_model *model, const xmoe_engine_options *options,
                               xmoe_engine **engine_out, xmoe_error *error)
{
    *engine_out = NULL;
    xmoe_engine_options chosen;
    xmoe_engine_default_options(&chosen);
    if (options != NULL)
        chosen = *options;
    xmoe_status status = check_options(&chosen, error);
    if (status != XMOE_OK)
        return status;
    xmoe_engine *engine = xm_calloc(1, sizeof *engine);
    if (engine == NULL)
        return xm_fail_memory(error, "engine", sizeof *engine);
    engine->model = model;
    engine->options = chosen;
    engine->clock = xm_clock_system();
    engine->next_id = 1;
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_cond_init(&engine->wake, NULL);
    xmoe_model_default_routing(model, &engine->routing);
    status = create_parts(engine, error);
    if (status != XMOE_OK) {
        destroy(engine);
        return status;
    }
    publish(engine);
    if (pthread_create(&engine->thread, NULL, scheduler_main, engine) != 0) {
        destroy(engine);
        return xm_fail(error, XMOE_ERROR_INTERNAL, "cannot start the scheduler's thread");
    }
    pthread_setname_np(engine->thread, "sched");
    *engine_out = engine;
    return XMOE_OK;
}

void xmoe_engine_drain(xmoe_engine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    engine->draining = true;
    pthread_mutex_unlock(&engine->mutex);
}

void xmoe_engine_free(xmoe_engine *engine)
{
    if (engine == NULL)
        return;
    pthread_mutex_lock(&engine->mutex);
    engine->draining = engine->stopping = true;
    pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->mutex);
    pthread_join(engine->thread, NULL);
    destroy(engine);
}

const xmoe_model *xmoe_engine_model(const xmoe_engine *engine)
{
    return engine->model;
}

/* --- routing --- */

void xmoe_engine_get_routing(xmoe_engine *engine, xmoe_routing *routing)
{
    pthread_mutex_lock(&engine->mutex);
    *routing = engine->routing;
    pthread_mutex_unlock(&engine->mutex);
}

xmoe_status xmoe_engine_set_routing(xmoe_engine *engine, const xmoe_routing *routing,
                                    xmoe_error *error)
{
    xmoe_status status = xmoe_routing_check(engine->model, routing, error);
    if (status != XMOE_OK)
        return status;
    pthread_mutex_lock(&engine->mutex);
    engine->routing = *routing;
    pthread_mutex_unlock(&engine->mutex);
    return XMOE_OK;
}

/* --- requests --- */

/* Appends to the inbox, if the engine takes requests; the caller holds the mutex. */
static xmoe_status enqueue(xmoe_engine *engine, xm_request *request, xmoe_error *error)
{
    if (engine->draining)
        return xm_fail(error, XMOE_ERROR_DRAINING,
                       "the engine is draining and takes no new requests");
    if (engine->inbox_count + engine->unstarted >= engine->options.queue_length)
        return xm_fail(error, XMOE_ERROR_BUSY, "the queue is full: %d requests are waiting",
                       engine->inbox_count + engine->unstarted);
    request->id = engine->next_id++;
    if (engine->inbox_last != NULL)
        engine->inbox_last->engine_next = request;
    else
        engine->inbox = request;
    engine->inbox_last = request;
    engine->inbox_count++;
    pthread_cond_signal(&engine->wake);
    return XMOE_OK;
}

xmoe_status xmoe_request_submit(xmoe_engine *engine, const xmoe_request_params *params,
                                uint64_t *id, xmoe_error *error)
{
    *id = 0;
    xmoe_routing routing;
    xmoe_engine_get_routing(engine, &routing);
    xm_request *request;
    xmoe_status status =
        xm_request_create(engine->model, params, &routing, &engine->clock, &request, error);
    if (status != XMOE_OK)
        return status;
    pthread_mutex_lock(&engine->mutex);
    status = enqueue(engine, request, error);
    if (status == XMOE_OK)
        *id = request->id; /* before the scheduler can see, end and free it */
    pthread_mutex_unlock(&engine->mutex);
    if (status != XMOE_OK)
        xm_request_free(request);
    return status;
}

void xmoe_request_cancel(xmoe_engine *engine, uint64_t id)
{
    pthread_mutex_lock(&engine->mutex);
    xm_request *lists[] = {engine->inbox, engine->live};
    for (int32_t i = 0; i < 2; i++)
        for (xm_request *request = lists[i]; request != NULL; request = request->engine_next)
            if (request->id == id) {
                atomic_store(&request->cancelled, true);
                engine->wake_up = true;
                pthread_cond_signal(&engine->wake);
            }
    pthread_mutex_unlock(&engine->mutex);
}

/* --- figures --- */

void xmoe_engine_get_stats(xmoe_engine *engine, xmoe_engine_stats *stats)
{
    pthread_mutex_lock(&engine->mutex);
    *stats = engine->stats;
    stats->requests_waiting += engine->inbox_count;
    stats->requests_submitted += (uint64_t)engine->inbox_count;
    pthread_mutex_unlock(&engine->mutex);
}

int32_t xmoe_engine_get_slots(xmoe_engine *engine, xmoe_slot *slots, int32_t capacity)
{
    pthread_mutex_lock(&engine->mutex);
    int32_t count = engine->slot_count < capacity ? engine->slot_count : capacity;
    if (count > 0)
        memcpy(slots, engine->slots, (size_t)count * sizeof *slots);
    pthread_mutex_unlock(&engine->mutex);
    return count < 0 ? 0 : count;
}

xmoe_status xmoe_usage_get(xmoe_engine *engine, int32_t layer, xmoe_phase phase,
                           int32_t window_seconds, xmoe_usage **usage, xmoe_error *error)
{
    return xm_usage_snapshot(engine->usage, layer, phase, window_seconds, usage, error);
}

xmoe_status xmoe_usage_get_phases(xmoe_engine *engine, xmoe_usage *phases[XMOE_PHASES],
                                  xmoe_error *error)
{
    return xm_usage_snapshot_phases(engine->usage, phases, error);
}

xmoe_status xmoe_usage_restore(xmoe_engine *engine, const xmoe_usage *const phases[XMOE_PHASES],
                               xmoe_error *error)
{
    return xm_usage_restore(engine->usage, phases, error);
}

xmoe_status xmoe_usage_reset(xmoe_engine *engine, xmoe_usage **usage, xmoe_error *error)
{
    return xm_usage_reset(engine->usage, usage, error);
}

void xmoe_engine_set_trace(xmoe_engine *engine, xmoe_route_fn on_routes, void *context)
{
    xm_trace_set(engine->trace, on_routes, context);
}

xmoe_status xmoe_engine_write_importance(xmoe_engine *engine, const char *path, const char *dataset,
                                         xmoe_error *error)
{
    if (engine->importance == NULL)
        return xm_fail_argument(error, "measure_importance",
                                "the engine was created without measure_importance");
    return xm_importance_meter_write(engine->importance, path, dataset, error);
}
