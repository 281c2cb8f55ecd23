/* grammar_fixture.c - see grammar_fixture.h. */
#include "grammar_fixture.h"

#include <stdlib.h>
#include <string.h>

xm_token_tree *grammar_tokens;
xm_tokenizer *grammar_tokenizer;
int32_t grammar_tool, grammar_end;

/* In the printable alphabet: \u010a is a line end, \u0120 a blank, \u00c3\u00a9 the two bytes of an
 * e with acute accent, \u00e2\u0124 the first two of three. */
static const char *const grammar_words[] = {
    "ab",           "abc",          "ba",  "aa",   "bb",          "\"}",          "\":",  "\",",
    "{\"",          "true",         "tr",  "null", "\u0120a",     "\u010a\u0120", "12",   "-1",
    "\u00c3\u00a9", "\u00e2\u0124", "\\n", "]}",   "\":\u0120\"", "abcabc",       "\",\""};
enum { WORDS = sizeof grammar_words / sizeof *grammar_words, TOKENS = 256 + WORDS + 2 };

int grammar_make_vocabulary(void **state)
{
    (void)state;
    static xm_string tokens[TOKENS];
    static int32_t types[TOKENS];
    static char bytes[256][4];
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t c = xm_byte_to_printable((uint8_t)b);
        size_t length = c < 0x80 ? 1 : 2;
        bytes[b][0] = (char)(length == 1 ? c : 0xC0 | c >> 6);
        bytes[b][1] = (char)(0x80 | (c & 0x3F));
        tokens[b] = (xm_string){bytes[b], length};
    }
    for (size_t i = 0; i < WORDS; i++)
        tokens[256 + i] = (xm_string){grammar_words[i], strlen(grammar_words[i])};
    for (size_t i = 0; i < TOKENS; i++)
        types[i] = i < 256 + WORDS ? 1 : 3;
    grammar_tool = 256 + WORDS;
    grammar_end = grammar_tool + 1;
    tokens[grammar_tool] = (xm_string){"<tool>", 6};
    tokens[grammar_end] = (xm_string){"<|end|>", 7};
    const xm_tokenizer_source source = {.split = xm_split_gpt2(),
                                        .tokens = tokens,
                                        .types = types,
                                        .token_count = TOKENS,
                                        .bos = -1,
                                        .eos = grammar_end};
    return xm_tokenizer_create(&source, &grammar_tokenizer, NULL) == XMOE_OK &&
                   xm_token_tree_create(grammar_tokenizer, &grammar_tokens, NULL) == XMOE_OK
               ? 0
               : -1;
}

int grammar_free_vocabulary(void **state)
{
    (void)state;
    xm_token_tree_free(grammar_tokens);
    xm_tokenizer_free(grammar_tokenizer);
    return 0;
}

xmoe_grammar *grammar_of(const char *text)
{
    xmoe_grammar *grammar;
    xmoe_error error;
    if (xm_grammar_create(grammar_tokens, text, strlen(text), NULL, &grammar, &error) != XMOE_OK)
        fail_msg("%s: %s", text, error.message);
    return grammar;
}

const char *grammar_refusal(const char *text, const char *trigger)
{
    static xmoe_error error;
    xmoe_grammar *grammar;
    assert_int_equal(
        xm_grammar_create(grammar_tokens, text, strlen(text), trigger, &grammar, &error),
        XMOE_ERROR_ARGUMENT);
    assert_null(grammar);
    assert_string_equal(error.parameter, trigger == NULL ? "grammar" : "grammar_trigger");
    return error.message;
}

grammar_answer grammar_match(xmoe_grammar *grammar, const char *text, size_t length)
{
    static uint64_t words[TOKENS / 64 + 1];
    xm_matcher matcher;
    bool alive = true;
    xm_matcher_init(&matcher, grammar);
    for (size_t i = 0; i < length && alive; i++) {
        assert_int_equal(xm_matcher_take(&matcher, (unsigned char)text[i]), XM_MATCH_OK);
        alive = xm_matcher_may_end(&matcher) ||
                xm_matcher_allowed(&matcher, true, words) == XM_MATCH_OK;
    }
    grammar_answer answer = !alive                         ? GRAMMAR_DEAD
                            : xm_matcher_may_end(&matcher) ? GRAMMAR_ENDS
                                                           : GRAMMAR_ALIVE;
    xm_matcher_free(&matcher);
    return answer;
}
