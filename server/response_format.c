/* response_format.c - see response_format.h. Runs on the HTTP threads. */
#include "response_format.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "json_schema.h"

/* --- compiled grammars ------------------------------------------------------------------------ */

typedef struct {
    char *text; /* trigger, NUL, grammar; owned */
    size_t length;
    xmoe_grammar *grammar; /* NULL: free */
    uint64_t used;
} entry;

struct xm_grammar_cache {
    const xmoe_model *model;
    pthread_mutex_t lock;
    entry entries[XM_GRAMMAR_CACHE]; /* under lock */
    uint64_t uses;                   /* under lock */
};

xm_grammar_cache *xm_grammar_cache_create(const xmoe_model *model)
{
    xm_grammar_cache *cache = calloc(1, sizeof *cache);
    if (cache) {
        cache->model = model;
        pthread_mutex_init(&cache->lock, NULL);
    }
    return cache;
}

static void clear_entry(entry *e)
{
    xmoe_grammar_free(e->grammar);
    free(e->text);
    *e = (entry){0};
}

void xm_grammar_cache_free(xm_grammar_cache *cache)
{
    if (!cache)
        return;
    for (int i = 0; i < XM_GRAMMAR_CACHE; i++)
        clear_entry(&cache->entries[i]);
    pthread_mutex_destroy(&cache->lock);
    free(cache);
}

static bool is_entry_of(const entry *e, const xm_text *key)
{
    return e->grammar && e->length == key->length && memcmp(e->text, key->data, key->length) == 0;
}

/* The entry of the key, or the one to give up for it. The caller holds the lock. */
static entry *find_entry(xm_grammar_cache *cache, const xm_text *key)
{
    entry *oldest = &cache->entries[0];
    for (int i = 0; i < XM_GRAMMAR_CACHE; i++) {
        entry *e = &cache->entries[i];
        if (is_entry_of(e, key))
            return e;
        if (e->used < oldest->used) /* a free one was never used */
            oldest = e;
    }
    return oldest;
}

static xmoe_grammar *look_up(xm_grammar_cache *cache, const xm_text *key)
{
    xmoe_grammar *grammar = NULL;
    pthread_mutex_lock(&cache->lock);
    entry *e = find_entry(cache, key);
    if (is_entry_of(e, key)) {
        grammar = xmoe_grammar_hold(e->grammar);
        e->used = ++cache->uses;
    }
    pthread_mutex_unlock(&cache->lock);
    return grammar;
}

/* Takes over the key's memory. Another thread may have been faster with the same text. */
static void keep(xm_grammar_cache *cache, xm_text *key, xmoe_grammar *grammar)
{
    pthread_mutex_lock(&cache->lock);
    entry *e = find_entry(cache, key);
    if (!is_entry_of(e, key)) {
        clear_entry(e);
        *e = (entry){key->data, key->length, xmoe_grammar_hold(grammar), ++cache->uses};
        *key = (xm_text){0};
    }
    pthread_mutex_unlock(&cache->lock);
    xm_text_free(key);
}

bool xm_grammar_cache_get(xm_grammar_cache *cache, const char *text, size_t length,
                          const char *trigger, const char *param, xmoe_grammar **grammar,
                          xm_problem *problem)
{
    xmoe_error error = {0};
    xm_text key = {0};
    xm_text_puts(&key, trigger ? trigger : "");
    xm_text_add(&key, "", 1);
    xm_text_add(&key, text, length);
    if (key.failed) {
        xm_text_free(&key);
        return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
    }
    *grammar = look_up(cache, &key);
    if (!*grammar &&
        xmoe_grammar_create(cache->model, text, length, trigger, grammar, &error) == XMOE_OK)
        keep(cache, &key, *grammar);
    else
        xm_text_free(&key);
    if (*grammar)
        return true;
    if (error.status == XMOE_ERROR_ARGUMENT)
        return xm_problem_field(problem, param, "'%s': %s", param, error.message);
    return xm_problem_engine(problem, &error, param);
}

/* --- what the body asks for ------------------------------------------------------------------- */

/* A schema's grammar; schema NULL: any JSON object. */
static bool from_schema(xm_grammar_cache *cache, const cJSON *schema, const char *param,
                        xmoe_grammar **grammar, xm_problem *problem)
{
    xm_schema_rules rules = {0};
    bool good = schema ? xm_schema_rules_add(&rules, "root", schema, param, problem)
                       : xm_schema_rules_add_object(&rules, "root", problem);
    good = good && xm_schema_rules_end(&rules, problem) &&
           xm_grammar_cache_get(cache, rules.text.data, rules.text.length, NULL, param, grammar,
                                problem);
    xm_text_free(&rules.text);
    return good;
}

static bool from_format(xm_grammar_cache *cache, const cJSON *format, xmoe_grammar **grammar,
                        xm_problem *problem)
{
    static const char field[] = "response_format";
    const cJSON *type = cJSON_IsObject(format) ? xm_json_member(format, "type") : NULL;
    const char *name = type && cJSON_IsString(type) ? type->valuestring : "";
    const cJSON *schema = NULL;
    bool strict = false;
    if (strcmp(name, "text") == 0)
        return true;
    if (strcmp(name, "json_object") == 0)
        return from_schema(cache, xm_json_member(format, "schema"), field, grammar, problem);
    if (strcmp(name, "json_schema") != 0)
        return xm_problem_field(problem, field,
                                "'response_format' must be an object whose 'type' is \"text\", "
                                "\"json_object\" or \"json_schema\"");
    const cJSON *wrapper = xm_json_member(format, "json_schema");
    if (cJSON_IsObject(wrapper)) {
        schema = xm_json_member(wrapper, "schema");
        if (!xm_json_read_bool(wrapper, "strict", &strict, problem) ||
            !xm_json_read_string(wrapper, "name", &name, problem))
            return false;
    }
    if (!schema)
        return xm_problem_field(problem, field, "'response_format.json_schema.schema' is missing");
    return from_schema(cache, schema, field, grammar, problem);
}

bool xm_response_format_read(xm_grammar_cache *cache, const cJSON *body, xmoe_grammar **grammar,
                             xm_problem *problem)
{
    const cJSON *format = xm_json_member(body, "response_format");
    const cJSON *schema = xm_json_member(body, "json_schema");
    const char *text = NULL;
    if (!xm_json_read_string(body, "grammar", &text, problem))
        return false;
    if (text && !text[0]) /* as llama-server has it */
        text = NULL;
    if (format && !from_format(cache, format, grammar, problem))
        return false;
    if ((*grammar != NULL) + (schema != NULL) + (text != NULL) > 1) {
        xmoe_grammar_free(*grammar);
        *grammar = NULL;
        return xm_problem_field(problem, text ? "grammar" : "json_schema",
                                "only one of 'response_format', 'json_schema' and 'grammar' can "
                                "say what the answer looks like");
    }
    if (schema)
        return from_schema(cache, schema, "json_schema", grammar, problem);
    return !text ||
           xm_grammar_cache_get(cache, text, strlen(text), NULL, "grammar", grammar, problem);
}
