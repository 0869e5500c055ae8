/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device that is opened again: a guest's requests against a backend that loses its session at any
 * instant, carries out what it likes of what was in flight, and may forget what was not flushed. No
 * error ever reaches the guest, no read goes back in time, what was flushed is durable, and what is
 * written again never takes a block back. Simulated time; the seed is printed.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/reopen.h"

enum { SECTOR = 512, SECTORS = 256, REQUESTS = 24, MOST = 64, GUEST = 20000 };

/* What the backend holds: a sector is a number, repeated. It outlives its sessions. */
static struct {
	unsigned now[SECTORS], durable[SECTORS];
	uint64_t size;
	bool full, refuses_flush;
	unsigned opened, reads, writes;
} store;

struct inner {
	struct bm_dev dev;
	struct bm_request *held[1024];
	unsigned count;
	bool lost;
};

static struct bm_loop *loop;
static struct bm_dev *dev;
static struct inner *inner;
static unsigned inners; /* that are open */
static uint64_t random_state, seed;
static bool away;      /* it cannot be opened */
static bool asked;     /* to open it */
static bool gone_told; /* no host any more */
static unsigned events;
static unsigned acked[SECTORS]; /* what the guest knows to be there */
static unsigned version;

static uint64_t chance(uint64_t n)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return (z ^ (z >> 31)) % n;
}

/* The backend */

static void end_all(struct bm_task *task);
static struct bm_task ender = {.run = end_all};

static void hold(struct bm_dev *d, struct bm_request *rq)
{
	struct inner *in = bm_container(d, struct inner, dev);

	assert_true(in->count < 1024);
	assert_int_equal(rq->offset % SECTOR, 0);
	in->held[in->count++] = rq;
	if (in->lost)
		bm_loop_soon(loop, &ender);
}

static void nothing(struct bm_dev *d)
{
	(void)d;
}

static void carry_out(const struct bm_request *rq)
{
	uint64_t first = rq->offset / SECTOR, n = rq->length / SECTOR;

	for (uint64_t i = 0; i < n; i++) {
		unsigned *at = &store.now[first + i];
		unsigned value = 0;

		if (rq->op == BM_READ)
			for (int b = 0; b < SECTOR; b += 4)
				memcpy(rq->data + i * SECTOR + (size_t)b, at, 4);
		if (rq->op == BM_WRITE)
			memcpy(&value, rq->data + i * SECTOR, 4);
		if (rq->op == BM_WRITE || rq->op == BM_ZERO)
			*at = value;
		if (rq->flags & BM_FUA)
			store.durable[first + i] = *at;
	}
	store.reads += rq->op == BM_READ;
	store.writes += rq->op == BM_WRITE || rq->op == BM_ZERO;
	if (rq->op == BM_FLUSH)
		memcpy(store.durable, store.now, sizeof(store.now));
}

static void end_one(struct inner *in, unsigned i, int error)
{
	struct bm_request *rq = in->held[i];

	memmove(&in->held[i], &in->held[i + 1], (--in->count - i) * sizeof(in->held[0]));
	if (!error && store.full && (rq->op == BM_WRITE || rq->op == BM_ZERO))
		error = -ENOSPC;
	if (!error && store.refuses_flush && rq->op == BM_FLUSH)
		error = -EIO;
	if (!error)
		carry_out(rq);
	rq->done(rq, error);
}

/* All at once, or one in the test's own time: both happen. */
static void end_all(struct bm_task *task)
{
	struct inner *in = inner;

	(void)task;
	while (in->lost && in->count) {
		struct bm_request *rq = in->held[chance(in->count)];

		if (chance(2) && rq->op != BM_FLUSH)
			carry_out(rq); /* and nobody hears of it */
		for (unsigned i = 0; i < in->count; i++)
			if (in->held[i] == rq) {
				memmove(&in->held[i], &in->held[i + 1],
					(--in->count - i) * sizeof(in->held[0]));
				break;
			}
		rq->done(rq, -ENOTCONN);
	}
}

static void cancel(struct bm_dev *d)
{
	bm_container(d, struct inner, dev)->lost = true;
	bm_loop_soon(loop, &ender);
}

static void close_inner(struct bm_dev *d)
{
	struct inner *in = bm_container(d, struct inner, dev);

	assert_int_equal(in->count, 0);
	inners--;
	if (inner == in)
		inner = NULL;
	bm_task_cancel(&ender);
	free(in);
}

static const struct bm_dev_ops inner_ops = {
	.name = "inner", .start = nothing, .submit = hold, .cancel = cancel, .close = close_inner};

