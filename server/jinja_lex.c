/*
 * jinja_lex.c - a template's text as tokens.
 *
 * White space around tags as jinja2 has it with trim_blocks and lstrip_blocks: a block's or
 * comment's tag takes the blanks before it when it begins its line, and one newline after it;
 * "-" takes all white space on its side, "+" none. One newline at the end of the template is
 * dropped.
 */
#include <string.h>

#include "jinja_syntax.h"

typedef struct {
    xm_jinja_job *job;
    const char *source;
    size_t at, length;
    bool line_start; /* what stands before `at` was a tag that ended with a newline, or nothing */
    xm_jinja_token *tokens;
    size_t count, capacity;
} lexer;

static void add_token(lexer *lex, xm_jinja_token_kind kind, const char *bytes, size_t length)
{
    lex->tokens =
        xm_jinja_grow(lex->job, lex->tokens, lex->count, &lex->capacity, sizeof *lex->tokens);
    lex->tokens[lex->count++] = (xm_jinja_token){kind, lex->job->line, {bytes, NULL, length}};
}

static bool is_space(char byte)
{
    return (byte >= 9 && byte <= 13) || byte == ' ';
}

static bool is_digit(char byte)
{
    return byte >= '0' && byte <= '9';
}

static bool is_name(char byte)
{
    return is_digit(byte) || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
           byte == '_';
}

/* The byte at a distance, NUL behind the end. */
static char peek(const lexer *lex, size_t distance)
{
    return lex->at + distance < lex->length ? lex->source[lex->at + distance] : '\0';
}

static void advance(lexer *lex, size_t count)
{
    for (; count > 0 && lex->at < lex->length; count--)
        lex->job->line += lex->source[lex->at++] == '\n';
}

static void skip_spaces(lexer *lex)
{
    while (is_space(peek(lex, 0)))
        advance(lex, 1);
}

/* Ends a tag: goes past its `size` bytes and the white space that goes with it. */
static void end_tag(lexer *lex, char sign, size_t size, bool trim)
{
    advance(lex, size);
    if (sign == '-')
        skip_spaces(lex);
    else if (trim && sign != '+' && peek(lex, 0) == '\n')
        advance(lex, 1);
    lex->line_start = lex->at > 0 && lex->source[lex->at - 1] == '\n';
}

/* Of the text [from, to) before a tag, how much stays. */
static size_t kept_text(const lexer *lex, size_t from, size_t to, char kind, char sign)
{
    size_t end = to;
    if (sign == '-') {
        while (end > from && is_space(lex->source[end - 1]))
            end--;
    } else if (sign != '+' && kind != '{') {
        while (end > from && lex->source[end - 1] != '\n' && is_space(lex->source[end - 1]))
            end--;
        bool begins_line = end > from ? lex->source[end - 1] == '\n' : lex->line_start;
        if (!begins_line)
            end = to;
    }
    return end;
}

static bool is_tag(const char *text)
{
    return text[0] == '{' && (text[1] == '{' || text[1] == '%' || text[1] == '#');
}

static void skip_comment(lexer *lex)
{
    int line = lex->job->line;
    advance(lex, 2);
    while (lex->at < lex->length && !(peek(lex, 0) == '#' && peek(lex, 1) == '}'))
        advance(lex, 1);
    if (lex->at >= lex->length) {
        lex->job->line = line;
        xm_jinja_fail(lex->job, XM_JINJA_SYNTAX, "the comment has no end");
    }
    char sign = lex->source[lex->at - 1];
    end_tag(lex, sign, 2, true);
}

/* The four kinds of escape that Python and JSON share, and what a backslash means before others:
 * itself. */
