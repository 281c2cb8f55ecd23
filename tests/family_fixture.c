/* family_fixture.c - see family_fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "family_fixture.h"

#include "base/random.h"
#include "model/random_vocabulary.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIRECTORY "tests/fixtures/families/"

const char *const family_names[] = {
    "llama",         "llama-3",      "llama-bias",   "mixtral",
    "qwen2",         "qwen2-yarn",   "qwen3",        "olmoe",
    "qwen2moe",      "qwen3moe",     "granitemoe",   "granitemoe-shared",
    "phimoe",        "phimoe-long",  "gpt-oss",      "deepseek2-lite",
    "deepseek2-old", "deepseek2-v2", "deepseek2-v3", NULL};

const char *const family_wide_names[] = {"llama-wide",
                                         "mixtral-wide",
                                         "qwen2-wide",
                                         "qwen3-wide",
                                         "olmoe-wide",
                                         "qwen2moe-wide",
                                         "qwen3moe-wide",
                                         "granitemoe-wide",
                                         "granitemoe-shared-wide",
                                         "phimoe-wide",
                                         "gpt-oss-wide",
                                         "deepseek2-v3-wide",
                                         NULL};

/* --- reading ---------------------------------------------------------------------------------- */

/* The next number of a line, which ends with the line. */
static bool next_number(char **at, double *value)
{
    char *end;
    *value = strtod(*at, &end);
    bool found = end != *at;
    *at = end;
    return found;
}

static int32_t next_integer(char **at)
{
    double value = 0;
    assert_true(next_number(at, &value));
    return (int32_t)value;
}

static void read_key(family_fixture *f, const char *line)
{
    static const char *const types[] = {"u32", "f32", "bool", "string"};
    assert_true(f->key_count < FAMILY_MAX_KEYS);
    family_key *key = &f->keys[f->key_count++];
    char type[16];
    assert_int_equal(sscanf(line, "%79s %15s %31s", key->name, type, key->text), 3);
    while (strcmp(type, types[key->type]) != 0)
        assert_true(++key->type <= FAMILY_STRING);
    key->number = key->type == FAMILY_BOOL ? strcmp(key->text, "true") == 0 : atof(key->text);
}

static void read_tensor(family_fixture *f, const char *line)
{
    assert_true(f->tensor_count < FAMILY_MAX_TENSORS);
    family_tensor *tensor = &f->tensors[f->tensor_count++];
    char shape[64];
    assert_int_equal(
        sscanf(line, "%63s %63s %f %f", tensor->name, shape, &tensor->scale, &tensor->offset), 4);
    for (int32_t i = 0; i < 4; i++)
        tensor->shape[i] = 1;
    for (char *at = shape; *at != '\0'; at += *at == 'x') {
        assert_true(tensor->dimensions < 4);
        tensor->shape[tensor->dimensions++] = strtoull(at, &at, 10);
    }
}

static void read_values(family_fixture *f, char *line)
{
    assert_true(f->tensor_count < FAMILY_MAX_TENSORS);
    family_tensor *tensor = &f->tensors[f->tensor_count++];
    double value;
    int taken = 0;
    *tensor = (family_tensor){.dimensions = 1, .shape = {0, 1, 1, 1}};
    assert_int_equal(sscanf(line, "%63s%n", tensor->name, &taken), 1);
    line += taken;
    tensor->values = calloc(strlen(line), sizeof *tensor->values);
    assert_non_null(tensor->values);
    while (next_number(&line, &value))
        tensor->values[tensor->shape[0]++] = (float)value;
}

static void read_tokens(family_sequence *sequence, char *line)
{
    double value;
    while (next_number(&line, &value)) {
        assert_true(sequence->token_count < FAMILY_MAX_TOKENS);
        sequence->tokens[sequence->token_count++] = (int32_t)value;
    }
}

/* "3,1,0 2,7,1 ...": one list per position. */
static void read_experts(family_sequence *sequence, char *line)
{
    int32_t layer = next_integer(&line);
    family_choices *choices = &sequence->choices;
    assert_true(layer == choices->moe_layers && layer < FAMILY_MAX_MOE_LAYERS);
    choices->moe_layers++;
    for (int32_t position = 0; position < sequence->token_count; position++) {
        int32_t rank = 0;
        do {
            assert_true(rank < FAMILY_MAX_TOP);
            choices->expert[layer][position][rank++] = next_integer(&line);
        } while (*line++ == ',');
        choices->top[layer] = rank;
    }
}

static void read_logits(const family_fixture *f, family_logits *logits, char *line)
{
    int32_t at = logits->count++;
    double value = 0;
    assert_true(at < FAMILY_MAX_LOGITS);
    logits->positions[at] = next_integer(&line);
    logits->rows[at] = calloc((size_t)f->vocabulary, sizeof(float));
    assert_non_null(logits->rows[at]);
    for (int32_t i = 0; i < f->vocabulary; i++) {
        assert_true(next_number(&line, &value));
        logits->rows[at][i] = (float)value;
    }
}

