/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The host that a machine goes to: does what the source's process says, one call after the other,
 * and decides nothing but that it can (voted), or cannot any more (gone). What it has said it has
 * written down before.
 *
 *	hello -> prepare -> ram, on connections of its own -> vote -> commit -> done
 *	                                                   \-> abort
 *
 * Once it has voted it neither gives up by itself nor begins without commit, whatever becomes of
 * the connection: the source comes again.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_announce.h"
#include "blockmirror/machine/move_media.h"
#include "blockmirror/machine/move_target.h"
#include "blockmirror/machine/move_tpm.h"
#include "blockmirror/machine/preflight.h"

#define START  30000000000ull /* ns that a VMM gets to listen at its QMP socket */
#define STEP   50000000ull
#define END    5000000000ull
#define TAKE   30000000000ull  /* ns that a disk gets to become ours */
#define FORGOT 600000000000ull /* ns without a word, after which what was not voted for goes */
enum { TICK_MS = 250, SLEEP_MS = 10 };

/* The VMM */

static bool has_vm(struct target *t)
{
	struct bm_error error;

	if (t->vm.qmp && !bm_qmp_ended(t->vm.qmp))
		return true;
	vm_close(&t->vm);
	return access(t->qmp, F_OK) == 0 && vm_connect(&t->vm, t->qmp, &error) >= 0;
}

/* Whether it is there, whole, and waits for "cont", or runs. */
bool target_is_loaded(struct target *t)
{
	struct bm_error error;
	bm_free char *status = has_vm(t) ? vm_status(&t->vm, &error) : NULL;

	return status && (!strcmp(status, "paused") || !strcmp(status, "running"));
}

/* One that follows it wants its sockets, which it removes when it goes. */
static void await_end(pid_t pid)
{
	uint64_t end = move_now() + END;

	while (pid > 0 && !kill(pid, 0) && move_now() < end)
		move_sleep(STEP / 10);
}

void target_end_vm(struct target *t)
{
	struct bm_error error;

	if (has_vm(t)) {
		pid_t pid = bm_qmp_peer(t->vm.qmp).pid;

		(void)vm_call(&t->vm, "quit", NULL, &error);
		await_end(pid);
	}
	vm_close(&t->vm);
	if (json_object_get(t->m->plan, "prepared") &&
	    move_hook(t->m, "stop-target",
		      json_pack("{s:s s:o}", "qmp", t->qmp, "tpm", tpm_here(t->m)), NULL,
		      &error) < 0 &&
	    error.code != BM_E_NOT_FOUND)
		bm_log(BM_LOG_WARN, "%s: %s", t->m->id, error.text);
	tpm_undo(t->m);
}

static int wait_for_vm(struct target *t, struct bm_error *error)
{
	uint64_t end = move_now() + START;
	int r;

	do {
		r = vm_connect(&t->vm, t->qmp, error);
		if (r >= 0)
			return 0;
		move_sleep(STEP);
	} while (move_now() < end);
	return r;
}

/* Where the disks were there, and are here. */
static json_t *sockets(struct target *t)
{
	json_t *list = json_array(), *disk;
	size_t i;

	json_array_foreach(json_object_get(t->m->plan, "disks"), i, disk) {
		bm_free char *here = NULL;

		if (asprintf(&here, "%s/disks/%s.nbd", t->m->run, graph_text(disk, "name")) < 0)
			here = bm_need(NULL);
		json_array_append_new(list, json_pack("{s:O s:O s:s}", "name",
						      json_object_get(disk, "name"), "from",
						      json_object_get(disk, "socket"), "to", here));
	}
	return list;
}

/*
 * QEMU announces the machine when it is loaded, which is long before it runs here, or never will.
 * With no rounds it does not; but its virtio-net then takes the timer of its cards' own rounds
 * away, and ends (SIGSEGV, timer_del) when the guest is reset, however much later. So there is one
 * round, and the cables are out until the machine runs.
 */
static int keep_silent(struct target *t, struct bm_error *error)
{
	struct bm_error why;
	int r = vm_set_links(&t->vm, false, &why);

	if (r < 0)
		bm_log(BM_LOG_WARN, "%s: machine %s is announced later, but may end at a reset: %s",
		       t->m->id, t->m->machine, why.text);
	return vm_call(&t->vm, "migrate-set-parameters",
		       json_pack("{s:i}", "announce-rounds", r < 0 ? 0 : 1), error);
}

