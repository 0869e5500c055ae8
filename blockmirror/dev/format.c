/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image formats, as qemu-img(1) knows them.
 *
 * An image can name others: a backing file, a data file, extents. Who wrote the image chose them,
 *so none is followed that was not asked for, and none whose format would be a guess:
 *
 *	The guest of a raw disk writes a qcow2 header with /etc/shadow as backing file into its
 *first sector. Some overlay names the disk as backing file, and no format. QEMU looks, finds qcow2,
 *	and the guest reads /etc/shadow.
 */
#include "blockmirror/dev/format.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/run.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/dev/open.h"

enum { WHY = 1000, LONGEST_CHAIN = 200 };

static const struct format {
	const char *name;
	bool writable, zeros;
	const char *options; /* of creation: nothing is allocated, and the size is exact */
} formats[] = {
	{"qcow2", true, true, "preallocation=off"},
	{"vmdk", true, false, "subformat=monolithicSparse"},
	{"vhdx", true, false, "subformat=dynamic"},
	{"vpc", true, false, "subformat=dynamic,force_size=on"},
	/*
	 * Of two writes that allocate blocks the first one writes the map of both, and the header
	 * with its own count: after a kill the second block is given out again (docs/formats.md).
	 */
	{"vdi", false, false, NULL},
	/* qemu-nbd 7.2 dies of a few writes at a time. */
	{"qed", false, false, NULL},
	/* QEMU writes to the first two, and says itself that they are there to be converted. */
	{"qcow", false, false, NULL},
	{"parallels", false, false, NULL},
	{"dmg", false, false, NULL},
};

static const struct format *find_format(const char *name)
{
	for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
		if (!strcmp(formats[i].name, name))
			return &formats[i];
	return NULL;
}

bool bm_format_has_zeros(const char *format)
{
	return find_format(format)->zeros;
}

/* Runs qemu-img. Returns 0, 1 (why says what is wrong), or an error that needs no more words. */
static int run_qemu_img(const char *path, char *const argv[], const struct bm_open_options *options,
			char **output, char *why, struct bm_error *error)
{
	int r = bm_run(argv, options->interrupted, options->arg, output, why, WHY);

	if (r == -EINTR)
		return bm_fail(error, BM_E_CANCELLED, "cannot open %s: interrupted", path);
	if (r < 0)
		return bm_fail_errno(error, r, "%s: cannot run qemu-img", path);
	if (r == BM_SPAWN_NOT_FOUND)
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "%s: qemu-img was not found in PATH; images in a format need it and "
			       "qemu-nbd (in Debian: qemu-utils)",
			       path);
	if (r && !*why)
		snprintf(why, WHY, "qemu-img ended with status %d", r);
	return r != 0;
}

/* What the image says about itself; nothing that it names is opened for its content. */
static int look_at(const char *format, const char *path, const struct bm_open_options *options,
		   json_t **info, struct bm_error *error)
{
	/* -U: we hold its lock, or do not care who does. */
	const char *argv[] = {"qemu-img", "info", "-U", "--output=json", "-f", format, path, NULL};
	bm_free char *output = NULL;
	char why[WHY];
	int r = run_qemu_img(path, (char *const *)argv, options, &output, why, error);

	*info = NULL;
	if (r < 0)
		return r;
	if (!r)
		*info = json_loads(output, 0, NULL);
	/* A vhdx image whose helper was killed. It is repaired when it is opened for writing. */
	if (r && !options->read_only && strstr(why, "log that needs to be replayed"))
		*info = json_object();
	else if (r)
		return bm_fail(error, BM_E_NOT_IMAGE, "%s is no image in format %s: %s", path,
			       format, why);
	return *info ? 0 : bm_fail(error, BM_E_INTERNAL, "%s: qemu-img said what is no JSON", path);
}

/* The data is elsewhere. */
static int check_extents(const char *path, const json_t *info, struct bm_error *error)
{
	const json_t *specific = json_object_get(json_object_get(info, "format-specific"), "data");
	const char *other = json_string_value(json_object_get(specific, "data-file"));
	const json_t *extents = json_object_get(specific, "extents"), *extent;
	size_t i;

	json_array_foreach(extents, i, extent) {
		const char *name = json_string_value(json_object_get(extent, "filename"));

		if (name && strcmp(name, path) != 0)
			other = name;
	}
	if (other)
		return bm_fail(error, BM_E_LINKED,
			       "%s holds no data itself, but names %.200s: only images of one file "
			       "are used (qemu-img convert makes one)",
			       path, other);
	if (json_is_true(json_object_get(info, "encrypted")))
		return bm_fail(error, BM_E_UNSUPPORTED, "%s is encrypted, and no key was given",
			       path);
	return 0;
}

