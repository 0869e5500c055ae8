/* SPDX-License-Identifier: BSD-3-Clause */
/* The requests of an NBD device: which commands they become, and how each ends exactly once. */
#include "tests/unit/dev_nbd_rig.h"

/* Commands */

static void each_op_is_its_command(void **state)
{
	(void)state;
	submit(BM_READ, 4096, 8192, 0);
	submit(BM_WRITE, 8192, 4096, BM_FUA);
	submit(BM_ZERO, 0, MIB, BM_NO_HOLE | BM_FAST);
	submit(BM_TRIM, MIB, MIB, BM_FUA);
	submit(BM_FLUSH, 0, 0, 0);
	submit(BM_EXTENTS, 0, 1 << 30, 0);
	was(0, PREAD, 4096, 12288, 0);
	was(1, PWRITE, 8192, 12288, LIBNBD_CMD_FLAG_FUA);
	was(2, ZERO, 0, MIB, LIBNBD_CMD_FLAG_NO_HOLE | LIBNBD_CMD_FLAG_FAST_ZERO);
	was(3, TRIM, MIB, 2 * MIB, LIBNBD_CMD_FLAG_FUA);
	was(4, FLUSH, 0, 0, 0);
	was(5, STATUS, 0, BM_MAX_ZERO, 0);
	for (unsigned i = 0; i < 6; i++) {
		answer(i, 0);
		ended(&clients[i], 0);
	}
	assert_int_equal(count, 6);
}

static void what_the_server_lacks_is_made_up_for(void **state)
{
	struct client *c;

	(void)state;
	n->can_zero = n->can_fast_zero = n->can_trim = n->can_flush = n->can_extents = false;
	ended(submit(BM_TRIM, 0, MIB, BM_FUA), 0);
	ended(submit(BM_FLUSH, 0, 0, 0), 0);
	ended(submit(BM_ZERO, 0, MIB, BM_FAST), -ENOTSUP);
	c = submit(BM_EXTENTS, 0, 1 << 30, 0);
	ended(c, 0);
	assert_int_equal(c->extents.count, 1);
	assert_int_equal(c->extent[0].length, 1 << 30);
	assert_int_equal(c->extent[0].flags, 0);
	assert_int_equal(count, 0);
	submit(BM_ZERO, 4096, MIB, BM_NO_HOLE);
	was(0, PWRITE, 4096, 4096 + MIB, 0);
	assert_ptr_equal(sent[0].memory, bm_zeros());
	n->dev.geometry.flags |= BM_DEV_READ_ONLY;
	ended(submit(BM_WRITE, 0, 4096, 0), -EPERM);
	ended(submit(BM_ZERO, 0, 4096, 0), -EPERM);
	ended(submit(BM_TRIM, 0, 4096, 0), -EPERM);
}

static void fua_is_a_flush_where_the_flag_is_missing(void **state)
{
	static const enum bm_op ops[] = {BM_WRITE, BM_ZERO, BM_TRIM};
	struct client *c;

	(void)state;
	n->can_fua = false;
	for (unsigned i = 0; i < 3; i++) {
		c = submit(ops[i], 0, 4096, BM_FUA);
		assert_int_equal(sent[2 * i].flags, 0);
		answer(2 * i, 0);
		assert_int_equal(c->answers, 0);
		was(2 * i + 1, FLUSH, 0, 0, 0);
		answer(2 * i + 1, 0);
		ended(c, 0);
	}
	c = submit(BM_WRITE, 0, 4096, BM_FUA);
	answer(6, EIO); /* no flush after that */
	ended(c, -EIO);
	c = submit(BM_WRITE, 0, 4096, 0);
	answer(7, 0);
	ended(c, 0);
	assert_int_equal(count, 8);
}

static void bulk_does_not_stand_before_what_is_small(void **state)
{
	(void)state;
	for (int i = 0; i < 4; i++)
		submit(BM_WRITE, 0, MIB, 0);
	submit(BM_WRITE, 0, 4096, 0);
	submit(BM_FLUSH, 0, 0, 0);
	assert_ptr_equal(sent[0].handle, &handles[1]);
	assert_ptr_equal(sent[1].handle, &handles[2]);
	assert_ptr_equal(sent[2].handle, &handles[1]);
	assert_ptr_equal(sent[3].handle, &handles[2]);
	assert_ptr_equal(sent[4].handle, &handles[0]);
	assert_ptr_equal(sent[5].handle, &handles[0]);
	answer(1, 0);
	answer(3, 0);
	submit(BM_READ, 0, MIB, 0);
	submit(BM_READ, 0, MIB, 0);
	assert_ptr_equal(sent[6].handle, &handles[2]);
	assert_ptr_equal(sent[7].handle, &handles[2]);
}

