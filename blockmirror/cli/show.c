/* SPDX-License-Identifier: BSD-3-Clause */
/* list, show, stop, upgrade, forget */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"

enum { OPT_XML = 256 };

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
		bool standby = !strcmp(cli_text(disk, "role"), "standby");
		char size[BM_UNITS_TEXT];

		printf("%-16s %-10s %-12s %s\n", cli_text(disk, "name"),
		       bm_format_size(size, cli_number(disk, "size")),
		       cli_text(disk, standby ? "role" : "state"), cli_text(disk, "uri"));
	}
	json_decref(disks);
	return 0;
}

/* Only what somebody has to know. */
static void print_storage(const json_t *storage)
{
	time_t since = (time_t)(cli_number(storage, "since") / 1000000000u);
	char at[64] = "", lost[BM_UNITS_TEXT];
	struct tm tm;

	if (!cli_number(storage, "since"))
		return;
	if (localtime_r(&since, &tm))
		strftime(at, sizeof(at), "%F %T", &tm);
	printf("storage     unreachable since %s (%s), trying again (%" PRIu64 " attempts): %s\n",
	       at, bm_format_duration(lost, cli_number(storage, "lost_ns")),
	       cli_number(storage, "attempts"), cli_text(storage, "why"));
	if (!strcmp(cli_text(storage, "state"), "failed"))
		puts("            the time set by --reconnect-timeout is over: the guest gets "
		     "errors");
}

static void print_disk(const json_t *disk)
{
	const json_t *job = json_object_get(disk, "job"), *client;
	const json_t *server = json_object_get(disk, "server");
	char size[BM_UNITS_TEXT], bound[BM_UNITS_TEXT];
	size_t i;

	printf("disk        %s (%s)\n", cli_text(disk, "name"), cli_text(disk, "disk"));
	printf("image       %s\n", cli_text(disk, "uri"));
	printf("generation  %" PRIu64 ", role %s%s%s\n", cli_number(disk, "generation"),
	       cli_text(disk, "role"), *cli_text(disk, "peer") ? " of host " : "",
	       cli_text(disk, "peer"));
	printf("size        %s\n", bm_format_size(size, cli_number(disk, "size")));
	printf("served at   %s\n", cli_text(disk, "nbd"));
	printf("state       %s\n", cli_text(disk, "state"));
	print_storage(json_object_get(disk, "storage"));
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
	cli_print_target_rules("target      ", job);
	json_array_foreach(json_object_get(disk, "clients"), i, client)
		printf("client      %s: %" PRIu64 " requests, %" PRIu64 " in flight\n",
		       cli_text(client, "peer"), cli_number(client, "requests"),
		       cli_number(client, "in_flight"));
}

static void print_supervision(const json_t *s)
{
	const json_t *failure = json_object_get(s, "error");
	char text[BM_UNITS_TEXT];

	if (!s)
		return;
	printf("process     %s", cli_text(s, "state"));
	if (cli_number(s, "restarts"))
		printf(", started again %" PRIu64 " times", cli_number(s, "restarts"));
	if (cli_number(s, "back_ns"))
		printf(", the last time within %s",
		       bm_format_duration(text, cli_number(s, "back_ns")));
	if (json_object_get(s, "retry_ns"))
		printf(", again in %s", bm_format_duration(text, cli_number(s, "retry_ns")));
	putchar('\n');
	if (failure)
		printf("last end    %s: %s\n", cli_text(failure, "code"),
		       cli_text(failure, "message"));
}

/* One argument, a disk's name. Returns 0, an exit code, or -1 when help was printed. */
static int one_name(struct cli *cli, int argc, char **argv)
{
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);

	return r ? r : cli_arguments(cli, argc, 1, 1);
}

static int show_served(const struct cli *cli, const char *name, json_t *supervised)
{
	struct bm_client *client;
	struct bm_error error;
	json_t *disk = NULL;
	int r = cli_connect(cli, name, &client, &error);

	if (!r) {
		r = bm_client_call(client, "show", NULL, &disk, &error);
		bm_client_close(client);
	}
	if (r < 0)
		return cli_fail(cli, &error);
	if (supervised)
		json_object_set(disk, "supervision", supervised);
	if (cli->json) {
		cli_print_json(disk);
		return 0;
	}
	print_disk(disk);
	print_supervision(supervised);
	json_decref(disk);
	return 0;
}

static int take_xml(int option, const char *value, void *arg)
{
	(void)option;
	(void)value;
	*(bool *)arg = true;
	return 0;
}

