/*
 * grow.h - starts a network from a trained one that is as large or smaller: more blocks, wider
 * dense FFNs and experts, a longer context. What the network has more of is made so that it
 * computes the same function as the file until it is trained (Chen et al. 2015, arXiv 1511.05641):
 *
 *   hidden units   their rows of the up (and gate) matrix stay as they are, their columns of the
 *                  down matrix become 0
 *   blocks         behind those of the file; their attn_output and ffn_down become 0, so that they
 *                  add nothing to what passes through
 *   positions      stay as they are
 */
#ifndef XM_TRAIN_GROW_H
#define XM_TRAIN_GROW_H

#include "format/gguf.h"
#include "train/network.h"

/* parameters: as xm_network_init left them; tensors of any weight type are read over them. Refuses
 * a file that is larger in any way, or smaller in another than those above, naming the tensor. */
xmoe_status xm_grow(const xm_gguf *file, const xm_network *network, float *parameters,
                    xmoe_error *error);

#endif
