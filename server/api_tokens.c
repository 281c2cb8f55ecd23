/*
 * api_tokens.c - POST /tokenize, /detokenize and /apply-template, with llama-server's options.
 */
#include <stdlib.h>
#include <string.h>

#include "api.h"
#include "chat_template.h"
#include "server.h"

/* A piece is a string or, where it is not well-formed UTF-8, the list of its bytes. */
static void write_piece(const xmoe_model *model, int32_t token, xm_json *json)
{
    size_t length = 0;
    const char *bytes = xmoe_token_bytes(model, token, &length);
    xm_json_open(json, NULL, '{');
    xm_json_int(json, "id", token);
    if (xm_text_is_utf8(bytes, length)) {
        xm_json_bytes(json, "piece", bytes, length);
    } else {
        xm_json_open(json, "piece", '[');
        for (size_t i = 0; i < length; i++)
            xm_json_int(json, NULL, (unsigned char)bytes[i]);
        xm_json_close(json, ']');
    }
    xm_json_close(json, '}');
}

static bool tokenize(const xm_server *server, const cJSON *body, xm_json *json, xm_problem *problem)
{
    const xmoe_model *model = server->model;
    const char *content = NULL;
    bool add_special = false, parse_special = true, with_pieces = false;
    if (!xm_json_read_string(body, "content", &content, problem) ||
        !xm_json_read_bool(body, "add_special", &add_special, problem) ||
        !xm_json_read_bool(body, "parse_special", &parse_special, problem) ||
        !xm_json_read_bool(body, "with_pieces", &with_pieces, problem))
        return false;
    if (!content)
        return xm_problem_field(problem, "content", "'content' is missing: the text to tokenize");
    int32_t *tokens = NULL;
    size_t count = 0;
    xmoe_error error = {0};
    if (xmoe_tokenize(model, content, strlen(content), add_special, parse_special, &tokens, &count,
                      &error) != XMOE_OK)
        return xm_problem_engine(problem, &error, "content");
    xm_json_open(json, NULL, '{');
    xm_json_open(json, "tokens", '[');
    for (size_t i = 0; i < count; i++)
        if (with_pieces)
            write_piece(model, tokens[i], json);
        else
            xm_json_int(json, NULL, tokens[i]);
    xm_json_close(json, ']');
    xm_json_close(json, '}');
    free(tokens);
    return true;
}

/* Special tokens give their text. The space that encoding puts before a text is taken off again. */
static bool detokenize(const xm_server *server, const cJSON *body, xm_json *json,
                       xm_problem *problem)
{
    const xmoe_model *model = server->model;
    const cJSON *tokens = xm_json_member(body, "tokens");
    int32_t vocabulary = xmoe_model_get_info(model)->vocabulary_size;
    bool at_start = xmoe_model_get_info(model)->add_space;
    xm_text text = {0};
    if (!cJSON_IsArray(tokens))
        return xm_problem_field(problem, "tokens", "'tokens' must be an array of token ids");
    for (const cJSON *item = tokens->child; item; item = item->next) {
        int64_t token = 0;
        size_t length = 0;
        if (!xm_json_whole(item, 0, vocabulary - 1, &token)) {
            xm_text_free(&text);
            return xm_problem_field(problem, "tokens", "'tokens' must hold ids from 0 to %d",
                                    vocabulary - 1);
        }
        const char *bytes = xmoe_token_bytes(model, (int32_t)token, &length);
        bool added = at_start && length > 0 && bytes[0] == ' ';
        at_start = at_start && xmoe_token_is_special(model, (int32_t)token);
        xm_text_add(&text, bytes + added, length - added);
    }
    json->out->failed = json->out->failed || text.failed;
    xm_json_open(json, NULL, '{');
    xm_json_bytes(json, "content", text.data ? text.data : "", text.length);
    xm_json_close(json, '}');
    xm_text_free(&text);
    return true;
}

static bool apply_template(const xm_server *server, const cJSON *body, xm_json *json,
                           xm_problem *problem)
{
    xm_jinja_output prompt = {0};
    xm_tool_choice choice = {0};
    bool good = xm_tool_choice_read(body, &choice, problem) &&
                xm_chat_apply(server->chat, body, &choice, &prompt, problem);
    if (good) {
        xm_json_open(json, NULL, '{');
        xm_json_bytes(json, "prompt", prompt.text.data ? prompt.text.data : "", prompt.text.length);
        xm_json_close(json, '}');
    }
    xm_jinja_output_free(&prompt);
    return good;
}

/* Parses the body, lets work write the answer, replies. */
static void answer_with(xm_exchange *exchange,
                        bool (*work)(const xm_server *, const cJSON *, xm_json *, xm_problem *))
{
    xm_problem problem = {0};
    xm_text answer = {0};
    xm_json json = {&answer, false};
    cJSON *body = xm_api_body(exchange, &problem);
    if (body && work(exchange->server, body, &json, &problem)) {
        xm_exchange_reply_json(exchange, &answer);
    } else {
        xm_text_free(&answer);
        xm_exchange_reply_problem(exchange, &problem);
    }
    cJSON_Delete(body);
}

void xm_api_tokenize(xm_exchange *exchange)
{
    answer_with(exchange, tokenize);
}

void xm_api_detokenize(xm_exchange *exchange)
{
    answer_with(exchange, detokenize);
}

void xm_api_apply_template(xm_exchange *exchange)
{
    answer_with(exchange, apply_template);
}
