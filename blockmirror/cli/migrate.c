/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hand-over, migrate arm, migrate disarm: who serves a disk whose storage is on another
 * host, or reached by it (shared.c). What is done here is to say so to both; they settle it between
 * them.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/day_window.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/shared_name.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/machine.h"
#include "blockmirror/cli/there.h"

enum {
	OPT_TO = 256,
	OPT_INTO,
	OPT_EXPIRES,
	OPT_OVERWRITE,
	OPT_SHARED,
	OPT_REHEARSE,
	OPT_MEDIA,
	OPT_BUDGET,
	OPT_TIMEOUT,
	OPT_DETACH,
	OPT_POLICY,
	OPT_RATE,
	OPT_DRY,
	OPT_WINDOW,
	OPT_BIND,
	OPT_ALL
};
#define NOW     60000000000ull   /* ns: a hand-over by hand needs no longer */
#define EXPIRES 3600000000000ull /* ns */
#define QUIET   100000000ull     /* ns without a write: its guest has stopped */

static void clear(struct there *t)
{
	free(t->host);
	free(t->keep);
	free(t->disk);
	free(t->uri);
	free(t->offered);
	json_decref(t->witness);
	*t = (struct there){.name = t->name};
}
#define there_auto __attribute__((cleanup(clear)))

static uint64_t wall_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool is_there(const char *uri)
{
	return !strncmp(uri, "bm:", 3);
}

/* Two copies, one of them on another host: it is moved there, or that can still be undone. */
static int look_at_pair(struct there *t, json_t *job, struct bm_error *error)
{
	const char *source = cli_text(job, "source"), *target = cli_text(job, "target");
	const char *here = is_there(source) ? target : source, *phase = cli_text(job, "phase");
	uint64_t until = cli_number(job, "undo_until"), now = wall_ns();
	bm_free char *path = NULL;

	if (strcmp(cli_text(job, "state"), "running") != 0 ||
	    is_there(source) == is_there(target) || *here != '/')
		return 0;
	t->in_sync = !strcmp(phase, "undo-window") || !strcmp(phase, "in-sync");
	t->keep = strdup(here);
	t->window = until > now ? until - now : 0;
	t->behind = !is_there(t->uri);
	if (!t->keep)
		return bm_fail_errno(error, ENOMEM, "disk %s", t->name);
	return t->host ? 0
		       : bm_uri_peer(is_there(source) ? source : target, &t->host, &path, error);
}

static uint64_t changes(const json_t *shown)
{
	const json_t *requests = json_object_get(shown, "requests");

	return cli_number(requests, "write") + cli_number(requests, "zero") +
	       cli_number(requests, "trim");
}

static int look(const struct cli *cli, const char *name, struct there *t, struct bm_error *error)
{
	bm_free char *path = NULL;
	struct bm_client *client;
	json_t *shown = NULL, *offered;
	int r = cli_connect(cli, name, &client, error);

	*t = (struct there){.name = name};
	if (r < 0)
		return r;
	r = bm_client_call(client, "show", NULL, &shown, error);
	bm_client_close(client);
	if (r < 0)
		return r;
	t->uri = strdup(cli_text(shown, "uri"));
	t->disk = strdup(cli_text(shown, "disk"));
	t->size = cli_number(shown, "size");
	t->changes = changes(shown);
	offered = json_object_get(shown, "offer");
	if (json_is_true(json_object_get(offered, "shared")))
		t->offered = strdup(cli_text(offered, "host"));
	if (!t->uri || !t->disk)
		r = bm_fail_errno(error, ENOMEM, "disk %s", name);
	else if (is_there(t->uri))
		r = bm_uri_peer(t->uri, &t->host, &path, error);
	if (!r)
		r = look_at_pair(t, json_object_get(shown, "job"), error);
	json_decref(shown);
	return r;
}

/* until 0: no more. returns: a guest that goes on here after all has the disk again. */
static int offer(const struct cli *cli, struct there *t, uint64_t until, bool returns,
		 struct bm_error *error)
{
	struct bm_client *client;
	json_t *result = NULL;
	int r = cli_connect(cli, t->name, &client, error);

