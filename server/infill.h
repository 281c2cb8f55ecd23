/*
 * infill.h - the prompt of POST /infill: text before and after a gap, and other files for context.
 */
#ifndef XM_SERVER_INFILL_H
#define XM_SERVER_INFILL_H

#include "generate_params.h"

/* Makes the one prompt of body.input_prefix, .input_suffix, .input_extra and .prompt, and reads
 * .n_predict, llama-server's name of max_tokens. 501 where the model has no tokens for it. */
bool xm_infill_prompt_read(const xmoe_model *model, const xm_settings *settings, const cJSON *body,
                           xm_generate_params *params, xm_problem *problem);

#endif
