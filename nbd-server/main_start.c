/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How others start blockmirror-nbd, and are told that it is there: sockets that were passed, the
 * service manager, a parent that waits (--fork), a command that is run and waited for (--run).
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/psk.h"
#include "blockmirror/base/uri.h"
#include "nbd-server/main.h"

/* The service manager */

int start_passed_sockets(void)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	int n = 0;

	if (pid && count && strtol(pid, NULL, 10) == getpid())
		n = (int)strtol(count, NULL, 10);
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	if (n < 0 || n > MAX_PASSED_FDS)
		n = 0;
	return n;
}

/* An address is a path, or, behind an @, a name in the abstract namespace (unix(7)). */
void start_notify(const char *state)
{
	static struct sockaddr_un address;
	static socklen_t length;
	const char *path = getenv("NOTIFY_SOCKET");
	bm_close int fd = -1;

	if (path && (*path == '/' || *path == '@') && path[1] &&
	    strlen(path) < sizeof(address.sun_path)) {
		address.sun_family = AF_UNIX;
		memcpy(address.sun_path, path, strlen(path) + 1);
		if (*path == '@')
			*address.sun_path = '\0';
		length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) +
				     (*path == '/'));
	}
	unsetenv("NOTIFY_SOCKET"); /* it is not meant for children */
	if (!length)
		return;
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		sendto(fd, state, strlen(state), MSG_NOSIGNAL, (const void *)&address, length);
}

/* --fork */

int start_fork(int *release)
{
	int ends[2];
	pid_t child;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	child = fork();
	if (child < 0) {
		close(ends[0]);
		close(ends[1]);
		return -errno;
	}
	close(ends[child > 0]);
	*release = ends[child == 0];
	if (!child)
		setsid();
	return child;
}

int start_await(int release, int child)
{
	int status = 0;
	char byte;
	ssize_t n;

	do {
		n = read(release, &byte, 1);
	} while (n < 0 && errno == EINTR);
	close(release);
	if (n == 1)
		return 0;
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Whether log lines that go there bother nobody: a file, or the journal. */
static bool is_a_log(int fd)
{
	struct stat st;

	return getenv("JOURNAL_STREAM") || (!fstat(fd, &st) && S_ISREG(st.st_mode));
}

/* Who reads what we print until its end would wait for ours. */
int start_release(int release, struct bm_error *error)
{
	bm_close int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	bm_close int end = release;

	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
	    (!is_a_log(STDERR_FILENO) && dup2(null, STDERR_FILENO) < 0))
		return bm_fail_errno(error, errno, "cannot go to the background");
	if (write(end, "", 1) != 1)
		return bm_fail_errno(error, errno, "who started this is gone");
	return 0;
}

/* --run */

static void command_ended(struct bm_watch *watch, uint32_t events)
{
	struct command *c = bm_container(watch, struct command, watch);
	int status, fd = watch->fd;

	(void)events;
	if (waitpid(c->pid, &status, WNOHANG) != c->pid)
		return;
	bm_watch_set(c->loop, watch, fd, 0);
	close(fd);
	c->pid = 0;
	c->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	c->ended(c);
}

/* Signals are as for any other command: not blocked, not ignored. */
static int spawn_shell(const char *text, pid_t *pid)
{
	char shell[] = "/bin/sh", option[] = "-c";
	char *const arguments[] = {shell, option, (char *)(uintptr_t)text, NULL};
	posix_spawnattr_t attributes;
	sigset_t none, pipe;
	int r = posix_spawnattr_init(&attributes);

	if (r)
		return -r;
	sigemptyset(&none);
	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &pipe);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	r = posix_spawn(pid, arguments[0], NULL, &attributes, arguments, environ);
	posix_spawnattr_destroy(&attributes);
	return -r;
}

int command_start(struct command *c, struct bm_loop *loop, const char *text, struct bm_error *error)
{
	int r = spawn_shell(text, &c->pid), fd;

	if (r < 0)
		return bm_fail_errno(error, r, "cannot run the command");
	c->loop = loop;
	c->watch.run = command_ended;
	fd = pidfd_open(c->pid, 0);
	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot wait for the command");
	r = bm_watch_set(loop, &c->watch, fd, EPOLLIN);
	if (r < 0) {
		close(fd);
		return bm_fail_errno(error, r, "cannot wait for the command");
	}
	return 0;
}

static char *key_uri(const char *authority, int scheme_length, const char *uri, const char *file)
{
	char separator = strchr(uri, '?') ? '&' : '?', *result;
	bm_free char *path = bm_uri_escape(file), *user = NULL;
	struct bm_psk *psk;

	if (bm_psk_read(file, &psk, NULL) < 0)
		return NULL;
	user = bm_uri_escape(bm_psk_first(psk));
	bm_psk_free(psk);
	if (!path || !user ||
	    asprintf(&result, "%.*s%s@%s%ctls-psk-file=%s", scheme_length, uri, user, authority,
		     separator, path) < 0)
		return NULL;
	return result;
}

char *command_uri(const char *uri, const struct bm_tls_options *tls)
{
	const char *authority = strstr(uri, "://") + 3;
	char separator = strchr(uri, '?') ? '&' : '?', *result;
	bm_free char *folder = NULL;

	if (strncmp(uri, "nbds", 4))
		return strdup(uri);
	if (tls->psk)
		return key_uri(authority, (int)(authority - uri), uri, tls->psk);
	folder = bm_uri_escape(tls->certificates);
	if (!folder || asprintf(&result, "%s%ctls-certificates=%s", uri, separator, folder) < 0)
		return NULL;
	return result;
}
