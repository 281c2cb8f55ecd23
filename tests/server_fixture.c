/*
 * server_fixture.c - see server_fixture.h: models, children, checked requests.
 */
#include "server_fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../server/program.h"
#include "xmoe.h"

char server_directory[64], server_model[96];

int server_make_chat_model(const char *chat_template)
{
    xmoe_error error = {0};
    xmoe_random_model shape = {
        .context_length = 512,
        .embedding_length = 32,
        .layer_count = 4,
        .head_count = 2,
        .feed_forward_length = 64,
        .expert_count = 8,
        .expert_feed_forward_length = 16,
        .vocabulary_size = 300,
        .moe_every = 2,
        .router = {.type = XMOE_ROUTER_THRESHOLD, .threshold = 0.7f, .top_k = 2, .min_experts = 1},
        .router_spread = 2,
        .type = "F32",
        .chat_template = chat_template,
        .seed = 7,
    };
    snprintf(server_directory, sizeof server_directory, "/tmp/xmoe-server-XXXXXX");
    if (!mkdtemp(server_directory))
        return -1;
    snprintf(server_model, sizeof server_model, "%s/model.gguf", server_directory);
    return xmoe_random_model_write(server_model, &shape, NULL, NULL, &error) == XMOE_OK ? 0 : -1;
}

int server_make_model(void **state)
{
    (void)state;
    return server_make_chat_model(NULL);
}

void server_rewrite_model(const char *const *skip, void (*write_keys)(xm_gguf_writer *writer))
{
    xm_gguf *file;
    xm_gguf_writer *writer;
    assert_int_equal(xm_gguf_open(server_model, &file, NULL), XMOE_OK);
    assert_int_equal(xm_gguf_writer_create(server_model, &writer, NULL), XMOE_OK);
    xm_gguf_writer_copy_keys(writer, file, skip);
    write_keys(writer);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(file); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(file, i);
        xm_gguf_writer_tensor(writer, tensor->name.data, tensor->traits->type, tensor->dimensions,
                              tensor->shape);
    }
    xm_gguf_writer_begin(writer);
    for (uint64_t i = 0; i < xm_gguf_tensor_count(file); i++) {
        const xm_gguf_tensor *tensor = xm_gguf_tensor_at(file, i);
        xm_gguf_writer_data(writer, tensor->data, tensor->bytes);
    }
    assert_int_equal(xm_gguf_writer_finish(writer, NULL), XMOE_OK);
    xm_gguf_close(file);
}

int server_remove_model(void **state)
{
    (void)state;
    DIR *directory = opendir(server_directory);
    if (!directory)
        return -1;
    for (const struct dirent *entry; (entry = readdir(directory));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", server_directory, entry->d_name);
        if (entry->d_name[0] != '.')
            unlink(path);
    }
    closedir(directory);
    return rmdir(server_directory);
}

