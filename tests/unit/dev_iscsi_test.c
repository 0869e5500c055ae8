/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The requests of an iSCSI device: which commands they become, what their answers mean, and whose
 * memory is whose until when.
 */
#include "tests/unit/dev_iscsi_rig.h"

/* Commands */

static void each_op_is_its_command(void **state)
{
	(void)state;
	submit(BM_READ, 4096, 8192, 0);
	submit(BM_WRITE, 8192, 4096, BM_FUA);
	submit(BM_ZERO, 0, MIB, 0);
	submit(BM_ZERO, 0, MIB, BM_NO_HOLE);
	submit(BM_TRIM, MIB, MIB, 0);
	submit(BM_FLUSH, 0, 0, 0);
	was(0, SCSI_OPCODE_READ16, 4096, 12288);
	was(1, SCSI_OPCODE_WRITE16, 8192, 12288);
	assert_true(sent[1].fua);
	was(2, SCSI_OPCODE_WRITE_SAME16, 0, MIB);
	assert_true(sent[2].unmap);
	was(3, SCSI_OPCODE_WRITE_SAME16, 0, MIB);
	assert_false(sent[3].unmap);
	was(4, SCSI_OPCODE_UNMAP, MIB, 2 * MIB);
	was(5, SCSI_OPCODE_SYNCHRONIZECACHE16, 0, 0);
	assert_true(serviced > 0); /* told to send, at once */
	for (unsigned i = 0; i < 6; i++) {
		answer(i, SCSI_STATUS_GOOD);
		ended(&clients[i], 0);
	}
	assert_int_equal(count, 6);
}

static void fua_is_a_flush_where_the_bit_is_missing(void **state)
{
	static const enum bm_op ops[] = {BM_WRITE, BM_ZERO, BM_TRIM};

	(void)state;
	d->can_fua = false;
	for (unsigned i = 0; i < 3; i++) {
		struct client *c = submit(ops[i], 0, 4096, BM_FUA);

		assert_int_equal(count, 2 * i + 1);
		assert_false(sent[2 * i].fua);
		answer(2 * i, SCSI_STATUS_GOOD);
		assert_int_equal(c->answers, 0);
		was(2 * i + 1, SCSI_OPCODE_SYNCHRONIZECACHE16, 0, 0);
		answer(2 * i + 1, SCSI_STATUS_GOOD);
		ended(c, 0);
	}
}

static void bulk_does_not_stand_before_what_is_small(void **state)
{
	(void)state;
	for (int i = 0; i < 4; i++)
		submit(BM_WRITE, 0, MIB, 0);
	submit(BM_WRITE, 0, 4096, 0);
	submit(BM_FLUSH, 0, 0, 0);
	assert_ptr_equal(sent[0].context, &contexts[1]);
	assert_ptr_equal(sent[1].context, &contexts[2]);
	assert_ptr_equal(sent[2].context, &contexts[1]);
	assert_ptr_equal(sent[3].context, &contexts[2]);
	assert_ptr_equal(sent[4].context, &contexts[0]);
	assert_ptr_equal(sent[5].context, &contexts[0]);
}

static void more_requests_than_slots_wait_their_turn(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 400; i++)
		submit(BM_READ, i * 4096, 4096, 0);
	assert_int_equal(count, ISCSI_SLOTS);
	for (unsigned i = 0; i < 400; i++) {
		was(i, SCSI_OPCODE_READ16, i * 4096, (i + 1) * 4096);
		answer(i, SCSI_STATUS_GOOD);
		ended(&clients[i], 0);
	}
}

/* Zeros and hints */

