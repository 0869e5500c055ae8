/* SPDX-License-Identifier: BSD-3-Clause */
/* serve: starts a blockmirror-disk that outlives this command, and says how to use it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"

enum { OPT_CREATE = 256, OPT_FORCE, OPT_FLATTEN, OPT_CONNECTIONS, OPT_DATA, OPT_RECONNECT };

struct serve {
	const struct cli *cli;
	const char *create, *connections, *data, *reconnect;
	bool force, flatten;
};

static int take(int option, const char *value, void *arg)
{
	struct serve *s = arg;
	uint64_t bytes;

	if (option == OPT_FORCE || option == OPT_FLATTEN) {
		*(option == OPT_FORCE ? &s->force : &s->flatten) = true;
		return 0;
	}
	if (option != OPT_CREATE) { /* blockmirror-disk says what is wrong with it */
		*(option == OPT_DATA          ? &s->data
		  : option == OPT_CONNECTIONS ? &s->connections
					      : &s->reconnect) = value;
		return 0;
	}
	s->create = value;
	if (bm_parse_size(value, &bytes) < 0 || !bytes)
		return cli_usage(s->cli, "--create %s: a size like 10G is wanted", value);
	return 0;
}

/* QEMU doubles a comma in a value. */
static void put_option(const char *text)
{
	for (; *text; text++)
		fputs(*text == ',' ? ",," : (char[]){*text, '\0'}, stdout);
}

static void print_use(const char *name, const char *uri)
{
	bm_free char *socket = bm_uri_socket(uri);

	printf("disk %s is served at %s\n", name, uri);
	if (!socket)
		return;
	printf("QEMU:    -blockdev driver=nbd,node-name=%s,server.type=unix,server.path=", name);
	put_option(socket);
	printf(",export=%s,reconnect-delay=30,discard=unmap\n", name);
	fputs("libvirt: ", stdout);
	cli_put_libvirt(name, socket);
}

static int show_json(const struct cli *cli, const char *name)
{
	struct bm_error error;
	struct bm_client *client;
	json_t *disk = NULL;
	int r = cli_connect(cli, name, &client, &error);

	if (!r) {
		r = bm_client_call(client, "show", NULL, &disk, &error);
		bm_client_close(client);
	}
	if (r < 0)
		return cli_fail(cli, &error);
	cli_print_json(disk);
	return 0;
}

/* Waits for "ready URI", or for the end. */
static int wait_ready(int pid, int output, const char *log, char **uri, struct bm_error *error)
{
	char line[4096];
	FILE *f = fdopen(output, "r");
	bool ready = f && fgets(line, sizeof(line), f) && !strncmp(line, "ready ", 6);
	int status = 0;

	if (f)
		fclose(f);
	if (!ready) {
		waitpid(pid, &status, 0);
		bm_spawn_failure(log, status, error);
		return -ECHILD;
	}
	line[strcspn(line, "\n")] = '\0';
	*uri = strdup(line + 6);
	return *uri ? pid : bm_fail_errno(error, ENOMEM, "disk");
}

/* It shall not depend on this command's working directory. */
static int absolute_folder(const char *folder, char **absolute, struct bm_error *error)
{
	int r = bm_make_folders(folder);

	*absolute = r < 0 ? NULL : realpath(folder, NULL);
	return *absolute ? 0 : bm_fail_errno(error, r < 0 ? r : errno, "cannot create %s", folder);
}

static int put_value(char **argv, int n, const char *option, const char *value)
{
	if (!value)
		return n;
	argv[n] = (char *)option;
	argv[n + 1] = (char *)value;
	return n + 2;
}

/* By the daemon, which serves it from now on. */
static int start_by_daemon(const struct serve *serve, const char *name, const char *image)
{
	const struct cli *cli = serve->cli;
	bm_free char *state = NULL, *uri = image ? bm_uri_absolute(image) : NULL;
	json_t *params, *result = NULL;
	struct bm_error error;
	uint64_t create = 0;
	int r = 0;

	if (absolute_folder(cli->state_dir, &state, &error) < 0)
		return cli_fail(cli, &error);
	if (serve->create)
		bm_parse_size(serve->create, &create);
	params = json_pack("{s:s s:s* s:I s:b s:b s:s s:{s:s* s:s* s:s*}}", "name", name, "image",
			   uri, "create", (json_int_t)create, "force", (int)serve->force, "flatten",
			   (int)serve->flatten, "state_directory", state, "limits",
			   "max-connections", serve->connections, "max-data", serve->data,
			   "reconnect-timeout", serve->reconnect);
	if (!params)
		return cli_usage(cli, "%s: the name is not UTF-8", image ? image : state);
	if (cli_daemon_call(cli, "serve", params, &result, &error) < 0)
		return cli_fail(cli, &error);
	if (cli->json)
		r = show_json(cli, name);
	else
		print_use(name, cli_text(result, "nbd"));
	json_decref(result);
	return r;
}

