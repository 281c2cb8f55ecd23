/*
 * documents.c - see documents.h.
 */
#include "documents.h"

#include "cli.h"

#include <stdlib.h>
#include <string.h>

static const char separator[] = "<|endoftext|>";

int32_t documents_begin_token(const xmoe_model *model)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    return info->bos_token >= 0 ? info->bos_token : info->eos_token;
}

static bool grow(document_list *list)
{
    if (list->count < list->capacity) {
        return true;
    }
    size_t capacity = list->capacity == 0 ? 64 : 2 * list->capacity;
    document *items = realloc(list->items, capacity * sizeof *items);
    if (items == NULL) {
        cli_fail("out of memory");
        return false;
    }
    list->items = items;
    list->capacity = capacity;
    return true;
}

static bool add_document(document_list *list, const xmoe_model *model, const char *text,
                         size_t length, int32_t file)
{
    xmoe_error error;
    int32_t *tokens;
    size_t count;
    if (!grow(list)) {
        return false;
    }
    if (xmoe_tokenize(model, text, length, false, false, &tokens, &count, &error) != XMOE_OK) {
        cli_fail("%s", error.message);
        return false;
    }
    int32_t *sequence = realloc(tokens, (count + 1) * sizeof *sequence);
    if (sequence == NULL) {
        free(tokens);
        cli_fail("out of memory");
        return false;
    }
    memmove(sequence + 1, sequence, count * sizeof *sequence);
    sequence[0] = documents_begin_token(model);
    list->items[list->count++] =
        (document){.file = file, .bytes = length, .tokens = sequence, .count = count + 1};
    return true;
}

/* The next separator line at or after text: its start, and in *after where the next document
 * begins. Without one: both are end. */
static const char *find_separator(const char *text, const char *end, const char **after)
{
    const size_t length = sizeof separator - 1;
    const char *line = text;
    while (line < end) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        const char *line_end = newline != NULL ? newline : end;
        if ((size_t)(line_end - line) == length && memcmp(line, separator, length) == 0) {
            *after = newline != NULL ? newline + 1 : end;
            return line;
        }
        line = newline != NULL ? newline + 1 : end;
    }
    *after = end;
    return end;
}

static bool add_text(document_list *list, const xmoe_model *model, const char *text, size_t length,
                     int32_t file, int32_t limit)
{
    const char *end = text + length;
    int32_t added = 0;
    while (text < end && (limit == 0 || added < limit)) {
        const char *after;
        const char *stop = find_separator(text, end, &after);
        if (stop > text) {
            if (!add_document(list, model, text, (size_t)(stop - text), file)) {
                return false;
            }
            added++;
        }
        text = after;
    }
    return true;
}

bool documents_add_file(document_list *list, const xmoe_model *model, const char *path,
                        int32_t file, int32_t limit)
{
    if (documents_begin_token(model) < 0) {
        cli_fail("the model has neither a begin-of-text nor an end-of-text token: the first token "
                 "of a document could not be predicted");
        return false;
    }
    size_t length;
    char *text = cli_read_file(path, &length);
    if (text == NULL) {
        return false;
    }
    bool good = add_text(list, model, text, length, file, limit);
    free(text);
    return good;
}

void documents_free(document_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].tokens);
    }
    free(list->items);
    *list = (document_list){0};
}
