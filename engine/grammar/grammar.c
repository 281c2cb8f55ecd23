/* grammar.c - see grammar.h. */
#include "grammar/grammar.h"

#include "base/memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

struct xm_shared_machine {
    xm_machine *machine;
    size_t references; /* of the grammar and of matchers; under the grammar's lock */
};

struct xmoe_grammar {
    atomic_size_t references;
    const xm_token_tree *tokens;
    xm_program program;
    char *trigger; /* NULL: none */
    size_t trigger_length;
    size_t *failure;
    pthread_mutex_t lock;
    xm_shared_machine *current; /* under lock */
};

/* --- machines, under lock --------------------------------------------------------------------- */

static xm_machine_status start_machine(xmoe_grammar *grammar, xm_shared_machine **machine)
{
    xm_machine_options options = {.program = &grammar->program,
                                  .tokens = grammar->tokens,
                                  .trigger = grammar->trigger,
                                  .trigger_length = grammar->trigger_length,
                                  .failure = grammar->failure};
    xm_shared_machine *shared = xm_calloc(1, sizeof *shared);
    xm_machine_status status = XM_MACHINE_NO_MEMORY;
    if (shared != NULL)
        status = xm_machine_create(&options, &shared->machine);
    if (status != XM_MACHINE_OK) {
        xm_free(shared);
        return status;
    }
    shared->references = 1;
    *machine = shared;
    return XM_MACHINE_OK;
}

static void release_machine(xm_shared_machine *shared)
{
    if (shared == NULL || --shared->references > 0)
        return;
    xm_machine_free(shared->machine);
    xm_free(shared);
}

/* Takes the matcher's state over to the current machine. One that has not begun has none yet. */
static xm_machine_status migrate(xm_matcher *matcher)
{
    xm_shared_machine *current = matcher->grammar->current;
    if (matcher->machine == current)
        return XM_MACHINE_OK;
    int32_t state = XM_STATE_START;
    xm_machine_status status = XM_MACHINE_OK;
    if (matcher->machine != NULL)
        status =
            xm_machine_copy(current->machine, matcher->machine->machine, matcher->state, &state);
    if (status != XM_MACHINE_OK)
        return status;
    release_machine(matcher->machine);
    current->references++;
    matcher->machine = current;
    matcher->state = state;
    return XM_MACHINE_OK;
}

typedef xm_machine_status (*matcher_step)(xm_matcher *matcher, void *argument);

/* Does one thing with the matcher on the current machine, and if that is full on a new one. */
static xm_match_status on_machine(xm_matcher *matcher, matcher_step step, void *argument)
{
    xmoe_grammar *grammar = matcher->grammar;
    xm_machine_status status = XM_MACHINE_FULL;
    pthread_mutex_lock(&grammar->lock);
    for (int attempt = 0; attempt < 2 && status == XM_MACHINE_FULL; attempt++) {
        xm_shared_machine *fresh = NULL;
        if (attempt > 0) {
            status = start_machine(grammar, &fresh);
            if (status != XM_MACHINE_OK)
                break;
            release_machine(grammar->current);
            grammar->current = fresh;
        }
        status = migrate(matcher);
        if (status == XM_MACHINE_OK)
            status = step(matcher, argument);
    }
    pthread_mutex_unlock(&grammar->lock);
    return status == XM_MACHINE_OK          ? XM_MATCH_OK
           : status == XM_MACHINE_NO_MEMORY ? XM_MATCH_NO_MEMORY
                                            : XM_MATCH_AMBIGUOUS;
}

/* --- matchers --------------------------------------------------------------------------------- */

void xm_matcher_init(xm_matcher *matcher, xmoe_grammar *grammar)
{
    /* A machine only when it is asked: one that waits keeps none alive that is full. */
    *matcher = (xm_matcher){grammar, NULL, XM_STATE_START};
}

void xm_matcher_free(xm_matcher *matcher)
{
    if (matcher->grammar == NULL)
        return;
    pthread_mutex_lock(&matcher->grammar->lock);
    release_machine(matcher->machine);
    pthread_mutex_unlock(&matcher->grammar->lock);
    *matcher = (xm_matcher){0};
}

typedef struct {
    bool ends;
    uint64_t *words;
} allowed_query;

/* Copies the mask, which other requests may drive out, and adds the tokens that end the text. */
static xm_machine_status copy_mask(xm_matcher *matcher, void *argument)
{
    const allowed_query *query = argument;
    const xm_token_tree *tokens = matcher->grammar->tokens;
    xm_machine *machine = matcher->machine->machine;
    const uint64_t *mask = NULL;
    xm_machine_status status = xm_machine_mask(machine, matcher->state, &mask);
    if (status != XM_MACHINE_OK)
        return status;
    memcpy(query->words, mask, xm_token_words(tokens->size) * sizeof *mask);
    if (xm_machine_is_free(machine, matcher->state) ||
        (query->ends && xm_machine_may_end(machine, matcher->state)))
        for (int32_t i = 0; i < tokens->end_count; i++)
            query->words[tokens->ends[i] >> 6] |= UINT64_C(1) << (tokens->ends[i] & 63);
    return XM_MACHINE_OK;
}

