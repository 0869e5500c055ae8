/* SPDX-License-Identifier: BSD-3-Clause */
/* What an image stands in: who is above goes on, whichever is in it, and when nothing is. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "blockmirror/disk/slot.h"

static struct lower {
	struct bm_dev dev;
	unsigned started, came, cancelled, closed;
	struct bm_request *rq;
} reader, writer;

static struct bm_loop *loop;
static unsigned answers;
static int result;

static struct lower *of(struct bm_dev *dev)
{
	return (struct lower *)dev;
}

static void on_start(struct bm_dev *dev)
{
	of(dev)->started++;
}

static void on_submit(struct bm_dev *dev, struct bm_request *rq)
{
	of(dev)->came++;
	of(dev)->rq = rq;
}

static void on_cancel(struct bm_dev *dev)
{
	of(dev)->cancelled++;
}

static void on_close(struct bm_dev *dev)
{
	of(dev)->closed++;
}

static int descriptor_of(const struct bm_dev *dev)
{
	return dev == &reader.dev ? 17 : 18;
}

static const struct bm_dev_ops ops = {.name = "lower",
				      .start = on_start,
				      .submit = on_submit,
				      .cancel = on_cancel,
				      .close = on_close,
				      .descriptor = descriptor_of};

static void answered(struct bm_request *rq, int error)
{
	(void)rq;
	answers++;
	result = error;
}

static struct bm_dev *begin(bool reads)
{
	static const struct bm_geometry geometry = {.size = 1 << 20, .block = 512};
	struct bm_dev *slot;

	loop = bm_loop_new();
	reader = (struct lower){.dev = {.ops = &ops, .geometry = geometry}};
	writer = reader;
	reader.dev.geometry.flags = BM_DEV_READ_ONLY | BM_DEV_TRIM;
	writer.dev.geometry.flags = BM_DEV_EXTENTS;
	answers = 0;
	slot = slot_new(&reader.dev, reads);
	assert_non_null(slot);
	bm_dev_start(slot, loop);
	assert_int_equal(reader.started, 1);
	return slot;
}

static void over(struct bm_dev *slot)
{
	bm_dev_close(slot);
	bm_loop_free(loop);
}

static void a_reader_is_told_of_only_where_it_is_to_stay_one(void **state)
{
	struct bm_dev *slot = begin(true);

	(void)state;
	assert_int_equal(slot->geometry.flags, BM_DEV_TRIM);
	over(slot);
	slot = begin(false);
	assert_int_equal(slot->geometry.flags, BM_DEV_TRIM | BM_DEV_READ_ONLY);
	over(slot);
	assert_int_equal(reader.closed, 1);
}

static void another_takes_its_place(void **state)
{
	struct bm_dev *slot = begin(true);
	struct bm_request rq = {.op = BM_FLUSH, .done = answered};

	(void)state;
	bm_submit(slot, &rq);
	assert_ptr_equal(reader.rq, &rq);
	assert_int_equal(bm_dev_descriptor(slot), 17);
	bm_dev_start(&writer.dev, loop);
	slot_put(slot, &writer.dev);
	assert_int_equal(reader.closed, 1);
	assert_int_equal(slot->geometry.flags, BM_DEV_EXTENTS);
	assert_int_equal(bm_dev_descriptor(slot), 18);
	bm_submit(slot, &rq);
	assert_int_equal(reader.came, 1);
	assert_ptr_equal(writer.rq, &rq);
	writer.dev.geometry.flags = BM_DEV_READ_ONLY; /* it is no reader's any more */
	bm_submit(slot, &rq);
	assert_int_equal(slot->geometry.flags, BM_DEV_READ_ONLY);
	over(slot);
	assert_int_equal(writer.closed, 1);
	assert_int_equal(reader.closed, 1);
}

static void an_empty_one_says_that_the_disk_is_gone(void **state)
{
	struct bm_dev *slot = begin(false);
	struct bm_request rq = {.op = BM_READ, .done = answered};

	(void)state;
	slot_put(slot, NULL);
	assert_int_equal(reader.closed, 1);
	assert_int_equal(bm_dev_descriptor(slot), -1);
	bm_submit(slot, &rq);
	assert_int_equal(answers, 0); /* not inside of it */
	bm_loop_turn(loop, 0);
	assert_int_equal(answers, 1);
	assert_int_equal(result, -ESHUTDOWN);
	bm_dev_cancel(slot);
	over(slot);
	assert_int_equal(reader.came, 0);
}

static void what_was_cancelled_stays_so(void **state)
{
	struct bm_dev *slot = begin(true);

	(void)state;
	bm_dev_cancel(slot);
	assert_int_equal(reader.cancelled, 1);
	bm_dev_start(&writer.dev, loop);
	slot_put(slot, &writer.dev);
	assert_int_equal(writer.cancelled, 1);
	over(slot);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_reader_is_told_of_only_where_it_is_to_stay_one),
		cmocka_unit_test(another_takes_its_place),
		cmocka_unit_test(an_empty_one_says_that_the_disk_is_gone),
		cmocka_unit_test(what_was_cancelled_stays_so),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
