/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Extended headers, byte by byte: their negotiation, requests and replies of 32 bytes, payloads
 * that are announced, lengths of 64 bits, and BLOCK_STATUS of chosen contexts. Names are
 * proto.md's. What is the same in every session is tested in all of them by nbd_server_test and
 * nbd_load_test.
 */
#include "tests/unit/nbd_client.h"

#define TIB (1ull << 40)

/* A device of 8 TiB that does nothing but remember; its extents are as long as what is asked. */
struct far {
	struct bm_dev dev;
	struct bm_list held;
	struct bm_task task;
	enum bm_op op;
	uint64_t offset, length;
	unsigned count, answered;
	uint32_t flags;
};

static struct rig rig;
static struct far far, marks, others;

static void run(struct bm_task *task)
{
	struct far *f = bm_container(task, struct far, task);
	struct bm_list *node;

	while ((node = bm_list_take(&f->held))) {
		struct bm_request *rq = bm_container(node, struct bm_request, link);

		f->answered++;
		if (rq->op == BM_EXTENTS) {
			rq->extents->v[0] = (struct bm_extent){rq->length, f->flags};
			rq->extents->count = 1;
		}
		if (rq->op == BM_EXTENTS && rq->length > 4096 && rq->extents->room > 1) {
			rq->extents->v[0].length -= 4096;
			rq->extents->v[1] = (struct bm_extent){4096, f->flags ^ 1};
			rq->extents->count = 2;
		}
		rq->done(rq, 0);
	}
}

static void submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct far *f = bm_container(dev, struct far, dev);

	f->op = rq->op;
	f->offset = rq->offset;
	f->length = rq->length;
	f->count++;
	bm_list_append(&f->held, &rq->link);
	bm_loop_soon(dev->loop, &f->task);
}

static void far_open(struct far *f, uint32_t flags)
{
	static const struct bm_dev_ops ops = {.name = "far", .start = slow_start, .submit = submit};

	*f = (struct far){
		.dev = {.ops = &ops,
			.geometry = {.size = 8 * TIB,
				     .block = 1,
				     .max_transfer = MIB,
				     .max_zero = UINT64_MAX}},
		.task.run = run,
		.flags = flags,
	};
	bm_list_init(&f->held);
	bm_dev_start(&f->dev, rig.loop);
}

static int set_up(void **state)
{
	struct nbd_export export = {.name = "far", .dev = &far.dev};

	rig_open(&rig, NULL);
	far_open(&far, 2), far_open(&marks, 1), far_open(&others, 16);
	assert_int_equal(nbd_server_add_export(rig.server, &export, NULL), 0);
	assert_int_equal(nbd_server_add_context(rig.server, "far", "x:marks", &marks.dev, NULL), 0);
	assert_int_equal(nbd_server_add_context(rig.server, "far", "x:other", &others.dev, NULL),
			 0);
	*state = &rig;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	return 0;
}

/* Negotiation */

static void expect_reply(struct client *c, uint32_t number, uint32_t reply)
{
	option(c, number, NULL, 0);
	assert_int_equal(final_reply(c, number), reply);
}

/* NBD_OPT_EXTENDED_HEADERS: "takes precedence over structured replies" */
static void it_takes_precedence_over_structured_replies(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	expect_reply(&c, SR, ACK);
	expect_reply(&c, EXTENDED, ACK);
	expect_reply(&c, SR, EXT_REQD);
	expect_reply(&c, SR, EXT_REQD);
	expect_reply(&c, EXTENDED, ACK);
	go(&c, "");
	c.extended = c.structured = true;
	request(&c, FLUSH, 0, 5, 0, 0);
	expect_simple(&c, 5, 0);
	client_close(&c);
}

/* "a server SHOULD support this option even if structured replies are not negotiated" */
static void it_suffices_for_contexts(void **state)
{
	struct client c = connected(*state, "", EXTENDED_HEADERS);

	request(&c, STATUS, 0, 5, 0, 4096);
	expect_chunk(&c, 5, BLOCK_STATUS_EXT, 8 + 16);
	client_close(&c);
}

