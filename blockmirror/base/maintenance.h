/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where nothing new may land, because somebody works there: this host, datastores of it. It stands
 * in files, so it lasts over restarts, and who asks needs no process:
 *
 *	STATE/maintenance             this host is, while that file is there
 *	STATE/maintenance.datastores  an object, {FOLDER: {"since": TIME}}
 *
 * Blocks; any thread. What cannot be read stands for what is in maintenance: who works there must
 *be able to rely on it.
 */
#ifndef BM_BASE_MAINTENANCE_H
#define BM_BASE_MAINTENANCE_H

#include <jansson.h>
#include <stdbool.h>

#include "blockmirror/error.h"

/* 0, or BM_E_MAINTENANCE: no disk, no machine may come to this host. */
int bm_maintenance_host(const char *state, struct bm_error *error);

/* The same for path: a folder, or what is, or is to be, in it. It is not about the host. */
int bm_maintenance_folder(const char *state, const char *path, struct bm_error *error);

/* folder NULL: the host. Else without links, or bm://HOST/FOLDER. */
int bm_maintenance_set(const char *state, const char *folder, bool on, struct bm_error *error);

/* {"host": bool, "datastores": [FOLDER]}; the caller's. NULL: it cannot be read. */
json_t *bm_maintenance_list(const char *state, struct bm_error *error);

#endif
