/*
 * json_check.c - see json_check.h.
 *
 * A recursive descent over the grammar that builds nothing. Its recursion is bounded by
 * XM_JSON_DEPTH, its work by the length of the text. Numbers longer than cJSON's own buffer (63
 * characters) are refused too, because cJSON would cut them silently.
 */
#include "json_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_read.h"
#include "text.h"

typedef struct {
    const char *text;
    size_t length, at;
    size_t values, most_values;
    int depth;
    const char *fault;
} checker;

static bool fail(checker *check, const char *fault)
{
    if (!check->fault)
        check->fault = fault;
    return false;
}

static bool peek(const checker *check, char byte)
{
    return check->at < check->length && check->text[check->at] == byte;
}

static void skip_space(checker *check)
{
    while (check->at < check->length && strchr(" \t\r\n", check->text[check->at]) &&
           check->text[check->at])
        check->at++;
}

static size_t skip_digits(checker *check)
{
    size_t start = check->at;
    while (check->at < check->length && check->text[check->at] >= '0' &&
           check->text[check->at] <= '9')
        check->at++;
    return check->at - start;
}

static bool number(checker *check)
{
    char digits[64];
    size_t start = check->at;
    if (peek(check, '-'))
        check->at++;
    if (peek(check, '0'))
        check->at++;
    else if (skip_digits(check) == 0)
        return fail(check, "not a JSON value");
    if (peek(check, '.')) {
        check->at++;
        if (skip_digits(check) == 0)
            return fail(check, "digits must follow the decimal point");
    }
    if (peek(check, 'e') || peek(check, 'E')) {
        check->at++;
        if (peek(check, '+') || peek(check, '-'))
            check->at++;
        if (skip_digits(check) == 0)
            return fail(check, "digits must follow the exponent");
    }
    size_t length = check->at - start;
    if (length >= sizeof digits)
        return fail(check, "a number has more than 63 characters");
    memcpy(digits, check->text + start, length);
    digits[length] = '\0';
    if (!isfinite(strtod(digits, NULL)))
        return fail(check, "a number is out of range");
    return true;
}

/* Four hex digits at check->at; -1 if they are not there. */
static int32_t hex4(checker *check)
{
    int32_t code = 0;
    if (check->length - check->at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        char digit = check->text[check->at++];
        int value = digit >= '0' && digit <= '9'   ? digit - '0'
                    : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
                    : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
                                                   : -1;
        if (value < 0)
            return -1;
        code = code * 16 + value;
    }
    return code;
}

/* After the backslash. */
static bool escape(checker *check)
{
    if (check->at == check->length)
        return fail(check, "the text ends inside a string");
    char kind = check->text[check->at++];
    if (kind != 'u')
        return kind && strchr("\"\\/bfnrt", kind) ? true : fail(check, "unknown escape");
    int32_t code = hex4(check);
    if (code < 0)
        return fail(check, "four hex digits must follow \\u");
    if (code == 0)
        return fail(check, "\\u0000 is not accepted");
    if (code >= 0xdc00 && code <= 0xdfff)
        return fail(check, "a lone low surrogate is not text");
    if (code < 0xd800 || code > 0xdbff)
        return true;
    if (check->length - check->at < 6 || check->text[check->at] != '\\' ||
        check->text[check->at + 1] != 'u')
        return fail(check, "a lone high surrogate is not text");
    check->at += 2;
    code = hex4(check);
    return code >= 0xdc00 && code <= 0xdfff ? true
                                            : fail(check, "a lone high surrogate is not text");
}

static bool string(checker *check)
{
    check->at++; /* the opening quote */
    while (check->at < check->length) {
        unsigned char byte = (unsigned char)check->text[check->at];
        if (byte == '"') {
            check->at++;
            return true;
        }
        if (byte < 0x20)
            return fail(check, "a control character in a string must be escaped");
        if (byte == '\\') {
            check->at++;
            if (!escape(check))
                return false;
            continue;
        }
        size_t size = xm_text_character(check->text + check->at, check->length - check->at);
        if (size == 0)
            return fail(check, "invalid UTF-8");
        check->at += size;
    }
    return fail(check, "the text ends inside a string");
}

static bool value(checker *check);

/* The members of an object or the values of an array, after its bracket and up to the closing. */
static bool members(checker *check, char closing)
{
    check->at++;
    skip_space(check);
    if (peek(check, closing)) {
        check->at++;
        return true;
    }
    for (;;) {
        if (closing == '}') {
            skip_space(check);
            if (!peek(check, '"'))
                return fail(check, "a name in quotes is expected");
            if (!string(check))
                return false;
            skip_space(check);
            if (!peek(check, ':'))
                return fail(check, "':' is expected");
            check->at++;
        }
        if (!value(check))
            return false;
        skip_space(check);
        if (peek(check, closing)) {
            check->at++;
            return true;
        }
        if (!peek(check, ','))
            return fail(check, "',' or a closing bracket is expected");
        check->at++;
    }
}

static bool literal(checker *check, const char *word)
{
    size_t length = strlen(word);
    if (check->length - check->at < length || memcmp(check->text + check->at, word, length) != 0)
        return fail(check, "not a JSON value");
    check->at += length;
    return true;
}

static bool value(checker *check)
{
    skip_space(check);
    if (check->at == check->length)
        return fail(check, "the text ends where a value is expected");
    if (++check->values > check->most_values)
        return fail(check, "too many values");
    char first = check->text[check->at];
    if (first == '{' || first == '[') {
        if (++check->depth > XM_JSON_DEPTH)
            return fail(check, "nested too deeply");
        bool good = members(check, first == '{' ? '}' : ']');
        check->depth--;
        return good;
    }
    switch (first) {
    case '"':
        return string(check);
    case 't':
        return literal(check, "true");
    case 'f':
        return literal(check, "false");
    case 'n':
        return literal(check, "null");
    default:
        return number(check);
    }
}

const char *xm_json_check(const char *bytes, size_t length, size_t most_values, size_t *where)
{
    checker check = {.text = bytes, .length = length, .most_values = most_values};
    if (value(&check)) {
        skip_space(&check);
        if (check.at < length)
            fail(&check, "more text follows the JSON value");
    }
    *where = check.at;
    return check.fault;
}
