/*
 * tool_reply.h - what a model answers in a chat, taken apart as it comes: thoughts, text, calls of
 * tools.
 *
 * Text goes to `content` as soon as it cannot begin a marker; a call is known when it is complete.
 * What looks like a call and is none stays text, so nothing that the model said is lost.
 */
#ifndef XM_SERVER_TOOL_REPLY_H
#define XM_SERVER_TOOL_REPLY_H

#include "tool_form.h"

/* How to read the answers of a request. */
typedef struct {
    const xm_tool_form *form; /* the model's */
    cJSON *tools;             /* those offered; NULL: none. Owned by who made this */
    bool thinks;              /* <think> ... </think> is a thought */
    bool begins_thinking;     /* <think> stood at the end of the prompt */
} xm_reply_style;

typedef enum { XM_REPLY_TEXT, XM_REPLY_THOUGHT, XM_REPLY_CALL, XM_REPLY_HEADER } xm_reply_state;

typedef struct {
    xm_reply_state state;
    bool started;
    bool skip_blanks; /* those that follow a call or thought belong to the form */
    bool bare;        /* the call has no marker before it */
    xm_text pending;  /* not yet understood */
    xm_text thoughts; /* not yet written out */
    xm_tool_calls calls;
    size_t calls_written;
    char *recipient; /* CHANNELS: the function that the present message is for */
} xm_reply;          /* start with {0} */

/* Takes more of the answer in; appends what is text to *content. */
void xm_reply_feed(xm_reply *reply, const xm_reply_style *style, const char *text, size_t length,
                   xm_text *content);
/* The answer has ended. */
void xm_reply_finish(xm_reply *reply, const xm_reply_style *style, xm_text *content);
void xm_reply_free(xm_reply *reply);

#endif
