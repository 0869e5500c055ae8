/* SPDX-License-Identifier: BSD-3-Clause */
/* A QMP client beside a server that says little: how long it waits, and what it hears meanwhile. */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/machine/qmp.h"

static const char greeting[] = "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7, \"minor\": 2, "
			       "\"micro\": 0}}, \"capabilities\": []}}\n";
static char path[64];
static int listener, served = -1;
static unsigned heard, guarded;

static void say(const char *line)
{
	assert_int_equal(send(served, line, strlen(line), MSG_NOSIGNAL), strlen(line));
}

/* As far as the first command. */
static void *serve(void *arg)
{
	char command[200];

	(void)arg;
	served = accept(listener, NULL, NULL);
	say(greeting);
	if (recv(served, command, sizeof(command), 0) > 0)
		say("{\"return\": {}, \"id\": 1}\n");
	return NULL;
}

static struct bm_qmp *connect_qmp(void)
{
	struct bm_qmp *qmp;
	struct bm_error error;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, serve, NULL), 0);
	assert_int_equal(bm_qmp_connect(path, &qmp, &error), 0);
	pthread_join(thread, NULL);
	return qmp;
}

static void disconnect(struct bm_qmp *qmp)
{
	bm_qmp_close(qmp);
	close(served);
}

static void on_event(void *arg, const char *name, const json_t *data, uint64_t at)
{
	(void)arg;
	(void)data;
	(void)at;
	assert_string_equal(name, "STOP");
	heard++;
}

static void on_guard(void *arg)
{
	(void)arg;
	guarded++;
}

static uint64_t clock_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Each of these is in a machine's pause. */
static void it_listens_no_longer_than_it_was_told(void **state)
{
	struct bm_qmp *qmp = connect_qmp();
	uint64_t begun = clock_ms(), took;
	struct bm_error error;

	(void)state;
	for (int i = 0; i < 40; i++)
		assert_int_equal(bm_qmp_listen(qmp, 1, &error), 0);
	took = clock_ms() - begun;
	assert_in_range(took, 40, 2000); /* 100 ms each were 4000 */
	disconnect(qmp);
}

static void an_event_ends_it(void **state)
{
	struct bm_qmp *qmp = connect_qmp();
	uint64_t begun = clock_ms();
	struct bm_error error;

	(void)state;
	heard = 0;
	bm_qmp_set_events(qmp, on_event, NULL);
	say("{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\n");
	assert_int_equal(bm_qmp_listen(qmp, 60000, &error), 0);
	assert_int_equal(heard, 1);
	assert_in_range(clock_ms() - begun, 0, 30000);
	disconnect(qmp);
}

static void its_guard_looks_while_it_waits(void **state)
{
	struct bm_qmp *qmp = connect_qmp();
	struct bm_error error;

	(void)state;
	guarded = 0;
	bm_qmp_set_guard(qmp, on_guard, NULL);
	assert_int_equal(bm_qmp_listen(qmp, 350, &error), 0);
	assert_in_range(guarded, 1, 4);
	disconnect(qmp);
}

static int begin(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	(void)state;
	snprintf(path, sizeof(path), "/tmp/qmp_test.%d", (int)getpid());
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	return bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1);
}

static int end(void **state)
{
	(void)state;
	close(listener);
	return unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_listens_no_longer_than_it_was_told),
		cmocka_unit_test(an_event_ends_it),
		cmocka_unit_test(its_guard_looks_while_it_waits),
	};

	return cmocka_run_group_tests(tests, begin, end);
}
