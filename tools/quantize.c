/*
 * quantize.c - xmoe-quantize: rewrites a model with its matrices in other weight types. All work is
 * xmoe_quantize's; this is its command line.
 */
#include "cli.h"

#include "xmoe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    xmoe_quantize_options options;
    cli_strings types; /* PATTERN=TYPE */
    xmoe_quantize_override overrides[CLI_MAX_STRINGS];
    char *patterns; /* owns their patterns */
    bool quiet;
} settings;

/* The weights of a model of any number of parts, in bytes; 0 if it cannot be read. */
static double model_bytes(const char *path)
{
    xmoe_gguf *file;
    double bytes = 0;
    if (xmoe_gguf_open(path, &file, NULL) != XMOE_OK) {
        return 0;
    }
    for (uint64_t i = 0; i < xmoe_gguf_tensor_count(file); i++) {
        xmoe_gguf_tensor tensor;
        xmoe_gguf_get_tensor(file, i, &tensor);
        bytes += (double)tensor.bytes;
    }
    xmoe_gguf_close(file);
    return bytes;
}

/* Names in notes come from the file: control characters would reach the terminal. */
static void print_note(void *context, const char *note)
{
    const settings *set = context;
    char text[512];
    size_t i = 0;
    for (; i < sizeof text - 1 && note[i] != '\0'; i++) {
        unsigned char byte = (unsigned char)note[i];
        text[i] = byte < 0x20 || byte == 0x7F ? '?' : note[i];
    }
    text[i] = '\0';
    if (!set->quiet) {
        cli_warn("%s", text);
    }
}

/* Splits every PATTERN=TYPE; a status. */
static int read_overrides(settings *set)
{
    size_t bytes = 1;
    for (int32_t i = 0; i < set->types.count; i++) {
        bytes += strlen(set->types.values[i]) + 1;
    }
    char *next = set->patterns = malloc(bytes);
    if (next == NULL) {
        return cli_fail("out of memory");
    }
    for (int32_t i = 0; i < set->types.count; i++) {
        const char *text = set->types.values[i], *equals = strrchr(text, '=');
        if (equals == NULL || equals == text) {
            return cli_wrong("--tensor-type: '%s' is not PATTERN=TYPE", text);
        }
        size_t length = (size_t)(equals - text);
        memcpy(next, text, length);
        next[length] = '\0';
        set->overrides[i] = (xmoe_quantize_override){.pattern = next, .type = equals + 1};
        next += length + 1;
    }
    set->options.overrides = set->overrides;
    set->options.override_count = set->types.count;
    return CLI_OK;
}

static int quantize(settings *set, const char *input, const char *output)
{
    cli_progress progress;
    xmoe_error error;
    int wrong = read_overrides(set);
    if (wrong != CLI_OK) {
        return wrong;
    }
    double before = set->quiet ? 0 : model_bytes(input); /* may be the output too */
    set->options.on_note = print_note;
    set->options.note_context = set;
    set->options.progress = cli_progress_report;
    set->options.progress_context = &progress;
    cli_catch_interrupt();
    cli_progress_start(&progress, "bytes", set->quiet);
    xmoe_status status = xmoe_quantize(input, output, &set->options, &error);
    cli_progress_clear(&progress);
    if (cli_interrupted() && status != XMOE_OK) {
        return CLI_INTERRUPTED;
    }
    if (status != XMOE_OK) {
        return cli_fail("%s", error.message);
    }
    if (!set->quiet) {
        char old[32], new[32];
        cli_warn("%s (%s) -> %s (%s, %s)", input, cli_format_bytes(old, before), output,
                 cli_format_bytes(new, model_bytes(output)), set->options.type);
    }
    return CLI_OK;
}

int main(int argc, char **argv)
{
    settings set = {.options = {.type = "Q8_0"}};
    xmoe_quantize_options *options = &set.options;
    const cli_flag flags[] = {
        {.name = "type",
         .argument = "TYPE",
         .type = CLI_STRING,
         .value = &options->type,
         .choices = xmoe_quantize_types(),
         .help = "weight type of the matrices; ..._M is a mix with a better type where errors "
                 "cost most"},
        {.name = "output-type",
         .argument = "TYPE",
         .type = CLI_STRING,
         .value = &options->output_type,
         .choices = xmoe_weight_types(),
         .default_text = "as --type says",
         .help = "weight type of the output matrix"},
        {.name = "embedding-type",
         .argument = "TYPE",
         .type = CLI_STRING,
         .value = &options->embedding_type,
         .choices = xmoe_weight_types(),
         .default_text = "as --type says",
         .help = "weight type of the token embedding"},
        {.name = "tensor-type",
         .argument = "PATTERN=TYPE",
         .type = CLI_STRINGS,
         .value = &set.types,
         .default_text = "",
         .help = "weight type of the matrices whose names match PATTERN, with * and ? as in a "
                 "shell; may be given again, the last that matches decides"},
        {.name = "importance",
         .argument = "FILE",
         .type = CLI_STRING,
         .value = &options->importance,
         .default_text = "none",
         .help = "weigh errors by how much each input matters: a file of xmoe-eval --importance "
                 "or of llama-imatrix"},
        {.name = "threads",
         .argument = "N",
         .type = CLI_INT,
         .value = &options->threads,
         .maximum = 4096,
         .default_text = "all CPUs",
         .help = "threads that convert"},
        {.name = "quiet",
         .type = CLI_BOOL,
         .value = &set.quiet,
         .help = "no progress, no notes, no summary"},
    };
    const cli_program program = {
        .name = "xmoe-quantize",
        .usage = "INPUT OUTPUT",
        .description =
            "Rewrites the GGUF model INPUT, of any architecture, as OUTPUT with its matrices in "
            "another\nweight type. Biases, norms, routers and position embeddings stay F32. Of a "
            "split model give\nthe first part. OUTPUT appears whole or not at all.",
        .examples = "  xmoe-quantize --type Q4_K_M model-f32.gguf model-q4.gguf\n"
                    "  xmoe-quantize --type Q4_0 --tensor-type '*.ffn_down_exps.weight=Q6_K' "
                    "model.gguf small.gguf\n"
                    "  xmoe-eval --model model.gguf --importance importance.gguf texts.txt\n"
                    "  xmoe-quantize --type Q3_K_M --importance importance.gguf model.gguf "
                    "small.gguf\n",
        .flags = flags,
        .flag_count = sizeof flags / sizeof flags[0],
        .minimum_arguments = 2,
        .maximum_arguments = 2,
    };
    cli_arguments arguments;
    if (!cli_parse(&program, argc, argv, &arguments)) {
        return arguments.status;
    }
    int status = quantize(&set, arguments.values[0], arguments.values[1]);
    free(set.patterns);
    return status;
}
