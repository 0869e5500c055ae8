/* SPDX-License-Identifier: BSD-3-Clause */
/* The order device, on a device below whose requests end when the test says so. */
#include <errno.h>

#include "tests/unit/dev_order_rig.h"

/* Order */

static void overlapping_requests_run_in_the_order_of_arrival(void **state)
{
	static const struct {
		enum bm_op first, second;
	} pairs[] = {{BM_WRITE, BM_WRITE}, {BM_WRITE, BM_READ}, {BM_READ, BM_WRITE},
		     {BM_WRITE, BM_ZERO},  {BM_ZERO, BM_WRITE}, {BM_ZERO, BM_READ},
		     {BM_TRIM, BM_WRITE},  {BM_READ, BM_TRIM}};

	(void)state;
	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		struct client *a, *b;

		begin_with(512, 512);
		a = submit(pairs[i].first, 0, 8 * KIB, memory, 0);
		b = submit(pairs[i].second, 4 * KIB, 8 * KIB, memory + MIB, 0);
		assert_int_equal(lower.count, 1);
		held_is(0, pairs[i].first, 0, 8 * KIB);
		let_go(0, 0);
		succeeded(a);
		assert_int_equal(b->answers, 0);
		assert_int_equal(lower.count, 1);
		held_is(0, pairs[i].second, 4 * KIB, 12 * KIB);
		let_go(0, 0);
		succeeded(b);
		over();
	}
}

static void reads_and_what_does_not_overlap_run_together(void **state)
{
	(void)state;
	begin_with(512, 512);
	submit(BM_READ, 0, 8 * KIB, memory, 0);
	submit(BM_READ, 4 * KIB, 8 * KIB, memory + MIB, 0);
	submit(BM_WRITE, 12 * KIB, 4 * KIB, memory + 2 * MIB, 0);
	submit(BM_WRITE, 16 * KIB, 4 * KIB, memory + 3 * MIB, 0);
	assert_int_equal(lower.count, 4);
	over();
}

static unsigned idle_ran;

static void on_idle(struct bm_task *task)
{
	(void)task;
	idle_ran++;
}

static void it_tells_when_nothing_is_in_it(void **state)
{
	struct bm_task idle = {.run = on_idle};

	(void)state;
	begin_with(512, 512);
	idle_ran = 0;
	bm_order_when_idle(order, &idle);
	bm_loop_turn(loop, 0);
	assert_int_equal(idle_ran, 1); /* there was nothing */
	submit(BM_READ, 0, 8 * KIB, memory, 0);
	submit(BM_WRITE, 4 * KIB, 8 * KIB, memory + MIB, 0); /* waits for it */
	bm_order_when_idle(order, &idle);
	bm_loop_turn(loop, 0);
	let_go(0, 0);
	bm_loop_turn(loop, 0);
	assert_int_equal(idle_ran, 1);
	let_go(0, 0);
	bm_loop_turn(loop, 0);
	assert_int_equal(idle_ran, 2);
	bm_loop_turn(loop, 0);
	assert_int_equal(idle_ran, 2); /* once */
	over();
}

static void a_change_is_seen_until_it_has_ended(void **state)
{
	(void)state;
	begin_with(512, 512);
	assert_false(bm_order_changes(order));
	submit(BM_READ, 0, 8 * KIB, memory, 0);
	submit(BM_FLUSH, 0, 0, NULL, 0);
	assert_false(bm_order_changes(order));
	submit(BM_WRITE, 4 * KIB, 8 * KIB, memory + MIB, 0); /* waits for the read */
	assert_true(bm_order_changes(order));
	let_go(0, 0);
	assert_true(bm_order_changes(order));
	while (lower.count)
		let_go(0, 0);
	assert_false(bm_order_changes(order));
	over();
}

