/*
 * grammar_fixture.h - what the tests of grammars share: a small vocabulary with tokens of several
 * bytes, special ones among them, and matching of whole texts.
 */
#ifndef XM_TESTS_GRAMMAR_FIXTURE_H
#define XM_TESTS_GRAMMAR_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "grammar/grammar.h"

/* Tokens 0..255 are the bytes; then those of grammar_words, then the special <tool> and <|end|>,
 * which ends a text. */
extern xm_token_tree *grammar_tokens;
extern xm_tokenizer *grammar_tokenizer;
extern int32_t grammar_tool, grammar_end;
/* Group fixtures. */
int grammar_make_vocabulary(void **state);
int grammar_free_vocabulary(void **state);

/* Fails the test if the text does not compile. */
xmoe_grammar *grammar_of(const char *text);
/* The message with which a text is refused; static storage. */
const char *grammar_refusal(const char *text, const char *trigger);

typedef enum { GRAMMAR_DEAD, GRAMMAR_ALIVE, GRAMMAR_ENDS } grammar_answer;
/* Byte by byte: is no text of the grammar begun by it, some, or is it one itself? */
grammar_answer grammar_match(xmoe_grammar *grammar, const char *text, size_t length);

#endif
