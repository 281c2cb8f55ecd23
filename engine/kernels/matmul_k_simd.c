/*
 * matmul_k_simd.c - the panel kernels of the K types: blocks of 256 columns whose groups have
 * integer scales. All there is to them: block_dots.h. No state; any thread.
 */
#include "kernels/block_dots.h"

void XM_VARIANT(xm_panel_q2_k)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q2_K);
}

void XM_VARIANT(xm_panel_q3_k)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q3_K);
}

void XM_VARIANT(xm_panel_q4_k)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q4_K);
}

void XM_VARIANT(xm_panel_q5_k)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q5_K);
}

void XM_VARIANT(xm_panel_q6_k)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_Q6_K);
}
