/*
 * chat_template.c - see chat_template.h.
 */
#include "chat_template.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *role, *label;
} roles[] = {{"system", "System"},
             {"developer", "System"},
             {"user", "User"},
             {"assistant", "Assistant"},
             {"tool", "Tool"}};

static const char *label_of(const cJSON *role)
{
    if (!cJSON_IsString(role))
        return NULL;
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(roles[i].role, role->valuestring) == 0)
            return roles[i].label;
    return NULL;
}

/* [{"type": "text", "text": "..."}, ...] */
static bool add_parts(const cJSON *parts, const char *where, xm_text *prompt, xm_problem *problem)
{
    for (const cJSON *part = parts->child; part; part = part->next) {
        const cJSON *type = cJSON_IsObject(part) ? xm_json_member(part, "type") : NULL;
        const cJSON *text = cJSON_IsObject(part) ? xm_json_member(part, "text") : NULL;
        if (!type || !cJSON_IsString(type) || strcmp(type->valuestring, "text") != 0 || !text ||
            !cJSON_IsString(text))
            return xm_problem_field(
                problem, where, "'%s' may only hold parts of type text, with a string text", where);
        xm_text_puts(prompt, text->valuestring);
    }
    return true;
}

static bool add_message(const cJSON *message, int index, xm_text *prompt, xm_problem *problem)
{
    char where[48];
    snprintf(where, sizeof where, "messages[%d]", index);
    if (!cJSON_IsObject(message))
        return xm_problem_field(problem, where, "'%s' must be an object", where);
    const cJSON *role = xm_json_member(message, "role");
    const char *label = label_of(role);
    if (!label) {
        snprintf(where, sizeof where, "messages[%d].role", index);
        return xm_problem_field(
            problem, where, "'%s' must be one of: system, developer, user, assistant, tool", where);
    }
    snprintf(where, sizeof where, "messages[%d].content", index);
    const cJSON *content = xm_json_member(message, "content");
    xm_text_format(prompt, "%s: ", label);
    if (cJSON_IsString(content))
        xm_text_puts(prompt, content->valuestring);
    else if (cJSON_IsArray(content)) {
        if (!add_parts(content, where, prompt, problem))
            return false;
    } else if (content || strcmp(role->valuestring, "assistant") != 0)
        return xm_problem_field(problem, where, "'%s' must be a string or an array of text parts",
                                where);
    xm_text_puts(prompt, "\n");
    return true;
}

bool xm_chat_apply(const cJSON *messages, xm_text *prompt, xm_problem *problem)
{
    int index = 0;
    if (!cJSON_IsArray(messages) || !messages->child)
        return xm_problem_field(problem, "messages",
                                "'messages' must be an array of at least one message");
    for (const cJSON *message = messages->child; message; message = message->next)
        if (!add_message(message, index++, prompt, problem))
            return false;
    xm_text_puts(prompt, "Assistant:");
    if (prompt->failed)
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    return true;
}
