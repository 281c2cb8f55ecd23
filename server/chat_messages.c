/*
 * chat_messages.c - see chat_messages.h.
 */
#include "chat_messages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};

static bool no_memory(xm_problem *problem)
{
    return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
}

static bool is_role(const char *role, bool any)
{
    for (size_t i = 0; role && i < sizeof roles / sizeof *roles; i++)
        if (strcmp(roles[i], role) == 0)
            return true;
    return role && any && role[0];
}

static bool put(cJSON *object, const char *key, cJSON *value)
{
    cJSON_DeleteItemFromObjectCaseSensitive(object, key);
    if (value && cJSON_AddItemToObject(object, key, value))
        return true;
    cJSON_Delete(value);
    return false;
}

/* [{"type": "text", "text": "..."}, ...] becomes one string. */
static bool join_parts(cJSON *message, const cJSON *parts, const char *where, xm_problem *problem)
{
    xm_text text = {0};
    xm_text_puts(&text, "");
    for (const cJSON *part = parts->child; part; part = part->next) {
        bool object = cJSON_IsObject(part);
        const char *type = object ? cJSON_GetStringValue(xm_json_member(part, "type")) : NULL;
        const char *piece = object ? cJSON_GetStringValue(xm_json_member(part, "text")) : NULL;
        if (!type || strcmp(type, "text") != 0 || !piece) {
            xm_text_free(&text);
            return xm_problem_field(
                problem, where, "'%s' may only hold parts of type text, with a string text", where);
        }
        xm_text_puts(&text, piece);
    }
    bool good = !text.failed && put(message, "content", cJSON_CreateString(text.data));
    xm_text_free(&text);
    return good || no_memory(problem);
}

/* The arguments of a call are a string in OpenAI's API, an object in most templates. */
static bool print_arguments(cJSON *function, const cJSON *arguments, xm_problem *problem)
{
    char *text = cJSON_PrintUnformatted(arguments);
    bool good = text && put(function, "arguments", cJSON_CreateString(text));
    cJSON_free(text);
    return good || no_memory(problem);
}

static bool read_call(cJSON *call, bool as_text, const char *where, xm_problem *problem)
{
    cJSON *function =
        cJSON_IsObject(call) ? cJSON_GetObjectItemCaseSensitive(call, "function") : NULL;
    if (!cJSON_IsObject(function) || !cJSON_IsString(xm_json_member(function, "name")))
        return xm_problem_field(problem, where,
                                "'%s' must be {\"function\": {\"name\": ..., \"arguments\": ...}}",
                                where);
    const cJSON *arguments = xm_json_member(function, "arguments");
    if (cJSON_IsObject(arguments))
        return !as_text || print_arguments(function, arguments, problem);
    const char *text = arguments ? cJSON_GetStringValue(arguments) : "{}";
    text = text && !text[0] ? "{}" : text;
    xm_problem ignored = {0};
    cJSON *parsed = text ? xm_json_parse(text, strlen(text), &ignored) : NULL;
    if (!cJSON_IsObject(parsed)) {
        cJSON_Delete(parsed);
        return xm_problem_field(
            problem, where, "'%s.function.arguments' must be a string with a JSON object", where);
    }
    if (as_text) { /* as the client wrote it */
        cJSON_Delete(parsed);
        parsed = cJSON_CreateString(text);
    }
    return put(function, "arguments", parsed) || no_memory(problem);
}

static bool read_calls(const cJSON *message, bool as_text, int index, xm_problem *problem)
{
    const cJSON *calls = xm_json_member(message, "tool_calls");
    char where[64];
    int number = 0;
    if (!calls)
        return true;
    snprintf(where, sizeof where, "messages[%d].tool_calls", index);
    if (!cJSON_IsArray(calls))
        return xm_problem_field(problem, where, "'%s' must be an array", where);
    for (cJSON *call = calls->child; call; call = call->next, number++) {
        snprintf(where, sizeof where, "messages[%d].tool_calls[%d]", index, number);
        if (!read_call(call, as_text, where, problem))
            return false;
    }
    return true;
}

static bool read_message(cJSON *message, int index, const xm_message_shape *shape,
                         xm_problem *problem)
{
    char where[64];
    snprintf(where, sizeof where, "messages[%d]", index);
    if (!cJSON_IsObject(message))
        return xm_problem_field(problem, where, "'%s' must be an object", where);
    const char *role = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(message, "role"));
    if (!is_role(role, shape->any_role)) {
        snprintf(where, sizeof where, "messages[%d].role", index);
        return xm_problem_field(
            problem, where, "'%s' must be one of: system, developer, user, assistant, tool", where);
    }
    bool assistant = strcmp(role, "assistant") == 0;
    const cJSON *content = xm_json_member(message, "content");
    snprintf(where, sizeof where, "messages[%d].content", index);
    if (cJSON_IsArray(content)) {
        if (!join_parts(message, content, where, problem))
            return false;
    } else if (content ? !cJSON_IsString(content) : !assistant) {
        return xm_problem_field(problem, where, "'%s' must be a string or an array of text parts",
                                where);
    } else if (!content) {
        bool keep = shape->null_content && xm_json_member(message, "tool_calls");
        if (!put(message, "content", keep ? cJSON_CreateNull() : cJSON_CreateString("")))
            return no_memory(problem);
    }
    cJSON *calls = cJSON_GetObjectItemCaseSensitive(message, "tool_calls");
    if (calls && (cJSON_IsNull(calls) || (cJSON_IsArray(calls) && !calls->child)))
        cJSON_DeleteItemFromObjectCaseSensitive(message, "tool_calls"); /* says nothing */
    return read_calls(message, shape->text_arguments, index, problem);
}

