/*
 * train.c - xmoe-train: trains an xmoe model from plain text, or measures one on text. The work is
 * engine/train's; this is its command line.
 *
 * xmoe-train-mpi is the same with MPI's form of xm_ranks_start linked in: started under mpirun, its
 * processes train one model together. All do the same; rank 0 alone writes files and speaks.
 */
#include "cli.h"
#include "train_bench.h"

#include "train/linear.h"
#include "train/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    PATH_SIZE = 4096,
    EVALUATION_SEQUENCES = 2,
    MOE_EVERY_OF_ARCHITECTURE = -1 /* where no flag says it */
};

typedef struct {
    const char *data, *directory, *domains, *init, *name, *license, *description, *type, *router,
        *optimizer, *precision, *architecture, *evaluate;
    cli_floats weights;
    uint64_t sample_bytes;
    int32_t steps, validate_every, validation_windows, checkpoint_every, log_every, threads, seed;
    int32_t stride, warmup, decay, groups;
    double rate, final_rate;
    bool resume, bench, quiet;
    xm_trainer_options trainer;
    xm_corpus_options corpus;
    char domain_names[256];
} settings;

static settings default_settings(void)
{
    return (settings){
        .data = "corpus",
        .directory = "training",
        .domains = "en,fr,de,code",
        .name = "xmoe",
        .type = "Q8_0",
        .router = "threshold",
        .optimizer = "adamw",
        .precision = "auto",
        .architecture = "xmoe",
        .sample_bytes = 32 << 20,
        .steps = 4000,
        .validate_every = 250,
        .validation_windows = 16,
        .checkpoint_every = 250,
        .log_every = 10,
        .seed = 1,
        .warmup = 100,
        .rate = 2e-3,
        .final_rate = 4e-5,
        .trainer = {.shape = {.context = 512,
                              .width = 256,
                              .blocks = 6,
                              .heads = 4,
                              .feed_forward = 1024,
                              .experts = 32,
                              .expert_feed_forward = 128,
                              .moe_every = MOE_EVERY_OF_ARCHITECTURE,
                              .epsilon = 1e-5f,
                              .threshold = 0.9f,
                              .top_k = 4,
                              .router_views = 1,
                              .router_state = 64,
                              .init_std = 0.02f,
                              .router_std = 2.0f},
                    .sequences = 4,
                    .rule = {.beta1 = 0.9,
                             .beta2 = 0.95,
                             .weight_decay = 0.1,
                             .momentum = 0.95,
                             .clip = 1.0},
                    .capacity_factor = 8.0f,
                    .min_capacity = 4,
                    .balance_weight = 0.01f},
        .corpus = {.vocabulary = 8192},
    };
}

/* --- printing --------------------------------------------------------------------------------- */

typedef struct {
    const settings *settings;
    const xm_corpus *corpus;
} printer;

static void print_report(void *context, const xm_run_report *report)
{
    const printer *self = context;
    char left[32];
    fprintf(stderr,
            "step %llu/%llu  loss %.4f  norm %.2f  rate %.2e  active %.2f  %.0f tokens/s  "
            "%.1f GFLOP/s (%.0f %% of GEMM peak)  %s left",
            (unsigned long long)report->step->step, (unsigned long long)report->last_step,
            report->step->result.loss, report->step->norm, report->step->rate, report->mean_active,
            report->tokens_per_second, report->flops * 1e-9, 100 * report->peak_share,
            cli_format_time(left, report->seconds_left));
    if (report->valid_bits != NULL) {
        fprintf(stderr, "\n  valid bits per byte:");
        for (int32_t i = 0; i < self->corpus->domain_count; i++)
            fprintf(stderr, " %s %.4f", self->corpus->names[i], report->valid_bits[i]);
    }
    fprintf(stderr, "%s\n", report->saved ? "\n  checkpoint written" : "");
}

static bool should_stop(void *context)
{
    (void)context;
    return cli_interrupted();
}

/* --- training --------------------------------------------------------------------------------- */

