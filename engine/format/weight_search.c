/*
 * weight_search.c - the search for the scales of a block, and of its groups, that leave the least
 * error: the sum over elements of importance * (decoded value - value)^2.
 *
 * A group alone: a few candidates around the scale that just covers the range, each improved by
 * least squares: given the codes, the best scale (and minimum) is the solution of a small linear
 * system. Then the groups' scales become integer multiples of the block's; since that rounds them,
 * integers next to the nearest are tried too, and codes chosen for what was stored. Values that are
 * not finite give codes in range and no more.
 */
#include "format/weight_block.h"

#include <math.h>

enum { MOST_GROUP = 32, TABLE = 16 };

/* A group of elements to be coded. */
typedef struct {
    const xm_weight_coding *coding;
    const float *values;
    float importance[MOST_GROUP];
    int32_t top; /* the highest code */
} group;

static group group_of(const xm_weight_coding *coding, const float *values, const float *importance,
                      size_t first)
{
    group g = {.coding = coding, .values = values + first, .top = (1 << coding->bits) - 1};

    for (size_t i = 0; i < coding->group; i++)
        g.importance[i] = importance != NULL ? importance[first + i] : 1.0f;
    return g;
}

/* The code of the value nearest to x, in units of the scale. */
static uint8_t nearest_code(const group *g, float x)
{
    const int8_t *values = g->coding->values;
    int32_t code = 0;

    if (values == NULL)
        return (uint8_t)xm_clamp_to_int(x + (float)g->coding->zero + 0.5f, 0, g->top);
    for (int32_t step = TABLE / 2; step > 0; step /= 2) { /* values ascend */
        float middle = 0.5f * (float)(values[code + step - 1] + values[code + step]);
        code += x > middle ? step : 0;
    }
    return (uint8_t)code;
}

static void choose_codes(const group *g, float scale, float minimum, uint8_t *codes)
{
    float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;

    for (size_t i = 0; i < g->coding->group; i++)
        codes[i] = nearest_code(g, (g->values[i] - minimum) * inverse);
}

static double error_of(const group *g, float scale, float minimum, const uint8_t *codes)
{
    double sum = 0.0;

    for (size_t i = 0; i < g->coding->group; i++) {
        float decoded = scale * (float)xm_weight_value(g->coding, codes[i]) + minimum;
        double error = (double)(decoded - g->values[i]);
        sum += (double)g->importance[i] * error * error;
    }
    return sum;
}

double xm_block_error(const xm_weight_coding *coding, const xm_weight_block *parts,
                      const float *values, const float *importance)
{
    float decoded[XM_BLOCK_ELEMENTS];
    double sum = 0.0;

    xm_weight_block_to_f32(coding, parts, decoded);
    for (size_t i = 0; i < coding->elements; i++) {
        double error = (double)(decoded[i] - values[i]);
        sum += (double)importance[i] * error * error;
    }
    return sum;
}

/* Keeps what is better; an error that is not a number never is. */
static bool improves(double error, double *best)
{
    if (!(error < *best))
        return false;
    *best = error;
    return true;
}

/* --- scales with minima --- */

typedef struct {
    float scale, minimum;
} affine;

/* The best scale >= 0 and minimum <= 0 for given codes; false if there is none. */
static bool solve_affine(const group *g, const uint8_t *codes, affine *fit)
{
    double w = 0, wq = 0, wqq = 0, wx = 0, wxq = 0;

    for (size_t i = 0; i < g->coding->group; i++) {
        double weight = (double)g->importance[i], q = codes[i], x = (double)g->values[i];
        w += weight;
        wq += weight * q;
        wqq += weight * q * q;
        wx += weight * x;
        wxq += weight * x * q;
    }
    double determinant = w * wqq - wq * wq;
    if (!(determinant > 0.0))
        return false;
    fit->scale = (float)((w * wxq - wq * wx) / determinant);
    fit->minimum = (float)((wqq * wx - wq * wxq) / determinant);
    if (fit->minimum > 0.0f) {
        fit->minimum = 0.0f;
        fit->scale = (float)(wxq / wqq);
    }
    return fit->scale > 0.0f;
}

static affine search_affine(const group *g)
{
    enum { CANDIDATES = 7, STEPS = 2 };
    float low = 0.0f, high = g->values[0];

    for (size_t i = 0; i < g->coding->group; i++) {
        low = g->values[i] < low ? g->values[i] : low;
        high = g->values[i] > high ? g->values[i] : high;
    }
    affine best = {(high > low ? high - low : 0.0f) / (float)g->top, low};
    uint8_t codes[MOST_GROUP];
    choose_codes(g, best.scale, best.minimum, codes);
    double least = error_of(g, best.scale, best.minimum, codes);

    for (int c = 0; c < CANDIDATES && best.scale > 0.0f; c++) {
        /* From a range that is cut off by up to a step to one that is half a step too wide. */
        affine fit = {(high - low) / ((float)g->top + 1.0f - 0.25f * (float)c), low};
        choose_codes(g, fit.scale, fit.minimum, codes);
        for (int step = 0; step < STEPS && solve_affine(g, codes, &fit); step++) {
            choose_codes(g, fit.scale, fit.minimum, codes);
            if (improves(error_of(g, fit.scale, fit.minimum, codes), &least))
                best = fit;
        }
    }
    return best;
}

