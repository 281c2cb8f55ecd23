/*
 * json_schema_constants.c - see json_schema_parts.h: the values that `enum` and `const` give. Pure
 * functions over their arguments; any thread.
 */
#include "json_schema_parts.h"

#include <math.h>
#include <string.h>

static const char *type_of(const cJSON *value)
{
    if (cJSON_IsNumber(value))
        return floor(value->valuedouble) == value->valuedouble ? "integer" : "number";
    return cJSON_IsObject(value)   ? "object"
           : cJSON_IsArray(value)  ? "array"
           : cJSON_IsString(value) ? "string"
           : cJSON_IsBool(value)   ? "boolean"
                                   : "null";
}

static bool has_type(const cJSON *type, const cJSON *value)
{
    if (cJSON_IsArray(type)) {
        for (const cJSON *item = type->child; item; item = item->next)
            if (has_type(item, value))
                return true;
        return false;
    }
    const char *name = type_of(value);
    return !type || (cJSON_IsString(type) &&
                     (strcmp(type->valuestring, name) == 0 ||
                      (strcmp(type->valuestring, "number") == 0 && strcmp(name, "integer") == 0)));
}

static bool write_text(xm_schema_builder *b, char *json, xm_text *out)
{
    if (!json)
        return xm_schema_no_memory(b);
    xm_schema_literal(out, json);
    xm_text_puts(out, " ");
    cJSON_free(json);
    return true;
}

static bool write_name(xm_schema_builder *b, const char *name, xm_text *out)
{
    cJSON *string = cJSON_CreateString(name);
    char *text = string ? cJSON_PrintUnformatted(string) : NULL;
    cJSON_Delete(string);
    return write_text(b, text, out);
}

/* With blanks where others may have them. */
static bool write_constant(xm_schema_builder *b, const cJSON *value, xm_text *out)
{
    bool object = cJSON_IsObject(value);
    if (!object && !cJSON_IsArray(value))
        return write_text(b, cJSON_PrintUnformatted(value), out);
    xm_text_puts(out, object ? "\"{\" " : "\"[\" ");
    for (const cJSON *item = value->child; item; item = item->next) {
        xm_schema_share(b, out, XM_SHARED_BLANK);
        if (object && !write_name(b, item->string, out))
            return false;
        xm_text_puts(out, object ? "\":\" " : "");
        if (object)
            xm_schema_share(b, out, XM_SHARED_BLANK);
        if (!write_constant(b, item, out))
            return false;
        xm_text_puts(out, item->next ? "\",\" " : "");
    }
    xm_schema_share(b, out, XM_SHARED_BLANK);
    xm_text_puts(out, object ? "\"}\" " : "\"]\" ");
    return true;
}

bool xm_schema_constants(xm_schema_builder *b, const cJSON *first, bool single, const cJSON *type,
                         xm_text *out)
{
    int count = 0;
    xm_text_puts(out, "(");
    for (const cJSON *value = first; value; value = single ? NULL : value->next) {
        if (!has_type(type, value))
            continue;
        xm_text_puts(out, count++ ? "| " : "");
        if (!write_constant(b, value, out))
            return false;
    }
    xm_text_puts(out, ") ");
    return count > 0 || xm_schema_fail(b, "'%s' allows no value", single ? "const" : "enum");
}