/* NBD_OPT_EXPORT_NAME: not after it; rule 6 */
static void export_name_is_forbidden_after_it(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	expect_reply(&c, EXTENDED, ACK);
	option(&c, EXPORT_NAME, "", 0);
	expect_end(&c);
	client_close(&c);
}

static uint16_t flags_of(struct client *c, uint32_t number, const char *name)
{
	uint8_t data[300], reply[8192];
	uint32_t type, length;
	uint16_t flags = 0;

	option(c, number, data, info_data(data, name));
	while ((type = option_reply(c, number, reply, &length)) == REP_INFO)
		if (reply[1] == 0)
			flags = (uint16_t)(reply[10] << 8 | reply[11]);
	assert_int_equal(type, ACK);
	return flags;
}

/* "Transmission flags": SEND_DF, and BLOCK_STATUS_PAYLOAD where it can be used; rule 10 */
static void flags_are_those_of_the_session(void **state)
{
	enum { SEND_DF = 1 << 7, BS_PAYLOAD = 1 << 12 };

	for (int selected = 0; selected <= 2; selected++) {
		struct client c = client_new(*state);
		unsigned found;
		uint32_t id;

		start(&c, 3);
		expect_reply(&c, SR, ACK);
		assert_int_equal(flags_of(&c, INFO, "") & (SEND_DF | BS_PAYLOAD), SEND_DF);
		expect_reply(&c, EXTENDED, ACK);
		if (selected)
			meta(&c, SET_META, selected == 1 ? "" : "slow", "base:allocation", &found,
			     &id);
		assert_int_equal(flags_of(&c, INFO, "") & (SEND_DF | BS_PAYLOAD),
				 SEND_DF | BS_PAYLOAD);
		assert_int_equal(flags_of(&c, GO, "") & (SEND_DF | BS_PAYLOAD),
				 SEND_DF | (selected == 1 ? BS_PAYLOAD : 0));
		client_close(&c);
	}
}

/* "Request message": the client MUST use the header that was negotiated */
static void the_other_header_ends_it(void **state)
{
	struct client c = connected(*state, "", EXTENDED_HEADERS);
	struct client d = connected(*state, "", STRUCTURED_REPLIES);
	uint8_t bytes[32] = {0};

	pack_request(bytes, FLUSH, 0, 1, 0, 0);
	put(&c, bytes, sizeof(bytes));
	expect_end(&c);
	extended_request(&d, FLUSH, 0, 1, 0, 0);
	expect_end(&d);
	client_close(&c), client_close(&d);
}

/* Replies */

/* "the server MUST NOT use simple replies even when there is no payload" */
static void every_reply_is_an_extended_chunk(void **state)
{
	static const unsigned types[] = {WRITE, FLUSH, TRIM, ZEROES, CACHE, READ};
	struct client c = connected(*state, "slow", EXTENDED_HEADERS);

	rig.slow.at_once = true;
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		uint64_t offset = types[i] == FLUSH ? 0 : 0x1001;
		uint32_t length = types[i] == FLUSH || types[i] == READ ? 0 : 512;
		struct chunk chunk;

		request(&c, types[i], FUA, ~0ull - i, offset, length);
		if (types[i] == WRITE)
			payload(&c, offset, length);
		chunk = get_chunk_header(&c);
		assert_int_equal(chunk.type, NONE);
		assert_int_equal(chunk.flags, DONE);
		assert_int_equal(chunk.cookie, ~0ull - i);
		assert_int_equal(chunk.offset, offset);
		assert_int_equal(chunk.length, 0);
	}
	client_close(&c);
}

/*
 * "offset … MUST match the offset of the client's request (even in … OFFSET_DATA where the payload
 * itself contains a different offset …)"
 */
