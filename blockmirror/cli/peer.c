/* SPDX-License-Identifier: BSD-3-Clause */
/* peer pair, add, allow, list, check, remove: hosts that trust each other */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/address.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"

enum {
	OPT_ADDRESS = 256,
	OPT_KEY_FILE,
	OPT_REPLACE,
	OPT_RECEIVE,
	OPT_SHARED,
	OPT_X509,
	OPT_IDENTITY,
	LONGEST_KEY = 256
};
#define CLOCKS_AGREE 1000000000 /* ns: more is told */

struct request {
	const struct cli *cli;
	const char *address, *key_file, *identity;
	json_t *receive; /* folders; NULL: none were given */
	json_t *shared;  /* paths and URIs; the same */
	bool replace, x509;
};

static int take_place(const struct request *q, json_t **list, const char *option, const char *value)
{
	char *path = bm_uri_absolute(value);

	if (!*list)
		*list = json_array();
	if (!path || json_array_append_new(*list, json_string(path)) < 0) {
		free(path);
		return cli_usage(q->cli, "%s %s: the name is not UTF-8", option, value);
	}
	free(path);
	return 0;
}

static int take(int option, const char *value, void *arg)
{
	struct request *q = arg;
	struct bm_error error;

	switch (option) {
	case OPT_ADDRESS:
		q->address = value;
		return bm_address_check(value, &error) < 0 ? cli_usage(q->cli, "%s", error.text)
							   : 0;
	case OPT_KEY_FILE:
		q->key_file = value;
		return 0;
	case OPT_RECEIVE:
		return take_place(q, &q->receive, "--receive", value);
	case OPT_SHARED:
		return take_place(q, &q->shared, "--shared", value);
	case OPT_IDENTITY:
		q->identity = value;
		return 0;
	case OPT_X509:
		q->x509 = true;
		return 0;
	default:
		q->replace = true;
		return 0;
	}
}

/* The first word of a file, or of what comes in: keys are no arguments, which everybody sees. */
static int read_key(const struct request *q, char *key, struct bm_error *error)
{
	bool from_file = q->key_file && strcmp(q->key_file, "-") != 0;
	FILE *f = from_file ? fopen(q->key_file, "re") : stdin;
	bool good;

	if (!f)
		return bm_fail_errno(error, errno, "cannot read %s", q->key_file);
	good = fgets(key, LONGEST_KEY, f);
	if (from_file)
		fclose(f);
	if (!good)
		return bm_fail(
			error, BM_E_USAGE,
			"there is no key: \"peer pair\" on the other host prints the line that "
			"brings one");
	key[strcspn(key, " \t\r\n")] = '\0';
	return 0;
}

static int done(const struct cli *cli, json_t *result, const char *format, const char *name)
{
	if (cli->json) {
		cli_print_json(result);
		return 0;
	}
	json_decref(result);
	printf(format, name);
	return 0;
}

static int add(struct request *q, const char *name, const char *address)
{
	char key[LONGEST_KEY] = "";
	struct bm_error error;
	json_t *result = NULL;
	int r = q->x509 ? 0 : read_key(q, key, &error);

	if (!r)
		r = cli_daemon_call(q->cli, "peer.add",
				    json_pack("{s:s s:s s:s* s:s* s:b s:O* s:O*}", "name", name,
					      "address", address, "key", q->x509 ? NULL : key,
					      "identity",
					      !q->x509      ? NULL
					      : q->identity ? q->identity
							    : name,
					      "replace", (int)q->replace, "receive", q->receive,
					      "shared", q->shared),
				    &result, &error);
	explicit_bzero(key, sizeof(key));
	if (r < 0)
		return cli_fail(q->cli, &error);
	return done(q->cli, result, "host %s is known now; \"blockmirror peer check\" tries it\n",
		    name);
}

/* Whether others can come to that address as it stands. */
static bool reachable(const char *listen)
{
	return listen && *listen != ':' && strncmp(listen, "0.0.0.0:", 8) != 0 &&
	       strncmp(listen, "[::]:", 5) != 0;
}