static void more_requests_than_slots_wait_their_turn(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 400; i++)
		submit(BM_READ, i * 4096, 4096, 0);
	assert_int_equal(count, NBD_SLOTS);
	for (unsigned i = 0; i < 400; i++) {
		was(i, PREAD, i * 4096, (i + 1) * 4096, 0);
		answer(i, 0);
		ended(&clients[i], 0);
	}
}

static void a_command_that_is_not_taken_is_an_error(void **state)
{
	(void)state;
	handles[0].refuses = true;
	ended(submit(BM_READ, 0, 4096, 0), -EINVAL);
	handles[0].refuses = false;
	submit(BM_READ, 0, 4096, 0);
	answer(0, 0);
	ended(&clients[1], 0);
}

/* Extents */

static struct client *extents(unsigned entries, uint32_t *entry, int error)
{
	struct client *c = submit(BM_EXTENTS, 4096, 8192, 0);
	struct command *s = &sent[count - 1];
	int none = 0;

	s->extents.callback(s->extents.user_data, "qemu:dirty-bitmap:b", 4096,
			    (uint32_t[]){8192, 3}, 2, &none);
	s->extents.callback(s->extents.user_data, LIBNBD_CONTEXT_BASE_ALLOCATION, 4096, entry,
			    entries, &none);
	answer(count - 1, error);
	ended(c, 0);
	return c;
}

static void is_extent(const struct client *c, unsigned i, uint64_t length, uint32_t flags)
{
	assert_true(i < c->extents.count);
	assert_int_equal(c->extent[i].length, length);
	assert_int_equal(c->extent[i].flags, flags);
}

static void extents_are_clamped_to_the_question(void **state)
{
	struct client *c = extents(6, (uint32_t[]){1024, 0, 2048, 3, 1u << 31u, 2}, 0);

	(void)state;
	assert_int_equal(c->extents.count, 3);
	is_extent(c, 0, 1024, 0);
	is_extent(c, 1, 2048, BM_EXTENT_HOLE | BM_EXTENT_ZERO);
	is_extent(c, 2, 8192 - 3072, BM_EXTENT_ZERO);
	c = extents(2, (uint32_t[]){512, 0xfffffff1u}, 0); /* short, with flags of the future */
	assert_int_equal(c->extents.count, 1);
	is_extent(c, 0, 512, BM_EXTENT_HOLE);
}

static void extents_that_fail_or_make_no_sense_are_data(void **state)
{
	(void)state;
	is_extent(extents(2, (uint32_t[]){8192, 3}, EIO), 0, 8192, 0);
	is_extent(extents(0, (uint32_t[]){8192, 3}, 0), 0, 8192, 0);
	is_extent(extents(1, (uint32_t[]){8192, 3}, 0), 0, 8192, 0);
	is_extent(extents(2, (uint32_t[]){0, 3}, 0), 0, 8192, 0);
	is_extent(extents(4, (uint32_t[]){1000, 3, 7192, 3}, 0), 0, 8192, 0); /* odd */
}

static void only_the_first_answer_counts(void **state)
{
	struct client *c = submit(BM_EXTENTS, 0, 8192, 0);
	int none = 0;

	(void)state;
	for (int i = 0; i < 2; i++)
		sent[0].extents.callback(sent[0].extents.user_data, LIBNBD_CONTEXT_BASE_ALLOCATION,
					 0, (uint32_t[]){4096, i ? 3 : 0}, 2, &none);
	answer(0, 0);
	assert_int_equal(c->extents.count, 1);
	is_extent(c, 0, 4096, 0);
}

/* Ends */

static void one_event_is_one_notification(void **state)
{
	(void)state;
	poke(&handles[1]);
	assert_true(handles[1].reads == 1 && handles[1].writes == 0);
	handles[1].direction = LIBNBD_AIO_DIRECTION_BOTH;
	submit(BM_READ, 0, MIB, 0); /* on this connection: the direction is looked at again */
	poke(&handles[1]);
	assert_true(handles[1].reads == 2 && handles[1].writes == 0);
	assert_int_equal(handles[0].reads + handles[2].reads, 0);
	close(handles[1].poke); /* EPOLLHUP is for both directions */
	handles[1].poke = -1;
	bm_loop_turn(loop, 0);
	assert_true(handles[1].reads == 3 && handles[1].writes == 0);
	handles[1].direction = LIBNBD_AIO_DIRECTION_WRITE;
	bm_loop_turn(loop, 0);
	assert_true(handles[1].reads == 3 && handles[1].writes == 1);
}

