/*
 * tool_choice.c - see tool_form.h: what a request says of tools, and the grammar that follows.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_read.h"
#include "json_schema.h"
#include "tool_form.h"

static const cJSON *function_of(const cJSON *tool)
{
    const char *type =
        cJSON_IsObject(tool) ? cJSON_GetStringValue(xm_json_member(tool, "type")) : NULL;
    if (!type || strcmp(type, "function") != 0)
        return NULL;
    const cJSON *function = xm_json_member(tool, "function");
    return cJSON_IsObject(function) ? function : NULL;
}

static const char *name_of(const cJSON *tool)
{
    const cJSON *function = function_of(tool);
    return function ? cJSON_GetStringValue(xm_json_member(function, "name")) : NULL;
}

static bool is_name(const char *name)
{
    size_t length = name ? strlen(name) : 0;
    return length > 0 && length <= 64 &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") ==
               length;
}

static bool check_tools(const cJSON *tools, xm_problem *problem)
{
    int index = 0;
    if (!cJSON_IsArray(tools) || cJSON_GetArraySize(tools) > XM_TOOL_LIMIT)
        return xm_problem_field(problem, "tools", "'tools' must be an array of at most %d tools",
                                XM_TOOL_LIMIT);
    for (const cJSON *tool = tools->child; tool; tool = tool->next, index++) {
        const cJSON *function = function_of(tool);
        if (!function)
            return xm_problem_field(problem, "tools",
                                    "'tools[%d]' must be {\"type\": \"function\", \"function\": "
                                    "{...}}",
                                    index);
        if (!is_name(name_of(tool)))
            return xm_problem_field(problem, "tools",
                                    "'tools[%d].function.name' must be 1 to 64 of letters, digits, "
                                    "'_', '-' and '.'",
                                    index);
        const cJSON *parameters = xm_json_member(function, "parameters");
        if (parameters && !cJSON_IsObject(parameters))
            return xm_problem_field(problem, "tools",
                                    "'tools[%d].function.parameters' must be a JSON schema", index);
    }
    return true;
}

static bool has_tool(const cJSON *tools, const char *name)
{
    for (const cJSON *tool = tools->child; tool; tool = tool->next)
        if (strcmp(name_of(tool), name) == 0)
            return true;
    return false;
}

static bool read_choice(const cJSON *given, xm_tool_choice *choice, xm_problem *problem)
{
    static const char *const words[] = {"none", "auto", "required"};
    const char *word = cJSON_GetStringValue(given);
    for (int i = 0; word && i < 3; i++)
        if (strcmp(words[i], word) == 0) {
            choice->need = (xm_tool_need)i;
            return true;
        }
    choice->need = XM_TOOLS_REQUIRED;
    choice->function = name_of(given);
    if (!choice->function)
        return xm_problem_field(problem, "tool_choice",
                                "'tool_choice' must be none, auto, required or {\"type\": "
                                "\"function\", \"function\": {\"name\": ...}}");
    if (!choice->tools || !has_tool(choice->tools, choice->function))
        return xm_problem_field(problem, "tool_choice", "'tool_choice': there is no tool '%.64s'",
                                choice->function);
    return true;
}

bool xm_tool_choice_read(const cJSON *body, xm_tool_choice *choice, xm_problem *problem)
{
    const cJSON *given = xm_json_member(body, "tool_choice");
    choice->tools = xm_json_member(body, "tools");
    choice->parallel = true;
    if (!xm_json_read_bool(body, "parallel_tool_calls", &choice->parallel, problem) ||
        (choice->tools && !check_tools(choice->tools, problem)))
        return false;
    if (choice->tools && !choice->tools->child)
        choice->tools = NULL;
    choice->need = choice->tools ? XM_TOOLS_AUTO : XM_TOOLS_NONE;
    if (given && !read_choice(given, choice, problem))
        return false;
    if (choice->need == XM_TOOLS_REQUIRED && !choice->tools)
        return xm_problem_field(problem, "tool_choice", "'tool_choice' needs 'tools'");
    if (!choice->tools || choice->need == XM_TOOLS_NONE) {
        choice->need = XM_TOOLS_NONE;
        choice->tools = NULL;
    }
    return true;
}

/* --- grammar ------------------------------------------------------------------------------------
 */

typedef struct {
    const xmoe_model *model;
    xm_text *out;
} grammar;

static void add_bytes(grammar *g, xm_text *bytes)
{
    if (bytes->length) {
        xm_schema_literal(g->out, bytes->data);
        xm_text_puts(g->out, " ");
    }
    xm_text_clear(bytes);
}