/* One image of a chain. *next, *format: the one that is behind it, NULL: there is none. */
static int check_link(char **path, const char **format, const struct bm_open_options *options,
		      struct bm_error *error)
{
	json_t *info = NULL;
	const char *backing, *stated;
	bm_free char *next = NULL;
	int r = look_at(*format, *path, options, &info, error);

	if (r < 0)
		return r;
	r = check_extents(*path, info, error);
	backing = json_string_value(json_object_get(info, "full-backing-filename"));
	stated = json_string_value(json_object_get(info, "backing-filename-format"));
	if (!backing)
		backing = json_string_value(json_object_get(info, "backing-filename"));
	if (!r && backing && !options->linked)
		r = bm_fail(error, BM_E_LINKED,
			    "%s is a linked clone: %.200s shows through it. It is no target; with "
			    "--flatten it is served or copied with what shows through",
			    *path, backing);
	else if (!r && backing && (*backing != '/' || access(backing, R_OK) < 0))
		r = bm_fail(error, BM_E_LINKED,
			    "%s: %.200s shows through it, which is no file that can be read", *path,
			    backing);
	else if (!r && backing && !stated)
		r = bm_fail(error, BM_E_LINKED,
			    "%s does not say what format its backing file %.200s has, and that is "
			    "not guessed; qemu-img rebase -u -F FORMAT says it",
			    *path, backing);
	if (!r && backing) {
		const struct format *known = find_format(stated);

		next = strdup(backing);
		if (!next)
			r = bm_fail_errno(error, ENOMEM, "%s", *path);
		else if (!known && strcmp(stated, "raw") != 0)
			r = bm_fail(error, BM_E_UNSUPPORTED,
				    "%s: its backing file %.200s is in format %.20s", *path,
				    backing, stated);
		*format = known ? known->name : NULL;
	} else {
		*format = NULL;
	}
	json_decref(info);
	free(*path);
	*path = bm_steal(next);
	return r;
}

int bm_format_check(const char *format, const char *path, const struct bm_open_options *options,
		    struct bm_error *error)
{
	const struct format *known = find_format(format);
	bm_free char *at = strdup(path);
	int r = at ? 0 : bm_fail_errno(error, ENOMEM, "%s", path);

	if (!known->writable && !options->read_only)
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "%s: images in format %s are not written to, since QEMU does not do "
			       "that safely; they can be copied",
			       path, format);
	for (int i = 0; !r && format; i++)
		r = i < LONGEST_CHAIN
			    ? check_link(&at, &format, options, error)
			    : bm_fail(error, BM_E_LINKED,
				      "%s: the chain of its backing files has no end", path);
	return r;
}

/* path exists, and is ours and empty. */
static int fill(const struct format *format, const char *path, uint64_t size,
		struct bm_error *error)
{
	static const struct bm_open_options none;
	char bytes[24], why[WHY];
	const char *argv[] = {"qemu-img", "create",        "-q", "-f",  format->name,
			      "-o",       format->options, path, bytes, NULL};
	json_t *info = NULL;
	json_int_t made;
	int r;

	snprintf(bytes, sizeof(bytes), "%" PRIu64, size);
	r = run_qemu_img(path, (char *const *)argv, &none, NULL, why, error);
	if (r > 0)
		return bm_fail(error, strstr(why, "No space") ? BM_E_ENOSPC : BM_E_SIZE,
			       "cannot create %s in format %s: %s", path, format->name, why);
	if (!r)
		r = look_at(format->name, path, &none, &info, error);
	made = json_integer_value(json_object_get(info, "virtual-size"));
	json_decref(info);
	if (!r && (uint64_t)made != size)
		r = bm_fail(error, BM_E_SIZE,
			    "cannot create %s: format %s has no images of exactly %" PRIu64
			    " bytes",
			    path, format->name, size);
	return r;
}

int bm_format_create(const char *name, const char *path, uint64_t size, struct bm_error *error)
{
	const struct format *format = find_format(name);
	bm_close int fd = -1;
	bm_free char *real = NULL;
	int r = bm_check_size(path, size, error);

	if (r < 0)
		return r;
	if (!format->writable)
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "cannot create %s: images in format %s are not written to, since "
			       "QEMU does not do that safely",
			       path, name);
	/* qemu-img takes what exists, too. */
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot create %s", path);
	real = realpath(path, NULL);
	r = real ? fill(format, real, size, error)
		 : bm_fail_errno(error, errno, "cannot create %s", path);
	if (!r && (fsync(fd) < 0 || bm_sync_folder_of(real) < 0))
		r = bm_fail_errno(error, errno, "cannot create %s", path);
	if (r < 0)
		unlink(path);
	return r;
}
