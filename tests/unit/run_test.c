/* SPDX-License-Identifier: BSD-3-Clause */
/* Other people's programs: what they say, how they end, and that they end with us. */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/run.h"
#include "blockmirror/base/spawn.h"

#define SECOND 1000000000ull

static int shell(const char *script, char **output, char *why, size_t size)
{
	const char *argv[] = {"sh", "-c", script, NULL};

	return bm_run((char *const *)argv, NULL, NULL, output, why, size);
}

static void what_they_say_is_heard(void **state)
{
	char *output = NULL, why[40];

	(void)state;
	assert_int_equal(shell("echo one; echo bad >&2; echo two; exit 3", &output, why, 40), 3);
	assert_string_equal(output, "one\ntwo\n");
	assert_string_equal(why, "bad");
	free(output);
	assert_int_equal(shell("printf 'no end' >&2; kill -9 $$", NULL, why, sizeof(why)), 128 + 9);
	assert_string_equal(why, "no end");
	assert_int_equal(shell("echo 'sh: bad' >&2; echo 'and a hint' >&2", NULL, why, 40), 0);
	assert_string_equal(why, "bad");
	assert_int_equal(shell("yes | head -c 300000 >&2; echo done", &output, why, 4), 0);
	assert_string_equal(why, "y"); /* the rest had no room, and nobody minded */
	assert_string_equal(output, "done\n");
	free(output);
}

static void what_is_not_there_is_told(void **state)
{
	const char *argv[] = {"/no/such/program", NULL};
	char why[40];

	(void)state;
	assert_int_equal(bm_run((char *const *)argv, NULL, NULL, NULL, why, sizeof(why)),
			 BM_SPAWN_NOT_FOUND);
}

static bool at_once(void *arg)
{
	(void)arg;
	return true;
}

static void too_much_output_and_too_much_time_end_them(void **state)
{
	const char *argv[] = {"sleep", "100", NULL};
	char why[40];

	(void)state;
	assert_int_equal(shell("exec yes", NULL, why, sizeof(why)), -EFBIG);
	assert_int_equal(bm_run((char *const *)argv, at_once, NULL, NULL, why, sizeof(why)),
			 -EINTR);
}

/* Starts a sleep and dies; with which signal it shall end. */
static void start_and_die(int signal, int report)
{
	const char *argv[] = {"sleep", "100", NULL};
	int lifeline[2], pid;

	pid = bm_spawn_helper(&(struct bm_spawn){.argv = (char *const *)argv, .lifeline = lifeline},
			      -1);
	usleep(300000); /* it has become what it is to be, and tied its end */
	if (signal != SIGKILL)
		fcntl(lifeline[0], F_SETSIG, signal);
	if (write(report, &pid, sizeof(pid)) != sizeof(pid))
		_exit(1);
	kill(getpid(), SIGKILL);
}

static void they_end_with_us(void **state)
{
	static const int signals[] = {SIGKILL, SIGTERM};

	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	for (int i = 0; i < 2; i++) {
		int pipes[2], status, pid = 0;
		pid_t parent;

		assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
		parent = fork();
		if (!parent)
			start_and_die(signals[i], pipes[1]);
		assert_int_equal(read(pipes[0], &pid, sizeof(pid)), sizeof(pid));
		assert_true(pid > 0);
		assert_int_equal(waitpid(parent, &status, 0), parent);
		assert_int_equal(waitpid(pid, &status, 0), pid); /* it is ours now */
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), signals[i]);
		close(pipes[0]);
		close(pipes[1]);
	}
}

static void they_end_when_they_are_let_go(void **state)
{
	const char *argv[] = {"sleep", "100", NULL};
	int lifeline[2], pid, pidfd, status;

	(void)state;
	pid = bm_spawn_helper(&(struct bm_spawn){.argv = (char *const *)argv, .lifeline = lifeline},
			      -1);
	assert_true(pid > 0);
	pidfd = pidfd_open(pid, 0);
	assert_false(bm_process_ends(pidfd, SECOND / 10, NULL, NULL));
	close(lifeline[1]);
	assert_true(bm_process_ends(pidfd, 10 * SECOND, NULL, NULL));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(lifeline[0]);
	close(pidfd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_they_say_is_heard),
		cmocka_unit_test(what_is_not_there_is_told),
		cmocka_unit_test(too_much_output_and_too_much_time_end_them),
		cmocka_unit_test(they_end_with_us),
		cmocka_unit_test(they_end_when_they_are_let_go),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
