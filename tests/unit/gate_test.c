/* SPDX-License-Identifier: BSD-3-Clause */
/* What each role does with each request of a guest: every cell, and every change between roles. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "blockmirror/disk/gate.h"

enum { PASSED = 1000, HELD = 1001, REQUESTS = 8 };

/* The device below: notes what comes, and ends it when the loop turns. */
static struct {
	struct bm_dev dev;
	unsigned came;
	struct bm_request *order[REQUESTS * 4];
	bool cancelled;
} lower;

static struct bm_loop *loop;
static struct bm_dev *gate;
static unsigned wanted, refused;
static struct client {
	struct bm_request rq;
	unsigned answers;
	int error;
} client[REQUESTS];

static void lower_submit(struct bm_dev *dev, struct bm_request *rq)
{
	(void)dev;
	lower.order[lower.came++] = rq;
}

static void lower_cancel(struct bm_dev *dev)
{
	(void)dev;
	lower.cancelled = true;
}

static const struct bm_dev_ops lower_ops = {
	.name = "lower", .submit = lower_submit, .cancel = lower_cancel};

static void answered(struct bm_request *rq, int error)
{
	struct client *c = (struct client *)rq;

	c->answers++;
	c->error = error;
}

static void on_wanted(void *arg)
{
	(void)arg;
	wanted++;
}

static void on_refused(void *arg)
{
	(void)arg;
	refused++;
}

static const struct gate_host host = {.wanted = on_wanted, .refused = on_refused};

static void begin(enum gate_role role)
{
	memset(&lower, 0, sizeof(lower));
	memset(client, 0, sizeof(client));
	lower.dev.ops = &lower_ops;
	lower.dev.geometry.size = 1 << 20;
	lower.dev.geometry.flags = BM_DEV_TRIM;
	wanted = refused = 0;
	loop = bm_loop_new();
	gate = gate_new(&lower.dev, &host, NULL);
	assert_non_null(loop);
	assert_non_null(gate);
	bm_dev_start(gate, loop);
	gate_set_role(gate, role);
	assert_int_equal(gate_get_role(gate), role);
}

static void over(void)
{
	bm_dev_close(gate);
	bm_loop_free(loop);
}

static struct client *submit(unsigned which, enum bm_op op)
{
	struct client *c = &client[which];

	c->rq = (struct bm_request){.op = op, .done = answered};
	bm_submit(gate, &c->rq);
	assert_int_equal(c->answers, 0); /* never inside */
	return c;
}

static void turn(void)
{
	bm_loop_turn(loop, 0);
}

/* What became of it: PASSED, HELD, or the error that it was answered with. */
static int fate(unsigned which)
{
	const struct client *c = &client[which];

	turn();
	for (unsigned i = 0; i < lower.came; i++)
		if (lower.order[i] == &c->rq) {
			assert_int_equal(c->answers, 0);
			return PASSED;
		}
	assert_true(c->answers <= 1);
	return c->answers ? c->error : HELD;
}

static void every_role_does_as_the_table_has_it(void **state)
{
	static const struct {
		enum gate_role role;
		int look, change, flush;
		unsigned wanted, refused; /* by one change */
	} rows[] = {
		{GATE_ACTIVE, PASSED, PASSED, PASSED, 0, 0},
		{GATE_STANDBY, PASSED, -EPERM, PASSED, 0, 1},
		{GATE_ARMED, PASSED, HELD, PASSED, 1, 0},
		{GATE_WAITING, HELD, HELD, HELD, 0, 0},
		{GATE_FENCED, HELD, HELD, PASSED, 0, 0},
		{GATE_RETIRED, -ESHUTDOWN, -ESHUTDOWN, 0, 0, 0},
	};
	static const enum bm_op looks[] = {BM_READ, BM_EXTENTS},
				changes[] = {BM_WRITE, BM_ZERO, BM_TRIM};

	(void)state;
	assert_int_equal(sizeof(rows) / sizeof(rows[0]), GATE_ROLES);
	for (size_t i = 0; i < GATE_ROLES; i++) {
		for (size_t k = 0; k < 2; k++) {
			begin(rows[i].role);
			submit(0, looks[k]);
			assert_int_equal(fate(0), rows[i].look);
			assert_int_equal(wanted + refused, 0);
			over();
		}
		for (size_t k = 0; k < 3; k++) {
			begin(rows[i].role);
			submit(0, changes[k]);
			assert_int_equal(fate(0), rows[i].change);
			assert_int_equal(wanted, rows[i].wanted);
			assert_int_equal(refused, rows[i].refused);
			over();
		}
		begin(rows[i].role);
		submit(0, BM_FLUSH);
		assert_int_equal(fate(0), rows[i].flush);
		assert_int_equal(wanted + refused, 0);
		over();
	}
}

