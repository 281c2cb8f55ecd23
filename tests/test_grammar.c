/*
 * test_grammar.c - grammars: the notation, what is refused, matching against a brute-force
 * reference over random grammars, masks against trying every token, triggers, and memory that runs
 * out.
 */
#include "grammar_fixture.h"

#include "base/memory.h"
#include "base/random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define assert_answer(grammar, text, answer)                                                       \
    assert_int_equal(grammar_match(grammar, text, strlen(text)), answer)

/* --- the notation ----------------------------------------------------------------------------- */

typedef struct {
    const char *grammar;
    const char *texts[6];   /* described */
    const char *begun[4];   /* beginnings of such */
    const char *refused[6]; /* neither */
} notation_case;

static const notation_case notation_cases[] = {
    {"root ::= \"yes\" | \"no\"", {"yes", "no"}, {"", "y", "ye"}, {"yesno", "x", "nn"}},
    {"# a comment\nroot ::= a b? # one more\na ::= \"x\"+ |\n  \"q\"\nb ::= (\"1\"\n | \"2\"\n)\n",
     {"x", "xxx", "q", "x1", "q2"},
     {""},
     {"1", "qq", "x12", "2"}},
    {"root ::= [a-c]{2,3} [^a-z\\n]",
     {"ab ", "abcX", "cc\xC3\xA9"},
     {"a", "abc", "aa\xC3"},
     {"abcd", "aa\n", "abz", "aa\xFF", "aa\xC3\xC3"}},
    {"root ::= \"a\"{2} \"b\"{,2} \"c\"{1,}",
     {"aac", "aabc", "aabbccc"},
     {"aa", "aabb"},
     {"aabbb", "ab", "aaa"}},
    {"root ::= . \"!\"",
     {"x!", "\n!", "\xE2\x82\xAC!", "\xF0\x9F\x98\x80!"},
     {"\xE2\x82", "\xF0\x9F"},
     {"!x", "\xED\xA0", "\xC0", "\xF5"}},
    {"root ::= \"\\x41\\u00e9\\U0001F600\\\"\\\\\\n\\t\\r\"",
     {"A\xC3\xA9\xF0\x9F\x98\x80\"\\\n\t\r"},
     {"A\xC3"},
     {"B", "A\xE9"}},
    {"root ::= [\\]\\[\\\\\\-^]+ [-a] [a-]", {"][\\-^--", "]aa", "]-a"}, {"]", "]-"}, {"a", "b"}},
    {"root ::= \"\" | \"a\" root", {"", "a", "aaaa"}, {0}, {"b", "ab"}},
    {"root ::= x\nx ::= \"(\" x \")\" | \"\"", {"", "()", "((()))"}, {"(", "(()"}, {")", "())"}},
    {"root ::= (\"a\"*)* (\"b\"?)+ ((\"c\" | \"\")*)?", {"", "ab", "aabbcc"}, {0}, {"ba", "cb"}},
    {"root ::= (\"ab\" \"c\"?){2}", {"abab", "abcabc", "ababc"}, {"ab", "abca"}, {"abc\n", "cab"}},
    {"root ::= \"a\"{0} \"b\"{0,0} a_1\na_1 ::= \"z\"", {"z"}, {""}, {"az", "bz"}},
    {"root ::= [\xC3\xA0-\xC3\xB6\xE2\x82\xAC]",
     {"\xC3\xA9", "\xE2\x82\xAC"},
     {"\xC3"},
     {"\xC3\xBF", "\xE2\x82\xAD", "e"}},
};

static void the_notation_means_what_it_says(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof notation_cases / sizeof *notation_cases; i++) {
        const notation_case *c = &notation_cases[i];
        xmoe_grammar *grammar = grammar_of(c->grammar);
        for (size_t t = 0; t < 6 && c->texts[t] != NULL; t++)
            assert_answer(grammar, c->texts[t], GRAMMAR_ENDS);
        for (size_t t = 0; t < 4 && c->begun[t] != NULL; t++)
            assert_answer(grammar, c->begun[t], GRAMMAR_ALIVE);
        for (size_t t = 0; t < 6 && c->refused[t] != NULL; t++)
            assert_answer(grammar, c->refused[t], GRAMMAR_DEAD);
        xmoe_grammar_free(grammar);
    }
}

