/*
 * run_log.c - see run_log.h.
 */
#include "train/run_log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The first line, without its end, from malloc; NULL: no memory. */
static char *make_header(const xm_network *network, const xm_corpus *corpus)
{
    char *line = NULL;
    size_t length = 0;
    FILE *file = open_memstream(&line, &length);
    if (file == NULL)
        return NULL;
    fprintf(file, "step,tokens,learning_rate,loss,balance_loss,router_entropy,z_loss,sparsity_loss,"
                  "gradient_norm,tokens_per_second,gflops,gemm_peak_share,dropped_fraction");
    for (int32_t block = 0; block < network->shape.blocks; block++)
        if (network->blocks[block].moe)
            fprintf(file, ",active_blk%d", block);
    for (int32_t i = 0; i < corpus->domain_count; i++)
        fprintf(file, ",valid_bpb_%s,valid_nats_%s", corpus->names[i], corpus->names[i]);
    if (fclose(file) == 0)
        return line;
    free(line);
    return NULL;
}

/* Leaves the file after the last line of a step that is done; *used: it has a header. */
static xmoe_status find_end(FILE *log, const char *path, const char *header, uint64_t steps_done,
                            bool *used, xmoe_error *error)
{
    char *line = NULL;
    size_t capacity = 0;
    off_t end = 0;
    ssize_t length = getline(&line, &capacity, log);
    *used = length > 0;
    if (*used && (strncmp(line, header, strlen(header)) != 0 || line[strlen(header)] != '\n')) {
        free(line);
        return xm_fail(error, XMOE_ERROR_FORMAT,
                       "%s has other columns than this run writes: move it away", path);
    }
    while (length > 0 && line[length - 1] == '\n' &&
           (end == 0 || strtoull(line, NULL, 10) <= steps_done)) {
        end += length;
        length = getline(&line, &capacity, log);
    }
    free(line);
    if (fseeko(log, end, SEEK_SET) != 0 || ftruncate(fileno(log), end) != 0)
        return xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", path, strerror(errno));
    return XMOE_OK;
}

xmoe_status xm_run_log_open(const char *path, const xm_trainer *trainer, const xm_corpus *corpus,
                            FILE **log_out, xmoe_error *error)
{
    *log_out = NULL;
    char *header = make_header(xm_trainer_network(trainer), corpus);
    if (header == NULL)
        return xm_fail_memory(error, "the log", 1024);
    int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    FILE *log = descriptor >= 0 ? fdopen(descriptor, "r+") : NULL;
    if (log == NULL) {
        free(header);
        return xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    bool used = false;
    xmoe_status status = find_end(log, path, header, xm_trainer_steps_done(trainer), &used, error);
    setvbuf(log, NULL, _IOLBF, 0);
    if (status == XMOE_OK && !used)
        fprintf(log, "%s\n", header);
    free(header);
    if (status != XMOE_OK)
        fclose(log);
    else
        *log_out = log;
    return status;
}

void xm_run_log_write(FILE *log, const xm_trainer *trainer, const xm_corpus *corpus,
                      const xm_run_line *line)
{
    const xm_network *network = xm_trainer_network(trainer);
    const xm_step_report *step = line->step;
    double tokens = (double)step->result.tokens;
    fprintf(log, "%" PRIu64 ",%.0f,%.4g,%.4f,%.4f,%.4f,%.4f,%.4f,%.4f,%.0f,%.2f,%.3f,%.5f",
            step->step, (double)step->step * tokens, step->rate, line->loss,
            step->result.balance_loss, step->result.entropy, step->result.z_loss,
            step->result.sparsity, step->norm, line->tokens_per_second, line->flops * 1e-9,
            line->peak_share, step->result.dropped);
    for (int32_t block = 0; block < network->shape.blocks; block++)
        if (network->blocks[block].moe)
            fprintf(log, ",%.2f", step->result.active[block] / tokens);
    for (int32_t i = 0; i < corpus->domain_count; i++) {
        if (line->valid_bits != NULL)
            fprintf(log, ",%.4f,%.4f", line->valid_bits[i], line->valid_nats[i]);
        else
            fprintf(log, ",,");
    }
    fprintf(log, "\n");
}
