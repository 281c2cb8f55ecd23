/*
 * inspect.c - xmoe-inspect: what is in a GGUF file, of any architecture. It looks at the container
 * only and reads no weights, so that it also explains files that the engine refuses.
 */
#include "cli.h"
#include "json.h"

#include "xmoe.h"

#include <stdio.h>
#include <string.h>

enum { MAX_TYPES = 48 };

/* Elements and bytes of the tensors of one weight type. */
typedef struct {
    const char *type;
    uint64_t tensors, elements, bytes;
} type_sum;

typedef struct {
    char architecture[160];
    char name[160];
    type_sum types[MAX_TYPES];
    int type_count;
    type_sum all;
    type_sum experts; /* of those: tensors named *_exps.* */
} summary;

/* Keys of an architecture that say its shape; shown in this order as they are in the file. */
static const char *const shape_keys[] = {
    "context_length",       "embedding_length",           "block_count",
    "attention.head_count", "attention.head_count_kv",    "feed_forward_length",
    "expert_count",         "expert_feed_forward_length", "expert_used_count",
    "router.type",          "router.threshold",           "router.normalize",
    "router.views",         "router.view_temperature",    "router.state_length",
};

static bool find_key(const xmoe_gguf *file, const char *name, xmoe_gguf_key *key)
{
    uint64_t count = xmoe_gguf_key_count(file);
    for (uint64_t i = 0; i < count; i++) {
        xmoe_gguf_get_key(file, i, key);
        if (strcmp(key->key, name) == 0) {
            return true;
        }
    }
    return false;
}

static uint64_t tensor_elements(const xmoe_gguf_tensor *tensor)
{
    uint64_t elements = 1;
    for (int32_t i = 0; i < tensor->dimensions; i++) {
        elements *= tensor->shape[i];
    }
    return elements;
}

static void add_tensor(type_sum *sum, const xmoe_gguf_tensor *tensor)
{
    sum->tensors++;
    sum->elements += tensor_elements(tensor);
    sum->bytes += tensor->bytes;
}

static void add_to_type(summary *total, const xmoe_gguf_tensor *tensor)
{
    int i = 0;
    while (i < total->type_count && strcmp(total->types[i].type, tensor->type) != 0) {
        i++;
    }
    if (i == MAX_TYPES) {
        return;
    }
    total->types[i].type = tensor->type;
    total->type_count = i < total->type_count ? total->type_count : i + 1;
    add_tensor(&total->types[i], tensor);
}

static void summarise(const xmoe_gguf *file, summary *total)
{
    xmoe_gguf_key key;
    *total = (summary){0};
    snprintf(total->architecture, sizeof total->architecture, "%s",
             find_key(file, "general.architecture", &key) ? key.value : "unknown");
    snprintf(total->name, sizeof total->name, "%s",
             find_key(file, "general.name", &key) ? key.value : "");
    uint64_t count = xmoe_gguf_tensor_count(file);
    for (uint64_t i = 0; i < count; i++) {
        xmoe_gguf_tensor tensor;
        xmoe_gguf_get_tensor(file, i, &tensor);
        add_tensor(&total->all, &tensor);
        add_to_type(total, &tensor);
        if (strstr(tensor.name, "_exps.") != NULL) {
            add_tensor(&total->experts, &tensor);
        }
    }
}

static bool find_shape_key(const xmoe_gguf *file, const summary *total, const char *suffix,
                           xmoe_gguf_key *key)
{
    char name[256];
    snprintf(name, sizeof name, "%s.%s", total->architecture, suffix);
    return find_key(file, name, key);
}

/* --- text --------------------------------------------------------------------------------------
 */

/* Names come from the file: control characters would reach the terminal. */
static void print_name(const char *name, int width)
{
    int printed = 0;
    for (; *name != '\0'; name++, printed++) {
        unsigned char byte = (unsigned char)*name;
        putchar(byte < 0x20 || byte == 0x7F ? '?' : byte);
    }
    printf("%*s", printed < width ? width - printed : 0, "");
}

