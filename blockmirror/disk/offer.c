/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An offer: until when the disk may pass to another host, or, of a standby, come from it. A small
 * file, FOLDER/offer, so that it outlives the process; it decides nothing about where the disk is.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"

enum { LARGEST = 4096 };

static char *path_of(const struct disk *d)
{
	char *path;

	return asprintf(&path, "%s/offer", d->folder) < 0 ? NULL : path;
}

bool offer_holds(const struct disk *d, const char *host)
{
	return d->offer.host && (!host || !strcmp(d->offer.host, host)) &&
	       job_realtime() < d->offer.until;
}

static void clear(struct offer *o)
{
	free(o->host);
	free(o->back);
	free(o->group);
	*o = (struct offer){0};
}

void offer_clear(struct disk *d)
{
	clear(&d->offer);
}

static struct offer copy_of(const struct offer *offer)
{
	struct offer copy = *offer;

	copy.host = bm_need(strdup(offer->host));
	copy.back = offer->back ? bm_need(strdup(offer->back)) : NULL;
	copy.group = offer->group ? bm_need(strdup(offer->group)) : NULL;
	return copy;
}

void offer_set(struct disk *d, const struct offer *offer)
{
	struct offer copy = copy_of(offer);

	clear(&d->offer);
	d->offer = copy;
}

void offer_read(struct disk *d)
{
	bm_free char *path = path_of(d), *text = NULL;
	const char *host, *back = NULL, *group = NULL;
	json_int_t until, window = 0;
	int returns = 0, behind = 0, shared = 0;
	json_t *j = NULL;

	if (path && !bm_read_text(path, LARGEST, &text))
		j = json_loads(text, 0, NULL);
	offer_clear(d);
	if (j && !json_unpack(j, "{s:s s:I s?s s?s s?I s?b s?b s?b}", "host", &host, "until",
			      &until, "back", &back, "group", &group, "window", &window, "returns",
			      &returns, "behind", &behind, "shared", &shared))
		offer_set(d, &(struct offer){.host = (char *)host,
					     .until = (uint64_t)until,
					     .back = (char *)back,
					     .group = (char *)group,
					     .window = (uint64_t)window,
					     .returns = returns,
					     .behind = behind,
					     .shared = shared});
	json_decref(j);
}

int offer_write(const struct disk *d, const struct offer *o, struct bm_error *error)
{
	bm_free char *path = path_of(d), *text = NULL;
	json_t *j = json_pack("{s:s s:I s:s* s:s* s:I s:b s:b s:b}", "host", o->host, "until",
			      (json_int_t)o->until, "back", o->back, "group", o->group, "window",
			      (json_int_t)o->window, "returns", (int)o->returns, "behind",
			      (int)o->behind, "shared", (int)o->shared);
	int r;

	text = j ? json_dumps(j, JSON_COMPACT) : NULL;
	json_decref(j);
	r = path && text ? bm_write_durably(path, text, strlen(text)) : -ENOMEM;
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path ? path : "the offer") : 0;
}

void offer_remove(const struct disk *d)
{
	bm_free char *path = path_of(d);

	if (path && unlink(path) < 0 && errno != ENOENT)
		bm_log(BM_LOG_WARN, "cannot remove %s: %s", path, strerror(errno));
}

/* One that is being written. */
struct offering {
	struct bm_work work;
	struct disk *disk;
	struct bm_rpc_call *call;
	struct offer offer; /* to be */
	json_t *result;     /* the call's */
	struct bm_error error;
};

static void write_offer(struct bm_work *work)
{
	struct offering *o = bm_container(work, struct offering, work);

	if (o->offer.until)
		offer_write(o->disk, &o->offer, &o->error);
	else
		offer_remove(o->disk);
}

static void offering_free(struct offering *o)
{
	o->disk->offering = NULL;
	json_decref(o->result);
	clear(&o->offer);
	free(o);
}

static void offered(struct bm_work *work)
{
	struct offering *o = bm_container(work, struct offering, work);
	struct disk *d = o->disk;

	if (o->error.code) {
		bm_log(BM_LOG_WARN, "%s", o->error.text);
		if (o->call)
			bm_rpc_fail(o->call, &o->error);
	} else {
		offer_clear(d);
		if (o->offer.until) {
			d->offer = o->offer;
			o->offer = (struct offer){0};
		}
		standby_armed(d);
		if (o->call)
			bm_rpc_reply(o->call, bm_steal(o->result));
	}
	offering_free(o);
}

void offer_begin(struct disk *d, struct bm_rpc_call *call, const struct offer *offer,
		 json_t *result)
{
	struct offering *o;
	struct bm_error error;

	if (d->offering) {
		bm_fail(&error, BM_E_BUSY, "disk %s is just being offered; try again", d->name);
		if (call)
			bm_rpc_fail(call, &error);
		json_decref(result);
		return;
	}
	o = d->offering = bm_need(calloc(1, sizeof(*o)));
	*o = (struct offering){.work = {.run = write_offer, .done = offered},
			       .disk = d,
			       .call = call,
			       .offer = copy_of(offer),
			       .result = result};
	bm_workers_submit(d->recorder, d->loop, &o->work);
}

void offer_withdraw(struct disk *d)
{
	struct offer ended = d->offer;

	ended.until = WITHDRAWN;
	if (ended.host)
		offer_begin(d, NULL, &ended, NULL);
}

/* until 0: it is withdrawn. */
void offer_method(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	const char *to = NULL, *group = NULL;
	struct bm_error error = {0};
	json_int_t until = 0;
	int returns = 0, shared = 0;

	if (json_unpack(params, "{s:s s:I s?b s?b s?s}", "to", &to, "until", &until, "returns",
			&returns, "shared", &shared, "group", &group) ||
	    until < 0)
		bm_fail(&error, BM_E_USAGE, "to (a host) and until (ns since 1970) are wanted");
	else if (d->yield)
		bm_fail(&error, BM_E_BUSY, "disk %s is just being passed on", d->name);
	else if (d->record.role != BM_ROLE_ACTIVE)
		bm_fail(&error, BM_E_RETIRED, "disk %s is on host %s", d->name, d->record.peer);
	else if (d->move)
		move_allows(d, NULL, &error);
	else if (until && shared && remote_is(d->record.uri))
		bm_fail(&error, BM_E_USAGE,
			"disk %s has its storage on another host: there is nothing to share",
			d->name);
	else if (until && shared && job_runs(d->job))
		bm_fail(&error, BM_E_BUSY,
			"disk %s is being moved, or can still be undone: release it first",
			d->name);
	else if (until && !shared && !yield_is_on(d, to) && !back_is_pair(d, to))
		bm_fail(&error, BM_E_NOT_READY,
			"disk %s has its storage not on host %s: relocate it there first", d->name,
			to);
	if (error.code)
		bm_rpc_fail(call, &error);
	else if (until && shared)
		witness_take(d, call,
			     &(struct offer){.host = (char *)to,
					     .until = (uint64_t)until,
					     .group = (char *)group,
					     .shared = true});
	else
		offer_begin(d, call,
			    &(struct offer){.host = (char *)to,
					    .until = (uint64_t)until,
					    .group = (char *)group,
					    .returns = returns},
			    NULL);
}

void offer_close(struct disk *d)
{
	const struct bm_error error = {BM_E_INTERRUPTED, "the disk's process ends"};

	if (d->offering) {
		if (d->offering->call)
			bm_rpc_fail(d->offering->call, &error);
		offering_free(d->offering);
	}
	offer_clear(d);
}
