/* SPDX-License-Identifier: BSD-3-Clause */
/* Programs in a hooks folder: which are run, what they are told, what becomes of them. */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/hooks.h"

#define SECOND 1000000000ull

static char folder[64], noted[80];
static struct bm_error error;
static unsigned ran;

static int make_folder(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/hooks_test.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(noted, sizeof(noted), "%s.noted", folder);
	chmod(folder, 0755);
	return setenv("SECRET", "password", 1);
}

static int remove_folder(void **state)
{
	char command[200];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s %s", folder, noted);
	return system(command);
}

static void write_hook(const char *name, mode_t mode, const char *script)
{
	char path[160];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	f = fopen(path, "w");
	fprintf(f, "#!/bin/sh\nexec 4>>%s\n%s\n", noted, script);
	fclose(f);
	chmod(path, mode);
}

static int run_for(uint64_t limit, bool asks)
{
	const struct bm_hooks hooks = {.folder = folder, .limit = limit};
	json_t *facts = json_pack("{s:s s:i s:n}", "disk", "web", "generation", 7, "target");
	int r = bm_hooks_run(&hooks, "before-switch", facts, asks, &ran, &error);

	json_decref(facts);
	return r;
}

static const char *notes(void)
{
	static char text[4096];
	FILE *f = fopen(noted, "r");
	size_t n = f ? fread(text, 1, sizeof(text) - 1, f) : 0;

	text[n] = '\0';
	if (f)
		fclose(f);
	return text;
}

static void without_hooks_nothing_is_run(void **state)
{
	const struct bm_hooks none = {.folder = "/no/such/folder", .limit = SECOND};

	(void)state;
	assert_int_equal(bm_hooks_run(&none, "x", NULL, true, &ran, &error), 0);
	assert_int_equal(ran, 0);
	assert_int_equal(run_for(SECOND, true), 0);
	assert_int_equal(ran, 0);
}

static void they_are_run_by_name_and_told(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN); /* as our programs have it; theirs do not */
	write_hook("20-two", 0700, "grep -q 'SigIgn.*0000$' /proc/self/status && echo two >&4");
	write_hook(
		"10-one", 0755,
		"echo \"one $1 $BLOCKMIRROR_DISK $BLOCKMIRROR_GENERATION ${BLOCKMIRROR_TARGET-no} "
		"${SECRET-no} $(cat)\" >&4");
	write_hook(".hidden", 0755, "echo hidden >&4");
	write_hook("30-edited~", 0755, "echo edited >&4");
	write_hook("40-text", 0644, "echo text >&4");
	assert_int_equal(run_for(10 * SECOND, true), 0);
	assert_int_equal(ran, 2);
	assert_string_equal(notes(), "one before-switch web 7 no no "
				     "{\"disk\":\"web\",\"generation\":7,\"target\":null}\ntwo\n");
}

static void who_says_no_ends_it_when_asked(void **state)
{
	(void)state;
	write_hook("10-no", 0755, "echo printed; echo reason >&2; echo more >&2; exit 3");
	write_hook("20-two", 0755, "echo two >&4");
	assert_int_equal(run_for(10 * SECOND, true), -ECANCELED);
	assert_int_equal(error.code, BM_E_HOOK);
	assert_non_null(
		strstr(error.text, "10-no says no to before-switch (exit status 3): reason"));
	assert_null(strstr(error.text, "more"));
	assert_string_equal(notes(), "");
	/* Who is told has no say. */
	assert_int_equal(run_for(10 * SECOND, false), -ECANCELED);
	assert_non_null(strstr(error.text, "10-no"));
	assert_string_equal(notes(), "two\n");
}

