/* SPDX-License-Identifier: BSD-3-Clause */
/* Where sockets and records are when nobody says otherwise. Any thread. */
#ifndef BM_BASE_DIRS_H
#define BM_BASE_DIRS_H

#include <stdlib.h>

static inline const char *bm_run_dir(void)
{
	const char *dir = getenv("BLOCKMIRROR_RUN_DIR");

	return dir && *dir ? dir : "/run/blockmirror";
}

static inline const char *bm_state_dir(void)
{
	const char *dir = getenv("BLOCKMIRROR_STATE_DIR");

	return dir && *dir ? dir : "/var/lib/blockmirror";
}

#endif
