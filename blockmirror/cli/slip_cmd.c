/* SPDX-License-Identifier: BSD-3-Clause */
/* adopt, hand-back, relocate --qmp */
#include <errno.h>
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
	if (cli_is_served(s->cli, s->name) || slip_disk_ensure(s, &ignored) < 0)
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

/* Adopts unless that was done before; target (NULL: none) is where it will go. */
static int adopt(struct slip *s, const struct asked *a, const char *target, struct bm_error *error)
{
	bm_free char *qmp = NULL, *path = NULL;
	struct bm_drive drive = {0};
	int r = begin(s, a, false, &path, error);

	if (r < 0 || r == SLIP_ON_DISK)
		return r < 0 ? r : 0;
	if (s->plan) { /* it was settled: anew */
		struct bm_qmp *kept = s->qmp;

		s->qmp = NULL;
		slip_close(s);
		*s = (struct slip){.cli = a->cli, .qmp = kept};
	}
	if (!s->qmp)
		return bm_fail(error, BM_E_NOT_FOUND, "%s: QEMU has ended; its disk is on %s",
			       a->qmp, path ? path : "no file");
	r = bm_drive_find(s->qmp, a->drive, &drive, error);
	if (!r && target)
		r = bm_drive_reaches(&drive, target, error);
	if (!r && a->name && !(s->name = strdup(a->name)))
		r = bm_fail_errno(error, ENOMEM, "%s", a->name);
	qmp = realpath(a->qmp, NULL);
	if (!r)
		r = slip_adopt(s, qmp ? qmp : a->qmp, a->drive, &drive, error);
	bm_drive_clear(&drive);
	return r;
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
	json_t *disk = NULL;
	int r = cli_options(cli, argc, argv, own, take, &a);

	if (!r)
		r = cli_arguments(cli, argc, 0, 0);
	if (!r)
		r = check_asked(&a);
	if (r)
		return r < 0 ? 0 : r;
	if (adopt(&s, &a, NULL, &error) < 0 ||
	    bm_client_call(s.disk, "show", NULL, &disk, &error) < 0) {
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

	return bm_qmp_ended(s->qmp);
}

static int revive(void *arg, struct bm_client **client)
{
	struct slip *s = arg;
	int r;

	s->disk = *client; /* which is that of the slip, lent */
	r = slip_disk_ensure(s, NULL);
	*client = s->disk;
	return r;
}

/* The job that moves it, in sync and waiting until QEMU is known to be able to open its target. */
static int start_job(struct slip *s, json_t *params, json_t **job, struct bm_error *error)
{
	const char *target;
	int r;

	json_object_set_new(params, "manual", json_true());
	r = bm_client_call(s->disk, "relocate", params, job, error);
	if (r < 0)
		return r;
	target = bm_uri_path(cli_text(*job, "target"));
	r = target ? slip_probe(s, target, error)
		   : bm_fail(error, BM_E_UNSUPPORTED,
			     "a file or a block device is wanted: QEMU gets it back");
	if (!r)
		r = bm_client_call(s->disk, "switch", NULL, NULL, error);
	if (r < 0)
		bm_client_call(s->disk, "job.cancel", NULL, NULL, NULL);
	return r;
}

/* Follows the job to its end, whatever comes; then hands back. Returns an exit code. */
static int follow(struct cli *cli, struct slip *s, const char *id)
{
	const struct cli_care care = {.stop = qemu_ended, .revive = revive, .arg = s};
	bm_free char *path = NULL;
	struct bm_error error;
	json_t *job = NULL;
	int r, ended = 0;

	cli->care = &care;
	r = cli_follow(cli, &s->disk, id, false, false, &job);
	cli->care = NULL;
	if (bm_qmp_ended(s->qmp)) {
		bm_qmp_close(s->qmp);
		s->qmp = NULL;
		ended = slip_settle(s, &path, &error);
		if (ended >= 0 && !r)
			ended = bm_fail(&error, BM_E_INTERRUPTED, "the machine has ended");
		if (ended >= 0)
			ended = bm_fail(&error, BM_E_INTERRUPTED,
					"the machine has ended; the disk is on %s", path);
	} else {
		ended = slip_hand_back(s, &path, &error);
	}
	if (!r && job)
		r = cli_job_ended(cli, job);
	if (ended < 0)
		r = cli_fail(cli, &error);
	json_decref(job);
	return r;
}

/* In a folder the image keeps its name. */
static char *target_path(const char *target)
{
	return bm_uri_path(target) ? bm_uri_absolute(bm_uri_path(target)) : NULL;
}

int cli_relocate_slipped(struct cli *cli, const char *qmp, const char *drive, const char *target,
			 json_t *params)
{
	const struct asked a = {.cli = cli, .qmp = qmp, .drive = drive};
	struct slip s = {.cli = cli};
	bm_free char *path = target_path(target), *id = NULL, *back = NULL, *inside = NULL;
	struct bm_error error, other;
	json_t *job = NULL;
	struct stat st;
	int r = check_asked(&a);

	if (r) {
		json_decref(params);
		return r;
	}
	/* Only its folder matters there. */
	if (path && !stat(path, &st) && S_ISDIR(st.st_mode) && asprintf(&inside, "%s/.", path) < 0)
		inside = NULL;
	if (!path)
		r = bm_fail(&error, BM_E_UNSUPPORTED,
			    "%s: a file or a block device is wanted: QEMU gets it back", target);
	if (!r)
		r = adopt(&s, &a, inside ? inside : path, &error);
	if (r < 0) {
		json_decref(params);
		slip_close(&s);
		return cli_fail(cli, &error);
	}
	r = start_job(&s, params, &job, &error);
	if (r < 0) {
		if (slip_hand_back(&s, &back, &other) < 0)
			cli_fail(cli, &other);
		r = cli_fail(cli, &error);
	} else {
		id = strdup(cli_text(job, "id"));
		r = follow(cli, &s, id);
	}
	json_decref(job);
	slip_close(&s);
	return r;
}
