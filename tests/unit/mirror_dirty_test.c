/* SPDX-License-Identifier: BSD-3-Clause */
/* The dirty map as extents: what is dirty, to the byte, in every phase of a mirror. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "blockmirror/mirror.h"

enum { GRANULE = 65536, GRANULES = 100, TAIL = 512, ROOM = 8 };
#define SIZE (GRANULES * (uint64_t)GRANULE + TAIL)

struct question {
	struct bm_request rq;
	struct bm_extents x;
	struct bm_extent v[ROOM];
	int error; /* 1: not answered yet */
};

static struct bm_loop *loop;
static struct bm_dev *side[2];
static struct bm_mirror *mirror;
static bool detached;

static void event(void *arg, enum bm_mirror_event what)
{
	(void)arg;
	detached |= what == BM_MIRROR_DETACHED;
}

static void answered(struct bm_request *rq, int error)
{
	bm_container(rq, struct question, rq)->error = error;
}

static void turns(int n)
{
	while (n--)
		bm_loop_turn(loop, 1000000);
}

static struct question ask(struct bm_dev *dev, enum bm_op op, uint64_t offset, uint64_t length,
			   unsigned room)
{
	static uint8_t data[GRANULE] __attribute__((aligned(4096))) = {1};
	struct question q = {
		.rq = {.op = op,
		       .offset = offset,
		       .length = length,
		       .data = data,
		       .done = answered},
		.x = {.room = room},
		.error = 1,
	};

	q.x.v = q.v;
	q.rq.extents = &q.x;
	bm_submit(dev, &q.rq);
	assert_int_equal(q.error, 1); /* never inside */
	for (int i = 0; i < 1000 && q.error == 1; i++)
		turns(1);
	return q;
}

static void expect(uint64_t offset, uint64_t length, unsigned room, unsigned count,
		   const struct bm_extent *extents)
{
	struct question q = ask(bm_mirror_dirty_dev(mirror), BM_EXTENTS, offset, length, room);

	assert_int_equal(q.error, 0);
	assert_int_equal(q.x.count, count);
	for (unsigned i = 0; i < count; i++) {
		assert_int_equal(q.v[i].length, extents[i].length);
		assert_int_equal(q.v[i].flags, extents[i].flags);
	}
}

#define EXPECT(offset, length, room, ...)                                            \
	expect(offset, length, room,                                                 \
	       sizeof((struct bm_extent[]){__VA_ARGS__}) / sizeof(struct bm_extent), \
	       (struct bm_extent[]){__VA_ARGS__})

static void write_granule(uint64_t g)
{
	struct question q = ask(bm_mirror_dev(mirror), BM_WRITE, g * GRANULE, GRANULE, 0);

	assert_int_equal(q.error, 0);
}

static int set_up(void **state)
{
	static const struct bm_mirror_host host = {.event = event};
	const struct bm_mirror_config config = {.granule = GRANULE};

	(void)state;
	loop = bm_loop_new();
	for (int i = 0; i < 2; i++) {
		if (bm_dev_open("mem:6554112", NULL, &side[i], NULL) < 0)
			return -1;
		bm_dev_start(side[i], loop);
	}
	detached = false;
	return bm_mirror_new(loop, side[0], &config, &host, NULL, &mirror);
}

static int tear_down(void **state)
{
	(void)state;
	if (bm_mirror_detach(mirror) != -ENOTCONN)
		while (!detached)
			turns(1);
	bm_mirror_free(mirror);
	bm_dev_close(side[0]);
	bm_dev_close(side[1]);
	bm_loop_free(loop);
	return 0;
}

static void alone_all_is_clean(void **state)
{
	(void)state;
	assert_int_equal(bm_mirror_dirty_dev(mirror)->geometry.size, SIZE);
	EXPECT(0, SIZE, ROOM, {SIZE, 0});
	EXPECT(12345, 1, 1, {1, 0});
}

static void what_is_not_copied_yet_is_dirty(void **state)
{
	(void)state;
	bm_mirror_pause(mirror, true);
	assert_int_equal(bm_mirror_attach(mirror, side[1], false, NULL), 0);
	EXPECT(0, SIZE, ROOM, {SIZE, BM_MIRROR_DIRTY});
	/* A write over a whole granule goes to both sides, and makes it clean. */
	write_granule(3), write_granule(4), write_granule(70);
	EXPECT(0, SIZE, ROOM, {3 * GRANULE, 1}, {2 * GRANULE, 0}, {65 * GRANULE, 1}, {GRANULE, 0},
	       {29 * GRANULE + TAIL, 1});
	/* From byte to byte; no more than asked for, no more than there is room. */
	EXPECT(3 * GRANULE - 1, 2, ROOM, {1, 1}, {1, 0});
	EXPECT(5 * GRANULE - 7, 7, ROOM, {7, 0});
	EXPECT(5 * GRANULE - 7, 8, ROOM, {7, 0}, {1, 1});
	EXPECT(GRANULE, 3 * GRANULE + 5, ROOM, {2 * GRANULE, 1}, {GRANULE + 5, 0});
	EXPECT(0, SIZE, 2, {3 * GRANULE, 1}, {2 * GRANULE, 0});
	EXPECT(SIZE - 1, 1, 1, {1, 1});
	bm_mirror_pause(mirror, false);
	for (int i = 0; i < 1000; i++)
		turns(1);
	EXPECT(0, SIZE, ROOM, {SIZE, 0});
}

static void it_ends_with_the_other_side(void **state)
{
	(void)state;
	bm_mirror_pause(mirror, true);
	assert_int_equal(bm_mirror_attach(mirror, side[1], false, NULL), 0);
	bm_mirror_detach(mirror);
	while (!detached) {
		ask(bm_mirror_dirty_dev(mirror), BM_EXTENTS, 0, SIZE, ROOM); /* at any time */
		turns(1);
	}
	EXPECT(0, SIZE, ROOM, {SIZE, 0});
}

static void it_answers_nothing_else(void **state)
{
	(void)state;
	for (int op = BM_READ; op < BM_OPS; op++)
		if (op != BM_EXTENTS)
			assert_int_equal(
				ask(bm_mirror_dirty_dev(mirror), (enum bm_op)op, 0, 512, 0).error,
				-ENOTSUP);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(alone_all_is_clean),
		TEST(what_is_not_copied_yet_is_dirty),
		TEST(it_ends_with_the_other_side),
		TEST(it_answers_nothing_else),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
