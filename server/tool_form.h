/*
 * tool_form.h - how models write that they want a tool called: one row in a table for each form.
 *
 * A form is recognised by what the model's chat template says of earlier calls. Where the template
 * knows of no tools, they are described in a system message of our own (chat_messages.c), in the
 * form that most models have seen.
 */
#ifndef XM_SERVER_TOOL_FORM_H
#define XM_SERVER_TOOL_FORM_H

#include <cjson/cJSON.h>

#include "problem.h"

#define XM_TOOL_LIMIT 128

typedef struct {
    char id[32];
    char *name;      /* owned */
    char *arguments; /* owned: JSON text */
} xm_tool_call;

typedef struct {
    xm_tool_call *items;
    size_t count;
} xm_tool_calls; /* start with {0} */

void xm_tool_calls_free(xm_tool_calls *calls);

typedef enum { XM_TOOL_MARKED, XM_TOOL_BARE, XM_TOOL_CHANNELS } xm_tool_style;

typedef struct xm_tool_form xm_tool_form;
struct xm_tool_form {
    const char *name;
    const char *sign;         /* a template with this text has the form */
    xm_tool_style style;      /* BARE: the whole answer may be a call, without open before it.
                                 CHANNELS: gpt-oss' messages, see tool_reply.c */
    const char *open;         /* begins a call, or all of them */
    const char *close;        /* ends it; NULL: the end of the answer does */
    const char *first, *last; /* around the calls within open and close; NULL: nothing */
    const char *between; /* of several calls, where one pair of open and close holds all; NULL: each
                            has its own */
    const char
        *call; /* a call: $n its name in quotes, $b without, $a its arguments; NULL: no grammar */
    const char *stop; /* a stop string that ends the answer after a call; NULL: none */
    bool short_ids;   /* ids of calls have nine letters and digits */
    /* Takes calls of these tools out of what stood between open and close; false where it is none.
     */
    bool (*parse)(const xm_tool_form *form, const cJSON *tools, const char *body,
                  xm_tool_calls *calls);
};

/* The form of a template; where it has no known one, the one that our own system message asks for.
 * template may be NULL. */
const xm_tool_form *xm_tool_form_of(const char *template);
extern const xm_tool_form *const xm_tool_default_form;

/* Appends a call with a new id; false without memory. arguments: JSON text. */
bool xm_tool_calls_add(const xm_tool_form *form, xm_tool_calls *calls, const char *name,
                       const char *arguments);

/* --- tool_choice.c ------------------------------------------------------------------------------
 */

typedef enum { XM_TOOLS_NONE, XM_TOOLS_AUTO, XM_TOOLS_REQUIRED } xm_tool_need;

/* What a request says of tools; points into its body. */
typedef struct {
    const cJSON *tools; /* NULL: none are offered */
    xm_tool_need need;
    const char *function; /* the one that must be called, or NULL */
    bool parallel;
} xm_tool_choice;

/* Reads and checks tools, tool_choice and parallel_tool_calls. */
bool xm_tool_choice_read(const cJSON *body, xm_tool_choice *choice, xm_problem *problem);

/* Writes the grammar that calls are held to into *rules (freed by the caller), and what switches it
 * on into *trigger: NULL where the answer must be a call from its beginning. The grammar stays
 * empty where the form has none for this choice. thinks: the answer may think first;
 * begins_thinking: it begins within a thought. */
bool xm_tool_grammar(const xmoe_model *model, const xm_tool_form *form,
                     const xm_tool_choice *choice, bool thinks, bool begins_thinking,
                     xm_text *rules, const char **trigger, xm_problem *problem);

#endif
