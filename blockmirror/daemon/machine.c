/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which machines there are: STATE/machines/NAME.json, one for each. What a machine is made of is
 * found out by asking its VMM, when that is needed.
 */
#include "blockmirror/daemon/machine.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/requests.h"

enum { FORMAT = 1, LARGEST = 4 << 20 };
#define SUFFIX ".json"

struct machines {
	char *folder;
	json_t *all;         /* entries, by name */
	struct bm_list jobs; /* files that are being written */
};

/* A call that waits for a file. */
struct job {
	struct bm_work work;
	struct bm_list link;
	struct daemon *daemon;
	struct bm_rpc_call *call;
	char *path, *text; /* text NULL: the file goes */
	char *id;          /* a move that is begun; NULL: none */
	json_t *plan, *answer;
	json_t *again; /* what machine.migrate is to be asked anew; NULL: nothing */
	int result;
	struct bm_error error;
};

static struct machines *of(const struct daemon *d)
{
	return d->machines;
}

const json_t *machine_find(const struct daemon *d, const char *name)
{
	return name ? json_object_get(of(d)->all, name) : NULL;
}

static const char *text_of(const json_t *object, const char *key)
{
	return json_string_value(json_object_get(object, key));
}

const char *machine_hooks(const struct daemon *d, const char *name)
{
	const char *hooks = text_of(machine_find(d, name), "hooks");

	return hooks ? hooks : d->machine_hooks;
}

/* Files */

static void run_job(struct bm_work *work)
{
	struct job *j = bm_container(work, struct job, work);
	bm_free char *beside = NULL;
	int r = 0;

	if (j->again)
		return;
	if (j->plan) {
		j->result = moves_make(j->daemon, j->id, j->plan, &j->error);
		return;
	}
	if (!j->text) {
		r = unlink(j->path) < 0 && errno != ENOENT ? -errno : bm_sync_folder_of(j->path);
	} else if (asprintf(&beside, "%s.new", j->path) < 0) {
		beside = NULL;
		r = -ENOMEM;
	} else {
		r = bm_write_durably(beside, j->text, strlen(j->text));
		r = r ? r : bm_rename_durably(beside, j->path);
	}
	j->result = r ? bm_fail_errno(&j->error, r, "cannot write %s", j->path) : 0;
}

static void free_job(struct job *j)
{
	bm_list_remove(&j->link);
	json_decref(j->plan);
	json_decref(j->answer);
	json_decref(j->again);
	free(j->path);
	free(j->text);
	free(j->id);
	free(j);
}

static void job_done(struct bm_work *work)
{
	struct job *j = bm_container(work, struct job, work);

	/* At once: nobody may find that there is neither a plan that is written, nor a move. */
	if (j->plan)
		moves_take(j->daemon, j->id);
	if (j->again)
		method_machine_migrate(j->daemon, j->call, j->again);
	else if (j->call && j->result < 0)
		bm_rpc_fail(j->call, &j->error);
	else if (j->call)
		bm_rpc_reply(j->call, bm_steal(j->answer));
	free_job(j);
}

static struct job *new_job(struct daemon *d, struct bm_rpc_call *call)
{
	struct job *j = bm_need(calloc(1, sizeof(*j)));

	j->work = (struct bm_work){.run = run_job, .done = job_done};
	j->daemon = d;
	j->call = call;
	bm_list_append(&of(d)->jobs, &j->link);
	return j;
}

/* As it is now in all; when it is no more there, its file goes. */
static void save(struct daemon *d, const char *name, struct bm_rpc_call *call, json_t *answer)
{
	const json_t *entry = machine_find(d, name);
	struct job *j = new_job(d, call);

	j->answer = answer;
	j->text = entry ? json_dumps(entry, JSON_COMPACT) : NULL;
	if (asprintf(&j->path, "%s/%s" SUFFIX, of(d)->folder, name) < 0)
		j->path = bm_need(NULL);
	bm_workers_submit(d->writer, d->loop, &j->work);
}

