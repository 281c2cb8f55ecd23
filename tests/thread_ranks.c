/*
 * thread_ranks.c - see thread_ranks.h. Every call is a meeting: each rank shows its memory, all
 * copy, all leave. send and receive meet at the mailbox of their link.
 */
#include "thread_ranks.h"

#include <pthread.h>
#include <string.h>

enum { MOST = 8 };

typedef struct {
    const float *values; /* NULL: empty */
    size_t count;
} mailbox;

typedef struct {
    int32_t count;
    pthread_barrier_t barrier;
    void *shown[MOST];
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    mailbox boxes[MOST]; /* box r: from rank r to r + 1; guarded by mutex */
} meeting;

typedef struct {
    meeting *meeting;
    xm_ranks ranks;
    void (*function)(void *context, const xm_ranks *ranks);
    void *context;
    pthread_t thread;
} member;

static xmoe_status send_next(void *context, const float *values, size_t count, xmoe_error *error)
{
    (void)error;
    member *self = context;
    meeting *m = self->meeting;
    mailbox *box = &m->boxes[self->ranks.rank];
    pthread_mutex_lock(&m->mutex);
    *box = (mailbox){.values = values, .count = count};
    pthread_cond_broadcast(&m->changed);
    while (box->values != NULL)
        pthread_cond_wait(&m->changed, &m->mutex);
    pthread_mutex_unlock(&m->mutex);
    return XMOE_OK;
}

static xmoe_status receive_previous(void *context, float *values, size_t count, xmoe_error *error)
{
    member *self = context;
    meeting *m = self->meeting;
    mailbox *box = &m->boxes[self->ranks.rank - 1];
    pthread_mutex_lock(&m->mutex);
    while (box->values == NULL)
        pthread_cond_wait(&m->changed, &m->mutex);
    bool fits = box->count == count;
    if (fits)
        memcpy(values, box->values, count * sizeof *values);
    box->values = NULL;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->mutex);
    return fits ? XMOE_OK : xm_fail(error, XMOE_ERROR_INTERNAL, "sent and received differ");
}

static xmoe_status broadcast(void *context, int32_t from, void *bytes, size_t size,
                             xmoe_error *error)
{
    (void)error;
    member *self = context;
    meeting *m = self->meeting;
    m->shown[self->ranks.rank] = bytes;
    pthread_barrier_wait(&m->barrier);
    if (self->ranks.rank != from)
        memcpy(bytes, m->shown[from], size);
    pthread_barrier_wait(&m->barrier);
    return XMOE_OK;
}

static xmoe_status gather(void *context, void *all, size_t size, xmoe_error *error)
{
    (void)error;
    member *self = context;
    meeting *m = self->meeting;
    m->shown[self->ranks.rank] = all;
    pthread_barrier_wait(&m->barrier);
    for (int32_t rank = 0; rank < m->count; rank++)
        if (rank != self->ranks.rank)
            memcpy((char *)all + (size_t)rank * size, (char *)m->shown[rank] + (size_t)rank * size,
                   size);
    pthread_barrier_wait(&m->barrier);
    return XMOE_OK;
}

static void *member_main(void *context)
{
    const member *self = context;
    self->function(self->context, &self->ranks);
    return NULL;
}

void thread_ranks_run(int32_t count, void (*function)(void *context, const xm_ranks *ranks),
                      void *context)
{
    meeting m = {.count = count};
    member members[MOST];
    pthread_barrier_init(&m.barrier, NULL, (unsigned)count);
    pthread_mutex_init(&m.mutex, NULL);
    pthread_cond_init(&m.changed, NULL);
    for (int32_t rank = 0; rank < count; rank++) {
        members[rank] = (member){.meeting = &m,
                                 .ranks = {.rank = rank,
                                           .count = count,
                                           .context = &members[rank],
                                           .send = send_next,
                                           .receive = receive_previous,
                                           .broadcast = broadcast,
                                           .gather = gather},
                                 .function = function,
                                 .context = context};
        pthread_create(&members[rank].thread, NULL, member_main, &members[rank]);
    }
    for (int32_t rank = 0; rank < count; rank++)
        pthread_join(members[rank].thread, NULL);
    pthread_cond_destroy(&m.changed);
    pthread_mutex_destroy(&m.mutex);
    pthread_barrier_destroy(&m.barrier);
}
