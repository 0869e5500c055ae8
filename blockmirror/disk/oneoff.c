/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A transient process without a served disk: one cold copy, or one comparison, asked for over the
 * control descriptor it was given. It ends with its client; a copy that nobody waits for any more
 * is cancelled, and what it created is removed.
 */
#include "blockmirror/disk/oneoff.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/mirror/verify.h"

struct oneoff {
	struct disk disk; /* without a record, without an export */
	struct bm_work open;
	struct bm_rpc_call *call;
	struct bm_error error;
	char *uri[2];
	struct job_options options;
	bool verifies, flatten;
	struct bm_dev *dev[2];
	struct bm_verify *verify;
	struct bm_timer end;
	_Atomic bool give_up;
};

static bool gave_up(void *arg)
{
	const struct oneoff *o = arg;

	return atomic_load(&o->give_up);
}

static void close_devices(struct oneoff *o)
{
	for (int i = 0; i < 2; i++) {
		bm_dev_close(o->dev[i]);
		o->dev[i] = NULL;
	}
}

/* In a worker: the source of a copy, or both sides of a comparison. */
static void open_devices(struct bm_work *work)
{
	struct oneoff *o = bm_container(work, struct oneoff, open);
	const struct bm_open_options options = {.read_only = true,
						.linked = o->verifies || o->flatten,
						.interrupted = gave_up,
						.arg = o};

	for (int i = 0; i < (o->verifies ? 2 : 1); i++)
		if (bm_dev_open(o->uri[i], &options, &o->dev[i], &o->error) < 0)
			return;
	if (!o->verifies)
		owner_check(o->uri[0], o->disk.records, OWNER_READ, &o->error);
}

static void answer_failure(struct oneoff *o)
{
	struct bm_rpc_call *call = o->call;

	close_devices(o);
	o->call = NULL;
	bm_rpc_fail(call, &o->error);
}

/* Comparing */

static void compared(void *arg, const struct bm_verify_result *result)
{
	struct oneoff *o = arg;
	struct bm_rpc_call *call = o->call;
	char shown[400];

	o->call = NULL;
	if (result->error) {
		bm_fail(&o->error, BM_E_COMPARE, "%s cannot be read at %" PRIu64 ": %s",
			bm_uri_redact(o->uri[result->where], shown, sizeof(shown)), result->offset,
			strerror(-result->error));
		bm_rpc_fail(call, &o->error);
	} else {
		bm_rpc_reply(call, json_pack("{s:b s:I s:I s:I}", "equal", !result->differ,
					     "offset", (json_int_t)result->offset, "compared",
					     (json_int_t)result->compared, "skipped",
					     (json_int_t)result->skipped));
	}
	bm_verify_free(o->verify);
	o->verify = NULL;
	close_devices(o);
	if (atomic_load(&o->give_up))
		bm_loop_stop(o->disk.loop);
}

static void start_verify(struct oneoff *o)
{
	uint64_t a = o->dev[0]->geometry.size, b = o->dev[1]->geometry.size;
	struct bm_rpc_call *call = o->call;
	int r;

	if (a != b) {
		o->call = NULL;
		close_devices(o);
		bm_rpc_reply(call, json_pack("{s:b s:I s:I s:I s:I s:I}", "equal", 0, "offset",
					     (json_int_t)(a < b ? a : b), "compared", (json_int_t)0,
					     "skipped", (json_int_t)0, "size_a", (json_int_t)a,
					     "size_b", (json_int_t)b));
		return;
	}
	for (int i = 0; i < 2; i++) {
		r = bm_order_fit(&o->dev[i], 1);
		if (r < 0) {
			bm_fail_errno(&o->error, r, "cannot compare");
			answer_failure(o);
			return;
		}
		bm_dev_start(o->dev[i], o->disk.loop);
	}
	r = bm_verify_start(o->disk.loop, o->dev[0], o->dev[1], a, compared, o, &o->verify);
	if (r < 0) {
		bm_fail_errno(&o->error, r, "cannot compare");
		answer_failure(o);
	}
}

/* Copying */

static void start_copy(struct oneoff *o)
{
	struct bm_mirror_config config = {0};
	struct disk *d = &o->disk;
	struct bm_rpc_call *call = o->call;
	int r = bm_order_fit(&o->dev[0], o->dev[0]->geometry.block);

	config.size = o->dev[0]->geometry.size;
	if (!r) {
		d->side[0] = bm_steal(o->dev[0]);
		bm_dev_start(d->side[0], d->loop);
		r = bm_mirror_new(d->loop, d->side[0], &config, &job_host, d, &d->mirror);
	}
	if (r < 0) {
		bm_fail_errno(&o->error, r, "cannot copy");
		answer_failure(o);
		return;
	}
	d->record.uri = bm_need(bm_uri_canonical(o->uri[0]));
	d->record.size = config.size;
	o->call = NULL;
	o->options.kind = JOB_COPY;
	o->options.target = bm_steal(o->uri[1]);
	job_begin(d, &o->options, call);
}

