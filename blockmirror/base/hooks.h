/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Outbound hooks: programs in a folder that are told what happens, and asked before it does
 * (docs/hooks.md). Blocks, in a worker.
 */
#ifndef BM_BASE_HOOKS_H
#define BM_BASE_HOOKS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "blockmirror/error.h"

#define BM_HOOK_LIMIT 30000000000ull /* ns, where nobody says otherwise */

struct bm_hooks {
	const char *folder;
	uint64_t limit; /* ns for each of them */
	bool (*interrupted)(void *arg);
	void *arg;
};

/*
 * Runs all that are in the folder, by name, one after the other: event as argument, facts (texts
 * and integers) as BLOCKMIRROR_… in the environment and as an object on standard input. asks: the
 * first one that fails, or does not end in time, ends it; else the others are run all the same.
 * *ran is how many there were. 0, or BM_E_HOOK by the first one that failed; BM_E_HOOK, too, when
 * others than its owner could change what would be run: then none is. -EINTR: interrupted() said
 * so, and the one that ran was killed.
 *
 * A hook is killed with all it has started (its process group) when its time is over, when it ends,
 * and when this process does.
 */
int bm_hooks_run(const struct bm_hooks *hooks, const char *event, const json_t *facts, bool asks,
		 unsigned *ran, struct bm_error *error);

#endif
