/* SPDX-License-Identifier: BSD-3-Clause */
/* adopt, hand-back, relocate --qmp */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/slip.h"

enum { OPT_QMP = 256, OPT_DRIVE, OPT_NAME };

struct asked {
	const struct cli *cli;
	const char *qmp, *drive, *name;
};

static int take(int option, const char *value, void *arg)
{
	struct asked *a = arg;

	*(option == OPT_QMP ? &a->qmp : option == OPT_DRIVE ? &a->drive : &a->name) = value;
	return 0;
}

/*
 * An interrupt is heard while a job is followed. Before and after, what is begun is a matter of
 * moments, and half of it is no good to anybody.
 */
static void hold_interrupt(bool hold)
{
	sigset_t interrupt;

	sigemptyset(&interrupt);
	sigaddset(&interrupt, SIGINT);
	sigprocmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &interrupt, NULL);
}

static bool is_gone(int r)
{
	return r == -ENOENT || r == -ECONNREFUSED;
}

/*
 * QEMU that does not answer may wait for a disk whose process has died: it is started again, and
 * QEMU asked once more.
 */
static int connect_qemu(struct slip *s, const char *qmp, struct bm_error *error)
{
	struct bm_error ignored;
	int r = bm_qmp_connect(qmp, &s->qmp, error);

	if (!r || !s->plan || is_gone(r))
		return s->plan && is_gone(r) ? 0 : r;
	if (cli_is_served(s->cli, s->name))
		return r;
	/* Who has the image is QEMU, then: its guest has left us, and it closes the connection. */
	if (slip_disk_ensure(s, &ignored) < 0 &&
	    (ignored.code != BM_E_LOCKED || slip_disk_ensure_beside(s, &ignored) < 0))
		return r;
	r = bm_qmp_connect(qmp, &s->qmp, error);
	return is_gone(r) ? 0 : r;
}

/*
 * Connects to QEMU, and completes or undoes what another command has left. Returns a place, or
 * -errno; SLIP_IN_QEMU also when there was nothing.
 */
static int begin(struct slip *s, const struct asked *a, bool by_name, char **path,
		 struct bm_error *error)
{
	bm_free char *qmp = NULL;
	int r;

	if (a->qmp) {
		qmp = realpath(a->qmp, NULL);
		if (!qmp)
			qmp = bm_uri_absolute(a->qmp);
		if (!qmp)
			return bm_fail_errno(error, errno, "%s", a->qmp);
	}
	r = slip_plan_find(s, by_name ? a->name : NULL, qmp, a->drive, error);
	if (r < 0 && (r != -ENOENT || by_name))
		return r;
	r = connect_qemu(s, qmp ? qmp : slip_text(s, "qmp"), error);
	if (r < 0)
		return r;
	return s->plan ? slip_settle(s, path, error) : SLIP_IN_QEMU;
}

/* A folder, or a path that may not exist yet: whether path is there, or is it. */
static bool is_at(const char *path, const char *target)
{
	bm_free char *real = realpath(target, NULL);
	const char *slash = strrchr(path, '/');
	struct stat st;

	if (!real)
		return !strcmp(path, target);
	if (stat(real, &st) < 0 || !S_ISDIR(st.st_mode))
		return !strcmp(path, real);
	return slash && strlen(real) == (size_t)(slash - path) &&
	       !strncmp(path, real, (size_t)(slash - path));
}

static int check_target(const struct bm_drive *drive, const char *target, struct bm_error *error)
{
	bm_free char *inside = NULL;
	struct stat st;

	if (is_at(drive->path, target))
		return bm_fail(error, BM_E_SAME, "%s is the image that the disk is on, or is in %s",
			       drive->path, target);
	/* Of a path, its folder matters. */
	if (!stat(target, &st) && S_ISDIR(st.st_mode) && asprintf(&inside, "%s/.", target) < 0)
		return bm_fail_errno(error, ENOMEM, "%s", target);
	return bm_drive_reaches(drive, inside ? inside : target, error);
}

