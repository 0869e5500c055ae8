/* SPDX-License-Identifier: BSD-3-Clause */
/* job list, show, wait, pause, resume, cancel, set */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/cli/cli.h"

enum { OPT_FOR = 256, OPT_RATE, OPT_LATENCY, OPT_DEADLINE, OPT_LOSS, LINE = 400 };

struct request {
	const struct cli *cli;
	json_t *params;
	const char *goal;
};

static int take(int option, const char *value, void *arg)
{
	struct request *q = arg;
	const char *key = "";
	uint64_t bytes = 0;
	json_t *set = NULL;
	int r = 0;

	switch (option) {
	case OPT_FOR:
		q->goal = value;
		if (strcmp(value, "in-sync") != 0 && strcmp(value, "done") != 0 &&
		    strcmp(value, "released") != 0)
			r = cli_usage(q->cli, "--for %s: in-sync, done or released is wanted",
				      value);
		break;
	case OPT_RATE:
		key = "rate";
		r = cli_size(q->cli, "--rate", value, &bytes);
		set = json_integer((json_int_t)bytes);
		break;
	case OPT_LATENCY:
		key = "guest_latency";
		r = cli_latency(q->cli, value, &set);
		break;
	case OPT_DEADLINE:
		key = "target_deadline";
		r = cli_deadline(q->cli, value, &set);
		break;
	case OPT_LOSS:
		key = "on_target_loss";
		r = cli_target_loss(q->cli, value, &set);
		break;
	}
	if (set)
		json_object_set_new(q->params, key, set);
	return r;
}

static void print_job(const json_t *job)
{
	printf("%-20s %-9s %-11s %-10s %s -> %s\n", cli_text(job, "id"), cli_text(job, "kind"),
	       cli_text(job, "state"), cli_text(job, "phase"), cli_text(job, "source"),
	       cli_text(job, "target"));
}

static void add_jobs_of(const struct cli *cli, const char *name, json_t *all)
{
	struct bm_client *client;
	json_t *result = NULL;

	if (cli_connect(cli, name, &client, NULL) < 0)
		return;
	if (!bm_client_call(client, "job.list", NULL, &result, NULL))
		json_array_extend(all, json_object_get(result, "jobs"));
	json_decref(result);
	bm_client_close(client);
}

static int list(const struct cli *cli, const char *name)
{
	json_t *disks = cli_all_disks(cli), *jobs = json_array(), *entry;
	size_t i;

	json_array_foreach(disks, i, entry)
		if (json_object_get(entry, "pid") &&
		    (!name || !strcmp(name, cli_text(entry, "name"))))
			add_jobs_of(cli, cli_text(entry, "name"), jobs);
	json_decref(disks);
	if (cli->json) {
		cli_print_json(json_pack("{s:i s:o}", "v", 1, "jobs", jobs));
		return 0;
	}
	printf("%-20s %-9s %-11s %-10s %s\n", "JOB", "KIND", "STATE", "PHASE", "FROM -> TO");
	json_array_foreach(jobs, i, entry)
		print_job(entry);
	json_decref(jobs);
	return 0;
}

/* "NAME.3" is job 3 of NAME; a name may end in ".3" itself: the disk that exists decides. */
static int find(const struct request *q, const char *id, struct bm_client **client,
		struct bm_error *error)
{
	bm_free char *name = strdup(id);
	char *dot = name ? strrchr(name, '.') : NULL;
	bool numbered = dot && dot[1] && dot[1 + strspn(dot + 1, "0123456789")] == '\0';

	if (!name)
		return bm_fail_errno(error, ENOMEM, "%s", id);
	if (numbered && !cli_is_served(q->cli, id)) {
		json_object_set_new(q->params, "number", json_integer(atoll(dot + 1)));
		*dot = '\0';
	}
	return cli_connect(q->cli, name, client, error);
}

static void print_details(const json_t *job)
{
	char line[LINE];
	const json_t *failure = json_object_get(job, "error");

	print_job(job);
	if (json_object_get(job, "progress")) {
		cli_progress_line(job, line, sizeof(line));
		puts(line);
	}
	cli_print_target_rules("target: ", job);
	if (failure)
		printf("%s: %s\n", cli_text(failure, "code"), cli_text(failure, "message"));
}

static int wait(struct request *q, struct bm_client *client, const char *id)
{
	const struct cli *cli = q->cli;
	json_t *job = NULL;
	int r;

	json_object_set_new(q->params, "for", json_string(q->goal ? q->goal : "done"));
	r = cli_begin(cli, client, "job.wait", bm_steal(q->params), id, &job);
	if (r)
		return r;
	if (json_object_get(job, "error") || cli_left_out(job)) {
		r = cli_job_ended(cli, job);
	} else {
		r = 0;
		if (cli->json)
			cli_print_json(json_incref(job));
		else
			print_details(job);
	}
	json_decref(job);
	return r;
}

static int change(struct request *q, struct bm_client *client, const char *verb)
{
	const struct cli *cli = q->cli;
	struct bm_error error;
	json_t *job = NULL;
	char method[32];

	snprintf(method, sizeof(method), "job.%s", verb);
	if (bm_client_call(client, method, bm_steal(q->params), &job, &error) < 0)
		return cli_fail(cli, &error);
	if (cli->json)
		cli_print_json(json_incref(job));
	else
		print_details(job);
	json_decref(job);
	return 0;
}

static int run(struct request *q, const char *verb, const char *id)
{
	static const char *const verbs[] = {"show", "pause", "resume", "cancel",
					    "set",  "wait",  NULL};
	struct bm_client *client = NULL;
	struct bm_error error;
	int i = 0, r;

	while (verbs[i] && strcmp(verbs[i], verb))
		i++;
	if (!verbs[i])
		return cli_usage(q->cli, "unknown verb \"%s\"", verb);
	if (!id)
		return cli_usage(q->cli, "which job?");
	if (find(q, id, &client, &error) < 0)
		return cli_fail(q->cli, &error);
	r = strcmp(verb, "wait") ? change(q, client, verb) : wait(q, client, id);
	bm_client_close(client);
	return r;
}

int cmd_job(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {
		{"for", required_argument, NULL, OPT_FOR},
		{"rate", required_argument, NULL, OPT_RATE},
		{"guest-latency", required_argument, NULL, OPT_LATENCY},
		{"target-deadline", required_argument, NULL, OPT_DEADLINE},
		{"on-target-loss", required_argument, NULL, OPT_LOSS},
		{0}};
	struct request q = {.cli = cli, .params = json_object()};
	int r = cli_options(cli, argc, argv, own, take, &q);

	if (!r)
		r = cli_arguments(cli, argc, 1, 2);
	if (!r && !strcmp(argv[optind], "list"))
		r = list(cli, argv[optind + 1]);
	else if (!r)
		r = run(&q, argv[optind], argv[optind + 1]);
	json_decref(q.params);
	return r < 0 ? 0 : r;
}
