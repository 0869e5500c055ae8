/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sender and receiver on one loop, with socket pairs for connections and QEMUs: what goes in comes
 * out, no more is taken than the bound, and whatever fails closes both QEMUs' sockets.
 */
#include "tests/unit/ram_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/ram/link.h"
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

static int load(void **state)
{
	(void)state;
	load_recorded(&all);
	return 0;
}

static int unload(void **state)
{
	(void)state;
	free(all.data);
	return 0;
}

static void on_event(void *arg, enum bm_relay_event event, const struct bm_error *error)
{
	struct side *side = arg;

	side->held += event == BM_RELAY_HELD;
	side->done += event == BM_RELAY_DONE;
	side->failed += event == BM_RELAY_FAILED;
	if (error)
		side->error = *error;
}

static void make_pair(int fds[2], int size)
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
	for (int i = 0; i < 2; i++)
		setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

static void make_links(struct both *b, int size)
{
	for (unsigned i = 0; i < b->setup.links; i++) {
		int fds[2];

		make_pair(fds, size);
		b->near[i] = b->far[i] = (struct bm_transport){.in = -1, .out = -1};
		assert_int_equal(bm_transport_open(&b->near[i], fds[0], fds[0]), 0);
		assert_int_equal(bm_transport_open(&b->far[i], fds[1], fds[1]), 0);
	}
}

static void open_sender(struct both *b)
{
	struct bm_error error;
	int fds[2];

	make_pair(fds, 65536);
	b->from.qemu = fds[0];
	b->setup.qemu = fds[1];
	b->setup.arg = &b->from;
	assert_int_equal(bm_sender_new(&b->setup, b->near, &b->sender, &error), 0);
}

static void open_receiver(struct both *b)
{
	struct bm_error error;
	int fds[2];

	make_pair(fds, 65536);
	b->to.qemu = fds[0];
	b->setup.qemu = fds[1];
	b->setup.arg = &b->to;
	assert_int_equal(bm_receiver_new(&b->setup, b->far, &b->receiver, &error), 0);
}

static void both_begin(struct both *b, unsigned links, int size)
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

static void both_open(struct both *b)
{
	open_sender(b);
	open_receiver(b);
}

static void both_close(struct both *b)
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

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* What is there on a QEMU's socket is added to got. 0: it was closed. */
static ssize_t take(int fd, struct bytes *got, size_t most)
{
	static uint8_t piece[1 << 20];
	ssize_t n = recv(fd, piece, most < sizeof(piece) ? most : sizeof(piece), MSG_DONTWAIT);

	if (n > 0)
		add(got, piece, (size_t)n);
	return n;
}

/* One turn of everything: the QEMUs give and take what they can. */
static void turn(struct both *b, const struct bytes *in)
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

static void turns(struct both *b, const struct bytes *in, uint64_t ms)
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

static bool is_closed(int fd)
{
	struct bytes rest = {0};
	ssize_t n;

	do
		n = take(fd, &rest, SIZE_MAX);
	while (n > 0);
	free(rest.data);
	return !n || (n < 0 && errno == ECONNRESET);
}

static void same_as(const struct both *b, const struct bytes *in)
{
	assert_int_equal(b->out.used, in->used);
	assert_memory_equal(b->out.data, in->data, in->used);
}

static const uint8_t pong_and_shut[] = {0, 2, 0, 4, 0, 0, 0, 1, 0, 1, 0, 4, 0, 0, 0, 0};

