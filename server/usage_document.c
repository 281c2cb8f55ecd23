/*
 * usage_document.c - see usage_document.h.
 */
#include "usage_document.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "file.h"
#include "usage_json.h"

#define COUNT_LIMIT ((INT64_C(1) << 53) - 1) /* what every JSON number holds exactly */
#define VALUE_BYTES 32                       /* more than any value takes in a file of ours */

/* Room for "phases.decode", "phases.decode.layers[255]" and a member of that. */
enum { PHASE_PATH = 24, LAYER_PATH = 64, FIELD_PATH = 128 };

bool xm_usage_document_id_is_valid(const char *id)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strlen(id);
    return length >= 1 && length <= XM_DOCUMENT_ID_LENGTH && id[0] != '.' &&
           strspn(id, allowed) == length;
}

xmoe_status xm_usage_document_take(xmoe_engine *engine, const char *model_id,
                                   xm_usage_document *document, xmoe_error *error)
{
    snprintf(document->model, sizeof document->model, "%s", model_id);
    document->created = time(NULL);
    return xmoe_usage_get_phases(engine, document->phases, error);
}

void xm_usage_document_free(xm_usage_document *document)
{
    for (int phase = 0; phase < XMOE_PHASES; phase++)
        xmoe_usage_free(document->phases[phase]);
    *document = (xm_usage_document){0};
}

void xm_usage_document_write(const xmoe_model *model, const xm_usage_document *document,
                             xm_json *json)
{
    xm_json_open(json, NULL, '{');
    xm_json_string(json, "object", "experts.snapshot");
    xm_json_string(json, "id", document->id);
    xm_json_string(json, "model", document->model);
    xm_json_int(json, "created", document->created);
    xm_json_int(json, "experts", xmoe_model_get_info(model)->expert_count);
    xm_json_open(json, "phases", '{');
    for (int phase = 0; phase < XMOE_PHASES; phase++)
        xm_usage_write(model, document->model, document->phases[phase], NULL, NULL, json,
                       xm_usage_phase_name((xmoe_phase)phase));
    xm_json_close(json, '}');
    xm_json_close(json, '}');
}

size_t xm_usage_document_values(const xmoe_model *model)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    size_t per_layer = 4 * (size_t)info->expert_count + 64;
    return XM_JSON_VALUES + XMOE_PHASES * (size_t)info->moe_layer_count * per_layer;
}

/* A whole number from 0 on that must be there. where: path of the object. */
static bool read_number(const cJSON *object, const char *where, const char *key, int64_t maximum,
                        int64_t *number, xm_problem *problem)
{
    char path[FIELD_PATH];
    snprintf(path, sizeof path, "%s%s%s", where, where[0] ? "." : "", key);
    if (xm_json_whole(cJSON_GetObjectItemCaseSensitive(object, key), 0, maximum, number))
        return true;
    return xm_problem_field(problem, path, "'%s' must be a whole number from 0 to %" PRId64, path,
                            maximum);
}

/* The array of exactly so many items, or NULL with a problem; path gets its own. */
static const cJSON *find_array(const cJSON *layer, const char *where, const char *key,
                               int32_t length, char path[FIELD_PATH], xm_problem *problem)
{
    snprintf(path, FIELD_PATH, "%s.%s", where, key);
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(layer, key);
    if (cJSON_IsArray(array) && cJSON_GetArraySize(array) == length)
        return array;
    xm_problem_field(problem, path, "'%s' must be an array of %" PRId32 " numbers", path, length);
    return NULL;
}

static bool read_counts(const cJSON *layer, const char *where, const char *key, int32_t length,
                        uint64_t *counts, xm_problem *problem)
{
    char path[FIELD_PATH];
    const cJSON *array = find_array(layer, where, key, length, path, problem);
    if (!array)
        return false;
    int32_t i = 0;
    for (const cJSON *item = array->child; item; item = item->next, i++) {
        int64_t count = 0;
        if (!xm_json_whole(item, 0, COUNT_LIMIT, &count))
            return xm_problem_field(problem, path,
                                    "'%s[%" PRId32 "]' must be a whole number from 0 to %" PRId64,
                                    path, i, COUNT_LIMIT);
        counts[i] = (uint64_t)count;
    }
    return true;
}

