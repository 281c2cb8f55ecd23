/*
 * json_read.c - see json_read.h.
 */
#include "json_read.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_check.h"

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The first duplicate name inside one object, or NULL. *failed: no memory to tell. */
static const char *duplicate_name(const cJSON *object, bool *failed)
{
    size_t count = (size_t)cJSON_GetArraySize(object);
    if (count < 2)
        return NULL;
    const char **names = malloc(count * sizeof *names);
    if (!names) {
        *failed = true;
        return NULL;
    }
    size_t i = 0;
    for (const cJSON *child = object->child; child; child = child->next)
        names[i++] = child->string;
    qsort(names, count, sizeof *names, compare_names);
    const char *duplicate = NULL;
    for (i = 1; i < count && !duplicate; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            duplicate = names[i];
    free(names);
    return duplicate;
}

/* Recursion is bounded by XM_JSON_DEPTH: the text was checked before. */
static bool check_names(const cJSON *tree, xm_problem *problem)
{
    if (cJSON_IsObject(tree)) {
        bool failed = false;
        const char *name = duplicate_name(tree, &failed);
        if (failed)
            return xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
        if (name)
            return xm_problem_set(problem, 400, "invalid_json", name,
                                  "the name '%.100s' occurs twice in one object", name);
    }
    for (const cJSON *child = tree->child; child; child = child->next)
        if ((child->type & (cJSON_Object | cJSON_Array)) && !check_names(child, problem))
            return false;
    return true;
}

cJSON *xm_json_parse_named(const char *name, size_t most_values, const char *bytes, size_t length,
                           xm_problem *problem)
{
    size_t where = 0;
    const char *fault = xm_json_check(bytes, length, most_values, &where);
    if (fault) {
        xm_problem_set(problem, 400, "invalid_json", NULL, "%s is not valid JSON: %s (at byte %zu)",
                       name, fault, where);
        return NULL;
    }
    cJSON *tree = cJSON_ParseWithLengthOpts(bytes, length, NULL, 0);
    if (!tree) {
        xm_problem_set(problem, 503, "out_of_memory", NULL, "out of memory");
        return NULL;
    }
    if (!check_names(tree, problem)) {
        cJSON_Delete(tree);
        return NULL;
    }
    return tree;
}

cJSON *xm_json_parse(const char *bytes, size_t length, xm_problem *problem)
{
    return xm_json_parse_named("the body", XM_JSON_VALUES, bytes, length, problem);
}

const cJSON *xm_json_member(const cJSON *object, const char *key)
{
    const cJSON *member = cJSON_GetObjectItemCaseSensitive(object, key);
    return member && !cJSON_IsNull(member) ? member : NULL;
}

bool xm_json_read_bool(const cJSON *object, const char *key, bool *value, xm_problem *problem)
{
    const cJSON *member = xm_json_member(object, key);
    if (!member)
        return true;
    if (!cJSON_IsBool(member))
        return xm_problem_field(problem, key, "'%s' must be true or false", key);
    *value = cJSON_IsTrue(member);
    return true;
}

bool xm_json_whole(const cJSON *value, int64_t minimum, int64_t maximum, int64_t *number)
{
    if (!cJSON_IsNumber(value))
        return false;
    double given = value->valuedouble;
    /* 2^63 itself is the first double that an int64_t cannot hold. */
    if (given != floor(given) || given < -9223372036854775808.0 || given >= 9223372036854775808.0)
        return false;
    *number = (int64_t)given;
    return *number >= minimum && *number <= maximum;
}

bool xm_json_read_int(const cJSON *object, const char *key, int64_t minimum, int64_t maximum,
                      int64_t *value, xm_problem *problem)
{
    const cJSON *member = xm_json_member(object, key);
    int64_t number = 0;
    if (!member)
        return true;
    if (!xm_json_whole(member, minimum, maximum, &number))
        return xm_problem_field(problem, key,
                                "'%s' must be a whole number from %" PRId64 " to %" PRId64, key,
                                minimum, maximum);
    *value = number;
    return true;
}

bool xm_json_read_int32(const cJSON *object, const char *key, int32_t minimum, int32_t maximum,
                        int32_t *value, xm_problem *problem)
{
    int64_t number = *value;
    if (!xm_json_read_int(object, key, minimum, maximum, &number, problem))
        return false;
    *value = (int32_t)number;
    return true;
}

bool xm_json_read_float(const cJSON *object, const char *key, double minimum, double maximum,
                        float *value, xm_problem *problem)
{
    const cJSON *member = xm_json_member(object, key);
    if (!member)
        return true;
    if (!cJSON_IsNumber(member) || !(member->valuedouble >= minimum) ||
        !(member->valuedouble <= maximum))
        return xm_problem_field(problem, key, "'%s' must be a number from %g to %g", key, minimum,
                                maximum);
    *value = (float)member->valuedouble;
    return true;
}

bool xm_json_read_string(const cJSON *object, const char *key, const char **value,
                         xm_problem *problem)
{
    const cJSON *member = xm_json_member(object, key);
    if (!member)
        return true;
    if (!cJSON_IsString(member))
        return xm_problem_field(problem, key, "'%s' must be a string", key);
    *value = member->valuestring;
    return true;
}
