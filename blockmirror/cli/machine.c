/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * machine add, list, show, remove, and migrate MACHINE --to HOST: blockmirrord knows the machines,
 * and starts a process for a move, which is followed here.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/machine.h"
#include "blockmirror/machine/qmp.h"

enum { OPT_QMP = 256, OPT_HOOKS };
#define STEP   200000000 /* ns */
#define APPEAR 15000000000ull

struct request {
	const struct cli *cli;
	char *qmp, *hooks;
};

static int take(int option, const char *value, void *arg)
{
	struct request *q = arg;
	char **to = option == OPT_QMP ? &q->qmp : &q->hooks;

	free(*to);
	*to = bm_uri_absolute(value);
	return *to ? 0 : cli_usage(q->cli, "%s: the name is not UTF-8", value);
}

/* That it is there, and is QEMU, is found out now, and not when it is to move. */
static int add(const struct request *q, const char *name)
{
	struct bm_error error;
	struct bm_qmp *qmp;
	int r = bm_qmp_connect(q->qmp, &qmp, &error);

	if (r < 0)
		return cli_fail(q->cli, &error);
	bm_qmp_close(qmp);
	r = cli_daemon_call(
		q->cli, "machine.add",
		json_pack("{s:s s:s s:s*}", "name", name, "qmp", q->qmp, "hooks", q->hooks), NULL,
		&error);
	return r < 0 ? cli_fail(q->cli, &error) : 0;
}

static void print_line(const json_t *machine)
{
	const json_t *move = json_object_get(machine, "move");
	const char *away = cli_text(machine, "away");

	printf("%-20s %s%s%s\n", cli_text(machine, "name"),
	       move    ? "moves: "
	       : *away ? "on host "
		       : "here: ",
	       move    ? cli_text(move, "id")
	       : *away ? away
		       : cli_text(machine, "qmp"),
	       move && *away ? ", comes back" : "");
}

static int list(const struct cli *cli)
{
	struct bm_error error;
	json_t *result = NULL, *machine;
	size_t i;

	if (cli_daemon_call(cli, "machine.list", NULL, &result, &error) < 0)
		return cli_fail(cli, &error);
	if (cli->json)
		cli_print_json(json_incref(result));
	else
		json_array_foreach(json_object_get(result, "machines"), i, machine)
			print_line(machine);
	json_decref(result);
	return 0;
}

static void print_last(const json_t *last)
{
	const json_t *error = json_object_get(last, "error");
	char pause[BM_UNITS_TEXT];

	printf("  last move  %s, to host %s: %s\n", cli_text(last, "move"), cli_text(last, "peer"),
	       cli_text(last, "state"));
	if (json_object_get(last, "pause_ns"))
		printf("  its pause  %s\n",
		       bm_format_duration(pause, cli_number(last, "pause_ns")));
	if (error)
		printf("  its end    %s: %s\n", cli_text(error, "code"),
		       cli_text(error, "message"));
}

/* How far it is; and, when it is in doubt, what about. */
static void print_move(const json_t *move)
{
	struct bm_client *client;
	struct bm_error error;
	json_t *report = NULL;

	if (!move || bm_client_connect(cli_text(move, "socket"), &client, &error) < 0)
		return;
	if (bm_client_call(client, "show", NULL, &report, &error) >= 0)
		printf("  phase      %s, with host %s\n", cli_text(report, "phase"),
		       cli_text(report, "peer"));
	cli_print_doubt(stdout, "  doubt      ", report);
	json_decref(report);
	bm_client_close(client);
}

static int show(const struct cli *cli, const char *name)
{
	struct bm_error error;
	json_t *machine = NULL;

	if (cli_daemon_call(cli, "machine.show", json_pack("{s:s}", "name", name), &machine,
			    &error) < 0)
		return cli_fail(cli, &error);
	if (cli->json) {
		cli_print_json(machine);
		return 0;
	}
	print_line(machine);
	printf("  qmp        %s\n", cli_text(machine, "qmp"));
	if (json_object_get(machine, "hooks"))
		printf("  hooks      %s\n", cli_text(machine, "hooks"));
	print_move(json_object_get(machine, "move"));
	if (json_object_get(machine, "last"))
		print_last(json_object_get(machine, "last"));
	json_decref(machine);
	return 0;
}