static void wrong_grammars_are_refused_with_their_place(void **state)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "line 1, column 1: there is no rule 'root'"},
        {"root ::= \"a", "line 1, column 10: this string is not closed"},
        {"root ::= [a-", "line 1, column 10: this class is not closed"},
        {"root ::= [b-a]", "line 1, column 11: this range ends before it begins"},
        {"root ::= []", "line 1, column 10: this class matches nothing"},
        {"root ::= [^\\x00-\\U0010FFFF]", "line 1, column 10: this class matches nothing"},
        {"root ::= \"\\q\"", "line 1, column 11: unknown escape"},
        {"root ::= \"\\x4\"", "line 1, column 11: this escape needs 2 hexadecimal digits"},
        {"root ::= \"\\uD800\"", "line 1, column 11: U+D800 is not a character"},
        {"root ::= \"\\UFFFFFFFF\"", "line 1, column 11: U+FFFFFFFF is not a character"},
        {"root ::= \"\xFF\"", "line 1, column 11: this byte is not UTF-8"},
        {"root ::= (\"a\"", "line 1, column 10: this parenthesis is not closed"},
        {"root ::= \"a\")", "line 1, column 13: the rule's line cannot go on like this"},
        {"root ::= \"a\"\n| \"b\"", "line 2, column 1: a rule's name is expected here"},
        {"root = \"a\"", "line 1, column 6: '::=' is expected here"},
        {"root ::= \"a\" b", "line 1, column 14: there is no rule 'b'"},
        {"root ::= \"a\"\nroot ::= \"b\"", "line 2, column 1: this rule is defined a second time"},
        {"root ::= \"a\"{2", "line 1, column 13: this repetition is not closed by '}'"},
        {"root ::= \"a\"{3,2}",
         "line 1, column 13: this repetition's maximum is below its minimum"},
        {"root ::= \"a\"{,}", "line 1, column 15: a number is expected here"},
        {"root ::= \"a\"{9999999}", "line 1, column 14: at most 100000 repetitions are allowed"},
        {"root ::= \"a\"**?*+??*?*", "line 1, column 21: too many repetitions of one another"},
        {"root ::= ((\"a\"{1000}){1000}){1000}{1000} ((((\"b\" \"c\"){100000} \"d\"){100000} "
         "\"d\"){100000} \"d\"){100000} \"x\"{99999} \"y\"{99999}",
         "the grammar with its repetitions is too large: more than 524288 parts"},
        {"root ::= \"a\" | root \"b\"",
         "line 1, column 1: rule 'root' is left-recursive: it can call itself before it has read "
         "anything"},
        {"root ::= \"a\" x\nx ::= (\"b\"? y){2}\ny ::= \"\" | x \"c\"",
         "line 1, column 14: rule 'x' is left-recursive: it can call itself before it has read "
         "anything"},
        {"root ::= \"a\" | b\nb ::= \"x\" b", "line 1, column 16: rule 'b' can never end"},
        {"root ::= <[999]>", "line 1, column 10: there is no token 999"},
        {"root ::= <[1x]>", "line 1, column 10: <[...]> must hold the id of a token"},
        {"root ::= <nothing>", "line 1, column 10: the model has no token <nothing>"},
        {"root ::= <tool", "line 1, column 10: this token is not closed by '>'"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(grammar_refusal(cases[i].text, NULL), cases[i].message);
    assert_string_equal(grammar_refusal("root ::= \"a\"", ""),
                        "the trigger has 0 bytes, must have 1 to 1024");
}

static void nesting_and_length_are_bounded(void **state)
{
    (void)state;
    size_t length = (1 << 20) + 1;
    static char text[(1 << 20) + 100];
    strcpy(text, "root ::= ");
    memset(text + 9, '(', 201);
    assert_string_equal(grammar_refusal(text, NULL),
                        "line 1, column 210: parentheses are nested deeper than 200");
    memset(text, ' ', length);
    assert_string_equal(grammar_refusal(text, NULL),
                        "line 1, column 1: the grammar has 1048577 bytes, at most 1048576 are "
                        "allowed");
}

/* --- random grammars against a reference ------------------------------------------------------ */

/* The reference knows expressions as trees, and finds all places where a match can end. */
typedef enum { LETTERS, STRING, RULE, SEQUENCE, CHOICE, REPEAT } kind;

