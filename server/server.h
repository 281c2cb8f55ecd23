/*
 * server.h - what all parts of the server share: settings, model, engine, counters, state.
 *
 * A server is made and ended by one thread (main, or a test); its other functions may be called
 * from any. HTTP answers from the moment of xm_server_start; the model is loaded after that, and
 * what stands above `loaded` may be read once that is true.
 */
#ifndef XM_SERVER_SERVER_H
#define XM_SERVER_SERVER_H

#include <pthread.h>
#include <stdatomic.h>

#include "settings.h"
#include "xmoe.h"

struct MHD_Daemon;
typedef struct xm_server xm_server;

typedef enum { XM_SERVER_LOADING, XM_SERVER_READY, XM_SERVER_DRAINING } xm_server_state;

#define XM_ROUTE_LIMIT 32 /* rows of the route table, unknown paths included */
#define XM_CODE_LIMIT  24 /* different HTTP statuses that are counted */

/* Of the requests answered, by prompt; see metrics_requests.c. */
typedef struct {
    xmoe_histogram params_n, params_max_tokens, longest_choice, inference_time;
} xm_request_figures;

struct xm_server {
    xmoe_model *model;
    xmoe_engine *engine;
    char model_id[160];
    char model_file[160];        /* base name of the file, another name for the model */
    int64_t model_loaded;        /* Unix time */
    char fingerprint[48];        /* system_fingerprint */
    struct xm_chat_format *chat; /* how the model wants to be talked to */
    struct xm_snapshots *snapshots;
    struct xm_grammar_cache *grammars;
    struct xm_keeper *keeper;
    struct xm_expert_trace *trace;        /* NULL: off */
    struct xm_trace_writer *trace_writer; /* NULL: no file */
    atomic_bool loaded;

    struct MHD_Daemon *daemon;
    int listener; /* the daemon's socket once it is quiesced, which its threads may still be looking
                     at: closed after them */
    struct xm_watch *watch;
    uint16_t port;
    uint32_t run_id; /* random, part of generated request ids */
    int64_t started; /* Unix time */

    atomic_int state; /* xm_server_state */
    atomic_uint_fast64_t request_serial;
    atomic_int exchanges; /* alive */
    atomic_int waiting;   /* of those, waiting for the engine or streaming */
    atomic_uint_fast64_t answers[XM_ROUTE_LIMIT][XM_CODE_LIMIT];

    pthread_mutex_t figures_lock;
    xm_request_figures figures; /* under figures_lock */

    pthread_mutex_t settings_lock;
    xm_settings *settings; /* under settings_lock */
};

/* Listens and answers; takes over the caller's reference to settings. NULL with a message. */
xm_server *xm_server_start(xm_settings *settings, char *message, size_t size);
/* Loads the model at path and starts the engine. progress may be NULL; it can stop the loading. */
bool xm_server_load(xm_server *server, const char *path, xmoe_progress_fn progress, char *message,
                    size_t size);
/* Refuses new generations; those that run go on. */
void xm_server_drain(xm_server *server);
/* True when no request waits for the engine. */
bool xm_server_idle(xm_server *server);
/* Cuts what still runs, stops listening, frees everything. */
void xm_server_free(xm_server *server);

/* The settings now in force; the caller releases them. */
xm_settings *xm_server_settings(xm_server *server);
/* Takes over from fresh what can change while serving. */
bool xm_server_reload(xm_server *server, const xm_settings *fresh, char *message, size_t size);

/* Counts an answered request for /metrics. route: index in the table. */
void xm_server_count(xm_server *server, size_t route, int status);
/* The statuses that have a counter, ascending; the last stands for all others. */
extern const int xm_counted_codes[XM_CODE_LIMIT];

#endif
