/* SPDX-License-Identifier: BSD-3-Clause */
/* What an NBD device compresses, and what becomes of it. */
#include "tests/unit/dev_nbd_rig.h"

#include <endian.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <zstd.h>

static uint8_t noise[MIB], back[MIB];
static uint64_t acked, busy; /* what the kernel says of each connection */

int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
	struct tcp_info *info = value;

	(void)fd;
	assert_true(level == IPPROTO_TCP && name == TCP_INFO && *length == sizeof(*info));
	info->tcpi_bytes_acked = acked;
	info->tcpi_busy_time = busy;
	return 0;
}

static int begin_compressing(void **state)
{
	begin(state);
	acked = busy = 0;
	n->compressor = bm_nbd_compressor_new();
	assert_non_null(n->compressor);
	for (size_t i = 0; i < sizeof(memory); i++)
		memory[i] = (uint8_t)(i / 100 * 7);
	for (size_t i = 0; i < sizeof(noise); i++)
		noise[i] = (uint8_t)random();
	return 0;
}

/* Until as many commands are sent: the thread takes its time. */
static void wait_for_sent(unsigned commands)
{
	const struct timespec ms = {.tv_nsec = 1000000};

	for (int i = 0; i < 10000 && count < commands; i++) {
		turn();
		nanosleep(&ms, NULL);
	}
	assert_int_equal(count, commands);
}

static void is_compressed(unsigned i, uint64_t offset, uint32_t length)
{
	uint32_t head;

	assert_int_equal(sent[i].name, PWRITE);
	assert_int_equal(sent[i].offset, offset);
	assert_int_equal(sent[i].flags & 1u << 15, 1u << 15);
	assert_true(sent[i].length < length);
	memcpy(&head, sent[i].memory, 4);
	assert_int_equal(be32toh(head), length);
	assert_int_equal(ZSTD_decompress(back, sizeof(back), (const uint8_t *)sent[i].memory + 4,
					 sent[i].length - 4),
			 length);
	assert_memory_equal(back, memory, length);
}

static void a_copy_is_compressed(void **state)
{
	const struct client *c = submit(BM_WRITE, 8192, MIB, BM_BULK);

	(void)state;
	wait_for_sent(1);
	is_compressed(0, 8192, MIB);
	assert_ptr_equal(sent[0].handle, &handles[1]); /* however small, not among a guest's */
	answer(0, 0);
	ended(c, 0);
	c = submit(BM_WRITE, 0, 64 << 10, BM_BULK | BM_FUA);
	wait_for_sent(2);
	is_compressed(1, 0, 64 << 10);
	assert_int_equal(sent[1].flags & LIBNBD_CMD_FLAG_FUA, LIBNBD_CMD_FLAG_FUA);
	answer(1, EIO);
	ended(c, -EIO);
}

static void a_guest_does_not_wait_for_the_thread(void **state)
{
	(void)state;
	submit(BM_WRITE, 0, MIB, 0);
	was(0, PWRITE, 0, MIB, 0);
	submit(BM_WRITE, 0, 4096, BM_BULK); /* nor is it worth it for this */
	was(1, PWRITE, 0, 4096, 0);
	submit(BM_ZERO, 0, MIB, BM_BULK);
	was(2, ZERO, 0, MIB, 0);
}

static void noise_goes_as_it_is(void **state)
{
	struct client *c = &clients[used];

	(void)state;
	memcpy(back, memory, sizeof(memory));
	memcpy(memory, noise, sizeof(noise));
	submit(BM_WRITE, 0, MIB, BM_BULK);
	wait_for_sent(1);
	was(0, PWRITE, 0, MIB, 0);
	assert_ptr_equal(sent[0].memory, memory);
	answer(0, 0);
	ended(c, 0);
}

/* More than there is room for goes as it is, and room comes back. */
static void there_are_more_than_can_be_compressed(void **state)
{
	unsigned compressed = 0;

	(void)state;
	for (unsigned i = 0; i < 40; i++)
		submit(BM_WRITE, (uint64_t)i * MIB, MIB, BM_BULK);
	wait_for_sent(40);
	for (unsigned i = 0; i < 40; i++)
		compressed += sent[i].flags >> 15 & 1;
	assert_in_range(compressed, 1, 39);
	for (unsigned i = 0; i < 40; i++)
		answer(i, 0);
	submit(BM_WRITE, 0, MIB, BM_BULK);
	wait_for_sent(41);
	is_compressed(40, 0, MIB);
}

