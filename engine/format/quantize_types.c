/*
 * quantize_types.c - which weight type each tensor of a quantised model gets.
 *
 * Matrices are tensors of two or more dimensions whose names end in ".weight", but for norms,
 * routers and tables of positions and token types, which are small and whose error goes everywhere.
 * The last pattern that matches a matrix decides; else its role (output, embedding) where one is
 * given; else the type or mix asked for. Rows that are not whole blocks take the next type of the
 * same size or more whose blocks they are.
 *
 * A mix is a type, and a better one for what matters more per byte:
 *   - in models with experts all attention matrices and shared experts, which every token uses and
 *     which are few beside the experts; in dense models those of the values, in the layers below;
 *   - ffn_down matrices, whose input has the widest range, in the first and the last eighth of the
 *     layers, where errors cost most, and in every third layer between;
 *   - the output matrix, which is the embedding's where the model has none of its own, in Q6_K.
 */
#include "format/quantize.h"

#include "base/memory.h"

#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *name;
    xm_weight_type type, better;
    uint32_t file_type; /* general.file_type */
} mix;

static const mix mixes[] = {
    {"Q2_K_M", XM_TYPE_Q2_K, XM_TYPE_Q4_K, 10},
    {"Q3_K_M", XM_TYPE_Q3_K, XM_TYPE_Q5_K, 12},
    {"Q4_K_M", XM_TYPE_Q4_K, XM_TYPE_Q6_K, 15},
    {"Q5_K_M", XM_TYPE_Q5_K, XM_TYPE_Q6_K, 17},
};

static const char names[] = XM_WEIGHT_TYPE_NAMES "|Q2_K_M|Q3_K_M|Q4_K_M|Q5_K_M";

/* What the choice depends on. */
typedef struct {
    const xm_gguf *input;
    const xmoe_quantize_options *options;
    const xm_weight_traits *type, *better; /* better: NULL without a mix */
    const xm_weight_traits *output, *embedding;
    bool has_output, has_experts;
    uint32_t layers;
} chooser;

void xm_quantize_note(const xmoe_quantize_options *options, const char *format, ...)
{
    char text[512];
    va_list arguments;
    if (options->on_note == NULL)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    options->on_note(options->note_context, text);
}

const char *xmoe_quantize_types(void)
{
    return names;
}

/* --- names ------------------------------------------------------------------------------------ */

static bool matches(const xm_gguf_tensor *tensor, const char *pattern)
{
    return fnmatch(pattern, tensor->name.data, 0) == 0;
}

bool xm_quantize_is_matrix(const xm_gguf_tensor *tensor)
{
    static const char *const kept[] = {"*_norm*.weight", "*.ffn_gate_inp*", "router_gru_*",
                                       "position_embd.weight", "token_types.weight"};
    if (tensor->dimensions < 2 || !matches(tensor, "*.weight"))
        return false;
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if (matches(tensor, kept[i]))
            return false;
    return true;
}

static bool is_layer(const xm_gguf_tensor *tensor, uint32_t *layer)
{
    return sscanf(tensor->name.data, "blk.%u.", layer) == 1;
}

/* --- choice ----------------------------------------------------------------------------------- */

static bool is_better_layer(const chooser *choice, uint32_t layer)
{
    uint32_t eighth = choice->layers / 8;
    return layer < eighth || layer >= choice->layers - eighth || (layer - eighth) % 3 == 2;
}

/* Whether the mix has its better type here. */
static bool matters_more(const chooser *choice, const xm_gguf_tensor *tensor)
{
    uint32_t layer;
    if (!is_layer(tensor, &layer))
        return false;
    if (choice->has_experts && (matches(tensor, "*.attn_*") || matches(tensor, "*_shexp.weight")))
        return true;
    return is_better_layer(choice, layer) &&
           (matches(tensor, "*.ffn_down*") || matches(tensor, "*.attn_v*.weight") ||
            matches(tensor, "*.attn_qkv.weight"));
}

static const xm_weight_traits *wanted_type(const chooser *choice, const xm_gguf_tensor *tensor)
{
    const xmoe_quantize_options *options = choice->options;
    if (!xm_quantize_is_matrix(tensor))
        return xm_weight_traits_of(XM_TYPE_F32);
    for (int32_t i = options->override_count; i > 0; i--)
        if (matches(tensor, options->overrides[i - 1].pattern))
            return xm_weight_traits_by_name(options->overrides[i - 1].type);
    bool embeds = matches(tensor, "token_embd.weight");
    bool predicts = matches(tensor, "output.weight") || (embeds && !choice->has_output);
    if (embeds && choice->embedding != NULL)
        return choice->embedding;
    if (predicts && choice->output != NULL)
        return choice->output;
    if (choice->better == NULL)
        return choice->type;
    if (predicts)
        return xm_weight_traits_of(XM_TYPE_Q6_K);
    return matters_more(choice, tensor) ? choice->better : choice->type;
}

