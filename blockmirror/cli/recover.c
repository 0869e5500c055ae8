/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * recover: a disk, or a machine, of which it is not known on which of two hosts it is. The other
 * host is asked; or it is dead for good, and a person says so.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/machine.h"

enum { OPT_HERE = 256, OPT_DEAD, OPT_MACHINE, STEPS = 600 };
#define STEP 200000000 /* ns */

struct request {
	const struct cli *cli;
	bool here, dead, machine;
};

static int take(int option, const char *value, void *arg)
{
	struct request *q = arg;

	(void)value;
	q->here = q->here || option == OPT_HERE;
	q->dead = q->dead || option == OPT_DEAD;
	q->machine = q->machine || option == OPT_MACHINE;
	return 0;
}

static int disk(const struct cli *cli, const char *name, bool alone)
{
	struct bm_client *client;
	struct bm_error error;
	json_t *result = NULL;
	int r = cli_connect(cli, name, &client, &error);

	if (r < 0)
		return cli_fail(cli, &error);
	r = bm_client_call(client, "take", json_pack("{s:b}", "alone", (int)alone), &result,
			   &error);
	bm_client_close(client);
	if (r < 0)
		return cli_fail(cli, &error);
	if (cli->json)
		cli_print_json(json_incref(result));
	else
		printf("%s: this host has the disk (generation %" PRIu64 ")\n", name,
		       cli_number(result, "generation"));
	json_decref(result);
	return 0;
}

void cli_print_doubt(FILE *out, const char *before, const json_t *report)
{
	const char *doubt = cli_text(report, "doubt");

	if (*doubt)
		fprintf(out,
			"%s%s\n%sit goes on when host %s answers; or, if that is dead for good: "
			"\"blockmirror recover --machine %s --resume-here --peer-is-dead\"\n",
			before, doubt, before, cli_text(report, "peer"),
			cli_text(report, "machine"));
}

/* Until the move has ended, or its process says why it cannot do it. */
static int await_end(const struct cli *cli, const char *name, struct bm_error *error)
{
	const struct timespec step = {.tv_nsec = STEP};

	for (int i = 0; i < STEPS; i++, nanosleep(&step, NULL)) {
		json_t *machine = NULL, *report = NULL;
		struct bm_client *client = cli_find_move(cli, name, &machine, error);
		const json_t *verdict;
		bool ended = machine && !json_object_get(machine, "move");
		int r = 0;

		if (client)
			(void)bm_client_call(client, "show", NULL, &report, error);
		verdict = json_object_get(report, "verdict");
		if (verdict)
			r = bm_fail(error, bm_code_by_name(cli_text(verdict, "code")), "%s",
				    cli_text(verdict, "message"));
		bm_client_close(client);
		json_decref(report);
		json_decref(machine);
		if (ended || r)
			return r;
	}
	return bm_fail(error, BM_E_BUSY,
		       "it is not known yet what has come of it: \"blockmirror "
		       "machine show %s\"",
		       name);
}

int cli_recover_machine(const struct cli *cli, const char *name, bool dead)
{
	struct bm_error error;
	json_t *machine = NULL, *result = NULL;
	struct bm_client *client = cli_find_move(cli, name, &machine, &error);
	int r = client    ? bm_client_call(client, "recover", json_pack("{s:b}", "dead", (int)dead),
					   &result, &error)
		: machine ? bm_fail(&error, BM_E_NOT_FOUND, "machine %s is in no move", name)
			  : -1;

	bm_client_close(client);
	json_decref(machine);
	if (!r && dead)
		r = await_end(cli, name, &error);
	if (r < 0) {
		json_decref(result);
		return cli_fail(cli, &error);
	}
	if (cli->json)
		cli_print_json(json_incref(result));
	else
		printf("%s: %s\n", name, dead ? "it is on this host" : cli_text(result, "told"));
	json_decref(result);
	return 0;
}

int cmd_recover(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {{"resume-here", no_argument, NULL, OPT_HERE},
					    {"peer-is-dead", no_argument, NULL, OPT_DEAD},
					    {"machine", no_argument, NULL, OPT_MACHINE},
					    {0}};
	struct request q = {.cli = cli};
	int r = cli_options(cli, argc, argv, own, take, &q);

	if (!r)
		r = cli_arguments(cli, argc, 1, 1);
	if (!r && q.here != q.dead)
		r = cli_usage(cli,
			      "--resume-here and --peer-is-dead are said together: a host that "
			      "lives, and only cannot be reached, has the disk");
	if (!r)
		r = q.machine ? cli_recover_machine(cli, argv[optind], q.here)
			      : disk(cli, argv[optind], q.here);
	return r < 0 ? 0 : r;
}
