/*
 * generate_params.h - the body of a generation request, checked and ready for the engine.
 */
#ifndef XM_SERVER_GENERATE_PARAMS_H
#define XM_SERVER_GENERATE_PARAMS_H

#include "chat_template.h"
#include "json_read.h"
#include "response_format.h"
#include "settings.h"
#include "tool_reply.h"
#include "xmoe.h"

#define XM_STOP_LIMIT 4 /* stop strings of a request; a chat template may add its own */

typedef struct {
    const char *field; /* of the body, for messages */
    int32_t *tokens;   /* malloc'ed */
    size_t count;
    xm_text text; /* well-formed UTF-8; only kept for echo */
    bool empty;   /* nothing was given: the one token is a start token, with no part in the text */
} xm_prompt;

/* How an answer of embeddings looks. */
typedef enum {
    XM_EMBEDDING_NONE, /* it is no such answer */
    XM_EMBEDDING_FLOAT,
    XM_EMBEDDING_BASE64, /* of 32-bit floats, the low byte first */
    XM_EMBEDDING_LISTS   /* llama-server's /embedding: a bare list */
} xm_embedding_format;

typedef struct {
    xm_embedding_format embedding;
    int32_t dimensions;           /* of embeddings: how many numbers are given */
    bool normalize;               /* embeddings have length 1 */
    bool infill;                  /* POST /infill */
    const xm_chat_format *format; /* of the model; read where chat is */
    xm_grammar_cache *grammars;
    xm_reply_style reply; /* chat: how the answer is read */
    bool chat, stream, include_usage, echo;
    bool logprobs; /* in the answer; how many alternatives is engine.top_logprobs */
    bool timings_per_token;
    int32_t n; /* choices in the answer; engine.choices (best_of) may be more */
    xm_prompt *prompts;
    size_t prompt_count;
    xmoe_logit_bias *logit_bias;
    char *stop[XM_STOP_LIMIT + 1];
    xmoe_routing routing;
    xmoe_request_params engine; /* all but prompt, on_event and context; points into the above;
                                   its grammar, if any, is a reference (response_format.h) */
} xm_generate_params;

/* Fills *params, of which the caller has set chat, format, grammars and routing (the default), all
 * else zero; it is freed by xm_generate_params_free in any case. */
bool xm_generate_params_read(const xmoe_model *model, const xm_settings *settings,
                             const cJSON *body, xm_generate_params *params, xm_problem *problem);
void xm_generate_params_free(xm_generate_params *params);

/* prompts.c: body.prompt in each of its forms, or body.messages. */
bool xm_prompts_read(const xmoe_model *model, const xm_settings *settings, const cJSON *body,
                     xm_generate_params *params, xm_problem *problem);
/* The forms of body.prompt in another member, which must be there. */
bool xm_prompts_read_from(const xmoe_model *model, const xm_settings *settings, const cJSON *body,
                          const char *field, xm_generate_params *params, xm_problem *problem);
/* The routing of body.router over params->routing, the default on entry. */
bool xm_routing_read(const xmoe_model *model, const cJSON *body, xm_generate_params *params,
                     xm_problem *problem);

#endif