static int split_domains(settings *s)
{
    if (snprintf(s->domain_names, sizeof s->domain_names, "%s", s->domains) >=
        (int)sizeof s->domain_names)
        return cli_wrong("--domains is too long");
    char *rest = NULL;
    for (char *name = strtok_r(s->domain_names, ",", &rest); name != NULL;
         name = strtok_r(NULL, ",", &rest)) {
        if (s->corpus.domain_count == XM_MAX_DOMAINS)
            return cli_wrong("--domains: at most %d", XM_MAX_DOMAINS);
        s->corpus.names[s->corpus.domain_count++] = name;
    }
    if (s->weights.count != 0 && s->weights.count != s->corpus.domain_count)
        return cli_wrong("--weights has %d values, --domains %d", s->weights.count,
                         s->corpus.domain_count);
    for (int32_t i = 0; i < s->weights.count; i++)
        s->corpus.weights[i] = (double)s->weights.values[i];
    return CLI_OK;
}

static void path_in(char path[PATH_SIZE], const settings *s, const char *name)
{
    snprintf(path, PATH_SIZE, "%s/%s", s->directory, name);
}

/* Rank 0 only. */
static xmoe_status export_model(const settings *s, const xm_corpus *corpus,
                                const xm_trainer *trainer, xmoe_error *error)
{
    char plain[PATH_SIZE], small[PATH_SIZE];
    const xm_model_labels labels = {
        .name = s->name, .license = s->license, .description = s->description};
    path_in(plain, s, "model-f32.gguf");
    path_in(small, s, "model.gguf");
    xmoe_status status =
        xm_model_file_write(plain, xm_trainer_network(trainer), &corpus->vocabulary, &labels,
                            xm_trainer_parameters(trainer), error);
    if (status == XMOE_OK)
        status = xmoe_quantize(plain, small, &(xmoe_quantize_options){.type = s->type}, error);
    if (status == XMOE_OK && !s->quiet)
        cli_warn("wrote %s and %s (%s) after step %llu", plain, small, s->type,
                 (unsigned long long)xm_trainer_steps_done(trainer));
    return status;
}

/* *whole: not stopped before its last step. */
static xmoe_status run_trainer(settings *s, const xm_corpus *corpus, xm_trainer *trainer,
                               bool *whole, xmoe_error *error)
{
    char log_path[PATH_SIZE], checkpoint_path[PATH_SIZE];
    path_in(log_path, s, "log.csv");
    path_in(checkpoint_path, s, "checkpoint");
    const xm_ranks *ranks = s->trainer.ranks;
    xmoe_status status = XMOE_OK;
    if (!s->resume && access(checkpoint_path, F_OK) == 0)
        status = xm_fail(error, XMOE_ERROR_ARGUMENT,
                         "%s exists: --resume goes on from it; remove it to start anew",
                         checkpoint_path);
    status = xm_ranks_agree(ranks, status, error);
    if (status == XMOE_OK && s->resume)
        status = xm_trainer_load(trainer, checkpoint_path, error);
    if (status != XMOE_OK)
        return status;
    const xm_network *network = xm_trainer_network(trainer);
    printer listener = {.settings = s, .corpus = corpus};
    const xm_run_plan plan = {.log_path = log_path,
                              .checkpoint_path = checkpoint_path,
                              .log_every = (uint64_t)s->log_every,
                              .validate_every = (uint64_t)s->validate_every,
                              .checkpoint_every = (uint64_t)s->checkpoint_every,
                              .validation_windows = s->validation_windows,
                              .on_report = s->quiet ? NULL : print_report,
                              .should_stop = should_stop,
                              .context = &listener};
    if (!s->quiet)
        cli_warn("%.2f M parameters, %d tokens per step, steps %llu to %d, %d rank%s, %s "
                 "(%s kernels)",
                 (double)network->total / 1e6, s->trainer.sequences * s->trainer.shape.context,
                 (unsigned long long)xm_trainer_steps_done(trainer), s->steps, ranks->count,
                 ranks->count > 1 ? "s" : "",
                 xm_precision_name(xm_trainer_gemm(trainer)->precision),
                 xm_gemm_kernels(xm_trainer_gemm(trainer)));
    status = xm_run(trainer, corpus, &plan, (uint64_t)s->steps, error);
    if (status != XMOE_OK)
        return status;
    *whole = xm_trainer_steps_done(trainer) >= (uint64_t)s->steps;
    if (ranks->rank == 0)
        status = export_model(s, corpus, trainer, error);
    return xm_ranks_agree(ranks, status, error);
}

