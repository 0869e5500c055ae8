/* SPDX-License-Identifier: BSD-3-Clause */
/* The VMM of a machine that moves, by QMP: what the move wants of it, and what it is made of. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_media.h"

enum { LARGEST = 1 << 20 };
#define OLDEST 60000000000ull /* ns that an event is on its way */
#define GO_ON  30000000000ull /* ns that it gets to see that its stream is gone */
#define STEP   50000000ull

uint64_t vm_ago(uint64_t at)
{
	struct timespec t;
	uint64_t now;

	clock_gettime(CLOCK_REALTIME, &t);
	now = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
	return at && at < now && now - at < OLDEST ? now - at : 0;
}

/*
 * Since when, on our clock: an event waits while we ask somebody else, which would make a pause
 * shorter than it was. A clock that was set meanwhile counts for nothing.
 */
static uint64_t since(uint64_t at)
{
	uint64_t ago = vm_ago(at), now = move_now();

	return ago < now ? now - ago : now;
}

static void on_event(void *arg, const char *name, const json_t *data, uint64_t at)
{
	struct vm *vm = arg;

	if (!strcmp(name, "STOP") && !vm->stopped) {
		vm->stopped = true;
		vm->stopped_at = since(at);
		vm->stopped_ns = at;
		vm->resumed_ns = 0;
		if (vm->on_stop)
			vm->on_stop(vm->arg);
	} else if (!strcmp(name, "RESUME")) {
		vm->stopped = false;
		vm->resumed_ns = at;
	} else if (!strcmp(name, "SHUTDOWN")) {
		vm->ended = true;
	} else if (!strcmp(name, "MIGRATION_PASS")) {
		vm->round = (unsigned)json_integer_value(json_object_get(data, "pass"));
	} else if (!strcmp(name, "MIGRATION")) {
		snprintf(vm->migration, sizeof(vm->migration), "%s", graph_text(data, "status"));
	}
}

int vm_connect(struct vm *vm, const char *path, struct bm_error *error)
{
	int r;

	*vm = (struct vm){0};
	r = bm_qmp_connect(path, &vm->qmp, error);
	if (r < 0)
		vm->qmp = NULL;
	else
		bm_qmp_set_events(vm->qmp, on_event, vm);
	return r;
}

void vm_close(struct vm *vm)
{
	bm_qmp_close(vm->qmp);
	vm->qmp = NULL;
}

char *vm_status(struct vm *vm, struct bm_error *error)
{
	json_t *result = NULL;
	char *status;

	if (bm_qmp_call(vm->qmp, "query-status", NULL, &result, error) < 0)
		return NULL;
	status = bm_need(strdup(graph_text(result, "status")));
	json_decref(result);
	return status;
}

char *vm_migration(struct vm *vm, json_t **info, struct bm_error *error)
{
	json_t *result = NULL;
	char *status;

	if (bm_qmp_call(vm->qmp, "query-migrate", NULL, &result, error) < 0)
		return NULL;
	status = bm_need(
		strdup(json_object_get(result, "status") ? graph_text(result, "status") : "none"));
	if (info)
		*info = result;
	else
		json_decref(result);
	return status;
}

int vm_call(struct vm *vm, const char *command, json_t *arguments, struct bm_error *error)
{
	return bm_qmp_call(vm->qmp, command, arguments, NULL, error);
}

int vm_capability(struct vm *vm, const char *name, bool on, struct bm_error *error)
{
	return vm_call(
		vm, "migrate-set-capabilities",
		json_pack("{s:[{s:s s:b}]}", "capabilities", "capability", name, "state", (int)on),
		error);
}

static int set_numbers(struct vm *vm, json_int_t downtime, json_int_t bandwidth,
		       struct bm_error *error)
{
	return vm_call(
		vm, "migrate-set-parameters",
		json_pack("{s:I s:I}", "downtime-limit", downtime, "max-bandwidth", bandwidth),
		error);
}