static void a_refused_unmap_is_a_plain_write_same_and_then_writes(void **state)
{
	struct client *c = submit(BM_ZERO, MIB, 3 * MIB, BM_FUA);

	(void)state;
	complain(0, SCSI_SENSE_ILLEGAL_REQUEST, 0x2400);
	was(1, SCSI_OPCODE_WRITE_SAME16, MIB, 4 * MIB);
	assert_false(sent[1].unmap);
	complain(1, SCSI_SENSE_ILLEGAL_REQUEST, 0x2000);
	for (unsigned i = 2; i < 5; i++) {
		was(i, SCSI_OPCODE_WRITE16, (i - 1) * MIB, i * MIB);
		assert_ptr_equal(sent[i].memory, bm_zeros());
		answer(i, SCSI_STATUS_GOOD);
	}
	was(5, SCSI_OPCODE_SYNCHRONIZECACHE16, 0, 0);
	answer(5, SCSI_STATUS_GOOD);
	ended(c, 0);
	assert_false(d->dev.geometry.flags & BM_DEV_FAST_ZERO);
	c = submit(BM_ZERO, 0, 4096, BM_FAST);
	ended(c, -ENOTSUP);
	submit(BM_ZERO, 0, 4096, 0); /* the target is not asked again */
	was(6, SCSI_OPCODE_WRITE16, 0, 4096);
}

static void a_fast_zero_that_is_refused_writes_nothing(void **state)
{
	struct client *c = submit(BM_ZERO, 0, 3 * MIB, BM_FAST);

	(void)state;
	complain(0, SCSI_SENSE_ILLEGAL_REQUEST, 0x2400);
	complain(1, SCSI_SENSE_ILLEGAL_REQUEST, 0x2000);
	ended(c, -ENOTSUP);
	assert_int_equal(count, 2);
}

static void long_zeros_and_trims_are_cut_to_the_targets_limits(void **state)
{
	struct client *zero, *trim;

	(void)state;
	d->max_same = MIB;
	d->max_unmap = 2 * MIB;
	zero = submit(BM_ZERO, 0, 2 * MIB + 512, 0);
	trim = submit(BM_TRIM, 8 * MIB, 3 * MIB, 0);
	was(0, SCSI_OPCODE_WRITE_SAME16, 0, MIB);
	was(1, SCSI_OPCODE_UNMAP, 8 * MIB, 10 * MIB);
	answer(0, SCSI_STATUS_GOOD);
	answer(1, SCSI_STATUS_GOOD);
	was(2, SCSI_OPCODE_WRITE_SAME16, MIB, 2 * MIB);
	was(3, SCSI_OPCODE_UNMAP, 10 * MIB, 11 * MIB);
	answer(2, SCSI_STATUS_GOOD);
	answer(3, SCSI_STATUS_GOOD);
	ended(trim, 0);
	was(4, SCSI_OPCODE_WRITE_SAME16, 2 * MIB, 2 * MIB + 512);
	answer(4, SCSI_STATUS_GOOD);
	ended(zero, 0);
}

static void a_trim_that_fails_is_no_error_and_refused_it_is_the_last(void **state)
{
	struct client *c = submit(BM_TRIM, 0, MIB, 0);

	(void)state;
	complain(0, SCSI_SENSE_MEDIUM_ERROR, 0);
	ended(c, 0);
	c = submit(BM_TRIM, 0, MIB, BM_FUA);
	complain(1, SCSI_SENSE_ILLEGAL_REQUEST, 0x2000);
	ended(c, 0);
	ended(submit(BM_TRIM, 0, MIB, 0), 0);
	assert_int_equal(count, 2);
	assert_false(d->dev.geometry.flags & BM_DEV_TRIM);
}

/* Extents */

static uint8_t lba_status[8 + 16 * 8];

static void describe(int i, uint64_t lba, uint32_t blocks, uint8_t status)
{
	uint8_t *x = lba_status + 8 + 16 * i;

	for (int b = 0; b < 8; b++)
		x[b] = (uint8_t)(lba >> (56 - 8 * b));
	for (int b = 0; b < 4; b++)
		x[8 + b] = (uint8_t)(blocks >> (24 - 8 * b));
	x[12] = status;
}

