/*
 * chat_template.h - the messages of a chat as one prompt.
 *
 * The format is plain text that a model of any training can follow, one paragraph per message:
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

#include "json_read.h"

#define XM_CHAT_STOP "\nUser:"

/* Checks messages and appends the prompt to *prompt, which the caller frees. */
bool xm_chat_apply(const cJSON *messages, xm_text *prompt, xm_problem *problem);

#endif
