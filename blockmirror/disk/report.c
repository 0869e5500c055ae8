/* SPDX-License-Identifier: BSD-3-Clause */
/* Jobs and disks as JSON: what docs/protocol.md describes. Bytes and nanoseconds. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/uri.h"
#include "blockmirror/disk/gate.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"

enum { SHOWN = 500, CLIENTS = 32, RANGES = 64 };

static bool is_cut(const struct job *job)
{
	struct bm_mirror_stats stats;

	bm_mirror_get_stats(job->disk->mirror, &stats);
	return stats.state == BM_STATE_CUTTING;
}

const char *report_phase(const struct job *job)
{
	static const char *const names[PHASES] = {
		[PHASE_PREPARING] = "preparing", [PHASE_STARTING] = "preparing",
		[PHASE_COPYING] = "copying",     [PHASE_VERIFYING] = "verifying",
		[PHASE_IN_SYNC] = "in-sync",     [PHASE_SWITCHING] = "switching",
		[PHASE_MARKING] = "undo-window", [PHASE_WINDOW] = "undo-window",
		[PHASE_DETACHING] = "finishing", [PHASE_FINISHING] = "finishing",
		[PHASE_ENDED] = "ended",
	};

	if (job->phase == PHASE_IN_SYNC && !job_in_sync(job))
		return names[PHASE_COPYING];
	if (job->phase == PHASE_IN_SYNC && is_cut(job))
		return "cutting";
	return names[job->phase];
}

static const char *state_name(const struct job *job)
{
	if (job->phase != PHASE_ENDED)
		return job->paused ? "paused" : "running";
	if (job->refused && job->error.code != BM_E_CANCELLED)
		return "refused";
	if (job->undone)
		return "undone";
	if (!job->error.code)
		return "done";
	return job->error.code == BM_E_CANCELLED ? "cancelled" : "failed";
}

static json_t *number(uint64_t value)
{
	return json_integer((json_int_t)value);
}

static json_t *shown_uri(const char *uri)
{
	char shown[SHOWN];

	return uri ? json_string(bm_uri_redact(uri, shown, sizeof(shown))) : json_null();
}

static void job_stats(const struct job *job, struct bm_mirror_stats *stats)
{
	if (job->phase >= PHASE_COPYING && job->phase < PHASE_DETACHING)
		bm_mirror_get_stats(job->disk->mirror, stats);
	else
		*stats = job->last;
}

static json_t *progress(const struct job *job, const struct bm_mirror_stats *s)
{
	uint64_t dirty = s->dirty * s->granule, done = s->size > dirty ? s->size - dirty : 0;
	json_t *p = json_object();

	if (job->phase == PHASE_VERIFYING)
		done = s->checked_bytes;

	json_object_set_new(p, "total", number(s->size));
	json_object_set_new(p, "done", number(job->phase < PHASE_COPYING ? 0 : done));
	json_object_set_new(p, "dirty", number(dirty));
	json_object_set_new(p, "copied_bytes", number(s->copied_bytes));
	json_object_set_new(p, "zero_bytes", number(s->zero_bytes));
	json_object_set_new(p, "mirrored_writes", number(s->mirrored_writes));
	json_object_set_new(p, "mirrored_bytes", number(s->mirrored_bytes));
	json_object_set_new(p, "rate", number(s->rate));
	json_object_set_new(p, "left_ns",
			    s->rate ? number((uint64_t)((double)dirty / (double)s->rate * 1e9))
				    : json_null());
	json_object_set_new(p, "guest_p99", number(s->guest_p99));
	json_object_set_new(p, "guest_p99_before", number(s->guest_p99_before));
	json_object_set_new(p, "guest_p50", number(s->guest_p50));
	json_object_set_new(p, "guest_p50_before", number(s->guest_p50_before));
	json_object_set_new(p, "limiter", json_string(s->limiter ? s->limiter : ""));
	json_object_set_new(p, "depth", json_integer(s->depth));
	json_object_set_new(p, "target_write_p50", number(s->write_p50));
	json_object_set_new(p, "source_read_p50", number(s->read_p50));
	json_object_set_new(p, "target_flush", number(s->flush_last));
	json_object_set_new(p, "checkpoint_bytes", number(s->checkpoint_bytes));
	json_object_set_new(p, "checkpoint_waits", number(s->checkpoint_waits));
	json_object_set_new(p, "collisions", number(s->collisions));
	json_object_set_new(p, "held_writes", number(s->held_writes));
	json_object_set_new(p, "target_losses", number(s->losses));
	json_object_set_new(p, "quarantined", number(s->quarantined * s->granule));
	json_object_set_new(p, "late_writes", number(s->late_writes));
	json_object_set_new(p, "verified_bytes", number(s->checked_bytes));
	json_object_set_new(p, "mismatches", number(s->mismatches));
	json_object_set_new(p, "target",
			    json_string(job->phase >= PHASE_COPYING && job->phase <= PHASE_DETACHING
						? bm_mirror_state_name(s->state)
						: ""));
	json_object_set_new(p, "tracking", json_boolean(s->tracking));
	return p;
}

json_t *report_loss(uint64_t loss)
{
	return loss == LOSS_WAIT    ? json_string("wait")
	       : loss == LOSS_PAUSE ? json_string("pause")
				    : number(loss);
}

static void put_unreadable(const struct job *job, const struct bm_mirror_stats *stats, json_t *j)
{
	uint64_t offset = 0, length = 0;
	json_t *list = json_array();

	while (json_array_size(list) < RANGES &&
	       bm_mirror_next_unreadable(job->disk->mirror, &offset, &length)) {
		json_array_append_new(list, json_pack("{s:I s:I}", "offset", (json_int_t)offset,
						      "length", (json_int_t)length));
		offset += length;
	}
	json_object_set_new(j, "unreadable", list);
	json_object_set_new(j, "unreadable_bytes", number(stats->unreadable * stats->granule));
	json_object_set_new(j, "rest_copied", json_boolean(job_rest_copied(job)));
}

/* Of a copy; the disk of a one-off has no guest. */
static void put_cut(const struct job *job, const struct bm_mirror_stats *stats, json_t *j)
{
	bool over = job->phase >= PHASE_FINISHING;

	json_object_set_new(j, "cut_at", number(job->cut_at));
	json_object_set_new(j, "cut_took", number(job->cut_took));
	json_object_set_new(j, "cuts", number(stats->cuts));
	if (job->disk->folder)
		json_object_set_new(j, "longest_stall",
				    number(over ? job->longest_stall : job->disk->meter.longest));
}

