/*
 * xmoe.h - the one public header of the xmoe inference engine.
 *
 * What it offers: load a sparse mixture-of-experts language model from a GGUF file, turn text into
 * tokens and back, run many generation requests at once over a shared pool of threads, and read
 * exact statistics of which experts worked. HTTP lives above this header and is not needed.
 *
 * Life of a program:
 *
 *     xmoe_model  *model;   xmoe_model_load(path, NULL, &model, &error);
 *     xmoe_engine *engine;  xmoe_engine_create(model, &options, &engine, &error);
 *     xmoe_request_submit(engine, &params, &id, &error);      // events arrive on params.on_event
 *     xmoe_engine_free(engine);
 *     xmoe_model_free(model);
 *
 * Conventions
 *   - Functions that can fail return an xmoe_status and fill *error (which may be NULL) with a
 *     message that a user can act on. On failure, output pointers are left NULL.
 *   - Strings are UTF-8. Pairs of (pointer, length) need not end in NUL and may hold NUL bytes.
 *   - "Block" of a transformer is called layer here; layers are counted from 0 over all blocks,
 *     dense ones included, as in the tensor names of the file.
 *   - Threads: a model is immutable after loading and may be used from any thread. All functions
 *     over an engine may be called from any thread except where noted. Event callbacks run on the
 *     scheduler thread: they must return quickly, must not block, and of this header may call only
 *     xmoe_request_cancel and the functions over the model.
 */
#ifndef XMOE_H
#define XMOE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define XMOE_API __attribute__((visibility("default")))

#define XMOE_VERSION_MAJOR 0
#define XMOE_VERSION_MINOR 1
#define XMOE_VERSION_PATCH 0

/* Version and build as "0.1.0"; static storage. */
XMOE_API const char *xmoe_version(void);

/* ---------------------------------------------------------------------------------------------
 * Errors
 */

typedef enum {
    XMOE_OK = 0,
    XMOE_ERROR_ARGUMENT,    /* a parameter has a wrong value; error.parameter names it */
    XMOE_ERROR_MEMORY,      /* allocation failed */
    XMOE_ERROR_IO,          /* a file cannot be opened, read or written */
    XMOE_ERROR_FORMAT,      /* a file is not what it should be; the message names key or tensor */
    XMOE_ERROR_UNSUPPORTED, /* valid, but this build or machine cannot do it */
    XMOE_ERROR_TOO_LONG,    /* the prompt does not fit the context; the message says both lengths */
    XMOE_ERROR_BUSY,        /* the queue is full: try again later */
    XMOE_ERROR_DRAINING,    /* the engine is draining and takes no new requests */
    XMOE_ERROR_INTERNAL     /* a defect of ours */
} xmoe_status;

typedef struct {
    xmoe_status status;
    char parameter[64]; /* for XMOE_ERROR_ARGUMENT: the field at fault, in the names below; or "" */
    char message[448];
} xmoe_error;

/* ---------------------------------------------------------------------------------------------
 * Routing: how many experts a token takes
 */

typedef enum {
    XMOE_ROUTER_THRESHOLD, /* in order of probability until their sum reaches the threshold */
    XMOE_ROUTER_TOP_K,     /* the k most probable */
    XMOE_ROUTER_DENSE,     /* all */
    XMOE_ROUTER_SIGMOID    /* those whose own sigmoid is above the threshold; the best always */
} xmoe_router_type;

/* The routing of one layer. With p sorted descending (ties to the lower expert), rank r (from 1) is
 * chosen by `threshold` while p_1 + ... + p_{r-1} < threshold; a threshold >= 1 chooses all. On a
 * model trained with top-k, "all" are its k choices (or max_experts, if that is more), and p are
 * their scores divided by their sum: threshold 1 is the model as trained, lower ones take a prefix.
 *
 * A model trained with `sigmoid` scores each expert by itself, so its p are scores divided by the
 * sum over all experts where `threshold` adds them up; `sigmoid` compares scores as they are, and
 * is for such models alone. Weights are scores as they are under every type.
 *
 * What a layer's logits are made of is the model's own matter: one trained with the recurrent
 * router of RMoE has type `threshold` here and takes every type but `sigmoid`.
 *
 * Floor and cap are applied last, in that order, to every type. */
typedef struct {
    xmoe_router_type type;
    float threshold;     /* in (0, 1]; read by types threshold and sigmoid */
    int32_t top_k;       /* >= 1; read by type top_k; more than all experts means all */
    int32_t min_experts; /* floor, 1 to all experts */
    int32_t max_experts; /* cap, not below min_experts; 0: none */
    bool normalize;      /* the weights of those chosen, floor and cap applied, are divided by their
                            sum; else they are the scores as they are (softmax of the router's
                            logits, or what the family has instead) */
} xmoe_router;

