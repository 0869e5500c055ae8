/* SPDX-License-Identifier: BSD-3-Clause */
/* Starting blockmirror-disk and helpers, and what the former said when it ended. */
#include "blockmirror/base/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"

enum {
	NAME_ROOM = 32,
	LOG_LIMIT = 1 << 20,
	NOT_STARTED = BM_SPAWN_NOT_FOUND,
	DIGITS = 16,
	OWN_VARIABLES = 4
};
#define LISTEN_PID "LISTEN_PID="

/* What is made before the fork, since the child of a program with threads must not allocate. */
struct plan {
	const struct bm_spawn *spawn;
	char path[PATH_MAX];
	char fds[32], pid[sizeof(LISTEN_PID) + DIGITS];
	char *names, **environment;
	int output, log, lifeline;
};

static void find_program(const char *name, char path[PATH_MAX])
{
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - NAME_ROOM);
	char *slash;

	path[n > 0 ? n : 0] = '\0';
	slash = strrchr(path, '/');
	if (slash)
		snprintf(slash + 1, NAME_ROOM, "%s", name);
	if (!slash || access(path, X_OK) < 0)
		snprintf(path, PATH_MAX, "%s", name);
}

static int make_environment(struct plan *plan)
{
	size_t n = 0;

	while (environ[n])
		n++;
	plan->environment = calloc(n + OWN_VARIABLES, sizeof(char *));
	if (!plan->environment ||
	    asprintf(&plan->names, "LISTEN_FDNAMES=%s", plan->spawn->fd_names) < 0)
		return -ENOMEM;
	snprintf(plan->fds, sizeof(plan->fds), "LISTEN_FDS=%u", plan->spawn->n_fds);
	memcpy(plan->environment, environ, n * sizeof(char *));
	plan->environment[n++] = plan->names;
	plan->environment[n++] = plan->fds;
	plan->environment[n] = plan->pid;
	return 0;
}

/* In the child, from here on: only async-signal-safe calls, and no way back. */
static void write_own_pid(char *text)
{
	char digits[DIGITS], *at = digits + sizeof(digits);
	unsigned pid = (unsigned)getpid();

	*--at = '\0';
	for (; pid; pid /= 10)
		*--at = (char)('0' + pid % 10);
	memcpy(text, LISTEN_PID, sizeof(LISTEN_PID) - 1);
	memcpy(text + sizeof(LISTEN_PID) - 1, at, (size_t)(digits + sizeof(digits) - at));
}

/* None may be overwritten by another one before it was moved. */
static void pass_fds(const struct plan *plan)
{
	const struct bm_spawn *spawn = plan->spawn;
	unsigned n = spawn->n_fds + (plan->lifeline >= 0);
	int high[BM_SPAWN_FDS + 1] = {-1};

	for (unsigned i = 0; i < n; i++)
		high[i] = fcntl(i < spawn->n_fds ? spawn->fds[i] : plan->lifeline, F_DUPFD_CLOEXEC,
				BM_SPAWN_FIRST_FD + BM_SPAWN_FDS + 1);
	close_range(BM_SPAWN_FIRST_FD, ~0u, CLOSE_RANGE_CLOEXEC);
	for (unsigned i = 0; i < n; i++)
		if (dup2(high[i], BM_SPAWN_FIRST_FD + (int)i) < 0)
			_exit(NOT_STARTED);
}

/*
 * A pipe that breaks when our parent ends, or wants us to. Not PR_SET_PDEATHSIG: that goes by the
 * thread that started us, and the signal cannot be changed any more.
 */
static void tie_lifeline(const struct plan *plan)
{
	int fd = BM_SPAWN_FIRST_FD + (int)plan->spawn->n_fds;
	struct pollfd p = {.fd = fd, .events = POLLIN};

	if (plan->lifeline < 0)
		return;
	/* Its session is new: its group's number is its own. */
	if (fcntl(fd, F_SETSIG, SIGKILL) < 0 ||
	    fcntl(fd, F_SETOWN, plan->spawn->group ? -getpid() : getpid()) < 0 ||
	    fcntl(fd, F_SETFL, O_ASYNC) < 0)
		_exit(NOT_STARTED);
	if (poll(&p, 1, 0)) /* it broke before it was tied */
		_exit(NOT_STARTED);
}

