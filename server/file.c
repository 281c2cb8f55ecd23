/*
 * file.c - see file.h.
 */
#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

bool xm_file_read(const char *path, size_t limit, xm_text *text, char *message, size_t size)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        snprintf(message, size, "cannot read %s: %s", path, strerror(errno));
        return false;
    }
    char chunk[4096];
    size_t got, length = 0;
    while (length <= limit && (got = fread(chunk, 1, sizeof chunk, file)) > 0) {
        xm_text_add(text, chunk, got);
        length += got;
    }
    int error = ferror(file) ? errno : 0;
    fclose(file);
    if (error)
        snprintf(message, size, "cannot read %s: %s", path, strerror(error));
    else if (text->failed)
        snprintf(message, size, "cannot read %s: out of memory", path);
    else if (length > limit)
        snprintf(message, size, "cannot read %s: it has more than %zu bytes", path, limit);
    return !error && !text->failed && length <= limit;
}

static bool write_all(int fd, const char *bytes, size_t length)
{
    while (length) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return false;
        bytes += written;
        length -= (size_t)written;
    }
    return true;
}

/* Length of "dir/" in "dir/name"; 0 where there is no slash. */
static size_t directory_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* A new or removed name is on the disk once its directory is. */
static bool sync_directory(const char *path)
{
    char directory[PATH_MAX];
    size_t length = directory_length(path);
    snprintf(directory, sizeof directory, "%.*s", (int)length, path);
    int fd = open(length ? directory : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool good = fsync(fd) == 0;
    int error = errno;
    close(fd);
    errno = error;
    return good;
}

/* errno says why not. */
static bool replace(const char *path, const xm_text *text)
{
    char temporary[PATH_MAX];
    uint64_t random = 0;
    size_t directory = directory_length(path);
    if (getrandom(&random, sizeof random, 0) != sizeof random)
        return false;
    int length = snprintf(temporary, sizeof temporary, "%.*s.%s.%016" PRIx64, (int)directory, path,
                          path + directory, random);
    if (length < 0 || (size_t)length >= sizeof temporary) {
        errno = ENAMETOOLONG;
        return false;
    }
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return false;
    bool good = write_all(fd, text->data, text->length) && fsync(fd) == 0;
    int error = errno;
    if (close(fd) != 0 && good) { /* some file systems say here that the disk is full */
        good = false;
        error = errno;
    }
    if (good && rename(temporary, path) == 0)
        return sync_directory(path);
    error = good ? errno : error;
    unlink(temporary);
    errno = error;
    return false;
}

bool xm_file_replace(const char *path, const xm_text *text, char *message, size_t size)
{
    char *target = realpath(path, NULL); /* NULL: there is none yet */
    bool good = replace(target ? target : path, text);
    if (!good)
        snprintf(message, size, "cannot write %s: %s", path, strerror(errno));
    free(target);
    return good;
}

bool xm_file_remove(const char *path, char *message, size_t size)
{
    if ((unlink(path) == 0 || errno == ENOENT) && sync_directory(path))
        return true;
    snprintf(message, size, "cannot remove %s: %s", path, strerror(errno));
    return false;
}
