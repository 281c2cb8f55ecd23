/*
 * openapi.h - the description of the HTTP API that this program serves.
 */
#ifndef XM_SERVER_OPENAPI_H
#define XM_SERVER_OPENAPI_H

#include <stddef.h>

/* OpenAPI 3.1 as JSON; static storage. */
const char *xm_openapi_text(size_t *length);

#endif
