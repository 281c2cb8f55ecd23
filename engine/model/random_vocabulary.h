/*
 * random_vocabulary.h - the made-up vocabulary of random models: any text can be encoded, and there
 * are as many merges as asked for.
 */
#ifndef XM_MODEL_RANDOM_VOCABULARY_H
#define XM_MODEL_RANDOM_VOCABULARY_H

#include "format/gguf.h"

/* Tokens 0..255 are the bytes, 256 is <|endoftext|>; merges make the rest. */
enum { XM_BASE_VOCABULARY = 257 };

/* Writes the tokenizer.ggml.* keys of `size` >= XM_BASE_VOCABULARY tokens. */
xmoe_status xm_random_vocabulary_write(xm_gguf_writer *writer, int32_t size, xmoe_error *error);

#endif
