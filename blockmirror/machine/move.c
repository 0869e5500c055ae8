/* SPDX-License-Identifier: BSD-3-Clause */
/* A move's plan and log, what is told of it, and whom it asks on its own host. */
#include "blockmirror/machine/move.h"
#include "blockmirror/machine/graph.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"

enum { LARGEST = 4 << 20 };
#define STEP       100000000ull   /* ns */
#define ANSWER     95000000000ull /* ns: a daemon may ask another host */
#define LOCK_STEPS 50

uint64_t move_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void move_sleep(uint64_t ns)
{
	const struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u),
				   .tv_nsec = (long)(ns % 1000000000u)};

	nanosleep(&t, NULL);
}

/* A daemon may look at the lock at the same time; another process of this move has it for good. */
static int take_log(struct move *m, const char *path, struct bm_error *error)
{
	int r;

	for (int i = 0;; i++) {
		r = bm_move_log_open(path, &m->log);
		if (r == -ENOENT)
			r = bm_move_log_create(path, &m->log);
		if (r != -EWOULDBLOCK || i == LOCK_STEPS)
			break;
		move_sleep(STEP / 10);
	}
	return r < 0 ? bm_fail_errno(error, r, "cannot open %s", path) : 0;
}

int move_read(struct move *m, struct bm_error *error)
{
	bm_free char *path = NULL, *log = NULL, *text = NULL;
	int r;

	m->log.fd = -1;
	if (asprintf(&path, "%s/plan", m->folder) < 0 || asprintf(&log, "%s/log", m->folder) < 0)
		return bm_fail_errno(error, ENOMEM, "%s", m->folder);
	r = bm_read_text(path, LARGEST, &text);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot read %s", path);
	m->plan = json_loads(text, 0, NULL);
	if (json_unpack(m->plan, "{s:s s:s s:s s:s}", "move", &m->id, "machine", &m->machine,
			"peer", &m->peer, "hooks", &m->hooks))
		return bm_fail(error, BM_E_RECORD, "%s is damaged", path);
	m->report = json_pack("{s:s s:s s:s s:s s:s s:O*}", "move", m->id, "machine", m->machine,
			      "peer", m->peer, "phase", "begins", "state", "running", "request",
			      json_object_get(m->plan, "request"));
	return take_log(m, log, error);
}

void move_clear(struct move *m)
{
	bm_move_log_close(&m->log);
	json_decref(m->plan);
	json_decref(m->report);
}

void move_tell(struct move *m, const char *key, json_t *value)
{
	pthread_mutex_lock(&m->lock);
	json_object_set_new(m->report, key, value);
	pthread_mutex_unlock(&m->lock);
}

void move_phase(struct move *m, const char *phase)
{
	bm_log(BM_LOG_NOTICE, "%s: %s", m->id, phase);
	move_tell(m, "phase", json_string(phase));
}

int move_save(struct move *m, struct bm_error *error)
{
	bm_free char *path = NULL, *beside = NULL, *text = json_dumps(m->plan, JSON_COMPACT);
	int r;

	if (!text || asprintf(&path, "%s/plan", m->folder) < 0 ||
	    asprintf(&beside, "%s.new", path) < 0)
		return bm_fail_errno(error, ENOMEM, "%s", m->folder);
	r = bm_write_durably(beside, text, strlen(text));
	r = r ? r : bm_rename_durably(beside, path);
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path) : 0;
}

void move_must_log(struct move *m, enum bm_move_state state)
{
	for (bool told = false;; told = true) {
		int r = bm_move_log_append(&m->log, state);

		if (!r)
			break;
		if (!told)
			bm_log(BM_LOG_ERROR,
			       "%s: its log cannot be written: %s; all waits for that", m->id,
			       strerror(-r));
		move_sleep(STEP);
	}
	bm_log(BM_LOG_NOTICE, "%s: %s", m->id, bm_move_state_name(state));
}

static int ask(const char *path, const char *method, json_t *params, json_t **result,
	       struct bm_error *error)
{
	struct bm_client *client;
	int r = bm_client_connect(path, &client, error);

	if (r < 0) {
		json_decref(params);
		return r;
	}
	bm_client_set_timeout(client, ANSWER);
	r = bm_client_call(client, method, params, result, error);
	bm_client_close(client);
	return r;
}

int move_ask_daemon(struct move *m, const char *method, json_t *params, json_t **result,
		    struct bm_error *error)
{
	bm_free char *path = NULL;

	if (asprintf(&path, "%s/blockmirrord.sock", m->run) < 0)
		path = bm_need(NULL);
	return ask(path, method, params, result, error);
}

static char *disk_socket(const struct move *m, const char *disk)
{
	char *path;

	return asprintf(&path, "%s/disks/%s.sock", m->run, disk) < 0 ? bm_need(NULL) : path;
}

int move_ask_disk(struct move *m, const char *disk, const char *method, json_t *params,
		  json_t **result, struct bm_error *error)
{
	bm_free char *path = disk_socket(m, disk);

	return ask(path, method, params, result, error);
}

bool move_disk_is_retired(struct move *m, const char *disk)
{
	json_t *known = NULL;
	struct bm_error error;
	bool retired =
		!move_ask_daemon(m, "show", json_pack("{s:s}", "name", disk), &known, &error) &&
		!strcmp(graph_text(json_object_get(known, "error"), "code"), "E_RETIRED");

	json_decref(known);
	return retired;
}

int move_open_disk(struct move *m, const char *disk, struct bm_client **client,
		   struct bm_error *error)
{
	bm_free char *path = disk_socket(m, disk);

	return bm_client_connect(path, client, error);
}

/* The plan goes first: as long as it is there, another process comes, and wants the log. */
static void remove_folder(const struct move *m)
{
	static const char *const names[] = {"plan", "plan.new", "hook", "log"};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		bm_free char *path = NULL;

		if (asprintf(&path, "%s/%s", m->folder, names[i]) < 0)
			path = bm_need(NULL);
		unlink(path);
		bm_sync_folder_of(path);
	}
	rmdir(m->folder);
}

void move_forget(struct move *m, json_t *params)
{
	struct bm_error error;

	while (move_ask_daemon(m, "machine.moved", json_incref(params), NULL, &error) < 0)
		move_sleep(STEP * 10);
	json_decref(params);
	remove_folder(m);
}

int move_may_go_on(struct move *m, struct bm_error *error)
{
	return atomic_load(&m->cancelled) ? bm_fail(error, BM_E_CANCELLED, "cancelled") : 0;
}

void move_step(struct move *m, const char *step)
{
	const char *file = getenv("BLOCKMIRROR_MOVE_STEP");
	const char *side = json_string_value(json_object_get(m->plan, "side"));
	bm_free char *text = NULL, *die = NULL, *stop = NULL;

	if (!file || bm_read_text(file, LARGEST, &text) < 0)
		return;
	if (asprintf(&die, "%s-%s die\n", side, step) < 0 ||
	    asprintf(&stop, "%s-%s stop\n", side, step) < 0)
		bm_need(NULL);
	if (strcmp(text, die) != 0 && strcmp(text, stop) != 0)
		return;
	unlink(file);
	raise(strcmp(text, die) ? SIGSTOP : SIGKILL); /* this thread does not go on */
}
