/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * relocate --qmp in a process of its own, which its caller need not wait for. That process goes on
 * when the caller is gone: half of it is no good to anybody.
 */
#ifndef BM_CLI_SLIP_RUN_H
#define BM_CLI_SLIP_RUN_H

#include <sys/types.h>

#include "blockmirror/cli/cli.h"

/*
 * Its pid, or -errno. Where another command is at that drive it waits for it. *words is a file that
 * has what it says, for slip_words(); params is taken over.
 */
int slip_run(const struct cli *cli, const char *qmp, const char *drive, const char *target,
	     json_t *params, int *words, struct bm_error *error);

/*
 * What was said so far: the last error, the last object about a job. With the job that begins comes
 * "disk", the name of ours that it is, meanwhile. Both are left alone when there is nothing.
 */
void slip_words(int words, json_t **job, struct bm_error *error);

#endif