static void print_sum(const char *label, const type_sum *sum)
{
    char elements[32], bytes[32];
    printf("  %-10s %8llu tensors %10s weights %10s", label, (unsigned long long)sum->tensors,
           cli_format_count(elements, (double)sum->elements),
           cli_format_bytes(bytes, (double)sum->bytes));
    if (sum->bytes > 0) {
        printf("  %5.2f bits per weight", 8.0 * (double)sum->bytes / (double)sum->elements);
    }
    putchar('\n');
}

static void print_summary(const xmoe_gguf *file, const char *path)
{
    summary total;
    xmoe_gguf_key key;
    char parameters[32];
    summarise(file, &total);
    printf("%s\n\n", path);
    printf("  %-28s %s\n", "architecture", total.architecture);
    printf("  %-28s %s\n", "name", total.name);
    printf("  %-28s %s (%llu)\n", "parameters",
           cli_format_count(parameters, (double)total.all.elements),
           (unsigned long long)total.all.elements);
    for (size_t i = 0; i < sizeof shape_keys / sizeof shape_keys[0]; i++) {
        if (find_shape_key(file, &total, shape_keys[i], &key)) {
            printf("  %-28s %s\n", shape_keys[i], key.value);
        }
    }
    if (find_key(file, "tokenizer.ggml.tokens", &key)) {
        printf("  %-28s %llu\n", "vocabulary", (unsigned long long)key.array_count);
    }
    putchar('\n');
    for (int i = 0; i < total.type_count; i++) {
        print_sum(total.types[i].type, &total.types[i]);
    }
    print_sum("all", &total.all);
    if (total.experts.tensors > 0) {
        print_sum("experts", &total.experts);
    }
}

static void print_keys(const xmoe_gguf *file)
{
    uint64_t count = xmoe_gguf_key_count(file);
    for (uint64_t i = 0; i < count; i++) {
        xmoe_gguf_key key;
        xmoe_gguf_get_key(file, i, &key);
        print_name(key.key, 44);
        printf(" %-16s ", key.type);
        if (key.array_count > 0) {
            printf("(%llu) ", (unsigned long long)key.array_count);
        }
        printf("%s\n", key.value);
    }
}

static void print_tensors(const xmoe_gguf *file)
{
    uint64_t count = xmoe_gguf_tensor_count(file);
    for (uint64_t i = 0; i < count; i++) {
        xmoe_gguf_tensor tensor;
        xmoe_gguf_get_tensor(file, i, &tensor);
        char shape[96] = "";
        for (int32_t d = 0; d < tensor.dimensions && d < 4; d++) {
            size_t used = strlen(shape);
            snprintf(shape + used, sizeof shape - used, "%s%llu", d > 0 ? " x " : "",
                     (unsigned long long)tensor.shape[d]);
        }
        print_name(tensor.name, 32);
        printf(" %-8s %-24s %12llu bytes at %llu\n", tensor.type, shape,
               (unsigned long long)tensor.bytes, (unsigned long long)tensor.offset);
    }
}

/* --- JSON --------------------------------------------------------------------------------------
 */

static void write_sum(json_writer *json, const char *name, const type_sum *sum)
{
    json_open_object(json, name);
    json_unsigned(json, "tensors", sum->tensors);
    json_unsigned(json, "elements", sum->elements);
    json_unsigned(json, "bytes", sum->bytes);
    json_close_object(json);
}

static void write_keys(json_writer *json, const xmoe_gguf *file)
{
    uint64_t count = xmoe_gguf_key_count(file);
    json_open_array(json, "keys");
    for (uint64_t i = 0; i < count; i++) {
        xmoe_gguf_key key;
        xmoe_gguf_get_key(file, i, &key);
        json_open_object(json, NULL);
        json_string(json, "key", key.key);
        json_string(json, "type", key.type);
        json_unsigned(json, "array_count", key.array_count);
        json_string(json, "value", key.value);
        json_close_object(json);
    }
    json_close_array(json);
}

