/* SPDX-License-Identifier: BSD-3-Clause */
/* What the configuration says to commands; --check-config; maintenance. */
#include "blockmirror/base/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/maintenance.h"
#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"

static void put_errors(const json_t *errors)
{
	const json_t *e;
	size_t i;

	json_array_foreach(errors, i, e) {
		uint64_t line = cli_number(e, "line");

		if (line)
			fprintf(stderr, "%s:%llu: %s\n", cli_text(e, "file"),
				(unsigned long long)line, cli_text(e, "message"));
		else
			fprintf(stderr, "%s: %s\n", cli_text(e, "file"), cli_text(e, "message"));
	}
}

int cli_check_config(const struct cli *cli, const char *file)
{
	json_t *config, *errors;
	size_t n;

	bm_config_read(file, &config, &errors);
	n = json_array_size(errors);
	if (cli->json) {
		cli_print_json(
			json_pack("{s:i s:O s:O}", "v", 1, "errors", errors, "config", config));
	} else {
		put_errors(errors);
		printf("%s: %zu error%s, %zu datastores, %zu peers\n",
		       file ? file : bm_config_file(), n, n == 1 ? "" : "s",
		       json_object_size(json_object_get(config, "datastores")),
		       json_object_size(json_object_get(config, "peers")));
	}
	json_decref(config);
	json_decref(errors);
	return n ? 2 : 0;
}

/* A mistake in it keeps no command from what it does without it; what moves many disks it does. */
json_t *cli_read_config(bool tell, bool *good)
{
	json_t *config, *errors;

	bm_config_read(NULL, &config, &errors);
	*good = !json_array_size(errors);
	if (tell)
		put_errors(errors);
	json_decref(errors);
	return config;
}

int cli_wants_config(const struct cli *cli)
{
	struct bm_error error;

	if (cli->config_good)
		return 0;
	bm_fail(&error, BM_E_USAGE,
		"the configuration has mistakes: \"blockmirror --check-config\" tells where");
	return cli_fail(cli, &error);
}

const json_t *cli_datastore(const struct cli *cli, const char *name)
{
	return json_object_get(json_object_get(cli->config, "datastores"), name);
}

void cli_put_defaults(const struct cli *cli, json_t *params)
{
	static const struct {
		const char *key, *param;
		int (*read)(const struct cli *cli, const char *value, json_t **out);
	} defaults[] = {{"guest-latency", "guest_latency", cli_latency},
			{"target-deadline", "target_deadline", cli_deadline},
			{"on-target-loss", "on_target_loss", cli_target_loss}};

	for (size_t i = 0; i < sizeof(defaults) / sizeof(defaults[0]); i++) {
		const char *value = bm_config_text(cli->config, "defaults", defaults[i].key);
		json_t *read = NULL;

		if (value && !json_object_get(params, defaults[i].param) &&
		    !defaults[i].read(cli, value, &read))
			json_object_set_new(params, defaults[i].param, read);
	}
}

/* Maintenance */

/* What a user means by one: a name of the configuration's, bm:, or a folder. malloc()ed. */
static char *folder_of(const struct cli *cli, const char *given, struct bm_error *error)
{
	const char *path = json_string_value(json_object_get(cli_datastore(cli, given), "path"));
	char *real;

	path = path ? path : given;
	if (!strncmp(path, "bm:", 3))
		return strdup(path);
	real = realpath(path, NULL);
	if (!real && *path == '/') /* it may be away just now */
		return strdup(path);
	if (!real)
		bm_fail_errno(error, errno,
			      "%s is no datastore of the configuration, and no folder", given);
	return real;
}

static int put_status(const struct cli *cli, const char *folder)
{
	struct bm_error error;
	json_t *list = bm_maintenance_list(cli->state_dir, &error), *entry;
	bool is = list && (folder ? bm_maintenance_folder(cli->state_dir, folder, NULL) < 0
				  : json_is_true(json_object_get(list, "host")));
	size_t i;

	if (!list)
		return cli_fail(cli, &error);
	if (cli->json) {
		json_object_set_new(list, "v", json_integer(1));
		if (folder)
			json_object_set_new(
				list, "datastore",
				json_pack("{s:s s:b}", "path", folder, "maintenance", (int)is));
		cli_print_json(list);
		return 0;
	}
	if (folder) {
		printf("%s is %sin maintenance\n", folder, is ? "" : "not ");
	} else {
		printf("this host is %sin maintenance\n", is ? "" : "not ");
		json_array_foreach(json_object_get(list, "datastores"), i, entry)
			printf("%s is in maintenance\n", json_string_value(entry));
	}
	json_decref(list);
	return 0;
}

int cmd_maintenance(struct cli *cli, int argc, char **argv)
{
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);
	bm_free char *folder = NULL;
	struct bm_error error = {0};
	const char *what, *where;
	bool on;

	if (!r)
		r = cli_arguments(cli, argc, 1, 2);
	if (r)
		return r < 0 ? 0 : r;
	what = argv[optind];
	where = argv[optind + 1];
	on = !strcmp(what, "on");
	if (!on && strcmp(what, "off") != 0 && strcmp(what, "status") != 0)
		return cli_usage(cli, "%s: on, off or status is wanted", what);
	if (where && strcmp(where, "host") != 0) {
		folder = folder_of(cli, where, &error);
		if (!folder)
			return cli_fail(cli, &error);
	}
	if (strcmp(what, "status") != 0 &&
	    bm_maintenance_set(cli->state_dir, folder, on, &error) < 0)
		return cli_fail(cli, &error);
	return put_status(cli, folder);
}
