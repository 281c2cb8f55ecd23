/*
 * answer.h - a generation as OpenAI's JSON: whole or in chunks, as completion or as chat.
 */
#ifndef XM_SERVER_ANSWER_H
#define XM_SERVER_ANSWER_H

#include "generation.h"
#include "json_write.h"

/* The whole answer, once all parts have ended. */
void xm_answer_whole(xm_generation *generation, xm_json *json);

/* answer_embeddings.c: the same for a request of embeddings. */
void xm_answer_embeddings(xm_generation *generation, xm_json *json);

/* Takes one event over and appends the chunks that it makes. False: see generation->problem. */
bool xm_answer_stream(xm_generation *generation, xm_event *event, xm_text *out);
/* The last chunks and [DONE]. */
void xm_answer_stream_end(xm_generation *generation, xm_text *out);

/* Sums over the parts that have ended; means are weighted by tokens. */
xmoe_request_summary xm_answer_summary(const xm_generation *generation);

/* answer_parts.c */
void xm_answer_usage(const xm_generation *generation, xm_json *json);
/* The part of any `usage` that says how much of the prompt was taken from the cache. */
void xm_answer_prompt_details(const xmoe_request_summary *summary, xm_json *json);
void xm_answer_timings(const xmoe_request_summary *summary, xm_json *json);
void xm_answer_extras(xm_generation *generation, xm_json *json); /* timings, router, expert_usage */
void xm_answer_routed(const xm_generation *generation, const xm_choice *choice, xm_json *json);
/* reasoning_content and tool_calls of a chat's message or delta, where there are any. */
void xm_answer_reply(const xm_choice *choice, bool delta, xm_json *json);
const char *xm_answer_finish_reason(const xm_choice *choice); /* NULL: not finished */

/* answer_logprobs.c: "logprobs" of what the choice shows, or null where none were asked for. */
void xm_answer_logprobs(const xm_generation *generation, const xm_choice *choice, xm_json *json);

#endif