static int note_numbers(struct vm *vm, struct bm_error *error)
{
	json_t *now = NULL;
	int r = vm->downtime ? 0
			     : bm_qmp_call(vm->qmp, "query-migrate-parameters", NULL, &now, error);

	if (now) {
		vm->downtime = json_integer_value(json_object_get(now, "downtime-limit"));
		vm->bandwidth = json_integer_value(json_object_get(now, "max-bandwidth"));
	}
	json_decref(now);
	return r;
}

int vm_set_up_sender(struct vm *vm, bool throttle, struct bm_error *error)
{
	const struct {
		const char *name;
		bool on;
	} all[] = {{"events", true},
		   {"return-path", true},
		   {"pause-before-switchover", false},
		   {"multifd", false},
		   {"auto-converge", throttle}};
	int r = note_numbers(vm, error);

	for (size_t i = 0; !r && i < sizeof(all) / sizeof(all[0]); i++)
		r = vm_capability(vm, all[i].name, all[i].on, error);
	return r ? r : set_numbers(vm, 1, (json_int_t)1 << 40, error);
}

void vm_restore_sender(struct vm *vm)
{
	struct bm_error error;

	if (!vm->downtime)
		return;
	(void)vm_capability(vm, "return-path", false, &error);
	(void)vm_capability(vm, "auto-converge", false, &error);
	(void)set_numbers(vm, vm->downtime, vm->bandwidth, &error);
	vm->downtime = 0;
}

void vm_announce(struct vm *vm)
{
	struct bm_error error;

	(void)vm_call(
		vm, "announce-self",
		json_pack("{s:i s:i s:i s:i}", "initial", 50, "max", 550, "rounds", 5, "step", 100),
		&error);
}

/* The other ends of the machine's cards: "card: index=…" and below it " \\ net0: index=…". */
static int set_links_of(struct vm *vm, char *text, bool up, struct bm_error *error)
{
	char *rest = NULL;
	int r = 0;

	for (char *line = strtok_r(text, "\r\n", &rest); line && !r;
	     line = strtok_r(NULL, "\r\n", &rest)) {
		char *end = strstr(line, ": index=");

		if (strncmp(line, " \\ ", 3) != 0 || !end)
			continue;
		*end = '\0';
		r = vm_call(vm, "set_link", json_pack("{s:s s:b}", "name", line + 3, "up", (int)up),
			    error);
	}
	return r;
}

int vm_set_links(struct vm *vm, bool up, struct bm_error *error)
{
	bm_free char *text = NULL;
	json_t *result = NULL;
	int r = bm_qmp_call(vm->qmp, "human-monitor-command",
			    json_pack("{s:s}", "command-line", "info network"), &result, error);

	if (r < 0)
		return r;
	text = bm_need(strdup(json_is_string(result) ? json_string_value(result) : ""));
	json_decref(result);
	return set_links_of(vm, text, up, error);
}

void vm_go_on(struct vm *vm)
{
	uint64_t end = move_now() + GO_ON;
	struct bm_error error = {0};

	while (move_now() < end) {
		bm_free char *migration = vm_migration(vm, NULL, &error),
			     *status = vm_status(vm, &error);
		bool busy = migration &&
			    (!strcmp(migration, "active") || !strcmp(migration, "setup") ||
			     !strcmp(migration, "device") || !strcmp(migration, "cancelling"));

		if (!status || !migration)
			break;
		if (!busy && !strcmp(status, "postmigrate") &&
		    vm_call(vm, "cont", NULL, &error) < 0)
			bm_log(BM_LOG_ERROR, "the machine does not go on: %s", error.text);
		else if (!busy && strcmp(status, "postmigrate") && strcmp(status, "finish-migrate"))
			return;
		move_sleep(STEP);
	}
	if (error.code)
		bm_log(BM_LOG_ERROR, "the machine cannot be told to go on: %s", error.text);
}

/* Its disks */

