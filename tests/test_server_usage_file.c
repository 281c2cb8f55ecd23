/*
 * test_server_usage_file.c - expert usage over restarts: the usage file, the directory of
 * snapshots, and what happens where they are broken or cannot be written.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../server/file.h"
#include "server_fixture.h"

#define USAGE "/v1/experts/usage"

static char usage_path[128];     /* the usage file */
static char directory_path[128]; /* of snapshots */

static void remove_directory(const char *path)
{
    DIR *directory = opendir(path);
    for (const struct dirent *entry; directory && (entry = readdir(directory));) {
        char name[400];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlink(name);
    }
    if (directory)
        closedir(directory);
    rmdir(path);
}

static int start(void **state)
{
    if (server_make_model(state) != 0)
        return -1;
    snprintf(usage_path, sizeof usage_path, "%s/usage.json", server_directory);
    snprintf(directory_path, sizeof directory_path, "%s/snapshots", server_directory);
    return 0;
}

static int clean(void **state)
{
    (void)state;
    unlink(usage_path);
    remove_directory(directory_path);
    return 0;
}

/* Names in the directory that the server made and did not take back. */
static int temporary_files(const char *path)
{
    DIR *directory = opendir(path);
    int count = 0;
    assert_non_null(directory);
    for (const struct dirent *entry; (entry = readdir(directory));)
        count += entry->d_name[0] == '.' && strcmp(entry->d_name, ".") != 0 &&
                 strcmp(entry->d_name, "..") != 0;
    closedir(directory);
    return count;
}

static char *read_text(const char *path)
{
    xm_text text = {0};
    char message[512];
    if (!xm_file_read(path, 1 << 20, &text, message, sizeof message))
        fail_msg("%s", message);
    xm_text_puts(&text, "");
    return text.data;
}

static server_child serve(const char *save_seconds)
{
    return server_start((const char *[]){"--usage-file", usage_path, "--usage-directory",
                                         directory_path, "--usage-save-seconds", save_seconds,
                                         NULL});
}

static void work(const server_child *server, int requests)
{
    for (int i = 0; i < requests; i++)
        cJSON_Delete(server_post_json(server, "/v1/completions",
                                      "{\"prompt\": [\"lasting\", \"usage\"], \"max_tokens\": 5,"
                                      " \"ignore_eos\": true, \"cache_prompt\": false}",
                                      200));
}

static bool same_counters(const cJSON *a, const cJSON *b)
{
    return cJSON_Compare(json_at(a, "layers"), json_at(b, "layers"), true) &&
           json_number(a, "since") == json_number(b, "since") &&
           json_number(a, "tokens") == json_number(b, "tokens");
}

static void counters_last(void **state)
{
    (void)state;
    server_child server = serve("86400");
    work(&server, 3);
    cJSON *before[3], *after[3];
    const char *paths[] = {USAGE, USAGE "?phase=prefill", USAGE "?phase=decode"};
    for (int i = 0; i < 3; i++)
        before[i] = server_get_json(&server, paths[i], 200);
    http_answer made = http_call(server.port, "PUT", "/v1/experts/snapshots/kept", "", NULL);
    assert_int_equal(made.status, 201);
    http_free(&made);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
    sleep_milliseconds(1100); /* another second: `since` must not be the restart's */

    server = serve("86400");
    for (int i = 0; i < 3; i++) {
        after[i] = server_get_json(&server, paths[i], 200);
        assert_true(same_counters(before[i], after[i]));
        cJSON_Delete(after[i]);
    }
    cJSON *window = server_get_json(&server, USAGE "?window=3600", 200);
    assert_true(json_number(window, "tokens") == 0);
    cJSON *drift = server_get_json(&server, USAGE "?compare=kept", 200);
    assert_true(json_number(drift, "compare.divergence") == 0);
    assert_true(
        server_metric(&server, "xmoe_routed_tokens_total{model_name=\"model\",layer=\"3\"}") ==
        json_number(before[0], "tokens"));
    assert_true(
        server_metric(&server, "xmoe_expert_activations_total{model_name=\"model\",layer=\"1\"}") ==
        json_number(before[0], "layers.0.activations"));

    work(&server, 2);
    cJSON *more = server_get_json(&server, USAGE, 200);
    assert_true(json_number(more, "tokens") * 3 == json_number(before[0], "tokens") * 5);
    cJSON *reset = server_post_json(&server, USAGE "/reset", "", 200);
    assert_true(same_counters(more, reset));
    assert_int_equal(server_stop(&server, SIGTERM), 0);
    server = serve("86400");
    cJSON *fresh = server_get_json(&server, USAGE, 200);
    assert_true(json_number(fresh, "tokens") == 0);
    assert_true(json_number(fresh, "since") > json_number(more, "since"));
    assert_int_equal(server_stop(&server, SIGTERM), 0);
    for (int i = 0; i < 3; i++)
        cJSON_Delete(before[i]);
    cJSON_Delete(window);
    cJSON_Delete(drift);
    cJSON_Delete(more);
    cJSON_Delete(reset);
    cJSON_Delete(fresh);
    assert_int_equal(temporary_files(server_directory), 0);
    assert_int_equal(temporary_files(directory_path), 0);
}

