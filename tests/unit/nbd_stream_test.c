/* SPDX-License-Identifier: BSD-3-Clause */
/* The NBD server's long transfers, in pieces. "rule N" is reference/nbd.md's. */
#include "tests/unit/nbd_client.h"

enum { BUDGET = 16 * MIB };

static struct rig rig;

static int set_up(void **state)
{
	rig_open(&rig, NULL);
	*state = &rig;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	return 0;
}

/*
 * Reads the chunks of a structured READ of up to 64 MiB at offset 0. They cover it once, the last
 * one alone is DONE. Returns how many were errors.
 */
static unsigned expect_chunks(struct client *c, uint64_t cookie, uint32_t length)
{
	bool seen[65] = {0};
	unsigned errors = 0;
	struct chunk chunk;

	for (uint32_t covered = 0; covered < length;) {
		uint64_t offset;

		chunk = get_chunk_header(c);
		assert_int_equal(chunk.cookie, cookie);
		if (chunk.type == ERROR_OFFSET) {
			uint8_t text[128];
			uint16_t size;

			assert_int_equal(get32(c), EIO);
			size = get16(c);
			assert_int_equal(chunk.length, 4 + 2 + size + 8);
			get(c, text, size);
			offset = get64(c);
			chunk.length = MIB + 8;
			errors++;
		} else {
			assert_int_equal(chunk.type, DATA);
			offset = get64(c);
			assert_true(chunk.length > 8 && chunk.length <= MIB + 8);
			expect_data(c, offset, chunk.length - 8);
		}
		assert_true(offset % MIB == 0 && offset < length && !seen[offset / MIB]);
		seen[offset / MIB] = true;
		covered += chunk.length - 8;
		assert_int_equal(chunk.flags, covered == length ? DONE : 0);
	}
	return errors;
}

/* rule 17: chunks in any order, each part once, DONE when no error can follow */
static void a_long_read_is_chunks_as_they_are_done(void **state)
{
	struct client c = connected(*state, "slow", true);

	rig.slow.at_once = true;
	rig.slow.random = 1;
	request(&c, READ, 0, 1, 0, 32 * MIB);
	assert_int_equal(expect_chunks(&c, 1, 32 * MIB), 0);
	request(&c, READ, 0, 2, 0, 64 * MIB);
	assert_int_equal(expect_chunks(&c, 2, 64 * MIB), 0);
	assert_true(rig.slow.most <= BUDGET);
	client_close(&c);
}

/* rule 17: a part that failed is an error chunk with its offset, the others are good */
static void a_long_read_says_where_it_failed(void **state)
{
	struct client c = connected(*state, "slow", true);

	for (uint64_t seed = 1; seed < 20; seed++) {
		rig.slow.random = seed << 32;
		rig.slow.at_once = true;
		rig.slow.error = -EIO;
		rig.slow.fail_at = (chance(&rig.slow.random) % 32) * MIB + 5000;
		request(&c, READ, 0, 1, 0, 32 * MIB);
		assert_int_equal(expect_chunks(&c, 1, 32 * MIB), 1);
	}
	client_close(&c);
}

/* rule 19: one content chunk; MUST work up to 64 KiB, EOVERFLOW when it is too long */
static void an_unfragmented_read_is_one_chunk(void **state)
{
	static const uint32_t lengths[] = {1, 65536, MIB - 1, MIB};
	struct client c = connected(*state, "slow", true),
		      simple = connected(*state, "slow", false);

	rig.slow.at_once = true;
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		request(&c, READ, DF, 1, MIB - 512, lengths[i]);
		expect_chunk(&c, 1, DATA, 8 + lengths[i]);
	}
	request(&c, READ, DF, 1, 0, MIB + 1);
	expect_error(&c, 1, EOVERFLOW);
	request(&simple, READ, DF, 1, 0, 512);
	expect_error(&simple, 1, EINVAL);
	client_close(&c), client_close(&simple);
}