static void who_waits_for_two_waits_for_both(void **state)
{
	struct client *c;

	(void)state;
	begin_with(512, 512);
	submit(BM_READ, 0, 4 * KIB, memory, 0);
	submit(BM_READ, 4 * KIB, 4 * KIB, memory + MIB, 0);
	c = submit(BM_WRITE, 0, 8 * KIB, memory + 2 * MIB, 0);
	submit(BM_READ, 0, 512, memory + 3 * MIB,
	       0); /* waits for the write, not beside the reads */
	assert_int_equal(lower.count, 2);
	let_go(1, 0);
	assert_int_equal(lower.count, 1);
	let_go(0, 0);
	assert_int_equal(lower.count, 1);
	held_is(0, BM_WRITE, 0, 8 * KIB);
	let_go(0, 0);
	succeeded(c);
	held_is(0, BM_READ, 0, 512);
	over();
}

static void order_is_kept_by_align_and_not_by_block(void **state)
{
	(void)state;
	begin_with(512, 4096); /* the device below may become one with blocks of 4096 bytes */
	submit(BM_WRITE, 0, 512, memory, 0);
	submit(BM_WRITE, 512, 512, memory + MIB, 0);
	submit(BM_WRITE, 4096, 512, memory + 2 * MIB, 0);
	assert_int_equal(lower.count, 2);
	held_is(0, BM_WRITE, 0, 512);
	held_is(1, BM_WRITE, 4096, 4608);
	over();
}

static void a_failed_request_lets_the_next_one_go(void **state)
{
	struct client *a, *b;

	(void)state;
	begin_with(4096, 4096);
	a = write_at(100, 200, 1, memory); /* fails in its read */
	b = write_at(300, 200, 2, memory + MIB);
	let_go(0, -EIO);
	assert_int_equal(a->answers, 1);
	assert_int_equal(a->error, -EIO);
	let_all_go();
	succeeded(b);
	is_filled(100, 300, 0xee);
	is_filled(300, 500, 2);
	over();
}

/* Bytes */

static void small_writes_to_one_block_lose_nothing(void **state)
{
	(void)state;
	begin_with(4096, 4096);
	for (unsigned i = 0; i < 8; i++)
		write_at(i * 512, 512, (uint8_t)(i + 1), memory + i * MIB);
	assert_int_equal(lower.count, 1);
	held_is(0, BM_READ, 0, 4096);
	let_all_go();
	for (unsigned i = 0; i < 8; i++)
		is_filled(i * 512, (i + 1) * 512, (uint8_t)(i + 1));
	over();
}

static void an_unaligned_write_rewrites_its_edges(void **state)
{
	struct client *c;

	(void)state;
	begin_with(4096, 4096);
	c = write_at(5000, 10000, 7, memory); /* [4096, 16384) */
	held_is(0, BM_READ, 4096, 8192);
	let_go(0, 0);
	held_is(0, BM_READ, 12288, 16384);
	let_go(0, 0);
	held_is(0, BM_WRITE, 4096, 16384);
	let_go(0, 0);
	succeeded(c);
	is_filled(0, 5000, 0xee);
	is_filled(5000, 15000, 7);
	is_filled(15000, 20000, 0xee);
	over();
}

static void unaligned_reads_get_their_bytes(void **state)
{
	static const struct {
		uint64_t offset, length;
	} ranges[] = {{1, 1}, {4095, 2}, {100, 4096}, {4096, 100}, {12345, 67890}, {1, 2 * MIB}};

	(void)state;
	begin_with(4096, 4096);
	for (uint64_t i = 0; i < SIZE; i++)
		disk[i] = (uint8_t)(i ^ i >> 8 ^ i >> 16);
	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		struct client *c;

		memset(memory, 0, 3 * MIB);
		c = submit(BM_READ, ranges[i].offset, ranges[i].length, memory + 1, 0);
		let_all_go();
		succeeded(c);
		assert_int_equal(memcmp(memory + 1, disk + ranges[i].offset, ranges[i].length), 0);
		assert_int_equal(memory[0], 0);
		assert_int_equal(memory[1 + ranges[i].length], 0);
	}
	over();
}

