/*
 * run.c - see run.h. Rates in the log are means since the line before; losses too, all other values
 * are those of the step named.
 */
#include "train/run.h"

#include "base/clock.h"
#include "train/run_log.h"

#include <errno.h>
#include <string.h>

typedef struct {
    xm_trainer *trainer;
    const xm_corpus *corpus;
    const xm_run_plan *plan;
    uint64_t last_step;
    xm_clock clock;
    FILE *log;
    int64_t line_began, line_ended; /* ns; saving and validating come after the end */
    double loss_sum;                /* since the line before */
    uint64_t steps_in_line;
    double gemm_peak;        /* operations per second */
    double seconds_per_step; /* smoothed; 0: not known yet */
    double valid_bits[XM_MAX_DOMAINS], valid_nats[XM_MAX_DOMAINS];
    bool saved;
} run_state;

static bool due(uint64_t every, uint64_t step)
{
    return every > 0 && step % every == 0;
}

static double mean_active(const xm_network *network, const xm_step_report *report)
{
    double sum = 0;
    int32_t layers = 0;
    for (int32_t block = 0; block < network->shape.blocks; block++) {
        sum += report->result.active[block];
        layers += network->blocks[block].moe;
    }
    return layers > 0 ? sum / layers / (double)report->result.tokens : 0;
}

/* Operations of one token's training: the backward pass makes two products of each one forward.
 * Dropped pairs cost nothing; what is computed twice to save memory counts once. */
static double flops_per_token(const run_state *run, const xm_step_report *report)
{
    const xm_network *network = xm_trainer_network(run->trainer);
    double computed = mean_active(network, report) * (1.0 - report->result.dropped);
    return 3.0 * xm_network_forward_flops(network, computed);
}

static void report_line(run_state *run, const xm_step_report *report, bool validated)
{
    double seconds = (double)(run->line_ended - run->line_began) * 1e-9;
    double per_step = seconds / (double)run->steps_in_line;
    double rate = (double)report->result.tokens / per_step;
    run->seconds_per_step =
        run->seconds_per_step > 0 ? 0.8 * run->seconds_per_step + 0.2 * per_step : per_step;
    double flops = rate * flops_per_token(run, report);
    if (run->log != NULL) {
        const xm_run_line line = {.step = report,
                                  .loss = run->loss_sum / (double)run->steps_in_line,
                                  .tokens_per_second = rate,
                                  .flops = flops,
                                  .peak_share = flops / run->gemm_peak,
                                  .valid_bits = validated ? run->valid_bits : NULL,
                                  .valid_nats = validated ? run->valid_nats : NULL};
        xm_run_log_write(run->log, run->trainer, run->corpus, &line);
    }
    if (run->plan->on_report != NULL && xm_trainer_ranks(run->trainer)->rank == 0) {
        double steps_left = (double)(run->last_step - report->step);
        const xm_run_report line = {.step = report,
                                    .last_step = run->last_step,
                                    .tokens_per_second = rate,
                                    .flops = flops,
                                    .peak_share = flops / run->gemm_peak,
                                    .seconds_left = steps_left * run->seconds_per_step,
                                    .mean_active =
                                        mean_active(xm_trainer_network(run->trainer), report),
                                    .valid_bits = validated ? run->valid_bits : NULL,
                                    .saved = run->saved};
        run->plan->on_report(run->plan->context, &line);
    }
    run->saved = false;
    run->loss_sum = 0;
    run->steps_in_line = 0;
    run->line_began = xm_clock_now(&run->clock);
}

static xmoe_status validate(run_state *run, xmoe_error *error)
{
    xm_evaluation evaluations[XM_MAX_DOMAINS];
    xmoe_status status =
        xm_trainer_validate(run->trainer, run->plan->validation_windows, evaluations, error);
    for (int32_t i = 0; i < run->corpus->domain_count && status == XMOE_OK; i++) {
        run->valid_bits[i] = xm_bits_per_byte(&evaluations[i]);
        run->valid_nats[i] = xm_nats_per_token(&evaluations[i]);
    }
    return status;
}

static xmoe_status save(run_state *run, xmoe_error *error)
{
    if (run->plan->checkpoint_path == NULL)
        return XMOE_OK;
    run->saved = true;
    return xm_trainer_save(run->trainer, run->plan->checkpoint_path, error);
}

/* One step and what is due after it. *stop: a stop was asked for and the state is saved. */
static xmoe_status advance(run_state *run, bool *stop, xmoe_error *error)
{
    const xm_run_plan *plan = run->plan;
    xm_step_report report;
    xmoe_status status = xm_trainer_step(run->trainer, &report, error);
    if (status != XMOE_OK)
        return status;
    bool last = report.step >= run->last_step;
    *stop = plan->should_stop != NULL && plan->should_stop(plan->context);
    status = xm_ranks_any(xm_trainer_ranks(run->trainer), stop, error);
    if (status != XMOE_OK)
        return status;
    run->loss_sum += report.result.loss;
    run->steps_in_line++;
    run->line_ended = xm_clock_now(&run->clock);
    bool validated =
        !*stop && (due(plan->validate_every, report.step) || (last && plan->validate_every > 0));
    if (*stop || last || due(plan->checkpoint_every, report.step))
        status = save(run, error);
    if (status == XMOE_OK && validated)
        status = validate(run, error);
    if (status == XMOE_OK && (validated || *stop || last || due(plan->log_every, report.step)))
        report_line(run, &report, validated);
    return status;
}

xmoe_status xm_run(xm_trainer *trainer, const xm_corpus *corpus, const xm_run_plan *plan,
                   uint64_t last_step, xmoe_error *error)
{
    run_state run = {.trainer = trainer,
                     .corpus = corpus,
                     .plan = plan,
                     .last_step = last_step,
                     .clock = xm_clock_system()};
    const xm_ranks *ranks = xm_trainer_ranks(trainer);
    xmoe_status status = XMOE_OK;
    if (ranks->rank == 0 && plan->log_path != NULL)
        status = xm_run_log_open(plan->log_path, trainer, corpus, &run.log, error);
    status = xm_ranks_agree(ranks, status, error);
    if (status == XMOE_OK)
        status = xm_trainer_gemm_peak(trainer, &run.gemm_peak, error);
    run.line_began = xm_clock_now(&run.clock);
    bool stop = false;
    while (status == XMOE_OK && !stop && xm_trainer_steps_done(trainer) < last_step)
        status = advance(&run, &stop, error);
    if (run.log != NULL && fclose(run.log) != 0 && status == XMOE_OK)
        status =
            xm_fail(error, XMOE_ERROR_IO, "cannot write %s: %s", plan->log_path, strerror(errno));
    return status;
}
