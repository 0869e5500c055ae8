/* SPDX-License-Identifier: BSD-3-Clause */
/* URIs, units, records, marks, histograms, errors: what the programs share. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/address.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/hist.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"

static char folder[] = "/tmp/blockmirror-base.XXXXXX";

static char *in_folder(const char *name)
{
	static char path[200];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return path;
}

/* URIs */

static void assert_redacted(const char *text, const char *expected)
{
	char out[200], *copy = strdup(text);

	assert_string_equal(bm_uri_redact(text, out, sizeof(out)), expected);
	bm_uri_hide(copy);
	assert_int_equal(strlen(copy), strlen(text));
	assert_null(strstr(copy, "secret"));
	free(copy);
}

static void passwords_are_not_shown(void **state)
{
	(void)state;
	assert_redacted("iscsi://user%secret@host/iqn.a/1", "iscsi://user%***@host/iqn.a/1");
	assert_redacted("iscsi://user:secret@host:3260/iqn.a/1",
			"iscsi://user:***@host:3260/iqn.a/1");
	assert_redacted("iscsi://user%sec/secret@host/iqn.a/1", "iscsi://user%***@host/iqn.a/1");
	assert_redacted("iscsi://u%secret@h/i/1?target_user=t&target_password=secret&x=1",
			"iscsi://u%***@h/i/1?target_user=t&target_password=***&x=1");
	assert_redacted("nbd:?target_password=://.:secret@:secret", "nbd:?target_password=***");
	assert_redacted("x?target_password=secret&y://u:secret@h",
			"x?target_password=***&y://u:***@h");
	assert_redacted("iscsi://host/iqn.a/1?target_password=secret",
			"iscsi://host/iqn.a/1?target_password=***");
	assert_redacted(
		"nbds://host-a@10.0.0.2:4711/web?tls-psk-file=/s/k&peer=host-b&path=/srv/a%20b.img",
		"bm://host-b/srv/a b.img");
	assert_redacted("ISCSI://user%secret@host/x", "ISCSI://user%***@host/x");
	assert_redacted("iser://user%secret@host/x", "iser://user%***@host/x");
	assert_redacted("fault:op=read;iscsi://user%secret@host/x",
			"fault:op=read;iscsi://user%***@host/x");
}

static void what_is_no_password_is_shown(void **state)
{
	static const char *const texts[] = {
		"/srv/a%40b:c@d.img",
		"nbd://host:10809/export@home",
		"iscsi://host/iqn.a:b/1",
		"nbd+unix:///?socket=/run/a:b@c",
	};
	char out[200];

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		assert_string_equal(bm_uri_redact(texts[i], out, sizeof(out)), texts[i]);
}

static void assert_absolute(const char *text, const char *expected)
{
	char *absolute = bm_uri_absolute(text);

	assert_string_equal(absolute, expected);
	free(absolute);
}

static void names_mean_the_same_from_everywhere(void **state)
{
	char *here = getcwd(NULL, 0), expected[600];

	(void)state;
	assert_int_equal(chdir(folder), 0);
	snprintf(expected, sizeof(expected), "%s/a/../b/", folder);
	assert_absolute("a/../b/", expected); /* nothing is looked up, the slash stays */
	snprintf(expected, sizeof(expected), "%s/./a:b", folder);
	assert_absolute("./a:b", expected);
	snprintf(expected, sizeof(expected), "nbd+unix:///e?socket=%s/s&x=1", folder);
	assert_absolute("nbd+unix:///e?socket=s&x=1", expected);
	snprintf(expected, sizeof(expected),
		 "nbds://u@h/e?tls-certificates=%s/pki&tls-psk-file=%s/k%%20k", folder, folder);
	assert_absolute("nbds://u@h/e?tls-certificates=pki&tls-psk-file=k%20k", expected);
	snprintf(expected, sizeof(expected), "nbds+unix:///?socket=%s/s;tls-certificates=%%2fp",
		 folder);
	assert_absolute("nbds+unix:///?socket=s;tls-certificates=%2fp", expected);
	assert_absolute("nbds://h/e?tls-certificates=&a=b", "nbds://h/e?tls-certificates=&a=b");
	assert_absolute("iscsi://h/t/1?tls-psk-file=k", "iscsi://h/t/1?tls-psk-file=k");
	assert_absolute("file:/srv/x", "/srv/x");
	assert_absolute("qcow2:///srv/x", "qcow2:/srv/x");
	snprintf(expected, sizeof(expected), "vhdx:%s/a:b", folder);
	assert_absolute("vhdx:a:b", expected);
	assert_absolute("nbd+unix:///e?socket=/s", "nbd+unix:///e?socket=/s");
	assert_absolute("nbd://host/x", "nbd://host/x");
	assert_int_equal(chdir(here), 0);
	free(here);
}

