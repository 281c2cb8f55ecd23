/*
 * usage_fetch.h - a running server's counters, by HTTP.
 */
#ifndef XMOE_TOOLS_USAGE_FETCH_H
#define XMOE_TOOLS_USAGE_FETCH_H

#include "usage_file.h"

typedef struct {
    const char *url;      /* of the server, e.g. http://127.0.0.1:8080 */
    const char *snapshot; /* id of one that the server keeps; NULL: the counters of now */
    const char *api_key;  /* NULL: none */
    double timeout;       /* seconds, of one exchange */
} fetch_settings;

/* The counters of now are of one moment: the server is asked to save them under an id made up for
 * this, the snapshot is fetched and removed again. False after a message. */
bool usage_fetch(const fetch_settings *settings, usage_file *file);

#endif