/* The integers of one group: those near the exact ones that leave the least error. */
static void round_affine(const group *g, affine exact, affine unit, int32_t most,
                         xm_weight_block *parts, size_t at)
{
    float scale = unit.scale > 0.0f ? exact.scale / unit.scale + 0.5f : 0.0f;
    float minimum = unit.minimum < 0.0f ? exact.minimum / unit.minimum + 0.5f : 0.0f;
    int32_t middle_scale = xm_clamp_to_int(scale, 0, most);
    int32_t middle_minimum = xm_clamp_to_int(minimum, 0, most);
    double least = INFINITY;

    for (int32_t s = middle_scale - 1; s <= middle_scale + 1; s++)
        for (int32_t m = middle_minimum - 1; m <= middle_minimum + 1; m++) {
            uint8_t codes[MOST_GROUP];
            affine fit = {unit.scale * (float)s, unit.minimum * (float)m};
            if (s < 0 || s > most || m < 0 || m > most)
                continue;
            choose_codes(g, fit.scale, fit.minimum, codes);
            if (!improves(error_of(g, fit.scale, fit.minimum, codes), &least))
                continue;
            parts->scales[at] = (int8_t)s;
            parts->minima[at] = (uint8_t)m;
            memcpy(parts->codes + at * g->coding->group, codes, g->coding->group);
        }
}

void xm_search_with_minima(const xm_weight_coding *coding, int32_t most, const float *values,
                           const float *importance, xm_weight_block *parts)
{
    size_t groups = coding->elements / coding->group;
    affine fits[XM_BLOCK_GROUPS], unit = {0.0f, 0.0f};

    for (size_t i = 0; i < groups; i++) {
        group g = group_of(coding, values, importance, i * coding->group);
        fits[i] = search_affine(&g);
        unit.scale = fits[i].scale > unit.scale ? fits[i].scale : unit.scale;
        unit.minimum = fits[i].minimum < unit.minimum ? fits[i].minimum : unit.minimum;
    }
    parts->scale = xm_f32_to_f16(unit.scale / (float)most);
    parts->minimum = xm_f32_to_f16(unit.minimum / (float)most);
    unit.scale = xm_f16_to_f32(parts->scale);
    unit.minimum = xm_f16_to_f32(parts->minimum);
    for (size_t i = 0; i < groups; i++) {
        group g = group_of(coding, values, importance, i * coding->group);
        round_affine(&g, fits[i], unit, most, parts, i);
    }
}

/* --- scales alone --- */

/* The best scale for given codes; 0 if all stand for 0. */
static float solve_scale(const group *g, const uint8_t *codes)
{
    double wxv = 0, wvv = 0;

    for (size_t i = 0; i < g->coding->group; i++) {
        double value = xm_weight_value(g->coding, codes[i]);
        wxv += (double)g->importance[i] * (double)g->values[i] * value;
        wvv += (double)g->importance[i] * value * value;
    }
    return wvv > 0.0 ? (float)(wxv / wvv) : 0.0f;
}

/* Candidates put the largest element on, or near, either end of the values; so the scale may be
 * negative where the values reach further to one side. */
static float search_scale(const group *g)
{
    enum { CANDIDATES = 5 };
    float largest = 0.0f, best = 0.0f;
    double least = INFINITY;

    for (size_t i = 0; i < g->coding->group; i++)
        largest = fabsf(g->values[i]) > fabsf(largest) ? g->values[i] : largest;
    for (int end = 0; end < 2 && largest != 0.0f; end++) {
        uint8_t code = (uint8_t)(end == 0 ? 0 : g->top);
        uint8_t next = (uint8_t)(end == 0 ? 1 : g->top - 1);
        float value = (float)xm_weight_value(g->coding, code);
        float step = value - (float)xm_weight_value(g->coding, next);

        for (int c = 0; c < CANDIDATES; c++) {
            uint8_t codes[MOST_GROUP];
            float scale = largest / (value + step * (0.3f * (float)c - 0.6f));
            choose_codes(g, scale, 0.0f, codes);
            scale = solve_scale(g, codes);
            choose_codes(g, scale, 0.0f, codes);
            if (improves(error_of(g, scale, 0.0f, codes), &least))
                best = scale;
        }
    }
    return best;
}

static void round_scale(const group *g, float exact, float unit, int32_t low, int32_t high,
                        xm_weight_block *parts, size_t at)
{
    int32_t middle = unit != 0.0f ? xm_clamp_to_int(rintf(exact / unit), low, high) : low;
    double least = INFINITY;

    for (int32_t s = middle - 1; s <= middle + 1; s++) {
        uint8_t codes[MOST_GROUP];
        float scale = unit * (float)s;
        if (s < low || s > high)
            continue;
        choose_codes(g, scale, 0.0f, codes);
        if (!improves(error_of(g, scale, 0.0f, codes), &least))
            continue;
        parts->scales[at] = (int8_t)s;
        memcpy(parts->codes + at * g->coding->group, codes, g->coding->group);
    }
}

void xm_search_scales(const xm_weight_coding *coding, int32_t low, int32_t high,
                      const float *values, const float *importance, xm_weight_block *parts)
{
    size_t groups = coding->elements / coding->group;
    float fits[XM_BLOCK_GROUPS], largest = 0.0f;

    for (size_t i = 0; i < groups; i++) {
        group g = group_of(coding, values, importance, i * coding->group);
        fits[i] = search_scale(&g);
        largest = fabsf(fits[i]) > fabsf(largest) ? fits[i] : largest;
    }
    parts->scale = xm_f32_to_f16(largest / (float)low); /* low reaches furthest */
    float unit = xm_f16_to_f32(parts->scale);
    for (size_t i = 0; i < groups; i++) {
        group g = group_of(coding, values, importance, i * coding->group);
        round_scale(&g, fits[i], unit, low, high, parts, i);
    }
}
