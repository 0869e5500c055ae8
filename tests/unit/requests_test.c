/* SPDX-License-Identifier: BSD-3-Clause */
/* What is kept of requests: beside a disk's record, and what an id stands for (cli/claim.h). */
// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/requests.h"
#include "blockmirror/cli/claim.h"

static char folder[64];

static int make_folder(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/requests_test.XXXXXX");
	return !mkdtemp(folder);
}

static int remove_folder(void **state)
{
	char command[100];

	(void)state;
	snprintf(command, sizeof(command), "rm -rf %s", folder);
	return system(command);
}

static json_t *job(int number, const char *id)
{
	return json_pack("{s:i s:s s:{s:s s:s}}", "number", number, "state", "done", "request",
			 "id", id, "digest", "d");
}

static void ids_name_files(void **state)
{
	char long_id[BM_REQUEST_ID + 2];

	(void)state;
	memset(long_id, 'x', sizeof(long_id));
	long_id[BM_REQUEST_ID + 1] = '\0';
	assert_int_equal(bm_request_check_id("vm-7:disk_1@2026+a.b", NULL), 0);
	assert_int_equal(bm_request_check_id("", NULL), -EINVAL);
	assert_int_equal(bm_request_check_id(".", NULL), -EINVAL);
	assert_int_equal(bm_request_check_id("..", NULL), -EINVAL);
	assert_int_equal(bm_request_check_id("a/b", NULL), -EINVAL);
	assert_int_equal(bm_request_check_id("a b", NULL), -EINVAL);
	assert_int_equal(bm_request_check_id("a\nb", NULL), -EINVAL);
	assert_int_equal(bm_request_check_id(long_id, NULL), -EINVAL);
	assert_int_equal(bm_request_check_id(long_id + 1, NULL), 0);
}

static void a_digest_does_not_depend_on_the_order(void **state)
{
	char one[BM_REQUEST_DIGEST], two[BM_REQUEST_DIGEST];
	json_t *a = json_pack("{s:s s:i}", "disk", "web", "rate", 5);
	json_t *b = json_pack("{s:i s:s}", "rate", 5, "disk", "web");

	(void)state;
	bm_request_digest(a, one);
	bm_request_digest(b, two);
	assert_string_equal(one, two);
	json_object_set_new(b, "rate", json_integer(6));
	bm_request_digest(b, two);
	assert_string_not_equal(one, two);
	json_decref(a);
	json_decref(b);
}

static void the_last_ones_are_kept(void **state)
{
	json_t *jobs, *plain = json_pack("{s:i}", "number", 1);
	struct bm_error error;
	char id[16];

	(void)state;
	assert_int_equal(bm_requests_keep(folder, plain, &error), 0); /* nobody asks for it */
	assert_int_equal(bm_requests_read(folder, &jobs, &error), 0);
	assert_int_equal(json_array_size(jobs), 0);
	json_decref(jobs);
	for (int i = 0; i < BM_REQUESTS_KEPT + 3; i++) {
		json_t *one;

		snprintf(id, sizeof(id), "r%d", i);
		one = job(i, id);
		assert_int_equal(bm_requests_keep(folder, one, &error), 0);
		assert_int_equal(bm_requests_keep(folder, one, &error), 0); /* twice is once */
		json_decref(one);
	}
	assert_int_equal(bm_requests_read(folder, &jobs, &error), 0);
	assert_int_equal(json_array_size(jobs), BM_REQUESTS_KEPT);
	assert_null(bm_requests_find(jobs, "r2"));
	assert_non_null(bm_requests_find(jobs, "r3"));
	assert_int_equal(json_integer_value(json_object_get(bm_requests_find(jobs, id), "number")),
			 BM_REQUESTS_KEPT + 2);
	json_decref(jobs);
	json_decref(plain);
}

static void what_is_damaged_is_not_empty(void **state)
{
	struct bm_error error;
	json_t *jobs, *one = job(1, "r1");
	char path[100];
	FILE *f;

	(void)state;
	snprintf(path, sizeof(path), "%s/requests", folder);
	f = fopen(path, "w");
	fputs("{\"format\":1,\"jo", f);
	fclose(f);
	assert_int_not_equal(bm_requests_read(folder, &jobs, &error), 0);
	assert_int_equal(error.code, BM_E_RECORD);
	assert_int_not_equal(bm_requests_keep(folder, one, &error), 0);
	assert_int_equal(error.code, BM_E_RECORD);
	json_decref(one);
}

/* Claims */

static json_t *content(const char *target)
{
	return json_pack("{s:s s:s}", "disk", "web", "target", target);
}

static void an_id_means_one_thing(void **state)
{
	json_t *one = content("/b"), *other = content("/c");
	struct bm_error error;
	struct claim c, d;

	(void)state;
	assert_int_equal(claim_open(&c, folder, "r1", one, false, false, &error), -ENOENT);
	claim_close(&c);
	assert_int_equal(claim_open(&c, folder, "r1", one, true, false, &error), 0);
	assert_true(c.made && c.locked);
	/* Another call meanwhile: it knows, and has no lock. */
	assert_int_equal(claim_open(&d, folder, "r1", one, true, false, &error), 0);
	assert_true(!d.made && !d.locked);
	assert_false(claim_lock(&d, false));
	claim_close(&d);
	assert_int_not_equal(claim_open(&d, folder, "r1", other, true, false, &error), 0);
	assert_int_equal(error.code, BM_E_ID_REUSED);
	claim_close(&d);
	assert_int_equal(claim_note(&c, "answer", json_string("done"), &error), 0);
	claim_unlock(&c);
	assert_int_equal(claim_open(&d, folder, "r1", NULL, false, false, &error), 0);
	assert_true(d.locked && json_equal(json_object_get(d.said, "asked"), one));
	assert_string_equal(json_string_value(json_object_get(d.said, "answer")), "done");
	claim_drop(&d);
	claim_close(&d);
	claim_close(&c);
	assert_int_equal(claim_open(&c, folder, "r1", other, true, false, &error), 0);
	assert_true(c.made);
	/* Refused when nobody waited any more: another content is welcome. */
	assert_int_equal(claim_note(&c, "answer", json_pack("{s:s}", "state", "refused"), &error),
			 0);
	claim_close(&c);
	assert_int_equal(claim_open(&c, folder, "r1", one, true, false, &error), 0);
	assert_true(c.made && json_equal(json_object_get(c.said, "asked"), one));
	assert_null(json_object_get(c.said, "answer"));
	claim_close(&c);
	json_decref(one);
	json_decref(other);
}