/* What begin() has found in QEMU; target (NULL: none) is where it will go. */
static int adopt(struct slip *s, const struct asked *a, const char *target, struct bm_error *error)
{
	bm_free char *qmp = realpath(a->qmp, NULL);
	struct bm_drive drive = {0};
	int r;

	if (s->plan) { /* it was settled: anew */
		struct bm_qmp *kept = s->qmp;

		s->qmp = NULL;
		slip_close(s);
		*s = (struct slip){.cli = a->cli, .qmp = kept, .whole = s->whole};
	}
	r = bm_drive_find(s->qmp, a->drive, &drive, error);
	if (!r && target)
		r = check_target(&drive, target, error);
	if (!r && a->name && !(s->name = strdup(a->name)))
		r = bm_fail_errno(error, ENOMEM, "%s", a->name);
	if (!r)
		r = slip_adopt(s, qmp ? qmp : a->qmp, a->drive, &drive, error);
	bm_drive_clear(&drive);
	return r;
}

static int machine_ended(const char *qmp, const char *path, struct bm_error *error)
{
	return bm_fail(error, BM_E_NOT_FOUND, "%s: the machine has ended; its disk is on %s", qmp,
		       path ? path : "no file");
}

static int check_asked(const struct asked *a)
{
	struct bm_error error;

	if (!a->qmp || !a->drive)
		return cli_usage(a->cli, "--qmp and --drive are wanted");
	if (a->name && bm_disk_name_check(a->name, &error) < 0)
		return cli_fail(a->cli, &error);
	return 0;
}

static const struct option own[] = {{"qmp", required_argument, NULL, OPT_QMP},
				    {"drive", required_argument, NULL, OPT_DRIVE},
				    {"name", required_argument, NULL, OPT_NAME},
				    {0}};

int cmd_adopt(struct cli *cli, int argc, char **argv)
{
	struct asked a = {.cli = cli};
	struct slip s = {.cli = cli};
	struct bm_error error;
	bm_free char *path = NULL;
	json_t *disk = NULL;
	int r = cli_options(cli, argc, argv, own, take, &a);

	if (!r)
		r = cli_arguments(cli, argc, 0, 0);
	if (!r)
		r = check_asked(&a);
	if (r)
		return r < 0 ? 0 : r;
	hold_interrupt(true);
	r = begin(&s, &a, false, &path, &error);
	if (r == SLIP_IN_QEMU)
		r = adopt(&s, &a, NULL, &error);
	else if (r == SLIP_NOWHERE)
		r = machine_ended(a.qmp, path, &error);
	if (r < 0 || (r = bm_client_call(s.disk, "show", NULL, &disk, &error)) < 0) {
		r = cli_fail(cli, &error);
	} else if (cli->json) {
		cli_print_json(disk);
	} else {
		printf("disk %s is under %s now; 'blockmirror hand-back %s' gives its image back\n",
		       s.name, a.drive, s.name);
		json_decref(disk);
	}
	slip_close(&s);
	return r;
}

static void say_back(const struct cli *cli, int place, const char *path)
{
	if (cli->json)
		cli_print_json(json_pack("{s:i s:b s:s*}", "v", 1, "running", place != SLIP_NOWHERE,
					 "path", path));
	else if (place == SLIP_NOWHERE)
		printf("the machine has ended, or has the disk no more; the disk is on %s\n", path);
	else
		printf("QEMU has %s\n", path);
}

int cmd_hand_back(struct cli *cli, int argc, char **argv)
{
	struct asked a = {.cli = cli};
	struct slip s = {.cli = cli};
	bm_free char *path = NULL;
	struct bm_error error;
	int r = cli_options(cli, argc, argv, own, take, &a);

	if (!r)
		r = cli_arguments(cli, argc, a.qmp ? 0 : 1, a.qmp ? 0 : 1);
	if (!r && a.qmp)
		r = check_asked(&a);
	if (r)
		return r < 0 ? 0 : r;
	if (!a.qmp)
		a.name = argv[optind];
	hold_interrupt(true);
	r = begin(&s, &a, !a.qmp, &path, &error);
	if (r >= 0 && !s.plan)
		r = bm_fail(&error, BM_E_NOT_FOUND,
			    "%s of %s is on no disk of ours: there is nothing to hand back",
			    a.drive, a.qmp);
	if (r == SLIP_ON_DISK && slip_hand_back(&s, &path, &error) < 0)
		r = -1;
	if (r < 0)
		r = cli_fail(cli, &error);
	else
		say_back(cli, r, path ? path : "no file"), r = 0;
	slip_close(&s);
	return r;
}

