/*
 * test_model_load.c - a file that is not what it should be is refused with a message that names the
 * key or tensor. Hostile files are made from one good file by dropping, replacing and adding keys
 * and tensors, and by flipping bytes. What a good file loads as: test_model.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "model_fixture.h"

#include "base/memory.h"
#include "base/random.h"
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- edits of the good file ------------------------------------------------------------------- */

typedef enum { KEEP, DROP, AS_U32, AS_F32, AS_STRING } key_edit;

typedef struct {
    const char *key;
    key_edit edit;
    double number;
    const char *text;
    const char *expected; /* in the message, besides the key; NULL: only the key */
    bool other;           /* the message names something else than the key */
} key_case;

typedef struct {
    const char *name;             /* tensor to be changed; NULL: none */
    bool drop;                    /* or: */
    int dimension;                /* this dimension */
    int64_t change;               /* grows by this */
    const xm_weight_traits *type; /* NULL: as it is */
    const char *extra;            /* a tensor to be added at the end; NULL: none */
} tensor_edit;

static void write_edited_key(xm_gguf_writer *writer, const key_case *edit)
{
    if (edit->edit == AS_U32)
        xm_gguf_writer_u32(writer, edit->key, (uint32_t)edit->number);
    if (edit->edit == AS_F32)
        xm_gguf_writer_f32(writer, edit->key, (float)edit->number);
    if (edit->edit == AS_STRING)
        xm_gguf_writer_string(writer, edit->key, edit->text);
}

/* Describes (bytes NULL) or writes zeros for all tensors under the edit. */
static void put_tensors(xm_gguf_writer *writer, const xm_gguf *from, const tensor_edit *edit,
                        bool describe)
{
    static const uint64_t extra_shape[1] = {4};
    for (uint64_t i = 0; i < xm_gguf_tensor_count(from); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(from, i);
        uint64_t dimensions[4];
        const xm_weight_traits *traits = tensor->traits;
        char name[80];
        snprintf(name, sizeof name, "%.*s", (int)tensor->name.length, tensor->name.data);
        memcpy(dimensions, tensor->shape, sizeof dimensions);
        bool chosen = edit->name != NULL && strcmp(name, edit->name) == 0;
        if (chosen && edit->drop)
            continue;
        if (chosen && edit->type != NULL)
            traits = edit->type;
        if (chosen)
            dimensions[edit->dimension] += (uint64_t)edit->change;
        if (describe) {
            xm_gguf_writer_tensor(writer, name, traits->type, tensor->dimensions, dimensions);
            continue;
        }
        size_t elements = dimensions[0] * dimensions[1] * dimensions[2];
        size_t bytes = elements / traits->block_elements * traits->block_bytes;
        void *zeros = calloc(bytes, 1);
        xm_gguf_writer_data(writer, zeros, bytes);
        free(zeros);
    }
    if (edit->extra != NULL && describe)
        xm_gguf_writer_tensor(writer, edit->extra, XM_TYPE_F32, 1, extra_shape);
    if (edit->extra != NULL && !describe)
        xm_gguf_writer_data(writer, (const float[4]){0}, 4 * sizeof(float));
}

static void write_bad_model(const key_case *key, const tensor_edit *tensor)
{
    static const tensor_edit no_edit = {0};
    xm_gguf *from;
    xm_gguf_writer *writer;
    xmoe_error error;
    const char *skip[] = {key != NULL ? key->key : NULL, NULL};
    assert_int_equal(xm_gguf_open(model_good, &from, &error), XMOE_OK);
    assert_int_equal(xm_gguf_writer_create(model_bad, &writer, &error), XMOE_OK);
    xm_gguf_writer_copy_keys(writer, from, skip);
    if (key != NULL)
        write_edited_key(writer, key);
    put_tensors(writer, from, tensor != NULL ? tensor : &no_edit, true);
    xm_gguf_writer_begin(writer);
    put_tensors(writer, from, tensor != NULL ? tensor : &no_edit, false);
    if (xm_gguf_writer_finish(writer, &error) != XMOE_OK)
        fail_msg("%s", error.message);
    xm_gguf_close(from);
}

