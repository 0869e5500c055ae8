/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which disks are to be served after a boot: STATE/serve/NAME.json, one for each, written beside
 * and renamed. They say that a disk is to be served, and what its clients may take; where it is
 * stands in its record, which moves change.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/daemon/daemon.h"

enum { FORMAT = 1, LARGEST = 4096 };
#define SUFFIX ".json"

bool registry_limits_good(const json_t *limits)
{
	static const char *const known[] = {"max-connections", "max-data", "reconnect-timeout"};
	size_t good = 0;

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		good += json_is_string(json_object_get(limits, known[i]));
	return !limits || (json_is_object(limits) && json_object_size(limits) == good);
}

const char *registry_peer(const json_t *received)
{
	return json_string_value(json_object_get(received, "peer"));
}

const char *registry_disk(const json_t *received)
{
	return json_string_value(json_object_get(received, "disk"));
}

unsigned registry_port(const json_t *received)
{
	return (unsigned)json_integer_value(json_object_get(received, "port"));
}

bool registry_shared(const json_t *received)
{
	return json_is_true(json_object_get(received, "shared"));
}

static bool received_good(const json_t *received)
{
	json_int_t port = json_integer_value(json_object_get(received, "port"));

	return !received || (registry_peer(received) && registry_disk(received) &&
			     (registry_shared(received) || (port > 0 && port < 65536)));
}

int registry_add(const char *folder, const char *name, json_t *limits, json_t *received,
		 struct bm_error *error)
{
	bm_free char *path = NULL, *beside = NULL, *text = NULL;
	json_t *entry = json_pack("{s:i s:s s:O* s:O*}", "format", FORMAT, "name", name, "limits",
				  limits, "received", received);
	int r;

	text = entry ? json_dumps(entry, JSON_COMPACT) : NULL;
	json_decref(entry);
	if (!text || asprintf(&path, "%s/%s" SUFFIX, folder, name) < 0 ||
	    asprintf(&beside, "%s/.%s.new", folder, name) < 0)
		return bm_fail_errno(error, ENOMEM, "disk %s", name);
	r = bm_write_durably(beside, text, strlen(text));
	if (!r)
		r = bm_rename_durably(beside, path);
	if (r < 0) {
		unlink(beside);
		return bm_fail_errno(error, r, "cannot write %s", path);
	}
	return 0;
}

int registry_remove(const char *folder, const char *name, struct bm_error *error)
{
	bm_free char *path = NULL;
	int r;

	if (asprintf(&path, "%s/%s" SUFFIX, folder, name) < 0)
		return bm_fail_errno(error, ENOMEM, "disk %s", name);
	r = unlink(path) < 0 && errno != ENOENT ? -errno : bm_sync_folder_of(path);
	return r < 0 ? bm_fail_errno(error, r, "cannot remove %s", path) : 0;
}

/* The name that an entry's file says and has. *entry is the caller's to release. */
static bool check(const char *folder, const char *name, json_t **entry)
{
	bm_free char *path = NULL, *text = NULL;
	const char *said = NULL;
	int format = 0;

	if (bm_disk_name_check(name, NULL) < 0 ||
	    asprintf(&path, "%s/%s" SUFFIX, folder, name) < 0 ||
	    bm_read_text(path, LARGEST, &text) < 0)
		return false;
	*entry = json_loads(text, 0, NULL);
	return *entry && !json_unpack(*entry, "{s:i s:s}", "format", &format, "name", &said) &&
	       format == FORMAT && !strcmp(said, name) &&
	       registry_limits_good(json_object_get(*entry, "limits")) &&
	       received_good(json_object_get(*entry, "received"));
}

int registry_read(const char *folder,
		  void (*found)(void *arg, const char *name, json_t *limits, json_t *received),
		  void *arg, struct bm_error *error)
{
	struct dirent **entries = NULL;
	int n = scandir(folder, &entries, NULL, alphasort);

	if (n < 0)
		return bm_fail_errno(error, errno, "cannot read %s", folder);
	for (int i = 0; i < n; i++) {
		char *name = entries[i]->d_name, *dot = strrchr(name, '.');

		if (*name != '.' && dot && !strcmp(dot, SUFFIX)) {
			json_t *entry = NULL;

			*dot = '\0';
			if (check(folder, name, &entry))
				found(arg, name, json_object_get(entry, "limits"),
				      json_object_get(entry, "received"));
			else
				bm_log(BM_LOG_ERROR,
				       "%s/%s" SUFFIX " is damaged, or of a newer format: the disk "
				       "is not served; \"blockmirror serve\" writes it anew",
				       folder, name);
			json_decref(entry);
		}
		free(entries[i]);
	}
	free(entries);
	return 0;
}
