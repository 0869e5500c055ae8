/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Clients that go from one server to another (nbd-server/handover.c): with all that was negotiated,
 * with bytes that were read and not understood, in between requests; no request twice, none lost.
 * And what is packed, when it is cut off, or not what we write.
 */
#include "tests/unit/nbd_client.h"

#include <stdio.h>

#define MS      1000000ull
#define NAME    "3f2a9c0d11e84b7f9a51c0ffee5e5510"
#define SESSION UINT32_MAX /* its context's id */

enum { MOST = 16 };

/* Between two servers, as bytes. */
struct passed {
	int fd[MOST];
	size_t length[MOST];
	uint8_t *bytes[MOST];
	unsigned count;
};

static struct rig old, new;
static struct passed passed;
static const char *busy;
static bool froze;

static int set_up(void **state)
{
	const struct nbd_server_options options = {.max_requests = 4, .handshake_ns = 500 * MS};

	(void)state;
	rig_open(&old, &options);
	rig_open(&new, &options);
	new.slow.at_once = true;
	passed.count = 0;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	for (unsigned i = 0; i < passed.count; i++)
		free(passed.bytes[i]);
	if (!old.stopped)
		rig_close(&old);
	rig_close(&new);
	return 0;
}

static void when_frozen(void *arg, const char *who)
{
	(void)arg;
	busy = who;
	froze = true;
}

static void freeze(uint64_t limit)
{
	froze = false;
	assert_int_equal(nbd_server_freeze(old.server, limit, when_frozen, NULL), 0);
	assert_false(froze);
}

static int keep(void *arg, int fd, const uint8_t *bytes, size_t length)
{
	struct passed *p = arg;

	assert_true(p->count < MOST && length <= NBD_PARCEL);
	p->fd[p->count] = dup(fd);
	p->length[p->count] = length;
	p->bytes[p->count] = malloc(length); /* of that size: reading past it is seen */
	memcpy(p->bytes[p->count++], bytes, length);
	return 0;
}

/* The old server has frozen: what it has goes to the new one, and the old one ends. */
static void hand_over(unsigned clients)
{
	static uint8_t parcel[NBD_PARCEL];
	size_t length = nbd_server_pack(old.server, parcel);

	assert_true(froze && !busy && length);
	assert_int_equal(nbd_server_pass(old.server, keep, &passed), 0);
	assert_int_equal(nbd_server_freeze(new.server, 0, NULL, NULL), 0);
	assert_int_equal(nbd_server_unpack(new.server, parcel, length), clients);
	assert_int_equal(passed.count, clients);
	for (unsigned i = 0; i < clients; i++)
		assert_int_equal(nbd_server_take(new.server, passed.fd[i], passed.bytes[i],
						 passed.length[i]),
				 0);
	turns(&new, 5); /* nothing happens yet */
	nbd_server_abandon(old.server);
	rig_close(&old);
	nbd_server_thaw(new.server);
}

static void freeze_and_hand_over(unsigned clients)
{
	freeze(1000 * MS);
	turns(&old, 5);
	hand_over(clients);
}

/* It writes, reads, and asks its context. */
static void works(struct client *c)
{
	request(c, WRITE, 0, 7, 65536, 4096);
	payload(c, 65536, 4096);
	expect_simple(c, 7, 0);
	request(c, READ, 0, 8, 65536, 4096);
	if (c->structured) {
		struct chunk chunk = get_chunk_header(c);

		assert_int_equal(chunk.type, DATA);
		assert_int_equal(chunk.cookie, 8);
		get64(c);
	} else {
		expect_simple(c, 8, 0);
	}
	expect_data(c, 65536, 4096);
	if (!c->structured)
		return;
	request(c, STATUS, REQ_ONE, 9, 0, 4096);
	expect_chunk(c, 9, c->extended ? BLOCK_STATUS_EXT : BLOCK_STATUS,
		     c->extended ? 8 + 16 : 4 + 8);
}

static void every_mode(void **state)
{
	struct client c[MODES];
	struct nbd_client_info info[MODES + 1];

	(void)state;
	for (unsigned i = 0; i < MODES; i++) {
		c[i] = connected(&old, "", i);
		works(&c[i]);
	}
	freeze_and_hand_over(MODES);
	for (unsigned i = 0; i < MODES; i++) {
		c[i].rig = &new;
		works(&c[i]);
	}
	assert_int_equal(nbd_server_clients(new.server, info, MODES + 1), MODES);
	assert_int_equal(info[0].requests, 4);
	assert_int_equal(info[1].requests, 6);
	assert_int_equal(info[1].bytes_written, 8192);
	assert_string_equal(info[2].peer, "stdio");
	for (unsigned i = 0; i < MODES; i++)
		client_close(&c[i]);
}