static struct bm_dev *new_inner(void)
{
	struct inner *in = calloc(1, sizeof(*in));

	in->dev.ops = &inner_ops;
	in->dev.geometry = (struct bm_geometry){
		.size = store.size, .block = 1, .max_transfer = 1 << 20, .max_zero = BM_MAX_ZERO};
	inner = in;
	inners++;
	store.opened++;
	return &in->dev;
}

/* The connection breaks. What the server had not flushed it may forget, sector by sector. */
static void break_session(bool forgets)
{
	inner->lost = true;
	bm_loop_soon(loop, &ender);
	while (inner && inner->count)
		bm_loop_turn(loop, 0);
	for (int i = 0; forgets && i < SECTORS; i++)
		if (chance(2))
			store.now[i] = store.durable[i];
	if (forgets)
		memcpy(store.durable, store.now, sizeof(store.now));
}

/* The host */

static void host_open(void *arg)
{
	(void)arg;
	asked = true;
}

static void host_event(void *arg)
{
	(void)arg;
	events++;
}

static void host_gone(void *arg)
{
	(void)arg;
	gone_told = true;
}

static const struct bm_reopen_host host = {
	.open = host_open, .event = host_event, .gone = host_gone};

static void answer_open(void)
{
	asked = false;
	bm_reopen_opened(dev, away ? NULL : new_inner(), "nobody is there");
}

static void turn(void)
{
	while (bm_loop_turn(loop, 0) > 0)
		;
}

/* Ends what is in flight, and lets time pass, until nothing happens any more. */
static void settle(void)
{
	for (int i = 0; i < 200; i++) {
		turn();
		if (asked)
			answer_open();
		else if (inner && inner->count && !inner->lost)
			end_one(inner, 0, 0);
		else
			bm_loop_turn(loop, 50000000);
	}
}

static struct bm_reopen_status status(void)
{
	struct bm_reopen_status s;

	bm_reopen_get_status(dev, &s);
	return s;
}

/* The guest */

struct request {
	struct bm_request rq;
	uint8_t data[MOST * SECTOR];
	unsigned was[MOST], becomes;
	unsigned flushed[SECTORS]; /* FLUSH: what it promises */
	bool busy, error_expected;
	int error;
};

static struct request request[REQUESTS];
static unsigned errors, done_count;

static void guest_done(struct bm_request *rq, int error)
{
	struct request *q = bm_container(rq, struct request, rq);
	uint64_t first = rq->offset / SECTOR, n = rq->length / SECTOR;

	q->busy = false;
	q->error = error;
	errors += error != 0;
	done_count++;
	for (uint64_t i = 0; i < n && !error; i++) {
		unsigned value;

		memcpy(&value, q->data + i * SECTOR, 4);
		if (rq->op == BM_READ)
			assert_int_equal(value, acked[first + i]);
		else
			acked[first + i] = q->becomes;
		if (rq->flags & BM_FUA)
			assert_int_equal(store.durable[first + i], q->becomes);
	}
	if (rq->op == BM_FLUSH && !error)
		for (int i = 0; i < SECTORS; i++)
			assert_true(store.durable[i] >= q->flushed[i] || !store.durable[i]);
}

static bool overlaps(uint64_t offset, uint64_t length)
{
	for (int i = 0; i < REQUESTS; i++)
		if (request[i].busy && request[i].rq.offset < offset + length &&
		    offset < request[i].rq.offset + request[i].rq.length)
			return true;
	return false;
}

static struct request *ask(enum bm_op op, uint64_t first, uint64_t n, uint32_t flags)
{
	struct request *q = request;

	while (q < request + REQUESTS && q->busy)
		q++;
	if (q == request + REQUESTS || overlaps(first * SECTOR, n * SECTOR))
		return NULL;
	q->busy = true;
	q->rq = (struct bm_request){.op = op,
				    .flags = flags,
				    .offset = first * SECTOR,
				    .length = n * SECTOR,
				    .data = q->data,
				    .done = guest_done};
	q->becomes = op == BM_ZERO ? 0 : ++version;
	for (uint64_t i = 0; i < n * SECTOR && op == BM_WRITE; i += 4)
		memcpy(q->data + i, &q->becomes, 4);
	memcpy(q->flushed, acked, sizeof(acked));
	bm_submit(dev, &q->rq);
	return q;
}