/* A Switch router (Fedus et al. 2021) is top-1 with its probability as the weight. */
static void set_router(settings *s)
{
    bool is_switch = strcmp(s->router, "switch") == 0;
    const char *name = is_switch ? "top_k" : s->router; /* the command line knows the names */
    const xm_router_kind *kind = xm_router_kind_by_name(name, strlen(name));
    s->trainer.shape.gate = kind->gate;
    s->trainer.shape.router = kind->chooses;
    if (is_switch || kind->top_k > 0)
        s->trainer.shape.top_k = 1;
}

/* Rank 0 first: it writes the vocabulary and the token caches that the others read. */
static xmoe_status open_corpus(const settings *s, xm_pool *pool, xm_corpus *corpus,
                               xmoe_error *error)
{
    const xm_ranks *ranks = s->trainer.ranks;
    cli_progress progress;
    cli_progress_start(&progress, "domains", s->quiet);
    xmoe_status status = XMOE_OK;
    for (int32_t turn = 0; turn < 2 && status == XMOE_OK; turn++) {
        if ((ranks->rank == 0) == (turn == 0))
            status =
                xm_corpus_open(&s->corpus, pool, cli_progress_report, &progress, corpus, error);
        status = xm_ranks_agree(ranks, status, error);
    }
    cli_progress_clear(&progress);
    return status;
}

/* Everything between the ranks' start and end. */
static xmoe_status train_together(settings *s, bool *whole, xmoe_error *error)
{
    xm_pool *pool = NULL;
    xm_corpus corpus = {0};
    xm_trainer *trainer = NULL;
    s->quiet = s->quiet || s->trainer.ranks->rank > 0;
    xmoe_status status =
        xm_ranks_agree(s->trainer.ranks, xm_pool_create(s->threads, &pool, error), error);
    if (status == XMOE_OK)
        status = open_corpus(s, pool, &corpus, error);
    if (status == XMOE_OK)
        status = xm_trainer_create(&s->trainer, &corpus, &trainer, error);
    if (status == XMOE_OK)
        status = run_trainer(s, &corpus, trainer, whole, error);
    xm_trainer_free(trainer);
    xm_corpus_free(&corpus);
    xm_pool_free(pool);
    return status;
}

static int fill_trainer(settings *s)
{
    for (int precision = XM_PRECISION_F32; precision <= XM_PRECISION_AUTO; precision++)
        if (strcmp(s->precision, xm_precision_name((xm_precision)precision)) == 0)
            s->trainer.precision = (xm_precision)precision;
    bool muon = strcmp(s->optimizer, "muon") == 0; /* the command line knows the names */
    s->trainer.rule.kind = muon ? XM_OPTIMIZER_MUON : XM_OPTIMIZER_ADAMW;
    s->trainer.rule.peak_rate = s->rate;
    s->trainer.rule.final_rate = s->final_rate;
    s->trainer.rule.warmup_steps = s->warmup;
    s->trainer.rule.total_steps = s->steps;
    s->trainer.rule.decay_steps = s->decay;
    s->trainer.seed = (uint64_t)s->seed;
    s->trainer.init = s->init;
    s->trainer.threads = s->threads;
    s->trainer.groups = s->groups > 0 ? s->groups : s->trainer.sequences;
    xm_network_shape *shape = &s->trainer.shape;
    if (!xm_architecture_parse(s->architecture, &shape->architecture))
        return cli_wrong("--architecture %s is unknown", s->architecture);
    if (shape->moe_every == MOE_EVERY_OF_ARCHITECTURE)
        shape->moe_every = shape->architecture == XM_ARCHITECTURE_OLMOE   ? 1
                           : shape->architecture == XM_ARCHITECTURE_LLAMA ? 0
                                                                          : 2;
    set_router(s);
    return CLI_OK;
}

