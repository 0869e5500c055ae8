/* SPDX-License-Identifier: BSD-3-Clause */
/* events: prints what the disks tell, a line of JSON each, until interrupted. */
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/cli/cli.h"

enum { MOST = 256 };

struct follower {
	struct bm_client *client[MOST];
	struct pollfd poll[MOST];
	int n;
};

static int add(struct follower *f, const struct cli *cli, const char *name, struct bm_error *error)
{
	struct bm_client *client;
	int r = cli_connect(cli, name, &client, error);

	if (!r)
		r = bm_client_call(client, "events", NULL, NULL, error);
	if (r < 0)
		return r;
	f->client[f->n] = client;
	f->poll[f->n].fd = bm_client_fd(client);
	f->poll[f->n++].events = POLLIN;
	return 0;
}

static void leave(struct follower *f, int i)
{
	bm_client_close(f->client[i]);
	f->client[i] = f->client[--f->n];
	f->poll[i] = f->poll[f->n];
}

/* Prints what has come; false when the disk has gone. */
static bool print(struct bm_client *client)
{
	do {
		json_t *event = NULL;

		if (bm_client_wait(client, -1, NULL, &event, NULL) < 0)
			return false;
		json_dumpf(event, stdout, JSON_COMPACT);
		putchar('\n');
		fflush(stdout);
		json_decref(event);
	} while (bm_client_pending(client));
	return true;
}

static void follow(struct follower *f)
{
	while (f->n && poll(f->poll, (nfds_t)f->n, -1) >= 0)
		for (int i = f->n - 1; i >= 0; i--)
			if (f->poll[i].revents && !print(f->client[i]))
				leave(f, i);
}

int cmd_events(struct cli *cli, int argc, char **argv)
{
	struct follower f = {.n = 0};
	struct bm_error error = {0};
	json_t *disks, *disk;
	size_t i;
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);

	if (!r)
		r = cli_arguments(cli, argc, 0, 1);
	if (r)
		return r < 0 ? 0 : r;
	if (argv[optind]) {
		if (add(&f, cli, argv[optind], &error) < 0)
			return cli_fail(cli, &error);
	} else {
		disks = cli_all_disks(cli);
		json_array_foreach(disks, i, disk)
			if (f.n < MOST && json_object_get(disk, "pid"))
				add(&f, cli, cli_text(disk, "name"), NULL);
		json_decref(disks);
	}
	follow(&f);
	return 0;
}
