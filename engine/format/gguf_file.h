/*
 * gguf_file.h - the inside of xm_gguf, shared by the files that parse it (gguf_read.c), find names
 * (gguf_names.c), put the parts of split files together (gguf_parts.c), read its keys (gguf_keys.c)
 * and show it to tools (gguf_public.c). Nobody else includes this.
 */
#ifndef XM_FORMAT_GGUF_FILE_H
#define XM_FORMAT_GGUF_FILE_H

#include "format/gguf.h"

enum { XM_GGUF_VALUE_TYPES = XM_GGUF_F64 + 1 };

#define XM_GGUF_DEFAULT_ALIGNMENT 32

/* A row of an index of names. */
typedef struct {
    xm_string name;
    size_t index;
} xm_gguf_name;

typedef struct {
    xm_string name; /* NUL-terminated */
    xm_gguf_value_type type;
    xm_gguf_value_type element; /* arrays: type of the elements; else the type itself */
    uint64_t count;             /* arrays: elements; else 1 */
    const uint8_t *value;       /* first element, inside the map */
    const uint8_t *record;      /* the whole entry as in the file, name included */
    size_t record_bytes;
} xm_gguf_key;

struct xmoe_gguf {
    char *path;
    void *map;
    const uint8_t *base; /* of the map */
    size_t size;
    uint64_t data_start; /* of tensor data, from the start of the file */
    uint64_t key_count;
    xm_gguf_key *keys; /* in file order */
    uint64_t tensor_count;
    xm_gguf_tensor *tensors; /* in file order; of a split file: of all parts */
    /* The first part of a split file owns the others: their maps, names and tables. */
    xm_gguf **parts; /* those after the first; NULL: the file is whole */
    uint32_t part_count;
    /* All names, sorted: finds duplicates and looks names up in log n, whatever names a hostile
     * file chooses. */
    xm_gguf_name *keys_by_name;
    xm_gguf_name *tensors_by_name;
    char *names; /* all names, each with a NUL */
};

/* Maps and checks one file for itself, which may be a part of a split one. */
xmoe_status xm_gguf_open_part(const char *path, xm_gguf **file, xmoe_error *error);
/* Opens the other parts of the split file whose first part this is, and brings their tensors into
 * its tables; nothing to do where the file is whole. */
xmoe_status xm_gguf_join_parts(xm_gguf *file, xmoe_error *error);

/* Gives all names NULs and makes both indices; refuses names that occur twice. */
xmoe_status xm_gguf_index_names(xm_gguf *file, xmoe_error *error);
/* Sorts rows by name; the index of a row whose name the one before has too, 0 if there is none. */
size_t xm_gguf_sort_names(xm_gguf_name *rows, size_t count);
/* NULL if absent. */
const xm_gguf_key *xm_gguf_find_key(const xm_gguf *file, const char *name);

/* "u32", "string", ...; NULL for an unknown number. */
const char *xm_gguf_value_type_name(uint32_t type);
/* Bytes of one value; 0 for strings and arrays. */
size_t xm_gguf_value_size(xm_gguf_value_type type);

/* Bytes of a name in a message, at most, NUL included. */
enum { XM_GGUF_SHOWN = 80 };

#endif
