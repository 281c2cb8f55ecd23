/* model_fixture.c - see model_fixture.h. */
#include "model_fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

char model_good[64], model_bad[64];

const xmoe_random_model model_shape = {
    .context_length = 48,
    .embedding_length = 64,
    .layer_count = 4,
    .head_count = 4,
    .feed_forward_length = 96,
    .expert_count = 6,
    .expert_feed_forward_length = 32,
    .vocabulary_size = 290,
    .moe_every = 2,
    .router = {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.75f, .min_experts = 1},
    .router_spread = 1.0f,
    .type = "Q8_0",
    .seed = 3,
};

int model_write_good(void **state)
{
    (void)state;
    xmoe_error error = {0};
    /* Hundreds of files are written and synced: in memory, where there is such a place. */
    const char *folder = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(model_good, sizeof model_good, "%s/xmoe-model-%d.gguf", folder, (int)getpid());
    snprintf(model_bad, sizeof model_bad, "%s/xmoe-model-%d-bad.gguf", folder, (int)getpid());
    if (xmoe_random_model_write(model_good, &model_shape, NULL, NULL, &error) == XMOE_OK)
        return 0;
    fprintf(stderr, "%s\n", error.message);
    return -1;
}

int model_remove_files(void **state)
{
    (void)state;
    unlink(model_good);
    unlink(model_bad);
    return 0;
}

xmoe_status model_load(const char *path, xmoe_model **model, xmoe_error *error)
{
    const xmoe_model_options options = {.threads = 1};
    *error = (xmoe_error){0};
    return xmoe_model_load(path, &options, model, error);
}

xmoe_model *model_load_good(void)
{
    xmoe_model *model;
    xmoe_error error;
    if (model_load(model_good, &model, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    return model;
}

uint8_t *model_read_file(const char *path, size_t *size)
{
    FILE *stream = fopen(path, "rb");
    assert_non_null(stream);
    fseek(stream, 0, SEEK_END);
    *size = (size_t)ftell(stream);
    rewind(stream);
    uint8_t *bytes = malloc(*size);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *size, stream), *size);
    fclose(stream);
    return bytes;
}