static void write_tensors(json_writer *json, const xmoe_gguf *file)
{
    uint64_t count = xmoe_gguf_tensor_count(file);
    json_open_array(json, "tensors");
    for (uint64_t i = 0; i < count; i++) {
        xmoe_gguf_tensor tensor;
        xmoe_gguf_get_tensor(file, i, &tensor);
        json_open_object(json, NULL);
        json_string(json, "name", tensor.name);
        json_string(json, "type", tensor.type);
        json_open_row(json, "shape");
        for (int32_t d = 0; d < tensor.dimensions && d < 4; d++) {
            json_unsigned(json, NULL, tensor.shape[d]);
        }
        json_close_array(json);
        json_unsigned(json, "offset", tensor.offset);
        json_unsigned(json, "bytes", tensor.bytes);
        json_close_object(json);
    }
    json_close_array(json);
}

static void write_json(const xmoe_gguf *file, const char *path, bool keys, bool tensors)
{
    summary total;
    xmoe_gguf_key key;
    json_writer json = {.out = stdout};
    summarise(file, &total);
    json_open_object(&json, NULL);
    json_string(&json, "file", path);
    json_string(&json, "architecture", total.architecture);
    json_string(&json, "name", total.name);
    json_unsigned(&json, "parameters", total.all.elements);
    json_open_object(&json, "shape");
    for (size_t i = 0; i < sizeof shape_keys / sizeof shape_keys[0]; i++) {
        if (find_shape_key(file, &total, shape_keys[i], &key)) {
            json_string(&json, shape_keys[i], key.value);
        }
    }
    json_close_object(&json);
    json_open_object(&json, "types");
    for (int i = 0; i < total.type_count; i++) {
        write_sum(&json, total.types[i].type, &total.types[i]);
    }
    json_close_object(&json);
    write_sum(&json, "all", &total.all);
    write_sum(&json, "experts", &total.experts);
    if (keys) {
        write_keys(&json, file);
    }
    if (tensors) {
        write_tensors(&json, file);
    }
    json_close_object(&json);
}

int main(int argc, char **argv)
{
    bool keys = false, tensors = false, as_json = false;
    const cli_flag flags[] = {
        {.name = "keys", .type = CLI_BOOL, .value = &keys, .help = "list the metadata"},
        {.name = "tensors", .type = CLI_BOOL, .value = &tensors, .help = "list the tensors"},
        {.name = "json",
         .type = CLI_BOOL,
         .value = &as_json,
         .help = "JSON: the summary, with --keys and --tensors these too"},
    };
    const cli_program program = {
        .name = "xmoe-inspect",
        .usage = "[FILE]",
        .description = "Shows what is in a GGUF file of any architecture: without flags a summary "
                       "(shape, parameters,\nbytes by weight type). FILE defaults to the bundled "
                       "model. Long values are shortened.",
        .examples = "  xmoe-inspect models/xmoe-small.gguf\n"
                    "  xmoe-inspect --tensors --json model.gguf | jq '.tensors[].name'\n",
        .flags = flags,
        .flag_count = sizeof flags / sizeof flags[0],
        .maximum_arguments = 1,
    };
    cli_arguments arguments;
    if (!cli_parse(&program, argc, argv, &arguments)) {
        return arguments.status;
    }
    const char *path = cli_find_model(arguments.count > 0 ? arguments.values[0] : NULL);
    if (path == NULL) {
        return CLI_FAILED;
    }
    xmoe_gguf *file;
    xmoe_error error;
    if (xmoe_gguf_open(path, &file, &error) != XMOE_OK) {
        return cli_fail("%s", error.message);
    }
    if (as_json) {
        write_json(file, path, keys, tensors);
    } else {
        if (!keys && !tensors) {
            print_summary(file, path);
        }
        if (keys) {
            print_keys(file);
        }
        if (tensors) {
            print_tensors(file);
        }
    }
    xmoe_gguf_close(file);
    return cli_finish(CLI_OK);
}
