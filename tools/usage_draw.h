/*
 * usage_draw.h - expert usage as an SVG heat map: a row per MoE layer, a column per expert, each
 * cell with a tooltip. One usage is drawn in a sequential palette by share of the layer's
 * activations, two by how the share changes from a to b, in a diverging one. Both can be read by
 * eyes that do not tell red from green, the first also in grey.
 */
#ifndef XMOE_TOOLS_USAGE_DRAW_H
#define XMOE_TOOLS_USAGE_DRAW_H

#include "xmoe.h"

#include <stdio.h>

/* title is any text; b may be NULL, else it has the same layers and experts as a. Write errors are
 * left to the stream's owner. */
void usage_draw(FILE *out, const char *title, const xmoe_usage *a, const xmoe_usage *b);

#endif