static void read_one(struct machines *m, const char *name)
{
	bm_free char *path = NULL, *text = NULL;
	json_t *entry;
	int format = 0;

	if (bm_disk_name_check(name, NULL) < 0 ||
	    asprintf(&path, "%s/%s" SUFFIX, m->folder, name) < 0 ||
	    bm_read_text(path, LARGEST, &text) < 0)
		return;
	entry = json_loads(text, 0, NULL);
	if (entry && !json_unpack(entry, "{s:i}", "format", &format) && format == FORMAT &&
	    text_of(entry, "qmp"))
		json_object_set(m->all, name, entry);
	else
		bm_log(BM_LOG_ERROR,
		       "%s is damaged, or of a newer format: that machine is not known", path);
	json_decref(entry);
}

int machines_open(struct daemon *d, struct bm_error *error)
{
	struct machines *m = d->machines = bm_need(calloc(1, sizeof(*m)));
	struct dirent **entries = NULL;
	int n;

	m->all = json_object();
	bm_list_init(&m->jobs);
	if (asprintf(&m->folder, "%s/machines", d->state) < 0) {
		m->folder = NULL;
		return bm_fail_errno(error, ENOMEM, "machines");
	}
	n = bm_make_folders(m->folder);
	if (n < 0)
		return bm_fail_errno(error, n, "cannot create %s", m->folder);
	n = scandir(m->folder, &entries, NULL, alphasort);
	if (n < 0)
		return bm_fail_errno(error, errno, "cannot read %s", m->folder);
	for (int i = 0; i < n; i++) {
		char *name = entries[i]->d_name, *dot = strrchr(name, '.');

		if (*name != '.' && dot && !strcmp(dot, SUFFIX)) {
			*dot = '\0';
			read_one(m, name);
		}
		free(entries[i]);
	}
	free(entries);
	return 0;
}

/* The worker has ended. */
void machines_close(struct daemon *d)
{
	const struct bm_error error = {BM_E_INTERRUPTED, "blockmirrord was told to end"};

	if (!d->machines)
		return;
	while (of(d)->jobs.next && of(d)->jobs.next != &of(d)->jobs) {
		struct job *j = bm_container(of(d)->jobs.next, struct job, link);

		if (j->call)
			bm_rpc_fail(j->call, &error);
		free_job(j);
	}
	json_decref(of(d)->all);
	free(of(d)->folder);
	free(d->machines);
	d->machines = NULL;
}

/* Methods */

/* The machine that params name; answers and returns NULL when there is none. */
static const json_t *wanted(struct daemon *d, struct bm_rpc_call *call, json_t *params)
{
	const char *name = text_of(params, "name");
	const json_t *entry = machine_find(d, name);

	if (!entry)
		control_refuse(call, BM_E_NOT_FOUND, "machine", name ? name : "(none)",
			       "is not known: \"blockmirror machine add NAME --qmp SOCKET\"");
	return entry;
}

static json_t *report(const struct daemon *d, const char *name, const json_t *entry)
{
	const char *folder = moves_folder_of(d, name),
		   *id = folder ? strrchr(folder, '/') + 1 : NULL;
	json_t *shown = json_deep_copy(entry);
	bm_free char *socket = NULL;

	json_object_del(shown, "format");
	json_object_del(shown, "requests");
	if (id && asprintf(&socket, "%s/moves/%s.sock", d->run, id) >= 0)
		json_object_set_new(shown, "move",
				    json_pack("{s:s s:s}", "id", id, "socket", socket));
	return shown;
}

/* A plan for that machine is being written. */
static bool is_beginning(const struct daemon *d, const char *name)
{
	bm_list_each(node, &of(d)->jobs) {
		const struct job *j = bm_container(node, struct job, link);

		if (j->plan && !strcmp(text_of(j->plan, "machine"), name))
			return true;
	}
	return false;
}

static bool is_moving(const struct daemon *d, const char *name)
{
	return moves_folder_of(d, name) || is_beginning(d, name);
}