typedef struct {
    kind kind;
    char letters[4];
    int32_t children[3], count; /* of trees, or a rule */
    int32_t minimum, maximum;   /* -1: none */
} tree;

enum { RULES = 4, TREES = 200, LONGEST = 7 };

typedef struct {
    tree trees[TREES];
    int32_t count;
    int32_t rules[RULES];
    uint64_t seed, draws;
    const char *text;
    int32_t length, depth;
    bool alive; /* the text was not enough for some way to match */
} reference;

static int32_t pick(reference *r, int32_t below)
{
    return (int32_t)(xm_random_bits(r->seed, 9, r->draws++) % (uint64_t)below);
}

static int32_t grow_tree(reference *r, int32_t rule, int32_t depth)
{
    static const char *const letters[] = {"a", "b", "ab", "bc"}, *const strings[] = {"", "a", "ab",
                                                                                     "cb"};
    if (r->count >= TREES - 8)
        depth = 0;
    int32_t at = r->count++;
    tree t = {.kind = depth == 0 ? (kind)pick(r, 2) : (kind)pick(r, 6)};
    if (t.kind == LETTERS || t.kind == STRING) {
        strcpy(t.letters, (t.kind == LETTERS ? letters : strings)[pick(r, 4)]);
    } else if (t.kind == RULE) {
        t.children[0] = pick(r, 4) > 0 && rule + 1 < RULES ? rule + 1 + pick(r, RULES - rule - 1)
                                                           : pick(r, RULES);
    } else if (t.kind == REPEAT) {
        t.minimum = pick(r, 3);
        t.maximum = pick(r, 2) ? -1 : t.minimum + pick(r, 3);
        t.children[0] = grow_tree(r, rule, depth - 1);
    } else {
        t.count = 1 + pick(r, 3);
        for (int32_t i = 0; i < t.count; i++)
            t.children[i] = grow_tree(r, rule, depth - 1);
    }
    r->trees[at] = t;
    return at;
}

static void print_tree(const reference *r, int32_t at, char *out)
{
    const tree *t = &r->trees[at];
    char *end = out + strlen(out);
    if (t->kind == LETTERS) {
        sprintf(end, "[%s] ", t->letters);
    } else if (t->kind == STRING) {
        sprintf(end, "\"%s\" ", t->letters);
    } else if (t->kind == RULE) {
        sprintf(end, "%s ",
                t->children[0] == 0 ? "root" : (char[]){(char)('r' + t->children[0]), 0});
    } else if (t->kind == REPEAT) {
        strcat(end, "(");
        print_tree(r, t->children[0], end);
        end += strlen(end);
        if (t->maximum < 0)
            sprintf(end, "){%d,} ", t->minimum);
        else
            sprintf(end, "){%d,%d} ", t->minimum, t->maximum);
    } else {
        strcat(end, "(");
        for (int32_t i = 0; i < t->count; i++) {
            strcat(end, i > 0 && t->kind == CHOICE ? "| " : "");
            print_tree(r, t->children[i], end);
        }
        strcat(end, ") ");
    }
}

/* Places (as bits) where a match that begins at one of the places in `from` can end. */
static uint32_t ends_of(reference *r, int32_t at, uint32_t from)
{
    const tree *t = &r->trees[at];
    uint32_t to = 0, all = from, next;
    if (from == 0 || r->depth > 60)
        return 0;
    r->depth++;
    switch (t->kind) {
    case LETTERS:
        for (int32_t i = 0; i <= r->length; i++) {
            if (!(from >> i & 1))
                continue;
            r->alive |= i == r->length;
            if (i < r->length && strchr(t->letters, r->text[i]))
                to |= UINT32_C(1) << (i + 1);
        }
        break;
    case STRING:
        to = from;
        for (const char *c = t->letters; *c; c++) {
            for (next = 0, all = 0; next <= (uint32_t)r->length; next++) {
                if (!(to >> next & 1))
                    continue;
                r->alive |= next == (uint32_t)r->length;
                if (next < (uint32_t)r->length && r->text[next] == *c)
                    all |= UINT32_C(1) << (next + 1);
            }
            to = all;
        }
        break;
    case RULE:
        to = ends_of(r, r->rules[t->children[0]], from);
        break;
    case SEQUENCE:
        to = from;
        for (int32_t i = 0; i < t->count; i++)
            to = ends_of(r, t->children[i], to);
        break;
    case CHOICE:
        for (int32_t i = 0; i < t->count; i++)
            to |= ends_of(r, t->children[i], from);
        break;
    case REPEAT:
        for (int32_t i = 0; i < t->minimum; i++)
            all = ends_of(r, t->children[0], all);
        to = all;
        for (int32_t i = t->minimum; all != 0 && (t->maximum < 0 || i < t->maximum); i++) {
            next = ends_of(r, t->children[0], all);
            all = t->maximum < 0 ? next & ~to : next; /* new places only: this ends */
            to |= next;
        }
        break;
    }
    r->depth--;
    return to;
}

