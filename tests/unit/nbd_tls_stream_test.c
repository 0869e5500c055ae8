/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What goes over an NBD connection under TLS: all that goes without, in records of any size and
 * pieces of any size, until one side ends. "rule N" is reference/nbd.md's, names are proto.md's.
 */
#include "tests/unit/nbd_tls_rig.h"

#include <poll.h>
#include <signal.h>
#include <sys/stat.h>

static struct rig rig;
static char folder[64], keys[96];
static const struct manner mirror = {.user = "mirror", .key = KEY_1};
static const struct manner mirror_1_2 = {
	.priority = NORMAL ":-VERS-ALL:+VERS-TLS1.2", .user = "mirror", .key = KEY_1};

static int set_up(void **state)
{
	const struct bm_tls_options tls = {.psk = keys};

	strcpy(folder, "/tmp/nbd_tls_test.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(keys, sizeof(keys), "%s/keys", folder);
	write_text(folder, "keys", "mirror:" KEY_1 "\n");
	chmod(keys, 0600);
	rig_open(&rig, NULL);
	*state = &rig;
	return nbd_server_set_tls(rig.server, NBD_TLS_REQUIRE, &tls, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	remove_folder(folder);
	return 0;
}

static unsigned clients(void)
{
	return nbd_server_clients(rig.server, NULL, 0);
}

/*
 * What lies between a client and the server: hands on step bytes at a time in his direction, may
 * break one, and may lead to pipes.
 */
struct relay {
	int client, to_server, from_server;
	struct bm_watch up, down;
	size_t step, passed;
	size_t broken; /* which byte of those to the server; 0: none */
};

/* Whether so much as a relay reads at a time can be written: all is in one thread. */
static bool takes(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLOUT};

	return poll(&p, 1, 0) == 1;
}

static void relay_up(struct bm_watch *watch, uint32_t events)
{
	struct relay *r = bm_container(watch, struct relay, up);
	uint8_t bytes[65536];
	ssize_t n;

	(void)events;
	if (!takes(r->to_server))
		return;
	n = read(r->client, bytes, r->step < sizeof(bytes) ? r->step : sizeof(bytes));
	if (n <= 0) {
		bm_watch_set(rig.loop, watch, r->client, 0);
		if (r->to_server == r->from_server)
			shutdown(r->to_server, SHUT_WR);
		else
			close(r->to_server);
		return;
	}
	if (r->broken > r->passed && r->broken <= r->passed + (size_t)n)
		bytes[r->broken - r->passed - 1] ^= 1;
	r->passed += (size_t)n;
	n -= write(r->to_server, bytes, (size_t)n);
	assert_true(n == 0 || errno == EPIPE);
}

static void relay_down(struct bm_watch *watch, uint32_t events)
{
	struct relay *r = bm_container(watch, struct relay, down);
	uint8_t bytes[65536];
	ssize_t n;

	(void)events;
	if (!takes(r->client))
		return;
	n = read(r->from_server, bytes, sizeof(bytes));
	if (n <= 0) {
		bm_watch_set(rig.loop, watch, r->from_server, 0);
		shutdown(r->client, SHUT_WR);
		return;
	}
	n -= send(r->client, bytes, (size_t)n, MSG_NOSIGNAL);
	assert_true(n == 0 || errno == EPIPE); /* the last word may come too late */
}

static struct client relayed(struct relay *r, bool pipes, size_t step)
{
	int near[2], far[2], back[2];

	*r = (struct relay){.up.run = relay_up, .down.run = relay_down, .step = step};
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, near), 0);
	if (pipes) {
		assert_int_equal(pipe(far), 0);
		assert_int_equal(pipe(back), 0);
		assert_int_equal(nbd_server_accept_fd(rig.server, far[0], back[1]), 0);
	} else {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, far), 0);
		assert_int_equal(nbd_server_accept_fd(rig.server, far[0], far[0]), 0);
		back[0] = far[1];
	}
	r->client = near[0];
	r->to_server = far[1];
	r->from_server = back[0];
	bm_watch_set(rig.loop, &r->up, r->client, EPOLLIN);
	bm_watch_set(rig.loop, &r->down, r->from_server, EPOLLIN);
	return (struct client){.rig = &rig, .fd = near[1]};
}

static void relay_close(struct relay *r)
{
	bm_watch_set(rig.loop, &r->up, r->client, 0);
	bm_watch_set(rig.loop, &r->down, r->from_server, 0);
	close(r->client);
	close(r->from_server);
	turns(&rig, 5);
}

/* Requests */