static void the_offset_of_a_chunk_is_the_requests(void **state)
{
	struct client c = connected(*state, "slow", EXTENDED_HEADERS);
	uint64_t covered = 0, starts = 0;
	struct chunk chunk;
	uint8_t text[128];

	rig.slow.at_once = true;
	rig.slow.error = -EIO;
	rig.slow.fail_at = 3 * MIB;
	request(&c, READ, 0, 7, 512, 5 * MIB);
	do {
		uint64_t offset;

		chunk = get_chunk_header(&c);
		assert_int_equal(chunk.cookie, 7);
		assert_int_equal(chunk.offset, 512);
		if (chunk.type == ERROR_OFFSET) {
			assert_int_equal(get32(&c), EIO);
			get(&c, text, get16(&c));
			assert_int_equal(get64(&c), 3 * MIB);
			covered += MIB;
			continue;
		}
		assert_int_equal(chunk.type, DATA);
		offset = get64(&c);
		expect_data(&c, offset, chunk.length - 8);
		covered += chunk.length - 8;
		starts += offset == 512;
	} while (!(chunk.flags & DONE));
	assert_int_equal(covered, 5 * MIB);
	assert_int_equal(starts, 1);
	request(&c, READ, 0, 8, DISK, 512);
	chunk = get_chunk_header(&c);
	assert_int_equal(chunk.type, ERROR);
	assert_int_equal(chunk.offset, DISK);
	assert_int_equal(get32(&c), EINVAL);
	get(&c, text, get16(&c));
	client_close(&c);
}

/* Payloads */

static const struct refusal {
	const char *clause;
	unsigned type, flags;
	uint64_t offset, length;
	uint32_t payload, error;
} refusals[] = {
	{"WRITE: the flag MUST be set; without it there is no payload", WRITE, 0, 0, 512, 0,
	 EINVAL},
	{"WRITE of nothing without it", WRITE, 0, 0, 0, 0, EINVAL},
	{"WRITE without it, longer than any payload", WRITE, 0, 0, 1ull << 36, 0, EINVAL},
	{"READ with a payload", READ, PAYLOAD_LEN, 0, 512, 512, EINVAL},
	{"READ with a payload of nothing", READ, PAYLOAD_LEN, 0, 0, 0, EINVAL},
	{"FLUSH with a payload", FLUSH, PAYLOAD_LEN, 0, 1, 1, EINVAL},
	{"TRIM with a payload", TRIM, PAYLOAD_LEN, 0, 70000, 70000, EINVAL},
	{"CACHE with a payload", CACHE, PAYLOAD_LEN | FUA, 0, 31, 31, EINVAL},
	{"WRITE_ZEROES with a payload", ZEROES, PAYLOAD_LEN, 0, 8, 8, EINVAL},
	{"an unknown command with a payload", 77, PAYLOAD_LEN, 0, 3 * MIB, 3 * MIB, EINVAL},
	{"an unknown command without", 8, 0, 0, 1ull << 50, 0, EINVAL},
	{"an unknown flag on WRITE", WRITE, PAYLOAD_LEN | 64, 0, 4096, 4096, EINVAL},
	{"WRITE over the end", WRITE, PAYLOAD_LEN, 8 * TIB - 1, 2, 2, ENOSPC},
	{"WRITE whose end wraps", WRITE, PAYLOAD_LEN, ~0ull - 10, 4096, 4096, ENOSPC},
	{"READ of 2^64 - 1", READ, 0, 0, ~0ull, 0, EINVAL},
	{"READ of more than 64 MiB", READ, 0, 0, (64 << 20) + 1, 0, EOVERFLOW},
	{"READ of 4 GiB and a bit", READ, 0, 0, (1ull << 32) + 512, 0, EOVERFLOW},
	{"TRIM whose end wraps", TRIM, 0, 2, ~0ull, 0, EINVAL},
	{"TRIM whose end wraps to 0", TRIM, 0, TIB, ~0ull - TIB + 1, 0, EINVAL},
	{"TRIM over the end", TRIM, 0, 1, 8 * TIB, 0, EINVAL},
	{"WRITE_ZEROES over the end", ZEROES, 0, 0, 8 * TIB + 1, 0, ENOSPC},
	{"WRITE_ZEROES of 2^64 - 1", ZEROES, 0, 0, ~0ull, 0, ENOSPC},
	{"CACHE whose end wraps", CACHE, 0, ~0ull, 2, 0, EINVAL},
	{"BLOCK_STATUS over the end", STATUS, 0, 4, 8 * TIB, 0, EINVAL},
	{"FLUSH with a length beyond 32 bits", FLUSH, 0, 0, 1ull << 32, 0, EINVAL},
	{"DF on more than a chunk can hold", READ, DF, 0, MIB + 1, 0, EOVERFLOW},
};

