/*
 * model_fixture.h - what the tests of loading share: a good random model in a file, and the path of
 * another that a test may write.
 */
#ifndef XM_TESTS_MODEL_FIXTURE_H
#define XM_TESTS_MODEL_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "xmoe.h"

extern char model_good[64], model_bad[64];
/* Layers 0 and 2 dense, 1 and 3 MoE. */
extern const xmoe_random_model model_shape;

/* Group fixtures. */
int model_write_good(void **state);
int model_remove_files(void **state);

/* With one thread. */
xmoe_status model_load(const char *path, xmoe_model **model, xmoe_error *error);
xmoe_model *model_load_good(void);
/* All of a file; free it. */
uint8_t *model_read_file(const char *path, size_t *size);

#endif
