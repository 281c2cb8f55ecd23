/*
 * trained_file.h - small networks of the trainer as files that the engine loads, for tests of what
 * is served of them.
 */
#ifndef XMOE_TESTS_TRAINED_FILE_H
#define XMOE_TESTS_TRAINED_FILE_H

#include "train/model_file.h"

enum { TRAINED_VOCABULARY = 260 }; /* 256 bytes, the end of text, three merges */

/* Architecture xmoe, router threshold 0.75, every second block MoE. */
xm_network_shape trained_file_shape(int32_t context, int32_t blocks, int32_t experts);

xmoe_status trained_file_write(const char *path, const xm_network *network, const float *parameters,
                               xmoe_error *error);

#endif