/* What was saved survives a process that is killed. */
static void a_killed_server_keeps_what_was_saved(void **state)
{
    (void)state;
    server_child server = serve("1");
    work(&server, 1);
    cJSON *usage = server_get_json(&server, USAGE, 200);
    bool saved = false;
    for (int i = 0; i < 1000 && !saved; i++) {
        sleep_milliseconds(10);
        if (access(usage_path, F_OK) != 0)
            continue;
        char *text = read_text(usage_path);
        cJSON *file = cJSON_Parse(text);
        saved = json_number(file, "phases.all.tokens") == json_number(usage, "tokens");
        cJSON_Delete(file);
        free(text);
    }
    assert_true(saved);
    kill(server.pid, SIGKILL);
    int status;
    waitpid(server.pid, &status, 0);

    server = serve("86400");
    cJSON *again = server_get_json(&server, USAGE, 200);
    assert_true(same_counters(usage, again));
    assert_int_equal(server_stop(&server, SIGTERM), 0);
    cJSON_Delete(usage);
    cJSON_Delete(again);
}

/* The server must not start with these flags, and say the words. */
static void refuse(const char *const *flags, const char *path, const char *word)
{
    const char *arguments[16] = {"--model", server_model,        "--port", "0", "--threads",
                                 "1",       "--engine-kv-bytes", "8000000"};
    char *output = NULL;
    for (int i = 8; *flags; i++)
        arguments[i] = *flags++;
    int status = server_run(arguments, &output);
    if (status != 1 || !strstr(output, path) || !strstr(output, word))
        fail_msg("status %d, expected '%s' of %s: %s", status, word, path, output);
    free(output);
}

/* The same because of this file, which must stay as it is. */
static void refuse_text(const char *const *flags, const char *path, const char *text,
                        const char *word)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    refuse(flags, path, word);
    char *left = read_text(path);
    assert_string_equal(left, text);
    free(left);
}

static void broken_files_stop_the_start(void **state)
{
    (void)state;
    server_child server = serve("86400");
    work(&server, 1);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
    char *good = read_text(usage_path);
    size_t length = strlen(good);
    const char *const flags[] = {"--usage-file", usage_path, NULL};
    refuse_text(flags, usage_path, "", "not valid JSON");
    refuse_text(flags, usage_path, "{}", "'object'");
    for (size_t cut = 1; cut < length - 1; cut += length / 3) {
        char *text = strndup(good, cut);
        refuse_text(flags, usage_path, text, "not valid JSON");
        free(text);
    }
    static const struct {
        const char *from, *to, *word;
    } edits[] = {{"\"model\":\"model\"", "\"model\":\"other\"", "the model 'other'"},
                 {"\"experts\":8", "\"experts\":9", "9 experts"},
                 {"\"counts\":[", "\"counts\":[1000000,", "counts"},
                 {"\"steps\":", "\"steps\":-", "steps"},
                 {"\"phase\":\"decode\"", "\"phase\":\"prefill\"", "phases.decode"}};
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        const char *at = strstr(good, edits[i].from);
        assert_non_null(at);
        xm_text text = {0};
        xm_text_add(&text, good, (size_t)(at - good));
        xm_text_puts(&text, edits[i].to);
        xm_text_puts(&text, at + strlen(edits[i].from));
        refuse_text(flags, usage_path, text.data, edits[i].word);
        xm_text_free(&text);
    }
    refuse((const char *[]){"--usage-file", server_directory, NULL}, server_directory,
           "it is not a file");
    free(good);
}

