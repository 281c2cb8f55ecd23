/*
 * token_list.h - the tokens of a text while it is being encoded: a growing array.
 */
#ifndef XM_FORMAT_TOKEN_LIST_H
#define XM_FORMAT_TOKEN_LIST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int32_t *tokens; /* xm_free */
    size_t count, capacity;
} xm_token_list; /* start with {0} */

/* False without memory. */
bool xm_token_list_append(xm_token_list *list, int32_t token);

#endif