static grammar_answer judge(reference *r, const char *text, int32_t length)
{
    r->text = text;
    r->length = length;
    r->alive = false;
    uint32_t ends = ends_of(r, r->rules[0], 1);
    return ends >> length & 1 ? GRAMMAR_ENDS : r->alive ? GRAMMAR_ALIVE : GRAMMAR_DEAD;
}

static void write_grammar(reference *r, uint64_t seed, char *text)
{
    *r = (reference){.seed = seed};
    text[0] = '\0';
    for (int32_t i = 0; i < RULES; i++)
        r->rules[i] = grow_tree(r, i, 3);
    for (int32_t i = 0; i < RULES; i++) {
        sprintf(text + strlen(text), i == 0 ? "root ::= " : "%c ::= ", 'r' + i);
        print_tree(r, r->rules[i], text);
        strcat(text, "\n");
    }
}

static void matching_agrees_with_the_reference(void **state)
{
    static char text[100000];
    static reference r;
    int32_t used = 0, counts[3] = {0};
    (void)state;
    for (uint64_t seed = 0; seed < 1500; seed++) {
        xmoe_grammar *grammar;
        write_grammar(&r, seed, text);
        if (xm_grammar_create(grammar_tokens, text, strlen(text), NULL, &grammar, NULL) != XMOE_OK)
            continue; /* left recursion, or no end */
        used++;
        for (uint64_t i = 0; i < 60; i++) {
            char word[LONGEST + 1] = {0};
            int32_t length = (int32_t)(xm_random_bits(seed, 3, i) % (LONGEST + 1));
            for (int32_t at = 0; at < length; at++)
                word[at] = "abc"[xm_random_bits(seed, 4, i * 10 + (uint64_t)at) % 3];
            grammar_answer expected = judge(&r, word, length);
            if (grammar_match(grammar, word, (size_t)length) != expected)
                fail_msg("%s'%s' should be %d", text, word, expected);
            counts[expected]++;
        }
        xmoe_grammar_free(grammar);
    }
    assert_true(used > 500);
    for (int32_t i = 0; i < 3; i++)
        assert_true(counts[i] > 1000);
}

/* --- masks ------------------------------------------------------------------------------------ */

/* Whether token t may come after the state of matcher, by its bytes one after the other. */
static bool may_take(xmoe_grammar *grammar, const int32_t *taken, int32_t count, int32_t token)
{
    static uint64_t words[16];
    size_t length;
    const char *bytes = xm_tokenizer_bytes(grammar_tokenizer, token, &length);
    xm_matcher matcher;
    bool alive = !xm_tokenizer_is_special(grammar_tokenizer, token);
    xm_matcher_init(&matcher, grammar);
    for (int32_t i = 0; i < count; i++)
        assert_int_equal(xm_matcher_take(&matcher, taken[i]), XM_MATCH_OK);
    for (size_t i = 0; i < length && alive; i++) {
        assert_int_equal(xm_matcher_take(&matcher, (unsigned char)bytes[i]), XM_MATCH_OK);
        alive = xm_matcher_may_end(&matcher) ||
                xm_matcher_allowed(&matcher, true, words) == XM_MATCH_OK;
    }
    if (token == grammar_end) {
        alive = xm_matcher_may_end(&matcher);
    } else if (token == grammar_tool) {
        assert_int_equal(xm_matcher_take(&matcher, token), XM_MATCH_OK);
        alive = xm_matcher_may_end(&matcher) ||
                xm_matcher_allowed(&matcher, true, words) == XM_MATCH_OK;
    }
    xm_matcher_free(&matcher);
    return alive;
}

