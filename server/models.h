/*
 * models.h - the names by which the one model is known.
 */
#ifndef XM_SERVER_MODELS_H
#define XM_SERVER_MODELS_H

#include "server.h"

/* True for the id (alias), the file's name and the name inside the file. */
bool xm_model_is_ours(const xm_server *server, const char *name);

#endif
