/*
 * checkpoint.c - see checkpoint.h. Layout: header, three float arrays, a checksum of them.
 */
#include "train/checkpoint.h"

#include "base/memory.h"
#include "base/random.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SHAPE_NUMBERS = 18 };

typedef struct {
    char magic[8];
    uint64_t total; /* parameters */
    uint64_t step;
    uint64_t vocabulary;
    uint64_t seed;
    int64_t shape[SHAPE_NUMBERS]; /* integers of the shape, in order; see make_header */
    float threshold, epsilon;
    int64_t precision;
} checkpoint_header;

/* Names of values; NULL: none. They may come from a file. */
static const char *router_name(int64_t value)
{
    return xmoe_router_type_name((xmoe_router_type)value);
}

static const char *gate_name(int64_t value)
{
    static const char *const names[] = {[XM_GATE_SOFTMAX] = "softmax",
                                        [XM_GATE_SIGMOID] = "sigmoid",
                                        [XM_GATE_BASE] = "base",
                                        [XM_GATE_HASH] = "hash",
                                        [XM_GATE_RECURRENT] = "recurrent"};
    return value >= 0 && value <= XM_GATE_RECURRENT ? names[value] : NULL;
}

static const char *architecture_name(int64_t value)
{
    bool known = value >= 0 && value <= XM_ARCHITECTURE_OLMOE;
    return known ? xm_architecture_name((xm_architecture)value) : NULL;
}

static const char *optimizer_name(int64_t value)
{
    return value == XM_OPTIMIZER_ADAMW ? "adamw" : value == XM_OPTIMIZER_MUON ? "muon" : NULL;
}

static const struct {
    const char *name;
    const char *(*name_of)(int64_t value); /* NULL: it is a number */
} shape_names[SHAPE_NUMBERS] = {{"vocabulary", NULL},
                                {"context", NULL},
                                {"width", NULL},
                                {"blocks", NULL},
                                {"heads", NULL},
                                {"feed_forward", NULL},
                                {"experts", NULL},
                                {"expert_feed_forward", NULL},
                                {"moe_every", NULL},
                                {"router", router_name},
                                {"gate", gate_name},
                                {"top_k", NULL},
                                {"sequences", NULL},
                                {"groups", NULL},
                                {"architecture", architecture_name},
                                {"optimizer", optimizer_name},
                                {"router_views", NULL},
                                {"router_state", NULL}};

static checkpoint_header make_header(const xm_checkpoint *c)
{
    const xm_network_shape *s = &c->identity.shape;
    checkpoint_header header;
    memset(&header, 0, sizeof header); /* padding is written too */
    memcpy(header.magic, "XMTRAIN5", sizeof header.magic);
    header.total = c->network->total;
    header.step = c->step;
    header.vocabulary = c->identity.vocabulary;
    header.seed = c->identity.seed;
    const int64_t shape[SHAPE_NUMBERS] = {s->vocabulary,
                                          s->context,
                                          s->width,
                                          s->blocks,
                                          s->heads,
                                          s->feed_forward,
                                          s->experts,
                                          s->expert_feed_forward,
                                          s->moe_every,
                                          (int64_t)s->router,
                                          (int64_t)s->gate,
                                          s->top_k,
                                          c->identity.sequences,
                                          c->identity.groups,
                                          (int64_t)s->architecture,
                                          (int64_t)c->identity.optimizer,
                                          s->router_views,
                                          s->gate == XM_GATE_RECURRENT ? s->router_state : 0};
    memcpy(header.shape, shape, sizeof shape);
    header.threshold = s->threshold;
    header.epsilon = s->epsilon;
    header.precision = (int64_t)c->identity.precision;
    return header;
}

static uint64_t checksum(uint64_t sum, const float *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        sum = (sum ^ bits) * UINT64_C(0x100000001b3); /* FNV-1a over words */
    }
    return sum;
}

uint64_t xm_checkpoint_sum(const xm_checkpoint *c)
{
    uint64_t sum = checksum(c->step, c->parameters, c->network->total);
    sum = checksum(sum, c->first, c->network->total);
    return checksum(sum, c->second, c->network->total);
}

