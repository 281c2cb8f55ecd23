/*
 * gemm_peak.c - see gemm_peak.h.
 */
#include "train/gemm_peak.h"

#include "base/clock.h"
#include "base/memory.h"

enum { SIZE = 1024, LEAST_ROUNDS = 3, LEAST_NS = 200 * 1000 * 1000 };

typedef struct {
    const xm_gemm *gemm;
    float *a, *b, *c; /* [threads][SIZE][SIZE] */
    char *scratch;    /* [threads][gemm->scratch_bytes] */
} peak_job;

static void peak_task(void *context, int32_t task, int32_t thread)
{
    const peak_job *job = context;
    const xm_compute compute = {.gemm = job->gemm, .scratch = job->scratch};
    size_t at = (size_t)task * SIZE * SIZE;
    job->gemm->nt(xm_compute_scratch(&compute, thread), SIZE, SIZE, SIZE, job->a + at, SIZE,
                  job->b + at, SIZE, 0.0f, job->c + at, SIZE);
}

static double measure(xm_workers *workers, peak_job *job)
{
    const xm_clock clock = xm_clock_system();
    int32_t threads = xm_workers_threads(workers);
    int64_t best = INT64_MAX, began = xm_clock_now(&clock), now = began;
    xm_gemm_setup();
    for (int32_t round = 0; round < LEAST_ROUNDS || now - began < LEAST_NS; round++) {
        int64_t before = now;
        xm_workers_run(workers, threads, peak_task, job);
        now = xm_clock_now(&clock);
        best = now - before < best ? now - before : best;
    }
    return 2.0 * SIZE * SIZE * SIZE * threads / ((double)best * 1e-9);
}

xmoe_status xm_gemm_peak(xm_workers *workers, const xm_gemm *gemm, double *flops, xmoe_error *error)
{
    size_t threads = (size_t)xm_workers_threads(workers), count = threads * SIZE * SIZE;
    size_t scratch = gemm->scratch_bytes > 0 ? gemm->scratch_bytes : 1;
    peak_job job = {.gemm = gemm,
                    .scratch = xm_calloc_aligned(threads, scratch),
                    .a = xm_calloc_aligned(count, sizeof(float)),
                    .b = xm_calloc_aligned(count, sizeof(float)),
                    .c = xm_calloc_aligned(count, sizeof(float))};
    xmoe_status status = XMOE_OK;
    if (job.a == NULL || job.b == NULL || job.c == NULL || job.scratch == NULL) {
        status = xm_fail_memory(error, "measuring products", 3 * count * sizeof(float));
    } else {
        for (size_t i = 0; i < count; i++)
            job.a[i] = job.b[i] = (float)(i % 7) * 0.1f; /* zeros may be faster than numbers */
        *flops = measure(workers, &job);
    }
    xm_free(job.a);
    xm_free(job.b);
    xm_free(job.c);
    xm_free(job.scratch);
    return status;
}
