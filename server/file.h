/*
 * file.h - whole files: read up to a limit, and replaced so that a reader, or whoever comes after a
 * crash, finds the old file or the new one and never a part of it. May be called from any thread;
 * all of it waits for the disk.
 */
#ifndef XM_SERVER_FILE_H
#define XM_SERVER_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "text.h"

/* Appends the file's bytes to text. False with a message that names the path, also if there are
 * more than limit bytes. */
bool xm_file_read(const char *path, size_t limit, xm_text *text, char *message, size_t size);

/* Makes the text the file's content, on the disk when this returns. It is written to a temporary
 * file in the same directory, named .NAME.HEX, which takes the path's place at the end or is
 * removed on failure. A symbolic link stays and what it points to is replaced. */
bool xm_file_replace(const char *path, const xm_text *text, char *message, size_t size);

/* Removes the file, for good when this returns; one that is not there is fine. */
bool xm_file_remove(const char *path, char *message, size_t size);

#endif
