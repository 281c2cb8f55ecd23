/*
 * usage_file.c - see usage_file.h.
 */
#include "usage_file.h"

#include "cli.h"
#include "output_file.h"
#include "usage_report.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* More than the largest model's document has (256 layers of 1024 experts in three phases); bounds
 * the memory of the tree. */
static const size_t largest_file = 64U << 20;

enum { PATH_BYTES = 64 }; /* of "phases.decode.layers[255].active_histogram" */

static xmoe_status bad(xmoe_error *error, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static xmoe_status bad(xmoe_error *error, const char *format, ...)
{
    va_list arguments;
    *error = (xmoe_error){.status = XMOE_ERROR_FORMAT};
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return XMOE_ERROR_FORMAT;
}

static xmoe_status no_memory(xmoe_error *error)
{
    *error = (xmoe_error){.status = XMOE_ERROR_MEMORY, .message = "out of memory"};
    return XMOE_ERROR_MEMORY;
}

/* --- members -----------------------------------------------------------------------------------
 */

/* A whole number from 0 to below 2^53, which is what a double holds exactly. */
static bool get_whole(const cJSON *value, uint64_t *number)
{
    if (!cJSON_IsNumber(value) || !(value->valuedouble >= 0) || value->valuedouble >= 0x1p53 ||
        value->valuedouble != floor(value->valuedouble)) {
        return false;
    }
    *number = (uint64_t)value->valuedouble;
    return true;
}

static xmoe_status read_whole(const cJSON *object, const char *where, const char *name,
                              uint64_t *number, xmoe_error *error)
{
    if (get_whole(cJSON_GetObjectItemCaseSensitive(object, name), number)) {
        return XMOE_OK;
    }
    return bad(error, "%s%s%s: must be a whole number from 0 to below 2^53", where,
               where[0] != '\0' ? "." : "", name);
}

static xmoe_status read_int(const cJSON *object, const char *where, const char *name,
                            int32_t *number, xmoe_error *error)
{
    uint64_t whole = 0;
    xmoe_status status = read_whole(object, where, name, &whole, error);
    if (status == XMOE_OK && whole > INT32_MAX) {
        status = bad(error, "%s%s%s: is too large", where, where[0] != '\0' ? "." : "", name);
    }
    *number = status == XMOE_OK ? (int32_t)whole : 0;
    return status;
}

/* True if the member is this text. */
static bool has_text(const cJSON *object, const char *name, const char *text)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsString(value) && strcmp(value->valuestring, text) == 0;
}

/* --- a usage object ----------------------------------------------------------------------------
 */

/* An array of exactly `length` numbers: whole ones into counts, or any into weights (the other is
 * NULL). */
static xmoe_status read_array(const cJSON *layer, const char *where, const char *name,
                              int32_t length, uint64_t *counts, double *weights, xmoe_error *error)
{
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(layer, name);
    if (!cJSON_IsArray(array) || cJSON_GetArraySize(array) != length) {
        return bad(error, "%s.%s: must be an array of %d numbers", where, name, length);
    }
    int32_t i = 0;
    for (const cJSON *item = array->child; item != NULL; item = item->next, i++) {
        if (counts != NULL && !get_whole(item, &counts[i])) {
            return bad(error, "%s.%s[%d]: must be a whole number from 0 to below 2^53", where, name,
                       i);
        }
        if (weights != NULL && !cJSON_IsNumber(item)) {
            return bad(error, "%s.%s[%d]: must be a number", where, name, i);
        }
        if (weights != NULL) {
            weights[i] = item->valuedouble;
        }
    }
    return XMOE_OK;
}

