/* SPDX-License-Identifier: BSD-3-Clause */
/* The daemon's registry, its delays, and its calls to disk processes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/daemon/daemon.h"
#include "blockmirror/daemon/peer.h"

static char folder[] = "/tmp/blockmirror-daemon.XXXXXX";
static char names[200];

static char *in_folder(const char *name)
{
	static char path[200];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return path;
}

static void put(const char *name, const char *text)
{
	assert_int_equal(bm_write_durably(in_folder(name), text, strlen(text)), 0);
}

static void found(void *arg, const char *name, json_t *limits, json_t *received)
{
	(void)arg;
	assert_true(registry_limits_good(limits));
	snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s ", name,
		 limits ? json_string_value(json_object_get(limits, "max-data")) : "");
	if (received)
		snprintf(names + strlen(names), sizeof(names) - strlen(names), "of %s:%u (%s) ",
			 registry_peer(received), registry_port(received), registry_disk(received));
}

static void assert_registry(const char *expected)
{
	struct bm_error error;

	*names = '\0';
	assert_int_equal(registry_read(folder, found, NULL, &error), 0);
	assert_string_equal(names, expected);
}

static void what_is_added_is_there_until_it_is_removed(void **state)
{
	struct bm_error error;
	json_t *limits;

	(void)state;
	assert_registry("");
	assert_int_equal(registry_add(folder, "web", NULL, NULL, &error), 0);
	assert_int_equal(registry_add(folder, "db.1", NULL, NULL, &error), 0);
	assert_int_equal(registry_add(folder, "web", NULL, NULL, &error), 0); /* twice is once */
	assert_registry("db.1 web ");
	assert_int_equal(registry_remove(folder, "web", &error), 0);
	assert_int_equal(registry_remove(folder, "web", &error), 0); /* it is gone: that is all */
	limits = json_pack("{s:s}", "max-data", "4M");
	assert_int_equal(registry_add(folder, "db.1", limits, NULL, &error), 0);
	assert_registry("db.14M ");
	json_object_set_new(limits, "run-dir", json_string("/elsewhere"));
	assert_false(registry_limits_good(limits));
	json_decref(limits);
	assert_int_equal(registry_add(folder, "db.1", NULL, NULL, &error), 0);
	assert_registry("db.1 ");
	assert_int_equal(registry_remove(folder, "db.1", &error), 0);
	assert_registry("");
}

static void whose_a_standby_is_stays_known(void **state)
{
	json_t *received =
		json_pack("{s:s s:s s:i}", "peer", "host-a", "disk", "12ab", "port", 4711);
	struct bm_error error;

	(void)state;
	assert_int_equal(registry_add(folder, "theirs", NULL, received, &error), 0);
	assert_registry("theirs of host-a:4711 (12ab) ");
	json_decref(received);
	put("theirs.json", "{\"format\":1,\"name\":\"theirs\",\"received\":{\"peer\":\"host-a\"}}");
	assert_registry("");
	assert_int_equal(registry_remove(folder, "theirs", &error), 0);
}

static void what_is_damaged_is_left_out_and_left_alone(void **state)
{
	static const char *const bad[] = {
		"",
		"{",
		"[]",
		"{\"format\":2,\"name\":\"bad\"}",
		"{\"format\":1,\"name\":\"good\"}",
		"{\"format\":\"1\",\"name\":\"bad\"}",
		"{\"format\":1}",
		"{\"name\":\"bad\"}",
	};
	struct bm_error error;

	(void)state;
	assert_int_equal(registry_add(folder, "good", NULL, NULL, &error), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		char *text = NULL;

		put("bad.json", bad[i]);
		assert_registry("good ");
		assert_int_equal(bm_read_text(in_folder("bad.json"), 100, &text), 0);
		assert_string_equal(text, bad[i]);
		free(text);
	}
	assert_int_equal(registry_add(folder, "bad", NULL, NULL, &error), 0); /* serve mends it */
	assert_registry("bad good ");
	registry_remove(folder, "bad", &error);
	registry_remove(folder, "good", &error);
}

