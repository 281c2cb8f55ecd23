/* dispatch.c - see dispatch.h. Runs on the thread that opens the parallel regions. */
#include "moe/dispatch.h"

#include "base/memory.h"

#include <string.h>

enum {
    TASKS_PER_THREAD = 4,
    MAX_SHARES = 1024, /* shares that a step's work is cut into, about: bounds the list of tasks */
    /* Reading a panel costs about as much as computing so many rows with it. */
    PANEL_COST = 2,
};

bool xm_dispatch_create(int32_t max_rows, int32_t experts, xm_dispatch *dispatch)
{
    size_t pairs = (size_t)max_rows * (size_t)experts;
    dispatch->offset = xm_calloc((size_t)experts + 1, sizeof *dispatch->offset);
    dispatch->row = xm_calloc(pairs, sizeof *dispatch->row);
    dispatch->weight = xm_calloc(pairs, sizeof *dispatch->weight);
    if (dispatch->offset != NULL && dispatch->row != NULL && dispatch->weight != NULL)
        return true;
    xm_dispatch_free(dispatch);
    return false;
}

void xm_dispatch_free(xm_dispatch *dispatch)
{
    xm_free(dispatch->offset);
    xm_free(dispatch->row);
    xm_free(dispatch->weight);
    *dispatch = (xm_dispatch){0};
}

void xm_dispatch_group(xm_dispatch *dispatch, const xm_selection *selection)
{
    int32_t *offset = dispatch->offset;
    size_t experts = (size_t)selection->experts;
    memset(offset, 0, (experts + 1) * sizeof *offset);
    for (int32_t r = 0; r < selection->rows; r++)
        for (int32_t i = 0; i < selection->count[r]; i++)
            offset[selection->expert[(size_t)r * experts + (size_t)i] + 1]++;
    for (size_t e = 0; e < experts; e++)
        offset[e + 1] += offset[e];
    /* Each pair moves its expert's start up by one, so that afterwards offset[e] is the end of e,
     * which is the start of e + 1. */
    for (int32_t r = 0; r < selection->rows; r++)
        for (int32_t i = 0; i < selection->count[r]; i++) {
            size_t at = (size_t)r * experts + (size_t)i;
            int32_t pair = offset[selection->expert[at]]++;
            dispatch->row[pair] = r;
            dispatch->weight[pair] = selection->weight[at];
        }
    memmove(offset + 1, offset, experts * sizeof *offset);
    offset[0] = 0;
}

int32_t xm_dispatch_wave(const xm_dispatch *dispatch, int32_t first, int32_t experts,
                         int32_t capacity)
{
    int32_t last = first + 1;
    while (last < experts && dispatch->offset[last + 1] - dispatch->offset[first] <= capacity)
        last++;
    return last;
}

/* Every expert has one task that may be smaller than a share, and rounding makes shares smaller by
 * at most a half. */
int32_t xm_dispatch_max_tasks(int32_t experts)
{
    return experts + 2 * MAX_SHARES;
}

/* Panels of one expert that make a share of work: even, at least 2. */
static int64_t panels_per_share(int64_t share, int32_t rows)
{
    int64_t panels = share / (rows + PANEL_COST);
    return panels < 2 ? 2 : panels - panels % 2;
}

int32_t xm_dispatch_plan(const xm_dispatch *dispatch, int32_t first, int32_t last, int32_t panels,
                         int32_t threads, xm_expert_task *tasks)
{
    int32_t count = 0;
    int64_t work = 0;
    int64_t shares = (int64_t)threads * TASKS_PER_THREAD;
    for (int32_t e = first; e < last; e++) {
        int32_t rows = dispatch->offset[e + 1] - dispatch->offset[e];
        work += rows > 0 ? (int64_t)panels * (rows + PANEL_COST) : 0;
    }
    if (shares > MAX_SHARES)
        shares = MAX_SHARES;
    int64_t share = (work + shares - 1) / shares;
    for (int32_t e = first; e < last; e++) {
        int32_t rows = dispatch->offset[e + 1] - dispatch->offset[e];
        if (rows == 0)
            continue;
        int64_t range = panels_per_share(share, rows);
        for (int64_t panel = 0; panel < panels; panel += range)
            tasks[count++] = (xm_expert_task){
                .expert = e,
                .first = (int32_t)panel,
                .last = (int32_t)(panel + range < panels ? panel + range : panels),
            };
    }
    return count;
}
