/*
 * usage_fetch.c - see usage_fetch.h. What the server answers is as untrusted as a file.
 */
#include "usage_fetch.h"

#include "cli.h"
#include "json.h"

#include <cjson/cJSON.h>
#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { LARGEST_ANSWER = 64 << 20, URL_BYTES = 2048 };

typedef struct {
    char *data; /* NUL added; NULL: empty */
    size_t length;
    long status; /* of HTTP */
} answer;

typedef struct {
    const fetch_settings *settings;
    CURL *curl;
    struct curl_slist *headers;
    bool finish; /* go on in spite of Ctrl-C */
} client;

static size_t on_data(char *data, size_t size, size_t count, void *context)
{
    answer *to = context;
    size_t bytes = size * count;
    if (bytes > LARGEST_ANSWER - to->length) {
        return 0;
    }
    char *grown = realloc(to->data, to->length + bytes + 1);
    if (grown == NULL) {
        return 0;
    }
    memcpy(grown + to->length, data, bytes);
    to->data = grown;
    to->length += bytes;
    grown[to->length] = '\0';
    return bytes;
}

static int on_progress(void *context, curl_off_t download, curl_off_t downloaded, curl_off_t upload,
                       curl_off_t uploaded)
{
    (void)download, (void)downloaded, (void)upload, (void)uploaded;
    const client *self = context;
    return cli_interrupted() && !self->finish;
}

/* The message of an error object, or NULL. */
static const char *error_message(const cJSON *tree)
{
    const cJSON *error = cJSON_GetObjectItemCaseSensitive(tree, "error");
    const cJSON *message = cJSON_GetObjectItemCaseSensitive(error, "message");
    return cJSON_IsString(message) && json_is_plain(message->valuestring) ? message->valuestring
                                                                          : NULL;
}

static void report_refusal(const char *method, const char *url, const answer *from)
{
    cJSON *tree = from->data != NULL ? cJSON_ParseWithLength(from->data, from->length) : NULL;
    const char *message = error_message(tree);
    cli_fail("%s %s: HTTP %ld%s%s", method, url, from->status, message != NULL ? ": " : "",
             message != NULL ? message : "");
    cJSON_Delete(tree);
}

/* One exchange; body: JSON to send, or NULL. False after a message, also if it was refused. */
static bool exchange(client *self, const char *method, const char *url, const char *body,
                     answer *result)
{
    CURL *curl = self->curl;
    char problem[CURL_ERROR_SIZE] = "";
    curl_easy_reset(curl); /* keeps the connection */
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    if (body != NULL) {
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    }
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, self->headers);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "xmoe-usage");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(self->settings->timeout * 1000));
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, problem);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, result);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, self);
    CURLcode code = curl_easy_perform(curl);
    if (code != CURLE_OK) {
        if (code != CURLE_ABORTED_BY_CALLBACK) {
            cli_fail("%s %s: %s", method, url,
                     problem[0] != '\0' ? problem : curl_easy_strerror(code));
        }
        return false;
    }
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &result->status);
    if (result->status < 200 || result->status > 299) {
        report_refusal(method, url, result);
        return false;
    }
    return true;
}

static bool add_header(client *self, const char *text)
{
    struct curl_slist *longer = curl_slist_append(self->headers, text);
    if (longer == NULL) {
        cli_fail("out of memory");
        return false;
    }
    self->headers = longer;
    return true;
}

static bool add_headers(client *self)
{
    const char *key = self->settings->api_key;
    char text[1024];
    if (key == NULL || key[0] == '\0') {
        return add_header(self, "Content-Type: application/json");
    }
    if (!json_is_plain(key) || strlen(key) > sizeof text - 64) {
        cli_fail("the API key is too long or has control characters");
        return false;
    }
    snprintf(text, sizeof text, "Authorization: Bearer %s", key);
    return add_header(self, "Content-Type: application/json") && add_header(self, text);
}

static bool get_snapshot(client *self, const char *url, usage_file *file)
{
    answer document = {0};
    xmoe_error error;
    bool good = exchange(self, "GET", url, NULL, &document);
    if (good && usage_file_parse(document.data != NULL ? document.data : "", document.length, file,
                                 &error) != XMOE_OK) {
        cli_fail("%s: %s", url, error.message);
        good = false;
    }
    free(document.data);
    return good;
}

/* Saves the counters under a new id, fetches them and removes the snapshot whatever came. */
static bool get_counters(client *self, const char *url, usage_file *file)
{
    answer saved = {0}, removed = {0};
    bool good = exchange(self, "PUT", url, "{}", &saved);
    free(saved.data);
    if (!good) {
        return false;
    }
    good = get_snapshot(self, url, file);
    self->finish = true;
    good = exchange(self, "DELETE", url, NULL, &removed) && good;
    free(removed.data);
    return good;
}

/* The snapshot's address below the server's; without an id, of one that nobody has. */
static bool make_url(const fetch_settings *settings, char *url)
{
    char id[USAGE_ID_BYTES];
    uint64_t number = 0;
    size_t length = strlen(settings->url);
    while (length > 0 && settings->url[length - 1] == '/') {
        length--;
    }
    if (settings->snapshot != NULL && !usage_id_is_valid(settings->snapshot)) {
        cli_fail("'%s' is no id of a snapshot", settings->snapshot);
        return false;
    }
    if (getrandom(&number, sizeof number, 0) != (ssize_t)sizeof number) {
        cli_fail("no random number for the snapshot's id");
        return false;
    }
    snprintf(id, sizeof id, "xmoe-usage-%016llx", (unsigned long long)number);
    int needed = snprintf(url, URL_BYTES, "%.*s/v1/experts/snapshots/%s", (int)length,
                          settings->url, settings->snapshot != NULL ? settings->snapshot : id);
    if (needed >= URL_BYTES) {
        cli_fail("the server's URL is too long");
        return false;
    }
    return true;
}

bool usage_fetch(const fetch_settings *settings, usage_file *file)
{
    char url[URL_BYTES];
    client self = {.settings = settings};
    *file = (usage_file){0};
    if (!make_url(settings, url)) {
        return false;
    }
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK ||
        (self.curl = curl_easy_init()) == NULL) {
        cli_fail("the HTTP library does not start");
        return false;
    }
    bool good = add_headers(&self);
    if (good) {
        good = settings->snapshot != NULL ? get_snapshot(&self, url, file)
                                          : get_counters(&self, url, file);
    }
    if (!good) {
        usage_file_free(file);
    }
    curl_slist_free_all(self.headers);
    curl_easy_cleanup(self.curl);
    curl_global_cleanup();
    return good;
}
