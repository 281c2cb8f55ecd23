/*
 * jinja_arithmetic.c - what operators do, as in Python. Integers have 64 bits; more is an error.
 */
#include <math.h>

#include "jinja_run.h"

static const char *const symbols[] = {"+", "-", "*", "/", "//", "%", "**", "~"};

static __attribute__((noreturn)) void fail_types(xm_jinja_run *run, xm_jinja_operator operation,
                                                 xm_jinja_value a, xm_jinja_value b)
{
    const xm_jinja_value *undefined = a.type == XM_JINJA_UNDEFINED   ? &a
                                      : b.type == XM_JINJA_UNDEFINED ? &b
                                                                     : NULL;
    if (undefined)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "'%.100s' is undefined", undefined->name);
    xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "'%s' does not take %s and %s", symbols[operation],
                  xm_jinja_type_name(a), xm_jinja_type_name(b));
}

static xm_jinja_value raise_integer(xm_jinja_run *run, int64_t base, int64_t power)
{
    int64_t result = 1;
    if (power < 0)
        return xm_jinja_float(pow((double)base, (double)power));
    for (int64_t i = 0; i < power && i < 64; i++) /* more than 63 overflows, but for -1, 0, 1 */
        if (__builtin_mul_overflow(result, base, &result))
            xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "an integer is out of range");
    if (power > 64 && (base < -1 || base > 1))
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "an integer is out of range");
    return xm_jinja_integer(power > 64 && base == -1 && power % 2 ? -1 : result);
}

static xm_jinja_value whole(xm_jinja_run *run, xm_jinja_operator operation, int64_t a, int64_t b)
{
    int64_t result = 0;
    bool overflow = false;
    bool divides = operation == XM_JINJA_FLOOR_DIVIDE || operation == XM_JINJA_MODULO;
    if (divides && b == 0)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "division by zero");
    if (divides && b == -1) /* INT64_MIN / -1 does not fit */
        return operation == XM_JINJA_MODULO ? xm_jinja_integer(0)
                                            : whole(run, XM_JINJA_SUBTRACT, 0, a);
    switch (operation) {
    case XM_JINJA_ADD:
        overflow = __builtin_add_overflow(a, b, &result);
        break;
    case XM_JINJA_SUBTRACT:
        overflow = __builtin_sub_overflow(a, b, &result);
        break;
    case XM_JINJA_MULTIPLY:
        overflow = __builtin_mul_overflow(a, b, &result);
        break;
    case XM_JINJA_FLOOR_DIVIDE:
        result = a / b - (a % b != 0 && (a < 0) != (b < 0));
        break;
    case XM_JINJA_MODULO: /* has the sign of b */
        result = a % b;
        if (result != 0 && (result < 0) != (b < 0))
            result += b;
        break;
    default:
        return raise_integer(run, a, b);
    }
    if (overflow)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "an integer is out of range");
    return xm_jinja_integer(result);
}

static xm_jinja_value real(xm_jinja_run *run, xm_jinja_operator operation, double a, double b)
{
    bool divides = operation == XM_JINJA_DIVIDE || operation == XM_JINJA_FLOOR_DIVIDE ||
                   operation == XM_JINJA_MODULO;
    if (divides && b == 0)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "division by zero");
    switch (operation) {
    case XM_JINJA_ADD:
        return xm_jinja_float(a + b);
    case XM_JINJA_SUBTRACT:
        return xm_jinja_float(a - b);
    case XM_JINJA_MULTIPLY:
        return xm_jinja_float(a * b);
    case XM_JINJA_DIVIDE:
        return xm_jinja_float(a / b);
    case XM_JINJA_FLOOR_DIVIDE:
        return xm_jinja_float(floor(a / b));
    case XM_JINJA_MODULO: {
        double rest = fmod(a, b);
        return xm_jinja_float(rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest);
    }
    default:
        return xm_jinja_float(pow(a, b));
    }
}

