/*
 * bpe_learn.h - learns a byte-level BPE vocabulary (Sennrich et al. 2016, on bytes as in GPT-2).
 *
 * Text is cut by GPT-2's split and equal pieces are counted once; then the most frequent pair of
 * neighbouring tokens becomes a token, again and again. Ties go to the lower left token, then to
 * the lower right one, so that the result is a function of the text alone.
 */
#ifndef XM_TRAIN_BPE_LEARN_H
#define XM_TRAIN_BPE_LEARN_H

#include "train/vocabulary.h"

typedef struct xm_bpe_learner xm_bpe_learner;

xmoe_status xm_bpe_learner_create(xm_bpe_learner **learner, xmoe_error *error);
void xm_bpe_learner_free(xm_bpe_learner *learner);
/* Counts the pieces of a text. */
xmoe_status xm_bpe_learner_add(xm_bpe_learner *learner, const char *text, size_t length,
                               xmoe_error *error);
/* size: tokens of the vocabulary; fewer come out if the text has no pair left that occurs twice. To
 * be called once. */
xmoe_status xm_bpe_learner_finish(xm_bpe_learner *learner, int32_t size, xm_vocabulary *vocabulary,
                                  xmoe_error *error);

#endif