/* Walks at random through what a grammar describes and compares the mask of every state on the way.
 */
static void check_masks(xmoe_grammar *grammar, uint64_t seed, int32_t steps)
{
    int32_t taken[64], count = 0;
    uint64_t words[16] = {0};
    xm_matcher matcher;
    xm_matcher_init(&matcher, grammar);
    for (; count < steps; count++) {
        int32_t allowed[400], found = 0;
        xm_match_status status = xm_matcher_allowed(&matcher, true, words);
        for (int32_t t = 0; t < grammar_tokens->size; t++) {
            bool in_mask = (words[t / 64] >> (t % 64) & 1) != 0;
            assert_int_equal(in_mask, may_take(grammar, taken, count, t));
            if (in_mask && t != grammar_end)
                allowed[found++] = t;
        }
        assert_int_equal(status == XM_MATCH_NOTHING, found == 0 && !xm_matcher_may_end(&matcher));
        assert_int_equal(xm_matcher_must_end(&matcher), found == 0 && xm_matcher_may_end(&matcher));
        if (found == 0)
            break;
        taken[count] = allowed[xm_random_bits(seed, 5, (uint64_t)count) % (uint64_t)found];
        assert_int_equal(xm_matcher_take(&matcher, taken[count]), XM_MATCH_OK);
    }
    xm_matcher_free(&matcher);
}

static const char json_like[] =
    "root ::= object\n"
    "value ::= object | array | string | number | \"true\" | \"false\" | \"null\"\n"
    "object ::= \"{\" ws (string \":\" ws value (\",\" ws string \":\" ws value)*)? ws \"}\"\n"
    "array ::= \"[\" ws (value (\",\" ws value)*)? ws \"]\"\n"
    "string ::= \"\\\"\" ([^\"\\\\\\x00-\\x1F\\x7F] | \"\\\\\" [\"\\\\/bfnrt])* \"\\\"\"\n"
    "number ::= \"-\"? (\"0\" | [1-9] [0-9]{0,15})\n"
    "ws ::= | \" \" | \"\\n\" [ \\t]{0,20}\n";

static void masks_are_what_trying_every_token_gives(void **state)
{
    static char text[100000];
    static reference r;
    (void)state;
    static const char *const grammars[] = {
        json_like, "root ::= (\"ab\" | <tool> \"a\" | [\xC3\xA0-\xC3\xBF] | \"<\" \"tool>\"){0,3}",
        "root ::= (\"a\" <[258]>? \"b\"?)* \"\xE2\x82\xAC\"", "root ::= .{3}"};
    for (size_t i = 0; i < sizeof grammars / sizeof *grammars; i++) {
        xmoe_grammar *grammar = grammar_of(grammars[i]);
        for (uint64_t seed = 0; seed < 4; seed++)
            check_masks(grammar, seed, 12);
        xmoe_grammar_free(grammar);
    }
    for (uint64_t seed = 0; seed < 60; seed++) {
        xmoe_grammar *grammar;
        write_grammar(&r, seed, text);
        if (xm_grammar_create(grammar_tokens, text, strlen(text), NULL, &grammar, NULL) != XMOE_OK)
            continue;
        check_masks(grammar, seed, 5);
        xmoe_grammar_free(grammar);
    }
}

/* States far from the end of a repetition share masks with those that are nearer; up to the end,
 * each must be its own. */
static void masks_of_long_repetitions(void **state)
{
    (void)state;
    static const char *const grammars[] = {"root ::= \"x\" [a-c]{0,40} \"c\"",
                                           "root ::= [a-c]{30} \"c\"?",
                                           "root ::= ([a-c]{2,15} \"c\"){3,20} \"ab\"",
                                           "root ::= (\"ab\"? [a-c]?){12,30} \"c\"",
                                           "root ::= \"a\"{9,} \"bb\"{12,14} \"c\"",
                                           "root ::= r{20} \"c\"\nr ::= [a-c]{0,12} \"b\""};
    for (size_t i = 0; i < sizeof grammars / sizeof *grammars; i++) {
        xmoe_grammar *grammar = grammar_of(grammars[i]);
        for (uint64_t seed = 0; seed < 6; seed++)
            check_masks(grammar, seed, 50);
        xmoe_grammar_free(grammar);
    }
}

