/* SPDX-License-Identifier: BSD-3-Clause */
/* The cap that all processes of a host share, by a clock of the test's own. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "blockmirror/base/cap.h"

#define SECOND 1000000000ull
#define MS     1000000ull
#define RATE   1000000ull /* a byte takes a microsecond */

static char folder[] = "/tmp/blockmirror-cap.XXXXXX";
static struct bm_cap *one, *other; /* as two processes have it */
static const uint64_t begun = 1000 * SECOND;

static int begin(void **state)
{
	(void)state;
	assert_int_equal(bm_cap_open(folder, &one), 0);
	assert_int_equal(bm_cap_open(folder, &other), 0);
	bm_cap_set(one, RATE);
	return 0;
}

static int end(void **state)
{
	(void)state;
	bm_cap_close(one);
	bm_cap_close(other);
	return 0;
}

static void it_is_one_for_all(void **state)
{
	uint64_t again = 0;

	(void)state;
	assert_int_equal(bm_cap_rate(other), RATE);
	bm_cap_set(other, 0);
	assert_int_equal(bm_cap_rate(one), 0);
	for (int i = 0; i < 1000; i++)
		assert_true(bm_cap_admit(one, 1 << 20, begun, &again));
	bm_cap_set(other, RATE);
	assert_true(bm_cap_admit(one, 300000, begun, &again)); /* 300 ms, 100 of them are past */
	assert_false(bm_cap_admit(other, 1, begun, &again));
	assert_int_equal(again, begun + 200 * MS);
	assert_false(bm_cap_admit(other, 1, again - 1, &again));
	assert_true(bm_cap_admit(other, 1, again, &again));
}

/* Both ask every millisecond for as long as ten seconds take. */
static void together_they_send_no_more(void **state)
{
	uint64_t sent[2] = {0, 0}, again;

	(void)state;
	for (uint64_t now = begun; now < begun + 10 * SECOND; now += MS)
		for (int i = 0; i < 2; i++) {
			struct bm_cap *cap = (now / MS + (uint64_t)i) % 2 ? one : other;

			if (bm_cap_admit(cap, 5000, now, &again))
				sent[cap == one] += 5000;
		}
	assert_in_range(sent[0] + sent[1], 9900000, 10110000); /* and a tenth of a second's burst */
	assert_in_range(sent[0], 3000000, 7000000);
}

static void a_silence_saves_no_more_than_a_tenth_of_a_second(void **state)
{
	uint64_t again, sent = 0;

	(void)state;
	assert_true(bm_cap_admit(one, 1000, begun, &again));
	while (bm_cap_admit(one, 1000, begun + 100 * SECOND, &again))
		sent += 1000;
	assert_in_range(sent, 100000, 101000);
}

/* A guest does not wait; a copy waits for what it has sent, but for a second at most. */
static void what_is_charged_is_waited_for(void **state)
{
	uint64_t again = 0;

	(void)state;
	bm_cap_charge(other, 400000, begun);
	assert_false(bm_cap_admit(one, 1, begun, &again));
	assert_int_equal(again, begun + 400 * MS);
	for (int i = 0; i < 100; i++)
		bm_cap_charge(other, 400000, begun);
	assert_false(bm_cap_admit(one, 1, begun, &again));
	assert_int_equal(again, begun + SECOND);
}

/* One piece may take longer than that: the rate is kept all the same. */
static void a_low_rate_is_kept(void **state)
{
	uint64_t again = 0;

	(void)state;
	bm_cap_set(one, 10000);
	assert_true(bm_cap_admit(one, 1000000, begun, &again));
	bm_cap_charge(other, 10, begun);
	assert_false(bm_cap_admit(one, 1, begun + 90 * SECOND, &again));
	assert_true(bm_cap_admit(one, 1, begun + 100 * SECOND, &again));
}

static void what_another_boot_has_left_counts_for_nothing(void **state)
{
	const uint64_t later = begun + 5000 * SECOND;
	uint64_t again = 0;
	char path[100];
	int fd;

	(void)state;
	snprintf(path, sizeof(path), "%s/cap", folder);
	fd = open(path, O_WRONLY);
	assert_int_equal(pwrite(fd, &later, sizeof(later), 8), sizeof(later));
	close(fd);
	assert_true(bm_cap_admit(one, 1000, begun, &again));
	assert_false(bm_cap_admit(one, 300000, begun - 100 * MS, &again));
}

/* Many at a time, by threads of processes of their own. */
static void nothing_is_taken_twice(void **state)
{
	enum { PROCESSES = 4, TRIES = 200000 };
	uint64_t got = 0;
	int pipes[2];

	(void)state;
	assert_int_equal(pipe(pipes), 0);
	for (int i = 0; i < PROCESSES; i++)
		if (!fork()) {
			uint64_t n = 0, again;

			for (int k = 0; k < TRIES; k++)
				n += bm_cap_admit(one, 1, begun, &again);
			_exit(write(pipes[1], &n, sizeof(n)) != sizeof(n));
		}
	for (int i = 0; i < PROCESSES; i++) {
		uint64_t n = 0;
		int status;

		assert_int_equal(read(pipes[0], &n, sizeof(n)), sizeof(n));
		assert_true(wait(&status) > 0);
		assert_int_equal(status, 0);
		got += n;
	}
	assert_int_equal(got, 100001); /* the tenth of a second, and the one that reaches over */
	close(pipes[0]);
	close(pipes[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(it_is_one_for_all, begin, end),
		cmocka_unit_test_setup_teardown(together_they_send_no_more, begin, end),
		cmocka_unit_test_setup_teardown(a_silence_saves_no_more_than_a_tenth_of_a_second,
						begin, end),
		cmocka_unit_test_setup_teardown(what_is_charged_is_waited_for, begin, end),
		cmocka_unit_test_setup_teardown(a_low_rate_is_kept, begin, end),
		cmocka_unit_test_setup_teardown(what_another_boot_has_left_counts_for_nothing,
						begin, end),
		cmocka_unit_test_setup_teardown(nothing_is_taken_twice, begin, end),
	};
	char path[100];
	int r;

	if (!mkdtemp(folder))
		return 1;
	r = cmocka_run_group_tests(tests, NULL, NULL);
	snprintf(path, sizeof(path), "%s/cap", folder);
	unlink(path);
	rmdir(folder);
	return r;
}