/* From the first byte on. The time that it has for the handshake begins anew. */
static void in_the_handshake(void **state)
{
	struct client greeted = client_new(&old), started = client_new(&old),
		      chosen = client_new(&old), half = client_new(&old);
	uint8_t payload_bytes[8192], data[300];
	uint32_t id, length;
	unsigned found;

	(void)state;
	turns(&old, 5);
	start(&started, 3);
	start(&chosen, 3);
	option(&chosen, EXTENDED, NULL, 0);
	assert_int_equal(final_reply(&chosen, EXTENDED), ACK);
	assert_int_equal(meta(&chosen, SET_META, "", "base:allocation", &found, &id), ACK);
	start(&half, 3);
	put(&half, "IHAVE", 5);
	turns(&old, 5);
	freeze_and_hand_over(4);
	greeted.rig = started.rig = chosen.rig = half.rig = &new;
	start(&greeted, 3);
	go(&greeted, "");
	works(&greeted);
	go(&started, "");
	works(&started);
	chosen.structured = chosen.extended = true;
	go(&chosen, "");
	works(&chosen);
	put(&half, "OPT", 3);
	put32(&half, GO);
	put32(&half, (uint32_t)info_data(data, "small"));
	put(&half, data, info_data(data, "small"));
	while (option_reply(&half, GO, payload_bytes, &length) != ACK)
		;
	request(&half, WRITE, 0, 1, 0, 512); /* the export is read-only */
	payload(&half, 0, 512);
	expect_simple(&half, 1, 1);
	client_close(&greeted);
	client_close(&started);
	client_close(&chosen);
	client_close(&half);
}

static void silent_ones_are_sent_away(void **state)
{
	struct client c = client_new(&old);

	(void)state;
	turns(&old, 5);
	freeze_and_hand_over(1);
	c.rig = &new;
	start(&c, 3);
	expect_end(&c);
	client_close(&c);
}

/* Requests that came while others were in flight: each is carried out once, by one of the two. */
static void what_was_not_begun_goes_along(void **state)
{
	struct client c = connected(&old, "slow", STRUCTURED_REPLIES);

	(void)state;
	request(&c, WRITE, 0, 1, 0, 4096);
	payload(&c, 0, 4096);
	turns(&old, 5);
	assert_int_equal(old.slow.count, 1);
	freeze(1000 * MS);
	request(&c, WRITE, 0, 2, 8192, 4096); /* not read any more */
	payload(&c, 8192, 4096);
	turns(&old, 20);
	assert_int_equal(old.slow.count, 1);
	assert_false(froze);
	slow_release(&old.slow, false);
	turns(&old, 5);
	expect_simple(&c, 1, 0); /* it is answered before */
	assert_true(froze);
	hand_over(1);
	c.rig = &new;
	expect_simple(&c, 2, 0);
	assert_int_equal(new.slow.bytes, 4096);
	expect_silence(&c);
	client_close(&c);
}

/* All that one receive has brought: what is behind the request in flight is in the buffer. */
static void what_was_read_goes_along(void **state)
{
	struct client c = connected(&old, "slow", SIMPLE_REPLIES);
	uint8_t bytes[28 * 6 + 9], *at = bytes;

	(void)state;
	for (uint64_t i = 0; i < 7; i++) /* 4 may be in flight, the last one is cut off */
		at = i < 6 ? pack_request(at, READ, 0, i, i * 4096, 4096) : at;
	memset(at, 0, 9);
	memcpy(at, "\x25\x60\x95\x13\0\0\0\0\0", 9);
	put(&c, bytes, sizeof(bytes));
	turns(&old, 5);
	assert_int_equal(old.slow.count, 4);
	freeze(1000 * MS);
	while (old.slow.count)
		slow_release(&old.slow, false);
	turns(&old, 5);
	hand_over(1);
	c.rig = &new;
	for (uint64_t i = 0; i < 6; i++) {
		expect_simple(&c, i, 0);
		expect_data(&c, i * 4096, 4096);
	}
	assert_int_equal(new.slow.bytes, 2 * 4096);
	put(&c, "\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\x10\0", 19);
	expect_simple(&c, 7, 0);
	expect_data(&c, 0, 4096);
	client_close(&c);
}

/* Who is in the middle of something is named; then all goes on as if nothing had been. */
static void nobody_is_cut_in_two(void **state)
{
	struct client c = connected(&old, "", STRUCTURED_REPLIES), late = client_new(&old);

	(void)state;
	request(&c, WRITE, 0, 1, 0, 4096);
	payload(&c, 0, 1000);
	turns(&old, 5);
	freeze(50 * MS);
	for (int i = 0; i < 500 && !froze; i++)
		turn(&old);
	assert_true(froze);
	assert_string_equal(busy, "stdio");
	expect_silence(&c);
	nbd_server_thaw(old.server);
	payload(&c, 1000, 3096);
	expect_simple(&c, 1, 0);
	works(&c);
	start(&late, 3);
	go(&late, "");
	works(&late);
	client_close(&late);
	client_close(&c);
}

