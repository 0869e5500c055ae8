/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a manager's ids stand for: STATE/requests/ID, one file for each. It is written, durably,
 * before anything is begun, so an id means one thing for ever, whoever calls and dies meanwhile. A
 * file is lines of JSON, each the whole of what is known, and the last whole one holds: a torn one
 * is as if it had not been written. Who asks for it at this moment, or carries it out, has its lock
 * (flock), which goes with the process.
 *
 * That a disk is not moved twice does not depend on these files, but on the disk's own record
 * (blockmirror/base/requests.h); where there is none, on docs/hooks.md's rules for qmp and drive.
 */
#ifndef BM_CLI_CLAIM_H
#define BM_CLI_CLAIM_H

#include <jansson.h>
#include <stdbool.h>

#include "blockmirror/error.h"

enum { CLAIMS_KEPT = 4096 }; /* the newest; the others go when a new one comes */

struct claim {
	char *path;
	int fd;
	bool made;   /* by this call: nobody has asked for it before */
	bool locked; /* by us */
	json_t *said;
};

/*
 * E_ID_REUSED when what was asked for is another thing than asked (NULL: it is not said). make: it
 * is made when it is not there; else that is -ENOENT, without touching error. wait: until its lock
 * is ours; else it may be left to who has it.
 */
int claim_open(struct claim *claim, const char *state, const char *id, const json_t *asked,
	       bool make, bool wait, struct bm_error *error);

/* Whether its lock is ours (again). An error counts as no. */
bool claim_lock(struct claim *claim, bool wait);

/* Adds key to what is known (value is taken over), durably. */
int claim_note(struct claim *claim, const char *key, json_t *value, struct bm_error *error);

/* What another process has added since. */
void claim_look(struct claim *claim);

/* It was not dropped, nor made anew, since it was opened. */
bool claim_is_there(const struct claim *claim);

/* Nothing came of it: the id is free. Only with the lock. */
void claim_drop(const struct claim *claim);

/* The lock is that of a process that was forked: from now on it is another's. */
void claim_leave(struct claim *claim);

/* Others may ask. */
void claim_unlock(struct claim *claim);

void claim_close(struct claim *claim);

#endif