json_t *report_job(const struct job *job)
{
	struct bm_mirror_stats stats;
	json_t *j = json_object();
	char id[160];

	job_stats(job, &stats);
	snprintf(id, sizeof(id), "%s.%u", job->disk->name ? job->disk->name : "", job->number);
	json_object_set_new(j, "id", json_string(id));
	json_object_set_new(j, "number", json_integer(job->number));
	json_object_set_new(j, "kind",
			    json_string(job->options.kind == JOB_COPY ? "copy" : "relocate"));
	json_object_set_new(j, "state", json_string(state_name(job)));
	json_object_set_new(j, "phase", json_string(report_phase(job)));
	json_object_set_new(j, "source", shown_uri(job->source));
	json_object_set_new(j, "target",
			    shown_uri(job->target.uri ? job->target.uri : job->options.target));
	json_object_set_new(j, "switch", json_string(job->options.manual ? "manual" : "auto"));
	json_object_set_new(j, "rate_limit", number(job->options.rate));
	json_object_set_new(j, "guest_latency",
			    job->options.latency == BM_LATENCY_OFF ? json_string("off")
			    : job->options.latency == BM_LATENCY_AUTO
				    ? json_string("auto")
				    : number(job->options.latency));
	json_object_set_new(
		j, "target_deadline",
		number(job->options.deadline ? job->options.deadline : BM_MIRROR_DEADLINE));
	json_object_set_new(j, "on_target_loss", report_loss(job->options.loss));
	json_object_set_new(j, "on_source_error", json_string(job->options.skip ? "skip" : "stop"));
	if (stats.unreadable)
		put_unreadable(job, &stats, j);
	json_object_set_new(j, "started", number(job->started));
	json_object_set_new(j, "took_ns",
			    number((job->ended ? job->ended : job_realtime()) - job->started));
	json_object_set_new(j, "progress", progress(job, &stats));
	if (job->resumes)
		json_object_set_new(j, "resumed",
				    json_pack("{s:I s:s s:I s:I}", "times",
					      (json_int_t)job->resumes, "from", job->resumed_from,
					      "kept_bytes", (json_int_t)job->kept_bytes,
					      "dirty_bytes", (json_int_t)job->redo_bytes));
	if (job->options.request)
		json_object_set(j, "request", job->options.request);
	if (hooks_asked(job))
		json_object_set_new(j, "asking", json_string(hooks_asked(job)));
	if (job->held.code && !job->asking && job->phase < PHASE_DETACHING)
		json_object_set_new(j, "held",
				    json_pack("{s:s s:s}", "code", bm_code_name(job->held.code),
					      "message", job->held.text));
	if (job->options.window)
		json_object_set_new(j, "undo_until", number(job->window_ends));
	if (job->switched || job->undone) {
		json_object_set_new(j, "longest_stall", number(job->longest_stall));
		json_object_set_new(j, "switch_took", number(job->switch_took));
	}
	if (job->cut_at)
		put_cut(job, &stats, j);
	if (job->error.code)
		json_object_set_new(j, "error",
				    json_pack("{s:s s:s}", "code", bm_code_name(job->error.code),
					      "message", job->error.text));
	return j;
}