static void a_connection_that_dies_takes_all_with_it(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 400; i++)
		submit(i % 2 ? BM_READ : BM_EXTENTS, 0, i % 3 ? 4096 : MIB, 0);
	handles[2].dies_in_notify = true;
	poke(&handles[2]);
	for (unsigned i = 0; i < 400; i++)
		ended(&clients[i], -ENOTCONN);
	ended(submit(BM_FLUSH, 0, 0, 0), -ENOTCONN);
	bm_dev_cancel(&n->dev);
	ended(submit(BM_FLUSH, 0, 0, 0), -ESHUTDOWN);
}

static void a_connection_may_die_while_a_command_is_submitted(void **state)
{
	struct client *a = submit(BM_READ, 0, MIB, 0), *b;

	(void)state;
	handles[0].dies_in_submit = true;
	b = submit(BM_READ, 0, 4096, 0);
	ended(a, -ENOTCONN);
	ended(b, -ENOTCONN);
}

static void a_flush_for_fua_that_cannot_be_sent_any_more_fails(void **state)
{
	struct client *c;

	(void)state;
	n->can_fua = false;
	c = submit(BM_WRITE, 0, 4096, BM_FUA);
	handles[0].dies_in_submit = true;
	answer(0, 0);
	ended(c, -ENOTCONN);
	over(state);
	begin(state);
	n->can_fua = false;
	c = submit(BM_WRITE, 0, 4096, BM_FUA);
	handles[0].answers = handles[0].dies_in_notify = true;
	poke(&handles[0]);
	ended(c, -ENOTCONN);
}

static void errors_of_the_server_are_passed_on_and_its_end_is_ours(void **state)
{
	(void)state;
	submit(BM_WRITE, 0, 4096, 0);
	answer(0, ENOSPC);
	ended(&clients[0], -ENOSPC);
	submit(BM_WRITE, 0, 4096, 0);
	submit(BM_READ, 0, MIB, 0);
	handles[0].answers = true;
	handles[0].error = ESHUTDOWN; /* to our callers that would mean that they cancelled */
	poke(&handles[0]);
	ended(&clients[1], -ENOTCONN);
	ended(&clients[2], -ENOTCONN);
}

static void cancel_ends_everything_once(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 400; i++)
		submit(i % 2 ? BM_READ : BM_WRITE, 0, i % 3 ? 4096 : MIB, 0);
	bm_dev_cancel(&n->dev);
	assert_int_equal(clients[0].answers, 0);
	turn();
	for (unsigned i = 0; i < 400; i++)
		ended(&clients[i], -ECANCELED);
	ended(submit(BM_FLUSH, 0, 0, 0), -ESHUTDOWN);
}

static void cancel_may_be_called_in_done(void **state)
{
	int none = 0;

	(void)state;
	for (unsigned i = 0; i < 5; i++)
		submit(BM_READ, 0, 4096, 0);
	cancel_in_done = true;
	for (unsigned i = 0; i < 3; i++) { /* three answers in one batch */
		sent[i].answered = true;
		sent[i].done.callback(sent[i].done.user_data, &none);
	}
	turn();
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(clients[i].answers, 1);
	ended(&clients[4], -ECANCELED);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, over)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(each_op_is_its_command),
		TEST(what_the_server_lacks_is_made_up_for),
		TEST(fua_is_a_flush_where_the_flag_is_missing),
		TEST(bulk_does_not_stand_before_what_is_small),
		TEST(more_requests_than_slots_wait_their_turn),
		TEST(a_command_that_is_not_taken_is_an_error),
		TEST(extents_are_clamped_to_the_question),
		TEST(extents_that_fail_or_make_no_sense_are_data),
		TEST(only_the_first_answer_counts),
		TEST(one_event_is_one_notification),
		TEST(a_connection_that_dies_takes_all_with_it),
		TEST(a_connection_may_die_while_a_command_is_submitted),
		TEST(a_flush_for_fua_that_cannot_be_sent_any_more_fails),
		TEST(errors_of_the_server_are_passed_on_and_its_end_is_ours),
		TEST(cancel_ends_everything_once),
		TEST(cancel_may_be_called_in_done),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