void method_machine_add(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const char *name = NULL, *qmp = NULL, *hooks = NULL;
	const json_t *old;
	struct bm_error error = {0};

	if (json_unpack(params, "{s:s s:s s?s}", "name", &name, "qmp", &qmp, "hooks", &hooks) ||
	    *qmp != '/' || (hooks && *hooks != '/'))
		bm_fail(&error, BM_E_USAGE,
			"name, qmp (an absolute path), and hooks (the same), are wanted");
	else if (bm_disk_name_check(name, NULL) < 0)
		bm_fail(&error, BM_E_USAGE,
			"\"%.100s\" is no name of a machine: letters, digits, and . _ -", name);
	else if (is_moving(d, name))
		bm_fail(&error, BM_E_BUSY, "machine %s is being moved", name);
	if (error.code) {
		bm_rpc_fail(call, &error);
		return;
	}
	old = machine_find(d, name);
	if (!hooks)
		hooks = text_of(old, "hooks");
	json_object_set_new(of(d)->all, name,
			    json_pack("{s:i s:s s:s s:s* s:O* s:O*}", "format", FORMAT, "name",
				      name, "qmp", qmp, "hooks", hooks, "last",
				      json_object_get(old, "last"), "requests",
				      json_object_get(old, "requests")));
	save(d, name, call, NULL);
}

void method_machine_list(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	json_t *list = json_array(), *entry;
	const char *name;

	(void)params;
	json_object_foreach(of(d)->all, name, entry)
		json_array_append_new(list, report(d, name, entry));
	bm_rpc_reply(call, json_pack("{s:o}", "machines", list));
}

void method_machine_show(void *arg, struct bm_rpc_call *call, json_t *params)
{
	const char *name = text_of(params, "name");
	json_t *coming = NULL;
	const json_t *entry;

	/* One that is on its way here is this host's only when it has come. */
	if (name && !machine_find(arg, name) && moves_folder_of(arg, name))
		coming = json_pack("{s:s}", "name", name);
	entry = coming ? coming : wanted(arg, call, params);
	if (entry)
		bm_rpc_reply(call, report(arg, name, entry));
	json_decref(coming);
}

void method_machine_remove(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const char *name = text_of(params, "name");

	if (!wanted(d, call, params))
		return;
	if (is_moving(d, name)) {
		control_refuse(call, BM_E_BUSY, "machine", name, "is being moved");
		return;
	}
	json_object_del(of(d)->all, name);
	save(d, name, call, NULL);
}

/* The move, {move, request}, that came of that request, or is going on for it; NULL: none. */
static json_t *move_by_request(const struct daemon *d, const char *name, const char *id)
{
	const json_t *running = moves_request_of(d, name), *ended;

	if (running && !strcmp(text_of(running, "id"), id))
		return json_pack("{s:s s:O}", "move", strrchr(moves_folder_of(d, name), '/') + 1,
				 "request", running);
	ended = bm_requests_find(json_object_get(machine_find(d, name), "requests"), id);
	/* One that was refused has changed nothing: the id is free. */
	return ended && !json_is_true(json_object_get(ended, "refused"))
		       ? json_pack("{s:O s:O}", "move", json_object_get(ended, "move"), "request",
				   json_object_get(ended, "request"))
		       : NULL;
}

/*
 * A request is carried out once: when it is known the answer is that move, which may be over.
 * Whoever asked first may have died while the plan was being written.
 */
static bool was_asked(struct daemon *d, struct bm_rpc_call *call, const char *name, json_t *params)
{
	const char *id = NULL, *digest = NULL;
	struct bm_error error;
	json_t *known;

	if (!json_object_get(params, "request"))
		return false;
	if (json_unpack(params, "{s:{s:s s:s}}", "request", "id", &id, "digest", &digest) ||
	    bm_request_check_id(id, NULL) < 0) {
		bm_fail(&error, BM_E_USAGE, "request: id and digest are wanted");
		bm_rpc_fail(call, &error);
		return true;
	}
	if (is_beginning(d, name)) {
		struct job *j = new_job(d, call);

		j->again = json_incref(params);
		bm_workers_submit(d->writer, d->loop, &j->work);
		return true;
	}
	known = move_by_request(d, name, id);
	if (known && strcmp(text_of(json_object_get(known, "request"), "digest"), digest) != 0) {
		bm_fail(&error, BM_E_ID_REUSED,
			"request %s of machine %s was another one: give each its own id", id, name);
		bm_rpc_fail(call, &error);
	} else if (known) {
		bm_rpc_reply(call, json_pack("{s:O}", "move", json_object_get(known, "move")));
	}
	json_decref(known);
	return known;
}

