/*
 * matmul_table_simd.c - the panel kernels of types whose codes index a table of values. All there
 * is to them: block_dots.h. No state; any thread.
 */
#include "kernels/block_dots.h"

void XM_VARIANT(xm_panel_iq4_nl)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_IQ4_NL);
}

void XM_VARIANT(xm_panel_iq4_xs)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_IQ4_XS);
}

void XM_VARIANT(xm_panel_mxfp4)(const xm_panel_job *job)
{
    xm_block_panel(job, XM_TYPE_MXFP4);
}
