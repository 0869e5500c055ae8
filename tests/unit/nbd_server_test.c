/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD server's transmission phase, byte by byte, and the metadata contexts it needs. "rule N"
 * is reference/nbd.md's, names are proto.md's.
 */
#include "tests/unit/nbd_client.h"

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

static void expect_pattern(const uint8_t *data, uint64_t offset, uint32_t length)
{
	bool same = true;

	for (uint32_t i = 0; i < length; i++)
		same &= data[i] == pattern(offset + i);
	assert_true(same);
}

/* A request with payload, where it has one, and its answer. */
static void expect_answer(struct client *c, unsigned type, unsigned flags, uint64_t offset,
			  uint32_t length, uint32_t error)
{
	static uint64_t cookie = 0x0123456789abcdef; /* opaque; rule 27 */

	request(c, type, flags, ++cookie, offset, length);
	if (type == WRITE)
		payload(c, offset, length);
	if (error) {
		expect_error(c, cookie, error);
	} else if (type != READ) {
		expect_simple(c, cookie, 0);
	} else if (!c->structured) {
		expect_simple(c, cookie, 0);
		expect_data(c, offset, length);
	} else if (!length) {
		expect_chunk(c, cookie, NONE, 0);
	} else {
		expect_pattern(expect_chunk(c, cookie, DATA, 8 + length) + 8, offset, length);
	}
}

/* Refusals */

enum { EINVAL_ = 22, ENOSPC_ = 28, EPERM_ = 1, EOVERFLOW_ = 75 };
#define FAR UINT64_MAX

static const struct refusal {
	const char *clause;
	unsigned type, flags;
	uint64_t offset;
	uint32_t length, error;
} refusals[] = {
	{"Error values: unknown command", 9, 0, 0, 0, EINVAL_},
	{"Error values: unknown command, length is no payload", 77, 0, 0, 1 << 30, EINVAL_},
	{"Error values: unknown command flag", READ, 0x8000, 0, 512, EINVAL_},
	{"Error values: unknown flag on WRITE, payload dropped", WRITE, 0x40, 0, 4096, EINVAL_},
	{"Command flags: DF on WRITE", WRITE, DF, 0, 512, EINVAL_},
	{"Command flags: NO_HOLE on WRITE", WRITE, NO_HOLE, 0, 512, EINVAL_},
	{"Command flags: NO_HOLE on TRIM", TRIM, NO_HOLE, 0, 512, EINVAL_},
	{"Command flags: REQ_ONE on READ", READ, REQ_ONE, 0, 512, EINVAL_},
	{"Command flags: FAST_ZERO on TRIM", TRIM, FAST_ZERO, 0, 512, EINVAL_},
	{"Command flags: DF on WRITE_ZEROES", ZEROES, DF, 0, 512, EINVAL_},
	{"Command flags: NO_HOLE on FLUSH", FLUSH, NO_HOLE, 0, 0, EINVAL_},
	{"Command flags: DF on BLOCK_STATUS", STATUS, DF, 0, 512, EINVAL_},
	{"Command flags: REQ_ONE on CACHE", CACHE, REQ_ONE, 0, 512, EINVAL_},
	{"PAYLOAD_LEN needs extended headers", WRITE, PAYLOAD_LEN, 0, 512, EINVAL_},
	{"NBD_CMD_FLUSH: offset MUST be zero", FLUSH, 0, 512, 0, EINVAL_},
	{"NBD_CMD_FLUSH: length MUST be zero", FLUSH, 0, 0, 512, EINVAL_},
	{"rule 11: READ behind the end", READ, 0, DISK, 1, EINVAL_},
	{"rule 11: READ over the end", READ, 0, DISK - 511, 512, EINVAL_},
	{"rule 11: READ whose end wraps", READ, 0, FAR - 511, 512, EINVAL_},
	{"rule 11: READ whose end wraps to 1", READ, 0, FAR, 2, EINVAL_},
	{"rule 11: WRITE whose end wraps", WRITE, 0, FAR - 4095, 8192, ENOSPC_},
	{"rule 11: TRIM whose end wraps", TRIM, 0, FAR - 100, UINT32_MAX, EINVAL_},
	{"rule 13: WRITE over the end", WRITE, 0, DISK - 512, 513, ENOSPC_},
	{"rule 13: WRITE behind the end", WRITE, FUA, 1ull << 63, 1, ENOSPC_},
	{"rule 13: WRITE_ZEROES over the end", ZEROES, 0, DISK - 512, 513, ENOSPC_},
	{"rule 13: WRITE_ZEROES, longest", ZEROES, 0, 0, UINT32_MAX, ENOSPC_},
	{"rule 13: TRIM over the end", TRIM, 0, DISK - 512, 513, EINVAL_},
	{"rule 13: CACHE over the end", CACHE, 0, DISK - 512, 513, EINVAL_},
	{"rule 13: BLOCK_STATUS over the end", STATUS, 0, DISK - 512, 513, EINVAL_},
	{"rule 18: BLOCK_STATUS of nothing", STATUS, 0, 0, 0, EINVAL_},
	{"rule 13: READ longer than we take", READ, 0, 0, (64 << 20) + 1, EOVERFLOW_},
	{"rule 18: nothing, behind the end", READ, 0, DISK + 1, 0, EINVAL_},
};

