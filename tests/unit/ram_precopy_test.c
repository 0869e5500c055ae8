/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A precopy from the VMM's side: both ends in one loop, in a thread of its own as a VMM has it,
 * callbacks and a tracker of the test's, and orders from the test's thread. Whatever a VMM answers,
 * the guest at the source is resumed as often as it was stopped, and no more.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/list.h"
#include "blockmirror/client.h"
#include "blockmirror/precopy.h"

enum { REGIONS = 3, PAGES = 40, LINKS = 3, BIG = 3 << 20 };
#define SIZE ((size_t)PAGES * BM_RAM_PAGE)

/* One end: what the VMM is asked for, and what it is to answer. */
struct end {
	struct bm_precopy *precopy;
	struct bm_client *client;
	struct bm_ram_region region[REGIONS];
	char names[REGIONS][8], path[64];
	atomic_int paused, resumed, released, quit, throttled;
	atomic_int pause_answer; /* 1: none, for now */
	int save_answer, load_answer;
	size_t state_size;
	uint8_t *state; /* as it was loaded */
	size_t loaded;
};

/* A tracker that notices nothing, so that all is told by bm_precopy_dirty(). */
struct blind {
	struct bm_tracker tracker;
	int start_answer, take_answer;
	atomic_int started, stopped, freed;
};

static struct rig {
	char dir[32];
	struct bm_loop *loop;
	struct bm_task stop;
	pthread_t thread;
	struct end source, target;
	struct blind blind[2];
	int listener[2];
	pthread_t relay;
} rig;

static int blind_start(struct bm_tracker *tracker, struct bm_error *error)
{
	struct blind *b = bm_container(tracker, struct blind, tracker);

	b->started++;
	return b->start_answer ? bm_fail(error, BM_E_UNSUPPORTED, "it starts not") : 0;
}

static int blind_take(struct bm_tracker *tracker, unsigned region, uint64_t *bits,
		      struct bm_error *error)
{
	struct blind *b = bm_container(tracker, struct blind, tracker);

	(void)region, (void)bits;
	return b->take_answer ? bm_fail(error, BM_E_IO, "it sees not") : 0;
}

static void blind_stop(struct bm_tracker *tracker)
{
	bm_container(tracker, struct blind, tracker)->stopped++;
}

static void blind_free(struct bm_tracker *tracker)
{
	bm_container(tracker, struct blind, tracker)->freed++;
}

static const struct bm_tracker_ops blind_ops = {"blind", blind_start, blind_take, blind_stop,
						blind_free};

static void pause_guest(void *arg)
{
	struct end *e = arg;

	e->paused++;
	if (e->pause_answer <= 0)
		bm_precopy_paused(e->precopy, e->pause_answer);
}

static void resume_guest(void *arg)
{
	((struct end *)arg)->resumed++;
}

static int save(void *arg, void **state, size_t *length)
{
	const struct end *e = arg;
	uint8_t *made = malloc(e->state_size + 1);

	for (size_t i = 0; made && i < e->state_size; i++)
		made[i] = (uint8_t)(i * 31 >> 3);
	*state = made;
	*length = e->state_size;
	return e->save_answer;
}

static int load(void *arg, uint32_t version, const void *state, size_t length,
		struct bm_error *error)
{
	struct end *e = arg;

	assert_int_equal(version, 7);
	free(e->state);
	e->state = malloc(length + 1);
	memcpy(e->state, state, length);
	e->loaded = length;
	return e->load_answer ? bm_fail(error, BM_E_ENOSPC, "no room for it") : 0;
}

static void throttle(void *arg, unsigned percent)
{
	((struct end *)arg)->throttled = (int)percent;
}

static void released(void *arg)
{
	((struct end *)arg)->released++;
}

static void quit(void *arg)
{
	((struct end *)arg)->quit++;
}

static const struct bm_precopy_ops ops = {pause_guest, resume_guest, save, load,
					  throttle,    released,     quit};

/* What is between the hosts: whatever comes from one goes to the other. */
static void *pump(void *arg)
{
	int *pair = arg;
	char data[65536];
	ssize_t n;

	while ((n = recv(pair[0], data, sizeof(data), 0)) > 0)
		if (send(pair[1], data, (size_t)n, MSG_NOSIGNAL) < n)
			break;
	shutdown(pair[0], SHUT_RDWR);
	shutdown(pair[1], SHUT_RDWR);
	free(pair);
	return NULL;
}