static void what_is_no_entry_is_none(void **state)
{
	struct bm_error error;
	char huge[8192];

	(void)state;
	memset(huge, ' ', sizeof(huge));
	snprintf(huge, sizeof(huge), "{\"format\":1,\"name\":\"huge\"}");
	huge[strlen(huge)] = ' ';
	huge[sizeof(huge) - 1] = '\0';
	assert_int_equal(registry_add(folder, "good", NULL, NULL, &error), 0);
	put(".web.new", "{\"format\":1,\"name\":\"web\"}"); /* a crash before the rename */
	put("web.json~", "{\"format\":1,\"name\":\"web\"}");
	put("web", "{\"format\":1,\"name\":\"web\"}");
	put("a b.json", "{\"format\":1,\"name\":\"a b\"}");
	put("huge.json", huge);
	mkdir(in_folder("dir.json"), 0700);
	assert_registry("good ");
	rmdir(in_folder("dir.json"));
	unlink(in_folder("huge.json"));
	unlink(in_folder("a b.json"));
	unlink(in_folder("web"));
	unlink(in_folder("web.json~"));
	unlink(in_folder(".web.new"));
	registry_remove(folder, "good", &error);
}

static void a_registry_that_cannot_be_written_says_so(void **state)
{
	struct bm_error error = {0};

	(void)state;
	assert_int_equal(registry_add(in_folder("none"), "web", NULL, NULL, &error), -ENOENT);
	assert_int_equal(error.code, BM_E_NOT_FOUND);
	mkdir(in_folder("web.json"), 0700); /* in the way of the rename */
	assert_true(registry_add(folder, "web", NULL, NULL, &error) < 0);
	assert_int_equal(access(in_folder(".web.new"), F_OK), -1);
	rmdir(in_folder("web.json"));
	assert_true(registry_read(in_folder("none"), found, NULL, &error) < 0);
}

static void delays_grow_to_seconds_and_no_further(void **state)
{
	uint64_t before = 0;

	(void)state;
	assert_int_equal(served_delay(0), 0);
	assert_int_equal(served_delay(1), 0);
	assert_int_equal(served_delay(2), 100000000u);
	for (unsigned quick = 2; quick < 9; quick++) {
		assert_true(served_delay(quick) > before);
		before = served_delay(quick);
	}
	assert_int_equal(served_delay(9), 10000000000u);
	assert_int_equal(served_delay(4000000000u), 10000000000u);
}

/* Calls: a listening socket that the test answers for. */

struct rig {
	struct bm_loop *loop;
	struct ask ask;
	int listener, peer;
	unsigned answers;
	struct bm_error error;
};

static void answered(struct ask *ask, const struct bm_error *error)
{
	struct rig *rig = bm_container(ask, struct rig, ask);

	rig->answers++;
	rig->error = error ? *error : (struct bm_error){0};
}

static void begin(struct rig *rig)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	char line[200] = "";

	*rig = (struct rig){.loop = bm_loop_new()};
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/sock", folder);
	unlink(address.sun_path);
	rig->listener = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(rig->listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(rig->listener, 1), 0);
	ask_init(&rig->ask, rig->loop);
	assert_int_equal(ask_begin(&rig->ask, address.sun_path, "stop", answered), 0);
	rig->peer = accept(rig->listener, NULL, NULL);
	assert_true(read(rig->peer, line, sizeof(line) - 1) > 0);
	assert_non_null(strstr(line, "\"method\":\"stop\""));
}

static void say(struct rig *rig, const char *text)
{
	assert_int_equal(write(rig->peer, text, strlen(text)), strlen(text));
}

static void end(struct rig *rig)
{
	assert_int_equal(rig->ask.watch.fd, -1);
	close(rig->peer);
	close(rig->listener);
	unlink(in_folder("sock"));
	bm_loop_free(rig->loop);
}

static void turn(struct rig *rig)
{
	bm_loop_turn(rig->loop, 1000000000u);
}

static void an_answer_may_come_in_pieces(void **state)
{
	struct rig rig;

	(void)state;
	begin(&rig);
	say(&rig, "{\"jsonrpc\":\"2.0\",\"id\":1,");
	turn(&rig);
	assert_int_equal(rig.answers, 0);
	say(&rig, "\"result\":{\"v\":1}}\n");
	turn(&rig);
	assert_int_equal(rig.answers, 1);
	assert_int_equal(rig.error.code, BM_OK);
	end(&rig);
}

