/*
 * dashboard.h - the page at /: the experts of the running server, drawn in the browser.
 */
#ifndef XM_SERVER_DASHBOARD_H
#define XM_SERVER_DASHBOARD_H

#include "text.h"

/* The page, its style and script inside it, both marked with nonce (of letters and digits), the
 * only ones that the page's Content-Security-Policy lets run. */
void xm_dashboard_write(const char *nonce, xm_text *out);

#endif