static void free_logits(family_logits *logits)
{
    for (int32_t i = 0; i < logits->count; i++)
        free(logits->rows[i]);
}

static void read_line(family_fixture *f, int32_t *sequences, char *line)
{
    char word[16] = "";
    int taken = 0;
    if (line[0] == '#')
        return;
    assert_int_equal(sscanf(line, "%15s %n", word, &taken), 1);
    line += taken;
    if (strcmp(word, "seed") == 0) {
        f->seed = strtoull(line, NULL, 10);
    } else if (strcmp(word, "key") == 0) {
        read_key(f, line);
    } else if (strcmp(word, "vocabulary") == 0) {
        f->vocabulary = next_integer(&line);
    } else if (strcmp(word, "tensor") == 0) {
        read_tensor(f, line);
    } else if (strcmp(word, "values") == 0) {
        read_values(f, line);
    } else if (strcmp(word, "tokens") == 0) {
        assert_true(*sequences < FAMILY_SEQUENCES);
        read_tokens(&f->sequences[(*sequences)++], line);
    } else if (strcmp(word, "fewer") == 0) {
        f->fewer.experts = next_integer(&line);
        read_logits(f, &f->fewer.logits, line);
    } else {
        int32_t sequence = next_integer(&line);
        assert_true(sequence < *sequences);
        if (strcmp(word, "experts") == 0)
            read_experts(&f->sequences[sequence], line);
        else if (strcmp(word, "logits") == 0)
            read_logits(f, &f->sequences[sequence].logits, line);
        else
            fail_msg("%s: unknown word '%s'", f->name, word);
    }
}

family_fixture *family_read(const char *name)
{
    family_fixture *f = calloc(1, sizeof *f);
    char path[128], *line = NULL;
    size_t capacity = 0;
    int32_t sequences = 0;
    assert_non_null(f);
    snprintf(f->name, sizeof f->name, "%s", name);
    snprintf(path, sizeof path, DIRECTORY "%s.txt", name);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail_msg("%s: cannot be read; tests run from the project's directory", path);
    while (getline(&line, &capacity, file) > 0)
        read_line(f, &sequences, line);
    free(line);
    fclose(file);
    assert_true(f->vocabulary > 0 && f->tensor_count > 0);
    return f;
}

void family_free(family_fixture *fixture)
{
    for (int32_t i = 0; i < fixture->tensor_count; i++)
        free(fixture->tensors[i].values);
    for (int32_t s = 0; s < FAMILY_SEQUENCES; s++)
        free_logits(&fixture->sequences[s].logits);
    free_logits(&fixture->fewer.logits);
    free(fixture);
}

/* --- files ------------------------------------------------------------------------------------ */

char family_path[64];

int family_make_path(void **state)
{
    (void)state;
    const char *folder = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(family_path, sizeof family_path, "%s/xmoe-family-%d.gguf", folder, (int)getpid());
    return 0;
}

static uint64_t hash_of(const char *name)
{
    uint64_t value = UINT64_C(0xCBF29CE484222325);
    for (; *name != '\0'; name++)
        value = (value ^ (unsigned char)*name) * UINT64_C(0x100000001B3);
    return value;
}

/* The first `count` elements. */
static void make_values(const family_fixture *f, const family_tensor *tensor, float *values,
                        size_t count)
{
    uint64_t stream = hash_of(tensor->name);
    for (size_t i = 0; i < count; i++) {
        int32_t bits = (int32_t)(xm_random_bits(f->seed, stream, i) >> 48) - 32768;
        values[i] = tensor->values != NULL
                        ? tensor->values[i % tensor->shape[0]]
                        : tensor->scale * ((float)bits / 32768.0f) + tensor->offset;
    }
}

/* columns: of the rows as they are written. */
static const xm_weight_traits *type_of(const family_tensor *tensor, const family_file *file,
                                       uint64_t columns)
{
    size_t length = strlen(tensor->name);
    if (file->tensor != NULL && strcmp(tensor->name, file->tensor) == 0 && file->retype != NULL)
        return file->retype;
    if (file->type == NULL || tensor->dimensions < 2 || length < 7 ||
        strcmp(tensor->name + length - 7, ".weight") != 0 ||
        strstr(tensor->name, ".ffn_gate_inp.") != NULL)
        return xm_weight_traits_of(XM_TYPE_F32);
    if (columns % file->type->block_elements != 0)
        return xm_weight_traits_of(XM_TYPE_F16);
    return file->type;
}

/* Quantising everything would take most of the tests' time. So tensors of types of blocks are drawn
 * from a palette of quantised blocks, one for each type, scale and offset. */