static void assert_refused(const char *first, const char *second)
{
    xmoe_model *model = (xmoe_model *)&model_shape; /* must become NULL */
    xmoe_error error;
    xmoe_status status = model_load(model_bad, &model, &error);
    if (status == XMOE_OK)
        fail_msg("a model with a wrong %s was loaded", first);
    assert_null(model);
    assert_int_equal(status, error.status);
    if (strstr(error.message, first) == NULL || strstr(error.message, second) == NULL)
        fail_msg("\"%s\" does not name \"%s\" and \"%s\"", error.message, first, second);
}

/* --- keys ------------------------------------------------------------------------------------- */

static const key_case key_cases[] = {
    {"general.architecture", DROP, 0, NULL, "missing", false},
    {"general.architecture", AS_STRING, 0, "gpt2", "gpt2", false},
    {"general.architecture", AS_U32, 1, NULL, "expected string", false},
    {"general.name", AS_U32, 1, NULL, "expected string", false},
    {"xmoe.context_length", DROP, 0, NULL, "missing", false},
    {"xmoe.context_length", AS_STRING, 0, "48", "expected u32", false},
    {"xmoe.context_length", AS_U32, 0, NULL, "is 0, expected 1 to 1048576", false},
    {"xmoe.context_length", AS_U32, 4294967295.0, NULL, "is 4294967295", false},
    {"xmoe.context_length", AS_U32, 47, NULL, "position_embd.weight", true},
    {"xmoe.embedding_length", DROP, 0, NULL, "missing", false},
    {"xmoe.embedding_length", AS_F32, 64, NULL, "expected u32", false},
    {"xmoe.embedding_length", AS_U32, 0, NULL, "is 0", false},
    {"xmoe.embedding_length", AS_U32, 65537, NULL, "is 65537", false},
    {"xmoe.embedding_length", AS_U32, 32, NULL, "has shape [64, 290], expected [32, 290]", true},
    {"xmoe.block_count", DROP, 0, NULL, "missing", false},
    {"xmoe.block_count", AS_U32, 0, NULL, "is 0", false},
    {"xmoe.block_count", AS_U32, 257, NULL, "is 257, expected 1 to 256", false},
    {"xmoe.block_count", AS_U32, 3, NULL, "tensor 'blk.3.", true},
    {"xmoe.block_count", AS_U32, 5, NULL, "tensor 'blk.4.attn_norm.weight' is missing", true},
    {"xmoe.attention.head_count", DROP, 0, NULL, "missing", false},
    {"xmoe.attention.head_count", AS_U32, 0, NULL, "is 0", false},
    {"xmoe.attention.head_count", AS_U32, 65, NULL, "is 65", false},
    {"xmoe.attention.head_count", AS_U32, 5, NULL, "does not divide", false},
    {"xmoe.attention.layer_norm_epsilon", DROP, 0, NULL, "missing", false},
    {"xmoe.attention.layer_norm_epsilon", AS_U32, 1, NULL, "expected f32", false},
    {"xmoe.attention.layer_norm_epsilon", AS_F32, 0, NULL, "above 0", false},
    {"xmoe.attention.layer_norm_epsilon", AS_F32, (double)NAN, NULL, "above 0", false},
    {"xmoe.feed_forward_length", DROP, 0, NULL, "missing", false},
    {"xmoe.feed_forward_length", AS_U32, 0, NULL, "is 0", false},
    {"xmoe.feed_forward_length", AS_U32, 64, NULL, "'blk.0.ffn_up.weight'", true},
    {"xmoe.expert_count", DROP, 0, NULL, "missing", false},
    {"xmoe.expert_count", AS_U32, 0, NULL, "is 0", false},
    {"xmoe.expert_count", AS_U32, 1025, NULL, "is 1025, expected 1 to 1024", false},
    {"xmoe.expert_count", AS_U32, 7, NULL, "'blk.1.ffn_gate_inp.weight'", true},
    {"xmoe.expert_feed_forward_length", DROP, 0, NULL, "missing", false},
    {"xmoe.expert_feed_forward_length", AS_U32, 0, NULL, "is 0", false},
    {"xmoe.expert_feed_forward_length", AS_U32, 64, NULL, "'blk.1.ffn_up_exps.weight'", true},
    {"xmoe.router.type", AS_STRING, 0, "none",
     "is 'none', expected threshold, top_k, dense, sigmoid, base, hash or recurrent", false},
    {"xmoe.router.type", AS_STRING, 0, "", "is ''", false},
    {"xmoe.router.type", AS_STRING, 0, "sigmoids", "is 'sigmoids'", false},
    {"xmoe.router.type", AS_STRING, 0, "a router type with a very long name", "is 'a router",
     false},
    {"xmoe.router.type", AS_U32, 1, NULL, "expected string", false},
    {"xmoe.router.type", AS_STRING, 0, "top_k", "xmoe.expert_used_count", true},
    {"xmoe.router.threshold", DROP, 0, NULL, "missing", false},
    {"xmoe.router.threshold", AS_F32, 0, NULL, "is 0", false},
    {"xmoe.router.threshold", AS_F32, 1.5, NULL, "is 1.5", false},
    {"xmoe.router.threshold", AS_F32, (double)NAN, NULL, "nan", false},
    {"xmoe.router.threshold", AS_U32, 1, NULL, "expected f32", false},
    {"xmoe.router.normalize", AS_F32, 1, NULL, "expected bool", false},
    {"xmoe.router.views", AS_U32, 0, NULL, "is 0, expected 1 to 64", false},
    {"xmoe.router.views", AS_U32, 65, NULL, "is 65", false},
    {"xmoe.router.views", AS_U32, 4294967295.0, NULL, "is 4294967295", false},
    {"xmoe.router.views", AS_F32, 2, NULL, "expected u32", false},
    {"xmoe.router.views", AS_U32, 2, NULL, "'xmoe.router.view_temperature' is missing", true},
    {"xmoe.router.view_temperature", AS_F32, 0, NULL, "is 0, expected above 0", false},
    {"xmoe.router.view_temperature", AS_F32, -0.1, NULL, "is -0.1", false},
    {"xmoe.router.view_temperature", AS_F32, (double)NAN, NULL, "nan", false},
    {"xmoe.router.view_temperature", AS_F32, (double)INFINITY, NULL, "is inf", false},
    {"xmoe.router.view_temperature", AS_U32, 1, NULL, "expected f32", false},
    {"xmoe.expert_used_count", AS_U32, 7, NULL, "is 7, expected 1 to 6", false},
    {"tokenizer.ggml.model", DROP, 0, NULL, "missing", false},
    {"tokenizer.ggml.tokens", DROP, 0, NULL, "missing", false},
    {"tokenizer.ggml.eos_token_id", AS_U32, 290, NULL, "290", false},
};

