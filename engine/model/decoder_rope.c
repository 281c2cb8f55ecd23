/*
 * decoder_rope.c - rotary positions of a decoder (decoder.h) from the file's keys and, in some
 * families, tensors. Runs on the thread that loads the model.
 */
#include "model/decoder.h"

#include "format/utf8.h"
#include "model/keys.h"

#include <math.h>

static const char *const plain_divisors = "rope_freqs.weight";
static const char *const short_divisors = "rope_factors_short.weight";
static const char *const long_divisors = "rope_factors_long.weight";

typedef enum { SCALING_NONE, SCALING_LINEAR, SCALING_YARN, SCALING_LONG } scaling_type;

/* Files of LongRoPE may have its tensors and no key. */
static xmoe_status read_type(const xm_loader *loader, scaling_type *type, xmoe_error *error)
{
    static const char *const names[] = {"none", "linear", "yarn", "longrope"};
    const char *key = "rope.scaling.type";
    xm_string text = {0};
    xmoe_status status = xm_key_text(loader, key, &text, error);
    *type = xm_loader_has(loader, long_divisors) ? SCALING_LONG : SCALING_NONE;
    if (status != XMOE_OK || text.data == NULL)
        return status;
    for (int i = 0; i <= SCALING_LONG; i++)
        if (xm_key_text_is(text, names[i])) {
            *type = (scaling_type)i;
            return XMOE_OK;
        }
    char shown[32];
    xm_utf8_printable(text.data, text.length, shown, sizeof shown);
    return xm_key_fail(loader, key, error, "is '%s', expected none, linear, yarn or longrope",
                       shown);
}

/* Divisors of the frequencies, from a tensor: needed now, before weights are packed. */
static xmoe_status read_divisors(xm_loader *loader, const char *name, int32_t pairs,
                                 const float **divisors, xmoe_error *error)
{
    xmoe_model *model = loader->model;
    float *values = xm_model_allocate(model, (size_t)pairs, sizeof *values);
    if (values == NULL)
        return xm_fail_memory(error, name, (size_t)pairs * sizeof *values);
    xmoe_status status = xm_loader_read_values(loader, name, pairs, values, error);
    if (status != XMOE_OK)
        return status;
    for (int32_t i = 0; i < pairs; i++)
        if (!(values[i] > 0.0f && values[i] < 1e6f))
            return xm_fail(error, XMOE_ERROR_FORMAT,
                           "%.150s: tensor '%s' holds %g, expected numbers above 0",
                           xm_gguf_path(model->file), name, (double)values[i]);
    *divisors = values;
    return XMOE_OK;
}

/* Llama 3 has one list for all lengths; LongRoPE one for contexts up to that of its training and
 * one for longer ones: the context decides, not the text's length, so that a token's keys do not
 * depend on what follows. */
static xmoe_status choose_divisors(xm_loader *loader, scaling_type type, double original,
                                   const float **divisors, xmoe_error *error)
{
    const xmoe_model *model = loader->model;
    int32_t pairs = model->attention.rope.dimensions / 2;
    if (type != SCALING_LONG)
        return xm_loader_has(loader, plain_divisors)
                   ? read_divisors(loader, plain_divisors, pairs, divisors, error)
                   : XMOE_OK;
    const float *unused;
    bool is_long = model->info.context_length > original;
    xmoe_status status =
        read_divisors(loader, short_divisors, pairs, is_long ? &unused : divisors, error);
    if (status != XMOE_OK)
        return status;
    return read_divisors(loader, long_divisors, pairs, is_long ? divisors : &unused, error);
}

static xmoe_status read_scaling(const xm_decoder_job *job, xm_rope_scaling *scaling,
                                xmoe_error *error)
{
    xm_loader *loader = job->loader;
    const xm_decoder *decoder = job->decoder;
    xmoe_model *model = loader->model;
    scaling_type type;
    float base = 10000.0f, factor = 1.0f, magnitude = 1.0f, logarithm = 0.0f;
    float fast = 32.0f, slow = 1.0f;
    int32_t original = model->info.context_length;
    xmoe_status status;
    if ((status = read_type(loader, &type, error)) != XMOE_OK ||
        (status = xm_key_number(loader, "rope.freq_base", false, 1.0, 1e12, &base, error)) !=
            XMOE_OK ||
        (status = xm_key_number(loader, "rope.scaling.factor", false, 0.0, 1e6, &factor, error)) !=
            XMOE_OK ||
        (status = xm_key_number(loader, "rope.scaling.attn_factor", false, 0.0, 1e3, &magnitude,
                                error)) != XMOE_OK ||
        (status = xm_key_number(loader, "rope.scaling.yarn_log_multiplier", false, -1e-9, 1e3,
                                &logarithm, error)) != XMOE_OK ||
        (status = xm_key_number(loader, "rope.scaling.yarn_beta_fast", false, 0.0, 1e6, &fast,
                                error)) != XMOE_OK ||
        (status = xm_key_number(loader, "rope.scaling.yarn_beta_slow", false, 0.0, 1e6, &slow,
                                error)) != XMOE_OK ||
        (status = xm_key_size(loader, "rope.scaling.original_context_length", type >= SCALING_YARN,
                              XM_MAX_CONTEXT, &original, error)) != XMOE_OK)
        return status;
    *scaling = (xm_rope_scaling){
        .base = (double)base,
        .factor = type == SCALING_LINEAR || type == SCALING_YARN ? (double)factor : 1.0,
        .yarn = type == SCALING_YARN,
        .yarn_whole_pairs = !decoder->yarn_fractions,
        .yarn_fast = (double)fast,
        .yarn_slow = (double)slow,
        .original_context = original,
    };
    double stretch = log(scaling->factor);
    model->attention.rope.magnitude = magnitude;
    if (scaling->yarn && !decoder->yarn_in_scale)
        model->attention.rope.magnitude *= (float)(1.0 + 0.1 * stretch);
    if (scaling->yarn && decoder->yarn_in_scale)
        model->attention.scale *= (float)pow(1.0 + (double)logarithm * stretch, 2.0);
    return choose_divisors(loader, type, original, &scaling->divisors, error);
}

xmoe_status xm_decoder_read_rope(xm_decoder_job *job, xmoe_error *error)
{
    xm_loader *loader = job->loader;
    xmoe_model *model = loader->model;
    xm_rope *rope = &model->attention.rope;
    int32_t length =
        job->decoder->latent ? model->attention.turning_length : model->attention.key_length;
    xm_rope_scaling scaling;
    xmoe_status status;
    rope->halves = job->decoder->rope_halves;
    rope->dimensions = length;
    status = xm_key_size(loader, "rope.dimension_count", false, length, &rope->dimensions, error);
    if (status != XMOE_OK)
        return status;
    if (rope->dimensions % 2 != 0)
        return xm_key_fail(loader, "rope.dimension_count", error, "is %d, not an even number",
                           rope->dimensions);
    rope->frequencies =
        xm_model_allocate(model, (size_t)rope->dimensions / 2, sizeof *rope->frequencies);
    if (rope->frequencies == NULL)
        return xm_fail_memory(error, "rope frequencies", (size_t)rope->dimensions);
    status = read_scaling(job, &scaling, error);
    if (status == XMOE_OK)
        xm_rope_make_frequencies(&scaling, rope);
    return status;
}