/* The whole way */

static bool qemu_ended(void *arg)
{
	struct slip *s = arg;
	struct bm_error ignored;

	return slip_qmp_again(s, &ignored) == -ENOENT;
}

/* The new process does not know that the job was told to switch over. */
static int revive(void *arg, struct bm_client **client)
{
	struct slip *s = arg;
	struct bm_error error;
	int r;

	s->disk = *client; /* which is that of the slip, lent */
	r = slip_disk_ensure(s, &error);
	*client = s->disk;
	if (!r)
		bm_client_call(s->disk, "switch", NULL, NULL, NULL);
	return r;
}

/*
 * One that runs, since another command has begun it, or a new one. It is in sync and waits until
 * QEMU is known to be able to open its target. -EALREADY: the disk is there.
 */
static int find_job(struct slip *s, const char *target, json_t *params, json_t **job,
		    struct bm_error *error)
{
	json_t *disk = NULL, *running;
	const char *state, *path;
	int r = bm_client_call(s->disk, "show", NULL, &disk, error);

	if (r < 0)
		return r;
	running = json_object_get(disk, "job");
	state = cli_text(running, "state");
	path = bm_uri_path(cli_text(disk, "uri"));
	if (!strcmp(state, "running") || !strcmp(state, "paused")) {
		path = bm_uri_path(cli_text(running, "target"));
		*job = json_incref(running);
		if (!path || !is_at(path, target))
			r = bm_fail(error, BM_E_BUSY, "disk %s is on its way to %s already (%s)",
				    s->name, cli_text(running, "target"), cli_text(running, "id"));
	} else if (path && is_at(path, target)) {
		r = -EALREADY;
	} else {
		r = bm_client_call(s->disk, "relocate", json_incref(params), job, error);
	}
	json_decref(disk);
	return r;
}

static int start_job(struct slip *s, const char *target, json_t *params, json_t **job,
		     struct bm_error *error)
{
	const char *path;
	int r;

	json_object_set_new(params, "manual", json_true());
	r = find_job(s, target, params, job, error);
	if (r < 0)
		return r;
	if (s->cli->witness)
		s->cli->witness->began(s->cli->witness->arg, s->name, *job);
	path = bm_uri_path(cli_text(*job, "target"));
	r = path ? slip_probe(s, path, error)
		 : bm_fail(error, BM_E_UNSUPPORTED,
			   "a file or a block device is wanted: QEMU gets it back");
	if (!r) {
		r = bm_client_call(s->disk, "switch", NULL, NULL, error);
		/*
		 * Its process has died: there is time for that, and another one. Or the job has
		 * ended: who began it, and died, had told it to switch over. How, follow() tells.
		 */
		if (r == -ECONNRESET || (r < 0 && error->code == BM_E_NOT_FOUND))
			r = 0;
	}
	if (r < 0)
		bm_client_call(s->disk, "job.cancel", NULL, NULL, NULL);
	return r;
}

/* The disk is at its target. */
static void moved(const struct slip *s)
{
	if (s->cli->witness)
		s->cli->witness->moved(s->cli->witness->arg);
}

/* QEMU gets it back, or has ended. */
static int end(struct slip *s, char **path, struct bm_error *error)
{
	int r = slip_qmp_again(s, error);

	if (!r)
		return slip_hand_back(s, path, error);
	if (r != -ENOENT)
		return r;
	r = slip_settle(s, path, error);
	return r < 0 ? r : machine_ended(slip_text(s, "qmp"), *path, error);
}