static void long_and_ragged_requests_are_served(void **state)
{
	static const uint32_t lengths[] = {1, 16383, 16384, 16385, 65535, MIB + 1, 17 * MIB + 1};

	rig.slow.at_once = true;
	for (int newer = 0; newer < 2; newer++)
		for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
			struct bridge *b;
			struct client c = secured(*state, newer ? &mirror : &mirror_1_2, &b, "slow",
						  SIMPLE_REPLIES);

			request(&c, WRITE, 0, 1, 4097, lengths[i]);
			payload(&c, 4097, lengths[i]); /* the device compares */
			expect_simple(&c, 1, 0);
			request(&c, READ, 0, 2, 4097, lengths[i]);
			expect_simple(&c, 2, 0);
			expect_data(&c, 4097, lengths[i]);
			secure_close(&c, b);
		}
}

static void chunks_are_served(void **state)
{
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "slow", STRUCTURED_REPLIES);
	uint64_t got = 0;
	bool done = false;

	rig.slow.at_once = true;
	request(&c, READ, 0, 1, 100, 3 * MIB);
	while (!done) {
		struct chunk chunk = get_chunk_header(&c);
		uint64_t offset = get64(&c);

		assert_int_equal(chunk.type, DATA);
		expect_data(&c, offset, chunk.length - 8);
		got += chunk.length - 8;
		done = chunk.flags & DONE;
	}
	assert_int_equal(got, 3 * MIB);
	secure_close(&c, b);
}

/* rule 12: the data of a WRITE that is refused comes by TLS, too */
static void a_refused_write_is_drained(void **state)
{
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "small", STRUCTURED_REPLIES);

	for (unsigned i = 0; i < 4; i++) {
		request(&c, WRITE, 0, i, 0, i * MIB + 3);
		payload(&c, 0, i * MIB + 3);
		expect_error(&c, i, EPERM);
	}
	request(&c, WRITE, 0, 8, 1ull << 60, 70000);
	payload(&c, 0, 70000);
	request(&c, READ, 0, 9, 0, 512);
	expect_error(&c, 8, EPERM);
	expect_chunk(&c, 9, DATA, 8 + 512);
	secure_close(&c, b);
}

/* One record holds many requests: no event tells of the ones that were not taken at once. */
static void nothing_is_left_behind_in_a_record(void **state)
{
	enum { COUNT = 585 }; /* 16380 bytes */
	static uint8_t bytes[28 * COUNT];
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "slow", SIMPLE_REPLIES);
	uint8_t *at = bytes;
	unsigned done = 0;

	for (unsigned i = 0; i < COUNT; i++)
		at = pack_request(at, TRIM, 0, i, 0, 4096);
	put(&c, bytes, sizeof(bytes));
	turns(&rig, 20);
	assert_int_equal(rig.slow.count, 128);
	while (done < COUNT) {
		assert_true(rig.slow.count > 0);
		while (rig.slow.count) {
			slow_release(&rig.slow, false);
			done++;
		}
		turns(&rig, 20);
	}
	for (unsigned i = 0; i < COUNT; i++)
		expect_simple(&c, i, 0);
	secure_close(&c, b);
}

/* What TLS has received while the parser waited for memory is not lost either. */
static void what_comes_while_memory_is_out_is_served(void **state)
{
	enum { LAST = 16 };
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "slow", SIMPLE_REPLIES);

	for (unsigned i = 0; i < LAST; i++) { /* all the memory that a connection gets */
		request(&c, WRITE, 0, i, i * MIB, MIB);
		payload(&c, i * MIB, MIB);
	}
	for (unsigned i = LAST; i < LAST + 5; i++) {
		request(&c, WRITE, 0, i, i * MIB, 9999);
		payload(&c, i * MIB, 9999);
	}
	turns(&rig, 50);
	assert_int_equal(rig.slow.count, LAST);
	for (unsigned i = 0; i < LAST + 5; i++) {
		assert_true(rig.slow.count > 0);
		slow_release(&rig.slow, false);
		turns(&rig, 10);
		expect_simple(&c, i, 0);
	}
	secure_close(&c, b);
}

/* A server that sends to somebody who does not read waits, and does nothing meanwhile. */
static void a_client_that_does_not_read_is_waited_for(void **state)
{
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "slow", SIMPLE_REPLIES);

	rig.slow.at_once = true;
	for (unsigned i = 0; i < 12; i++)
		request(&c, READ, 0, i, i * MIB, MIB);
	turns(&rig, 50);
	bm_watch_set(rig.loop, &b->plain_watch, b->plain, 0);
	bm_watch_set(rig.loop, &b->secure_watch, b->secure, 0);
	turns(&rig, 50);
	assert_int_equal(bm_loop_turn(rig.loop, 0), 0);
	bridge_run(b);
	for (unsigned i = 0; i < 12; i++) {
		expect_simple(&c, i, 0);
		expect_data(&c, i * MIB, MIB);
	}
	secure_close(&c, b);
}

