/*
 * test_usage_file.c - the tools' files of expert usage: what is written is read back to the last
 * bit, what is damaged is refused with a message that says where, and no damage does harm.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include "../tools/usage_file.h"

enum { EXPERTS = 3, LAYERS = 2 };

/* Prefill and decode by the same numbers, times a factor; all is their sum. */
static xmoe_usage *make_usage(xmoe_phase phase, uint64_t factor)
{
    static const uint64_t histograms[LAYERS][EXPERTS + 1] = {{0, 2, 3, 1}, {0, 6, 0, 0}};
    static const uint64_t counts[LAYERS][EXPERTS] = {{6, 0, 5}, {1, 2, 3}};
    static const double weights[LAYERS][EXPERTS] = {{3.1015625, 0, 2.8984375},
                                                    {1.0 / 1024, 2 + 0x1p-28, 3}};
    uint64_t numbers[LAYERS][2 * EXPERTS + 1];
    double scaled[LAYERS][EXPERTS];
    xmoe_layer_usage layers[LAYERS];
    for (int32_t l = 0; l < LAYERS; l++) {
        for (int32_t i = 0; i <= EXPERTS; i++)
            numbers[l][i] = factor * histograms[l][i];
        for (int32_t e = 0; e < EXPERTS; e++) {
            numbers[l][EXPERTS + 1 + e] = factor * counts[l][e];
            scaled[l][e] = (double)factor * weights[l][e];
        }
        layers[l] = (xmoe_layer_usage){.layer = 2 * l + 1,
                                       .experts = EXPERTS,
                                       .active_histogram = numbers[l],
                                       .counts = numbers[l] + EXPERTS + 1,
                                       .weights = scaled[l],
                                       .steps = 4,
                                       .distinct = 5};
    }
    xmoe_usage *usage;
    xmoe_error error;
    assert_int_equal(xmoe_usage_create(phase, 1790000000, layers, LAYERS, &usage, &error), XMOE_OK);
    return usage;
}

static usage_file make_file(void)
{
    usage_file file = {.id = "monday", .model = "m\xC3\xBCller-9", .created = 1790000100};
    file.phases[XMOE_PHASE_ALL] = make_usage(XMOE_PHASE_ALL, 3);
    file.phases[XMOE_PHASE_PREFILL] = make_usage(XMOE_PHASE_PREFILL, 1);
    file.phases[XMOE_PHASE_DECODE] = make_usage(XMOE_PHASE_DECODE, 2);
    return file;
}

/* The file's text, from malloc. */
static char *print(const usage_file *file, size_t *length)
{
    char *text = NULL;
    FILE *stream = open_memstream(&text, length);
    assert_non_null(stream);
    usage_file_print(stream, file);
    assert_int_equal(fclose(stream), 0);
    return text;
}

static char *make_text(size_t *length)
{
    usage_file file = make_file();
    char *text = print(&file, length);
    usage_file_free(&file);
    return text;
}

static void assert_same_usage(const xmoe_usage *a, const xmoe_usage *b)
{
    assert_int_equal(a->phase, b->phase);
    assert_int_equal(a->since, b->since);
    assert_int_equal(a->tokens, b->tokens);
    assert_int_equal(a->layer_count, b->layer_count);
    for (int32_t l = 0; l < a->layer_count; l++) {
        const xmoe_layer_usage *left = &a->layers[l], *right = &b->layers[l];
        size_t experts = (size_t)left->experts;
        assert_int_equal(left->layer, right->layer);
        assert_int_equal(left->experts, right->experts);
        assert_int_equal(left->steps, right->steps);
        assert_int_equal(left->distinct, right->distinct);
        assert_memory_equal(left->counts, right->counts, experts * sizeof *left->counts);
        assert_memory_equal(left->active_histogram, right->active_histogram,
                            (experts + 1) * sizeof *left->counts);
        assert_memory_equal(left->weights, right->weights, experts * sizeof *left->weights);
    }
}

static void a_snapshot_is_read_back(void **state)
{
    (void)state;
    size_t length;
    xmoe_error error;
    usage_file file = make_file(), back;
    char *text = print(&file, &length);
    assert_int_equal(usage_file_parse(text, length, &back, &error), XMOE_OK);
    assert_string_equal(back.id, file.id);
    assert_string_equal(back.model, file.model);
    assert_int_equal(back.created, file.created);
    for (int32_t i = 0; i < XMOE_PHASES; i++)
        assert_same_usage(back.phases[i], file.phases[i]);
    assert_ptr_equal(usage_file_phase(&back, NULL, "x"), back.phases[XMOE_PHASE_ALL]);
    assert_ptr_equal(usage_file_phase(&back, "decode", "x"), back.phases[XMOE_PHASE_DECODE]);
    usage_file_free(&back);
    usage_file_free(&file);
    free(text);
}

