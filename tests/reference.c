/* reference.c - see reference.h. Written to be read beside the description of the format. */
#include "reference.h"

#include "format/gguf.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A matrix of rows x columns with its bias [rows] (NULL: none). */
typedef struct {
    double *weight, *bias;
    int32_t rows, columns;
} linear;

typedef struct {
    linear attention_norm, qkv, attention_output, ffn_norm; /* norms: weight and bias [d] */
    bool is_moe;
    double *gate;      /* [views][E][d], [E][r] with a GRU; NULL: expert_of chooses */
    double *project;   /* [r][d] of a recurrent router, or NULL */
    double *expert_of; /* [vocabulary] or NULL */
    linear *up;        /* [E] or [1] */
    linear *down;      /* [E] or [1] */
} layer;

struct reference_model {
    xm_gguf *file;
    int32_t d, heads, layer_count, context, ff, experts, eff, vocabulary;
    bool sigmoid;      /* scores of experts; else softmax */
    int32_t trained_k; /* of routers that take k; 0: of others */
    int32_t views;     /* logits of each expert */
    double view_temperature;
    double epsilon;
    double *token_embedding, *position_embedding, *output; /* output may be token_embedding */
    linear output_norm;
    int32_t r; /* length of a recurrent router's state; 0: of others */
    linear gru_input, gru_state;
    layer *layers;
};

/* --- reading ---------------------------------------------------------------------------------- */

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count + 1, size);
    if (memory == NULL)
        abort();
    return memory;
}

static int32_t key_number(const xm_gguf *file, const char *key)
{
    uint32_t value;
    xmoe_error error;
    if (xm_gguf_get_u32(file, key, &value, NULL, &error) != XMOE_OK) {
        fprintf(stderr, "reference: %s\n", error.message);
        abort();
    }
    return (int32_t)value;
}

/* Of the file's xmoe.router.type. */
static bool router_is(const xm_gguf *file, const char *name)
{
    xm_string type = {"threshold", 9};
    xm_gguf_get_string(file, "xmoe.router.type", &type, &(bool){false}, NULL);
    return type.length == strlen(name) && memcmp(type.data, name, type.length) == 0;
}

static double *values_of(const xm_gguf *file, size_t expected, const char *format, ...)
{
    char name[80];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    const xm_gguf_tensor *tensor = xm_gguf_find_tensor(file, name);
    size_t count = tensor == NULL ? 0 : tensor->shape[0] * tensor->shape[1] * tensor->shape[2];
    if (tensor == NULL || count != expected || tensor->traits == NULL) {
        fprintf(stderr, "reference: tensor %s has %zu elements, not %zu\n", name, count, expected);
        abort();
    }
    float *floats = allocate(count, sizeof *floats);
    double *values = allocate(count, sizeof *values);
    xm_weights_to_f32(tensor->traits, tensor->data, floats, count);
    for (size_t i = 0; i < count; i++)
        values[i] = (double)floats[i];
    free(floats);
    return values;
}

static linear read_norm(const xm_gguf *file, int32_t d, const char *prefix)
{
    return (linear){.weight = values_of(file, (size_t)d, "%s.weight", prefix),
                    .bias = values_of(file, (size_t)d, "%s.bias", prefix),
                    .rows = d};
}

/* count matrices that lie one after the other, with their biases. */
static linear *read_linears(const xm_gguf *file, const char *prefix, int32_t columns, int32_t rows,
                            int32_t count)
{
    size_t size = (size_t)rows * (size_t)columns;
    linear *all = allocate((size_t)count, sizeof *all);
    double *weight = values_of(file, size * (size_t)count, "%s.weight", prefix);
    double *bias = values_of(file, (size_t)(rows * count), "%s.bias", prefix);
    for (int32_t i = 0; i < count; i++)
        all[i] = (linear){.weight = weight + (size_t)i * size,
                          .bias = bias + i * rows,
                          .rows = rows,
                          .columns = columns};
    return all;
}

static linear read_linear(const xm_gguf *file, const char *prefix, int32_t columns, int32_t rows)
{
    linear *one = read_linears(file, prefix, columns, rows, 1);
    linear result = *one;
    free(one);
    return result;
}

