/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk that is to pass to another host: migrate.c, and shared.c for storage that both reach. */
#ifndef BM_CLI_THERE_H
#define BM_CLI_THERE_H

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "blockmirror/error.h"

struct cli;

/* As it is now. */
struct there {
	const char *name;
	char *host;   /* that has its storage, or the second copy, or reaches it, too (shared); NULL
		       */
	char *keep;   /* the copy that is here, and stays when the disk goes; NULL: none */
	bool behind;  /* the host has the second copy only */
	bool in_sync; /* ... and it is equal */
	uint64_t window; /* ns for which there are two; 0: not known */
	char *disk, *uri;
	const char *group; /* that it is armed with; NULL: alone */
	uint64_t size, changes;
	char *offered; /* to whom it was, as shared; NULL */
	bool shared;
	bool told;       /* this host offers it */
	json_t *witness; /* of what it is on (docs/protocol.md) */
};

/* That host makes a standby of it, which reads as (NULL, "": t->uri). Sets t->host, t->shared. */
int shared_stand_by(const struct cli *cli, struct there *t, const char *host, const char *as,
		    struct bm_error *error);

/*
 * What --shared says of a machine's disks, each "DISK" or "DISK=WHERE", or NULL: all of them.
 * check: 0, or a usage error's status; machine NULL: there are several. options: as machine.migrate
 * has it: DISK, or "*": WHERE, or "" (as here); NULL: nothing was said.
 */
enum { SHARES = 16 };
int shared_check(const struct cli *cli, const char *const *shares, size_t n, const char *into,
		 const char *machine);
json_t *shared_options(const char *const *shares, size_t n);

/* The standby, which is not wanted any more, if it is such a one. */
void shared_dismiss(const struct cli *cli, const struct there *t);

#endif
