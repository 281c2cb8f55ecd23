/*
 * model.c - the life of a model: open the file, bind its tensors through its family, pack, describe
 * (xmoe_model_info), free. Runs on the caller's thread and, while packing, on a pool of its own
 * that ends with the load. Refuses architectures without a row in families.c.
 */
#include "base/memory.h"
#include "format/utf8.h"
#include "model/family.h"
#include "model/infill.h"
#include "model/keys.h"

#include <string.h>

/* --- description ------------------------------------------------------------------------------ */

/* The file's name without folder and ".gguf". */
static xm_string base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    size_t length = strlen(name);
    if (length > 5 && strcmp(name + length - 5, ".gguf") == 0)
        length -= 5;
    return (xm_string){name, length};
}

/* Text of a key, or of fallback where the key is absent; NULL if fallback has no data. */
static xmoe_status describe_text(xmoe_model *model, const char *key, xm_string fallback,
                                 const char **text, xmoe_error *error)
{
    xm_string value = fallback;
    bool found;
    xmoe_status status = xm_gguf_get_string(model->file, key, &value, &found, error);
    if (status != XMOE_OK)
        return status;
    if (value.data == NULL)
        return XMOE_OK;
    *text = xm_model_copy_text(model, value);
    return *text != NULL ? XMOE_OK : xm_fail_memory(error, key, value.length);
}

static xmoe_status describe_texts(xmoe_model *model, xmoe_error *error)
{
    const xm_string empty = {"", 0}, none = {NULL, 0};
    xmoe_model_info *info = &model->info;
    const struct {
        const char *key;
        xm_string fallback;
        const char **text;
    } texts[] = {
        {"general.architecture", empty, &info->architecture},
        {"general.name", base_name(xm_gguf_path(model->file)), &info->name},
        {"general.license", empty, &info->license},
        {"general.description", empty, &info->description},
        {"tokenizer.chat_template", none, &info->chat_template},
    };
    xmoe_status status = XMOE_OK;
    for (size_t i = 0; i < sizeof texts / sizeof *texts && status == XMOE_OK; i++)
        status = describe_text(model, texts[i].key, texts[i].fallback, texts[i].text, error);
    return status;
}

/* The weight type with the most bytes among matrices. */
static const char *main_weight_type(const xm_loader *loader)
{
    size_t types;
    const xm_weight_traits *traits = xm_weight_traits_all(&types);
    const char *name = traits[0].name;
    uint64_t most = 0;
    for (size_t t = 0; t < types; t++) {
        uint64_t bytes = 0;
        for (size_t i = 0; i < loader->item_count; i++)
            if (loader->items[i].matrices != NULL && loader->items[i].tensor->traits == &traits[t])
                bytes += loader->items[i].tensor->bytes;
        if (bytes > most) {
            most = bytes;
            name = traits[t].name;
        }
    }
    return name;
}

static bool is_expert_item(const xmoe_model *model, const xm_load_item *item)
{
    for (int32_t m = 0; m < model->info.moe_layer_count; m++) {
        const xm_moe_layer *moe = &model->layers[model->moe_layers[m]].moe;
        if (item->matrices != NULL
                ? item->matrices == moe->gate || item->matrices == moe->up ||
                      item->matrices == moe->down
                : item->values == &moe->gate_bias || item->values == &moe->up_bias ||
                      item->values == &moe->down_bias)
            return true;
    }
    return false;
}

/* Of a table with a row per token or position, a token reads one row. */
static bool is_looked_up(const xmoe_model *model, const xm_load_item *item)
{
    bool tied = model->output.weight.rows == 0;
    return item->values == &model->position_embedding ||
           (item->matrices == &model->token_embedding && !tied);
}

/* Call before a tied output is set. expert_bytes is the mean over layers, whose types may differ.
 */
static void describe_sizes(const xm_loader *loader, xmoe_model_info *info)
{
    const xmoe_model *model = loader->model;
    uint64_t experts = 0, multiply_adds = 0;
    for (size_t i = 0; i < loader->item_count; i++) {
        const xm_load_item *item = &loader->items[i];
        const xm_gguf_tensor *tensor = item->tensor;
        info->weight_bytes += tensor->bytes;
        uint64_t values = tensor->shape[0] * tensor->shape[1] * tensor->shape[2] * tensor->shape[3];
        info->parameter_count += values;
        if (is_expert_item(model, item)) {
            experts += tensor->bytes;
            multiply_adds += item->matrices != NULL ? values : 0;
        } else {
            uint64_t rows = is_looked_up(model, item) ? tensor->shape[1] : 1;
            info->shared_bytes += tensor->bytes / rows;
        }
    }
    if (info->moe_layer_count > 0) {
        uint64_t count = (uint64_t)info->moe_layer_count * (uint64_t)info->expert_count;
        info->expert_bytes = experts / count;
        info->expert_multiply_adds = multiply_adds / count;
    }
    info->quantization = main_weight_type(loader);
}

/* --- loading ---------------------------------------------------------------------------------- */