static void assert_socket(const char *text, const char *expected)
{
	char *socket = bm_uri_socket(text);

	if (expected)
		assert_string_equal(socket, expected);
	else
		assert_null(socket);
	free(socket);
}

static void sockets_are_found_in_uris(void **state)
{
	(void)state;
	assert_socket("nbd+unix:///?socket=/run/a", "/run/a");
	assert_socket("nbds+unix:///e?x=1&socket=/run/a%20b%2Cc#f", "/run/a b,c");
	assert_socket("nbd+unix:///e?x=1;socket=/run/a;y=2", "/run/a");
	assert_socket("nbd+unix:///e?mysocket=/run/a", NULL);
	assert_socket("nbd://host/e?socket=/run/a", NULL);
	assert_socket("/run/a?socket=b", NULL);
}

static void schemes_are_told_apart(void **state)
{
	static const struct {
		const char *text;
		int scheme;
		const char *rest;
	} good[] = {
		{"/a", BM_SCHEME_FILE, "/a"},
		{"a b", BM_SCHEME_FILE, "a b"},
		{"./a:b", BM_SCHEME_FILE, "./a:b"},
		{"file:a", BM_SCHEME_FILE, "a"},
		{"file:///a", BM_SCHEME_FILE, "/a"},
		{"nbds+unix:///?socket=s", BM_SCHEME_NBD, "///?socket=s"},
		{"iscsi://h/t/1", BM_SCHEME_ISCSI, "//h/t/1"},
		{"mem:4M", BM_SCHEME_MEM, "4M"},
		{"fault:drop;mem:4M", BM_SCHEME_FAULT, "drop;mem:4M"},
		{"qcow2:a b", BM_SCHEME_FORMAT, "a b"},
		{"vmdk:///a", BM_SCHEME_FORMAT, "/a"},
		{"./qcow2:a", BM_SCHEME_FILE, "./qcow2:a"},
	};
	static const char *const bad[] = {
		"", "gopher://a", "file:", "nbd:", "a:b", "qcow2:", "qcow3:a", "raw:a"};
	struct bm_error error;
	struct bm_uri *uri;

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_int_equal(bm_uri_parse(good[i].text, &uri, &error), 0);
		assert_int_equal(uri->scheme, good[i].scheme);
		assert_string_equal(uri->rest, good[i].rest);
		free(uri);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_true(bm_uri_parse(bad[i], &uri, &error) < 0);
		assert_int_equal(error.code, BM_E_URI);
	}
}

static void assert_same(const char *a, const char *b)
{
	if (a && b)
		assert_string_equal(a, b);
	else
		assert_ptr_equal(a, b);
}

/* What is in a file has a path and perhaps a format; nothing but its name says which. */
static void formats_are_named(void **state)
{
	static const struct {
		const char *text, *format, *path;
	} v[] = {
		{"/a.qcow2", NULL, "/a.qcow2"}, {"file:qcow2:/a", NULL, "qcow2:/a"},
		{"qcow2:/a", "qcow2", "/a"},    {"vpc:file:/a", "vpc", "file:/a"},
		{"qcow:/a", "qcow", "/a"},      {"qcow22:/a", NULL, NULL},
		{"nbd://h/qcow2:", NULL, NULL}, {"fault:slow;qcow2:/a", NULL, NULL},
	};

	(void)state;
	for (size_t i = 0; i < sizeof(v) / sizeof(v[0]); i++) {
		char *like = bm_uri_like(v[i].text, "/b");

		assert_same(bm_uri_format(v[i].text), v[i].format);
		assert_same(bm_uri_path(v[i].text), v[i].path);
		assert_same(bm_uri_format(like), v[i].format);
		assert_same(bm_uri_path(like), "/b");
		free(like);
	}
}

static void canonical_paths_have_no_links(void **state)
{
	char link[200], expected[200], *real;

	(void)state;
	snprintf(link, sizeof(link), "%s/link", folder);
	assert_int_equal(symlink(folder, link), 0);
	snprintf(expected, sizeof(expected), "%s/new.img", folder);
	snprintf(link, sizeof(link), "%s/link/./new.img", folder);
	real = bm_uri_canonical(link);
	assert_string_equal(real, expected);
	free(real);
	snprintf(link, sizeof(link), "vdi:%s/link/./new.vdi", folder);
	snprintf(expected, sizeof(expected), "vdi:%s/new.vdi", folder);
	real = bm_uri_canonical(link);
	assert_string_equal(real, expected);
	free(real);
	unlink(in_folder("link"));
	assert_null(bm_uri_canonical("/no/such/folder/x"));
}