static void when_frozen(void *arg, const char *busy)
{
	assert_null(busy);
	*(bool *)arg = true;
}

static int pass_none(void *arg, int fd, const uint8_t *parcel, size_t length)
{
	(void)arg;
	(void)fd;
	(void)parcel;
	(void)length;
	fail();
	return 0;
}

/* Clients are handed over to another process but for those under TLS, who connect anew. */
static void who_cannot_be_handed_over_is_closed_between_requests(void **state)
{
	bool froze = false;
	struct bridge *b, *d;
	struct client c = secured(*state, &mirror, &b, "slow", EXTENDED_HEADERS),
		      choosing = new_secure_client(*state, &mirror, &d);

	request(&c, WRITE, 0, 1, 0, 4096);
	payload(&c, 0, 4096);
	turns(&rig, 10);
	assert_int_equal(nbd_server_freeze(rig.server, UINT32_MAX, when_frozen, &froze), 0);
	request(&c, WRITE, 0, 2, 0, 4096); /* not begun any more */
	payload(&c, 0, 4096);
	turns(&rig, 20);
	assert_int_equal(rig.slow.count, 1);
	assert_false(froze);
	slow_release(&rig.slow, false);
	expect_simple(&c, 1, 0);
	turns(&rig, 10);
	assert_true(froze);
	assert_int_equal(nbd_server_pass(rig.server, pass_none, NULL), 0);
	nbd_server_abandon(rig.server);
	expect_end(&c);
	expect_end(&choosing);
	assert_int_equal(rig.slow.bytes, 4096);
	secure_close(&c, b);
	secure_close(&choosing, d);
}

/* Pieces */

static void records_may_come_in_any_pieces(void **state)
{
	static const size_t steps[] = {1, 4, 5, 7, 1000, 16384, 65536};

	(void)state;
	rig.slow.at_once = true;
	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		uint32_t length = steps[i] < 8 ? 5000 : 2 * MIB;
		struct relay relay;
		struct client c = relayed(&relay, false, steps[i]);
		struct bridge *b;

		start(&c, 3);
		b = secure(&c, i % 2 ? &mirror : &mirror_1_2, NULL);
		go(&c, "slow");
		request(&c, WRITE, 0, 1, 3, length);
		payload(&c, 3, length);
		for (int turned = 0; rig.slow.bytes < length && turned < 100000; turned++)
			turn(&rig);
		expect_simple(&c, 1, 0);
		request(&c, READ, 0, 2, 3, length);
		for (int turned = 0; turned < 100; turned++)
			turn(&rig);
		expect_simple(&c, 2, 0);
		expect_data(&c, 3, length);
		rig.slow.bytes = 0;
		secure_close(&c, b);
		relay_close(&relay);
		assert_int_equal(clients(), 0);
	}
}

static void a_byte_that_was_changed_ends_it(void **state)
{
	struct relay relay;
	struct client c = relayed(&relay, false, 65536);
	struct bridge *b;

	(void)state;
	start(&c, 3);
	b = secure(&c, &mirror, NULL);
	go(&c, "slow");
	relay.broken = relay.passed + 40;
	request(&c, WRITE, 0, 1, 0, 16);
	payload(&c, 0, 16);
	expect_end(&c);
	assert_int_equal(rig.slow.count, 0);
	assert_int_equal(clients(), 0);
	secure_close(&c, b);
	relay_close(&relay);
}

/* --stdio */
static void pipes_do_as_well(void **state)
{
	struct relay relay;
	struct client c = relayed(&relay, true, 65536);
	struct bridge *b;

	(void)state;
	rig.slow.at_once = true;
	start(&c, 3);
	b = secure(&c, &mirror, NULL);
	go(&c, "slow");
	request(&c, READ, 0, 1, 0, 3 * MIB); /* more than a pipe holds */
	expect_simple(&c, 1, 0);
	expect_data(&c, 0, 3 * MIB);
	request(&c, DISC, 0, 2, 0, 0);
	expect_end(&c);
	assert_true(b->good_bye);
	secure_close(&c, b);
	close(relay.to_server);
	relay_close(&relay);
}

/* TLS's own messages in the midst of ours */

