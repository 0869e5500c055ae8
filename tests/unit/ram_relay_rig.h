/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * For tests of the relay: sender and receiver on one loop, with socket pairs for connections and
 * QEMUs, of which the other ends are the test's.
 */
#ifndef BM_TESTS_RAM_RELAY_RIG_H
#define BM_TESTS_RAM_RELAY_RIG_H

#include "tests/unit/ram_rig.h"

#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/ram/record.h"
#include "blockmirror/ram/relay_thread.h"

#define MS 1000000ull

static struct bytes all;

struct side {
	int qemu; /* the test's end; -1: closed */
	int held, done, failed;
	struct bm_error error;
};

struct both {
	struct bm_loop *loop;
	struct bm_sender *sender;
	struct bm_receiver *receiver;
	struct side from, to;
	struct bm_transport near[BM_RAM_LINKS], far[BM_RAM_LINKS];
	struct bm_relay_setup setup;
	struct bytes out, back;
	size_t given; /* of the stream */
};

static inline int load(void **state)
{
	(void)state;
	load_recorded(&all);
	return 0;
}

static inline int unload(void **state)
{
	(void)state;
	free(all.data);
	return 0;
}

static inline void on_event(void *arg, enum bm_relay_event event, const struct bm_error *error)
{
	struct side *side = arg;

	side->held += event == BM_RELAY_HELD;
	side->done += event == BM_RELAY_DONE;
	side->failed += event == BM_RELAY_FAILED;
	if (error)
		side->error = *error;
}

static inline void make_pair(int fds[2], int size)
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	for (int i = 0; i < 2; i++)
		setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

static inline void make_links(struct both *b, int size)
{
	for (unsigned i = 0; i < b->setup.links; i++) {
		int fds[2];

		make_pair(fds, size);
		b->near[i] = b->far[i] = (struct bm_transport){.in = -1, .out = -1};
		assert_int_equal(bm_transport_open(&b->near[i], fds[0], fds[0]), 0);
		assert_int_equal(bm_transport_open(&b->far[i], fds[1], fds[1]), 0);
	}
}

static inline void open_sender(struct both *b)
{
	struct bm_error error;
	int fds[2];

	make_pair(fds, 65536);
	b->from.qemu = fds[0];
	b->setup.qemu = fds[1];
	b->setup.arg = &b->from;
	assert_int_equal(bm_sender_new(&b->setup, b->near, &b->sender, &error), 0);
}

static inline void open_receiver(struct both *b)
{
	struct bm_error error;
	int fds[2];

	make_pair(fds, 65536);
	b->to.qemu = fds[0];
	b->setup.qemu = fds[1];
	b->setup.arg = &b->to;
	assert_int_equal(bm_receiver_new(&b->setup, b->far, &b->receiver, &error), 0);
}

static inline void both_begin(struct both *b, unsigned links, int size)
{
	memset(b, 0, sizeof(*b));
	b->loop = bm_loop_new();
	b->setup = (struct bm_relay_setup){.loop = b->loop,
					   .id = "a move",
					   .links = links,
					   .cache = 4 << 20,
					   .event = on_event};
	make_links(b, size);
	b->from.qemu = b->to.qemu = -1;
}

static inline void both_open(struct both *b)
{
	open_sender(b);
	open_receiver(b);
}

static inline void both_close(struct both *b)
{
	bm_sender_free(b->sender);
	bm_receiver_free(b->receiver);
	/* For what workers have yet. */
	for (int i = 0; i < 50; i++)
		bm_loop_turn(b->loop, MS);
	if (b->from.qemu >= 0)
		close(b->from.qemu);
	if (b->to.qemu >= 0)
		close(b->to.qemu);
	bm_loop_free(b->loop);
	free(b->out.data);
	free(b->back.data);
}

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* What is there on a QEMU's socket is added to got. 0: it was closed. */
static inline ssize_t take(int fd, struct bytes *got, size_t most)
{
	static uint8_t piece[1 << 20];
	ssize_t n = recv(fd, piece, most < sizeof(piece) ? most : sizeof(piece), MSG_DONTWAIT);

	if (n > 0)
		add(got, piece, (size_t)n);
	return n;
}

/* One turn of everything: the QEMUs give and take what they can. */
static inline void turn(struct both *b, const struct bytes *in)
{
	if (in && b->given < in->used) {
		ssize_t n = send(b->from.qemu, in->data + b->given, in->used - b->given,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		b->given += n > 0 ? (size_t)n : 0;
	}
	if (b->to.qemu >= 0)
		take(b->to.qemu, &b->out, SIZE_MAX);
	if (b->from.qemu >= 0)
		take(b->from.qemu, &b->back, SIZE_MAX);
	bm_loop_turn(b->loop, MS / 4);
}

static inline void turns(struct both *b, const struct bytes *in, uint64_t ms)
{
	for (uint64_t end = now_ns() + ms * MS; now_ns() < end;)
		turn(b, in);
}

#define turn_until(b, in, condition)                                           \
	do {                                                                   \
		uint64_t end_ = now_ns() + 60000 * MS;                         \
		while (!(condition)) {                                         \
			if (now_ns() > end_)                                   \
				fail_msg("%s did not come about", #condition); \
			turn(b, in);                                           \
		}                                                              \
	} while (0)

static inline bool is_closed(int fd)
{
	struct bytes rest = {0};
	ssize_t n;

	do
		n = take(fd, &rest, SIZE_MAX);
	while (n > 0);
	free(rest.data);
	return !n || (n < 0 && errno == ECONNRESET);
}

static inline void same_as(const struct both *b, const struct bytes *in)
{
	assert_int_equal(b->out.used, in->used);
	assert_memory_equal(b->out.data, in->data, in->used);
}

static const uint8_t pong_and_shut[] = {0, 2, 0, 4, 0, 0, 0, 1, 0, 1, 0, 4, 0, 0, 0, 0};

/* Pages that are all different and cannot be made smaller. */
static inline void make_noise(struct bytes *in, size_t pages)
{
	uint64_t seed = 12345;
	uint8_t page[PAGE];

	add_beginning(in, "pc.ram", 1 << 30);
	for (size_t i = 0; i < pages; i++) {
		for (size_t k = 0; k < PAGE; k += 8)
			bm_put64(page + k, next_random(&seed));
		add_page(in, i ? NULL : "pc.ram", i << BITS, page);
	}
}

/* Fills in what a failure has to bring about, on both sides. */
static inline void both_fail(struct both *b, enum bm_code from, enum bm_code to)
{
	turn_until(b, NULL, b->from.failed && b->to.failed);
	assert_int_equal(b->from.error.code, from);
	assert_int_equal(b->to.error.code, to);
	assert_int_equal(b->from.done + b->to.done, 0);
	assert_true(b->from.qemu < 0 || is_closed(b->from.qemu));
	assert_true(b->to.qemu < 0 || is_closed(b->to.qemu));
	turns(b, NULL, 5);
	assert_int_equal(b->from.failed + b->to.failed, 2);
}

#endif
