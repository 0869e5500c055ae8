/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sender and receiver on one loop, with socket pairs for connections and QEMUs: what goes in comes
 * out, no more is taken than the bound, and whatever fails closes both QEMUs' sockets.
 */
#include "tests/unit/ram_relay_rig.h"

#include <fcntl.h>

#include "blockmirror/base/cap.h"

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
	both_fail(&b, BM_E_UNREACHABLE, BM_E_QMP);
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
	both_fail(&b, BM_E_UNREACHABLE, BM_E_QMP);
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

/* 16 KiB a second are let go; what is behind the stop does not wait for that. */
static void a_stopped_guest_does_not_wait_for_the_cap(void **state)
{
	char run[] = "/tmp/blockmirror-ram.XXXXXX", path[64];
	struct bytes in = {0};
	struct both b;

	(void)state;
	assert_non_null(mkdtemp(run));
	make_noise(&in, 1000);
	both_begin(&b, 2, 65536);
	assert_int_equal(bm_cap_open(run, &b.setup.cap), 0);
	bm_cap_set(b.setup.cap, 16 << 10);
	both_open(&b);
	turns(&b, &in, 1500);
	assert_true(b.out.used < 1 << 20);
	bm_sender_mark(b.sender);
	turn_until(&b, &in, b.out.used == in.used);
	same_as(&b, &in);
	bm_cap_close(b.setup.cap);
	both_close(&b);
	snprintf(path, sizeof(path), "%s/cap", run);
	unlink(path);
	rmdir(run);
	free(in.data);
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
		cmocka_unit_test(who_beats_lives),
		cmocka_unit_test(a_stopped_guest_does_not_wait_for_the_cap),
		cmocka_unit_test(a_pause_that_would_be_too_long_is_given_up),
	};

	return cmocka_run_group_tests(tests, load, unload);
}
