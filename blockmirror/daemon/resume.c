/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk is served again whose process had died: a machine that was stopped for it may go on. What
 * that is, and who is to be asked, another program knows ("blockmirror hook resume", or one of the
 * administrator's); it is started, not waited for, and there is one at a time for a disk. It
 * outlives us. One that runs when the disk is served once more may have seen before that nothing
 * was to be done: another one comes after it.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/daemon/daemon.h"

/* Beside us, or in PATH. */
static void find_own(char path[PATH_MAX])
{
	static const char name[] = "blockmirror";
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - sizeof(name));
	char *slash;

	path[n > 0 ? n : 0] = '\0';
	slash = strrchr(path, '/');
	if (slash)
		snprintf(slash + 1, sizeof(name), "%s", name);
	if (!slash || access(path, X_OK) < 0)
		snprintf(path, PATH_MAX, "%s", name);
}

static void ended(struct bm_watch *watch, uint32_t events)
{
	struct served *s = bm_container(watch, struct served, resumer);

	(void)events;
	waitid(P_PIDFD, (id_t)watch->fd, &(siginfo_t){0}, WEXITED | WNOHANG);
	served_close_watch(s, watch);
	if (s->resumes_again)
		resume_begin(s);
}

void resume_begin(struct served *s)
{
	const char *program = s->daemon->resume_with;
	char own[PATH_MAX];
	char *argv[] = {own,
			(char *)"--run-dir",
			s->daemon->run,
			(char *)"--state-dir",
			s->daemon->state,
			(char *)"hook",
			(char *)"resume",
			s->name,
			NULL};
	char *others[] = {(char *)program, s->name, NULL};
	const struct bm_spawn spawn = {.argv = program ? others : argv};
	int pid, fd;

	s->resumes_again = s->resumer.fd >= 0;
	if (s->resumes_again || (program && !strcmp(program, "none")))
		return;
	if (!program)
		find_own(own);
	pid = bm_spawn_helper(&spawn, -1);
	fd = pid < 0 ? -1 : pidfd_open(pid, 0);
	s->resumer.run = ended;
	if (pid < 0)
		bm_log(BM_LOG_WARN, "%s: cannot start %s: %s", s->name, spawn.argv[0],
		       strerror(-pid));
	else if (fd < 0 || bm_watch_set(s->daemon->loop, &s->resumer, fd, EPOLLIN) < 0)
		bm_log(BM_LOG_WARN, "%s: cannot watch %s", s->name, spawn.argv[0]);
}