static bool read_weights(const cJSON *layer, const char *where, int32_t length, double *weights,
                         xm_problem *problem)
{
    char path[FIELD_PATH];
    const cJSON *array = find_array(layer, where, "weights", length, path, problem);
    if (!array)
        return false;
    int32_t i = 0;
    for (const cJSON *item = array->child; item; item = item->next, i++) {
        if (!cJSON_IsNumber(item))
            return xm_problem_field(problem, path, "'%s[%" PRId32 "]' must be a number", path, i);
        weights[i] = item->valuedouble;
    }
    return true;
}

/* One phase while it is read: the layers point into numbers. */
typedef struct {
    xmoe_layer_usage *layers; /* [layer_count] */
    uint64_t *numbers;        /* [layer_count][2 * experts + 1]: histogram, counts */
    double *weights;          /* [layer_count][experts] */
    int32_t layer_count, experts;
} phase_numbers;

static bool allocate(const xmoe_model *model, phase_numbers *phase)
{
    const xmoe_model_info *info = xmoe_model_get_info(model);
    size_t layers = (size_t)info->moe_layer_count, experts = (size_t)info->expert_count;
    phase->layer_count = info->moe_layer_count;
    phase->experts = info->expert_count;
    phase->layers = calloc(layers + 1, sizeof *phase->layers); /* 0 layers need memory too */
    phase->numbers = calloc(layers * (2 * experts + 1) + 1, sizeof *phase->numbers);
    phase->weights = calloc(layers * experts + 1, sizeof *phase->weights);
    return phase->layers && phase->numbers && phase->weights;
}

static bool read_layer(const cJSON *tree, const char *where, int32_t number, phase_numbers *phase,
                       int32_t index, xm_problem *problem)
{
    size_t experts = (size_t)phase->experts, at = (size_t)index;
    uint64_t *histogram = phase->numbers + at * (2 * experts + 1);
    uint64_t *counts = histogram + experts + 1;
    double *weights = phase->weights + at * experts;
    int64_t layer = 0, given = 0, steps = 0, distinct = 0;
    if (!cJSON_IsObject(tree))
        return xm_problem_field(problem, where, "'%s' must be an object", where);
    if (!read_number(tree, where, "layer", INT32_MAX, &layer, problem) ||
        !read_number(tree, where, "experts", INT32_MAX, &given, problem))
        return false;
    if (layer != number || given != phase->experts)
        return xm_problem_field(problem, where,
                                "'%s' is layer %" PRId64 " with %" PRId64
                                " experts; in this model layer %" PRId32 " with %" PRId32
                                " experts comes there",
                                where, layer, given, number, phase->experts);
    if (!read_counts(tree, where, "active_histogram", phase->experts + 1, histogram, problem) ||
        !read_counts(tree, where, "counts", phase->experts, counts, problem) ||
        !read_weights(tree, where, phase->experts, weights, problem) ||
        !read_number(tree, where, "steps", COUNT_LIMIT, &steps, problem) ||
        !read_number(tree, where, "distinct", COUNT_LIMIT, &distinct, problem))
        return false;
    phase->layers[index] = (xmoe_layer_usage){.layer = number,
                                              .experts = phase->experts,
                                              .active_histogram = histogram,
                                              .counts = counts,
                                              .weights = weights,
                                              .steps = (uint64_t)steps,
                                              .distinct = (uint64_t)distinct};
    return true;
}

static int32_t next_moe_layer(const xmoe_model *model, int32_t after)
{
    do
        after++;
    while (!xmoe_model_layer_is_moe(model, after));
    return after;
}

static bool read_layers(const xmoe_model *model, const cJSON *tree, const char *where,
                        phase_numbers *phase, xm_problem *problem)
{
    char path[LAYER_PATH];
    snprintf(path, sizeof path, "%s.layers", where);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(tree, "layers");
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != phase->layer_count)
        return xm_problem_field(problem, path,
                                "'%s' must be an array of this model's %" PRId32 " MoE layers",
                                path, phase->layer_count);
    int32_t index = 0, number = -1;
    for (const cJSON *layer = list->child; layer; layer = layer->next, index++) {
        snprintf(path, sizeof path, "%s.layers[%" PRId32 "]", where, index);
        number = next_moe_layer(model, number);
        if (!read_layer(layer, path, number, phase, index, problem))
            return false;
    }
    return true;
}

