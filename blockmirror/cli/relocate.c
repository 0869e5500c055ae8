/* SPDX-License-Identifier: BSD-3-Clause */
/* relocate, switch, undo, release, copy */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"

enum {
	OPT_RATE = 256,
	OPT_LATENCY,
	OPT_SWITCH,
	OPT_OVERWRITE,
	OPT_DELETE,
	OPT_DETACH,
	OPT_VERIFY,
	OPT_REPAIR,
	OPT_WINDOW,
	OPT_DEADLINE,
	OPT_LOSS,
	OPT_SOURCE,
	OPT_THERE,
	OPT_QMP,
	OPT_DRIVE,
	OPT_FLATTEN
};

struct request {
	const struct cli *cli;
	json_t *params;
	bool detach, manual;
	const char *qmp, *drive; /* of a running QEMU */
	bool serve_there;        /* and then the other host serves it */
	bool armed;              /* or may do so later */
};

static void set(struct request *q, const char *key, json_t *value)
{
	json_object_set_new(q->params, key, value);
}

static int take(int option, const char *value, void *arg)
{
	struct request *q = arg;
	uint64_t bytes = 0, ns = 0;
	json_t *given = NULL;
	int r = 0;

	switch (option) {
	case OPT_RATE:
		r = cli_size(q->cli, "--rate", value, &bytes);
		set(q, "rate", json_integer((json_int_t)bytes));
		break;
	case OPT_LATENCY:
		r = cli_latency(q->cli, value, &given);
		if (!r)
			set(q, "guest_latency", given);
		break;
	case OPT_DEADLINE:
		r = cli_deadline(q->cli, value, &given);
		if (!r)
			set(q, "target_deadline", given);
		break;
	case OPT_LOSS:
		r = cli_target_loss(q->cli, value, &given);
		if (!r)
			set(q, "on_target_loss", given);
		break;
	case OPT_SWITCH:
		q->manual = !strcmp(value, "manual");
		if (!q->manual && strcmp(value, "auto"))
			r = cli_usage(q->cli, "--switch %s: auto or manual is wanted", value);
		set(q, "manual", json_boolean(q->manual));
		break;
	case OPT_OVERWRITE:
		set(q, "overwrite", json_true());
		break;
	case OPT_FLATTEN:
		set(q, "flatten", json_true());
		break;
	case OPT_DELETE:
		set(q, "delete_source", json_true());
		break;
	case OPT_DETACH:
		q->detach = true;
		break;
	case OPT_QMP:
		q->qmp = value;
		break;
	case OPT_DRIVE:
		q->drive = value;
		break;
	case OPT_THERE:
		q->serve_there = true;
		break;
	case OPT_VERIFY:
		set(q, "verify", json_true());
		break;
	case OPT_WINDOW:
		if (bm_parse_duration(value, &ns) < 0 || !ns)
			r = cli_usage(q->cli, "--undo-window %s: a time like 10m is wanted", value);
		set(q, "undo_window", json_integer((json_int_t)ns));
		break;
	case OPT_SOURCE:
		if (strcmp(value, "stop") != 0 && strcmp(value, "skip") != 0)
			r = cli_usage(q->cli, "--on-source-error %s: stop or skip is wanted",
				      value);
		set(q, "on_source_error", json_string(value));
		break;
	case OPT_REPAIR:
		set(q, "verify", json_true());
		set(q, "accept_repair", json_true());
		break;
	}
	return r;
}

static int finish(const struct request *q, const char *id, const json_t *job)
{
	const struct cli *cli = q->cli;
	bm_free char *hint = cli_hint(cli);

	if (strcmp(cli_text(job, "phase"), "in-sync") != 0 || cli_held(job))
		return cli_job_ended(cli, job);
	if (cli->json)
		cli_print_json(json_incref((json_t *)job));
	else if (!q->armed)
		printf("%s: in sync; '%s switch %.*s' switches over\n", id, hint,
		       (int)(strrchr(id, '.') - id), id);
	return 0;
}

/* Calls method, then follows the job that it began; takes q->params over. */
static int begin(struct request *q, struct bm_client **client, const char *method, const char *name)
{
	const struct cli *cli = q->cli;
	bool one_off = !name;
	bm_free char *id = NULL;
	json_t *job = NULL;
	int r = cli_begin(cli, *client, method, bm_steal(q->params), name, &job);

	if (r)
		return r;
	id = strdup(cli_text(job, "id"));
	if (q->detach) {
		if (cli->json)
			cli_print_json(json_incref(job));
		else
			puts(id);
	}
	json_decref(job);
	if (q->detach)
		return 0;
	job = NULL;
	r = cli_follow(cli, client, id, q->manual, one_off, &job);
	if (!r)
		r = finish(q, id, job);
	json_decref(job);
	return r;
}

