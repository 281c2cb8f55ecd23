/*
 * watch.c - see watch.h.
 *
 * Hang-ups come by epoll (EPOLLRDHUP, edge-triggered: one event per connection); a client that
 * closes its sending side counts as gone. Time limits are checked by a walk over all connections,
 * four times a second or when the next timer is due. Connections are found by descriptor, with a
 * generation number against events of a descriptor's former owner.
 */
#include "watch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "http.h"
#include "server.h"

#define TICK_NS     250000000
#define EVENT_COUNT 64
#define SECOND_NS   1000000000

struct xm_connection {
    int fd;
    uint32_t generation;
    int64_t idle_since_ns;
    bool gone;
    xm_exchange *exchange; /* under way, or NULL; the HTTP layer's reference keeps it alive */
};

typedef struct {
    xm_connection *connection; /* NULL: none */
} slot;

struct xm_watch {
    xm_server *server;
    int epoll_fd, kick_fd;
    pthread_t thread;
    atomic_bool stop;

    pthread_mutex_t lock;
    slot *slots; /* by descriptor */
    size_t slot_count;
    size_t connection_count;
    uint32_t generation;
};

/* What the walk found to be done once the lock is released. */
typedef struct {
    xm_exchange *exchange; /* held */
    bool gone;             /* else: wake */
} action;

typedef struct {
    action *items;
    size_t count, capacity;
} action_list;

static void plan(action_list *list, xm_exchange *exchange, bool gone)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 64;
        action *items = realloc(list->items, capacity * sizeof *items);
        if (!items)
            return; /* the next walk finds it again */
        list->items = items;
        list->capacity = capacity;
    }
    xm_exchange_hold(exchange);
    list->items[list->count++] = (action){exchange, gone};
}

static void perform(action_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].gone)
            xm_exchange_gone(list->items[i].exchange);
        else
            xm_exchange_wake(list->items[i].exchange);
        xm_exchange_release(list->items[i].exchange);
    }
    free(list->items);
}

/* A request that took too long to arrive is answered here, past MHD, which at this moment writes
 * nothing to the socket. */
static void check_arrival(const xm_connection *connection, xm_exchange *exchange, int64_t now)
{
    int64_t limit = exchange->settings->limits_body_seconds * SECOND_NS;
    if (now - exchange->began_ns < limit)
        return;
    exchange->phase = XM_PHASE_TIMED_OUT;
    xm_http_send_raw(connection->fd, 408, "request_timeout", "the request arrived too slowly",
                     exchange->id);
    shutdown(connection->fd, SHUT_RDWR);
}

/* Called under both locks. Returns when the exchange next needs a look. */
static int64_t check_stream(const xm_connection *connection, xm_exchange *exchange, int64_t now,
                            action_list *actions)
{
    const xm_settings *settings = exchange->settings;
    int64_t quiet = now - exchange->progress_ns;
    bool timer = exchange->wake_at_ns && exchange->wake_at_ns <= now;
    if (timer) {
        exchange->wake_at_ns = 0;
        plan(actions, exchange, false);
    }
    int64_t next = exchange->wake_at_ns ? exchange->wake_at_ns : INT64_MAX;
    if (!exchange->suspended) { /* at work, or about to be suspended after it set its timer */
        if (exchange->gone)     /* cut, and perhaps stuck in a write that never ends */
            shutdown(connection->fd, SHUT_RDWR);
        else if (quiet > settings->limits_stall_seconds * SECOND_NS) {
            shutdown(connection->fd, SHUT_RDWR);
            plan(actions, exchange, true);
        }
        return next;
    }
    if (quiet > settings->stream_ping_seconds * SECOND_NS) {
        exchange->ping = true;
        if (!timer)
            plan(actions, exchange, false);
    }
    return next;
}

static int64_t check_connection(xm_connection *connection, int64_t now, int64_t idle_limit,
                                action_list *actions)
{
    xm_exchange *exchange = connection->exchange;
    int64_t next = INT64_MAX;
    if (!exchange) {
        if (now - connection->idle_since_ns > idle_limit)
            shutdown(connection->fd, SHUT_RDWR);
        return next;
    }
    pthread_mutex_lock(&exchange->lock);
    if (exchange->phase == XM_PHASE_RECEIVING)
        check_arrival(connection, exchange, now);
    else if (exchange->phase == XM_PHASE_STREAMING)
        next = check_stream(connection, exchange, now, actions);
    pthread_mutex_unlock(&exchange->lock);
    return next;
}

/* Returns the time of the next walk; -1: none is needed before a kick. */
static int64_t walk(xm_watch *watch)
{
    action_list actions = {0};
    xm_settings *settings = xm_server_settings(watch->server);
    int64_t idle_limit = settings->limits_idle_seconds * SECOND_NS;
    xm_settings_release(settings);
    int64_t now = xm_now_ns(), next = now + TICK_NS;

    pthread_mutex_lock(&watch->lock);
    for (size_t fd = 0; fd < watch->slot_count; fd++) {
        if (!watch->slots[fd].connection)
            continue;
        int64_t due = check_connection(watch->slots[fd].connection, now, idle_limit, &actions);
        if (due < next)
            next = due;
    }
    if (watch->connection_count == 0)
        next = -1;
    pthread_mutex_unlock(&watch->lock);
    perform(&actions);
    return next;
}

static void hang_up(xm_watch *watch, uint64_t key)
{
    size_t fd = (size_t)(key & UINT32_MAX);
    xm_exchange *exchange = NULL;
    pthread_mutex_lock(&watch->lock);
    xm_connection *connection = fd < watch->slot_count ? watch->slots[fd].connection : NULL;
    if (connection && connection->generation == (uint32_t)(key >> 32)) {
        connection->gone = true;
        exchange = connection->exchange;
        if (exchange)
            xm_exchange_hold(exchange);
    }
    pthread_mutex_unlock(&watch->lock);
    if (exchange) {
        xm_exchange_gone(exchange);
        xm_exchange_release(exchange);
    }
}