/* "gracefully consume length bytes of payload … and proceed with the next client command" */
static void refusals_hit_one_request_alone(void **state)
{
	struct client c = connected(*state, "far", EXTENDED_HEADERS);

	for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++) {
		const struct refusal *r = &refusals[i];

		print_message("# %s\n", r->clause);
		extended_request(&c, r->type, r->flags, i, r->offset, r->length);
		payload(&c, 0, r->payload);
		expect_error(&c, i, r->error);
		extended_request(&c, TRIM, 0, 1000 + i, 0, 4096);
		expect_simple(&c, 1000 + i, 0);
		assert_int_equal(far.count, i + 1); /* nothing else reached the device */
	}
	client_close(&c);
}

/* "SHOULD initiate hard disconnect if … larger than … maximum payload"; we take more: rule 26 */
static void a_payload_that_is_too_long_ends_it(void **state)
{
	static const uint64_t lengths[] = {(64 << 20) + 1, 1ull << 32, 1ull << 63, ~0ull};

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct client c = connected(*state, "slow", EXTENDED_HEADERS);

		extended_request(&c, i % 2 ? WRITE : 77, PAYLOAD_LEN, 1, 0, lengths[i]);
		expect_end(&c);
		client_close(&c);
	}
}

static void payloads_of_64_mib_are_taken_or_dropped(void **state)
{
	struct client c = connected(*state, "slow", EXTENDED_HEADERS);

	rig.slow.at_once = true;
	extended_request(&c, WRITE, PAYLOAD_LEN, 1, 0, 64 * MIB);
	payload(&c, 0, 64 * MIB);
	expect_simple(&c, 1, 0);
	assert_int_equal(rig.slow.bytes, 64 * MIB);
	extended_request(&c, 99, PAYLOAD_LEN, 2, 0, 64 * MIB);
	payload(&c, 0, 64 * MIB);
	expect_error(&c, 2, EINVAL);
	assert_int_equal(rig.slow.bytes, 64 * MIB);
	client_close(&c);
}

/* A WRITE is whole before it is carried out, whatever becomes of the connection. */
static void a_payload_may_be_cut_off_anywhere(void **state)
{
	static const unsigned types[] = {WRITE, 77, STATUS};

	for (size_t i = 0; i < 3; i++) {
		struct client c = connected(*state, "far", EXTENDED_HEADERS);

		extended_request(&c, types[i], PAYLOAD_LEN, 1, 0, 12);
		put(&c, "\0\0\0\0\0", 5);
		shutdown(c.fd, SHUT_WR);
		expect_end(&c);
		assert_int_equal(far.count, 0);
		client_close(&c);
	}
}

/* "an effect length larger than the maximum payload size"; rule 21 */
static void lengths_of_64_bits_reach_the_device(void **state)
{
	static const struct {
		unsigned type;
		enum bm_op op;
	} kinds[] = {{TRIM, BM_TRIM}, {ZEROES, BM_ZERO}, {STATUS, BM_EXTENTS}};
	struct client c = connected(*state, "far", EXTENDED_HEADERS);

	for (size_t i = 0; i < 3; i++) {
		extended_request(&c, kinds[i].type, 0, i, 12345, 8 * TIB - 12345);
		if (kinds[i].type == STATUS)
			expect_chunk(&c, i, BLOCK_STATUS_EXT, 8 + 2 * 16);
		else
			expect_simple(&c, i, 0);
		assert_int_equal(far.op, kinds[i].op);
		assert_int_equal(far.offset, 12345);
		assert_int_equal(far.length, 8 * TIB - 12345);
	}
	extended_request(&c, CACHE, 0, 9, 0, 8 * TIB);
	expect_simple(&c, 9, 0);
	client_close(&c);
}

