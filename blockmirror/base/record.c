/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The record of a disk: one line of JSON, one line with its checksum.
 */
#include "blockmirror/base/record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/uri.h"

/*
 * Records of the second format have a role, of the third one an image that another host writes to:
 * who does not know it must not serve them.
 */
enum { FORMAT = 1, FORMAT_ROLES = 2, FORMAT_SHARED = 3, LARGEST = 64 << 10 };

static const char *const roles[] = {
	[BM_ROLE_ACTIVE] = "active", [BM_ROLE_STANDBY] = "standby", [BM_ROLE_RETIRED] = "retired"};

const char *bm_role_name(enum bm_role role)
{
	return roles[role];
}

void bm_record_clear(struct bm_record *record)
{
	free(record->name);
	free(record->disk);
	free(record->peer);
	free(record->uri);
	json_decref(record->job);
	memset(record, 0, sizeof(*record));
}

static char *path_of(const char *folder, const char *which)
{
	char *path;

	if (asprintf(&path, "%s/record%s%s", folder, which ? "." : "", which ? which : "") < 0)
		return NULL;
	return path;
}

/*
 * The length of the JSON line when the checksum in the line after it is right; 0 with what is wrong
 * when not.
 */
static size_t checked_length(const char *text, const char **wrong)
{
	const char *newline = strchr(text, '\n');
	uint64_t sum;
	size_t length;

	*wrong = *text ? "it is cut short" : "it is empty";
	if (!newline || sscanf(newline + 1, "xxh64 %16" SCNx64, &sum) != 1)
		return 0;
	length = (size_t)(newline - text);
	*wrong = "its checksum is wrong";
	return XXH64(text, length, FORMAT) == sum ? length : 0;
}

static int find_role(const char *name)
{
	for (size_t i = 0; i < sizeof(roles) / sizeof(roles[0]); i++)
		if (!strcmp(roles[i], name))
			return (int)i;
	return -1;
}

/* The record has texts that are root's. */
static bool unpack(json_t *root, struct bm_record *record)
{
	const char *role = roles[BM_ROLE_ACTIVE];
	json_int_t generation, size;
	json_t *job = NULL;
	int known, shared = 0;

	if (!root || json_unpack(root, "{s:I s:s s:s s:s s:I s?o s?s s?s s?b}", "generation",
				 &generation, "name", &record->name, "disk", &record->disk, "uri",
				 &record->uri, "size", &size, "job", &job, "role", &role, "peer",
				 &record->peer, "shared", &shared))
		return false;
	known = find_role(role);
	record->role = (enum bm_role)known;
	record->shared = shared;
	record->generation = (uint64_t)generation;
	record->size = (uint64_t)size;
	record->job = json_is_object(job) ? job : NULL;
	return known >= 0 && (known == BM_ROLE_ACTIVE || record->peer);
}

static int parse(const char *path, const char *text, struct bm_record *record,
		 struct bm_error *error)
{
	const char *wrong;
	size_t length = checked_length(text, &wrong);
	struct bm_record found = {0};
	json_t *root;
	int format = 0;

	root = length ? json_loadb(text, length, 0, NULL) : NULL;
	if (root && json_unpack(root, "{s:i}", "format", &format) == 0 && format > FORMAT_SHARED) {
		json_decref(root);
		return bm_fail(
			error, BM_E_RECORD,
			"%s: written by a newer version (format %d, this one knows %d); serve the "
			"disk with that one",
			path, format, FORMAT_SHARED);
	}
	if (!unpack(root, &found)) {
		json_decref(root);
		return bm_fail(
			error, BM_E_RECORD,
			"%s: damaged (%s); it says which image is the truth, so restore it from a "
			"backup, or, when you know the right image (\"blockmirror whois IMAGE\" "
			"tells what it was marked as), move it away and serve that image anew",
			path, length ? "its content is no record's" : wrong);
	}
	*record = found;
	record->name = strdup(found.name);
	record->disk = strdup(found.disk);
	record->uri = strdup(found.uri);
	record->peer = found.peer ? strdup(found.peer) : NULL;
	json_incref(record->job);
	json_decref(root);
	if (!record->name || !record->disk || !record->uri || (found.peer && !record->peer)) {
		bm_record_clear(record);
		return bm_fail_errno(error, ENOMEM, "%s", path);
	}
	return 0;
}