	if (r < 0)
		return r;
	r = bm_client_call(client, "offer",
			   json_pack("{s:s s:I s:b s:b s:s*}", "to", t->host, "until",
				     (json_int_t)until, "shared", (int)t->shared, "returns",
				     (int)returns, "group", t->group),
			   &result, error);
	bm_client_close(client);
	json_decref(t->witness);
	t->witness = json_incref(json_object_get(result, "witness"));
	json_decref(result);
	return r;
}

static int tell_host(const struct cli *cli, const struct there *t, const char *method, json_t *rest,
		     json_t **result, struct bm_error *error)
{
	json_t *params =
		json_pack("{s:s s:s s:s}", "peer", t->host, "name", t->name, "disk", t->disk);

	json_object_update(params, rest);
	json_decref(rest);
	return cli_daemon_call(cli, method, params, result, error);
}

/* time 0: no more. */
static int arm_there(const struct cli *cli, const struct there *t, uint64_t time, bool returns,
		     struct bm_error *error)
{
	json_t *result = NULL;
	int r = tell_host(cli, t, "remote.arm",
			  json_pack("{s:I s:s* s:I s:b s:b s:O* s:s*}", "time_ns", (json_int_t)time,
				    "keep", t->keep, "window_ns",
				    (json_int_t)(t->window ? t->window : time), "returns",
				    (int)returns, "behind", (int)t->behind, "witness",
				    time ? t->witness : NULL, "group", t->group),
			  &result, error);

	json_decref(result);
	return r;
}

static int want_there(const struct there *t, struct bm_error *error)
{
	return t->host ? 0
		       : bm_fail(error, BM_E_NOT_READY,
				 "disk %s has its storage on no other host: relocate it to "
				 "bm://HOST/PATH first, or, if the other one reaches it, too, say "
				 "--to HOST --shared",
				 t->name);
}

/* What was offered is so no more. There first: as long as it was not told, it vouches for its copy.
 */
static int withdraw(const struct cli *cli, struct there *t, struct bm_error *error)
{
	int r = arm_there(cli, t, 0, false, error);

	if (!r)
		r = offer(cli, t, 0, false, error);
	if (!r)
		shared_dismiss(cli, t);
	return r;
}

/* It did not get there, or nobody knows. */
static int hand_over_failed(const struct cli *cli, struct there *t, const struct bm_error *why)
{
	struct bm_error error;

	if (!t->told)
		shared_dismiss(cli, t);
	if (!t->told || withdraw(cli, t, &error) >= 0)
		return cli_fail(cli, why);
	bm_fail(&error, why->code,
		"%.250s; it may be decided all the same: \"blockmirror recover %s\" on host %s "
		"finds "
		"out",
		why->text, t->name, t->host);
	return cli_fail(cli, &error);
}

struct request {
	const struct cli *cli;
	const char *to, *into;
	const char *as;             /* what shared storage is there; "": what it is here */
	const char *shares[SHARES]; /* of a machine: NAME, NAME=WHERE; NULL: all are shared */
	size_t n_shares;
	char group[33]; /* of the disks that are armed; "": there is one */
	uint64_t expires;
	bool shared; /* said by a person */
	bool overwrite;
	/* of a machine: */
	bool rehearse, detach, media, dry_run, all;
	const char *policy, *window;
	char bind[INET6_ADDRSTRLEN]; /* "": as the routes have it */
	uint64_t budget, timeout, rate;
};

static int take_time(const struct request *q, const char *option, const char *value, uint64_t *ns)
{
	if (!bm_parse_duration(value, ns) && *ns)
		return 0;
	return cli_usage(q->cli, "%s %s: a time like 10m is wanted", option, value);
}

/* As everybody writes it, since it is compared. */
static int take_bind(struct request *q, const char *value)
{
	unsigned char number[sizeof(struct in6_addr)];
	int family = strchr(value, ':') ? AF_INET6 : AF_INET;

	if (inet_pton(family, value, number) != 1)
		return cli_usage(q->cli,
				 "--bind %s: the number of an address is wanted, like 10.0.0.1",
				 value);
	inet_ntop(family, number, q->bind, sizeof(q->bind));
	return 0;
}

