/*
 * importance_meter.h - sums the squares of what each column of each matrix is multiplied with, over
 * all positions computed; for experts over those routed to them. Written as a file of importance
 * (format/importance.h), xmoe_quantize weighs errors with it.
 *
 * Sums are F64, 8 bytes per column of every matrix and expert. The forward pass adds on the
 * scheduler's thread; writing may come from any other.
 */
#ifndef XM_MODEL_IMPORTANCE_METER_H
#define XM_MODEL_IMPORTANCE_METER_H

#include "model/model.h"
#include "moe/observer.h"

typedef struct xm_importance_meter xm_importance_meter;

xmoe_status xm_importance_meter_create(const xmoe_model *model, xm_importance_meter **meter,
                                       xmoe_error *error);
void xm_importance_meter_free(xm_importance_meter *meter);
/* For xm_forward_observe; lives as long as the meter. */
const xm_input_observer *xm_importance_meter_observer(const xm_importance_meter *meter);
/* Matrices that saw no position are left out. */
xmoe_status xm_importance_meter_write(xm_importance_meter *meter, const char *path,
                                      const char *dataset, xmoe_error *error);

#endif