/* A refused request is answered, the next one is understood, and nothing was changed. */
static void refusals_hit_one_request_alone(void **state)
{
	for (enum mode mode = SIMPLE_REPLIES; mode < MODES; mode++) {
		struct client c = connected(*state, "slow", mode);

		rig.slow.at_once = true;
		for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
			const struct refusal *r = &refusals[i];

			if (mode == EXTENDED_HEADERS && r->flags == PAYLOAD_LEN)
				continue; /* there it is right */
			print_message("# %s\n", r->clause);
			expect_answer(&c, r->type, r->flags, r->offset, r->length, r->error);
			rig.slow.bytes = 0;
			expect_answer(&c, READ, 0, 512, 4096, 0);
			assert_int_equal(rig.slow.bytes,
					 4096); /* and nothing else reached the device */
		}
		client_close(&c);
	}
}

/* "Transmission flags": READ_ONLY: MUST error; "Error values": EPERM; rule 12 */
static void a_read_only_export_refuses_and_drops_payload(void **state)
{
	struct client c = connected(*state, "small", true);

	expect_answer(&c, WRITE, 0, 0, 300000, EPERM_);
	expect_answer(&c, WRITE, FUA, 512, 1, EPERM_);
	expect_answer(&c, TRIM, 0, 0, 512, EPERM_);
	expect_answer(&c, ZEROES, 0, 0, 512, EPERM_);
	expect_answer(&c, FLUSH, 0, 0, 0, 0);
	request(&c, READ, 0, 7, SMALL - 1, 1); /* the exact size; rule 25 */
	assert_int_equal(expect_chunk(&c, 7, DATA, 9)[8], 0);
	client_close(&c);
}

/* A WRITE of 65 MiB is more than we take: dropped, not a reason to disconnect; rule 26 */
static void a_payload_of_any_length_is_dropped(void **state)
{
	struct client c = connected(*state, "slow", false);

	expect_answer(&c, WRITE, 0, 0, 65 * MIB, EOVERFLOW_);
	assert_int_equal(rig.slow.bytes, 0);
	request(&c, DISC, 0, 0, 0, 0);
	expect_end(&c);
	client_close(&c);
}

static void a_wrong_request_magic_ends_it(void **state)
{
	struct client c = connected(*state, "", true);

	put(&c, "NBD request magic is something else", 28);
	expect_end(&c);
	client_close(&c);
}

/* Zero lengths: rule 18. Unaligned and large ones: rules 21, 25. */
static void every_length_and_offset_is_served(void **state)
{
	static const uint32_t lengths[] = {0, 1, 511, 512, 4097, 65536, MIB - 1, MIB, MIB + 14};
	static const uint64_t offsets[] = {0, 1, 4096, 1048575, 3 * MIB + 512, DISK - 2 * MIB};

	for (enum mode mode = SIMPLE_REPLIES; mode < MODES; mode++) {
		struct client c = connected(*state, "", mode);

		for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
			for (size_t j = 0; j < sizeof(offsets) / sizeof(offsets[0]); j++) {
				expect_answer(&c, WRITE, 0, offsets[j], lengths[i], 0);
				if (!c.structured || lengths[i] <= MIB)
					expect_answer(&c, READ, 0, offsets[j], lengths[i], 0);
			}
		expect_answer(&c, TRIM, 0, 0, 0, 0);
		expect_answer(&c, ZEROES, 0, DISK, 0, 0);
		expect_answer(&c, ZEROES, 0, 0, DISK, 0);
		expect_answer(&c, TRIM, FUA, 1, DISK - 1, 0);
		client_close(&c);
	}
}

/* "Ordering of messages and writes": not before it is durable: the device has to be told; rule 14
 */