static struct client *extents_of(int size)
{
	struct client *c = submit(BM_EXTENTS, 4096, 8192, 0); /* blocks 8 … 24 */

	sent[count - 1].task.datain.data = lba_status;
	sent[count - 1].task.datain.size = size;
	answer(count - 1, SCSI_STATUS_GOOD);
	ended(c, 0);
	return c;
}

static struct client *extents(int descriptors)
{
	return extents_of(8 + 16 * descriptors);
}

static void is_extent(const struct client *c, unsigned i, uint64_t length, uint32_t flags)
{
	assert_true(i < c->extents.count);
	assert_int_equal(c->extent[i].length, length);
	assert_int_equal(c->extent[i].flags, flags);
}

static void extents_are_clamped_to_the_question(void **state)
{
	struct client *c;

	(void)state;
	describe(0, 0, 12, 0);
	describe(1, 12, 4, 1);
	describe(2, 16, 4, 2); /* anchored: no hole */
	describe(3, 20, UINT32_MAX, 1);
	c = extents(4);
	assert_int_equal(c->extents.count, 4);
	is_extent(c, 0, 4 * BLOCK, 0);
	is_extent(c, 1, 4 * BLOCK, BM_EXTENT_HOLE | BM_EXTENT_ZERO);
	is_extent(c, 2, 4 * BLOCK, 0);
	is_extent(c, 3, 4 * BLOCK, BM_EXTENT_HOLE | BM_EXTENT_ZERO);
	d->hole_is_zero = false;
	c = extents(4);
	is_extent(c, 1, 4 * BLOCK, BM_EXTENT_HOLE);
}

static void extents_that_make_no_sense_are_data(void **state)
{
	struct client *c;

	(void)state;
	describe(0, 9, 100, 1); /* does not begin where it was asked to */
	is_extent(extents(1), 0, 8192, 0);
	describe(0, 0, 0, 1);
	is_extent(extents(1), 0, 8192, 0);
	describe(0, 0, 8, 1); /* ends before */
	is_extent(extents(1), 0, 8192, 0);
	describe(0, UINT64_MAX - 1, 100, 1);
	is_extent(extents(1), 0, 8192, 0);
	describe(0, 8, 8, 1);
	for (int size = 0; size < 8 + 12; size++) /* cut off */
		is_extent(extents_of(size), 0, 8192, 0);
	describe(1, 17, 8, 1); /* a gap: the answer ends before it */
	c = extents(2);
	assert_int_equal(c->extents.count, 1);
	is_extent(c, 0, 8 * BLOCK, BM_EXTENT_HOLE | BM_EXTENT_ZERO);
}

static void extents_that_fail_are_data(void **state)
{
	struct client *c = submit(BM_EXTENTS, 0, 8192, 0);

	(void)state;
	complain(0, SCSI_SENSE_MEDIUM_ERROR, 0);
	ended(c, 0);
	is_extent(c, 0, 8192, 0);
	c = submit(BM_EXTENTS, 0, 8192, 0);
	complain(1, SCSI_SENSE_ILLEGAL_REQUEST, 0x2000);
	is_extent(c, 0, 8192, 0);
	c = submit(BM_EXTENTS, 0, 8192, 0);
	is_extent(c, 0, 8192, 0);
	assert_int_equal(count, 2);
}

/* Errors */

static void errors_are_told_apart(void **state)
{
	static const struct {
		enum scsi_sense_key key;
		int ascq, error;
	} senses[] = {{SCSI_SENSE_MEDIUM_ERROR, 0x0c00, -EIO},
		      {SCSI_SENSE_DATA_PROTECTION, 0x2707, -ENOSPC},
		      {SCSI_SENSE_DATA_PROTECTION, 0x2700, -EPERM},
		      {SCSI_SENSE_ILLEGAL_REQUEST, 0x2100, -EIO},
		      {SCSI_SENSE_NOT_READY, 0x3a00, -EIO},
		      {SCSI_SENSE_RECOVERED_ERROR, 0, 0}};

	(void)state;
	for (unsigned i = 0; i < sizeof(senses) / sizeof(senses[0]); i++) {
		struct client *c = submit(BM_WRITE, 0, 4096, 0);

		complain(i, senses[i].key, senses[i].ascq);
		ended(c, senses[i].error);
	}
	submit(BM_WRITE, 0, 4096, 0);
	answer(count - 1, SCSI_STATUS_RESERVATION_CONFLICT);
	ended(&clients[used - 1], -EBUSY);
}

