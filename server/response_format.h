/*
 * response_format.h - the form that a request asks its answer to have, as a grammar.
 *
 * Asked for by one of: response_format ("text", "json_object", "json_schema"), grammar (GBNF text),
 * json_schema (a schema, as llama-server has it). Compiled grammars are kept by their text for
 * later requests, up to a bound: XM_GRAMMAR_CACHE of them, those used last longest.
 */
#ifndef XM_SERVER_RESPONSE_FORMAT_H
#define XM_SERVER_RESPONSE_FORMAT_H

#include "json_read.h"
#include "xmoe.h"

#define XM_GRAMMAR_CACHE 16

typedef struct xm_grammar_cache xm_grammar_cache;

/* NULL for lack of memory. Any thread; the model outlives it. */
xm_grammar_cache *xm_grammar_cache_create(const xmoe_model *model);
void xm_grammar_cache_free(xm_grammar_cache *cache);

/* The grammar for a text and trigger (or NULL); the caller frees *grammar. param: the field that a
 * problem with the text is blamed on. */
bool xm_grammar_cache_get(xm_grammar_cache *cache, const char *text, size_t length,
                          const char *trigger, const char *param, xmoe_grammar **grammar,
                          xm_problem *problem);

/* What the body asks for; *grammar stays NULL where that is plain text. The caller frees it. */
bool xm_response_format_read(xm_grammar_cache *cache, const cJSON *body, xmoe_grammar **grammar,
                             xm_problem *problem);

#endif