json_t *report_record(const struct job *job, const char *state)
{
	json_t *j = json_pack("{s:i s:s s:s s:s s:s}", "number", (int)job->number, "kind",
			      job->options.kind == JOB_COPY ? "copy" : "relocate", "state", state,
			      "source", job->source, "target", job->target.uri);

	json_object_set_new(j, "created", json_boolean(job->target.created));
	json_object_set_new(j, "delete_source", json_boolean(job->options.delete_source));
	json_object_set_new(j, "manual", json_boolean(job->options.manual));
	json_object_set_new(j, "verify", json_boolean(job->options.verify));
	json_object_set_new(j, "accept_repair", json_boolean(job->options.accept_repair));
	json_object_set_new(j, "skip", json_boolean(job->options.skip));
	json_object_set_new(j, "rate", number(job->options.rate));
	json_object_set_new(j, "latency", number(job->options.latency));
	json_object_set_new(j, "window", number(job->options.window));
	json_object_set_new(j, "target_deadline", number(job->options.deadline));
	json_object_set_new(j, "on_target_loss", report_loss(job->options.loss));
	json_object_set_new(j, "window_ends", number(job->window_ends));
	json_object_set_new(j, "started", number(job->started));
	json_object_set_new(j, "map", number(job->map_generation));
	json_object_set_new(j, "resumes", number(job->resumes));
	if (job->cut_at)
		json_object_set_new(j, "cut_at", number(job->cut_at));
	if (job->options.request)
		json_object_set(j, "request", job->options.request);
	if (job->tells)
		json_object_set_new(j, "tells", json_true());
	return j;
}

json_t *report_ended(const struct disk *d, const json_t *job)
{
	static const char *const uris[] = {"source", "target"};
	json_t *past = json_copy((json_t *)job);

	for (int i = 0; i < 2; i++)
		json_object_set_new(past, uris[i],
				    shown_uri(json_string_value(json_object_get(past, uris[i]))));
	json_object_set_new(past, "phase", json_string("ended"));
	json_object_set_new(past, "id",
			    json_sprintf("%s.%lld", d->name,
					 json_integer_value(json_object_get(past, "number"))));
	return past;
}

json_t *report_past(const struct disk *d)
{
	return report_ended(d, d->record.job);
}