/* Four that are with the thread, or wait for it. */
static void give_four(void)
{
	for (int i = 0; i < 4; i++) {
		struct client *c = &clients[used++];

		memset(c, 0, sizeof(*c));
		c->rq = (struct bm_request){.op = BM_WRITE,
					    .flags = BM_BULK,
					    .length = MIB,
					    .data = memory,
					    .done = done};
		bm_submit(&n->dev, &c->rq);
	}
}

static void wait_for_four(int error)
{
	const struct timespec ms = {.tv_nsec = 1000000};

	for (int i = 0; i < 10000 && !clients[3].answers; i++) {
		turn();
		nanosleep(&ms, NULL);
	}
	for (int i = 0; i < 4; i++)
		ended(&clients[i], error);
	assert_int_equal(count, 0);
}

/* The thread reads the caller's memory: nobody gets it back before. */
static void cancelled_while_it_is_compressed(void **state)
{
	(void)state;
	give_four();
	bm_dev_cancel(&n->dev);
	wait_for_four(-ESHUTDOWN);
}

static void a_connection_may_die_meanwhile(void **state)
{
	(void)state;
	give_four();
	handles[0].dies_in_notify = true;
	poke(&handles[0]);
	wait_for_four(-ENOTCONN);
}

/* 100 bytes/µs, by one connection, and by three that are busy at the same time. */
static void what_the_way_takes(void **state)
{
	struct nbd_way way = {0};
	uint64_t us = 1000000;

	(void)state;
	bm_nbd_measure(&way, 100000, 1000, us);
	assert_true(way.rate == 0); /* too short to tell */
	bm_nbd_measure(&way, 3000000, 30000, us += 30000);
	assert_true(way.rate == 100);
	/* It was not busy for most of the time. */
	bm_nbd_measure(&way, 6000000, 60000, us += 900000);
	assert_true(way.rate == 100);
	bm_nbd_measure(&way, 9000000, 60000 + 3 * 30000, us += 30000);
	assert_true(way.rate == 100);
	/* It has become slower. */
	bm_nbd_measure(&way, 9300000, 180000, us += 30000);
	assert_true(way.rate == 10);
	/* So fast that there is hardly ever something to send. */
	bm_nbd_measure(&way, 9300000 + (8 << 20), 184000, us += 30000);
	assert_true(way.rate > 2000);
	/* A connection that cannot tell any more: it begins anew. */
	bm_nbd_measure(&way, 1000, 20, us += 30000);
	assert_true(way.rate > 2000);
	bm_nbd_measure(&way, 6001000, 30020, us += 30000);
	assert_true(way.rate == 200);
}

static unsigned compressed_of(unsigned writes)
{
	unsigned first = count, compressed = 0;

	for (unsigned i = 0; i < writes; i++) {
		submit(BM_WRITE, (uint64_t)i * MIB, MIB, BM_BULK);
		wait_for_sent(first + i + 1);
		compressed += sent[first + i].flags >> 15 & 1;
		answer(first + i, 0);
	}
	return compressed;
}

static void a_fast_way_gets_it_as_it_is(void **state)
{
	(void)state;
	assert_int_equal(compressed_of(10), 10); /* nothing is known yet */
	acked = 1ull << 40, busy = 100000;
	assert_int_equal(compressed_of(32), 2); /* samples */
	acked += 100000, busy += 1000000;
	assert_int_equal(compressed_of(10), 10);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, begin_compressing, over)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_copy_is_compressed),
		TEST(a_guest_does_not_wait_for_the_thread),
		TEST(noise_goes_as_it_is),
		TEST(there_are_more_than_can_be_compressed),
		TEST(cancelled_while_it_is_compressed),
		TEST(a_connection_may_die_meanwhile),
		TEST(what_the_way_takes),
		TEST(a_fast_way_gets_it_as_it_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
