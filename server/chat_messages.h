/*
 * chat_messages.h - the messages of a chat, checked and in the shape that their template expects.
 */
#ifndef XM_SERVER_CHAT_MESSAGES_H
#define XM_SERVER_CHAT_MESSAGES_H

#include "json_read.h"
#include "tool_form.h"

typedef struct {
    bool any_role;       /* other roles than OpenAI's are the template's business */
    bool null_content;   /* missing content beside calls stays null, else it becomes "" */
    bool text_arguments; /* those of earlier calls are strings of JSON, else objects */
} xm_message_shape;

/* A new array, which the caller deletes; NULL with a problem. */
cJSON *xm_chat_messages(const cJSON *body, const xm_message_shape *shape, xm_problem *problem);

/* For templates that know of no tools: describes them in the system message, and writes earlier
 * calls and, templated, their results as text, which then the user says. False without memory. */
bool xm_chat_messages_explain_tools(cJSON *messages, const xm_tool_choice *choice, bool templated);

#endif
