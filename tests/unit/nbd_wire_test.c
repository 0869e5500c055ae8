/* SPDX-License-Identifier: BSD-3-Clause */
/* Bytes from and to the NBD wire: bounds, and failures that stay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "nbd-server/wire.h"

static const uint8_t bytes[] = {1, 2, 3, 4, 5, 6, 7, 8};

static void numbers_are_big_endian_both_ways(void **state)
{
	struct nbd_reader r = {.at = bytes, .left = 6};
	uint8_t out[14];
	struct nbd_writer w = {.at = out, .room = sizeof(out)};

	(void)state;
	assert_int_equal(nbd_read_u32(&r), 0x01020304);
	assert_int_equal(nbd_read_u16(&r), 0x0506);
	assert_true(nbd_read_whole(&r));
	r = (struct nbd_reader){.at = bytes, .left = 8};
	assert_int_equal(nbd_read_u64(&r), 0x0102030405060708);
	assert_true(nbd_read_whole(&r));
	r = (struct nbd_reader){.at = bytes, .left = 7};
	assert_int_equal(nbd_read_u64(&r), 0);
	assert_true(r.failed);
	nbd_write_u16(&w, 0x0102);
	nbd_write_u32(&w, 0x03040506);
	nbd_write_u64(&w, 0x0708090a0b0c0d0e);
	assert_memory_equal(out, "\1\2\3\4\5\6\7\10\11\12\13\14\15\16", 14);
	assert_int_equal(w.used, 14);
	assert_false(w.failed);
}

static void a_reader_ends_where_it_ends(void **state)
{
	(void)state;
	for (size_t left = 0; left < 4; left++) {
		struct nbd_reader r = {.at = bytes, .left = left};

		assert_int_equal(nbd_read_u32(&r), 0);
		assert_true(r.failed);
		assert_null(nbd_read(&r, 0)); /* for good */
		assert_false(nbd_read_whole(&r));
	}
	for (int i = 0; i < 2; i++) {
		struct nbd_reader r = {.at = bytes, .left = 4};

		assert_null(nbd_read(&r, i ? SIZE_MAX : 5));
		assert_int_equal(nbd_read_u16(&r), 0);
	}
}

static void what_is_left_is_not_whole(void **state)
{
	struct nbd_reader r = {.at = bytes, .left = 3};

	(void)state;
	assert_ptr_equal(nbd_read(&r, 2), bytes);
	assert_false(nbd_read_whole(&r));
	assert_ptr_equal(nbd_read(&r, 1), bytes + 2);
	assert_true(nbd_read_whole(&r));
	assert_ptr_equal(nbd_read(&r, 0), bytes + 3);
}

static void a_writer_ends_where_it_ends(void **state)
{
	uint8_t out[8] = {0};
	struct nbd_writer w = {.at = out, .room = 3};

	(void)state;
	nbd_write_u16(&w, 0x0102);
	nbd_write_u16(&w, 0x0304);
	assert_true(w.failed);
	nbd_write(&w, "x", 1); /* for good, though it would fit */
	assert_int_equal(w.used, 2);
	assert_memory_equal(out, "\1\2\0\0", 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(numbers_are_big_endian_both_ways),
		cmocka_unit_test(a_reader_ends_where_it_ends),
		cmocka_unit_test(what_is_left_is_not_whole),
		cmocka_unit_test(a_writer_ends_where_it_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