static void devices_open(struct bm_work *work)
{
	struct oneoff *o = bm_container(work, struct oneoff, open);

	if (o->error.code)
		answer_failure(o);
	else if (o->verifies)
		start_verify(o);
	else
		start_copy(o);
}

/* The calls */

static void begin(struct oneoff *o, struct bm_rpc_call *call, const char *a, const char *b,
		  bool verifies)
{
	if (o->call || o->uri[0]) {
		bm_fail(&o->error, BM_E_BUSY, "one thing at a time");
		bm_rpc_fail(call, &o->error);
		return;
	}
	o->call = call;
	o->verifies = verifies;
	o->uri[0] = bm_need(strdup(a));
	o->uri[1] = bm_need(strdup(b));
	o->open = (struct bm_work){.run = open_devices, .done = devices_open};
	bm_workers_submit(o->disk.workers, o->disk.loop, &o->open);
}

static void usage(struct bm_rpc_call *call, const char *text)
{
	struct bm_error error;

	bm_fail(&error, BM_E_USAGE, "%s", text);
	bm_rpc_fail(call, &error);
}

static void method_verify(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct oneoff *o = bm_container(arg, struct oneoff, disk);
	const char *a, *b;

	if (json_unpack(params, "{s:s s:s}", "a", &a, "b", &b))
		usage(call, "a and b are wanted");
	else
		begin(o, call, a, b, true);
}

static void method_copy(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct oneoff *o = bm_container(arg, struct oneoff, disk);
	json_int_t rate = 0;
	int overwrite = 0, flatten = 0, verify = 0, accept_repair = 0;
	const char *source, *target;

	if (json_unpack(params, "{s:s s:s s?b s?b s?I s?b s?b}", "source", &source, "target",
			&target, "overwrite", &overwrite, "flatten", &flatten, "rate", &rate,
			"verify", &verify, "accept_repair", &accept_repair)) {
		usage(call, "source and target are wanted");
		return;
	}
	o->flatten = flatten;
	o->options = (struct job_options){.overwrite = overwrite,
					  .verify = verify,
					  .accept_repair = accept_repair,
					  .rate = (uint64_t)rate,
					  .latency = BM_LATENCY_OFF};
	begin(o, call, source, target, false);
}

static void method_progress(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct oneoff *o = bm_container(arg, struct oneoff, disk);

	(void)params;
	bm_rpc_reply(call,
		     json_pack("{s:I s:I}", "done",
			       (json_int_t)(o->verify ? bm_verify_progress(o->verify) : 0), "total",
			       (json_int_t)(o->verify ? o->dev[0]->geometry.size : 0)));
}

static const struct bm_rpc_table methods[] = {
	{"copy", method_copy},
	{"verify", method_verify},
	{"progress", method_progress},
	{"job.show", control_job_show},
	{"job.wait", control_job_wait},
	{"job.cancel", control_job_cancel},
	{NULL, NULL},
};

static void check_end(struct bm_timer *timer)
{
	struct oneoff *o = bm_container(timer, struct oneoff, end);

	/* It may have begun since: its devices were being opened when the client went. */
	if (job_runs(o->disk.job))
		job_stop(o->disk.job, BM_E_CANCELLED, "the client went away");
	if (!job_runs(o->disk.job) && !o->call && !o->verify)
		bm_loop_stop(o->disk.loop);
	else
		(void)bm_timer_set(o->disk.loop, timer, bm_loop_now(o->disk.loop) + 20000000);
}

static void client_gone(void *arg)
{
	struct oneoff *o = bm_container(arg, struct oneoff, disk);

	atomic_store(&o->give_up, true);
	if (o->verify)
		bm_verify_cancel(o->verify);
	o->end.run = check_end;
	check_end(&o->end);
}

int oneoff_run(struct bm_loop *loop, int control, const char *state_dir, struct bm_error *error)
{
	struct oneoff *o = calloc(1, sizeof(*o));
	struct disk *d = o ? &o->disk : NULL;
	int r = -ENOMEM;
	char id[33];

	if (!o)
		return bm_fail_errno(error, ENOMEM, "one-off");
	d->loop = loop;
	bm_list_init(&d->storage);
	bm_list_init(&d->hook_calls);
	d->folder_lock = -1;
	d->past = json_array();
	d->workers = bm_workers_new(2);
	d->recorder = bm_workers_new(1);
	bm_identity(id);
	d->name = strdup("copy");
	d->record.disk = strdup(id);
	if (asprintf(&d->records, "%s/disks/", state_dir) < 0)
		d->records = NULL;
	if (d->past && d->workers && d->recorder && d->name && d->record.disk && d->records)
		r = bm_rpc_new(loop, methods, d, &d->rpc);
	if (!r)
		r = bm_rpc_serve_fd(d->rpc, control, client_gone);
	if (!r)
		r = bm_loop_run(loop);
	close_devices(o);
	free(o->uri[0]);
	free(o->uri[1]);
	disk_fini(d);
	free(o);
	return r < 0 ? bm_fail_errno(error, r, "one-off") : 0;
}