static void fua_is_allowed_everywhere_and_reaches_the_device(void **state)
{
	struct client c = connected(*state, "slow", true);

	rig.slow.at_once = true;
	expect_answer(&c, WRITE, 0, 0, 512, 0);
	assert_int_equal(rig.slow.flags, 0);
	expect_answer(&c, WRITE, FUA, 0, 512, 0);
	assert_int_equal(rig.slow.flags, BM_FUA);
	expect_answer(&c, ZEROES, FUA | NO_HOLE, 0, 512, 0);
	assert_int_equal(rig.slow.flags, BM_FUA | BM_NO_HOLE);
	expect_answer(&c, TRIM, FUA, 0, 512, 0);
	assert_int_equal(rig.slow.flags, BM_FUA);
	expect_answer(&c, READ, FUA, 0, 512, 0);
	assert_int_equal(rig.slow.flags, 0);
	expect_answer(&c, FLUSH, FUA, 0, 0, 0);
	expect_answer(&c, CACHE, FUA, 0, 512, 0);
	client_close(&c);
}

/* FAST_ZERO is offered: where it is slow it fails with ENOTSUP and changes nothing; rule 15 */
static void fast_zero_is_quick_or_refused(void **state)
{
	struct client c = connected(*state, "", true);

	expect_answer(&c, WRITE, 0, 0, 8192, 0);
	rig.mem->geometry.flags &= ~BM_DEV_FAST_ZERO;
	expect_answer(&c, ZEROES, FAST_ZERO, 512, 4096, 95);
	expect_answer(&c, READ, 0, 512, 4096, 0);
	rig.mem->geometry.flags |= BM_DEV_FAST_ZERO;
	expect_answer(&c, ZEROES, FAST_ZERO, 512, 4096, 0);
	request(&c, READ, 0, 1, 512, 4096);
	assert_true(bm_is_zero(expect_chunk(&c, 1, DATA, 8 + 4096) + 8, 4096));
	client_close(&c);
}

/* "Error values"; rule 13: what the device says, in NBD's words */
static void device_errors_are_translated(void **state)
{
	static const struct {
		int device;
		uint32_t wire;
	} errors[] = {{-EIO, 5},      {-ENOSPC, 28}, {-EDQUOT, 28},     {-EFBIG, 28},
		      {-EPERM, 1},    {-EROFS, 1},   {-ESHUTDOWN, 108}, {-ENOMEM, 5},
		      {-ENOTCONN, 5}, {-ENOTSUP, 5}, {-EILSEQ, 5}};

	for (enum mode mode = SIMPLE_REPLIES; mode < MODES; mode++) {
		struct client c = connected(*state, "slow", mode);

		rig.slow.at_once = true;
		for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
			rig.slow.error = errors[i].device;
			expect_answer(&c, WRITE, 0, 0, 4096, errors[i].wire);
			expect_answer(&c, TRIM, 0, 0, 4096, errors[i].wire);
			expect_answer(&c, WRITE, 0, 4096, 4096, 0); /* not where it fails */
			if (!c.structured)
				expect_answer(&c, READ, 0, 0, 4096, errors[i].wire);
		}
		rig.slow.error = 0;
		client_close(&c);
	}
}

/* Metadata contexts; rule 8 */

static struct client haggling(struct rig *r)
{
	struct client c = client_new(r);

	start(&c, 3);
	option(&c, SR, NULL, 0);
	assert_int_equal(final_reply(&c, SR), ACK);
	c.structured = true;
	return c;
}

static void queries_select_what_they_name(void **state)
{
	static const struct {
		uint32_t option;
		const char *query; /* NULL: no query */
		unsigned found;
	} queries[] = {
		{LIST_META, NULL, 1},    /* 0 queries: all */
		{LIST_META, "base:", 1}, /* a wildcard in LIST */
		{LIST_META, "base:allocation", 1},
		{LIST_META, "base:other", 0},
		{LIST_META, "qemu:", 0}, /* unknown namespaces are ignored */
		{SET_META, NULL, 0},     /* 0 queries: none */
		{SET_META, "base:", 0},  /* selects nothing */
		{SET_META, "base:allocation", 1},
		{SET_META, "base:allocation2", 0},
		{SET_META, "x-y:z", 0},
	};
	struct client c = haggling(*state);

	for (size_t i = 0; i < sizeof(queries) / sizeof(queries[0]); i++) {
		unsigned found;
		uint32_t id = 1;

		assert_int_equal(meta(&c, queries[i].option, "", queries[i].query, &found, &id),
				 ACK);
		assert_int_equal(found, queries[i].found);
		if (queries[i].option == LIST_META)
			assert_int_equal(id, found ? 0 : 1); /* "SHOULD be set to zero" */
	}
	client_close(&c);
}

/* Ends the handshake, and asks for a block status, which needs a context. */
static void expect_context(struct client *c, const char *name, bool selected)
{
	go(c, name);
	request(c, STATUS, 0, 5, 0, 4096);
	if (selected)
		expect_chunk(c, 5, BLOCK_STATUS, 12);
	else
		expect_error(c, 5, EINVAL);
	client_close(c);
}