static int train(settings *s)
{
    int wrong = split_domains(s);
    if (wrong == CLI_OK)
        wrong = fill_trainer(s);
    if (wrong != CLI_OK)
        return wrong;
    s->corpus.data = s->data;
    s->corpus.directory = s->directory;
    s->corpus.sample_bytes = s->sample_bytes;
    (void)mkdir(s->directory, 0777); /* what is wrong with it shows when it is used */

    cli_catch_interrupt();
    bool whole = false;
    xmoe_error error = {0};
    xm_ranks ranks;
    s->trainer.ranks = &ranks;
    xmoe_status status = xm_ranks_start(&ranks, &error);
    if (status == XMOE_OK)
        status = train_together(s, &whole, &error);
    int result = status == XMOE_OK ? CLI_OK : CLI_FAILED;
    if (status != XMOE_OK && ranks.rank == 0)
        result = cli_fail("%s", error.message);
    if (cli_interrupted() && !whole)
        result = CLI_INTERRUPTED;
    xm_ranks_end(&ranks);
    s->trainer.ranks = NULL;
    return result;
}

/* --- measuring -------------------------------------------------------------------------------- */

typedef struct {
    xm_gguf *file;
    xm_tokenizer *tokenizer;
    xm_network *network;
    float *parameters;
    xm_evaluator *evaluator;
    xm_pool *pool;
} measured_model;

static xmoe_status open_model(const settings *s, measured_model *m, xmoe_error *error)
{
    xm_network_shape shape;
    xmoe_status status = xm_pool_create(s->threads, &m->pool, error);
    if (status == XMOE_OK)
        status = xm_gguf_open(s->evaluate, &m->file, error);
    if (status == XMOE_OK)
        status = xm_tokenizer_from_gguf(m->file, &m->tokenizer, error);
    if (status == XMOE_OK)
        status = xm_model_file_shape(m->file, &shape, error);
    if (status == XMOE_OK)
        status = xm_network_create(&shape, &m->network, error);
    if (status != XMOE_OK)
        return status;
    m->parameters = calloc(m->network->total, sizeof(float));
    if (m->parameters == NULL)
        return XMOE_ERROR_MEMORY;
    status = xm_model_file_read(m->file, m->network, m->parameters, error);
    if (status == XMOE_OK)
        status = xm_evaluator_create(m->network, m->tokenizer, m->pool, EVALUATION_SEQUENCES,
                                     &m->evaluator, error);
    return status;
}

static void close_model(measured_model *m)
{
    xm_evaluator_free(m->evaluator);
    xm_network_free(m->network);
    xm_tokenizer_free(m->tokenizer);
    xm_gguf_close(m->file);
    xm_pool_free(m->pool);
    free(m->parameters);
}

static xmoe_status measure_text(const settings *s, const measured_model *m, const char *path,
                                xmoe_error *error)
{
    size_t length = 0;
    char *text = cli_read_file(path, &length);
    if (text == NULL)
        return xm_fail(error, XMOE_ERROR_IO, "no text was measured");
    xm_token_file tokens;
    xm_evaluation evaluation;
    xmoe_status status = xm_token_file_encode(text, length, m->tokenizer, m->pool, &tokens, error);
    if (status == XMOE_OK)
        status = xm_evaluate(m->evaluator, m->parameters, &tokens,
                             s->stride > 0 ? s->stride : m->network->shape.context, 0, &evaluation,
                             error);
    if (status == XMOE_OK) {
        printf("%s\t%.4f bits/byte\t%.4f nats/token\t%llu tokens\t%llu bytes\tactive", path,
               xm_bits_per_byte(&evaluation), xm_nats_per_token(&evaluation),
               (unsigned long long)evaluation.tokens, (unsigned long long)evaluation.bytes);
        for (int32_t block = 0; block < m->network->shape.blocks; block++)
            if (m->network->blocks[block].moe)
                printf(" blk%d %.2f", block, evaluation.active[block] / (double)evaluation.tokens);
        printf("\n");
        fflush(stdout);
    }
    xm_token_file_free(&tokens);
    free(text);
    return status;
}

static int measure(const settings *s, const cli_arguments *arguments)
{
    measured_model model = {0};
    xmoe_error error = {.message = "out of memory"};
    xmoe_status status = open_model(s, &model, &error);
    for (int i = 0; i < arguments->count && status == XMOE_OK; i++)
        status = measure_text(s, &model, arguments->values[i], &error);
    close_model(&model);
    return status == XMOE_OK ? CLI_OK : cli_fail("%s", error.message);
}

/* --- command line ----------------------------------------------------------------------------- */