static int take(int option, const char *value, void *arg)
{
	struct request *q = arg;

	if (option == OPT_TO)
		q->to = value;
	else if (option == OPT_INTO)
		q->into = value;
	else if (option == OPT_OVERWRITE)
		q->overwrite = true;
	else if (option == OPT_SHARED) {
		q->shared = true;
		q->as = value;
		if (q->n_shares == SHARES)
			return cli_usage(q->cli, "--shared: a machine has no more than %d disks",
					 SHARES);
		q->shares[q->n_shares++] = value;
	} else if (option == OPT_MEDIA)
		q->media = true;
	else if (option == OPT_REHEARSE)
		q->rehearse = true;
	else if (option == OPT_DETACH)
		q->detach = true;
	else if (option == OPT_POLICY)
		q->policy = value;
	else if (option == OPT_RATE)
		return cli_size(q->cli, "--rate", value, &q->rate);
	else if (option == OPT_DRY)
		q->dry_run = true;
	else if (option == OPT_ALL)
		q->all = true;
	else if (option == OPT_WINDOW)
		q->window = value;
	else if (option == OPT_BIND)
		return take_bind(q, value);
	else if (option == OPT_BUDGET)
		return take_time(q, "--pause-budget", value, &q->budget);
	else if (option == OPT_TIMEOUT)
		return take_time(q, "--timeout", value, &q->timeout);
	else
		return take_time(q, "--expires", value, &q->expires);
	return 0;
}

/*
 * A disk on storage that the other host reaches itself gets a standby there that reads it, unless
 * it has one. Others are left as they are.
 */
static int share(const struct request *q, struct there *t, struct bm_error *error)
{
	bool again = t->offered && !q->as && (!q->to || !strcmp(q->to, t->offered));

	if (!again && !q->shared && (t->host || !q->to || q->into || !bm_shared_by_name(t->uri)))
		return 0;
	if (!again)
		return shared_stand_by(q->cli, t, q->to, q->as, error);
	t->host = strdup(t->offered);
	t->shared = true;
	return t->host ? 0 : bm_fail_errno(error, ENOMEM, "disk %s", t->name);
}

static int offer_and_arm(const struct request *q, struct there *t, uint64_t time, bool returns,
			 struct bm_error *error)
{
	int r = offer(q->cli, t, wall_ns() + time, returns && !t->shared, error);

	t->told = !r;
	if (t->witness)
		json_object_set_new(t->witness, "said", json_boolean(q->shared));
	if (!r)
		r = arm_there(q->cli, t, time, returns && !t->shared, error);
	return r;
}

/*
 *	A guest writes now and then; the disk is fenced and flushed between two of its writes, and
 *	passes; the guest's next write fails.
 *
 * The fence sees a guest that writes all the time (yield.c), and is not made longer, since one that
 * has moved waits for it. By hand there is time to look longer than that.
 */
static int wants_quiet(const struct cli *cli, const struct there *t, struct bm_error *error)
{
	const struct timespec quiet = {.tv_nsec = QUIET};
	there_auto struct there now = {0};
	int r;

	nanosleep(&quiet, NULL);
	r = look(cli, t->name, &now, error);
	if (r < 0 || now.changes == t->changes)
		return r;
	return bm_fail(error, BM_E_SPLIT,
		       "disk %s is not passed on: its guest writes. With one at the other host, "
		       "both run, and this one keeps it: stop the machine first",
		       t->name);
}

static int hand_over(const struct request *q, const char *name)
{
	there_auto struct there t = {0};
	char took[BM_UNITS_TEXT];
	struct bm_error error;
	json_t *result = NULL;
	int r = look(q->cli, name, &t, &error);

	if (!r)
		r = wants_quiet(q->cli, &t, &error);
	if (!r)
		r = share(q, &t, &error);
	if (!r)
		r = want_there(&t, &error);
	if (!r && q->to && strcmp(q->to, t.host) != 0)
		r = bm_fail(&error, BM_E_NOT_READY, "disk %s has its storage on host %s, not on %s",
			    name, t.host, q->to);
	if (r < 0)
		return cli_fail(q->cli, &error);
	r = offer_and_arm(q, &t, NOW, false, &error);
	if (!r)
		r = tell_host(q->cli, &t, "remote.take", NULL, &result, &error);
	if (r < 0)
		return hand_over_failed(q->cli, &t, &error);
	if (q->cli->json)
		cli_print_json(json_incref(result));
	else
		printf("%s: host %s serves the disk now (generation %" PRIu64 "); %s for that\n",
		       name, t.host, cli_number(result, "generation"),
		       bm_format_duration(took, cli_number(result, "took_ns")));
	json_decref(result);
	return 0;
}

