/* SPDX-License-Identifier: BSD-3-Clause */
/* A drive of a running QEMU: its nodes, and what is to be said against moving it. */
#include "blockmirror/machine/drive.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/machine/cmdline.h"
#include "blockmirror/machine/graph.h"

enum { OLDEST = 601 }; /* 6.1: blockdev-reopen */

/* What blockdev-reopen sets to its default where it is not told. */
static const char *const format_options[] = {"blazy-refcounts",
					     "bpass-discard-request",
					     "bpass-discard-snapshot",
					     "bpass-discard-other",
					     "bdiscard-no-unref",
					     "soverlap-check",
					     "sdiscard",
					     "icache-size",
					     "il2-cache-size",
					     "il2-cache-entry-size",
					     "irefcount-cache-size",
					     "icache-clean-interval",
					     "skey-secret",
					     "sencrypt.format",
					     "sencrypt.key-secret",
					     "ioffset",
					     "isize",
					     NULL};
static const char *const file_options[] = {
	"saio",        "slocking",        "sdiscard",       "spr-manager", "sdetect-zeroes",
	"bdrop-cache", "bauto-read-only", "iaio-max-batch", NULL};

static bool is_one_of(const char *text, const char *const *list)
{
	for (; *list; list++)
		if (!strcmp(text, *list))
			return true;
	return false;
}

static int check_version(struct bm_qmp *q, struct bm_error *error)
{
	int version = bm_qmp_version(q);

	if (version < OLDEST)
		return bm_fail(error, BM_E_QMP,
			       "QEMU %d.%d is too old: from 6.1 on a disk can be taken from under "
			       "its guest",
			       version / 100, version % 100);
	return 0;
}

/* Nothing may be on its way elsewhere: both would be lost. */
static int check_status(struct bm_qmp *q, struct bm_error *error)
{
	static const char *const moving[] = {"inmigrate", "finish-migrate", "postmigrate",
					     "save-vm",   "restore-vm",     "colo",
					     NULL};
	json_t *status = NULL;
	const char *state;
	int r = bm_qmp_call(q, "query-status", NULL, &status, error);

	if (r < 0)
		return r;
	state = graph_text(status, "status");
	if (is_one_of(state, moving))
		r = bm_fail(error, BM_E_BUSY, "the machine is being moved, or saved (%s)", state);
	json_decref(status);
	return r;
}

/*
 * By whom the image is put in another place: the format node; or the device. That is so where there
 * is no format node, and where it is raw without a name of its own, and says nothing that is not so
 * without it: the guest's bytes are the file's.
 */
static char *who_exchanges(const struct graph *g, json_int_t format, json_int_t file)
{
	const char *name = graph_name(g, format);
	const json_t *info = graph_info(g, name);
	bool plain = !strcmp(graph_text(info, "drv"), "raw") &&
		     strncmp(graph_text(info, "file"), "json:", 5) != 0;
	char *device = NULL;

	if (!format)
		return graph_device(g, graph_name(g, file));
	if (*name == '#' && plain && graph_parents(g, format) == 1)
		device = graph_device(g, name);
	return device ? device : strdup(name);
}

/* Under the node with that id, down the "file" edges, to who has the image. */
static int walk(const struct graph *g, const char *name, json_int_t id, struct bm_drive *d,
		struct bm_error *error)
{
	json_int_t parent = 0, child = id;

	while (graph_has_children(g, child)) {
		json_int_t next = graph_child(g, child, "file");

		if (!next)
			return bm_fail(error, BM_E_UNSUPPORTED,
				       "%s: node %s has no single file below", name,
				       graph_name(g, child));
		if (graph_child(g, child, "data-file"))
			return bm_fail(error, BM_E_UNSUPPORTED,
				       "%s: its image has its data in a second file", name);
		parent = child;
		child = next;
	}
	if (!parent) /* asked for by the name of its protocol node */
		parent = graph_only_parent(g, child);
	d->file = strdup(graph_name(g, child));
	d->format = who_exchanges(g, parent, child);
	if (!d->file || (parent && !d->format))
		return bm_fail_errno(error, ENOMEM, "%s", name);
	if (graph_parents(g, child) > 1)
		return bm_fail(error, BM_E_BUSY,
			       "%s: node %s is in use twice (an export, a job, another device)",
			       name, d->file);
	if (!d->format)
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "%s: node %s is below no format node and no device's: nothing else "
			       "can be put there",
			       name, d->file);
	if (graph_has_job(g, id) || graph_has_job(g, parent) || graph_has_job(g, child))
		return bm_fail(error, BM_E_BUSY,
			       "%s: a block job works on it; let it end, or cancel it", name);
	return 0;
}