static bool may_migrate(struct daemon *d, struct bm_rpc_call *call, const char *name,
			const json_t *entry)
{
	const char *away = text_of(entry, "away");
	struct bm_error error;

	if (is_moving(d, name))
		bm_fail(&error, BM_E_BUSY, "machine %s is being moved already", name);
	else if (away)
		bm_fail(&error, BM_E_RETIRED, "machine %s is on host %s", name, away);
	else
		return true;
	bm_rpc_fail(call, &error);
	return false;
}

/* options: as blockmirror-move understands them; the daemon passes them on. */
void method_machine_migrate(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const char *name = text_of(params, "name"), *hooks;
	const json_t *entry = wanted(d, call, params),
		     *options = json_object_get(params, "options");
	const struct peer *peer;
	struct job *j;
	uint32_t random;

	if (!entry || was_asked(d, call, name, params) || !may_migrate(d, call, name, entry))
		return;
	peer = peer_wanted(d->peers, call, params, "to");
	if (!peer)
		return;
	if (getrandom(&random, sizeof(random), 0) != sizeof(random))
		abort();
	hooks = machine_hooks(d, name);
	j = new_job(d, call);
	if (asprintf(&j->id, "%s-%08x", name, random) < 0)
		j->id = bm_need(NULL);
	j->plan = json_pack("{s:i s:s s:s s:s s:O s:s s:s s:s s:o s:O*}", "format", FORMAT, "side",
			    "source", "move", j->id, "machine", name, "qmp",
			    json_object_get(entry, "qmp"), "hooks", hooks, "peer", peer->name, "us",
			    d->peers->name, "options",
			    options ? json_deep_copy(options) : json_object(), "request",
			    json_object_get(params, "request"));
	j->answer = json_pack("{s:s}", "move", j->id);
	bm_workers_submit(d->writer, d->loop, &j->work);
}

/* What became of a move that was asked for by an id, for whoever asks by that again. */
static void remember(json_t *entry, const json_t *last)
{
	static const char *const kept[] = {"move",    "machine", "peer",     "state",
					   "request", "refused", "error",    "refusals",
					   "disks",   "took_ns", "pause_ns", "forecast"};
	json_t *all = json_object_get(entry, "requests"), *one;

	if (!bm_request_of(last))
		return;
	if (!all) {
		all = json_array();
		json_object_set_new(entry, "requests", all);
	}
	one = json_object();
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		if (json_object_get(last, kept[i]))
			json_object_set(one, kept[i], json_object_get(last, kept[i]));
	bm_requests_put(all, one);
	json_decref(one);
}

/*
 * A move process says what has come of it. here: the machine is on this host, at qmp. away: on that
 * host. last: its report.
 */
void method_machine_moved(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct daemon *d = arg;
	const char *name = text_of(params, "name"), *qmp = text_of(params, "qmp"),
		   *away = text_of(params, "away");
	json_t *entry = json_object_get(of(d)->all, name ? name : ""),
	       *last = json_object_get(params, "last");

	if (!name || (!entry && !qmp)) {
		bm_rpc_reply(call, NULL);
		return;
	}
	if (!entry) {
		entry = json_pack("{s:i s:s}", "format", FORMAT, "name", name);
		json_object_set_new(of(d)->all, name, entry);
	}
	if (qmp) {
		json_object_set_new(entry, "qmp", json_string(qmp));
		json_object_del(entry, "away");
	}
	if (away)
		json_object_set_new(entry, "away", json_string(away));
	if (last) {
		json_object_set(entry, "last", last);
		remember(entry, last);
	}
	save(d, name, call, NULL);
}