/* A whole migration: the stream, the answers, the gate, the end. */
static void migrate(unsigned links, int size, const char *name, enum bm_pace_mode compress)
{
	struct bytes in = recorded(&all, name);
	struct both b;

	both_begin(&b, links, size);
	b.setup.gate = true;
	b.setup.compress = compress;
	both_open(&b);
	turn_until(&b, &in, b.out.used == in.used);
	assert_int_equal(send(b.to.qemu, pong_and_shut, 16, 0), 16);
	turn_until(&b, &in, b.from.held);
	turns(&b, &in, 20);
	assert_int_equal(b.back.used, 8);
	assert_int_equal(b.from.done + b.from.failed + b.to.done + b.to.failed, 0);
	bm_sender_open_gate(b.sender);
	turn_until(&b, &in, b.back.used == 16);
	assert_memory_equal(b.back.data, pong_and_shut, 16);
	close(b.from.qemu);
	b.from.qemu = -1;
	turn_until(&b, &in, b.from.done && b.to.done);
	assert_int_equal(b.from.failed + b.to.failed, 0);
	same_as(&b, &in);
	struct bm_relay_stats stats;
	bm_sender_stats(b.sender, &stats);
	assert_int_equal(stats.stream, in.used);
	assert_int_equal(stats.held, 0);
	assert_string_equal(stats.why, "device state");
	if (compress == BM_PACE_ALWAYS)
		assert_true(stats.compressed > 0 && stats.wire < in.used / 2);
	both_close(&b);
}

static void migrations_end_well(void **state)
{
	(void)state;
	migrate(1, 1 << 20, "return", BM_PACE_NEVER);
	migrate(1, 4096, "return", BM_PACE_ALWAYS);
	migrate(3, 8192, "plain", BM_PACE_AUTO);
	migrate(4, 65536, "xbzrle", BM_PACE_ALWAYS);
	migrate(16, 4096, "hotplug", BM_PACE_AUTO);
	migrate(16, 1 << 20, "ignore", BM_PACE_NEVER);
}

/* A QEMU without a return path: nobody answers, the end of the stream is the end. */
static void a_stream_without_a_gate_ends_when_it_ends(void **state)
{
	struct bytes in = recorded(&all, "plain");
	struct both b;

	(void)state;
	both_begin(&b, 2, 65536);
	both_open(&b);
	turn_until(&b, &in, b.given == in.used);
	close(b.from.qemu);
	b.from.qemu = -1;
	turn_until(&b, NULL, b.from.done && b.to.done);
	same_as(&b, &in);
	both_close(&b);
}

/* Pages that are all different and cannot be made smaller. */
static void make_noise(struct bytes *in, size_t pages)
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

/*
 * A target that takes nothing: what the source's QEMU got rid of is bounded by the window, one
 * batch at the receiver, and what sockets hold.
 */