static void a_plain_usage_is_read_back(void **state)
{
    (void)state;
    size_t length;
    xmoe_error error;
    usage_file file = {.model = "m"}, back;
    file.phases[XMOE_PHASE_DECODE] = make_usage(XMOE_PHASE_DECODE, 7);
    char *text = print(&file, &length);
    assert_int_equal(usage_file_parse(text, length, &back, &error), XMOE_OK);
    assert_null(back.phases[XMOE_PHASE_ALL]);
    assert_same_usage(back.phases[XMOE_PHASE_DECODE], file.phases[XMOE_PHASE_DECODE]);
    assert_ptr_equal(usage_file_phase(&back, NULL, "x"), back.phases[XMOE_PHASE_DECODE]);
    assert_null(usage_file_phase(&back, "prefill", "x"));
    usage_file_free(&back);
    usage_file_free(&file);
    free(text);
}

/* Parses text with its first `from` replaced by `to`; the message must hold `says`. */
static void refused(const char *text, const char *from, const char *to, const char *says)
{
    const char *at = strstr(text, from);
    assert_non_null(at);
    size_t size = strlen(text) + strlen(to) + 1;
    char *changed = malloc(size);
    assert_non_null(changed);
    int length = snprintf(changed, size, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    usage_file file;
    xmoe_error error = {0};
    assert_int_not_equal(usage_file_parse(changed, (size_t)length, &file, &error), XMOE_OK);
    if (strstr(error.message, says) == NULL)
        fail_msg("'%s' instead of '%s': '%s'", to, from, error.message);
    for (int32_t i = 0; i < XMOE_PHASES; i++)
        assert_null(file.phases[i]);
    free(changed);
}

static void what_is_wrong_is_said(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *says;
    } cases[] = {
        {"{", "[", "not JSON"},
        {"{\n", "{} {\n", "not JSON"},
        {"experts.snapshot", "list", "experts.snapshot"},
        {"\"monday\"", "\".hidden\"", "id"},
        {"\"monday\"", "\"../up\"", "id"},
        {"\"monday\"", "7", "id"},
        {"m\xC3\xBCller", "m\\u001b[2J", "model"},
        {"m\xC3\xBCller", "m\xC3", "model"},
        {"\"created\": 1790000100", "\"created\": -1", "created"},
        {"\"created\": 1790000100", "\"created\": 1.5", "created"},
        {"\"created\": 1790000100", "\"created\": 1e300", "created"},
        {"\"experts\": 3", "\"experts\": 4", "experts: 4"},
        {"\"experts\": 3,\n          \"tokens\"", "\"experts\": 4,\n          \"tokens\"",
         "phases.all.layers[0].counts"},
        {"\"phases\"", "\"faces\"", "phases.all"},
        {"\"prefill\": {", "\"fill\": {", "phases.prefill"},
        {"\"phase\": \"all\"", "\"phase\": \"decode\"", "phases.all.phase"},
        {"\"since\": 1790000000", "\"since\": null", "phases.all.since"},
        {"\"layers\": [", "\"layers\": [7, ", "phases.all.layers[0].layer"},
        {"\"layers\": [", "\"layers\": 0, \"x\": [", "phases.all.layers"},
        {"\"layer\": 1,", "\"layer\": 3,", "layer 3"},
        {"\"layer\": 1,", "\"layer\": 4294967296,", "too large"},
        {"\"tokens\": 18,\n          \"act", "\"tokens\": 19,\n          \"act",
         "layers[0]: tokens"},
        {"\"activations\": 33", "\"activations\": 34", "layers[0]: tokens and activations"},
        {"[0, 6, 9, 3]", "[0, 6, 9]", "active_histogram: must be an array of 4"},
        {"[0, 6, 9, 3]", "[1, 6, 9, 2]", "active_histogram"},
        {"[18, 0, 15]", "[18, 0, 15, 0]", "counts"},
        {"[18, 0, 15]", "[18, 0, -15]", "counts[2]"},
        {"[18, 0, 15]", "[18, 0, \"15\"]", "counts[2]"},
        {"[18, 0, 15]", "[18, 0, 9007199254740992]", "counts[2]"},
        {"[18, 0, 15]", "[18, 1, 15]", "layer 1"},
        {"[18, 0, 15]", "[17, 0, 16]", "not the sum of prefill and decode"},
        {"[9.3046875, 0,", "[9.3046875, 1,", "layer 1"},
        {"[9.3046875, 0,", "[1e99, 0,", "weight"},
        {"[9.3046875, 0,", "[true, 0,", "weights[0]"},
        {"\"steps\": 4", "\"steps\": 0", "steps"},
        {"\"distinct\": 5", "\"distinct\": 500", "distinct"},
    };
    size_t length;
    char *text = make_text(&length);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refused(text, cases[i].from, cases[i].to, cases[i].says);
    free(text);
}