/* OpenBLAS looks at the CPU's model, and takes AVX2 kernels on models that came after it, although
 * its AVX-512 ones run there and are up to twice as fast. It reads the variable that overrules it
 * only while it is being loaded: so the program starts itself once more with it. */
static void use_wide_kernels(char **argv)
{
#if defined(__x86_64__)
    static const char *const narrow[] = {"Haswell", "Zen"};
    static const char variable[] = "OPENBLAS_CORETYPE";
    bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!wide || getenv(variable) != NULL)
        return;
    for (size_t i = 0; i < sizeof narrow / sizeof narrow[0]; i++)
        if (strcmp(xm_gemm_kernels(&xm_gemm_f32), narrow[i]) == 0 &&
            setenv(variable, "SkylakeX", 0) == 0)
            (void)execv("/proc/self/exe", argv); /* where it fails, the narrow ones do */
#else
    (void)argv;
#endif
}

#define FLAG(flag, letter, kind, where, ...)                                                       \
    {                                                                                              \
        .name = flag, .argument = letter, .type = kind, .value = where, __VA_ARGS__                \
    }

int main(int argc, char **argv)
{
    use_wide_kernels(argv);
    settings s = default_settings();
    xm_network_shape *shape = &s.trainer.shape;
    const cli_flag flags[] = {
        FLAG("data", "DIR", CLI_STRING, &s.data,
             .help = "texts: DOMAIN.train.txt and DOMAIN.valid.txt; a document ends with a line "
                     "<|endoftext|>"),
        FLAG("directory", "DIR", CLI_STRING, &s.directory,
             .help = "of the run: vocabulary, token caches, checkpoint, log.csv, models"),
        FLAG("domains", "LIST", CLI_STRING, &s.domains, .help = "names, with commas between"),
        FLAG("weights", "LIST", CLI_FLOATS, &s.weights, .default_text = "by tokens",
             .above_minimum = true, .maximum = 1e9, .help = "share of each domain in a step"),
        FLAG("resume", NULL, CLI_BOOL, &s.resume, .help = "go on from the checkpoint"),
        FLAG("init", "FILE", CLI_STRING, &s.init, .default_text = "random",
             .help = "start from a model of the same vocabulary that is as large, or has fewer "
                     "blocks, narrower FFNs and experts or a shorter context"),
        FLAG("steps", "N", CLI_INT, &s.steps, .minimum = 0, .maximum = 1e9,
             .help = "last step; the cosine of the learning rate ends there"),
        FLAG("sequences", "N", CLI_INT, &s.trainer.sequences, .minimum = 1, .maximum = 4096,
             .help = "sequences of a step"),
        FLAG("groups", "N", CLI_INT, &s.groups, .maximum = 4096, .default_text = "sequences",
             .help = "parts of a step that run at once, each on one thread; capacity and balance "
                     "of the experts are a group's"),
        FLAG("precision", "NAME", CLI_STRING, &s.precision, .choices = "auto|f32|bf16",
             .help =
                 "of matrix products; bf16: operands are rounded to BF16, sums and all else stay "
                 "F32; auto: bf16 where the CPU has it"),
        FLAG("optimizer", "NAME", CLI_STRING, &s.optimizer, .choices = "adamw|muon",
             .help = "muon: for the matrices of attention, FFNs and experts; AdamW for the rest"),
        FLAG("rate", "R", CLI_DOUBLE, &s.rate, .maximum = 1, .help = "peak learning rate"),
        FLAG("final-rate", "R", CLI_DOUBLE, &s.final_rate, .maximum = 1,
             .help = "learning rate that it falls to by the end"),
        FLAG("warmup", "N", CLI_INT, &s.warmup, .maximum = 1e9, .help = "steps of linear warm-up"),
        FLAG("decay", "N", CLI_INT, &s.decay, .maximum = 1e9,
             .help = "last steps, in which the rate falls from its peak; 0: all after the warm-up"),
        FLAG("weight-decay", "W", CLI_DOUBLE, &s.trainer.rule.weight_decay, .maximum = 10,
             .help = "on matrices only"),
        FLAG("momentum", "B", CLI_DOUBLE, &s.trainer.rule.momentum, .maximum = 0.9999,
             .help = "of optimizer muon"),
        FLAG("clip", "NORM", CLI_DOUBLE, &s.trainer.rule.clip, .maximum = 1e9,
             .help = "largest gradient norm; 0: none"),
        FLAG("vocabulary", "N", CLI_INT, &s.corpus.vocabulary, .minimum = 257, .maximum = 65535,
             .help = "tokens, where it has to be learned"),
        FLAG("sample", "BYTES", CLI_SIZE, &s.sample_bytes,
             .help = "of text to learn the vocabulary from"),
        FLAG("architecture", "NAME", CLI_STRING, &s.architecture, .choices = "xmoe|llama|olmoe",
             .help =
                 "xmoe: GPT-2's blocks; llama: dense, RMSNorm, rotary positions, SwiGLU; olmoe: "
                 "as llama with experts in all blocks"),
        FLAG("context", "N", CLI_INT, &shape->context, .minimum = 2, .maximum = 65536,
             .help = "tokens of a sequence"),
        FLAG("width", "N", CLI_INT, &shape->width, .minimum = 8, .maximum = 16384,
             .help = "of the residual stream"),
        FLAG("blocks", "N", CLI_INT, &shape->blocks, .minimum = 1, .maximum = 256,
             .help = "transformer blocks"),
        FLAG("heads", "N", CLI_INT, &shape->heads, .minimum = 1, .maximum = 1024,
             .help = "attention heads"),
        FLAG("feed-forward", "N", CLI_INT, &shape->feed_forward, .minimum = 1, .maximum = 65536,
             .help = "hidden size of a dense FFN"),
        FLAG("moe-every", "N", CLI_INT, &shape->moe_every, .maximum = 256,
             .default_text = "2; olmoe: 1; llama: 0", .help = "each N-th block is MoE; 0: none"),
        FLAG("experts", "N", CLI_INT, &shape->experts, .minimum = 1, .maximum = 4096,
             .help = "of a MoE block"),
        FLAG("expert-feed-forward", "N", CLI_INT, &shape->expert_feed_forward, .minimum = 1,
             .maximum = 65536, .help = "hidden size of an expert"),
        FLAG("router", "TYPE", CLI_STRING, &s.router,
             .choices = "threshold|top_k|switch|dense|sigmoid|base|hash|recurrent",
             .help =
                 "how experts are chosen; switch is top_k 1, recurrent is threshold with a state "
                 "that goes from MoE block to MoE block (RMoE)"),
        FLAG("threshold", "T", CLI_FLOAT, &shape->threshold, .maximum = 1, .above_minimum = true,
             .help = "for routers threshold, sigmoid and recurrent"),
        FLAG("top-k", "K", CLI_INT, &shape->top_k, .minimum = 1, .maximum = 4096,
             .help = "for router top_k"),
        FLAG("router-views", "V", CLI_INT, &shape->router_views, .minimum = 1,
             .maximum = XM_MAX_ROUTER_VIEWS,
             .help = "architecture xmoe, routers with a softmax: logits of each expert, mixed by a "
                     "softmax whose temperature falls to 0.1 over the first tenth of the steps"),
        FLAG("router-state", "N", CLI_INT, &shape->router_state, .minimum = 1,
             .maximum = XM_MAX_ROUTER_STATE, .help = "for router recurrent: length of its state"),
        FLAG("router-std", "S", CLI_FLOAT, &shape->router_std, .maximum = 100,
             .help = "standard deviation of the router's logits at the start"),
        FLAG("init-std", "S", CLI_FLOAT, &shape->init_std, .maximum = 1, .above_minimum = true,
             .help = "standard deviation of the other matrices at the start"),
        FLAG("capacity", "F", CLI_FLOAT, &s.trainer.capacity_factor, .maximum = 1e6,
             .help = "an expert takes F times its even share of a group; 0: no limit; "
                     "routers sigmoid, base and hash have none"),
        FLAG("balance", "W", CLI_FLOAT, &s.trainer.balance_weight, .maximum = 100,
             .help = "weight of the balance loss; routers sigmoid, base and hash have none"),
        FLAG("router-entropy", "W", CLI_FLOAT, &s.trainer.entropy_weight, .maximum = 100,
             .help = "weight of the router's entropy; keeps choices few"),
        FLAG("router-z", "W", CLI_FLOAT, &s.trainer.z_weight, .maximum = 100,
             .help = "weight of the square of the log of the sum of the experts' exponentials "
                     "(z-loss); keeps logits small"),
        FLAG("expert-dropout", "P", CLI_FLOAT, &s.trainer.expert_dropout, .maximum = 0.99,
             .help = "share of the experts' hidden units that is left out, anew for each token; "
                     "in training only"),
        FLAG("sparsity", "W", CLI_FLOAT, &s.trainer.sparsity_weight, .maximum = 100,
             .help = "router sigmoid: weight of the mean gate; keeps choices few"),
        FLAG("seed", "N", CLI_INT, &s.seed, .maximum = 2147483647, .help = "of weights and data"),
        FLAG("recompute", NULL, CLI_BOOL, &s.trainer.recompute,
             .help = "make activations again in the backward pass: a third more work in far less "
                     "memory, same results"),
        FLAG("threads", "N", CLI_INT, &s.threads, .maximum = 1024, .default_text = "all CPUs",
             .help = "do not change results"),
        FLAG("log-every", "N", CLI_INT, &s.log_every, .minimum = 1, .maximum = 1e9,
             .help = "steps between lines of log.csv"),
        FLAG("validate-every", "N", CLI_INT, &s.validate_every, .maximum = 1e9,
             .help = "steps between validations; 0: never"),
        FLAG("validation-windows", "N", CLI_INT, &s.validation_windows, .maximum = 1e9,
             .help = "sequences per domain and validation; 0: all"),
        FLAG("checkpoint-every", "N", CLI_INT, &s.checkpoint_every, .maximum = 1e9,
             .help = "steps between checkpoints; 0: only at the end"),
        FLAG("type", "TYPE", CLI_STRING, &s.type, .choices = xmoe_quantize_types(),
             .help = "weight type of model.gguf (model-f32.gguf is written too)"),
        FLAG("name", "TEXT", CLI_STRING, &s.name, .help = "general.name of the model"),
        FLAG("license", "TEXT", CLI_STRING, &s.license, .default_text = "none",
             .help = "general.license"),
        FLAG("description", "TEXT", CLI_STRING, &s.description, .default_text = "none",
             .help = "general.description"),
        FLAG("evaluate", "MODEL", CLI_STRING, &s.evaluate, .default_text = "",
             .help = "train nothing: measure a model on the texts TEXT... as serving would"),
        FLAG("stride", "N", CLI_INT, &s.stride, .maximum = 65536, .default_text = "context",
             .help = "with --evaluate: tokens between windows"),
        FLAG("bench", NULL, CLI_BOOL, &s.bench,
             .help = "train nothing: measure one MoE layer of this shape, forward and backward, "
                     "beside BLAS; architecture xmoe with a softmax router"),
        FLAG("quiet", NULL, CLI_BOOL, &s.quiet, .help = "no progress"),
    };
    const cli_program program = {
        .name = "xmoe-train",
        .usage = "[TEXT...]",
        .description =
            "Trains a sparse mixture-of-experts model from plain text: learns a vocabulary, "
            "trains\n"
            "(AdamW, routers of several types, capacity limit and balance loss), writes GGUF. "
            "Ctrl-C\n"
            "writes a checkpoint; --resume goes on from it, bit for bit.",
        .examples = "  xmoe-train --data corpus --directory runs/first --steps 2000\n"
                    "  xmoe-train --data corpus --directory runs/first --steps 4000 --resume\n"
                    "  xmoe-train --evaluate runs/first/model.gguf corpus/en.test.txt\n",
        .flags = flags,
        .flag_count = sizeof flags / sizeof flags[0],
        .maximum_arguments = -1,
    };
    cli_arguments arguments;
    if (!cli_parse(&program, argc, argv, &arguments))
        return arguments.status;
    if (s.evaluate == NULL && arguments.count > 0)
        return cli_wrong("texts are for --evaluate; to train, give --data");
    if (s.evaluate != NULL && arguments.count == 0)
        return cli_wrong("--evaluate needs texts to measure on");
    if (s.bench && s.evaluate != NULL)
        return cli_wrong("--bench and --evaluate exclude each other");
    if (s.bench) {
        int wrong = fill_trainer(&s);
        return wrong == CLI_OK ? train_bench(&s.trainer) : wrong;
    }
    return cli_finish(s.evaluate != NULL ? measure(&s, &arguments) : train(&s));
}