/* The numbers of one layer; they live in *memory, which is the caller's to free, also on error. */
static xmoe_status read_layer(const cJSON *tree, const char *where, xmoe_layer_usage *layer,
                              uint64_t **memory, xmoe_error *error)
{
    xmoe_status status;
    if ((status = read_int(tree, where, "layer", &layer->layer, error)) != XMOE_OK ||
        (status = read_int(tree, where, "experts", &layer->experts, error)) != XMOE_OK ||
        (status = read_whole(tree, where, "tokens", &layer->tokens, error)) != XMOE_OK ||
        (status = read_whole(tree, where, "activations", &layer->activations, error)) != XMOE_OK ||
        (status = read_whole(tree, where, "steps", &layer->steps, error)) != XMOE_OK ||
        (status = read_whole(tree, where, "distinct", &layer->distinct, error)) != XMOE_OK) {
        return status;
    }
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(tree, "counts");
    if (layer->experts < 1 || cJSON_GetArraySize(array) != layer->experts) {
        return bad(error, "%s.counts: must be an array of as many numbers as `experts` says",
                   where);
    }
    const size_t experts = (size_t)layer->experts;
    uint64_t *counts = calloc(3 * experts + 1, sizeof *counts);
    *memory = counts;
    if (counts == NULL) {
        return no_memory(error);
    }
    uint64_t *histogram = counts + experts;
    double *weights = (double *)(void *)(histogram + experts + 1);
    layer->counts = counts;
    layer->active_histogram = histogram;
    layer->weights = weights;
    status = read_array(tree, where, "counts", layer->experts, counts, NULL, error);
    if (status == XMOE_OK) {
        status =
            read_array(tree, where, "active_histogram", layer->experts + 1, histogram, NULL, error);
    }
    if (status == XMOE_OK) {
        status = read_array(tree, where, "weights", layer->experts, NULL, weights, error);
    }
    return status;
}

/* What follows from other numbers must not say otherwise. */
static xmoe_status check_derived(const xmoe_layer_usage *given, const xmoe_usage *usage,
                                 const char *where, xmoe_error *error)
{
    for (int32_t i = 0; i < usage->layer_count; i++) {
        const xmoe_layer_usage *layer = &usage->layers[i];
        if (given[i].tokens != layer->tokens || given[i].activations != layer->activations) {
            return bad(error,
                       "%s.layers[%d]: tokens and activations are not those of active_histogram",
                       where, i);
        }
    }
    return XMOE_OK;
}

static xmoe_status read_layers(const cJSON *list, const char *where, xmoe_phase phase,
                               int64_t since, xmoe_usage **usage, xmoe_error *error)
{
    xmoe_layer_usage layers[XMOE_MAX_LAYERS] = {0};
    uint64_t *memory[XMOE_MAX_LAYERS] = {0};
    int32_t count = 0;
    xmoe_status status = XMOE_OK;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) > XMOE_MAX_LAYERS) {
        return bad(error, "%s.layers: must be an array of at most %d layers", where,
                   XMOE_MAX_LAYERS);
    }
    for (const cJSON *item = list->child; item != NULL && status == XMOE_OK; item = item->next) {
        char place[PATH_BYTES];
        snprintf(place, sizeof place, "%s.layers[%d]", where, count);
        status = read_layer(item, place, &layers[count], &memory[count], error);
        count++;
    }
    if (status == XMOE_OK) {
        status = xmoe_usage_create(phase, since, layers, count, usage, error);
        if (status != XMOE_OK) {
            xmoe_error why = *error;
            bad(error, "%s: %.400s", where, why.message);
            error->status = status;
        }
    }
    if (status == XMOE_OK) {
        status = check_derived(layers, *usage, where, error);
    }
    for (int32_t i = 0; i < count; i++) {
        free(memory[i]);
    }
    return status;
}

static xmoe_status read_usage(const cJSON *tree, const char *where, xmoe_phase phase,
                              xmoe_usage **usage, xmoe_error *error)
{
    uint64_t since;
    if (!has_text(tree, "phase", usage_phase_name(phase))) {
        return bad(error, "%s.phase: must be \"%s\"", where, usage_phase_name(phase));
    }
    xmoe_status status = read_whole(tree, where, "since", &since, error);
    return status != XMOE_OK ? status
                             : read_layers(cJSON_GetObjectItemCaseSensitive(tree, "layers"), where,
                                           phase, (int64_t)since, usage, error);
}

/* --- documents ---------------------------------------------------------------------------------
 */

bool usage_id_is_valid(const char *id)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strlen(id);
    return length > 0 && length < USAGE_ID_BYTES && id[0] != '.' && strspn(id, allowed) == length;
}

static xmoe_status read_model(const cJSON *tree, usage_file *file, xmoe_error *error)
{
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(tree, "model");
    if (!cJSON_IsString(model) || strlen(model->valuestring) >= sizeof file->model ||
        !json_is_plain(model->valuestring)) {
        return bad(error,
                   "model: must be a name of less than %d bytes, in UTF-8 and without "
                   "control characters",
                   USAGE_MODEL_BYTES);
    }
    snprintf(file->model, sizeof file->model, "%s", model->valuestring);
    return XMOE_OK;
}

/* All is prefill plus decode, of the same layers. Steps and distinct are apart: a step can have
 * rows of both. */