static void keys_may_be_changed(void **state)
{
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "", SIMPLE_REPLIES);

	for (unsigned i = 0; i < 6; i++) { /* GnuTLS takes 8 a second */
		assert_int_equal(gnutls_session_key_update(b->session, i % 2 ? GNUTLS_KU_PEER : 0),
				 0);
		request(&c, READ, 0, i, 0, 512 * i);
		expect_simple(&c, i, 0);
		for (unsigned k = 0; k < i; k++) {
			uint8_t bytes[512];

			get(&c, bytes, sizeof(bytes));
		}
	}
	secure_close(&c, b);
}

static void a_second_handshake_ends_it(void **state)
{
	struct bridge *b;
	struct client c = secured(*state, &mirror_1_2, &b, "", SIMPLE_REPLIES);

	assert_int_equal(gnutls_handshake(b->session), GNUTLS_E_AGAIN);
	turns(&rig, 10);
	assert_int_equal(clients(), 0);
	secure_close(&c, b);
}

/* Ends */

/* "Terminating the transmission phase": MUST close down the TLS session and then the connection */
static void disc_ends_tls_and_then_the_connection(void **state)
{
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "slow", STRUCTURED_REPLIES);

	request(&c, READ, 0, 1, 0, 70000);
	request(&c, DISC, 0, 2, 0, 0);
	turns(&rig, 10);
	slow_release(&rig.slow, false);
	expect_chunk(&c, 1, DATA, 8 + 70000);
	expect_end(&c);
	assert_true(b->good_bye);
	secure_close(&c, b);
}

static void abort_and_a_stop_say_goodbye_too(void **state)
{
	struct bridge *b, *d;
	struct client c = new_secure_client(*state, &mirror, &b), e;

	option(&c, ABORT, NULL, 0);
	assert_int_equal(final_reply(&c, ABORT), ACK);
	expect_end(&c);
	assert_true(b->good_bye);
	e = secured(*state, &mirror, &d, "", STRUCTURED_REPLIES);
	rig_stop(&rig);
	expect_end(&e);
	assert_true(d->good_bye);
	secure_close(&c, b);
	secure_close(&e, d);
}

/* close_notify from the client: he says no more, and still gets what he is owed. */
static void a_half_closed_client_gets_its_replies(void **state)
{
	struct bridge *b;
	struct client c = secured(*state, &mirror, &b, "slow", STRUCTURED_REPLIES);

	request(&c, READ, 0, 1, 0, 4096);
	request(&c, WRITE, 0, 2, 0, 4096);
	payload(&c, 0, 4095);
	shutdown(c.fd, SHUT_WR);
	turns(&rig, 10);
	slow_release(&rig.slow, false);
	expect_chunk(&c, 1, DATA, 8 + 4096);
	expect_end(&c);
	assert_int_equal(rig.slow.count, 0); /* a WRITE that was cut off is none */
	secure_close(&c, b);
}

static void a_client_may_vanish_at_any_moment(void **state)
{
	for (unsigned i = 0; i < 8; i++) {
		struct bridge *b;
		struct client c =
			secured(*state, i % 2 ? &mirror : &mirror_1_2, &b, "slow", SIMPLE_REPLIES);

		for (unsigned k = 0; k < 20; k++)
			request(&c, READ, 0, k, 0, MIB);
		if (i & 2)
			request(&c, WRITE, 0, 20, 0, 100);
		turns(&rig, 10);
		for (unsigned k = 0; i & 4 && k < 10; k++)
			slow_release(&rig.slow, false);
		turns(&rig, 10);
		close(c.fd);
		bridge_close(b); /* without a word */
		turns(&rig, 10);
		while (rig.slow.count) {
			slow_release(&rig.slow, false);
			turns(&rig, 1);
		}
		turns(&rig, 5);
		assert_int_equal(clients(), 0);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(long_and_ragged_requests_are_served),
		TEST(chunks_are_served),
		TEST(a_refused_write_is_drained),
		TEST(nothing_is_left_behind_in_a_record),
		TEST(what_comes_while_memory_is_out_is_served),
		TEST(a_client_that_does_not_read_is_waited_for),
		TEST(who_cannot_be_handed_over_is_closed_between_requests),
		TEST(records_may_come_in_any_pieces),
		TEST(a_byte_that_was_changed_ends_it),
		TEST(pipes_do_as_well),
		TEST(keys_may_be_changed),
		TEST(a_second_handshake_ends_it),
		TEST(disc_ends_tls_and_then_the_connection),
		TEST(abort_and_a_stop_say_goodbye_too),
		TEST(a_half_closed_client_gets_its_replies),
		TEST(a_client_may_vanish_at_any_moment),
	};

	signal(SIGPIPE, SIG_IGN); /* a relay may write to who has gone */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
