/*
 * gguf_bytes.h - what the tests of GGUF files share: a directory of their own, and files put
 * together byte by byte as the specification says, without the writer under test.
 */
#ifndef XM_TESTS_GGUF_BYTES_H
#define XM_TESTS_GGUF_BYTES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/buffer.h"
#include "format/gguf.h"

/* Value types as numbered in files. */
enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
};

enum { GGUF_ALIGNMENT = 32 };

/* The directory and two paths in it; group fixtures. */
extern char gguf_directory[64], gguf_target[96], gguf_other[96];
int gguf_make_directory(void **state);
int gguf_remove_directory(void **state); /* fails if a test left other files */
int gguf_files_in_directory(void);

/* Makes gguf_target hold these bytes. */
void gguf_write_bytes(const char *bytes, size_t length);
/* Opens gguf_target, which may be broken; true if it could be read, and then was, all of it. */
bool gguf_survive(void);
xm_gguf *gguf_must_open(const char *path);
void gguf_expect_message(const xmoe_error *error, const char *message);

void gguf_put_u32(xm_buffer *out, uint32_t value);
void gguf_put_u64(xm_buffer *out, uint64_t value);
void gguf_put_string(xm_buffer *out, const char *text);
void gguf_put_header(xm_buffer *out, uint64_t tensors, uint64_t keys);
void gguf_put_key(xm_buffer *out, const char *name, uint32_t type);
void gguf_put_array(xm_buffer *out, const char *name, uint32_t element, uint64_t count);
void gguf_put_tensor(xm_buffer *out, const char *name, uint32_t dimensions, const uint64_t *shape,
                     uint32_t type, uint64_t offset);
void gguf_put_zeros(xm_buffer *out, size_t count);
void gguf_pad(xm_buffer *out, size_t alignment);
/* A file with every value type (19 keys) and three tensors, one of a type that is not read.
 * padding: length of its first value. */
void gguf_put_sample(xm_buffer *out, size_t padding);
void gguf_write_sample(void);

#endif