/* One that goes while the server freezes is not waited for for ever. */
static void who_goes_is_gone(void **state)
{
	struct client c = connected(&old, "slow", STRUCTURED_REPLIES),
		      stays = connected(&old, "", EXTENDED_HEADERS);

	(void)state;
	request(&c, READ, 0, 1, 0, 4096);
	turns(&old, 5);
	freeze(1000 * MS);
	close(c.fd);
	turns(&old, 5);
	assert_false(froze);
	slow_release(&old.slow, false);
	turns(&old, 5);
	assert_true(froze);
	nbd_server_thaw(old.server);
	turns(&old, 10);
	freeze(1000 * MS);
	turns(&old, 5);
	hand_over(1);
	stays.rig = &new;
	works(&stays);
	client_close(&stays);
}

static uint8_t *put_string(uint8_t *at, const char *text)
{
	uint32_t length = htobe32((uint32_t)strlen(text));

	memcpy(at, &length, 4);
	memcpy(at + 4, text, strlen(text));
	return at + 4 + strlen(text);
}

/* A client that has selected what query names, in the handshake. *id is the context's. */
static struct client selects(struct rig *rig, const char *export, const char *query, uint32_t *id)
{
	const uint32_t one = htobe32(1);
	struct client c = client_new(rig);
	uint8_t data[512], *at = put_string(data, export);
	uint32_t length;

	start(&c, 3);
	option(&c, SR, NULL, 0);
	assert_int_equal(final_reply(&c, SR), ACK);
	c.structured = true;
	memcpy(at, &one, 4);
	at = put_string(at + 4, query);
	option(&c, SET_META, data, (size_t)(at - data));
	assert_int_equal(option_reply(&c, SET_META, data, &length), REP_META);
	memcpy(id, data, 4);
	*id = be32toh(*id);
	assert_int_equal(final_reply(&c, SET_META), ACK);
	return c;
}

static const char *session_text(uint64_t epoch)
{
	static char text[128];

	snprintf(text, sizeof(text), "blockmirror:session:" NAME ":%016jx", (uintmax_t)epoch);
	return text;
}

/* Epochs that were seen are remembered, and a passed client still has its own. */
static void sessions_have_their_order(void **state)
{
	struct client c, older, newer;
	uint8_t data[300];
	uint32_t id;

	(void)state;
	c = selects(&old, "", session_text(20), &id);
	assert_int_equal(id, SESSION);
	go(&c, "");
	freeze_and_hand_over(1);
	c.rig = &new;
	works(&c);
	older = selects(&new, "", session_text(19), &id);
	option(&older, GO, data, info_data(data, ""));
	assert_true(final_reply(&older, GO) & 0x80000000u);
	works(&c);
	newer = selects(&new, "", session_text(21), &id);
	expect_end(&c);
	go(&newer, "");
	works(&newer);
	client_close(&c);
	client_close(&older);
	client_close(&newer);
}

/* Numbers of contexts are the old server's, whatever the new one would have given them. */
static void contexts_keep_their_numbers(void **state)
{
	struct client a, b;
	uint32_t id_a, id_b, id;
	const uint8_t *bytes;

	(void)state;
	assert_int_equal(nbd_server_add_context(old.server, "", "x:gone", old.mem, NULL), 0);
	assert_int_equal(nbd_server_add_context(old.server, "", "x:only-old", old.mem, NULL), 0);
	assert_int_equal(nbd_server_add_context(old.server, "", "x:both", old.mem, NULL), 0);
	nbd_server_remove_context(old.server, "", "x:gone");
	a = selects(&old, "", "x:both", &id_a);
	b = selects(&old, "", "x:only-old", &id_b);
	go(&a, "");
	go(&b, "");
	assert_int_equal(nbd_server_add_context(new.server, "", "x:only-new", new.mem, NULL), 0);
	assert_int_equal(nbd_server_add_context(new.server, "", "x:both", new.mem, NULL), 0);
	freeze_and_hand_over(2);
	a.rig = b.rig = &new;
	request(&a, STATUS, REQ_ONE, 1, 0, 4096);
	bytes = expect_chunk(&a, 1, BLOCK_STATUS, 4 + 8);
	memcpy(&id, bytes, 4);
	assert_int_equal(be32toh(id), id_a);
	request(&b, STATUS, REQ_ONE, 2, 0, 4096);
	expect_error(&b, 2, 22); /* as of any that went away */
	client_close(&b);
	b = selects(&new, "", "x:only-new", &id);
	assert_true(id != id_a && id != id_b);
	client_close(&a);
	client_close(&b);
}