static int forget(const struct cli *cli, const char *name)
{
	struct bm_error error;

	if (cli_daemon_call(cli, "machine.remove", json_pack("{s:s}", "name", name), NULL, &error) <
	    0)
		return cli_fail(cli, &error);
	return 0;
}

struct bm_client *cli_find_move(const struct cli *cli, const char *name, json_t **machine,
				struct bm_error *error)
{
	struct bm_client *client = NULL;
	const json_t *move;

	if (cli_daemon_call(cli, "machine.show", json_pack("{s:s}", "name", name), machine, error) <
	    0)
		return NULL;
	move = json_object_get(*machine, "move");
	if (!move || bm_client_connect(cli_text(move, "socket"), &client, error) < 0)
		client = NULL;
	return client;
}

static int cancel(const struct cli *cli, const char *name)
{
	struct bm_error error;
	json_t *machine = NULL;
	struct bm_client *client = cli_find_move(cli, name, &machine, &error);
	int r = client    ? bm_client_call(client, "cancel", NULL, NULL, &error)
		: machine ? bm_fail(&error, BM_E_NOT_FOUND, "machine %s is not being moved", name)
			  : -1;

	bm_client_close(client);
	json_decref(machine);
	return r < 0 ? cli_fail(cli, &error) : 0;
}

int cmd_machine(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {{"qmp", required_argument, NULL, OPT_QMP},
					    {"hooks", required_argument, NULL, OPT_HOOKS},
					    {0}};
	struct request q = {.cli = cli};
	int r = cli_options(cli, argc, argv, own, take, &q);
	const char *verb, *name;

	if (!r)
		r = cli_arguments(cli, argc, 1, 2);
	if (r)
		return r < 0 ? 0 : r;
	verb = argv[optind];
	name = argc - optind > 1 ? argv[optind + 1] : NULL;
	if (!strcmp(verb, "list") && !name)
		r = list(cli);
	else if (!name)
		r = cli_usage(cli, "machine %s: the name of a machine is wanted", verb);
	else if (!strcmp(verb, "add"))
		r = q.qmp ? add(&q, name) : cli_usage(cli, "machine add: --qmp SOCKET is wanted");
	else if (!strcmp(verb, "show"))
		r = show(cli, name);
	else if (!strcmp(verb, "remove"))
		r = forget(cli, name);
	else if (!strcmp(verb, "cancel"))
		r = cancel(cli, name);
	else
		r = cli_usage(cli, "unknown verb \"%s\"", verb);
	free(q.qmp);
	free(q.hooks);
	return r;
}

/* migrate */

int machine_check_policy(const char *policy, uint64_t timeout, const char *before,
			 struct bm_error *error)
{
	static const char *const names[] = {"wait", "cancel", "force", "throttle"};
	bool known = !policy;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		known |= policy && !strcmp(policy, names[i]);
	if (!known)
		return bm_fail(error, BM_E_USAGE,
			       "%spolicy %s: wait, cancel, force or throttle is wanted", before,
			       policy);
	if (policy && !strcmp(policy, "wait") && timeout)
		return bm_fail(error, BM_E_USAGE, "%spolicy wait: there is no %stimeout then",
			       before, before);
	if (policy && (!strcmp(policy, "cancel") || !strcmp(policy, "force")) && !timeout)
		return bm_fail(error, BM_E_USAGE, "%spolicy %s: after which %stimeout?", before,
			       policy, before);
	return 0;
}

/* Its last report; NULL: the daemon does not tell. Follows also who comes after a dead process. */
static json_t *follow(const struct cli *cli, const char *name, const char *id,
		      struct bm_error *error)
{
	const struct timespec step = {.tv_nsec = STEP};
	struct machine_told told = {0};
	uint64_t waited = 0;

	for (;; nanosleep(&step, NULL)) {
		json_t *machine = NULL, *report = NULL;
		struct bm_client *client = cli_find_move(cli, name, &machine, error);
		json_t *ended = json_incref(json_object_get(machine, "last"));
		bool moves = json_object_get(machine, "move"), known = machine;

		json_decref(machine);
		if (client && bm_client_call(client, "show", NULL, &report, error) >= 0) {
			machine_tell(cli, report, &told);
			json_decref(report);
		}
		bm_client_close(client);
		/* Not while it is noted and its process ends: the next one would be refused. */
		if (!moves && !strcmp(cli_text(ended, "move"), id))
			return ended;
		json_decref(ended);
		waited = moves || !known ? 0 : waited + STEP;
		if (waited > APPEAR) {
			bm_fail(error, BM_E_NOT_FOUND, "nothing is known any more of move %s", id);
			return NULL;
		}
	}
}

