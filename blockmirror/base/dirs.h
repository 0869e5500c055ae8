/* SPDX-License-Identifier: BSD-3-Clause */
/* Where sockets, records and hooks are when nobody says otherwise. Any thread. */
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

static inline const char *bm_hooks_dir(void)
{
	const char *dir = getenv("BLOCKMIRROR_HOOKS");

	return dir && *dir ? dir : "/etc/blockmirror/hooks.d";
}

#endif