int cli_hand_over(const struct cli *cli, const char *name)
{
	const struct request q = {.cli = cli};

	return hand_over(&q, name);
}

static int check_shared(const struct request *q)
{
	if (q->shared && !q->to)
		return cli_usage(q->cli, "--shared: --to HOST is wanted");
	if (q->shared && q->into)
		return cli_usage(q->cli, "--shared: nothing is copied, so there is no --into");
	return 0;
}

int cmd_hand_over(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {{"to", required_argument, NULL, OPT_TO},
					    {"shared", optional_argument, NULL, OPT_SHARED},
					    {0}};
	struct request q = {.cli = cli};
	int r = cli_options(cli, argc, argv, own, take, &q);

	if (!r)
		r = cli_arguments(cli, argc, 1, 1);
	if (!r)
		r = check_shared(&q);
	if (!r)
		r = hand_over(&q, argv[optind]);
	return r < 0 ? 0 : r;
}

/* migrate */

/* Its storage is there, too, and follows. */
static int relocate(const struct request *q, const struct there *t)
{
	const char *path = bm_uri_path(t->uri), *slash = path ? strrchr(path, '/') : NULL;
	bm_free char *target = NULL;
	int n = slash ? (int)(slash - path) : 0;

	if (!q->into && !slash)
		return cli_usage(q->cli,
				 "%s is no file: say where it is to go with --into FOLDER, or, if "
				 "%s reaches it, too, by which URI, with --shared=URI",
				 t->uri, q->to);
	if (asprintf(&target, "bm://%s%.*s/", q->to, q->into ? (int)strlen(q->into) : n,
		     q->into ? q->into : path) < 0)
		return 1;
	return cli_relocate(q->cli, t->name,
			    json_pack("{s:s s:b s:b}", "target", target, "manual", 1, "overwrite",
				      (int)q->overwrite));
}

static int arm(const struct request *q, const char *name)
{
	there_auto struct there t = {0};
	struct bm_error error;
	int r = look(q->cli, name, &t, &error);

	if (!r)
		r = share(q, &t, &error);
	if (!r && !t.shared &&
	    (!t.host || strcmp(t.host, q->to) != 0 || (t.behind && !t.in_sync))) {
		int status = relocate(q, &t);

		if (status)
			return status;
		clear(&t);
		r = look(q->cli, name, &t, &error);
		if (!r)
			r = want_there(&t, &error);
	}
	if (r < 0)
		return cli_fail(q->cli, &error);
	t.group = *q->group ? q->group : NULL;
	r = offer_and_arm(q, &t, q->expires, true, &error);
	if (r < 0 && t.shared)
		return hand_over_failed(q->cli, &t, &error);
	if (r < 0)
		return cli_fail(q->cli, &error);
	if (!q->cli->json)
		printf("%s: host %s has the disk when its guest writes there first%s\n", name,
		       q->to, t.group ? ", to any of them" : "");
	return 0;
}

static int disarm(const struct request *q, const char *name)
{
	there_auto struct there t = {0};
	struct bm_error error;
	int r = look(q->cli, name, &t, &error);

	if (!r && t.offered)
		r = share(q, &t, &error);
	if (!r)
		r = want_there(&t, &error);
	if (!r)
		r = withdraw(q->cli, &t, &error);
	if (r < 0)
		return cli_fail(q->cli, &error);
	if (!q->cli->json)
		printf("%s: the disk stays on this host\n", name);
	return 0;
}

