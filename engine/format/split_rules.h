/*
 * split_rules.h - what a rule of split.h consists of; for split.c, which compiles them.
 */
#ifndef XM_FORMAT_SPLIT_RULES_H
#define XM_FORMAT_SPLIT_RULES_H

#include "format/split.h"

enum { XM_SPLIT_NAMES = 8, XM_SPLIT_STAGES = 6 };

typedef struct {
    const char *pattern; /* PCRE2, with UTF and UCP; NULL: no further stage */
    bool covers;         /* every text is matches one after the other; else what lies between two
                            matches is a piece too */
} xm_split_stage;

struct xm_split_rule {
    const char *names[XM_SPLIT_NAMES];
    xm_split_stage stages[XM_SPLIT_STAGES];
    bool ascii_words; /* ASCII letters with a space before or none are a piece of the last stage if
                         another ASCII character follows */
    bool takes_whole; /* see xm_split_rule_takes_whole */
    bool adds_bos;    /* see xm_split_rule_adds_bos */
};

extern const xm_split_rule xm_split_rules[];
extern const size_t xm_split_rule_count;

#endif
