/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is to be said against moving an image, beside what it is and who has it: its file cannot be
 * changed, its size is not what it should be, the storage it would go to does not do. docs/drain.md
 * has a line for each.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

enum { SECTOR = 512, MOUNTS = 1 << 20, KIND = 64 };

/* Stores */

/* The file system that path is on: what is mounted last at the longest name that leads there. */
static void kind_of(const char *path, char kind[KIND])
{
	bm_free char *text = NULL;
	char *line, *rest;
	size_t best = 0;

	*kind = '\0';
	if (bm_read_text("/proc/self/mounts", MOUNTS, &text))
		return;
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		char at[4096], type[KIND];
		size_t n;

		if (sscanf(line, "%*s %4095s %63s", at, type) != 2)
			continue;
		n = strcmp(at, "/") ? strlen(at) : 0;
		if (n >= best && !strncmp(at, path, n) && (path[n] == '/' || !path[n])) {
			best = n;
			snprintf(kind, KIND, "%s", type);
		}
	}
}

static bool is_denied(const struct drain *d, const char *kind)
{
	const json_t *one;
	size_t i;

	/* What is there is gone after the next boot. */
	if (!d->deny)
		return !strcmp(kind, "tmpfs") || !strcmp(kind, "ramfs");
	json_array_foreach(d->deny, i, one)
		if (!strcmp(json_string_value(one), kind))
			return true;
	return false;
}

int drain_check_stores(const struct drain *d, struct bm_error *error)
{
	struct statvfs fs;

	if (!d->balances && !statvfs(d->from.path, &fs) && fs.f_flag & ST_RDONLY)
		return bm_fail(
			error, BM_E_ACCESS,
			"%s is mounted read-only: nothing can be removed there, or marked as "
			"an old copy; mount it to be written to",
			d->from.path);
	for (size_t i = 0; i < d->plan.n_stores; i++) {
		const char *path = d->to[i].path;
		char kind[KIND];

		if (d->to[i].host) /* that host looks at it */
			continue;
		kind_of(path, kind);
		if (is_denied(d, kind))
			return bm_fail(error, BM_E_UNSUPPORTED,
				       "%s is on %s, to which nothing is to go (--deny)", path,
				       kind);
		if (access(path, W_OK) < 0)
			return bm_fail_errno(error, errno == EROFS ? EACCES : errno,
					     "%s cannot be written to", path);
	}
	return 0;
}

/* Images */

static void check_writable(struct drain_image *image)
{
	if (access(image->path, W_OK) < 0)
		bm_fail(&image->why, BM_E_ACCESS,
			"it is read-only (%s): it could neither be removed nor marked as an old "
			"copy; chmod or chattr it",
			strerror(errno));
}

/* What its process serves is what is there; in a format the file is a container. */
static void check_size(struct drain_image *image, const json_t *disk)
{
	uint64_t size = cli_number(disk, "size");

	if (*image->uri == '/' || !strncmp(image->uri, "file:", 5)) {
		if (size != image->size)
			bm_fail(&image->why, BM_E_SIZE,
				"disk %s has %llu bytes, and the file has %llu: somebody has made "
				"it longer or shorter",
				image->disk, (unsigned long long)size,
				(unsigned long long)image->size);
	}
}

void drain_check_image(const struct drain *d, struct drain_image *image, const json_t *disk)
{
	(void)d;
	if (!image->why.code && disk)
		check_size(image, disk);
	if (!image->why.code)
		check_writable(image);
}

/* Pairs of both */

/* Of the device that the file system is on; a partition has that of its disk. */
static unsigned sector_of(dev_t dev)
{
	static const char *const places[] = {"queue", "../queue"};

	for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		bm_free char *path = NULL, *text = NULL;
		unsigned long n;

		if (asprintf(&path, "/sys/dev/block/%u:%u/%s/logical_block_size", major(dev),
			     minor(dev), places[i]) < 0) {
			path = NULL;
			continue;
		}
		if (!bm_read_text(path, 64, &text) && (n = strtoul(text, NULL, 10)) >= SECTOR)
			return (unsigned)n;
	}
	return SECTOR;
}

/*
 * A guest that reads past its storage's cache does so in the storage's sectors: an image that does
 * not end with one has an end that cannot be read so. A container is read by what knows it.
 */
static bool fits(const struct drain_image *image, const struct drain_store *store)
{
	return drain_store_takes(image, store, NULL) &&
	       (image->container || image->size % sector_of(store->dev) == 0);
}

static void find_store(struct drain *d, size_t which)
{
	struct drain_image *image = &d->image[which];
	struct plan_item *item = &d->plan.items[which];
	size_t fitting = 0, best = 0;

	for (size_t i = 0; i < d->plan.n_stores; i++) {
		if (!fits(image, &d->to[i]))
			continue;
		if (!fitting++ || d->plan.stores[i].room > d->plan.stores[best].room)
			best = i;
	}
	if (item->wanted >= 0 ? fits(image, &d->to[item->wanted]) : fitting == d->plan.n_stores)
		return;
	if (item->wanted < 0 && fitting) {
		item->wanted = (int)best;
		return;
	}
	item->state = PLAN_OVER;
	if (!drain_store_takes(image, &d->to[item->wanted >= 0 ? item->wanted : 0], &image->why))
		return;
	bm_fail(&image->why, BM_E_SIZE,
		"its %llu bytes are no multiple of the sectors of %s (%u bytes): make it longer "
		"first",
		(unsigned long long)image->size, d->to[item->wanted >= 0 ? item->wanted : 0].path,
		sector_of(d->to[item->wanted >= 0 ? item->wanted : 0].dev));
}

void drain_check_pairs(struct drain *d)
{
	for (size_t i = 0; i < d->n; i++)
		if (d->plan.items[i].state == PLAN_WAITS)
			find_store(d, i);
}