static void become(struct plan *plan)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (plan->spawn->group) /* a script's pipes end by it */
		signal(SIGPIPE, SIG_DFL);
	setsid();
	dup2(plan->spawn->input > 0 ? plan->spawn->input : null, STDIN_FILENO);
	dup2(plan->output >= 0 ? plan->output : null, STDOUT_FILENO);
	if (plan->log >= 0)
		dup2(plan->log, STDERR_FILENO);
	pass_fds(plan);
	tie_lifeline(plan);
	write_own_pid(plan->pid);
	if (chdir("/") == 0)
		execvpe(plan->path, plan->spawn->argv,
			plan->environment          ? plan->environment
			: plan->spawn->environment ? plan->spawn->environment
						   : environ);
	_exit(NOT_STARTED);
}

static int open_log(const struct bm_spawn *spawn)
{
	int fd = open(spawn->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	struct stat st;

	if (fd >= 0 && (!spawn->append || fstat(fd, &st) < 0 || st.st_size > LOG_LIMIT / 2) &&
	    ftruncate(fd, 0) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static int start(struct plan *plan)
{
	pid_t pid = fork();

	if (!pid)
		become(plan);
	return pid < 0 ? -errno : pid;
}

static int prepare_and_start(struct plan *plan)
{
	const struct bm_spawn *spawn = plan->spawn;
	bm_close int to_read = -1, to_write = -1, tied = -1, held = -1;
	int pipes[2] = {-1, -1}, r = 0;

	if (spawn->output && pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	to_read = pipes[0];
	plan->output = to_write = pipes[1];
	if (spawn->lifeline && pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	tied = spawn->lifeline ? pipes[0] : -1;
	held = spawn->lifeline ? pipes[1] : -1;
	plan->lifeline = tied;
	if (spawn->fd_names)
		r = make_environment(plan);
	if (!r)
		r = start(plan);
	if (r > 0 && spawn->output)
		*spawn->output = bm_steal_fd(to_read);
	if (r > 0 && spawn->lifeline) {
		spawn->lifeline[0] = bm_steal_fd(tied);
		spawn->lifeline[1] = bm_steal_fd(held);
	}
	free(plan->names);
	free(plan->environment);
	return r;
}

int bm_spawn_disk(const struct bm_spawn *spawn)
{
	bm_close int log = spawn->log ? open_log(spawn) : -1;
	struct plan plan = {.spawn = spawn, .log = log};

	if (spawn->log && log < 0)
		return -errno;
	find_program(spawn->argv[0], plan.path);
	return prepare_and_start(&plan);
}

int bm_spawn_helper(const struct bm_spawn *spawn, int errors)
{
	struct plan plan = {.spawn = spawn, .log = errors};

	snprintf(plan.path, sizeof(plan.path), "%s", spawn->argv[0]);
	return prepare_and_start(&plan);
}

/* "blockmirror-disk: E_CODE: text", the last line of the log. */
static bool read_failure(const char *log, struct bm_error *error)
{
	static const char start_of_error[] = BM_DISK_PROGRAM ": E_";
	const size_t code = sizeof(BM_DISK_PROGRAM ": ") - 1;
	bm_free char *text = NULL;
	char *line, *end, *colon;

	if (bm_read_text(log, LOG_LIMIT, &text) < 0)
		return false;
	end = text + strlen(text);
	while (end > text && end[-1] == '\n')
		*--end = '\0';
	line = strrchr(text, '\n');
	line = line ? line + 1 : text;
	if (strncmp(line, start_of_error, sizeof(start_of_error) - 1) != 0)
		return false;
	colon = strstr(line + code, ": ");
	if (!colon)
		return false;
	*colon = '\0';
	error->code = bm_code_by_name(line + code);
	snprintf(error->text, sizeof(error->text), "%s", colon + 2);
	return true;
}

void bm_spawn_failure(const char *log, int status, struct bm_error *error)
{
	if (WIFSIGNALED(status)) {
		bm_fail(error, BM_E_INTERRUPTED, "its process was killed by signal %d (%s)",
			WTERMSIG(status), strsignal(WTERMSIG(status)));
		return;
	}
	if (WEXITSTATUS(status) == NOT_STARTED)
		bm_fail(error, BM_E_INTERNAL,
			BM_DISK_PROGRAM " was not found beside this program, nor in PATH");
	else if (WEXITSTATUS(status) == 0)
		bm_fail(error, BM_E_INTERRUPTED, "its process was told to end");
	else if (!read_failure(log, error))
		bm_fail(error, BM_E_INTERNAL, BM_DISK_PROGRAM " did not start (its log is %s)",
			log);
}
