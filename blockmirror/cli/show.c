/* SPDX-License-Identifier: BSD-3-Clause */
/* list, show, stop */
#include <inttypes.h>
#include <stdio.h>

#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"

int cmd_list(struct cli *cli, int argc, char **argv)
{
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);
	json_t *disks, *disk;
	size_t i;

	if (!r)
		r = cli_arguments(cli, argc, 0, 0);
	if (r)
		return r < 0 ? 0 : r;
	disks = cli_all_disks(cli);
	if (cli->json) {
		cli_print_json(json_pack("{s:i s:o}", "v", 1, "disks", disks));
		return 0;
	}
	printf("%-16s %-10s %-12s %s\n", "NAME", "SIZE", "STATE", "IMAGE");
	json_array_foreach(disks, i, disk) {
		char size[BM_UNITS_TEXT];

		printf("%-16s %-10s %-12s %s\n", cli_text(disk, "name"),
		       bm_format_size(size, cli_number(disk, "size")), cli_text(disk, "state"),
		       cli_text(disk, "uri"));
	}
	json_decref(disks);
	return 0;
}

static void print_disk(const json_t *disk)
{
	const json_t *job = json_object_get(disk, "job"), *client;
	const json_t *server = json_object_get(disk, "server");
	char size[BM_UNITS_TEXT], bound[BM_UNITS_TEXT];
	size_t i;

	printf("disk        %s (%s)\n", cli_text(disk, "name"), cli_text(disk, "disk"));
	printf("image       %s\n", cli_text(disk, "uri"));
	printf("generation  %" PRIu64 ", role %s\n", cli_number(disk, "generation"),
	       cli_text(disk, "role"));
	printf("size        %s\n", bm_format_size(size, cli_number(disk, "size")));
	printf("served at   %s\n", cli_text(disk, "nbd"));
	printf("state       %s\n", cli_text(disk, "state"));
	printf("server      %" PRIu64 " of %" PRIu64 " connections, %" PRIu64
	       " requests in flight, %s of memory (at most %s)\n",
	       cli_number(server, "connections"), cli_number(server, "max_connections"),
	       cli_number(server, "in_flight"), bm_format_size(size, cli_number(server, "memory")),
	       bm_format_size(bound, cli_number(server, "memory_bound")));
	if (json_is_object(job))
		printf("job         %s: %s to %s, %s%s%s\n", cli_text(job, "id"),
		       cli_text(job, "kind"), cli_text(job, "target"), cli_text(job, "state"),
		       *cli_text(disk, "limiter") ? ", limited by " : "",
		       cli_text(disk, "limiter"));
	json_array_foreach(json_object_get(disk, "clients"), i, client)
		printf("client      %s: %" PRIu64 " requests, %" PRIu64 " in flight\n",
		       cli_text(client, "peer"), cli_number(client, "requests"),
		       cli_number(client, "in_flight"));
}

/* Calls a method of the disk that is the only argument; until_end: and waits for the process's end.
 */
static int call_one(struct cli *cli, int argc, char **argv, const char *method, bool until_end,
		    json_t **result)
{
	struct bm_client *client;
	struct bm_error error;
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);

	if (!r)
		r = cli_arguments(cli, argc, 1, 1);
	if (r)
		return r;
	r = cli_connect(cli, argv[optind], &client, &error);
	if (!r) {
		r = bm_client_call(client, method, NULL, result, &error);
		if (!r && until_end) /* no answer has this id: it waits until the connection ends */
			bm_client_wait(client, -1, NULL, NULL, NULL);
		bm_client_close(client);
	}
	return r < 0 ? cli_fail(cli, &error) : 0;
}

int cmd_show(struct cli *cli, int argc, char **argv)
{
	json_t *disk = NULL;
	int r = call_one(cli, argc, argv, "show", false, &disk);

	if (r)
		return r < 0 ? 0 : r;
	if (cli->json) {
		cli_print_json(disk);
	} else {
		print_disk(disk);
		json_decref(disk);
	}
	return 0;
}

int cmd_stop(struct cli *cli, int argc, char **argv)
{
	json_t *result = NULL;
	int r = call_one(cli, argc, argv, "stop", true, &result);

	if (r)
		return r < 0 ? 0 : r;
	if (cli->json)
		cli_print_json(result);
	else
		json_decref(result);
	return 0;
}