static void an_error_is_passed_on(void **state)
{
	struct rig rig;

	(void)state;
	begin(&rig);
	say(&rig, "{\"id\":1,\"error\":{\"code\":-32000,\"message\":\"a client\",\"data\":"
		  "{\"code\":\"E_BUSY\"}}}\n");
	turn(&rig);
	assert_int_equal(rig.error.code, BM_E_BUSY);
	assert_string_equal(rig.error.text, "a client");
	end(&rig);
}

static void nonsense_is_an_error(void **state)
{
	static const char *const lines[] = {"\n", "nonsense\n", "[]\n", "{}\n", "{\"error\":1}\n"};
	char endless[2000];
	struct rig rig;

	(void)state;
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		begin(&rig);
		say(&rig, lines[i]);
		turn(&rig);
		assert_int_equal(rig.answers, 1);
		assert_int_equal(rig.error.code, BM_E_INTERNAL);
		end(&rig);
	}
	begin(&rig);
	memset(endless, 'x', sizeof(endless) - 1);
	endless[sizeof(endless) - 1] = '\0';
	say(&rig, endless);
	turn(&rig);
	assert_int_equal(rig.error.code, BM_E_INTERNAL);
	end(&rig);
}

static void an_end_without_an_answer_is_told(void **state)
{
	struct rig rig;

	(void)state;
	begin(&rig);
	shutdown(rig.peer, SHUT_RDWR);
	turn(&rig);
	assert_int_equal(rig.answers, 1);
	assert_int_equal(rig.error.code, BM_E_UNREACHABLE);
	end(&rig);
}

/* The end of a process may be seen before what it said. */
static void an_answer_that_was_left_behind_counts(void **state)
{
	struct rig rig;

	(void)state;
	begin(&rig);
	say(&rig, "{\"id\":1,\"result\":{}}\n");
	ask_finish(&rig.ask);
	assert_int_equal(rig.answers, 1);
	assert_int_equal(rig.error.code, BM_OK);
	ask_finish(&rig.ask);
	assert_int_equal(rig.answers, 1);
	end(&rig);
	begin(&rig);
	ask_finish(&rig.ask);
	assert_int_equal(rig.error.code, BM_E_UNREACHABLE);
	end(&rig);
}

static void nobody_there_is_told_at_once(void **state)
{
	struct rig rig = {.loop = bm_loop_new()};

	(void)state;
	ask_init(&rig.ask, rig.loop);
	assert_int_equal(ask_begin(&rig.ask, in_folder("none"), "stop", answered), -ENOENT);
	assert_int_equal(rig.ask.watch.fd, -1);
	bm_loop_free(rig.loop);
}

