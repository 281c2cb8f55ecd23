/*
 * test_server_settings.c - the table of settings against its documents, and where values come from.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../server/command_line.h"
#include "../server/openapi.h"
#include "../server/route.h"
#include "server_fixture.h"

static char *read_text(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        fail_msg("cannot read %s: run the tests from the project's root", path);
    char *text = calloc(1, 1 << 20);
    assert_non_null(text);
    assert_true(fread(text, 1, (1 << 20) - 1, file) > 0);
    fclose(file);
    return text;
}

static xm_settings *load(const char *file, char *const *environment, const xm_setting_flag *flags,
                         size_t count)
{
    char message[512] = "";
    xm_settings *settings =
        xm_settings_load(file, environment, flags, count, message, sizeof message);
    if (!settings)
        fail_msg("%s", message);
    return settings;
}

/* Loading must fail, and the message must hold each of the words. */
static void refuse(const char *file, const char *variable, const char *const *words)
{
    char message[512] = "";
    char *environment[] = {(char *)variable, NULL};
    assert_null(
        xm_settings_load(file, variable ? environment : NULL, NULL, 0, message, sizeof message));
    for (; *words; words++)
        if (!strstr(message, *words))
            fail_msg("'%s' is not in: %s", *words, message);
}

static const xm_setting *setting_named(const char *name)
{
    for (size_t i = 0; i < xm_setting_count; i++)
        if (strcmp(xm_setting_table[i].name, name) == 0)
            return &xm_setting_table[i];
    fail_msg("no setting %s", name);
    return NULL;
}

static void readme_lists_every_setting(void **state)
{
    (void)state;
    char *readme = read_text("config/README.md");
    size_t rows = 0;
    for (const char *at = readme; (at = strstr(at, "\n| `")); at++)
        rows++;
    assert_int_equal(rows, xm_setting_count);
    for (size_t i = 0; i < xm_setting_count; i++) {
        const xm_setting *setting = &xm_setting_table[i];
        char start[128], value[96];
        snprintf(start, sizeof start, "\n| `%s`%s | ", setting->name,
                 setting->reloadable ? " ↻" : "");
        const char *row = strstr(readme, start);
        if (!row)
            fail_msg("config/README.md has no row%s", start);
        char *line = strndup(row + 1, strcspn(row + 1, "\n"));
        snprintf(value, sizeof value, "| `%s` |", setting->default_text);
        assert_true(!setting->default_text[0] || strstr(line, value));
        for (const char *word = setting->choices; word && *word; word += strspn(word, " ")) {
            size_t length = strcspn(word, " ");
            snprintf(value, sizeof value, "`%.*s`", (int)length, word);
            if (!strstr(line, value))
                fail_msg("%s: config/README.md lacks %s", setting->name, value);
            word += length;
        }
        if (!strstr(line, setting->help))
            fail_msg("%s: config/README.md says otherwise than --help", setting->name);
        free(line);
    }
    free(readme);
}

/* config/xmoe.json is what --print-config prints without anything set. */
static void file_holds_the_defaults(void **state)
{
    (void)state;
    xm_settings *defaults = load(NULL, NULL, NULL, 0);
    xm_settings *from_file = load("config/xmoe.json", NULL, NULL, 0);
    xm_text printed = {0}, printed_file = {0};
    char *text = read_text("config/xmoe.json");
    xm_settings_print(defaults, &printed);
    xm_settings_print(from_file, &printed_file);
    assert_string_equal(printed.data, text);
    assert_string_equal(printed_file.data, text);
    xm_text_free(&printed);
    xm_text_free(&printed_file);
    xm_settings_release(defaults);
    xm_settings_release(from_file);
    free(text);
}

static void later_sources_win(void **state)
{
    (void)state;
    char path[128];
    server_write_file("some.json",
                      "{\"http\": {\"port\": 1, \"threads\": 5, \"api_keys\": [\"a\", \"b\"]},"
                      " \"engine\": {\"prefix_cache\": false}, \"router\": {\"threshold\": 0.25}}",
                      path, sizeof path);
    char *environment[] = {(char *)"XMOE_HTTP_PORT=2",
                           (char *)"XMOE_LOG_LEVEL=debug",
                           (char *)"HOME=/",
                           (char *)"XMOE_ISA=scalar",
                           (char *)"XMOE_SERVICE_HOST=10.0.0.1",
                           (char *)"XMOE_PORT=tcp://10.0.0.1:80",
                           NULL};
    xm_setting_flag flag = {setting_named("http.port"), "3", "the flag --port"};
    xm_settings *settings = load(path, environment, &flag, 1);
    assert_int_equal(settings->http_port, 3);
    assert_int_equal(settings->http_threads, 5);
    assert_string_equal(settings->http_api_keys, "a,b");
    assert_false(settings->engine_prefix_cache);
    assert_true(settings->router_threshold == 0.25);
    assert_string_equal(settings->log_level, "debug");
    assert_int_equal(settings->engine_max_sequences, 64);
    xm_settings_release(settings);
    settings = load(path, environment, NULL, 0);
    assert_int_equal(settings->http_port, 2);
    xm_settings_release(settings);
}

