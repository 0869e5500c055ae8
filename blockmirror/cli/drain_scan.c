/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What lies in a datastore: the files of its folders, each with what it is to us. A disk of ours is
 * known by the image that it is on now; all else nobody may be using. What stays has its reason
 * from here on, so that a plan can tell it before anything is done.
 */
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

#define SIDECAR ".blockmirror" /* a mark beside its image (docs/record.md) */

static struct drain_image *add(struct drain *d, const char *path)
{
	struct drain_image *image;

	d->image = bm_need(reallocarray(d->image, d->n + 1, sizeof(*d->image)));
	image = &d->image[d->n++];
	*image = (struct drain_image){.path = bm_need(strdup(path))};
	image->name = image->path + strlen(d->from.path) + 1;
	return image;
}

/* What a fault injector is around (dev/fault.c). */
static const char *path_of(const char *uri)
{
	const char *inner = strncmp(uri, "fault:", 6) ? NULL : strchr(uri, ';');

	return bm_uri_path(inner ? inner + 1 : uri);
}

/* The disk that is on it now. */
static const json_t *find_disk(const json_t *disks, const struct stat *st)
{
	const json_t *disk;
	size_t i;

	json_array_foreach(disks, i, disk) {
		const char *path = path_of(cli_text(disk, "uri"));
		struct stat there;

		if (path && *path && !stat(path, &there) && there.st_dev == st->st_dev &&
		    there.st_ino == st->st_ino)
			return disk;
	}
	return NULL;
}

/* A disk of ours that another host has is that host's to move. */
static void take_disk(struct drain_image *image, const json_t *disk)
{
	image->disk = bm_need(strdup(cli_text(disk, "name")));
	image->uri = bm_need(strdup(cli_text(disk, "uri")));
	image->owner = (pid_t)cli_number(disk, "pid");
	if (strcmp(cli_text(disk, "role"), "active") != 0)
		bm_fail(&image->why, BM_E_NOT_READY, "it is the copy here of a disk of host %s",
			cli_text(disk, "peer"));
	else if (json_is_object(json_object_get(disk, "offer")))
		bm_fail(&image->why, BM_E_BUSY,
			"disk %s was offered to another host: \"blockmirror migrate disarm %s\" "
			"first",
			image->disk, image->disk);
}

/* What the mark says of an image that nobody serves. */
static void look_at_mark(struct drain_image *image)
{
	bm_record_auto struct bm_record record = {0};
	struct bm_mark mark;

	if (bm_mark_read(image->path, &mark) < 0 || !*mark.state)
		return;
	if (!strcmp(mark.state, "retired"))
		bm_fail(&image->why, BM_E_RETIRED,
			"it is an old copy, whose disk moved to %s: remove it", mark.where);
	else if (!strcmp(mark.state, "incomplete"))
		bm_fail(&image->why, BM_E_UNUSABLE,
			"it is an incomplete copy, of a move that runs, or was given up");
	else if (!bm_record_read(mark.folder, &record, NULL) && !strcmp(record.disk, mark.disk))
		bm_fail(&image->why, BM_E_OWNED,
			"it is disk %s, which is not served: serve it, and it moves so; or else "
			"\"blockmirror forget\" it, and remove %s",
			record.name, mark.folder);
}