#define XMOE_MAX_LAYERS 256

/* The effective routing of a whole model: one router per layer, valid at MoE layers. */
typedef struct {
    int32_t layer_count;
    xmoe_router layers[XMOE_MAX_LAYERS];
} xmoe_routing;

/* "threshold", "top_k", "dense", "sigmoid"; NULL for an unknown value. */
XMOE_API const char *xmoe_router_type_name(xmoe_router_type type);
/* Whether a router of this type reads its threshold. */
XMOE_API bool xmoe_router_type_has_threshold(xmoe_router_type type);
/* Parses such a name; false if it is none. */
XMOE_API bool xmoe_router_type_parse(const char *name, xmoe_router_type *type);

/* ---------------------------------------------------------------------------------------------
 * Model
 */

typedef struct xmoe_model xmoe_model;

/* Progress of long work, 0 <= done <= total, called from the thread that does the work. Return
 * false to stop: the work then fails with XMOE_ERROR_ARGUMENT. */
typedef bool (*xmoe_progress_fn)(void *context, const char *what, uint64_t done, uint64_t total);

typedef struct {
    const char *isa;           /* NULL: best of this CPU (or $XMOE_ISA); "scalar" "avx2" "avx512" */
    int32_t threads;           /* threads for loading, to 4096; 0: all CPUs */
    int32_t context_length;    /* longest sequence, if the file allows more; 0: the file's */
    xmoe_progress_fn progress; /* may be NULL */
    void *progress_context;
} xmoe_model_options;

/* Loads a GGUF file (of a split one: the first part). The file is untrusted: every number, name,
 * type and shape is checked before anything is allocated from it. options may be NULL. The caller
 * owns *model. */
XMOE_API xmoe_status xmoe_model_load(const char *path, const xmoe_model_options *options,
                                     xmoe_model **model, xmoe_error *error);
/* Frees a model that no engine uses any more; NULL is fine. */
XMOE_API void xmoe_model_free(xmoe_model *model);

/* How the final hidden states of a text become its embedding. Numbers are the format's. */
typedef enum {
    XMOE_POOLING_NONE,
    XMOE_POOLING_MEAN,  /* over all positions */
    XMOE_POOLING_FIRST, /* of the first position, "cls" */
    XMOE_POOLING_LAST   /* of the last position */
} xmoe_pooling;

/* Tokens by which a model is asked to fill a gap in a text; -1: the model has none. */
typedef struct {
    int32_t prefix, suffix, middle;
    int32_t repository, file; /* before a project's name, and each file's */
} xmoe_infill_tokens;

typedef struct {
    const char *architecture;  /* strings live as long as the model */
    const char *name;          /* general.name, or the file's base name */
    const char *license;       /* "" where the file says nothing */
    const char *description;   /* "" where the file says nothing */
    const char *quantization;  /* weight type that most matrix bytes have, e.g. "Q8_0" */
    const char *chat_template; /* tokenizer.chat_template, or NULL */
    const char *isa;           /* kernels in use: "scalar", "avx2", "avx512" */
    int32_t context_length;    /* longest sequence in tokens */
    int32_t embedding_length;  /* d */
    int32_t layer_count;       /* all blocks */
    int32_t moe_layer_count;   /* those that are MoE */
    int32_t head_count;
    int32_t kv_head_count;       /* heads of keys and values in the KV cache */
    int32_t head_length;         /* of a query */
    int32_t feed_forward_length; /* dense FFN hidden size */
    int32_t expert_count;        /* E; 0: a dense model */
    int32_t expert_feed_forward_length;
    int32_t vocabulary_size;
    int32_t bos_token, eos_token; /* -1: none */
    bool add_bos, add_eos;        /* texts given to the model begin, or end, with that token; what a
                                     chat template makes has them already */
    bool add_space; /* encoding puts a space before a text: who decodes a whole text takes it off */
    xmoe_infill_tokens infill;
    uint64_t parameter_count;
    uint64_t weight_bytes;         /* of all tensors as stored in the file */
    uint64_t expert_bytes;         /* weights and biases of one expert of one layer, on average */
    uint64_t expert_multiply_adds; /* of one expert of one layer for one token */
    uint64_t shared_bytes;         /* read by every token: everything but experts and the embedding
                                      tables' unread rows; output matrix included */
    xmoe_router router;            /* as trained */
    xmoe_pooling pooling;          /* as the file says, else MEAN */
} xmoe_model_info;