/* Parses a copy that ends where its memory does; what is accepted must be sound. */
static bool survives(const char *text, size_t length)
{
    char *copy = malloc(length > 0 ? length : 1);
    assert_non_null(copy);
    memcpy(copy, text, length);
    usage_file file;
    xmoe_error error = {0};
    bool accepted = usage_file_parse(copy, length, &file, &error) == XMOE_OK;
    free(copy);
    if (accepted) {
        size_t size;
        free(print(&file, &size));
    } else {
        assert_true(error.message[0] != '\0');
    }
    usage_file_free(&file);
    return accepted;
}

static void a_part_is_refused(void **state)
{
    (void)state;
    size_t length;
    char *text = make_text(&length);
    assert_true(survives(text, length));
    assert_true(survives(text, length - 1)); /* without its newline */
    for (size_t part = 0; part < length - 1; part++)
        assert_false(survives(text, part));
    free(text);
}

static void damage_does_no_harm(void **state)
{
    (void)state;
    static const char bytes[] = "\0 \"[]{},:-.0123456789eE\\u\x7F\xFF";
    size_t length, accepted = 0;
    char *text = make_text(&length);
    for (size_t at = 0; at < length; at++) {
        char kept = text[at];
        for (size_t bit = at % 5; bit < 8; bit += 5) {
            text[at] = (char)(kept ^ (1 << bit));
            accepted += survives(text, length);
        }
        for (size_t i = at % 9; i < sizeof bytes - 1; i += 9) {
            text[at] = bytes[i];
            accepted += survives(text, length);
        }
        text[at] = kept;
    }
    assert_true(accepted > 0); /* such as spaces and unknown names */
    free(text);
}

static void deep_nesting_is_refused(void **state)
{
    (void)state;
    enum { DEEP = 1 << 20 };
    char *text = malloc(DEEP);
    assert_non_null(text);
    memset(text, '[', DEEP);
    assert_false(survives(text, DEEP));
    for (size_t i = 0; i < DEEP; i += 5)
        memcpy(text + i, "{\"a\":", i + 5 <= DEEP ? 5 : DEEP - i);
    assert_false(survives(text, DEEP));
    free(text);
}

static void names_become_ids(void **state)
{
    (void)state;
    static const struct {
        const char *path, *id;
    } cases[] = {{"/tmp/monday.json", "monday"},    {"monday", "monday"},
                 {"a b/c d\xC3\xA9.json", "c-d--"}, {".json", "-json"},
                 {"v1.2_x-y.json", "v1.2_x-y"},     {"x/", "usage"}};
    usage_file file = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        usage_file_set_id(&file, cases[i].path);
        assert_string_equal(file.id, cases[i].id);
        assert_true(usage_id_is_valid(file.id));
    }
    char path[200];
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    usage_file_set_id(&file, path);
    assert_int_equal(strlen(file.id), 64);
    assert_true(usage_id_is_valid(file.id));
    assert_false(usage_id_is_valid(""));
    assert_false(usage_id_is_valid("a/b"));
    assert_false(usage_id_is_valid(path));
    usage_file_set_model(&file, "models/xmoe-small.gguf");
    assert_string_equal(file.model, "xmoe-small");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_snapshot_is_read_back), cmocka_unit_test(a_plain_usage_is_read_back),
        cmocka_unit_test(what_is_wrong_is_said),   cmocka_unit_test(a_part_is_refused),
        cmocka_unit_test(damage_does_no_harm),     cmocka_unit_test(deep_nesting_is_refused),
        cmocka_unit_test(names_become_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
