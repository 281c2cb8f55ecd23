/*
 * infill.c - see infill.h. The prompt is laid out as models are trained to read it, with single
 * tokens in capitals:
 *
 *     REPOSITORY project \n  (FILE name \n text)...      where there are other files, and the model
 *     FILE this \n                                        has both tokens
 *     PREFIX before the gap  SUFFIX after it  MIDDLE  beginning of the answer
 *
 * Other files come as plain text before all else for models without such tokens. Special tokens
 * written out in any of the texts are text: they come from files.
 */
#include "infill.h"

#include <stdlib.h>
#include <string.h>

static bool no_memory(xm_problem *problem)
{
    return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
}

/* Appends count tokens. */
static bool add_tokens(xm_prompt *prompt, const int32_t *tokens, size_t count, xm_problem *problem)
{
    int32_t *grown = realloc(prompt->tokens, (prompt->count + count + 1) * sizeof *grown);
    if (!grown)
        return no_memory(problem);
    prompt->tokens = grown;
    if (count)
        memcpy(grown + prompt->count, tokens, count * sizeof *grown);
    prompt->count += count;
    return true;
}

static bool add_text(const xmoe_model *model, const char *text, xm_prompt *prompt,
                     xm_problem *problem)
{
    int32_t *tokens = NULL;
    size_t count = 0;
    xmoe_error error = {0};
    if (xmoe_tokenize(model, text, strlen(text), false, false, &tokens, &count, &error) != XMOE_OK)
        return xm_problem_engine(problem, &error, prompt->field);
    bool good = add_tokens(prompt, tokens, count, problem);
    free(tokens);
    return good;
}

/* The marker's token and then the text. */
static bool add_part(const xmoe_model *model, int32_t marker, const char *text, xm_prompt *prompt,
                     xm_problem *problem)
{
    return add_tokens(prompt, &marker, marker >= 0, problem) &&
           add_text(model, text, prompt, problem);
}

static bool add_file(const xmoe_model *model, const cJSON *item, int32_t marker, xm_prompt *prompt,
                     xm_problem *problem)
{
    const char *name = "", *text = NULL;
    xm_text whole = {0};
    if (!cJSON_IsObject(item) || !xm_json_read_string(item, "filename", &name, problem) ||
        !xm_json_read_string(item, "text", &text, problem) || !text)
        return xm_problem_field(problem, "input_extra",
                                "'input_extra' must hold objects with 'filename' and 'text'");
    xm_text_puts(&whole, marker >= 0 ? name : "\n\n--- ");
    xm_text_puts(&whole, marker >= 0 ? "" : name);
    xm_text_puts(&whole, marker >= 0 ? "\n" : " ---\n\n");
    xm_text_puts(&whole, text);
    bool good =
        whole.failed ? no_memory(problem) : add_part(model, marker, whole.data, prompt, problem);
    xm_text_free(&whole);
    return good;
}

static bool add_files(const xmoe_model *model, const cJSON *body, xm_prompt *prompt,
                      xm_problem *problem)
{
    const xmoe_infill_tokens *tokens = &xmoe_model_get_info(model)->infill;
    const cJSON *files = xm_json_member(body, "input_extra");
    bool marked = tokens->repository >= 0 && tokens->file >= 0;
    if (!files)
        return true;
    if (!cJSON_IsArray(files))
        return xm_problem_field(problem, "input_extra", "'input_extra' must be an array");
    if (!files->child)
        return true;
    if (marked && !add_part(model, tokens->repository, "project\n", prompt, problem))
        return false;
    for (const cJSON *item = files->child; item; item = item->next)
        if (!add_file(model, item, marked ? tokens->file : -1, prompt, problem))
            return false;
    return !marked || add_part(model, tokens->file, "this\n", prompt, problem);
}

/* -1 is no limit but the context. */
static bool read_limit(const cJSON *body, const xm_settings *settings, int32_t context,
                       xm_generate_params *params, xm_problem *problem)
{
    int32_t limit = -1;
    if (xm_json_member(body, "max_tokens"))
        return true;
    if (!xm_json_read_int32(body, "n_predict", -1, INT32_MAX, &limit, problem))
        return false;
    if (limit < 0 || limit > context)
        limit = context;
    if (settings->limits_max_tokens > 0 && limit > settings->limits_max_tokens)
        limit = (int32_t)settings->limits_max_tokens;
    params->engine.max_tokens = limit;
    return true;
}

bool xm_infill_prompt_read(const xmoe_model *model, const xm_settings *settings, const cJSON *body,
                           xm_generate_params *params, xm_problem *problem)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    const char *before = NULL, *after = NULL, *begun = "";
    if (info->infill.prefix < 0 || info->infill.suffix < 0 || info->infill.middle < 0)
        return xm_problem_set(problem, 501, "unsupported", NULL,
                              "the model has no tokens for filling gaps in texts");
    if (!xm_json_read_string(body, "input_prefix", &before, problem) ||
        !xm_json_read_string(body, "input_suffix", &after, problem) ||
        !xm_json_read_string(body, "prompt", &begun, problem) ||
        !read_limit(body, settings, info->context_length, params, problem))
        return false;
    if (!before || !after)
        return xm_problem_field(problem, before ? "input_suffix" : "input_prefix",
                                "'%s' is missing", before ? "input_suffix" : "input_prefix");
    params->prompts = calloc(1, sizeof *params->prompts);
    if (!params->prompts)
        return no_memory(problem);
    params->prompt_count = 1;
    params->prompts->field = "input_prefix";
    return add_tokens(params->prompts, &info->bos_token, info->add_bos, problem) &&
           add_files(model, body, params->prompts, problem) &&
           add_part(model, info->infill.prefix, before, params->prompts, problem) &&
           add_part(model, info->infill.suffix, after, params->prompts, problem) &&
           add_part(model, info->infill.middle, begun, params->prompts, problem);
}