XMOE_API const xmoe_model_info *xmoe_model_get_info(const xmoe_model *model);
/* True if the layer has experts. */
XMOE_API bool xmoe_model_layer_is_moe(const xmoe_model *model, int32_t layer);
/* The routing that the file asks for. */
XMOE_API void xmoe_model_default_routing(const xmoe_model *model, xmoe_routing *routing);
/* Checks the ranges above at all MoE layers; on error parameter is "threshold", "top_k",
 * "min_experts", "max_experts", "type" where the model has no such scores or, for an unknown type
 * or another layer_count, "layers". */
XMOE_API xmoe_status xmoe_routing_check(const xmoe_model *model, const xmoe_routing *routing,
                                        xmoe_error *error);

/* ---------------------------------------------------------------------------------------------
 * Tokens
 */

/* Text to tokens. Any bytes are accepted, invalid UTF-8 too. With parse_special, the text of a
 * special token (such as <|endoftext|>) becomes that token. With add_special, what the model wants
 * before and behind a text is added (add_bos, add_eos). *tokens comes from malloc (never NULL
 * on success, even for 0 tokens) and is the caller's to free(). */
XMOE_API xmoe_status xmoe_tokenize(const xmoe_model *model, const char *text, size_t length,
                                   bool add_special, bool parse_special, int32_t **tokens,
                                   size_t *count, xmoe_error *error);
/* The same with parse_special for text of mixed origin: where marks[i] is not 0, byte i is never
 * part of a special token, whatever it spells; else it is as if there were no marks. So what a
 * stranger wrote into a prompt stays text. */
XMOE_API xmoe_status xmoe_tokenize_marked(const xmoe_model *model, const char *text,
                                          const char *marks, size_t length, int32_t **tokens,
                                          size_t *count, xmoe_error *error);
/* The bytes of one token (not always whole UTF-8 characters); lives as long as the model. An
 * unknown id gives length 0. Special tokens give their text. */
XMOE_API const char *xmoe_token_bytes(const xmoe_model *model, int32_t token, size_t *length);
/* True for tokens that end a text or a turn, eos_token among them: a choice ends with any of them.
 */
XMOE_API bool xmoe_token_is_end(const xmoe_model *model, int32_t token);
XMOE_API bool xmoe_token_is_special(const xmoe_model *model, int32_t token);

/* ---------------------------------------------------------------------------------------------
 * Engine
 */

typedef struct xmoe_engine xmoe_engine;

typedef struct {
    int32_t threads;              /* compute threads, the scheduler's included, to 4096; 0: all
                                     CPUs */
    int32_t max_sequences;        /* sequences that run at once, 1..65536; default 64 */
    int32_t step_tokens;          /* token budget of one step, 1..65536; default 256 */
    int32_t queue_length;         /* requests that may wait, 1..1000000; default 256 */
    uint64_t kv_bytes;            /* memory of the KV cache; default 512 MiB; at least one
                                     sequence of full context is always provided for */
    bool kv_f32;                  /* keys and values in F32; default F16 */
    bool prefix_cache;            /* default true */
    int32_t usage_window_seconds; /* history kept for windows, to 3600; 0: none; default 3600 */
    uint64_t usage_window_bytes;  /* its memory bound: what does not fit shortens the history;
                                     default 64 MiB */
    bool measure_importance;      /* for xmoe_engine_write_importance; costs 8 bytes per column of
                                     every matrix and expert, and some time; default false */
} xmoe_engine_options;

XMOE_API void xmoe_engine_default_options(xmoe_engine_options *options);

/* Starts the scheduler and compute threads over a model, which must outlive the engine. options may
 * be NULL. */
XMOE_API xmoe_status xmoe_engine_create(const xmoe_model *model, const xmoe_engine_options *options,
                                        xmoe_engine **engine, xmoe_error *error);
/* Stops accepting requests; those submitted go on. Returns at once. */
XMOE_API void xmoe_engine_drain(xmoe_engine *engine);
/* Ends all requests (each gets its XMOE_EVENT_END, finish "cancelled"), joins the threads, frees.
 * Nobody else may be using the engine; not from a callback. NULL is fine. */
XMOE_API void xmoe_engine_free(xmoe_engine *engine);
XMOE_API const xmoe_model *xmoe_engine_model(const xmoe_engine *engine);

/* Default routing of requests that bring none; requests already submitted keep theirs. */
XMOE_API void xmoe_engine_get_routing(xmoe_engine *engine, xmoe_routing *routing);
XMOE_API xmoe_status xmoe_engine_set_routing(xmoe_engine *engine, const xmoe_routing *routing,
                                             xmoe_error *error);

/* ---------------------------------------------------------------------------------------------
 * Grammars: what an output may look like
 */

