/*
 * matmul_legacy_simd.c - the panel kernels of block types with one F16 scale per 32 columns. All
 * there is to them: block_dots.h. No state; any thread.
 */
#include "kernels/block_dots.h"

void XM_VARIANT(xm_panel_q8_0)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q8_0);
}

void XM_VARIANT(xm_panel_q4_0)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q4_0);
}

void XM_VARIANT(xm_panel_q4_1)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q4_1);
}

void XM_VARIANT(xm_panel_q5_0)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q5_0);
}

void XM_VARIANT(xm_panel_q5_1)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q5_1);
}
