/* SPDX-License-Identifier: BSD-3-Clause */
/* A transient process that copies or compares, and ends. */
#ifndef BM_DISK_ONEOFF_H
#define BM_DISK_ONEOFF_H

#include "blockmirror/error.h"
#include "blockmirror/loop.h"

/* Serves the control descriptor (a connected socket) until its client goes. */
int oneoff_run(struct bm_loop *loop, int control, const char *state_dir, struct bm_error *error);

#endif
