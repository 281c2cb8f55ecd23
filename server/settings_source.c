/*
 * settings_source.c - settings from a JSON file and from the environment.
 *
 * Unknown names are faults here, because a misspelt limit is a limit that is not there. Two kinds
 * of variables are left alone: those of other parts of xmoe, and the service links that Kubernetes
 * puts into every container (XMOE_SERVICE_HOST, XMOE_PORT=tcp://...) where a service is called
 * xmoe.
 */
#include "settings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "file.h"

#define FILE_LIMIT (1 << 20)

static const xm_setting *find(const char *section, const char *name)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", section, name);
    for (size_t i = 0; i < xm_setting_count; i++)
        if (strcmp(xm_setting_table[i].name, full) == 0)
            return &xm_setting_table[i];
    return NULL;
}

/* A JSON list of strings as the text that a flag would give. */
static bool join(const cJSON *list, xm_text *text)
{
    for (const cJSON *item = list->child; item; item = item->next) {
        if (!cJSON_IsString(item) || strchr(item->valuestring, ','))
            return false;
        xm_text_format(text, "%s%s", text->length ? "," : "", item->valuestring);
    }
    xm_text_puts(text, "");
    return !text->failed;
}

/* The text that a flag would give for a JSON value of the setting's type; NULL: another type. */
static bool value_text(const xm_setting *setting, const cJSON *value, xm_text *text)
{
    switch (setting->type) {
    case XM_SETTING_LIST:
        return cJSON_IsArray(value) && join(value, text);
    case XM_SETTING_INTEGER:
    case XM_SETTING_NUMBER:
        if (!cJSON_IsNumber(value))
            return false;
        xm_text_format(text, "%.17g", value->valuedouble);
        return !text->failed;
    case XM_SETTING_BOOL:
        if (!cJSON_IsBool(value))
            return false;
        xm_text_puts(text, cJSON_IsTrue(value) ? "true" : "false");
        return !text->failed;
    default:
        if (!cJSON_IsString(value))
            return false;
        xm_text_puts(text, value->valuestring);
        return !text->failed;
    }
}

static bool apply(xm_settings *settings, const char *path, const char *section, const cJSON *value,
                  char *message, size_t size)
{
    static const char *const type_names[] = {"a string", "a list of strings", "a string",
                                             "a number", "a number",          "true or false"};
    const xm_setting *setting = find(section, value->string);
    if (!setting) {
        snprintf(message, size, "unknown setting '%.40s.%.40s' in %s", section, value->string,
                 path);
        return false;
    }
    xm_text text = {0};
    bool good = value_text(setting, value, &text);
    if (good)
        good = xm_settings_set(settings, setting, text.data, path, message, size);
    else
        snprintf(message, size, "setting '%s' in %s must be %s", setting->name, path,
                 type_names[setting->type]);
    xm_text_free(&text);
    return good;
}

static bool apply_file(xm_settings *settings, const char *path, const cJSON *tree, char *message,
                       size_t size)
{
    if (!cJSON_IsObject(tree)) {
        snprintf(message, size, "%s must hold one JSON object", path);
        return false;
    }
    for (const cJSON *section = tree->child; section; section = section->next) {
        if (!cJSON_IsObject(section)) {
            snprintf(message, size, "unknown setting '%.80s' in %s", section->string, path);
            return false;
        }
        for (const cJSON *value = section->child; value; value = value->next)
            if (!apply(settings, path, section->string, value, message, size))
                return false;
    }
    return true;
}

bool xm_settings_read_file(xm_settings *settings, const char *path, char *message, size_t size)
{
    xm_text text = {0};
    bool good = xm_file_read(path, FILE_LIMIT, &text, message, size);
    if (good) {
        xm_problem problem = {0};
        cJSON *tree = xm_json_parse_named("the file", XM_JSON_VALUES, text.data ? text.data : "",
                                          text.length, &problem);
        if (tree) {
            good = apply_file(settings, path, tree, message, size);
        } else {
            snprintf(message, size, "%s: %s", path, problem.message);
            good = false;
        }
        cJSON_Delete(tree);
    }
    xm_text_free(&text);
    return good;
}

/* One key per line; blank lines and lines that begin with # are skipped. */
bool xm_settings_read_keys(xm_settings *settings, char *message, size_t size)
{
    xm_text file = {0}, keys = {0};
    if (!settings->http_api_key_file[0])
        return true;
    bool good = xm_file_read(settings->http_api_key_file, FILE_LIMIT, &file, message, size);
    xm_text_puts(&keys, settings->http_api_keys);
    char *rest = NULL;
    for (char *key = good && file.data ? strtok_r(file.data, "\r\n", &rest) : NULL; key;
         key = strtok_r(NULL, "\r\n", &rest)) {
        key += strspn(key, " \t");
        key[strcspn(key, " \t,")] = '\0';
        if (key[0] && key[0] != '#')
            xm_text_format(&keys, "%s%s", keys.length ? "," : "", key);
    }
    if (good && keys.length == 0) {
        snprintf(message, size, "setting 'http.api_key_file': %s holds no key",
                 settings->http_api_key_file);
        good = false;
    }
    if (good && !keys.failed) {
        free(settings->http_api_keys);
        settings->http_api_keys = keys.data;
        keys = (xm_text){0};
    }
    xm_text_free(&file);
    xm_text_free(&keys);
    return good;
}

/* Variables with our prefix that are none of our settings and yet no mistake. */
static bool is_foreign(const char *name, const char *value)
{
    return strcmp(name, "XMOE_ISA") == 0 || strcmp(name, "XMOE_CONFIG") == 0 ||
           strcmp(name, "XMOE_API_KEY") == 0 || strncmp(name, "XMOE_TEST", 9) == 0 ||
           strstr(name, "_SERVICE_HOST") || strstr(name, "_SERVICE_PORT") ||
           strncmp(value, "tcp://", 6) == 0 || strncmp(value, "udp://", 6) == 0 ||
           strstr(name, "_TCP_") || strstr(name, "_UDP_");
}

static bool apply_variable(xm_settings *settings, const char *name, const char *value,
                           char *message, size_t size)
{
    if (is_foreign(name, value))
        return true;
    for (size_t i = 0; i < xm_setting_count; i++) {
        char variable[96], source[128];
        xm_setting_variable(&xm_setting_table[i], variable, sizeof variable);
        if (strcmp(variable, name) != 0)
            continue;
        snprintf(source, sizeof source, "environment variable %s", name);
        return xm_settings_set(settings, &xm_setting_table[i], value, source, message, size);
    }
    snprintf(message, size, "unknown setting in environment variable %s", name);
    return false;
}

bool xm_settings_read_environment(xm_settings *settings, char *const *environment, char *message,
                                  size_t size)
{
    for (; *environment; environment++) {
        const char *equals = strchr(*environment, '=');
        char name[96];
        if (!equals || strncmp(*environment, "XMOE_", 5) != 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(equals - *environment), *environment);
        if (!apply_variable(settings, name, equals + 1, message, size))
            return false;
    }
    return true;
}