static void faults_name_setting_and_source(void **state)
{
    (void)state;
    static const char *const bodies[][3] = {
        {"{\"http\": {\"prot\": 1}}", "http.prot", "wrong.json"},
        {"{\"htp\": {\"port\": 1}}", "htp.port", "wrong.json"},
        {"{\"port\": 1}", "port", "wrong.json"},
        {"{\"http\": {\"port\": 65536}}", "http.port", "65535"},
        {"{\"http\": {\"port\": 1.5}}", "http.port", "whole number"},
        {"{\"http\": {\"port\": \"1\"}}", "http.port", "a number"},
        {"{\"http\": {\"api_keys\": \"a\"}}", "http.api_keys", "list"},
        {"{\"http\": {\"api_keys\": [1]}}", "http.api_keys", "list"},
        {"{\"log\": {\"level\": \"loud\"}}", "log.level", "debug info warning error"},
        {"{\"engine\": {\"prefix_cache\": 1}}", "engine.prefix_cache", "true or false"},
        {"{\"http\": {\"port\": 1, \"port\": 2}}", "port", "twice"},
        {"{\"http\": {\"port\": 1}", "wrong.json", "not valid JSON"},
        {"[]", "wrong.json", "object"},
    };
    char path[128];
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        server_write_file("wrong.json", bodies[i][0], path, sizeof path);
        refuse(path, NULL, (const char *[]){bodies[i][1], bodies[i][2], NULL});
    }
    refuse("/nonexistent/xmoe.json", NULL, (const char *[]){"/nonexistent/xmoe.json", NULL});
    refuse(NULL, "XMOE_HTTP_PORT=-1", (const char *[]){"http.port", "XMOE_HTTP_PORT", NULL});
    refuse(NULL, "XMOE_HTTP_PORT=", (const char *[]){"http.port", "XMOE_HTTP_PORT", NULL});
    refuse(NULL, "XMOE_HTTP_PORT=nan", (const char *[]){"http.port", "XMOE_HTTP_PORT", NULL});
    refuse(NULL, "XMOE_HTTP_PORTS=1", (const char *[]){"XMOE_HTTP_PORTS", NULL});
    refuse(NULL, "XMOE_HTTP_API_KEY_FILE=/nonexistent", (const char *[]){"/nonexistent", NULL});
}

