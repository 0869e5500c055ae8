/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whether what two hosts take for the same storage is that. The host that has the disk takes a
 * witness: a fresh note on the image, where it is a file, and what some places hold; the standby
 * looks at its own. Another file has another note, also when it is a copy with all its attributes.
 * Elsewhere there are the samples alone: they find out what is a mistake, and not what is a copy of
 * an hour ago. Loop thread, but for the note. One at a time. It is an offer's, or asked for by a
 * machine's move.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"

enum { SAMPLE = 4096, SAMPLES = 16, TRIES = 64 };

struct witness {
	struct disk *disk;
	struct bm_rpc_call *call;
	char *to, *group; /* NULL: it belongs to no offer */
	uint64_t until;
	bool takes;                    /* else looks at given */
	bool sure;                     /* the note was found: there is nothing to add */
	json_t *given;                 /* or NULL */
	json_t *samples;               /* taken so far, or given's */
	char note[33];                 /* empty: none could be left */
	unsigned tries, differ, equal; /* equal: and not zeros, which are so anywhere */
	struct bm_work work;
	struct bm_request rq;
	uint8_t *data;
	struct bm_error error;
};

static void witness_free(struct witness *w)
{
	w->disk->witness = NULL;
	json_decref(w->given);
	json_decref(w->samples);
	free(w->data);
	free(w->to);
	free(w->group);
	free(w);
}

static void fail(struct witness *w)
{
	bm_rpc_fail(w->call, &w->error);
	witness_free(w);
}

/* All is known: the offer, if it is one, is written, and the call answered. */
static void finish(struct witness *w)
{
	struct disk *d = w->disk;
	bool takes = w->takes;
	bm_free char *to = bm_steal(w->to), *group = bm_steal(w->group);
	uint64_t until = w->until;
	struct bm_rpc_call *call = w->call;
	json_t *result = takes ? json_pack("{s:{s:s s:I s:O}}", "witness", "note", w->note, "size",
					   (json_int_t)d->record.size, "samples", w->samples)
			       : json_pack("{s:b}", "found", (int)w->sure);

	witness_free(w);
	if (!to) {
		bm_rpc_reply(call, result);
		return;
	}
	offer_begin(d, call,
		    &(struct offer){.host = to, .until = until, .group = group, .shared = takes},
		    result);
}

/* Samples */

static void read_next(struct witness *w);

static bool is_zero(const uint8_t *data, size_t length)
{
	return !data[0] && !memcmp(data, data + 1, length - 1);
}

/* The first block, which has a table or a label, and others that hold something. */
static void take(struct witness *w, uint64_t hash)
{
	char text[17];

	if (w->rq.offset && is_zero(w->data, w->rq.length))
		return;
	snprintf(text, sizeof(text), "%016" PRIx64, hash);
	json_array_append_new(w->samples, json_pack("{s:I s:s}", "offset", (json_int_t)w->rq.offset,
						    "hash", text));
}

static void compare(struct witness *w, uint64_t hash)
{
	const json_t *sample = json_array_get(w->samples, w->tries - 1);
	const char *text = json_string_value(json_object_get(sample, "hash"));

	if (!text || strtoull(text, NULL, 16) != hash)
		w->differ++;
	else
		w->equal += !is_zero(w->data, w->rq.length);
}

static void sample_read(struct bm_request *rq, int error)
{
	struct witness *w = bm_container(rq, struct witness, rq);
	uint64_t hash = XXH64(w->data, rq->length, 0);

	if (error) {
		bm_fail_errno(&w->error, error, "disk %s cannot be read", w->disk->name);
		fail(w);
		return;
	}
	if (w->takes)
		take(w, hash);
	else
		compare(w, hash);
	read_next(w);
}

/* A guest that works may have written to most of them since; hardly to all. */
static void judge(struct witness *w)
{
	char shown[400];

	if (!w->differ || w->equal) {
		finish(w);
		return;
	}
	bm_fail(&w->error, BM_E_FOREIGN,
		"%s on this host is not what host %s has disk %s on: nothing that was looked at is "
		"the same",
		bm_uri_redact(w->disk->record.uri, shown, sizeof(shown)), w->disk->record.peer,
		w->disk->name);
	fail(w);
}

/* False: there is no other one. */
static bool next_place(struct witness *w, uint64_t *offset)
{
	uint64_t blocks = w->disk->record.size / SAMPLE, random;
	const json_t *sample;

	if (!w->takes) {
		sample = json_array_get(w->samples, w->tries++);
		*offset = (uint64_t)json_integer_value(json_object_get(sample, "offset"));
		return sample && w->tries <= SAMPLES;
	}
	if (w->tries == TRIES || json_array_size(w->samples) == SAMPLES)
		return false;
	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		return false;
	*offset = w->tries++ && blocks ? random % blocks * SAMPLE : 0;
	return true;
}