static void aligned_requests_in_unaligned_memory_are_bounced(void **state)
{
	struct client *c;

	(void)state;
	begin_with(4096, 4096);
	c = write_at(8192, 4096, 9, memory + 3);
	assert_int_equal((uintptr_t)lower.held[0]->data % 4096, 0);
	let_all_go();
	succeeded(c);
	is_filled(8192, 12288, 9);
	over();
}

/* ZERO and TRIM */

static void an_unaligned_zero_does_its_whole_blocks_first(void **state)
{
	struct client *c;

	(void)state;
	begin_with(4096, 4096);
	c = submit(BM_ZERO, 1000, 19000, NULL, BM_FUA | BM_NO_HOLE); /* [1000, 20000) */
	assert_int_equal(lower.count, 1);
	held_is(0, BM_ZERO, 4096, 16384);
	assert_int_equal(lower.held[0]->flags, BM_FUA | BM_NO_HOLE);
	let_go(0, 0);
	held_is(0, BM_READ, 0, 4096);
	let_go(0, 0);
	held_is(0, BM_WRITE, 0, 4096);
	assert_true(lower.held[0]->flags & BM_FUA);
	let_all_go();
	succeeded(c);
	is_filled(0, 1000, 0xee);
	is_filled(1000, 20000, 0);
	is_filled(20000, 24576, 0xee);
	over();
}

static void zeros_of_any_range_zero_just_that(void **state)
{
	static const uint64_t edges[] = {0, 1, 512, 4095, 4096, 4097, 8191, 8192, 12288, 12289};

	(void)state;
	begin_with(4096, 4096);
	for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++)
		for (size_t j = i + 1; j < sizeof(edges) / sizeof(edges[0]); j++) {
			memset(disk, 0xee, 16384);
			submit(BM_ZERO, edges[i], edges[j] - edges[i], NULL, 0);
			let_all_go();
			is_filled(0, edges[i], 0xee);
			is_filled(edges[i], edges[j], 0);
			is_filled(edges[j], 16384, 0xee);
		}
	over();
}

static void a_long_zero_locks_piece_by_piece(void **state)
{
	struct client *zero, *near, *far;

	(void)state;
	begin_with(4096, 4096);
	zero = submit(BM_ZERO, 0, 12 * MIB, NULL, 0);
	near = submit(BM_WRITE, MIB, 4096, memory, 0);
	far = write_at(10 * MIB, 4096, 5, memory + MIB);
	assert_int_equal(lower.count, 2); /* the first piece, and what is far away */
	held_is(0, BM_ZERO, 0, 4 * MIB);
	held_is(1, BM_WRITE, 10 * MIB, 10 * MIB + 4096);
	let_go(1, 0);
	succeeded(far);
	let_go(0, 0);
	assert_int_equal(lower.count, 2); /* the second piece, and what the first had held up */
	let_all_go();
	succeeded(zero);
	succeeded(near);
	over();
}

static void a_fast_zero_that_is_not_fast_is_refused_at_once(void **state)
{
	struct client *c;

	(void)state;
	begin_with(4096, 4096);
	lower.dev.geometry.flags &= ~BM_DEV_FAST_ZERO;
	c = submit(BM_ZERO, 1000, 50000, NULL, BM_FAST);
	assert_int_equal(lower.count, 0);
	assert_int_equal(c->answers, 1);
	assert_int_equal(c->error, -ENOTSUP);
	over();
}

static void a_fast_zero_that_is_refused_has_changed_nothing(void **state)
{
	struct client *c;

	(void)state;
	begin_with(4096, 4096);
	c = submit(BM_ZERO, 1000, 50000, NULL, BM_FAST);
	assert_int_equal(lower.count, 1);
	held_is(0, BM_ZERO, 4096, 49152);
	assert_true(lower.held[0]->flags & BM_FAST);
	let_go(0, -ENOTSUP);
	assert_int_equal(lower.count, 0);
	assert_int_equal(c->error, -ENOTSUP);
	is_filled(0, 65536, 0xee);
	over();
}