/* … and through the order device, which cuts them */
static void a_whole_disk_is_zeroed_in_one_request(void **state)
{
	struct client c = connected(*state, "", EXTENDED_HEADERS);

	request(&c, WRITE, 0, 1, 70 * MIB, 512);
	payload(&c, 70 * MIB, 512);
	expect_simple(&c, 1, 0);
	extended_request(&c, ZEROES, FUA, 2, 1, DISK - 1);
	expect_simple(&c, 2, 0);
	request(&c, READ, 0, 3, 70 * MIB, 512);
	assert_true(bm_is_zero(expect_chunk(&c, 3, DATA, 8 + 512) + 8, 512));
	client_close(&c);
}

/* BLOCK_STATUS */

enum { BASE_ID = 1 };

struct found {
	unsigned count;
	uint32_t id[8];
};

/* All contexts of export "far", by the order of their names in the server. */
static struct client asking(struct found *found)
{
	static const char data[] = "\0\0\0\3far\0\0\0\3\0\0\0\17base:allocation"
				   "\0\0\0\7x:marks\0\0\0\7x:other";
	struct client c = client_new(&rig);
	uint8_t reply[8192];
	uint32_t length;

	start(&c, 3);
	expect_reply(&c, EXTENDED, ACK);
	option(&c, SET_META, data, sizeof(data) - 1);
	for (found->count = 0; option_reply(&c, SET_META, reply, &length) == REP_META;
	     found->count++) {
		memcpy(&found->id[found->count], reply, 4);
		found->id[found->count] = be32toh(found->id[found->count]);
	}
	assert_int_equal(found->count, 3);
	assert_int_equal(found->id[0], BASE_ID);
	go(&c, "far");
	c.structured = c.extended = true;
	return c;
}

/* NBD_REPLY_TYPE_BLOCK_STATUS_EXT: id, count, 64 bits of length and of status each */
static void expect_extents(struct client *c, uint64_t cookie, uint32_t id, uint64_t length,
			   uint32_t flags, unsigned count, bool last)
{
	struct chunk chunk = get_chunk_header(c);

	assert_int_equal(chunk.type, BLOCK_STATUS_EXT);
	assert_int_equal(chunk.flags, last ? DONE : 0);
	assert_int_equal(chunk.cookie, cookie);
	assert_int_equal(chunk.length, 8 + 16 * count);
	assert_int_equal(get32(c), id);
	assert_int_equal(get32(c), count);
	assert_int_equal(get64(c), count > 1 ? length - 4096 : length);
	assert_int_equal(get64(c), flags);
	if (count > 1) {
		assert_int_equal(get64(c), 4096);
		assert_int_equal(get64(c), flags ^ 1);
	}
}

static void extents_have_64_bits(void **state)
{
	struct found f;
	struct client c = asking(&f);

	(void)state;
	extended_request(&c, STATUS, 0, 1, TIB, 5 * TIB);
	expect_extents(&c, 1, f.id[0], 5 * TIB, 2, 2, false);
	expect_extents(&c, 1, f.id[1], 5 * TIB, 1, 2, false);
	expect_extents(&c, 1, f.id[2], 5 * TIB, 16, 2, true);
	extended_request(&c, STATUS, REQ_ONE, 2, 0, 8 * TIB);
	expect_extents(&c, 2, f.id[0], 8 * TIB, 2, 1, false);
	expect_extents(&c, 2, f.id[1], 8 * TIB, 1, 1, false);
	expect_extents(&c, 2, f.id[2], 8 * TIB, 16, 1, true);
	extended_request(&c, STATUS, 0, 3, 8 * TIB - 1, 1); /* the same chunks for short ones */
	expect_extents(&c, 3, f.id[0], 1, 2, 1, false);
	expect_extents(&c, 3, f.id[1], 1, 1, 1, false);
	expect_extents(&c, 3, f.id[2], 1, 16, 1, true);
	client_close(&c);
}