/* Text as the model writes it: special tokens as such, all else as bytes. */
static void add_text(grammar *g, const char *text, size_t length)
{
    int32_t *tokens = NULL;
    size_t count = 0;
    xm_text bytes = {0};
    if (xmoe_tokenize(g->model, text, length, false, true, &tokens, &count, NULL) != XMOE_OK)
        g->out->failed = true;
    for (size_t i = 0; i < count; i++) {
        size_t size = 0;
        const char *piece = xmoe_token_bytes(g->model, tokens[i], &size);
        if (xmoe_token_is_special(g->model, tokens[i])) {
            add_bytes(g, &bytes);
            xm_text_format(g->out, "<[%d]> ", tokens[i]);
        } else {
            xm_text_add(&bytes, piece, size);
        }
    }
    add_bytes(g, &bytes);
    g->out->failed = g->out->failed || bytes.failed;
    xm_text_free(&bytes);
    free(tokens);
}

static void add_string(grammar *g, const char *text)
{
    if (text && *text)
        add_text(g, text, strlen(text));
}

/* A form's call with the name and the rule of the arguments put in. */
static void add_call(grammar *g, const char *pattern, const char *name, int index)
{
    while (*pattern) {
        size_t plain = strcspn(pattern, "$");
        xm_text text = {0};
        if (plain)
            add_text(g, pattern, plain);
        pattern += plain;
        if (!*pattern)
            break;
        if (pattern[1] == 'a') {
            xm_text_format(g->out, "arguments-%d ", index);
        } else {
            xm_text_format(&text, pattern[1] == 'n' ? "\"%s\"" : "%s", name);
            xm_schema_literal(g->out, text.data ? text.data : "");
            xm_text_puts(g->out, " ");
        }
        xm_text_free(&text);
        pattern += 2;
    }
}

/* The rules call (one of the tools that may be called), arguments-0, arguments-1... */
static bool add_tools(grammar *g, const xm_tool_form *form, const xm_tool_choice *choice,
                      xm_problem *problem)
{
    xm_schema_rules rules = {0};
    int index = 0, used = 0;
    bool good = true;
    xm_text_puts(g->out, "call ::= ");
    for (const cJSON *tool = choice->tools->child; tool && good; tool = tool->next, index++) {
        char rule[32];
        const char *name = name_of(tool);
        if (choice->function && strcmp(choice->function, name) != 0)
            continue;
        xm_text_puts(g->out, used++ ? "| " : "");
        add_call(g, form->call, name, index);
        snprintf(rule, sizeof rule, "arguments-%d", index);
        const cJSON *schema = xm_json_member(function_of(tool), "parameters");
        if (schema && schema->child)
            good = xm_schema_rules_add(&rules, rule, schema, "tools", problem);
        else
            good = xm_schema_rules_add_object(&rules, rule, problem);
    }
    good = good && xm_schema_rules_end(&rules, problem);
    xm_text_puts(g->out, "\n");
    if (good && rules.text.data)
        xm_text_puts(g->out, rules.text.data);
    xm_text_free(&rules.text);
    return good;
}

/* What stands behind the first open: calls, close, and perhaps more of them. */
static void add_rest(grammar *g, const xm_tool_form *form, bool parallel)
{
    add_string(g, form->first);
    xm_text_puts(g->out, "call ");
    if (parallel && form->between) {
        xm_text_puts(g->out, "( ");
        add_string(g, form->between);
        xm_text_puts(g->out, "call )* ");
    }
    add_string(g, form->last);
    add_string(g, form->close);
    if (parallel && !form->between && form->close) {
        xm_text_puts(g->out, "( \"\\n\" ");
        add_string(g, form->open);
        add_string(g, form->first);
        xm_text_puts(g->out, "call ");
        add_string(g, form->last);
        add_string(g, form->close);
        xm_text_puts(g->out, ")* ");
    }
    xm_text_puts(g->out, "\n");
}

bool xm_tool_grammar(const xmoe_model *model, const xm_tool_form *form,
                     const xm_tool_choice *choice, bool thinks, bool begins_thinking,
                     xm_text *rules, const char **trigger, xm_problem *problem)
{
    grammar g = {model, rules};
    bool required = choice->need == XM_TOOLS_REQUIRED;
    *trigger = NULL;
    if (!form->call || (!required && form->style == XM_TOOL_BARE))
        return !required || form->call ||
               xm_problem_field(problem, "tool_choice",
                                "'tool_choice': this model's calls cannot be forced; use auto");
    xm_text_puts(rules, "root ::= ");
    if (!required)
        *trigger = form->open;
    if (required && begins_thinking)
        xm_text_puts(rules, "thought ");
    else if (required && thinks)
        xm_text_puts(rules, "( \"<think>\" thought )? ");
    if (required && form->style != XM_TOOL_BARE)
        add_string(&g, form->open);
    add_rest(&g, form, choice->parallel && form->style == XM_TOOL_MARKED);
    if (required && (thinks || begins_thinking))
        xm_text_puts(rules, "thought ::= ( [^<] | \"<\" [^/<] )* \"</think>\" [\\n]{0,2}\n");
    bool good = add_tools(&g, form, choice, problem);
    if (good && rules->failed)
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    return good;
}
