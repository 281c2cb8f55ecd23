/*
 * bench_model.h - the models of random weights that xmoe-bench measures.
 */
#ifndef XMOE_TOOLS_BENCH_MODEL_H
#define XMOE_TOOLS_BENCH_MODEL_H

#include "cli.h"

#include "xmoe.h"

/* 8 MoE layers of 64 experts of 512, d 1024, 16 heads, 32,000 tokens, Q8_0: 0.64 GB. */
xmoe_random_model bench_model_default(void);
/* One layer of 4 experts of 32: its step costs little but the step itself. */
xmoe_random_model bench_model_tiny(void);

enum { BENCH_MODEL_FLAGS = 13 };
/* Fills rows[BENCH_MODEL_FLAGS] with the flags over a shape; returns how many. */
size_t bench_model_add_flags(xmoe_random_model *shape, cli_flag *rows);

/* Directory for files that may go. */
const char *bench_temporary_directory(void);
/* Where a model of this shape is kept between runs: every field that changes it is in the name. */
void bench_model_path(const xmoe_random_model *shape, char *path, size_t size);

/* Writes it with progress on stderr; returns an exit status, after a message on failure. */
int bench_model_write(const xmoe_random_model *shape, const char *path, bool quiet);

#endif