static int set_up_vm(struct target *t, struct bm_error *error)
{
	bm_free char *status = vm_status(&t->vm, error), *uri = NULL;
	int r;

	if (!status)
		return -ENOTCONN;
	if (strcmp(status, "inmigrate") != 0)
		return bm_fail(
			error, BM_E_QMP,
			"hook start-target has started a machine that is \"%s\", and does not "
			"wait (-incoming defer -S)",
			status);
	unlink(t->incoming);
	if (asprintf(&uri, "unix:%s", t->incoming) < 0)
		uri = bm_need(NULL);
	r = vm_capability(&t->vm, "events", true, error);
	if (!r)
		r = vm_capability(&t->vm, "return-path", true, error);
	if (!r)
		r = vm_capability(&t->vm, "late-block-activate", true, error);
	if (!r)
		r = keep_silent(t, error);
	return r ? r : vm_call(&t->vm, "migrate-incoming", json_pack("{s:s}", "uri", uri), error);
}

static int prepare(struct target *t, struct bm_error *error)
{
	json_t *params = json_pack("{s:s s:o s:o s:O*}", "qmp", t->qmp, "disks", sockets(t), "tpm",
				   tpm_here(t->m), "description",
				   json_object_get(t->m->plan, "description"));
	int r;

	/* Again: the memory came to nothing, and with it the machine that waited for it. */
	if (t->vm.qmp) {
		incoming_end(&t->memory);
		target_end_vm(t);
	}
	json_object_set_new(t->m->plan, "prepared", json_true());
	bm_sync_folder_of(t->qmp);
	unlink(t->qmp);
	r = move_save(t->m, error);
	if (!r)
		r = move_hook(t->m, "start-target", json_incref(params), NULL, error);
	json_decref(params);
	if (!r)
		r = wait_for_vm(t, error);
	if (!r)
		json_object_set_new(t->m->plan, "vmm", json_integer(bm_qmp_peer(t->vm.qmp).pid));
	if (!r)
		r = move_save(t->m, error);
	if (!r)
		r = set_up_vm(t, error);
	if (!r)
		json_object_set_new(t->m->plan, "announce", announce_ask(t->m, t->qmp));
	move_step(t->m, "prepared");
	return r;
}

/* Calls */

/* QEMU ends when it does not understand what it loads, and says why on its stderr only. */
static int has_refused(struct target *t, struct bm_error *error)
{
	return bm_fail(
		error, BM_E_QMP,
		"the VMM on the other host has ended while it loaded machine %s: is it of the "
		"same type there, with the same devices? The hook may have kept what it said",
		t->m->machine);
}

/* Until the machine's last byte is loaded; the source hears that we live. */
static int vote(struct target *t, struct bm_error *error)
{
	for (;;) {
		bm_free char *migration = vm_migration(&t->vm, NULL, error);

		if (!migration)
			return has_refused(t, error);
		if (!strcmp(migration, "completed"))
			break;
		if (strcmp(migration, "active") != 0 && strcmp(migration, "setup") != 0 &&
		    strcmp(migration, "none") != 0)
			return bm_fail(error, BM_E_QMP,
				       "the machine's memory did not arrive: its VMM says \"%s\"",
				       migration);
		if (visitor_alive(t->talk) < 0)
			return bm_fail(error, BM_E_UNREACHABLE, "the source is gone");
		if (bm_qmp_listen(t->vm.qmp, SLEEP_MS, error) < 0)
			return has_refused(t, error);
	}
	if (!target_is_loaded(t))
		return bm_fail(error, BM_E_QMP, "the machine is loaded, and not paused");
	move_step(t->m, "loaded");
	if (tpm_keep(t->m, error) < 0)
		return -EIO;
	if (bm_move_log_append(&t->m->log, BM_MOVE_VOTED) < 0)
		return bm_fail(error, BM_E_IO, "the log of the move cannot be written");
	move_phase(t->m, "voted");
	move_step(t->m, "voted");
	return 0;
}

/* All at once; one whose process has died is started again, and asked again. */
static json_t *how(const json_t *disk, bool alone)
{
	return json_pack("{s:O s:O s:b}", "generation", json_object_get(disk, "generation"), "kept",
			 json_object_get(disk, "kept"), "alone", (int)alone);
}

void target_take_disks(struct target *t, json_t *disks, bool alone)
{
	struct bm_client *client[MOVE_DISKS] = {NULL};
	int id[MOVE_DISKS];
	struct bm_error error;
	json_t *disk;
	size_t i;

	json_array_foreach(disks, i, disk) {
		const char *name = graph_text(disk, "name");

		if (i >= MOVE_DISKS || move_open_disk(t->m, name, &client[i], &error) < 0)
			continue;
		bm_client_set_timeout(client[i], TAKE);
		if (bm_client_send(client[i], "take", how(disk, alone), &id[i], &error) < 0) {
			bm_client_close(client[i]);
			client[i] = NULL;
		}
	}
	json_array_foreach(disks, i, disk) {
		bool ours = client[i] && bm_client_wait(client[i], id[i], NULL, NULL, &error) > 0;

		bm_client_close(client[i]);
		for (bool told = false; !ours; told = true) {
			if (!told)
				bm_log(BM_LOG_WARN, "%s: disk %s is asked again: %s", t->m->id,
				       graph_text(disk, "name"), error.text);
			move_sleep(STEP);
			ours = move_ask_disk(t->m, graph_text(disk, "name"), "take",
					     how(disk, alone), NULL, &error) >= 0;
		}
	}
}

