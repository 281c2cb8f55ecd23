/*
 * test_sampler.c - the sampler against a naive implementation in double that sorts everything, and
 * the properties that answers rest on: pure draws, right distribution, ties, broken logits.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/random.h"
#include "serve/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_VOCABULARY = 5000 };

static const xm_kernels *kernels;
static const xmoe_sampling neutral = {.temperature = 1, .top_p = 1, .repetition_penalty = 1};

static int select_kernels(void **state)
{
    (void)state;
    return xm_kernels_select(NULL, &kernels, NULL) == XMOE_OK ? 0 : -1;
}

static void assert_close(double value, double expected, double tolerance)
{
    if (!(fabs(value - expected) <= tolerance))
        fail_msg("%.12g is not %.12g", value, expected);
}

/* --- the naive implementation ----------------------------------------------------------------- */

typedef struct {
    double value, p;
    int32_t id;
} naive_item;

static int by_rank(const void *a, const void *b)
{
    const naive_item *x = a, *y = b;
    if (x->value != y->value)
        return x->value > y->value ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b)
{
    const naive_item *x = a, *y = b;
    return x->id < y->id ? -1 : 1;
}

static int32_t occurrences(const int32_t *tokens, int32_t count, int32_t token)
{
    int32_t n = 0;
    for (int32_t i = 0; i < count; i++)
        n += tokens[i] == token;
    return n;
}

static double naive_logit(const xm_sample_input *in, int32_t id)
{
    const xmoe_sampling *p = in->sampling;
    double value = in->logits[id];
    for (size_t i = 0; i < p->logit_bias_count; i++)
        if (p->logit_bias[i].token == id)
            value = p->logit_bias[i].bias <= -100 ? -INFINITY : value + p->logit_bias[i].bias;
    int32_t out = occurrences(in->output, in->output_length, id);
    if (out + occurrences(in->prompt, in->prompt_length, id) > 0)
        value = value > 0 ? value / p->repetition_penalty : value * p->repetition_penalty;
    if (out > 0)
        value -= p->frequency_penalty * (float)out + p->presence_penalty;
    return value;
}

static int32_t naive_sample(const xm_sample_input *in, int32_t vocabulary)
{
    static naive_item items[MAX_VOCABULARY];
    const xmoe_sampling *p = in->sampling;
    for (int32_t i = 0; i < vocabulary; i++)
        items[i] = (naive_item){.value = naive_logit(in, i), .id = i};
    qsort(items, (size_t)vocabulary, sizeof *items, by_rank);
    if (p->temperature == 0)
        return items[0].id;
    int32_t count = p->top_k > 0 && p->top_k < vocabulary ? p->top_k : vocabulary;
    double total = 0;
    for (int32_t i = 0; i < count; i++)
        total += items[i].p = exp((items[i].value - items[0].value) / p->temperature);
    double mass = 0;
    for (int32_t i = 0; i < count; i++) {
        mass += items[i].p;
        if (p->top_p < 1 && mass >= (double)p->top_p * total)
            count = i + 1;
    }
    while (items[count - 1].p < (double)p->min_p * items[0].p)
        count--;
    qsort(items, (size_t)count, sizeof *items, by_id);
    total = 0;
    for (int32_t i = 0; i < count; i++)
        total += items[i].p;
    uint64_t position = (uint64_t)in->prompt_length + (uint64_t)in->output_length;
    double target = total * xm_random_uniform(p->seed, (uint64_t)in->choice, position);
    double sum = 0;
    for (int32_t i = 0; i < count; i++) {
        sum += items[i].p;
        if (target < sum)
            return items[i].id;
    }
    return items[count - 1].id;
}

/* --- against it ------------------------------------------------------------------------------- */

static double uniform(uint64_t *counter)
{
    return xm_random_uniform(99, 1, (*counter)++);
}

static int32_t below(uint64_t *counter, int32_t n)
{
    return (int32_t)(uniform(counter) * n);
}

/* Which knobs a case turns, as bits. */
enum { BIAS = 1, REPETITION = 2, FREQUENCY = 4, PRESENCE = 8, TOP_K = 16, TOP_P = 32, MIN_P = 64 };