/* A grammar in GBNF as llama.cpp documents it: `root ::= "yes" | "no"`; rules of alternatives (|),
 * sequences, groups, strings, character classes ([a-z], [^"\\]), `.`, the escapes \n \r \t \\ \" \[
 * \] \xHH \uHHHH \UHHHHHHHH, ? * + {m} {m,} {,n} {m,n}, comments from # on. Besides, <[ID]> is the
 * token of that id and <text> the special token of that text (angle brackets included), as one
 * token; a grammar allows special tokens in no other way.
 *
 * A request with a grammar samples only tokens after which its output is still the beginning of
 * something that the grammar describes. End-of-text tokens are allowed exactly where the grammar
 * may end. Where it may end and nothing can follow, the choice ends with XMOE_FINISH_STOP at once,
 * without an end-of-text token and also with ignore_eos (which else takes those tokens away). Where
 * no token of the vocabulary can go on, the choice ends the same way if the grammar may end, else
 * with XMOE_FINISH_ERROR. Log-probabilities remain those of the unmodified logits.
 *
 * With a trigger, the output is free until its text has appeared in it; the grammar describes
 * what comes after its first appearance. Text here are the bytes of all generated tokens, special
 * ones included. The trigger may begin and end inside of tokens: bytes of the last one that lie
 * behind it are the grammar's first, and a token is not sampled that would complete the trigger and
 * go on in a way that the grammar does not allow. A choice may end before the trigger.
 *
 * Immutable and safe from any thread; masks of allowed tokens are computed when first needed and
 * kept, up to a bound, for all requests of the grammar. */
typedef struct xmoe_grammar xmoe_grammar;

/* Compiles a text for the vocabulary of a model, which must outlive the grammar. trigger: NULL for
 * none, else 1 to 1024 bytes. XMOE_ERROR_ARGUMENT, parameter "grammar" or "grammar_trigger", names
 * line and column; refused are also left recursion, rules that can never end, and what becomes too
 * large. The caller frees *grammar; requests hold references of their own. */
XMOE_API xmoe_status xmoe_grammar_create(const xmoe_model *model, const char *text, size_t length,
                                         const char *trigger, xmoe_grammar **grammar,
                                         xmoe_error *error);
/* A reference more, to be freed too; returns the grammar. */
XMOE_API xmoe_grammar *xmoe_grammar_hold(xmoe_grammar *grammar);
/* Drops the caller's reference; requests that have the grammar go on. NULL is fine. */
XMOE_API void xmoe_grammar_free(xmoe_grammar *grammar);

/* ---------------------------------------------------------------------------------------------
 * Requests
 */

typedef struct {
    int32_t token;
    float bias; /* added to the logit; -100 or less bans the token */
} xmoe_logit_bias;

typedef struct {
    float temperature;        /* 0: greedy */
    float top_p;              /* (0, 1]; 1: off */
    int32_t top_k;            /* 0: off */
    float min_p;              /* [0, 1); 0: off */
    float presence_penalty;   /* in [-1e6, 1e6]: subtracted once from tokens generated before */
    float frequency_penalty;  /* likewise, subtracted for each time that they were */
    float repetition_penalty; /* divides positive, multiplies negative logits of seen tokens; 1:
                                 off; looks at prompt and output */
    uint64_t seed;            /* draws depend on (seed, choice, position) alone */
    const xmoe_logit_bias *logit_bias; /* copied by submit; finite; entries of a token add up */
    size_t logit_bias_count;
} xmoe_sampling;

typedef enum {
    XMOE_FINISH_NONE,      /* still running */
    XMOE_FINISH_STOP,      /* end-of-text token, stop string, or the grammar's end */
    XMOE_FINISH_LENGTH,    /* max_tokens or context reached */
    XMOE_FINISH_CANCELLED, /* xmoe_request_cancel or engine shutdown */
    XMOE_FINISH_DEADLINE,  /* ran out of its time */
    XMOE_FINISH_ERROR      /* the event's error says why */
} xmoe_finish;

typedef struct {
    int32_t token;
    float logprob; /* natural log of the softmax of the unmodified logits */
} xmoe_token_logprob;

#define XMOE_MAX_TOP_LOGPROBS 20

/* Which experts each position took, of one choice. Position i of [first_position, first_position +
 * position_count) has in MoE layer m (0-based among MoE layers) counts[i * moe_layers + m] experts,
 * or XMOE_ROUTED_UNKNOWN where the position came from the prefix cache. Their ids and weights, in
 * order of rank, lie one after the other in experts/weights. The prompt's positions are given with
 * choice 0 only; the last generated token passes through no layer and has no entry. */
#define XMOE_ROUTED_UNKNOWN UINT16_MAX
typedef struct {
    int32_t first_position;
    int32_t position_count;
    int32_t moe_layers;
    const uint16_t *counts;
    const uint16_t *experts;
    const float *weights;
} xmoe_routed_experts;

