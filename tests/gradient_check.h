/*
 * gradient_check.h - what tests of the trainer's gradients share: random problems, and the
 * comparison of a pass's gradients with central differences of a loss that the test computes itself
 * in double.
 */
#ifndef XMOE_TESTS_GRADIENT_CHECK_H
#define XMOE_TESTS_GRADIENT_CHECK_H

#include "train/network.h"

/* Fails the test where it fails. */
xm_network *gradient_network(const xm_network_shape *shape);

/* Initial values, all that is trained moved off its start. [total], freed with xm_free. */
float *gradient_parameters(const xm_network *network);

void gradient_tokens(int32_t *tokens, int32_t *targets, int32_t rows, int32_t vocabulary);

/* The loss that the trainer differentiates, with the parameters w. */
typedef double (*gradient_loss)(const void *problem, const double *w);

/* Of every tensor the largest gradient and a few others; of one that is not trained, that there is
 * none. w: the parameters of the pass, changed and put back meanwhile. */
void gradient_check(const char *name, const xm_network *network, const float *gradients,
                    gradient_loss loss, const void *problem, double *w);

#endif
