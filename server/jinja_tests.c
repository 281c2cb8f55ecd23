/*
 * jinja_tests.c - what may follow `is`.
 */
#include "jinja_run.h"

#define TEST(name, condition)                                                                      \
    static xm_jinja_value name(xm_jinja_run *run, xm_jinja_value self,                             \
                               const xm_jinja_arguments *arguments)                                \
    {                                                                                              \
        (void)run, (void)arguments;                                                                \
        return xm_jinja_boolean(condition);                                                        \
    }

static int64_t remainder_of(xm_jinja_run *run, xm_jinja_value value, int64_t divisor)
{
    if (value.type != XM_JINJA_INTEGER || divisor == 0)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "division needs an integer and not zero");
    return divisor == -1 ? 0 : value.integer % divisor;
}

static xm_jinja_value other(xm_jinja_run *run, const xm_jinja_arguments *arguments)
{
    if (!arguments->count)
        xm_jinja_fail(&run->job, XM_JINJA_RUNTIME, "the test needs an argument");
    return arguments->items[0];
}

static bool is_true_that(xm_jinja_run *run, xm_jinja_operator operation, xm_jinja_value self,
                         const xm_jinja_arguments *arguments)
{
    return xm_jinja_is_true_that(run, operation, self, other(run, arguments));
}

static bool same_case(xm_jinja_run *run, xm_jinja_value self, xm_jinja_case in)
{
    xm_jinja_string text = xm_jinja_to_string(&run->job, self);
    return xm_jinja_string_compare(text, xm_jinja_in_case(&run->job, text, in)) == 0;
}

static bool is_same(xm_jinja_run *run, xm_jinja_value a, xm_jinja_value b)
{
    return a.type == b.type && a.type != XM_JINJA_LIST && a.type != XM_JINJA_DICT
               ? xm_jinja_equal(&run->job, a, b)
               : a.type == b.type && (void *)a.list == (void *)b.list;
}

static bool is_iterable(xm_jinja_value value)
{
    return value.type == XM_JINJA_STRING || value.type == XM_JINJA_LIST ||
           value.type == XM_JINJA_UNDEFINED ||
           (value.type == XM_JINJA_DICT && !value.dict->is_namespace);
}

TEST(is_defined, self.type != XM_JINJA_UNDEFINED)
TEST(is_undefined, self.type == XM_JINJA_UNDEFINED)
TEST(is_none, self.type == XM_JINJA_NONE)
TEST(is_string, self.type == XM_JINJA_STRING)
TEST(is_number, xm_jinja_is_number(self))
TEST(is_integer, self.type == XM_JINJA_INTEGER)
TEST(is_float, self.type == XM_JINJA_FLOAT)
TEST(is_boolean, self.type == XM_JINJA_BOOLEAN)
TEST(is_true, self.type == XM_JINJA_BOOLEAN && self.boolean)
TEST(is_false, self.type == XM_JINJA_BOOLEAN && !self.boolean)
TEST(is_mapping, self.type == XM_JINJA_DICT && !self.dict->is_namespace)
TEST(test_iterable, is_iterable(self))
TEST(is_callable, self.type == XM_JINJA_CALLABLE)
TEST(is_odd, remainder_of(run, self, 2) != 0)
TEST(is_even, remainder_of(run, self, 2) == 0)
TEST(is_divisible,
     remainder_of(run, self, xm_jinja_argument_integer(run, arguments, 0, "num", 0)) == 0)
TEST(is_equal, is_true_that(run, XM_JINJA_EQUAL, self, arguments))
TEST(is_unequal, is_true_that(run, XM_JINJA_UNEQUAL, self, arguments))
TEST(is_less, is_true_that(run, XM_JINJA_LESS, self, arguments))
TEST(is_less_equal, is_true_that(run, XM_JINJA_LESS_EQUAL, self, arguments))
TEST(is_greater, is_true_that(run, XM_JINJA_GREATER, self, arguments))
TEST(is_greater_equal, is_true_that(run, XM_JINJA_GREATER_EQUAL, self, arguments))
TEST(is_in, is_true_that(run, XM_JINJA_IN, self, arguments))
TEST(is_lower, same_case(run, self, XM_JINJA_LOWER))
TEST(is_upper, same_case(run, self, XM_JINJA_UPPER))
TEST(test_same, is_same(run, self, other(run, arguments)))

static const xm_jinja_builtin tests[] = {
    {"defined", is_defined, ""},
    {"undefined", is_undefined, ""},
    {"none", is_none, ""},
    {"string", is_string, ""},
    {"number", is_number, ""},
    {"integer", is_integer, ""},
    {"float", is_float, ""},
    {"boolean", is_boolean, ""},
    {"true", is_true, ""},
    {"false", is_false, ""},
    {"mapping", is_mapping, ""},
    {"iterable", test_iterable, ""},
    {"sequence", test_iterable, ""},
    {"callable", is_callable, ""},
    {"odd", is_odd, ""},
    {"even", is_even, ""},
    {"divisibleby", is_divisible, "num "},
    {"equalto", is_equal, "other "},
    {"eq", is_equal, "other "},
    {"==", is_equal, "other "},
    {"ne", is_unequal, "other "},
    {"!=", is_unequal, "other "},
    {"lt", is_less, "other "},
    {"lessthan", is_less, "other "},
    {"<", is_less, "other "},
    {"le", is_less_equal, "other "},
    {"<=", is_less_equal, "other "},
    {"gt", is_greater, "other "},
    {"greaterthan", is_greater, "other "},
    {">", is_greater, "other "},
    {"ge", is_greater_equal, "other "},
    {">=", is_greater_equal, "other "},
    {"in", is_in, "seq "},
    {"lower", is_lower, ""},
    {"upper", is_upper, ""},
    {"sameas", test_same, "other "},
};

const xm_jinja_builtin *xm_jinja_find_test(xm_jinja_string name)
{
    return xm_jinja_find_in(tests, sizeof tests / sizeof *tests, name);
}