typedef struct {
    uint64_t prompt_tokens;
    uint64_t cached_tokens;     /* of those, taken from the prefix cache */
    uint64_t completion_tokens; /* over all choices, end-of-text tokens included */
    double queue_seconds;       /* submit to first step */
    double prompt_seconds;      /* first step to first token, or to the end without one */
    double decode_seconds;      /* first token to end */
    double mean_active_experts; /* per position and MoE layer; 0 where none was computed */
    double expert_bytes_per_token;
} xmoe_request_summary;

typedef struct xmoe_usage xmoe_usage;

typedef enum {
    XMOE_EVENT_PROGRESS, /* part of the prompt was processed (only if return_progress) */
    XMOE_EVENT_PROMPT, /* prompt log-probabilities (only if prompt_logprobs), once, before tokens */
    XMOE_EVENT_TOKEN,  /* a token was sampled; its text may be held back until it is complete */
    XMOE_EVENT_CHOICE, /* a choice ended: finish is set, text holds what was still held back */
    XMOE_EVENT_END     /* the request ended: summary is set; the last event of every request */
} xmoe_event_kind;

/* Pointers in an event live until the callback returns. */
typedef struct {
    xmoe_event_kind kind;
    uint64_t request;
    int32_t choice;   /* TOKEN, CHOICE */
    const char *text; /* TOKEN, CHOICE: text released now: whole UTF-8 characters (bytes that
                         cannot become one are replaced by U+FFFD), never part of a stop string */
    size_t text_length;
    int32_t token;                 /* TOKEN */
    float logprob;                 /* TOKEN */
    const xmoe_token_logprob *top; /* TOKEN: top_count most probable tokens, best first */
    int32_t top_count;
    xmoe_finish finish; /* CHOICE; END: XMOE_FINISH_ERROR if any choice ended so, else what all
                           share, else LENGTH if any ended so, else STOP */
    const xmoe_routed_experts *routed; /* CHOICE: if routed_experts was asked for and memory did not
                                          run out (which is XMOE_FINISH_ERROR) */
    int32_t prompt_total, prompt_cached, prompt_done; /* PROGRESS, in tokens */
    /* PROMPT: for prompt position i, the logprob of its token given those before (position 0: NaN)
     * and top_count alternatives at prompt_top[i * top_count] (position 0: token -1, NaN). */
    const float *prompt_logprobs;
    const xmoe_token_logprob *prompt_top;
    const xmoe_request_summary *summary; /* END; also TOKEN: state so far */
    const xmoe_usage *usage;             /* END: this request's own usage, if asked for. Counts each
                                            computed position once, recomputation excluded */
    const xmoe_error *error;             /* END with XMOE_FINISH_ERROR */
    const float *embedding;              /* END with XMOE_FINISH_LENGTH, if pooling was asked for:
                                            embedding_length numbers, not normalised */
    int32_t embedding_length;            /* 0 without */
} xmoe_event;

typedef void (*xmoe_event_fn)(void *context, const xmoe_event *event);

typedef struct {
    const int32_t *prompt; /* copied by submit; at least one token */
    size_t prompt_length;
    int32_t max_tokens; /* per choice; 0: score the prompt only; is cut to the context, but a prompt
                           that leaves room for none is XMOE_ERROR_TOO_LONG */
    int32_t choices;    /* >= 1, at most 128: continuations sampled from one prompt */
    xmoe_sampling sampling;
    const char *const *stop; /* NUL-terminated stop strings, not empty */
    size_t stop_count;       /* at most 16 */
    int32_t top_logprobs;    /* 0..XMOE_MAX_TOP_LOGPROBS, not above the vocabulary's size */
    bool prompt_logprobs;
    bool cache_prompt; /* default true; false: neither reads nor feeds the prefix cache */
    bool ignore_eos;
    bool special_text; /* special tokens that are generated give their text; default: none */
    bool expert_usage;
    bool routed_experts;
    bool return_progress;
    xmoe_pooling pooling;  /* not NONE: the prompt's embedding comes with END; max_tokens must be 0,
                              choices 1, and the prefix cache is neither read nor fed */
    xmoe_grammar *grammar; /* of the engine's model, or NULL; submit takes a reference */
    const xmoe_routing *routing; /* NULL: the engine's default at submission */
    double deadline_seconds;     /* from submission, below 1e9; 0: none */
    xmoe_event_fn on_event;
    void *context;
} xmoe_request_params;

XMOE_API void xmoe_request_default_params(xmoe_request_params *params);