/* "If an error occurs": the header bears it, and no payload follows; rule 17 */
static void a_simple_read_that_fails_has_no_data(void **state)
{
	struct client c = connected(*state, "slow", false);

	for (uint64_t seed = 1; seed < 20; seed++) {
		rig.slow.random = seed << 32;
		rig.slow.at_once = true;
		rig.slow.error = -EIO;
		rig.slow.fail_at = (chance(&rig.slow.random) % 3) * MIB + 5000;
		request(&c, READ, 0, 1, 0, 3 * MIB);
		expect_simple(&c, 1, EIO);
		request(&c, READ, 0, 2, 0, 4096);
		if (rig.slow.fail_at >= 4096) {
			expect_simple(&c, 2, 0);
			expect_data(&c, 0, 4096);
		} else {
			expect_simple(&c, 2, EIO);
		}
	}
	client_close(&c);
}

/* What the device still writes to is nobody else's. */
static void a_simple_read_that_fails_waits_for_its_pieces(void **state)
{
	struct client c = connected(*state, "slow", false);

	rig.slow.error = -EIO;
	request(&c, READ, 0, 1, 0, 3 * MIB);
	turns(&rig, 3);
	slow_release(&rig.slow, false); /* the first one fails */
	request(&c, READ, 0, 2, MIB, 3 * MIB);
	expect_silence(&c);
	assert_int_equal(rig.slow.count, 5);
	while (rig.slow.count)
		slow_release(&rig.slow, false);
	expect_simple(&c, 1, EIO);
	expect_simple(&c, 2, 0);
	expect_data(&c, MIB, 3 * MIB);
	client_close(&c);
}

/* Longer than memory is, and its data in one piece all the same: others wait until it is over. */
static void a_long_simple_read_streams(void **state)
{
	struct client c = connected(*state, "slow", false);

	rig.slow.at_once = true;
	for (uint64_t seed = 1; seed < 4; seed++) {
		rig.slow.random = seed << 32;
		request(&c, READ, 0, 1, 0, 64 * MIB);
		request(&c, READ, 0, 2, 512, 17 * MIB);
		for (int i = 0; i < 40; i++)
			request(&c, READ, 0, 3, 7, 4096);
		for (int i = 0, cookie; i < 42; i++) {
			assert_int_equal(get32(&c), 0x67446698);
			assert_int_equal(get32(&c), 0);
			cookie = (int)get64(&c);
			if (cookie == 1)
				expect_data(&c, 0, 64 * MIB);
			else if (cookie == 2)
				expect_data(&c, 512, 17 * MIB);
			else
				expect_data(&c, 7, 4096);
		}
	}
	assert_true(rig.slow.most <= BUDGET);
	client_close(&c);
}

/* The same with the worst order of completions: each reply is still in one piece. */
static void long_simple_reads_take_turns(void **state)
{
	static const uint32_t lengths[] = {9 * MIB, 4096, 12 * MIB + 512, 3 * MIB, 1, 9 * MIB};
	enum { MANY = 6, ALL = MANY * 16 + 33 * MIB + 4096 + 512 + 1 };
	struct client c = connected(*state, "slow", false);
	uint8_t *bytes = malloc(ALL), *at = bytes;
	uint64_t random = 5;
	size_t got = 0;

	for (unsigned i = 0; i < MANY; i++)
		request(&c, READ, 0, i, i * 1000, lengths[i]);
	for (int idle = 0; got < ALL && idle < 1000; idle++) {
		ssize_t n = recv(c.fd, bytes + got, ALL - got, MSG_DONTWAIT);

		got += n > 0 ? (size_t)n : 0;
		idle = n > 0 || rig.slow.count ? 0 : idle;
		if (rig.slow.count && chance(&random) % 2)
			slow_release(&rig.slow, chance(&random) % 4);
		turns(&rig, 1);
	}
	assert_int_equal(got, ALL);
	for (int i = 0; i < MANY; i++) {
		uint64_t cookie;
		bool same = true;

		assert_memory_equal(at, "\x67\x44\x66\x98\0\0\0", 8);
		memcpy(&cookie, at + 8, 8);
		cookie = be64toh(cookie);
		assert_true(cookie < MANY);
		at += 16;
		for (uint32_t k = 0; k < lengths[cookie]; k++)
			same &= *at++ == pattern(cookie * 1000 + k);
		assert_true(same);
	}
	expect_silence(&c);
	free(bytes);
	client_close(&c);
}

