/* SPDX-License-Identifier: BSD-3-Clause */
/* A target that lives and never answers: what only the copy waits for must not wait for ever. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "blockmirror/base/list.h"
#include "blockmirror/mirror.h"

#define SECOND 1000000000ull
#define LIMIT  (BM_MIRROR_SILENCE * BM_MIRROR_DEADLINE)

static struct bm_loop *loop;
static struct bm_dev *side[2];
static struct bm_mirror *mirror;
static uint64_t lost_at;
static bool in_sync, detached;

static void event(void *arg, enum bm_mirror_event what)
{
	(void)arg;
	if (what == BM_MIRROR_LOST)
		lost_at = bm_loop_now(loop);
	in_sync |= what == BM_MIRROR_IN_SYNC;
	detached |= what == BM_MIRROR_DETACHED;
}

/* 4 MiB to a target with that fault, until it is lost or the time is over. */
static void copy_to(const char *target, uint64_t ns)
{
	static const struct bm_mirror_host host = {.event = event};
	const struct bm_mirror_config config = {0};
	uint64_t until;

	lost_at = 0;
	in_sync = detached = false;
	loop = bm_loop_new_simulated();
	until = bm_loop_now(loop) + ns;
	assert_int_equal(bm_dev_open("mem:4194304", NULL, &side[0], NULL), 0);
	assert_int_equal(bm_dev_open(target, NULL, &side[1], NULL), 0);
	for (int i = 0; i < 2; i++)
		bm_dev_start(side[i], loop);
	assert_int_equal(bm_mirror_new(loop, side[0], &config, &host, NULL, &mirror), 0);
	assert_int_equal(bm_mirror_attach(mirror, side[1], false, NULL), 0);
	while (!lost_at && bm_loop_now(loop) < until)
		bm_loop_turn(loop, SECOND);
}

static void let_go(void)
{
	bm_mirror_detach(mirror);
	while (!detached)
		bm_loop_turn(loop, SECOND);
	bm_mirror_free(mirror);
	bm_dev_close(side[0]);
	bm_dev_close(side[1]);
	bm_loop_free(loop);
}

static void a_copy_without_an_answer_is_a_loss(void **state)
{
	(void)state;
	copy_to("fault:op=write,drop|op=zero,drop;mem:4194304", 2 * LIMIT);
	assert_false(in_sync);
	assert_in_range(lost_at, LIMIT, LIMIT + SECOND);
	let_go();
}

static void a_flush_without_an_answer_is_a_loss(void **state)
{
	(void)state;
	copy_to("fault:op=flush,drop;mem:4194304", 3 * LIMIT);
	assert_true(in_sync);
	assert_in_range(lost_at, LIMIT, LIMIT + 10 * SECOND);
	let_go();
}

static void a_slow_one_is_none(void **state)
{
	(void)state;
	copy_to("fault:op=write,delay=50s|op=zero,delay=50s|op=flush,delay=50s;mem:4194304",
		20 * LIMIT);
	assert_int_equal(lost_at, 0);
	assert_true(in_sync);
	let_go();
}

static void nothing_to_answer_is_no_silence(void **state)
{
	(void)state;
	copy_to("mem:4194304", 20 * LIMIT);
	assert_int_equal(lost_at, 0);
	assert_true(in_sync);
	let_go();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_copy_without_an_answer_is_a_loss),
		cmocka_unit_test(a_flush_without_an_answer_is_a_loss),
		cmocka_unit_test(a_slow_one_is_none),
		cmocka_unit_test(nothing_to_answer_is_no_silence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
