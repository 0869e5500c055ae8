/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD server under load: many requests, clients that do not read, and the limits that hold all
 * the while.
 */
#include "tests/unit/nbd_client.h"

enum { BUDGET = 16 * MIB, REQUESTS = 128 };

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

/* Sends as much as the server takes. */
static size_t put_some(struct client *c, const uint8_t *bytes, size_t length)
{
	size_t done = 0;

	for (int idle = 0; idle < 10 && done < length; idle++) {
		ssize_t n = send(c->fd, bytes + done, length - done, MSG_DONTWAIT);

		if (n > 0) {
			done += (size_t)n;
			idle = 0;
		}
		turns(&rig, 2);
	}
	return done;
}

/* Limits: the budget is never exceeded, the client waits, nothing is lost */
static void reading_pauses_when_the_budget_is_used_up(void **state)
{
	struct client c = connected(*state, "slow", false);
	unsigned sent = 0;
	size_t done = MIB;
	static uint8_t data[MIB];

	for (uint32_t i = 0; i < MIB; i++)
		data[i] = pattern(i);
	for (; done == MIB; sent++) {
		request(&c, WRITE, 0, sent, 0, MIB);
		done = put_some(&c, data, MIB);
	}
	assert_int_equal(sent, 17); /* the last one is stuck */
	assert_int_equal(rig.slow.now, BUDGET);
	assert_int_equal(rig.slow.count, 16);
	assert_int_equal(bm_loop_turn(rig.loop, 0), 0); /* and the loop sleeps */
	slow_release(&rig.slow, true);
	put(&c, data + done, MIB - done);
	turns(&rig, 10);
	assert_int_equal(rig.slow.now, BUDGET);
	while (rig.slow.count)
		slow_release(&rig.slow, false);
	for (unsigned i = 0; i < sent; i++) {
		assert_int_equal(get64(&c), 0x6744669800000000);
		get64(&c);
	}
	expect_silence(&c);
	client_close(&c);
}

static void requests_in_flight_are_limited(void **state)
{
	enum { MANY = 500 };
	struct client c = connected(*state, "slow", true);
	uint8_t bytes[MANY * 28], *end = bytes;
	bool seen[MANY] = {0};

	for (unsigned i = 0; i < MANY; i++)
		end = pack_request(end, i % 2 ? READ : FLUSH, 0, i, 0, 0); /* READ: nothing to do */
	put(&c, bytes, sizeof(bytes));
	turns(&rig, 10);
	assert_int_equal(rig.slow.count, REQUESTS);
	rig.slow.at_once = true;
	slow_release(&rig.slow, true);
	bm_loop_soon(rig.loop, &rig.slow.task);
	for (unsigned i = 0; i < MANY; i++) {
		uint32_t magic = get32(&c), more = get32(&c);
		uint64_t cookie = get64(&c);

		assert_int_equal(magic, cookie % 2 ? 0x668e33ef : 0x67446698);
		assert_int_equal(more, cookie % 2 ? DONE << 16 | NONE : 0);
		if (cookie % 2)
			assert_int_equal(get32(&c), 0);
		assert_true(cookie < MANY && !seen[cookie]);
		seen[cookie] = true;
	}
	expect_silence(&c);
	client_close(&c);
}

/* Replies that the client does not take count, too. */
static void a_client_that_does_not_read_is_not_read_from(void **state)
{
	struct client c = connected(*state, "slow", true), other = connected(*state, "slow", true);

	rig.slow.at_once = true;
	for (unsigned i = 0; i < 100; i++)
		request(&c, READ, 0, i, 0, MIB);
	turns(&rig, 200);
	assert_true(rig.slow.bytes <= BUDGET + MIB); /* what the socket took is free again */
	request(&other, READ, 0, 1, 0, MIB);         /* and nobody else suffers */
	expect_chunk(&other, 1, DATA, MIB + 8);
	for (unsigned i = 0; i < 100; i++) {
		expect_chunk(&c, i, DATA, MIB + 8);
	}
	client_close(&c), client_close(&other);
}

/*
 * What comes together is answered together: one send per turn of the loop. On a socket that keeps
 * messages apart each of the server's sends can be told from the next one.
 */
