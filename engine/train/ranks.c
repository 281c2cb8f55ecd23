/*
 * ranks.c - see ranks.h. Nothing is allocated, so that no rank can fail here for itself and leave
 * the others waiting.
 */
#include "train/ranks.h"

#include <string.h>

xmoe_status xm_ranks_agree(const xm_ranks *ranks, xmoe_status status, xmoe_error *error)
{
    int32_t all[XM_MAX_RANKS], first = 0;
    if (ranks->count == 1)
        return status;
    all[ranks->rank] = (int32_t)status;
    xmoe_status result = ranks->gather(ranks->context, all, sizeof *all, error);
    if (result != XMOE_OK)
        return result;
    while (first < ranks->count && all[first] == XMOE_OK)
        first++;
    if (first == ranks->count)
        return XMOE_OK;
    xmoe_error cause = {.status = status};
    if (status != XMOE_OK && error != NULL)
        cause = *error;
    result = ranks->broadcast(ranks->context, first, &cause, sizeof cause, error);
    if (result != XMOE_OK)
        return result;
    xm_fail(error, (xmoe_status)all[first], "rank %d: %.400s", first, cause.message);
    if (error != NULL)
        memcpy(error->parameter, cause.parameter, sizeof error->parameter);
    return (xmoe_status)all[first];
}

xmoe_status xm_ranks_any(const xm_ranks *ranks, bool *flag, xmoe_error *error)
{
    double raised = *flag ? 1 : 0;
    xmoe_status status = xm_ranks_sum(ranks, &raised, error);
    *flag = raised > 0;
    return status;
}

xmoe_status xm_ranks_check_equal(const xm_ranks *ranks, const char *what, uint64_t number,
                                 xmoe_error *error)
{
    uint64_t all[XM_MAX_RANKS];
    if (ranks->count == 1)
        return XMOE_OK;
    all[ranks->rank] = number;
    xmoe_status status = ranks->gather(ranks->context, all, sizeof *all, error);
    for (int32_t rank = 1; rank < ranks->count && status == XMOE_OK; rank++)
        if (all[rank] != all[0])
            status = xm_fail(error, XMOE_ERROR_INTERNAL, "rank %d differs from rank 0 in %s", rank,
                             what);
    return status;
}

xmoe_status xm_ranks_sum(const xm_ranks *ranks, double *value, xmoe_error *error)
{
    double all[XM_MAX_RANKS];
    if (ranks->count == 1)
        return XMOE_OK;
    all[ranks->rank] = *value;
    xmoe_status status = ranks->gather(ranks->context, all, sizeof *all, error);
    if (status != XMOE_OK)
        return status;
    *value = 0;
    for (int32_t rank = 0; rank < ranks->count; rank++)
        *value += all[rank];
    return XMOE_OK;
}
