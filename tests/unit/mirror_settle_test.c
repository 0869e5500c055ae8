/* SPDX-License-Identifier: BSD-3-Clause */
/* A guest that is about to stop: its copy is flushed beside it, and a cut has nothing left to do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "blockmirror/mirror.h"

#define SECOND 1000000000ull
#define MS     1000000ull

static struct bm_loop *loop;
static struct bm_dev *side[2];
static struct bm_mirror *mirror;
static bool in_sync, detached, ended, cut;
static uint8_t data[4096] __attribute__((aligned(4096)));

static void event(void *arg, enum bm_mirror_event what)
{
	(void)arg;
	in_sync |= what == BM_MIRROR_IN_SYNC;
	detached |= what == BM_MIRROR_DETACHED;
}

static void done(struct bm_request *rq, int error)
{
	(void)rq;
	assert_int_equal(error, 0);
	ended = true;
}

/* In sync, all of it flushed on both sides. A flush of the other side takes 5 ms. */
static int begin(void **state)
{
	static const struct bm_mirror_host host = {.event = event};
	const struct bm_mirror_config config = {.flush_every = 3600 * SECOND};

	(void)state;
	in_sync = detached = false;
	loop = bm_loop_new_simulated();
	assert_int_equal(bm_dev_open("mem:4194304", NULL, &side[0], NULL), 0);
	assert_int_equal(bm_dev_open("fault:op=flush,delay=5ms;mem:4194304", NULL, &side[1], NULL),
			 0);
	for (int i = 0; i < 2; i++)
		bm_dev_start(side[i], loop);
	assert_int_equal(bm_mirror_new(loop, side[0], &config, &host, NULL, &mirror), 0);
	assert_int_equal(bm_mirror_attach(mirror, side[1], false, NULL), 0);
	while (!in_sync)
		bm_loop_turn(loop, SECOND);
	return 0;
}

static int end(void **state)
{
	(void)state;
	bm_mirror_detach(mirror);
	while (!detached)
		bm_loop_turn(loop, SECOND);
	bm_mirror_free(mirror);
	bm_dev_close(side[0]);
	bm_dev_close(side[1]);
	bm_loop_free(loop);
	return 0;
}

static uint64_t flushes(void)
{
	struct bm_mirror_stats stats;

	bm_mirror_get_stats(mirror, &stats);
	return stats.flushes;
}

static void guest(enum bm_op op)
{
	struct bm_request rq = {.op = op,
				.length = op == BM_WRITE ? sizeof(data) : 0,
				.data = op == BM_WRITE ? data : NULL,
				.done = done};

	ended = false;
	bm_submit(bm_mirror_dev(mirror), &rq);
	while (!ended)
		bm_loop_turn(loop, SECOND);
}

static void wait_for(uint64_t ns)
{
	uint64_t until = bm_loop_now(loop) + ns;

	while (bm_loop_now(loop) < until)
		bm_loop_turn(loop, until - bm_loop_now(loop));
}

static void is_cut(void *arg, int error)
{
	(void)arg;
	assert_int_equal(error, 0);
	cut = true;
}

/* How long that takes. */
static uint64_t make_cut(void)
{
	uint64_t from = bm_loop_now(loop), took;

	cut = false;
	assert_int_equal(bm_mirror_cut(mirror, is_cut, NULL), 0);
	while (!cut)
		bm_loop_turn(loop, SECOND);
	took = bm_loop_now(loop) - from;
	bm_mirror_cut_end(mirror);
	return took;
}

static void a_guest_that_stops_has_its_copy_flushed_beside_it(void **state)
{
	uint64_t before;

	(void)state;
	make_cut();
	guest(BM_WRITE);
	bm_mirror_settle(mirror, SECOND); /* what is there is flushed at once */
	wait_for(6 * MS);
	before = flushes();
	guest(BM_WRITE); /* while it stops */
	guest(BM_FLUSH);
	wait_for(6 * MS);
	assert_int_equal(flushes(), before + 1);
	assert_true(bm_mirror_authority_flushed(mirror));
	assert_int_equal(make_cut(), 0);
	assert_int_equal(flushes(), before + 1);
}

static void what_was_written_since_is_flushed_by_the_cut(void **state)
{
	uint64_t before;

	(void)state;
	make_cut();
	bm_mirror_settle(mirror, SECOND);
	guest(BM_WRITE);
	assert_false(bm_mirror_authority_flushed(mirror));
	before = flushes();
	assert_true(make_cut() >= 5 * MS);
	assert_int_equal(flushes(), before + 1);
}

/* Its machine runs on: there is no flush behind each flush. */
static void it_ends_by_itself(void **state)
{
	uint64_t before;

	(void)state;
	make_cut();
	bm_mirror_settle(mirror, SECOND);
	wait_for(SECOND);
	before = flushes();
	guest(BM_WRITE);
	guest(BM_FLUSH);
	wait_for(6 * MS);
	assert_int_equal(flushes(), before);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_guest_that_stops_has_its_copy_flushed_beside_it,
						begin, end),
		cmocka_unit_test_setup_teardown(what_was_written_since_is_flushed_by_the_cut, begin,
						end),
		cmocka_unit_test_setup_teardown(it_ends_by_itself, begin, end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
