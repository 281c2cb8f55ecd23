/*
 * spread.h - what is told of a figure that was measured several times.
 */
#ifndef XMOE_TOOLS_SPREAD_H
#define XMOE_TOOLS_SPREAD_H

#include <stddef.h>

typedef struct {
    double median, minimum, maximum;
} spread_figures;

/* Sorts the values. Of none: zeros. */
spread_figures spread_of(double *values, size_t count);

#endif
