/*
 * program.c - xmoe-server as a function: settings, start, signals, drain.
 *
 * Signals are blocked in all threads and taken one by one here: SIGTERM and SIGINT drain (new
 * requests get 503, running ones finish within limits.drain_seconds) and exit with 0, a second one
 * ends at once; SIGHUP reads the settings again. Exit status 1: could not start; 2: wrong flags or
 * settings.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "command_line.h"
#include "exchange.h"
#include "log.h"
#include "program.h"
#include "server.h"

#define MESSAGE_SIZE 640

static void block_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void reload(xm_server *server, const xm_command_line *line)
{
    char message[MESSAGE_SIZE];
    xm_settings *fresh = xm_command_line_settings(line, message, sizeof message);
    if (fresh && xm_server_reload(server, fresh, message, sizeof message))
        xm_log_line(XM_LOG_INFO, "settings read again");
    else
        xm_log_line(XM_LOG_ERROR, "settings stay as they are: %s", message);
    xm_settings_release(fresh);
}

/* Waits until no request runs or the time is up. A second signal ends the process. */
static void drain(xm_server *server, const sigset_t *signals)
{
    xm_settings *settings = xm_server_settings(server);
    int64_t end = xm_now_ns() + settings->limits_drain_seconds * 1000000000;
    xm_settings_release(settings);
    xm_server_drain(server);
    while (!xm_server_idle(server) && xm_now_ns() < end) {
        struct timespec tick = {0, 20000000};
        int signal_number = sigtimedwait(signals, NULL, &tick);
        if (signal_number == SIGTERM || signal_number == SIGINT) {
            xm_log_line(XM_LOG_WARNING, "second signal: ending at once");
            _exit(1);
        }
    }
    if (!xm_server_idle(server))
        xm_log_line(XM_LOG_WARNING, "drain time is over: cutting what still runs");
}

static int serve(xm_server *server, const xm_command_line *line, const sigset_t *signals)
{
    for (;;) {
        int signal_number = sigwaitinfo(signals, NULL);
        if (signal_number == SIGHUP) {
            reload(server, line);
        } else if (signal_number > 0) {
            xm_log_line(XM_LOG_INFO, "draining");
            drain(server, signals);
            xm_server_free(server);
            xm_log_line(XM_LOG_INFO, "bye");
            return 0;
        }
    }
}

static bool stop_is_asked(void)
{
    sigset_t pending;
    return sigpending(&pending) == 0 &&
           (sigismember(&pending, SIGTERM) == 1 || sigismember(&pending, SIGINT) == 1);
}

/* A signal need not wait for a large model. */
static bool go_on_loading(void *context, const char *what, uint64_t done, uint64_t total)
{
    (void)context;
    (void)what;
    (void)done;
    (void)total;
    return !stop_is_asked();
}

static bool model_path(const xm_settings *settings, char *path, size_t size)
{
    if (settings->model_path[0]) {
        snprintf(path, size, "%s", settings->model_path);
        return true;
    }
    if (xm_find_model(path, size))
        return true;
    xm_log_line(XM_LOG_ERROR, "no model: give one with --model FILE (the bundled "
                              "models/xmoe-small.gguf was not found)");
    return false;
}

static int start(xm_settings *settings, const xm_command_line *line)
{
    char message[MESSAGE_SIZE], path[PATH_MAX], host[256];
    sigset_t signals;
    block_signals(&signals);
    xm_log_configure(settings->log_level, settings->log_format);
    if (!model_path(settings, path, sizeof path)) {
        xm_settings_release(settings);
        return 1;
    }
    snprintf(host, sizeof host, "%s", settings->http_host);
    bool six = strchr(host, ':') != NULL;
    xm_server *server = xm_server_start(settings, message, sizeof message);
    if (!server) {
        xm_log_line(XM_LOG_ERROR, "%s", message);
        return 1;
    }
    xm_log_line(XM_LOG_INFO, "listening on http://%s%s%s:%u", six ? "[" : "", host, six ? "]" : "",
                server->port);
    if (!xm_server_load(server, path, go_on_loading, message, sizeof message)) {
        bool stopped = stop_is_asked();
        if (stopped)
            xm_log_line(XM_LOG_INFO, "stopped while loading");
        else
            xm_log_line(XM_LOG_ERROR, "cannot serve %s: %s", path, message);
        xm_server_free(server);
        return stopped ? 0 : 1;
    }
    const xmoe_model_info *info = xmoe_model_get_info(server->model);
    xm_log_line(XM_LOG_INFO,
                "ready: %s (%s, %s, %s, %.1f M parameters, %d MoE layers of %d experts)",
                server->model_id, info->architecture, info->quantization, info->isa,
                (double)info->parameter_count / 1e6, info->moe_layer_count, info->expert_count);
    return serve(server, line, &signals);
}

static int print_settings(const xm_settings *settings)
{
    xm_text text = {0};
    xm_settings_print(settings, &text);
    if (!text.failed)
        fputs(text.data, stdout);
    xm_text_free(&text);
    return 0;
}

int xm_program(int argc, char **argv)
{
    static xm_command_line line;
    char message[MESSAGE_SIZE];
    int result = 2;
    xm_settings *settings = NULL;
    if (!xm_command_line_parse(argc, argv, &line, message, sizeof message)) {
        fprintf(stderr, "xmoe-server: %s\n", message);
    } else if (line.help) {
        xm_command_line_help(stdout);
        result = 0;
    } else if (line.version) {
        printf("xmoe-server %s\n", xmoe_version());
        result = 0;
    } else if (!(settings = xm_command_line_settings(&line, message, sizeof message))) {
        fprintf(stderr, "xmoe-server: %s\n", message);
    } else if (line.print_config) {
        result = print_settings(settings);
        xm_settings_release(settings);
    } else {
        result = start(settings, &line);
    }
    xm_command_line_free(&line);
    return result;
}
