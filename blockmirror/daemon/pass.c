/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks that pass from one host to the other: what one host's disk process asks of the other one's,
 * by way of both daemons. Nothing is decided here. Only where a disk's process has ended, because
 * the disk was passed on, its record is what answers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/record.h"
#include "blockmirror/daemon/peer.h"

#define PATIENCE       30000000000ull /* ns: a fence, a flush, a record */
#define PATIENCE_THERE 40000000000ull

/* Methods of the control socket: to the other host. */

static const char *method_there(const struct peer_errand *e)
{
	return e->arg;
}

static int ask_there(struct peer_errand *e)
{
	return peer_ask(e->peers, e->peer, method_there(e), json_incref(e->params), PATIENCE_THERE,
			&e->result, &e->error);
}

static void pass_on(struct daemon *d, struct bm_rpc_call *call, json_t *params, const char *method,
		    enum errand_level level)
{
	const struct peer *peer = peer_wanted(d->peers, call, params, "peer");

	if (peer)
		peer_errand_begin(d->peers, call, peer, json_incref(params), ask_there, method,
				  level);
}

void method_remote_yield(void *arg, struct bm_rpc_call *call, json_t *params)
{
	pass_on(arg, call, params, "yield", ERRAND_ASK);
}

/*
 * The image that is here, of path, is kept when the disk goes: the other host is told where its
 * mirror will reach it. Without that it goes all the same.
 */
static void put_back(struct daemon *d, json_t *params)
{
	const char *path = json_string_value(json_object_get(params, "keep")),
		   *name = json_string_value(json_object_get(params, "name")),
		   *disk = json_string_value(json_object_get(params, "disk")),
		   *peer = json_string_value(json_object_get(params, "peer"));
	struct served *s = path && name && disk && peer ? served_find(d, name) : NULL;
	unsigned port = s ? registry_port(s->received) : 0;
	struct bm_error error;
	int fd;

	if (!s || (port && strcmp(registry_peer(s->received), peer) != 0))
		return;
	if (!port) {
		fd = peer_listen_data(d->peers, &port, &error);
		if (fd < 0) {
			bm_log(BM_LOG_WARN, "%s: no copy is kept: %s", name, error.text);
			return;
		}
		close(fd);
		json_decref(s->received);
		s->received =
			json_pack("{s:s s:s s:i}", "peer", peer, "disk", disk, "port", (int)port);
		served_save(s);
	}
	json_object_set_new(params, "back",
			    json_pack("{s:s s:s s:i s:s*}", "name", name, "path", path, "port",
				      (int)port, "address", d->peers->bind));
}

void method_remote_arm(void *arg, struct bm_rpc_call *call, json_t *params)
{
	put_back(arg, params);
	pass_on(arg, call, params, "arm", ERRAND_OURS);
}

void method_remote_take(void *arg, struct bm_rpc_call *call, json_t *params)
{
	pass_on(arg, call, params, "take", ERRAND_OURS);
}

/* To a disk's process. */

static int call_process(struct peer_errand *e, const char *method, json_t *params)
{
	bm_free char *path = NULL;
	struct bm_client *client;
	int r;

	if (asprintf(&path, "%s/%s.sock", e->peers->daemon->sockets,
		     json_string_value(json_object_get(e->params, "name"))) < 0) {
		path = NULL;
		json_decref(params);
		return bm_fail_errno(&e->error, ENOMEM, "host %s", e->peers->name);
	}
	r = bm_client_connect(path, &client, &e->error);
	if (r < 0) {
		json_decref(params);
		return r;
	}
	bm_client_set_timeout(client, PATIENCE);
	r = bm_client_call(client, method, params, &e->result, &e->error);
	bm_client_close(client);
	return r;
}

/*
 * Disks that were armed together are one machine's. The guest of one is here now, and so that of
 * the others, also of those that it never writes to.
 */

static int take_too(struct peer_errand *e)
{
	int r = call_process(e, "take",
			     json_pack("{s:O}", "group", json_object_get(e->params, "group")));

	if (r < 0 && e->error.code != BM_E_NOT_READY)
		bm_log(BM_LOG_WARN,
		       "%s: the disk does not follow its machine before it is written to: %s",
		       json_string_value(json_object_get(e->params, "name")), e->error.text);
	return r;
}

static void take_group(struct daemon *d, const char *first, const struct peer *peer, json_t *group)
{
	bm_list_each(node, &d->disks) {
		const struct served *s = bm_container(node, struct served, link);

		if (s->received && strcmp(s->name, first) != 0 &&
		    !strcmp(registry_peer(s->received), peer->name))
			peer_errand_begin(d->peers, NULL, peer,
					  json_pack("{s:s s:O}", "name", s->name, "group", group),
					  take_too, NULL, ERRAND_THEIRS);
	}
}

/* A disk's process says that a standby is the disk now. */
void method_received(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const char *name = json_string_value(json_object_get(params, "name")),
		   *host = json_string_value(json_object_get(params, "peer"));
	const struct peer *peer = host ? peer_find(d->peers, host) : NULL;
	json_t *group = json_object_get(params, "group");
	struct served *s = name ? served_find(d, name) : NULL;

	if (s && s->received && !json_is_true(json_object_get(params, "mirrors"))) {
		json_decref(s->received);
		s->received = NULL;
		served_save(s);
	}
	if (s && peer && json_is_string(group))
		take_group(d, name, peer, group);
	bm_rpc_reply(call, NULL);
}

/* Methods of the port for other hosts: to a disk's process. */