static void compare_case(uint64_t *counter, int32_t vocabulary, uint32_t knobs, double spread,
                         xm_sampler_scratch *scratch)
{
    static float logits[MAX_VOCABULARY];
    int32_t prompt[40], output[30];
    xmoe_logit_bias bias[8];
    for (int32_t i = 0; i < vocabulary; i++)
        logits[i] = (float)(spread * xm_random_normal(5, *counter, (uint64_t)i));
    for (int32_t i = 0; i < 40; i++)
        prompt[i] = below(counter, vocabulary);
    for (int32_t i = 0; i < 30; i++)
        output[i] = below(counter, vocabulary / 4 + 1);
    for (int32_t i = 0; i < 8; i++)
        bias[i] = (xmoe_logit_bias){i * (vocabulary / 8), i == 3 ? -100 : (float)(i - 4)};
    xmoe_sampling p = neutral;
    p.seed = *counter;
    p.temperature = (float)(0.2 + uniform(counter) * 1.5);
    p.logit_bias = bias;
    p.logit_bias_count = knobs & BIAS ? 8 : 0;
    p.repetition_penalty = knobs & REPETITION ? 1.3F : 1;
    p.frequency_penalty = knobs & FREQUENCY ? 0.4F : 0;
    p.presence_penalty = knobs & PRESENCE ? -0.7F : 0;
    p.top_k = knobs & TOP_K ? 1 + below(counter, vocabulary / 2) : 0;
    p.top_p = knobs & TOP_P ? (float)(0.05 + 0.94 * uniform(counter)) : 1;
    p.min_p = knobs & MIN_P ? (float)(0.3 * uniform(counter)) : 0;
    for (int32_t greedy = 0; greedy < 2; greedy++) {
        xm_sample_input in = {logits, prompt, 40, output, below(counter, 31), &p, 2, NULL};
        int32_t token = -1;
        assert_int_equal(xm_sample(kernels, scratch, &in, &token), XM_SAMPLE_OK);
        assert_int_equal(token, naive_sample(&in, vocabulary));
        p.temperature = 0;
    }
}

static void each_knob_does_what_the_naive_one_does(void **state)
{
    (void)state;
    static const int32_t sizes[] = {9, 300, 4999};
    uint64_t counter = 0;
    for (size_t size = 0; size < 3; size++) {
        xm_sampler_scratch scratch;
        assert_int_equal(xm_sampler_scratch_init(&scratch, sizes[size], NULL), XMOE_OK);
        for (uint32_t knobs = 0; knobs < 128; knobs++)
            for (double spread = 0.1; spread < 20; spread *= 5)
                compare_case(&counter, sizes[size], knobs, spread, &scratch);
        for (int32_t i = 0; i < sizes[size]; i++)
            assert_int_equal(scratch.seen[i], 0);
        xm_sampler_scratch_free(&scratch);
    }
}

/* --- properties ------------------------------------------------------------------------------- */

static int32_t sample(const float *logits, int32_t vocabulary, const xmoe_sampling *p,
                      int32_t choice, int32_t position)
{
    static const int32_t zeros[100000];
    xm_sampler_scratch scratch;
    assert_int_equal(xm_sampler_scratch_init(&scratch, vocabulary, NULL), XMOE_OK);
    xm_sample_input in = {logits, zeros, position, zeros, 0, p, choice, NULL};
    int32_t token = -1;
    assert_int_equal(xm_sample(kernels, &scratch, &in, &token), XM_SAMPLE_OK);
    xm_sampler_scratch_free(&scratch);
    return token;
}

static void draws_depend_on_seed_choice_and_position_alone(void **state)
{
    (void)state;
    float logits[256] = {0}; /* uniform: a draw shows the generator */
    xmoe_sampling p = neutral;
    int32_t differ_choice = 0, differ_position = 0, differ_seed = 0;
    for (int32_t i = 0; i < 50; i++) {
        p.seed = 7;
        int32_t token = sample(logits, 256, &p, 3, i);
        assert_int_equal(token, sample(logits, 256, &p, 3, i));
        differ_choice += token != sample(logits, 256, &p, 4, i);
        differ_position += token != sample(logits, 256, &p, 3, i + 1);
        p.seed = 8;
        differ_seed += token != sample(logits, 256, &p, 3, i);
    }
    assert_true(differ_choice > 40 && differ_position > 40 && differ_seed > 40);
}