static xmoe_status check_sums(xmoe_usage *const phases[XMOE_PHASES], xmoe_error *error)
{
    const xmoe_usage *all = phases[XMOE_PHASE_ALL], *prefill = phases[XMOE_PHASE_PREFILL],
                     *decode = phases[XMOE_PHASE_DECODE];
    if (prefill->layer_count != all->layer_count || decode->layer_count != all->layer_count) {
        return bad(error, "phases: are not of the same layers");
    }
    for (int32_t i = 0; i < all->layer_count; i++) {
        const xmoe_layer_usage *sum = &all->layers[i], *a = &prefill->layers[i],
                               *b = &decode->layers[i];
        bool good = a->layer == sum->layer && b->layer == sum->layer &&
                    a->experts == sum->experts && b->experts == sum->experts;
        for (int32_t e = 0; good && e <= sum->experts; e++) {
            good = sum->active_histogram[e] == a->active_histogram[e] + b->active_histogram[e] &&
                   (e == sum->experts || sum->counts[e] == a->counts[e] + b->counts[e]);
        }
        if (!good) {
            return bad(error, "phases.all.layers[%d]: is not the sum of prefill and decode", i);
        }
    }
    return XMOE_OK;
}

static xmoe_status read_snapshot(const cJSON *tree, usage_file *file, xmoe_error *error)
{
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(tree, "id");
    const cJSON *phases = cJSON_GetObjectItemCaseSensitive(tree, "phases");
    uint64_t created;
    int32_t experts;
    xmoe_status status = read_whole(tree, "", "created", &created, error);
    if (status == XMOE_OK) {
        status = read_int(tree, "", "experts", &experts, error);
    }
    if (status != XMOE_OK) {
        return status;
    }
    if (!cJSON_IsString(id) || !usage_id_is_valid(id->valuestring)) {
        return bad(error, "id: must be 1 to 64 of letters, digits and . _ -");
    }
    snprintf(file->id, sizeof file->id, "%s", id->valuestring);
    file->created = (int64_t)created;
    for (int32_t i = 0; i < XMOE_PHASES && status == XMOE_OK; i++) {
        char where[PATH_BYTES];
        const char *name = usage_phase_name((xmoe_phase)i);
        snprintf(where, sizeof where, "phases.%s", name);
        status = read_usage(cJSON_GetObjectItemCaseSensitive(phases, name), where, (xmoe_phase)i,
                            &file->phases[i], error);
    }
    if (status == XMOE_OK) {
        status = check_sums(file->phases, error);
    }
    const xmoe_usage *all = file->phases[XMOE_PHASE_ALL];
    if (status == XMOE_OK && all->layer_count > 0 && experts != all->layers[0].experts) {
        status = bad(error, "experts: %d, but the layers have %d", experts, all->layers[0].experts);
    }
    return status;
}

static xmoe_status read_plain(const cJSON *tree, usage_file *file, xmoe_error *error)
{
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(tree, "phase");
    const cJSON *window = cJSON_GetObjectItemCaseSensitive(tree, "window_seconds");
    xmoe_phase phase;
    int32_t window_seconds = 0;
    if (!cJSON_IsString(name) || !usage_phase_parse(name->valuestring, &phase)) {
        return bad(error, "phase: must be \"all\", \"prefill\" or \"decode\"");
    }
    if (window != NULL && !cJSON_IsNull(window)) {
        xmoe_status status = read_int(tree, "", "window_seconds", &window_seconds, error);
        if (status != XMOE_OK) {
            return status;
        }
    }
    xmoe_status status = read_usage(tree, "usage", phase, &file->phases[phase], error);
    if (status == XMOE_OK) {
        file->phases[phase]->window_seconds = window_seconds;
    }
    return status;
}

static xmoe_status read_tree(const cJSON *tree, usage_file *file, xmoe_error *error)
{
    bool snapshot = has_text(tree, "object", "experts.snapshot");
    if (!snapshot && !has_text(tree, "object", "experts.usage")) {
        return bad(error,
                   "object: must be \"experts.snapshot\" or \"experts.usage\": this is JSON, but "
                   "not of expert usage");
    }
    xmoe_status status = read_model(tree, file, error);
    if (status != XMOE_OK) {
        return status;
    }
    return snapshot ? read_snapshot(tree, file, error) : read_plain(tree, file, error);
}

