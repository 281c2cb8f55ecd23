/*
 * openapi.c - config/openapi.json inside the program, so that /openapi.json is always the page that
 * belongs to this build. The assembler takes the file as it is; its path is relative to the
 * project's root, where make runs.
 */
#include "openapi.h"

#include <stdint.h>

__asm__(".pushsection .rodata\n"
        ".global xm_openapi_begin\n"
        ".global xm_openapi_end\n"
        "xm_openapi_begin:\n"
        ".incbin \"config/openapi.json\"\n"
        "xm_openapi_end:\n"
        ".byte 0\n"
        ".popsection\n");

extern const char xm_openapi_begin[] __attribute__((visibility("hidden")));
extern const char xm_openapi_end[] __attribute__((visibility("hidden")));

const char *xm_openapi_text(size_t *length)
{
    *length = (size_t)((uintptr_t)xm_openapi_end - (uintptr_t)xm_openapi_begin);
    return xm_openapi_begin;
}
