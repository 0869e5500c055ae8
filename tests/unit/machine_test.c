/* SPDX-License-Identifier: BSD-3-Clause */
/* What a QEMU's command line says about a node, how much room a container gets, linked clones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/machine/cmdline.h"
#include "blockmirror/machine/drive.h"

static pid_t machine;
static int link_to_it;

/* A process with a QEMU's arguments, that waits. */
static int start(void **state)
{
	static const char *const argv[] = {
		"sh",
		"-c",
		"echo; read line",
		"-blockdev",
		"driver=file,node-name=f0,filename=/a,,b=c,aio=io_uring,cache.direct=on",
		"-blockdev",
		"{\"driver\":\"qcow2\",\"node-name\":\"fmt\",\"lazy-refcounts\":true,"
		"\"cache\":{\"direct\":true},\"file\":\"f0\"}",
		"-blockdev",
		"driver=raw,node-name=top,offset=512,file.driver=file,file.node-name=inner,"
		"file.aio=native,file.auto-read-only=off",
		"-drive",
		"id=d0,if=none,file=/d0,aio=native",
		"-drive",
		"if=virtio,driver=raw,file.driver=file,file.filename=/d1,file.locking=on",
		NULL};
	int ends[2];
	char byte;

	(void)state;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	machine = fork();
	if (!machine) {
		dup2(ends[1], STDIN_FILENO);
		dup2(ends[1], STDOUT_FILENO);
		execv("/bin/sh", (char *const *)argv);
		_exit(127);
	}
	close(ends[1]);
	assert_int_equal(read(ends[0], &byte, 1), 1);
	link_to_it = ends[0];
	return 0;
}

static int stop(void **state)
{
	(void)state;
	kill(machine, SIGKILL);
	waitpid(machine, NULL, 0);
	close(link_to_it);
	return 0;
}

/* Takes value over. */
static void expect(json_t *value, const char *text)
{
	char *is = json_dumps(value, JSON_COMPACT | JSON_SORT_KEYS);

	assert_string_equal(is, text);
	free(is);
	json_decref(value);
}

static void a_node_of_pairs(void **state)
{
	static const char *const names[] = {"saio", "bcache.direct", "sfilename", "sabsent", NULL};
	json_t *flat = bm_cmdline_node(machine, "f0");

	(void)state;
	assert_non_null(flat);
	expect(bm_cmdline_typed(flat, names),
	       "{\"aio\":\"io_uring\",\"cache\":{\"direct\":true},\"filename\":\"/a,b=c\"}");
	json_decref(flat);
}

static void a_node_of_json(void **state)
{
	static const char *const names[] = {"blazy-refcounts", "bcache.direct", "sfile", NULL};
	json_t *flat = bm_cmdline_node(machine, "fmt");

	(void)state;
	expect(bm_cmdline_typed(flat, names),
	       "{\"cache\":{\"direct\":true},\"file\":\"f0\",\"lazy-refcounts\":true}");
	json_decref(flat);
}

static void a_node_inside_another_one(void **state)
{
	static const char *const names[] = {"saio", "bauto-read-only", "ioffset", NULL};
	json_t *inner = bm_cmdline_node(machine, "inner"), *top = bm_cmdline_node(machine, "top");

	(void)state;
	expect(bm_cmdline_typed(inner, names), "{\"aio\":\"native\",\"auto-read-only\":false}");
	expect(bm_cmdline_typed(top, names), "{\"offset\":512}");
	json_decref(inner);
	json_decref(top);
}

static void expect_drive(const char *id, const char *filename, const char *text)
{
	static const char *const names[] = {"saio", "slocking", "sfilename", NULL};
	json_t *flat = bm_cmdline_drive(machine, id, filename);

	assert_non_null(flat);
	expect(bm_cmdline_typed(flat, names), text);
	json_decref(flat);
}

