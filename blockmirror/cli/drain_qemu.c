/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images that running QEMUs have open, of machines that blockmirrord knows: each is moved by a
 * process of ours that does what relocate --qmp does (slip_run.h), and QEMU has it before and
 * after. A drain that was killed leaves that process at work, or, where it was killed, too, the
 * slip's plan (docs/slip.md); both are found here again.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/drain.h"
#include "blockmirror/cli/slip.h"
#include "blockmirror/cli/slip_run.h"
#include "blockmirror/machine/inventory.h"

enum { STEP_MS = 100 };

/* Asking */

static bool is_below(const struct drain *d, const char *path)
{
	size_t n = strlen(d->from.path);

	return !strncmp(path, d->from.path, n) && path[n] == '/';
}

static void put_failure(json_t *entry, const struct bm_error *error)
{
	json_object_set_new(
		entry, "error",
		json_pack("{s:s s:s}", "code", bm_code_name(error->code), "message", error->text));
}

/* Whether it can be slipped out of, and what a drain has against it beside. */
static void judge(struct bm_qmp *qmp, json_t *entry)
{
	const char *device = cli_text(entry, "device");
	struct bm_drive drive = {0};
	struct bm_error error = {0};

	if (!*device)
		device = cli_text(entry, "node");
	json_object_set_new(entry, "drive", json_string(device));
	if (json_is_true(json_object_get(entry, "temporary")))
		bm_fail(&error, BM_E_UNSUPPORTED,
			"%s does not keep what its guest writes (snapshot=on): end that machine, "
			"and it moves",
			device);
	else if (*cli_text(entry, "below"))
		bm_fail(&error, BM_E_LINKED, "node %s of the machine shows through it",
			cli_text(entry, "below"));
	else if (json_is_true(json_object_get(entry, "unsafe")))
		bm_fail(&error, BM_E_UNSUPPORTED,
			"%s keeps in a cache what its guest has flushed (cache=unsafe): that it "
			"is on a target could not be known. Start it with another cache mode",
			device);
	else if (!bm_drive_find(qmp, device, &drive, &error)) {
		json_object_set_new(entry, "size", json_integer((json_int_t)drive.size));
		json_object_set_new(entry, "raw",
				    json_boolean(!strcmp(drive.format_driver, "raw")));
		if (drive.backing)
			bm_fail(&error, BM_E_LINKED,
				"%s shows through it, and it is in use: once the machine is off, "
				"--flatten makes it whole",
				drive.backing);
	}
	bm_drive_clear(&drive);
	if (error.code)
		put_failure(entry, &error);
}

static int ask(const struct drain *d, json_t *machine, struct bm_error *error)
{
	struct bm_qmp *qmp = NULL;
	json_t *list = NULL, *mine = json_array(), *entry;
	size_t i;
	int r = bm_qmp_connect(cli_text(machine, "qmp"), &qmp, error);

	if (!r)
		r = bm_inventory(qmp, &list, error);
	if (!r)
		json_object_set_new(machine, "pid", json_integer(bm_qmp_peer(qmp).pid));
	json_array_foreach(list, i, entry) {
		const char *path = cli_text(entry, "path");
		struct stat st;

		if (!is_below(d, path) || stat(path, &st) < 0)
			continue;
		judge(qmp, entry);
		json_object_set_new(entry, "dev", json_integer((json_int_t)st.st_dev));
		json_object_set_new(entry, "ino", json_integer((json_int_t)st.st_ino));
		json_array_append(mine, entry);
	}
	json_object_set_new(machine, "images", mine);
	json_decref(list);
	bm_qmp_close(qmp);
	return r;
}

/* Whom another drain has left at work has that QEMU's socket for as long. */
static void wait_for_others(const struct drain *d, const char *qmp)
{
	json_t *plan;
	size_t i;

	json_array_foreach(d->plans, i, plan) {
		bool same = !strcmp(cli_text(plan, "qmp"), qmp), busy = same && !d->dry_run;

		while (busy) {
			struct slip s = {.cli = d->cli};
			struct bm_error error;

			busy = slip_plan_find(&s, cli_text(plan, "name"), NULL, NULL, &error) ==
			       -EBUSY;
			slip_close(&s);
			if (busy)
				poll(NULL, 0, STEP_MS);
		}
	}
}

