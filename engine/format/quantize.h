/*
 * quantize.h - what the files of xmoe_quantize share: which type each tensor gets
 * (quantize_types.c), how much its columns matter (importance.c), and the rewriting (quantize.c).
 * Not for use elsewhere.
 */
#ifndef XM_FORMAT_QUANTIZE_H
#define XM_FORMAT_QUANTIZE_H

#include "format/gguf.h"

/* The types of a file's tensors; types[i] belongs to tensor i. */
typedef struct {
    const xm_weight_traits **types; /* owned: xm_free */
    uint32_t file_type;             /* general.file_type */
} xm_quantize_plan;

/* Checks the options' types and patterns; tells options->on_note where rows do not fit a type. On
 * failure plan->types is NULL. */
xmoe_status xm_quantize_plan_types(const xm_gguf *input, const xmoe_quantize_options *options,
                                   xm_quantize_plan *plan, xmoe_error *error);

/* Whether a tensor is a matrix to be quantised; else it becomes F32. */
bool xm_quantize_is_matrix(const xm_gguf_tensor *tensor);

void xm_quantize_note(const xmoe_quantize_options *options, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