static void what_is_held_goes_on_in_its_order(void **state)
{
	(void)state;
	begin(GATE_WAITING);
	submit(0, BM_WRITE);
	submit(1, BM_FLUSH);
	submit(2, BM_READ);
	assert_int_equal(gate_held(gate), 3);
	assert_int_equal(gate_held_changes(gate), 1);
	assert_int_not_equal(gate_held_since(gate), 0);
	gate_set_role(gate, GATE_ACTIVE);
	assert_int_equal(lower.came, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_ptr_equal(lower.order[i], &client[i].rq);
	assert_int_equal(gate_held(gate) + gate_held_changes(gate), 0);
	assert_int_equal(gate_held_since(gate), 0);
	over();
}

/* From each role that holds to each other one: held requests are as if they came then. */
static void what_is_held_is_looked_at_anew(void **state)
{
	static const int change[GATE_ROLES] = {
		[GATE_ACTIVE] = PASSED, [GATE_STANDBY] = -EPERM, [GATE_ARMED] = HELD,
		[GATE_WAITING] = HELD,  [GATE_FENCED] = HELD,    [GATE_RETIRED] = -ESHUTDOWN};
	static const enum gate_role from[] = {GATE_ARMED, GATE_WAITING, GATE_FENCED};

	(void)state;
	for (size_t i = 0; i < 3; i++)
		for (enum gate_role to = 0; to < GATE_ROLES; to++) {
			begin(from[i]);
			submit(0, BM_WRITE);
			wanted = 0;
			gate_set_role(gate, to);
			assert_int_equal(fate(0), change[to]);
			assert_int_equal(wanted, to == GATE_ARMED && from[i] != to);
			over();
		}
}

/* A write that asked for the disk is asked for again when the standby is in sync again. */
static void a_held_write_asks_again(void **state)
{
	(void)state;
	begin(GATE_ARMED);
	submit(0, BM_WRITE);
	gate_set_role(gate, GATE_WAITING);
	submit(1, BM_WRITE);
	assert_int_equal(wanted, 1);
	gate_set_role(gate, GATE_ARMED);
	assert_int_equal(wanted, 3);
	assert_int_equal(gate_held(gate), 2);
	gate_set_role(gate, GATE_ACTIVE);
	assert_int_equal(fate(0), PASSED);
	assert_int_equal(fate(1), PASSED);
	over();
}

static void the_end_lets_go_of_all(void **state)
{
	(void)state;
	begin(GATE_WAITING);
	submit(0, BM_WRITE);
	submit(1, BM_READ);
	bm_dev_cancel(gate);
	assert_int_equal(client[0].answers, 0); /* not inside */
	assert_int_equal(fate(0), -ESHUTDOWN);
	assert_int_equal(fate(1), -ESHUTDOWN);
	assert_true(lower.cancelled);
	submit(2, BM_WRITE);
	assert_int_equal(fate(2), -ESHUTDOWN);
	over();
}

static void what_is_quick_below_is_quick_above(void **state)
{
	(void)state;
	begin(GATE_ACTIVE);
	assert_int_equal(gate->geometry.flags, BM_DEV_TRIM);
	lower.dev.geometry.flags = BM_DEV_FAST_ZERO;
	submit(0, BM_READ);
	assert_int_equal(gate->geometry.flags, BM_DEV_FAST_ZERO);
	over();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_role_does_as_the_table_has_it),
		cmocka_unit_test(what_is_held_goes_on_in_its_order),
		cmocka_unit_test(what_is_held_is_looked_at_anew),
		cmocka_unit_test(a_held_write_asks_again),
		cmocka_unit_test(the_end_lets_go_of_all),
		cmocka_unit_test(what_is_quick_below_is_quick_above),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
