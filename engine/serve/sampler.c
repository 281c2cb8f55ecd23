/* sampler.c - see sampler.h. Any thread; all state is in the scratch. */
#include "serve/sampler.h"

#include "base/memory.h"
#include "base/random.h"

#include <math.h>
#include <string.h>

static const float never_drawn = -60.0F; /* natural log, against the best token */

xmoe_status xm_sampler_scratch_init(xm_sampler_scratch *scratch, int32_t vocabulary,
                                    xmoe_error *error)
{
    size_t n = (size_t)vocabulary, padded = (n + 15) / 16 * 16;
    *scratch = (xm_sampler_scratch){.vocabulary = vocabulary,
                                    .values = xm_calloc_aligned(padded, sizeof(float)),
                                    .ids = xm_calloc(n, sizeof(int32_t)),
                                    .ranked = xm_calloc(n, sizeof(xm_ranked)),
                                    .seen = xm_calloc(n, sizeof(uint32_t)),
                                    .allowed = xm_calloc((n + 63) / 64, sizeof(uint64_t))};
    if (scratch->values != NULL && scratch->ids != NULL && scratch->ranked != NULL &&
        scratch->seen != NULL && scratch->allowed != NULL)
        return XMOE_OK;
    xm_sampler_scratch_free(scratch);
    return xm_fail_memory(error, "sampler", n * 20);
}

void xm_sampler_scratch_free(xm_sampler_scratch *scratch)
{
    xm_free(scratch->values);
    xm_free(scratch->ids);
    xm_free(scratch->ranked);
    xm_free(scratch->seen);
    xm_free(scratch->allowed);
    *scratch = (xm_sampler_scratch){0};
}

/* --- order of rank --- */