/* All that speaks against it; its first one is the report's error. */
static int tell_refusals(const struct cli *cli, const json_t *report)
{
	json_t *refusals = json_object_get(report, "refusals"), *refusal;
	struct bm_error error;
	int status = 0;
	size_t i;

	json_array_foreach(refusals, i, refusal) {
		bm_fail(&error, bm_code_by_name(cli_text(refusal, "code")), "%s",
			cli_text(refusal, "message"));
		cli_fail(cli, &error);
		status = status ? status : bm_code_exit(error.code);
	}
	return status;
}

static void tell_forecast(const json_t *report)
{
	const json_t *forecast = json_object_get(report, "forecast"),
		     *way = json_object_get(report, "way");
	char size[4][BM_UNITS_TEXT], time[3][BM_UNITS_TEXT];

	printf("%s: could go to host %s: %s (disks %s, memory %s), in about %s; the pause would be "
	       "about %s\n",
	       cli_text(report, "machine"), cli_text(report, "peer"),
	       bm_format_size(size[0], cli_number(forecast, "bytes")),
	       bm_format_size(size[1], cli_number(forecast, "disk_bytes")),
	       bm_format_size(size[2], cli_number(forecast, "memory_bytes")),
	       bm_format_duration(time[0], cli_number(forecast, "time_ns")),
	       bm_format_duration(time[1], cli_number(forecast, "pause_ns")));
	printf("  way        %s/s, round trip %s\n",
	       bm_format_size(size[3], cli_number(way, "bandwidth")),
	       bm_format_duration(time[2], cli_number(way, "rtt_ns")));
	printf("  memory     %s/s are changed%s\n",
	       bm_format_size(size[0], cli_number(forecast, "dirty_rate")),
	       json_is_true(json_object_get(forecast, "converges"))
		       ? ""
		       : ": faster than it could be sent, within the pause's budget");
}

static int tell_end(const struct cli *cli, const json_t *report)
{
	const json_t *why = json_object_get(report, "error");
	const char *state = cli_text(report, "state");
	char took[BM_UNITS_TEXT], pause[BM_UNITS_TEXT];
	struct bm_error error;

	if (cli->json)
		cli_print_json(json_deep_copy(report));
	if (why && !cli->json && json_object_get(report, "refusals"))
		return tell_refusals(cli, report);
	if (why) {
		bm_fail(&error, bm_code_by_name(cli_text(why, "code")), "%s; the machine is here",
			cli_text(why, "message"));
		return cli->json ? bm_code_exit(error.code) : cli_fail(cli, &error);
	}
	if (cli->json)
		return 0;
	bm_format_duration(took, cli_number(report, "took_ns"));
	bm_format_duration(pause, cli_number(report, "pause_ns"));
	if (!strcmp(state, "dry-run"))
		tell_forecast(report);
	else if (!strcmp(state, "rehearsed"))
		printf("%s: could move to host %s: its pause was %s; it runs on here\n",
		       cli_text(report, "machine"), cli_text(report, "peer"), pause);
	else
		printf("%s: runs on host %s; it was stopped for %s, once; %s in all\n",
		       cli_text(report, "machine"), cli_text(report, "peer"),
		       json_object_get(report, "pause_ns") ? pause : "a time that nobody knows",
		       took);
	machine_tell_sums(report);
	return 0;
}

int cli_migrate_machine(const struct cli *cli, const char *name, const char *to, json_t *options,
			bool detach)
{
	struct bm_error error;
	json_t *result = NULL, *report;
	bm_free char *id = NULL;
	int r = cli_daemon_call(
		cli, "machine.migrate",
		json_pack("{s:s s:s s:o}", "name", name, "to", to, "options", options), &result,
		&error);

	if (r < 0)
		return cli_fail(cli, &error);
	id = strdup(cli_text(result, "move"));
	json_decref(result);
	if (detach) {
		printf("%s\n", id);
		return 0;
	}
	report = follow(cli, name, id, &error);
	if (!report)
		return cli_fail(cli, &error);
	r = tell_end(cli, report);
	json_decref(report);
	return r;
}
