/* SPDX-License-Identifier: BSD-3-Clause */
/* migrate --all: this host's machines go to another one, one after the other. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/cli/machine.h"

/* One that stays does not keep the others here. */
static int move_each(const struct cli *cli, json_t *machines, const char *to, const json_t *options,
		     json_t *results)
{
	json_t *machine;
	int status = 0;
	size_t i;

	json_array_foreach(machines, i, machine) {
		const char *name = cli_text(machine, "name");
		int one;

		if (json_object_get(machine, "away"))
			continue;
		one = cli_migrate_machine(cli, name, to, json_deep_copy(options), false);
		status = status ? status : one;
		json_array_append_new(results, json_pack("{s:s s:i}", "name", name, "status", one));
	}
	return status;
}

static void tell(const json_t *results, const char *to, const char *how)
{
	json_t *result;
	size_t i;

	json_array_foreach(results, i, result) {
		int status = (int)cli_number(result, "status");

		if (status)
			printf("%-20s stays: exit status %d\n", cli_text(result, "name"), status);
		else
			printf("%-20s %s %s\n", cli_text(result, "name"), how, to);
	}
}

int cli_migrate_all(const struct cli *cli, const char *to, json_t *options)
{
	const char *how = json_is_true(json_object_get(options, "dry_run"))    ? "could go to"
			  : json_is_true(json_object_get(options, "rehearse")) ? "could move to"
									       : "is on";
	struct bm_error error;
	json_t *result = NULL, *results = json_array();
	int status = cli_daemon_call(cli, "machine.list", NULL, &result, &error);

	if (status < 0)
		status = cli_fail(cli, &error);
	else
		status = move_each(cli, json_object_get(result, "machines"), to, options, results);
	if (cli->json && result)
		cli_print_json(json_pack("{s:i s:O}", "v", 1, "machines", results));
	else
		tell(results, to, how);
	json_decref(results);
	json_decref(result);
	json_decref(options);
	return status;
}
