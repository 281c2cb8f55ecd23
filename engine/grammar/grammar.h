/*
 * grammar.h - a compiled grammar, and how far a text has come in it.
 *
 * A grammar is immutable but for what it has found out (its machine), which is under its lock: the
 * functions below may be called from any thread, for one matcher by one thread at a time. Counted
 * are the references of callers and of requests; matchers live no longer than these.
 *
 * A machine that is full is replaced by an empty one. It is freed when the last matcher has taken
 * its state over to a newer one, which a matcher does when it is used next.
 */
#ifndef XM_GRAMMAR_GRAMMAR_H
#define XM_GRAMMAR_GRAMMAR_H

#include "grammar/machine.h"

enum { XM_TRIGGER_BYTES = 1024 };

/* See xmoe_grammar_create. The tokens outlive the grammar. */
xmoe_status xm_grammar_create(const xm_token_tree *tokens, const char *text, size_t length,
                              const char *trigger, xmoe_grammar **grammar, xmoe_error *error);
const xm_token_tree *xm_grammar_tree(const xmoe_grammar *grammar);

typedef struct xm_shared_machine xm_shared_machine;

typedef struct {
    xmoe_grammar *grammar;
    xm_shared_machine *machine; /* a reference */
    int32_t state;
} xm_matcher; /* {0}: none; the owner calls xm_matcher_free */

typedef enum {
    XM_MATCH_OK,
    XM_MATCH_NOTHING,   /* no token is allowed */
    XM_MATCH_AMBIGUOUS, /* the grammar takes too much work here */
    XM_MATCH_NO_MEMORY
} xm_match_status;

/* At the beginning of a text. */
void xm_matcher_init(xm_matcher *matcher, xmoe_grammar *grammar);
void xm_matcher_free(xm_matcher *matcher);

/* The tokens that may come next, as bits: words has xm_token_words. End-of-text tokens are
 * among them where the grammar may end and `ends` is set, or has not begun. */
xm_match_status xm_matcher_allowed(xm_matcher *matcher, bool ends, uint64_t *words);
/* Takes a token that was allowed; one that ends the text only where it is a part of the grammar, or
 * of what comes before. After another one no token is allowed. */
xm_match_status xm_matcher_take(xm_matcher *matcher, int32_t token);
/* The grammar has begun and may end here. */
bool xm_matcher_may_end(const xm_matcher *matcher);
/* It must. */
bool xm_matcher_must_end(const xm_matcher *matcher);

#endif