static void guest_step(void)
{
	uint64_t first = chance(SECTORS), n = 1 + chance(chance(4) ? 8 : MOST);
	uint32_t fua = chance(10) ? 0 : BM_FUA;
	uint64_t what = chance(20);

	if (first + n > SECTORS)
		n = SECTORS - first;
	if (what < 6)
		ask(BM_READ, first, n, 0);
	else if (what < 16)
		ask(BM_WRITE, first, n, fua);
	else if (what < 18)
		ask(BM_ZERO, first, n, fua);
	else
		ask(BM_FLUSH, 0, 0, 0);
}

/* Where no write is in flight the backend has what the guest was told, unless it has forgotten. */
static void nothing_went_back(bool ever_forgot)
{
	for (int i = 0; i < SECTORS && !ever_forgot; i++)
		if (!overlaps((uint64_t)i * SECTOR, SECTOR))
			assert_int_equal(store.now[i], acked[i]);
}

static int setup(void **state)
{
	(void)state;
	memset(&store, 0, sizeof(store));
	memset(acked, 0, sizeof(acked));
	memset(request, 0, sizeof(request));
	store.size = (uint64_t)SECTORS * SECTOR;
	version = errors = events = done_count = 0;
	away = asked = gone_told = false;
	loop = bm_loop_new_simulated();
	assert_int_equal(bm_reopen_new(new_inner(), &host, NULL, &dev), 0);
	bm_reopen_set_role(dev, BM_REOPEN_HOLD);
	bm_dev_start(dev, loop);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	bm_dev_close(dev);
	turn();
	while (inner && inner->count)
		end_one(inner, 0, 0);
	turn();
	assert_true(gone_told);
	assert_int_equal(inners, 0);
	bm_loop_free(loop);
	return 0;
}

static void random_run(uint64_t n, bool forgets)
{
	random_state = n;
	for (int step = 0; step < GUEST; step++) {
		uint64_t what = chance(100);

		if (what < 40)
			guest_step();
		else if (what < 90 && inner && inner->count && !inner->lost)
			end_one(inner, (unsigned)chance(inner->count), 0);
		else if (what == 90 && inner && !chance(4))
			break_session(forgets);
		else if (what == 91)
			away = !away;
		else if (what < 96 && asked)
			answer_open();
		else
			bm_loop_turn(loop, chance(2) ? 0 : 100000000);
		turn();
		nothing_went_back(forgets);
	}
	away = false;
	settle();
	assert_non_null(ask(BM_FLUSH, 0, 0, 0)); /* who asks nothing sees no loss */
	settle();
	assert_int_equal(errors, 0);
	assert_true(status().losses > 3);
	for (int i = 0; i < REQUESTS; i++)
		assert_false(request[i].busy);
	for (int i = 0; i < SECTORS; i++)
		assert_int_equal(store.durable[i], acked[i]);
}

static void a_guest_sees_no_loss(void **state)
{
	(void)state;
	random_run(seed, false);
}

static void what_a_server_forgets_is_written_again(void **state)
{
	(void)state;
	random_run(seed + 1, true);
	assert_true(status().rewritten > 0);
}

static void write_and_flush(uint64_t first, uint64_t n)
{
	ask(BM_WRITE, first, n, 0);
	settle();
	ask(BM_FLUSH, 0, 0, 0);
	settle();
}

static void another_image_is_refused(void **state)
{
	unsigned writes;

	(void)state;
	write_and_flush(0, 64);
	ask(BM_WRITE, 100, 4, 0);
	settle();
	for (int i = 0; i < SECTORS; i++)
		store.now[i] += 1000;
	break_session(false);
	ask(BM_READ, 0, 1, 0);
	writes = store.writes;
	settle();
	assert_true(status().lost);
	assert_non_null(strstr(status().why, "other content"));
	assert_int_equal(store.writes, writes);
	for (int i = 0; i < SECTORS; i++)
		store.now[i] -= 1000;
	settle();
	assert_false(status().lost);
	assert_int_equal(errors, 0);
	assert_int_equal(store.now[100], acked[100]);
}

static void another_size_is_refused(void **state)
{
	(void)state;
	break_session(false);
	store.size *= 2;
	ask(BM_READ, 0, 1, 0);
	settle();
	assert_true(status().lost);
	assert_non_null(strstr(status().why, "another size"));
	store.size /= 2;
	settle();
	assert_false(status().lost);
	assert_int_equal(errors, 0);
}