static void a_short_transfer_is_an_error(void **state)
{
	struct client *c = submit(BM_READ, 0, 4096, 0);

	(void)state;
	sent[0].task.residual_status = SCSI_RESIDUAL_UNDERFLOW;
	sent[0].task.residual = 512;
	answer(0, SCSI_STATUS_GOOD);
	ended(c, -EIO);
}

static void a_busy_target_is_asked_again_after_a_while(void **state)
{
	struct client *c = submit(BM_WRITE, 0, 4096, 0);
	uint64_t start = bm_loop_now(loop);

	(void)state;
	answer(0, SCSI_STATUS_BUSY);
	assert_int_equal(count, 1);
	while (count < 2)
		bm_loop_turn(loop, UINT64_MAX);
	assert_true(bm_loop_now(loop) - start >= 5000000);
	answer(1, SCSI_STATUS_TASK_SET_FULL);
	assert_int_equal(count, 2);
	while (count < 3)
		bm_loop_turn(loop, UINT64_MAX);
	was(2, SCSI_OPCODE_WRITE16, 0, 4096);
	answer(2, SCSI_STATUS_GOOD);
	ended(c, 0);
	c = submit(BM_WRITE, 0, 4096, 0);
	answer(3, SCSI_STATUS_BUSY);
	bm_dev_cancel(&d->dev); /* while it waits */
	turn();
	assert_int_equal(c->answers, 1);
	assert_true(c->error);
}

static void a_harmless_unit_attention_is_asked_again_at_once(void **state)
{
	struct client *c = submit(BM_READ, 0, 4096, 0);

	(void)state;
	complain(0, SCSI_SENSE_UNIT_ATTENTION, 0x2a01);
	was(1, SCSI_OPCODE_READ16, 0, 4096);
	answer(1, SCSI_STATUS_GOOD);
	ended(c, 0);
	c = submit(BM_READ, 0, 4096, 0);
	while (!c->answers) /* but not for ever */
		complain(count - 1, SCSI_SENSE_UNIT_ATTENTION, 0x2a01);
	ended(c, -EIO);
	assert_true(count < 30);
}

static void a_reset_or_changed_unit_is_lost(void **state)
{
	static const int reasons[] = {0x2900, 0x2903, 0x2907, 0x2a09, 0x3f0e, 0x2800};

	for (unsigned i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++) {
		struct client *a, *b, *c;

		a = submit(BM_WRITE, 0, 4096, 0);
		b = submit(BM_WRITE, 0, MIB, 0);
		complain(0, SCSI_SENSE_UNIT_ATTENTION, reasons[i]);
		ended(a, -ENOTCONN);
		ended(b, -ENOTCONN);
		assert_true(contexts[0].destroyed && contexts[1].destroyed);
		c = submit(BM_READ, 0, 4096, 0);
		ended(c, -ENOTCONN);
		assert_int_equal(count, 2);
		over(state);
		begin(state);
	}
}

static void what_times_out_takes_the_device_with_it(void **state)
{
	struct client *a = submit(BM_WRITE, 0, 4096, 0), *b = submit(BM_READ, 0, MIB, 0);

	(void)state;
	contexts[0].queued = 2;
	for (unsigned before = serviced; serviced == before;) /* the first tick */
		bm_loop_turn(loop, UINT64_MAX);
	times_out = &sent[0]; /* its callback is called twice */
	while (!a->answers)   /* the second */
		bm_loop_turn(loop, UINT64_MAX);
	turn();
	ended(a, -ENOTCONN);
	ended(b, -ENOTCONN);
	assert_true(contexts[0].destroyed);
}

