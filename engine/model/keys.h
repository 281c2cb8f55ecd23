/*
 * keys.h - hyper-parameters of the model being loaded: keys "<architecture>.<name>" read and
 * checked. Messages name the key, what was found and what was expected.
 */
#ifndef XM_MODEL_KEYS_H
#define XM_MODEL_KEYS_H

#include "format/router_kind.h"
#include "model/loader.h"

enum {
    XM_MAX_CONTEXT = 1 << 24,
    XM_MAX_WIDTH = 1 << 16,  /* d */
    XM_MAX_HIDDEN = 1 << 20, /* of any FFN */
};

/* XMOE_ERROR_FORMAT: "FILE: key 'ARCHITECTURE.NAME' <problem>". */
xmoe_status xm_key_fail(const xm_loader *loader, const char *name, xmoe_error *error,
                        const char *problem, ...) __attribute__((format(printf, 4, 5)));

/* A whole number from 1 to most. Absent: an error if required, else *value stays as it is. */
xmoe_status xm_key_size(const xm_loader *loader, const char *name, bool required, int32_t most,
                        int32_t *value, xmoe_error *error);
/* The same, from 0. */
xmoe_status xm_key_count(const xm_loader *loader, const char *name, bool required, int32_t most,
                         int32_t *value, xmoe_error *error);
/* A number above `above` and at most `most`. */
xmoe_status xm_key_number(const xm_loader *loader, const char *name, bool required, double above,
                          double most, float *value, xmoe_error *error);
/* Absent: *value stays. */
xmoe_status xm_key_flag(const xm_loader *loader, const char *name, bool *value, xmoe_error *error);
/* Absent: *value stays. */
xmoe_status xm_key_text(const xm_loader *loader, const char *name, xm_string *value,
                        xmoe_error *error);
/* router.type; softmax: only of those whose scores are a softmax. Absent: *kind stays. */
xmoe_status xm_key_router_kind(const xm_loader *loader, bool softmax, const xm_router_kind **kind,
                               xmoe_error *error);
bool xm_key_text_is(xm_string text, const char *expected);

#endif