static void key_file_is_read(void **state)
{
    (void)state;
    char path[128], variable[192];
    server_write_file("keys", "# ours\nfirst\n\n  second  \n", path, sizeof path);
    snprintf(variable, sizeof variable, "XMOE_HTTP_API_KEY_FILE=%s", path);
    char *environment[] = {variable, (char *)"XMOE_HTTP_API_KEYS=zero", NULL};
    xm_settings *settings = load(NULL, environment, NULL, 0);
    assert_string_equal(settings->http_api_keys, "zero,first,second");
    assert_true(xm_key_matches(settings, "first") && xm_key_matches(settings, "zero"));
    const char *wrong[] = {"", "firs", "first1", "zero,first", "ours", "seconD"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_false(xm_key_matches(settings, wrong[i]));
    xm_settings_release(settings);
}

static void reload_takes_what_may_change(void **state)
{
    (void)state;
    xm_setting_flag flags[] = {{setting_named("http.port"), "7", "a test"},
                               {setting_named("log.level"), "error", "a test"},
                               {setting_named("limits.body_bytes"), "77", "a test"}};
    xm_settings *old = load(NULL, NULL, NULL, 0), *fresh = load(NULL, NULL, flags, 3);
    xm_settings *merged = xm_settings_reload(old, fresh);
    assert_int_equal(merged->http_port, 8080);
    assert_string_equal(merged->log_level, "error");
    assert_int_equal(merged->limits_body_bytes, 77);
    xm_settings_release(old);
    xm_settings_release(fresh);
    xm_settings_release(merged);
}

static void command_line_is_understood(void **state)
{
    (void)state;
    char *output = NULL;
    assert_int_equal(server_run((const char *[]){"--help", NULL}, &output), 0);
    for (size_t i = 0; i < xm_setting_count; i++) {
        char name[96];
        xm_setting_flag_name(&xm_setting_table[i], name, sizeof name);
        assert_non_null(strstr(output, name));
    }
    free(output);
    assert_int_equal(server_run((const char *[]){"--version", NULL}, &output), 0);
    assert_memory_equal(output, "xmoe-server 0.1.0", 17);
    free(output);
    assert_int_equal(
        server_run((const char *[]){"--print-config", "--port=9", "--limits-body-bytes", "10",
                                    "--set", "log.format=json", NULL},
                   &output),
        0);
    cJSON *tree = cJSON_Parse(output);
    assert_true(json_number(tree, "http.port") == 9);
    assert_true(json_number(tree, "limits.body_bytes") == 10);
    assert_string_equal(json_text(tree, "log.format"), "json");
    assert_null(json_at(tree, "http.api_keys"));
    cJSON_Delete(tree);
    free(output);
    static const char *const wrong[][4] = {
        {"--port", NULL},          {"--prot", "1", NULL},        {"--port", "x", NULL},
        {"--set", "a.b=1", NULL},  {"--set", "http.port", NULL}, {"model.gguf", NULL},
        {"--port", "70000", NULL}, {"--config", "/none", NULL},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(server_run(wrong[i], &output), 2);
        assert_non_null(strstr(output, "xmoe-server: "));
        free(output);
    }
    assert_int_equal(
        server_run((const char *[]){"--port", "0", "--model", "/none.gguf", NULL}, &output), 1);
    assert_non_null(strstr(output, "/none.gguf"));
    free(output);
    assert_int_equal(server_run((const char *[]){"--port", "0", "--host", "256.1.1.1.1", "--model",
                                                 server_model, NULL},
                                &output),
                     1);
    assert_non_null(strstr(output, "256.1.1.1.1"));
    free(output);
}

/* The program carries the file as it is now, and the file has every route. */
static void description_is_complete(void **state)
{
    (void)state;
    char *text = read_text("config/openapi.json");
    size_t length = 0;
    const char *inside = xm_openapi_text(&length);
    assert_int_equal(length, strlen(text));
    assert_memory_equal(inside, text, length);
    cJSON *tree = cJSON_Parse(text);
    assert_non_null(tree);
    assert_memory_equal(json_text(tree, "openapi"), "3.1.", 4);
    const cJSON *paths = json_at(tree, "paths");
    int operations = 0;
    for (const cJSON *path = paths->child; path; path = path->next)
        operations += cJSON_GetArraySize(path);
    assert_int_equal(operations, xm_route_count);
    for (size_t i = 0; i < xm_route_count; i++) {
        char name[96], method[8] = "";
        size_t end = strlen(xm_route_table[i].path);
        bool below = end > 1 && xm_route_table[i].path[end - 1] == '/';
        snprintf(name, sizeof name, "%s%s", xm_route_table[i].path, below ? "{id}" : "");
        for (size_t c = 0; xm_route_table[i].method[c]; c++)
            method[c] = (char)(xm_route_table[i].method[c] | 0x20);
        const cJSON *path = cJSON_GetObjectItemCaseSensitive(paths, name);
        if (!path || !cJSON_GetObjectItemCaseSensitive(path, method))
            fail_msg("config/openapi.json lacks %s %s", method, name);
    }
    cJSON_Delete(tree);
    free(text);
}

/* A validator is not always at hand; it then says so. */
static void description_is_valid(void **state)
{
    (void)state;
    int status = system("python3 -c 'import openapi_spec_validator' 2>/dev/null");
    if (status != 0) {
        print_message("SKIPPED: python3 without openapi_spec_validator: openapi.json is not "
                      "validated\n");
        skip();
    }
    status = system("python3 -c 'import json, openapi_spec_validator as v;"
                    " v.validate(json.load(open(\"config/openapi.json\")))'");
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readme_lists_every_setting),
        cmocka_unit_test(file_holds_the_defaults),
        cmocka_unit_test(later_sources_win),
        cmocka_unit_test(faults_name_setting_and_source),
        cmocka_unit_test(key_file_is_read),
        cmocka_unit_test(reload_takes_what_may_change),
        cmocka_unit_test(command_line_is_understood),
        cmocka_unit_test(description_is_complete),
        cmocka_unit_test(description_is_valid),
    };
    return cmocka_run_group_tests(tests, server_make_model, server_remove_model);
}