static int wait_milliseconds(int64_t next)
{
    if (next < 0)
        return -1;
    int64_t left = next - xm_now_ns();
    return left <= 0 ? 0 : (int)((left + 999999) / 1000000);
}

static void *run(void *argument)
{
    xm_watch *watch = argument;
    struct epoll_event events[EVENT_COUNT];
    int64_t next = 0;
    while (!watch->stop) {
        int count = epoll_wait(watch->epoll_fd, events, EVENT_COUNT, wait_milliseconds(next));
        bool kicked = false;
        for (int i = 0; i < count; i++) {
            if (events[i].data.u64 == UINT64_MAX) {
                uint64_t value;
                kicked = read(watch->kick_fd, &value, sizeof value) > 0;
            } else {
                hang_up(watch, events[i].data.u64);
            }
        }
        if (kicked || (next >= 0 && xm_now_ns() >= next))
            next = walk(watch);
    }
    return NULL;
}

xm_watch *xm_watch_create(xm_server *server)
{
    xm_watch *watch = calloc(1, sizeof *watch);
    if (!watch)
        return NULL;
    watch->server = server;
    watch->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&watch->lock, NULL);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
    int error = errno;
    if (watch->epoll_fd >= 0 && watch->kick_fd >= 0 &&
        epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, watch->kick_fd, &event) == 0) {
        error = pthread_create(&watch->thread, NULL, run, watch);
        if (error == 0)
            return watch;
    }
    if (watch->epoll_fd >= 0)
        close(watch->epoll_fd);
    if (watch->kick_fd >= 0)
        close(watch->kick_fd);
    pthread_mutex_destroy(&watch->lock);
    free(watch);
    errno = error;
    return NULL;
}

void xm_watch_free(xm_watch *watch)
{
    if (!watch)
        return;
    watch->stop = true;
    xm_watch_kick(watch);
    pthread_join(watch->thread, NULL);
    close(watch->epoll_fd);
    close(watch->kick_fd);
    pthread_mutex_destroy(&watch->lock);
    free(watch->slots);
    free(watch);
}

void xm_watch_kick(xm_watch *watch)
{
    uint64_t one = 1;
    ssize_t written = write(watch->kick_fd, &one, sizeof one);
    (void)written; /* full means that a kick is already there */
}

static bool make_room(xm_watch *watch, size_t fd)
{
    if (fd < watch->slot_count)
        return true;
    size_t limit = (fd + 1) * 2;
    slot *slots = realloc(watch->slots, limit * sizeof *slots);
    if (!slots)
        return false;
    memset(slots + watch->slot_count, 0, (limit - watch->slot_count) * sizeof *slots);
    watch->slots = slots;
    watch->slot_count = limit;
    return true;
}

xm_connection *xm_watch_open(xm_watch *watch, int fd)
{
    xm_connection *connection = calloc(1, sizeof *connection);
    if (!connection)
        return NULL;
    connection->fd = fd;
    connection->idle_since_ns = xm_now_ns();
    pthread_mutex_lock(&watch->lock);
    bool first = watch->connection_count == 0;
    bool good = make_room(watch, (size_t)fd);
    if (good) {
        connection->generation = ++watch->generation;
        watch->slots[fd].connection = connection;
        watch->connection_count++;
        struct epoll_event event = {
            .events = EPOLLRDHUP | EPOLLET,
            .data.u64 = (uint64_t)connection->generation << 32 | (uint32_t)fd,
        };
        /* Without it, a hang-up is seen at the next write instead of at once. */
        epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
    pthread_mutex_unlock(&watch->lock);
    if (!good) {
        free(connection);
        return NULL;
    }
    if (first)
        xm_watch_kick(watch);
    return connection;
}

void xm_watch_close(xm_watch *watch, xm_connection *connection)
{
    pthread_mutex_lock(&watch->lock);
    epoll_ctl(watch->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
    watch->slots[connection->fd].connection = NULL;
    watch->connection_count--;
    pthread_mutex_unlock(&watch->lock);
    free(connection);
}

void xm_watch_begin(xm_watch *watch, xm_connection *connection, xm_exchange *exchange)
{
    pthread_mutex_lock(&watch->lock);
    connection->exchange = exchange;
    bool gone = connection->gone;
    pthread_mutex_unlock(&watch->lock);
    if (gone)
        xm_exchange_gone(exchange);
}

void xm_watch_end(xm_watch *watch, xm_connection *connection)
{
    pthread_mutex_lock(&watch->lock);
    connection->exchange = NULL;
    connection->idle_since_ns = xm_now_ns();
    pthread_mutex_unlock(&watch->lock);
}

static void for_all(xm_watch *watch, bool cut)
{
    action_list actions = {0};
    pthread_mutex_lock(&watch->lock);
    for (size_t fd = 0; fd < watch->slot_count; fd++) {
        xm_connection *connection = watch->slots[fd].connection;
        if (!connection || !connection->exchange)
            continue;
        if (cut)
            shutdown(connection->fd, SHUT_RDWR);
        plan(&actions, connection->exchange, cut);
    }
    pthread_mutex_unlock(&watch->lock);
    perform(&actions);
}

void xm_watch_cut_all(xm_watch *watch)
{
    for_all(watch, true);
}

void xm_watch_wake_all(xm_watch *watch)
{
    for_all(watch, false);
}
