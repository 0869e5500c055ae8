/* SPDX-License-Identifier: BSD-3-Clause */
/* Starting blockmirror-disk, which is next to this program, or in PATH. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"

#define PROGRAM "blockmirror-disk"

static void find_program(char path[PATH_MAX])
{
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - sizeof(PROGRAM));
	char *slash;

	path[n > 0 ? n : 0] = '\0';
	slash = strrchr(path, '/');
	if (slash)
		snprintf(slash + 1, sizeof(PROGRAM), PROGRAM);
	if (!slash || access(path, X_OK) < 0)
		snprintf(path, PATH_MAX, PROGRAM);
}

/* In the child: only async-signal-safe calls, and no way back. */
static void become(const char *path, char *const argv[], int output, int log, const int *keep_fd)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	dup2(null, STDIN_FILENO);
	dup2(output >= 0 ? output : null, STDOUT_FILENO);
	if (log >= 0)
		dup2(log, STDERR_FILENO);
	/* A caller's lock, pipe or working directory shall not be kept for as long as we live. */
	close_range(STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC);
	if (keep_fd)
		fcntl(*keep_fd, F_SETFD, 0);
	if (chdir("/") == 0)
		execvp(path, argv);
	_exit(127);
}

int cli_spawn(char *const argv[], int *output, const char *log, const int *keep_fd)
{
	bm_close int log_fd = log ? open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
	int pipes[2] = {-1, -1};
	char path[PATH_MAX];
	pid_t pid;

	if (log && log_fd < 0)
		return -errno;
	if (output && pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	find_program(path);
	pid = fork();
	if (!pid)
		become(path, argv, pipes[1], log_fd, keep_fd);
	if (output)
		close(pipes[1]);
	if (pid < 0 && output)
		close(pipes[0]);
	if (output)
		*output = pipes[0];
	return pid < 0 ? -errno : pid;
}

int cli_one_off(const struct cli *cli, struct bm_client **client, struct bm_error *error)
{
	bm_free char *state = bm_uri_absolute(cli->state_dir);
	char number[16], *argv[] = {(char *)PROGRAM, (char *)"--one-off",
				    number,          (char *)"--state-dir",
				    state,           NULL};
	int ends[2], r;

	if (!state)
		return bm_fail_errno(error, errno, "%s", cli->state_dir);

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return bm_fail_errno(error, errno, "cannot make a socket");
	snprintf(number, sizeof(number), "%d", ends[1]);
	r = cli_spawn(argv, NULL, NULL, &ends[1]);
	close(ends[1]);
	if (r >= 0)
		r = bm_client_from_fd(ends[0], client, error);
	else
		bm_fail_errno(error, r, "cannot start " PROGRAM);
	if (r < 0)
		close(ends[0]);
	return r < 0 ? r : 0;
}
