/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The storage that a disk lives on, where it is reached over a session, be it a helper's: a session
 * that is lost is opened again, and the guest waits meanwhile (dev/reopen.h). Only for the
 * authority: what else is lost, the mirror deals with. Which side that is changes with a switch;
 * this file tells the devices.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/dev/reopen.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/slot.h"
#include "blockmirror/disk/standby.h"

#define LEAVE 5000000000ull /* ns that requests of our own get to end when the disk goes away */

/* One device that is opened again, as long as it or an attempt lives. */
struct storage {
	struct bm_list link;
	struct disk *disk;
	struct bm_dev *dev; /* NULL: it is gone */
	int side;
	bool reads; /* of a standby, whose storage is the other host's, too */
	char *uri;
	struct bm_work open;
	bool opening;
	struct bm_dev *opened;
	struct bm_error error;
	_Atomic bool give_up;
};

static void forget(struct storage *s)
{
	bm_list_remove(&s->link);
	bm_dev_close(s->opened);
	free(s->uri);
	free(s);
}

static bool gave_up(void *arg)
{
	const struct storage *s = arg;

	return atomic_load(&s->give_up);
}

/* In a worker. */
static void open_again(struct bm_work *work)
{
	struct storage *s = bm_container(work, struct storage, open);
	struct bm_open_options options = {.fence = true,
					  .session = s->disk->record.disk,
					  .linked = true, /* it was served so */
					  .interrupted = gave_up,
					  .arg = s};

	if (s->reads)
		shared_reads(&options);
	s->error = (struct bm_error){0};
	bm_dev_open(s->uri, &options, &s->opened, &s->error);
}

static void opened(struct bm_work *work)
{
	struct storage *s = bm_container(work, struct storage, open);

	s->opening = false;
	if (s->dev)
		bm_reopen_opened(s->dev, bm_steal(s->opened), s->error.text);
	else
		forget(s);
}

static void open_storage(void *arg)
{
	struct storage *s = arg;

	s->opening = true;
	bm_workers_submit(s->disk->workers, s->disk->loop, &s->open);
}

static void tell(const struct disk *d)
{
	if (d->rpc)
		bm_rpc_notify(d->rpc, "storage", json_pack("{s:o}", "storage", storage_report(d)));
}

static void event(void *arg)
{
	struct storage *s = arg;
	struct disk *d = s->disk;
	struct bm_reopen_status status;
	char shown[400], took[BM_UNITS_TEXT];

	bm_reopen_get_status(s->dev, &status);
	bm_uri_redact(s->uri, shown, sizeof(shown));
	if (status.gave_up)
		bm_log(BM_LOG_ERROR,
		       "%s: %s is unreachable; the guest gets errors from now on, and it is tried "
		       "again",
		       d->name, shown);
	else if (status.lost)
		bm_log(BM_LOG_WARN, "%s: %s is lost (%s); the guest waits, and it is tried again",
		       d->name, shown, status.why);
	else
		bm_log(BM_LOG_NOTICE, "%s: %s is back after %s, %llu bytes written again in all",
		       d->name, shown,
		       bm_format_duration(took, bm_loop_now(d->loop) - status.since),
		       (unsigned long long)status.rewritten);
	tell(d);
}

static void gone(void *arg)
{
	struct storage *s = arg;

	s->dev = NULL;
	atomic_store(&s->give_up, true);
	if (!s->opening)
		forget(s);
}

static bool has_sessions(const char *text)
{
	bm_free struct bm_uri *uri = NULL;

	return bm_uri_parse(text, &uri, NULL) >= 0 &&
	       (uri->scheme == BM_SCHEME_NBD || uri->scheme == BM_SCHEME_ISCSI ||
		uri->scheme == BM_SCHEME_FAULT || uri->scheme == BM_SCHEME_FORMAT);
}

