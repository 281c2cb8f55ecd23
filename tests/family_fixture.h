/*
 * family_fixture.h - tiny models of each family from tests/fixtures/families (make_families.py
 * there says what their lines mean): read, written as GGUF in any weight type or with one thing
 * wrong, and run.
 *
 * Whatever cannot be done fails the test that asked for it.
 */
#ifndef XM_TESTS_FAMILY_FIXTURE_H
#define XM_TESTS_FAMILY_FIXTURE_H

#include "format/gguf.h"
#include "model/forward.h"
#include "model/model.h"

enum {
    FAMILY_MAX_KEYS = 48,
    FAMILY_MAX_TENSORS = 96,
    FAMILY_SEQUENCES = 2,
    FAMILY_MAX_TOKENS = 64,
    FAMILY_MAX_LOGITS = 8, /* positions with logits */
    FAMILY_MAX_MOE_LAYERS = 4,
    FAMILY_MAX_TOP = 8,
};

typedef enum { FAMILY_U32, FAMILY_F32, FAMILY_BOOL, FAMILY_STRING } family_key_type;

typedef struct {
    char name[80];
    family_key_type type;
    double number; /* bool: 0 or 1 */
    char text[32];
} family_key;

typedef struct {
    char name[64];
    int32_t dimensions;
    uint64_t shape[4]; /* contiguous first; 1 beyond dimensions */
    float scale, offset;
    float *values; /* of tensors that are not random; else NULL */
} family_tensor;

typedef struct {
    int32_t moe_layers;
    int32_t top[FAMILY_MAX_MOE_LAYERS]; /* experts of a token */
    int32_t expert[FAMILY_MAX_MOE_LAYERS][FAMILY_MAX_TOKENS][FAMILY_MAX_TOP]; /* by rank */
    float weight[FAMILY_MAX_MOE_LAYERS][FAMILY_MAX_TOKENS][FAMILY_MAX_TOP];   /* of runs only */
} family_choices;

typedef struct {
    int32_t count;
    int32_t positions[FAMILY_MAX_LOGITS];
    float *rows[FAMILY_MAX_LOGITS]; /* [vocabulary] of each of those positions */
} family_logits;

typedef struct {
    int32_t token_count;
    int32_t tokens[FAMILY_MAX_TOKENS];
    family_choices choices;
    family_logits logits;
} family_sequence;

/* Logits of the first sequence where tokens take fewer experts than the model was trained with. */
typedef struct {
    int32_t experts; /* 0: there are none */
    family_logits logits;
} family_fewer;

typedef struct {
    char name[32];
    uint64_t seed;
    int32_t vocabulary;
    family_key keys[FAMILY_MAX_KEYS];
    int32_t key_count;
    family_tensor tensors[FAMILY_MAX_TENSORS];
    int32_t tensor_count;
    family_sequence sequences[FAMILY_SEQUENCES]; /* those of NAME-wide have no tokens */
    family_fewer fewer;
} family_fixture;

/* All fixtures that have sequences; NULL-terminated. */
extern const char *const family_names[];
/* Those with rows of 256; NULL-terminated. */
extern const char *const family_wide_names[];

family_fixture *family_read(const char *name);
void family_free(family_fixture *fixture);

/* --- files ------------------------------------------------------------------------------------ */

/* The path of a file in memory, where there is such a place, for this process; group fixtures. */
extern char family_path[64];
int family_make_path(void **state);
int family_remove_path(void **state);

typedef struct {
    const xm_weight_traits *type; /* of matrices whose rows are whole blocks of it, F16 of the
                                     others; NULL: F32 */
    bool in_f32;                  /* the values that these types hold, but written as F32 */

    /* One thing wrong. */
    const char *drop;               /* a key or tensor that is not there */
    const family_key *key;          /* instead of the one of its name, or besides all */
    const char *tensor;             /* this one has: */
    int32_t dimension;              /* this dimension */
    int64_t change;                 /* longer by this; */
    const xm_weight_traits *retype; /* this type, if not NULL */
} family_file;

/* Writes family_path. */
void family_write(const family_fixture *fixture, const family_file *file);

/* --- runs ------------------------------------------------------------------------------------- */

/* Loads family_path for one instruction set (NULL: the best). */
xmoe_model *family_load(const char *isa);

typedef struct {
    int32_t rows;
    float *logits; /* [rows][vocabulary] */
    family_choices choices;
} family_result;

typedef struct {
    const xmoe_routing *routing; /* NULL: the model's */
    int32_t chunk;               /* tokens a step; 0: all in one */
    int32_t threads;             /* 0 and 1: the caller's */
    bool kv_f16;                 /* keys and values in F16, as a server has them, else F32 */
} family_run_options;

/* A sequence alone; options NULL: all 0. */
family_result family_run(const xmoe_model *model, const int32_t *tokens, int32_t count,
                         const family_run_options *options);
void family_result_free(family_result *result);

#endif