static void a_signal_or_no_interpreter_is_a_no(void **state)
{
	(void)state;
	write_hook("10-dies", 0755, "kill -SEGV $$");
	assert_int_equal(run_for(10 * SECOND, true), -ECANCELED);
	assert_non_null(strstr(error.text, "was killed by signal 11"));
	remove_folder(NULL);
	mkdir(folder, 0755);
	write_hook("10-x", 0755, "exec /no/such/program");
	assert_int_equal(run_for(10 * SECOND, true), -ECANCELED);
	assert_non_null(strstr(error.text, "exit status 127"));
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static bool is_gone(int pid)
{
	for (int i = 0; i < 100; i++) {
		char path[64], line[256] = "";
		FILE *f;

		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
		f = fopen(path, "r");
		if (!f)
			return true;
		if (fgets(line, sizeof(line), f) && strstr(line, ") Z "))
			line[0] = '\0';
		fclose(f);
		if (!line[0])
			return true;
		usleep(20000);
	}
	return false;
}

static void one_that_hangs_is_killed_with_all_it_started(void **state)
{
	uint64_t start = now();

	(void)state;
	write_hook("10-hangs", 0755, "sleep 100 & echo $! >&4; echo so far >&2; wait");
	assert_int_equal(run_for(SECOND / 2, true), -ECANCELED);
	assert_in_range(now() - start, SECOND / 2, 20 * SECOND);
	assert_non_null(strstr(error.text, "did not end within 500.0 ms, and was killed: so far"));
	assert_true(is_gone(atoi(notes())));
}

static void what_one_leaves_running_ends_with_it(void **state)
{
	(void)state;
	write_hook("10-leaves", 0755, "sleep 100 & echo $! >&4");
	assert_int_equal(run_for(10 * SECOND, true), 0);
	assert_true(is_gone(atoi(notes())));
}

static void it_ends_with_who_runs_it(void **state)
{
	int pid;

	(void)state;
	write_hook("10-hangs", 0755, "sleep 100 & echo $! >&4; wait");
	pid = fork();
	if (!pid)
		_exit(run_for(100 * SECOND, true) != 0);
	for (int i = 0; i < 250 && !atoi(notes()); i++)
		usleep(20000);
	assert_true(atoi(notes()) > 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_true(is_gone(atoi(notes())));
}

static bool at_once(void *arg)
{
	(void)arg;
	return true;
}

static void nobody_waits_for_it_any_more(void **state)
{
	const struct bm_hooks hooks = {
		.folder = folder, .limit = 100 * SECOND, .interrupted = at_once};
	json_t *facts = json_object();

	(void)state;
	write_hook("10-hangs", 0755, "sleep 100");
	assert_int_equal(bm_hooks_run(&hooks, "after-switch", facts, false, &ran, &error), -EINTR);
	json_decref(facts);
}

static void refused(const char *text)
{
	assert_int_equal(run_for(10 * SECOND, true), -ECANCELED);
	assert_int_equal(error.code, BM_E_HOOK);
	assert_non_null(strstr(error.text, text));
	assert_string_equal(notes(), "");
}

static void what_others_can_change_is_not_run(void **state)
{
	char path[160];

	(void)state;
	write_hook("10-good", 0755, "echo good >&4");
	write_hook("20-open", 0777, "echo open >&4");
	refused("20-open is not run");
	write_hook("20-open", 0775, "echo open >&4");
	refused("20-open is not run");
	snprintf(path, sizeof(path), "%s/20-open", folder);
	if (!geteuid()) {
		chmod(path, 0755);
		assert_int_equal(chown(path, 12345, 0), 0);
		refused("20-open is not run");
	}
	unlink(path);
	assert_int_equal(symlink("/bin/true", path), 0);
	refused("is a link");
	unlink(path);
	chmod(folder, 0757);
	refused("own that folder");
	chmod(folder, 0755);
	assert_int_equal(run_for(10 * SECOND, true), 0);
	assert_string_equal(notes(), "good\n");
}

int main(void)
{
#define in_folder(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
	const struct CMUnitTest tests[] = {
		in_folder(without_hooks_nothing_is_run),
		in_folder(they_are_run_by_name_and_told),
		in_folder(who_says_no_ends_it_when_asked),
		in_folder(a_signal_or_no_interpreter_is_a_no),
		in_folder(one_that_hangs_is_killed_with_all_it_started),
		in_folder(what_one_leaves_running_ends_with_it),
		in_folder(it_ends_with_who_runs_it),
		in_folder(nobody_waits_for_it_any_more),
		in_folder(what_others_can_change_is_not_run),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