static xmoe_status find_family(const xmoe_model *model, const xm_family **family, xmoe_error *error)
{
    xm_string architecture;
    xmoe_status status =
        xm_gguf_get_string(model->file, "general.architecture", &architecture, NULL, error);
    if (status != XMOE_OK)
        return status;
    *family = xm_family_of(architecture);
    if (*family == NULL) {
        char shown[64];
        xm_utf8_printable(architecture.data, architecture.length, shown, sizeof shown);
        return xm_fail(error, XMOE_ERROR_UNSUPPORTED,
                       "%.150s: key 'general.architecture' is '%s', which this engine does not "
                       "know (it knows %s)",
                       xm_gguf_path(model->file), shown, xm_family_names());
    }
    return XMOE_OK;
}

static xmoe_status load_tokenizer(xmoe_model *model, xmoe_error *error)
{
    xmoe_status status = xm_tokenizer_from_gguf(model->file, &model->tokenizer, error);
    if (status != XMOE_OK)
        return status;
    model->info.vocabulary_size = xm_tokenizer_size(model->tokenizer);
    model->info.bos_token = xm_tokenizer_bos(model->tokenizer);
    model->info.eos_token = xm_tokenizer_eos(model->tokenizer);
    model->info.add_bos = xm_tokenizer_adds_bos(model->tokenizer);
    model->info.add_eos = xm_tokenizer_adds_eos(model->tokenizer);
    model->info.add_space = xm_tokenizer_adds_space(model->tokenizer);
    status = xm_infill_read(model->file, model->info.vocabulary_size, &model->info.infill, error);
    if (status != XMOE_OK)
        return status;
    return xm_token_tree_create(model->tokenizer, &model->token_tree, error);
}

static xmoe_status load_weights(xm_loader *loader, const xmoe_model_options *options,
                                xmoe_error *error)
{
    xmoe_model *model = loader->model;
    xm_pool *pool;
    describe_sizes(loader, &model->info);
    xmoe_status status = xm_pool_create(options->threads, &pool, error);
    if (status != XMOE_OK)
        return status;
    status = xm_loader_pack(loader, pool, options->progress, options->progress_context, error);
    xm_pool_free(pool);
    if (status == XMOE_OK && model->output.weight.rows == 0)
        model->output.weight = model->token_embedding;
    return status;
}

static xmoe_status read_pooling(xm_loader *loader, xmoe_error *error)
{
    int32_t pooling = XMOE_POOLING_MEAN;
    xmoe_status status =
        xm_key_count(loader, "pooling_type", false, XM_MAX_CONTEXT, &pooling, error);
    bool known = pooling == XMOE_POOLING_FIRST || pooling == XMOE_POOLING_LAST;
    loader->model->info.pooling = known ? (xmoe_pooling)pooling : XMOE_POOLING_MEAN;
    return status;
}

static xmoe_status fill_model(xm_loader *loader, const xmoe_model_options *options,
                              xmoe_error *error)
{
    xmoe_model *model = loader->model;
    const xm_family *family;
    xmoe_status status;
    if ((status = find_family(model, &family, error)) != XMOE_OK ||
        (status = load_tokenizer(model, error)) != XMOE_OK ||
        (loader->architecture = family->architecture, status = family->bind(loader, error)) !=
            XMOE_OK ||
        (status = xm_loader_check_all_bound(loader, error)) != XMOE_OK ||
        (status = describe_texts(model, error)) != XMOE_OK ||
        (status = read_pooling(loader, error)) != XMOE_OK)
        return status;
    return load_weights(loader, options, error);
}

xmoe_status xmoe_model_load(const char *path, const xmoe_model_options *options,
                            xmoe_model **model_out, xmoe_error *error)
{
    const xmoe_model_options defaults = {0};
    *model_out = NULL;
    if (options == NULL)
        options = &defaults;
    if (options->threads < 0 || options->threads > 4096)
        return xm_fail_argument(error, "threads", "threads is %d, must be 0 (all CPUs) to 4096",
                                options->threads);
    if (options->context_length < 0)
        return xm_fail_argument(error, "context_length",
                                "context_length is %d, must be 0 (the file's) or more",
                                options->context_length);
    xmoe_model *model = xm_calloc(1, sizeof *model);
    if (model == NULL)
        return xm_fail_memory(error, "model", sizeof *model);
    xm_loader loader = {.model = model, .context_limit = options->context_length};
    xmoe_status status = xm_kernels_select(options->isa, &model->kernels, error);
    if (status == XMOE_OK)
        status = xm_gguf_open(path, &model->file, error);
    if (status == XMOE_OK)
        status = fill_model(&loader, options, error);
    xm_loader_free(&loader);
    if (status != XMOE_OK) {
        xmoe_model_free(model);
        return status;
    }
    model->info.isa = model->kernels->name;
    *model_out = model;
    return XMOE_OK;
}

void xmoe_model_free(xmoe_model *model)
{
    if (model == NULL)
        return;
    xm_model_free_memory(model);
    xm_token_tree_free(model->token_tree);
    xm_tokenizer_free(model->tokenizer);
    xm_gguf_close(model->file);
    xm_free(model);
}
