/*
 * chat_template.h - the messages of a chat as one prompt.
 *
 * A model that brings a chat template (tokenizer.chat_template, Jinja) has it rendered as Hugging
 * Face's apply_chat_template does. What came from the request is marked in the result, so that no
 * message can write the tokens that separate messages. A template that cannot be read leaves the
 * model's completions as they are, but chats are refused with the reason.
 *
 * For a model without a template the format is plain text that a model of any training can follow,
 * one paragraph per message:
 *
 *     System: You are kind.
 *     User: Hello!
 *     Assistant: Hello to you.
 *     User: How are you?
 *     Assistant:
 *
 * "developer" counts as System, "tool" is Tool. The answer follows the last colon; it ends where
 * the model ends it or where it begins to speak for the user (XM_CHAT_STOP). Blanks that the answer
 * starts with belong to the format and are not shown.
 */
#ifndef XM_SERVER_CHAT_TEMPLATE_H
#define XM_SERVER_CHAT_TEMPLATE_H

#include "jinja.h"
#include "json_read.h"
#include "tool_form.h"

#define XM_CHAT_STOP "\nUser:"

/* How a model wants to be talked to. Immutable once made, for any thread. */
typedef struct xm_chat_format {
    const char *source;       /* of the template; NULL: the plain form */
    xm_jinja *jinja;          /* NULL: plain, or the template is unusable */
    xm_jinja_error error;     /* why it is */
    cJSON *bos, *eos;         /* texts of these tokens */
    const xm_tool_form *form; /* how it calls tools */
    bool knows_tools;         /* the template writes them itself */
    bool thinks;              /* it knows <think> */
} xm_chat_format;

/* NULL without memory. The model must outlive the format. */
xm_chat_format *xm_chat_format_create(const xmoe_model *model);
void xm_chat_format_free(xm_chat_format *format); /* NULL is fine */

/* Checks the body of a chat request and fills *prompt, which the caller frees in any case. Read are
 * messages, tools (through choice), documents, add_generation_prompt, reasoning_effort and
 * chat_template_kwargs. */
bool xm_chat_apply(const xm_chat_format *format, const cJSON *body, const xm_tool_choice *choice,
                   xm_jinja_output *prompt, xm_problem *problem);

#endif