/* Chi-square over 20,000 counters: 9 degrees of freedom; 33.7 is exceeded once in 10,000. */
static void draws_follow_the_distribution(void **state)
{
    (void)state;
    enum { TOKENS = 10, DRAWS = 20000 };
    float logits[TOKENS];
    double p[TOKENS], total = 0, chi = 0;
    int32_t seen[TOKENS] = {0};
    for (int32_t i = 0; i < TOKENS; i++) {
        logits[i] = (float)(0.4 * i);
        total += p[i] = exp(0.8 * i);
    }
    xmoe_sampling sampling = neutral;
    sampling.temperature = 0.5F;
    for (int32_t i = 0; i < DRAWS; i++)
        seen[sample(logits, TOKENS, &sampling, i % 3, i)]++;
    for (int32_t i = 0; i < TOKENS; i++) {
        double expected = DRAWS * p[i] / total;
        chi += (seen[i] - expected) * (seen[i] - expected) / expected;
    }
    assert_true(chi < 33.7);
}

static void ties_go_to_the_lower_id(void **state)
{
    (void)state;
    float logits[100] = {0};
    logits[40] = logits[17] = logits[90] = 2;
    xmoe_sampling p = neutral;
    p.temperature = 0;
    assert_int_equal(sample(logits, 100, &p, 0, 0), 17);
    p.temperature = 1;
    p.top_k = 2;
    for (int32_t i = 0; i < 50; i++) {
        int32_t token = sample(logits, 100, &p, 0, i);
        assert_true(token == 17 || token == 40);
    }
}

static void tiny_temperature_is_greedy(void **state)
{
    (void)state;
    float logits[64];
    for (int32_t i = 0; i < 64; i++)
        logits[i] = (float)((i * 37) % 64) * 0.01F;
    xmoe_sampling p = neutral;
    p.temperature = 1e-30F;
    p.top_p = 0.9F;
    for (int32_t i = 0; i < 20; i++)
        assert_int_equal(logits[sample(logits, 64, &p, 0, i)] > 0.625F, true);
}

static xm_sample_status status_of(const float *logits, const xmoe_sampling *p)
{
    xm_sampler_scratch scratch;
    assert_int_equal(xm_sampler_scratch_init(&scratch, 8, NULL), XMOE_OK);
    int32_t zero = 0, token;
    xm_sample_input in = {logits, &zero, 1, &zero, 0, p, 0, NULL};
    xm_sample_status status = xm_sample(kernels, &scratch, &in, &token);
    xm_sampler_scratch_free(&scratch);
    return status;
}