xmoe_status usage_file_parse(const char *text, size_t length, usage_file *file, xmoe_error *error)
{
    const char *end = NULL;
    *file = (usage_file){0};
    if (length > largest_file) {
        return bad(error, "has %zu bytes; no expert usage is larger than %zu", length,
                   largest_file);
    }
    cJSON *tree = cJSON_ParseWithLengthOpts(text, length, &end, 0);
    while (tree != NULL && end < text + length && strchr(" \t\r\n", *end) != NULL && *end != '\0') {
        end++;
    }
    if (tree == NULL || end != text + length) {
        cJSON_Delete(tree);
        return bad(error, "is not JSON: byte %zu", end != NULL ? (size_t)(end - text) : 0);
    }
    xmoe_status status = read_tree(tree, file, error);
    cJSON_Delete(tree);
    if (status != XMOE_OK) {
        usage_file_free(file);
    }
    return status;
}

bool usage_file_read(usage_file *file, const char *path)
{
    size_t length;
    xmoe_error error;
    *file = (usage_file){0};
    char *text = cli_read_file(path, &length);
    if (text == NULL) {
        return false;
    }
    xmoe_status status = usage_file_parse(text, length, file, &error);
    free(text);
    if (status != XMOE_OK) {
        cli_fail("%s: %s", path, error.message);
    }
    return status == XMOE_OK;
}

void usage_file_free(usage_file *file)
{
    for (int32_t i = 0; i < XMOE_PHASES; i++) {
        xmoe_usage_free(file->phases[i]);
    }
    *file = (usage_file){0};
}

static bool is_snapshot(const usage_file *file)
{
    return file->phases[XMOE_PHASE_ALL] != NULL && file->phases[XMOE_PHASE_PREFILL] != NULL &&
           file->phases[XMOE_PHASE_DECODE] != NULL;
}

/* The first phase that is there. */
static const xmoe_usage *any_phase(const usage_file *file)
{
    int32_t i = 0;
    while (i < XMOE_PHASES - 1 && file->phases[i] == NULL) {
        i++;
    }
    return file->phases[i];
}

const xmoe_usage *usage_file_phase(const usage_file *file, const char *phase, const char *path)
{
    xmoe_phase wanted;
    if (phase == NULL || !usage_phase_parse(phase, &wanted)) {
        return any_phase(file);
    }
    if (file->phases[wanted] == NULL) {
        cli_fail("%s: holds phase %s only, not %s", path, usage_phase_name(any_phase(file)->phase),
                 phase);
    }
    return file->phases[wanted];
}

/* --- writing -----------------------------------------------------------------------------------
 */

/* The part after the last slash, and its length without the suffix. */
static const char *base_name(const char *path, const char *suffix, int *length)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    size_t bytes = strlen(name), cut = strlen(suffix);
    bool ends_so = bytes > cut && strcmp(name + bytes - cut, suffix) == 0;
    *length = (int)(ends_so ? bytes - cut : bytes);
    return name;
}

void usage_file_set_model(usage_file *file, const char *path)
{
    int length;
    const char *name = base_name(path, ".gguf", &length);
    snprintf(file->model, sizeof file->model, "%.*s", length, name);
}

void usage_file_set_id(usage_file *file, const char *path)
{
    int length;
    const char *name = base_name(path, ".json", &length);
    snprintf(file->id, sizeof file->id, "%.*s", length, name);
    for (char *at = file->id; *at != '\0'; at++) {
        const char letter[] = {*at, '\0'};
        if (!usage_id_is_valid(letter) && (*at != '.' || at == file->id)) {
            *at = '-';
        }
    }
    if (file->id[0] == '\0') {
        snprintf(file->id, sizeof file->id, "usage");
    }
}

void usage_file_print(FILE *out, const usage_file *file)
{
    json_writer json = {.out = out};
    const xmoe_usage *any = any_phase(file);
    if (!is_snapshot(file)) {
        usage_write_json(&json, NULL, file->model, any);
        return;
    }
    json_open_object(&json, NULL);
    json_string(&json, "object", "experts.snapshot");
    json_string(&json, "id", file->id);
    json_string(&json, "model", file->model);
    json_integer(&json, "created", file->created);
    json_integer(&json, "experts", any->layer_count > 0 ? any->layers[0].experts : 0);
    json_open_object(&json, "phases");
    for (int32_t i = 0; i < XMOE_PHASES; i++) {
        usage_write_json(&json, usage_phase_name((xmoe_phase)i), file->model, file->phases[i]);
    }
    json_close_object(&json);
    json_close_object(&json);
}

bool usage_file_write(const usage_file *file, const char *path)
{
    output_file output = {0};
    if (!output_open(&output, path)) {
        return false;
    }
    usage_file_print(output.stream, file);
    return output_finish(&output);
}