/* Where it is one whose session may be lost: it is opened again, as it was. */
static int wrap(struct disk *d, int side, const char *uri, bool reads, struct bm_dev **dev)
{
	static const struct bm_reopen_host host = {
		.open = open_storage, .event = event, .gone = gone};
	struct storage *s;
	int r;

	if (!d->folder || !has_sessions(uri))
		return 0;
	s = calloc(1, sizeof(*s));
	if (s)
		s->uri = strdup(uri);
	r = s && s->uri ? bm_reopen_new(*dev, &host, s, &s->dev) : -ENOMEM;
	if (r < 0) {
		free(s ? s->uri : NULL);
		free(s);
		return r;
	}
	s->disk = d;
	s->side = side;
	s->reads = reads;
	s->open = (struct bm_work){.run = open_again, .done = opened};
	bm_list_append(&d->storage, &s->link);
	bm_reopen_set_timeout(s->dev, d->reconnect);
	*dev = s->dev;
	storage_set_roles(d);
	return 0;
}

int storage_fit(struct disk *d, int side, const char *uri, uint32_t block, struct bm_dev **dev)
{
	struct bm_dev *slot = NULL;
	bool reads = shared_only_reads(d);
	int r = wrap(d, side, uri, reads, dev);

	if (!r)
		r = bm_order_fit(dev, block);
	if (!r)
		slot = slot_new(*dev, reads);
	if (slot)
		*dev = slot;
	return r ? r : slot ? 0 : -ENOMEM;
}

int storage_put(struct disk *d, int side, const char *uri, struct bm_dev **dev)
{
	struct bm_dev *slot = d->side[side];
	int r = wrap(d, side, uri, false, dev);

	if (!r)
		r = bm_order_fit(dev, slot->geometry.block);
	if (r < 0)
		return r;
	bm_dev_start(*dev, d->loop);
	slot_put(slot, bm_steal(*dev));
	return 0;
}

void storage_set_roles(struct disk *d)
{
	int authority = d->mirror ? disk_authority(d) : 0;
	bool switching = job_runs(d->job) && d->job->phase == PHASE_SWITCHING;

	bm_list_each(node, &d->storage) {
		struct storage *s = bm_container(node, struct storage, link);

		if (s->dev)
			bm_reopen_set_role(s->dev,
					   d->record.role == BM_ROLE_RETIRED || move_has_let_go(d)
						   ? BM_REOPEN_FAIL
					   : s->side == authority ? BM_REOPEN_HOLD
					   : switching            ? BM_REOPEN_READY
								  : BM_REOPEN_FAIL);
	}
}

static const struct storage *of_authority(const struct disk *d)
{
	bm_list_each(node, &d->storage) {
		const struct storage *s = bm_container(node, struct storage, link);

		if (s->dev && s->side == disk_authority(d))
			return s;
	}
	return NULL;
}

bool storage_is_lost(const struct disk *d)
{
	const struct storage *s = of_authority(d);
	struct bm_reopen_status status = {0};

	if (s)
		bm_reopen_get_status(s->dev, &status);
	return status.lost;
}

json_t *storage_report(const struct disk *d)
{
	const struct storage *s = of_authority(d);
	struct bm_reopen_status status = {0};
	uint64_t lost_for;

	if (!s)
		return json_null();
	bm_reopen_get_status(s->dev, &status);
	lost_for = status.lost ? bm_loop_now(d->loop) - status.since : 0;
	return json_pack("{s:s s:I s:I s:I s:i s:i s:I s:s}", "state",
			 status.gave_up ? "failed"
			 : status.lost  ? "unreachable"
					: "reachable",
			 "since", (json_int_t)(status.lost ? job_realtime() - lost_for : 0),
			 "lost_ns", (json_int_t)lost_for, "timeout_ns",
			 (json_int_t)(d->reconnect == UINT64_MAX ? -1 : (json_int_t)d->reconnect),
			 "losses", (int)status.losses, "attempts", (int)status.attempts,
			 "rewritten_bytes", (json_int_t)status.rewritten, "why",
			 status.lost ? status.why : "");
}

void storage_fini(struct disk *d)
{
	uint64_t end = bm_loop_now(d->loop) + LEAVE;

	bm_list_each_safe(node, &d->storage) {
		struct storage *s = bm_container(node, struct storage, link);

		s->opening = false;
		if (!s->dev)
			forget(s);
	}
	while (!bm_list_empty(&d->storage) && bm_loop_now(d->loop) < end)
		bm_loop_turn(d->loop, 100000000);
}
