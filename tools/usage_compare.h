/*
 * usage_compare.h - which experts moved between two workloads, layer by layer: the Jensen-Shannon
 * divergence of their shares, those whose share grew and fell most, and those that only one of the
 * two uses. A share is a part of the layer's activations; changes are those from A to B.
 */
#ifndef XMOE_TOOLS_USAGE_COMPARE_H
#define XMOE_TOOLS_USAGE_COMPARE_H

#include "usage_file.h"

/* One of the two: a phase of a file. */
typedef struct {
    const char *path;
    const usage_file *file;
    const xmoe_usage *usage;
} usage_side;

/* True if both have the same layers with as many experts; else false after a message. Says on
 * stderr if they are of models of different names. */
bool usage_comparable(const usage_side *a, const usage_side *b);

/* A table with the `top` experts that moved most in each direction; false after a message. */
bool usage_compare_print(const usage_side *a, const usage_side *b, int32_t top);
/* The same as JSON on stdout, with the change of every expert's share. */
bool usage_compare_json(const usage_side *a, const usage_side *b, int32_t top);

#endif
