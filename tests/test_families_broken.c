/*
 * test_families_broken.c - files of each family with one thing wrong: every key and tensor missing,
 * of another type, out of range or of another shape. Loading fails with a message that names the
 * key or tensor, or succeeds where the format allows what the file says, and then runs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/random.h"
#include "family_fixture.h"
#include "model_fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A model whose file is fine but for what one test changes in it. */
static family_file good_file(void)
{
    return (family_file){.type = xm_weight_traits_of(XM_TYPE_Q4_0)};
}

/* Loads family_path; true if that worked, and then a few tokens ran too. */
static bool loads_and_runs(xmoe_error *error)
{
    const xmoe_model_options options = {.threads = 1};
    const int32_t tokens[] = {1, 2, 3};
    xmoe_model *model = NULL;
    *error = (xmoe_error){0};
    if (xmoe_model_load(family_path, &options, &model, error) != XMOE_OK) {
        assert_null(model);
        return false;
    }
    family_result result = family_run(model, tokens, 3, NULL);
    family_result_free(&result);
    xmoe_model_free(model);
    return true;
}

static bool survives(const family_fixture *f, const family_file *file, xmoe_error *error)
{
    family_write(f, file);
    return loads_and_runs(error);
}

/* what: the change, for the message of a failure. */
static void expect_named(const family_fixture *f, const char *what, const char *name,
                         const xmoe_error *error)
{
    if (strstr(error->message, name) == NULL)
        fail_msg("%s, %s of %s: '%s' does not name it", f->name, what, name, error->message);
}

static bool ends_in(const char *name, const char *end)
{
    size_t length = strlen(name), end_length = strlen(end);
    return length >= end_length && strcmp(name + length - end_length, end) == 0;
}

static bool is_one_of(const char *name, const char *const *ends)
{
    for (; *ends != NULL; ends++)
        if (ends_in(name, *ends))
            return true;
    return false;
}

static void for_each_family(void (*check)(const family_fixture *))
{
    for (int32_t i = 0; family_names[i] != NULL; i++) {
        family_fixture *f = family_read(family_names[i]);
        check(f);
        family_free(f);
    }
}

/* --- keys ------------------------------------------------------------------------------------- */

/* Without these no file of any family loads. */
static const char *const required_keys[] = {
    "general.architecture",
    ".context_length",
    ".embedding_length",
    ".block_count",
    ".attention.head_count",
    ".attention.layer_norm_rms_epsilon",
    NULL,
};

/* A key that is not there may be missed where something else does not fit without it: a tensor's
 * shape, a tensor that no other key speaks of, or another key's range. */
static void missing_key(const family_fixture *f)
{
    for (int32_t i = 0; i < f->key_count; i++) {
        const char *name = f->keys[i].name;
        family_file file = good_file();
        xmoe_error error;
        file.drop = name;
        bool works = survives(f, &file, &error);
        bool required = is_one_of(name, required_keys);
        if (required && works)
            fail_msg("%s loads without %s", f->name, name);
        if (required)
            expect_named(f, "lack", name, &error);
        else if (!works && strstr(error.message, name) == NULL &&
                 strstr(error.message, "tensor '") == NULL &&
                 strstr(error.message, "key '") == NULL)
            fail_msg("%s without %s: '%s'", f->name, name, error.message);
    }
}

static void keys_may_be_missing(void **state)
{
    (void)state;
    for_each_family(missing_key);
}

/* Of another type: a text, or a number where there is a text. All are errors that name the key. */
static void retyped_key(const family_fixture *f)
{
    for (int32_t i = 0; i < f->key_count; i++) {
        family_key key = f->keys[i];
        family_file file = good_file();
        xmoe_error error;
        file.key = &key;
        key.type = key.type == FAMILY_STRING ? FAMILY_U32 : FAMILY_STRING;
        snprintf(key.text, sizeof key.text, "12");
        if (!survives(f, &file, &error))
            expect_named(f, "another type", key.name, &error);
        else if (!ends_in(key.name, ".vocab_size")) /* which the engine does not need */
            fail_msg("%s loads with %s of another type", f->name, key.name);
    }
}

