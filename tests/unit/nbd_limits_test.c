/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD server's limits, each provoked: what is beyond them waits and comes later, or is refused,
 * and the memory of all clients together stays within what was stated.
 */
#include "tests/unit/nbd_client.h"

#define POLICY 0x80000002u
#define MS     1000000ull

enum { NARROW = 2 * MIB, FEW = 4 };

static struct rig rig;

static int set_up_with(void **state, const struct nbd_server_options *options)
{
	rig_open(&rig, options);
	*state = &rig;
	return 0;
}

static int set_up(void **state)
{
	return set_up_with(state, NULL);
}

static int set_up_few(void **state)
{
	return set_up_with(state, &(struct nbd_server_options){.max_requests = FEW});
}

static int set_up_one(void **state)
{
	return set_up_with(state,
			   &(struct nbd_server_options){.max_requests = 1, .max_data = NARROW});
}

static int set_up_narrow(void **state)
{
	return set_up_with(state, &(struct nbd_server_options){.max_data = NARROW});
}

static int set_up_hurried(void **state)
{
	return set_up_with(state, &(struct nbd_server_options){.handshake_ns = 1000 * MS});
}

static int set_up_impatient(void **state)
{
	return set_up_with(state, &(struct nbd_server_options){.idle_ns = 1200 * MS});
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	return 0;
}

static void run_for(uint64_t ns)
{
	uint64_t end = bm_loop_now(rig.loop) + ns;

	while (bm_loop_now(rig.loop) < end)
		turn(&rig);
}

static struct nbd_server_usage usage(void)
{
	struct nbd_server_usage u;

	nbd_server_get_usage(rig.server, &u);
	return u;
}

static void requests_beyond_the_limit_wait_and_none_is_lost(void **state)
{
	enum { MANY = 50 };
	uint8_t bytes[MANY * 28], *end;

	for (enum mode mode = SIMPLE_REPLIES; mode <= STRUCTURED_REPLIES; mode++) {
		struct client c = connected(*state, "slow", mode);

		end = bytes;
		for (unsigned i = 0; i < MANY; i++)
			end = pack_request(end, FLUSH, 0, i, 0, 0);
		put(&c, bytes, sizeof(bytes));
		turns(&rig, 10);
		assert_int_equal(rig.slow.count, FEW);
		assert_int_equal(usage().in_flight, FEW);
		assert_int_equal(bm_loop_turn(rig.loop, 0), 0); /* and the loop sleeps */
		for (unsigned i = 0; i < MANY; i++) {
			assert_int_equal(rig.slow.count, MANY - i < FEW ? MANY - i : FEW);
			slow_release(&rig.slow, false);
			expect_simple(&c, i, 0);
		}
		client_close(&c);
	}
}

/* The parser waits for memory in the middle of a request, and after it for a request. */
static void a_single_request_at_a_time_is_enough(void **state)
{
	struct client c = connected(*state, "slow", SIMPLE_REPLIES);

	rig.slow.at_once = true;
	for (unsigned i = 0; i < 6; i += 2) {
		request(&c, READ, 0, i, 12345, 9 * MIB);
		request(&c, WRITE, 0, i + 1, 777, 3 * MIB);
		expect_simple(&c, i, 0);
		expect_data(&c, 12345, 9 * MIB);
		payload(&c, 777, 3 * MIB);
		expect_simple(&c, i + 1, 0);
	}
	assert_true(rig.slow.most <= NARROW);
	client_close(&c);
}

