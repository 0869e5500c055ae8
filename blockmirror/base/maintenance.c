/* SPDX-License-Identifier: BSD-3-Clause */
/* See maintenance.h. */
#include "blockmirror/base/maintenance.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/memory.h"

enum { LARGEST = 1 << 20 };

static char *file_of(const char *state, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", state, name) < 0 ? bm_need(NULL) : path;
}

int bm_maintenance_host(const char *state, struct bm_error *error)
{
	bm_free char *path = file_of(state, "maintenance");

	if (access(path, F_OK) < 0 && (errno == ENOENT || errno == ENOTDIR))
		return 0;
	return bm_fail(error, BM_E_MAINTENANCE,
		       "this host is in maintenance: nothing new comes here until, there, "
		       "\"blockmirror maintenance off\"");
}

/* 0: *list is what there is, perhaps nothing. */
static int read_list(const char *path, json_t **list, struct bm_error *error)
{
	bm_free char *text = NULL;
	int r = bm_read_text(path, LARGEST, &text);

	*list = r == -ENOENT || r == -ENOTDIR ? json_object() : NULL;
	if (!r)
		*list = json_loads(text, 0, NULL);
	if (json_is_object(*list))
		return 0;
	json_decref(*list);
	*list = NULL;
	return bm_fail(error, BM_E_RECORD,
		       "%s: cannot be read, or is damaged: remove it, and say again which "
		       "datastores are in maintenance",
		       path);
}

int bm_maintenance_folder(const char *state, const char *path, struct bm_error *error)
{
	bm_free char *file = file_of(state, "maintenance.datastores");
	const char *folder;
	json_t *list, *entry;
	int r = read_list(file, &list, error);

	if (r < 0)
		return r;
	json_object_foreach(list, folder, entry) {
		size_t n = strlen(folder);

		if (!r && !strncmp(path, folder, n) && (!path[n] || path[n] == '/'))
			r = bm_fail(error, BM_E_MAINTENANCE,
				    "%s is in maintenance: nothing new comes there until "
				    "\"blockmirror maintenance off %s\"",
				    folder, folder);
	}
	json_decref(list);
	return r;
}

/* Two who change it come one after the other; the folder's lock goes with the process. */
static int lock(const char *state, struct bm_error *error)
{
	bm_close int fd = -1;
	int r = bm_make_folders(state);

	if (r < 0)
		return bm_fail_errno(error, r, "cannot create %s", state);
	fd = open(state, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || flock(fd, LOCK_EX) < 0)
		return bm_fail_errno(error, errno, "cannot use %s", state);
	return bm_steal_fd(fd);
}

/* A whole new file takes the place of the old one. */
static int write_json(const char *path, json_t *value, struct bm_error *error)
{
	bm_free char *text = bm_need(json_dumps(value, JSON_INDENT(1) | JSON_SORT_KEYS)),
		     *fresh = NULL;
	int r;

	if (asprintf(&fresh, "%s.new", path) < 0)
		bm_need(NULL);
	r = bm_write_durably(fresh, text, strlen(text));
	if (!r)
		r = bm_rename_durably(fresh, path);
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path) : 0;
}

static int set_host(const char *state, bool on, struct bm_error *error)
{
	bm_free char *path = file_of(state, "maintenance");
	json_t *value;
	int r;

	if (!on) {
		r = unlink(path) < 0 && errno != ENOENT ? -errno : bm_sync_folder_of(path);
		return r < 0 ? bm_fail_errno(error, r, "cannot remove %s", path) : 0;
	}
	if (!access(path, F_OK))
		return 0;
	value = json_pack("{s:i s:I}", "v", 1, "since", (json_int_t)time(NULL));
	r = write_json(path, value, error);
	json_decref(value);
	return r;
}

int bm_maintenance_set(const char *state, const char *folder, bool on, struct bm_error *error)
{
	bm_close int fd = lock(state, error);
	bm_free char *path = file_of(state, "maintenance.datastores");
	json_t *list = NULL;
	int r = 0;

	if (fd < 0)
		return fd;
	if (!folder)
		return set_host(state, on, error);
	r = read_list(path, &list, error);
	if (r < 0)
		return r;
	if (on && !json_object_get(list, folder)) {
		if (json_object_set_new(list, folder,
					json_pack("{s:I}", "since", (json_int_t)time(NULL))) < 0)
			r = bm_fail(error, BM_E_USAGE, "%s: the name is not UTF-8", folder);
		else
			r = write_json(path, list, error);
	} else if (!on && !json_object_del(list, folder)) {
		r = write_json(path, list, error);
	}
	json_decref(list);
	return r;
}

json_t *bm_maintenance_list(const char *state, struct bm_error *error)
{
	bm_free char *path = file_of(state, "maintenance.datastores");
	json_t *list, *folders, *entry;
	const char *folder;

	if (read_list(path, &list, error) < 0)
		return NULL;
	folders = json_array();
	json_object_foreach(list, folder, entry)
		json_array_append_new(folders, json_string(folder));
	json_decref(list);
	return json_pack("{s:b s:o}", "host", bm_maintenance_host(state, NULL) < 0, "datastores",
			 folders);
}