/* The disk that is meant, by its record. */
static int read_record(struct peer_errand *e, struct bm_record *record)
{
	const char *name = json_string_value(json_object_get(e->params, "name")),
		   *disk = json_string_value(json_object_get(e->params, "disk"));
	bm_free char *folder = NULL;
	int r;

	if (asprintf(&folder, "%s/disks/%s", e->peers->daemon->state, name) < 0) {
		folder = NULL;
		return bm_fail_errno(&e->error, ENOMEM, "disk %s", name);
	}
	r = bm_record_read(folder, record, &e->error);
	if (r == -ENOENT || (!r && strcmp(record->disk, disk) != 0))
		return bm_fail(&e->error, BM_E_NOT_FOUND, "host %s has no such disk %s",
			       e->peers->name, name);
	return r;
}

/* As the process would answer it: disk/yield.c. */
static bool was_passed(const struct peer_errand *e, const struct bm_record *record)
{
	json_int_t asked = json_integer_value(json_object_get(e->params, "generation"));

	return record->role != BM_ROLE_ACTIVE && !strcmp(record->peer, e->peer->name) &&
	       (record->role == BM_ROLE_RETIRED ||
		(asked > 0 && record->generation > (uint64_t)asked));
}

/*
 * The disk's process is gone, and cannot come meanwhile: its folder's lock is ours. What the record
 * says is durable before it is told: that process may have died between its rename and its sync.
 *
 *	A record "passed on" that is there and not durable; the process lives, and doubts; told of
 *by us, the other host begins to serve; then the process writes a record "ours", and serves, too.
 */
static int read_alone(struct peer_errand *e, struct bm_record *record)
{
	bm_free char *folder = NULL, *file = NULL;
	bm_close int lock = -1;
	int r;

	if (asprintf(&folder, "%s/disks/%s", e->peers->daemon->state,
		     json_string_value(json_object_get(e->params, "name"))) < 0) {
		folder = NULL;
		return bm_fail_errno(&e->error, ENOMEM, "disk");
	}
	if (asprintf(&file, "%s/record", folder) < 0) {
		file = NULL;
		return bm_fail_errno(&e->error, ENOMEM, "disk");
	}
	lock = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB) < 0)
		return bm_fail(&e->error, BM_E_UNREACHABLE,
			       "the disk's process on host %s does not answer", e->peers->name);
	r = bm_sync_folder_of(file);
	return r < 0 ? bm_fail_errno(&e->error, r, "cannot sync %s", folder)
		     : read_record(e, record);
}

static int yield(struct peer_errand *e)
{
	bm_record_auto struct bm_record record = {0};
	int r = call_process(e, "yield",
			     json_pack("{s:s s:O* s:O*}", "to", e->peer->name, "generation",
				       json_object_get(e->params, "generation"), "keep",
				       json_object_get(e->params, "keep")));

	if (r >= 0)
		return 0;
	if (e->error.code != BM_E_UNREACHABLE && e->error.code != BM_E_NOT_FOUND &&
	    e->error.code != BM_E_INTERRUPTED)
		return r;
	r = read_alone(e, &record);
	if (!r && !was_passed(e, &record))
		r = bm_fail(&e->error, BM_E_UNREACHABLE, "disk %s is not served on host %s now",
			    record.name, e->peers->name);
	if (r < 0)
		return r;
	e->result = json_pack("{s:I s:b}", "generation", (json_int_t)record.generation, "kept",
			      (int)(record.role == BM_ROLE_STANDBY));
	return 0;
}

/* What a standby is to know; of what the other host keeps, where we reach it. */
static json_t *arm_params(struct peer_errand *e)
{
	static const char *const members[] = {"time_ns", "window_ns", "returns",
					      "behind",  "witness",   "group"};
	const json_t *back = json_object_get(e->params, "back");
	json_t *params = json_object();

	for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++)
		json_object_set(params, members[i], json_object_get(e->params, members[i]));
	if (back) {
		bm_free char *uri = remote_uri(e, back);

		json_object_set_new(params, "back", json_string(uri));
	}
	return params;
}

/* Who has the disk says that its standby may take it, or is to. */
static int tell_standby(struct peer_errand *e)
{
	bm_record_auto struct bm_record record = {0};
	const char *method = method_there(e);
	int r = read_record(e, &record);

	if (r < 0)
		return r;
	if (record.role == BM_ROLE_STANDBY && strcmp(record.peer, e->peer->name) != 0)
		return bm_fail(&e->error, BM_E_ACCESS, "disk %s is not a standby of host %s",
			       record.name, e->peer->name);
	return call_process(e, method, !strcmp(method, "arm") ? arm_params(e) : NULL);
}

static void answer(struct peers *p, struct bm_rpc_call *call, json_t *params,
		   int (*run)(struct peer_errand *e), const char *method)
{
	const struct peer *peer = peer_admit(p, call, true);
	const char *name = json_string_value(json_object_get(params, "name")),
		   *disk = json_string_value(json_object_get(params, "disk"));
	struct bm_error error;

	if (!peer)
		return;
	if (!disk || bm_disk_name_check(name ? name : "", NULL) < 0) {
		bm_fail(&error, BM_E_USAGE, "name, and disk (its identity), are wanted");
		bm_rpc_fail(call, &error);
		return;
	}
	peer_errand_begin(p, call, peer, json_incref(params), run, method,
			  run == yield ? ERRAND_YIELD : ERRAND_THEIRS);
}

void method_yield(void *arg, struct bm_rpc_call *call, json_t *params)
{
	answer(arg, call, params, yield, NULL);
}

void method_arm(void *arg, struct bm_rpc_call *call, json_t *params)
{
	answer(arg, call, params, tell_standby, "arm");
}

void method_take(void *arg, struct bm_rpc_call *call, json_t *params)
{
	answer(arg, call, params, tell_standby, "take");
}
