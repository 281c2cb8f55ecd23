/*
 * quantize.c - xmoe-quantize: rewrites a model with its matrices in another weight type. All work
 * is xmoe_quantize's; this is its command line.
 */
#include "cli.h"

#include "xmoe.h"

#include <stdio.h>
#include <sys/stat.h>

static double file_bytes(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 ? (double)info.st_size : 0;
}

int main(int argc, char **argv)
{
    const char *type = "Q8_0";
    bool quiet = false;
    const cli_flag flags[] = {
        {.name = "type",
         .argument = "TYPE",
         .type = CLI_STRING,
         .value = &type,
         .choices = "F32|F16|BF16|Q8_0|Q4_0|Q4_1|Q5_0|Q5_1|Q2_K|Q3_K|Q4_K|Q5_K|Q6_K|IQ4_NL|IQ4_XS|"
                    "MXFP4",
         .help = "weight type of the matrices in the output"},
        {.name = "quiet", .type = CLI_BOOL, .value = &quiet, .help = "no progress, no summary"},
    };
    const cli_program program = {
        .name = "xmoe-quantize",
        .usage = "INPUT OUTPUT",
        .description =
            "Rewrites the GGUF model INPUT as OUTPUT with its matrices in another weight "
            "type. Biases,\nnorms, position embeddings and router matrices stay F32. "
            "OUTPUT appears whole or not at all.",
        .examples = "  xmoe-quantize --type Q4_0 model-f32.gguf model-q4.gguf\n",
        .flags = flags,
        .flag_count = sizeof flags / sizeof flags[0],
        .minimum_arguments = 2,
        .maximum_arguments = 2,
    };
    cli_arguments arguments;
    if (!cli_parse(&program, argc, argv, &arguments)) {
        return arguments.status;
    }
    const char *input = arguments.values[0], *output = arguments.values[1];
    cli_progress progress;
    xmoe_error error;
    cli_catch_interrupt();
    cli_progress_start(&progress, "bytes", quiet);
    xmoe_status status = xmoe_quantize(input, output, type, cli_progress_report, &progress, &error);
    cli_progress_clear(&progress);
    if (cli_interrupted() && status != XMOE_OK) {
        return CLI_INTERRUPTED;
    }
    if (status != XMOE_OK) {
        return cli_fail("%s", error.message);
    }
    if (!quiet) {
        char before[32], after[32];
        cli_warn("%s (%s) -> %s (%s, %s)", input, cli_format_bytes(before, file_bytes(input)),
                 output, cli_format_bytes(after, file_bytes(output)), type);
    }
    return CLI_OK;
}
