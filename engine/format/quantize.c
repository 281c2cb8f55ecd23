/*
 * quantize.c - rewrites a GGUF file with its matrices in another weight type (xmoe_quantize).
 *
 * Streams: one piece of one tensor is in memory at a time. Matrices are the tensors of two or more
 * dimensions whose names end in ".weight", but for position_embd.weight and the router's
 * *.ffn_gate_inp.weight; all else becomes F32. A matrix that already has the type is copied as it
 * is; one whose rows are not whole blocks of the type becomes F16. Keys are kept, but that
 * general.file_type and general.quantization_version say what the new file is. Refuses tensors of
 * types that the engine does not read, and values that the new type cannot hold.
 */
#include "format/gguf.h"

#include "base/memory.h"

#include <math.h>
#include <string.h>

enum {
    PIECE = 1 << 16, /* elements at a time; whole blocks of every type */
    QUANTIZATION_VERSION = 2,
};

typedef struct {
    const xm_gguf *input;
    xm_gguf_writer *output;
    const xm_weight_traits *matrix_type;
    float *values;      /* PIECE */
    float *check;       /* PIECE: what the written blocks give back */
    unsigned char *raw; /* PIECE elements of any type */
    xmoe_progress_fn progress;
    void *progress_context;
    uint64_t done, total; /* input bytes */
    xmoe_error *error;
} conversion;

static bool ends_in(xm_string name, const char *suffix)
{
    size_t length = strlen(suffix);
    return name.length >= length && memcmp(name.data + name.length - length, suffix, length) == 0;
}

static bool is_matrix(const xm_gguf_tensor *tensor)
{
    return tensor->dimensions >= 2 && ends_in(tensor->name, ".weight") &&
           !ends_in(tensor->name, ".ffn_gate_inp.weight") &&
           strcmp(tensor->name.data, "position_embd.weight") != 0;
}

static const xm_weight_traits *new_type(const conversion *job, const xm_gguf_tensor *tensor)
{
    if (!is_matrix(tensor))
        return xm_weight_traits_of(XM_TYPE_F32);
    if (tensor->shape[0] % job->matrix_type->block_elements != 0)
        return xm_weight_traits_of(XM_TYPE_F16);
    return job->matrix_type;
}

static xmoe_status describe(conversion *job)
{
    static const char *const rewritten[] = {"general.file_type", "general.quantization_version",
                                            NULL};
    xm_gguf_writer_copy_keys(job->output, job->input, rewritten);
    xm_gguf_writer_u32(job->output, rewritten[0], job->matrix_type->file_type);
    xm_gguf_writer_u32(job->output, rewritten[1], QUANTIZATION_VERSION);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(job->input); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(job->input, i);
        if (tensor->traits == NULL)
            return xm_fail(job->error, XMOE_ERROR_UNSUPPORTED,
                           "%.200s: tensor '%s' has type %u, which this engine does not read",
                           xm_gguf_path(job->input), tensor->name.data, tensor->type_number);
        xm_gguf_writer_tensor(job->output, tensor->name.data, new_type(job, tensor)->type,
                              tensor->dimensions, tensor->shape);
        job->total += tensor->bytes;
    }
    xm_gguf_writer_begin(job->output);
    return XMOE_OK;
}

static bool all_finite(const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i]))
            return false;
    return true;
}

/* count elements, whole blocks of both types. */
static xmoe_status convert_piece(conversion *job, const xm_gguf_tensor *tensor,
                                 const xm_weight_traits *to, const unsigned char *from,
                                 size_t count)
{
    size_t bytes = count / to->block_elements * to->block_bytes;
    xm_weights_to_f32(tensor->traits, from, job->values, count);
    xm_weights_from_f32(to, job->values, NULL, job->raw, count);
    xm_weights_to_f32(to, job->raw, job->check, count);
    if (!all_finite(job->values, count) || !all_finite(job->check, count))
        return xm_fail(job->error, XMOE_ERROR_FORMAT,
                       "%.200s: tensor '%s' has values that %s cannot hold (infinite, not a "
                       "number, or too large)",
                       xm_gguf_path(job->input), tensor->name.data, to->name);
    xm_gguf_writer_data(job->output, job->raw, bytes);
    return XMOE_OK;
}

static xmoe_status convert_tensor(conversion *job, const xm_gguf_tensor *tensor)
{
    const xm_weight_traits *from = tensor->traits;
    const xm_weight_traits *to = new_type(job, tensor);
    uint64_t blocks = tensor->bytes / from->block_bytes;
    uint64_t piece_blocks = PIECE / from->block_elements;
    const unsigned char *at = tensor->data;
    while (blocks > 0) {
        size_t now = (size_t)(blocks < piece_blocks ? blocks : piece_blocks);
        size_t bytes = now * from->block_bytes;
        xmoe_status status = XMOE_OK;
        if (from == to)
            xm_gguf_writer_data(job->output, at, bytes);
        else
            status = convert_piece(job, tensor, to, at, now * from->block_elements);
        if (status != XMOE_OK)
            return status;
        at += bytes;
        blocks -= now;
        job->done += bytes;
        if (job->progress != NULL &&
            !job->progress(job->progress_context, "quantizing", job->done, job->total))
            return xm_fail_argument(job->error, "progress", "quantizing was stopped");
    }
    return XMOE_OK;
}

static xmoe_status convert(conversion *job)
{
    job->values = xm_calloc(PIECE, sizeof *job->values);
    job->check = xm_calloc(PIECE, sizeof *job->check);
    job->raw = xm_calloc(PIECE, sizeof(float)); /* no type takes more per element */
    if (job->values == NULL || job->check == NULL || job->raw == NULL)
        return xm_fail_memory(job->error, "conversion", PIECE * sizeof(float));
    xmoe_status status = describe(job);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(job->input) && status == XMOE_OK; i++)
        status = convert_tensor(job, xm_gguf_tensor_at(job->input, i));
    return status;
}

xmoe_status xmoe_quantize(const char *input, const char *output, const char *type,
                          xmoe_progress_fn progress, void *progress_context, xmoe_error *error)
{
    conversion job = {.matrix_type = xm_weight_traits_by_name(type),
                      .progress = progress,
                      .progress_context = progress_context,
                      .error = error};
    if (job.matrix_type == NULL)
        return xm_fail_argument(error, "type", "unknown weight type '%.40s': expected one of %s",
                                type != NULL ? type : "", xm_weight_type_names());
    xm_gguf *file;
    xmoe_status status = xm_gguf_open(input, &file, error);
    if (status != XMOE_OK)
        return status;
    job.input = file;
    status = xm_gguf_writer_create(output, &job.output, error);
    if (status == XMOE_OK) {
        status = convert(&job);
        if (status == XMOE_OK)
            status = xm_gguf_writer_finish(job.output, error);
        else
            xm_gguf_writer_abandon(job.output);
    }
    xm_free(job.values);
    xm_free(job.check);
    xm_free(job.raw);
    xm_gguf_close(file);
    return status;
}
