/*
 * watch.h - the thread that sees what libmicrohttpd does not: a client that hangs up while its
 * connection is suspended, a request that arrives too slowly, a reader that has stopped reading, a
 * stream that must say something soon.
 *
 * It owns the list of open connections. Its lock is taken before an exchange's lock, never after;
 * exchanges are woken or told that the client is gone without either.
 */
#ifndef XM_SERVER_WATCH_H
#define XM_SERVER_WATCH_H

#include "exchange.h"

typedef struct xm_watch xm_watch;
typedef struct xm_connection xm_connection;

/* Starts the thread; NULL with errno set. The caller frees, after the last connection closed. */
xm_watch *xm_watch_create(xm_server *server);
void xm_watch_free(xm_watch *watch);

/* A connection from accept to close; fd stays open in between. NULL without memory. */
xm_connection *xm_watch_open(xm_watch *watch, int fd);
void xm_watch_close(xm_watch *watch, xm_connection *connection);

/* A request on it, from its request line to its completion. */
void xm_watch_begin(xm_watch *watch, xm_connection *connection, xm_exchange *exchange);
void xm_watch_end(xm_watch *watch, xm_connection *connection);

/* Looks at all connections now instead of at the next tick. */
void xm_watch_kick(xm_watch *watch);
/* Cuts every connection that has a request under way (fds are shut down, not closed). */
void xm_watch_cut_all(xm_watch *watch);
/* Wakes every waiting request, so that it sees the server's new state. */
void xm_watch_wake_all(xm_watch *watch);

#endif
