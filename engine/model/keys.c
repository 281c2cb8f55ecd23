/* keys.c - see keys.h. Runs on the thread that loads the model. */
#include "model/keys.h"

#include "format/utf8.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { KEY_BYTES = 128 };

/* The whole key. */
static const char *key_of(const xm_loader *loader, const char *name, char key[KEY_BYTES])
{
    snprintf(key, KEY_BYTES, "%s.%s", loader->architecture, name);
    return key;
}

xmoe_status xm_key_fail(const xm_loader *loader, const char *name, xmoe_error *error,
                        const char *problem, ...)
{
    char key[KEY_BYTES], text[192];
    va_list arguments;
    va_start(arguments, problem);
    vsnprintf(text, sizeof text, problem, arguments);
    va_end(arguments);
    return xm_fail(error, XMOE_ERROR_FORMAT, "%.150s: key '%s' %s",
                   xm_gguf_path(loader->model->file), key_of(loader, name, key), text);
}

static xmoe_status read_whole(const xm_loader *loader, const char *name, bool required,
                              int32_t least, int32_t most, int32_t *value, xmoe_error *error)
{
    char key[KEY_BYTES];
    uint32_t number = 0;
    bool found = true;
    xmoe_status status = xm_gguf_get_u32(loader->model->file, key_of(loader, name, key), &number,
                                         required ? NULL : &found, error);
    if (status != XMOE_OK || !found)
        return status;
    if (number < (uint32_t)least || number > (uint32_t)most)
        return xm_key_fail(loader, name, error, "is %u, expected %d to %d", number, least, most);
    *value = (int32_t)number;
    return XMOE_OK;
}

xmoe_status xm_key_size(const xm_loader *loader, const char *name, bool required, int32_t most,
                        int32_t *value, xmoe_error *error)
{
    return read_whole(loader, name, required, 1, most, value, error);
}

xmoe_status xm_key_count(const xm_loader *loader, const char *name, bool required, int32_t most,
                         int32_t *value, xmoe_error *error)
{
    return read_whole(loader, name, required, 0, most, value, error);
}

xmoe_status xm_key_number(const xm_loader *loader, const char *name, bool required, double above,
                          double most, float *value, xmoe_error *error)
{
    char key[KEY_BYTES];
    float number = 0.0f;
    bool found = true;
    xmoe_status status = xm_gguf_get_f32(loader->model->file, key_of(loader, name, key), &number,
                                         required ? NULL : &found, error);
    if (status != XMOE_OK || !found)
        return status;
    if (!((double)number > above && (double)number <= most))
        return xm_key_fail(loader, name, error, "is %g, expected above %g and at most %g",
                           (double)number, above, most);
    *value = number;
    return XMOE_OK;
}

xmoe_status xm_key_flag(const xm_loader *loader, const char *name, bool *value, xmoe_error *error)
{
    char key[KEY_BYTES];
    bool found;
    return xm_gguf_get_bool(loader->model->file, key_of(loader, name, key), value, &found, error);
}

xmoe_status xm_key_text(const xm_loader *loader, const char *name, xm_string *value,
                        xmoe_error *error)
{
    char key[KEY_BYTES];
    bool found;
    return xm_gguf_get_string(loader->model->file, key_of(loader, name, key), value, &found, error);
}

bool xm_key_text_is(xm_string text, const char *expected)
{
    return text.length == strlen(expected) && memcmp(text.data, expected, text.length) == 0;
}

xmoe_status xm_key_router_kind(const xm_loader *loader, bool softmax, const xm_router_kind **kind,
                               xmoe_error *error)
{
    xm_string text = {0};
    xmoe_status status = xm_key_text(loader, "router.type", &text, error);
    if (status != XMOE_OK || text.data == NULL)
        return status;
    const xm_router_kind *found = xm_router_kind_by_name(text.data, text.length);
    if (found == NULL || (softmax && found->gate != XM_GATE_SOFTMAX)) {
        char shown[32];
        xm_utf8_printable(text.data, text.length, shown, sizeof shown);
        return xm_key_fail(loader, "router.type", error, "is '%s', expected %s", shown,
                           softmax ? "threshold, top_k or dense" : XM_ROUTER_KIND_NAMES);
    }
    *kind = found;
    return XMOE_OK;
}