/* Whether an I/O thread has it. What cannot be known may be so. */
static bool may_be_in_thread(struct bm_qmp *q, const char *qdev)
{
	json_t *threads = NULL, *thread = NULL;
	bool any = bm_qmp_call(q, "query-iothreads", NULL, &threads, NULL) < 0 ||
		   json_array_size(threads);

	json_decref(threads);
	if (any && qdev &&
	    !bm_qmp_call(q, "qom-get", json_pack("{s:s s:s}", "path", qdev, "property", "iothread"),
			 &thread, NULL))
		any = !json_is_string(thread) || *json_string_value(thread);
	json_decref(thread);
	return any;
}

/* qdev: NULL when it is not known. */
static int check_device(struct bm_qmp *q, const char *name, const char *qdev,
			const struct bm_drive *d, struct bm_error *error)
{
	json_t *type = NULL;
	const char *is = "";
	int r = 0;

	if (qdev &&
	    !bm_qmp_call(q, "qom-get", json_pack("{s:s s:s}", "path", qdev, "property", "type"),
			 &type, NULL))
		is = json_string_value(type) ? json_string_value(type) : "";
	/* Its guest talks to the device itself. */
	if (!strcmp(is, "scsi-block") || !strcmp(is, "scsi-generic"))
		r = bm_fail(error, BM_E_UNSUPPORTED,
			    "%s: the guest has the device itself (%s), not a disk that QEMU makes "
			    "of it",
			    name, is);
	/* Seen: the monitor's reopen ends QEMU 7.2 there (qemu_mutex_unlock_impl). */
	else if (*d->format == '#' && may_be_in_thread(q, qdev))
		r = bm_fail(error, BM_E_UNSUPPORTED,
			    "%s: its format node has no name of its own (%s) and an I/O thread "
			    "serves it: QEMU does not survive that something else is put below. "
			    "Start it with a name, -drive node-name=… or -blockdev",
			    name, d->format);
	json_decref(type);
	return r;
}

static int find_nodes(struct bm_qmp *q, const struct graph *g, const char *name, struct bm_drive *d,
		      struct bm_error *error)
{
	bm_free char *qdev = NULL;
	json_int_t id = graph_find(g, name, &qdev);
	int r;

	if (!id)
		return bm_fail(error, BM_E_NOT_FOUND,
			       "QEMU has no drive, device or node \"%s\", or it has no image",
			       name);
	r = walk(g, name, id, d, error);
	if (!r && !qdev)
		qdev = *d->format == '/' ? strdup(d->format) : graph_device(g, d->format);
	if (!r)
		r = check_device(q, name, qdev, d, error);
	return r;
}

static int check_drivers(const struct graph *g, const char *name, struct bm_drive *d,
			 struct bm_error *error)
{
	static const char *const formats[] = {"raw", "qcow2", "luks", NULL};
	static const char *const files[] = {"file", "host_device", NULL};
	const json_t *format = graph_info(g, d->format), *file = graph_info(g, d->file);

	/* A device that has the file itself gets its bytes as they are. */
	d->format_driver = strdup(*d->format == '/' ? "raw" : graph_text(format, "drv"));
	d->file_driver = strdup(graph_text(file, "drv"));
	if (!d->format_driver || !d->file_driver)
		return bm_fail_errno(error, ENOMEM, "%s", name);
	if (!is_one_of(d->file_driver, files))
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "%s: its image is on \"%s\": files and block devices are moved so",
			       name, d->file_driver);
	if (!is_one_of(d->format_driver, formats))
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "%s: above its file is \"%s\": raw, qcow2 and luks are moved so",
			       name, d->format_driver);
	if (json_is_true(json_object_get(format, "ro")) ||
	    json_is_true(json_object_get(file, "ro")))
		return bm_fail(error, BM_E_ACCESS,
			       "%s is read-only: nothing is written, so copy it, and have QEMU "
			       "open the copy",
			       name);
	return 0;
}

/* What QEMU has open is what path leads us to: it has a descriptor of it, or at least a lock. */
static bool has_open(pid_t pid, const struct stat *st, const char *path)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 104};
	bm_close int fd = -1;
	char folder[64];
	bool found = false;
	struct dirent *e;
	DIR *dir;

	snprintf(folder, sizeof(folder), "/proc/%d/fd", (int)pid);
	dir = pid > 0 ? opendir(folder) : NULL;
	while (dir && !found && (e = readdir(dir))) {
		struct stat other;

		found = !fstatat(dirfd(dir), e->d_name, &other, 0) &&
			(S_ISBLK(st->st_mode)
				 ? S_ISBLK(other.st_mode) && other.st_rdev == st->st_rdev
				 : other.st_dev == st->st_dev && other.st_ino == st->st_ino);
	}
	if (dir)
		closedir(dir);
	if (found)
		return true;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd >= 0 && !fcntl(fd, F_OFD_GETLK, &lock) && lock.l_type != F_UNLCK;
}

