/*
 * usage_compare.c - see usage_compare.h.
 */
#include "usage_compare.h"

#include "cli.h"
#include "usage_report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool usage_comparable(const usage_side *a, const usage_side *b)
{
    bool same = a->usage->layer_count == b->usage->layer_count;
    for (int32_t i = 0; same && i < a->usage->layer_count; i++) {
        const xmoe_layer_usage *of_a = &a->usage->layers[i], *of_b = &b->usage->layers[i];
        same = of_a->layer == of_b->layer && of_a->experts == of_b->experts;
    }
    if (!same) {
        cli_fail("%s and %s are not of the same layers and experts", a->path, b->path);
        return false;
    }
    if (strcmp(a->file->model, b->file->model) != 0) {
        cli_warn("%s is of model '%s', %s of '%s': experts of different models have only their "
                 "numbers in common",
                 a->path, a->file->model, b->path, b->file->model);
    }
    return true;
}

/* --- what moved --------------------------------------------------------------------------------
 */

typedef struct {
    int32_t expert;
    double from, to; /* shares */
} move;

static int by_change(const void *left, const void *right)
{
    const move *a = left, *b = right;
    double change_a = a->to - a->from, change_b = b->to - b->from;
    if (change_a != change_b) {
        return change_a > change_b ? -1 : 1;
    }
    return a->expert < b->expert ? -1 : 1;
}

/* All experts of a layer, those that grew most first; NULL after a message. */
static move *sort_moves(const xmoe_layer_usage *a, const xmoe_layer_usage *b)
{
    move *moves = calloc((size_t)a->experts, sizeof *moves);
    if (moves == NULL) {
        cli_fail("out of memory");
        return NULL;
    }
    for (int32_t e = 0; e < a->experts; e++) {
        moves[e] = (move){.expert = e, .from = usage_share(a, e), .to = usage_share(b, e)};
    }
    qsort(moves, (size_t)a->experts, sizeof *moves, by_change);
    return moves;
}

/* The expert that moved n-th most (from 0): up, or down. NULL where no further one did so. */
static const move *nth_move(const move *moves, int32_t experts, int32_t n, bool up)
{
    if (n >= experts) {
        return NULL;
    }
    const move *item = up ? &moves[n] : &moves[experts - 1 - n];
    return (up ? item->to > item->from : item->to < item->from) ? item : NULL;
}

static bool both_worked(const xmoe_layer_usage *a, const xmoe_layer_usage *b)
{
    return a->activations > 0 && b->activations > 0;
}

/* Mean of the layers' divergence, where there is one; else NaN. */
static double mean_divergence(const xmoe_usage *a, const xmoe_usage *b)
{
    double sum = 0;
    int32_t known = 0;
    for (int32_t i = 0; i < a->layer_count; i++) {
        double bits = xmoe_usage_divergence(&a->layers[i], &b->layers[i]);
        if (!isnan(bits)) {
            sum += bits;
            known++;
        }
    }
    return known > 0 ? sum / known : (double)NAN;
}

/* --- table -------------------------------------------------------------------------------------
 */

/* "12 +4.1  3 +2.0": change of share in percentage points. */
static void print_moves(const move *moves, int32_t experts, int32_t top, bool up)
{
    int32_t n = 0;
    for (; n < top; n++) {
        const move *item = nth_move(moves, experts, n, up);
        if (item == NULL) {
            break;
        }
        printf(" %4d %+5.1f", item->expert, 100 * (item->to - item->from));
    }
    printf("%*s ", 11 * (int)(top - n), "");
}

/* Experts that `used` uses and `other` does not. */
static void print_lost(const char *what, const xmoe_layer_usage *used,
                       const xmoe_layer_usage *other)
{
    bool first = true;
    for (int32_t e = 0; e < used->experts; e++) {
        if (used->counts[e] > 0 && other->counts[e] == 0) {
            printf("%s %d", first ? what : "", e);
            first = false;
        }
    }
}

static void print_side(const char *name, const usage_side *side)
{
    printf("%s: %s (%s, phase %s, %llu tokens)\n", name, side->path, side->file->model,
           usage_phase_name(side->usage->phase), (unsigned long long)side->usage->tokens);
}