/* What a server does not take again is not given up, and the guest is told nothing untrue. */
static void a_full_server_is_tried_again(void **state)
{
	(void)state;
	ask(BM_WRITE, 0, 8, 0);
	settle();
	break_session(true);
	store.full = true;
	ask(BM_FLUSH, 0, 0, 0);
	settle();
	assert_true(status().lost);
	assert_true(request[0].busy);
	store.full = false;
	settle();
	assert_false(request[0].busy);
	assert_int_equal(errors, 0);
	for (int i = 0; i < 8; i++)
		assert_int_equal(store.durable[i], acked[i]);
}

static void the_time_is_over(void **state)
{
	struct request *q;

	(void)state;
	bm_reopen_set_timeout(dev, 1000000000);
	away = true;
	break_session(false);
	q = ask(BM_WRITE, 0, 8, 0);
	turn();
	assert_true(q->busy);
	settle();
	assert_false(q->busy);
	assert_int_equal(q->error, -EIO);
	assert_true(status().gave_up);
	q = ask(BM_READ, 0, 8, 0);
	turn();
	assert_int_equal(q->error, -EIO);
	away = false;
	settle();
	assert_false(status().lost || status().gave_up);
	q = ask(BM_READ, 8, 8, 0);
	settle();
	assert_int_equal(q->error, 0);
}

/* What was written before anything was kept is covered by nothing: a flush must not say so. */
static void what_is_not_kept_is_not_called_durable(void **state)
{
	struct request *q;

	(void)state;
	bm_reopen_set_role(dev, BM_REOPEN_FAIL);
	ask(BM_WRITE, 0, 8, 0);
	settle();
	bm_reopen_set_role(dev, BM_REOPEN_HOLD);
	break_session(true);
	q = ask(BM_FLUSH, 0, 0, 0);
	settle();
	assert_int_equal(q->error, -EIO);
	q = ask(BM_FLUSH, 0, 0, 0);
	settle();
	assert_int_equal(q->error, 0);
}

/* The switch: READY before, a flush, HOLD after. Nothing of it is forgotten. */
static void a_side_that_becomes_the_authority(void **state)
{
	(void)state;
	bm_reopen_set_role(dev, BM_REOPEN_FAIL);
	ask(BM_WRITE, 0, 8, 0);
	settle();
	bm_reopen_set_role(dev, BM_REOPEN_READY);
	ask(BM_WRITE, 20, 8, 0);
	settle();
	write_and_flush(40, 8);
	ask(BM_WRITE, 60, 8, 0);
	settle();
	bm_reopen_set_role(dev, BM_REOPEN_HOLD);
	break_session(true);
	ask(BM_FLUSH, 0, 0, 0);
	settle();
	assert_int_equal(errors, 0);
	for (int i = 0; i < SECTORS; i++)
		assert_int_equal(store.durable[i], acked[i]);
}

/* What nobody waits for any more fails at once, as the device inside would have. */
static void a_side_that_is_no_authority_any_more(void **state)
{
	struct request *q;

	(void)state;
	away = true;
	break_session(false);
	q = ask(BM_WRITE, 0, 8, 0);
	settle();
	assert_true(q->busy);
	bm_reopen_set_role(dev, BM_REOPEN_FAIL);
	turn();
	assert_int_equal(q->error, -ENOTCONN);
	q = ask(BM_WRITE, 0, 8, 0);
	turn();
	assert_int_equal(q->error, -ENOTCONN);
}

/* It was we who flushed, and the kernel tells once: the guest's next flush is told. */
static void an_error_of_our_own_flush_is_passed_on(void **state)
{
	struct request *q;

	(void)state;
	settle();
	bm_reopen_set_role(dev, BM_REOPEN_FAIL);
	store.refuses_flush = true;
	bm_reopen_set_role(dev, BM_REOPEN_HOLD);
	settle();
	store.refuses_flush = false;
	q = ask(BM_FLUSH, 0, 0, 0);
	settle();
	assert_int_equal(q->error, -EIO);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_guest_sees_no_loss, setup, teardown),
		cmocka_unit_test_setup_teardown(what_a_server_forgets_is_written_again, setup,
						teardown),
		cmocka_unit_test_setup_teardown(another_image_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(another_size_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(a_full_server_is_tried_again, setup, teardown),
		cmocka_unit_test_setup_teardown(the_time_is_over, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_not_kept_is_not_called_durable, setup,
						teardown),
		cmocka_unit_test_setup_teardown(a_side_that_becomes_the_authority, setup, teardown),
		cmocka_unit_test_setup_teardown(a_side_that_is_no_authority_any_more, setup,
						teardown),
		cmocka_unit_test_setup_teardown(an_error_of_our_own_flush_is_passed_on, setup,
						teardown),
	};

	seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL);
	printf("# seed %llu\n", (unsigned long long)seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
