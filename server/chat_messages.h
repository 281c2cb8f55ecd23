/*
 * chat_messages.h - the messages of a chat, checked and in the one shape that templates expect:
 * content is a string (or null beside tool calls, where the template asks for that), the arguments
 * of earlier calls are objects.
 */
#ifndef XM_SERVER_CHAT_MESSAGES_H
#define XM_SERVER_CHAT_MESSAGES_H

#include "json_read.h"
#include "tool_form.h"

/* A new array, which the caller deletes; NULL with a problem. any_role: other roles than OpenAI's
 * are the template's business. null_content: missing content stays null, else it becomes "". */
cJSON *xm_chat_messages(const cJSON *body, bool any_role, bool null_content, xm_problem *problem);

/* For templates that know of no tools: describes them in the system message, and writes earlier
 * calls and, templated, their results as text, which then the user says. False without memory. */
bool xm_chat_messages_explain_tools(cJSON *messages, const xm_tool_choice *choice, bool templated);

#endif
