/*
 * route.h - which path has which handler, and what is checked before a handler sees a request.
 */
#ifndef XM_SERVER_ROUTE_H
#define XM_SERVER_ROUTE_H

#include "exchange.h"

enum {
    XM_ROUTE_PUBLIC = 1,    /* needs no API key */
    XM_ROUTE_MODEL = 2,     /* needs a loaded model */
    XM_ROUTE_GENERATES = 4, /* refused while draining */
    XM_ROUTE_JSON = 8       /* has a JSON body */
};

struct xm_route {
    const char *method; /* "GET" stands for HEAD too */
    const char *path;   /* one that ends in a slash (but "/") takes everything below it */
    void (*handler)(xm_exchange *exchange);
    int flags;
};

extern const xm_route xm_route_table[];
extern const size_t xm_route_count;

/* Sets exchange->route, or exchange->early where the request is refused, or replies (OPTIONS). */
void xm_route_find(xm_exchange *exchange, const char *url);
/* The row's index; xm_route_count for NULL. */
size_t xm_route_index(const xm_route *route);

/* True if key is one of the settings' keys; takes equally long whichever it is. */
bool xm_key_matches(const xm_settings *settings, const char *key);

#endif