static bool ranks_before(xm_ranked a, xm_ranked b)
{
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

static void swap(xm_ranked *a, xm_ranked *b)
{
    xm_ranked t = *a;
    *a = *b;
    *b = t;
}

/* Splits items[0..count) around a pivot; returns its final place. Median of three. */
static size_t partition(xm_ranked *items, size_t count)
{
    size_t last = count - 1, middle = count / 2;
    if (ranks_before(items[middle], items[0]))
        swap(&items[middle], &items[0]);
    if (ranks_before(items[last], items[0]))
        swap(&items[last], &items[0]);
    if (ranks_before(items[middle], items[last]))
        swap(&items[middle], &items[last]); /* the median is now last */
    xm_ranked pivot = items[last];
    size_t place = 0;
    for (size_t i = 0; i < last; i++)
        if (ranks_before(items[i], pivot))
            swap(&items[i], &items[place++]);
    swap(&items[place], &items[last]);
    return place;
}

/* heap[0..count) with the last in rank at its root: puts item in the root's place. */
static void replace_root(xm_ranked *heap, size_t count, xm_ranked item)
{
    size_t at = 0;
    for (size_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && ranks_before(heap[child], heap[child + 1]))
            child++;
        if (!ranks_before(item, heap[child]))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = item;
}

/* The item up to which the best ones have to be taken for their values to add up to mass. Linear:
 * splits, then goes on in the side where the mass is reached. */
static xm_ranked reach_mass(xm_ranked *items, size_t count, double mass)
{
    for (;;) {
        size_t place = partition(items, count);
        double before = 0;
        for (size_t i = 0; i < place; i++)
            before += items[i].value;
        if (before >= mass && place > 0) {
            count = place;
            continue;
        }
        mass -= before + items[place].value;
        if (mass <= 0 || place + 1 == count)
            return items[place];
        items += place + 1;
        count -= place + 1;
    }
}

/* --- steps --- */

enum { LANES = 16 }; /* elements that loops below treat side by side */

/* False if a logit is NaN or +infinity. */
static bool logits_are_usable(const float *logits, int32_t vocabulary)
{
    int32_t broken[LANES] = {0}, any = 0, whole = vocabulary - vocabulary % LANES;
    for (int32_t i = 0; i < whole; i += LANES)
        for (int32_t l = 0; l < LANES; l++)
            broken[l] |= !(logits[i + l] < INFINITY); /* true for NaN too */
    for (int32_t l = 0; l < LANES; l++)
        any |= broken[l];
    for (int32_t i = whole; i < vocabulary; i++)
        any |= !(logits[i] < INFINITY);
    return any == 0;
}

static void apply_bias(float *values, const xmoe_sampling *sampling)
{
    for (size_t i = 0; i < sampling->logit_bias_count; i++) {
        const xmoe_logit_bias *b = &sampling->logit_bias[i];
        values[b->token] = b->bias <= -100 ? -INFINITY : values[b->token] + b->bias;
    }
}

static void ban_others(float *values, const uint64_t *allowed, int32_t vocabulary)
{
    for (int32_t i = 0; i < vocabulary; i += 64) {
        uint64_t word = allowed[i / 64];
        int32_t end = i + 64 < vocabulary ? i + 64 : vocabulary;
        if (word == UINT64_MAX)
            continue;
        for (int32_t t = i; t < end; t++, word >>= 1)
            values[t] = (word & 1) != 0 ? values[t] : -INFINITY;
    }
}

/* seen[] counts a token once per occurrence, so that each is treated at its first one. */
static void penalise_repetition(xm_sampler_scratch *s, const xm_sample_input *in)
{
    float penalty = in->sampling->repetition_penalty;
    const int32_t *parts[2] = {in->prompt, in->output};
    int32_t lengths[2] = {in->prompt_length, in->output_length};
    for (int32_t p = 0; p < 2; p++)
        for (int32_t i = 0; i < lengths[p]; i++) {
            int32_t token = parts[p][i];
            if (s->seen[token]++ > 0)
                continue;
            float value = s->values[token];
            s->values[token] = value > 0 ? value / penalty : value * penalty;
        }
    for (int32_t p = 0; p < 2; p++)
        for (int32_t i = 0; i < lengths[p]; i++)
            s->seen[parts[p][i]] = 0;
}

static void penalise_output(xm_sampler_scratch *s, const xm_sample_input *in)
{
    for (int32_t i = 0; i < in->output_length; i++)
        s->seen[in->output[i]]++;
    for (int32_t i = 0; i < in->output_length; i++) {
        int32_t token = in->output[i];
        if (s->seen[token] == 0)
            continue;
        s->values[token] -= in->sampling->frequency_penalty * (float)s->seen[token] +
                            in->sampling->presence_penalty;
        s->seen[token] = 0;
    }
}

/* The index of the largest value, the first of equal ones. */
static int32_t largest(const float *values, int32_t count)
{
    float lanes[LANES], best = -INFINITY;
    int32_t at = 0, whole = count - count % LANES;
    for (int32_t l = 0; l < LANES; l++)
        lanes[l] = -INFINITY;
    for (int32_t i = 0; i < whole; i += LANES)
        for (int32_t l = 0; l < LANES; l++)
            lanes[l] = values[i + l] > lanes[l] ? values[i + l] : lanes[l];
    for (int32_t l = 0; l < LANES; l++)
        best = lanes[l] > best ? lanes[l] : best;
    for (int32_t i = whole; i < count; i++)
        best = values[i] > best ? values[i] : best;
    while (at < count - 1 && values[at] < best)
        at++;
    return at;
}

static double sum(const float *values, size_t count)
{
    double lanes[LANES] = {0}, total = 0;
    size_t whole = count - count % LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t l = 0; l < LANES; l++)
            lanes[l] += values[i + l];
    for (size_t l = 0; l < LANES; l++)
        total += lanes[l];
    for (size_t i = whole; i < count; i++)
        total += values[i];
    return total;
}

/* values[0..vocabulary) to candidates (values[], ids[]) in order of id, divided by the temperature;
 * returns how many. The best one gets 0. */
static size_t gather_candidates(xm_sampler_scratch *s, float best, float temperature)
{
    size_t count = 0;
    for (int32_t i = 0; i < s->vocabulary; i += LANES) /* the array is that much longer */
        for (int32_t l = 0; l < LANES; l++)
            s->values[i + l] = (s->values[i + l] - best) / temperature;
    for (int32_t i = 0; i < s->vocabulary; i++) { /* without a branch that is hard to predict */
        float value = s->values[i];
        s->values[count] = value;
        s->ids[count] = i;
        count += value >= never_drawn;
    }
    return count;
}

/* Keeps the candidates that rank at `last` or before; returns how many. */
static size_t keep_ranked(xm_sampler_scratch *s, size_t count, xm_ranked last)
{
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        xm_ranked item = {s->values[i], (int32_t)i};
        if (ranks_before(last, item))
            continue;
        s->values[kept] = s->values[i];
        s->ids[kept++] = s->ids[i];
    }
    return kept;
}

static size_t keep_top_k(xm_sampler_scratch *s, size_t count, size_t k)
{
    static const xm_ranked behind_all = {-INFINITY, INT32_MAX};
    for (size_t i = 0; i < k; i++)
        s->ranked[i] = behind_all;
    for (size_t i = 0; i < count; i++) {
        xm_ranked item = {s->values[i], (int32_t)i};
        if (ranks_before(item, s->ranked[0]))
            replace_root(s->ranked, k, item);
    }
    return keep_ranked(s, count, s->ranked[0]);
}

