/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who owns an image: the mark on it, checked against the record that the mark names. A record that
 * is gone owns nothing. A block device bears no mark: the records beside our own are asked.
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/disk.h"

static int owned(struct bm_error *error, const char *path, const char *folder)
{
	return bm_fail(error, BM_E_OWNED,
		       "%s belongs to the disk whose record is in %s; serve that disk, or remove "
		       "that record first",
		       path, folder);
}

static int retired(struct bm_error *error, const char *path, const char *where)
{
	return bm_fail(error, BM_E_RETIRED,
		       "%s is an old copy: its disk moved to %s; --force serves it all the same",
		       path, where);
}

static int unusable(struct bm_error *error, const char *path, enum owner_use use)
{
	return bm_fail(
		error, BM_E_UNUSABLE,
		"%s is an incomplete copy, left by a move that was interrupted; remove it, or "
		"give it as target again with --overwrite%s",
		path, use == OWNER_SERVE ? " (--force serves it all the same)" : "");
}

/*
 * The image is marked as one in a format, or in another one. Served without it the guest would find
 * a header where its disk begins, and write over it.
 */
static int check_format(const char *uri, const char *path, const struct bm_mark *mark,
			enum owner_use use, struct bm_error *error)
{
	const char *format = bm_uri_format(uri);

	if (use == OWNER_OVERWRITE || !strcmp(mark->format, format ? format : ""))
		return 0;
	return bm_fail(error, BM_E_NOT_IMAGE, "%s is marked as an image %s%s: %s%s%s is its name",
		       path, *mark->format ? "in format " : "without a format", mark->format,
		       mark->format, *mark->format ? ":" : "", path);
}

/* The image is marked as the truth of the disk of another record: what does that one say? */
static int check_active(const char *path, const struct bm_mark *mark, enum owner_use use,
			struct bm_error *error)
{
	bm_record_auto struct bm_record record = {0};
	bm_free char *real = bm_uri_canonical(path);
	const char *claimed;
	char shown[400];

	if (!real || bm_record_read(mark->folder, &record, NULL) < 0 ||
	    strcmp(record.disk, mark->disk))
		return 0;
	claimed = bm_uri_path(record.uri);
	if (claimed && !strcmp(claimed, real))
		return use == OWNER_READ ? 0 : owned(error, path, mark->folder);
	/* A crash came between the record of a switch and the marks of its images. */
	return use == OWNER_SERVE
		       ? retired(error, path, bm_uri_redact(record.uri, shown, sizeof(shown)))
		       : 0;
}

static bool is_device(const char *uri, dev_t device)
{
	const char *path = uri ? bm_uri_path(uri) : NULL;
	struct stat st;

	return path && !stat(path, &st) && S_ISBLK(st.st_mode) && st.st_rdev == device;
}

/* What one record has to do with a block device. */
static int check_record(const char *path, dev_t device, const char *folder, enum owner_use use,
			struct bm_error *error)
{
	bm_record_auto struct bm_record record = {0};
	const char *state = "", *source = NULL, *target = NULL, *kind = "";
	char shown[400];

	if (bm_record_read(folder, &record, NULL) < 0)
		return 0;
	if (is_device(record.uri, device))
		return use == OWNER_READ ? 0 : owned(error, path, folder);
	if (!record.job || json_unpack(record.job, "{s?s s?s s?s s?s}", "state", &state, "kind",
				       &kind, "source", &source, "target", &target))
		return 0;
	if (use == OWNER_SERVE && target && !strcmp(record.uri, target) &&
	    !strcmp(kind, "relocate") && is_device(source, device))
		return retired(error, path, bm_uri_redact(record.uri, shown, sizeof(shown)));
	if ((use == OWNER_SERVE || use == OWNER_READ) && strcmp(state, "done") &&
	    is_device(target, device))
		return unusable(error, path, use);
	return 0;
}

