/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Several metadata contexts of one export: which queries name them, what BLOCK_STATUS tells of
 * each, and contexts that come and go. "rule N" is reference/nbd.md's, names are proto.md's.
 */
#include "tests/unit/nbd_client.h"

enum { STRIPE = 65536, ROOM = 8 };

/* A device whose extents are stripes with flags 0 and flag; kept until they are let go. */
struct marks {
	struct bm_dev dev;
	struct bm_list held;
	struct bm_task task;
	bool at_once;
	uint32_t flag;
	int error;
	unsigned asked;
};

static struct rig rig;
static struct marks dirty, other;

static void answer(struct marks *m, struct bm_request *rq)
{
	struct bm_extents *x = rq->extents;
	uint64_t at = rq->offset, end = at + rq->length;

	for (x->count = 0; at < end && x->count < x->room; x->count++) {
		uint64_t next = (at / STRIPE + 1) * STRIPE;

		x->v[x->count].flags = at / STRIPE % 2 ? m->flag : 0;
		x->v[x->count].length = (next < end ? next : end) - at;
		at = next;
	}
	rq->done(rq, m->error);
}

static void release(struct marks *m)
{
	struct bm_list *node = bm_list_take(&m->held);

	assert_non_null(node);
	answer(m, bm_container(node, struct bm_request, link));
}

static void run(struct bm_task *task)
{
	struct marks *m = bm_container(task, struct marks, task);

	while (!bm_list_empty(&m->held))
		release(m);
}

static void submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct marks *m = bm_container(dev, struct marks, dev);

	assert_int_equal(rq->op, BM_EXTENTS);
	m->asked++;
	bm_list_append(&m->held, &rq->link);
	if (m->at_once)
		bm_loop_soon(dev->loop, &m->task);
}

static void marks_open(struct marks *m, uint32_t flag)
{
	static const struct bm_dev_ops ops = {
		.name = "marks", .start = slow_start, .submit = submit};

	*m = (struct marks){
		.dev = {.ops = &ops, .geometry = {.size = DISK, .block = 1}},
		.task.run = run,
		.at_once = true,
		.flag = flag,
	};
	bm_list_init(&m->held);
	bm_dev_start(&m->dev, rig.loop);
}

static void add(const char *name, struct marks *m)
{
	assert_int_equal(nbd_server_add_context(rig.server, "", name, &m->dev, NULL), 0);
}

static int set_up(void **state)
{
	rig_open(&rig, NULL);
	marks_open(&dirty, 1);
	marks_open(&other, 7);
	add("qemu:dirty-bitmap:web", &dirty);
	add("qemu:dirty-bitmap:other", &other);
	*state = &rig;
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	return 0;
}

static struct client haggling(void)
{
	struct client c = client_new(&rig);

	start(&c, 3);
	option(&c, SR, NULL, 0);
	assert_int_equal(final_reply(&c, SR), ACK);
	c.structured = true;
	return c;
}

struct found {
	unsigned count;
	uint32_t id[ROOM];
	char name[ROOM][64];
};

/* LIST_ or SET_META_CONTEXT of export "", with the queries up to NULL. */
static struct found query(struct client *c, uint32_t number, const char *const *queries)
{
	struct found found = {0};
	uint8_t data[512], *at = data + 8, reply[8192];
	uint32_t count = 0, type, length;

	memset(data, 0, sizeof(data));
	for (; queries[count]; count++) {
		length = htobe32((uint32_t)strlen(queries[count]));
		memcpy(at, &length, 4);
		at = mempcpy(at + 4, queries[count], strlen(queries[count]));
	}
	data[7] = (uint8_t)count;
	option(c, number, data, (size_t)(at - data));
	while ((type = option_reply(c, number, reply, &length)) == REP_META) {
		assert_true(found.count < ROOM && length > 4 && length < 4 + 64);
		memcpy(&found.id[found.count], reply, 4);
		found.id[found.count] = be32toh(found.id[found.count]);
		memcpy(found.name[found.count++], reply + 4, length - 4);
	}
	assert_int_equal(type, ACK);
	return found;
}

#define QUERIES(...) ((const char *const[]){__VA_ARGS__, NULL})