/* values[] are probabilities. A candidate below (1 - top_p) / count cannot be kept: all such
 * together have no more than 1 - top_p. */
static size_t keep_top_p(xm_sampler_scratch *s, size_t count, double top_p)
{
    double total = sum(s->values, count);
    float least = (float)((1 - top_p) * total / (double)count * 0.999);
    size_t found = 0;
    for (size_t i = 0; i < count; i++)
        if (s->values[i] >= least)
            s->ranked[found++] = (xm_ranked){s->values[i], (int32_t)i};
    return keep_ranked(s, count, reach_mass(s->ranked, found, top_p * total));
}

static size_t keep_min_p(xm_sampler_scratch *s, size_t count, float min_p)
{
    float best = s->values[largest(s->values, (int32_t)count)];
    size_t kept = 0;
    for (size_t i = 0; i < count; i++) {
        if (s->values[i] < min_p * best)
            continue;
        s->values[kept] = s->values[i];
        s->ids[kept++] = s->ids[i];
    }
    return kept;
}

/* Goes through the mass in order of id, by blocks as long as the draw lies behind them. */
static int32_t draw(const xm_sampler_scratch *s, size_t count, double uniform)
{
    enum { BLOCK = 256 };
    double left = uniform * sum(s->values, count);
    size_t at = 0, last = 0;
    for (; count - at > BLOCK; at += BLOCK) {
        double mass = sum(s->values + at, BLOCK);
        if (left < mass)
            break;
        left -= mass;
    }
    for (; at < count; at++) {
        if (s->values[at] <= 0)
            continue;
        last = at;
        left -= s->values[at];
        if (left < 0)
            break;
    }
    return s->ids[last];
}

xm_sample_status xm_sample(const xm_kernels *kernels, xm_sampler_scratch *s,
                           const xm_sample_input *in, int32_t *token)
{
    const xmoe_sampling *p = in->sampling;
    if (!logits_are_usable(in->logits, s->vocabulary))
        return XM_SAMPLE_NOT_FINITE;
    memcpy(s->values, in->logits, (size_t)s->vocabulary * sizeof(float));
    apply_bias(s->values, p);
    if (in->allowed != NULL)
        ban_others(s->values, in->allowed, s->vocabulary);
    if (p->repetition_penalty != 1)
        penalise_repetition(s, in);
    if (p->frequency_penalty != 0 || p->presence_penalty != 0)
        penalise_output(s, in);
    *token = largest(s->values, s->vocabulary);
    float best = s->values[*token];
    if (best == -INFINITY)
        return XM_SAMPLE_ALL_BANNED;
    if (best == INFINITY) /* a bias or penalty overflowed */
        return XM_SAMPLE_NOT_FINITE;
    if (p->temperature == 0)
        return XM_SAMPLE_OK;
    size_t count = gather_candidates(s, best, p->temperature);
    if (p->top_k > 0 && (size_t)p->top_k < count)
        count = keep_top_k(s, count, (size_t)p->top_k);
    kernels->softmax(s->values, count);
    if (p->top_p < 1)
        count = keep_top_p(s, count, p->top_p);
    if (p->min_p > 0)
        count = keep_min_p(s, count, p->min_p);
    uint64_t position = (uint64_t)in->prompt_length + (uint64_t)in->output_length;
    *token = draw(s, count, xm_random_uniform(p->seed, (uint64_t)in->choice, position));
    return XM_SAMPLE_OK;
}

void xm_logprobs(const xm_kernels *kernels, const float *logits, int32_t vocabulary, int32_t token,
                 float *logprob, xmoe_token_logprob *top, int32_t top_count)
{
    float normaliser = kernels->log_sum_exp(logits, (size_t)vocabulary);
    *logprob = logits[token] - normaliser;
    int32_t found = 0;
    for (int32_t i = 0; i < vocabulary && top_count > 0; i++) {
        float value = logits[i];
        if (found == top_count && !(value > top[found - 1].logprob))
            continue;
        int32_t place = found < top_count ? found++ : top_count - 1;
        for (; place > 0 && value > top[place - 1].logprob; place--)
            top[place] = top[place - 1];
        top[place] = (xmoe_token_logprob){i, value};
    }
    for (int32_t i = 0; i < found; i++)
        top[i].logprob -= normaliser;
}