/* A path is meant from here, not from where the disk process is. Returns 0 or an exit code. */
static int set_path(struct request *q, const char *key, const char *text)
{
	bm_free char *uri = bm_uri_absolute(text);
	json_t *value = json_string(uri ? uri : text);

	if (!value)
		return cli_usage(q->cli, "%s: the name is not UTF-8", text);
	set(q, key, value);
	return 0;
}

int cli_relocate(const struct cli *cli, const char *name, json_t *params)
{
	struct request q = {.cli = cli,
			    .params = params,
			    .manual = json_is_true(json_object_get(params, "manual")),
			    .armed = true};
	struct bm_client *client = NULL;
	struct bm_error error;
	int r = cli_connect(cli, name, &client, &error) < 0 ? cli_fail(cli, &error)
							    : begin(&q, &client, "relocate", name);

	bm_client_close(client);
	json_decref(q.params);
	return r;
}

static int check_there(const struct request *q, const char *target)
{
	if (q->serve_there && (q->detach || q->manual || strncmp(target, "bm:", 3) != 0))
		return cli_usage(q->cli, "--serve-there goes with bm://HOST/PATH, and without "
					 "--detach and --switch manual");
	return 0;
}

/* What it does with a disk that stays ours has no sense there. */
static int relocate_slipped(struct cli *cli, struct request *q, int argc, char **argv)
{
	int r = cli_arguments(cli, argc, 1, 1);

	if (!r && (q->detach || q->serve_there || json_object_get(q->params, "manual") ||
		   json_object_get(q->params, "undo_window") ||
		   json_object_get(q->params, "on_source_error")))
		r = cli_usage(cli, "--detach, --switch, --undo-window, --serve-there and "
				   "--on-source-error do not go with --qmp: adopt the drive, "
				   "relocate the disk, hand it back");
	if (!r)
		r = set_path(q, "target", argv[optind]);
	if (!r)
		cli_put_defaults(cli, q->params);
	return r ? r : cli_relocate_slipped(cli, q->qmp, q->drive, argv[optind], q->params);
}

int cmd_relocate(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {
		{"rate", required_argument, NULL, OPT_RATE},
		{"guest-latency", required_argument, NULL, OPT_LATENCY},
		{"switch", required_argument, NULL, OPT_SWITCH},
		{"overwrite", no_argument, NULL, OPT_OVERWRITE},
		{"delete-source", no_argument, NULL, OPT_DELETE},
		{"detach", no_argument, NULL, OPT_DETACH},
		{"verify", no_argument, NULL, OPT_VERIFY},
		{"accept-repair", no_argument, NULL, OPT_REPAIR},
		{"undo-window", required_argument, NULL, OPT_WINDOW},
		{"target-deadline", required_argument, NULL, OPT_DEADLINE},
		{"on-target-loss", required_argument, NULL, OPT_LOSS},
		{"on-source-error", required_argument, NULL, OPT_SOURCE},
		{"serve-there", no_argument, NULL, OPT_THERE},
		{"qmp", required_argument, NULL, OPT_QMP},
		{"drive", required_argument, NULL, OPT_DRIVE},
		{0},
	};
	struct request q = {.cli = cli, .params = json_object()};
	struct bm_client *client = NULL;
	struct bm_error error;
	int r = cli_options(cli, argc, argv, own, take, &q);

	if (!r && (q.qmp || q.drive)) {
		r = relocate_slipped(cli, &q, argc, argv);
		json_decref(q.params);
		return r;
	}
	if (!r)
		r = cli_arguments(cli, argc, 2, 2);
	if (!r)
		r = check_there(&q, argv[optind + 1]);
	if (!r && cli_connect(cli, argv[optind], &client, &error) < 0)
		r = cli_fail(cli, &error);
	if (!r)
		r = set_path(&q, "target", argv[optind + 1]);
	if (!r)
		cli_put_defaults(cli, q.params);
	if (!r)
		r = begin(&q, &client, "relocate", argv[optind]);
	if (!r && q.serve_there)
		r = cli_hand_over(cli, argv[optind]);
	bm_client_close(client);
	json_decref(q.params);
	return r < 0 ? 0 : r;
}