/* "Metadata querying"; rule 8 */
static void queries_name_contexts(void **state)
{
	static const struct {
		uint32_t option;
		const char *query; /* NULL: no query */
		const char *found; /* initials of what is found */
	} rows[] = {
		{LIST_META, NULL, "bwo"}, /* no query: all */
		{LIST_META, "base:", "b"},
		{LIST_META, "base:allocation", "b"},
		{LIST_META, "qemu:", "wo"},
		{LIST_META, "qemu:dirty-bitmap:", "wo"},
		{LIST_META, "qemu:dirty-bitmap:web", "w"},
		{LIST_META, "qemu:dirty-bitmap", ""}, /* neither a name nor a wildcard */
		{LIST_META, "qemu:dirty-bitmap:we", ""},
		{LIST_META, "qemu", ""},
		{LIST_META, ":", ""},
		{LIST_META, "", ""},
		{LIST_META, "x-thing:", ""},
		{SET_META, NULL, ""}, /* no query: none */
		{SET_META, "base:", ""},
		{SET_META, "qemu:", ""}, /* wildcards select nothing */
		{SET_META, "qemu:dirty-bitmap:", ""},
		{SET_META, "qemu:dirty-bitmap:web", "w"},
		{SET_META, "qemu:dirty-bitmap:web2", ""},
		{SET_META, "base:allocation", "b"},
		{SET_META, "", ""},
	};
	struct client c = haggling();

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct found f = query(&c, rows[i].option, QUERIES(rows[i].query));

		print_message("# %s\n", rows[i].query ? rows[i].query : "none");
		assert_int_equal(f.count, strlen(rows[i].found));
		for (unsigned k = 0; k < f.count; k++) {
			const char *leaf = strrchr(f.name[k], ':') + 1;

			assert_int_equal(*leaf == 'a' ? 'b' : *leaf, rows[i].found[k]);
			assert_int_equal(!f.id[k], rows[i].option == LIST_META);
		}
	}
	client_close(&c);
}

/* Ids tell one from the other; a query that comes twice selects once. */
static void several_are_selected_together(void **state)
{
	struct client c = haggling();
	struct found f = query(&c, SET_META,
			       QUERIES("qemu:dirty-bitmap:other", "x:y", "base:allocation",
				       "qemu:dirty-bitmap:web", "base:allocation"));

	(void)state;
	assert_int_equal(f.count, 3);
	assert_true(f.id[0] != f.id[1] && f.id[1] != f.id[2] && f.id[0] != f.id[2]);
	f = query(&c, SET_META, QUERIES("qemu:dirty-bitmap:web")); /* replaces */
	assert_int_equal(f.count, 1);
	client_close(&c);
}

/* One chunk of a status: the sum of its lengths; checks what every chunk has to fulfil. */
static uint64_t expect_status(struct client *c, uint32_t id, uint32_t flag, uint32_t asked,
			      unsigned most, bool last)
{
	struct chunk chunk = get_chunk_header(c);
	uint64_t sum = 0;

	assert_int_equal(chunk.type, BLOCK_STATUS);
	assert_int_equal(chunk.flags, last ? DONE : 0);
	assert_int_equal(chunk.length % 8, 4);
	assert_int_equal(get32(c), id);
	assert_in_range(chunk.length / 8, 1, most);
	for (unsigned i = 0; i < chunk.length / 8; i++) {
		uint32_t length = get32(c);

		assert_int_equal(get32(c), i % 2 ? flag : 0);
		assert_in_range(length, 1, STRIPE);
		sum += length;
	}
	assert_true(sum <= asked);
	return sum;
}