int bm_record_read(const char *folder, struct bm_record *record, struct bm_error *error)
{
	bm_free char *path = path_of(folder, NULL), *text = NULL;
	int r;

	memset(record, 0, sizeof(*record));
	r = path ? bm_read_text(path, LARGEST, &text) : -ENOMEM;
	if (r == -ENOENT)
		return r;
	if (r < 0)
		return bm_fail_errno(error, r, "cannot read %s", path ? path : folder);
	return parse(path, text, record, error);
}

static char *format(const struct bm_record *record)
{
	bool plain = record->role == BM_ROLE_ACTIVE;
	json_t *root = json_pack(
		"{s:i s:I s:s s:s s:s s:I s:s* s:s* s:O*}", "format",
		plain            ? FORMAT
		: record->shared ? FORMAT_SHARED
				 : FORMAT_ROLES,
		"generation", (json_int_t)record->generation, "name", record->name, "disk",
		record->disk, "uri", record->uri, "size", (json_int_t)record->size, "role",
		plain ? NULL : roles[record->role], "peer", record->peer, "job", record->job);
	bm_free char *line = NULL;
	char *text = NULL;

	if (root && record->shared)
		json_object_set_new(root, "shared", json_true());
	line = root ? json_dumps(root, JSON_COMPACT) : NULL;
	json_decref(root);
	if (!line || asprintf(&text, "%s\nxxh64 %016" PRIx64 "\n", line,
			      XXH64(line, strlen(line), FORMAT)) < 0)
		return NULL;
	return text;
}

int bm_record_prepare(const char *folder, const char *which, const struct bm_record *record,
		      struct bm_error *error)
{
	bm_free char *path = path_of(folder, which), *text = format(record);
	int r = path && text ? bm_write_durably(path, text, strlen(text)) : -ENOMEM;

	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path ? path : folder) : 0;
}

int bm_record_commit(const char *folder, const char *which, struct bm_error *error)
{
	bm_free char *from = path_of(folder, which), *to = path_of(folder, NULL);
	int r = from && to ? bm_rename_durably(from, to) : -ENOMEM;

	return r < 0 ? bm_fail_errno(error, r, "cannot replace %s", to ? to : folder) : 0;
}

int bm_record_write(const char *folder, const struct bm_record *record, struct bm_error *error)
{
	int r = bm_record_prepare(folder, "new", record, error);

	return r < 0 ? r : bm_record_commit(folder, "new", error);
}

void bm_record_remove(const char *folder)
{
	static const char *const names[] = {"record",      "record.new", "record.forward",
					    "record.back", "requests",   "requests.new",
					    "told"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		bm_free char *path = NULL;

		if (asprintf(&path, "%s/%s", folder, names[i]) >= 0)
			unlink(path);
	}
}

int bm_record_checks_uri(const char *uri, struct bm_error *error)
{
	json_t *text = json_string(uri);
	char shown[400];

	json_decref(text);
	bm_uri_redact(uri, shown, sizeof(shown));
	if (!text)
		return bm_fail(error, BM_E_USAGE, "%s: the image's name is not UTF-8", shown);
	if (!strncmp(uri, "mem:", 4))
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "%s: memory ends with its process; a disk needs an image that stays",
			       shown);
	return 0;
}

void bm_identity(char id[33])
{
	uint8_t random[16];

	/* Sixteen bytes are never cut short (getrandom(2)). */
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		abort();
	for (size_t i = 0; i < sizeof(random); i++)
		snprintf(id + 2 * i, 3, "%02x", random[i]);
}