static xm_jinja_value join_lists(xm_jinja_run *run, const xm_jinja_list *a, const xm_jinja_list *b)
{
    xm_jinja_value list = xm_jinja_new_list(&run->job, a->tuple);
    for (size_t i = 0; i < a->count; i++)
        xm_jinja_append(&run->job, list, a->items[i]);
    for (size_t i = 0; i < b->count; i++)
        xm_jinja_append(&run->job, list, b->items[i]);
    return list;
}

static xm_jinja_value repeat(xm_jinja_run *run, xm_jinja_value value, int64_t times)
{
    if (value.type == XM_JINJA_LIST) {
        xm_jinja_value list = xm_jinja_new_list(&run->job, value.list->tuple);
        for (int64_t i = 0; i < times && value.list->count; i++)
            for (size_t j = 0; j < value.list->count; j++)
                xm_jinja_append(&run->job, list, value.list->items[j]);
        return list;
    }
    xm_jinja_builder builder = {.job = &run->job};
    for (int64_t i = 0; i < times && value.string.length; i++)
        xm_jinja_add(&builder, value.string);
    return xm_jinja_text(xm_jinja_built(&builder));
}

xm_jinja_value xm_jinja_calculate(xm_jinja_run *run, xm_jinja_operator operation, xm_jinja_value a,
                                  xm_jinja_value b)
{
    if (operation == XM_JINJA_CONCATENATE)
        return xm_jinja_text(xm_jinja_concatenate(&run->job, xm_jinja_to_string(&run->job, a),
                                                  xm_jinja_to_string(&run->job, b)));
    if (operation == XM_JINJA_MODULO && a.type == XM_JINJA_STRING)
        return xm_jinja_text(xm_jinja_percent(run, a.string, b));
    if (xm_jinja_is_number(a) && xm_jinja_is_number(b)) {
        bool floats =
            a.type == XM_JINJA_FLOAT || b.type == XM_JINJA_FLOAT || operation == XM_JINJA_DIVIDE;
        if (floats)
            return real(run, operation, xm_jinja_number(a), xm_jinja_number(b));
        return whole(run, operation, a.type == XM_JINJA_BOOLEAN ? a.boolean : a.integer,
                     b.type == XM_JINJA_BOOLEAN ? b.boolean : b.integer);
    }
    if (operation == XM_JINJA_ADD && a.type == XM_JINJA_STRING && b.type == XM_JINJA_STRING)
        return xm_jinja_text(xm_jinja_concatenate(&run->job, a.string, b.string));
    if (operation == XM_JINJA_ADD && a.type == XM_JINJA_LIST && b.type == XM_JINJA_LIST &&
        a.list->tuple == b.list->tuple)
        return join_lists(run, a.list, b.list);
    if (operation == XM_JINJA_MULTIPLY && b.type == XM_JINJA_INTEGER &&
        (a.type == XM_JINJA_STRING || a.type == XM_JINJA_LIST))
        return repeat(run, a, b.integer);
    if (operation == XM_JINJA_MULTIPLY && a.type == XM_JINJA_INTEGER &&
        (b.type == XM_JINJA_STRING || b.type == XM_JINJA_LIST))
        return repeat(run, b, a.integer);
    fail_types(run, operation, a, b);
}

bool xm_jinja_is_true_that(xm_jinja_run *run, xm_jinja_operator operation, xm_jinja_value a,
                           xm_jinja_value b)
{
    xm_jinja_job *job = &run->job;
    switch (operation) {
    case XM_JINJA_EQUAL:
        return xm_jinja_equal(job, a, b);
    case XM_JINJA_UNEQUAL:
        return !xm_jinja_equal(job, a, b);
    case XM_JINJA_LESS:
        return xm_jinja_compare(job, a, b) < 0;
    case XM_JINJA_LESS_EQUAL:
        return xm_jinja_compare(job, a, b) <= 0;
    case XM_JINJA_GREATER:
        return xm_jinja_compare(job, a, b) > 0;
    case XM_JINJA_GREATER_EQUAL:
        return xm_jinja_compare(job, a, b) >= 0;
    case XM_JINJA_IN:
        return xm_jinja_contains(job, b, a);
    default:
        return !xm_jinja_contains(job, b, a);
    }
}