/* Checks and queues a request. After XMOE_OK the callback gets exactly one XMOE_EVENT_END, on the
 * scheduler thread, possibly before this returns. On error there are no events. */
XMOE_API xmoe_status xmoe_request_submit(xmoe_engine *engine, const xmoe_request_params *params,
                                         uint64_t *request, xmoe_error *error);
/* Asks for the end of a request; it ends within one step. Unknown or ended ids are ignored. */
XMOE_API void xmoe_request_cancel(xmoe_engine *engine, uint64_t request);

/* ---------------------------------------------------------------------------------------------
 * Expert usage. For every layer object: sum(counts) == activations == sum(i * histogram[i]) and
 * sum(histogram) == tokens, always.
 */

/* A position of a prompt is prefill, a generated one decode, also when computed again. */
typedef enum { XMOE_PHASE_ALL, XMOE_PHASE_PREFILL, XMOE_PHASE_DECODE } xmoe_phase;

typedef struct {
    int32_t layer;
    int32_t experts;
    uint64_t tokens;      /* positions that passed through this layer */
    uint64_t activations; /* (position, expert) pairs */
    double mean_active;
    int32_t max_active;
    const uint64_t *active_histogram; /* [experts + 1]: tokens by number of experts chosen */
    const uint64_t *counts;           /* [experts]: tokens that the expert served */
    const double *weights;            /* [experts]: sum of its routing weights */
    double entropy;                   /* of counts, divided by log(experts); 1 for one expert */
    double load_balance;              /* Jain's index of counts */
    double cv;                        /* standard deviation of counts / mean */
    uint64_t steps;                   /* engine steps that used the layer */
    uint64_t distinct;                /* experts touched, summed over those steps */
    double distinct_per_step;         /* distinct / steps */
    const int32_t *dead;              /* experts with count 0 */
    int32_t dead_count;
} xmoe_layer_usage;

struct xmoe_usage {
    xmoe_phase phase;
    int32_t window_seconds; /* 0: since start or reset; else the history that was summed */
    int64_t since;          /* Unix time, seconds */
    uint64_t tokens;        /* of the first layer given */
    double mean_active, active_fraction, load_balance; /* means over layers */
    int32_t dead_experts;
    int32_t layer_count; /* MoE layers given */
    const xmoe_layer_usage *layers;
};

/* layer: one layer, or -1 for all MoE layers. window_seconds: 0 or 1..3600, in whole seconds of the
 * engine's clock, the current one included; XMOE_ERROR_UNSUPPORTED if no history is kept. *usage is
 * freed with xmoe_usage_free. */
XMOE_API xmoe_status xmoe_usage_get(xmoe_engine *engine, int32_t layer, xmoe_phase phase,
                                    int32_t window_seconds, xmoe_usage **usage, xmoe_error *error);
/* Zeroes the counters; *usage (may be NULL) gets what they were, in one atomic exchange. */
XMOE_API xmoe_status xmoe_usage_reset(xmoe_engine *engine, xmoe_usage **usage, xmoe_error *error);
/* later - earlier, both of the same layers and phase, without window: what happened between. Of two
 * that come from one engine: if a reset lies between, it is the later one; what was restored
 * between is left out. */
XMOE_API xmoe_status xmoe_usage_difference(const xmoe_usage *later, const xmoe_usage *earlier,
                                           xmoe_usage **usage, xmoe_error *error);
XMOE_API void xmoe_usage_free(xmoe_usage *usage);

/* All MoE layers since start or reset, indexed by xmoe_phase, all of one moment: steps and distinct
 * apart, ALL is PREFILL plus DECODE. Each is freed with xmoe_usage_free. */
#define XMOE_PHASES 3
XMOE_API xmoe_status xmoe_usage_get_phases(xmoe_engine *engine, xmoe_usage *phases[XMOE_PHASES],
                                           xmoe_error *error);
/* A usage of numbers from elsewhere, such as a file: of each layer are read layer, experts,
 * active_histogram, counts, weights, steps and distinct; the rest is derived. XMOE_ERROR_FORMAT
 * with the layer in the message if an identity does not hold, steps and distinct do not fit counts,
 * a number is out of range (weights: finite, 0 to below 2^35; others and their sums: below 2^53) or
 * layers are not ascending or of unequal experts. No layers are fine: a dense model has none.
 * Weights are rounded to multiples of 2^-28, which those of any usage are: numbers that
 * xmoe_usage_get gave come back the same. */
XMOE_API xmoe_status xmoe_usage_create(xmoe_phase phase, int64_t since,
                                       const xmoe_layer_usage *layers, int32_t layer_count,
                                       xmoe_usage **usage, xmoe_error *error);