static int find_path(struct bm_qmp *q, const struct graph *g, const char *name, struct bm_drive *d,
		     struct bm_error *error)
{
	pid_t pid = bm_qmp_peer(q).pid;
	struct stat st;

	d->path = graph_path(q, g, d->file);
	if (!d->path)
		return bm_fail_errno(error, ENOMEM, "%s", name);
	if (stat(d->path, &st) < 0)
		return bm_fail_errno(error, errno, "%s: cannot find its image, %s for QEMU", name,
				     d->path);
	if (!has_open(pid, &st, d->path))
		return bm_fail(error, BM_E_NOT_FOUND,
			       "%s: its image is %s for QEMU, and for us that is another one, or "
			       "it is not to be seen that it is the same",
			       name, d->path);
	return 0;
}

/* Of "json:{…}", which QEMU shows where a file's name alone would lead to something else. */
static void add_strong_options(json_t *to, const json_t *info)
{
	const char *text = graph_text(info, "file");
	json_t *told = strncmp(text, "json:", 5) ? NULL : json_loads(text + 5, 0, NULL), *typed;

	if (!told)
		return;
	typed = bm_cmdline_typed(told, format_options);
	json_object_update(to, typed);
	json_decref(typed);
	if (json_is_object(json_object_get(told, "encrypt")))
		json_object_set(to, "encrypt", json_object_get(told, "encrypt"));
	json_decref(told);
}

/* Of a qcow2 image's encryption QEMU shows the key alone, and wants to be told its format, too. */
static void add_encryption(json_t *to, const json_t *info)
{
	const json_t *image = json_object_get(info, "image");
	const json_t *data = json_object_get(json_object_get(image, "format-specific"), "data");
	const char *format = graph_text(json_object_get(data, "encrypt"), "format");
	json_t *encrypt = json_object_get(to, "encrypt");

	if (encrypt && *format)
		json_object_set_new(encrypt, "format", json_string(format));
}

static void set_zeroes(json_t *to, const json_t *info)
{
	const char *zeroes = graph_text(info, "detect_zeroes");

	if (*zeroes && strcmp(zeroes, "off") != 0)
		json_object_set_new(to, "detect-zeroes", json_string(zeroes));
}

static void set_common(json_t *to, const json_t *info, const char *driver)
{
	const json_t *cache = json_object_get(info, "cache");

	json_object_set_new(to, "driver", json_string(driver));
	json_object_set_new(to, "cache",
			    json_pack("{s:b s:b}", "direct",
				      json_is_true(json_object_get(cache, "direct")), "no-flush",
				      json_is_true(json_object_get(cache, "no-flush"))));
	set_zeroes(to, info);
}

/*
 * What is not known to be otherwise, is discarded: the format node does not pass down what shall
 * not be. Where there is none, a -drive ignores unless it is told.
 */
static void set_discard(const struct bm_drive *d, const json_t *drive, bool known)
{
	const char *told = graph_text(drive, "drive-discard");
	bool unmap = !strcmp(told, "unmap") || !strcmp(told, "on");

	if (*d->format == '/' && drive)
		json_object_set_new(d->add, "discard", json_string(unmap ? "unmap" : "ignore"));
	else if (!known && !json_object_get(d->add, "discard"))
		json_object_set_new(d->add, "discard", json_string("unmap"));
}

static void find_file_options(struct bm_qmp *q, const struct graph *g, struct bm_drive *d)
{
	pid_t pid = bm_qmp_peer(q).pid;
	const json_t *file = graph_info(g, d->file);
	const char *backend = graph_backend(g, d->format);
	json_t *told = bm_cmdline_node(pid, d->file), *drive = NULL;
	json_int_t parent = graph_only_parent(g, graph_id(g, d->file));

	if (!told && *backend) {
		drive = bm_cmdline_drive(pid, backend, graph_text(file, "file"));
		drive = drive ? drive : json_object();
	}
	d->add = bm_cmdline_typed(told ? told : drive, file_options);
	set_discard(d, drive, told);
	set_common(d->add, file, d->file_driver);
	/* A raw node that goes: what it did is the file's to do. */
	if (*d->format == '/' && parent)
		set_zeroes(d->add, graph_info(g, graph_name(g, parent)));
	json_decref(told);
	json_decref(drive);
}