static layer read_layer(const reference_model *model, int32_t index)
{
    const xm_gguf *file = model->file;
    int32_t d = model->d;
    char name[80];
    layer result = {0};
#define NAME(part) (snprintf(name, sizeof name, "blk.%d." part, index), name)
    result.attention_norm = read_norm(file, d, NAME("attn_norm"));
    result.qkv = read_linear(file, NAME("attn_qkv"), d, 3 * d);
    result.attention_output = read_linear(file, NAME("attn_output"), d, d);
    result.ffn_norm = read_norm(file, d, NAME("ffn_norm"));
    if (xm_gguf_find_tensor(file, NAME("ffn_gate_inp.weight")) != NULL)
        result.gate =
            values_of(file, (size_t)((model->r > 0 ? model->r : d * model->views) * model->experts),
                      "%s", name);
    if (result.gate != NULL && model->r > 0)
        result.project =
            values_of(file, (size_t)(d * model->r), "%s", NAME("ffn_gate_inp_projection.weight"));
    if (xm_gguf_find_tensor(file, NAME("ffn_hash.weight")) != NULL)
        result.expert_of = values_of(file, (size_t)model->vocabulary, "%s", name);
    result.is_moe = result.gate != NULL || result.expert_of != NULL;
    if (result.is_moe) {
        result.up = read_linears(file, NAME("ffn_up_exps"), d, model->eff, model->experts);
        result.down = read_linears(file, NAME("ffn_down_exps"), model->eff, d, model->experts);
    } else {
        result.up = read_linears(file, NAME("ffn_up"), d, model->ff, 1);
        result.down = read_linears(file, NAME("ffn_down"), model->ff, d, 1);
    }
#undef NAME
    return result;
}

reference_model *reference_load(const char *path)
{
    xmoe_error error;
    reference_model *model = allocate(1, sizeof *model);
    if (xm_gguf_open(path, &model->file, &error) != XMOE_OK) {
        fprintf(stderr, "reference: %s\n", error.message);
        abort();
    }
    const xm_gguf *file = model->file;
    float epsilon = 0.0f;
    xm_gguf_get_f32(file, "xmoe.attention.layer_norm_epsilon", &epsilon, NULL, NULL);
    model->epsilon = (double)epsilon;
    model->sigmoid = router_is(file, "sigmoid") || router_is(file, "base");
    if (router_is(file, "base"))
        model->trained_k = 1;
    if (router_is(file, "top_k"))
        model->trained_k = key_number(file, "xmoe.expert_used_count");
    uint32_t views = 1;
    float view_temperature = 1.0f;
    xm_gguf_get_u32(file, "xmoe.router.views", &views, &(bool){false}, NULL);
    xm_gguf_get_f32(file, "xmoe.router.view_temperature", &view_temperature, &(bool){false}, NULL);
    model->views = (int32_t)views;
    model->view_temperature = (double)view_temperature;
    model->d = key_number(file, "xmoe.embedding_length");
    model->heads = key_number(file, "xmoe.attention.head_count");
    model->layer_count = key_number(file, "xmoe.block_count");
    model->context = key_number(file, "xmoe.context_length");
    model->ff = key_number(file, "xmoe.feed_forward_length");
    model->experts = key_number(file, "xmoe.expert_count");
    model->eff = key_number(file, "xmoe.expert_feed_forward_length");
    model->vocabulary = (int32_t)xm_gguf_find_tensor(file, "token_embd.weight")->shape[1];
    size_t table = (size_t)model->d * (size_t)model->vocabulary;
    model->token_embedding = values_of(file, table, "token_embd.weight");
    model->position_embedding =
        values_of(file, (size_t)(model->d * model->context), "position_embd.weight");
    model->output_norm = read_norm(file, model->d, "output_norm");
    if (router_is(file, "recurrent")) {
        model->r = key_number(file, "xmoe.router.state_length");
        model->gru_input = read_linear(file, "router_gru_input", model->r, 3 * model->r);
        model->gru_state = read_linear(file, "router_gru_state", model->r, 3 * model->r);
    }
    model->output = xm_gguf_find_tensor(file, "output.weight") != NULL
                        ? values_of(file, table, "output.weight")
                        : model->token_embedding;
    model->layers = allocate((size_t)model->layer_count, sizeof *model->layers);
    for (int32_t i = 0; i < model->layer_count; i++)
        model->layers[i] = read_layer(model, i);
    return model;
}