static void begin_pump(int from, int to)
{
	int *pair = malloc(2 * sizeof(int));
	pthread_t thread;

	pair[0] = from;
	pair[1] = to;
	assert_int_equal(pthread_create(&thread, NULL, pump, pair), 0);
	pthread_detach(thread);
}

static void *relay(void *arg)
{
	(void)arg;
	for (;;) {
		int target = accept(rig.listener[1], NULL, NULL);
		int source = target < 0 ? -1 : accept(rig.listener[0], NULL, NULL);

		if (source < 0)
			return NULL;
		begin_pump(source, target);
		begin_pump(target, source);
	}
}

static int listen_on(const char *name)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s", rig.dir, name);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(fd, 16), 0);
	return fd;
}

static void make_end(struct end *e, struct blind *blind, bool incoming)
{
	struct bm_precopy_machine machine = {"thing", 7, 7, e->region, REGIONS};
	struct bm_error error;

	*blind = (struct blind){.tracker.ops = &blind_ops};
	e->state_size = 100;
	for (unsigned i = 0; i < REGIONS; i++) {
		snprintf(e->names[i], sizeof(e->names[i]), "ram%u", i);
		e->region[i] = (struct bm_ram_region){e->names[i], aligned_alloc(BM_RAM_PAGE, SIZE),
						      SIZE, i};
		memset(e->region[i].host, incoming ? 0xee : 0, SIZE);
	}
	snprintf(e->path, sizeof(e->path), "%s/%s.sock", rig.dir, incoming ? "t" : "s");
	assert_int_equal(bm_precopy_new(rig.loop, &machine, &ops, e, &blind->tracker, incoming,
					&e->precopy, &error),
			 0);
	assert_int_equal(bm_precopy_listen(e->precopy, e->path, &error), 0);
}

static void *run_loop(void *arg)
{
	bm_loop_run(arg);
	return NULL;
}

static void stop_loop(struct bm_task *task)
{
	(void)task;
	bm_loop_stop(rig.loop);
}

static int set_up(void **state)
{
	struct bm_error error;

	(void)state;
	memset(&rig, 0, sizeof(rig));
	strcpy(rig.dir, "/tmp/precopy-XXXXXX");
	assert_non_null(mkdtemp(rig.dir));
	rig.loop = bm_loop_new();
	rig.stop.run = stop_loop;
	make_end(&rig.source, &rig.blind[0], false);
	make_end(&rig.target, &rig.blind[1], true);
	rig.listener[0] = listen_on("rs");
	rig.listener[1] = listen_on("rt");
	pthread_create(&rig.relay, NULL, relay, NULL);
	pthread_create(&rig.thread, NULL, run_loop, rig.loop);
	assert_int_equal(bm_client_connect(rig.source.path, &rig.source.client, &error), 0);
	assert_int_equal(bm_client_connect(rig.target.path, &rig.target.client, &error), 0);
	return 0;
}

static void end_end(struct end *e)
{
	bm_client_close(e->client);
	bm_precopy_free(e->precopy);
	for (unsigned i = 0; i < REGIONS; i++)
		free(e->region[i].host);
	free(e->state);
}

static int tear_down(void **state)
{
	char path[64];

	(void)state;
	bm_loop_post(rig.loop, &rig.stop);
	pthread_join(rig.thread, NULL);
	for (int i = 0; i < 2; i++)
		shutdown(rig.listener[i], SHUT_RDWR);
	pthread_join(rig.relay, NULL);
	end_end(&rig.source);
	end_end(&rig.target);
	bm_loop_free(rig.loop);
	assert_int_equal(rig.blind[0].freed, 1);
	for (int i = 0; i < 2; i++) {
		close(rig.listener[i]);
		snprintf(path, sizeof(path), "%s/r%c", rig.dir, i ? 't' : 's');
		unlink(path);
	}
	rmdir(rig.dir);
	return 0;
}

/* The test's thread is the mover. */