static void a_context_lasts_until_it_is_replaced(void **state)
{
	static const char broken[] = "\0\0\0\0\0\0\0\1\0\0\0\5base"; /* one byte is missing */
	static const char endless[] = "\0\0\0\0\377\377\377\377\0\0\0\5base:";
	struct client c;
	unsigned found;
	uint32_t id;

	for (int i = 0; i < 7; i++) {
		c = haggling(*state);
		assert_int_equal(meta(&c, SET_META, "", "base:allocation", &found, &id), ACK);
		if (i == 1) /* replaced by none */
			assert_int_equal(meta(&c, SET_META, "", NULL, &found, &id), ACK);
		if (i == 2) /* replaced even though it fails */
			assert_int_equal(meta(&c, SET_META, "no", "base:allocation", &found, &id),
					 UNKNOWN);
		if (i == 3) {
			option(&c, SET_META, broken, sizeof(broken) - 1);
			assert_int_equal(final_reply(&c, SET_META), INVALID);
		}
		if (i == 4) {
			option(&c, SET_META, endless, sizeof(endless) - 1);
			assert_int_equal(final_reply(&c, SET_META), INVALID);
		}
		if (i == 5) /* LIST_ changes nothing */
			assert_int_equal(meta(&c, LIST_META, "", "qemu:", &found, &id), ACK);
		/* 6: GO with another export drops it */
		expect_context(&c, i == 6 ? "small" : "", i == 0 || i == 5);
	}
	c = haggling(*state);
	expect_context(&c, "", false); /* never selected */
}

/* BLOCK_STATUS */

struct extents {
	unsigned count;
	uint32_t length[64], flags[64];
	uint64_t sum;
};

static struct extents status(struct client *c, unsigned flags, uint64_t offset, uint32_t length)
{
	struct extents x = {0};
	struct chunk chunk;

	request(c, STATUS, flags, 3, offset, length);
	chunk = get_chunk_header(c);
	assert_int_equal(chunk.type, BLOCK_STATUS);
	assert_int_equal(chunk.flags, DONE);
	assert_int_equal(chunk.length % 8, 4);
	assert_int_equal(get32(c), 1); /* the context's id, as SET_META_CONTEXT told it */
	x.count = (chunk.length - 4) / 8;
	assert_true(x.count > 0 && x.count <= 64);
	for (unsigned i = 0; i < x.count; i++) {
		x.length[i] = get32(c);
		x.flags[i] = get32(c);
		x.sum += x.length[i];
		assert_true(x.length[i] > 0);
		assert_true(!i || x.flags[i] != x.flags[i - 1]); /* "SHOULD use different status" */
	}
	assert_true(x.sum <= length);
	return x;
}

/* rule 20 */
static void block_status_tells_holes_from_data(void **state)
{
	struct client c = connected(*state, "", true);
	struct extents x;

	expect_answer(&c, WRITE, 0, 65536, 8192, 0);
	x = status(&c, 0, 0, MIB);
	assert_int_equal(x.count, 3);
	assert_int_equal(x.length[0], 65536);
	assert_int_equal(x.flags[0], 3); /* NBD_STATE_HOLE, NBD_STATE_ZERO */
	assert_int_equal(x.length[1], 8192);
	assert_int_equal(x.flags[1], 0);
	assert_int_equal(x.length[2], MIB - 65536 - 8192);
	assert_int_equal(x.sum, MIB);
	x = status(&c, 0, 65537, 100); /* any offset and length */
	assert_int_equal(x.count, 1);
	assert_int_equal(x.length[0], 100);
	assert_int_equal(x.flags[0], 0);
	x = status(&c, REQ_ONE, 0, MIB); /* exactly one */
	assert_int_equal(x.count, 1);
	assert_int_equal(x.length[0], 65536);
	x = status(&c, FUA | REQ_ONE, DISK - 1, 1);
	assert_int_equal(x.sum, 1);
	client_close(&c);
}

/* Metadata contexts: "SHOULD reply … with EINVAL" to those who did not select one */
static void block_status_needs_a_context(void **state)
{
	struct client c = connected(*state, "", false);

	expect_answer(&c, STATUS, 0, 0, 4096, EINVAL_);
	client_close(&c);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(refusals_hit_one_request_alone),
		TEST(a_read_only_export_refuses_and_drops_payload),
		TEST(a_payload_of_any_length_is_dropped),
		TEST(a_wrong_request_magic_ends_it),
		TEST(every_length_and_offset_is_served),
		TEST(fua_is_allowed_everywhere_and_reaches_the_device),
		TEST(fast_zero_is_quick_or_refused),
		TEST(device_errors_are_translated),
		TEST(queries_select_what_they_name),
		TEST(a_context_lasts_until_it_is_replaced),
		TEST(block_status_tells_holes_from_data),
		TEST(block_status_needs_a_context),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