static void read_next(struct witness *w)
{
	struct disk *d = w->disk;
	uint64_t offset, size = d->record.size;

	if (!next_place(w, &offset)) {
		if (w->takes)
			finish(w);
		else
			judge(w);
		return;
	}
	if (offset >= size || offset % SAMPLE) {
		bm_fail(&w->error, BM_E_USAGE, "the witness is none");
		fail(w);
		return;
	}
	w->rq = (struct bm_request){.op = BM_READ,
				    .offset = offset,
				    .length = size - offset < SAMPLE ? size - offset : SAMPLE,
				    .data = w->data,
				    .done = sample_read};
	bm_submit(d->order, &w->rq);
}

/* The note, in a worker */

static void leave_note(struct witness *w)
{
	const char *path = bm_uri_path(w->disk->record.uri);

	bm_identity(w->note);
	if (!path || bm_mark_note(path, w->note) < 0)
		w->note[0] = '\0';
}

static void look_for_note(struct witness *w)
{
	const struct disk *d = w->disk;
	const char *path = bm_uri_path(d->record.uri),
		   *note = json_string_value(json_object_get(w->given, "note"));
	int found = path && note && *note ? bm_mark_has_note(path, note) : -ENOTSUP;

	if (shared_reach(d, &w->error) < 0)
		return;
	if (path && found < 0 && !json_is_true(json_object_get(w->given, "said")))
		bm_fail(&w->error, BM_E_FOREIGN,
			"it cannot be told whether %s on this host is the file that host %s has "
			"disk %s on: --shared says that it is",
			path, d->record.peer, d->name);
	/* Whoever writes here has to take it away before. */
	w->sure = found > 0 && bm_mark_can_take_note(path);
	if (!found)
		bm_fail(&w->error, BM_E_FOREIGN,
			"%s on this host is not the file that host %s has disk %s on", path,
			d->record.peer, d->name);
}

static void run(struct bm_work *work)
{
	struct witness *w = bm_container(work, struct witness, work);

	if (w->takes)
		leave_note(w);
	else
		look_for_note(w);
}

static void ran(struct bm_work *work)
{
	struct witness *w = bm_container(work, struct witness, work);

	if (w->error.code)
		fail(w);
	else if (w->sure)
		finish(w);
	else
		read_next(w);
}

static void begin(struct disk *d, struct bm_rpc_call *call, const struct offer *offer,
		  json_t *given)
{
	struct witness *w = d->witness = bm_need(calloc(1, sizeof(*w)));

	*w = (struct witness){.disk = d,
			      .call = call,
			      .takes = !given,
			      .given = json_incref(given),
			      .work = {.run = run, .done = ran}};
	if (offer) {
		w->to = bm_need(strdup(offer->host));
		w->group = offer->group ? bm_need(strdup(offer->group)) : NULL;
		w->until = offer->until;
	}
	w->samples = given ? json_incref(json_object_get(given, "samples")) : json_array();
	w->data = bm_need(aligned_alloc(BM_BUF_ALIGN, SAMPLE));
	bm_workers_submit(d->workers, d->loop, &w->work);
}

static bool can_begin(const struct disk *d, struct bm_rpc_call *call)
{
	struct bm_error error;

	if (d->witness || d->offering || d->upgrade || d->stopping)
		bm_fail(&error, BM_E_BUSY, "disk %s is just being offered, or stopped; try again",
			d->name);
	else if (storage_is_lost(d))
		bm_fail(&error, BM_E_UNREACHABLE, "the storage of disk %s is unreachable", d->name);
	else
		return true;
	bm_rpc_fail(call, &error);
	return false;
}

void witness_take(struct disk *d, struct bm_rpc_call *call, const struct offer *offer)
{
	if (can_begin(d, call))
		begin(d, call, offer, NULL);
}

void move_witness(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	struct bm_error error;

	(void)params;
	if (d->record.role == BM_ROLE_ACTIVE && !remote_is(d->record.uri) && !job_runs(d->job) &&
	    !d->move && !bm_uri_format(d->record.uri)) {
		witness_take(d, call, NULL);
		return;
	}
	bm_fail(&error, BM_E_NOT_READY,
		"disk %s is not this host's, or is no raw image, or is being moved, or can still "
		"be undone: release it first",
		d->name);
	bm_rpc_fail(call, &error);
}

void witness_check(struct disk *d, struct bm_rpc_call *call, const struct offer *offer,
		   json_t *given)
{
	struct bm_error error;

	if (!json_is_array(json_object_get(given, "samples")) ||
	    (uint64_t)json_integer_value(json_object_get(given, "size")) != d->record.size) {
		bm_fail(&error, BM_E_USAGE,
			"disk %s is on storage of both hosts: the witness of who has it is wanted",
			d->name);
		bm_rpc_fail(call, &error);
		return;
	}
	if (can_begin(d, call))
		begin(d, call, offer, given);
}

void witness_close(struct disk *d)
{
	const struct bm_error error = {BM_E_INTERRUPTED, "the disk's process ends"};

	if (!d->witness)
		return;
	bm_rpc_fail(d->witness->call, &error);
	witness_free(d->witness);
}