static void wrong_keys_are_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof key_cases / sizeof *key_cases; i++) {
        const key_case *edit = &key_cases[i];
        write_bad_model(edit, NULL);
        assert_refused(edit->other ? "" : edit->key, edit->expected);
    }
}

static void absent_router_type_means_threshold(void **state)
{
    (void)state;
    const key_case edit = {.key = "xmoe.router.type", .edit = DROP};
    xmoe_model *model;
    xmoe_error error;
    write_bad_model(&edit, NULL);
    assert_int_equal(model_load(model_bad, &model, &error), XMOE_OK);
    assert_int_equal(model->info.router.type, XMOE_ROUTER_THRESHOLD);
    assert_float_equal(model->info.router.threshold, 0.75, 0.0);
    xmoe_model_free(model);
}

/* --- tensors ---------------------------------------------------------------------------------- */

static bool is_gate(const char *name)
{
    return strstr(name, "ffn_gate_inp") != NULL;
}

/* Every tensor in turn: missing, of another shape, of another type. */
static void wrong_tensors_are_named(void **state)
{
    (void)state;
    xm_gguf *file;
    assert_int_equal(xm_gguf_open(model_good, &file, NULL), XMOE_OK);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(file); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(file, i);
        char name[80];
        snprintf(name, sizeof name, "%.*s", (int)tensor->name.length, tensor->name.data);
        bool is_f32 = tensor->traits->type == XM_TYPE_F32;

        if (strcmp(name, "output.weight") != 0) { /* without it, outputs are tied: below */
            write_bad_model(NULL, &(tensor_edit){.name = name, .drop = true});
            assert_refused(is_gate(name) ? "ffn_up.weight" : name, "is missing");
        }
        for (int dimension = 0; dimension < tensor->dimensions; dimension++) {
            int64_t block = dimension == 0 ? 32 : 1;
            write_bad_model(NULL,
                            &(tensor_edit){.name = name, .dimension = dimension, .change = block});
            assert_refused(name, "has shape");
        }
        if (is_f32 && strcmp(name, "position_embd.weight") != 0) {
            const xm_weight_traits *f16 = xm_weight_traits_of(XM_TYPE_F16);
            write_bad_model(NULL, &(tensor_edit){.name = name, .type = f16});
            assert_refused(name, "has type F16, expected F32");
        }
    }
    xm_gguf_close(file);
}

