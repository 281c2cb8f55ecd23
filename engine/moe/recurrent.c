/*
 * recurrent.c - see recurrent.h. Two parallel regions a layer: the projections of all rows, cut
 * along rows and panels, then the cell by ranges of rows.
 */
#include "moe/recurrent.h"

#include "base/memory.h"
#include "moe/activations.h"
#include "moe/tiles.h"

#include <math.h>
#include <string.h>

enum { CELL_ROWS = 8 }; /* rows of one task of the cell */

struct xm_router_states {
    int32_t length;
    int32_t *ordinal;         /* [max_rows]: 0, 1, 2, ... */
    xm_activations projected; /* [max_rows][r]: x */
    xm_activations state;     /* [max_rows][r] */
    float *from_input;        /* [max_rows][3r]: input . x + input_bias */
    float *from_state;        /* [max_rows][3r]: state . s + state_bias */
};

/* What the tasks of one call see. */
typedef struct {
    const xm_kernels *kernels;
    const xm_router_states *states;
    const xm_gru *gru;
    const xm_matrix *projection;
    const xm_activations *h;
    int32_t rows;
    xm_tiles tiles;
} advance_call;

xmoe_status xm_router_states_create(int32_t max_rows, int32_t length, xm_router_states **states_out,
                                    xmoe_error *error)
{
    size_t rows = (size_t)max_rows, gates = 3 * (size_t)length;
    *states_out = NULL;
    xm_router_states *states = xm_calloc(1, sizeof *states);
    if (states == NULL)
        return xm_fail_memory(error, "states of the router", sizeof *states);
    states->length = length;
    states->ordinal = xm_calloc(rows, sizeof *states->ordinal);
    states->from_input = xm_calloc_aligned(rows * gates, sizeof *states->from_input);
    states->from_state = xm_calloc_aligned(rows * gates, sizeof *states->from_state);
    if (states->ordinal == NULL || states->from_input == NULL || states->from_state == NULL ||
        !xm_activations_create(rows, (size_t)length, &states->projected) ||
        !xm_activations_create(rows, (size_t)length, &states->state)) {
        xm_router_states_free(states);
        return xm_fail_memory(error, "states of the router", 2 * rows * gates * sizeof(float));
    }
    for (int32_t i = 0; i < max_rows; i++)
        states->ordinal[i] = i;
    *states_out = states;
    return XMOE_OK;
}

void xm_router_states_free(xm_router_states *states)
{
    if (states == NULL)
        return;
    xm_free(states->ordinal);
    xm_free(states->from_input);
    xm_free(states->from_state);
    xm_activations_free(&states->projected);
    xm_activations_free(&states->state);
    xm_free(states);
}

void xm_router_states_begin(xm_router_states *states, int32_t rows)
{
    memset(states->state.f32, 0, (size_t)rows * states->state.stride * sizeof(float));
}

static void run_project(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const advance_call *call = context;
    const xm_activations *out = &call->states->projected;
    xm_tile tile = xm_tiles_at(&call->tiles, task);
    xm_matrix_panels(call->kernels, call->projection, NULL, call->h,
                     call->states->ordinal + tile.first_row, tile.last_row - tile.first_row,
                     tile.first_panel, tile.last_panel,
                     out->f32 + (size_t)tile.first_row * out->stride, out->stride);
}

/* In double, so that it is the same on every C library. */
static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

/* One row of the cell from its products; tanh(x) = 2 sigmoid(2 x) - 1. */
static void update_state(const float *from_input, const float *from_state, size_t length,
                         float *state)
{
    for (size_t i = 0; i < length; i++) {
        const float *in = from_input + i, *own = from_state + i;
        double reset = sigmoid((double)in[0] + (double)own[0]);
        double update = sigmoid((double)in[length] + (double)own[length]);
        double n =
            2.0 * sigmoid(2.0 * ((double)in[2 * length] + reset * (double)own[2 * length])) - 1.0;
        state[i] = (float)((1.0 - update) * n + update * (double)state[i]);
    }
}

static void run_cell(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const advance_call *call = context;
    const xm_router_states *states = call->states;
    const xm_gru *gru = call->gru;
    size_t length = (size_t)gru->length, gates = 3 * length;
    int32_t first = task * CELL_ROWS;
    int32_t count = xm_task_end(call->rows, CELL_ROWS, task) - first;
    float *from_input = states->from_input + (size_t)first * gates;
    float *from_state = states->from_state + (size_t)first * gates;
    const int32_t *rows = states->ordinal + first;
    xm_matrix_panels(call->kernels, &gru->input, gru->input_bias, &states->projected, rows, count,
                     0, gru->input.panels, from_input, gates);
    xm_matrix_panels(call->kernels, &gru->state, gru->state_bias, &states->state, rows, count, 0,
                     gru->state.panels, from_state, gates);
    for (size_t i = 0; i < (size_t)count; i++)
        update_state(from_input + i * gates, from_state + i * gates, length,
                     states->state.f32 + ((size_t)first + i) * states->state.stride);
}

const xm_activations *xm_router_states_advance(xm_router_states *states, const xm_kernels *kernels,
                                               xm_pool *pool, const xm_gru *gru,
                                               const xm_matrix *projection, const xm_activations *h,
                                               int32_t rows)
{
    advance_call call = {.kernels = kernels,
                         .states = states,
                         .gru = gru,
                         .projection = projection,
                         .h = h,
                         .rows = rows,
                         .tiles = xm_tiles_plan(rows, projection->panels, xm_pool_threads(pool))};
    size_t length = (size_t)gru->length;
    size_t project = (size_t)rows * length * (size_t)projection->columns;
    size_t cell = (size_t)rows * 6 * length * length;
    xm_pool_run(xm_pool_for(pool, project), call.tiles.tasks, run_project, &call);
    xm_pool_run(xm_pool_for(pool, cell), xm_task_count(rows, CELL_ROWS), run_cell, &call);
    return &states->state;
}
