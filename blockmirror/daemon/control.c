/* SPDX-License-Identifier: BSD-3-Clause */
/* The control socket of blockmirrord: docs/protocol.md, method by method. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/daemon/machine.h"

json_t *control_report(const struct served *s)
{
	uint64_t now = bm_loop_now(s->daemon->loop);
	json_t *j = json_pack("{s:s s:s s:i s:i s:I}", "name", s->name, "state",
			      served_state_name(s), "restarts", (int)s->restarts, "failures",
			      (int)s->quick, "back_ns", (json_int_t)s->back);

	if (s->pid)
		json_object_set_new(j, "pid", json_integer(s->pid));
	if (s->error.code)
		json_object_set_new(j, "error",
				    json_pack("{s:s s:s}", "code", bm_code_name(s->error.code),
					      "message", s->error.text));
	if (bm_timer_armed(&s->retry))
		json_object_set_new(
			j, "retry_ns",
			json_integer(s->retry.at > now ? (json_int_t)(s->retry.at - now) : 0));
	return j;
}

void control_tell(struct served *s)
{
	if (s->daemon->rpc)
		bm_rpc_notify(s->daemon->rpc, "disk",
			      json_pack("{s:o}", "disk", control_report(s)));
}

void control_refuse(struct bm_rpc_call *call, enum bm_code code, const char *what, const char *name,
		    const char *text)
{
	struct bm_error error;

	bm_fail(&error, code, "%s %s %s", what, name, text);
	bm_rpc_fail(call, &error);
}

static void fail(struct bm_rpc_call *call, enum bm_code code, const char *text, const char *name)
{
	control_refuse(call, code, "disk", name, text);
}

/* The disk that params name; answers and returns NULL when there is none. */
static struct served *want_disk(struct daemon *d, struct bm_rpc_call *call, json_t *params)
{
	const char *name = json_string_value(json_object_get(params, "name"));
	struct served *s = name ? served_find(d, name) : NULL;
	struct bm_error error;

	if (s)
		return s;
	if (bm_disk_name_check(name ? name : "", &error) < 0)
		bm_rpc_fail(call, &error);
	else
		fail(call, BM_E_NOT_FOUND, "is not one of blockmirrord's", name);
	return NULL;
}

static void method_list(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	json_t *list = json_array();

	(void)params;
	bm_list_each(node, &d->disks) {
		json_array_append_new(list,
				      control_report(bm_container(node, struct served, link)));
	}
	bm_rpc_reply(call, json_pack("{s:o s:i s:s}", "disks", list, "pid", (int)getpid(),
				     "state_directory", d->state));
}

static void method_show(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct served *s = want_disk(arg, call, params);

	if (s)
		bm_rpc_reply(call, control_report(s));
}

/* Whether serve may begin; answers when it may not. */
static bool can_begin(const struct served *s, struct bm_rpc_call *call)
{
	if (s->state != SERVED_STOPPED && s->state != SERVED_WAITING)
		fail(call, BM_E_BUSY,
		     s->state == SERVED_RUNNING ? "is served already" : "is being started already",
		     s->name);
	else if (s->working || s->serve_call || s->stop_call)
		fail(call, BM_E_BUSY, "is being stopped or forgotten; try again", s->name);
	else
		return true;
	return false;
}

/* The caller's records must be the daemon's: a disk of the same name elsewhere is another one. */
static bool same_state(const struct daemon *d, struct bm_rpc_call *call, const char *folder)
{
	struct bm_error error;

	if (!folder || !strcmp(folder, d->state))
		return true;
	bm_fail(&error, BM_E_USAGE,
		"blockmirrord has its records in %s, not in %s; serve with --state-dir %s, or with "
		"another --run-dir",
		d->state, folder, d->state);
	bm_rpc_fail(call, &error);
	return false;
}