static void a_drive_by_its_id_or_file(void **state)
{
	(void)state;
	expect_drive("d0", "none", "{\"aio\":\"native\"}");
	expect_drive("d0", "/d1", "{\"aio\":\"native\"}");
	expect_drive("", "/d0", "{\"aio\":\"native\"}");
	expect_drive("virtio1", "/d1", "{\"filename\":\"/d1\",\"locking\":\"on\"}");
	assert_null(bm_cmdline_drive(machine, "", "d0"));
	assert_null(bm_cmdline_node(machine, "d0"));
}

static void no_such_node_and_no_such_process(void **state)
{
	static const char *const names[] = {"saio", NULL};

	(void)state;
	assert_null(bm_cmdline_node(machine, "f"));
	assert_null(bm_cmdline_node(0, "f0"));
	assert_null(bm_cmdline_node(INT32_MAX, "f0"));
	expect(bm_cmdline_typed(NULL, names), "{}");
}

static char folder[] = "/var/tmp/machine_test.XXXXXX";

static void put(const char *name, off_t size, off_t data)
{
	char path[200];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, size), 0);
	assert_int_equal(pwrite(fd, "data", 4, data), 4);
	close(fd);
}

/* The second time it has the room of the first, and gets no more. */
static void room_is_behind_the_last_data(void **state)
{
	char path[200];
	struct bm_drive d = {.format_driver = (char *)"qcow2", .path = path, .size = 1 << 30};
	uint64_t first, least = d.size + d.size / 128;

	(void)state;
	snprintf(path, sizeof(path), "%s/image", folder);
	put("image", 10 << 20, 5 << 20);
	first = bm_drive_room(&d);
	assert_true(first >= (5 << 20) + least && first < (10 << 20) + least + (80 << 20));
	assert_int_equal(truncate(path, (off_t)first), 0);
	assert_int_equal(bm_drive_room(&d), first);
	d.format_driver = (char *)"raw";
	assert_int_equal(bm_drive_room(&d), 0);
}

static void backing_files_are_found_from_where_an_image_goes(void **state)
{
	char path[200], beside[200], below[200], link_path[200];
	struct bm_drive d = {.path = path, .backing = (char *)"base"};
	struct bm_error error;

	(void)state;
	snprintf(path, sizeof(path), "%s/image", folder);
	snprintf(beside, sizeof(beside), "%s/other", folder);
	snprintf(below, sizeof(below), "%s/below", folder);
	put("base", 512, 0);
	assert_int_equal(mkdir(below, 0700), 0);
	strcat(below, "/image");
	assert_int_equal(bm_drive_reaches(&d, beside, &error), 0);
	assert_true(bm_drive_reaches(&d, below, &error) < 0);
	assert_int_equal(error.code, BM_E_LINKED);
	put("below/base", 512, 0); /* the same name is not the same file */
	assert_true(bm_drive_reaches(&d, below, &error) < 0);
	snprintf(link_path, sizeof(link_path), "%s/below/base", folder);
	unlink(link_path);
	assert_int_equal(symlink("../base", link_path), 0);
	assert_int_equal(bm_drive_reaches(&d, below, &error), 0);
	unlink(link_path);
	d.backing = (char *)"/somewhere/base";
	assert_int_equal(bm_drive_reaches(&d, below, &error), 0);
	d.backing = (char *)"nbd://host/base";
	assert_int_equal(bm_drive_reaches(&d, below, &error), 0);
	d.backing = NULL;
	assert_int_equal(bm_drive_reaches(&d, below, &error), 0);
}

static int make_folder(void **state)
{
	(void)state;
	return mkdtemp(folder) ? start(state) : -1;
}

static int remove_folder(void **state)
{
	static const char *const names[] = {"below", "image", "base"};

	stop(state);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		char path[200];

		snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
		remove(path);
	}
	return rmdir(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_node_of_pairs),
		cmocka_unit_test(a_node_of_json),
		cmocka_unit_test(a_node_inside_another_one),
		cmocka_unit_test(a_drive_by_its_id_or_file),
		cmocka_unit_test(no_such_node_and_no_such_process),
		cmocka_unit_test(room_is_behind_the_last_data),
		cmocka_unit_test(backing_files_are_found_from_where_an_image_goes),
	};

	return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
