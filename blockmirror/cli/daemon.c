/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blockmirrord, where one runs: it starts and stops the disks, and knows of those that are not
 * served now. Without one all commands do what they do by themselves.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"

#define ANSWER 3000000000ull /* ns: one that is well answers sooner */

bool cli_daemon(const struct cli *cli, struct bm_client **client)
{
	bm_free char *path = NULL;

	if (asprintf(&path, "%s/blockmirrord.sock", cli->run_dir) < 0)
		return false;
	return !bm_client_connect(path, client, NULL);
}

json_t *cli_daemon_ask(const struct cli *cli, const char *method, json_t *params)
{
	struct bm_client *client;
	json_t *result = NULL;

	if (!cli_daemon(cli, &client)) {
		json_decref(params);
		return NULL;
	}
	bm_client_set_timeout(client, ANSWER);
	bm_client_call(client, method, params, &result, NULL);
	bm_client_close(client);
	return result;
}

json_t *cli_supervision(const struct cli *cli, const char *name)
{
	return cli_daemon_ask(cli, "show", json_pack("{s:s}", "name", name));
}

bool cli_daemon_waits(const json_t *disk)
{
	const char *state = cli_text(disk, "state");

	return !strcmp(state, "waiting") ||
	       (!strcmp(state, "starting") && cli_number(disk, "failures") > 1);
}

int cli_daemon_why(const json_t *disk, struct bm_error *error)
{
	const json_t *failure = json_object_get(disk, "error");
	char wait[BM_UNITS_TEXT];

	return bm_fail(error, BM_E_UNREACHABLE,
		       "disk %s is not running; it is started again in %s; the last time: %s: %s",
		       cli_text(disk, "name"),
		       bm_format_duration(wait, cli_number(disk, "retry_ns")),
		       cli_text(failure, "code"), cli_text(failure, "message"));
}

int cli_daemon_call(const struct cli *cli, const char *method, json_t *params, json_t **result,
		    struct bm_error *error)
{
	struct bm_client *client;
	int r;

	if (!cli_daemon(cli, &client)) {
		json_decref(params);
		return bm_fail(error, BM_E_NOT_FOUND, "no blockmirrord runs (looked in %s)",
			       cli->run_dir);
	}
	r = bm_client_call(client, method, params, result, error);
	bm_client_close(client);
	return r;
}
