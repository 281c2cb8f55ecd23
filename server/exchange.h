/*
 * exchange.h - one HTTP request and its answer.
 *
 * Life: made when the request line has arrived, handled once its body is complete, completed when
 * the answer is sent or the connection is lost. A handler (api_*.c) does one of three things before
 * it returns, none of which blocks:
 *
 *   xm_exchange_reply(...)    the answer is known
 *   xm_exchange_wait(...)     the answer comes later: kind->finish is called after each wake until
 *                             it has replied
 *   xm_exchange_stream(...)   the answer is a stream: kind->fill is called whenever the client can
 *                             take more and something may be there
 *
 * Threads and ownership: an exchange is counted. The HTTP layer holds one reference until the
 * request is completed; each request inside the engine holds one until its XMOE_EVENT_END; the
 * watcher holds one while it looks. The last to let go frees it. Everything is touched by the
 * connection's HTTP thread alone, except what stands below `lock`, which is under it.
 * xm_exchange_wake and xm_exchange_gone may be called from any thread, the scheduler's included, by
 * whoever holds a reference and no lock of an exchange or of the watcher.
 */
#ifndef XM_SERVER_EXCHANGE_H
#define XM_SERVER_EXCHANGE_H

#include <pthread.h>
#include <stdatomic.h>

#include "problem.h"
#include "settings.h"
#include "text.h"

struct MHD_Connection;
typedef struct xm_server xm_server;
typedef struct xm_exchange xm_exchange;
typedef struct xm_route xm_route;

typedef enum {
    XM_FILL_WAIT, /* nothing more for now; a wake will come */
    XM_FILL_END,  /* what was added is the last */
    XM_FILL_ABORT /* close the connection without a proper end */
} xm_fill;

/* What a handler that does not reply at once leaves behind. */
typedef struct {
    void (*finish)(xm_exchange *exchange);                /* HTTP thread; of xm_exchange_wait */
    xm_fill (*fill)(xm_exchange *exchange, xm_text *out); /* HTTP thread; of xm_exchange_stream */
    void (*gone)(xm_exchange *exchange); /* nobody wants the answer: stop work. Any thread, perhaps
                                            more than once; may be NULL */
    void (*release)(void *context);      /* with the last reference; may be NULL */
} xm_exchange_kind;

typedef enum {
    XM_PHASE_RECEIVING, /* headers or body are still coming in */
    XM_PHASE_TIMED_OUT, /* too slowly: the watcher has answered 408 and closes */
    XM_PHASE_HANDLING,
    XM_PHASE_WAITING,
    XM_PHASE_STREAMING,
    XM_PHASE_ANSWERED
} xm_exchange_phase;

#define XM_REQUEST_ID_LENGTH 64
#define XM_EXTRA_HEADERS     6
#define XM_HEADER_LENGTH     288

struct xm_exchange {
    xm_server *server;
    xm_settings *settings; /* those of the request's begin; one reference */
    struct MHD_Connection *connection;
    const xm_route *route;      /* NULL: no such path */
    char method[16], path[256]; /* cut to fit: for logs */
    char id[XM_REQUEST_ID_LENGTH + 1];
    char *argument; /* what follows the route's prefix, for routes that end in a slash */
    xm_text body;
    bool begun, discard; /* headers were seen; the body is read and thrown away */
    xm_problem early;    /* found before the body was read; answered after it */
    int64_t began_ns;    /* monotonic */

    bool replied;
    int status;
    const char *content_type; /* static storage */
    xm_text answer;
    struct {
        const char *name; /* static storage */
        char value[XM_HEADER_LENGTH];
    } headers[XM_EXTRA_HEADERS];
    int header_count;

    xm_text out; /* of a stream: made but not yet handed over, from out_at */
    size_t out_at;
    bool stream_ended;
    uint64_t bytes; /* of body handed over */
    bool generated; /* the two below are known: for the log */
    uint64_t prompt_tokens, completion_tokens;

    atomic_int references;

    pthread_mutex_t lock;
    xm_exchange_phase phase;
    const xm_exchange_kind *kind; /* set once */
    void *context;
    bool pending;        /* woken since it last looked */
    bool suspended;      /* MHD waits for xm_exchange_wake */
    bool gone;           /* the client is, or was cut off */
    bool ping;           /* a stream should send a comment */
    int64_t progress_ns; /* when a stream last asked for bytes */
    int64_t wake_at_ns;  /* the watcher wakes it then; 0: not */
};

xm_exchange *xm_exchange_create(xm_server *server, struct MHD_Connection *connection);
void xm_exchange_hold(xm_exchange *exchange);
void xm_exchange_release(xm_exchange *exchange);

/* Takes *answer's memory and leaves it empty. content_type is static storage. */
void xm_exchange_reply(xm_exchange *exchange, int status, const char *content_type,
                       xm_text *answer);
void xm_exchange_reply_json(xm_exchange *exchange, xm_text *answer); /* 200 */
void xm_exchange_reply_problem(xm_exchange *exchange, const xm_problem *problem);
/* One more header of the answer; name is static storage, value is copied. */
void xm_exchange_header(xm_exchange *exchange, const char *name, const char *value);

void xm_exchange_wait(xm_exchange *exchange, const xm_exchange_kind *kind, void *context);
/* An event stream, unless the handler has set content_type. */
void xm_exchange_stream(xm_exchange *exchange, const xm_exchange_kind *kind, void *context);
void xm_exchange_wake(xm_exchange *exchange);
void xm_exchange_gone(xm_exchange *exchange);
/* Asks the watcher for a wake at that monotonic time. */
void xm_exchange_wake_at(xm_exchange *exchange, int64_t when_ns);

/* A parameter of the query: its value, "" where it has none, NULL where it is absent. False with a
 * problem if it is given more than once. */
bool xm_exchange_query(const xm_exchange *exchange, const char *name, const char **value,
                       xm_problem *problem);
/* The same for a whole number in a range; *value stays where the parameter is absent. */
bool xm_exchange_query_number(const xm_exchange *exchange, const char *name, int64_t minimum,
                              int64_t maximum, int64_t *value, xm_problem *problem);

int64_t xm_now_ns(void); /* monotonic */

#endif
