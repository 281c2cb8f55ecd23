/*
 * jinja_job.c - see jinja_job.h.
 */
#include "jinja_job.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct xm_jinja_block {
    xm_jinja_block *next;
    size_t size; /* of bytes */
    max_align_t bytes[];
};

static const size_t block_size = 16384;

static void add_block(xm_jinja_job *job, size_t size)
{
    if (size < block_size)
        size = block_size;
    if (size > XM_JINJA_MEMORY_LIMIT || job->used > XM_JINJA_MEMORY_LIMIT - size)
        xm_jinja_fail(job, XM_JINJA_LIMIT, "the template takes more than %zu MiB of memory",
                      XM_JINJA_MEMORY_LIMIT >> 20);
    xm_jinja_block *block = calloc(1, sizeof *block + size);
    if (!block)
        xm_jinja_fail(job, XM_JINJA_MEMORY, "out of memory");
    block->next = job->blocks;
    block->size = size;
    job->blocks = block;
    job->used += size;
    job->left = size;
}

void *xm_jinja_allocate(xm_jinja_job *job, size_t size)
{
    if (size > XM_JINJA_MEMORY_LIMIT)
        size = XM_JINJA_MEMORY_LIMIT + 1; /* add_block refuses it */
    size = (size + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t);
    if (!job->blocks || size > job->left)
        add_block(job, size);
    char *bytes = (char *)job->blocks->bytes + (job->blocks->size - job->left);
    job->left -= size;
    return bytes;
}

void *xm_jinja_allocate_items(xm_jinja_job *job, size_t items, size_t size)
{
    if (items > XM_JINJA_MEMORY_LIMIT / size)
        items = XM_JINJA_MEMORY_LIMIT / size + 1;
    return xm_jinja_allocate(job, items ? items * size : 1);
}

void *xm_jinja_grow(xm_jinja_job *job, void *items, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity)
        return items;
    size_t wanted = *capacity ? *capacity * 2 : 4;
    void *moved = xm_jinja_allocate_items(job, wanted, size);
    if (count)
        memcpy(moved, items, count * size);
    *capacity = wanted;
    return moved;
}

void xm_jinja_free_blocks(xm_jinja_block *blocks)
{
    while (blocks) {
        xm_jinja_block *next = blocks->next;
        free(blocks);
        blocks = next;
    }
}

void xm_jinja_step(xm_jinja_job *job, size_t steps)
{
    job->steps += steps;
    if (job->steps > XM_JINJA_STEP_LIMIT)
        xm_jinja_fail(job, XM_JINJA_LIMIT, "the template takes more than %d steps",
                      XM_JINJA_STEP_LIMIT);
}

void xm_jinja_descend(xm_jinja_job *job)
{
    if (++job->depth > XM_JINJA_DEPTH_LIMIT)
        xm_jinja_fail(job, XM_JINJA_LIMIT, "the template is nested deeper than %d",
                      XM_JINJA_DEPTH_LIMIT);
}

void xm_jinja_rise(xm_jinja_job *job)
{
    job->depth--;
}

void xm_jinja_fail(xm_jinja_job *job, xm_jinja_failure failure, const char *format, ...)
{
    xm_jinja_error *error = job->error;
    va_list arguments;
    va_start(arguments, format);
    error->failure = failure;
    error->line = job->line;
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    longjmp(job->escape, 1);
}