/* a + b, both of the same layers and phase, without window; since is the earlier one. */
XMOE_API xmoe_status xmoe_usage_merge(const xmoe_usage *a, const xmoe_usage *b, xmoe_usage **usage,
                                      xmoe_error *error);
/* Adds what was counted before, by phase as from xmoe_usage_get_phases, to the counters since
 * start or reset, whose `since` becomes the earlier one; windows do not get it.
 * XMOE_ERROR_ARGUMENT, and nothing is added, if the layers are not this model's, a sum is out of
 * range, or ALL is not the sum of the two phases (weights: to the precision of a double; steps and
 * distinct: at least the larger one, at most the sum). */
XMOE_API xmoe_status xmoe_usage_restore(xmoe_engine *engine,
                                        const xmoe_usage *const phases[XMOE_PHASES],
                                        xmoe_error *error);
/* How differently two workloads use the experts of a layer: the Jensen-Shannon divergence, in bits,
 * of counts / activations. 0: alike; 1: they share no expert. NaN if either has no activations or
 * their numbers of experts differ. */
XMOE_API double xmoe_usage_divergence(const xmoe_layer_usage *a, const xmoe_layer_usage *b);

/* What one position took in one MoE layer. */
typedef struct {
    uint64_t request;
    void *context; /* of the request's params */
    int32_t choice;
    int32_t position; /* in the sequence, from 0 */
    xmoe_phase phase; /* PREFILL or DECODE */
    int32_t count;
    const uint16_t *experts; /* [count], in order of rank */
    const float *weights;    /* [count] */
} xmoe_route;

/* The rows of one layer of a step, on the scheduler thread: the same choices, in the same moment,
 * that the usage counters get, positions computed again included. Pointers live until it returns;
 * the rules of event callbacks hold. */
typedef void (*xmoe_route_fn)(void *context, int32_t layer, const xmoe_route *routes,
                              int32_t count);
/* Calls on_routes for every MoE layer of every step from the next step on; NULL: no more. After
 * this returns, the function that was set before is not running and will not be called again, and
 * what it was told of is in the usage counters: a step under way is traced to its end, for which
 * this waits. Not from a callback, nor with a lock held that on_routes takes. */
XMOE_API void xmoe_engine_set_trace(xmoe_engine *engine, xmoe_route_fn on_routes, void *context);

/* ---------------------------------------------------------------------------------------------
 * Figures of the engine
 */

#define XMOE_HISTOGRAM_BUCKETS 24
typedef struct {
    int32_t bucket_count;                        /* finite bounds in use */
    double bounds[XMOE_HISTOGRAM_BUCKETS];       /* upper, ascending */
    uint64_t counts[XMOE_HISTOGRAM_BUCKETS + 1]; /* per bucket, not cumulative; the last is +Inf */
    double sum;
    uint64_t count;
} xmoe_histogram;

typedef struct {
    int32_t requests_running, requests_waiting;
    int32_t sequences_running;
    int32_t kv_blocks_total, kv_blocks_used; /* used by running sequences */
    int32_t kv_blocks_cached;                /* held only by the prefix cache */
    uint64_t requests_submitted, requests_stop, requests_length, requests_cancelled,
        requests_deadline, requests_error; /* ended, by how */
    uint64_t prompt_tokens, generation_tokens;
    uint64_t prefix_queries, prefix_hits; /* in tokens */
    uint64_t preemptions;
    uint64_t steps;
    uint64_t expert_bytes_read;            /* distinct experts touched per step, in weight bytes */
    double prompt_seconds, decode_seconds; /* sums over requests */
    xmoe_histogram time_to_first_token, inter_token, end_to_end, queue_time, prefill_time,
        decode_time;                                              /* seconds */
    xmoe_histogram prompt_length, generation_length, step_tokens; /* tokens */
} xmoe_engine_stats;

XMOE_API void xmoe_engine_get_stats(xmoe_engine *engine, xmoe_engine_stats *stats);

typedef struct {
    uint64_t request;
    bool processing; /* false: waiting or preempted */
    int32_t prompt_tokens, prompt_done, cached_tokens, generated_tokens, max_tokens;
    int32_t choices;
    xmoe_sampling sampling; /* without logit_bias */
    xmoe_router router;     /* of its first MoE layer */
} xmoe_slot;

/* What runs, as of the end of the last step: fills up to capacity slots (running first, then
 * waiting), returns how many. */
XMOE_API int32_t xmoe_engine_get_slots(xmoe_engine *engine, xmoe_slot *slots, int32_t capacity);

/* ---------------------------------------------------------------------------------------------
 * Files (for tools): look into any GGUF, change the weight type, make a random model
 */

typedef struct xmoe_gguf xmoe_gguf;