/* Bytes of a line that was being written, at each length. */
static void a_torn_line_is_none(void **state)
{
	static const char line[] = "\n{\"format\":1,\"id\":\"r1\",\"asked\":{\"disk\":\"web\","
				   "\"target\":\"/b\"},\"answer\":\"done\"}\n";
	json_t *one = content("/b");
	struct bm_error error;
	struct claim c;

	(void)state;
	for (size_t n = 0; n < sizeof(line); n++) {
		int fd;

		assert_int_equal(claim_open(&c, folder, "r1", one, true, false, &error), 0);
		fd = open(c.path, O_WRONLY | O_APPEND);
		assert_int_equal(write(fd, line, n), n);
		close(fd);
		claim_close(&c);
		assert_int_equal(claim_open(&c, folder, "r1", NULL, false, false, &error), 0);
		assert_true(json_equal(json_object_get(c.said, "asked"), one));
		assert_true(!json_object_get(c.said, "answer") == (n + 1 < sizeof(line)));
		/* What comes after it is read. */
		assert_int_equal(claim_note(&c, "more", json_true(), &error), 0);
		claim_look(&c);
		assert_true(json_is_true(json_object_get(c.said, "more")));
		claim_drop(&c);
		claim_close(&c);
	}
	json_decref(one);
}

/* Killed before its first line: the file is there, and means nothing. */
static void a_claim_without_a_line_is_free(void **state)
{
	json_t *one = content("/b");
	struct bm_error error;
	struct claim c;
	char path[100];

	(void)state;
	snprintf(path, sizeof(path), "%s/requests", folder);
	assert_int_equal(claim_open(&c, folder, "x", one, true, false, &error), 0);
	claim_close(&c);
	snprintf(path, sizeof(path), "%s/requests/r1", folder);
	close(open(path, O_WRONLY | O_CREAT, 0600));
	assert_int_equal(claim_open(&c, folder, "r1", NULL, false, false, &error), -ENOENT);
	claim_close(&c);
	assert_int_equal(access(path, F_OK), -1);
	close(open(path, O_WRONLY | O_CREAT, 0600));
	assert_int_equal(claim_open(&c, folder, "r1", one, true, false, &error), 0);
	assert_true(c.made);
	claim_close(&c);
	json_decref(one);
}

enum { CALLERS = 8 };

/* Of many at the same time one is first, whatever they ask for. */
static void one_of_many_makes_it(void **state)
{
	int made = 0, reused = 0, pids[CALLERS];

	(void)state;
	for (int i = 0; i < CALLERS; i++) {
		pids[i] = fork();
		if (!pids[i]) {
			json_t *mine = content(i % 2 ? "/b" : "/c");
			struct bm_error error;
			struct claim c;
			int r = claim_open(&c, folder, "r1", mine, true, true, &error);

			_exit(r < 0 ? (error.code == BM_E_ID_REUSED ? 2 : 3) : c.made);
		}
	}
	for (int i = 0; i < CALLERS; i++) {
		int status;

		waitpid(pids[i], &status, 0);
		assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 3);
		made += WEXITSTATUS(status) == 1;
		reused += WEXITSTATUS(status) == 2;
	}
	assert_int_equal(made, 1);
	assert_int_equal(reused, CALLERS / 2);
}

static void the_oldest_make_room(void **state)
{
	json_t *one = content("/b");
	struct bm_error error;
	struct claim held, c;
	char path[100];
	int left = 0;

	(void)state;
	assert_int_equal(claim_open(&held, folder, "a-first", one, true, false, &error), 0);
	for (int i = 0; i < CLAIMS_KEPT; i++) {
		snprintf(path, sizeof(path), "%s/requests/f%d", folder, i);
		close(open(path, O_WRONLY | O_CREAT, 0600));
	}
	assert_int_equal(claim_open(&c, folder, "last", one, true, false, &error), 0);
	for (int i = 0; i < CLAIMS_KEPT; i++) {
		snprintf(path, sizeof(path), "%s/requests/f%d", folder, i);
		left += !access(path, F_OK);
	}
	assert_in_range(left, CLAIMS_KEPT * 8 / 10, CLAIMS_KEPT * 95 / 100);
	/* The oldest of all is being carried out. */
	snprintf(path, sizeof(path), "%s/requests/a-first", folder);
	assert_int_equal(access(path, F_OK), 0);
	claim_close(&held);
	claim_close(&c);
	json_decref(one);
}

int main(void)
{
#define in_folder(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ids_name_files),
		cmocka_unit_test(a_digest_does_not_depend_on_the_order),
		in_folder(the_last_ones_are_kept),
		in_folder(what_is_damaged_is_not_empty),
		in_folder(an_id_means_one_thing),
		in_folder(a_torn_line_is_none),
		in_folder(a_claim_without_a_line_is_free),
		in_folder(one_of_many_makes_it),
		in_folder(the_oldest_make_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