static void a_fast_zero_that_has_begun_goes_on_to_its_end(void **state)
{
	struct client *c;

	(void)state;
	begin_with(4096, 4096);
	c = submit(BM_ZERO, 1000, 6 * MIB, NULL, BM_FAST);
	assert_true(lower.held[0]->flags & BM_FAST);
	let_go(0, 0);
	for (; lower.count; let_go(0, 0))
		assert_false(lower.held[0]->flags & BM_FAST);
	succeeded(c);
	is_filled(1000, 1000 + 6 * MIB, 0);
	over();
}

static void a_trim_is_rounded_inward(void **state)
{
	(void)state;
	begin_with(4096, 4096);
	submit(BM_TRIM, 1000, 19000, NULL, 0);
	assert_int_equal(lower.count, 1);
	held_is(0, BM_TRIM, 4096, 16384);
	let_go(0, 0);
	assert_int_equal(lower.count, 0);
	succeeded(submit(BM_TRIM, 1, 4095, NULL, 0));
	succeeded(submit(BM_TRIM, 4095, 4096, NULL, 0));
	over();
}

/* Cutting, slots, memory */

static void a_long_transfer_is_cut_at_blocks(void **state)
{
	struct client *c;

	(void)state;
	begin_with(4096, 4096);
	lower.dev.geometry.max_transfer = 64 * KIB;
	c = write_at(2048, 300 * KIB, 3, memory);
	let_all_go();
	succeeded(c);
	is_filled(0, 2048, 0xee);
	is_filled(2048, 2048 + 300 * KIB, 3);
	is_filled(2048 + 300 * KIB, 400 * KIB, 0xee);
	c = submit(BM_READ, 1000, 200 * KIB, memory + MIB, 0);
	let_all_go();
	succeeded(c);
	assert_memory_equal(memory + MIB, disk + 1000, 200 * KIB);
	over();
}

static void more_requests_than_slots_wait_their_turn(void **state)
{
	(void)state;
	begin_with(512, 512);
	for (unsigned i = 0; i < 700; i++)
		write_at(i * 512, 512, (uint8_t)i, memory + i * 512);
	assert_true(lower.count >= 16 && lower.count < 700);
	let_all_go();
	for (unsigned i = 0; i < 700; i++)
		is_filled(i * 512, (i + 1) * 512, (uint8_t)i);
	over();
}

static void what_waits_for_memory_gets_it(void **state)
{
	(void)state;
	begin_with(4096, 4096);
	for (unsigned i = 0; i < 30; i++)
		write_at(i * 2 * MIB + 1, MIB - 2, (uint8_t)(i + 1), memory + i * MIB);
	assert_true(lower.count >= 4 && lower.count < 30);
	let_all_go();
	for (unsigned i = 0; i < 30; i++) {
		is_filled(i * 2 * MIB, i * 2 * MIB + 1, 0xee);
		is_filled(i * 2 * MIB + 1, i * 2 * MIB + MIB - 1, (uint8_t)(i + 1));
	}
	over();
}

/* The rest */

static void extents_are_cut_to_what_was_asked(void **state)
{
	struct client *c;
	struct bm_extents *x;

	(void)state;
	begin_with(4096, 4096);
	c = submit(BM_EXTENTS, 5000, 10000, NULL, 0);
	held_is(0, BM_EXTENTS, 4096, 16384);
	x = lower.held[0]->extents;
	x->count = 3;
	x->v[0] = (struct bm_extent){4096, 0};
	x->v[1] = (struct bm_extent){4096, BM_EXTENT_ZERO | BM_EXTENT_HOLE};
	x->v[2] = (struct bm_extent){4096, 0};
	let_go(0, 0);
	succeeded(c);
	assert_int_equal(c->extents.count, 3);
	assert_int_equal(c->extent[0].length, 8192 - 5000);
	assert_int_equal(c->extent[1].length, 4096);
	assert_int_equal(c->extent[1].flags, BM_EXTENT_ZERO | BM_EXTENT_HOLE);
	assert_int_equal(c->extent[2].length, 15000 - 12288);
	over();
}

