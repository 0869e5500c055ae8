/* SPDX-License-Identifier: BSD-3-Clause */
/* The plan of a disk that is slipped under a running QEMU: STATE/disks/NAME/slip. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/slip.h"

enum { LARGEST = 1 << 16, OF_DRIVE = 12, DIGITS = 6 };

const char *slip_text(const struct slip *s, const char *key)
{
	return cli_text(s->plan, key);
}

/* Of the last part of what the drive is called; never one that was there before. */
char *slip_new_name(const char *drive)
{
	const char *slash = strrchr(drive, '/');
	char id[33], part[OF_DRIVE + 1] = "", *name;
	size_t n = 0;

	for (const char *at = slash ? slash + 1 : drive; *at && n < OF_DRIVE; at++)
		if (isalnum((unsigned char)*at) || *at == '-' || *at == '_')
			part[n++] = *at;
	part[n] = '\0';
	bm_identity(id);
	return asprintf(&name, "%s%s%.*s", part, n ? "-" : "", DIGITS, id) < 0 ? NULL : name;
}

static int set_folder(struct slip *s, const char *name, struct bm_error *error)
{
	bm_free char *state = bm_uri_absolute(s->cli->state_dir);

	free(s->name);
	free(s->folder);
	s->folder = NULL;
	s->name = strdup(name);
	if (!state || !s->name || asprintf(&s->folder, "%s/disks/%s", state, name) < 0)
		return bm_fail_errno(error, ENOMEM, "%s", name);
	return 0;
}

static char *file_in(const char *folder, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

static json_t *read_plan(const char *folder)
{
	bm_free char *path = file_in(folder, "slip"), *text = NULL;

	return path && !bm_read_text(path, LARGEST, &text) ? json_loads(text, 0, NULL) : NULL;
}

/*
 * The lock is the plan's own descriptor. A plan whose name is gone, or another one's, when it is
 * locked was carried to its end meanwhile: -ENOENT.
 */
static int lock_plan(struct slip *s, struct bm_error *error)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	bm_free char *path = file_in(s->folder, "slip");
	bm_close int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	struct stat held, named;

	if (fd < 0)
		return bm_fail_errno(error, path ? errno : ENOMEM, "%s", s->folder);
	if (fcntl(fd, F_OFD_SETLK, &lock) < 0)
		return bm_fail(error, BM_E_BUSY, "another command works on disk %s just now",
			       s->name);
	if (fstat(fd, &held) < 0 || stat(path, &named) < 0 || held.st_ino != named.st_ino)
		return bm_fail(error, BM_E_NOT_FOUND, "disk %s was handed back just now", s->name);
	s->lock = bm_steal_fd(fd);
	return 0;
}

/* As it is now that nobody else works on it. */
static int take_plan(struct slip *s, struct bm_error *error)
{
	int r = lock_plan(s, error);

	json_decref(s->plan);
	s->plan = r ? NULL : read_plan(s->folder);
	if (!r && !s->plan)
		r = bm_fail(error, BM_E_RECORD, "%s/slip cannot be read", s->folder);
	return r;
}

static bool is_for(const json_t *plan, const char *qmp, const char *drive)
{
	return !strcmp(cli_text(plan, "qmp"), qmp) &&
	       (!strcmp(cli_text(plan, "drive"), drive) || !strcmp(cli_text(plan, "node"), drive));
}

static int find_by_drive(struct slip *s, const char *qmp, const char *drive, struct bm_error *error)
{
	bm_free char *state = bm_uri_absolute(s->cli->state_dir), *disks = NULL;
	struct dirent **entries = NULL;
	int n = -1, r = -ENOENT;

	if (state && asprintf(&disks, "%s/disks", state) >= 0)
		n = scandir(disks, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		bm_free char *folder = file_in(disks, entries[i]->d_name);
		json_t *plan = r == -ENOENT && folder ? read_plan(folder) : NULL;

		if (plan && is_for(plan, qmp, drive)) {
			s->plan = json_incref(plan);
			r = set_folder(s, entries[i]->d_name, error);
		}
		json_decref(plan);
		free(entries[i]);
	}
	free(entries);
	return r;
}

static void add_plan(json_t *list, const char *folder)
{
	bm_record_auto struct bm_record record = {0};
	json_t *plan = read_plan(folder);
	const char *now = cli_text(plan, "path");

	if (json_is_true(json_object_get(plan, "whole"))) {
		if (!bm_record_read(folder, &record, NULL))
			now = bm_uri_path(record.uri);
		json_object_set_new(plan, "now", json_string(now ? now : ""));
		json_array_append(list, plan);
	}
	json_decref(plan);
}

