/* bind.c - see bind.h. Runs on the thread that loads the model. */
#include "model/bind.h"

#include <stdio.h>

const char *xm_tensor_name(int32_t layer, const char *part, const char *kind,
                           char name[XM_TENSOR_NAME_BYTES])
{
    if (layer < 0)
        snprintf(name, XM_TENSOR_NAME_BYTES, "%s.%s", part, kind);
    else
        snprintf(name, XM_TENSOR_NAME_BYTES, "blk.%d.%s.%s", layer, part, kind);
    return name;
}

xmoe_status xm_bind_values(xm_loader *loader, int32_t layer, const char *part, const char *kind,
                           int32_t columns, int32_t rows, xm_presence presence,
                           const float **values, xmoe_error *error)
{
    char name[XM_TENSOR_NAME_BYTES];
    xm_tensor_name(layer, part, kind, name);
    if (presence == XM_ABSENT || (presence == XM_OPTIONAL && !xm_loader_has(loader, name)))
        return XMOE_OK;
    return xm_loader_bind_values(loader, name, columns, rows, xm_weight_traits_of(XM_TYPE_F32),
                                 values, error);
}

xmoe_status xm_bind_norm(xm_loader *loader, int32_t layer, const char *part, xm_norm *norm,
                         xmoe_error *error)
{
    int32_t d = loader->model->info.embedding_length;
    bool bias = loader->model->norm_kind == XM_NORM_LAYER;
    xmoe_status status =
        xm_bind_values(loader, layer, part, "weight", d, 1, XM_REQUIRED, &norm->weight, error);
    if (status != XMOE_OK)
        return status;
    return xm_bind_values(loader, layer, part, "bias", d, 1, bias ? XM_REQUIRED : XM_ABSENT,
                          &norm->bias, error);
}

xmoe_status xm_bind_linear(xm_loader *loader, int32_t layer, const char *part, int32_t columns,
                           int32_t rows, xm_presence bias, xm_linear *linear, xmoe_error *error)
{
    char name[XM_TENSOR_NAME_BYTES];
    xmoe_status status =
        xm_loader_bind_matrices(loader, xm_tensor_name(layer, part, "weight", name), columns, rows,
                                1, NULL, &linear->weight, error);
    if (status != XMOE_OK)
        return status;
    return xm_bind_values(loader, layer, part, "bias", rows, 1, bias, &linear->bias, error);
}

xmoe_status xm_bind_linears(xm_loader *loader, int32_t layer, const char *part, int32_t columns,
                            int32_t rows, int32_t count, xm_presence bias, xm_matrix **matrices,
                            const float **biases, xmoe_error *error)
{
    char name[XM_TENSOR_NAME_BYTES];
    *matrices = xm_model_allocate(loader->model, (size_t)count, sizeof **matrices);
    if (*matrices == NULL)
        return xm_fail_memory(error, "list of matrices", (size_t)count * sizeof **matrices);
    xmoe_status status =
        xm_loader_bind_matrices(loader, xm_tensor_name(layer, part, "weight", name), columns, rows,
                                count, NULL, *matrices, error);
    if (status != XMOE_OK)
        return status;
    return xm_bind_values(loader, layer, part, "bias", rows, count, bias, biases, error);
}

xmoe_status xm_bind_layer_lists(xm_loader *loader,
                                bool (*is_moe)(const void *context, int32_t layer),
                                const void *context, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    size_t layers = (size_t)model->info.layer_count;
    model->layers = xm_model_allocate(model, layers, sizeof *model->layers);
    model->moe_layers = xm_model_allocate(model, layers, sizeof *model->moe_layers);
    if (model->layers == NULL || model->moe_layers == NULL)
        return xm_fail_memory(error, "layers", layers * sizeof *model->layers);
    for (int32_t i = 0; i < model->info.layer_count; i++) {
        if (!is_moe(context, i))
            continue;
        model->layers[i].is_moe = true;
        model->layers[i].moe_index = model->info.moe_layer_count;
        model->moe_layers[model->info.moe_layer_count++] = i;
    }
    return XMOE_OK;
}
