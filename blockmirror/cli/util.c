/* SPDX-License-Identifier: BSD-3-Clause */
/* What the commands share: options, errors, connections. */
#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/day_window.h"
#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"

#define ANSWER 3000000000ull /* ns: who is well answers sooner */

enum { OPT_RUN = 1, OPT_STATE, OPT_JSON, OPT_PROGRESS, OPT_HELP, MOST_OPTIONS = 24 };

static const struct option common[] = {
	{"run-dir", required_argument, NULL, OPT_RUN},
	{"state-dir", required_argument, NULL, OPT_STATE},
	{"json", no_argument, NULL, OPT_JSON},
	{"progress", required_argument, NULL, OPT_PROGRESS},
	{"help", no_argument, NULL, OPT_HELP},
};
enum { COMMON = sizeof(common) / sizeof(common[0]) };

static void print_command_help(const struct command *c)
{
	printf("usage: blockmirror %s %s\n\n%s.\n", c->name, c->synopsis, c->summary);
	if (c->help)
		printf("\n%s", c->help);
}

static int set_progress(struct cli *cli, const char *value)
{
	static const char *const names[] = {"auto", "bar", "plain", "json", "none"};

	for (int i = 0; i <= PROGRESS_NONE; i++)
		if (!strcmp(names[i], value)) {
			cli->progress = (enum progress_style)i;
			return 0;
		}
	return cli_usage(cli, "--progress %s: auto, bar, plain, json or none is wanted", value);
}

static int take_common(struct cli *cli, int option)
{
	switch (option) {
	case OPT_RUN:
		cli->run_dir = optarg;
		cli->run_dir_given = true;
		return 0;
	case OPT_STATE:
		cli->state_dir = optarg;
		return 0;
	case OPT_JSON:
		cli->json = true;
		return 0;
	case OPT_PROGRESS:
		return set_progress(cli, optarg);
	default:
		if (cli->command)
			print_command_help(cli->command);
		return -1;
	}
}

int cli_options(struct cli *cli, int argc, char **argv, const struct option *own,
		int (*take)(int option, const char *value, void *arg), void *arg)
{
	struct option all[MOST_OPTIONS] = {0};
	int n = COMMON, c, r = 0;

	memcpy(all, common, sizeof(common));
	for (; own && own->name && n < MOST_OPTIONS - 1; own++)
		all[n++] = *own;
	opterr = 0; /* one line, and ours */
	/* Before the command getopt stops at it ("+"); after it options may stand anywhere. */
	while (!r && (c = getopt_long(argc, argv, cli->command ? ":" : "+:", all, NULL)) != -1) {
		if (c == '?')
			r = cli_usage(cli, "%s: unknown option, or one that takes no value",
				      argv[optind - 1]);
		else if (c == ':')
			r = cli_usage(cli, "%s: a value is wanted", argv[optind - 1]);
		else
			r = c <= OPT_HELP ? take_common(cli, c) : take(c, optarg, arg);
	}
	return r;
}

int cli_arguments(const struct cli *cli, int argc, int least, int most)
{
	int n = argc - optind;

	if (n < least || n > most)
		return cli_usage(cli, "%s arguments", n < least ? "too few" : "too many");
	return 0;
}

int cli_usage(const struct cli *cli, const char *format, ...)
{
	struct bm_error error = {.code = BM_E_USAGE};
	va_list args;
	size_t used;

	va_start(args, format);
	vsnprintf(error.text, sizeof(error.text), format, args);
	va_end(args);
	used = strlen(error.text);
	snprintf(error.text + used, sizeof(error.text) - used, " (see blockmirror %s%s--help)",
		 cli->command ? cli->command->name : "", cli->command ? " " : "");
	return cli_fail(cli, &error);
}

int cli_fail(const struct cli *cli, const struct bm_error *error)
{
	if (cli->json)
		cli_print_json(json_pack("{s:i s:{s:s s:s}}", "v", 1, "error", "code",
					 bm_code_name(error->code), "message", error->text));
	else
		fprintf(stderr, "blockmirror: %s: %s\n", bm_code_name(error->code), error->text);
	return bm_code_exit(error->code);
}

