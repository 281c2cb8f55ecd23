/*
 * jinja_job.h - memory and errors of one parse or one rendering.
 *
 * All memory comes from the job's arena and dies with it. Errors leave by longjmp to where the job
 * began: as nothing else owns anything, nothing is left behind, and no step in between has to look.
 * A job belongs to one thread.
 */
#ifndef XM_SERVER_JINJA_JOB_H
#define XM_SERVER_JINJA_JOB_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

#include "jinja.h"

#define XM_JINJA_SOURCE_LIMIT ((size_t)1 << 20)   /* bytes of a template */
#define XM_JINJA_MEMORY_LIMIT ((size_t)256 << 20) /* bytes of a job */
#define XM_JINJA_STEP_LIMIT   20000000            /* steps of a rendering */
#define XM_JINJA_DEPTH_LIMIT  300                 /* nested expressions, statements and calls */

typedef struct xm_jinja_block xm_jinja_block;

typedef struct {
    xm_jinja_block *blocks;
    size_t used, left; /* bytes: of all blocks; of the newest */
    uint64_t steps;
    int depth;
    int line; /* of the template, where the job is */
    xm_jinja_error *error;
    jmp_buf escape;
} xm_jinja_job;

/* Zeroed, aligned for anything. */
void *xm_jinja_allocate(xm_jinja_job *job, size_t size);
/* items of size bytes each; for 0 items not NULL either. */
void *xm_jinja_allocate_items(xm_jinja_job *job, size_t items, size_t size);
/* Room for one more of count items: the same array, or a larger copy. */
void *xm_jinja_grow(xm_jinja_job *job, void *items, size_t count, size_t *capacity, size_t size);
void xm_jinja_free_blocks(xm_jinja_block *blocks);

/* Counts work; fails where it is too much. */
void xm_jinja_step(xm_jinja_job *job, size_t steps);
/* Each descent is followed by xm_jinja_rise. */
void xm_jinja_descend(xm_jinja_job *job);
void xm_jinja_rise(xm_jinja_job *job);

__attribute__((noreturn, format(printf, 3, 4))) void
xm_jinja_fail(xm_jinja_job *job, xm_jinja_failure failure, const char *format, ...);

#endif