static int pair(struct request *q, const char *name, const char *address)
{
	struct bm_error error;
	json_t *known = NULL, *result = NULL;
	const char *ours = q->address;
	int r = cli_daemon_call(q->cli, "peer.list", NULL, &known, &error);

	if (!r && !ours)
		ours = json_string_value(json_object_get(known, "listen"));
	if (!r && !reachable(ours))
		r = bm_fail(&error, BM_E_USAGE,
			    "%s: say where %s reaches this host with --address HOST:PORT%s",
			    ours ? ours : "blockmirrord does not listen for other hosts", name,
			    ours ? "" : ", and start it with --listen");
	if (!r)
		r = cli_daemon_call(q->cli, "peer.pair",
				    json_pack("{s:s s:s s:b s:O* s:O*}", "name", name, "address",
					      address, "replace", (int)q->replace, "receive",
					      q->receive, "shared", q->shared),
				    &result, &error);
	if (r < 0)
		r = cli_fail(q->cli, &error);
	else if (q->cli->json)
		cli_print_json(json_incref(result));
	else
		printf("On %s, run:\n\n  blockmirror peer add %s %s <<<%s\n", name,
		       cli_text(result, "name"), ours, cli_text(result, "key"));
	json_decref(known);
	json_decref(result);
	return r;
}

static int allow(const struct request *q, const char *name)
{
	struct bm_error error;
	json_t *result = NULL;

	if (cli_daemon_call(q->cli, "peer.allow",
			    json_pack("{s:s s:O* s:O*}", "name", name, "receive", q->receive,
				      "shared", q->shared),
			    &result, &error) < 0)
		return cli_fail(q->cli, &error);
	return done(q->cli, result,
		    q->receive || q->shared ? "host %s may put disks there, and nowhere else\n"
					    : "host %s may put disks nowhere\n",
		    name);
}

static int list(const struct request *q)
{
	struct bm_error error;
	json_t *result = NULL, *peer, *folder;
	size_t i, k;

	if (cli_daemon_call(q->cli, "peer.list", NULL, &result, &error) < 0)
		return cli_fail(q->cli, &error);
	if (q->cli->json) {
		cli_print_json(result);
		return 0;
	}
	json_array_foreach(json_object_get(result, "peers"), i, peer) {
		printf("%-20s %s\n", cli_text(peer, "name"), cli_text(peer, "address"));
		if (json_object_get(peer, "identity"))
			printf("%-20s has a certificate for %s\n", "", cli_text(peer, "identity"));
		json_array_foreach(json_object_get(peer, "receive"), k, folder)
			printf("%-20s may put disks into %s\n", "", json_string_value(folder));
		json_array_foreach(json_object_get(peer, "shared"), k, folder)
			printf("%-20s may have disks on %s\n", "", json_string_value(folder));
	}
	json_decref(result);
	return 0;
}

static void print_check(const json_t *j)
{
	json_int_t ahead = json_integer_value(json_object_get(j, "clock_ahead_ns"));
	char rtt[BM_UNITS_TEXT], speed[BM_UNITS_TEXT], off[BM_UNITS_TEXT];

	printf("%s at %s: blockmirror %s, version %" PRIu64 "\n", cli_text(j, "peer"),
	       cli_text(j, "address"), cli_text(j, "software"), cli_number(j, "version"));
	printf("  round trip %s, %s/s under TLS, MTU %" PRIu64 "\n",
	       bm_format_duration(rtt, cli_number(j, "rtt_ns")),
	       bm_format_size(speed, cli_number(j, "bandwidth")), cli_number(j, "mtu"));
	if (strcmp(cli_text(j, "name"), cli_text(j, "peer")) != 0)
		printf("  it calls itself %s\n", cli_text(j, "name"));
	if (json_is_false(json_object_get(j, "data_covered")))
		printf("  its certificate is not for %s, where data comes to: no disk goes there\n",
		       cli_text(j, "data"));
	if (ahead > CLOCKS_AGREE || ahead < -CLOCKS_AGREE)
		printf("  its clock is %s %s ours\n",
		       bm_format_duration(off, (uint64_t)(ahead < 0 ? -ahead : ahead)),
		       ahead < 0 ? "behind" : "ahead of");
}