/* The guest may be on our disk still. */
static int fail_to_end(struct cli *cli, const struct slip *s, const struct bm_error *error)
{
	bm_free char *hint = cli_hint(cli);
	int r = cli_fail(cli, error);

	if (s->qmp && !cli->json)
		fprintf(stderr,
			"blockmirror: the guest goes on, on disk %s of ours; '%s hand-back %s' "
			"gives it back to QEMU\n",
			s->name, hint, s->name);
	return r;
}

/* Follows the job to its end, whatever comes; then hands back. Returns an exit code. */
static int follow(struct cli *cli, struct slip *s, const char *id)
{
	const struct cli_care care = {.stop = qemu_ended, .revive = revive, .arg = s};
	bm_free char *path = NULL;
	struct bm_error error;
	json_t *job = NULL;
	int r, ended;

	cli->care = &care;
	cli_catch_interrupt();
	hold_interrupt(false);
	r = cli_follow(cli, &s->disk, id, false, false, &job);
	hold_interrupt(true);
	cli->care = NULL;
	/* A disk that is ours for its move only does not stay between. */
	if (!r && cli_held(job))
		bm_client_call(s->disk, "job.cancel", NULL, NULL, NULL);
	if (!r && !strcmp(cli_text(job, "state"), "done"))
		moved(s);
	ended = end(s, &path, &error);
	if (!r && job)
		r = cli_job_ended(cli, job);
	if (ended < 0)
		r = fail_to_end(cli, s, &error);
	json_decref(job);
	return r;
}

/* The disk is ours. Returns an exit code. */
static int move(struct cli *cli, struct slip *s, const char *target, json_t *params)
{
	bm_free char *id = NULL, *path = NULL;
	struct bm_error error, other;
	json_t *job = NULL;
	int r = start_job(s, target, params, &job, &error);

	if (!r) {
		id = strdup(cli_text(job, "id"));
		json_decref(job);
		return follow(cli, s, id);
	}
	json_decref(job);
	if (r == -EALREADY)
		moved(s);
	if (end(s, &path, &other) < 0) {
		if (r != -EALREADY)
			cli_fail(cli, &error);
		return fail_to_end(cli, s, &other);
	}
	if (r != -EALREADY)
		return cli_fail(cli, &error);
	say_back(cli, SLIP_IN_QEMU, path);
	return 0;
}

bool cli_slip_is_left(const struct cli *cli, const char *qmp, const char *drive)
{
	struct slip s = {.cli = cli};
	bm_free char *there = realpath(qmp, NULL);
	struct bm_error error = {0};
	int r = slip_plan_find(&s, NULL, there ? there : qmp, drive, &error);

	slip_close(&s);
	return r != -ENOENT;
}

int cli_relocate_slipped(struct cli *cli, const char *qmp, const char *drive, const char *target,
			 json_t *params)
{
	const struct asked a = {.cli = cli, .qmp = qmp, .drive = drive};
	struct slip s = {.cli = cli, .whole = true};
	bm_free char *path = NULL;
	bm_free char *there = bm_uri_path(target) ? bm_uri_absolute(bm_uri_path(target)) : NULL;
	struct bm_error error;
	int r = check_asked(&a);

	if (r)
		return r;
	hold_interrupt(true);
	r = there ? begin(&s, &a, false, &path, &error)
		  : bm_fail(&error, BM_E_UNSUPPORTED,
			    "%s: a file or a block device is wanted: QEMU gets it back", target);
	if (r == SLIP_NOWHERE)
		r = machine_ended(a.qmp, path, &error);
	if (r == SLIP_IN_QEMU && path && is_at(path, there)) { /* another command had all done */
		say_back(cli, r, path);
		slip_close(&s);
		return 0;
	}
	if (r == SLIP_IN_QEMU)
		r = adopt(&s, &a, there, &error);
	r = r < 0 ? cli_fail(cli, &error) : move(cli, &s, there, params);
	slip_close(&s);
	return r;
}
