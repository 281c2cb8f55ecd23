/*
 * tool_form.c - see tool_form.h: the table of forms, and what takes calls out of their text.
 */
#include "tool_form.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "json_check.h"

void xm_tool_calls_free(xm_tool_calls *calls)
{
    for (size_t i = 0; i < calls->count; i++) {
        free(calls->items[i].name);
        free(calls->items[i].arguments);
    }
    free(calls->items);
    *calls = (xm_tool_calls){0};
}

static void make_id(bool short_id, char *id, size_t size)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    unsigned char bytes[24] = {0};
    size_t length = short_id ? 9 : 24;
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        snprintf((char *)bytes, sizeof bytes, "%p", (void *)id); /* ids need no secrecy */
    size_t used = (size_t)snprintf(id, size, "%s", short_id ? "" : "call_");
    for (size_t i = 0; i < length && used + 1 < size; i++)
        id[used++] = letters[bytes[i] % (sizeof letters - 1)];
    id[used] = '\0';
}

bool xm_tool_calls_add(const xm_tool_form *form, xm_tool_calls *calls, const char *name,
                       const char *arguments)
{
    if (calls->count == XM_TOOL_LIMIT)
        return false;
    xm_tool_call call = {.name = strdup(name), .arguments = strdup(arguments)};
    xm_tool_call *items = realloc(calls->items, (calls->count + 1) * sizeof *items);
    if (items)
        calls->items = items;
    if (!items || !call.name || !call.arguments) {
        free(call.name);
        free(call.arguments);
        return false;
    }
    make_id(form->short_ids, call.id, sizeof call.id);
    items[calls->count++] = call;
    return true;
}

/* --- text of values --- */

/* cJSON keeps numbers as doubles, which would change long ones: so arguments are taken as they were
 * written. These walk over text that cJSON has read; what it is too lenient about is found out
 * afterwards, by xm_json_check. */
static const char *skip_blanks(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

static const char *skip_value(const char *at)
{
    int depth = 0;
    do {
        depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
        if (*at == '"')
            for (at++; *at && *at != '"'; at++)
                at += at[0] == '\\' && at[1];
        else if (depth == 0 && *at != '}' && *at != ']')
            at += strcspn(at, ",]} \t\r\n") - 1;
        at++;
    } while (depth > 0 && *at);
    return at;
}

/* Where the value of a member of the object begins, or NULL. */
static const char *find_member(const char *object, const char *key)
{
    size_t length = strlen(key);
    const char *at = skip_blanks(object + 1);
    while (*at == '"') {
        bool found = strncmp(at + 1, key, length) == 0 && at[length + 1] == '"';
        at = skip_blanks(skip_value(at));
        if (*at++ != ':')
            return NULL;
        at = skip_blanks(at);
        if (found)
            return at;
        at = skip_blanks(skip_value(at));
        at = *at == ',' ? skip_blanks(at + 1) : at;
    }
    return NULL;
}

/* The text of the member; NULL where it is not to be had. */
static char *text_of_member(const char *object, const char *key)
{
    size_t where;
    const char *value = find_member(object, key);
    size_t length = value ? (size_t)(skip_value(value) - value) : 0;
    bool good = value && xm_json_check(value, length, SIZE_MAX, &where) == NULL;
    return good ? strndup(value, length) : NULL;
}

/* --- the forms --- */

/* {"name": ..., "arguments" or "parameters": ...}; arguments may also be JSON in a string. written:
 * the text of the object. */
static bool add_object(const xm_tool_form *form, const cJSON *object, const char *written,
                       xm_tool_calls *calls)
{
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, "name"));
    const char *key =
        cJSON_GetObjectItemCaseSensitive(object, "arguments") ? "arguments" : "parameters";
    const cJSON *arguments = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!name || !(cJSON_IsObject(arguments) || cJSON_IsString(arguments)))
        return false;
    if (cJSON_IsString(arguments))
        return xm_tool_calls_add(form, calls, name, arguments->valuestring);
    char *text = text_of_member(written, key);
    if (!text)
        text = cJSON_PrintUnformatted(arguments);
    bool good = text && xm_tool_calls_add(form, calls, name, text);
    free(text);
    return good;
}