enum { PALETTE_BLOCKS = 256, MAX_PALETTES = 256 };

static struct {
    const xm_weight_traits *traits;
    float scale, offset;
    unsigned char *blocks;
} palettes[MAX_PALETTES];

static const unsigned char *palette_of(const xm_weight_traits *traits, const family_tensor *tensor)
{
    int32_t at = 0;
    while (palettes[at].blocks != NULL &&
           (palettes[at].traits != traits || palettes[at].scale != tensor->scale ||
            palettes[at].offset != tensor->offset))
        assert_true(++at < MAX_PALETTES);
    if (palettes[at].blocks != NULL)
        return palettes[at].blocks;
    static const family_fixture common = {.seed = 7};
    size_t count = (size_t)PALETTE_BLOCKS * traits->block_elements;
    float *values = calloc(count, sizeof *values);
    unsigned char *blocks = calloc(PALETTE_BLOCKS, traits->block_bytes);
    assert_non_null(values);
    assert_non_null(blocks);
    make_values(&common, tensor, values, count);
    xm_weights_from_f32(traits, values, NULL, blocks, count);
    free(values);
    palettes[at].traits = traits;
    palettes[at].scale = tensor->scale;
    palettes[at].offset = tensor->offset;
    palettes[at].blocks = blocks;
    return blocks;
}

static void draw_blocks(const family_fixture *f, const family_tensor *tensor,
                        const xm_weight_traits *traits, unsigned char *bytes, size_t blocks)
{
    const unsigned char *palette = palette_of(traits, tensor);
    uint64_t stream = hash_of(tensor->name);
    for (size_t b = 0; b < blocks; b++) {
        size_t drawn = (size_t)(xm_random_bits(f->seed, stream, b) % PALETTE_BLOCKS);
        memcpy(bytes + b * traits->block_bytes, palette + drawn * traits->block_bytes,
               traits->block_bytes);
    }
}

/* `count` elements as bytes of a type. */
static unsigned char *make_bytes(const family_fixture *f, const family_tensor *tensor,
                                 const xm_weight_traits *traits, size_t count)
{
    size_t blocks = count / traits->block_elements;
    unsigned char *bytes = calloc(blocks + 1, traits->block_bytes);
    assert_non_null(bytes);
    if (traits->block_elements > 1) {
        draw_blocks(f, tensor, traits, bytes, blocks);
        return bytes;
    }
    float *values = calloc(count + 1, sizeof *values);
    assert_non_null(values);
    make_values(f, tensor, values, count);
    xm_weights_from_f32(traits, values, NULL, bytes, count);
    free(values);
    return bytes;
}

static void write_bytes(xm_gguf_writer *writer, const family_file *file,
                        const xm_weight_traits *traits, const void *bytes, size_t count)
{
    if (!file->in_f32) {
        xm_gguf_writer_data(writer, bytes, count / traits->block_elements * traits->block_bytes);
        return;
    }
    float *values = calloc(count, sizeof *values);
    assert_non_null(values);
    xm_weights_to_f32(traits, bytes, values, count);
    xm_gguf_writer_data(writer, values, count * sizeof *values);
    free(values);
}

static bool is_dropped(const family_file *file, const char *name)
{
    return file->drop != NULL && strcmp(file->drop, name) == 0;
}

/* Describes all tensors, or writes their data. */
static void put_tensors(const family_fixture *f, const family_file *file, xm_gguf_writer *writer,
                        bool describe)
{
    for (int32_t i = 0; i < f->tensor_count; i++) {
        const family_tensor *tensor = &f->tensors[i];
        uint64_t shape[4];
        memcpy(shape, tensor->shape, sizeof shape);
        if (is_dropped(file, tensor->name))
            continue;
        if (file->tensor != NULL && strcmp(tensor->name, file->tensor) == 0)
            shape[file->dimension] += (uint64_t)file->change;
        const xm_weight_traits *traits = type_of(tensor, file, shape[0]);
        size_t count = (size_t)(shape[0] * shape[1] * shape[2] * shape[3]);
        if (describe) {
            xm_gguf_writer_tensor(writer, tensor->name, file->in_f32 ? XM_TYPE_F32 : traits->type,
                                  tensor->dimensions, shape);
            continue;
        }
        unsigned char *bytes = make_bytes(f, tensor, traits, count);
        write_bytes(writer, file, traits, bytes, count);
        free(bytes);
    }
}

static void put_key(xm_gguf_writer *writer, const family_key *key)
{
    switch (key->type) {
    case FAMILY_U32:
        xm_gguf_writer_u32(writer, key->name, (uint32_t)key->number);
        break;
    case FAMILY_F32:
        xm_gguf_writer_f32(writer, key->name, (float)key->number);
        break;
    case FAMILY_BOOL:
        xm_gguf_writer_bool(writer, key->name, key->number != 0.0);
        break;
    case FAMILY_STRING:
        xm_gguf_writer_string(writer, key->name, key->text);
        break;
    }
}

