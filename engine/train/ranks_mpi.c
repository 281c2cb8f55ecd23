/*
 * ranks_mpi.c - see ranks.h: ranks are the processes of MPI_COMM_WORLD.
 *
 * Not in the library: build/xmoe-train-mpi links this file, and with it MPI. All calls are made by
 * the main thread, so MPI_THREAD_FUNNELED is enough. MPI counts in int; longer arrays are cut.
 */
#include "train/ranks.h"

#include <mpi.h>
#include <string.h>

enum { PART = 1 << 28 }; /* bytes or floats of one MPI call */

static bool broken; /* a call failed: the others may wait for ever unless all are ended */

static xmoe_status check(int code, const char *what, xmoe_error *error)
{
    if (code == MPI_SUCCESS)
        return XMOE_OK;
    char reason[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    broken = true;
    MPI_Error_string(code, reason, &length);
    return xm_fail(error, XMOE_ERROR_IO, "MPI: %s: %.300s", what, reason);
}

static size_t part_of(size_t left)
{
    return left < PART ? left : PART;
}

static xmoe_status send_next(void *context, const float *values, size_t count, xmoe_error *error)
{
    const xm_ranks *ranks = context;
    xmoe_status status = XMOE_OK;
    for (size_t at = 0; at < count && status == XMOE_OK; at += PART)
        status = check(MPI_Send(values + at, (int)part_of(count - at), MPI_FLOAT, ranks->rank + 1,
                                0, MPI_COMM_WORLD),
                       "cannot send to the next rank", error);
    return status;
}

static xmoe_status receive_previous(void *context, float *values, size_t count, xmoe_error *error)
{
    const xm_ranks *ranks = context;
    xmoe_status status = XMOE_OK;
    for (size_t at = 0; at < count && status == XMOE_OK; at += PART)
        status = check(MPI_Recv(values + at, (int)part_of(count - at), MPI_FLOAT, ranks->rank - 1,
                                0, MPI_COMM_WORLD, MPI_STATUS_IGNORE),
                       "cannot receive from the rank before", error);
    return status;
}

static xmoe_status broadcast(void *context, int32_t from, void *bytes, size_t size,
                             xmoe_error *error)
{
    (void)context;
    xmoe_status status = XMOE_OK;
    for (size_t at = 0; at < size && status == XMOE_OK; at += PART)
        status = check(
            MPI_Bcast((char *)bytes + at, (int)part_of(size - at), MPI_BYTE, from, MPI_COMM_WORLD),
            "cannot broadcast", error);
    return status;
}

static xmoe_status gather(void *context, void *all, size_t size, xmoe_error *error)
{
    (void)context;
    if (size > PART)
        return xm_fail(error, XMOE_ERROR_INTERNAL, "%zu bytes are too many to gather", size);
    return check(
        MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, all, (int)size, MPI_BYTE, MPI_COMM_WORLD),
        "cannot gather", error);
}

xmoe_status xm_ranks_start(xm_ranks *ranks, xmoe_error *error)
{
    int provided = 0, rank = 0, count = 1;
    *ranks = (xm_ranks){.count = 1};
    xmoe_status status =
        check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "cannot start", error);
    if (status != XMOE_OK)
        return status;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &count);
    *ranks = (xm_ranks){.rank = rank,
                        .count = count,
                        .context = ranks,
                        .send = send_next,
                        .receive = receive_previous,
                        .broadcast = broadcast,
                        .gather = gather};
    if (count > XM_MAX_RANKS)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED, "%d ranks, the most is %d", count,
                       XM_MAX_RANKS);
    if (provided < MPI_THREAD_FUNNELED)
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED, "this MPI cannot be used with threads");
    return XMOE_OK;
}

void xm_ranks_end(xm_ranks *ranks)
{
    if (broken)
        MPI_Abort(MPI_COMM_WORLD, 1);
    else
        MPI_Finalize();
    *ranks = (xm_ranks){0};
}
