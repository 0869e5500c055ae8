/* SPDX-License-Identifier: BSD-3-Clause */
/* Running what is in a hooks folder. */
#include "blockmirror/base/hooks.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/run.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/base/units.h"

#define PATH_WITHOUT "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

enum { FIRST_LINE = 200 };

static void free_environment(char ***environment)
{
	for (char **at = *environment; at && *at; at++)
		free(*at);
	free(*environment);
}
#define environment_auto __attribute__((cleanup(free_environment)))

static char *variable(const char *key, const json_t *value)
{
	char *text = NULL;
	int n;

	if (json_is_integer(value))
		n = asprintf(&text, "BLOCKMIRROR_%s=%lld", key, json_integer_value(value));
	else
		n = asprintf(&text, "BLOCKMIRROR_%s=%s", key, json_string_value(value));
	if (n < 0)
		return NULL;
	for (char *at = text; *at != '='; at++)
		*at = (char)toupper((unsigned char)*at);
	return text;
}

/* Nothing of ours but where programs are: passwords come by the environment, too. */
static char **environment_of(const json_t *facts)
{
	char **environment = calloc(json_object_size(facts) + 2, sizeof(char *));
	const char *key, *path = getenv("PATH");
	json_t *value;
	size_t n = 0;

	if (!environment)
		return NULL;
	if (!path)
		environment[n++] = strdup(PATH_WITHOUT);
	else if (asprintf(&environment[n], "PATH=%s", path) >= 0)
		n++;
	json_object_foreach((json_t *)facts, key, value)
		if (json_is_string(value) || json_is_integer(value))
			environment[n++] = variable(key, value);
	for (size_t i = 0; i < n; i++)
		if (!environment[i]) {
			for (size_t k = 0; k < n; k++)
				free(environment[k]);
			free(environment);
			return NULL;
		}
	return environment;
}

static int input_of(const char *text)
{
	bm_close int fd = memfd_create("facts", MFD_CLOEXEC);
	ssize_t length = (ssize_t)strlen(text);

	if (fd < 0 || write(fd, text, (size_t)length) != length || lseek(fd, 0, SEEK_SET) < 0)
		return -errno;
	return bm_steal_fd(fd);
}

static void first_line(int words, char line[FIRST_LINE])
{
	ssize_t n = pread(words, line, FIRST_LINE - 1, 0);

	line[n > 0 ? n : 0] = '\0';
	line[strcspn(line, "\n")] = '\0';
}

/* Whether who is neither root nor us could have a say in what is run. */
static bool is_open_to_others(const struct stat *st)
{
	return (st->st_uid && st->st_uid != geteuid()) || (st->st_mode & (S_IWGRP | S_IWOTH));
}

static int tell_end(const char *path, const char *event, int status, int words,
		    struct bm_error *error)
{
	char line[FIRST_LINE];

	first_line(words, line);
	if (WIFSIGNALED(status))
		return bm_fail(error, BM_E_HOOK,
			       "hook %s, asked for %s, was killed by signal %d%s%s", path, event,
			       WTERMSIG(status), *line ? ": " : "", line);
	if (WEXITSTATUS(status) == BM_SPAWN_NOT_FOUND && !*line)
		return bm_fail(
			error, BM_E_HOOK,
			"hook %s cannot be run: is it a program of this machine, or a script "
			"whose interpreter is there?",
			path);
	return bm_fail(error, BM_E_HOOK, "hook %s says no to %s (exit status %d)%s%s", path, event,
		       WEXITSTATUS(status), *line ? ": " : "", line);
}

/* One that was started: its end, or that it is killed. It is not waited for before the kill, so the
 * number is still its own. */
static int await(const struct bm_hooks *h, const char *path, const char *event, int pid, int words,
		 struct bm_error *error)
{
	bm_close int pidfd = pidfd_open(pid, 0);
	bool ended = pidfd >= 0 && bm_process_ends(pidfd, h->limit, h->interrupted, h->arg);
	char time[BM_UNITS_TEXT], line[FIRST_LINE];
	int status = 0;