/* BLOCK_STATUS: "exactly one chunk … per selected context", in any order; rule 20 */
static void each_context_is_a_chunk_of_the_answer(void **state)
{
	struct client c = haggling();
	struct found f =
		query(&c, SET_META, QUERIES("qemu:dirty-bitmap:web", "qemu:dirty-bitmap:other"));

	(void)state;
	go(&c, "");
	request(&c, STATUS, 0, 9, 0, 10 * STRIPE);
	assert_int_equal(expect_status(&c, f.id[0], 1, 10 * STRIPE, 10, false), 10 * STRIPE);
	assert_int_equal(expect_status(&c, f.id[1], 7, 10 * STRIPE, 10, true), 10 * STRIPE);
	request(&c, STATUS, REQ_ONE, 9, 100, 10 * STRIPE); /* one of each */
	assert_int_equal(expect_status(&c, f.id[0], 1, STRIPE, 1, false), STRIPE - 100);
	assert_int_equal(expect_status(&c, f.id[1], 7, STRIPE, 1, true), STRIPE - 100);
	dirty.at_once = false; /* the other one answers first */
	request(&c, STATUS, 0, 9, 2 * STRIPE, 7);
	assert_int_equal(expect_status(&c, f.id[1], 7, 7, 1, false), 7);
	expect_silence(&c);
	release(&dirty);
	assert_int_equal(expect_status(&c, f.id[0], 1, 7, 1, true), 7);
	expect_silence(&c);
	client_close(&c);
}

/* NBD_REPLY_TYPE_ERROR: "SHOULD NOT be used more than once", and nothing follows it here */
static void one_context_that_fails_fails_the_request(void **state)
{
	for (int fails = 1; fails <= 3; fails++) {
		struct client c = haggling();
		struct found f = query(&c, SET_META,
				       QUERIES("qemu:dirty-bitmap:web", "qemu:dirty-bitmap:other"));

		(void)state;
		go(&c, "");
		dirty.error = fails & 1 ? -EIO : 0;
		other.error = fails & 2 ? -EIO : 0;
		request(&c, STATUS, 0, 9, 0, 1000);
		if (fails == 2)
			expect_status(&c, f.id[0], 1, 1000, 1, false);
		expect_error(&c, 9, EIO);
		expect_silence(&c);
		client_close(&c);
	}
}

static void contexts_belong_to_their_export(void **state)
{
	struct client c = haggling();
	unsigned found;
	uint32_t id;

	(void)state;
	assert_int_equal(
		query(&c, SET_META, QUERIES("qemu:dirty-bitmap:web", "base:allocation")).count, 2);
	assert_int_equal(meta(&c, LIST_META, "slow", "qemu:", &found, &id), ACK);
	assert_int_equal(found, 0);
	go(&c, "slow"); /* another export: what was selected is void */
	request(&c, STATUS, 0, 1, 0, 4096);
	expect_error(&c, 1, EINVAL);
	assert_int_equal(dirty.asked, 0);
	client_close(&c);
}

/* What is dropped unread is a SET that fails, too. */
static void a_set_that_is_too_long_selects_nothing(void **state)
{
	static uint8_t data[65537];
	struct client c = haggling();

	(void)state;
	assert_int_equal(query(&c, SET_META, QUERIES("base:allocation")).count, 1);
	option(&c, SET_META, data, sizeof(data));
	assert_int_equal(final_reply(&c, SET_META), TOO_BIG);
	go(&c, "");
	request(&c, STATUS, 0, 1, 0, 4096);
	expect_error(&c, 1, EINVAL);
	client_close(&c);
}

static void a_context_may_go_away_and_another_one_come(void **state)
{
	struct client c = haggling();
	struct found f =
		query(&c, SET_META, QUERIES("qemu:dirty-bitmap:web", "qemu:dirty-bitmap:other"));

	(void)state;
	go(&c, "");
	dirty.at_once = false;
	request(&c, STATUS, 0, 1, 0, 1000);
	assert_int_equal(expect_status(&c, f.id[1], 7, 1000, 1, false), 1000);
	nbd_server_remove_context(rig.server, "", "qemu:dirty-bitmap:web");
	nbd_server_remove_context(rig.server, "", "qemu:dirty-bitmap:web");
	nbd_server_remove_context(rig.server, "", "base:allocation"); /* stays */
	release(&dirty); /* what it was asked before it still answers */
	assert_int_equal(expect_status(&c, f.id[0], 1, 1000, 1, true), 1000);
	for (int again = 0; again < 2; again++) {
		request(&c, STATUS, 0, 2, 0, 1000);
		expect_error(&c, 2, EINVAL);
		expect_silence(&c);
		assert_int_equal(dirty.asked, 1);
		/* One of the same name is another one: the client never selected it. */
		if (!again)
			add("qemu:dirty-bitmap:web", &dirty);
	}
	client_close(&c);
	c = haggling();
	assert_int_equal(query(&c, LIST_META, QUERIES("base:")).count, 1);
	dirty.at_once = true;
	assert_int_equal(query(&c, SET_META, QUERIES("qemu:dirty-bitmap:web")).count, 1);
	go(&c, "");
	request(&c, STATUS, 0, 3, 0, 1000);
	expect_chunk(&c, 3, BLOCK_STATUS, 12);
	client_close(&c);
}