/* --- triggers --------------------------------------------------------------------------------- */

static bool allowed_after(xmoe_grammar *grammar, const char *before, int32_t token)
{
    uint64_t words[16] = {0};
    xm_matcher matcher;
    xm_matcher_init(&matcher, grammar);
    for (const char *c = before; *c; c++)
        assert_int_equal(xm_matcher_take(&matcher, (unsigned char)*c), XM_MATCH_OK);
    assert_int_not_equal(xm_matcher_allowed(&matcher, true, words), XM_MATCH_NO_MEMORY);
    xm_matcher_free(&matcher);
    return (words[token / 64] >> (token % 64) & 1) != 0;
}

static void a_trigger_switches_the_grammar_on(void **state)
{
    (void)state;
    enum { AB = 256, ABC, BA, AA };
    xmoe_grammar *grammar;
    assert_int_equal(xm_grammar_create(grammar_tokens, "root ::= \"c\" <tool>? \"x\"", 24, "aab",
                                       &grammar, NULL),
                     XMOE_OK);
    /* Free: everything, special tokens and the end too. */
    assert_true(allowed_after(grammar, "zz", 'z'));
    assert_true(allowed_after(grammar, "aa", grammar_tool));
    assert_true(allowed_after(grammar, "aa", grammar_end));
    /* A token that completes the trigger and goes on must go on in the grammar. */
    assert_true(allowed_after(grammar, "za", AB));
    assert_true(allowed_after(grammar, "za", ABC));
    assert_true(allowed_after(grammar, "aaa", 'b'));
    assert_false(allowed_after(grammar, "aa", BA));
    assert_true(allowed_after(grammar, "ab", BA)); /* no trigger */
    /* Begun: the grammar alone. */
    assert_true(allowed_after(grammar, "aab", 'c'));
    assert_false(allowed_after(grammar, "aab", 'a'));
    assert_false(allowed_after(grammar, "aab", grammar_tool));
    assert_false(allowed_after(grammar, "aab", grammar_end));
    assert_true(allowed_after(grammar, "caaabc", grammar_tool));
    assert_true(allowed_after(grammar, "caaabc", 'x'));
    assert_true(allowed_after(grammar, "caaabcx", grammar_end));
    xmoe_grammar_free(grammar);
    /* A special token's text counts. */
    assert_int_equal(
        xm_grammar_create(grammar_tokens, "root ::= \"x\"", 12, "<tool>", &grammar, NULL), XMOE_OK);
    xm_matcher matcher;
    xm_matcher_init(&matcher, grammar);
    uint64_t words[16];
    assert_int_equal(xm_matcher_take(&matcher, grammar_tool), XM_MATCH_OK);
    assert_int_equal(xm_matcher_allowed(&matcher, true, words), XM_MATCH_OK);
    assert_int_equal(words['x' / 64], UINT64_C(1) << ('x' % 64));
    assert_int_equal(xm_matcher_take(&matcher, 'x'), XM_MATCH_OK);
    assert_true(xm_matcher_must_end(&matcher));
    xm_matcher_free(&matcher);
    xmoe_grammar_free(grammar);
}

/* --- bounds ----------------------------------------------------------------------------------- */

/* Each bracket is a state of its own: far more than a machine keeps. */
static void a_full_machine_is_replaced(void **state)
{
    (void)state;
    xmoe_grammar *grammar = grammar_of("root ::= (\"(\" [a-d]{500} [a-d]? \")\"){200}");
    xm_matcher matcher, late;
    xm_matcher_init(&late, grammar);
    xm_matcher_init(&matcher, grammar);
    for (int32_t group = 0; group < 200; group++) {
        assert_int_equal(xm_matcher_take(&matcher, '('), XM_MATCH_OK);
        for (int32_t i = 0; i < 500 + group % 2; i++)
            assert_int_equal(xm_matcher_take(&matcher, 'a' + i % 4), XM_MATCH_OK);
        assert_false(xm_matcher_may_end(&matcher));
        assert_int_equal(xm_matcher_take(&matcher, ')'), XM_MATCH_OK);
    }
    assert_true(xm_matcher_must_end(&matcher));
    xm_matcher_free(&matcher);
    assert_int_equal(xm_matcher_take(&late, '('), XM_MATCH_OK); /* from a machine long gone */
    xm_matcher_free(&late);
    xmoe_grammar_free(grammar);
}

