/*
 * quantize.c - rewrites a GGUF file with its matrices in other weight types (xmoe_quantize).
 *
 * Streams: one batch of one tensor, a few MB, is in memory at a time; its pieces are converted by
 * the threads of a pool of its own. quantize_types.c says which type a tensor gets; a tensor that
 * has it already is copied as it is. Keys are kept, but that general.file_type and
 * general.quantization_version say what the new file is, and split files become one. Refuses
 * tensors of types that the engine does not read, and values that the new type cannot hold. The
 * result does not depend on the number of threads.
 */
#include "format/quantize.h"

#include "base/memory.h"
#include "base/pool.h"
#include "format/importance.h"
#include "format/utf8.h"

#include <math.h>
#include <string.h>

enum {
    PIECE = 1 << 15,     /* elements of a task; whole blocks of every type */
    BATCH = 16,          /* pieces */
    THREADS_MAX = BATCH, /* more would have nothing to do */
    QUANTIZATION_VERSION = 2,
};

typedef struct {
    const xmoe_quantize_options *options;
    xm_gguf *input;
    xm_gguf_writer *output;
    xm_importance *importance; /* NULL: none */
    xm_quantize_plan plan;
    xm_pool *pool;
    float *values;        /* [threads][2 * PIECE]: of a piece, and what its blocks give back */
    unsigned char *raw;   /* BATCH pieces of any type */
    uint64_t done, total; /* input bytes */
    uint64_t unmatched;   /* matrices that importance does not have */
    xmoe_error *error;
} conversion;

/* Some elements of one tensor. */
typedef struct {
    const conversion *job;
    const xm_gguf_tensor *tensor;
    const xm_weight_traits *to;
    const float *importance; /* [experts][columns] or NULL */
    uint64_t first, end;     /* elements */
    bool failed[BATCH];      /* by piece: values that are not finite, or do not fit */
} batch;

static size_t piece_bytes(const xm_weight_traits *traits)
{
    return PIECE / traits->block_elements * traits->block_bytes;
}

static bool all_finite(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return false;
    return true;
}

/* Elements from `first` on, row by row, since each row has the same importance. */
static void encode(const batch *work, uint64_t first, size_t count, const float *values,
                   unsigned char *out)
{
    const xm_weight_traits *to = work->to;
    uint64_t columns = work->tensor->shape[0], rows = work->tensor->shape[1];
    if (work->importance == NULL) {
        xm_weights_from_f32(to, values, NULL, out, count);
        return;
    }
    for (size_t i = 0; i < count;) {
        uint64_t at = first + i, column = at % columns, expert = at / columns / rows;
        size_t now = columns - column < count - i ? (size_t)(columns - column) : count - i;
        xm_weights_from_f32(to, values + i, work->importance + expert * columns + column,
                            out + i / to->block_elements * to->block_bytes, now);
        i += now;
    }
}

static void run_piece(void *context, int32_t task, int32_t thread)
{
    batch *work = context;
    const conversion *job = work->job;
    const xm_weight_traits *from = work->tensor->traits;
    uint64_t first = work->first + (uint64_t)task * PIECE;
    size_t count = work->end - first < PIECE ? (size_t)(work->end - first) : PIECE;
    const unsigned char *data = work->tensor->data;
    unsigned char *out = job->raw + (size_t)task * piece_bytes(work->to);
    float *values = job->values + (size_t)thread * 2 * PIECE, *check = values + PIECE;
    xm_weights_to_f32(from, data + first / from->block_elements * from->block_bytes, values, count);
    encode(work, first, count, values, out);
    xm_weights_to_f32(work->to, out, check, count);
    work->failed[task] = !all_finite(values, count) || !all_finite(check, count);
}

static xmoe_status convert_batch(conversion *job, batch *work)
{
    uint64_t count = work->end - work->first;
    int32_t tasks = (int32_t)((count + PIECE - 1) / PIECE);
    xm_pool_run(job->pool, tasks, run_piece, work);
    for (int32_t i = 0; i < tasks; i++)
        if (work->failed[i]) {
            char shown[64];
            xm_utf8_printable(work->tensor->name.data, work->tensor->name.length, shown,
                              sizeof shown);
            return xm_fail(job->error, XMOE_ERROR_FORMAT,
                           "%.200s: tensor '%s' has values that %s cannot hold (infinite, not a "
                           "number, or too large)",
                           xm_gguf_path(job->input), shown, work->to->name);
        }
    xm_gguf_writer_data(job->output, job->raw,
                        (size_t)(count / work->to->block_elements) * work->to->block_bytes);
    return XMOE_OK;
}

