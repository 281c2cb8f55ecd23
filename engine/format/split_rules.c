/*
 * split_rules.c - the table of splits (split.h): the patterns by which families of models cut text,
 * written for PCRE2. Constant data.
 *
 * A rule has up to XM_SPLIT_STAGES stages; each cuts the pieces of the one before. GPT-2's pattern
 * (Radford et al. 2019) is
 *
 *   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * and the later ones are of its kind. Here \s is spelled out as Unicode's White_Space (PCRE2's \s
 * has U+180E too), and letters and numbers that Unicode 15 to 16 added are named, so that an older
 * PCRE2 (10.42 knows Unicode 14) cuts as Hugging Face's tokenizers do; where upper and lower case
 * matter, they count as letters without case. An alternative backtracks by one character, or by a
 * run that it has just read, so the time is linear in the text, whatever it holds.
 */
#include "format/split_rules.h"

#include <stdio.h>
#include <string.h>

#define SPACE                                                                                      \
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"        \
    "\\x{205f}\\x{3000}"

/* General categories L and N of Unicode 16 minus those of Unicode 14. */
#define NEW_LETTERS                                                                                \
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"               \
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"         \
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}"           \
    "\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}"          \
    "\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}"                    \
    "\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"                     \
    "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"          \
    "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}"

#define NEW_NUMBERS                                                                                \
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"         \
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"         \
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}"

#define LETTER "\\p{L}" NEW_LETTERS
#define NUMBER "\\p{N}" NEW_NUMBERS

#define GPT2                                                                                       \
    "'s|'t|'re|'ve|'m|'ll|'d| ?[" LETTER "]+| ?[" NUMBER "]+| ?[^" SPACE LETTER NUMBER "]+|"       \
    "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

/* Endings of English words, in any case. U+017F is the long s, which equals s without case. */
#define ENDINGS "'[sS\\x{17f}]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"

/* What the patterns after GPT-2's have in common. */
#define WORD   "[^\\r\\n" LETTER NUMBER "]?[" LETTER "]+"
#define SYMBOL " ?[^" SPACE LETTER NUMBER "]+"
#define BLANKS "[" SPACE "]*[\\r\\n]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

#define THREE_DIGITS ENDINGS "|" WORD "|[" NUMBER "]{1,3}|" SYMBOL "[\\r\\n]*|" BLANKS

#define UPPER       "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}" NEW_LETTERS
#define LOWER       "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}" NEW_LETTERS
#define BEFORE_WORD "[^\\r\\n" LETTER NUMBER "]?"

/* Words of mixed case, "HelloWorld" in two. */
#define CASED_WORD(endings)                                                                        \
    BEFORE_WORD "[" UPPER "]*[" LOWER "]+" endings "|" BEFORE_WORD "[" UPPER "]+[" LOWER           \
                "]*" endings

/* CJK ideographs and what lies around them, as DeepSeek's first tokenizers name them. */
#define CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"

/* Letters with case that DeepSeek's first tokenizers know. */
#define DEEPSEEK_LETTERS                                                                           \
    "A-Za-z\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}"                 \
    "\\x{1c4}-\\x{293}\\x{295}-\\x{2af}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}"         \
    "\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}\\x{3a3}-\\x{3f5}"                  \
    "\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}"                       \
    "\\x{13a0}-\\x{13f5}\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}"                 \
    "\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}"                 \
    "\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}\\x{1f50}-\\x{1f57}\\x{1f59}"        \
    "\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}"         \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}"                 \
    "\\x{1fe0}-\\x{1fec}\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}"                  \
    "\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}\\x{2126}\\x{2128}"                   \
    "\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}"        \
    "\\x{214e}\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}"         \
    "\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}"                  \
    "\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}\\x{fb00}-\\x{fb06}"                 \
    "\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}"               \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}"         \
    "\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}"

#define ALL(text)                                                                                  \
    {                                                                                              \
        text, true                                                                                 \
    }
