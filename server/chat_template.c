/*
 * chat_template.c - see chat_template.h.
 */
#include "chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chat_messages.h"

#define XM_CHAT_VARIABLES 32

static cJSON *text_of(const xmoe_model *model, int32_t token)
{
    size_t length = 0;
    const char *bytes = token >= 0 ? xmoe_token_bytes(model, token, &length) : "";
    char *text = strndup(bytes, length);
    cJSON *value = text ? cJSON_CreateString(text) : NULL;
    free(text);
    return value;
}

xm_chat_format *xm_chat_format_create(const xmoe_model *model)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    xm_chat_format *format = calloc(1, sizeof *format);
    if (!format)
        return NULL;
    format->source = info->chat_template;
    format->form = xm_tool_form_of(format->source);
    format->bos = text_of(model, info->bos_token);
    format->eos = text_of(model, info->eos_token);
    if (!format->bos || !format->eos) {
        xm_chat_format_free(format);
        return NULL;
    }
    if (!format->source)
        return format;
    format->jinja = xm_jinja_parse(format->source, strlen(format->source), &format->error);
    format->knows_tools = strstr(format->source, "tools") != NULL;
    format->thinks = strstr(format->source, "</think>") != NULL;
    return format;
}

void xm_chat_format_free(xm_chat_format *format)
{
    if (!format)
        return;
    xm_jinja_free(format->jinja);
    cJSON_Delete(format->bos);
    cJSON_Delete(format->eos);
    free(format);
}

/* --- the plain form ------------------------------------------------------------------------------
 */

static const char *label_of(const char *role)
{
    if (strcmp(role, "user") == 0)
        return "User";
    if (strcmp(role, "assistant") == 0)
        return "Assistant";
    return strcmp(role, "tool") == 0 ? "Tool" : "System";
}

static void write_plain(const cJSON *messages, bool prompt_answer, xm_jinja_output *prompt)
{
    for (const cJSON *message = messages->child; message; message = message->next)
        xm_text_format(
            &prompt->text, "%s: %s\n",
            label_of(cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(message, "role"))),
            cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(message, "content")));
    if (prompt_answer)
        xm_text_puts(&prompt->text, "Assistant:");
    /* No byte of this form is a special token. */
    if (xm_text_reserve(&prompt->input, prompt->text.length)) {
        memset(prompt->input.data, 1, prompt->text.length);
        prompt->input.length = prompt->text.length;
    }
}

/* --- the model's template ------------------------------------------------------------------------
 */

typedef struct {
    xm_jinja_variable items[XM_CHAT_VARIABLES];
    size_t count;
} variables;

static void set(variables *all, const char *name, const cJSON *value, bool input)
{
    for (size_t i = 0; i < all->count; i++)
        if (strcmp(all->items[i].name, name) == 0) {
            all->items[i].value = value;
            return;
        }
    all->items[all->count++] = (xm_jinja_variable){name, value, input};
}

/* Variables of the request's own, which may not take the place of those that are not its. */
static bool set_own(const cJSON *body, variables *all, xm_problem *problem)
{
    static const char *const taken[] = {"messages", "tools", "bos_token", "eos_token"};
    const cJSON *own = xm_json_member(body, "chat_template_kwargs");
    if (own && !cJSON_IsObject(own))
        return xm_problem_field(problem, "chat_template_kwargs",
                                "'chat_template_kwargs' must be an object");
    for (const cJSON *item = own ? own->child : NULL; item; item = item->next) {
        for (size_t i = 0; i < sizeof taken / sizeof *taken; i++)
            if (strcmp(taken[i], item->string) == 0)
                return xm_problem_field(problem, "chat_template_kwargs",
                                        "'chat_template_kwargs' must not hold '%s'", taken[i]);
        if (all->count == XM_CHAT_VARIABLES)
            return xm_problem_field(problem, "chat_template_kwargs",
                                    "'chat_template_kwargs' holds too many variables");
        set(all, item->string, item, true);
    }
    return true;
}

static bool tell(const xm_jinja_error *error, xm_problem *problem)
{
    switch (error->failure) {
    case XM_JINJA_RAISED:
        return xm_problem_field(problem, "messages", "the model's chat template: %s",
                                error->message);
    case XM_JINJA_MEMORY:
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    case XM_JINJA_SYNTAX:
        return xm_problem_set(problem, 501, "chat_template_unsupported", NULL,
                              "the model's chat template cannot be used: line %d: %s", error->line,
                              error->message);
    default:
        return xm_problem_field(problem, "messages",
                                "the model's chat template cannot render this: line %d: %s",
                                error->line, error->message);
    }
}

static bool render(const xm_chat_format *format, const cJSON *body, const cJSON *messages,
                   const cJSON *tools, bool prompt_answer, xm_jinja_output *prompt,
                   xm_problem *problem)
{
    variables all = {.count = 0};
    const char *effort = NULL;
    xm_jinja_error error = {0};
    cJSON answer = {.type = prompt_answer ? cJSON_True : cJSON_False};
    if (!xm_json_read_string(body, "reasoning_effort", &effort, problem))
        return false;
    set(&all, "messages", messages, true);
    set(&all, "tools", tools, true);
    set(&all, "documents", xm_json_member(body, "documents"), true);
    set(&all, "add_generation_prompt", &answer, false);
    set(&all, "bos_token", format->bos, false);
    set(&all, "eos_token", format->eos, false);
    if (effort)
        set(&all, "reasoning_effort", xm_json_member(body, "reasoning_effort"), true);
    return set_own(body, &all, problem) &&
           (xm_jinja_render(format->jinja, all.items, all.count, time(NULL), prompt, &error) ||
            tell(&error, problem));
}

bool xm_chat_apply(const xm_chat_format *format, const cJSON *body, const xm_tool_choice *choice,
                   xm_jinja_output *prompt, xm_problem *problem)
{
    bool prompt_answer = true;
    if (format->source && !format->jinja)
        return tell(&format->error, problem);
    /* DeepSeek's templates tell a call by content that is none, others would print "None"; and its
     * older ones add arguments to strings as they are. */
    const char *source = format->source ? format->source : "";
    const xm_message_shape shape = {.any_role = format->jinja,
                                    .null_content = strstr(source, "is none"),
                                    .text_arguments = strstr(source, "['arguments'] + '")};
    if (!xm_json_read_bool(body, "add_generation_prompt", &prompt_answer, problem))
        return false;
    cJSON *messages = xm_chat_messages(body, &shape, problem);
    bool good = messages != NULL;
    if (good && !format->knows_tools &&
        !xm_chat_messages_explain_tools(messages, choice, format->jinja))
        good = xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    if (good && format->jinja)
        good = render(format, body, messages, format->knows_tools ? choice->tools : NULL,
                      prompt_answer, prompt, problem);
    else if (good)
        write_plain(messages, prompt_answer, prompt);
    cJSON_Delete(messages);
    if (good && (prompt->text.failed || prompt->input.failed))
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    return good;
}
