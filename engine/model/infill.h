/*
 * infill.h - the tokens by which a model is asked to fill a gap in a text, from the keys of its
 * file.
 */
#ifndef XM_MODEL_INFILL_H
#define XM_MODEL_INFILL_H

#include "format/gguf.h"

/* Absent tokens become -1. Refuses ids that the vocabulary does not have. */
xmoe_status xm_infill_read(const xm_gguf *file, int32_t vocabulary_size, xmoe_infill_tokens *tokens,
                           xmoe_error *error);

#endif