void drain_qemu_ask(struct drain *d)
{
	json_t *result = cli_daemon_ask(d->cli, "machine.list", NULL), *machine;
	size_t i;

	d->plans = slip_plans(d->cli);
	d->machines = json_incref(json_object_get(result, "machines"));
	json_decref(result);
	json_array_foreach(d->machines, i, machine) {
		bm_free char *real = realpath(cli_text(machine, "qmp"), NULL);
		struct bm_error error;

		if (*cli_text(machine, "away"))
			continue;
		wait_for_others(d, real ? real : cli_text(machine, "qmp"));
		if (ask(d, machine, &error) < 0 && error.code != BM_E_NOT_FOUND)
			put_failure(machine, &error);
	}
	/* What they did while we waited. */
	json_decref(d->plans);
	d->plans = slip_plans(d->cli);
}

const char *drain_qemu_deaf(const struct drain *d)
{
	json_t *machine;
	size_t i;

	json_array_foreach(d->machines, i, machine) {
		const char *text = cli_text(json_object_get(machine, "error"), "message");

		if (*text)
			return text;
	}
	return NULL;
}

/* Finding */

static void take(struct drain_image *image, const char *qmp, const char *drive)
{
	image->qmp = bm_need(strdup(qmp));
	image->drive = bm_need(strdup(drive));
}

/* It is on its way: what that was begun with is what goes on. */
static void take_plan(struct drain_image *image, const json_t *plan)
{
	take(image, cli_text(plan, "qmp"), cli_text(plan, "drive"));
	image->slipped = bm_need(strdup(cli_text(plan, "name")));
	snprintf(image->note, sizeof(image->note), "its move was begun, and goes on");
}

static void take_entry(struct drain_image *image, const json_t *machine, const json_t *entry)
{
	const json_t *failure = json_object_get(entry, "error");
	uint64_t size = cli_number(entry, "size");

	take(image, cli_text(machine, "qmp"), cli_text(entry, "drive"));
	image->owner = (pid_t)cli_number(machine, "pid");
	snprintf(image->note, sizeof(image->note), "in machine %.80s", cli_text(machine, "name"));
	if (failure) {
		image->why.code = bm_code_by_name(cli_text(failure, "code"));
		snprintf(image->why.text, sizeof(image->why.text), "%s",
			 cli_text(failure, "message"));
	} else if (json_is_true(json_object_get(entry, "raw")) && size > image->size) {
		bm_fail(&image->why, BM_E_SIZE,
			"its machine has %llu bytes of it, and the file has %llu",
			(unsigned long long)size, (unsigned long long)image->size);
	}
}

static const json_t *find_plan(const struct drain *d, const char *key, const char *path)
{
	json_t *plan;
	size_t i;

	json_array_foreach(d->plans, i, plan)
		if (!strcmp(cli_text(plan, key), path))
			return plan;
	return NULL;
}

bool drain_qemu_find(struct drain *d, struct drain_image *image)
{
	const json_t *plan = find_plan(d, "now", image->path);
	json_t *machine, *entry;
	size_t i, k;

	if (plan) {
		take_plan(image, plan);
		return true;
	}
	json_array_foreach(d->machines, i, machine)
		json_array_foreach(json_object_get(machine, "images"), k, entry)
			if (cli_number(entry, "dev") == image->dev &&
			    cli_number(entry, "ino") == image->ino) {
				take_entry(image, machine, entry);
				return true;
			}
	return false;
}

static struct drain_image *find_image(struct drain *d, const char *path)
{
	for (size_t i = 0; i < d->n; i++)
		if (!strcmp(d->image[i].path, path))
			return &d->image[i];
	return NULL;
}

void drain_qemu_left(struct drain *d, struct drain_image *(*add)(struct drain *, const char *))
{
	json_t *plan;
	size_t i;

	json_array_foreach(d->plans, i, plan) {
		const char *path = cli_text(plan, "path"), *now = cli_text(plan, "now");
		struct drain_image *image;

		if (!is_below(d, path) || !*now || is_below(d, now))
			continue;
		image = find_image(d, path);
		if (!image)
			image = add(d, path);
		image->why = (struct bm_error){0};
		image->need = 0;
		take_plan(image, plan);
		image->target = bm_need(strdup(now));
		snprintf(image->note, sizeof(image->note), "has moved; its machine gets it back");
	}
}

