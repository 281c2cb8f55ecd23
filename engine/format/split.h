/*
 * split.h - cuts text into the pieces that byte-level BPE merges within: GPT-2's split. Used to
 * encode and when a vocabulary is learned, so that both agree.
 */
#ifndef XM_FORMAT_SPLIT_H
#define XM_FORMAT_SPLIT_H

#include "base/error.h"

/* A compiled pattern; immutable, any thread. */
typedef struct xm_splitter xm_splitter;

xmoe_status xm_splitter_create(xm_splitter **splitter, xmoe_error *error);
void xm_splitter_free(xm_splitter *splitter);

/* One piece of the text given to xm_split; another status than XMOE_OK ends the split. */
typedef xmoe_status (*xm_piece_fn)(void *context, const char *piece, size_t length);

/* Calls each for every piece, from left to right; together the pieces are the text. Bytes that are
 * not UTF-8 are split as U+FFFD would be; pieces hold them as they are. */
xmoe_status xm_split(const xm_splitter *splitter, const char *text, size_t length, xm_piece_fn each,
                     void *context, xmoe_error *error);

#endif