static void no_more_is_taken_than_goes_on(void **state)
{
	struct bm_relay_stats stats;
	struct bytes in = {0};
	struct both b;
	size_t before;

	(void)state;
	make_noise(&in, 4000);
	both_begin(&b, 3, 32768);
	both_open(&b);
	/* Until nothing has moved for a while, however busy the host is. */
	for (uint64_t end = now_ns() + 1000 * MS; now_ns() < end;) {
		ssize_t n = send(b.from.qemu, in.data + b.given, in.used - b.given,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		b.given += n > 0 ? (size_t)n : 0;
		if (n > 0)
			end = now_ns() + 1000 * MS;
		bm_loop_turn(b.loop, MS);
	}
	bm_sender_stats(b.sender, &stats);
	printf("# %zu bytes given, %llu taken\n", b.given, (unsigned long long)stats.stream);
	/* 2 batches and the input of the sender; at the receiver one for QEMU and one a link. */
	assert_in_range(stats.stream, 512 << 10, 8 << 18);
	assert_in_range(stats.held, 1, 4 << 18);
	assert_in_range(b.given, 512 << 10, 9 << 18);
	before = b.given;
	turns(&b, NULL, 100); /* now it takes something */
	turns(&b, &in, 100);
	assert_true(b.given > before);
	turn_until(&b, &in, b.out.used > in.used - BM_STREAM_ITEM_MAX);
	assert_memory_equal(b.out.data, in.data, b.out.used);
	both_close(&b);
	free(in.data);
}

/* Fills in what a failure has to bring about, on both sides. */
static void both_fail(struct both *b, enum bm_code from, enum bm_code to)
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

static void a_lost_connection_ends_all(void **state)
{
	struct bytes in = {0};

	(void)state;
	make_noise(&in, 1000);
	for (unsigned lost = 0; lost < 3; lost++) {
		struct both b;

		both_begin(&b, 3, 8192);
		both_open(&b);
		turn_until(&b, &in, b.out.used > 500000);
		shutdown(lost % 2 ? b.near[lost].in : b.far[lost].in, SHUT_RDWR);
		both_fail(&b, BM_E_UNREACHABLE, BM_E_UNREACHABLE);
		assert_non_null(strstr(b.from.error.text, "connection"));
		both_close(&b);
	}
	free(in.data);
}

/* QEMU closes its side when it has loaded all; it may wait for the gate for as long as it takes. */
static void a_target_that_has_loaded_all_may_close_its_side(void **state)
{
	struct bytes in = recorded(&all, "return");
	struct both b;

	(void)state;
	both_begin(&b, 2, 65536);
	b.setup.gate = true;
	both_open(&b);
	turn_until(&b, &in, b.out.used == in.used);
	for (int i = 0; i < 16; i++) {
		assert_int_equal(send(b.to.qemu, pong_and_shut + i, 1, 0), 1);
		turns(&b, &in, 2);
	}
	shutdown(b.to.qemu, SHUT_WR);
	turn_until(&b, &in, b.from.held);
	turns(&b, &in, 2500);
	assert_int_equal(b.from.failed + b.to.failed, 0);
	bm_sender_open_gate(b.sender);
	turn_until(&b, &in, b.back.used == 16);
	close(b.from.qemu);
	b.from.qemu = -1;
	turn_until(&b, &in, b.from.done && b.to.done);
	both_close(&b);
}

/* And one that closes it without a word is not waited for. */
static void a_target_that_closes_its_side_early_ends_all(void **state)
{
	struct bytes in = recorded(&all, "return");
	struct both b;

	(void)state;
	both_begin(&b, 2, 65536);
	b.setup.gate = true;
	both_open(&b);
	turn_until(&b, &in, b.out.used == in.used);
	assert_int_equal(send(b.to.qemu, pong_and_shut, 12, 0), 12);
	shutdown(b.to.qemu, SHUT_WR);
	both_fail(&b, BM_E_UNREACHABLE, BM_E_UNREACHABLE);
	both_close(&b);
}

/* Two MiB a second for all of this host: four take almost two seconds, unless they get smaller. */
static void the_cap_is_kept_and_then_batches_are_compressed(void **state)
{
	char run[] = "/tmp/blockmirror-ram.XXXXXX", path[64];
	struct bm_relay_stats stats;
	struct bytes in = {0};
	uint64_t begun, ns;
	struct both b;

	(void)state;
	assert_non_null(mkdtemp(run));
	make_noise(&in, 1000);
	for (int packed = 0; packed < 2; packed++) {
		/* Then three quarters of each page are all the same. */
		for (size_t i = 100; packed && i < in.used - 4200; i += 4104)
			memset(in.data + i, 7, 3000);
		both_begin(&b, 2, 65536);
		assert_int_equal(bm_cap_open(run, &b.setup.cap), 0);
		bm_cap_set(b.setup.cap, 2 << 20);
		both_open(&b);
		begun = now_ns();
		turn_until(&b, &in, b.given == in.used);
		close(b.from.qemu);
		b.from.qemu = -1;
		turn_until(&b, &in, b.from.done && b.to.done);
		ns = now_ns() - begun;
		same_as(&b, &in);
		bm_sender_stats(b.sender, &stats);
		printf("# %llu bytes on the wire, %llu of %llu batches compressed, %llu ms\n",
		       (unsigned long long)stats.wire, (unsigned long long)stats.compressed,
		       (unsigned long long)stats.batches, (unsigned long long)(ns / MS));
		assert_true(ns > (stats.wire - 500000) * 1000 / (2 << 20) * MS);
		if (packed)
			assert_true(stats.compressed >= 3 && stats.wire < in.used / 20 * 19);
		else
			assert_true(!stats.compressed && stats.wire > in.used - 10000 &&
				    ns > 1600 * MS);
		bm_cap_close(b.setup.cap);
		both_close(&b);
	}
	snprintf(path, sizeof(path), "%s/cap", run);
	unlink(path);
	rmdir(run);
	free(in.data);
}

static void a_source_that_gives_up_is_not_taken_for_one_that_has_ended(void **state)
{
	struct bytes in = recorded(&all, "return");
	struct both b;

	(void)state;
	for (int held = 0; held < 2; held++) {
		both_begin(&b, 2, 65536);
		b.setup.gate = true;
		both_open(&b);
		turn_until(&b, &in, b.out.used == in.used);
		if (held) {
			assert_int_equal(send(b.to.qemu, pong_and_shut, 16, 0), 16);
			turn_until(&b, &in, b.from.held);
		}
		close(b.from.qemu);
		b.from.qemu = -1;
		both_fail(&b, BM_E_CANCELLED, BM_E_UNREACHABLE);
		assert_non_null(strstr(b.to.error.text, "has failed or was cancelled"));
		both_close(&b);
	}
}

static void a_target_that_dies_ends_all(void **state)
{
	struct bytes in = {0};
	struct both b;

	(void)state;
	make_noise(&in, 1000);
	both_begin(&b, 2, 65536);
	both_open(&b);
	turn_until(&b, &in, b.out.used > 500000);
	close(b.to.qemu);
	b.to.qemu = -1;
	turn_until(&b, &in, b.from.failed);
	both_fail(&b, BM_E_UNREACHABLE, BM_E_IO);
	assert_non_null(strstr(b.from.error.text, "the target's QEMU"));
	both_close(&b);
	free(in.data);
}

static void what_is_dropped_is_seen_at_the_other_end(void **state)
{
	struct bytes in = recorded(&all, "return");
	struct both b;

	(void)state;
	both_begin(&b, 2, 65536);
	b.setup.gate = true;
	both_open(&b);
	turn_until(&b, &in, b.out.used == in.used);
	bm_sender_free(b.sender);
	b.sender = NULL;
	turn_until(&b, NULL, b.to.failed);
	assert_true(is_closed(b.from.qemu));
	assert_true(is_closed(b.to.qemu));
	both_close(&b);
}

static void a_refused_stream_ends_all(void **state)
{
	struct bytes in = {0};
	uint8_t rest[100] = {0};
	struct both b;

	(void)state;
	add_number(&in, 0x11223344, 4);
	add(&in, rest, sizeof(rest));
	both_begin(&b, 2, 65536);
	both_open(&b);
	turn_until(&b, &in, b.from.failed);
	both_fail(&b, BM_E_UNSUPPORTED, BM_E_UNREACHABLE);
	assert_non_null(strstr(b.to.error.text, "multifd"));
	both_close(&b);
	free(in.data);
}

/* The other end is this test. */

static void say(int fd, struct bm_ram_header *header, const void *payload)
{
	uint8_t head[BM_RAM_HEADER];

	bm_ram_header_put(head, header, payload);
	assert_int_equal(send(fd, head, sizeof(head), 0), sizeof(head));
	assert_int_equal(send(fd, payload, header->length, 0), header->length);
}

static void say_hello(int fd, const struct bm_ram_hello *hello)
{
	struct bm_ram_header header = {
		.type = BM_RAM_FRAME_HELLO, .length = BM_RAM_HELLO, .plain = BM_RAM_HELLO};
	uint8_t at[BM_RAM_HELLO];

	bm_ram_hello_put(at, hello);
	say(fd, &header, at);
}

static void say_batch(int fd, uint64_t number, const char *bytes, uint64_t content)
{
	uint8_t at[100] = {BM_RAM_BYTES};
	size_t length = strlen(bytes);
	struct bm_ram_header header = {.type = BM_RAM_FRAME_BATCH,
				       .length = (uint32_t)length + 5,
				       .plain = (uint32_t)length + 5,
				       .weight = (uint32_t)length,
				       .number = number,
				       .content = content ? content : XXH3_64bits(bytes, length)};

	bm_put32(at + 1, (uint32_t)length);
	memcpy(at + 5, bytes, length);
	say(fd, &header, at);
}

static const struct bm_ram_hello good = {
	.id = "a move", .link = 0, .links = 2, .page_bits = 12, .slots = 1024};

static void receiver_alone(struct both *b)
{
	both_begin(b, 2, 65536);
	b->from.failed = 1;
	open_receiver(b);
}

static void receiver_fails(struct both *b, enum bm_code code, const char *text)
{
	turn_until(b, NULL, b->to.failed);
	assert_int_equal(b->to.error.code, code);
	if (!strstr(b->to.error.text, text))
		fail_msg("%s", b->to.error.text);
	assert_true(is_closed(b->to.qemu));
	for (unsigned i = 0; i < 2; i++)
		close(b->near[i].in);
	both_close(b);
}

static void batches_are_put_in_order(void **state)
{
	struct bm_ram_hello second = good;
	struct both b;

	(void)state;
	receiver_alone(&b);
	second.link = 1;
	say_hello(b.near[1].in, &second);
	say_hello(b.near[0].in, &good);
	say_batch(b.near[0].in, 1, "world", 0);
	say_batch(b.near[0].in, 3, "!", 0);
	turns(&b, NULL, 10);
	assert_int_equal(b.out.used, 0);
	say_batch(b.near[1].in, 0, "hello ", 0);
	say_batch(b.near[1].in, 2, " again", 0);
	turn_until(&b, NULL, b.out.used == 18);
	assert_memory_equal(b.out.data, "hello world again!", 18);
	for (unsigned i = 0; i < 2; i++)
		close(b.near[i].in);
	turn_until(&b, NULL, b.to.failed);
	both_close(&b);
}

static void a_batch_that_comes_out_differently_is_not_given_to_qemu(void **state)
{
	struct both b;

	(void)state;
	receiver_alone(&b);
	say_hello(b.near[0].in, &good);
	say_batch(b.near[0].in, 0, "right", 0);
	say_batch(b.near[0].in, 1, "wrong", 12345);
	turn_until(&b, NULL, b.to.failed);
	assert_int_equal(b.out.used, 5);
	receiver_fails(&b, BM_E_DIFFERED, "batch 1");
}

static void a_sender_that_does_not_keep_to_the_rules_is_refused(void **state)
{
	struct bm_ram_header back = {.type = BM_RAM_FRAME_BACK};
	struct bm_ram_hello bad = good;
	struct both b;

	(void)state;
	receiver_alone(&b);
	say_batch(b.near[0].in, 0, "early", 0);
	receiver_fails(&b, BM_E_UNREACHABLE, "out of turn");

	receiver_alone(&b);
	bad.id[0] ^= 1;
	say_hello(b.near[0].in, &bad);
	receiver_fails(&b, BM_E_UNREACHABLE, "another move");

	receiver_alone(&b);
	say_hello(b.near[0].in, &good);
	say_hello(b.near[1].in, &good);
	receiver_fails(&b, BM_E_UNREACHABLE, "another move");

	receiver_alone(&b);
	bad = good;
	bad.slots = 1025;
	say_hello(b.near[0].in, &bad);
	receiver_fails(&b, BM_E_UNREACHABLE, "too large");

	receiver_alone(&b);
	bad = good;
	bad.page_bits = 40;
	say_hello(b.near[0].in, &bad);
	receiver_fails(&b, BM_E_UNREACHABLE, "too large");

	receiver_alone(&b);
	say_hello(b.near[0].in, &good);
	say(b.near[0].in, &back, "");
	receiver_fails(&b, BM_E_UNREACHABLE, "out of turn");

	receiver_alone(&b);
	say_hello(b.near[0].in, &good);
	say_batch(b.near[0].in, 0, "once", 0);
	say_batch(b.near[0].in, 0, "again", 0);
	receiver_fails(&b, BM_E_UNREACHABLE, "out of turn");

	receiver_alone(&b);
	bad = good;
	bad.link = 1;
	say_hello(b.near[0].in, &good);
	say_hello(b.near[1].in, &bad);
	say_batch(b.near[0].in, 5, "far", 0);
	say_batch(b.near[1].in, 6, "farther", 0);
	receiver_fails(&b, BM_E_UNREACHABLE, "on none of them");

	receiver_alone(&b);
	assert_int_equal(send(b.near[0].in,
			      "GET / HTTP/1.1\r\nHost: some host or other\r\n\r\n......", 50, 0),
			 50);
	receiver_fails(&b, BM_E_UNREACHABLE, "does not speak our RAM protocol");
}

/* Both are silent; one that has greeted may be so for the time that was agreed on. */
static void silence_is_death(void **state)
{
	struct bm_ram_hello hello = good;
	struct both b;
	uint64_t begun = now_ns();

	(void)state;
	both_begin(&b, 2, 65536);
	b.setup.silence = 300 * MS;
	b.to.failed = 1;
	open_sender(&b);
	for (uint8_t i = 0; i < 2; i++) {
		hello.link = i;
		say_hello(b.far[i].in, &hello);
	}
	turn_until(&b, NULL, b.from.failed);
	assert_in_range(now_ns() - begun, 300 * MS, 5000 * MS);
	assert_non_null(strstr(b.from.error.text, "has said nothing for"));
	assert_true(is_closed(b.from.qemu));
	for (unsigned i = 0; i < 2; i++)
		close(b.far[i].in);
	both_close(&b);
}

/* An idle machine: heartbeats are enough to be believed alive, both ways. */
static void who_beats_lives(void **state)
{
	struct both b;

	(void)state;
	both_begin(&b, 2, 65536);
	b.setup.silence = 900 * MS;
	both_open(&b);
	turns(&b, NULL, 2500);
	assert_int_equal(b.from.failed + b.to.failed, 0);
	both_close(&b);
}

static void a_pause_that_would_be_too_long_is_given_up(void **state)
{
	struct bm_relay_stats stats;
	struct bytes in = {0};
	struct both b;

	(void)state;
	make_noise(&in, 4000);
	both_begin(&b, 2, 65536);
	both_open(&b);
	turn_until(&b, &in, b.out.used > 1000000);
	bm_sender_mark(b.sender);
	bm_sender_deadline(b.sender, bm_loop_now(b.loop) + 200 * MS);
	while (!b.from.failed)
		bm_loop_turn(b.loop, 10 * MS); /* the target takes nothing more */
	bm_sender_stats(b.sender, &stats);
	assert_true(stats.marked < 4 << 20);
	both_fail(&b, BM_E_BUDGET, BM_E_UNREACHABLE);
	assert_non_null(strstr(b.from.error.text, "the pause would be longer"));
	both_close(&b);
	free(in.data);
}

/* In threads, as a program uses it that blocks. */

static void *feed(void *arg)
{
	const struct bytes *in = ((void **)arg)[0];
	int fd = *(int *)((void **)arg)[1];

	fcntl(fd, F_SETFL, 0);
	for (size_t at = 0; at < in->used;) {
		ssize_t n = send(fd, in->data + at, in->used - at, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		at += (size_t)n;
	}
	return NULL;
}

static void start_both(struct both *b, struct bm_relay **near, struct bm_relay **far)
{
	struct bm_error error;
	int fds[2];

	make_pair(fds, 65536);
	b->from.qemu = fds[0];
	b->setup.qemu = fds[1];
	assert_int_equal(bm_relay_start(true, &b->setup, b->near, near, &error), 0);
	make_pair(fds, 65536);
	b->to.qemu = fds[0];
	b->setup.qemu = fds[1];
	assert_int_equal(bm_relay_start(false, &b->setup, b->far, far, &error), 0);
	fcntl(b->to.qemu, F_SETFL, 0);
}

static void receive_all(struct both *b, size_t length)
{
	uint8_t piece[65536];

	while (b->out.used < length) {
		ssize_t n = recv(b->to.qemu, piece, sizeof(piece), 0);

		assert_true(n > 0);
		add(&b->out, piece, (size_t)n);
	}
}

static void a_migration_by_threads(void **state)
{
	struct bytes in = recorded(&all, "return");
	struct bm_relay *near, *far;
	struct bm_relay_stats stats;
	struct bm_error error;
	uint8_t back[16];
	pthread_t feeder;
	struct both b;

	(void)state;
	both_begin(&b, 3, 65536);
	b.setup.gate = true;
	b.setup.compress = BM_PACE_ALWAYS;
	start_both(&b, &near, &far);
	void *arg[] = {&in, &b.from.qemu};
	assert_int_equal(pthread_create(&feeder, NULL, feed, arg), 0);
	receive_all(&b, in.used);
	pthread_join(feeder, NULL);
	same_as(&b, &in);
	assert_int_equal(bm_relay_wait(near, BM_RELAY_HOLDS, 50, &error), BM_RELAY_RUNS);
	assert_int_equal(send(b.to.qemu, pong_and_shut, 16, 0), 16);
	assert_int_equal(bm_relay_wait(near, BM_RELAY_HOLDS, 20000, &error), BM_RELAY_HOLDS);
	assert_int_equal(recv(b.from.qemu, back, 16, MSG_DONTWAIT), 8);
	bm_relay_open_gate(near);
	assert_int_equal(recv(b.from.qemu, back + 8, 8, MSG_WAITALL), 8);
	assert_memory_equal(back, pong_and_shut, 16);
	close(b.from.qemu);
	b.from.qemu = -1;
	assert_int_equal(bm_relay_wait(near, BM_RELAY_OVER, 20000, &error), BM_RELAY_OVER);
	assert_int_equal(error.code, BM_OK);
	assert_int_equal(bm_relay_wait(far, BM_RELAY_OVER, 20000, &error), BM_RELAY_OVER);
	assert_int_equal(error.code, BM_OK);
	bm_relay_stats(near, &stats);
	assert_int_equal(stats.stream, in.used);
	bm_relay_stop(near);
	bm_relay_stop(far);
	both_close(&b);
}

/* Dropped in the middle, with batches in workers; and one whose time is over. */
static void threads_that_are_dropped(void **state)
{
	struct bytes in = {0};
	struct bm_error error;

	(void)state;
	make_noise(&in, 3000);
	for (int late = 0; late < 2; late++) {
		struct bm_relay *near, *far;
		pthread_t feeder;
		struct both b;

		both_begin(&b, 2, 65536);
		b.setup.compress = BM_PACE_ALWAYS;
		start_both(&b, &near, &far);
		void *arg[] = {&in, &b.from.qemu};
		assert_int_equal(pthread_create(&feeder, NULL, feed, arg), 0);
		receive_all(&b, 1 << 20);
		if (late) {
			bm_relay_mark(near);
			bm_relay_deadline(near, 20 * MS);
			assert_int_equal(bm_relay_wait(near, BM_RELAY_OVER, 20000, &error),
					 BM_RELAY_OVER);
			assert_int_equal(error.code, BM_E_BUDGET);
		}
		bm_relay_stop(near);
		pthread_join(feeder, NULL);
		assert_int_equal(bm_relay_wait(far, BM_RELAY_OVER, 20000, &error), BM_RELAY_OVER);
		assert_int_equal(error.code, BM_E_UNREACHABLE);
		bm_relay_stop(far);
		both_close(&b);
	}
	free(in.data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(migrations_end_well),
		cmocka_unit_test(a_stream_without_a_gate_ends_when_it_ends),
		cmocka_unit_test(no_more_is_taken_than_goes_on),
		cmocka_unit_test(a_lost_connection_ends_all),
		cmocka_unit_test(a_target_that_has_loaded_all_may_close_its_side),
		cmocka_unit_test(a_target_that_closes_its_side_early_ends_all),
		cmocka_unit_test(the_cap_is_kept_and_then_batches_are_compressed),
		cmocka_unit_test(a_source_that_gives_up_is_not_taken_for_one_that_has_ended),
		cmocka_unit_test(a_target_that_dies_ends_all),
		cmocka_unit_test(what_is_dropped_is_seen_at_the_other_end),
		cmocka_unit_test(a_refused_stream_ends_all),
		cmocka_unit_test(batches_are_put_in_order),
		cmocka_unit_test(a_batch_that_comes_out_differently_is_not_given_to_qemu),
		cmocka_unit_test(a_sender_that_does_not_keep_to_the_rules_is_refused),
		cmocka_unit_test(silence_is_death),
		cmocka_unit_test(who_beats_lives),
		cmocka_unit_test(a_pause_that_would_be_too_long_is_given_up),
		cmocka_unit_test(a_migration_by_threads),
		cmocka_unit_test(threads_that_are_dropped),
	};

	return cmocka_run_group_tests(tests, load, unload);
}
