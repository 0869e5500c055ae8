/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sessions of the NBD server (docs/nbd.md): what an earlier session of a writer had in flight, or
 * had sent and was not read yet, never lands after what a later one has written.
 */
#include "tests/unit/nbd_client.h"

#include <stdio.h>

#define POLICY  0x80000002u
#define SESSION UINT32_MAX /* its context's id */
#define NAME    "3f2a9c0d11e84b7f9a51c0ffee5e5510"
#define MS      1000000ull

static struct rig rig;

/* One request at a time, so that a second one is sent and not read. */
static int set_up_with(void **state, uint64_t handshake_ns)
{
	const struct nbd_server_options options = {.max_requests = 1, .handshake_ns = handshake_ns};

	rig_open(&rig, &options);
	*state = &rig;
	return 0;
}

static int set_up(void **state)
{
	return set_up_with(state, 60000 * MS);
}

static int set_up_hurried(void **state)
{
	return set_up_with(state, 300 * MS);
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	return 0;
}

static uint8_t *put_string(uint8_t *at, const char *text)
{
	uint32_t length = htobe32((uint32_t)strlen(text));

	memcpy(at, &length, 4);
	memcpy(at + 4, text, strlen(text));
	return at + 4 + strlen(text);
}

/* SET_META_CONTEXT of base:allocation and query. Whether query was answered by a context. */
static bool select_contexts(struct client *c, const char *export, const char *query)
{
	const uint32_t two = htobe32(2);
	uint8_t data[512], *at = put_string(data, export);
	uint32_t length, type, id;
	bool session = false;

	memcpy(at, &two, 4);
	at = put_string(put_string(at + 4, "base:allocation"), query);
	option(c, SET_META, data, (size_t)(at - data));
	while ((type = option_reply(c, SET_META, data, &length)) == REP_META) {
		memcpy(&id, data, 4);
		if (be32toh(id) != SESSION)
			continue;
		assert_false(session);
		assert_int_equal(length, 4 + strlen(query));
		assert_memory_equal(data + 4, query, strlen(query)); /* the same name, as is due */
		session = true;
	}
	assert_int_equal(type, ACK);
	return session;
}

static struct client hello(void **state)
{
	struct client c = client_new(*state);

	start(&c, 3);
	option(&c, SR, NULL, 0);
	assert_int_equal(final_reply(&c, SR), ACK);
	c.structured = true;
	return c;
}

static const char *session_text(const char *name, uint64_t epoch)
{
	static char text[128];

	snprintf(text, sizeof(text), "blockmirror:session:%s:%016jx", name, (uintmax_t)epoch);
	return text;
}

/* A client of a session, in the handshake. epoch 0: of none. */
static struct client comer(void **state, const char *export, uint64_t epoch)
{
	struct client c = hello(state);

	if (epoch)
		assert_true(select_contexts(&c, export, session_text(NAME, epoch)));
	return c;
}

static void ask_go(struct client *c, const char *export)
{
	uint8_t data[300];

	option(c, GO, data, info_data(data, export));
}

static struct client member(void **state, const char *export, uint64_t epoch)
{
	struct client c = comer(state, export, epoch);

	ask_go(&c, export);
	assert_int_equal(final_reply(&c, GO), ACK);
	return c;
}

static void write_block(struct client *c, uint64_t cookie, uint64_t offset)
{
	request(c, WRITE, 0, cookie, offset, 4096);
	payload(c, offset, 4096);
	turns(&rig, 5);
}

/* The offset of the last request that the device was given. */
static uint64_t last_at_device(void)
{
	assert_true(rig.slow.count > 0);
	return bm_container(rig.slow.held.prev, struct bm_request, link)->offset;
}

enum { FIRST = 0, AGAIN = 8192 };

/* One write is at the device, one more in the socket, and the client is gone. */
static void leave_a_write_behind(struct client *old)
{
	write_block(old, 1, FIRST);
	write_block(old, 2, AGAIN);
	assert_int_equal(rig.slow.count, 1);
	assert_int_equal(last_at_device(), FIRST);
	client_close(old);
	assert_int_equal(rig.slow.count, 1);
}

