/*
 * prompts.c - the prompts of a generation request as tokens: a string, an array of strings, an
 * array of token ids, an array of such arrays, or the messages of a chat.
 *
 * Special tokens written out in a prompt (<|endoftext|>) are taken as such in completions; in a
 * chat only where the model's template wrote them, as messages may come from a stranger.
 */
#include <stdlib.h>
#include <string.h>

#include "chat_template.h"
#include "generate_params.h"

static bool no_memory(xm_problem *problem)
{
    return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
}

/* An empty prompt is the start of a text: the model's begin (or end) of text token. */
static bool start_of_text(const xmoe_model *model, xm_prompt *prompt, xm_problem *problem)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    int32_t token = info->bos_token >= 0 ? info->bos_token : info->eos_token;
    if (token < 0)
        return xm_problem_field(problem, prompt->field,
                                "'%s' must not be empty: the model has no start token",
                                prompt->field);
    free(prompt->tokens);
    prompt->tokens = malloc(sizeof *prompt->tokens);
    if (!prompt->tokens)
        return no_memory(problem);
    prompt->tokens[0] = token;
    prompt->count = 1;
    prompt->empty = true;
    return true;
}

static bool from_text(const xmoe_model *model, const char *text, bool keep, bool special,
                      xm_prompt *prompt, xm_problem *problem)
{
    xmoe_error error = {0};
    size_t length = strlen(text);
    if (xmoe_tokenize(model, text, length, true, special, &prompt->tokens, &prompt->count,
                      &error) != XMOE_OK)
        return xm_problem_engine(problem, &error, prompt->field);
    if (keep) {
        xm_text_add(&prompt->text, text, length);
        if (prompt->text.failed)
            return no_memory(problem);
    }
    return prompt->count > 0 || start_of_text(model, prompt, problem);
}

static bool from_ids(const xmoe_model *model, const cJSON *ids, bool keep, xm_prompt *prompt,
                     xm_problem *problem)
{
    int32_t vocabulary = xmoe_model_get_info(model)->vocabulary_size;
    size_t count = (size_t)cJSON_GetArraySize(ids);
    xm_text bytes = {0};
    if (count == 0)
        return xm_problem_field(problem, prompt->field, "'%s' holds an empty list of tokens",
                                prompt->field);
    prompt->tokens = calloc(count, sizeof *prompt->tokens);
    if (!prompt->tokens)
        return no_memory(problem);
    for (const cJSON *item = ids->child; item; item = item->next) {
        int64_t id = 0;
        if (!xm_json_whole(item, 0, vocabulary - 1, &id)) {
            xm_text_free(&bytes);
            return xm_problem_field(problem, prompt->field, "'%s' must hold token ids from 0 to %d",
                                    prompt->field, vocabulary - 1);
        }
        prompt->tokens[prompt->count++] = (int32_t)id;
        size_t length = 0;
        const char *piece = keep ? xmoe_token_bytes(model, (int32_t)id, &length) : NULL;
        if (piece)
            xm_text_add(&bytes, piece, length);
    }
    if (bytes.length)
        xm_text_add_utf8(&prompt->text, bytes.data, bytes.length);
    bool failed = bytes.failed || prompt->text.failed;
    xm_text_free(&bytes);
    return failed ? no_memory(problem) : true;
}

static bool make_prompts(size_t count, const char *field, const xm_settings *settings,
                         xm_generate_params *params, xm_problem *problem)
{
    int64_t most = settings->limits_prompts;
    if ((int64_t)count > most) {
        xm_problem_field(problem, field,
                         "'%s' holds %zu prompts; at most %lld may be asked at once", field, count,
                         (long long)most);
        return false;
    }
    if (settings->limits_choices > most)
        most = settings->limits_choices;
    if ((int64_t)count * params->engine.choices > most) {
        xm_problem_field(problem, "n", "%zu prompts with %d choices each are more than %lld", count,
                         params->engine.choices, (long long)most);
        return false;
    }
    params->prompts = calloc(count, sizeof *params->prompts);
    if (!params->prompts) {
        no_memory(problem);
        return false;
    }
    params->prompt_count = count;
    for (size_t i = 0; i < count; i++)
        params->prompts[i].field = field;
    return true;
}

static bool ends_with(const xm_text *text, const char *end)
{
    size_t length = text->length, size = strlen(end);
    while (length && (text->data[length - 1] == '\n' || text->data[length - 1] == ' '))
        length--;
    return length >= size && memcmp(text->data + length - size, end, size) == 0;
}