void cli_print_json(json_t *value)
{
	json_dumpf(value, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(value);
}

char *cli_socket(const struct cli *cli, const char *name)
{
	char *path;

	return asprintf(&path, "%s/disks/%s.sock", cli->run_dir, name) < 0 ? NULL : path;
}

int cli_connect(const struct cli *cli, const char *name, struct bm_client **client,
		struct bm_error *error)
{
	bm_free char *path = cli_socket(cli, name);
	json_t *supervised;
	int r = 0;

	if (!path)
		return bm_fail_errno(error, ENOMEM, "%s", name);
	if (strchr(name, '/'))
		return bm_fail(error, BM_E_NOT_FOUND, "\"%s\" is not a disk's name", name);
	/* Its sockets take connections all the time: nobody would answer. */
	supervised = cli_supervision(cli, name);
	if (cli_daemon_waits(supervised))
		r = cli_daemon_why(supervised, error);
	json_decref(supervised);
	if (r < 0)
		return r;
	r = bm_client_connect(path, client, error);
	if (r == -ENOENT || r == -ECONNREFUSED || r == -ENOTDIR)
		return bm_fail(error, BM_E_NOT_FOUND,
			       "no disk \"%s\" is served (looked in %s/disks)", name, cli->run_dir);
	return r;
}

char *cli_hint(const struct cli *cli)
{
	bm_free char *quoted = malloc(4 * strlen(cli->run_dir) + 1);
	char *to = quoted, *hint;

	if (!cli->run_dir_given)
		return strdup("blockmirror");
	if (!quoted)
		return NULL;
	for (const char *from = cli->run_dir; *from; from++)
		to = stpcpy(to, *from == '\'' ? "'\\''" : (char[]){*from, '\0'});
	return asprintf(&hint, "blockmirror --run-dir '%s'", quoted) < 0 ? NULL : hint;
}

bool cli_is_served(const struct cli *cli, const char *name)
{
	struct bm_client *client;

	int r;

	if (strchr(name, '/') || strchr(name, ':') || cli_connect(cli, name, &client, NULL) < 0)
		return false;
	/* A process that is being killed still takes connections. */
	bm_client_set_timeout(client, ANSWER);
	r = bm_client_call(client, "show", NULL, NULL, NULL);
	bm_client_close(client);
	return !r;
}

/* supervised: what the daemon says about it; NULL: nothing. */
static json_t *show_one(const struct cli *cli, const char *name, json_t *supervised)
{
	bm_free char *path = cli_socket(cli, name);
	struct bm_client *client;
	json_t *disk = NULL;
	const char *state = "not running";

	if (supervised && strcmp(cli_text(supervised, "state"), "running") != 0)
		return json_incref(supervised);
	if (path && !bm_client_connect(path, &client, NULL)) {
		bm_client_set_timeout(client, ANSWER);
		bm_client_call(client, "show", NULL, &disk, NULL);
		bm_client_close(client);
		state = "does not answer";
	}
	if (!disk)
		return json_pack("{s:s s:s}", "name", name, "state", state);
	if (supervised)
		json_object_set(disk, "supervision", supervised);
	return disk;
}

/* By name: what the daemon has; null for those whose sockets alone are there. */
static json_t *find_disks(const struct cli *cli)
{
	json_t *answer = cli_daemon_ask(cli, "list", NULL), *names = json_object(), *disk;
	bm_free char *folder = NULL;
	struct dirent **entries = NULL;
	int n = -1;
	size_t i;

	if (asprintf(&folder, "%s/disks", cli->run_dir) >= 0)
		n = scandir(folder, &entries, NULL, alphasort);
	for (int k = 0; k < n; k++) {
		char *name = entries[k]->d_name, *dot = strrchr(name, '.');

		if (dot && !strcmp(dot, ".sock")) {
			*dot = '\0';
			json_object_set_new(names, name, json_null());
		}
		free(entries[k]);
	}
	free(entries);
	json_array_foreach(json_object_get(answer, "disks"), i, disk)
		json_object_set(names, cli_text(disk, "name"), disk);
	json_decref(answer);
	return names;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

json_t *cli_all_disks(const struct cli *cli)
{
	json_t *names = find_disks(cli), *list = json_array(), *disk;
	size_t n = 0;
	const char *name;
	bm_free const char **sorted = calloc(json_object_size(names) + 1, sizeof(*sorted));

	json_object_foreach(names, name, disk)
		if (sorted)
			sorted[n++] = name;
	if (sorted)
		qsort(sorted, n, sizeof(*sorted), by_name);
	for (size_t i = 0; i < n; i++) {
		disk = json_object_get(names, sorted[i]);
		json_array_append_new(list,
				      show_one(cli, sorted[i], json_is_null(disk) ? NULL : disk));
	}
	json_decref(names);
	return list;
}

int cli_window(const struct cli *cli, const char *value, struct bm_day_window *window)
{
	return bm_day_window_parse(value, window) < 0
		       ? cli_usage(cli, "--window %s: times like 22:00-06:00 are wanted", value)
		       : 0;
}

int cli_size(const struct cli *cli, const char *option, const char *value, uint64_t *bytes)
{
	if (!bm_parse_size(value, bytes))
		return 0;
	return cli_usage(cli, "%s %s: a size like 64M is wanted", option, value);
}

int cli_latency(const struct cli *cli, const char *value, json_t **latency)
{
	uint64_t ns;

	if (!strcmp(value, "off") || !strcmp(value, "auto"))
		*latency = json_string(value);
	else if (!bm_parse_duration(value, &ns) && ns)
		*latency = json_integer((json_int_t)ns);
	else
		return cli_usage(cli, "--guest-latency %s: milliseconds, auto or off is wanted",
				 value);
	return 0;
}

int cli_deadline(const struct cli *cli, const char *value, json_t **deadline)
{
	uint64_t ns;

	if (bm_parse_duration(value, &ns) < 0 || ns < 10000000)
		return cli_usage(cli, "--target-deadline %s: a time of 10ms or more is wanted",
				 value);
	*deadline = json_integer((json_int_t)ns);
	return 0;
}

int cli_target_loss(const struct cli *cli, const char *value, json_t **loss)
{
	uint64_t ns;

	if (!strcmp(value, "wait") || !strcmp(value, "pause"))
		*loss = json_string(value);
	else if (!bm_parse_duration(value, &ns) && ns)
		*loss = json_integer((json_int_t)ns);
	else
		return cli_usage(cli, "--on-target-loss %s: wait, pause or a time is wanted",
				 value);
	return 0;
}

void cli_print_target_rules(const char *label, const json_t *job)
{
	const json_t *loss = json_object_get(job, "on_target_loss");
	char wait[BM_UNITS_TEXT], time[BM_UNITS_TEXT];

	if (!loss)
		return;
	printf("%sa write waits for it %s at most; when it is lost: ", label,
	       bm_format_duration(wait, cli_number(job, "target_deadline")));
	if (json_is_integer(loss))
		printf("give up after %s\n",
		       bm_format_duration(time, (uint64_t)json_integer_value(loss)));
	else
		puts(json_string_value(loss));
}

uint64_t cli_number(const json_t *object, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(object, key));
}

const char *cli_text(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}