/* 64 MiB go through 2 MiB, in every form of a session. */
static void the_longest_requests_go_through_the_smallest_buffers(void **state)
{
	for (enum mode mode = SIMPLE_REPLIES; mode < MODES; mode++) {
		struct client c = connected(*state, "slow", mode);
		uint64_t done = 0;

		rig.slow.at_once = true;
		rig.slow.most = 0;
		request(&c, WRITE, 0, 1, 4096, 64 * MIB);
		payload(&c, 4096, 64 * MIB);
		expect_simple(&c, 1, 0);
		request(&c, READ, 0, 2, 4096, 64 * MIB);
		if (mode == SIMPLE_REPLIES) {
			expect_simple(&c, 2, 0);
			expect_data(&c, 4096, 64 * MIB);
			done = 64 * MIB;
		}
		while (done < 64 * MIB) {
			struct chunk chunk = get_chunk_header(&c);

			assert_int_equal(chunk.type, DATA);
			expect_data(&c, get64(&c), chunk.length - 8);
			done += chunk.length - 8;
		}
		assert_true(rig.slow.most <= NARROW);
		assert_true(usage().memory <= usage().bound);
		client_close(&c);
	}
}

/*
 * A READ that streams has sent its first piece, which was short; the replies that wait behind it
 * have all the memory that there is. It must have kept enough to go on.
 */
static void a_read_that_streams_gets_on_whatever_waits_behind_it(void **state)
{
	struct client c = connected(*state, "slow", SIMPLE_REPLIES);
	uint32_t length[10] = {MIB}, offset[10] = {0};

	for (unsigned i = 1; i < 9; i++)
		length[i] = MIB >> i; /* 512 KiB … 4 KiB: but for the last 4 KiB that is all */
	offset[9] = MIB - 4096;
	length[9] = 4 * MIB;
	for (unsigned i = 0; i < 10; i++)
		request(&c, READ, 0, i, offset[i], length[i]);
	turns(&rig, 10);
	slow_release(&rig.slow, true); /* the last one that came, which may be a piece of it */
	turns(&rig, 10);
	rig.slow.at_once = true;
	bm_loop_soon(rig.loop, &rig.slow.task);
	for (unsigned i = 0; i < 10; i++) {
		uint64_t cookie;

		assert_int_equal(get64(&c), 0x6744669800000000);
		cookie = get64(&c);
		assert_true(cookie < 10 && length[cookie]);
		expect_data(&c, offset[cookie], length[cookie]);
		length[cookie] = 0;
	}
	client_close(&c);
}

static uint32_t try_go(struct client *c, const char *name)
{
	uint8_t data[300];

	option(c, GO, data, info_data(data, name));
	return final_reply(c, GO);
}

static void an_export_has_as_many_clients_as_it_may(void **state)
{
	const struct nbd_export export = {.name = "few", .dev = &rig.slow.dev, .max_clients = 2};
	uint8_t data[300];
	struct client c[4];

	assert_int_equal(nbd_server_add_export(rig.server, &export, NULL), 0);
	for (int i = 0; i < 4; i++) {
		c[i] = client_new(*state);
		start(&c[i], 3);
	}
	go(&c[0], "few"), go(&c[1], "few");
	option(&c[2], INFO, data, info_data(data, "few")); /* to look at it is no offence */
	assert_int_equal(final_reply(&c[2], INFO), ACK);
	assert_int_equal(try_go(&c[2], "few"), POLICY);
	option(&c[3], EXPORT_NAME, "few", 3);
	expect_end(&c[3]);
	client_close(&c[0]);
	assert_int_equal(try_go(&c[2], "few"), ACK);
	client_close(&c[1]), client_close(&c[2]), client_close(&c[3]);
}

/* A client that is gone is one as long as the device has a request of its. */
static void who_has_left_requests_behind_counts(void **state)
{
	const struct nbd_export export = {.name = "one", .dev = &rig.slow.dev, .max_clients = 1};
	struct client c, d = client_new(*state);

	assert_int_equal(nbd_server_add_export(rig.server, &export, NULL), 0);
	c = connected(*state, "one", SIMPLE_REPLIES);
	start(&d, 3);
	request(&c, READ, 0, 1, 0, 8192);
	turns(&rig, 5);
	client_close(&c);
	assert_int_equal(try_go(&d, "one"), POLICY);
	assert_int_equal(usage().connections, 2);
	assert_int_equal(usage().in_flight, 1);
	slow_release(&rig.slow, false);
	turns(&rig, 5);
	assert_int_equal(try_go(&d, "one"), ACK);
	client_close(&d);
}