/* Memory */

static void what_fails_ends_when_nothing_is_queued_any_more(void **state)
{
	static const struct {
		enum bm_op op;
		int error;
	} ops[] = {{BM_WRITE, -EIO}, {BM_ZERO, -EIO}, {BM_TRIM, 0}};

	for (unsigned i = 0; i < 3; i++) {
		struct client *a = submit(ops[i].op, 0, 4096, 0), *b, *c;

		contexts[0].queued = 3;
		complain(0, SCSI_SENSE_MEDIUM_ERROR, 0);
		assert_int_equal(a->answers, 0);
		assert_false(sent[0].freed);
		b = submit(BM_WRITE, 4096, 4096, 0); /* would keep the queue from running empty */
		c = submit(BM_READ, MIB, MIB, 0);
		poke(&contexts[0]);
		assert_int_equal(a->answers, 0);
		assert_int_equal(count, 1);
		contexts[0].queued = 0;
		poke(&contexts[1]); /* not the one */
		assert_int_equal(a->answers, 0);
		poke(&contexts[0]);
		ended(a, ops[i].error);
		assert_int_equal(count, 3);
		answer(1, SCSI_STATUS_GOOD);
		answer(2, SCSI_STATUS_GOOD);
		ended(b, 0);
		ended(c, 0);
		over(state);
		begin(state);
	}
}

static void a_failed_write_ends_when_its_session_is_destroyed(void **state)
{
	struct client *a = submit(BM_WRITE, 0, 4096, 0);

	(void)state;
	contexts[0].queued = 3;
	complain(0, SCSI_SENSE_MEDIUM_ERROR, 0);
	assert_int_equal(a->answers, 0);
	bm_dev_cancel(&d->dev);
	assert_true(contexts[0].destroyed);
	turn();
	assert_int_equal(a->answers, 1);
	assert_true(a->error);
}

static void cancel_ends_everything_once(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 400; i++)
		submit(i % 2 ? BM_READ : BM_WRITE, 0, i % 3 ? 4096 : MIB, 0);
	contexts[0].queued = contexts[1].queued = 5;
	bm_dev_cancel(&d->dev);
	turn();
	for (unsigned i = 0; i < 400; i++)
		assert_true(clients[i].answers == 1 && clients[i].error);
	ended(submit(BM_FLUSH, 0, 0, 0), -ESHUTDOWN);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, over)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(each_op_is_its_command),
		TEST(fua_is_a_flush_where_the_bit_is_missing),
		TEST(bulk_does_not_stand_before_what_is_small),
		TEST(more_requests_than_slots_wait_their_turn),
		TEST(a_refused_unmap_is_a_plain_write_same_and_then_writes),
		TEST(a_fast_zero_that_is_refused_writes_nothing),
		TEST(long_zeros_and_trims_are_cut_to_the_targets_limits),
		TEST(a_trim_that_fails_is_no_error_and_refused_it_is_the_last),
		TEST(extents_are_clamped_to_the_question),
		TEST(extents_that_make_no_sense_are_data),
		TEST(extents_that_fail_are_data),
		TEST(errors_are_told_apart),
		TEST(a_short_transfer_is_an_error),
		TEST(a_busy_target_is_asked_again_after_a_while),
		TEST(a_harmless_unit_attention_is_asked_again_at_once),
		TEST(a_reset_or_changed_unit_is_lost),
		TEST(what_times_out_takes_the_device_with_it),
		TEST(what_fails_ends_when_nothing_is_queued_any_more),
		TEST(a_failed_write_ends_when_its_session_is_destroyed),
		TEST(cancel_ends_everything_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