/* Also of a disk that is not served now: a domain names it before it starts. */
static int show_xml(const struct cli *cli, const char *name)
{
	bm_free char *run = realpath(cli->run_dir, NULL), *socket = NULL;
	json_t *known = cli_supervision(cli, name);
	struct bm_error error;

	if (!known && !cli_is_served(cli, name)) {
		bm_fail(&error, BM_E_NOT_FOUND, "no disk \"%s\" is known in %s", name,
			cli->run_dir);
		return cli_fail(cli, &error);
	}
	json_decref(known);
	if (asprintf(&socket, "%s/disks/%s.nbd", run ? run : cli->run_dir, name) < 0) {
		socket = NULL;
		return 1;
	}
	cli_put_libvirt(name, socket);
	return 0;
}

int cmd_show(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {{"xml", no_argument, NULL, OPT_XML}, {0}};
	bool xml = false;
	int r = cli_options(cli, argc, argv, own, take_xml, &xml);
	json_t *supervised;

	if (!r)
		r = cli_arguments(cli, argc, 1, 1);
	if (r)
		return r < 0 ? 0 : r;
	if (xml)
		return show_xml(cli, argv[optind]);
	supervised = cli_supervision(cli, argv[optind]);
	if (strcmp(cli_text(supervised, "state"), "stopped") != 0 &&
	    !cli_daemon_waits(supervised)) {
		r = show_served(cli, argv[optind], supervised);
	} else if (cli->json) {
		cli_print_json(json_incref(supervised));
	} else {
		printf("disk        %s\n", argv[optind]);
		print_supervision(supervised);
	}
	json_decref(supervised);
	return r;
}

/* The disk's process is asked, and has ended when its connection has. */
static int stop_process(const struct cli *cli, const char *name, json_t **result,
			struct bm_error *error)
{
	struct bm_client *client;
	int r = cli_connect(cli, name, &client, error);

	if (r < 0)
		return r;
	r = bm_client_call(client, "stop", NULL, result, error);
	if (!r) /* no answer has this id: it waits until the connection ends */
		bm_client_wait(client, -1, NULL, NULL, NULL);
	bm_client_close(client);
	return r;
}

static int print_result(const struct cli *cli, int r, json_t *result, const struct bm_error *error)
{
	if (r < 0)
		return cli_fail(cli, error);
	if (cli->json)
		cli_print_json(result);
	else
		json_decref(result);
	return 0;
}

int cmd_stop(struct cli *cli, int argc, char **argv)
{
	struct bm_error error;
	json_t *result = NULL, *supervised;
	const char *name;
	int r = one_name(cli, argc, argv);

	if (r)
		return r < 0 ? 0 : r;
	name = argv[optind];
	supervised = cli_supervision(cli, name);
	if (supervised)
		r = cli_daemon_call(cli, "stop", json_pack("{s:s}", "name", name), &result, &error);
	else
		r = stop_process(cli, name, &result, &error);
	json_decref(supervised);
	return print_result(cli, r, result, &error);
}

int cmd_upgrade(struct cli *cli, int argc, char **argv)
{
	struct bm_client *client;
	struct bm_error error;
	json_t *result = NULL;
	char stall[BM_UNITS_TEXT], drain[BM_UNITS_TEXT];
	int r = one_name(cli, argc, argv);

	if (r)
		return r < 0 ? 0 : r;
	r = cli_connect(cli, argv[optind], &client, &error);
	if (!r) {
		r = bm_client_call(client, "upgrade", NULL, &result, &error);
		bm_client_close(client);
	}
	if (!r && !cli->json)
		printf("disk %s: process %" PRIu64 " (version %s) took over from process %" PRIu64
		       " (version %s): %" PRIu64 " clients, stall %s, %s of it until requests in "
		       "flight had ended\n",
		       argv[optind], cli_number(result, "pid"), cli_text(result, "version"),
		       cli_number(result, "old_pid"), cli_text(result, "old_version"),
		       cli_number(result, "clients"),
		       bm_format_duration(stall, cli_number(result, "stall_ns")),
		       bm_format_duration(drain, cli_number(result, "drain_ns")));
	return print_result(cli, r, result, &error);
}

int cmd_forget(struct cli *cli, int argc, char **argv)
{
	struct bm_error error;
	json_t *result = NULL;
	int r = one_name(cli, argc, argv);

	if (r)
		return r < 0 ? 0 : r;
	r = cli_daemon_call(cli, "forget", json_pack("{s:s}", "name", argv[optind]), &result,
			    &error);
	return print_result(cli, r, result, &error);
}