static bool add_array(const xm_tool_form *form, const cJSON *array, const char *written,
                      xm_tool_calls *calls)
{
    for (const cJSON *item = array->child; item; item = item->next) {
        written = skip_blanks(written + 1); /* behind the bracket or a comma */
        if (!add_object(form, item, written, calls))
            return false;
        written = skip_blanks(skip_value(written));
    }
    return true;
}

/* One object, several with blanks or semicolons between, or an array of them. */
static bool parse_json(const xm_tool_form *form, const cJSON *tools, const char *body,
                       xm_tool_calls *calls)
{
    (void)tools;
    bool good = true, any = false;
    for (;;) {
        body += strspn(body, " \t\r\n;");
        if (!*body || !good)
            return good && any;
        const char *end = NULL;
        cJSON *value = cJSON_ParseWithOpts(body, &end, false);
        good = cJSON_IsArray(value) ? add_array(form, value, body, calls)
                                    : cJSON_IsObject(value) && add_object(form, value, body, calls);
        cJSON_Delete(value);
        any = true;
        body = end;
    }
}

static bool is_json_object(const char *text)
{
    cJSON *value = cJSON_Parse(text);
    bool object = cJSON_IsObject(value);
    cJSON_Delete(value);
    return object;
}

/* name SEPARATOR {json}, or function SEPARATOR name and the JSON in a fence, which DeepSeek's
 * older models write. */
static bool parse_deepseek(const xm_tool_form *form, const cJSON *tools, const char *body,
                           xm_tool_calls *calls)
{
    (void)tools;
    static const char begin[] = "<｜tool▁call▁begin｜>", end[] = "<｜tool▁call▁end｜>",
                      separator[] = "<｜tool▁sep｜>";
    bool good = true, any = false;
    for (const char *at = body; good && (at = strstr(at, begin)); any = true) {
        const char *name = at + strlen(begin), *split = strstr(name, separator);
        if (!split)
            return false;
        const char *stop = strstr(split, end);
        char *first = strndup(name, (size_t)(split - name));
        const char *rest = split + strlen(separator);
        char *second = stop ? strndup(rest, (size_t)(stop - rest)) : strdup(rest);
        good = first && second;
        char *arguments = second, *called = first;
        if (good && strcmp(first, "function") == 0) {
            called = second;
            arguments = second + strcspn(second, "\n");
            if (*arguments)
                *arguments++ = '\0';
            if (strncmp(arguments, "```json", 7) == 0)
                arguments += 7;
            char *fence = strstr(arguments, "```");
            if (fence)
                *fence = '\0';
        }
        good = good && is_json_object(arguments) &&
               xm_tool_calls_add(form, calls, called, arguments + strspn(arguments, " \n"));
        free(first);
        free(second);
        at = stop ? stop : rest;
    }
    return good && any;
}

/* Whether the tool's schema says that a parameter is a string. */
static bool is_string(const cJSON *tools, const char *function, const char *parameter)
{
    const cJSON *tool;
    cJSON_ArrayForEach(tool, tools)
    {
        const cJSON *about = cJSON_GetObjectItemCaseSensitive(tool, "function");
        const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(about, "name"));
        if (!name || strcmp(name, function) != 0)
            continue;
        const cJSON *schema = cJSON_GetObjectItemCaseSensitive(about, "parameters");
        const cJSON *all = cJSON_GetObjectItemCaseSensitive(schema, "properties");
        const cJSON *own = cJSON_GetObjectItemCaseSensitive(all, parameter);
        const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(own, "type"));
        return type && strcmp(type, "string") == 0;
    }
    return false;
}

/* <parameter=key> value </parameter>: what reads as JSON is that, where the tool wants no string;
 * all else is one. */