static void unknown_tensors_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"blk.0.attn_rot.weight", "blk.4.attn_norm.weight",
                                        "blk.1.ffn_up.weight", "rope_freqs.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        write_bad_model(NULL, &(tensor_edit){.extra = names[i]});
        assert_refused(names[i], "not part of");
    }
}

static void absent_output_is_tied(void **state)
{
    (void)state;
    xmoe_model *model;
    xmoe_error error;
    write_bad_model(NULL, &(tensor_edit){.name = "output.weight", .drop = true});
    assert_int_equal(model_load(model_bad, &model, &error), XMOE_OK);
    assert_ptr_equal(model->output.weight.data, model->token_embedding.data);
    xmoe_model_free(model);
}

/* Position embeddings of any type become F32; matrices may each have a type of their own. */
static void types_may_be_mixed(void **state)
{
    (void)state;
    static const char *const names[] = {"position_embd.weight", "blk.0.ffn_up.weight",
                                        "blk.1.ffn_down_exps.weight", "output.weight"};
    size_t types;
    const xm_weight_traits *traits = xm_weight_traits_all(&types);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        for (size_t t = 0; t < types; t++) {
            xmoe_model *model;
            xmoe_error error;
            if (64 % traits[t].block_elements != 0) /* the width of the model */
                continue;
            write_bad_model(NULL, &(tensor_edit){.name = names[i], .type = &traits[t]});
            if (model_load(model_bad, &model, &error) != XMOE_OK)
                fail_msg("%s", error.message);
            xmoe_model_free(model);
        }
}

/* --- bytes ------------------------------------------------------------------------------------ */

static void write_file(const char *path, const uint8_t *bytes, size_t size)
{
    FILE *stream = fopen(path, "wb");
    assert_non_null(stream);
    assert_int_equal(fwrite(bytes, 1, size, stream), size);
    fclose(stream);
}

static uint8_t *find_bytes(uint8_t *bytes, size_t size, const char *text)
{
    uint8_t *found = memmem(bytes, size, text, strlen(text));
    assert_non_null(found);
    return found;
}

static void doubled_tensor_is_named(void **state)
{
    (void)state;
    size_t size;
    uint8_t *bytes = model_read_file(model_good, &size);
    memcpy(find_bytes(bytes, size, "blk.2.attn_norm.bias"), "blk.0.attn_norm.bias", 20);
    write_file(model_bad, bytes, size);
    free(bytes);
    assert_refused("blk.0.attn_norm.bias", "");
}

static void unread_type_is_named(void **state)
{
    (void)state;
    const char *name = "blk.0.attn_output.weight";
    const uint32_t iq2_xxs = 16;
    size_t size;
    uint8_t *bytes = model_read_file(model_good, &size);
    /* After the name: number of dimensions, two of them, type. */
    memcpy(find_bytes(bytes, size, name) + strlen(name) + 4 + 16, &iq2_xxs, sizeof iq2_xxs);
    write_file(model_bad, bytes, size);
    free(bytes);
    assert_refused(name, "");
}