xmoe_status xm_checkpoint_save(const xm_checkpoint *c, const char *path, xmoe_error *error)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.partial", path) >= (int)sizeof temporary)
        return xm_fail_argument(error, "checkpoint", "the path of the checkpoint is too long");
    FILE *file = fopen(temporary, "wb");
    if (file == NULL)
        return xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", temporary, strerror(errno));
    checkpoint_header header = make_header(c);
    uint64_t sum = xm_checkpoint_sum(c);
    size_t n = c->network->total;
    bool fine = fwrite(&header, sizeof header, 1, file) == 1 &&
                fwrite(c->parameters, sizeof(float), n, file) == n &&
                fwrite(c->first, sizeof(float), n, file) == n &&
                fwrite(c->second, sizeof(float), n, file) == n &&
                fwrite(&sum, sizeof sum, 1, file) == 1 && fflush(file) == 0 &&
                fsync(fileno(file)) == 0;
    fine = fclose(file) == 0 && fine;
    if (!fine || rename(temporary, path) != 0) {
        xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", path, strerror(errno));
        remove(temporary);
        return XMOE_ERROR_IO;
    }
    return XMOE_OK;
}

static const char *name_precision(int64_t precision)
{
    bool known = precision == XM_PRECISION_F32 || precision == XM_PRECISION_BF16;
    return known ? xm_precision_name((xm_precision)precision) : "that is not known";
}

static void name_value(char text[24], size_t which, int64_t value)
{
    const char *name =
        shape_names[which].name_of != NULL ? shape_names[which].name_of(value) : NULL;
    if (name != NULL)
        snprintf(text, 24, "%s", name);
    else
        snprintf(text, 24, "%lld", (long long)value);
}

static xmoe_status check_header(const checkpoint_header *found, const checkpoint_header *expected,
                                const char *path, xmoe_error *error)
{
    if (memcmp(found->magic, expected->magic, sizeof found->magic) != 0)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s is no checkpoint of this program", path);
    for (size_t i = 0; i < SHAPE_NUMBERS; i++) {
        char was[24], is[24];
        name_value(was, i, found->shape[i]);
        name_value(is, i, expected->shape[i]);
        if (found->shape[i] != expected->shape[i])
            return xm_fail(error, XMOE_ERROR_FORMAT, "%s was made with %s %s, this run has %s",
                           path, shape_names[i].name, was, is);
    }
    if (found->threshold != expected->threshold || found->epsilon != expected->epsilon)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s was made with threshold %g, this run has %g",
                       path, (double)found->threshold, (double)expected->threshold);
    if (found->precision != expected->precision)
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%s was made in precision %s, this run is in %s: go on with --precision",
                       path, name_precision(found->precision), name_precision(expected->precision));
    if (found->vocabulary != expected->vocabulary)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s was made with another vocabulary", path);
    if (found->seed != expected->seed)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s was made with seed %llu, this run has %llu",
                       path, (unsigned long long)found->seed, (unsigned long long)expected->seed);
    if (found->total != expected->total)
        return xm_fail(error, XMOE_ERROR_FORMAT, "%s holds %llu parameters, expected %llu", path,
                       (unsigned long long)found->total, (unsigned long long)expected->total);
    return XMOE_OK;
}

xmoe_status xm_checkpoint_load(xm_checkpoint *c, const char *path, xmoe_error *error)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return xm_fail(error, XMOE_ERROR_IO, "cannot read %s: %s", path, strerror(errno));
    checkpoint_header header, expected = make_header(c);
    xmoe_status status;
    if (fread(&header, sizeof header, 1, file) != 1) {
        status = xm_fail(error, XMOE_ERROR_FORMAT, "%s is too short for a checkpoint", path);
        goto done;
    }
    status = check_header(&header, &expected, path, error);
    if (status != XMOE_OK)
        goto done;
    size_t n = c->network->total;
    uint64_t sum = 0;
    c->step = header.step;
    if (fread(c->parameters, sizeof(float), n, file) != n ||
        fread(c->first, sizeof(float), n, file) != n ||
        fread(c->second, sizeof(float), n, file) != n || fread(&sum, sizeof sum, 1, file) != 1)
        status = xm_fail(error, XMOE_ERROR_FORMAT, "%s ends early", path);
    else if (sum != xm_checkpoint_sum(c))
        status = xm_fail(error, XMOE_ERROR_FORMAT, "%s is damaged: its checksum differs", path);
done:
    fclose(file);
    return status;
}