cJSON *xm_chat_messages(const cJSON *body, const xm_message_shape *shape, xm_problem *problem)
{
    const cJSON *given = cJSON_GetObjectItemCaseSensitive(body, "messages");
    int index = 0;
    if (!cJSON_IsArray(given) || !given->child) {
        xm_problem_field(problem, "messages",
                         "'messages' must be an array of at least one message");
        return NULL;
    }
    cJSON *messages = cJSON_Duplicate(given, true);
    bool good = messages != NULL;
    if (!messages)
        no_memory(problem);
    for (cJSON *message = messages ? messages->child : NULL; message && good;
         message = message->next)
        good = read_message(message, index++, shape, problem);
    if (good)
        return messages;
    cJSON_Delete(messages);
    return NULL;
}

/* --- templates without tools
 * ---------------------------------------------------------------------- */

static void describe_tools(const xm_tool_choice *choice, xm_text *text)
{
    xm_text_puts(text, "You can call these functions. Each line describes one of them as JSON:\n");
    for (const cJSON *tool = choice->tools->child; tool; tool = tool->next) {
        char *line = cJSON_PrintUnformatted(xm_json_member(tool, "function"));
        if (!line)
            text->failed = true;
        xm_text_puts(text, line ? line : "");
        xm_text_puts(text, "\n");
        free(line);
    }
    xm_text_puts(text,
                 "To call a function, write nothing but its name and arguments as JSON between "
                 "these tags:\n<tool_call>\n{\"name\": NAME, \"arguments\": OBJECT}\n"
                 "</tool_call>\n");
}

/* A system message in front, or more text in the one that is there. */
static bool add_system(cJSON *messages, xm_text *text)
{
    cJSON *first = messages->child;
    const char *role = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(first, "role"));
    if (strcmp(role, "system") == 0 || strcmp(role, "developer") == 0) {
        xm_text whole = {0};
        xm_text_format(&whole, "%s\n\n%s",
                       cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(first, "content")),
                       text->data);
        bool good = !whole.failed && put(first, "content", cJSON_CreateString(whole.data));
        xm_text_free(&whole);
        return good;
    }
    cJSON *message = cJSON_CreateObject();
    if (message && put(message, "role", cJSON_CreateString("system")) &&
        put(message, "content", cJSON_CreateString(text->data)) &&
        cJSON_InsertItemInArray(messages, 0, message))
        return true;
    cJSON_Delete(message);
    return false;
}

/* Earlier calls as the model was told to write them. */
static bool write_calls(cJSON *message)
{
    const cJSON *calls = cJSON_GetObjectItemCaseSensitive(message, "tool_calls"), *call = NULL;
    const char *content =
        cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(message, "content"));
    xm_text text = {0};
    xm_text_puts(&text, content ? content : "");
    cJSON_ArrayForEach(call, calls)
    {
        const cJSON *function = cJSON_GetObjectItemCaseSensitive(call, "function");
        char *name = cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(function, "name"));
        char *arguments =
            cJSON_PrintUnformatted(cJSON_GetObjectItemCaseSensitive(function, "arguments"));
        text.failed = text.failed || !name;
        xm_text_format(&text, "%s<tool_call>\n{\"name\": %s, \"arguments\": %s}\n</tool_call>",
                       text.length ? "\n" : "", name ? name : "", arguments ? arguments : "{}");
        free(name);
        free(arguments);
    }
    bool good = !text.failed && put(message, "content", cJSON_CreateString(text.data));
    cJSON_DeleteItemFromObjectCaseSensitive(message, "tool_calls");
    xm_text_free(&text);
    return good;
}

static bool write_result(cJSON *message)
{
    xm_text text = {0};
    xm_text_format(&text, "<tool_response>\n%s\n</tool_response>",
                   cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(message, "content")));
    bool good = !text.failed && put(message, "content", cJSON_CreateString(text.data)) &&
                put(message, "role", cJSON_CreateString("user"));
    xm_text_free(&text);
    return good;
}

bool xm_chat_messages_explain_tools(cJSON *messages, const xm_tool_choice *choice, bool templated)
{
    bool good = true;
    for (cJSON *message = messages->child; message && good; message = message->next) {
        const char *role = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(message, "role"));
        if (cJSON_HasObjectItem(message, "tool_calls"))
            good = write_calls(message);
        else if (templated && strcmp(role, "tool") == 0)
            good = write_result(message);
    }
    if (!good || !choice->tools)
        return good;
    xm_text text = {0};
    describe_tools(choice, &text);
    good = !text.failed && add_system(messages, &text);
    xm_text_free(&text);
    return good;
}