static void lex_string(lexer *lex)
{
    int line = lex->job->line;
    char quote = peek(lex, 0);
    size_t from = lex->at + 1, used = 0;
    advance(lex, 1);
    while (lex->at < lex->length && peek(lex, 0) != quote)
        advance(lex, peek(lex, 0) == '\\' ? 2 : 1);
    if (lex->at >= lex->length) {
        lex->job->line = line;
        xm_jinja_fail(lex->job, XM_JINJA_SYNTAX, "the string has no end");
    }
    char *text = xm_jinja_allocate_items(lex->job, lex->at - from, 1);
    for (size_t i = from; i < lex->at; i++) {
        static const char letters[] = "nrtbfav0\\'\"\n", meanings[] = "\n\r\t\b\f\a\v\0\\'\"";
        char byte = lex->source[i];
        const char *letter =
            byte == '\\' && i + 1 < lex->at ? strchr(letters, lex->source[i + 1]) : NULL;
        if (byte == '\\' && i + 1 < lex->at && strchr("xuUN", lex->source[i + 1]))
            xm_jinja_fail(lex->job, XM_JINJA_SYNTAX, "the escape \\%c is not supported",
                          lex->source[i + 1]);
        if (!letter) {
            text[used++] = byte;
            if (byte == '\\' && i + 1 < lex->at)
                text[used++] = lex->source[++i];
            continue;
        }
        i++;
        if (*letter != '\n')
            text[used++] = meanings[letter - letters];
    }
    add_token(lex, XM_JINJA_TOKEN_STRING, text, used);
    advance(lex, 1);
}

static void lex_number(lexer *lex)
{
    size_t from = lex->at, end = from;
    bool after_dot = from > 0 && lex->source[from - 1] == '.';
    xm_jinja_token_kind kind = XM_JINJA_TOKEN_INTEGER;
    while (end < lex->length && is_digit(lex->source[end]))
        end++;
    if (!after_dot && end + 1 < lex->length && lex->source[end] == '.' &&
        is_digit(lex->source[end + 1])) {
        kind = XM_JINJA_TOKEN_FLOAT;
        for (end++; end < lex->length && is_digit(lex->source[end]); end++)
            ;
    }
    size_t power = end + 1;
    if (power < lex->length && strchr("+-", lex->source[power]))
        power++;
    if (!after_dot && end < lex->length && (lex->source[end] | 32) == 'e' && power < lex->length &&
        is_digit(lex->source[power])) {
        kind = XM_JINJA_TOKEN_FLOAT;
        for (end = power; end < lex->length && is_digit(lex->source[end]); end++)
            ;
    }
    if (end < lex->length && is_name(lex->source[end]))
        xm_jinja_fail(lex->job, XM_JINJA_SYNTAX, "a number ends with '%c'", lex->source[end]);
    add_token(lex, kind, lex->source + from, end - from);
    advance(lex, end - from);
}

static void lex_operator(lexer *lex)
{
    static const char *const operators[] = {"==", "!=", "<=", ">=", "//", "**", "<", ">", "=",
                                            "+",  "-",  "*",  "/",  "%",  "~",  "|", ".", ",",
                                            ":",  "(",  ")",  "[",  "]",  "{",  "}"};
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) {
        size_t length = strlen(operators[i]);
        if (lex->length - lex->at >= length &&
            memcmp(lex->source + lex->at, operators[i], length) == 0) {
            add_token(lex, XM_JINJA_TOKEN_OPERATOR, operators[i], length);
            advance(lex, length);
            return;
        }
    }
    unsigned char byte = (unsigned char)peek(lex, 0);
    xm_jinja_fail(lex->job, XM_JINJA_SYNTAX,
                  byte >= 0x20 && byte < 0x7f ? "unexpected '%c'" : "unexpected byte %#x", byte);
}

/* Within {{ }} and {% %}, up to and with the end: brackets may hold what looks like one. */
static void lex_inside(lexer *lex, char close, xm_jinja_token_kind end)
{
    int brackets = 0, line = lex->job->line;
    for (;;) {
        skip_spaces(lex);
        char byte = peek(lex, 0);
        if (lex->at >= lex->length) {
            lex->job->line = line;
            xm_jinja_fail(lex->job, XM_JINJA_SYNTAX, "the tag has no end");
        }
        size_t sign = byte == '-' || (byte == '+' && close == '%');
        if (brackets == 0 && peek(lex, sign) == close && peek(lex, sign + 1) == '}') {
            add_token(lex, end, close == '%' ? "%}" : "}}", 2);
            end_tag(lex, sign ? byte : ' ', sign + 2, close == '%');
            return;
        }
        if (is_digit(byte)) {
            lex_number(lex);
        } else if (is_name(byte)) {
            size_t size = 1;
            while (is_name(peek(lex, size)))
                size++;
            add_token(lex, XM_JINJA_TOKEN_NAME, lex->source + lex->at, size);
            advance(lex, size);
        } else if (byte == '"' || byte == '\'') {
            lex_string(lex);
        } else {
            brackets += strchr("([{", byte) ? 1 : strchr(")]}", byte) && brackets > 0 ? -1 : 0;
            lex_operator(lex);
        }
    }
}