static void types_of_keys_are_checked(void **state)
{
    (void)state;
    for_each_family(retyped_key);
}

static void absurd_whole_number(const family_fixture *f, const family_key *good)
{
    const double numbers[] = {0,   1,   2,     3,          good->number + 1, good->number * 2,
                              255, 256, 65537, 2147483647, 2147483648.0,     4294967295.0};
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) {
        family_key key = *good;
        family_file file = good_file();
        xmoe_error error;
        file.key = &key;
        key.number = numbers[n];
        if (!survives(f, &file, &error) && strstr(error.message, key.name) == NULL &&
            strstr(error.message, "tensor '") == NULL && strstr(error.message, "key '") == NULL)
            fail_msg("%s with %s = %.0f: '%s'", f->name, key.name, key.number, error.message);
    }
}

static void absurd_number(const family_fixture *f, const family_key *good)
{
    const double numbers[] = {0.0, -1.0, 1e-30, 1e30, (double)INFINITY, (double)NAN};
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) {
        family_key key = *good;
        family_file file = good_file();
        xmoe_error error;
        file.key = &key;
        key.number = numbers[n];
        bool works = survives(f, &file, &error);
        if (works && !(numbers[n] >= 0.0 && numbers[n] <= 1e30))
            fail_msg("%s loads with %s = %g", f->name, key.name, key.number);
        if (!works)
            expect_named(f, "an absurd number", key.name, &error);
    }
}

static void absurd_key(const family_fixture *f)
{
    for (int32_t i = 0; i < f->key_count; i++) {
        if (f->keys[i].type == FAMILY_U32)
            absurd_whole_number(f, &f->keys[i]);
        if (f->keys[i].type == FAMILY_F32)
            absurd_number(f, &f->keys[i]);
    }
}

static void absurd_numbers_are_refused_or_run(void **state)
{
    (void)state;
    for_each_family(absurd_key);
}

/* --- tensors ---------------------------------------------------------------------------------- */

/* Tied embeddings have no output.weight; the others are not in every model of their family. */
static bool may_be_missing(const family_fixture *f, const char *name)
{
    static const char *const anywhere[] = {"output.weight", "rope_freqs.weight", "exp_probs_b.bias",
                                           NULL};
    static const char *const llama[] = {"attn_q.bias", "attn_k.bias", "attn_v.bias",
                                        "attn_output.bias", NULL};
    return strcmp(name, anywhere[0]) == 0 || is_one_of(name, anywhere + 1) ||
           (strncmp(f->name, "llama", 5) == 0 && is_one_of(name, llama));
}

static void missing_tensor(const family_fixture *f)
{
    for (int32_t i = 0; i < f->tensor_count; i++) {
        const char *name = f->tensors[i].name;
        family_file file = good_file();
        xmoe_error error;
        file.drop = name;
        bool works = survives(f, &file, &error);
        if (works != may_be_missing(f, name))
            fail_msg("%s without tensor %s: %s", f->name, name, works ? "loads" : error.message);
        /* Old and new files of DeepSeek-V2, and those of LongRoPE, are told apart by a tensor. */
        if (!works && strstr(name, "attn_kv_b") == NULL && strstr(name, "rope_factors") == NULL)
            expect_named(f, "lack", name, &error);
    }
}

static void missing_tensors_are_named(void **state)
{
    (void)state;
    for_each_family(missing_tensor);
}

static void reshaped_tensor(const family_fixture *f)
{
    for (int32_t i = 0; i < f->tensor_count; i++) {
        const family_tensor *tensor = &f->tensors[i];
        for (int32_t change = -1; change <= 1; change += 2)
            for (int32_t d = 0; d < tensor->dimensions; d++) {
                family_file file = good_file();
                xmoe_error error;
                if (tensor->shape[d] == 1 && change < 0)
                    continue;
                file.tensor = tensor->name;
                file.dimension = d;
                file.change = change;
                if (survives(f, &file, &error))
                    fail_msg("%s loads with dimension %d of %s changed by %d", f->name, d,
                             tensor->name, change);
                expect_named(f, "another shape", tensor->name, &error);
                expect_named(f, "another shape", "shape", &error);
            }
    }
}

