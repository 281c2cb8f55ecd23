/*
 * model_file.h - a network in training as a GGUF file of its architecture, and back.
 */
#ifndef XM_TRAIN_MODEL_FILE_H
#define XM_TRAIN_MODEL_FILE_H

#include "train/network.h"
#include "train/vocabulary.h"

typedef struct {
    const char *name, *license, *description; /* general.* keys; NULL: left out */
} xm_model_labels;

/* Writes all tensors as F32; xmoe_quantize makes smaller files of it. */
xmoe_status xm_model_file_write(const char *path, const xm_network *network,
                                const xm_vocabulary *vocabulary, const xm_model_labels *labels,
                                const float *parameters, xmoe_error *error);

/* The shape that the keys and tensors of a file give. init_std and router_std are the defaults.
 * Refuses what the network would compute otherwise than the file means it: an output matrix that is
 * not tied, chosen weights that are normalised, rotary positions of another base, and a tokenizer
 * that is not of a vocabulary of ours. */
xmoe_status xm_model_file_shape(const xm_gguf *file, xm_network_shape *shape, xmoe_error *error);
/* Reads the tensors of any weight type into parameters; each must be there with the right shape. */
xmoe_status xm_model_file_read(const xm_gguf *file, const xm_network *network, float *parameters,
                               xmoe_error *error);

/* Starts a network from a model that is as large or smaller: more blocks, wider dense FFNs and
 * experts, a longer context. What the network has more of is made so that it computes the same
 * function as the file until it is trained (Chen et al. 2015, arXiv 1511.05641):
 *
 *   hidden units   their rows of the up (and gate) matrix stay as they are, their columns of the
 *                  down matrix become 0
 *   blocks         behind those of the file; their attn_output and ffn_down become 0, so that they
 *                  add nothing to what passes through
 *   positions      stay as they are
 *
 * parameters: as xm_network_init left them. Refuses a file that is larger in any way, or smaller in
 * another than those above, naming the tensor, and one of another vocabulary. The router may be of
 * another type: what it knows is a start for that too. */
xmoe_status xm_model_file_grow(const xm_gguf *file, const xm_vocabulary *vocabulary,
                               const xm_network *network, float *parameters, xmoe_error *error);

#endif