static void method_serve(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const char *name = NULL, *image = NULL, *folder = NULL;
	json_int_t create = 0;
	json_t *limits = NULL;
	int force = 0, flatten = 0;
	struct bm_error error;
	struct served *s;

	if (json_unpack(params, "{s:s s?s s?I s?b s?b s?s s?o}", "name", &name, "image", &image,
			"create", &create, "force", &force, "flatten", &flatten, "state_directory",
			&folder, "limits", &limits) ||
	    create < 0 || (create && !image) || !registry_limits_good(limits)) {
		bm_fail(&error, BM_E_USAGE,
			"name (a string) is wanted, and image, create (bytes), force, flatten, "
			"limits");
		bm_rpc_fail(call, &error);
		return;
	}
	if (bm_disk_name_check(name, &error) < 0) {
		bm_rpc_fail(call, &error);
		return;
	}
	if (!same_state(d, call, folder))
		return;
	s = served_find(d, name);
	if (s && !can_begin(s, call))
		return;
	if (!s)
		s = served_new(d, name);
	if (!s) {
		fail(call, BM_E_INTERNAL, "cannot be served: out of memory", name);
		return;
	}
	s->serve_call = call;
	s->first.image = image ? strdup(image) : NULL;
	s->first.create = (uint64_t)create;
	s->first.force = force;
	s->first.flatten = flatten;
	json_decref(s->limits);
	s->limits = json_incref(limits);
	bm_timer_clear(d->loop, &s->retry);
	served_begin(s);
}

static void stop_answered(struct ask *ask, const struct bm_error *error)
{
	struct served *s = bm_container(ask, struct served, ask);
	struct bm_rpc_call *call;

	s->stopping = !error;
	call = error ? bm_steal(s->stop_call) : NULL;
	if (call)
		bm_rpc_fail(call, error);
}

static void stop_process(struct served *s, struct bm_rpc_call *call)
{
	bm_free char *path = NULL;
	int r = asprintf(&path, "%s/%s.sock", s->daemon->sockets, s->name) < 0
			? -ENOMEM
			: ask_begin(&s->ask, path, "stop", stop_answered);
	struct bm_error error;

	if (!r) {
		s->stop_call = call;
		return;
	}
	bm_fail_errno(&error, r, "disk %s cannot be told to stop", s->name);
	bm_rpc_fail(call, &error);
}

static void method_stop(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct served *s = want_disk(arg, call, params);

	if (!s)
		return;
	if (s->state == SERVED_STOPPED)
		fail(call, BM_E_NOT_FOUND, "is not served", s->name);
	else if (s->working || s->stop_call || s->ask.watch.fd >= 0)
		fail(call, BM_E_BUSY, "is being started or stopped; try again", s->name);
	else if (s->state == SERVED_RUNNING)
		stop_process(s, call);
	else if (s->state != SERVED_WAITING)
		fail(call, BM_E_BUSY, "is being started; try again", s->name);
	else {
		s->stop_call = call;
		served_stopped(s);
	}
}

static void method_forget(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct served *s = want_disk(arg, call, params);

	if (!s)
		return;
	if ((s->state != SERVED_STOPPED && s->state != SERVED_WAITING) || !s->saved)
		fail(call, BM_E_BUSY, "is served; stop it first", s->name);
	else if (s->working || s->stop_call || s->serve_call)
		fail(call, BM_E_BUSY, "is being started or stopped; try again", s->name);
	else
		served_forget(s, call);
}

static void method_events(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)arg;
	(void)params;
	bm_rpc_subscribe(call);
	bm_rpc_reply(call, NULL);
}

static const struct bm_rpc_table methods[] = {
	{"list", method_list},
	{"show", method_show},
	{"serve", method_serve},
	{"stop", method_stop},
	{"forget", method_forget},
	{"events", method_events},
	{"peer.add", method_peer_add},
	{"peer.allow", method_peer_allow},
	{"peer.pair", method_peer_pair},
	{"peer.remove", method_peer_remove},
	{"peer.list", method_peer_list},
	{"peer.check", method_peer_check},
	{"remote.create", method_remote_create},
	{"remote.share", method_remote_share},
	{"remote.remove", method_remote_remove},
	{"remote.keep", method_remote_keep},
	{"remote.space", method_remote_space},
	{"remote.yield", method_remote_yield},
	{"remote.arm", method_remote_arm},
	{"remote.take", method_remote_take},
	{"received", method_received},
	{"machine.add", method_machine_add},
	{"machine.list", method_machine_list},
	{"machine.show", method_machine_show},
	{"machine.remove", method_machine_remove},
	{"machine.migrate", method_machine_migrate},
	{"machine.moved", method_machine_moved},
	{"remote.move", method_remote_move},
	{"remote.move-state", method_remote_move_state},
	{NULL, NULL},
};

int control_listen(struct daemon *d, struct bm_error *error)
{
	bm_free char *path = NULL;
	int r = bm_rpc_new(d->loop, methods, d, &d->rpc);

	if (r < 0 || asprintf(&path, "%s/blockmirrord.sock", d->run) < 0)
		return bm_fail_errno(error, ENOMEM, "control socket");
	return bm_rpc_listen(d->rpc, path, error);
}
