/*
 * event.c - see event.h. xm_event_copy runs on the scheduler thread, so it does one allocation and
 * nothing but copying.
 *
 * The block is laid out twice by the same function: once without memory, to learn its length, once
 * for good. That way length and layout cannot disagree.
 */
#include "event.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    char *base; /* NULL: only count */
    size_t used;
} block;

/* Room for size bytes, filled from source; NULL while counting, and for a NULL source. */
static void *take(block *memory, const void *source, size_t size)
{
    if (!source)
        return NULL;
    size_t at = memory->used;
    memory->used += (size + 15) & ~(size_t)15;
    if (!memory->base)
        return NULL;
    if (size)
        memcpy(memory->base + at, source, size);
    return memory->base + at;
}

static void copy_routed(block *memory, const xmoe_event *from, xmoe_event *to)
{
    const xmoe_routed_experts *routed = from->routed;
    if (!routed)
        return;
    size_t cells = (size_t)routed->position_count * (size_t)routed->moe_layers, experts = 0;
    for (size_t i = 0; i < cells; i++)
        if (routed->counts[i] != XMOE_ROUTED_UNKNOWN)
            experts += routed->counts[i];
    xmoe_routed_experts *copy = take(memory, routed, sizeof *routed);
    void *counts = take(memory, routed->counts, cells * sizeof *routed->counts);
    void *ids = take(memory, routed->experts, experts * sizeof *routed->experts);
    void *weights = take(memory, routed->weights, experts * sizeof *routed->weights);
    if (!copy)
        return;
    copy->counts = counts;
    copy->experts = ids;
    copy->weights = weights;
    to->routed = copy;
}

static void copy_layer(block *memory, const xmoe_layer_usage *from, xmoe_layer_usage *to)
{
    size_t experts = (size_t)from->experts;
    void *histogram = take(memory, from->active_histogram, (experts + 1) * sizeof(uint64_t));
    void *counts = take(memory, from->counts, experts * sizeof(uint64_t));
    void *weights = take(memory, from->weights, experts * sizeof(double));
    void *dead = take(memory, from->dead, (size_t)from->dead_count * sizeof(int32_t));
    if (!to)
        return;
    to->active_histogram = histogram;
    to->counts = counts;
    to->weights = weights;
    to->dead = dead;
}

static void copy_usage(block *memory, const xmoe_event *from, xmoe_event *to)
{
    const xmoe_usage *usage = from->usage;
    if (!usage)
        return;
    size_t count = (size_t)usage->layer_count;
    xmoe_usage *copy = take(memory, usage, sizeof *usage);
    xmoe_layer_usage *layers = take(memory, usage->layers, count * sizeof *layers);
    for (size_t i = 0; i < count; i++)
        copy_layer(memory, &usage->layers[i], layers ? &layers[i] : NULL);
    if (!copy)
        return;
    copy->layers = layers;
    to->usage = copy;
}

/* Returns the bytes before the routed experts. */
static size_t lay_out(block *memory, const xmoe_event *from, size_t prompt_length, xmoe_event *to)
{
    size_t top = (size_t)from->top_count;
    to->text = take(memory, from->text, from->text_length);
    to->top = take(memory, from->top, top * sizeof *from->top);
    to->prompt_logprobs =
        take(memory, from->prompt_logprobs, prompt_length * sizeof *from->prompt_logprobs);
    to->prompt_top = take(memory, from->prompt_top, prompt_length * top * sizeof *from->prompt_top);
    to->summary = take(memory, from->summary, sizeof *from->summary);
    to->error = take(memory, from->error, sizeof *from->error);
    to->embedding =
        take(memory, from->embedding, (size_t)from->embedding_length * sizeof *from->embedding);
    copy_usage(memory, from, to);
    size_t bytes = memory->used;
    copy_routed(memory, from, to);
    return bytes;
}

xm_event *xm_event_copy(const xmoe_event *event, int32_t prompt, size_t prompt_length)
{
    xm_event header = {.prompt = prompt, .event = *event};
    header.event.routed = NULL;
    header.event.usage = NULL;
    xmoe_event ignored = header.event;
    block memory = {0};
    take(&memory, &header, sizeof header);
    header.bytes = lay_out(&memory, event, prompt_length, &ignored);

    memory = (block){malloc(memory.used), 0};
    if (!memory.base)
        return NULL;
    xm_event *copy = take(&memory, &header, sizeof header);
    lay_out(&memory, event, prompt_length, &copy->event);
    return copy;
}

void xm_event_push(xm_event_queue *queue, xm_event *event)
{
    event->next = NULL;
    if (queue->last)
        queue->last->next = event;
    else
        queue->first = event;
    queue->last = event;
    queue->bytes += event->bytes;
}

xm_event *xm_event_pop(xm_event_queue *queue)
{
    xm_event *event = queue->first;
    if (!event)
        return NULL;
    queue->first = event->next;
    if (!queue->first)
        queue->last = NULL;
    queue->bytes -= event->bytes;
    return event;
}

void xm_event_clear(xm_event_queue *queue)
{
    for (xm_event *event = xm_event_pop(queue); event; event = xm_event_pop(queue))
        free(event);
}