static void a_client_may_vanish_while_contexts_are_asked(void **state)
{
	struct client c = haggling();

	(void)state;
	query(&c, SET_META, QUERIES("qemu:dirty-bitmap:web", "qemu:dirty-bitmap:other"));
	go(&c, "");
	dirty.at_once = other.at_once = false;
	for (unsigned i = 0; i < 3; i++)
		request(&c, STATUS, 0, i, 0, 1000);
	turns(&rig, 5);
	assert_int_equal(dirty.asked + other.asked, 6);
	client_close(&c);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(nbd_server_clients(rig.server, NULL, 0), 1);
		release(&dirty);
		release(&other);
		turns(&rig, 5);
	}
	assert_int_equal(nbd_server_clients(rig.server, NULL, 0), 0);
}

/* More than a connection's buffers hold: the parser pauses between two contexts of one request. */
static void many_questions_wait_for_memory(void **state)
{
	enum { MANY = 200 };
	struct client c = haggling();
	unsigned done = 0;

	(void)state;
	query(&c, SET_META, QUERIES("qemu:dirty-bitmap:web", "qemu:dirty-bitmap:other"));
	go(&c, "");
	dirty.at_once = false;
	for (unsigned i = 0; i < MANY; i++)
		request(&c, STATUS, REQ_ONE, i, 0, 1000);
	turns(&rig, 50);
	assert_true(dirty.asked < MANY);
	dirty.at_once = true;
	run(&dirty.task);
	while (done < MANY) {
		struct chunk chunk = get_chunk_header(&c);

		assert_int_equal(chunk.length, 12);
		get32(&c), get32(&c), get32(&c);
		done += chunk.flags & DONE;
	}
	assert_int_equal(dirty.asked, MANY);
	assert_int_equal(other.asked, MANY);
	expect_silence(&c);
	client_close(&c);
}

static void contexts_are_checked(void **state)
{
	char longest[NBD_MAX_NAME + 2];
	struct bm_error error;
	struct {
		const char *export, *name;
	} bad[] = {{"nowhere", "x:y"},
		   {"", "nocolon"},
		   {"", ":leaf"},
		   {"", "space:"},
		   {"", ""},
		   {"", longest},
		   {"", "base:allocation"},
		   {"", "qemu:dirty-bitmap:web"},
		   {"small", "x:y"} /* smaller than it */};

	(void)state;
	memset(longest, 'x', sizeof(longest));
	longest[1] = ':';
	longest[sizeof(longest) - 1] = '\0';
	other.dev.geometry.size = SMALL - 512;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_true(nbd_server_add_context(rig.server, bad[i].export, bad[i].name,
						   &other.dev, &error) < 0);
		assert_int_equal(error.code, BM_E_USAGE);
	}
	other.dev.geometry.size = DISK;
	for (unsigned i = 3; i < NBD_MAX_CONTEXTS; i++) {
		char name[] = {'x', ':', (char)('a' + i), '\0'};

		add(name, &other);
	}
	assert_true(nbd_server_add_context(rig.server, "", "x:y", &other.dev, &error) < 0);
	nbd_server_remove_context(rig.server, "", "x:d");
	add("x:y", &other);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(queries_name_contexts),
		TEST(several_are_selected_together),
		TEST(each_context_is_a_chunk_of_the_answer),
		TEST(one_context_that_fails_fails_the_request),
		TEST(contexts_belong_to_their_export),
		TEST(a_set_that_is_too_long_selects_nothing),
		TEST(a_context_may_go_away_and_another_one_come),
		TEST(a_client_may_vanish_while_contexts_are_asked),
		TEST(many_questions_wait_for_memory),
		TEST(contexts_are_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
