/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Storage that both hosts reach: nothing is copied. Who has the disk has it open for writing; a
 * standby has it open for reading beside that, without its lock, so that a VMM may look at it. When
 * the disk passes, who had it closes it after the decision and before the answer (yield.c), and the
 * standby opens it for writing after that, and before its record says that it has the disk
 * (promote.c).
 *
 *	Closed before the decision: its record cannot be written; it has to go on, and what it let
 *	go of somebody else may have taken.
 *	Closed after the answer: the other host writes, while here a session is opened again.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/log.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/slot.h"
#include "blockmirror/disk/standby.h"

bool shared_only_reads(const struct disk *d)
{
	return d->record.shared || move_shares(d, NULL);
}

void shared_reads(struct bm_open_options *options)
{
	options->read_only = options->unlocked = true;
	/* What who writes has in flight is none of our business: no reset, no place of its taken.
	 */
	options->fence = false;
	options->session = NULL;
}

/* The mark is that of the disk, whoever has it; of what bears none there is nothing to say. */
static int check_mark(const struct disk *d, const char *path, struct bm_error *error)
{
	struct bm_mark mark;

	if (bm_mark_read(path, &mark) < 0 || !mark.state[0])
		return 0;
	if (mark.format[0] && !bm_uri_format(d->record.uri))
		return bm_fail(error, BM_E_FOREIGN, "%s on this host is a %s, and no raw image",
			       path, mark.format);
	if (!strcmp(mark.disk, d->record.disk))
		return 0;
	return bm_fail(error, BM_E_FOREIGN, "%s on this host is the image of another disk", path);
}

int shared_reach(const struct disk *d, struct bm_error *error)
{
	const char *path = bm_uri_path(d->record.uri);
	/* A block device that is to be written to is opened for that by one alone. */
	struct bm_open_options options = {.read_only = path, .unlocked = true, .connections = 1};
	struct bm_dev *dev = NULL;
	char shown[400];
	int r = path ? check_mark(d, path, error) : 0;

	bm_uri_redact(d->record.uri, shown, sizeof(shown));
	if (!r && path && access(path, W_OK) < 0)
		r = bm_fail_errno(error, errno, "cannot write to %s", path);
	if (!r)
		r = bm_dev_open(d->record.uri, &options, &dev, error);
	if (!r && !path && dev->geometry.flags & BM_DEV_READ_ONLY)
		r = bm_fail(error, BM_E_ACCESS, "%s takes no writes of this host", shown);
	if (!r && dev->geometry.size < d->record.size)
		r = bm_fail(error, BM_E_FOREIGN,
			    "%s is smaller for this host than the disk: it is something else",
			    shown);
	bm_dev_close(dev);
	return r;
}

int shared_open(const struct disk *d, bool alone, struct bm_dev **dev, struct bm_error *error)
{
	const char *path = bm_uri_path(d->record.uri);
	/*
	 * Who has passed the disk on has nothing in flight any more; who is dead may have. A lock
	 * is waited for in any case.
	 */
	const struct bm_open_options options = {.fence = path || alone, .session = d->record.disk};
	int r = path ? check_mark(d, path, error) : 0;

	if (!r)
		r = bm_dev_open(d->record.uri, &options, dev, error);
	if (!r && (*dev)->geometry.size < d->record.size)
		r = bm_fail(error, BM_E_FOREIGN, "the storage of disk %s is smaller than it was",
			    d->name);
	if (r < 0) {
		bm_dev_close(*dev);
		*dev = NULL;
	}
	return r;
}

int shared_put(struct disk *d, struct bm_dev **dev, struct bm_error *error)
{
	int r = storage_put(d, disk_authority(d), d->record.uri, dev);

	return r < 0 ? bm_fail_errno(error, r, "disk %s", d->name) : 0;
}

void shared_let_go(struct disk *d)
{
	slot_put(d->side[disk_authority(d)], NULL);
	bm_log(BM_LOG_NOTICE, "%s: its storage is let go of", d->name);
}
