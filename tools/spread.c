/* spread.c - see spread.h. */
#include "spread.h"

#include <stdlib.h>

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

spread_figures spread_of(double *values, size_t count)
{
    if (count == 0)
        return (spread_figures){0};
    qsort(values, count, sizeof *values, compare);
    return (spread_figures){.median = (values[(count - 1) / 2] + values[count / 2]) / 2,
                            .minimum = values[0],
                            .maximum = values[count - 1]};
}