static json_t *order(struct end *e, const char *method, json_t *more)
{
	struct bm_error error;
	json_t *result = NULL;

	if (!more)
		more = json_object();
	json_object_set_new(more, "move", json_string("m"));
	if (bm_client_call(e->client, method, more, &result, &error))
		fail_msg("%s: %s", method, error.text);
	return result;
}

static void give(struct end *e, const char *method, json_t *more)
{
	json_decref(order(e, method, more));
}

static void begin(json_t *more)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/rt", rig.dir);
	give(&rig.target, "incoming",
	     json_pack("{s:s s:i}", "connect", path, "connections", LINKS));
	snprintf(path, sizeof(path), "%s/rs", rig.dir);
	json_object_set_new(more, "connect", json_string(path));
	json_object_set_new(more, "connections", json_integer(LINKS));
	give(&rig.source, "start", more);
}

static bool is(struct end *e, const char *key, const char *value)
{
	json_t *status = order(e, "status", NULL), *found = json_object_get(status, key);
	bool same = json_is_string(found) ? !strcmp(json_string_value(found), value)
					  : json_is_true(found) == !strcmp(value, "yes");

	json_decref(status);
	return same;
}

static void until(struct end *e, const char *key, const char *value)
{
	for (int i = 0; i < 2000; i++) {
		if (is(e, key, value))
			return;
		usleep(5000);
	}
	fail_msg("%s is never %s", key, value);
}

static void assert_why(const char *code, const char *words)
{
	json_t *status = order(&rig.source, "status", NULL);

	assert_string_equal(json_string_value(json_object_get(status, "code")), code);
	assert_non_null(strstr(json_string_value(json_object_get(status, "why")), words));
	json_decref(status);
}

static void assert_same_ram(void)
{
	for (unsigned i = 0; i < REGIONS; i++)
		assert_memory_equal(rig.source.region[i].host, rig.target.region[i].host, SIZE);
}

static struct bm_precopy *taken_from(struct end *e)
{
	struct bm_precopy *p = e->precopy;

	e->precopy = NULL;
	return p;
}

static void what_the_vmm_writes_itself_is_sent_when_it_says_so(void **state)
{
	struct bm_ram_region *region = rig.source.region;

	(void)state;
	for (size_t i = 0; i < SIZE; i++)
		region[1].host[i] = (uint8_t)rand();
	begin(json_object());
	until(&rig.source, "converged", "yes");
	/* Over the edge of a page, over the edge of a word of bits, the last byte. */
	memset(region[0].host + 3 * BM_RAM_PAGE - 2, 7, 4);
	bm_precopy_dirty(rig.source.precopy, 0, 3 * BM_RAM_PAGE - 2, 4);
	memset(region[1].host, 9, SIZE);
	bm_precopy_dirty(rig.source.precopy, 1, 0, SIZE);
	region[2].host[SIZE - 1] = 1;
	bm_precopy_dirty(rig.source.precopy, 2, SIZE - 1, 1);
	/* What is nowhere is nothing. */
	bm_precopy_dirty(rig.source.precopy, 2, SIZE, BM_RAM_PAGE);
	bm_precopy_dirty(rig.source.precopy, REGIONS, 0, 1);
	give(&rig.source, "pause", NULL);
	until(&rig.source, "loaded", "yes");
	assert_same_ram();
	assert_int_equal(rig.target.resumed, 0);
	give(&rig.source, "release", NULL);
	assert_int_equal(bm_precopy_state(rig.source.precopy), BM_PRECOPY_RELEASED);
	assert_int_equal(rig.source.released, 1);
	assert_int_equal(rig.source.resumed, 0);
	give(&rig.target, "run", NULL);
	give(&rig.source, "quit", NULL);
	assert_int_equal(rig.target.resumed, 1);
	for (int i = 0; i < 1000 && !rig.source.quit; i++)
		usleep(1000); /* it answers first */
	assert_int_equal(rig.source.quit, 1);
	assert_true(rig.blind[0].stopped > 0);
}