static int call(const struct request *q, const char *method, const char *name, json_t **result)
{
	struct bm_error error;

	return cli_daemon_call(q->cli, method, json_pack("{s:s}", "name", name), result, &error) < 0
		       ? cli_fail(q->cli, &error)
		       : 0;
}

static int check(const struct request *q, const char *name)
{
	json_t *result = NULL;
	int r = call(q, "peer.check", name, &result);

	if (r)
		return r;
	if (q->cli->json)
		cli_print_json(json_incref(result));
	else
		print_check(result);
	json_decref(result);
	return 0;
}

static int forget(const struct request *q, const char *name)
{
	json_t *result = NULL;
	int r = call(q, "peer.remove", name, &result);

	return r ? r : done(q->cli, result, "host %s is not known any more\n", name);
}

/* What was not given and the configuration says of that host; address, or what it says. */
static const char *fill_in(struct request *q, const char *name, const char *address)
{
	const json_t *peer = json_object_get(json_object_get(q->cli->config, "peers"), name);

	if (!q->receive)
		q->receive = json_incref(json_object_get(peer, "receive"));
	if (!q->shared)
		q->shared = json_incref(json_object_get(peer, "shared"));
	return address ? address : json_string_value(json_object_get(peer, "address"));
}

static int run(struct request *q, int argc, char **argv)
{
	const char *verb = argv[0], *address = NULL;
	int wanted = !strcmp(verb, "list")                           ? 1
		     : !strcmp(verb, "pair") || !strcmp(verb, "add") ? 3
								     : 2;

	if (argc > 1 && (wanted == 3 || !strcmp(verb, "allow")))
		address = fill_in(q, argv[1], argc > 2 ? argv[2] : NULL);
	if (argc != wanted && !(argc == 2 && wanted == 3 && address))
		return cli_usage(q->cli, "peer %s: %s", verb,
				 wanted == 3   ? "NAME and ADDRESS:PORT are wanted"
				 : wanted == 2 ? "one NAME is wanted"
					       : "nothing more is wanted");
	if ((q->x509 || q->identity) && strcmp(verb, "add") != 0)
		return cli_usage(q->cli, "peer %s: --x509 and --identity are for \"add\"", verb);
	if (q->identity && !q->x509)
		return cli_usage(q->cli, "--identity goes with --x509");
	if (q->x509 && q->key_file)
		return cli_usage(q->cli, "--x509 is instead of a key");
	if (!strcmp(verb, "list"))
		return list(q);
	if (!strcmp(verb, "pair"))
		return pair(q, argv[1], address);
	if (!strcmp(verb, "add"))
		return add(q, argv[1], address);
	if (!strcmp(verb, "check"))
		return check(q, argv[1]);
	if (!strcmp(verb, "allow"))
		return allow(q, argv[1]);
	if (!strcmp(verb, "remove"))
		return forget(q, argv[1]);
	return cli_usage(q->cli, "unknown verb \"%s\"", verb);
}

int cmd_peer(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {{"address", required_argument, NULL, OPT_ADDRESS},
					    {"key-file", required_argument, NULL, OPT_KEY_FILE},
					    {"replace", no_argument, NULL, OPT_REPLACE},
					    {"receive", required_argument, NULL, OPT_RECEIVE},
					    {"shared", required_argument, NULL, OPT_SHARED},
					    {"x509", no_argument, NULL, OPT_X509},
					    {"identity", required_argument, NULL, OPT_IDENTITY},
					    {0}};
	struct request q = {.cli = cli};
	int r = cli_options(cli, argc, argv, own, take, &q);

	if (!r)
		r = cli_arguments(cli, argc, 1, 3);
	if (!r)
		r = run(&q, argc - optind, argv + optind);
	json_decref(q.receive);
	json_decref(q.shared);
	return r < 0 ? 0 : r;
}