static void replies_of_a_turn_leave_in_one_send(void **state)
{
	enum { MANY = 32, BLOCK = 1024 };
	static const char hello[] = "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\0";
	uint8_t bytes[MANY * (28 + BLOCK)] = {0}, *end = bytes,
				   *answer = malloc(MANY * (16 + BLOCK) + 1);
	struct client c = {.rig = *state};
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(nbd_server_accept_fd(rig.server, fds[0], fds[0]), 0);
	c.fd = fds[1];
	turns(&rig, 3);
	assert_int_equal(recv(c.fd, answer, 19, MSG_DONTWAIT), 18);
	put(&c, hello, sizeof(hello) - 1);
	turns(&rig, 3);
	assert_int_equal(recv(c.fd, answer, 11, MSG_DONTWAIT), 10);
	for (unsigned i = 0; i < MANY; i++)
		end = pack_request(end, READ, 0, i, i * BLOCK, BLOCK);
	put(&c, bytes, (size_t)(end - bytes));
	turns(&rig, 3);
	assert_int_equal(recv(c.fd, answer, MANY * (16 + BLOCK) + 1, MSG_DONTWAIT),
			 MANY * (16 + BLOCK));
	end = bytes;
	for (unsigned i = 0; i < MANY; i++)
		end = pack_request(end, WRITE, 0, i, i * BLOCK, BLOCK) + BLOCK;
	put(&c, bytes, sizeof(bytes));
	turns(&rig, 3);
	assert_int_equal(recv(c.fd, answer, MANY * 16 + 1, MSG_DONTWAIT), MANY * 16);
	client_close(&c);
	free(answer);
}

/* A random mixture, with answers in random order; each is checked, and each comes once. */

struct asked {
	unsigned type;
	uint64_t offset;
	uint32_t length, left; /* left: bytes not yet answered */
};

static uint64_t random_state;

static void ask(struct client *c, struct asked *a, uint64_t cookie)
{
	static const unsigned types[] = {READ, READ, WRITE, WRITE, FLUSH, TRIM, ZEROES, CACHE};

	a->type = types[chance(&random_state) % 8];
	a->offset = chance(&random_state) % (64 * MIB);
	a->length = 1u << chance(&random_state) % 22;
	a->length -= chance(&random_state) % a->length;
	if (a->type == FLUSH)
		a->offset = a->length = 0;
	a->left = a->length;
	request(c, a->type, 0, cookie, a->offset, a->length);
	if (a->type == WRITE)
		payload(c, a->offset, a->length);
}

static uint32_t peek32(struct client *c)
{
	uint32_t value;

	for (int idle = 0; recv(c->fd, &value, 4, MSG_PEEK | MSG_DONTWAIT) < 4; idle++) {
		assert_true(idle < 5000);
		turn(c->rig);
	}
	return be32toh(value);
}

/* Takes one reply or chunk. Returns whether it was the last one of its request. */
static bool take(struct client *c, struct asked *asked, unsigned count)
{
	struct chunk chunk = {.flags = DONE};
	struct asked *a;
	uint64_t offset;
	uint32_t length = 0;
	bool simple;

	simple = peek32(c) == 0x67446698;
	if (simple) {
		get32(c);
		assert_int_equal(get32(c), 0);
		chunk.cookie = get64(c);
	} else {
		chunk = get_chunk_header(c);
	}
	assert_true(chunk.cookie < count);
	a = &asked[chunk.cookie];
	offset = a->offset;
	if (simple && a->type == READ) {
		assert_false(c->structured);
		length = a->length;
	} else if (!simple && chunk.length) {
		assert_true(chunk.type == DATA && a->type == READ);
		length = chunk.length - 8;
		offset = get64(c);
	}
	assert_int_equal(chunk.offset, c->extended ? a->offset : 0);
	assert_true(a->left || a->type == FLUSH);
	expect_data(c, offset, length);
	a->left -= a->type == READ ? length : a->left;
	assert_int_equal(a->left == 0, chunk.flags == DONE);
	if (a->type == FLUSH)
		a->type = READ; /* answered: not a second time */
	return chunk.flags == DONE;
}

static void any_mixture_is_answered_right(void **state)
{
	enum { MANY = 400, AT_ONCE = 100, BYTES = 6 * MIB }; /* less than makes the server wait */
	const char *seed = getenv("SEED");

	random_state = seed ? strtoull(seed, NULL, 0) : (uint64_t)getpid() * 7919 + 1;
	print_message("# SEED=%ju\n", (uintmax_t)random_state);
	for (enum mode mode = SIMPLE_REPLIES; mode < MODES; mode++) {
		struct client c = connected(*state, "slow", mode);
		struct asked asked[MANY];
		unsigned sent = 0, answered = 0;

		rig.slow.at_once = true;
		rig.slow.random = random_state | 1;
		while (answered < MANY) {
			uint64_t bytes = 0;

			for (unsigned i = 0; i < sent; i++)
				bytes += asked[i].left;
			if (sent < MANY && sent - answered < AT_ONCE && bytes < BYTES &&
			    chance(&random_state) % 8) {
				ask(&c, &asked[sent], sent);
				sent++;
			} else if (answered < sent) {
				answered += take(&c, asked, sent);
			}
		}
		expect_silence(&c);
		client_close(&c);
	}
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(reading_pauses_when_the_budget_is_used_up),
		TEST(requests_in_flight_are_limited),
		TEST(a_client_that_does_not_read_is_not_read_from),
		TEST(replies_of_a_turn_leave_in_one_send),
		TEST(any_mixture_is_answered_right),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