/* A method that takes a disk's name alone, and begins, or ends, something. */
static int call_on_disk(struct cli *cli, int argc, char **argv, const char *method, bool ends)
{
	struct request q = {.cli = cli};
	struct bm_client *client = NULL;
	struct bm_error error;
	json_t *job = NULL;
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);

	if (!r)
		r = cli_arguments(cli, argc, 1, 1);
	if (!r && cli_connect(cli, argv[optind], &client, &error) < 0)
		r = cli_fail(cli, &error);
	if (!r && ends)
		r = cli_begin(cli, client, method, NULL, argv[optind], &job);
	else if (!r)
		r = begin(&q, &client, method, argv[optind]);
	if (!r && job)
		r = cli_job_ended(cli, job);
	json_decref(job);
	bm_client_close(client);
	return r < 0 ? 0 : r;
}

int cmd_switch(struct cli *cli, int argc, char **argv)
{
	return call_on_disk(cli, argc, argv, "switch", false);
}

int cmd_undo(struct cli *cli, int argc, char **argv)
{
	return call_on_disk(cli, argc, argv, "undo", true);
}

int cmd_release(struct cli *cli, int argc, char **argv)
{
	return call_on_disk(cli, argc, argv, "release", true);
}

/* What is neither may have been meant as either. */
static int check_source(const struct cli *cli, const char *source)
{
	bool path = strchr(source, '/') || strchr(source, ':') || !access(source, F_OK);
	struct bm_client *client;
	struct bm_error error;

	if (path)
		return 0;
	if (!cli_connect(cli, source, &client, &error)) {
		bm_client_close(client);
		bm_fail(&error, BM_E_UNREACHABLE, "disk %s does not answer", source);
	} else if (error.code == BM_E_NOT_FOUND) {
		bm_fail(&error, BM_E_NOT_FOUND,
			"\"%s\" is neither a disk that is served (looked in %s/disks) nor an image",
			source, cli->run_dir);
	}
	return cli_fail(cli, &error);
}

/* Where no guest is, nothing can be spared, and nobody goes on with the job. */
static int check_cold(const struct request *q, const char *source)
{
	static const char *const live[] = {"guest_latency", "target_deadline", "on_target_loss"};
	bool wrong = q->detach;

	for (size_t i = 0; i < sizeof(live) / sizeof(live[0]); i++)
		wrong |= json_object_get(q->params, live[i]) != NULL;
	return wrong ? cli_usage(q->cli,
				 "%s is an image: --guest-latency, --target-deadline, "
				 "--on-target-loss and --detach are for disks that are served",
				 source)
		     : check_source(q->cli, source);
}

int cmd_copy(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {
		{"rate", required_argument, NULL, OPT_RATE},
		{"guest-latency", required_argument, NULL, OPT_LATENCY},
		{"overwrite", no_argument, NULL, OPT_OVERWRITE},
		{"detach", no_argument, NULL, OPT_DETACH},
		{"verify", no_argument, NULL, OPT_VERIFY},
		{"accept-repair", no_argument, NULL, OPT_REPAIR},
		{"target-deadline", required_argument, NULL, OPT_DEADLINE},
		{"on-target-loss", required_argument, NULL, OPT_LOSS},
		{"flatten", no_argument, NULL, OPT_FLATTEN},
		{0},
	};
	struct request q = {.cli = cli, .params = json_object()};
	struct bm_client *client = NULL;
	struct bm_error error;
	bool served = false;
	int r = cli_options(cli, argc, argv, own, take, &q);

	if (!r)
		r = cli_arguments(cli, argc, 2, 2);
	if (!r) {
		served = cli_is_served(cli, argv[optind]);
		r = served ? 0 : check_cold(&q, argv[optind]);
	}
	if (!r && (served ? cli_connect(cli, argv[optind], &client, &error) < 0
			  : cli_one_off(cli, &client, &error) < 0))
		r = cli_fail(cli, &error);
	if (!r && served)
		cli_put_defaults(cli, q.params);
	if (!r && !served)
		r = set_path(&q, "source", argv[optind]);
	if (!r)
		r = set_path(&q, "target", argv[optind + 1]);
	if (!r)
		r = begin(&q, &client, "copy", served ? argv[optind] : NULL);
	bm_client_close(client);
	json_decref(q.params);
	return r < 0 ? 0 : r;
}