static void look(const struct drain *d, struct drain_image *image,
		 const struct drain_opened *opened)
{
	bool cold = !image->disk && !image->qmp;
	bm_close int fd = open(image->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

	if (fd < 0) {
		bm_fail_errno(&image->why, errno, "it cannot be opened");
		return;
	}
	if (cold)
		drain_look_inside(d, image, fd);
	if (cold && !image->why.code)
		look_at_mark(image);
	/* Of one that moves already, who had it is on its way to let go. */
	if (!image->why.code && !image->slipped)
		drain_look_who(d, opened, image, fd);
}

static void consider(struct drain *d, const FTSENT *entry, const json_t *disks,
		     const struct drain_opened *opened)
{
	const struct stat *st = entry->fts_statp;
	size_t n = strlen(entry->fts_path), ending = strlen(SIDECAR);
	struct drain_image *image;
	const json_t *disk;

	/* It goes with its image. */
	if (n > ending && !strcmp(entry->fts_path + n - ending, SIDECAR))
		return;
	image = add(d, entry->fts_path);
	image->dev = st->st_dev;
	image->ino = st->st_ino;
	image->size = (uint64_t)st->st_size;
	image->need = (uint64_t)st->st_blocks * 512;
	image->stamp = bm_stamp(image->path);
	if (entry->fts_info != FTS_F || !S_ISREG(st->st_mode)) {
		bm_fail(&image->why, BM_E_NOT_IMAGE, "it is no file");
		return;
	}
	disk = drain_qemu_find(d, image) ? NULL : find_disk(disks, st);
	if (st->st_nlink > 1)
		bm_fail(&image->why, BM_E_LINKED, "the file has another name, too: remove that");
	else if (disk)
		take_disk(image, disk);
	if (!image->why.code)
		look(d, image, opened);
	drain_check_image(d, image, disk);
}

static int by_path(const FTSENT **a, const FTSENT **b)
{
	return strcmp((*a)->fts_name, (*b)->fts_name);
}

static int by_name(const void *a, const void *b)
{
	const struct drain_image *one = a, *other = b;

	return strcmp(one->path, other->path);
}

/*
 * Moved away from under the images that show it, it would be missed. Those that become whole miss
 * it no more: it waits for them (drain_run.c). What stays has its backing stay, down the chain.
 */
static void hold_backings(struct drain *d)
{
	bool again = true;

	while (again) {
		again = false;
		for (size_t i = 0; i < d->n; i++) {
			const struct drain_image key = {.path = d->image[i].backing};
			struct drain_image *backing;

			if (!key.path || (d->image[i].flattens && !d->image[i].why.code))
				continue;
			backing = bsearch(&key, d->image, d->n, sizeof(*d->image), by_name);
			if (!backing || backing->why.code)
				continue;
			bm_fail(&backing->why, BM_E_LINKED, "it shows through %s, which stays",
				d->image[i].name);
			again = true;
		}
	}
}

static int walk(struct drain *d, FTS *fts, const json_t *disks, const struct drain_opened *opened,
		struct bm_error *error)
{
	FTSENT *entry;

	while ((entry = fts_read(fts)))
		switch (entry->fts_info) {
		case FTS_D:
		case FTS_DP:
			break;
		case FTS_DNR:
		case FTS_ERR:
		case FTS_NS:
			return bm_fail_errno(error, entry->fts_errno, "%s", entry->fts_path);
		default:
			consider(d, entry, disks, opened);
		}
	return errno ? bm_fail_errno(error, errno, "%s", d->from.path) : 0;
}

int drain_scan(struct drain *d, const json_t *disks, struct bm_error *error)
{
	char *const paths[] = {d->from.path, NULL};
	struct drain_opened *opened;
	FTS *fts = fts_open(paths, FTS_PHYSICAL | FTS_XDEV | FTS_NOCHDIR, by_path);
	int r = fts ? 0 : bm_fail_errno(error, errno, "%s", d->from.path);

	drain_qemu_ask(d);
	opened = drain_opened();
	if (fts) {
		r = walk(d, fts, disks, opened, error);
		fts_close(fts);
	}
	drain_opened_free(opened);
	drain_qemu_left(d, add);
	if (d->n)
		qsort(d->image, d->n, sizeof(*d->image), by_name);
	hold_backings(d);
	return r;
}

void drain_forget(struct drain *d)
{
	for (size_t i = 0; i < d->n; i++) {
		struct drain_image *image = &d->image[i];

		bm_client_close(image->client);
		json_decref(image->job);
		free(image->path);
		free(image->disk);
		free(image->uri);
		free(image->backing);
		free(image->qmp);
		free(image->drive);
		free(image->slipped);
		if (image->runner)
			close(image->words);
		free(image->target);
		free(image->part);
	}
	free(d->image);
	json_decref(d->machines);
	json_decref(d->plans);
	d->image = NULL;
	d->n = 0;
}

bool drain_is_empty(const struct drain *d)
{
	char *const paths[] = {d->from.path, NULL};
	FTS *fts = fts_open(paths, FTS_PHYSICAL | FTS_XDEV | FTS_NOCHDIR, NULL);
	bool empty = fts;
	FTSENT *entry;

	while (fts && empty && (entry = fts_read(fts)))
		empty = entry->fts_info == FTS_D || entry->fts_info == FTS_DP;
	if (fts)
		fts_close(fts);
	return empty;
}
