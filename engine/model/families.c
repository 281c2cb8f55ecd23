/* families.c - the table of architectures. A new one is a row here and a file of its own. */
#include "model/family.h"

#include <string.h>

static const xm_family families[] = {
    {"xmoe", xm_family_xmoe_bind},         {"llama", xm_family_llama_bind},
    {"qwen2", xm_family_qwen2_bind},       {"qwen3", xm_family_qwen3_bind},
    {"olmoe", xm_family_olmoe_bind},       {"qwen2moe", xm_family_qwen2moe_bind},
    {"qwen3moe", xm_family_qwen3moe_bind}, {"granitemoe", xm_family_granitemoe_bind},
    {"phimoe", xm_family_phimoe_bind},     {"deepseek2", xm_family_deepseek2_bind},
    {"gpt-oss", xm_family_gpt_oss_bind},
};

const xm_family *xm_family_of(xm_string architecture)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strlen(families[i].architecture) == architecture.length &&
            memcmp(families[i].architecture, architecture.data, architecture.length) == 0)
            return &families[i];
    return NULL;
}

const char *xm_family_names(void)
{
    return "xmoe, llama, qwen2, qwen3, olmoe, qwen2moe, qwen3moe, granitemoe, phimoe, deepseek2, "
           "gpt-oss";
}