void target_run(struct target *t)
{
	struct bm_error error;

	if (target_is_loaded(t) && vm_set_links(&t->vm, true, &error) < 0)
		bm_log(BM_LOG_ERROR, "%s: machine %s has a network without a link: %s", t->m->id,
		       t->m->machine, error.text);
	if (!target_is_loaded(t) || vm_call(&t->vm, "cont", NULL, &error) < 0) {
		bm_log(BM_LOG_ERROR,
		       "%s: all disks of machine %s are here, and its VMM is not any more",
		       t->m->id, t->m->machine);
		move_tell(t->m, "lost", json_true());
		return;
	}
	move_step(t->m, "runs");
	vm_announce(&t->vm);
	announce_send(t->m, json_object_get(t->m->plan, "announce"));
}

static int commit(struct target *t, json_t *params, struct bm_error *error)
{
	json_t *disks = json_object_get(params, "disks");
	enum bm_move_state state = t->m->log.state;

	if (state == BM_MOVE_GONE || (state == BM_MOVE_VOTED && !target_is_loaded(t))) {
		move_must_log(t->m, BM_MOVE_GONE);
		return bm_fail(error, BM_E_INTERRUPTED, "the machine is not here any more");
	}
	if (state != BM_MOVE_VOTED && state != BM_MOVE_STARTED)
		return bm_fail(error, BM_E_NOT_READY, "this host has not voted");
	/* It is the plan of a process that follows us, too. */
	json_object_set(t->m->plan, "commit", disks);
	if (state == BM_MOVE_VOTED) {
		move_must_log(t->m, BM_MOVE_STARTED);
		move_step(t->m, "started");
	}
	move_phase(t->m, "started");
	target_take_disks(t, disks, false);
	target_run(t);
	move_phase(t->m, "running");
	return 0;
}

void target_give_up(struct target *t)
{
	incoming_end(&t->memory);
	target_end_vm(t);
	media_undo(t->m);
	if (t->m->log.state != BM_MOVE_GONE)
		move_must_log(t->m, BM_MOVE_GONE);
}

/* What speaks against the machine here; nothing does: it is kept for it. */
static int check(struct target *t, json_t *params, struct bm_error *error)
{
	json_t *need = json_object_get(params, "need");

	if (!json_is_object(need))
		return bm_fail(error, BM_E_USAGE, "need is wanted");
	t->checked = preflight_check(t->m, need, error);
	return t->checked ? 0 : -EIO;
}

static json_t *tell(struct target *t)
{
	struct bm_error error = {0};

	if (t->checked)
		return bm_steal(t->checked);
	if (incoming_refused(&t->memory))
		has_refused(t, &error);
	return json_pack("{s:s s:I s:I s:O* s:s*}", "state", bm_move_state_name(t->m->log.state),
			 "bytes", (json_int_t)incoming_bytes(&t->memory), "ran_ns",
			 (json_int_t)vm_ago(t->vm.resumed_ns), "want",
			 json_object_get(t->m->plan, "want"), "refused",
			 error.code ? error.text : NULL);
}

static int act(struct target *t, const char *method, json_t *params, struct bm_error *error)
{
	enum bm_move_state state = t->m->log.state;

	if (!strcmp(method, "alive") && state == BM_MOVE_BEGUN)
		return preflight_serviced(t->m, error);
	if (!strcmp(method, "hello") || !strcmp(method, "alive"))
		return 0;
	if (!strcmp(method, "check") && state == BM_MOVE_BEGUN)
		return check(t, params, error);
	if (!strcmp(method, "media") && state == BM_MOVE_BEGUN)
		return media_check(t->m, params, error);
	if (!strcmp(method, "media-write") && state == BM_MOVE_BEGUN)
		return media_write(t->m, params, error);
	if (!strcmp(method, "prepare") && state == BM_MOVE_BEGUN)
		return prepare(t, error);
	if (!strcmp(method, "vote") && state == BM_MOVE_BEGUN && t->memory.relay)
		return vote(t, error);
	if (!strcmp(method, "commit"))
		return commit(t, params, error);
	if (!strcmp(method, "fenced") && state == BM_MOVE_VOTED)
		return target_note_fenced(t, params);
	if (!strcmp(method, "abort") && state == BM_MOVE_STARTED &&
	    json_is_true(json_object_get(params, "fenced"))) {
		int r = target_fenced_out(t, error);

		if (!r)
			move_must_log(t->m, BM_MOVE_GONE);
		t->over = !r;
		return r;
	}
	if (!strcmp(method, "abort") && state != BM_MOVE_STARTED && state != BM_MOVE_DONE) {
		target_give_up(t);
		t->over = true;
		return 0;
	}
	if (!strcmp(method, "done") && (state == BM_MOVE_STARTED || state == BM_MOVE_DONE)) {
		move_must_log(t->m, BM_MOVE_DONE);
		incoming_end(&t->memory);
		t->over = true;
		return 0;
	}
	return bm_fail(error, BM_E_NOT_READY, "%s is not for a move that has %s", method,
		       bm_move_state_name(state));
}

