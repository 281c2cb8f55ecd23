/*
 * http_client.c - the HTTP client of server_fixture.h: plain blocking sockets with a time limit.
 * Free of cmocka, so that many threads of a test may use it at once.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "server_fixture.h"

int http_connect(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct timeval limit = {.tv_sec = 30};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    close(fd);
    return -1;
}

bool http_send(int fd, const char *bytes, size_t length)
{
    while (length) {
        ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
        if (sent <= 0)
            return false;
        bytes += sent;
        length -= (size_t)sent;
    }
    return true;
}

bool http_readable(int fd, int milliseconds)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    return poll(&poller, 1, milliseconds) > 0;
}

typedef struct {
    int fd;
    char *data;
    size_t length, capacity;
} stream;

static bool more(stream *in)
{
    if (in->capacity - in->length < 4096) {
        size_t capacity = in->capacity ? in->capacity * 2 : 16384;
        char *data = realloc(in->data, capacity);
        if (!data)
            return false;
        in->data = data;
        in->capacity = capacity;
    }
    ssize_t got = recv(in->fd, in->data + in->length, in->capacity - in->length - 1, 0);
    if (got <= 0)
        return false;
    in->length += (size_t)got;
    in->data[in->length] = '\0';
    return true;
}

/* The value of a header line, or NULL. */
static const char *find_header(const char *headers, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = strstr(headers, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (strncasecmp(line, name, length) == 0 && line[length] == ':')
            return line + length + 1 + (line[length + 1] == ' ');
    }
    return NULL;
}

/* Joins the chunks from `at` on; false if the connection ends before the last one. */
static bool read_chunks(stream *in, size_t at, http_answer *answer)
{
    for (;;) {
        const char *end;
        while (!(in->length > at && (end = strstr(in->data + at, "\r\n"))))
            if (!more(in))
                return false;
        size_t size = strtoul(in->data + at, NULL, 16);
        at = (size_t)(end - in->data) + 2;
        while (in->length < at + size + 2)
            if (!more(in))
                return false;
        answer->body = realloc(answer->body, answer->length + size + 1);
        if (!answer->body)
            return false;
        memcpy(answer->body + answer->length, in->data + at, size);
        answer->length += size;
        answer->body[answer->length] = '\0';
        at += size + 2;
        if (size == 0)
            return true;
    }
}

static bool read_body(stream *in, size_t at, http_answer *answer)
{
    const char *encoding = find_header(answer->headers, "Transfer-Encoding");
    const char *length_text = find_header(answer->headers, "Content-Length");
    if (encoding && strncasecmp(encoding, "chunked", 7) == 0)
        return read_chunks(in, at, answer);
    size_t length = length_text ? strtoul(length_text, NULL, 10) : 0;
    while (in->length < at + length)
        if (!more(in))
            return false;
    answer->body = calloc(1, length + 1);
    if (!answer->body)
        return false;
    memcpy(answer->body, in->data + at, length);
    answer->length = length;
    return true;
}

http_answer http_read(int fd)
{
    stream in = {.fd = fd};
    http_answer answer = {0};
    const char *end = NULL;
    while (more(&in) && !(end = strstr(in.data, "\r\n\r\n")))
        ;
    if (end) {
        size_t at = (size_t)(end - in.data) + 4;
        answer.headers = strndup(in.data, at);
        answer.status = atoi(in.data + strcspn(in.data, " "));
        if (answer.status != 204 && !read_body(&in, at, &answer))
            answer.status = -answer.status; /* begun but not finished */
    }
    free(in.data);
    return answer;
}

http_answer http_call(int port, const char *method, const char *path, const char *headers,
                      const char *body)
{
    http_answer answer = {0};
    int fd = http_connect(port);
    if (fd < 0)
        return answer;
    char head[1024];
    int length = snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: localhost\r\n%s", method,
                          path, headers);
    if (body)
        length += snprintf(head + length, sizeof head - (size_t)length, "Content-Length: %zu\r\n",
                           strlen(body));
    length += snprintf(head + length, sizeof head - (size_t)length, "Connection: close\r\n\r\n");
    if (http_send(fd, head, (size_t)length)) {
        if (body)
            http_send(fd, body, strlen(body)); /* the answer may come before the body is through */
        answer = http_read(fd);
    }
    close(fd);
    return answer;
}

void http_free(http_answer *answer)
{
    free(answer->headers);
    free(answer->body);
    *answer = (http_answer){0};
}