static json_t *machine_options(const struct request *q)
{
	return json_pack("{s:s* s:b s:b s:b s:b s:I s:I s:I s:s* s:s* s:s* s:o*}", "into", q->into,
			 "overwrite", (int)q->overwrite, "rehearse", (int)q->rehearse, "dry_run",
			 (int)q->dry_run, "copy_media", (int)q->media, "pause_budget",
			 (json_int_t)q->budget, "timeout", (json_int_t)q->timeout, "rate",
			 (json_int_t)q->rate, "policy", q->policy, "window", q->window, "bind",
			 *q->bind ? q->bind : NULL, "shared",
			 shared_options(q->shares, q->n_shares));
}

/* name NULL: all of this host's. */
static int machine(const struct request *q, const char *name)
{
	struct bm_day_window window;
	struct bm_error error;

	if (!q->to)
		return cli_usage(q->cli, "migrate %s: --to HOST is wanted", name ? name : "--all");
	if (q->into && *q->into != '/')
		return cli_usage(q->cli, "--into %s: an absolute path is wanted", q->into);
	if (shared_check(q->cli, q->shares, q->n_shares, q->into, name))
		return 2;
	if (machine_check_policy(q->policy, q->timeout, "--", &error) < 0)
		return cli_usage(q->cli, "%s", error.text);
	if (q->dry_run && q->rehearse)
		return cli_usage(q->cli, "--dry-run or --rehearse: one of them is wanted");
	if (q->window && cli_window(q->cli, q->window, &window))
		return 2;
	if (name)
		return cli_migrate_machine(q->cli, name, q->to, machine_options(q), q->detach);
	if (q->detach)
		return cli_usage(q->cli, "--all moves one machine after the other, and waits for "
					 "each: it does not go with --detach");
	return cli_migrate_all(q->cli, q->to, machine_options(q));
}

int cmd_migrate(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {{"to", required_argument, NULL, OPT_TO},
					    {"into", required_argument, NULL, OPT_INTO},
					    {"expires", required_argument, NULL, OPT_EXPIRES},
					    {"overwrite", no_argument, NULL, OPT_OVERWRITE},
					    {"shared", optional_argument, NULL, OPT_SHARED},
					    {"rehearse", no_argument, NULL, OPT_REHEARSE},
					    {"copy-media", no_argument, NULL, OPT_MEDIA},
					    {"pause-budget", required_argument, NULL, OPT_BUDGET},
					    {"timeout", required_argument, NULL, OPT_TIMEOUT},
					    {"detach", no_argument, NULL, OPT_DETACH},
					    {"policy", required_argument, NULL, OPT_POLICY},
					    {"rate", required_argument, NULL, OPT_RATE},
					    {"dry-run", no_argument, NULL, OPT_DRY},
					    {"window", required_argument, NULL, OPT_WINDOW},
					    {"bind", required_argument, NULL, OPT_BIND},
					    {"all", no_argument, NULL, OPT_ALL},
					    {0}};
	struct request q = {.cli = cli, .expires = EXPIRES};
	int r = cli_options(cli, argc, argv, own, take, &q);
	bool arms;

	if (!r)
		r = cli_arguments(cli, argc, q.all ? 0 : 1, q.all ? 0 : 100);
	if (r)
		return r < 0 ? 0 : r;
	if (q.all)
		return machine(&q, NULL);
	arms = !strcmp(argv[optind], "arm");
	if (argc - optind == 1)
		return machine(&q, argv[optind]);
	if (!arms && strcmp(argv[optind], "disarm") != 0)
		return cli_usage(cli, "migrate: one machine, or the verbs arm and disarm");
	if (arms && !q.to)
		return cli_usage(cli, "migrate arm: --to HOST is wanted");
	if (check_shared(&q))
		return 2;
	if (q.into && *q.into != '/')
		return cli_usage(cli, "--into %s: an absolute path is wanted", q.into);
	if (arms && argc > optind + 2)
		bm_identity(q.group);
	for (int i = optind + 1; !r && i < argc; i++) {
		r = arms ? arm(&q, argv[i]) : disarm(&q, argv[i]);
		/* A machine has all its disks armed, or none. */
		for (int k = optind + 1; arms && r && k < i; k++)
			disarm(&q, argv[k]);
	}
	return r;
}