static json_t *clients(struct disk *d)
{
	struct nbd_client_info info[CLIENTS];
	unsigned n = nbd_server_clients(d->nbd, info, CLIENTS);
	json_t *list = json_array();

	for (unsigned i = 0; i < n && i < CLIENTS; i++)
		json_array_append_new(list,
				      json_pack("{s:s s:I s:I s:I s:i}", "peer", info[i].peer,
						"requests", (json_int_t)info[i].requests,
						"bytes_read", (json_int_t)info[i].bytes_read,
						"bytes_written", (json_int_t)info[i].bytes_written,
						"in_flight", (int)info[i].in_flight));
	return list;
}

static json_t *server(const struct disk *d)
{
	struct nbd_server_usage usage;

	nbd_server_get_usage(d->nbd, &usage);
	return json_pack("{s:I s:I s:I s:i s:i s:i}", "memory_bound", (json_int_t)usage.bound,
			 "memory", (json_int_t)usage.memory, "buffers", (json_int_t)usage.buffers,
			 "connections", (int)usage.connections, "max_connections",
			 (int)usage.max_connections, "in_flight", (int)usage.in_flight);
}

/* What the host that has the disk wrote here. */
static json_t *mirrored(const struct disk *d)
{
	struct nbd_server_usage usage;

	nbd_server_get_usage(d->data, &usage);
	return json_integer((json_int_t)usage.changes);
}

json_t *report_disk(struct disk *d)
{
	char *uri = nbd_server_uri(d->nbd, d->name);
	struct bm_mirror_stats stats;
	json_t *j;

	bm_mirror_get_stats(d->mirror, &stats);
	j = json_pack("{s:s s:s s:o s:I s:s s:s* s:I s:s* s:s}", "name", d->name, "disk",
		      d->record.disk, "uri", shown_uri(d->record.uri), "generation",
		      (json_int_t)d->record.generation, "role", bm_role_name(d->record.role),
		      "peer", d->record.peer, "size", (json_int_t)d->record.size, "nbd", uri,
		      "state", bm_mirror_state_name(stats.state));
	free(uri);
	json_object_set_new(j, "limiter",
			    json_string(job_runs(d->job) && stats.limiter ? stats.limiter : ""));
	json_object_set_new(j, "storage", storage_report(d));
	json_object_set_new(j, "gate", json_string(gate_role_name(gate_get_role(d->gate))));
	if (d->offer.host)
		json_object_set_new(j, "offer",
				    json_pack("{s:s s:I s:b}", "host", d->offer.host, "until",
					      (json_int_t)d->offer.until, "shared",
					      (int)d->offer.shared));
	json_object_set_new(j, "shared", json_boolean(d->record.shared));
	json_object_set_new(j, "first_write_held_ns", json_integer((json_int_t)d->longest_hold));
	json_object_set_new(j, "took_over_from", json_integer(d->predecessor));
	json_object_set_new(j, "flush_failed", json_boolean(stats.doubtful));
	json_object_set_new(j, "server", server(d));
	json_object_set_new(j, "clients", clients(d));
	if (d->data)
		json_object_set_new(j, "mirrored", mirrored(d));
	if (d->move)
		json_object_set_new(j, "move", json_string(move_id(d)));
	if (job_of(d))
		json_object_set_new(j, "job", report_job(d->job));
	else if (json_array_size(d->past))
		json_object_set(j, "job", json_array_get(d->past, json_array_size(d->past) - 1));
	else
		json_object_set_new(j, "job", json_null());
	json_object_set_new(j, "pid", json_integer(getpid()));
	json_object_set_new(j, "state_directory", json_string(d->folder));
	json_object_set_new(j, "requests",
			    json_pack("{s:I s:I s:I s:I s:I s:I s:I}", "read",
				      (json_int_t)d->meter.requests[BM_READ], "write",
				      (json_int_t)d->meter.requests[BM_WRITE], "zero",
				      (json_int_t)d->meter.requests[BM_ZERO], "trim",
				      (json_int_t)d->meter.requests[BM_TRIM], "flush",
				      (json_int_t)d->meter.requests[BM_FLUSH], "bytes_read",
				      (json_int_t)d->meter.bytes_read, "bytes_written",
				      (json_int_t)d->meter.bytes_written));
	return j;
}