/* The value of "socket=…" of nbd+unix:, or of "path": in a json: name; malloc()ed. */
static char *socket_of(const char *filename)
{
	const char *at = strstr(filename, "socket="), *colon;
	json_t *j = NULL;
	char *path = NULL;

	if (!strncmp(filename, "nbd+unix:", 9) && at)
		return bm_need(strdup(at + 7));
	colon = !strncmp(filename, "json:", 5) ? filename + 5 : NULL;
	j = colon ? json_loads(colon, 0, NULL) : NULL;
	while (j && json_object_get(j, "file")) {
		json_t *inner = json_incref(json_object_get(j, "file"));

		json_decref(j);
		j = inner;
	}
	if (!strcmp(graph_text(j, "driver"), "nbd")) {
		const char *said = graph_text(json_object_get(j, "server"), "path");

		if (!*said)
			said = graph_text(j, "server.path");
		path = *said ? bm_need(strdup(said)) : NULL;
	}
	json_decref(j);
	return path;
}

/* NAME, if that is one of our sockets, by whichever way it leads there. */
static char *disk_of(const char *socket, const char *run)
{
	bm_free char *disks = NULL, *real = NULL, *copy = bm_need(strdup(socket)), *there = NULL;
	char *slash = strrchr(copy, '/'), *name = slash ? slash + 1 : NULL;
	size_t n = name ? strlen(name) : 0;

	if (n <= 4 || strcmp(name + n - 4, ".nbd") != 0 || asprintf(&disks, "%s/disks", run) < 0)
		return NULL;
	*slash = '\0';
	real = realpath(copy, NULL);
	there = realpath(disks, NULL);
	if (!real || !there || strcmp(real, there) != 0)
		return NULL;
	name[n - 4] = '\0';
	return bm_disk_name_check(name, NULL) < 0 ? NULL : bm_need(strdup(name));
}

static int take_device(const json_t *device, const char *run, json_t *disks, json_t *media,
		       struct bm_error *error)
{
	const json_t *inserted = json_object_get(device, "inserted");
	const char *filename = graph_text(json_object_get(inserted, "image"), "filename"),
		   *shown = graph_text(device, "qdev");
	bm_free char *socket = NULL, *name = NULL;

	if (!inserted)
		return 0;
	if (!*shown)
		shown = graph_text(device, "device");
	socket = socket_of(filename);
	name = socket ? disk_of(socket, run) : NULL;
	if (!name && media_take(device, media))
		return 0;
	if (!name)
		return bm_fail(
			error, BM_E_UNSUPPORTED,
			"the machine's %s has %.200s, which is no disk of ours: it would not "
			"come along; \"blockmirror serve\" or \"adopt\" it, or eject it",
			shown, filename);
	for (size_t i = 0; i < json_array_size(disks); i++)
		if (!strcmp(graph_text(json_array_get(disks, i), "name"), name))
			return 0;
	json_array_append_new(disks, json_pack("{s:s s:s}", "name", name, "socket", socket));
	return 0;
}

int vm_find_disks(struct vm *vm, const char *run, json_t **disks, json_t **media,
		  struct bm_error *error)
{
	json_t *devices = NULL, *device;
	size_t i;
	int r = bm_qmp_call(vm->qmp, "query-block", NULL, &devices, error);

	if (r < 0)
		return r;
	*disks = json_array();
	*media = json_array();
	json_array_foreach(devices, i, device)
		if (!r)
			r = take_device(device, run, *disks, *media, error);
	json_decref(devices);
	if (!r && json_array_size(*disks) > MOVE_DISKS)
		r = bm_fail(error, BM_E_UNSUPPORTED, "the machine has %zu disks, and %d are moved",
			    json_array_size(*disks), MOVE_DISKS);
	if (r < 0) {
		json_decref(bm_steal(*disks));
		json_decref(bm_steal(*media));
	}
	return r;
}

json_t *vm_arguments(struct vm *vm)
{
	char path[64];
	bm_free char *text = bm_need(malloc(LARGEST));
	bm_close int fd = -1;
	ssize_t n = 0, got;
	json_t *list;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)bm_qmp_peer(vm->qmp).pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && (got = read(fd, text + n, (size_t)(LARGEST - n))) > 0)
		n += got;
	if (n <= 0)
		return NULL;
	list = json_array();
	for (char *at = text; at < text + n; at += strlen(at) + 1) {
		text[n - 1] = '\0';
		json_array_append_new(list, json_string(at));
	}
	return list;
}
