/*
 * muon.c - see muon.h.
 *
 * Orthogonalisation is an iteration of Newton-Schulz's kind: with X scaled to norm 1,
 *     X = a X + (b A + c A A) X,   A = X X^T
 * applies s -> a s + b s^3 + c s^5 to each singular value s. Jordan's coefficients trade exactness
 * for slope at 0: five rounds bring all from 0.01 up near 1, and leave them within 0.7 to 1.2.
 */
#include "train/muon.h"

#include "base/memory.h"
#include "train/rows.h"

#include <math.h>
#include <string.h>

enum { ROUNDS = 5 };

static size_t least(int32_t rows, int32_t columns)
{
    return (size_t)(rows < columns ? rows : columns);
}

size_t xm_orthogonalise_scratch(int32_t rows, int32_t columns)
{
    size_t side = least(rows, columns);
    return 2 * side * side + (size_t)rows * (size_t)columns;
}

void xm_orthogonalise(const xm_gemm *gemm, void *gemm_scratch, float *x, int32_t rows,
                      int32_t columns, float *scratch)
{
    const float a = 3.4445f, b = -4.7750f, c = 2.0315f;
    const bool wide = rows <= columns;
    size_t count = (size_t)rows * (size_t)columns, side = least(rows, columns);
    int32_t n = (int32_t)side;
    float *square = scratch, *mix = square + side * side, *next = mix + side * side;
    double norm = sqrt(xm_row_square_sum(x, count));
    if (norm == 0.0)
        return;
    xm_row_scale(x, x, (float)(1.0 / norm), count);
    for (int32_t round = 0; round < ROUNDS; round++) {
        if (wide)
            gemm->nt(gemm_scratch, n, n, columns, x, columns, x, columns, 0.0f, square, n);
        else
            gemm->tn(gemm_scratch, n, n, rows, x, columns, x, columns, 0.0f, square, n);
        gemm->nn(gemm_scratch, n, n, n, square, n, square, n, 0.0f, mix, n);
        for (size_t i = 0; i < side * side; i++)
            mix[i] = b * square[i] + c * mix[i];
        for (size_t i = 0; i < side; i++)
            mix[i * side + i] += a;
        if (wide)
            gemm->nn(gemm_scratch, rows, columns, n, mix, n, x, columns, 0.0f, next, columns);
        else
            gemm->nn(gemm_scratch, rows, columns, n, x, columns, mix, n, 0.0f, next, columns);
        memcpy(x, next, count * sizeof *x);
    }
}

/* Space for the update and for making it, of one matrix. */
static size_t scratch_of(const xm_muon_matrix *m)
{
    return (size_t)m->rows * (size_t)m->columns + xm_orthogonalise_scratch(m->rows, m->columns);
}

xmoe_status xm_muon_create(const xm_network *network, xm_workers *workers, const xm_gemm *gemm,
                           xm_muon *muon, xmoe_error *error)
{
    size_t most = 0, threads = (size_t)xm_workers_threads(workers);
    *muon = (xm_muon){.workers = workers, .gemm = gemm};
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        if (p->map_rows > 0)
            most += p->count / ((size_t)p->map_rows * p->shape[0]);
    }
    muon->matrices = xm_calloc(most, sizeof *muon->matrices);
    if (muon->matrices == NULL)
        return xm_fail_memory(error, "list of matrices", most * sizeof *muon->matrices);
    for (int32_t i = 0; i < network->parameter_count; i++) {
        const xm_parameter *p = &network->parameters[i];
        size_t size = (size_t)p->map_rows * p->shape[0];
        for (size_t at = 0; size > 0 && at < p->count; at += size) {
            xm_muon_matrix m = {
                .offset = p->offset + at, .rows = p->map_rows, .columns = (int32_t)p->shape[0]};
            size_t needed = scratch_of(&m);
            muon->scratch_floats = needed > muon->scratch_floats ? needed : muon->scratch_floats;
            muon->matrices[muon->count++] = m;
        }
    }
    muon->scratch = xm_calloc_aligned(threads * muon->scratch_floats, sizeof(float));
    if (gemm->scratch_bytes > 0)
        muon->gemm_scratch = xm_calloc_aligned(threads, gemm->scratch_bytes);
    if (muon->scratch == NULL || (gemm->scratch_bytes > 0 && muon->gemm_scratch == NULL)) {
        size_t bytes = threads * (muon->scratch_floats * sizeof(float) + gemm->scratch_bytes);
        xm_muon_free(muon);
        return xm_fail_memory(error, "scratch of the optimiser", bytes);
    }
    return XMOE_OK;
}

void xm_muon_free(xm_muon *muon)
{
    xm_free(muon->matrices);
    xm_free(muon->scratch);
    xm_free(muon->gemm_scratch);
    *muon = (xm_muon){0};
}

typedef struct {
    const xm_muon *muon;
    const xm_muon_step *step;
    const float *gradients;
    float *momentum, *parameters;
} muon_job;

static void matrix_task(void *context, int32_t task, int32_t thread)
{
    const muon_job *job = context;
    const xm_muon_step *step = job->step;
    const xm_muon_matrix *m = &job->muon->matrices[task];
    size_t count = (size_t)m->rows * (size_t)m->columns;
    const float *gradient = job->gradients + m->offset;
    float *momentum = job->momentum + m->offset, *weight = job->parameters + m->offset;
    float *update = job->muon->scratch + (size_t)thread * job->muon->scratch_floats;
    for (size_t i = 0; i < count; i++) {
        float g = step->gradient_scale * gradient[i];
        momentum[i] = step->beta * momentum[i] + g;
        update[i] = g + step->beta * momentum[i];
    }
    xm_orthogonalise(job->muon->gemm,
                     job->muon->gemm_scratch + (size_t)thread * job->muon->gemm->scratch_bytes,
                     update, m->rows, m->columns, update + count);
    float longest = (float)(m->rows > m->columns ? m->rows : m->columns);
    float size = step->rate * 0.2f * sqrtf(longest);
    for (size_t i = 0; i < count; i++)
        weight[i] = (1.0f - step->decay) * weight[i] - size * update[i];
}

void xm_muon_update(const xm_muon *muon, const xm_muon_step *step, const float *gradients,
                    float *momentum, float *parameters)
{
    muon_job job = {.muon = muon,
                    .step = step,
                    .gradients = gradients,
                    .momentum = momentum,
                    .parameters = parameters};
    xm_workers_run(muon->workers, muon->count, matrix_task, &job);
}