/* Moving */

/* Where a job that runs already brings it to. */
static char *target_of_job(const struct drain *d, const struct drain_image *image)
{
	struct bm_client *client = NULL;
	json_t *job = NULL;
	char *target = NULL;

	if (image->slipped && !cli_connect(d->cli, image->slipped, &client, NULL) &&
	    !bm_client_call(client, "job.show", NULL, &job, NULL) &&
	    !strcmp(cli_text(job, "state"), "running") && bm_uri_path(cli_text(job, "target")))
		target = strdup(bm_uri_path(cli_text(job, "target")));
	bm_client_close(client);
	json_decref(job);
	return target;
}

int drain_qemu_begin(struct drain *d, struct drain_image *image, json_t *params)
{
	bm_free char *there = target_of_job(d, image);
	int r = slip_run(d->cli, image->qmp, image->drive, there ? there : image->target, params,
			 &image->words, &image->why);

	if (r < 0)
		return r;
	image->runner = r;
	image->full = false;
	return 0;
}

/* As soon as the runner's disk is known it is asked how far it is. */
static void look_at_job(struct drain *d, struct drain_image *image)
{
	struct bm_error ignored;
	json_t *said = NULL, *job = NULL;

	if (!image->client) {
		slip_words(image->words, &said, &ignored);
		if (said && *cli_text(said, "disk") &&
		    !cli_connect(d->cli, cli_text(said, "disk"), &image->client, NULL)) {
			free(image->slipped);
			image->slipped = strdup(cli_text(said, "disk"));
			image->number = (int)cli_number(said, "number");
		}
		json_decref(said);
	}
	if (!image->client)
		return;
	if (bm_client_call(image->client, "job.show", json_pack("{s:i}", "number", image->number),
			   &job, NULL) < 0) {
		/* Its process has died, or done its work. */
		bm_client_close(bm_steal(image->client));
		return;
	}
	json_decref(image->job);
	image->job = job;
}

static void take_back_full(struct drain_image *image)
{
	const json_t *p = json_object_get(image->job, "progress");

	if (image->full || !image->client || strcmp(cli_text(p, "target"), "target-full") != 0)
		return;
	image->full = true;
	bm_client_call(image->client, "job.cancel", json_pack("{s:i}", "number", image->number),
		       NULL, NULL);
}

static void conclude(struct drain *d, size_t which, int status)
{
	struct drain_image *image = &d->image[which];
	struct bm_error said = {.code = BM_E_INTERRUPTED};
	json_t *job = NULL;

	snprintf(said.text, sizeof(said.text), "what moved it has ended: run this again");
	slip_words(image->words, &job, &said);
	if (!strcmp(cli_text(job, "state"), "cancelled"))
		bm_fail(&said, BM_E_CANCELLED, "its move was cancelled");
	json_decref(job);
	image->moved = WIFEXITED(status) && !WEXITSTATUS(status) && !image->full;
	if (image->full)
		bm_fail(&image->why, BM_E_ENOSPC, "%s has become full",
			d->to[d->plan.items[which].store].path);
	else if (!image->moved)
		image->why = said;
	if (!image->moved && cli_slip_is_left(d->cli, image->qmp, image->drive)) {
		size_t n = strlen(image->why.text);

		snprintf(image->why.text + n, sizeof(image->why.text) - n,
			 "; its guest is on a disk of ours: run this again, or \"blockmirror "
			 "hand-back %s\"",
			 image->slipped ? image->slipped : "");
		image->full = false;
	}
}

bool drain_qemu_look(struct drain *d, size_t which)
{
	struct drain_image *image = &d->image[which];
	int status;

	if (waitpid(image->runner, &status, WNOHANG) != image->runner) {
		look_at_job(d, image);
		take_back_full(image);
		return true;
	}
	image->runner = 0;
	conclude(d, which, status);
	close(image->words);
	bm_client_close(bm_steal(image->client));
	return false;
}
