/* SPDX-License-Identifier: BSD-3-Clause */
/* A transient blockmirror-disk, for what needs no disk that is served. */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"

_Static_assert(BM_SPAWN_FIRST_FD == 3, "the number below");

int cli_one_off(const struct cli *cli, struct bm_client **client, struct bm_error *error)
{
	bm_free char *state = bm_uri_absolute(cli->state_dir);
	char *argv[] = {(char *)BM_DISK_PROGRAM,
			(char *)"--one-off",
			(char *)"3",
			(char *)"--state-dir",
			state,
			NULL};
	int ends[2], r;

	if (!state)
		return bm_fail_errno(error, errno, "%s", cli->state_dir);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return bm_fail_errno(error, errno, "cannot make a socket");
	r = bm_spawn_disk(&(struct bm_spawn){.argv = argv, .fds = &ends[1], .n_fds = 1});
	close(ends[1]);
	if (r >= 0)
		r = bm_client_from_fd(ends[0], client, error);
	else
		bm_fail_errno(error, r, "cannot start " BM_DISK_PROGRAM);
	if (r < 0)
		close(ends[0]);
	return r < 0 ? r : 0;
}
