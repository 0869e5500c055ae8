/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * FOLDER/move, by which a disk is in its machine's move, whoever dies; and what the log that it
 * names says, done (move.c).
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
#include "blockmirror/base/move_log.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/move.h"
#include "blockmirror/disk/standby.h"

enum { LARGEST = 4096 };

static char *path_of(const struct disk *d)
{
	char *path;

	return asprintf(&path, "%s/move", d->folder) < 0 ? NULL : path;
}

struct disk_move *move_new(const char *id, const char *to, const char *log)
{
	struct disk_move *m = bm_need(calloc(1, sizeof(*m)));

	m->id = bm_need(strdup(id));
	m->to = bm_need(strdup(to));
	m->log = bm_need(strdup(log));
	return m;
}

int move_file_write(const struct disk *d, const struct disk_move *m)
{
	bm_free char *path = path_of(d), *beside = NULL, *text = NULL;
	json_t *j = json_pack("{s:s s:s s:s s:b s:b}", "move", m->id, "to", m->to, "log", m->log,
			      "keep", (int)m->keep, "shared", (int)m->shared);
	int r;

	text = json_dumps(j, JSON_COMPACT);
	json_decref(j);
	if (!path || !text || asprintf(&beside, "%s.new", path) < 0) {
		beside = NULL;
		return -ENOMEM;
	}
	r = bm_write_durably(beside, text, strlen(text));
	return r ? r : bm_rename_durably(beside, path);
}

static int remove_file(const struct disk *d)
{
	bm_free char *path = path_of(d);

	if (!path)
		return -ENOMEM;
	return unlink(path) < 0 && errno != ENOENT ? -errno : bm_sync_folder_of(path);
}

static int read_file(struct disk *d, struct bm_error *error)
{
	bm_free char *path = path_of(d), *text = NULL;
	const char *id, *to, *log;
	int keep, shared = 0, passed = 0, r = path ? bm_read_text(path, LARGEST, &text) : -ENOMEM;
	json_t *j;

	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return bm_fail_errno(error, r, "cannot read %s", path ? path : d->folder);
	j = json_loads(text, 0, NULL);
	r = json_unpack(j, "{s:s s:s s:s s:b s?b s?b}", "move", &id, "to", &to, "log", &log, "keep",
			&keep, "shared", &shared, "passed", &passed);
	if (!r) {
		d->move = move_new(id, to, log);
		d->move->keep = keep;
		d->move->shared = shared;
		d->move->passed = passed;
		d->move->found = true;
	}
	json_decref(j);
	return !r ? 0
		  : bm_fail(error, BM_E_RECORD,
			    "%s is damaged: it says in which machine's move disk %s is", path,
			    d->name);
}

/* What the log says, done */

/* As yield.c has it of a disk that is passed on alone. */
int move_pass_on(struct disk *d, struct bm_error *error)
{
	const char *source = "", *target = "";
	struct bm_record next = d->record;
	int r;

	if (d->record.role != BM_ROLE_ACTIVE)
		return 0;
	next.role = d->move->keep ? BM_ROLE_STANDBY : BM_ROLE_RETIRED;
	next.peer = d->move->to;
	next.generation = ++d->generation;
	next.job = d->record.job ? json_copy(d->record.job) : NULL;
	json_unpack(next.job, "{s?s s?s}", "source", &source, "target", &target);
	if (d->move->keep) {
		next.uri = (char *)(bm_uri_path(source) ? source : target);
		json_object_set_new(next.job, "state", json_string("done"));
	}
	r = bm_record_write(d->folder, &next, error);
	if (!r && d->move->keep)
		owner_mark(next.uri, "active", &next, d->folder);
	json_decref(next.job);
	offer_remove(d);
	return r;
}

/*
 * Storage of both hosts stays ours, and nobody else has it open. What the other host had of the
 * machine is older from here on, and is known to be before our guest writes. It may have had the
 * disk, and the image bears its mark.
 */
static int take_back(struct disk *d, struct bm_error *error)
{
	const char *path = bm_uri_path(d->record.uri);
	struct bm_record next = d->record;
	struct bm_mark mark = {0};
	int r = path ? bm_mark_note(path, NULL) : 0;

	if (r < 0 && r != -ENOTSUP) /* a device has none */
		return bm_fail_errno(error, r, "cannot take the note of %s away", path);
	if (!path || bm_mark_read(path, &mark) < 0 || strcmp(mark.disk, d->record.disk) != 0 ||
	    mark.generation <= d->record.generation)
		return 0;
	next.generation = mark.generation + 1;
	r = bm_record_write(d->folder, &next, error);
	if (r < 0)
		return r;
	r = owner_mark(next.uri, "active", &next, d->folder);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot mark %s", path);
	d->generation = next.generation;
	return 0;
}

/*
 * 1: it is on the other host now; 0: it is ours; -EAGAIN: not known yet. opened: where storage goes
 * that has to be opened again; NULL: none can be.
 */
int move_follow(struct disk *d, bool alone, struct bm_dev **opened, struct bm_error *error)
{
	const struct disk_move *m = d->move;
	enum bm_move_state state = BM_MOVE_NONE;
	int r = m->passed ? 0 : bm_move_log_read(m->log, &state);

	if (m->passed)
		state = BM_MOVE_DONE;
	if (r < 0)
		bm_log(BM_LOG_ERROR,
		       "%s: the log of its machine's move, %s, cannot be read: %s; the disk waits",
		       d->name, m->log, strerror(-r));
	if (r < 0 || (state != BM_MOVE_DONE && state != BM_MOVE_ABORTED) ||
	    (state == BM_MOVE_ABORTED && m->shared && !opened)) {
		bm_fail(error, BM_E_BUSY, "the move %s is not decided yet", m->id);
		return -EAGAIN;
	}
	if (state == BM_MOVE_DONE)
		r = move_pass_on(d, error);
	/* Who is dead may have left something under way: the other host, or our last process. */
	else if (m->shared && (m->gone || m->found))
		r = shared_open(d, alone || m->found, opened, error);
	if (!r && state == BM_MOVE_ABORTED && m->shared)
		r = take_back(d, error);
	if (r < 0)
		return r;
	r = remove_file(d);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot remove %s/move", d->folder);
	return state == BM_MOVE_DONE;
}

int move_find(struct disk *d, bool has_port, struct bm_error *error)
{
	int r = read_file(d, error);

	if (r < 0 || !d->move)
		return r;
	r = move_follow(d, false, NULL, error);
	if (r == -EAGAIN) {
		bm_log(BM_LOG_WARN, "%s: it waits for what becomes of its machine, %s", d->name,
		       d->move->id);
		return 0;
	}
	move_clear(d);
	if (r <= 0)
		return r;
	bm_record_clear(&d->record);
	r = bm_record_read(d->folder, &d->record, error);
	/* Who has started us did not know that it is a standby, with a port of its own. */
	if (!r && d->record.role == BM_ROLE_STANDBY && !has_port)
		return bm_fail(
			error, BM_E_INTERRUPTED,
			"disk %s has passed to host %s with its machine: it is started again "
			"as that host's standby",
			d->name, d->record.peer);
	return r;
}
