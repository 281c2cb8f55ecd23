/*
 * output_file.c - see output_file.h.
 */
#include "output_file.h"

#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool fail(const output_file *file, const char *problem)
{
    cli_fail("cannot write %s: %s", file->path, problem);
    return false;
}

bool output_open(output_file *file, const char *path)
{
    struct stat target;
    *file = (output_file){.path = path};
    if (stat(path, &target) == 0 && !S_ISREG(target.st_mode)) {
        return fail(file, "it exists and is not a regular file");
    }
    size_t size = strlen(path) + 16;
    file->temporary = malloc(size);
    if (file->temporary == NULL) {
        return fail(file, "out of memory");
    }
    int descriptor = -1;
    for (int i = 0; i < 100 && descriptor < 0; i++) {
        snprintf(file->temporary, size, "%s.%d.tmp", path, i);
        descriptor = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (descriptor < 0 && errno != EEXIST) {
            break;
        }
    }
    file->stream = descriptor >= 0 ? fdopen(descriptor, "wb") : NULL;
    if (file->stream != NULL) {
        return true;
    }
    fail(file, strerror(errno));
    if (descriptor >= 0) {
        close(descriptor);
        unlink(file->temporary);
    }
    free(file->temporary);
    *file = (output_file){0};
    return false;
}

bool output_good(const output_file *file)
{
    return ferror(file->stream) == 0 || fail(file, strerror(errno));
}

/* Makes the new name durable; a file system that cannot is no reason to fail. */
static void sync_directory(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *directory = slash != NULL ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    int descriptor = directory != NULL ? open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (descriptor >= 0) {
        fsync(descriptor);
        close(descriptor);
    }
    free(directory);
}

bool output_finish(output_file *file)
{
    errno = EIO; /* for a write that failed long ago */
    bool good =
        ferror(file->stream) == 0 && fflush(file->stream) == 0 && fsync(fileno(file->stream)) == 0;
    int problem = errno;
    if (fclose(file->stream) != 0 && good) {
        problem = errno;
        good = false;
    }
    file->stream = NULL;
    if (good && rename(file->temporary, file->path) != 0) {
        problem = errno;
        good = false;
    }
    if (!good) {
        fail(file, strerror(problem));
        output_abandon(file);
        return false;
    }
    sync_directory(file->path);
    free(file->temporary);
    *file = (output_file){0};
    return true;
}

void output_abandon(output_file *file)
{
    if (file->stream != NULL) {
        fclose(file->stream);
    }
    if (file->temporary != NULL) {
        unlink(file->temporary);
    }
    free(file->temporary);
    *file = (output_file){0};
}