static bool add_parameter(cJSON *arguments, const cJSON *tools, const char *function,
                          const char *key, size_t key_length, const char *value, size_t length)
{
    if (length && *value == '\n') {
        value++;
        length--;
    }
    if (length && value[length - 1] == '\n')
        length--;
    char *name = strndup(key, key_length), *text = strndup(value, length);
    bool string = !name || is_string(tools, function, name);
    cJSON *json = text && !string ? cJSON_ParseWithOpts(text, NULL, true) : NULL;
    if (!json || cJSON_IsString(json)) {
        cJSON_Delete(json);
        json = text ? cJSON_CreateString(text) : NULL;
    }
    bool good = name && json && cJSON_AddItemToObject(arguments, name, json);
    if (!good)
        cJSON_Delete(json);
    free(name);
    free(text);
    return good;
}

/* <function=name> <parameter=...>... </function>: Qwen3-Coder. */
static bool parse_xml(const xm_tool_form *form, const cJSON *tools, const char *body,
                      xm_tool_calls *calls)
{
    const char *name = strstr(body, "<function="), *end = name ? strchr(name, '>') : NULL;
    if (!end)
        return parse_json(form, tools, body, calls);
    name += strlen("<function=");
    cJSON *arguments = cJSON_CreateObject();
    char *called = strndup(name, (size_t)(end - name));
    bool good = arguments && called;
    for (const char *at = end; good && (at = strstr(at, "<parameter="));) {
        const char *key = at + strlen("<parameter="), *value = strchr(key, '>');
        const char *close = value ? strstr(value, "</parameter>") : NULL;
        good = close && add_parameter(arguments, tools, called, key, (size_t)(value - key),
                                      value + 1, (size_t)(close - value - 1));
        at = close;
    }
    char *text = good ? cJSON_PrintUnformatted(arguments) : NULL;
    good = text && xm_tool_calls_add(form, calls, called, text);
    free(text);
    free(called);
    cJSON_Delete(arguments);
    return good;
}

#define JSON_CALL "{\"name\": $n, \"arguments\": $a}"

/* The first row whose sign a template has is its form, so the more special ones come first. */
static const xm_tool_form forms[] = {
    {.name = "harmony",
     .sign = "<|channel|>",
     .style = XM_TOOL_CHANNELS,
     .open = "<|channel|>commentary to=functions.",
     .call = "$b <|constrain|>json<|message|>$a",
     .stop = "<|call|>"},
    {.name = "qwen3-coder",
     .sign = "<function=",
     .open = "<tool_call>",
     .close = "</tool_call>",
     .parse = parse_xml},
    {.name = "deepseek",
     .sign = "<｜tool▁calls▁begin｜>",
     .open = "<｜tool▁calls▁begin｜>",
     .close = "<｜tool▁calls▁end｜>",
     .between = "",
     .call = "<｜tool▁call▁begin｜>$b<｜tool▁sep｜>$a<｜tool▁call▁end｜>",
     .parse = parse_deepseek},
    {.name = "mistral",
     .sign = "[TOOL_CALLS]",
     .open = "[TOOL_CALLS]",
     .first = "[",
     .last = "]",
     .between = ", ",
     .call = JSON_CALL,
     .short_ids = true,
     .parse = parse_json},
    {.name = "hermes",
     .sign = "<tool_call>",
     .open = "<tool_call>",
     .close = "</tool_call>",
     .first = "\n",
     .last = "\n",
     .call = JSON_CALL,
     .parse = parse_json},
    {.name = "granite",
     .sign = "<|tool_call|>",
     .open = "<|tool_call|>",
     .first = "[",
     .last = "]",
     .between = ", ",
     .call = JSON_CALL,
     .parse = parse_json},
    {.name = "llama3",
     .sign = "<|start_header_id|>",
     .style = XM_TOOL_BARE,
     .open = "<|python_tag|>",
     .call = "{\"name\": $n, \"parameters\": $a}",
     .parse = parse_json},
};

enum { FORMS = sizeof forms / sizeof *forms, HERMES = 4 };

const xm_tool_form *const xm_tool_default_form = &forms[HERMES];

const xm_tool_form *xm_tool_form_of(const char *template)
{
    for (size_t i = 0; template && i < FORMS; i++)
        if (strstr(template, forms[i].sign))
            return &forms[i];
    return xm_tool_default_form;
}
