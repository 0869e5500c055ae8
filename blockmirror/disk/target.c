/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Targets: from what a user names to an open device. Everything that can be wrong with a target is
 * found here, before anything is changed; what was created here is removed again when it comes
 * to nothing. Runs in a worker, since every step of it may block.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/maintenance.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/dev/open.h"
#include "blockmirror/disk/disk.h"

#define ERROR &target->error

/* The length of name without an ending that says what format an image is in. */
static int length_without_format(const char *name)
{
	const char *dot = strrchr(name, '.');
	bm_free char *as_uri = NULL;
	bool known;

	if (!dot || dot == name)
		return (int)strlen(name);
	if (asprintf(&as_uri, "%s:", dot + 1) < 0)
		as_uri = NULL;
	known = !strcmp(dot, ".img") || !strcmp(dot, ".raw") || (as_uri && bm_uri_format(as_uri));
	return known ? (int)(dot - name) : (int)strlen(name);
}

/*
 * In a folder the image gets the name that it has, on whichever host, or the disk's. One that ends
 * as those of another format do would be taken for such an image.
 */
static char *image_name(const struct target *target)
{
	const char *source = bm_uri_path(target->source);
	bm_free char *there = source ? NULL : bm_uri_parameter(target->source, BM_URI_PATH);
	const char *path = source ? source : there, *slash = path ? strrchr(path, '/') : NULL;
	const char *name = slash ? slash + 1 : target->name;
	const char *format = bm_uri_format(target->text);
	char *result;

	if (slash && format == bm_uri_format(target->source)) /* both are of one table */
		return strdup(name);
	return asprintf(&result, "%.*s.%s", slash ? length_without_format(name) : (int)strlen(name),
			name, format ? format : "img") < 0
		       ? NULL
		       : result;
}

static int path_in_folder(struct target *target, const char *folder, char **path)
{
	bm_free char *name = image_name(target);

	if (!name || asprintf(path, "%s/%s", folder, name) < 0)
		return bm_fail_errno(ERROR, ENOMEM, "%s", folder);
	return 0;
}

/* The file behind a loop device; any other image is what it is. */
static void look_behind(const char *path, struct stat *st)
{
	struct loop_info64 info;
	bm_close int fd = S_ISBLK(st->st_mode) ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0 && !ioctl(fd, LOOP_GET_STATUS64, &info)) {
		st->st_mode = S_IFREG;
		st->st_dev = info.lo_device;
		st->st_ino = info.lo_inode;
	}
}

static int same_image(struct target *target, const char *path, struct stat st)
{
	const char *source = bm_uri_path(target->source);
	struct stat other;

	if (!source || stat(source, &other) < 0)
		return 0;
	look_behind(path, &st);
	look_behind(source, &other);
	if (S_ISBLK(st.st_mode) && S_ISBLK(other.st_mode)
		    ? st.st_rdev == other.st_rdev
		    : st.st_dev == other.st_dev && st.st_ino == other.st_ino)
		return bm_fail(ERROR, BM_E_SAME, "%s is the image that the disk is on (%s)", path,
			       source);
	return 0;
}

/* Bytes that the source really takes; all of it when that is not known. */
static uint64_t allocated(const struct target *target)
{
	const char *source = bm_uri_path(target->source);
	struct stat st;
	uint64_t bytes;

	if (!source || stat(source, &st) < 0 || !S_ISREG(st.st_mode))
		return target->size;
	bytes = (uint64_t)st.st_blocks * 512;
	return bytes < target->size ? bytes : target->size;
}

static int check_space(struct target *target, const char *path)
{
	char need[BM_UNITS_TEXT], have[BM_UNITS_TEXT];
	bm_free char *folder = strdup(path);
	uint64_t wanted = allocated(target), free_bytes;
	struct statvfs fs;
	char *slash = folder ? strrchr(folder, '/') : NULL;

	if (slash)
		slash[slash == folder] = '\0';
	if (!folder || statvfs(slash ? folder : ".", &fs) < 0)
		return 0; /* the creation will tell */
	free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (free_bytes >= wanted)
		return 0;
	return bm_fail(ERROR, BM_E_ENOSPC, "%s: no space: the image takes %s, %s are free there",
		       path, bm_format_size(need, wanted), bm_format_size(have, free_bytes));
}