/* A client that is passed counts as any other. */
static void limits_count_them(void **state)
{
	const struct nbd_export export = {.name = "one", .dev = new.order, .max_clients = 1};
	const struct nbd_export same = {.name = "one", .dev = old.order, .max_clients = 1};
	struct client c, second;
	uint8_t data[300];

	(void)state;
	assert_int_equal(nbd_server_add_export(old.server, &same, NULL), 0);
	assert_int_equal(nbd_server_add_export(new.server, &export, NULL), 0);
	c = connected(&old, "one", EXTENDED_HEADERS);
	freeze_and_hand_over(1);
	c.rig = &new;
	second = client_new(&new);
	start(&second, 3);
	option(&second, GO, data, info_data(data, "one"));
	assert_true(final_reply(&second, GO) & 0x80000000u);
	works(&c);
	client_close(&c);
	go(&second, "one");
	works(&second);
	client_close(&second);
}

/* Cut off anywhere, longer, of another version, for an export that is not there: refused, whole. */
static void what_is_not_ours_is_refused(void **state)
{
	static uint8_t parcel[NBD_PARCEL];
	struct client c;
	size_t length;
	uint32_t id;
	int fds[2];

	(void)state;
	c = selects(&old, "", session_text(20), &id);
	go(&c, "");
	put(&c, "half a header", 13);
	turns(&old, 5);
	freeze(1000 * MS);
	turns(&old, 5);
	length = nbd_server_pack(old.server, parcel);
	assert_int_equal(nbd_server_pass(old.server, keep, &passed), 0);
	close(passed.fd[0]);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	nbd_server_freeze(new.server, 0, NULL, NULL);
	for (size_t n = 0; n < passed.length[0]; n++)
		assert_int_equal(nbd_server_take(new.server, fds[0], passed.bytes[0], n), -EPROTO);
	for (size_t n = 0; n < length; n++)
		assert_int_equal(nbd_server_unpack(new.server, parcel, n), -EPROTO);
	assert_int_equal(nbd_server_unpack(new.server, parcel, length + 1), -EPROTO);
	passed.bytes[0][1] ^= 2;
	parcel[1] ^= 2;
	assert_int_equal(nbd_server_take(new.server, fds[0], passed.bytes[0], passed.length[0]),
			 -EPROTO);
	assert_int_equal(nbd_server_unpack(new.server, parcel, length), -EPROTO);
	assert_int_equal(nbd_server_clients(new.server, NULL, 0), 0);
	close(fds[0]);
	close(fds[1]);
	nbd_server_thaw(old.server);
	client_close(&c);
}

/* Any bit of it may be another one: it is refused, or it is a client that can be served. */
static void any_bit_may_be_wrong(void **state)
{
	static const uint8_t request_bytes[32];
	struct client c;
	unsigned taken = 0;
	uint32_t id;

	(void)state;
	c = selects(&old, "", session_text(20), &id);
	go(&c, "");
	put(&c, "half a header", 13);
	turns(&old, 5);
	freeze(1000 * MS);
	turns(&old, 5);
	assert_int_equal(nbd_server_pass(old.server, keep, &passed), 0);
	close(passed.fd[0]);
	for (size_t bit = 0; bit < 8 * passed.length[0]; bit++) {
		int fds[2];

		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
		passed.bytes[0][bit / 8] ^= (uint8_t)(1 << bit % 8);
		nbd_server_freeze(new.server, 0, NULL, NULL);
		if (nbd_server_take(new.server, fds[0], passed.bytes[0], passed.length[0]))
			close(fds[0]);
		else
			taken++;
		passed.bytes[0][bit / 8] ^= (uint8_t)(1 << bit % 8);
		nbd_server_thaw(new.server);
		send(fds[1], request_bytes, sizeof(request_bytes), MSG_NOSIGNAL);
		turns(&new, 3);
		close(fds[1]);
		turns(&new, 5);
		assert_int_equal(nbd_server_clients(new.server, NULL, 0), 0);
	}
	assert_true(taken > 100); /* peers, numbers, unread bytes */
	nbd_server_thaw(old.server);
	client_close(&c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_mode),
		TEST(in_the_handshake),
		TEST(silent_ones_are_sent_away),
		TEST(what_was_not_begun_goes_along),
		TEST(what_was_read_goes_along),
		TEST(nobody_is_cut_in_two),
		TEST(who_goes_is_gone),
		TEST(sessions_have_their_order),
		TEST(contexts_keep_their_numbers),
		TEST(limits_count_them),
		TEST(what_is_not_ours_is_refused),
		TEST(any_bit_may_be_wrong),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