static void free_linear(linear *one)
{
    free(one->weight);
    free(one->bias);
}

void reference_free(reference_model *model)
{
    for (int32_t i = 0; i < model->layer_count; i++) {
        layer *l = &model->layers[i];
        free_linear(&l->attention_norm);
        free_linear(&l->qkv);
        free_linear(&l->attention_output);
        free_linear(&l->ffn_norm);
        free(l->gate);
        free(l->project);
        free(l->expert_of);
        free_linear(l->up);
        free_linear(l->down);
        free(l->up);
        free(l->down);
    }
    free(model->layers);
    free_linear(&model->output_norm);
    free_linear(&model->gru_input);
    free_linear(&model->gru_state);
    if (model->output != model->token_embedding)
        free(model->output);
    free(model->token_embedding);
    free(model->position_embedding);
    xm_gguf_close(model->file);
    free(model);
}

/* --- arithmetic ------------------------------------------------------------------------------- */

static double dot(const double *a, const double *b, int32_t count)
{
    double sum = 0.0;
    for (int32_t i = 0; i < count; i++)
        sum += a[i] * b[i];
    return sum;
}

static void apply(const linear *l, const double *x, double *out)
{
    for (int32_t r = 0; r < l->rows; r++)
        out[r] = dot(l->weight + (size_t)r * (size_t)l->columns, x, l->columns) + l->bias[r];
}

static void layer_norm(const reference_model *model, const linear *norm, const double *x,
                       double *out)
{
    double mean = 0.0, variance = 0.0;
    for (int32_t i = 0; i < model->d; i++)
        mean += x[i] / model->d;
    for (int32_t i = 0; i < model->d; i++)
        variance += (x[i] - mean) * (x[i] - mean) / model->d;
    for (int32_t i = 0; i < model->d; i++)
        out[i] = (x[i] - mean) / sqrt(variance + model->epsilon) * norm->weight[i] + norm->bias[i];
}