/* Where records are, is the state directory's disks/. */
static int check_maintenance(struct target *target, const char *path)
{
	const char *end = target->folder ? strstr(target->folder, "/disks/") : NULL, *next;
	bm_free char *state = NULL, *folder = strdup(path), *real = NULL;
	char *slash = folder ? strrchr(folder, '/') : NULL;

	while (end && (next = strstr(end + 1, "/disks/")))
		end = next;
	if (!end || !slash)
		return 0;
	slash[slash == folder] = '\0';
	real = realpath(folder, NULL);
	state = strndup(target->folder, (size_t)(end - target->folder));
	return state ? bm_maintenance_folder(state, real ? real : folder, ERROR)
		     : bm_fail_errno(ERROR, ENOMEM, "%s", path);
}

static int create(struct target *target, const char *path)
{
	bm_free char *uri = bm_uri_like(target->text, path);
	bm_free char *real = uri ? bm_uri_canonical(uri) : NULL;
	int r;

	if (!real)
		return bm_fail_errno(ERROR, errno, "cannot create %s", path);
	r = check_space(target, bm_uri_path(real));
	if (!r)
		r = bm_image_create(real, target->size, ERROR);
	if (r < 0)
		return r;
	target->created = target->zeroed = true;
	target->uri = bm_steal(real);
	return 0;
}

static int find_path(struct target *target, const char *path)
{
	bm_free char *inside = NULL, *uri = NULL;
	struct stat st;
	int r;

	if (*path != '/')
		return bm_fail(ERROR, BM_E_USAGE, "%s: an absolute path is wanted", path);
	if (!stat(path, &st) && S_ISDIR(st.st_mode)) {
		r = path_in_folder(target, path, &inside);
		if (r < 0)
			return r;
		path = inside;
	}
	r = check_maintenance(target, path);
	if (r < 0)
		return r;
	if (stat(path, &st) < 0)
		return errno == ENOENT ? create(target, path)
				       : bm_fail_errno(ERROR, errno, "cannot use %s", path);
	if (S_ISDIR(st.st_mode))
		return bm_fail(ERROR, BM_E_NOT_IMAGE, "%s is a directory, not an image", path);
	r = same_image(target, path, st);
	if (r < 0)
		return r;
	if (!target->overwrite)
		return bm_fail(ERROR, BM_E_EXISTS, "%s exists; --overwrite gives up what it holds",
			       path);
	uri = bm_uri_like(target->text, path);
	target->uri = uri ? bm_uri_canonical(uri) : NULL;
	if (!target->uri)
		return bm_fail_errno(ERROR, errno, "%s", path);
	return owner_check(path, target->folder, OWNER_OVERWRITE, ERROR);
}

/* Whether the export is our own, by whatever path its socket is named. */
static bool own_export(const struct target *target)
{
	bm_free char *socket = bm_uri_socket(target->text);
	struct stat own, asked;

	return socket && target->own_socket && !stat(socket, &asked) &&
	       !stat(target->own_socket, &own) && asked.st_dev == own.st_dev &&
	       asked.st_ino == own.st_ino;
}

static int find_export(struct target *target)
{
	char shown[400];

	if (!strcmp(target->text, target->source) || own_export(target))
		return bm_fail(ERROR, BM_E_SAME, "%s is the disk itself",
			       bm_uri_redact(target->text, shown, sizeof(shown)));
	target->uri = strdup(target->text);
	return target->uri ? 0 : bm_fail_errno(ERROR, ENOMEM, "target");
}

/* Both are of other hosts: the same image of the same one. */
static bool same_there(const char *a, const char *b)
{
	static const char *const parts[] = {BM_URI_HOST, BM_URI_PATH};

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		bm_free char *x = bm_uri_parameter(a, parts[i]), *y = bm_uri_parameter(b, parts[i]);

		if (!x || !y || strcmp(x, y) != 0)
			return false;
	}
	return true;
}

static int find_peer(struct target *target)
{
	bm_free char *image = image_name(target);
	char shown[400];
	int r = image ? remote_create(target, image, allocated(target))
		      : bm_fail_errno(ERROR, ENOMEM, "%s", target->text);

	/* Both sessions would be one, and take each other's place for ever. */
	if (!r && remote_is(target->source) && same_there(target->source, target->uri))
		return bm_fail(ERROR, BM_E_SAME, "%s is the image that the disk is on",
			       bm_uri_redact(target->uri, shown, sizeof(shown)));
	return r;
}

