/* SPDX-License-Identifier: BSD-3-Clause */
/* The log of a machine's move: what the last good entry says, and for whom. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "blockmirror/base/move_log.h"

enum { ENTRY = 512 };

static char folder[] = "/var/tmp/move_log_test.XXXXXX", path[64];

static int set_up(void **state)
{
	(void)state;
	snprintf(folder, sizeof(folder), "/var/tmp/move_log_test.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/log", folder);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(folder);
}

static enum bm_move_state read_state(void)
{
	enum bm_move_state state;

	assert_int_equal(bm_move_log_read(path, &state), 0);
	return state;
}

/* Another byte there. */
static void damage(off_t at)
{
	int fd = open(path, O_RDWR);
	char c;

	assert_int_equal(pread(fd, &c, 1, at), 1);
	c ^= 0x20;
	assert_int_equal(pwrite(fd, &c, 1, at), 1);
	close(fd);
}

static void test_last_counts(void **state)
{
	struct bm_move_log log;

	(void)state;
	assert_int_equal(bm_move_log_create(path, &log), 0);
	assert_int_equal(read_state(), BM_MOVE_NONE);
	assert_int_equal(bm_move_log_append(&log, BM_MOVE_BEGUN), 0);
	assert_int_equal(read_state(), BM_MOVE_BEGUN);
	assert_int_equal(bm_move_log_append(&log, BM_MOVE_PASSED), 0);
	assert_int_equal(bm_move_log_append(&log, BM_MOVE_ABORTED), 0);
	assert_int_equal(log.state, BM_MOVE_ABORTED);
	assert_int_equal(read_state(), BM_MOVE_ABORTED);
	bm_move_log_close(&log);
	assert_int_equal(bm_move_log_create(path, &log), -EEXIST);
}

/* It has one writer; who follows writes again what it found. */
static void test_one_writer(void **state)
{
	struct bm_move_log log, other;

	(void)state;
	assert_false(bm_move_log_busy(path));
	assert_int_equal(bm_move_log_open(path, &log), -ENOENT);
	assert_int_equal(bm_move_log_create(path, &log), 0);
	assert_int_equal(bm_move_log_append(&log, BM_MOVE_PASSED), 0);
	assert_true(bm_move_log_busy(path));
	assert_int_equal(bm_move_log_open(path, &other), -EWOULDBLOCK);
	bm_move_log_close(&log);
	assert_false(bm_move_log_busy(path));
	assert_int_equal(bm_move_log_open(path, &other), 0);
	assert_int_equal(other.state, BM_MOVE_PASSED);
	assert_int_equal(other.next, 2);
	bm_move_log_close(&other);
}

/* Part of an entry is none, and those before it stand. */
static void test_torn(void **state)
{
	struct bm_move_log log;

	(void)state;
	assert_int_equal(bm_move_log_create(path, &log), 0);
	assert_int_equal(bm_move_log_append(&log, BM_MOVE_BEGUN), 0);
	assert_int_equal(bm_move_log_append(&log, BM_MOVE_PASSED), 0);
	for (off_t at = ENTRY; at < 2 * ENTRY; at += 37) {
		damage(at);
		assert_int_equal(read_state(), BM_MOVE_BEGUN);
		damage(at);
		assert_int_equal(read_state(), BM_MOVE_PASSED);
	}
	/* One entry is not another one's, at its place. */
	damage(0);
	assert_int_equal(read_state(), BM_MOVE_PASSED);
	bm_move_log_close(&log);
}

/* Who must not give up writes more often than there is room for. */
static void test_full(void **state)
{
	struct bm_move_log log;

	(void)state;
	assert_int_equal(bm_move_log_create(path, &log), 0);
	for (int i = 0; i < 200; i++)
		assert_int_equal(bm_move_log_append(&log, BM_MOVE_PASSED), 0);
	assert_int_equal(bm_move_log_append(&log, BM_MOVE_DONE), 0);
	assert_int_equal(read_state(), BM_MOVE_DONE);
	bm_move_log_close(&log);
	assert_int_equal(bm_move_log_open(path, &log), 0);
	assert_int_equal(log.state, BM_MOVE_DONE);
	bm_move_log_close(&log);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_last_counts, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_one_writer, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_torn, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_full, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