static void a_large_state_arrives(void **state)
{
	(void)state;
	rig.source.state_size = BIG;
	begin(json_pack("{s:b}", "auto", 1));
	until(&rig.target, "state", "loaded");
	assert_int_equal(rig.target.loaded, BIG);
	for (size_t i = 0; i < BIG; i++)
		if (rig.target.state[i] != (uint8_t)(i * 31 >> 3))
			fail_msg("byte %zu of it", i);
	assert_same_ram();
}

static void one_that_cannot_be_stopped_runs_on(void **state)
{
	(void)state;
	rig.source.pause_answer = -EBUSY;
	begin(json_pack("{s:b}", "auto", 1));
	until(&rig.source, "state", "running");
	assert_why("E_LOCKED", "cannot be stopped");
	assert_int_equal(rig.source.paused, 1);
	assert_int_equal(rig.source.resumed, 0);
	until(&rig.target, "state", "waiting");
}

/* Told to end while it is being stopped: it has to be stopped first. */
static void an_abort_waits_for_the_pause(void **state)
{
	(void)state;
	rig.source.pause_answer = 1;
	begin(json_pack("{s:b}", "auto", 1));
	until(&rig.source, "state", "pausing");
	give(&rig.source, "abort", NULL);
	assert_true(is(&rig.source, "state", "pausing"));
	assert_int_equal(rig.source.resumed, 0);
	bm_precopy_paused(rig.source.precopy, 0);
	until(&rig.source, "state", "running");
	assert_int_equal(rig.source.resumed, 1);
	/* The same when it could not be stopped. */
	begin(json_pack("{s:b}", "auto", 1));
	until(&rig.source, "state", "pausing");
	give(&rig.source, "abort", NULL);
	bm_precopy_paused(rig.source.precopy, -EIO);
	until(&rig.source, "state", "running");
	assert_int_equal(rig.source.resumed, 1);
	assert_why("E_CANCELLED", "cancelled");
}

static void a_state_that_cannot_be_saved_ends_it(void **state)
{
	(void)state;
	rig.source.save_answer = -EIO;
	begin(json_pack("{s:b}", "auto", 1));
	until(&rig.source, "state", "running");
	assert_why("E_IO", "state of the machine's devices");
	assert_int_equal(rig.source.resumed, 1);
}

static void a_state_that_cannot_be_loaded_ends_it(void **state)
{
	(void)state;
	rig.target.load_answer = 1;
	begin(json_pack("{s:b}", "auto", 1));
	until(&rig.source, "state", "running");
	assert_why("E_ENOSPC", "refuses: no room for it");
	assert_int_equal(rig.source.resumed, 1);
	until(&rig.target, "state", "waiting");
	/* And again, when there is room. */
	rig.target.load_answer = 0;
	begin(json_pack("{s:b}", "auto", 1));
	until(&rig.source, "loaded", "yes");
	assert_same_ram();
}

static void a_tracker_that_fails_ends_it(void **state)
{
	(void)state;
	rig.blind[0].start_answer = -1;
	begin(json_object());
	until(&rig.source, "state", "running");
	assert_why("E_UNSUPPORTED", "it starts not");
	until(&rig.target, "state", "waiting");
	rig.blind[0].start_answer = 0;
	rig.blind[0].take_answer = -1;
	begin(json_object());
	until(&rig.source, "state", "running");
	assert_why("E_IO", "it sees not");
	assert_int_equal(rig.source.paused, 0);
}

static void freed_while_paused_the_guest_is_left(void **state)
{
	(void)state;
	begin(json_pack("{s:b}", "auto", 1));
	until(&rig.source, "loaded", "yes");
	/* tear_down() frees both; nothing is called. */
	bm_loop_post(rig.loop, &rig.stop);
	pthread_join(rig.thread, NULL);
	bm_precopy_free(taken_from(&rig.source));
	assert_int_equal(rig.source.resumed, 0);
	pthread_create(&rig.thread, NULL, run_loop, rig.loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
		T(what_the_vmm_writes_itself_is_sent_when_it_says_so),
		T(a_large_state_arrives),
		T(one_that_cannot_be_stopped_runs_on),
		T(an_abort_waits_for_the_pause),
		T(a_state_that_cannot_be_saved_ends_it),
		T(a_state_that_cannot_be_loaded_ends_it),
		T(a_tracker_that_fails_ends_it),
		T(freed_while_paused_the_guest_is_left),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