/* Units */

static void sizes_and_durations_are_read(void **state)
{
	uint64_t n;

	(void)state;
	assert_int_equal(bm_parse_size("512", &n), 0);
	assert_int_equal(n, 512);
	assert_int_equal(bm_parse_size("10G", &n), 0);
	assert_int_equal(n, 10ull << 30);
	assert_int_equal(bm_parse_size("1KiB", &n), 0);
	assert_int_equal(n, 1024);
	assert_true(bm_parse_size("-1", &n) < 0);
	assert_true(bm_parse_size("1X", &n) < 0);
	assert_true(bm_parse_size("", &n) < 0);
	assert_int_equal(bm_parse_size("9223372036854775808", &n), -ERANGE);
	assert_int_equal(bm_parse_size("8388608T", &n), -ERANGE);
	assert_int_equal(bm_parse_duration("2.5", &n), 0);
	assert_int_equal(n, 2500000);
	assert_int_equal(bm_parse_duration("3us", &n), 0);
	assert_int_equal(n, 3000);
	assert_int_equal(bm_parse_duration("1s", &n), 0);
	assert_int_equal(n, 1000000000);
	assert_int_equal(bm_parse_duration("1.5m", &n), 0);
	assert_int_equal(n, 90000000000);
	assert_int_equal(bm_parse_duration("1h", &n), 0);
	assert_int_equal(n, 3600000000000);
	assert_true(bm_parse_duration("1d", &n) < 0);
	assert_true(bm_parse_duration("nan", &n) < 0);
	assert_true(bm_parse_duration("-1", &n) < 0);
}

static void percentiles_are_right_to_a_bucket(void **state)
{
	struct bm_hist h = {0}, other = {0};

	(void)state;
	assert_int_equal(bm_hist_percentile(&h, 0.99), 0);
	for (uint64_t us = 1; us <= 1000; us++)
		bm_hist_add(us % 2 ? &h : &other, us * 1000);
	bm_hist_merge(&h, &other);
	assert_int_equal(h.count, 1000);
	assert_in_range(bm_hist_percentile(&h, 0.5), 500000, 570000);
	assert_in_range(bm_hist_percentile(&h, 0.99), 990000, 1000000);
	assert_int_equal(bm_hist_percentile(&h, 1), 1000000);
	bm_hist_add(&h, UINT64_MAX); /* whatever a clock says */
	assert_int_equal(h.max, UINT64_MAX);
}

/* Records and marks */

static void a_record_is_read_as_it_was_written(void **state)
{
	struct bm_record record = {.generation = 7,
				   .name = (char *)"web",
				   .disk = (char *)"0123456789abcdef0123456789abcdef",
				   .uri = (char *)"/srv/ä b.img",
				   .size = 1ull << 40},
			 read;
	struct bm_error error;

	(void)state;
	assert_int_equal(bm_record_read(folder, &read, &error), -ENOENT);
	assert_int_equal(bm_record_write(folder, &record, &error), 0);
	assert_int_equal(bm_record_read(folder, &read, &error), 0);
	assert_int_equal(read.generation, 7);
	assert_string_equal(read.uri, record.uri);
	assert_int_equal(read.size, record.size);
	assert_null(read.job);
	bm_record_clear(&read);
	record.generation = 8;
	assert_int_equal(bm_record_prepare(folder, "forward", &record, &error), 0);
	assert_int_equal(bm_record_read(folder, &read, &error), 0);
	assert_int_equal(read.generation, 7);
	bm_record_clear(&read);
	assert_int_equal(bm_record_commit(folder, "forward", &error), 0);
	assert_int_equal(bm_record_read(folder, &read, &error), 0);
	assert_int_equal(read.generation, 8);
	bm_record_clear(&read);
}