static void a_flush_waits_for_nobody(void **state)
{
	(void)state;
	begin_with(512, 512);
	submit(BM_WRITE, 0, 4096, memory, 0);
	submit(BM_WRITE, 0, 4096, memory + MIB, 0);
	submit(BM_FLUSH, 0, 0, NULL, 0);
	assert_int_equal(lower.count, 2);
	held_is(1, BM_FLUSH, 0, 0);
	over();
}

static void after_cancel_all_fails_and_all_is_answered(void **state)
{
	(void)state;
	begin_with(512, 512);
	for (unsigned i = 0; i < 600; i++)
		submit(BM_WRITE, i % 4 * 512, 512, memory, 0);
	bm_dev_cancel(order);
	assert_true(lower.cancelled);
	assert_int_equal(submit(BM_FLUSH, 0, 0, NULL, 0)->error, -ESHUTDOWN);
	while (lower.count)
		let_go(0, -ECANCELED);
	for (unsigned i = 0; i < used; i++)
		assert_true(clients[i].answers == 1 && clients[i].error);
	over();
}

static void the_meter_counts_requests_and_not_pieces(void **state)
{
	(void)state;
	begin_with(4096, 4096);
	write_at(1, 10000, 1, memory);
	submit(BM_READ, 0, 4096, memory, 0);
	submit(BM_FLUSH, 0, 0, NULL, 0);
	let_all_go();
	assert_int_equal(meter.requests[BM_WRITE], 1);
	assert_int_equal(meter.requests[BM_READ], 1);
	assert_int_equal(meter.requests[BM_FLUSH], 1);
	assert_int_equal(meter.bytes_written, 10000);
	assert_int_equal(meter.bytes_read, 4096);
	assert_int_equal(meter.window.count, 2);
	assert_int_equal(meter.flushes.count, 1);
	over();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(overlapping_requests_run_in_the_order_of_arrival),
		cmocka_unit_test(reads_and_what_does_not_overlap_run_together),
		cmocka_unit_test(it_tells_when_nothing_is_in_it),
		cmocka_unit_test(a_change_is_seen_until_it_has_ended),
		cmocka_unit_test(who_waits_for_two_waits_for_both),
		cmocka_unit_test(order_is_kept_by_align_and_not_by_block),
		cmocka_unit_test(a_failed_request_lets_the_next_one_go),
		cmocka_unit_test(small_writes_to_one_block_lose_nothing),
		cmocka_unit_test(an_unaligned_write_rewrites_its_edges),
		cmocka_unit_test(unaligned_reads_get_their_bytes),
		cmocka_unit_test(aligned_requests_in_unaligned_memory_are_bounced),
		cmocka_unit_test(an_unaligned_zero_does_its_whole_blocks_first),
		cmocka_unit_test(zeros_of_any_range_zero_just_that),
		cmocka_unit_test(a_long_zero_locks_piece_by_piece),
		cmocka_unit_test(a_fast_zero_that_is_not_fast_is_refused_at_once),
		cmocka_unit_test(a_fast_zero_that_is_refused_has_changed_nothing),
		cmocka_unit_test(a_fast_zero_that_has_begun_goes_on_to_its_end),
		cmocka_unit_test(a_trim_is_rounded_inward),
		cmocka_unit_test(a_long_transfer_is_cut_at_blocks),
		cmocka_unit_test(more_requests_than_slots_wait_their_turn),
		cmocka_unit_test(what_waits_for_memory_gets_it),
		cmocka_unit_test(extents_are_cut_to_what_was_asked),
		cmocka_unit_test(a_flush_waits_for_nobody),
		cmocka_unit_test(after_cancel_all_fails_and_all_is_answered),
		cmocka_unit_test(the_meter_counts_requests_and_not_pieces),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