static void a_handshake_takes_its_time_and_no_more(void **state)
{
	struct client late = client_new(*state), busy = client_new(*state);
	struct client good = connected(*state, "slow", SIMPLE_REPLIES);

	start(&late, 3), start(&busy, 3);
	for (int i = 0; i < 4; i++) { /* what it does meanwhile does not count */
		option(&busy, LIST, NULL, 0);
		assert_int_equal(final_reply(&busy, LIST), ACK);
		run_for(200 * MS);
	}
	run_for(400 * MS);
	expect_end(&late), expect_end(&busy);
	request(&good, CACHE, 0, 1, 0, 4096);
	expect_simple(&good, 1, 0);
	client_close(&late), client_close(&busy), client_close(&good);
}

static void idle_clients_are_disconnected_where_that_is_asked_for(void **state)
{
	struct client idle = connected(*state, "slow", SIMPLE_REPLIES);
	struct client waits = connected(*state, "slow", SIMPLE_REPLIES);
	struct client asks = connected(*state, "slow", SIMPLE_REPLIES);

	request(&waits, FLUSH, 0, 1, 0, 0);
	for (unsigned i = 0; i < 12; i++) {
		request(&asks, CACHE, 0, i, 0, 4096);
		expect_simple(&asks, i, 0);
		run_for(150 * MS);
	}
	expect_end(&idle);
	assert_int_equal(nbd_server_clients(rig.server, NULL, 0), 2);
	slow_release(&rig.slow, false);
	expect_simple(&waits, 1, 0);
	run_for(500 * MS); /* it was busy until now */
	request(&waits, CACHE, 0, 2, 0, 4096);
	expect_simple(&waits, 2, 0);
	client_close(&idle), client_close(&waits), client_close(&asks);
}

static void idle_clients_give_their_memory_back(void **state)
{
	struct client c = connected(*state, "slow", SIMPLE_REPLIES);
	uint64_t before = usage().memory;

	rig.slow.at_once = true;
	for (unsigned i = 0; i < 8; i++)
		request(&c, READ, 0, i, 0, MIB);
	for (unsigned i = 0; i < 8; i++) {
		expect_simple(&c, i, 0);
		expect_data(&c, 0, MIB);
	}
	assert_true(usage().memory >= before + MIB);
	assert_int_equal(usage().buffers, 0);
	run_for(700 * MS);
	assert_true(usage().memory <= before);
	client_close(&c);
}

static void a_client_without_a_limit_may_be_idle(void **state)
{
	struct client c = connected(*state, "slow", SIMPLE_REPLIES);

	run_for(300 * MS);
	request(&c, CACHE, 0, 1, 0, 4096);
	expect_simple(&c, 1, 0);
	client_close(&c);
}