static void broken_snapshots_stop_the_start(void **state)
{
    (void)state;
    server_child server = serve("86400");
    char path[192], foreign[192];
    http_answer made = http_call(server.port, "PUT", "/v1/experts/snapshots/one", "", NULL);
    http_free(&made);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
    snprintf(path, sizeof path, "%s/two.json", directory_path);
    snprintf(foreign, sizeof foreign, "%s/notes.txt", directory_path);
    const char *const flags[] = {"--usage-directory", directory_path, NULL};
    refuse_text(flags, path, "{\"object\": \"experts.snapshot\"}", "'model'");
    unlink(path);
    FILE *file = fopen(foreign, "wb");
    assert_non_null(file);
    fclose(file);
    refuse((const char *[]){"--usage-directory", directory_path, "--usage-snapshots", "0", NULL},
           directory_path, "usage.snapshots");
    server = serve("86400");
    cJSON *list = server_get_json(&server, "/v1/experts/snapshots", 200);
    assert_int_equal(cJSON_GetArraySize(json_at(list, "data")), 1);
    assert_string_equal(json_text(list, "data.0.id"), "one");
    cJSON_Delete(list);
    http_answer gone = http_call(server.port, "DELETE", "/v1/experts/snapshots/one", "", NULL);
    assert_int_equal(gone.status, 204);
    http_free(&gone);
    snprintf(path, sizeof path, "%s/one.json", directory_path);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(foreign, F_OK), 0);

    /* Without its directory, a snapshot can be neither kept nor answered for. */
    remove_directory(directory_path);
    made = http_call(server.port, "PUT", "/v1/experts/snapshots/lost", "", NULL);
    assert_int_equal(made.status, 500);
    assert_non_null(strstr(made.body, "snapshot_file"));
    http_free(&made);
    cJSON_Delete(server_get_json(&server, "/v1/experts/snapshots/lost", 404));
    assert_int_equal(server_stop(&server, SIGTERM), 0);
}

static int count_in(const char *text, const char *word)
{
    int count = 0;
    for (; (text = strstr(text, word)); text++)
        count++;
    return count;
}

static bool log_has(const server_child *server, const char *word)
{
    for (int i = 0; i < 1000; i++) {
        char *log = server_log(server);
        bool found = strstr(log, word) != NULL;
        free(log);
        if (found)
            return true;
        sleep_milliseconds(10);
    }
    return false;
}

/* One warning per outage, however many saves fail; then it goes on. */
static void failing_saves_harm_nothing(void **state)
{
    (void)state;
    char directory[128], path[160];
    snprintf(directory, sizeof directory, "%s/later", server_directory);
    snprintf(path, sizeof path, "%s/usage.json", directory);
    server_child server =
        server_start((const char *[]){"--usage-file", path, "--usage-save-seconds", "1", NULL});
    assert_true(log_has(&server, "expert usage is not saved"));
    sleep_milliseconds(2200);
    work(&server, 1);
    assert_int_equal(mkdir(directory, 0700), 0);
    assert_true(log_has(&server, "expert usage is saved again"));
    char *log = server_log(&server);
    assert_int_equal(count_in(log, "expert usage is not saved"), 1);
    free(log);
    assert_int_equal(server_stop(&server, SIGTERM), 0);
    assert_int_equal(access(path, R_OK), 0);
    remove_directory(directory);
}

/* A write that fails in the middle leaves the old file and no other. */
static void files_are_replaced_whole(void **state)
{
    (void)state;
    char message[512] = "", link_path[128];
    xm_text text = {0};
    xm_text_puts(&text, "old");
    assert_true(xm_file_replace(usage_path, &text, message, sizeof message));
    for (int i = 0; i < 1000; i++)
        xm_text_puts(&text, "a new and longer text\n");
    struct rlimit before, short_files = {.rlim_cur = 4096};
    getrlimit(RLIMIT_FSIZE, &before);
    short_files.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &short_files);
    bool good = xm_file_replace(usage_path, &text, message, sizeof message);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_false(good);
    assert_non_null(strstr(message, usage_path));
    assert_int_equal(temporary_files(server_directory), 0);
    char *left = read_text(usage_path);
    assert_string_equal(left, "old");
    free(left);

    snprintf(link_path, sizeof link_path, "%s/link", server_directory);
    assert_int_equal(symlink(usage_path, link_path), 0);
    assert_true(xm_file_replace(link_path, &text, message, sizeof message));
    struct stat status;
    assert_int_equal(lstat(link_path, &status), 0);
    assert_true(S_ISLNK(status.st_mode));
    left = read_text(usage_path);
    assert_string_equal(left, text.data);
    free(left);
    assert_false(xm_file_replace("/nonexistent/x", &text, message, sizeof message));
    assert_false(xm_file_read("/nonexistent/x", 10, &text, message, sizeof message));
    assert_false(xm_file_read(usage_path, 10, &text, message, sizeof message));
    assert_true(xm_file_remove(link_path, message, sizeof message));
    assert_true(xm_file_remove(link_path, message, sizeof message));
    xm_text_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(counters_last, clean),
        cmocka_unit_test_teardown(a_killed_server_keeps_what_was_saved, clean),
        cmocka_unit_test_teardown(broken_files_stop_the_start, clean),
        cmocka_unit_test_teardown(broken_snapshots_stop_the_start, clean),
        cmocka_unit_test_teardown(failing_saves_harm_nothing, clean),
        cmocka_unit_test_teardown(files_are_replaced_whole, clean),
    };
    return cmocka_run_group_tests(tests, start, server_remove_model);
}
