/* trained_file.c - see trained_file.h. */
#include "trained_file.h"

xm_network_shape trained_file_shape(int32_t context, int32_t blocks, int32_t experts)
{
    return (xm_network_shape){.vocabulary = TRAINED_VOCABULARY,
                              .context = context,
                              .width = 32,
                              .blocks = blocks,
                              .heads = 2,
                              .feed_forward = 64,
                              .experts = experts,
                              .expert_feed_forward = 32,
                              .moe_every = 2,
                              .epsilon = 1e-5f,
                              .threshold = 0.75f,
                              .top_k = 1,
                              .init_std = 0.1f,
                              .router_std = 1.0f};
}

xmoe_status trained_file_write(const char *path, const xm_network *network, const float *parameters,
                               xmoe_error *error)
{
    static const xm_merge merges[] = {{'t', 'h'}, {' ', 257}, {258, 'e'}};
    static const xm_vocabulary vocabulary = {(xm_merge *)(uintptr_t)merges, 3};
    return xm_model_file_write(path, network, &vocabulary, &(xm_model_labels){0}, parameters,
                               error);
}
