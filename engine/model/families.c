/* families.c - the table of architectures. A new one is a row here and a file of its own. */
#include "model/family.h"

#include <string.h>

static const xm_family families[] = {
    {"xmoe", xm_family_xmoe_bind},
};

const xm_family *xm_family_of(xm_string architecture)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strlen(families[i].architecture) == architecture.length &&
            memcmp(families[i].architecture, architecture.data, architecture.length) == 0)
            return &families[i];
    return NULL;
}