/* "If an error occurs … after … sent out the reply header": a hard disconnect; rule 17 */
static void a_long_simple_read_that_fails_disconnects(void **state)
{
	struct client c = connected(*state, "slow", false);
	uint8_t *data = malloc(33 * MIB);

	rig.slow.error = -EIO;
	rig.slow.fail_at = 32 * MIB;
	rig.slow.at_once = true;
	request(&c, READ, 0, 1, 0, 33 * MIB);
	expect_simple(&c, 1, 0);
	assert_false(try_get(&c, data, 33 * MIB));
	free(data);
	client_close(&c);
	c = connected(*state, "slow", false);
	rig.slow.fail_at = 0; /* before the header is sent: a reply as any other */
	request(&c, READ, 0, 2, 0, 33 * MIB);
	expect_simple(&c, 2, EIO);
	request(&c, READ, 0, 3, 512, 512);
	expect_simple(&c, 3, 0);
	expect_data(&c, 512, 512);
	client_close(&c);
}

/* rule 26: 64 MiB through fixed buffers, one reply when the last piece is written */
static void a_long_write_is_streamed(void **state)
{
	for (enum mode mode = SIMPLE_REPLIES; mode < MODES; mode++) {
		struct client c = connected(*state, "slow", mode);

		rig.slow.at_once = true;
		rig.slow.bytes = 0;
		rig.slow.random = 7;
		request(&c, WRITE, FUA, 1, 512, 64 * MIB);
		payload(&c, 512, 64 * MIB);
		expect_simple(&c, 1, 0);
		assert_int_equal(rig.slow.bytes, 64 * MIB);
		assert_true(rig.slow.most <= BUDGET);
		assert_int_equal(rig.slow.flags, BM_FUA);
		assert_int_equal(rig.slow.ragged, 1); /* the first piece */
		rig.slow.ragged = 0;
		expect_silence(&c);
		client_close(&c);
	}
}

/* rule 12: what is left of a WRITE that failed is dropped; one reply, after all of it */
static void a_long_write_that_fails_is_read_to_its_end(void **state)
{
	struct client c = connected(*state, "slow", true);

	rig.slow.at_once = true;
	rig.slow.error = -ENOSPC;
	for (uint64_t at = 0; at < 8; at++) {
		rig.slow.fail_at = at * MIB;
		rig.slow.bytes = 0;
		request(&c, WRITE, 0, 1, 0, 8 * MIB);
		payload(&c, 0, 8 * MIB);
		expect_error(&c, 1, ENOSPC);
		assert_true(rig.slow.bytes <= (at + 1) * MIB); /* the rest was not written */
		request(&c, WRITE, 0, 2, 9 * MIB, 512);
		payload(&c, 9 * MIB, 512);
		expect_simple(&c, 2, 0);
	}
	client_close(&c);
}

/* … and after all that was submitted of it has come back. */
static void a_long_write_that_fails_waits_for_its_pieces(void **state)
{
	struct client c = connected(*state, "slow", true);

	rig.slow.error = -EIO;
	request(&c, WRITE, 0, 1, 0, 4 * MIB);
	payload(&c, 0, 2 * MIB);
	turns(&rig, 5);
	assert_int_equal(rig.slow.count, 2);
	slow_release(&rig.slow, false); /* the first one fails */
	payload(&c, 2 * MIB, 2 * MIB);
	expect_silence(&c);
	assert_int_equal(rig.slow.count, 2); /* the third one was begun before it was known */
	slow_release(&rig.slow, false);
	expect_silence(&c);
	slow_release(&rig.slow, false);
	expect_error(&c, 1, EIO);
	expect_silence(&c);
	client_close(&c);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(a_long_read_is_chunks_as_they_are_done),
		TEST(a_long_read_says_where_it_failed),
		TEST(an_unfragmented_read_is_one_chunk),
		TEST(a_simple_read_that_fails_has_no_data),
		TEST(a_simple_read_that_fails_waits_for_its_pieces),
		TEST(a_long_simple_read_streams),
		TEST(long_simple_reads_take_turns),
		TEST(a_long_simple_read_that_fails_disconnects),
		TEST(a_long_write_is_streamed),
		TEST(a_long_write_that_fails_is_read_to_its_end),
		TEST(a_long_write_that_fails_waits_for_its_pieces),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