static int make_scratch(void **state)
{
	(void)state;
	bm_log_setup("daemon_test", BM_LOG_ERROR - 1);
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_scratch(void **state)
{
	(void)state;
	return rmdir(folder);
}

/* What a peer may have us open */

static const char *share(const char *allowed, const char *uri)
{
	static char *found;
	json_t *list = json_pack("[s]", allowed);
	struct bm_error error;
	int r;

	free(found);
	found = NULL;
	assert_int_equal(share_check_list(list, &error), 0);
	r = share_find(list, uri, &found, &error);
	json_decref(list);
	assert_int_equal(r, found ? 0 : -EACCES);
	return found;
}

static void a_peer_has_what_is_in_a_folder_opened_and_nothing_else(void **state)
{
	char inside[300], outside[300], link[300], path[400];

	(void)state;
	snprintf(inside, sizeof(inside), "%s/in", folder);
	snprintf(outside, sizeof(outside), "%s/in.img", folder);
	snprintf(link, sizeof(link), "%s/in/link", folder);
	snprintf(path, sizeof(path), "%s/in/a.img", folder);
	assert_int_equal(mkdir(inside, 0700), 0);
	put("in.img", "x");
	put("in/a.img", "x");
	assert_string_equal(share(inside, path), path);
	assert_string_equal(share(path, path), path);
	assert_string_equal(share("/", path), path);
	assert_null(share(inside, outside)); /* it begins as the folder does */
	assert_null(share(path, inside));
	snprintf(path, sizeof(path), "%s/../in.img", inside);
	assert_null(share(inside, path));
	assert_int_equal(symlink(outside, link), 0);
	assert_null(share(inside, link));
	assert_string_equal(share(outside, link), outside);
	snprintf(path, sizeof(path), "%s/none.img", inside);
	assert_null(share(inside, path));
	assert_null(share("nbd://", "/etc/passwd"));
	unlink(link);
	unlink(outside);
	snprintf(path, sizeof(path), "%s/a.img", inside);
	unlink(path);
	rmdir(inside);
}

static void a_peer_has_servers_asked_that_it_was_told(void **state)
{
	static const char *const good[][2] = {
		{"nbd://10.0.0.5", "nbd://10.0.0.5/web"},
		{"nbd://10.0.0.5", "nbd://10.0.0.5"},
		{"nbd://10.0.0.5/", "nbd://10.0.0.5/web"},
		{"nbd://10.0.0.5", "nbd://someone@10.0.0.5/web"},
		{"iscsi://10.0.0.5:3260", "iscsi://user%secret@10.0.0.5:3260/iqn.2026-01.x:y/1"},
		{"iscsi://10.0.0.5/iqn.2026-01.x:y", "iscsi://10.0.0.5/iqn.2026-01.x:y/1"},
		{"nbds://h/x?tls-psk-file=/etc/k", "nbds://h/x?tls-psk-file=/etc/k"},
		{"nbd+unix:///x?socket=/run/x", "nbd+unix:///x?socket=/run/x"},
	};
	static const char *const bad[][2] = {
		{"nbd://10.0.0.5", "nbd://10.0.0.55/web"},
		{"nbd://10.0.0.5", "nbd://10.0.0.5.example.org/web"},
		{"nbd://10.0.0.5", "nbd://10.0.0.5:22/web"},
		{"nbd://10.0.0.5", "nbd://10.0.0.5@other/web"},
		{"nbd://10.0.0.5", "nbds://10.0.0.5/web"},
		{"nbd://10.0.0.5/web", "nbd://10.0.0.5/web2"},
		{"nbd://10.0.0.5/web/", "nbd://10.0.0.5/web/../x"},
		{"nbd://10.0.0.5", "nbd://10.0.0.5/w%65b"},
		{"nbds://h/x", "nbds://h/x?tls-psk-file=/etc/shadow"},
		{"nbd+unix:///x", "nbd+unix:///x?socket=/run/x"},
		{"iscsi://10.0.0.5", "iscsi://10.0.0.5/iqn/1?target_user=x"},
		{"/", "nbd://10.0.0.5/web"},
		{"nbd://10.0.0.5", "fault:x;nbd://10.0.0.5"},
	};
	json_t *list = json_pack("[s]", "mem:1M");
	struct bm_error error;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		assert_string_equal(share(good[i][0], good[i][1]), good[i][1]);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_null(share(bad[i][0], bad[i][1]));
	assert_true(share_check_list(list, &error) < 0);
	json_decref(list);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_added_is_there_until_it_is_removed),
		cmocka_unit_test(whose_a_standby_is_stays_known),
		cmocka_unit_test(what_is_damaged_is_left_out_and_left_alone),
		cmocka_unit_test(what_is_no_entry_is_none),
		cmocka_unit_test(a_registry_that_cannot_be_written_says_so),
		cmocka_unit_test(a_peer_has_what_is_in_a_folder_opened_and_nothing_else),
		cmocka_unit_test(a_peer_has_servers_asked_that_it_was_told),
		cmocka_unit_test(delays_grow_to_seconds_and_no_further),
		cmocka_unit_test(an_answer_may_come_in_pieces),
		cmocka_unit_test(an_error_is_passed_on),
		cmocka_unit_test(nonsense_is_an_error),
		cmocka_unit_test(an_end_without_an_answer_is_told),
		cmocka_unit_test(an_answer_that_was_left_behind_counts),
		cmocka_unit_test(nobody_there_is_told_at_once),
	};

	return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
