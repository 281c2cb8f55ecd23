/*
 * gguf.h - GGUF files: reading versions 2 and 3 (memory-mapped, nothing trusted) and writing
 * version 3 (whole or not at all).
 *
 * One struct, xm_gguf, owns the map and the tables made from it; xm_gguf_close undoes all. A split
 * file (NAME-00001-of-00003.gguf and so on) is opened by its first part and is one xm_gguf over
 * several maps: keys are the first part's, tensors those of all parts. Strings,
 * arrays and tensor data handed out point into the map and live until then. The reader checks the
 * container: magic, version, counts against the file's size, every string and array inside the
 * file, unique keys and tensor names, known value types, tensor shapes without overflow, offsets
 * aligned, inside the file and not overlapping. It refuses before it allocates anything from a
 * number in the file. What the keys mean is for the floors above.
 */
#ifndef XM_FORMAT_GGUF_H
#define XM_FORMAT_GGUF_H

#include "base/error.h"
#include "format/weight_type.h"

typedef xmoe_gguf xm_gguf;

typedef enum {
    XM_GGUF_U8,
    XM_GGUF_I8,
    XM_GGUF_U16,
    XM_GGUF_I16,
    XM_GGUF_U32,
    XM_GGUF_I32,
    XM_GGUF_F32,
    XM_GGUF_BOOL,
    XM_GGUF_STRING,
    XM_GGUF_ARRAY,
    XM_GGUF_U64,
    XM_GGUF_I64,
    XM_GGUF_F64
} xm_gguf_value_type; /* numbers as in the file */

typedef struct {
    const char *data; /* no NUL behind it; UTF-8 not guaranteed */
    size_t length;
} xm_string;

typedef struct {
    xm_string name;
    uint32_t type_number;           /* as in the file */
    const xm_weight_traits *traits; /* NULL: a type this engine does not read (sizes unknown) */
    int32_t dimensions;             /* 1..4 */
    uint64_t shape[4];              /* contiguous first; 1 beyond dimensions */
    uint64_t offset;                /* from the start of the file, or of the part it is in */
    uint64_t bytes;                 /* 0 where traits is NULL */
    const void *data;
} xm_gguf_tensor;

/* --- reading --- */
xmoe_status xm_gguf_open(const char *path, xm_gguf **file, xmoe_error *error);
void xm_gguf_close(xm_gguf *file);
const char *xm_gguf_path(const xm_gguf *file);

uint64_t xm_gguf_tensor_count(const xm_gguf *file);
const xm_gguf_tensor *xm_gguf_tensor_at(const xm_gguf *file, uint64_t index);
/* NULL if there is none of that name. Looked up in log n. */
const xm_gguf_tensor *xm_gguf_find_tensor(const xm_gguf *file, const char *name);

/* Typed reads of a key. Absent key: *found (may be NULL: then absence is an error that names the
 * key) is false and *value is untouched. A key of another type is an error that names key, found
 * and expected type. u32 also takes other integer types whose value fits. */
xmoe_status xm_gguf_get_u32(const xm_gguf *file, const char *key, uint32_t *value, bool *found,
                            xmoe_error *error);
xmoe_status xm_gguf_get_f32(const xm_gguf *file, const char *key, float *value, bool *found,
                            xmoe_error *error);
xmoe_status xm_gguf_get_bool(const xm_gguf *file, const char *key, bool *value, bool *found,
                             xmoe_error *error);
xmoe_status xm_gguf_get_string(const xm_gguf *file, const char *key, xm_string *value, bool *found,
                               xmoe_error *error);
/* Arrays of strings: *strings is a new array (xm_free) of views into the map. */
xmoe_status xm_gguf_get_strings(const xm_gguf *file, const char *key, xm_string **strings,
                                size_t *count, bool *found, xmoe_error *error);
/* Arrays of f32: *values is a new array (xm_free). */
xmoe_status xm_gguf_get_f32s(const xm_gguf *file, const char *key, float **values, size_t *count,
                             bool *found, xmoe_error *error);
/* Arrays of i32/u32: *values is a new array (xm_free). */
xmoe_status xm_gguf_get_i32s(const xm_gguf *file, const char *key, int32_t **values, size_t *count,
                             bool *found, xmoe_error *error);

/* --- writing ---
 * Keys and tensor descriptions first, then xm_gguf_writer_begin, then the data of every tensor in
 * the order described, in pieces; at last _finish, which renames the temporary file into place.
 * Errors stick: calls after the first failure do nothing and _finish reports it. */
typedef struct xm_gguf_writer xm_gguf_writer;

xmoe_status xm_gguf_writer_create(const char *path, xm_gguf_writer **writer, xmoe_error *error);
void xm_gguf_writer_u32(xm_gguf_writer *writer, const char *key, uint32_t value);
void xm_gguf_writer_f32(xm_gguf_writer *writer, const char *key, float value);
void xm_gguf_writer_bool(xm_gguf_writer *writer, const char *key, bool value);
void xm_gguf_writer_string(xm_gguf_writer *writer, const char *key, const char *value);
void xm_gguf_writer_strings(xm_gguf_writer *writer, const char *key, const xm_string *strings,
                            size_t count);
void xm_gguf_writer_f32s(xm_gguf_writer *writer, const char *key, const float *values,
                         size_t count);
void xm_gguf_writer_i32s(xm_gguf_writer *writer, const char *key, const int32_t *values,
                         size_t count);
/* Copies every key of a file, but not those in skip (NULL-terminated list, may be NULL), nor those
 * that say how the file lay: general.alignment (written files have the default of 32), split.*. */
void xm_gguf_writer_copy_keys(xm_gguf_writer *writer, const xm_gguf *from, const char *const *skip);
void xm_gguf_writer_tensor(xm_gguf_writer *writer, const char *name, xm_weight_type type,
                           int32_t dimensions, const uint64_t *shape);
void xm_gguf_writer_begin(xm_gguf_writer *writer);
/* The next bytes of tensor data; a tensor's padding is added by the writer. */
void xm_gguf_writer_data(xm_gguf_writer *writer, const void *bytes, size_t length);
/* Completes the file (on any error so far: removes it) and frees the writer. */
xmoe_status xm_gguf_writer_finish(xm_gguf_writer *writer, xmoe_error *error);
/* Removes what was written and frees the writer, instead of _finish; NULL is fine. */
void xm_gguf_writer_abandon(xm_gguf_writer *writer);

#endif