int cli_start_disk(const struct cli *cli, const char *name, const char *image,
		   const char *const *options, char **nbd, struct bm_error *error)
{
	bm_free char *run = NULL, *state = NULL, *log = NULL, *disks = NULL, *uri = NULL;
	char *argv[24];
	int n = 0, output = -1, r;

	if (absolute_folder(cli->run_dir, &run, error) < 0 ||
	    absolute_folder(cli->state_dir, &state, error) < 0)
		return -EINVAL;
	uri = image ? bm_uri_absolute(image) : NULL;
	if (asprintf(&disks, "%s/disks", run) < 0 || bm_make_folders(disks) < 0 ||
	    asprintf(&log, "%s/%s.log", disks, name) < 0)
		return bm_fail_errno(error, errno, "cannot use %s", run);
	argv[n++] = (char *)"blockmirror-disk";
	n = put_value(argv, n, "--name", name);
	n = put_value(argv, n, "--run-dir", run);
	n = put_value(argv, n, "--state-dir", state);
	while (*options)
		argv[n++] = (char *)*options++;
	if (image)
		argv[n++] = uri ? uri : (char *)image;
	argv[n] = NULL;
	r = bm_spawn_disk(&(struct bm_spawn){.argv = argv, .log = log, .output = &output});
	if (r < 0)
		return bm_fail_errno(error, r, "cannot start blockmirror-disk");
	return wait_ready(r, output, log, nbd, error);
}

static int start(const struct serve *serve, const char *name, const char *image)
{
	const struct cli *cli = serve->cli;
	bm_free char *nbd = NULL;
	char *options[12];
	struct bm_error error;
	int n = 0;

	n = put_value(options, n, "--create", serve->create);
	n = put_value(options, n, "--max-connections", serve->connections);
	n = put_value(options, n, "--max-data", serve->data);
	n = put_value(options, n, "--reconnect-timeout", serve->reconnect);
	if (serve->force)
		options[n++] = (char *)"--force";
	if (serve->flatten)
		options[n++] = (char *)"--flatten";
	options[n] = NULL;
	if (cli_start_disk(cli, name, image, (const char *const *)options, &nbd, &error) < 0)
		return cli_fail(cli, &error);
	if (cli->json)
		return show_json(cli, name);
	print_use(name, nbd);
	return 0;
}

int cmd_serve(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {
		{"create", required_argument, NULL, OPT_CREATE},
		{"force", no_argument, NULL, OPT_FORCE},
		{"flatten", no_argument, NULL, OPT_FLATTEN},
		{"max-connections", required_argument, NULL, OPT_CONNECTIONS},
		{"max-data", required_argument, NULL, OPT_DATA},
		{"reconnect-timeout", required_argument, NULL, OPT_RECONNECT},
		{0}};
	struct serve serve = {.cli = cli};
	struct bm_client *daemon_client;
	struct bm_error error;
	const char *name;
	int r = cli_options(cli, argc, argv, own, take, &serve);

	if (!r)
		r = cli_arguments(cli, argc, 1, 2);
	if (r)
		return r < 0 ? 0 : r;
	name = argv[optind];
	if (bm_disk_name_check(name, &error) < 0)
		return cli_fail(cli, &error);
	if (cli_daemon(cli, &daemon_client)) {
		bm_client_close(daemon_client);
		return start_by_daemon(&serve, name, argv[optind + 1]);
	}
	if (cli_is_served(cli, name)) {
		bm_fail(&error, BM_E_BUSY, "disk %s is served already", name);
		return cli_fail(cli, &error);
	}
	return start(&serve, name, argv[optind + 1]);
}