static int open_target(struct target *target)
{
	const struct bm_open_options options = {.fence = target->fence,
						.session = target->record ? target->record->disk
									  : NULL,
						.interrupted = target->interrupted,
						.arg = target->arg};
	char shown[400], need[BM_UNITS_TEXT], have[BM_UNITS_TEXT];
	int r = bm_dev_open(target->uri, &options, &target->dev, ERROR);

	if (r < 0)
		return r;
	bm_uri_redact(target->uri, shown, sizeof(shown));
	if (target->dev->geometry.size < target->size)
		return bm_fail(ERROR, BM_E_TOO_SMALL, "%s is smaller (%s) than the disk (%s)",
			       shown, bm_format_size(have, target->dev->geometry.size),
			       bm_format_size(need, target->size));
	if (target->dev->geometry.flags & BM_DEV_READ_ONLY)
		return bm_fail(ERROR, BM_E_ACCESS, "%s is read-only", shown);
	/* A foreign export exists whenever it can be opened. */
	if (!bm_uri_path(target->uri) && !target->overwrite && !target->created)
		return bm_fail(ERROR, BM_E_EXISTS,
			       "%s exists (every export does); --overwrite gives up what it holds",
			       shown);
	return 0;
}

/*
 * Until the job has ended well, nobody shall take this for an image. What it was before is looked
 * at again, now that we hold its lock.
 */
static int mark_incomplete(struct target *target)
{
	const char *path = bm_uri_path(target->uri);
	int r = owner_check(target->uri, target->folder, OWNER_OVERWRITE, ERROR);

	if (r < 0 || !path)
		return r;
	r = bm_mark_read(path, &target->before);
	if (!r)
		r = owner_mark(target->uri, "incomplete", target->record, target->folder);
	target->marked = !r;
	return r < 0 ? bm_fail_errno(ERROR, r, "cannot mark %s as incomplete", path) : 0;
}

void target_unmark(const struct target *target)
{
	const char *path = bm_uri_path(target->uri);
	int r;

	if (!path)
		return;
	r = *target->before.state ? bm_mark_write(path, &target->before) : bm_mark_remove(path);
	if (r < 0)
		bm_log(BM_LOG_WARN, "cannot take the mark from %s: %s", path, strerror(-r));
}

int target_prepare(struct target *target)
{
	bm_free struct bm_uri *uri = NULL;
	int r = bm_uri_parse(target->text, &uri, ERROR);

	if (!r)
		r = bm_record_checks_uri(target->text, ERROR);
	if (!r)
		r = bm_uri_path(target->text)       ? find_path(target, uri->rest)
		    : uri->scheme == BM_SCHEME_PEER ? find_peer(target)
						    : find_export(target);
	if (!r)
		r = open_target(target);
	if (!r)
		r = mark_incomplete(target);
	if (r < 0)
		target_drop(target);
	return r;
}

static int remove_remote(const char *daemon, const char *name, const struct bm_record *record,
			 const char *uri)
{
	struct bm_error error;
	char shown[400];
	int r = remote_remove(daemon, name, record, uri, &error);

	if (r < 0)
		bm_log(BM_LOG_WARN, "cannot remove %s: %s",
		       bm_uri_redact(uri, shown, sizeof(shown)), error.text);
	return r;
}

int target_remove(const struct disk *d, const char *uri)
{
	return remote_is(uri) ? remove_remote(d->daemon_path, d->name, &d->record, uri)
			      : owner_remove(uri);
}

void target_drop(struct target *target)
{
	const char *path = target->uri ? bm_uri_path(target->uri) : NULL;

	bm_dev_close(target->dev);
	target->dev = NULL;
	if (target->created && target->uri && !path) {
		remove_remote(target->daemon, target->name, target->record, target->uri);
	} else if (target->created && path) {
		bm_mark_remove(path);
		if (unlink(path) < 0)
			bm_log(BM_LOG_WARN, "cannot remove %s: %s", path, strerror(errno));
	} else if (target->marked) {
		target_unmark(target);
	}
	target->created = false;
	free(target->uri);
	target->uri = NULL;
}