/* What sessions are for: here is what happens without them. */
static void without_sessions_an_old_write_lands_after_a_new_one(void **state)
{
	struct client old = member(state, "slow", 0), new;

	leave_a_write_behind(&old);
	new = member(state, "slow", 0);
	write_block(&new, 1, AGAIN); /* the same block, anew … */
	slow_release(&rig.slow, true);
	expect_simple(&new, 1, 0); /* … is written */
	slow_release(&rig.slow, false);
	turns(&rig, 5);
	assert_int_equal(last_at_device(), AGAIN); /* and then the old one comes */
	slow_release(&rig.slow, false);
	client_close(&new);
}

static void a_new_session_waits_until_the_old_one_has_ended_in_the_device(void **state)
{
	struct client old = member(state, "slow", 1), new;

	leave_a_write_behind(&old);
	new = comer(state, "slow", 2);
	ask_go(&new, "slow");
	expect_silence(&new);
	assert_int_equal(bm_loop_turn(rig.loop, 0), 0); /* and the loop sleeps */
	slow_release(&rig.slow, false);
	assert_int_equal(final_reply(&new, GO), ACK);
	write_block(&new, 1, AGAIN);
	slow_release(&rig.slow, false);
	expect_simple(&new, 1, 0);
	turns(&rig, 20);
	assert_int_equal(rig.slow.count, 0); /* what was not read then never will be */
	client_close(&new);
}

/* The old client is still there, as far as the server can see: its path is cut. */
static void an_old_session_is_closed_as_soon_as_a_new_one_is_heard_of(void **state)
{
	struct client idle = member(state, "slow", 1), busy = member(state, "slow", 1), new;

	write_block(&busy, 1, FIRST);
	write_block(&busy, 2, AGAIN);
	new = comer(state, "slow", 2);
	expect_end(&idle), expect_end(&busy);
	slow_release(&rig.slow, false);
	turns(&rig, 20);
	assert_int_equal(rig.slow.count, 0);
	ask_go(&new, "slow");
	assert_int_equal(final_reply(&new, GO), ACK);
	client_close(&idle), client_close(&busy), client_close(&new);
}

static void every_connection_of_the_old_session_is_waited_for(void **state)
{
	enum { MANY = 3 };
	struct client old[MANY], new;

	for (int i = 0; i < MANY; i++) {
		old[i] = member(state, "slow", 7);
		write_block(&old[i], 1, (uint64_t)i * 4096);
	}
	new = comer(state, "slow", 8);
	ask_go(&new, "slow");
	for (int i = 0; i < MANY; i++) {
		expect_silence(&new);
		slow_release(&rig.slow, i % 2);
	}
	assert_int_equal(final_reply(&new, GO), ACK);
	for (int i = 0; i < MANY; i++)
		client_close(&old[i]);
	client_close(&new);
}

static void connections_of_one_epoch_are_one_session(void **state)
{
	struct client a = member(state, "slow", 5), b;

	write_block(&a, 1, FIRST);
	b = member(state, "slow", 5); /* at once */
	write_block(&b, 1, AGAIN);
	slow_release(&rig.slow, false), slow_release(&rig.slow, false);
	expect_simple(&a, 1, 0), expect_simple(&b, 1, 0);
	client_close(&a), client_close(&b);
}

static void an_older_session_than_was_ever_seen_is_refused(void **state)
{
	struct client c = member(state, "slow", 5), late;

	late = comer(state, "slow", 4);
	ask_go(&late, "slow");
	assert_int_equal(final_reply(&late, GO), POLICY);
	option(&late, EXPORT_NAME, "slow", 4);
	expect_end(&late);
	client_close(&late);
	request(&c, CACHE, 0, 1, 0, 4096); /* who is in it was not disturbed */
	expect_simple(&c, 1, 0);
	client_close(&c);
	late = comer(state, "slow", 4); /* also when nobody is there any more */
	ask_go(&late, "slow");
	assert_int_equal(final_reply(&late, GO), POLICY);
	client_close(&late);
	c = member(state, "slow", 5);
	client_close(&c);
}

/* It has nothing in flight, and never will. */
static void an_old_one_in_the_handshake_holds_nobody_up(void **state)
{
	struct client c = member(state, "slow", 5), late = comer(state, "slow", 4), more;

	more = member(state, "slow", 5);
	client_close(&c), client_close(&late), client_close(&more);
}