/* Bytes of the header flipped at random: the file is refused with a message or loaded; nothing else
 * (the sanitizers watch). */
static void flipped_bytes_do_no_harm(void **state)
{
    (void)state;
    size_t size, refused = 0;
    uint8_t *bytes = model_read_file(model_good, &size);
    size_t header = (size_t)(find_bytes(bytes, size, "output.weight") - bytes) + 64;
    for (uint64_t round = 0; round < 1500; round++) {
        uint8_t old[3];
        size_t at[3];
        xmoe_model *model;
        xmoe_error error;
        for (uint64_t i = 0; i < 3; i++) {
            at[i] = (size_t)(xm_random_bits(1, round, 2 * i) % header);
            old[i] = bytes[at[i]];
            bytes[at[i]] ^= (uint8_t)(1 + xm_random_bits(1, round, 2 * i + 1) % 255);
        }
        write_file(model_bad, bytes, size);
        if (model_load(model_bad, &model, &error) == XMOE_OK) {
            xmoe_model_free(model);
        } else {
            refused++;
            assert_true(error.message[0] != '\0');
            assert_null(model);
        }
        for (int i = 2; i >= 0; i--)
            bytes[at[i]] = old[i];
    }
    free(bytes);
    assert_true(refused > 500);
}

/* --- text and lack of memory ------------------------------------------------------------------ */

/* A file without general.name goes by its own; text that is not UTF-8 becomes so. */
static void names_are_text(void **state)
{
    (void)state;
    xmoe_model *model;
    xmoe_error error;
    write_bad_model(&(key_case){.key = "general.name", .edit = DROP}, NULL);
    assert_int_equal(model_load(model_bad, &model, &error), XMOE_OK);
    assert_non_null(strstr(model_bad, model->info.name));
    assert_null(strchr(model->info.name, '/'));
    assert_null(strstr(model->info.name, ".gguf"));
    xmoe_model_free(model);
    write_bad_model(&(key_case){.key = "general.name", .edit = AS_STRING, .text = "a\xff z"}, NULL);
    assert_int_equal(model_load(model_bad, &model, &error), XMOE_OK);
    assert_string_equal(model->info.name, "a\xef\xbf\xbd z");
    xmoe_model_free(model);
}

/* Each allocation of a load fails once; the load says so and leaves nothing behind. */
static void lack_of_memory_is_reported(void **state)
{
    (void)state;
    const xmoe_model_options options = {.threads = 2};
    int32_t failures = 0;
    for (xmoe_status status = XMOE_ERROR_MEMORY; status != XMOE_OK; failures++) {
        xmoe_model *model;
        xmoe_error error = {0};
        xm_memory_fail_after(failures);
        status = xmoe_model_load(model_good, &options, &model, &error);
        xm_memory_fail_after(-1);
        if (status != XMOE_OK && status != XMOE_ERROR_MEMORY)
            fail_msg("allocation %d: %s", failures, error.message);
        assert_true((model != NULL) == (status == XMOE_OK));
        xmoe_model_free(model);
    }
    assert_true(failures > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_keys_are_named),
        cmocka_unit_test(absent_router_type_means_threshold),
        cmocka_unit_test(wrong_tensors_are_named),
        cmocka_unit_test(unknown_tensors_are_refused),
        cmocka_unit_test(absent_output_is_tied),
        cmocka_unit_test(types_may_be_mixed),
        cmocka_unit_test(doubled_tensor_is_named),
        cmocka_unit_test(unread_type_is_named),
        cmocka_unit_test(flipped_bytes_do_no_harm),
        cmocka_unit_test(names_are_text),
        cmocka_unit_test(lack_of_memory_is_reported),
    };
    return cmocka_run_group_tests(tests, model_write_good, model_remove_files);
}