static void broken_logits_are_told(void **state)
{
    (void)state;
    float logits[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    xmoe_sampling p = neutral;
    assert_int_equal(status_of(logits, &p), XM_SAMPLE_OK);
    logits[5] = NAN;
    assert_int_equal(status_of(logits, &p), XM_SAMPLE_NOT_FINITE);
    logits[5] = INFINITY;
    assert_int_equal(status_of(logits, &p), XM_SAMPLE_NOT_FINITE);
    logits[5] = -INFINITY; /* a masked token is fine */
    for (int32_t greedy = 0; greedy < 2; greedy++) {
        p.temperature = greedy ? 0 : 1;
        assert_int_equal(status_of(logits, &p), XM_SAMPLE_OK);
    }
    xmoe_logit_bias bans[8];
    for (int32_t i = 0; i < 8; i++)
        bans[i] = (xmoe_logit_bias){i, -100};
    p.logit_bias = bans;
    p.logit_bias_count = 7; /* all but the last */
    assert_int_equal(sample(logits, 8, &p, 0, 0), 7);
    p.logit_bias_count = 8;
    assert_int_equal(status_of(logits, &p), XM_SAMPLE_ALL_BANNED);
}

static void logprobs_are_of_the_unmodified_logits(void **state)
{
    (void)state;
    float logits[200], logprob;
    double total = 0;
    for (int32_t i = 0; i < 200; i++) {
        logits[i] = (float)((i * 7) % 50) * 0.1F; /* every value four times */
        total += exp(logits[i]);
    }
    xmoe_token_logprob top[XMOE_MAX_TOP_LOGPROBS];
    xm_logprobs(kernels, logits, 200, 23, &logprob, top, 20);
    assert_close(logprob, logits[23] - log(total), 1e-5);
    for (int32_t i = 0; i < 20; i++) {
        assert_close(top[i].logprob, logits[top[i].token] - log(total), 1e-5);
        if (i > 0)
            assert_true(logits[top[i].token] < logits[top[i - 1].token] ||
                        (logits[top[i].token] == logits[top[i - 1].token] &&
                         top[i].token > top[i - 1].token));
    }
    assert_int_equal(top[0].token, 7); /* 7 * 7 % 50 = 49, first of its ties */
    xm_logprobs(kernels, logits, 200, 23, &logprob, NULL, 0);
    assert_close(logprob, logits[23] - log(total), 1e-5);
}

static void large_flat_vocabulary_is_no_trouble(void **state)
{
    (void)state;
    enum { VOCABULARY = 150000 };
    float *logits = calloc(VOCABULARY, sizeof *logits);
    xmoe_sampling p = neutral;
    p.top_p = 0.95F; /* equal values: the worst case for a partial sort */
    int32_t token = sample(logits, VOCABULARY, &p, 0, 1);
    assert_in_range(token, 0, VOCABULARY * 95 / 100);
    p.top_k = 100000;
    token = sample(logits, VOCABULARY, &p, 0, 2);
    assert_in_range(token, 0, 95000);
    free(logits);
}

/* Being allowed to a few tokens only is the same as a ban of all others, at every setting. */
static void what_is_not_allowed_is_banned(void **state)
{
    (void)state;
    enum { SIZE = 150 };
    float logits[SIZE], banned[SIZE];
    int32_t zero = 0;
    xm_sampler_scratch scratch;
    assert_int_equal(xm_sampler_scratch_init(&scratch, SIZE, NULL), XMOE_OK);
    for (int32_t n = 0; n < 400; n++) {
        xmoe_sampling p = neutral;
        p.temperature = n % 3 == 0 ? 0 : 1;
        p.top_p = n % 4 == 0 ? 0.7F : 1;
        p.top_k = n % 5 == 0 ? 10 : 0;
        p.seed = (uint64_t)n;
        memset(scratch.allowed, n % 7 == 0 ? 0xFF : 0, (SIZE + 63) / 64 * sizeof(uint64_t));
        for (int32_t t = 0; t < SIZE; t++) {
            logits[t] = (float)((t * 37 + n) % 64) * 0.1F;
            if (n % 7 != 0 && (t * 31 + n * 17) % (n % 11 + 1) == 0)
                scratch.allowed[t / 64] |= UINT64_C(1) << (t % 64);
            bool in = (scratch.allowed[t / 64] >> (t % 64) & 1) != 0;
            banned[t] = in ? logits[t] : -INFINITY;
        }
        int32_t a = -1, b = -2;
        xm_sample_input masked = {logits, &zero, 1, &zero, 0, &p, 0, scratch.allowed};
        xm_sample_input plain = {banned, &zero, 1, &zero, 0, &p, 0, NULL};
        xm_sample_status status = xm_sample(kernels, &scratch, &masked, &a);
        assert_int_equal(status, xm_sample(kernels, &scratch, &plain, &b));
        if (status == XM_SAMPLE_OK)
            assert_int_equal(a, b);
    }
    xm_sampler_scratch_free(&scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_knob_does_what_the_naive_one_does),
        cmocka_unit_test(draws_depend_on_seed_choice_and_position_alone),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(ties_go_to_the_lower_id),
        cmocka_unit_test(tiny_temperature_is_greedy),
        cmocka_unit_test(broken_logits_are_told),
        cmocka_unit_test(what_is_not_allowed_is_banned),
        cmocka_unit_test(logprobs_are_of_the_unmodified_logits),
        cmocka_unit_test(large_flat_vocabulary_is_no_trouble),
    };
    return cmocka_run_group_tests(tests, select_kernels, NULL);
}