json_t *slip_plans(const struct cli *cli)
{
	bm_free char *state = bm_uri_absolute(cli->state_dir), *disks = NULL;
	struct dirent **entries = NULL;
	json_t *list = json_array();
	int n = -1;

	if (state && asprintf(&disks, "%s/disks", state) >= 0)
		n = scandir(disks, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		bm_free char *folder = file_in(disks, entries[i]->d_name);

		if (folder)
			add_plan(list, folder);
		free(entries[i]);
	}
	free(entries);
	return list;
}

int slip_plan_find(struct slip *s, const char *name, const char *qmp, const char *drive,
		   struct bm_error *error)
{
	int r;

	if (name) {
		r = bm_disk_name_check(name, error);
		if (!r)
			r = set_folder(s, name, error);
		if (!r)
			s->plan = read_plan(s->folder);
		if (!r && !s->plan)
			r = bm_fail(error, BM_E_NOT_FOUND,
				    "disk %s was not adopted from a running QEMU (looked in %s)",
				    name, s->folder);
	} else {
		r = find_by_drive(s, qmp, drive, error);
	}
	if (!r && (r = take_plan(s, error)) == -ENOENT) {
		free(s->name);
		free(s->folder);
		s->name = s->folder = NULL;
	}
	return r;
}

int slip_plan_write(struct slip *s, struct bm_error *error)
{
	bm_free char *path = NULL, *fresh = NULL, *text = json_dumps(s->plan, JSON_COMPACT);
	int r = set_folder(s, slip_text(s, "name"), error);

	if (!r && (!text || !(path = file_in(s->folder, "slip")) ||
		   !(fresh = file_in(s->folder, "slip.new"))))
		r = bm_fail_errno(error, ENOMEM, "%s", s->name);
	if (!r && !access(s->folder, F_OK))
		r = bm_fail(error, BM_E_BUSY, "there is a disk %s already (%s)", s->name,
			    s->folder);
	if (r < 0)
		return r;
	r = bm_make_folders(s->folder);
	if (!r)
		r = bm_write_durably(fresh, text, strlen(text));
	if (!r)
		r = bm_rename_durably(fresh, path);
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path) : lock_plan(s, error);
}

static void remove_in(const char *folder, const char *name)
{
	bm_free char *path = file_in(folder, name);

	if (path)
		unlink(path);
}

/* What the disk's process has left there. */
static void clear_run(const struct slip *s)
{
	static const char *const ends[] = {"nbd", "sock", "log", "map", "doubt"};
	bm_free char *disks = file_in(s->cli->run_dir, "disks");

	for (size_t i = 0; disks && i < sizeof(ends) / sizeof(ends[0]); i++) {
		bm_free char *name = NULL;

		if (asprintf(&name, "%s.%s", s->name, ends[i]) >= 0)
			remove_in(disks, name);
	}
}

/*
 * The plan says where the image is when there is no record: not yet, or, without this, not any more
 * and then wrongly. In place, by one write: another file would not have our lock.
 */
static void note_path(struct slip *s, const char *path)
{
	bm_free char *text = NULL, *padded = NULL;
	off_t old = lseek(s->lock, 0, SEEK_END);

	if (!strcmp(path, slip_text(s, "path")) || old < 0)
		return;
	json_object_set_new(s->plan, "path", json_string(path));
	text = json_dumps(s->plan, JSON_COMPACT);
	if (text && asprintf(&padded, "%-*s", (int)old, text) >= 0 &&
	    pwrite(s->lock, padded, strlen(padded), 0) >= 0)
		fdatasync(s->lock);
}

void slip_forget(struct slip *s)
{
	bm_record_auto struct bm_record record = {0};
	const char *path = NULL;
	struct bm_mark mark;

	if (!bm_record_read(s->folder, &record, NULL))
		path = bm_uri_path(record.uri);
	if (path && !bm_mark_read(path, &mark) && !strcmp(mark.folder, s->folder) &&
	    !strcmp(mark.state, "active"))
		bm_mark_remove(path);
	if (path)
		note_path(s, path);
	bm_record_remove(s->folder);
	remove_in(s->folder, "map");
	remove_in(s->folder, "offer");
	clear_run(s);
	/* Last: as long as it is there, somebody will look. */
	remove_in(s->folder, "slip");
	rmdir(s->folder);
}

void slip_close(struct slip *s)
{
	bm_qmp_close(s->qmp);
	bm_client_close(s->disk);
	if (s->lock > 0)
		close(s->lock);
	json_decref(s->plan);
	free(s->name);
	free(s->folder);
}