void family_write(const family_fixture *fixture, const family_file *file)
{
    static const family_file plain = {0};
    xm_gguf_writer *writer = NULL;
    xmoe_error error = {0};
    if (file == NULL)
        file = &plain;
    assert_int_equal(xm_gguf_writer_create(family_path, &writer, &error), XMOE_OK);
    for (int32_t i = 0; i < fixture->key_count; i++) {
        const family_key *key = &fixture->keys[i];
        bool replaced = file->key != NULL && strcmp(key->name, file->key->name) == 0;
        if (!replaced && !is_dropped(file, key->name))
            put_key(writer, key);
    }
    if (file->key != NULL)
        put_key(writer, file->key);
    assert_int_equal(xm_random_vocabulary_write(writer, fixture->vocabulary, &error), XMOE_OK);
    put_tensors(fixture, file, writer, true);
    xm_gguf_writer_begin(writer);
    put_tensors(fixture, file, writer, false);
    if (xm_gguf_writer_finish(writer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
}

int family_remove_path(void **state)
{
    (void)state;
    unlink(family_path);
    for (int32_t i = 0; i < MAX_PALETTES; i++) {
        free(palettes[i].blocks);
        palettes[i].blocks = NULL;
    }
    return 0;
}

/* --- runs ------------------------------------------------------------------------------------- */

xmoe_model *family_load(const char *isa)
{
    xmoe_error error = {0};
    xmoe_model *model = NULL;
    const xmoe_model_options options = {.isa = isa, .threads = 1};
    if (xmoe_model_load(family_path, &options, &model, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return model;
}

typedef struct {
    family_choices *choices;
    int32_t first; /* position of the step's first row */
} routed_sink;

static void keep_choices(void *context, int32_t moe_layer, const xm_selection *selection)
{
    const routed_sink *sink = context;
    family_choices *choices = sink->choices;
    assert_true(moe_layer < FAMILY_MAX_MOE_LAYERS);
    choices->moe_layers = moe_layer + 1;
    for (int32_t row = 0; row < selection->rows; row++) {
        int32_t count = selection->count[row];
        assert_true(count <= FAMILY_MAX_TOP);
        choices->top[moe_layer] = count;
        for (int32_t i = 0; i < count; i++) {
            int32_t from = row * selection->experts + i;
            choices->expert[moe_layer][sink->first + row][i] = selection->expert[from];
            choices->weight[moe_layer][sink->first + row][i] = selection->weight[from];
        }
    }
}

family_result family_run(const xmoe_model *model, const int32_t *tokens, int32_t count,
                         const family_run_options *options)
{
    enum { BLOCKS = FAMILY_MAX_TOKENS / XM_KV_TOKENS };
    const family_run_options set = options != NULL ? *options : (family_run_options){0};
    int32_t blocks[BLOCKS], chunk = set.chunk > 0 ? set.chunk : count;
    size_t vocabulary = (size_t)model->info.vocabulary_size;
    family_result result = {.rows = count,
                            .logits = calloc((size_t)count * vocabulary, sizeof(float))};
    xm_pool *pool = NULL;
    xm_kv_cache *cache = NULL;
    xm_forward *forward = NULL;
    xmoe_routing own;
    assert_non_null(result.logits);
    if (set.threads > 1)
        assert_int_equal(xm_pool_create(set.threads, &pool, NULL), XMOE_OK);
    assert_int_equal(xm_kv_cache_create(model, BLOCKS, !set.kv_f16, &cache, NULL), XMOE_OK);
    assert_int_equal(xm_forward_create(model, pool, cache, chunk, &forward, NULL), XMOE_OK);
    xmoe_model_default_routing(model, &own);
    for (int32_t i = 0; i < BLOCKS; i++)
        blocks[i] = BLOCKS - 1 - i;
    for (int32_t done = 0; done < count; done += chunk) {
        int32_t now = count - done < chunk ? count - done : chunk;
        const xm_segment segment = {.tokens = tokens + done,
                                    .token_count = now,
                                    .position = done,
                                    .blocks = blocks,
                                    .routing = set.routing != NULL ? set.routing : &own};
        routed_sink sink = {.choices = &result.choices, .first = done};
        const float *logits = xm_forward_step(forward, &segment, 1, keep_choices, &sink);
        memcpy(result.logits + (size_t)done * vocabulary, logits,
               (size_t)now * vocabulary * sizeof(float));
    }
    xm_forward_free(forward);
    xm_kv_cache_free(cache);
    xm_pool_free(pool);
    return result;
}

void family_result_free(family_result *result)
{
    free(result->logits);
    *result = (family_result){0};
}