static void one_that_waits_gives_way_to_a_newer_one(void **state)
{
	struct client old = member(state, "slow", 1), second, third;

	write_block(&old, 1, FIRST);
	second = comer(state, "slow", 2);
	ask_go(&second, "slow");
	third = comer(state, "slow", 3);
	expect_end(&second);
	ask_go(&third, "slow");
	expect_silence(&third);
	slow_release(&rig.slow, false);
	assert_int_equal(final_reply(&third, GO), ACK);
	client_close(&old), client_close(&second), client_close(&third);
}

/* A device that hangs is waited for as long as a handshake may take, again and again. */
static void the_wait_is_part_of_the_handshake(void **state)
{
	struct client old = member(state, "slow", 1), new;

	write_block(&old, 1, FIRST);
	client_close(&old);
	for (uint64_t epoch = 2; epoch < 4; epoch++) {
		new = comer(state, "slow", epoch);
		ask_go(&new, "slow");
		expect_end(&new);
		client_close(&new);
	}
	slow_release(&rig.slow, false);
	new = member(state, "slow", 4);
	client_close(&new);
}

static void exports_and_names_tell_sessions_apart(void **state)
{
	struct client a = member(state, "slow", 9), b = member(state, "", 3), c = hello(state);

	write_block(&a, 1, FIRST);
	assert_true(select_contexts(&c, "slow", session_text("another-NAME", 99)));
	ask_go(&c, "slow");
	assert_int_equal(final_reply(&c, GO), ACK);
	slow_release(&rig.slow, false);
	expect_simple(&a, 1, 0);
	request(&b, CACHE, 0, 1, 0, 4096);
	expect_simple(&b, 1, 0);
	client_close(&a), client_close(&b), client_close(&c);
}

/* What was selected for another export is void, and so is the session. */
static void a_session_belongs_to_the_export_that_was_named(void **state)
{
	struct client a = comer(state, "", 1), b;

	ask_go(&a, "slow");
	assert_int_equal(final_reply(&a, GO), ACK);
	b = comer(state, "", 2);
	request(&a, CACHE, 0, 1, 0, 4096);
	expect_simple(&a, 1, 0);
	client_close(&a), client_close(&b);
}

/* "SET replaces": a client that selects again is of the session that it names then, or of none. */
static void selecting_again_is_leaving(void **state)
{
	struct client a = comer(state, "slow", 1), b;

	assert_false(select_contexts(&a, "slow", "base:nothing"));
	ask_go(&a, "slow");
	assert_int_equal(final_reply(&a, GO), ACK);
	b = member(state, "slow", 2);
	request(&a, CACHE, 0, 1, 0, 4096);
	expect_simple(&a, 1, 0);
	client_close(&a), client_close(&b);
}

static void what_is_no_session_names_nothing(void **state)
{
	static const char *const queries[] = {
		"blockmirror:session:",
		"blockmirror:session:0000000000000001",
		"blockmirror:session::0000000000000001",
		"blockmirror:session:a:000000000000001",
		"blockmirror:session:a:00000000000000001",
		"blockmirror:session:a:000000000000000A",
		"blockmirror:session:a:000000000000000g",
		"blockmirror:session:a.000000000000000a",
		"blockmirror:session:a b:0000000000000001",
		"blockmirror:session:a:b:0000000000000001",
		"blockmirror:session:a\xff:0000000000000001",
		"blockmirror:sessions:a:0000000000000001",
		"blockmirror:session:"
		"0123456789012345678901234567890123456789012345678901234567890123x"
		":0000000000000001",
	};
	struct client c = hello(state);

	for (size_t i = 0; i < sizeof(queries) / sizeof(queries[0]); i++)
		assert_false(select_contexts(&c, "slow", queries[i]));
	assert_true(select_contexts(&c, "slow", session_text("a", UINT64_MAX)));
	assert_true(select_contexts(
		&c, "slow",
		session_text("0123456789012345678901234567890123456789012345678901234567890123",
			     0x0123456789abcdef)));
	client_close(&c);
}