static int check_device(const char *path, dev_t device, const char *folder, enum owner_use use,
			struct bm_error *error)
{
	bm_free char *parent = strdup(folder);
	char *slash = parent ? strrchr(parent, '/') : NULL;
	struct dirent **entries = NULL;
	int n, r = 0;

	if (!slash)
		return 0;
	*slash = '\0';
	n = scandir(parent, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		bm_free char *beside = NULL;

		if (!r && entries[i]->d_name[0] != '.' && strcmp(entries[i]->d_name, slash + 1) &&
		    asprintf(&beside, "%s/%s", parent, entries[i]->d_name) >= 0)
			r = check_record(path, device, beside, use, error);
		free(entries[i]);
	}
	free(entries);
	return r;
}

/* However it is named. */
static bool same_folder(const char *a, const char *b)
{
	struct stat one, other;

	return !strcmp(a, b) || (!stat(a, &one) && !stat(b, &other) && one.st_dev == other.st_dev &&
				 one.st_ino == other.st_ino);
}

int owner_check(const char *uri, const char *folder, enum owner_use use, struct bm_error *error)
{
	const char *path = bm_uri_path(uri);
	struct bm_mark mark;
	struct stat st;

	if (!path || stat(path, &st) < 0)
		return 0;
	if (S_ISBLK(st.st_mode))
		return check_device(path, st.st_rdev, folder, use, error);
	if (bm_mark_read(path, &mark) < 0 || !mark.state[0])
		return 0;
	if (check_format(uri, path, &mark, use, error) < 0)
		return -EINVAL;
	if (!strcmp(mark.state, "active") && !same_folder(mark.folder, folder))
		return check_active(path, &mark, use, error);
	if (use == OWNER_SERVE && !strcmp(mark.state, "retired"))
		return retired(error, path, mark.where);
	if ((use == OWNER_SERVE || use == OWNER_READ) && !strcmp(mark.state, "incomplete"))
		return unusable(error, path, use);
	return 0;
}

int owner_check_record(struct bm_record *record, const char *folder, bool force,
		       struct bm_error *error)
{
	const char *path = bm_uri_path(record->uri);
	struct bm_mark mark = {0};
	bool older = path && !bm_mark_read(path, &mark) && !strcmp(mark.disk, record->disk) &&
		     mark.generation > record->generation;

	if (older && !force)
		return bm_fail(error, BM_E_RECORD,
			       "the record in %s is older (generation %" PRIu64
			       ") than the mark on %s (%s, generation %" PRIu64
			       "): is it from a backup? See \"blockmirror whois %s\"; --force "
			       "believes the record",
			       folder, record->generation, path, mark.state, mark.generation, path);
	if (older) {
		record->generation = mark.generation;
		json_decref(record->job); /* of a time that is gone, as are its maps */
		record->job = NULL;
	}
	return owner_check(record->uri, folder, OWNER_FORCE, error);
}

int owner_mark(const char *uri, const char *state, const struct bm_record *record,
	       const char *folder)
{
	const char *path = bm_uri_path(uri), *format = bm_uri_format(uri);
	struct bm_mark mark = {0};

	if (!path)
		return 0;
	snprintf(mark.format, sizeof(mark.format), "%s", format ? format : "");
	snprintf(mark.state, sizeof(mark.state), "%s", state);
	snprintf(mark.disk, sizeof(mark.disk), "%s", record->disk);
	snprintf(mark.folder, sizeof(mark.folder), "%s", folder);
	mark.generation = record->generation;
	if (!strcmp(state, "retired"))
		bm_uri_redact(record->uri, mark.where, sizeof(mark.where));
	return bm_mark_write(path, &mark);
}

/* Files only: the node of a block device is not the device. */
int owner_remove(const char *uri)
{
	const char *path = bm_uri_path(uri);
	struct stat st;

	if (!path || stat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	bm_mark_remove(path);
	return unlink(path) < 0 ? -errno : 0;
}
