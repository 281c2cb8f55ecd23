/*
 * assign.c - see assign.h: Bertsekas' auction, with experts that sell `capacity` places each.
 *
 * A row without a place bids for the expert that is worth most to it, score less price: so much
 * more than the price that the expert would then be worth what the second best is, less a step. A
 * full expert's price is the lowest bid that it holds; that row loses its place to a higher bid. An
 * expert that is not full costs nothing. Prices never fall, and each bid replaces one that is lower
 * by a step at least, so the auction ends; and as no row would gain more than a step by going
 * elsewhere, and only full experts have a price, the total is within rows * step of the best.
 */
#include "train/assign.h"

#include "base/memory.h"

#include <math.h>
#include <string.h>

xmoe_status xm_assigner_create(int32_t rows, int32_t experts, xm_assigner *assigner,
                               xmoe_error *error)
{
    int32_t capacity = (rows + experts - 1) / experts;
    size_t n = (size_t)rows, e = (size_t)experts;
    *assigner = (xm_assigner){.rows = rows, .experts = experts, .capacity = capacity};
    assigner->price = xm_calloc(e, sizeof *assigner->price);
    assigner->held = xm_calloc(e, sizeof *assigner->held);
    assigner->holder = xm_calloc(e * (size_t)capacity, sizeof *assigner->holder);
    assigner->bid = xm_calloc(n, sizeof *assigner->bid);
    assigner->waiting = xm_calloc(n, sizeof *assigner->waiting);
    if (assigner->price == NULL || assigner->held == NULL || assigner->holder == NULL ||
        assigner->bid == NULL || assigner->waiting == NULL) {
        xm_assigner_free(assigner);
        return xm_fail_memory(error, "assignment of rows", n * sizeof *assigner->bid);
    }
    return XMOE_OK;
}

void xm_assigner_free(xm_assigner *assigner)
{
    xm_free(assigner->price);
    xm_free(assigner->held);
    xm_free(assigner->holder);
    xm_free(assigner->bid);
    xm_free(assigner->waiting);
    *assigner = (xm_assigner){0};
}

double xm_assign_step(const float *scores, size_t count)
{
    double least = INFINITY, most = -INFINITY;
    for (size_t i = 0; i < count; i++) {
        if (!isfinite(scores[i]))
            return 0;
        least = fmin(least, (double)scores[i]);
        most = fmax(most, (double)scores[i]);
    }
    return most > least ? 0.01 * (most - least) : 1.0;
}

/* Whether row a gives way before row b: a lower bid, among equals the later row. */
static bool is_weaker(const xm_assigner *self, int32_t a, int32_t b)
{
    double left = self->bid[a], right = self->bid[b];
    return left < right || (left == right && a > b);
}

static void sift_down(const xm_assigner *self, int32_t *heap, int32_t count, int32_t row)
{
    int32_t at = 0;
    for (;;) {
        int32_t child = 2 * at + 1;
        if (child >= count)
            break;
        if (child + 1 < count && is_weaker(self, heap[child + 1], heap[child]))
            child++;
        if (!is_weaker(self, heap[child], row))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = row;
}

static void sift_up(const xm_assigner *self, int32_t *heap, int32_t at, int32_t row)
{
    while (at > 0 && is_weaker(self, row, heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = row;
}

/* Gives the row a place at the expert; returns the row that loses its own, or -1. */
static int32_t take_place(xm_assigner *self, int32_t row, int32_t expert)
{
    int32_t *heap = self->holder + (size_t)expert * (size_t)self->capacity, loser = -1;
    if (self->held[expert] < self->capacity) {
        sift_up(self, heap, self->held[expert], row);
        self->held[expert]++;
    } else {
        loser = heap[0];
        sift_down(self, heap, self->capacity, row);
    }
    if (self->held[expert] == self->capacity)
        self->price[expert] = self->bid[heap[0]];
    return loser;
}

/* The expert that is worth most to a row; the bid is left in self->bid. */
static int32_t make_bid(xm_assigner *self, const float *scores, int32_t row, double step)
{
    const float *own = scores + (size_t)row * (size_t)self->experts;
    double best = -INFINITY, second = -INFINITY;
    int32_t expert = 0;
    for (int32_t e = 0; e < self->experts; e++) {
        double worth = (double)own[e] - self->price[e];
        if (worth > best) {
            second = best;
            best = worth;
            expert = e;
        } else if (worth > second) {
            second = worth;
        }
    }
    if (self->experts == 1)
        second = best;
    self->bid[row] = self->price[expert] + (best - second) + step;
    return expert;
}

void xm_assign(xm_assigner *self, const float *scores, uint16_t *expert_of, size_t stride)
{
    size_t rows = (size_t)self->rows;
    double step = xm_assign_step(scores, rows * (size_t)self->experts);
    if (step <= 0) {
        for (size_t row = 0; row < rows; row++)
            expert_of[row * stride] = (uint16_t)(row % (size_t)self->experts);
        return;
    }
    memset(self->price, 0, (size_t)self->experts * sizeof *self->price);
    memset(self->held, 0, (size_t)self->experts * sizeof *self->held);
    for (int32_t row = 0; row < self->rows; row++)
        self->waiting[row] = row;
    size_t first = 0, waiting = rows;
    while (waiting > 0) {
        int32_t row = self->waiting[first];
        first = (first + 1) % rows;
        waiting--;
        int32_t expert = make_bid(self, scores, row, step);
        int32_t loser = take_place(self, row, expert);
        expert_of[(size_t)row * stride] = (uint16_t)expert;
        if (loser >= 0)
            self->waiting[(first + waiting++) % rows] = loser;
    }
}