void server_write_file(const char *name, const char *text, char *path, size_t size)
{
    snprintf(path, size, "%s/%s", server_directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

void sleep_milliseconds(int milliseconds)
{
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    nanosleep(&time, NULL);
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t length = 0, capacity = 1 << 16;
    char *text = calloc(1, capacity);
    assert_non_null(text);
    for (size_t got; file && (got = fread(text + length, 1, capacity - length - 1, file)) > 0;) {
        length += got;
        if (capacity - length < 2) {
            capacity *= 2;
            text = realloc(text, capacity);
            assert_non_null(text);
        }
    }
    if (file)
        fclose(file);
    text[length] = '\0';
    return text;
}

/* Forks; the child runs the program with its output in the file. Tests have no threads of their own
 * while they start servers. */
static pid_t spawn(const char *const *arguments, const char *output)
{
    char *argv[64] = {(char *)"xmoe-server"};
    int argc = 1;
    while (*arguments && argc < 63)
        argv[argc++] = (char *)*arguments++;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    int fd = open(output, O_WRONLY | O_CREAT | O_APPEND | O_TRUNC, 0600);
    dup2(fd, STDOUT_FILENO);
    dup2(fd, STDERR_FILENO);
    close(fd);
    unsetenv("XMOE_CONFIG");
    exit(xm_program(argc, argv));
}

static int wait_for(pid_t pid)
{
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int server_run(const char *const *arguments, char **output)
{
    char path[96];
    snprintf(path, sizeof path, "%s/output", server_directory);
    int status = wait_for(spawn(arguments, path));
    *output = read_file(path);
    return status;
}

server_child server_start(const char *const *flags)
{
    static int serial;
    server_child child = {0};
    const char *arguments[64] = {"--model",           server_model, "--port",         "0",
                                 "--threads",         "2",          "--http-threads", "2",
                                 "--engine-kv-bytes", "8000000"};
    for (int i = 10; flags && *flags && i < 63; i++)
        arguments[i] = *flags++;
    snprintf(child.log, sizeof child.log, "%s/log-%d", server_directory, serial++);
    child.pid = spawn(arguments, child.log);
    for (int i = 0; i < 3000; i++) {
        char *log = server_log(&child);
        const char *address = strstr(log, "listening on http://");
        const char *port = address ? strchr(address + 20, ':') : NULL;
        bool ready = strstr(log, "ready: ") != NULL;
        if (port)
            child.port = atoi(port + 1);
        free(log);
        if (ready)
            return child;
        if (!server_alive(&child))
            break;
        sleep_milliseconds(10);
    }
    char *log = server_log(&child);
    fail_msg("the server did not start:\n%s", log);
    return child;
}

bool server_alive(const server_child *child)
{
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
}

int server_stop(const server_child *child, int signal_number)
{
    if (signal_number)
        kill(child->pid, signal_number);
    int status = wait_for(child->pid);
    if (status != 0) {
        char *log = server_log(child);
        size_t length = strlen(log);
        fprintf(stderr, "server ended with %d:\n%s\n", status,
                length > 8000 ? log + length - 8000 : log);
        free(log);
    }
    return status;
}

char *server_log(const server_child *child)
{
    return read_file(child->log);
}

http_answer server_post(const server_child *child, const char *path, const char *body)
{
    return http_call(child->port, "POST", path, "Content-Type: application/json\r\n", body);
}

http_answer server_get(const server_child *child, const char *path)
{
    return http_call(child->port, "GET", path, "", NULL);
}

static cJSON *checked(http_answer answer, const char *path, int status)
{
    if (answer.status != status)
        fail_msg("%s: status %d instead of %d: %s", path, answer.status, status,
                 answer.body ? answer.body : "");
    cJSON *tree = cJSON_Parse(answer.body);
    if (!tree)
        fail_msg("%s: not JSON: %s", path, answer.body);
    http_free(&answer);
    return tree;
}

cJSON *server_post_json(const server_child *child, const char *path, const char *body, int status)
{
    return checked(server_post(child, path, body), path, status);
}

cJSON *server_get_json(const server_child *child, const char *path, int status)
{
    return checked(server_get(child, path), path, status);
}

double server_metric(const server_child *child, const char *series)
{
    http_answer answer = server_get(child, "/metrics");
    size_t length = strlen(series);
    double value = -1;
    for (const char *line = answer.body; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, series, length) == 0 && line[length] == ' ')
            value = atof(line + length + 1);
    }
    http_free(&answer);
    return value;
}

bool server_metric_becomes(const server_child *child, const char *series, double value)
{
    for (int i = 0; i < 1000; i++) {
        if (server_metric(child, series) == value)
            return true;
        sleep_milliseconds(10);
    }
    return false;
}

const cJSON *json_at(const cJSON *tree, const char *path)
{
    while (tree && *path) {
        char name[64];
        size_t length = strcspn(path, ".");
        snprintf(name, sizeof name, "%.*s", (int)length, path);
        tree = cJSON_IsArray(tree) ? cJSON_GetArrayItem(tree, atoi(name))
                                   : cJSON_GetObjectItemCaseSensitive(tree, name);
        path += length + (path[length] == '.');
    }
    return tree;
}

double json_number(const cJSON *tree, const char *path)
{
    const cJSON *value = json_at(tree, path);
    if (!cJSON_IsNumber(value))
        fail_msg("no number at %s in %s", path, cJSON_PrintUnformatted(tree));
    return value->valuedouble;
}

const char *json_text(const cJSON *tree, const char *path)
{
    const cJSON *value = json_at(tree, path);
    if (!cJSON_IsString(value))
        fail_msg("no string at %s in %s", path, cJSON_PrintUnformatted(tree));
    return value->valuestring;
}