static void find_options(struct bm_qmp *q, const struct graph *g, struct bm_drive *d)
{
	const json_t *format = graph_info(g, d->format);
	json_t *told = bm_cmdline_node(bm_qmp_peer(q).pid, d->format);
	json_int_t backing = graph_child(g, graph_id(g, d->format), "backing");

	d->reopen = bm_cmdline_typed(told, format_options);
	json_decref(told);
	add_strong_options(d->reopen, format);
	add_encryption(d->reopen, format);
	if (format)
		set_common(d->reopen, format, d->format_driver);
	json_object_set_new(d->reopen, "node-name", json_string(d->format));
	if (backing)
		json_object_set_new(d->reopen, "backing", json_string(graph_name(g, backing)));
	else if (!strcmp(d->format_driver, "qcow2"))
		json_object_set_new(d->reopen, "backing", json_null());
	find_file_options(q, g, d);
}

static int find_image(const struct graph *g, struct bm_drive *d, struct bm_error *error)
{
	const char *top = *d->format == '/' ? d->file : d->format;
	const json_t *image = json_object_get(graph_info(g, top), "image");
	const char *backing = graph_text(image, "backing-filename");

	d->size = (uint64_t)json_integer_value(json_object_get(image, "virtual-size"));
	d->backing = *backing ? strdup(backing) : NULL;
	return *backing && !d->backing ? bm_fail_errno(error, ENOMEM, "%s", d->format) : 0;
}

int bm_drive_find(struct bm_qmp *q, const char *name, struct bm_drive *d, struct bm_error *error)
{
	struct graph g = {0};
	int r = check_version(q, error);

	*d = (struct bm_drive){0};
	if (!r)
		r = check_status(q, error);
	if (!r)
		r = graph_read(q, &g, error);
	if (!r)
		r = find_nodes(q, &g, name, d, error);
	if (!r)
		r = check_drivers(&g, name, d, error);
	if (!r)
		r = find_path(q, &g, name, d, error);
	if (!r) {
		find_options(q, &g, d);
		r = find_image(&g, d, error);
	}
	graph_clear(&g);
	if (r < 0)
		bm_drive_clear(d);
	return r;
}

void bm_drive_clear(struct bm_drive *d)
{
	free(d->format);
	free(d->format_driver);
	free(d->file);
	free(d->file_driver);
	free(d->path);
	free(d->backing);
	json_decref(d->reopen);
	json_decref(d->add);
	*d = (struct bm_drive){0};
}

/*
 * A container grows at its end, and what is served over NBD cannot. So it gets at once, as a hole,
 * what it could come to take: all of the guest's disk once more (snapshots may keep all that is
 * there), and for its tables more than twice what they take with the smallest useful clusters (4
 * KiB: 1/512, and as much again for the counts), and bitmaps.
 */
uint64_t bm_drive_room(const struct bm_drive *d)
{
	enum { TABLES = 128, MORE = 64 << 20, UNIT = 1 << 20 };
	bm_close int fd = -1;
	uint64_t need = d->size + d->size / TABLES + MORE, used, room;
	off_t end, data, at = 0;

	if (strcmp(d->format_driver, "qcow2") != 0)
		return 0;
	fd = open(d->path, O_RDONLY | O_CLOEXEC);
	end = fd >= 0 ? lseek(fd, 0, SEEK_END) : -1;
	if (end < 0)
		return 0;
	/* Where its last data ends: it may have got room once before. */
	used = 0;
	while (at < end && (data = lseek(fd, at, SEEK_DATA)) >= 0 &&
	       (at = lseek(fd, data, SEEK_HOLE)) >= 0)
		used = (uint64_t)at;
	room = used + need;
	return (room + UNIT - 1) / UNIT * UNIT;
}

/* A name with a scheme, or json:, means the same from everywhere. */
static bool is_relative(const char *name)
{
	const char *colon = strchr(name, ':'), *slash = strchr(name, '/');

	return *name != '/' && !(colon && (!slash || colon < slash));
}

int bm_drive_reaches(const struct bm_drive *d, const char *path, struct bm_error *error)
{
	bm_free char *here = NULL, *there = NULL;
	const char *old_end = strrchr(d->path, '/'), *new_end = strrchr(path, '/');
	struct stat now, then;

	if (!d->backing || !is_relative(d->backing))
		return 0;
	if (asprintf(&here, "%.*s/%s", (int)(old_end - d->path), d->path, d->backing) < 0 ||
	    asprintf(&there, "%.*s/%s", new_end ? (int)(new_end - path) : 0, path, d->backing) < 0)
		return bm_fail_errno(error, ENOMEM, "%s", path);
	if (!stat(here, &now) && !stat(there, &then) && now.st_dev == then.st_dev &&
	    now.st_ino == then.st_ino)
		return 0;
	return bm_fail(error, BM_E_LINKED,
		       "%s needs its backing file, which it names \"%s\": from %s that is not the "
		       "same file; make it reachable there (a link will do), or name it with its "
		       "whole path (qemu-img rebase -u, while the machine is off)",
		       d->path, d->backing, path);
}