static void shapes_are_checked(void **state)
{
    (void)state;
    for_each_family(reshaped_tensor);
}

/* Matrices may have any type; norms, biases and the like are F32. */
static void retyped_tensor(const family_fixture *f)
{
    for (int32_t i = 0; i < f->tensor_count; i++) {
        const family_tensor *tensor = &f->tensors[i];
        family_file file = good_file();
        xmoe_error error;
        bool matrix = tensor->dimensions > 1 && ends_in(tensor->name, ".weight");
        file.tensor = tensor->name;
        file.retype = xm_weight_traits_of(XM_TYPE_F16);
        if (survives(f, &file, &error) != matrix)
            fail_msg("%s with %s in F16: %s", f->name, tensor->name,
                     matrix ? error.message : "loads");
        if (!matrix)
            expect_named(f, "another type", tensor->name, &error);
    }
}

static void types_of_tensors_are_checked(void **state)
{
    (void)state;
    for_each_family(retyped_tensor);
}

/* --- bytes ------------------------------------------------------------------------------------ */

static char *read_good_file(const family_fixture *f, size_t *length)
{
    family_file good = good_file();
    family_write(f, &good);
    return (char *)model_read_file(family_path, length);
}

static void write_bytes(const char *bytes, size_t length)
{
    FILE *file = fopen(family_path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    fclose(file);
}

static void truncated_file(const family_fixture *f)
{
    enum { CUTS = 16 };
    size_t length;
    char *bytes = read_good_file(f, &length);
    for (size_t cut = 0; cut < CUTS; cut++) {
        xmoe_error error;
        /* Squares: many cuts are in keys and descriptions of tensors, which are short. */
        write_bytes(bytes, (length - 1) * cut * cut / ((CUTS - 1) * (CUTS - 1)));
        if (loads_and_runs(&error))
            fail_msg("%s loads when cut at %zu of %d", f->name, cut, CUTS);
        expect_named(f, "a cut", family_path, &error);
    }
    free(bytes);
}

static void truncated_files_are_refused(void **state)
{
    (void)state;
    for_each_family(truncated_file);
}

/* One byte is another one: nothing breaks, whatever it means. */
static void flipped_file(const family_fixture *f)
{
    enum { FLIPS = 40, HEAD = 24 * 1024 }; /* keys, vocabulary and descriptions */
    size_t length;
    char *bytes = read_good_file(f, &length);
    assert_true(length > HEAD);
    for (uint64_t i = 0; i < FLIPS; i++) {
        uint64_t bits = xm_random_bits(f->seed, i, 0);
        size_t at = (size_t)(bits % (i % 2 == 0 ? HEAD : 1024));
        xmoe_error error;
        bytes[at] ^= (char)(1 + (bits >> 57));
        write_bytes(bytes, length);
        if (!loads_and_runs(&error))
            assert_true(error.message[0] != '\0');
        bytes[at] ^= (char)(1 + (bits >> 57));
    }
    free(bytes);
}

static void flipped_bytes_do_no_harm(void **state)
{
    (void)state;
    for_each_family(flipped_file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_may_be_missing),
        cmocka_unit_test(types_of_keys_are_checked),
        cmocka_unit_test(absurd_numbers_are_refused_or_run),
        cmocka_unit_test(missing_tensors_are_named),
        cmocka_unit_test(shapes_are_checked),
        cmocka_unit_test(types_of_tensors_are_checked),
        cmocka_unit_test(truncated_files_are_refused),
        cmocka_unit_test(flipped_bytes_do_no_harm),
    };
    return cmocka_run_group_tests(tests, family_make_path, family_remove_path);
}
