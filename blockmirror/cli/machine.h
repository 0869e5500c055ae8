/* SPDX-License-Identifier: BSD-3-Clause */
/* Machines, and their moves to other hosts. */
#ifndef BM_CLI_MACHINE_H
#define BM_CLI_MACHINE_H

#include "blockmirror/cli/cli.h"

/* Moves a machine, and follows that; options (blockmirror-move's) is taken over. Exit code. */
int cli_migrate_machine(const struct cli *cli, const char *name, const char *to, json_t *options,
			bool detach);

/* machine_tell.c: what has changed since it was told of. */
struct machine_told {
	char phase[32];
	uint64_t at, tries, round;
};
void machine_tell(const struct cli *cli, const json_t *report, struct machine_told *told);
void machine_tell_sums(const json_t *report);

#endif