bool usage_compare_print(const usage_side *a, const usage_side *b, int32_t top)
{
    const int width = 11 * (int)top;
    print_side("A", a);
    print_side("B", b);
    printf("\n%5s %7s  %-*s %-*s  %s\n", "layer", "bits", width, "grew most (points)", width,
           "fell most", "used by one only");
    for (int32_t i = 0; i < a->usage->layer_count; i++) {
        const xmoe_layer_usage *of_a = &a->usage->layers[i], *of_b = &b->usage->layers[i];
        if (!both_worked(of_a, of_b)) {
            printf("%5d %7s  no tokens in %s\n", of_a->layer, "-",
                   of_a->activations == 0 ? "A" : "B");
            continue;
        }
        move *moves = sort_moves(of_a, of_b);
        if (moves == NULL) {
            return false;
        }
        printf("%5d %7.4f ", of_a->layer, xmoe_usage_divergence(of_a, of_b));
        print_moves(moves, of_a->experts, top, true);
        print_moves(moves, of_a->experts, top, false);
        print_lost(" A:", of_a, of_b);
        print_lost(" B:", of_b, of_a);
        putchar('\n');
        free(moves);
    }
    printf("%5s %7.4f\n", "mean", mean_divergence(a->usage, b->usage));
    return true;
}

/* --- JSON --------------------------------------------------------------------------------------
 */

static void write_side(json_writer *json, const char *name, const usage_side *side)
{
    json_open_object(json, name);
    json_string(json, "file", side->path);
    json_string(json, "id", side->file->id);
    json_string(json, "model", side->file->model);
    json_integer(json, "created", side->file->created);
    json_string(json, "phase", usage_phase_name(side->usage->phase));
    json_unsigned(json, "tokens", side->usage->tokens);
    json_close_object(json);
}

static void write_moves(json_writer *json, const char *name, const move *moves, int32_t experts,
                        int32_t top, bool up)
{
    const move *item;
    json_open_array(json, name);
    for (int32_t n = 0; n < top && (item = nth_move(moves, experts, n, up)) != NULL; n++) {
        json_open_object(json, NULL);
        json_integer(json, "expert", item->expert);
        json_number(json, "from", item->from);
        json_number(json, "to", item->to);
        json_close_object(json);
    }
    json_close_array(json);
}

static void write_lost(json_writer *json, const char *name, const xmoe_layer_usage *used,
                       const xmoe_layer_usage *other)
{
    json_open_row(json, name);
    for (int32_t e = 0; e < used->experts; e++) {
        if (used->counts[e] > 0 && other->counts[e] == 0) {
            json_integer(json, NULL, e);
        }
    }
    json_close_array(json);
}

static bool write_layer(json_writer *json, const xmoe_layer_usage *a, const xmoe_layer_usage *b,
                        int32_t top)
{
    json_open_object(json, NULL);
    json_integer(json, "layer", a->layer);
    json_integer(json, "experts", a->experts);
    json_number(json, "divergence", xmoe_usage_divergence(a, b));
    if (both_worked(a, b)) {
        move *moves = sort_moves(a, b);
        if (moves == NULL) {
            return false;
        }
        json_open_row(json, "share_change");
        for (int32_t e = 0; e < a->experts; e++) {
            json_number(json, NULL, usage_share(b, e) - usage_share(a, e));
        }
        json_close_array(json);
        write_moves(json, "grew", moves, a->experts, top, true);
        write_moves(json, "fell", moves, a->experts, top, false);
        free(moves);
    } else {
        json_null(json, "share_change");
    }
    write_lost(json, "only_a", a, b);
    write_lost(json, "only_b", b, a);
    json_close_object(json);
    return true;
}

bool usage_compare_json(const usage_side *a, const usage_side *b, int32_t top)
{
    json_writer json = {.out = stdout};
    bool good = true;
    json_open_object(&json, NULL);
    json_string(&json, "object", "experts.comparison");
    write_side(&json, "a", a);
    write_side(&json, "b", b);
    json_number(&json, "divergence", mean_divergence(a->usage, b->usage));
    json_open_array(&json, "layers");
    for (int32_t i = 0; good && i < a->usage->layer_count; i++) {
        good = write_layer(&json, &a->usage->layers[i], &b->usage->layers[i], top);
    }
    json_close_array(&json);
    json_close_object(&json);
    return good;
}