/* Who comes */

static void hear(struct target *t)
{
	const char *method;
	json_t *call = NULL;
	struct bm_error error;
	int r = visitor_call(t->talk, 0, &call);

	if (r > 0) {
		t->heard = move_now();
		method = graph_text(call, "method");
		if (act(t, method, json_object_get(call, "params"), &error) < 0)
			r = visitor_fail(t->talk, call, &error);
		else
			r = visitor_reply(t->talk, call, tell(t));
	}
	json_decref(call);
	if (r >= 0)
		return;
	bm_log(BM_LOG_WARN, "%s: host %s has gone", t->m->id, t->m->peer);
	visitor_leave(t->talk);
	t->talk = NULL;
	/* Its VMM runs on there: ours would wait for nothing. */
	if (t->m->log.state == BM_MOVE_BEGUN)
		target_give_up(t);
}

/* Somebody comes, or who is there says something. */
static void await(struct target *t)
{
	struct pollfd p[2] = {{.fd = door_socket(t->door), .events = POLLIN},
			      {.fd = t->talk ? visitor_socket(t->talk) : -1, .events = POLLIN}};

	if (!t->talk || !visitor_waits(t->talk))
		(void)poll(p, 2, TICK_MS);
}

/* The first call says what the connection is for. */
static void come(struct target *t)
{
	struct visitor *v = door_wait(t->door, 0);
	json_t *call = NULL;

	if (!v)
		return;
	if (visitor_call(v, 5000, &call) <= 0) {
		visitor_leave(v);
		return;
	}
	if (!strcmp(graph_text(call, "method"), "ram")) {
		incoming_link(&t->memory, v, call, t->incoming);
	} else if (!strcmp(graph_text(call, "method"), "hello")) {
		visitor_leave(t->talk);
		t->talk = v;
		t->heard = move_now();
		visitor_reply(v, call, tell(t));
	} else {
		visitor_leave(v);
	}
	json_decref(call);
}

static bool is_forgotten(const struct target *t)
{
	return !t->talk && move_now() > t->heard + FORGOT &&
	       (t->m->log.state == BM_MOVE_BEGUN || t->m->log.state == BM_MOVE_GONE) &&
	       t->m->log.next <= 2; /* it never voted */
}

static void open_names(struct target *t)
{
	bm_free char *folder = NULL;

	if (asprintf(&folder, "%s/machines", t->m->run) < 0 ||
	    asprintf(&t->qmp, "%s/%s.qmp", folder, t->m->machine) < 0 ||
	    asprintf(&t->incoming, "%s/moves/%s.in", t->m->run, t->m->id) < 0)
		bm_need(NULL);
	bm_make_folders(folder);
}

/* What the daemon is to know of it. */
static json_t *outcome(const struct target *t)
{
	json_t *params = json_pack("{s:s}", "name", t->m->machine);

	if (t->m->log.state == BM_MOVE_DONE)
		json_object_set_new(params, "qmp", json_string(t->qmp));
	return params;
}

void move_target(struct move *m)
{
	struct target t = {.m = m, .heard = move_now()};
	struct bm_error error;

	open_names(&t);
	if (door_open(m, &t.door, &error) < 0) {
		bm_log(BM_LOG_ERROR, "%s: %s", m->id, error.text);
		move_sleep(START);
		return;
	}
	if (m->log.state == BM_MOVE_NONE)
		move_must_log(m, BM_MOVE_BEGUN);
	else if (m->log.state == BM_MOVE_BEGUN) /* of a process that has died: so has the stream */
		target_give_up(&t);
	else if (m->log.state == BM_MOVE_STARTED && json_object_get(m->plan, "alone"))
		target_go_alone(&t);
	while (!t.over && !is_forgotten(&t)) {
		await(&t);
		come(&t);
		if (t.talk)
			hear(&t);
		target_look_at_doubt(&t);
	}
	/* The answer is on its way, and the other end goes first. */
	if (t.talk)
		(void)visitor_call(t.talk, 1000, &(json_t *){NULL});
	visitor_leave(t.talk);
	incoming_end(&t.memory);
	vm_close(&t.vm);
	unlink(t.incoming);
	move_forget(m, outcome(&t));
	door_close(t.door);
	free(t.qmp);
	free(t.incoming);
}
