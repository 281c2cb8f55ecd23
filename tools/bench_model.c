/*
 * bench_model.c - see bench_model.h.
 */
#include "bench_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

xmoe_random_model bench_model_default(void)
{
    return (xmoe_random_model){
        .context_length = 1024,
        .embedding_length = 1024,
        .layer_count = 8,
        .head_count = 16,
        .feed_forward_length = 4096,
        .expert_count = 64,
        .expert_feed_forward_length = 512,
        .vocabulary_size = 32000,
        .moe_every = 1,
        .router = {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.7f, .top_k = 1, .min_experts = 1},
        .router_spread = 2,
        .tied_output = true,
        .type = "Q8_0",
        .seed = 1,
    };
}

xmoe_random_model bench_model_tiny(void)
{
    xmoe_random_model shape = bench_model_default();
    shape.context_length = 512;
    shape.embedding_length = 32;
    shape.layer_count = 1;
    shape.head_count = 1;
    shape.feed_forward_length = 32;
    shape.expert_count = 4;
    shape.expert_feed_forward_length = 32;
    shape.vocabulary_size = 257;
    shape.type = "F32";
    return shape;
}

size_t bench_model_add_flags(xmoe_random_model *shape, cli_flag *rows)
{
    const struct {
        const char *name;
        int32_t *value;
        int32_t minimum;
        const char *help;
    } numbers[] = {
        {"layers", &shape->layer_count, 1, "random model: layers"},
        {"embedding", &shape->embedding_length, 1, "random model: width of the residual stream"},
        {"heads", &shape->head_count, 1, "random model: attention heads"},
        {"feed-forward", &shape->feed_forward_length, 1,
         "random model: hidden size of layers without experts"},
        {"experts", &shape->expert_count, 1, "random model: experts of a layer"},
        {"expert-feed-forward", &shape->expert_feed_forward_length, 1,
         "random model: hidden size of an expert"},
        {"vocabulary", &shape->vocabulary_size, 257, "random model: tokens in the vocabulary"},
        {"context", &shape->context_length, 1, "random model: longest sequence"},
        {"moe-every", &shape->moe_every, 0,
         "random model: every so many-th layer has experts; 0: none"},
    };
    size_t count = sizeof numbers / sizeof numbers[0];
    for (size_t i = 0; i < count; i++) {
        rows[i] = (cli_flag){.name = numbers[i].name,
                             .argument = "N",
                             .type = CLI_INT,
                             .value = numbers[i].value,
                             .minimum = numbers[i].minimum,
                             .maximum = 1 << 24,
                             .help = numbers[i].help};
    }
    rows[count++] = (cli_flag){.name = "type",
                               .argument = "TYPE",
                               .type = CLI_STRING,
                               .value = &shape->type,
                               .choices = xmoe_weight_types(),
                               .help = "random model: weight type"};
    rows[count++] = (cli_flag){.name = "router-spread",
                               .argument = "X",
                               .type = CLI_FLOAT,
                               .value = &shape->router_spread,
                               .maximum = 100,
                               .help = "random model: standard deviation of the router's logits"};
    rows[count++] = (cli_flag){.name = "model-seed",
                               .argument = "N",
                               .type = CLI_SIZE,
                               .value = &shape->seed,
                               .help = "random model: seed of the weights"};
    rows[count++] = (cli_flag){.name = "model-threshold",
                               .argument = "T",
                               .type = CLI_FLOAT,
                               .value = &shape->router.threshold,
                               .maximum = 1,
                               .above_minimum = true,
                               .help = "random model: its router's threshold"};
    return count;
}

const char *bench_temporary_directory(void)
{
    const char *directory = getenv("TMPDIR");
    return directory != NULL && directory[0] != '\0' ? directory : "/tmp";
}

void bench_model_path(const xmoe_random_model *shape, char *path, size_t size)
{
    snprintf(path, size, "%s/xmoe-bench-l%d-d%d-h%d-f%d-e%dx%d-v%d-c%d-m%d-r%g-t%g-%s-%llu.gguf",
             bench_temporary_directory(), shape->layer_count, shape->embedding_length,
             shape->head_count, shape->feed_forward_length, shape->expert_count,
             shape->expert_feed_forward_length, shape->vocabulary_size, shape->context_length,
             shape->moe_every, (double)shape->router_spread, (double)shape->router.threshold,
             shape->type, (unsigned long long)shape->seed);
}

int bench_model_write(const xmoe_random_model *shape, const char *path, bool quiet)
{
    xmoe_error error;
    cli_progress progress;
    cli_progress_start(&progress, "weights", quiet);
    xmoe_status status =
        xmoe_random_model_write(path, shape, cli_progress_report, &progress, &error);
    cli_progress_clear(&progress);
    if (cli_interrupted() && status != XMOE_OK) {
        return CLI_INTERRUPTED;
    }
    return status == XMOE_OK ? CLI_OK : cli_fail("%s", error.message);
}