/* Deep recursion is given up, and what is too ambiguous ends with an answer, in a bounded time. */
static void hostile_grammars_stay_bounded(void **state)
{
    (void)state;
    xmoe_grammar *grammar = grammar_of("root ::= \"(\" root \")\" | \"x\"");
    char deep[1200];
    memset(deep, '(', sizeof deep);
    assert_int_equal(grammar_match(grammar, deep, 900), GRAMMAR_ALIVE);
    assert_int_equal(grammar_match(grammar, deep, 1100), GRAMMAR_DEAD);
    xmoe_grammar_free(grammar);

    static char nested[40000];
    char *at = nested + sprintf(nested, "root ::= r0 \"x\"\n");
    for (int i = 0; i < 1100; i++)
        at += sprintf(at, "r%d ::= r%d \"x\"\n", i, i + 1);
    sprintf(at, "r1100 ::= \"a\"\n");
    assert_string_equal(grammar_refusal(nested, NULL),
                        "the grammar's beginning is nested too deeply");
    assert_int_equal(
        xm_grammar_create(grammar_tokens, nested, strlen(nested), "go", &grammar, NULL),
        XMOE_ERROR_ARGUMENT);

    assert_string_equal(
        grammar_refusal("root ::= (\"a\"? \"a\"? (\"a\"? \"a\"?){300}){300} \"b\"", NULL),
        "the grammar's beginning is too ambiguous");
    uint64_t words[16];
    grammar = grammar_of("root ::= \"a\" (\"a\"? \"a\"? (\"a\"? \"a\"?){300}){300} \"b\"");
    xm_matcher matcher;
    xm_matcher_init(&matcher, grammar);
    xm_match_status status = XM_MATCH_OK;
    for (int32_t i = 0; i < 300 && status == XM_MATCH_OK; i++) {
        status = xm_matcher_allowed(&matcher, true, words);
        if (status == XM_MATCH_OK)
            status = xm_matcher_take(&matcher, 'a');
    }
    assert_int_equal(status, XM_MATCH_AMBIGUOUS);
    xm_matcher_free(&matcher);
    xmoe_grammar_free(grammar);
}

static void lack_of_memory_is_told_and_leaks_nothing(void **state)
{
    (void)state;
    bool done = false;
    for (int64_t n = 0; !done; n++) {
        xmoe_grammar *grammar;
        uint64_t words[16];
        xmoe_error error = {0};
        xm_memory_fail_after(n);
        xmoe_status status =
            xm_grammar_create(grammar_tokens, json_like, strlen(json_like), "ab", &grammar, &error);
        xm_match_status match = XM_MATCH_OK;
        if (status == XMOE_OK) {
            xm_matcher matcher;
            xm_matcher_init(&matcher, grammar);
            for (const char *c = "zab{\"a\": [1, 2"; *c && match == XM_MATCH_OK; c++) {
                match = xm_matcher_allowed(&matcher, true, words);
                if (match == XM_MATCH_OK)
                    match = xm_matcher_take(&matcher, (unsigned char)*c);
            }
            xm_matcher_free(&matcher);
            xmoe_grammar_free(grammar);
        }
        xm_memory_fail_after(-1);
        done = status == XMOE_OK && match == XM_MATCH_OK;
        if (!done && status != XMOE_OK)
            assert_int_equal(status, XMOE_ERROR_MEMORY);
        else if (!done)
            assert_int_equal(match, XM_MATCH_NO_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_notation_means_what_it_says),
        cmocka_unit_test(wrong_grammars_are_refused_with_their_place),
        cmocka_unit_test(nesting_and_length_are_bounded),
        cmocka_unit_test(matching_agrees_with_the_reference),
        cmocka_unit_test(masks_are_what_trying_every_token_gives),
        cmocka_unit_test(masks_of_long_repetitions),
        cmocka_unit_test(a_trigger_switches_the_grammar_on),
        cmocka_unit_test(a_full_machine_is_replaced),
        cmocka_unit_test(hostile_grammars_stay_bounded),
        cmocka_unit_test(lack_of_memory_is_told_and_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, grammar_make_vocabulary, grammar_free_vocabulary);
}
