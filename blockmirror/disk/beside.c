/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An image that a running VMM has open, too: it was slipped out of under its guest, or will be
 * again (docs/slip.md). Which of both writes is the VMM's business: its guest has one disk. Here
 * it is about locks alone, which keep third ones out: claim says that the VMM has let go and that
 * all is as with any other disk; let-go gives them up so that the VMM can have them.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "blockmirror/base/memory.h"
#include "blockmirror/dev/lock.h"
#include "blockmirror/dev/open.h"
#include "blockmirror/disk/job.h"

#define PATIENCE 5000000000ull /* ns that the VMM has to close the image */
#define STEP     10000000ull

struct locking {
	struct bm_work work;
	struct disk *disk;
	struct bm_rpc_call *call;
	int fd, result;
	bool claims;
};

/* In a worker: the file system may be on a network. */
static void run(struct bm_work *work)
{
	static const struct bm_open_options none;
	struct locking *l = bm_container(work, struct locking, work);
	uint64_t left = PATIENCE;

	if (!l->claims) {
		bm_image_unlock(l->fd);
		return;
	}
	/* Ours are taken before others' are looked at, and stay: what comes meanwhile sees them. */
	l->result = bm_image_lock_beside(l->fd);
	while (!l->result && (l->result = bm_image_lock_alone(l->fd)) == -EAGAIN && left >= STEP) {
		(void)bm_wait_a_while(&none, STEP);
		left -= STEP;
		l->result = 0;
	}
	/* A file system without locks: as for any disk. */
	if (l->result == -EOPNOTSUPP || l->result == -ENOLCK)
		l->result = 0;
}

static void done(struct bm_work *work)
{
	struct locking *l = bm_container(work, struct locking, work);
	struct disk *d = l->disk;
	struct bm_error error;

	if (l->result == -EAGAIN)
		bm_fail(&error, BM_E_LOCKED,
			"%s: another process has the image open (lslocks(8) shows which)",
			d->record.uri);
	else if (l->result < 0)
		bm_fail_errno(&error, l->result, "cannot lock %s", d->record.uri);
	if (l->result < 0) {
		bm_rpc_fail(l->call, &error);
	} else {
		d->lent = !l->claims;
		bm_rpc_reply(l->call, NULL);
	}
	free(l);
}

static void begin(struct disk *d, struct bm_rpc_call *call, bool claims)
{
	int fd = d->stopping ? -1 : bm_dev_descriptor(d->side[disk_authority(d)]);
	struct bm_error error = {0};
	struct locking *l;

	if (job_runs(d->job))
		bm_fail(&error, BM_E_BUSY, "disk %s is being moved", d->name);
	else if (d->stopping || d->upgrade)
		bm_fail(&error, BM_E_BUSY, "disk %s is just being stopped, or upgraded", d->name);
	else if (fd < 0)
		bm_fail(&error, BM_E_UNSUPPORTED,
			"disk %s is on no file or block device: no VMM could open it", d->name);
	if (error.code) {
		bm_rpc_fail(call, &error);
		return;
	}
	l = bm_need(calloc(1, sizeof(*l)));
	*l = (struct locking){.work = {.run = run, .done = done},
			      .disk = d,
			      .call = call,
			      .fd = fd,
			      .claims = claims};
	/* No job may begin from here on, and none upgrade: they would lock, or hand over, what is
	 * let go of. */
	d->lent = true;
	bm_workers_submit(d->workers, d->loop, &l->work);
}

void beside_claim(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	begin(arg, call, true);
}

void beside_let_go(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	begin(arg, call, false);
}