/* Nor one whose image another host writes to for a copy, which it could remove. */
static void a_record_of_shared_storage_is_of_the_third_format(void **state)
{
	struct bm_record record = {.generation = 9,
				   .role = BM_ROLE_STANDBY,
				   .shared = true,
				   .name = (char *)"web",
				   .disk = (char *)"0123456789abcdef0123456789abcdef",
				   .peer = (char *)"host-a",
				   .uri = (char *)"nbd://10.0.0.5/web",
				   .size = 1 << 20},
			 read;
	struct bm_error error;
	char path[200], *text;

	(void)state;
	snprintf(path, sizeof(path), "%s/record", folder);
	for (int shared = 1; shared >= 0; shared--) {
		record.shared = shared;
		assert_int_equal(bm_record_write(folder, &record, &error), 0);
		assert_int_equal(bm_record_read(folder, &read, &error), 0);
		assert_int_equal(read.shared, shared);
		bm_record_clear(&read);
		assert_int_equal(bm_read_text(path, 4096, &text), 0);
		assert_non_null(strstr(text, shared ? "\"format\":3," : "\"format\":2,"));
		free(text);
	}
}

/* A copy with its attributes has an old one. Beside the mark, which stays. */
static void a_note_is_found_until_it_is_another_or_gone(void **state)
{
	struct bm_mark mark = {.state = "active", .disk = "0123456789abcdef0123456789abcdef"}, read;
	char path[200];

	(void)state;
	snprintf(path, sizeof(path), "%s/noted.img", folder);
	assert_int_equal(bm_write_durably(path, "image", 5), 0);
	assert_int_equal(bm_mark_write(path, &mark), 0);
	assert_int_not_equal(bm_mark_has_note(path, "one"), 1);
	assert_int_equal(bm_mark_note(path, "one"), 0);
	assert_int_equal(bm_mark_has_note(path, "one"), 1);
	assert_int_equal(bm_mark_has_note(path, "two"), 0);
	assert_int_equal(bm_mark_has_note(path, "on"), 0);
	assert_int_equal(bm_mark_note(path, "two"), 0);
	assert_int_equal(bm_mark_has_note(path, "one"), 0);
	assert_int_equal(bm_mark_note(path, NULL), 0);
	assert_int_equal(bm_mark_note(path, NULL), 0);
	assert_int_not_equal(bm_mark_has_note(path, "two"), 1);
	assert_int_equal(bm_mark_read(path, &read), 0);
	assert_string_equal(read.state, "active");
	assert_int_equal(bm_mark_note(folder, "one"), -ENOTSUP);
	unlink(path);
}

/* Who does not know of roles must not take a standby for the disk: the format says so. */
static void a_record_has_its_role(void **state)
{
	struct bm_record record = {.generation = 9,
				   .role = BM_ROLE_STANDBY,
				   .name = (char *)"web",
				   .disk = (char *)"0123456789abcdef0123456789abcdef",
				   .peer = (char *)"host-a",
				   .uri = (char *)"/srv/web.img",
				   .size = 1 << 20},
			 read;
	struct bm_error error;
	char path[200], *text;

	(void)state;
	snprintf(path, sizeof(path), "%s/record", folder);
	for (int role = BM_ROLE_ACTIVE; role <= BM_ROLE_RETIRED; role++) {
		record.role = (enum bm_role)role;
		assert_int_equal(bm_record_write(folder, &record, &error), 0);
		assert_int_equal(bm_record_read(folder, &read, &error), 0);
		assert_int_equal(read.role, role);
		assert_string_equal(read.peer, "host-a");
		bm_record_clear(&read);
		assert_int_equal(bm_read_text(path, 4096, &text), 0);
		assert_non_null(
			strstr(text, role == BM_ROLE_ACTIVE ? "\"format\":1," : "\"format\":2,"));
		free(text);
	}
	record.peer = NULL; /* of nobody */
	assert_int_equal(bm_record_write(folder, &record, &error), 0);
	assert_true(bm_record_read(folder, &read, &error) < 0);
	assert_int_equal(error.code, BM_E_RECORD);
	record.role = BM_ROLE_ACTIVE;
	assert_int_equal(bm_record_write(folder, &record, &error), 0);
}

/* Every byte of it, one after the other, and every length. */
static void a_damaged_record_is_refused(void **state)
{
	char *text, path[200];
	struct bm_record record;
	struct bm_error error;
	size_t length;

	(void)state;
	snprintf(path, sizeof(path), "%s/record", folder);
	assert_int_equal(bm_read_text(path, 4096, &text), 0);
	length = strlen(text);
	for (size_t i = 0; i < length; i++) {
		text[i] ^= 1;
		assert_int_equal(bm_write_durably(path, text, length), 0);
		text[i] ^= 1;
		/* The last newline bears nothing. */
		if (i == length - 1)
			continue;
		assert_true(bm_record_read(folder, &record, &error) < 0);
		assert_int_equal(error.code, BM_E_RECORD);
	}
	for (size_t cut = 0; cut < length - 1; cut++) {
		assert_int_equal(bm_write_durably(path, text, cut), 0);
		assert_true(bm_record_read(folder, &record, &error) < 0);
		assert_int_equal(error.code, BM_E_RECORD);
	}
	bm_record_remove(folder);
	assert_int_equal(bm_record_read(folder, &record, &error), -ENOENT);
	free(text);
}

