/*
 * dashboard.c - the files of server/dashboard/ as one self-contained page: nothing is fetched from
 * elsewhere, nothing is built. The assembler takes them as they are (paths are relative to the
 * project's root, where make runs), the scripts one after the other, in the order in which they use
 * each other.
 *
 * index.html has four kinds of places to fill, {{nonce}}, {{style}}, {{script}} and {{version}}.
 * The nonce is new in every answer: a script that found its way into the page in another manner has
 * none and does not run. What the page shows comes from the API, with the reader's own key.
 */
#include "dashboard.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "api.h"
#include "xmoe.h"

__asm__(".pushsection .rodata\n"
        ".global xm_dashboard_page, xm_dashboard_style, xm_dashboard_script, xm_dashboard_end\n"
        "xm_dashboard_page:\n"
        ".incbin \"server/dashboard/index.html\"\n"
        "xm_dashboard_style:\n"
        ".incbin \"server/dashboard/style.css\"\n"
        "xm_dashboard_script:\n"
        ".incbin \"server/dashboard/format.js\"\n"
        ".incbin \"server/dashboard/palette.js\"\n"
        ".incbin \"server/dashboard/api.js\"\n"
        ".incbin \"server/dashboard/heatmap.js\"\n"
        ".incbin \"server/dashboard/layers.js\"\n"
        ".incbin \"server/dashboard/view.js\"\n"
        ".incbin \"server/dashboard/metrics.js\"\n"
        ".incbin \"server/dashboard/tiles.js\"\n"
        ".incbin \"server/dashboard/playground.js\"\n"
        ".incbin \"server/dashboard/actions.js\"\n"
        ".incbin \"server/dashboard/start.js\"\n"
        "xm_dashboard_end:\n"
        ".byte 0\n"
        ".popsection\n");

extern const char xm_dashboard_page[] __attribute__((visibility("hidden")));
extern const char xm_dashboard_style[] __attribute__((visibility("hidden")));
extern const char xm_dashboard_script[] __attribute__((visibility("hidden")));
extern const char xm_dashboard_end[] __attribute__((visibility("hidden")));

/* What stands where the page has "{{...}}". */
typedef struct {
    const char *place;
    const char *text;
    size_t length;
} part;

static size_t span(const char *begin, const char *end)
{
    return (size_t)((uintptr_t)end - (uintptr_t)begin);
}

/* The part whose place begins at text, or NULL. */
static const part *find_part(const part *parts, size_t count, const char *text, size_t length)
{
    for (size_t i = 0; i < count; i++) {
        size_t size = strlen(parts[i].place);
        if (size <= length && memcmp(text, parts[i].place, size) == 0)
            return &parts[i];
    }
    return NULL;
}

void xm_dashboard_write(const char *nonce, xm_text *out)
{
    const part parts[] = {
        {"{{nonce}}", nonce, strlen(nonce)},
        {"{{version}}", xmoe_version(), strlen(xmoe_version())},
        {"{{style}}", xm_dashboard_style, span(xm_dashboard_style, xm_dashboard_script)},
        {"{{script}}", xm_dashboard_script, span(xm_dashboard_script, xm_dashboard_end)}};
    const char *page = xm_dashboard_page;
    size_t length = span(xm_dashboard_page, xm_dashboard_style), done = 0;
    for (size_t at = 0; at < length; at++) {
        const part *found =
            page[at] == '{' ? find_part(parts, sizeof parts / sizeof *parts, page + at, length - at)
                            : NULL;
        if (!found)
            continue;
        xm_text_add(out, page + done, at - done);
        xm_text_add(out, found->text, found->length);
        done = at + strlen(found->place);
    }
    xm_text_add(out, page + done, length - done);
}

static bool make_nonce(char nonce[33])
{
    unsigned char bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return false;
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(nonce + 2 * i, 3, "%02x", bytes[i]);
    return true;
}

void xm_api_dashboard(xm_exchange *exchange)
{
    char nonce[33], policy[XM_HEADER_LENGTH];
    if (!make_nonce(nonce)) {
        xm_problem problem = {0};
        xm_problem_set(&problem, 503, "no_random_bytes", NULL,
                       "the system gives no random bytes, which the page needs");
        xm_exchange_reply_problem(exchange, &problem);
        return;
    }
    snprintf(policy, sizeof policy,
             "default-src 'none'; script-src 'nonce-%s'; style-src 'nonce-%s'; connect-src 'self'; "
             "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
             nonce, nonce);
    xm_exchange_header(exchange, "Content-Security-Policy", policy);
    xm_exchange_header(exchange, "X-Content-Type-Options", "nosniff");
    xm_exchange_header(exchange, "Referrer-Policy", "no-referrer");
    xm_exchange_header(exchange, "Cache-Control", "no-store");
    xm_text answer = {0};
    xm_dashboard_write(nonce, &answer);
    xm_exchange_reply(exchange, 200, "text/html; charset=utf-8", &answer);
}