/* How the answer is to be read, and the grammar that its calls are held to. */
static bool read_calls(const xmoe_model *model, const xm_tool_choice *choice, const xm_text *prompt,
                       xm_generate_params *params, xm_problem *problem)
{
    const xm_chat_format *format = params->format;
    xm_text rules = {0};
    const char *trigger = NULL;
    params->reply = (xm_reply_style){
        .form = format->form,
        .tools = choice->tools ? cJSON_Duplicate(choice->tools, true) : NULL,
        .thinks = format->thinks,
        .begins_thinking = format->thinks && ends_with(prompt, "<think>"),
    };
    /* Their markers may be special tokens. */
    if (choice->tools || format->thinks || format->form->style == XM_TOOL_CHANNELS)
        params->engine.special_text = true;
    if (!choice->tools)
        return true;
    if (!params->reply.tools)
        return no_memory(problem);
    bool good = xm_tool_grammar(model, format->form, choice, format->thinks,
                                params->reply.begins_thinking, &rules, &trigger, problem);
    if (good && rules.length)
        good = xm_grammar_cache_get(params->grammars, rules.data, rules.length, trigger, "tools",
                                    &params->engine.grammar, problem);
    xm_text_free(&rules);
    return good;
}

static bool from_chat(const xmoe_model *model, const xm_jinja_output *chat, xm_prompt *prompt,
                      xm_problem *problem)
{
    xmoe_error error = {0};
    if (xmoe_tokenize_marked(model, chat->text.data ? chat->text.data : "", chat->input.data,
                             chat->text.length, &prompt->tokens, &prompt->count, &error) != XMOE_OK)
        return xm_problem_engine(problem, &error, "messages");
    return prompt->count > 0 || start_of_text(model, prompt, problem);
}

static bool read_messages(const xmoe_model *model, const xm_settings *settings, const cJSON *body,
                          xm_generate_params *params, xm_problem *problem)
{
    xm_jinja_output chat = {0};
    xm_tool_choice choice = {0};
    bool good = xm_tool_choice_read(body, &choice, problem) &&
                xm_chat_apply(params->format, body, &choice, &chat, problem) &&
                read_calls(model, &choice, &chat.text, params, problem) &&
                make_prompts(1, "messages", settings, params, problem) &&
                from_chat(model, &chat, &params->prompts[0], problem);
    xm_jinja_output_free(&chat);
    return good;
}

static bool read_list(const xmoe_model *model, const xm_settings *settings, const cJSON *list,
                      const char *field, xm_generate_params *params, xm_problem *problem)
{
    if (!list->child)
        return xm_problem_field(problem, field, "'%s' must not be an empty array", field);
    if (cJSON_IsNumber(list->child))
        return make_prompts(1, field, settings, params, problem) &&
               from_ids(model, list, params->echo, &params->prompts[0], problem);
    bool strings = cJSON_IsString(list->child);
    if (!make_prompts((size_t)cJSON_GetArraySize(list), field, settings, params, problem))
        return false;
    xm_prompt *prompt = params->prompts;
    for (const cJSON *item = list->child; item; item = item->next, prompt++) {
        if (strings ? !cJSON_IsString(item) : !cJSON_IsArray(item))
            return xm_problem_field(
                problem, field,
                "'%s' must be a string, an array of strings, or an array of token ids or of "
                "arrays of them, not a mixture",
                field);
        bool good = strings
                        ? from_text(model, item->valuestring, params->echo, true, prompt, problem)
                        : from_ids(model, item, params->echo, prompt, problem);
        if (!good)
            return false;
    }
    return true;
}

/* The engine checks each prompt as it is submitted. Of several all are checked before, so that a
 * request that is refused has not been half computed. */
static bool check_lengths(const xmoe_model *model, const xm_generate_params *params,
                          xm_problem *problem)
{
    int32_t context = xmoe_model_get_info(model)->context_length;
    bool generates = params->engine.max_tokens > 0;
    for (size_t i = 0; i < params->prompt_count && params->prompt_count > 1; i++)
        if (params->prompts[i].count + generates > (size_t)context)
            return xm_problem_set(problem, 400, "context_length_exceeded", params->prompts[i].field,
                                  "prompt %zu has %zu tokens%s, the model's context %d", i,
                                  params->prompts[i].count,
                                  generates ? " and leaves no room for output" : "", context);
    return true;
}

bool xm_prompts_read_from(const xmoe_model *model, const xm_settings *settings, const cJSON *body,
                          const char *field, xm_generate_params *params, xm_problem *problem)
{
    const cJSON *prompt = xm_json_member(body, field);
    if (!prompt)
        return xm_problem_field(problem, field, "'%s' is missing", field);
    if (cJSON_IsArray(prompt))
        return read_list(model, settings, prompt, field, params, problem) &&
               check_lengths(model, params, problem);
    if (!cJSON_IsString(prompt))
        return xm_problem_field(problem, field, "'%s' must be a string or an array", field);
    return make_prompts(1, field, settings, params, problem) &&
           from_text(model, prompt->valuestring, params->echo, true, &params->prompts[0], problem);
}

bool xm_prompts_read(const xmoe_model *model, const xm_settings *settings, const cJSON *body,
                     xm_generate_params *params, xm_problem *problem)
{
    if (params->chat)
        return read_messages(model, settings, body, params, problem);
    if (xm_json_member(body, "prompt"))
        return xm_prompts_read_from(model, settings, body, "prompt", params, problem);
    return make_prompts(1, "prompt", settings, params, problem) &&
           start_of_text(model, &params->prompts[0], problem);
}
