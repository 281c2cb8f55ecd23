/*
 * train_bench.h - xmoe-train --bench: one MoE layer's forward and backward pass beside what
 * the same products alone give, and a large square.
 */
#ifndef XMOE_TOOLS_TRAIN_BENCH_H
#define XMOE_TOOLS_TRAIN_BENCH_H

#include "train/trainer.h"

/* Prints a table to stdout; the layer's shape, its rows (those of a group), router, capacity and
 * threads are the options', the experts those of architecture xmoe, the router a softmax of one
 * view; others are refused. Returns an exit status. */
int train_bench(const xm_trainer_options *options);

#endif