/* Many clients, all of them with as much in flight as they may: nothing goes beyond the bound. */
static void the_bound_holds(void **state)
{
	enum { CLIENTS = 8, LONG = 64 * MIB };
	const struct nbd_server_options options = {.max_connections = CLIENTS, .max_data = NARROW};
	struct client c[CLIENTS];
	uint64_t bound = nbd_server_bound(&options);

	rig_close(&rig);
	rig_open(&rig, &options);
	assert_int_equal(usage().bound, bound);
	assert_true(bound > CLIENTS * NARROW && bound < CLIENTS * (NARROW + 2 * MIB));
	for (unsigned i = 0; i < CLIENTS; i++) {
		c[i] = connected(*state, "slow", SIMPLE_REPLIES);
		request(&c[i], READ, 0, 1, 0, LONG);
	}
	turns(&rig, 20);
	assert_int_equal(rig.slow.now, CLIENTS * NARROW);
	assert_int_equal(usage().buffers, CLIENTS * NARROW);
	assert_int_equal(usage().connections, CLIENTS);
	assert_int_equal(usage().max_connections, CLIENTS);
	assert_int_equal(usage().in_flight, CLIENTS);
	assert_true(usage().memory > CLIENTS * NARROW && usage().memory <= bound);
	rig.slow.at_once = true;
	bm_loop_soon(rig.loop, &rig.slow.task);
	for (unsigned i = 0; i < 2; i++) {
		expect_simple(&c[i], 1, 0);
		expect_data(&c[i], 0, LONG);
		assert_true(usage().memory <= bound);
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		client_close(&c[i]);
}

/* What users write */

static void limits_are_read(void **state)
{
	static const char *const bad[][2] = {
		{"max-connections", "0"},     {"max-connections", "10001"},
		{"max-connections", "-1"},    {"max-connections", " 1"},
		{"max-connections", "1k"},    {"max-connections", ""},
		{"max-requests", "0"},        {"max-requests", "129"},
		{"max-data", "1M"},           {"max-data", "2G"},
		{"max-data", "much"},         {"handshake-timeout", "0"},
		{"handshake-timeout", "1.5"}, {"idle-timeout", "99999999999999999999"},
		{"no-such-limit", "1"},
	};
	struct nbd_server_options o = {0}, before;
	struct bm_error error;

	(void)state;
	assert_int_equal(nbd_server_set_limit(&o, "max-connections", "10000", NULL), 0);
	assert_int_equal(nbd_server_set_limit(&o, "max-requests", "128", NULL), 0);
	assert_int_equal(nbd_server_set_limit(&o, "max-data", "2M", NULL), 0);
	assert_int_equal(nbd_server_set_limit(&o, "handshake-timeout", "3", NULL), 0);
	assert_int_equal(nbd_server_set_limit(&o, "idle-timeout", "0", NULL), 0);
	assert_int_equal(o.max_connections, 10000);
	assert_int_equal(o.max_requests, 128);
	assert_int_equal(o.max_data, 2 * MIB);
	assert_int_equal(o.handshake_ns, 3000 * MS);
	assert_int_equal(o.idle_ns, 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		before = o;
		assert_true(nbd_server_set_limit(&o, bad[i][0], bad[i][1], &error) < 0);
		assert_int_equal(error.code, BM_E_USAGE);
		assert_non_null(strstr(error.text, bad[i][0]));
		assert_memory_equal(&o, &before, sizeof(o)); /* nothing was changed */
	}
}

/* What nobody said anything about, and what is out of all bounds. */
static void a_server_always_has_limits(void **state)
{
	const struct nbd_server_options none = {0}, mad = {.max_requests = 100000, .max_data = 1};
	const struct nbd_server_options same = {.max_requests = 128, .max_data = NARROW};
	uint64_t bound = nbd_server_bound(&none);

	(void)state;
	assert_int_equal(usage().bound, bound);
	assert_int_equal(usage().max_connections, 100);
	assert_true(bound > 100ull * 16 * MIB && bound < 100ull * 18 * MIB);
	assert_int_equal(nbd_server_bound(&mad), nbd_server_bound(&same));
}

int main(void)
{
#define TEST(name, how) cmocka_unit_test_setup_teardown(name, how, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(requests_beyond_the_limit_wait_and_none_is_lost, set_up_few),
		TEST(a_single_request_at_a_time_is_enough, set_up_one),
		TEST(the_longest_requests_go_through_the_smallest_buffers, set_up_narrow),
		TEST(a_read_that_streams_gets_on_whatever_waits_behind_it, set_up_narrow),
		TEST(an_export_has_as_many_clients_as_it_may, set_up),
		TEST(who_has_left_requests_behind_counts, set_up),
		TEST(a_handshake_takes_its_time_and_no_more, set_up_hurried),
		TEST(idle_clients_are_disconnected_where_that_is_asked_for, set_up_impatient),
		TEST(idle_clients_give_their_memory_back, set_up_impatient),
		TEST(a_client_without_a_limit_may_be_idle, set_up),
		TEST(the_bound_holds, set_up),
		TEST(limits_are_read, set_up),
		TEST(a_server_always_has_limits, set_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
