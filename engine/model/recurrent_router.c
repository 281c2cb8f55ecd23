/* recurrent_router.c - see recurrent_router.h. Runs on the loading thread. */
#include "model/recurrent_router.h"

#include "format/router_kind.h"
#include "model/bind.h"
#include "model/keys.h"

/* Routers are F32 in every file. */
static xmoe_status bind_matrix(xm_loader *loader, int32_t layer, const char *part, int32_t columns,
                               int32_t rows, xm_matrix *matrix, xmoe_error *error)
{
    char name[XM_TENSOR_NAME_BYTES];
    return xm_loader_bind_matrices(loader, xm_tensor_name(layer, part, "weight", name), columns,
                                   rows, 1, xm_weight_traits_of(XM_TYPE_F32), matrix, error);
}

/* One half of the cell: weight [3r x r] and bias [3r]. */
static xmoe_status bind_half(xm_loader *loader, const char *part, int32_t length, xm_matrix *weight,
                             const float **bias, xmoe_error *error)
{
    xmoe_status status = bind_matrix(loader, -1, part, length, 3 * length, weight, error);
    if (status != XMOE_OK)
        return status;
    return xm_bind_values(loader, -1, part, "bias", 3 * length, 1, XM_REQUIRED, bias, error);
}

xmoe_status xm_recurrent_router_bind(xm_loader *loader, const xm_gru **gru_out, xmoe_error *error)
{
    xm_gru *gru = xm_model_allocate(loader->model, 1, sizeof *gru);
    if (gru == NULL)
        return xm_fail_memory(error, "the router's GRU", sizeof *gru);
    xmoe_status status =
        xm_key_size(loader, "router.state_length", true, XM_MAX_ROUTER_STATE, &gru->length, error);
    if (status == XMOE_OK)
        status = bind_half(loader, "router_gru_input", gru->length, &gru->input, &gru->input_bias,
                           error);
    if (status == XMOE_OK)
        status = bind_half(loader, "router_gru_state", gru->length, &gru->state, &gru->state_bias,
                           error);
    *gru_out = gru;
    return status;
}

xmoe_status xm_recurrent_layer_bind(xm_loader *loader, int32_t index, const xm_gru *gru,
                                    xm_moe_layer *moe, xmoe_error *error)
{
    moe->gru = gru;
    xmoe_status status = bind_matrix(loader, index, "ffn_gate_inp_projection", moe->width,
                                     gru->length, &moe->projection, error);
    if (status != XMOE_OK)
        return status;
    return bind_matrix(loader, index, "ffn_gate_inp", gru->length, moe->experts, &moe->router,
                       error);
}