	if (pidfd < 0)
		bm_fail(error, BM_E_HOOK, "hook %s cannot be watched: %s", path, strerror(errno));
	kill(-pid, SIGKILL);
	kill(pid, SIGKILL); /* before it had a group */
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (pidfd < 0)
		return -ECANCELED;
	if (ended && WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	if (ended)
		return tell_end(path, event, status, words, error);
	if (h->interrupted && h->interrupted(h->arg)) {
		bm_fail(error, BM_E_INTERRUPTED, "hook %s, asked for %s, was not waited for", path,
			event);
		return -EINTR;
	}
	first_line(words, line);
	return bm_fail(error, BM_E_HOOK,
		       "hook %s, asked for %s, did not end within %s, and was killed%s%s", path,
		       event, bm_format_duration(time, h->limit), *line ? ": " : "", line);
}

static int run_one(const struct bm_hooks *h, const char *path, const char *event,
		   const json_t *facts, struct bm_error *error)
{
	char **environment environment_auto = environment_of(facts);
	bm_free char *text = json_dumps(facts, JSON_COMPACT), *line = NULL;
	bm_close int words = bm_words_new(), input = -1, tied = -1, held = -1;
	int lifeline[2] = {-1, -1}, pid;
	char *argv[] = {(char *)path, (char *)event, NULL};
	struct bm_spawn spawn = {
		.argv = argv, .environment = environment, .lifeline = lifeline, .group = true};

	if (!environment || !text || asprintf(&line, "%s\n", text) < 0)
		return bm_fail_errno(error, ENOMEM, "hook %s", path);
	spawn.input = input = input_of(line);
	pid = words < 0 ? words : input < 0 ? input : bm_spawn_helper(&spawn, words);
	if (pid < 0)
		return bm_fail(error, BM_E_HOOK, "hook %s cannot be started: %s", path,
			       strerror(-pid));
	tied = lifeline[0];
	held = lifeline[1];
	return await(h, path, event, pid, words, error);
}

/* What is there to be run: programs, and not what editors and packagers leave. */
static int is_named(const struct dirent *entry)
{
	size_t n = strlen(entry->d_name);

	return entry->d_name[0] != '.' && entry->d_name[n - 1] != '~';
}

/* 1: it is to be run; 0: it is none; BM_E_HOOK: it is not safe to. */
static int check(int folder, const char *path, const char *name, struct bm_error *error)
{
	struct stat st;

	if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : bm_fail_errno(error, errno, "hook %s", path);
	if (S_ISLNK(st.st_mode))
		return bm_fail(error, BM_E_HOOK,
			       "hook %s is a link, and not run: a file is wanted, that nobody but "
			       "its owner can exchange",
			       path);
	if (!S_ISREG(st.st_mode) || !(st.st_mode & S_IXUSR))
		return 0;
	if (is_open_to_others(&st))
		return bm_fail(
			error, BM_E_HOOK,
			"hook %s is not run: others than root, or us, own it or may write to "
			"it (chown root, chmod go-w)",
			path);
	return 1;
}

static int open_folder(const char *path, struct bm_error *error)
{
	bm_close int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0 || fstat(fd, &st) < 0)
		return bm_fail(error, BM_E_HOOK, "hooks in %s cannot be looked for: %s", path,
			       strerror(errno));
	if (is_open_to_others(&st))
		return bm_fail(
			error, BM_E_HOOK,
			"hooks in %s are not run: others than root, or us, own that folder or "
			"may write to it (chown root, chmod go-w)",
			path);
	return bm_steal_fd(fd);
}

/* All are looked at before the first one is run. */
static int check_all(int folder, const char *path, struct dirent **entries, int n, bool *run,
		     struct bm_error *error)
{
	for (int i = 0; i < n; i++) {
		bm_free char *one = NULL;
		int r = asprintf(&one, "%s/%s", path, entries[i]->d_name) < 0
				? bm_fail_errno(error, ENOMEM, "%s", path)
				: check(folder, one, entries[i]->d_name, error);

		if (r < 0)
			return r;
		run[i] = r;
	}
	return 0;
}

static int run_all(const struct bm_hooks *h, const char *event, const json_t *facts, bool asks,
		   struct dirent **entries, int n, const bool *run, unsigned *ran,
		   struct bm_error *error)
{
	struct bm_error other;
	int first = 0;

	for (int i = 0; i < n; i++) {
		bm_free char *path = NULL;
		int r;

		if (!run[i])
			continue;
		++*ran;
		if (asprintf(&path, "%s/%s", h->folder, entries[i]->d_name) < 0)
			return bm_fail_errno(error, ENOMEM, "%s", h->folder);
		r = run_one(h, path, event, facts, first ? &other : error);
		first = first ? first : r;
		if (r == -EINTR || (r < 0 && asks))
			return r;
	}
	return first;
}

int bm_hooks_run(const struct bm_hooks *h, const char *event, const json_t *facts, bool asks,
		 unsigned *ran, struct bm_error *error)
{
	bm_close int folder = open_folder(h->folder, error);
	struct dirent **entries = NULL;
	bm_free bool *run = NULL;
	int n, r;

	*ran = 0;
	if (folder < 0)
		return folder == -ENOENT ? 0 : folder;
	n = scandir(h->folder, &entries, is_named, alphasort);
	run = calloc(n > 0 ? (size_t)n : 1, sizeof(*run));
	r = n < 0 || !run ? bm_fail(error, BM_E_HOOK, "hooks in %s cannot be read", h->folder)
			  : check_all(folder, h->folder, entries, n, run, error);
	if (!r)
		r = run_all(h, event, facts, asks, entries, n, run, ran, error);
	for (int i = 0; i < n; i++)
		free(entries[i]);
	free(entries);
	return r;
}
