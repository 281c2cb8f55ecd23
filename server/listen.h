/*
 * listen.h - the listening socket.
 */
#ifndef XM_SERVER_LISTEN_H
#define XM_SERVER_LISTEN_H

#include <stddef.h>
#include <stdint.h>

/* A listening, non-blocking TCP socket at host (name or address) and port; port 0 takes a free one.
 * *bound is the port it has. -1 with a message. */
int xm_listen(const char *host, uint16_t port, uint16_t *bound, char *message, size_t size);

#endif
