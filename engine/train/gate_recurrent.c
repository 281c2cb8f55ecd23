/*
 * gate_recurrent.c - see gate_recurrent.h. Products over all rows, and between them the cell's
 * gates row by row.
 */
#include "train/gate_recurrent.h"

#include "train/linear.h"
#include "train/rows.h"

#include <string.h>

enum { ROW_TASK = 256 };

static void run_rows(xm_pool *pool, xm_task_fn task, const xm_recurrent *recurrent)
{
    xm_recurrent context = *recurrent;
    xm_pool_run(pool, xm_task_count(recurrent->rows, ROW_TASK), task, &context);
}

static void cell_forward_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const xm_recurrent *self = context;
    size_t r = (size_t)self->length;
    int32_t end = xm_task_end(self->rows, ROW_TASK, task);
    for (int32_t i = task * ROW_TASK; i < end; i++) {
        size_t row = (size_t)i;
        const float *from_state = self->scratch->from_state + row * 3 * r;
        memcpy(self->layer.candidate + row * r, from_state + 2 * r, r * sizeof(float));
        xm_row_gru(self->layer.gates + row * 3 * r, from_state, self->before + row * r,
                   self->layer.state + row * r, r);
    }
}

void xm_recurrent_forward(xm_pool *pool, const xm_recurrent *self, const float *h)
{
    const xm_compute f32 = xm_compute_f32(pool);
    const xm_recurrent_weights *w = &self->weights;
    int32_t rows = self->rows, r = self->length;
    xm_linear_forward(&f32, h, w->projection, NULL, self->layer.x, rows, self->width, r);
    xm_linear_forward(&f32, self->layer.x, w->input_weight, w->input_bias, self->layer.gates, rows,
                      r, 3 * r);
    xm_linear_forward(&f32, self->before, w->state_weight, w->state_bias, self->scratch->from_state,
                      rows, r, 3 * r);
    run_rows(pool, cell_forward_task, self);
}

static void cell_backward_task(void *context, int32_t task, int32_t thread)
{
    (void)thread;
    const xm_recurrent *self = context;
    const xm_recurrent_scratch *scratch = self->scratch;
    size_t r = (size_t)self->length;
    int32_t end = xm_task_end(self->rows, ROW_TASK, task);
    for (int32_t i = task * ROW_TASK; i < end; i++) {
        size_t row = (size_t)i;
        xm_row_gru_backward(scratch->dgates + row * 3 * r, scratch->from_state + row * 3 * r,
                            scratch->dstate + row * r, self->layer.gates + row * 3 * r,
                            self->layer.candidate + row * r, self->before + row * r, r);
    }
}

void xm_recurrent_backward(xm_pool *pool, const xm_recurrent *self, const float *h, float *dh)
{
    const xm_compute f32 = xm_compute_f32(pool);
    const xm_recurrent_weights *w = &self->weights;
    const xm_recurrent_gradients *g = &self->gradients;
    const xm_recurrent_scratch *scratch = self->scratch;
    int32_t rows = self->rows, r = self->length;
    run_rows(pool, cell_backward_task, self);
    xm_linear_backward_weight(&f32, scratch->dgates, self->layer.x, g->input_weight, g->input_bias,
                              rows, r, 3 * r);
    xm_linear_backward_weight(&f32, scratch->from_state, self->before, g->state_weight,
                              g->state_bias, rows, r, 3 * r);
    xm_linear_backward_input(&f32, scratch->from_state, w->state_weight, scratch->dstate, rows, r,
                             3 * r, true);
    xm_linear_backward_input(&f32, scratch->dgates, w->input_weight, scratch->dx, rows, r, 3 * r,
                             false);
    xm_linear_backward_weight(&f32, scratch->dx, h, g->projection, NULL, rows, self->width, r);
    xm_linear_backward_input(&f32, scratch->dx, w->projection, dh, rows, self->width, r, true);
}
