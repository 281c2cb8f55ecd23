/*
 * server_fixture.h - what the tests of the server share: a tiny random model, xmoe-server in a
 * child process on a free port, and an HTTP client over plain sockets that hides nothing.
 *
 * Failures are reported through cmocka, so the helpers may only be called from a test's own thread,
 * except those marked as free of it.
 */
#ifndef XM_TESTS_SERVER_FIXTURE_H
#define XM_TESTS_SERVER_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include <sys/types.h>

#include "format/gguf.h"

/* A directory with model.gguf: 4 layers, 2 of them MoE (1 and 3) of 8 experts, context 512, 300
 * tokens. Group fixtures. */
extern char server_directory[64], server_model[96];
int server_make_model(void **state);
int server_make_chat_model(const char *chat_template); /* the same with a template; NULL: none */
/* The model again, without the keys in skip (NULL: all stay) and with those that write_keys adds.
 */
void server_rewrite_model(const char *const *skip, void (*write_keys)(xm_gguf_writer *writer));
int server_remove_model(void **state);
/* Writes a file into server_directory; path gets its full name. */
void server_write_file(const char *name, const char *text, char *path, size_t size);

typedef struct {
    pid_t pid;
    int port;
    char log[96]; /* the child's stderr */
} server_child;

/* Runs xmoe-server with the model, port 0 and the given flags (NULL at the end); waits until it is
 * ready. */
server_child server_start(const char *const *flags);
/* Runs it with exactly these arguments and waits for its end: exit status, stdout and stderr in one
 * text that the caller frees. */
int server_run(const char *const *arguments, char **output);
/* Sends the signal (0: none) and waits for the end; the exit status, or 128 + the signal that
 * killed it. */
int server_stop(const server_child *child, int signal_number);
bool server_alive(const server_child *child);
/* The log so far; the caller frees. */
char *server_log(const server_child *child);

typedef struct {
    int status;    /* 0: no answer */
    char *headers; /* as sent, status line included */
    char *body;    /* chunks joined, NUL-terminated */
    size_t length;
} http_answer;

/* These are free of cmocka. -1 or status 0 on failure. */
int http_connect(int port);
bool http_send(int fd, const char *bytes, size_t length);
/* A whole answer; closes nothing. */
http_answer http_read(int fd);
http_answer http_call(int port, const char *method, const char *path, const char *headers,
                      const char *body);
void http_free(http_answer *answer);
/* Waits until the socket has bytes or its end, or the time is over. */
bool http_readable(int fd, int milliseconds);

/* POST with a JSON body; GET. */
http_answer server_post(const server_child *child, const char *path, const char *body);
http_answer server_get(const server_child *child, const char *path);
/* The same, with status and JSON checked; the caller deletes. */
cJSON *server_post_json(const server_child *child, const char *path, const char *body, int status);
cJSON *server_get_json(const server_child *child, const char *path, int status);
/* A value of /metrics by the series' whole name and labels; -1 where it is missing. */
double server_metric(const server_child *child, const char *series);
/* Waits up to ten seconds for the series to have the value. */
bool server_metric_becomes(const server_child *child, const char *series, double value);
/* The value at a path such as "choices.0.text"; NULL where there is none. */
const cJSON *json_at(const cJSON *tree, const char *path);
double json_number(const cJSON *tree, const char *path); /* fails the test if there is none */
const char *json_text(const cJSON *tree, const char *path);
void sleep_milliseconds(int milliseconds);

#endif
