/* SPDX-License-Identifier: BSD-3-Clause */
/* Machines, and their moves to other hosts. */
#ifndef BM_CLI_MACHINE_H
#define BM_CLI_MACHINE_H

#include <stdio.h>

#include "blockmirror/cli/cli.h"

/* Moves a machine, and follows that; options (blockmirror-move's) is taken over. Exit code. */
int cli_migrate_machine(const struct cli *cli, const char *name, const char *to, json_t *options,
			bool detach);

/*
 * What is to be done about a machine that changes its memory faster than it can be sent; NULL: not
 * said. before: what stands before the names of options. E_USAGE.
 */
int machine_check_policy(const char *policy, uint64_t timeout, const char *before,
			 struct bm_error *error);

/* machine_tell.c: what has changed since it was told of. */
struct machine_told {
	char phase[32];
	bool doubt;
	uint64_t at, tries, round;
};
void machine_tell(const struct cli *cli, const json_t *report, struct machine_told *told);
void machine_tell_sums(const json_t *report);
/* Each of this host's machines; the exit code is that of the first that stays. */
int cli_migrate_all(const struct cli *cli, const char *to, json_t *options);

/* The process of the machine's move; NULL: there is none (any more). */
struct bm_client *cli_find_move(const struct cli *cli, const char *name, json_t **machine,
				struct bm_error *error);

/* What a move is in doubt about, and how that ends; nothing when it is not. */
void cli_print_doubt(FILE *out, const char *before, const json_t *report);

/* A move that is in doubt; dead: the other host is, and does not come back. Exit code. */
int cli_recover_machine(const struct cli *cli, const char *name, bool dead);

#endif