/* The type instead of one whose blocks the rows are not. */
static const xm_weight_traits *fitting_type(const xm_weight_traits *wanted, uint64_t row)
{
    static const xm_weight_type smaller[XM_TYPE_NUMBERS] = {
        [XM_TYPE_Q2_K] = XM_TYPE_Q4_0, [XM_TYPE_Q3_K] = XM_TYPE_Q4_0,
        [XM_TYPE_Q4_K] = XM_TYPE_Q5_0, [XM_TYPE_Q5_K] = XM_TYPE_Q5_1,
        [XM_TYPE_Q6_K] = XM_TYPE_Q8_0, [XM_TYPE_IQ4_XS] = XM_TYPE_IQ4_NL,
    };
    while (row % wanted->block_elements != 0) {
        xm_weight_type next = smaller[wanted->type];
        wanted = xm_weight_traits_of((uint32_t)(next != 0 ? next : XM_TYPE_F16));
    }
    return wanted;
}

/* --- the plan --------------------------------------------------------------------------------- */

static xmoe_status find_type(const char *parameter, const char *name, const xm_weight_traits **type,
                             xmoe_error *error)
{
    *type = xm_weight_traits_by_name(name);
    if (name == NULL || *type != NULL)
        return XMOE_OK;
    return xm_fail_argument(error, parameter, "unknown weight type '%.40s': expected one of %s",
                            name, xmoe_weight_types());
}

static xmoe_status find_types(chooser *choice, xm_quantize_plan *plan, xmoe_error *error)
{
    const char *name = choice->options->type;
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes && name != NULL; i++)
        if (strcmp(mixes[i].name, name) == 0) {
            choice->type = xm_weight_traits_of((uint32_t)mixes[i].type);
            choice->better = xm_weight_traits_of((uint32_t)mixes[i].better);
            plan->file_type = mixes[i].file_type;
        }
    if (choice->type == NULL) {
        choice->type = xm_weight_traits_by_name(name);
        if (choice->type == NULL)
            return xm_fail_argument(error, "type",
                                    "unknown weight type '%.40s': expected one of %s",
                                    name != NULL ? name : "", xmoe_quantize_types());
        plan->file_type = choice->type->file_type;
    }
    xmoe_status status =
        find_type("output_type", choice->options->output_type, &choice->output, error);
    if (status == XMOE_OK)
        status =
            find_type("embedding_type", choice->options->embedding_type, &choice->embedding, error);
    return status;
}

/* Every pattern has a type that exists and matches a matrix: one that does nothing is a mistake. */
static xmoe_status check_overrides(const chooser *choice, xmoe_error *error)
{
    for (int32_t i = 0; i < choice->options->override_count; i++) {
        const xmoe_quantize_override *override = &choice->options->overrides[i];
        const xm_weight_traits *type;
        bool used = false;
        xmoe_status status = find_type("overrides", override->type, &type, error);
        if (status != XMOE_OK)
            return status;
        for (uint64_t t = 0; t < xm_gguf_tensor_count(choice->input) && !used; t++) {
            const xm_gguf_tensor *tensor = xm_gguf_tensor_at(choice->input, t);
            used = xm_quantize_is_matrix(tensor) && matches(tensor, override->pattern);
        }
        if (!used || type == NULL)
            return xm_fail_argument(error, "overrides", "no matrix has a name like '%.80s'",
                                    override->pattern);
    }
    return XMOE_OK;
}

static void survey(chooser *choice)
{
    for (uint64_t i = 0; i < xm_gguf_tensor_count(choice->input); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(choice->input, i);
        uint32_t layer;
        choice->has_output |= matches(tensor, "output.weight");
        choice->has_experts |= matches(tensor, "*_exps.weight");
        if (is_layer(tensor, &layer) && layer >= choice->layers && layer < XMOE_MAX_LAYERS)
            choice->layers = layer + 1;
    }
}

/* One note per pair of types, when its first tensor is met. */
static void note_fallback(const chooser *choice, const xm_gguf_tensor *tensor,
                          const xm_weight_traits *wanted, const xm_weight_traits *given,
                          bool told[XM_TYPE_NUMBERS][XM_TYPE_NUMBERS])
{
    if (wanted == given || told[wanted->type][given->type])
        return;
    told[wanted->type][given->type] = true;
    xm_quantize_note(choice->options,
                     "rows that are not whole %s blocks of %u get %s (%s: rows of %llu)",
                     wanted->name, wanted->block_elements, given->name, tensor->name.data,
                     (unsigned long long)tensor->shape[0]);
}

xmoe_status xm_quantize_plan_types(const xm_gguf *input, const xmoe_quantize_options *options,
                                   xm_quantize_plan *plan, xmoe_error *error)
{
    *plan = (xm_quantize_plan){0};
    chooser choice = {.input = input, .options = options};
    bool told[XM_TYPE_NUMBERS][XM_TYPE_NUMBERS] = {{false}};
    xmoe_status status = find_types(&choice, plan, error);
    if (status == XMOE_OK)
        status = check_overrides(&choice, error);
    if (status != XMOE_OK)
        return status;
    survey(&choice);
    size_t count = (size_t)xm_gguf_tensor_count(input);
    plan->types = xm_calloc(count, sizeof(const xm_weight_traits *));
    if (plan->types == NULL)
        return xm_fail_memory(error, "types of tensors", count * sizeof(const xm_weight_traits *));
    for (size_t i = 0; i < count; i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(input, i);
        const xm_weight_traits *wanted = wanted_type(&choice, tensor);
        plan->types[i] = fitting_type(wanted, tensor->shape[0]);
        note_fallback(&choice, tensor, wanted, plan->types[i], told);
    }
    return XMOE_OK;
}