static double gelu(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* Returns the logarithm of the sum of exponentials; x becomes its softmax. */
static double softmax(double *x, int32_t count)
{
    double largest = x[0], sum = 0.0;
    for (int32_t i = 1; i < count; i++)
        largest = fmax(largest, x[i]);
    for (int32_t i = 0; i < count; i++)
        sum += exp(x[i] - largest);
    for (int32_t i = 0; i < count; i++)
        x[i] = exp(x[i] - largest) / sum;
    return largest + log(sum);
}

/* --- routing ---------------------------------------------------------------------------------- */

int32_t reference_route(const xmoe_router *router, int32_t share, const double *p, int32_t experts,
                        int32_t *chosen, double *weights)
{
    int32_t count = 0, looked_at = share > 0 ? share : experts;
    double total = 0.0;
    for (int32_t i = 0; i < experts; i++) { /* insertion sort: descending, stable */
        int32_t at = i;
        for (; at > 0 && p[chosen[at - 1]] < p[i]; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = i;
    }
    for (int32_t i = 0; i < looked_at; i++)
        total += share > 0 ? p[chosen[i]] : 0.0;
    if (router->type == XMOE_ROUTER_DENSE)
        count = experts;
    else if (router->type == XMOE_ROUTER_THRESHOLD && router->threshold >= 1.0f)
        count = looked_at;
    else if (router->type == XMOE_ROUTER_SIGMOID)
        for (count = 1; count < experts && p[chosen[count]] > (double)router->threshold;)
            count++;
    else if (router->type == XMOE_ROUTER_TOP_K)
        count = router->top_k < experts ? router->top_k : experts;
    else
        for (double before = 0.0; count < looked_at && before < (double)router->threshold; count++)
            before += p[chosen[count]] / (share > 0 ? total : 1.0);
    if (count < router->min_experts)
        count = router->min_experts < experts ? router->min_experts : experts;
    if (router->max_experts > 0 && count > router->max_experts)
        count = router->max_experts;
    double sum = 0.0;
    for (int32_t i = 0; i < count; i++)
        sum += p[chosen[i]];
    for (int32_t i = 0; i < count; i++)
        weights[i] = router->normalize ? p[chosen[i]] / sum : p[chosen[i]];
    return count;
}

/* --- layers ----------------------------------------------------------------------------------- */

/* What one sequence leaves behind for its later positions, and scratch of one token. */
typedef struct {
    const reference_model *model;
    bool half_kv;
    double *keys, *values;             /* [layers][tokens][d] */
    int32_t tokens;                    /* of the sequence */
    double *x, *h, *qkv, *mixed, *out; /* [d], [d], [3d], [d], [d] */
    double *hidden, *scores, *p;       /* [max(ff, eff)], [tokens], [E] */
    double *router, *gates;            /* the router's state [r], its products [7r] */
} run_state;

static double stored(const run_state *state, double value)
{
    return state->half_kv ? (double)xm_f16_to_f32(xm_f32_to_f16((float)value)) : value;
}

static void attention(run_state *state, int32_t index, int32_t position)
{
    const reference_model *model = state->model;
    int32_t d = model->d, length = d / model->heads;
    size_t start = (size_t)index * (size_t)state->tokens * (size_t)d;
    double *keys = state->keys + start, *values = state->values + start;
    for (int32_t i = 0; i < d; i++) {
        keys[position * d + i] = stored(state, state->qkv[d + i]);
        values[position * d + i] = stored(state, state->qkv[2 * d + i]);
    }
    for (int32_t head = 0; head < model->heads; head++) {
        int32_t at = head * length;
        for (int32_t t = 0; t <= position; t++)
            state->scores[t] = dot(state->qkv + at, keys + t * d + at, length) / sqrt(length);
        softmax(state->scores, position + 1);
        for (int32_t i = 0; i < length; i++) {
            state->mixed[at + i] = 0.0;
            for (int32_t t = 0; t <= position; t++)
                state->mixed[at + i] += state->scores[t] * values[t * d + at + i];
        }
    }
}

/* x += weight * (down . gelu(up . h)) */
static void add_ffn(run_state *state, const linear *up, const linear *down, double weight)
{
    apply(up, state->h, state->hidden);
    for (int32_t i = 0; i < up->rows; i++)
        state->hidden[i] = gelu(state->hidden[i]);
    apply(down, state->hidden, state->out);
    for (int32_t i = 0; i < down->rows; i++)
        state->x[i] += weight * state->out[i];
}

/* sum_v a_v z_v of one expert, a = softmax(z / T) over its views; one view: its z. */
static double router_logit(const reference_model *model, const double *gate, const double *h,
                           int32_t expert)
{
    double z[64], a[64], logit = 0.0;
    for (int32_t v = 0; v < model->views; v++) {
        z[v] = dot(gate + (v * model->experts + expert) * model->d, h, model->d);
        a[v] = z[v] / model->view_temperature;
    }
    softmax(a, model->views);
    for (int32_t v = 0; v < model->views; v++)
        logit += a[v] * z[v];
    return logit;
}

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

/* The state of a recurrent router goes past the layer. */
static void advance_router(run_state *state, const layer *l)
{
    const reference_model *model = state->model;
    int32_t r = model->r;
    double *in = state->gates, *own = in + 3 * r, *x = own + 3 * r;
    for (int32_t i = 0; i < r; i++)
        x[i] = dot(l->project + i * model->d, state->h, model->d);
    apply(&model->gru_input, x, in);
    apply(&model->gru_state, state->router, own);
    for (int32_t i = 0; i < r; i++) {
        double reset = sigmoid(in[i] + own[i]), update = sigmoid(in[r + i] + own[r + i]);
        double n = tanh(in[2 * r + i] + reset * own[2 * r + i]);
        state->router[i] = (1.0 - update) * n + update * state->router[i];
    }
}

static int32_t add_experts(run_state *state, const layer *l, int32_t token,
                           const xmoe_router *router, int32_t *chosen, double *weights)
{
    const reference_model *model = state->model;
    if (l->expert_of != NULL) { /* whatever the router says */
        *chosen = (int32_t)l->expert_of[token];
        *weights = 1.0;
        add_ffn(state, &l->up[*chosen], &l->down[*chosen], 1.0);
        return 1;
    }
    if (model->r > 0)
        advance_router(state, l);
    for (int32_t e = 0; e < model->experts; e++)
        state->p[e] = model->r > 0 ? dot(l->gate + e * model->r, state->router, model->r)
                                   : router_logit(model, l->gate, state->h, e);
    if (model->sigmoid)
        for (int32_t e = 0; e < model->experts; e++)
            state->p[e] = sigmoid(state->p[e]);
    else
        softmax(state->p, model->experts);
    int32_t share = model->trained_k > 0 ? model->trained_k : model->sigmoid ? model->experts : 0;
    if (model->trained_k > 0 && router->max_experts > share)
        share = router->max_experts < model->experts ? router->max_experts : model->experts;
    int32_t count = reference_route(router, share, state->p, model->experts, chosen, weights);
    for (int32_t i = 0; i < count; i++)
        add_ffn(state, &l->up[chosen[i]], &l->down[chosen[i]], weights[i]);
    return count;
}

static void forward_token(run_state *state, int32_t token, int32_t position,
                          const xmoe_routing *routing, reference_result *result)
{
    const reference_model *model = state->model;
    int32_t d = model->d;
    for (int32_t i = 0; i < d; i++)
        state->x[i] = model->token_embedding[(size_t)token * (size_t)d + (size_t)i] +
                      model->position_embedding[position * d + i];
    for (int32_t i = 0; i < model->r; i++)
        state->router[i] = 0.0;
    for (int32_t n = 0; n < model->layer_count; n++) {
        const layer *l = &model->layers[n];
        int32_t at = position * model->layer_count + n;
        layer_norm(model, &l->attention_norm, state->x, state->h);
        apply(&l->qkv, state->h, state->qkv);
        attention(state, n, position);
        apply(&l->attention_output, state->mixed, state->out);
        for (int32_t i = 0; i < d; i++)
            state->x[i] += state->out[i];
        layer_norm(model, &l->ffn_norm, state->x, state->h);
        if (l->is_moe)
            result->counts[at] = add_experts(state, l, token, &routing->layers[n],
                                             result->experts + at * model->experts,
                                             result->weights + at * model->experts);
        else
            add_ffn(state, l->up, l->down, 1.0);
    }
    layer_norm(model, &model->output_norm, state->x, state->h);
    double *logprobs = result->logprobs + (size_t)position * (size_t)model->vocabulary;
    double *p = allocate((size_t)model->vocabulary, sizeof *p);
    for (int32_t v = 0; v < model->vocabulary; v++)
        logprobs[v] = p[v] = dot(model->output + (size_t)v * (size_t)d, state->h, d);
    double log_sum = softmax(p, model->vocabulary);
    for (int32_t v = 0; v < model->vocabulary; v++)
        logprobs[v] -= log_sum;
    free(p);
}

reference_result reference_forward(const reference_model *model, const int32_t *tokens,
                                   int32_t count, const xmoe_routing *routing, bool half_kv)
{
    size_t n = (size_t)count, layers = (size_t)model->layer_count, d = (size_t)model->d;
    size_t experts = (size_t)model->experts;
    size_t hidden = (size_t)(model->ff > model->eff ? model->ff : model->eff);
    reference_result result = {
        .logprobs = allocate(n * (size_t)model->vocabulary, sizeof(double)),
        .counts = allocate(n * layers, sizeof(int32_t)),
        .experts = allocate(n * layers * experts, sizeof(int32_t)),
        .weights = allocate(n * layers * experts, sizeof(double)),
        .vocabulary = model->vocabulary,
        .layers = model->layer_count,
        .expert_count = model->experts,
    };
    size_t cache = layers * n * d;
    size_t r = (size_t)model->r;
    double *memory = allocate(2 * cache + 7 * d + hidden + n + experts + 8 * r, sizeof(double));
    run_state state = {.model = model, .half_kv = half_kv, .tokens = count};
    state.keys = memory;
    state.values = state.keys + cache;
    state.x = state.values + cache;
    state.h = state.x + d;
    state.qkv = state.h + d;
    state.mixed = state.qkv + 3 * d;
    state.out = state.mixed + d;
    state.hidden = state.out + d;
    state.scores = state.hidden + hidden;
    state.p = state.scores + n;
    state.router = state.p + experts;
    state.gates = state.router + r;
    for (int32_t i = 0; i < count; i++)
        forward_token(&state, tokens[i], i, routing, &result);
    free(memory);
    return result;
}

void reference_result_free(reference_result *result)
{
    free(result->logprobs);
    free(result->counts);
    free(result->experts);
    free(result->weights);
    *result = (reference_result){0};
}
