/*
 * jinja_string.c - see jinja_string.h: cutting, searching, splitting.
 */
#include "jinja_string.h"

#include <string.h>

xm_jinja_string xm_jinja_cut(xm_jinja_string string, size_t from, size_t to)
{
    return (xm_jinja_string){string.bytes + from, string.marks ? string.marks + from : NULL,
                             to - from};
}

size_t xm_jinja_character_size(xm_jinja_string string, size_t at)
{
    size_t size = xm_text_character(string.bytes + at, string.length - at);
    return size ? size : 1;
}

size_t xm_jinja_characters(xm_jinja_job *job, xm_jinja_string string)
{
    size_t count = 0;
    xm_jinja_step(job, string.length / 64);
    for (size_t at = 0; at < string.length; at += xm_jinja_character_size(string, at))
        count++;
    return count;
}

size_t xm_jinja_search(xm_jinja_job *job, xm_jinja_string string, xm_jinja_string piece,
                       size_t from)
{
    xm_jinja_step(job, (string.length - from) / 64);
    if (piece.length == 0)
        return from;
    const char *found =
        memmem(string.bytes + from, string.length - from, piece.bytes, piece.length);
    return found ? (size_t)(found - string.bytes) : XM_JINJA_NOWHERE;
}

bool xm_jinja_starts(xm_jinja_string string, xm_jinja_string with)
{
    return string.length >= with.length && memcmp(string.bytes, with.bytes, with.length) == 0;
}

bool xm_jinja_ends(xm_jinja_string string, xm_jinja_string with)
{
    return string.length >= with.length &&
           memcmp(string.bytes + string.length - with.length, with.bytes, with.length) == 0;
}

/* Whether the character of that size at a position is white space to Python's str.strip. */
static bool is_space(xm_jinja_string string, size_t at, size_t size)
{
    const unsigned char *byte = (const unsigned char *)string.bytes + at;
    if (size == 1)
        return (*byte >= 9 && *byte <= 13) || (*byte >= 28 && *byte <= 32);
    if (size == 2)
        return byte[0] == 0xc2 && (byte[1] == 0x85 || byte[1] == 0xa0);
    static const char *const wide[] = {"\xe1\x9a\x80", "\xe2\x80\xa8", "\xe2\x80\xa9",
                                       "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    for (size_t i = 0; size == 3 && i < sizeof wide / sizeof *wide; i++)
        if (memcmp(byte, wide[i], 3) == 0)
            return true;
    return size == 3 && byte[0] == 0xe2 && byte[1] == 0x80 && byte[2] <= 0x8a;
}

static bool is_among(xm_jinja_string string, size_t at, size_t size,
                     const xm_jinja_string *characters)
{
    if (!characters)
        return is_space(string, at, size);
    return memmem(characters->bytes, characters->length, string.bytes + at, size) != NULL;
}

static size_t last_character(xm_jinja_string string, size_t end)
{
    size_t at = end - 1;
    while (at > 0 && end - at < 4 && ((unsigned char)string.bytes[at] & 0xc0) == 0x80)
        at--;
    return at + xm_jinja_character_size(string, at) == end ? at : end - 1;
}

xm_jinja_string xm_jinja_strip(xm_jinja_job *job, xm_jinja_string string,
                               const xm_jinja_string *characters, bool left, bool right)
{
    size_t from = 0, to = string.length;
    while (left && from < to) {
        size_t size = xm_jinja_character_size(string, from);
        if (!is_among(string, from, size, characters))
            break;
        from += size;
    }
    while (right && to > from) {
        size_t at = last_character(string, to);
        if (!is_among(string, at, to - at, characters))
            break;
        to = at;
    }
    xm_jinja_step(job, (string.length - (to - from)) / 16);
    return xm_jinja_cut(string, from, to);
}

xm_jinja_string xm_jinja_replace(xm_jinja_job *job, xm_jinja_string string, xm_jinja_string old,
                                 xm_jinja_string fresh, int64_t most)
{
    xm_jinja_builder builder = {.job = job};
    size_t from = 0;
    if (old.length == 0)
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "replacing the empty string is not supported");
    for (int64_t done = 0; most < 0 || done < most; done++) {
        const char *found =
            memmem(string.bytes + from, string.length - from, old.bytes, old.length);
        if (!found)
            break;
        xm_jinja_step(job, 1);
        xm_jinja_add(&builder, xm_jinja_cut(string, from, (size_t)(found - string.bytes)));
        xm_jinja_add(&builder, fresh);
        from = (size_t)(found - string.bytes) + old.length;
    }
    xm_jinja_add(&builder, xm_jinja_cut(string, from, string.length));
    return xm_jinja_built(&builder);
}

static void append_cut(xm_jinja_job *job, xm_jinja_value list, xm_jinja_string string, size_t from,
                       size_t to)
{
    xm_jinja_append(job, list, xm_jinja_text(xm_jinja_cut(string, from, to)));
}

static size_t skip_spaces(xm_jinja_string string, size_t at, bool spaces)
{
    while (at < string.length) {
        size_t size = xm_jinja_character_size(string, at);
        if (is_space(string, at, size) != spaces)
            break;
        at += size;
    }
    return at;
}

