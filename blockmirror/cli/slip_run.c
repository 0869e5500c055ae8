/* SPDX-License-Identifier: BSD-3-Clause */
/* See slip_run.h. Owns nothing. */
#include "blockmirror/cli/slip_run.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/cli/slip.h"

enum { LARGEST = 1 << 20, STEP_MS = 100 };

void slip_words(int fd, json_t **job, struct bm_error *error)
{
	struct stat st = {0};
	bm_free char *text = NULL;
	const char *at;
	json_error_t where;

	if (fstat(fd, &st) < 0 || st.st_size <= 0 || st.st_size >= LARGEST)
		return;
	text = calloc(1, (size_t)st.st_size + 1);
	if (!text || pread(fd, text, (size_t)st.st_size, 0) < 0)
		return;
	at = text;
	for (;;) {
		json_t *object = json_loads(at, JSON_DISABLE_EOF_CHECK, &where), *failure;

		if (!object)
			return;
		at += where.position;
		failure = json_object_get(object, "error");
		if (failure) {
			error->code = bm_code_by_name(cli_text(failure, "code"));
			snprintf(error->text, sizeof(error->text), "%s",
				 cli_text(failure, "message"));
		}
		if (json_object_get(object, "number")) {
			json_decref(*job);
			*job = json_incref(object);
		}
		json_decref(object);
	}
}

static void began(void *arg, const char *disk, const json_t *job)
{
	json_t *said = json_copy((json_t *)job);

	(void)arg;
	json_object_set_new(said, "disk", json_string(disk));
	cli_print_json(said);
	fflush(stdout);
}

static void moved(void *arg)
{
	(void)arg;
}

/* Somebody works on that drive, a command that was begun before us. Whether there was one. */
static bool wait_turn(const struct cli *cli, const char *qmp, const char *drive)
{
	bool waited = false;

	for (;; waited = true) {
		struct slip s = {.cli = cli};
		struct bm_error error;
		int r = slip_plan_find(&s, NULL, qmp, drive, &error);

		slip_close(&s);
		if (r != -EBUSY)
			return waited;
		poll(NULL, 0, STEP_MS);
	}
}

__attribute__((noreturn)) static void run(const struct cli *as, const char *qmp, const char *drive,
					  const char *target, json_t *params, int words)
{
	const struct cli_witness witness = {began, moved, NULL};
	struct cli cli = *as;
	bm_free char *real = realpath(qmp, NULL);
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct bm_error error = {0};
	json_t *job = NULL;
	sigset_t ends;
	bool waited;
	int status;

	setsid();
	signal(SIGHUP, SIG_IGN);
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	sigprocmask(SIG_UNBLOCK, &ends, NULL);
	dup2(null, STDIN_FILENO);
	dup2(words, STDOUT_FILENO);
	dup2(null, STDERR_FILENO);
	/* A copy that was the caller's to watch ends when nobody has its socket any more. */
	close_range(STDERR_FILENO + 1, ~0U, 0);
	cli.json = true;
	cli.progress = PROGRESS_NONE;
	cli.witness = &witness;
	waited = wait_turn(&cli, real ? real : qmp, drive);
	status = cli_relocate_slipped(&cli, qmp, drive, target, params);
	fflush(stdout);
	slip_words(STDOUT_FILENO, &job, &error);
	/* Who was at it has done it. */
	_exit(status && waited && error.code == BM_E_SAME ? 0 : status);
}

int slip_run(const struct cli *cli, const char *qmp, const char *drive, const char *target,
	     json_t *params, int *words, struct bm_error *error)
{
	bm_close int said = memfd_create("words", MFD_CLOEXEC);
	pid_t pid = said < 0 ? -1 : fork();

	if (!pid)
		run(cli, qmp, drive, target, params, said);
	json_decref(params);
	if (pid < 0)
		return bm_fail_errno(error, errno, "cannot start a process");
	*words = bm_steal_fd(said);
	return pid;
}