xm_match_status xm_matcher_allowed(xm_matcher *matcher, bool ends, uint64_t *words)
{
    allowed_query query = {ends, words};
    xm_match_status status = on_machine(matcher, copy_mask, &query);
    uint64_t any = 0;
    for (size_t i = 0; status == XM_MATCH_OK && i < xm_token_words(matcher->grammar->tokens->size);
         i++)
        any |= words[i];
    return status == XM_MATCH_OK && any == 0 ? XM_MATCH_NOTHING : status;
}

static xm_machine_status take(xm_matcher *matcher, void *token)
{
    int32_t next = 0;
    xm_machine_status status =
        xm_machine_token(matcher->machine->machine, matcher->state, *(const int32_t *)token, &next);
    if (status == XM_MACHINE_OK)
        matcher->state = next;
    return status;
}

xm_match_status xm_matcher_take(xm_matcher *matcher, int32_t token)
{
    return on_machine(matcher, take, &token);
}

static bool ask(const xm_matcher *matcher, bool must)
{
    pthread_mutex_lock(&matcher->grammar->lock);
    const xm_shared_machine *shared = matcher->machine;
    const xm_machine *machine = (shared != NULL ? shared : matcher->grammar->current)->machine;
    bool answer = xm_machine_may_end(machine, matcher->state) &&
                  (!must || xm_machine_is_last(machine, matcher->state));
    pthread_mutex_unlock(&matcher->grammar->lock);
    return answer;
}

bool xm_matcher_may_end(const xm_matcher *matcher)
{
    return ask(matcher, false);
}

bool xm_matcher_must_end(const xm_matcher *matcher)
{
    return ask(matcher, true);
}

/* --- grammars --------------------------------------------------------------------------------- */

static xmoe_status copy_trigger(xmoe_grammar *grammar, const char *trigger, xmoe_error *error)
{
    if (trigger == NULL)
        return XMOE_OK;
    size_t length = strlen(trigger), matched = 0;
    if (length == 0 || length > XM_TRIGGER_BYTES)
        return xm_fail_argument(error, "grammar_trigger",
                                "the trigger has %zu bytes, must have 1 to %d", length,
                                XM_TRIGGER_BYTES);
    grammar->trigger = xm_strdup(trigger);
    grammar->failure = xm_calloc(length, sizeof *grammar->failure);
    if (grammar->trigger == NULL || grammar->failure == NULL)
        return xm_fail_memory(error, "trigger", length);
    grammar->trigger_length = length;
    for (size_t i = 1; i < length; i++) {
        while (matched > 0 && trigger[i] != trigger[matched])
            matched = grammar->failure[matched - 1];
        matched += trigger[i] == trigger[matched];
        grammar->failure[i] = matched;
    }
    return XMOE_OK;
}

static xmoe_status compile(xmoe_grammar *grammar, const char *text, size_t length,
                           xmoe_error *error)
{
    xm_gbnf tree;
    xmoe_status status = xm_gbnf_read(text, length, grammar->tokens, &tree, error);
    if (status == XMOE_OK)
        status = xm_program_create(&tree, &grammar->program, error);
    xm_gbnf_free(&tree);
    if (status != XMOE_OK)
        return status;
    switch (start_machine(grammar, &grammar->current)) {
    case XM_MACHINE_OK:
        return XMOE_OK;
    case XM_MACHINE_NO_MEMORY:
        return xm_fail_memory(error, "grammar", length);
    case XM_MACHINE_DEEP:
        return xm_fail_argument(error, "grammar", "the grammar's beginning is nested too deeply");
    default:
        return xm_fail_argument(error, "grammar", "the grammar's beginning is too ambiguous");
    }
}

xmoe_status xm_grammar_create(const xm_token_tree *tokens, const char *text, size_t length,
                              const char *trigger, xmoe_grammar **grammar, xmoe_error *error)
{
    *grammar = NULL;
    xmoe_grammar *g = xm_calloc(1, sizeof *g);
    if (g == NULL)
        return xm_fail_memory(error, "grammar", sizeof *g);
    atomic_init(&g->references, 1);
    g->tokens = tokens;
    pthread_mutex_init(&g->lock, NULL);
    xmoe_status status = copy_trigger(g, trigger, error);
    if (status == XMOE_OK)
        status = compile(g, text, length, error);
    if (status != XMOE_OK) {
        xmoe_grammar_free(g);
        return status;
    }
    *grammar = g;
    return XMOE_OK;
}

const xm_token_tree *xm_grammar_tree(const xmoe_grammar *grammar)
{
    return grammar->tokens;
}

xmoe_grammar *xmoe_grammar_hold(xmoe_grammar *grammar)
{
    atomic_fetch_add(&grammar->references, 1);
    return grammar;
}

void xmoe_grammar_free(xmoe_grammar *grammar)
{
    if (grammar == NULL || atomic_fetch_sub(&grammar->references, 1) > 1)
        return;
    release_machine(grammar->current);
    xm_program_free(&grammar->program);
    pthread_mutex_destroy(&grammar->lock);
    xm_free(grammar->trigger);
    xm_free(grammar->failure);
    xm_free(grammar);
}
