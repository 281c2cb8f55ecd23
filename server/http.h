/*
 * http.h - the HTTP layer over libmicrohttpd: sockets, headers, bodies, answers, streams.
 */
#ifndef XM_SERVER_HTTP_H
#define XM_SERVER_HTTP_H

#include "exchange.h"

/* Listens as the settings say and starts the thread pool. */
bool xm_http_start(xm_server *server, char *message, size_t size);
/* Accepts no more connections. */
void xm_http_quiesce(xm_server *server);
/* Joins the threads and closes all connections. None may be suspended. */
void xm_http_stop(xm_server *server);

/* A whole error answer straight to a socket to which MHD is not writing, ignoring failure. */
void xm_http_send_raw(int fd, int status, const char *code, const char *message, const char *id);

#endif