static void a_mark_is_read_as_it_was_written(void **state)
{
	const struct bm_mark mark = {
		.state = "retired", .disk = "d", .folder = "/f", .where = "w", .generation = 9};
	struct bm_mark read;
	char path[200];

	(void)state;
	snprintf(path, sizeof(path), "%s/image", folder);
	assert_int_equal(bm_write_durably(path, "x", 1), 0);
	assert_int_equal(bm_mark_read(path, &read), 0);
	assert_string_equal(read.state, "");
	assert_int_equal(bm_mark_write(path, &mark), 0);
	assert_int_equal(bm_mark_read(path, &read), 0);
	assert_memory_equal(&read, &mark, sizeof(mark));
	assert_int_equal(bm_mark_remove(path), 0);
	assert_int_equal(bm_mark_read(path, &read), 0);
	assert_string_equal(read.state, "");
	unlink(path);
}

static void names_of_disks(void **state)
{
	static const char *const bad[] = {"", ".a", "a/b", "a b", "ä", "a\n"};
	char longest[102];
	struct bm_error error;

	(void)state;
	memset(longest, 'a', sizeof(longest));
	longest[101] = '\0';
	assert_true(bm_disk_name_check(longest, &error) < 0);
	longest[100] = '\0';
	assert_int_equal(bm_disk_name_check(longest, &error), 0);
	assert_int_equal(bm_disk_name_check("web-1.data_2", &error), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_true(bm_disk_name_check(bad[i], &error) < 0);
}

static void an_error_is_one_line(void **state)
{
	struct bm_error error;

	(void)state;
	assert_int_equal(bm_fail(&error, BM_E_EXISTS, "a\nb%s", "\tc"), -EEXIST);
	assert_string_equal(error.text, "a?b?c");
	assert_int_equal(bm_fail_errno(&error, -ENOSPC, "cannot write %s", "x\ny"), -ENOSPC);
	assert_string_equal(error.text, "cannot write x?y: No space left on device");
	assert_int_equal(error.code, BM_E_ENOSPC);
	assert_int_equal(bm_code_by_name(bm_code_name(BM_E_COMPARE)), BM_E_COMPARE);
}

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
	(void)state;
	return rmdir(folder);
}

/* 192.0.2.0/24 is for documentation: nobody has it. */
static void addresses_of_this_host(void **state)
{
	(void)state;
	bm_free char *own = bm_address_towards("127.0.0.1", false);

	assert_string_equal(own, "127.0.0.1");
	assert_true(bm_address_is_ours("127.0.0.1"));
	assert_false(bm_address_is_ours("0.0.0.0"));
	assert_false(bm_address_is_ours("192.0.2.1"));
	assert_false(bm_address_is_ours("localhost"));
	assert_false(bm_address_is_ours(""));
	assert_null(bm_address_towards("localhost", false));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(passwords_are_not_shown),
		cmocka_unit_test(what_is_no_password_is_shown),
		cmocka_unit_test(names_mean_the_same_from_everywhere),
		cmocka_unit_test(sockets_are_found_in_uris),
		cmocka_unit_test(schemes_are_told_apart),
		cmocka_unit_test(canonical_paths_have_no_links),
		cmocka_unit_test(formats_are_named),
		cmocka_unit_test(sizes_and_durations_are_read),
		cmocka_unit_test(percentiles_are_right_to_a_bucket),
		cmocka_unit_test(a_record_is_read_as_it_was_written),
		cmocka_unit_test(a_record_has_its_role),
		cmocka_unit_test(a_record_of_shared_storage_is_of_the_third_format),
		cmocka_unit_test(a_note_is_found_until_it_is_another_or_gone),
		cmocka_unit_test(a_damaged_record_is_refused),
		cmocka_unit_test(a_mark_is_read_as_it_was_written),
		cmocka_unit_test(names_of_disks),
		cmocka_unit_test(an_error_is_one_line),
		cmocka_unit_test(addresses_of_this_host),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