static void query(struct client *c, unsigned flags, uint64_t cookie, uint64_t length,
		  const uint32_t *ids, unsigned count)
{
	extended_request(c, STATUS, PAYLOAD_LEN | flags, cookie, TIB, 8 + 4 * count);
	put64(c, length);
	for (unsigned i = 0; i < count; i++)
		put32(c, ids[i]);
}

/* NBD_FLAG_BLOCK_STATUS_PAYLOAD: "limit its replies to the metacontext id(s)" in the payload */
static void a_payload_chooses_contexts(void **state)
{
	struct found f;
	struct client c = asking(&f);

	(void)state;
	query(&c, 0, 1, 6 * TIB, (uint32_t[]){f.id[1]}, 1);
	expect_extents(&c, 1, f.id[1], 6 * TIB, 1, 2, true);
	assert_int_equal(far.count + others.count, 0); /* the others were not asked */
	query(&c, REQ_ONE | FUA, 2, 4096, (uint32_t[]){f.id[2], f.id[0]}, 2);
	expect_extents(&c, 2, f.id[0], 4096, 2, 1, false);
	expect_extents(&c, 2, f.id[2], 4096, 16, 1, true);
	query(&c, 0, 3, 512, (uint32_t[]){f.id[2], f.id[1], f.id[0]}, 3);
	for (unsigned i = 0; i < 3; i++)
		get_chunk_header(&c), get64(&c), get64(&c), get64(&c);
	extended_request(&c, STATUS, 0, 4, 0, 512); /* and without it all are there again */
	expect_extents(&c, 4, f.id[0], 512, 2, 1, false);
	expect_extents(&c, 4, f.id[1], 512, 1, 1, false);
	expect_extents(&c, 4, f.id[2], 512, 16, 1, true);
	client_close(&c);
}

/* "detects duplicate or unknown metacontext ids … MUST gracefully consume the client's payload" */
static void a_payload_that_chooses_wrongly_is_refused(void **state)
{
	struct found f;
	struct client c = asking(&f);
	const struct {
		const char *clause;
		uint64_t length;
		uint32_t ids[5];
		unsigned count;
	} bad[] = {
		{"no id", 512, {0}, 0},
		{"a duplicate", 512, {f.id[1], f.id[1]}, 2},
		{"a duplicate among others", 512, {f.id[1], f.id[0], f.id[1]}, 3},
		{"an id never given", 512, {f.id[2] + 1}, 1},
		{"id 0", 512, {0}, 1},
		{"one of them unknown", 512, {f.id[0], 99}, 2},
		{"more ids than contexts", 512, {f.id[0], f.id[1], f.id[2], f.id[0]}, 4},
		{"an effect length of nothing", 0, {f.id[0]}, 1},
		{"over the end", 7 * TIB + 1, {f.id[0]}, 1},
		{"an end that wraps", ~0ull, {f.id[0]}, 1},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		print_message("# %s\n", bad[i].clause);
		query(&c, 0, i, bad[i].length, bad[i].ids, bad[i].count);
		expect_error(&c, i, EINVAL);
		query(&c, 0, 100, 512, &f.id[1], 1);
		expect_extents(&c, 100, f.id[1], 512, 1, 1, true);
	}
	for (unsigned length = 1; length <= 23; length++) { /* not 8 + 4n, with n from 1 to 3 */
		if (length == 12 || length == 16 || length == 20)
			continue;
		extended_request(&c, STATUS, PAYLOAD_LEN, length, 0, length);
		put(&c, bm_zeros(), length);
		expect_error(&c, length, EINVAL);
	}
	assert_int_equal(far.count + others.count, 0);
	client_close(&c);
}