/* As any context: one chunk each. Of a session there is nothing to tell. */
static void block_status_has_a_chunk_for_it(void **state)
{
	struct client c = member(state, "slow", 1);
	struct bm_request *rq;
	struct chunk chunk;

	request(&c, STATUS, 0, 1, 4096, 65536);
	chunk = get_chunk_header(&c); /* needs no device */
	assert_int_equal(chunk.type, BLOCK_STATUS);
	assert_int_equal(chunk.flags, 0);
	assert_int_equal(chunk.length, 12);
	assert_int_equal(get32(&c), SESSION);
	assert_int_equal(get32(&c), 65536);
	assert_int_equal(get32(&c), 0);
	assert_int_equal(rig.slow.count, 1);
	rq = bm_container(rig.slow.held.next, struct bm_request, link);
	rq->extents->count = 1;
	rq->extents->v[0] = (struct bm_extent){.length = 65536, .flags = 3};
	slow_release(&rig.slow, false);
	chunk = get_chunk_header(&c);
	assert_int_equal(chunk.type, BLOCK_STATUS);
	assert_int_equal(chunk.flags, DONE);
	assert_int_equal(chunk.length, 12);
	assert_int_equal(get32(&c), 1);
	assert_int_equal(get32(&c), 65536);
	assert_int_equal(get32(&c), 3);
	client_close(&c);
}

/* There is room for so many: those with connections keep it, the others are forgotten, in order. */
static void sessions_are_remembered_as_long_as_there_is_room(void **state)
{
	enum { ROOM = 64 };
	struct client c[ROOM], more;
	char name[32];

	for (int i = 0; i < ROOM; i++) {
		snprintf(name, sizeof(name), "writer-%d", i);
		c[i] = hello(state);
		assert_true(select_contexts(&c[i], "slow", session_text(name, 10)));
		ask_go(&c[i], "slow");
		assert_int_equal(final_reply(&c[i], GO), ACK);
	}
	more = hello(state); /* as a server would that does not know sessions */
	assert_false(select_contexts(&more, "slow", session_text("one-more", 10)));
	client_close(&c[7]), client_close(&c[3]);
	assert_true(select_contexts(&more, "slow", session_text("one-more", 10)));
	client_close(&more);
	more = hello(state); /* writer-7 had to go for it, writer-3 had not */
	assert_true(select_contexts(&more, "slow", session_text("writer-3", 9)));
	ask_go(&more, "slow");
	assert_int_equal(final_reply(&more, GO), POLICY);
	client_close(&more);
	for (int i = 0; i < ROOM; i++)
		if (i != 7 && i != 3)
			client_close(&c[i]);
}

/* Stopping does not wait for who waits. */
static void a_server_that_stops_drops_who_waits(void **state)
{
	struct client old = member(state, "slow", 1), new;

	write_block(&old, 1, FIRST);
	new = comer(state, "slow", 2);
	ask_go(&new, "slow");
	turns(&rig, 5);
	rig_stop(&rig);
	expect_end(&new);
	slow_release(&rig.slow, false);
	client_close(&old), client_close(&new);
}

int main(void)
{
#define TEST(name)         cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_HURRIED(name) cmocka_unit_test_setup_teardown(name, set_up_hurried, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(without_sessions_an_old_write_lands_after_a_new_one),
		TEST(a_new_session_waits_until_the_old_one_has_ended_in_the_device),
		TEST(an_old_session_is_closed_as_soon_as_a_new_one_is_heard_of),
		TEST(every_connection_of_the_old_session_is_waited_for),
		TEST(connections_of_one_epoch_are_one_session),
		TEST(an_older_session_than_was_ever_seen_is_refused),
		TEST(an_old_one_in_the_handshake_holds_nobody_up),
		TEST(one_that_waits_gives_way_to_a_newer_one),
		TEST_HURRIED(the_wait_is_part_of_the_handshake),
		TEST(exports_and_names_tell_sessions_apart),
		TEST(a_session_belongs_to_the_export_that_was_named),
		TEST(selecting_again_is_leaving),
		TEST(what_is_no_session_names_nothing),
		TEST(block_status_has_a_chunk_for_it),
		TEST(sessions_are_remembered_as_long_as_there_is_room),
		TEST(a_server_that_stops_drops_who_waits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