/* What follows from the other numbers must not say otherwise. */
static bool check_derived(const cJSON *tree, const char *where, const xmoe_usage *usage,
                          xm_problem *problem)
{
    const cJSON *layer = cJSON_GetObjectItemCaseSensitive(tree, "layers")->child;
    for (int32_t i = 0; i < usage->layer_count; i++, layer = layer->next) {
        char path[LAYER_PATH];
        int64_t tokens = 0, activations = 0;
        snprintf(path, sizeof path, "%s.layers[%" PRId32 "]", where, i);
        if (!read_number(layer, path, "tokens", COUNT_LIMIT, &tokens, problem) ||
            !read_number(layer, path, "activations", COUNT_LIMIT, &activations, problem))
            return false;
        if ((uint64_t)tokens != usage->layers[i].tokens ||
            (uint64_t)activations != usage->layers[i].activations)
            return xm_problem_field(problem, path,
                                    "'%s': tokens and activations are not those of its "
                                    "active_histogram",
                                    path);
    }
    return true;
}

/* The heads of a phase that could contradict its place. */
static bool check_phase_head(const cJSON *tree, const char *where, xmoe_phase phase,
                             xm_problem *problem)
{
    const char *name = xm_usage_phase_name(phase);
    const cJSON *given = cJSON_GetObjectItemCaseSensitive(tree, "phase");
    if (!cJSON_IsObject(tree))
        return xm_problem_field(problem, where, "'%s' must be an object", where);
    if (!cJSON_IsString(given) || strcmp(given->valuestring, name) != 0)
        return xm_problem_field(problem, where, "'%s.phase' must be \"%s\"", where, name);
    if (xm_json_member(tree, "window_seconds"))
        return xm_problem_field(problem, where,
                                "'%s.window_seconds' must be null: a snapshot counts since start "
                                "or reset",
                                where);
    return true;
}

static bool read_phase(const xmoe_model *model, const cJSON *tree, xmoe_phase which,
                       xmoe_usage **usage, xm_problem *problem)
{
    char where[PHASE_PATH];
    phase_numbers phase = {0};
    xmoe_error error = {0};
    int64_t since = 0;
    snprintf(where, sizeof where, "phases.%s", xm_usage_phase_name(which));
    bool good = check_phase_head(tree, where, which, problem) &&
                read_number(tree, where, "since", COUNT_LIMIT, &since, problem);
    if (good && !allocate(model, &phase))
        good = xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    good = good && read_layers(model, tree, where, &phase, problem);
    if (good && xmoe_usage_create(which, since, phase.layers, phase.layer_count, usage, &error) !=
                    XMOE_OK) {
        if (error.status == XMOE_ERROR_MEMORY)
            good = xm_problem_engine(problem, &error, NULL);
        else
            good = xm_problem_field(problem, where, "'%s': %s", where, error.message);
    }
    good = good && check_derived(tree, where, *usage, problem);
    free(phase.layers);
    free(phase.numbers);
    free(phase.weights);
    return good;
}

/* Apart from steps, distinct and the last bits of weights, all is prefill plus decode. */
static bool check_sums(const xm_usage_document *document, xm_problem *problem)
{
    const xmoe_usage *all = document->phases[XMOE_PHASE_ALL];
    for (int32_t i = 0; i < all->layer_count; i++) {
        const xmoe_layer_usage *sum = &all->layers[i];
        const xmoe_layer_usage *prefill = &document->phases[XMOE_PHASE_PREFILL]->layers[i];
        const xmoe_layer_usage *decode = &document->phases[XMOE_PHASE_DECODE]->layers[i];
        bool good = true;
        for (int32_t e = 0; e < sum->experts; e++)
            good = good && sum->counts[e] == prefill->counts[e] + decode->counts[e];
        for (int32_t e = 0; e <= sum->experts; e++)
            good = good && sum->active_histogram[e] ==
                               prefill->active_histogram[e] + decode->active_histogram[e];
        if (!good)
            return xm_problem_field(
                problem, "phases.all",
                "'phases.all': layer %" PRId32 " is not the sum of prefill and decode", sum->layer);
    }
    return true;
}