/* Nothing was selected: there is nothing to choose from. */
static void a_payload_needs_a_selection(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	expect_reply(&c, EXTENDED, ACK);
	go(&c, "far");
	c.structured = c.extended = true;
	query(&c, 0, 1, 512, (uint32_t[]){BASE_ID}, 1);
	expect_error(&c, 1, EINVAL);
	extended_request(&c, STATUS, 0, 2, 0, 512);
	expect_error(&c, 2, EINVAL);
	client_close(&c);
}

static void a_chosen_context_may_have_gone_away(void **state)
{
	struct found f;
	struct client c = asking(&f);

	(void)state;
	nbd_server_remove_context(rig.server, "far", "x:marks");
	query(&c, 0, 1, 512, (uint32_t[]){f.id[1]}, 1);
	expect_error(&c, 1, EINVAL);
	query(&c, 0, 2, 512, (uint32_t[]){f.id[2]}, 1); /* the others are as they were */
	expect_extents(&c, 2, f.id[2], 512, 16, 1, true);
	client_close(&c);
}

static void headers_and_payloads_may_come_byte_by_byte(void **state)
{
	struct found f;
	struct client c = asking(&f);
	uint8_t bytes[32 + 12 + 32 + 3] = "\x21\xe4\x1c\x71\0\x20\0\7\0\0\0\0\0\0\0\1";
	uint32_t id = htobe32(f.id[1]);

	(void)state;
	bytes[31] = 12;
	bytes[32 + 6] = 2; /* effect length 512 */
	memcpy(bytes + 40, &id, 4);
	memcpy(bytes + 44, "\x21\xe4\x1c\x71\0\x20\0\1\0\0\0\0\0\0\0\2", 16);
	bytes[44 + 31] = 3;
	for (size_t i = 0; i < 3; i++)
		bytes[76 + i] = pattern(i);
	for (size_t i = 0; i < sizeof(bytes); i++) {
		put(&c, bytes + i, 1);
		turns(&rig, 2);
	}
	expect_extents(&c, 1, f.id[1], 512, 1, 1, true);
	expect_simple(&c, 2, 0);
	assert_int_equal(far.op, BM_WRITE);
	assert_int_equal(far.length, 3);
	client_close(&c);
}

static void disc_is_understood_in_any_dress(void **state)
{
	struct client c = connected(*state, "slow", EXTENDED_HEADERS);

	request(&c, READ, 0, 1, 0, 4096);
	extended_request(&c, DISC, PAYLOAD_LEN, 2, ~0ull, ~0ull);
	expect_silence(&c);
	slow_release(&rig.slow, false);
	expect_chunk(&c, 1, DATA, 8 + 4096);
	expect_end(&c);
	client_close(&c);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(it_takes_precedence_over_structured_replies),
		TEST(it_suffices_for_contexts),
		TEST(export_name_is_forbidden_after_it),
		TEST(flags_are_those_of_the_session),
		TEST(the_other_header_ends_it),
		TEST(every_reply_is_an_extended_chunk),
		TEST(the_offset_of_a_chunk_is_the_requests),
		TEST(refusals_hit_one_request_alone),
		TEST(a_payload_that_is_too_long_ends_it),
		TEST(payloads_of_64_mib_are_taken_or_dropped),
		TEST(a_payload_may_be_cut_off_anywhere),
		TEST(lengths_of_64_bits_reach_the_device),
		TEST(a_whole_disk_is_zeroed_in_one_request),
		TEST(extents_have_64_bits),
		TEST(a_payload_chooses_contexts),
		TEST(a_payload_that_chooses_wrongly_is_refused),
		TEST(a_payload_needs_a_selection),
		TEST(a_chosen_context_may_have_gone_away),
		TEST(headers_and_payloads_may_come_byte_by_byte),
		TEST(disc_is_understood_in_any_dress),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