/* Of "{%- word -%}" at a position: its length and the sign before its end; 0 if it is another. */
static size_t match_block(const lexer *lex, size_t at, const char *word, char *sign)
{
    size_t from = at, length = strlen(word);
    if (lex->length - at < 2 || memcmp(lex->source + at, "{%", 2) != 0)
        return 0;
    for (at += 2; at < lex->length && strchr("-+", lex->source[at]); at++)
        ;
    while (at < lex->length && is_space(lex->source[at]))
        at++;
    if (lex->length - at < length || memcmp(lex->source + at, word, length) != 0)
        return 0;
    for (at += length; at < lex->length && is_space(lex->source[at]); at++)
        ;
    *sign = at < lex->length && strchr("-+", lex->source[at]) ? lex->source[at] : ' ';
    at += *sign != ' ';
    return lex->length - at >= 2 && memcmp(lex->source + at, "%}", 2) == 0 ? at + 2 - from : 0;
}

/* {% raw %} ... {% endraw %}; true where it stands here. */
static bool lex_raw(lexer *lex)
{
    char sign = ' ';
    size_t size = match_block(lex, lex->at, "raw", &sign);
    if (!size)
        return false;
    end_tag(lex, sign, size, true);
    for (size_t at = lex->at; at < lex->length; at++) {
        size = match_block(lex, at, "endraw", &sign);
        if (!size)
            continue;
        size_t end = kept_text(lex, lex->at, at, '%', lex->source[at + 2]);
        add_token(lex, XM_JINJA_TOKEN_TEXT, lex->source + lex->at, end - lex->at);
        advance(lex, at - lex->at);
        end_tag(lex, sign, size, true);
        return true;
    }
    xm_jinja_fail(lex->job, XM_JINJA_SYNTAX, "'raw' has no 'endraw'");
}

static void lex_tag(lexer *lex)
{
    char kind = peek(lex, 1);
    if (kind == '#') {
        skip_comment(lex);
        return;
    }
    if (kind == '%' && lex_raw(lex))
        return;
    bool block = kind == '%';
    add_token(lex, block ? XM_JINJA_TOKEN_BLOCK : XM_JINJA_TOKEN_PRINT, block ? "{%" : "{{", 2);
    advance(lex, peek(lex, 2) == '-' || (peek(lex, 2) == '+' && block) ? 3 : 2);
    lex_inside(lex, block ? '%' : '}', block ? XM_JINJA_TOKEN_BLOCK_END : XM_JINJA_TOKEN_PRINT_END);
}

/* Newlines of other systems become \n; the last one goes. */
static void normalize(lexer *lex, const char *source, size_t length)
{
    char *text = xm_jinja_allocate_items(lex->job, length + 2, 1);
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        bool carriage = source[i] == '\r';
        text[used++] = carriage ? '\n' : source[i];
        if (carriage && i + 1 < length && source[i + 1] == '\n')
            i++;
    }
    if (used > 0 && text[used - 1] == '\n')
        text[--used] = '\0';
    lex->source = text; /* two NUL bytes behind its end */
    lex->length = used;
}

const xm_jinja_token *xm_jinja_lex(xm_jinja_job *job, const char *source, size_t length)
{
    lexer lex = {.job = job, .line_start = true};
    job->line = 1;
    normalize(&lex, source, length);
    while (lex.at < lex.length) {
        size_t to = lex.at;
        while (to < lex.length && !is_tag(lex.source + to))
            to++;
        size_t end = to;
        if (to < lex.length)
            end = kept_text(&lex, lex.at, to, lex.source[to + 1], lex.source[to + 2]);
        if (end > lex.at)
            add_token(&lex, XM_JINJA_TOKEN_TEXT, lex.source + lex.at, end - lex.at);
        advance(&lex, to - lex.at);
        if (lex.at < lex.length)
            lex_tag(&lex);
    }
    add_token(&lex, XM_JINJA_TOKEN_END, "end of template", 15);
    return lex.tokens;
}