#define PARTS(text)                                                                                \
    {                                                                                              \
        text, false                                                                                \
    }

const xm_split_rule xm_split_rules[] = {
    {.names = {"gpt-2", "default", "olmo", "mpt", "jina-en", "phi-2"},
     .stages = {ALL(GPT2)},
     .ascii_words = true},
    {.names = {"dbrx", "smaug-bpe"}, .stages = {ALL(THREE_DIGITS)}, .ascii_words = true},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3"},
     .stages = {ALL(THREE_DIGITS)},
     .ascii_words = true,
     .takes_whole = true,
     .adds_bos = true},
    {.names = {"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"},
     .stages = {ALL(ENDINGS "|" WORD "|[" NUMBER "]|" SYMBOL "[\\r\\n]*|" BLANKS)},
     .ascii_words = true},
    {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell"},
     .stages = {PARTS("[" NUMBER "]"), ALL(GPT2)},
     .ascii_words = true},
    {.names = {"gpt-4o", "llama4"},
     .stages = {ALL(CASED_WORD("(?:" ENDINGS ")?") "|[" NUMBER "]{1,3}|" SYMBOL
                                                   "[\\r\\n/]*|" BLANKS)}},
    {.names = {"tekken"},
     .stages = {ALL(CASED_WORD("") "|[" NUMBER "]|" SYMBOL "[\\r\\n/]*|" BLANKS)},
     .takes_whole = true,
     .adds_bos = true},
    {.names = {"deepseek-v3", "hunyuan-dense"},
     .stages = {PARTS("[" NUMBER "]{1,3}"),
                PARTS("[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+"),
                PARTS("[!-/:-@\\[-`{-~][A-Za-z]+|[^\\r\\n" LETTER "\\p{P}\\p{S}]?[" LETTER
                      "\\p{M}]+"
                      "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" BLANKS)}},
    {.names = {"deepseek-llm"},
     .stages = {PARTS("[\\r\\n]"), PARTS("[" SPACE "]?[" DEEPSEEK_LETTERS "]+"),
                PARTS("[" SPACE "]?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}"
                      "\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+"),
                PARTS("(?<![" SPACE "])[" SPACE "]++\\z"), PARTS(CJK), PARTS("[" NUMBER "]")}},
    {.names = {"deepseek-coder"},
     .stages = {PARTS("[\\r\\n]"), PARTS("[" SPACE "]?[" LETTER "]+"), PARTS("[" SPACE "]?\\p{P}+"),
                PARTS(CJK), PARTS("[" NUMBER "]")}},
};

const size_t xm_split_rule_count = sizeof xm_split_rules / sizeof *xm_split_rules;

const xm_split_rule *xm_split_rule_of(xm_string name)
{
    for (size_t r = 0; r < xm_split_rule_count; r++)
        for (size_t n = 0; n < XM_SPLIT_NAMES && xm_split_rules[r].names[n] != NULL; n++) {
            const char *known = xm_split_rules[r].names[n];
            if (strlen(known) == name.length && memcmp(known, name.data, name.length) == 0)
                return &xm_split_rules[r];
        }
    return NULL;
}

const xm_split_rule *xm_split_gpt2(void)
{
    return &xm_split_rules[0];
}

void xm_split_rule_names(char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t r = 0; r < xm_split_rule_count; r++)
        for (size_t n = 0; n < XM_SPLIT_NAMES && xm_split_rules[r].names[n] != NULL; n++)
            if (used < size)
                used += (size_t)snprintf(text + used, size - used, "%s%s", used > 0 ? ", " : "",
                                         xm_split_rules[r].names[n]);
}

bool xm_split_rule_takes_whole(const xm_split_rule *rule)
{
    return rule->takes_whole;
}

bool xm_split_rule_adds_bos(const xm_split_rule *rule)
{
    return rule->adds_bos;
}
