/*
 * bind.h - parts of a layer that families share, bound to tensors by their names: norms, products
 * with their biases, dense FFNs, experts. Above loader.h, which knows single tensors.
 */
#ifndef XM_MODEL_BIND_H
#define XM_MODEL_BIND_H

#include "model/loader.h"

typedef enum { XM_ABSENT, XM_OPTIONAL, XM_REQUIRED } xm_presence;

enum { XM_TENSOR_NAME_BYTES = 64 }; /* the format's limit */

/* "blk.LAYER.PART.KIND", or "PART.KIND" of the whole model where layer is negative. */
const char *xm_tensor_name(int32_t layer, const char *part, const char *kind,
                           char name[XM_TENSOR_NAME_BYTES]);

/* F32 values [columns x rows] as xm_loader_bind_values has them; *values stays NULL where an
 * optional tensor is not there. */
xmoe_status xm_bind_values(xm_loader *loader, int32_t layer, const char *part, const char *kind,
                           int32_t columns, int32_t rows, xm_presence presence,
                           const float **values, xmoe_error *error);
/* A norm over the residual stream, of the model's kind. */
xmoe_status xm_bind_norm(xm_loader *loader, int32_t layer, const char *part, xm_norm *norm,
                         xmoe_error *error);
/* A matrix [rows x columns] and its bias. */
xmoe_status xm_bind_linear(xm_loader *loader, int32_t layer, const char *part, int32_t columns,
                           int32_t rows, xm_presence bias, xm_linear *linear, xmoe_error *error);
/* count matrices, allocated here, and their biases [rows x count]. */
xmoe_status xm_bind_linears(xm_loader *loader, int32_t layer, const char *part, int32_t columns,
                            int32_t rows, int32_t count, xm_presence bias, xm_matrix **matrices,
                            const float **biases, xmoe_error *error);
/* Allocates layers and moe_layers; is_moe says which are. info->moe_layer_count is set here. */
xmoe_status xm_bind_layer_lists(xm_loader *loader,
                                bool (*is_moe)(const void *context, int32_t layer),
                                const void *context, xmoe_error *error);

#endif