static xmoe_status convert_batches(conversion *job, batch *work)
{
    const xm_gguf_tensor *tensor = work->tensor;
    const xm_weight_traits *from = tensor->traits;
    uint64_t elements = tensor->bytes / from->block_bytes * from->block_elements;
    for (; work->first < elements; work->first = work->end) {
        uint64_t left = elements - work->first;
        work->end = work->first + (left < BATCH * PIECE ? left : BATCH * PIECE);
        uint64_t start = work->first / from->block_elements * from->block_bytes;
        uint64_t bytes = work->end / from->block_elements * from->block_bytes - start;
        xmoe_status status = XMOE_OK;
        if (from == work->to)
            xm_gguf_writer_data(job->output, (const char *)tensor->data + start, (size_t)bytes);
        else
            status = convert_batch(job, work);
        if (status != XMOE_OK)
            return status;
        job->done += bytes;
        if (job->options->progress != NULL &&
            !job->options->progress(job->options->progress_context, "quantizing", job->done,
                                    job->total))
            return xm_fail_argument(job->error, "progress", "quantizing was stopped");
    }
    return XMOE_OK;
}

static xmoe_status convert_tensor(conversion *job, uint64_t index)
{
    const xm_gguf_tensor *tensor = xm_gguf_tensor_at(job->input, index);
    float *importance = NULL;
    xmoe_status status = XMOE_OK;
    if (job->importance != NULL && xm_quantize_is_matrix(tensor)) {
        status = xm_importance_of(job->importance, tensor, &importance, job->error);
        job->unmatched += importance == NULL;
    }
    batch work = {
        .job = job, .tensor = tensor, .to = job->plan.types[index], .importance = importance};
    if (status == XMOE_OK)
        status = convert_batches(job, &work);
    xm_free(importance);
    return status;
}

/* Keys and tensors of the output. */
static xmoe_status describe(conversion *job)
{
    static const char *const rewritten[] = {"general.file_type", "general.quantization_version",
                                            NULL};
    const xm_gguf_tensor *coarse = NULL;
    xm_gguf_writer_copy_keys(job->output, job->input, rewritten);
    xm_gguf_writer_u32(job->output, rewritten[0], job->plan.file_type);
    xm_gguf_writer_u32(job->output, rewritten[1], QUANTIZATION_VERSION);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(job->input); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(job->input, i);
        if (tensor->traits == NULL) {
            char shown[64];
            xm_utf8_printable(tensor->name.data, tensor->name.length, shown, sizeof shown);
            return xm_fail(job->error, XMOE_ERROR_UNSUPPORTED,
                           "%.200s: tensor '%s' has type %u, which this engine does not read",
                           xm_gguf_path(job->input), shown, tensor->type_number);
        }
        if (tensor->traits->block_elements > 1 && job->plan.types[i] != tensor->traits)
            coarse = tensor;
        xm_gguf_writer_tensor(job->output, tensor->name.data, job->plan.types[i]->type,
                              tensor->dimensions, tensor->shape);
        job->total += tensor->bytes;
    }
    if (coarse != NULL)
        xm_quantize_note(job->options,
                         "the input is quantised already (%s: %s): its error is added to that of "
                         "the new types",
                         coarse->name.data, coarse->traits->name);
    xm_gguf_writer_begin(job->output);
    return XMOE_OK;
}

static xmoe_status allocate(conversion *job)
{
    int32_t threads = job->options->threads > 0 ? job->options->threads : xm_cpu_count();
    xmoe_status status =
        xm_pool_create(threads < THREADS_MAX ? threads : THREADS_MAX, &job->pool, job->error);
    if (status != XMOE_OK)
        return status;
    size_t scratch = (size_t)xm_pool_threads(job->pool) * 2 * PIECE;
    job->values = xm_calloc(scratch, sizeof *job->values);
    job->raw = xm_calloc(BATCH * PIECE, sizeof(float)); /* no type takes more per element */
    if (job->values == NULL || job->raw == NULL)
        return xm_fail_memory(job->error, "conversion", (scratch + BATCH * PIECE) * sizeof(float));
    return XMOE_OK;
}

static xmoe_status convert(conversion *job)
{
    xmoe_status status = XMOE_OK;
    if (job->options->importance != NULL)
        status = xm_importance_open(job->options->importance, &job->importance, job->error);
    if (status == XMOE_OK)
        status = xm_quantize_plan_types(job->input, job->options, &job->plan, job->error);
    if (status == XMOE_OK)
        status = allocate(job);
    if (status == XMOE_OK)
        status = describe(job);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(job->input) && status == XMOE_OK; i++)
        status = convert_tensor(job, i);
    if (status == XMOE_OK && job->unmatched > 0)
        xm_quantize_note(job->options, "%.200s has nothing of %llu matrices",
                         job->options->importance, (unsigned long long)job->unmatched);
    return status;
}

xmoe_status xmoe_quantize(const char *input, const char *output,
                          const xmoe_quantize_options *options, xmoe_error *error)
{
    conversion job = {.options = options, .error = error};
    xmoe_status status = xm_gguf_open(input, &job.input, error);
    if (status != XMOE_OK)
        return status;
    status = xm_gguf_writer_create(output, &job.output, error);
    if (status == XMOE_OK) {
        status = convert(&job);
        if (status == XMOE_OK)
            status = xm_gguf_writer_finish(job.output, error);
        else
            xm_gguf_writer_abandon(job.output);
    }
    xm_pool_free(job.pool);
    xm_free(job.values);
    xm_free(job.raw);
    xm_free(job.plan.types);
    xm_importance_close(job.importance);
    xm_gguf_close(job.input);
    return status;
}