static bool read_head(const xmoe_model *model, const cJSON *tree, xm_usage_document *document,
                      xm_problem *problem)
{
    int32_t model_experts = xmoe_model_get_info(model)->expert_count;
    int64_t experts = 0;
    const cJSON *object = cJSON_GetObjectItemCaseSensitive(tree, "object");
    const cJSON *name = cJSON_GetObjectItemCaseSensitive(tree, "model");
    if (!cJSON_IsString(object) || strcmp(object->valuestring, "experts.snapshot") != 0)
        return xm_problem_field(problem, "object", "'object' must be \"experts.snapshot\"");
    if (!cJSON_IsString(name) || strlen(name->valuestring) >= sizeof document->model)
        return xm_problem_field(problem, "model", "'model' must be a string of less than %zu bytes",
                                sizeof document->model);
    snprintf(document->model, sizeof document->model, "%s", name->valuestring);
    if (!read_number(tree, "", "created", COUNT_LIMIT, &document->created, problem) ||
        !read_number(tree, "", "experts", INT32_MAX, &experts, problem))
        return false;
    if (experts != model_experts)
        return xm_problem_field(problem, "experts",
                                "the snapshot is of %" PRId64
                                " experts per layer; this model has %" PRId32,
                                experts, model_experts);
    return true;
}

bool xm_usage_document_read(const xmoe_model *model, const cJSON *tree, xm_usage_document *document,
                            xm_problem *problem)
{
    if (!cJSON_IsObject(tree))
        return xm_problem_set(problem, 400, "invalid_json", NULL,
                              "a snapshot must be a JSON object");
    bool good = read_head(model, tree, document, problem);
    const cJSON *phases = cJSON_GetObjectItemCaseSensitive(tree, "phases");
    if (good && !cJSON_IsObject(phases))
        good = xm_problem_field(problem, "phases", "'phases' must be an object");
    for (int phase = 0; phase < XMOE_PHASES && good; phase++) {
        const char *name = xm_usage_phase_name((xmoe_phase)phase);
        good = read_phase(model, cJSON_GetObjectItemCaseSensitive(phases, name), (xmoe_phase)phase,
                          &document->phases[phase], problem);
    }
    good = good && check_sums(document, problem);
    if (!good)
        xm_usage_document_free(document);
    return good;
}

bool xm_usage_document_save(const xmoe_model *model, const xm_usage_document *document,
                            const char *path, char *message, size_t size)
{
    xm_text text = {0};
    xm_json json = {&text, false};
    xm_usage_document_write(model, document, &json);
    xm_text_puts(&text, "\n");
    bool good = !text.failed;
    if (good)
        good = xm_file_replace(path, &text, message, size);
    else
        snprintf(message, size, "cannot write %s: out of memory", path);
    xm_text_free(&text);
    return good;
}

bool xm_usage_document_load(const xmoe_model *model, const char *path, xm_usage_document *document,
                            char *message, size_t size)
{
    size_t values = xm_usage_document_values(model);
    struct stat status;
    xm_text text = {0};
    xm_problem problem = {0};
    if (stat(path, &status) == 0 && !S_ISREG(status.st_mode)) { /* a pipe would block */
        snprintf(message, size, "cannot read %s: it is not a file", path);
        return false;
    }
    bool good = xm_file_read(path, values * VALUE_BYTES, &text, message, size);
    if (good) {
        cJSON *tree = xm_json_parse_named("the file", values, text.data ? text.data : "",
                                          text.length, &problem);
        good = tree && xm_usage_document_read(model, tree, document, &problem);
        cJSON_Delete(tree);
        if (!good)
            snprintf(message, size, "%s: %s", path, problem.message);
    }
    xm_text_free(&text);
    return good;
}