static xm_jinja_value split_spaces(xm_jinja_job *job, xm_jinja_string string, int64_t most)
{
    xm_jinja_value list = xm_jinja_new_list(job, false);
    size_t from = skip_spaces(string, 0, true);
    for (int64_t done = 0; from < string.length; done++) {
        size_t to = done == most ? string.length : skip_spaces(string, from, false);
        append_cut(job, list, string, from, to);
        from = skip_spaces(string, to, true);
    }
    return list;
}

static void check_separator(xm_jinja_job *job, const xm_jinja_string *separator)
{
    if (separator->length == 0)
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "split needs a separator that is not empty");
}

xm_jinja_value xm_jinja_split(xm_jinja_job *job, xm_jinja_string string,
                              const xm_jinja_string *separator, int64_t most)
{
    if (!separator)
        return split_spaces(job, string, most);
    check_separator(job, separator);
    xm_jinja_value list = xm_jinja_new_list(job, false);
    size_t from = 0;
    xm_jinja_step(job, string.length / 64);
    for (int64_t done = 0; most < 0 || done < most; done++) {
        const char *found =
            memmem(string.bytes + from, string.length - from, separator->bytes, separator->length);
        if (!found)
            break;
        append_cut(job, list, string, from, (size_t)(found - string.bytes));
        from = (size_t)(found - string.bytes) + separator->length;
    }
    append_cut(job, list, string, from, string.length);
    return list;
}

xm_jinja_value xm_jinja_split_right(xm_jinja_job *job, xm_jinja_string string,
                                    xm_jinja_string separator, int64_t most)
{
    check_separator(job, &separator);
    if (most < 0)
        return xm_jinja_split(job, string, &separator, -1);
    xm_jinja_value reversed = xm_jinja_new_list(job, false);
    size_t to = string.length, at = to;
    xm_jinja_step(job, (string.length / 16 + 1) * (separator.length / 64 + 1));
    while (most > 0 && at >= separator.length) {
        if (memcmp(string.bytes + at - separator.length, separator.bytes, separator.length) != 0) {
            at--;
            continue;
        }
        append_cut(job, reversed, string, at, to);
        to = at = at - separator.length;
        most--;
    }
    append_cut(job, reversed, string, 0, to);
    xm_jinja_value list = xm_jinja_new_list(job, false);
    for (size_t i = reversed.list->count; i-- > 0;)
        xm_jinja_append(job, list, reversed.list->items[i]);
    return list;
}

xm_jinja_value xm_jinja_split_lines(xm_jinja_job *job, xm_jinja_string string, bool keep_ends)
{
    xm_jinja_value list = xm_jinja_new_list(job, false);
    for (size_t from = 0, at = 0; from < string.length; at = from) {
        while (at < string.length && string.bytes[at] != '\n' && string.bytes[at] != '\r')
            at++;
        size_t next = at < string.length ? at + 1 : at;
        if (next < string.length && string.bytes[at] == '\r' && string.bytes[next] == '\n')
            next++;
        append_cut(job, list, string, from, keep_ends ? next : at);
        from = next;
    }
    return list;
}

void xm_jinja_slice_bounds(xm_jinja_job *job, size_t count, const int64_t *from, const int64_t *to,
                           int64_t step, int64_t *first, size_t *taken)
{
    int64_t length = (int64_t)count, low = step < 0 ? -1 : 0, high = step < 0 ? length - 1 : length;
    int64_t start = step < 0 ? high : low, stop = step < 0 ? low : high;
    if (step == 0 || step < -INT32_MAX || step > INT32_MAX)
        xm_jinja_fail(job, XM_JINJA_RUNTIME, "a slice cannot have the step %lld", (long long)step);
    const int64_t *const bounds[] = {from, to};
    int64_t *const results[] = {&start, &stop};
    for (int i = 0; i < 2; i++) {
        if (!bounds[i])
            continue;
        int64_t bound = *bounds[i] < 0 && *bounds[i] >= -length ? *bounds[i] + length : *bounds[i];
        *results[i] = bound < low ? low : bound > high ? high : bound;
    }
    int64_t distance = step < 0 ? start - stop : stop - start;
    int64_t stride = step < 0 ? -step : step;
    *first = start;
    *taken = distance > 0 ? (size_t)((distance + stride - 1) / stride) : 0;
}

/* Byte offset of a character. */
static size_t offset_of(xm_jinja_string string, size_t at, int64_t characters)
{
    for (; characters > 0; characters--)
        at += xm_jinja_character_size(string, at);
    return at;
}

xm_jinja_string xm_jinja_slice(xm_jinja_job *job, xm_jinja_string string, const int64_t *from,
                               const int64_t *to, int64_t step)
{
    int64_t first = 0;
    size_t taken = 0;
    xm_jinja_slice_bounds(job, xm_jinja_characters(job, string), from, to, step, &first, &taken);
    if (taken == 0)
        return xm_jinja_cut(string, 0, 0);
    if (step == 1) {
        size_t start = offset_of(string, 0, first);
        return xm_jinja_cut(string, start, offset_of(string, start, (int64_t)taken));
    }
    const xm_jinja_list *list = xm_jinja_iterate(job, xm_jinja_text(string));
    xm_jinja_builder builder = {.job = job};
    for (size_t i = 0; i < taken; i++)
        xm_jinja_add(&builder, list->items[first + (int64_t)i * step].string);
    return xm_jinja_built(&builder);
}
