/* token_list.c - see token_list.h. */
#include "format/token_list.h"

#include "base/memory.h"

bool xm_token_list_append(xm_token_list *list, int32_t token)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity < 64 ? 64 : list->capacity * 2;
        int32_t *tokens = xm_realloc(list->tokens, capacity, sizeof *tokens);
        if (tokens == NULL)
            return false;
        list->tokens = tokens;
        list->capacity = capacity;
    }
    list->tokens[list->count++] = token;
    return true;
}