/* Opens and checks a GGUF file of any architecture (container level only). A split file is opened
 * by its first part, NAME-00001-of-00003.gguf, and shown as one: that is so wherever a GGUF file
 * is read. */
XMOE_API xmoe_status xmoe_gguf_open(const char *path, xmoe_gguf **file, xmoe_error *error);
XMOE_API void xmoe_gguf_close(xmoe_gguf *file);

typedef struct {
    const char *key;
    const char *type;     /* "u32", "f32", "string", "array of string", ... */
    uint64_t array_count; /* arrays: their length; else 0 */
    char value[160];      /* printable, shortened */
} xmoe_gguf_key;

typedef struct {
    const char *name;
    const char *type; /* "F32", "Q8_0", ... */
    int32_t dimensions;
    uint64_t shape[4]; /* contiguous dimension first */
    uint64_t offset;   /* from the start of the file, or of the part it is in */
    uint64_t bytes;
} xmoe_gguf_tensor;

XMOE_API uint64_t xmoe_gguf_key_count(const xmoe_gguf *file);
XMOE_API uint64_t xmoe_gguf_tensor_count(const xmoe_gguf *file);
XMOE_API void xmoe_gguf_get_key(const xmoe_gguf *file, uint64_t index, xmoe_gguf_key *key);
XMOE_API void xmoe_gguf_get_tensor(const xmoe_gguf *file, uint64_t index, xmoe_gguf_tensor *tensor);

/* The weight types that this engine reads and writes, "F32|F16|Q8_0|...". Static storage. */
XMOE_API const char *xmoe_weight_types(void);
/* Those, and mixes of them: "Q4_K_M" is Q4_K with a better type where errors cost most. */
XMOE_API const char *xmoe_quantize_types(void);

typedef struct {
    const char *pattern; /* of the matrix's name, with the wildcards * ? [...] */
    const char *type;
} xmoe_quantize_override;

/* {.type = ...} and zeros elsewhere is fine. */
typedef struct {
    const char *type;                        /* of matrices: one of xmoe_quantize_types() */
    const char *output_type;                 /* of the output matrix; NULL: as type says */
    const char *embedding_type;              /* of the token embedding; NULL: as type says */
    const xmoe_quantize_override *overrides; /* the last that matches a matrix decides */
    int32_t override_count;
    const char *importance; /* a file of how much each input of a matrix matters, as xmoe-eval and
                               llama.cpp write it: errors are weighed by it; NULL: none */
    int32_t threads;        /* 0: all CPUs */
    void (*on_note)(void *context, const char *note); /* what a user should know; may be NULL */
    void *note_context;
    xmoe_progress_fn progress; /* in bytes of the input; may be NULL */
    void *progress_context;
} xmoe_quantize_options;

/* Rewrites input as output with its matrices in other types. Rows that are not whole blocks get the
 * next type whose blocks they are; biases, norms, routers and tables of positions become F32. What
 * has its type already is copied. The output appears whole or not at all, and does not depend on
 * the number of threads. */
XMOE_API xmoe_status xmoe_quantize(const char *input, const char *output,
                                   const xmoe_quantize_options *options, xmoe_error *error);

/* Writes how much each input of each matrix mattered, over all positions that the engine has
 * computed: the mean square of it, for an expert over the positions routed to it. For
 * xmoe_quantize_options.importance, and in llama.cpp's format of importance matrices. dataset: what
 * the text was called. XMOE_ERROR_ARGUMENT unless options.measure_importance was set. */
XMOE_API xmoe_status xmoe_engine_write_importance(xmoe_engine *engine, const char *path,
                                                  const char *dataset, xmoe_error *error);

typedef struct {
    int32_t context_length, embedding_length, layer_count, head_count;
    int32_t feed_forward_length, expert_count, expert_feed_forward_length;
    int32_t vocabulary_size; /* >= 257: 256 byte tokens, <|endoftext|>, then made-up merges */
    int32_t moe_every;       /* layer l is MoE if l % moe_every == moe_every - 1; 0: none */
    xmoe_router router;      /* but for floor and cap, which no file has */
    float router_spread;     /* standard deviation of the router logits; 2 gives a peaked router */
    bool tied_output;
    const char *type;          /* of matrices: one of xmoe_weight_types() */
    const char *chat_template; /* NULL: none */
    uint64_t seed;
} xmoe_random_model;

/* Writes a model with random weights: for tests and benchmarks. Same seed, same file. */
XMOE_API xmoe_status xmoe_random_model_write(const char *path, const xmoe_random_model *shape,
                                             xmoe_progress_fn progress, void *progress_context,
                                             xmoe_error *error);

#ifdef __cplusplus
}
#endif
#endif
