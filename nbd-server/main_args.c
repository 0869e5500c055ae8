/* SPDX-License-Identifier: BSD-3-Clause */
/* blockmirror-nbd's arguments. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/dev/open.h"
#include "nbd-server/main.h"

static const char usage[] =
	"Usage: blockmirror-nbd [OPTION]... URI\n"
	"Serves the image URI to NBD clients until SIGTERM or SIGINT.\n"
	"\n"
	"  --unix PATH             listen on the unix socket PATH\n"
	"  --listen ADDR:PORT      listen on TCP; no ADDR: on all addresses; port 0: any free one\n"
	"  --stdio                 serve one client, on standard input and output\n"
	"  --run CMD               run CMD with $uri and $unixsocket set; end when it ends\n"
	"  --export-name NAME      the export's name (default: the empty one)\n"
	"  --read-only             open the image read-only\n"
	"  --create SIZE           create the image, SIZE bytes (k, M, G, T), unless it exists\n"
	"\n"
	"  --tls off|on|require    without TLS, at the client's choice, or with TLS only\n"
	"                          (default: require, if there are certificates or keys)\n"
	"  --tls-certificates DIR  ca-cert.pem, server-cert.pem, server-key.pem, ca-crl.pem\n"
	"  --tls-verify-peer       clients need a certificate of the authority in ca-cert.pem\n"
	"  --tls-psk FILE          pre-shared keys, lines USER:HEXKEY\n"
	"  --tls-priority STRING   GnuTLS's priority string\n"
	"  --acl FILE              who may open the export, read-only or read-write\n"
	"  --insecure              with --listen: serve other hosts in plain text\n"
	"\n"
	"  --fork                  return when clients may connect, go on in the background\n"
	"  --pid-file FILE         write the process ID to FILE when clients may connect\n"
	"  --help                  show this text and exit\n"
	"  --version               show the version and exit\n"
	"\n"
	"Limits; what clients send beyond them waits:\n"
	"\n"
	"  --max-connections N     clients at a time (default 100)\n"
	"  --max-requests N        requests of a client in flight (default, and most: 128)\n"
	"  --max-data SIZE         memory for the data of a client's requests (default 16M)\n"
	"  --handshake-timeout S   seconds that a client has to choose an export (default 10)\n"
	"  --idle-timeout S        seconds after which a client that asks nothing is disconnected\n"
	"                          (default 0: never)\n"
	"\n"
	"URI is PATH, file:PATH, nbd://, nbd+unix://, nbds://, iscsi://, qcow2:PATH, or mem:SIZE. "
	"One of "
	"--unix,\n"
	"--listen, --stdio, --run is needed, unless sockets are passed by socket activation\n"
	"(LISTEN_FDS).\n"
	"\n"
	"When clients may connect to --unix or --listen, the line \"ready URI\" is printed.\n"
	"SIGHUP: read certificates, keys and the ACL again.\n";

/* ADDR:PORT; an IPv6 address is in brackets. Cuts text. */
static int parse_listen(struct arguments *args, char *text, struct bm_error *error)
{
	char *colon = strrchr(text, ':');
	size_t length = colon ? (size_t)(colon - text) : 0;
	bool bracket = text[0] == '[', closed = length > 1 && text[length - 1] == ']';

	if (!colon || !colon[1])
		return bm_fail(error, BM_E_USAGE,
			       "--listen %s: ADDR:PORT is expected, as in 127.0.0.1:10809", text);
	if (bracket ? !closed : !!memchr(text, ':', length))
		return bm_fail(error, BM_E_USAGE,
			       "--listen %s: an IPv6 address is put in brackets, as in [::1]:10809",
			       text);
	*colon = '\0';
	args->port = colon + 1;
	args->host = text;
	if (bracket) {
		text[length - 1] = '\0';
		args->host++;
	}
	return 0;
}

static int parse_create(struct arguments *args, const char *text, struct bm_error *error)
{
	if (bm_parse_size(text, &args->create) < 0)
		return bm_fail(error, BM_E_USAGE, "--create %s: not a size; 10G is one", text);
	return bm_check_size("--create", args->create, error);
}

/* mode is -1 as long as nothing was said. */
static int parse_tls(const char *text, int *mode, struct bm_error *error)
{
	static const char *const modes[] = {
		[NBD_TLS_OFF] = "off", [NBD_TLS_ON] = "on", [NBD_TLS_REQUIRE] = "require"};

	for (int i = 0; i < 3; i++)
		if (!strcmp(text, modes[i])) {
			*mode = i;
			return 0;
		}
	return bm_fail(error, BM_E_USAGE, "--tls %s: off, on, or require", text);
}

static int check_ways(const struct arguments *args, struct bm_error *error)
{
	int ways = !!args->unix_path + !!args->host + args->stdio + !!args->passed;

	if (!ways && !args->run)
		return bm_fail(error, BM_E_USAGE,
			       "nobody could connect: give --unix PATH, --listen ADDR:PORT, "
			       "--stdio or --run CMD");
	if (ways > 1)
		return bm_fail(error, BM_E_USAGE, "only one of --unix, --listen, --stdio%s",
			       args->passed ? ", and none with LISTEN_FDS" : "");
	if (args->run && (args->stdio || args->passed))
		return bm_fail(error, BM_E_USAGE,
			       "--run: the command could not connect to --stdio or LISTEN_FDS");
	if (args->fork && (args->stdio || args->run))
		return bm_fail(error, BM_E_USAGE, "--fork goes with neither --stdio nor --run");
	if (args->insecure && !args->host && !args->passed)
		return bm_fail(error, BM_E_USAGE, "--insecure is for --listen");
	return 0;
}

static int check_tls(struct arguments *args, int mode, struct bm_error *error)
{
	struct bm_tls_options *tls = &args->tls;
	bool given = tls->certificates || tls->psk;

	args->tls_mode = mode >= 0 ? (enum nbd_tls_mode)mode
			 : given   ? NBD_TLS_REQUIRE
				   : NBD_TLS_OFF;
	if (args->tls_mode != NBD_TLS_OFF && !given)
		return bm_fail(error, BM_E_USAGE,
			       "--tls needs --tls-certificates DIR or --tls-psk FILE");
	if (tls->verify_peer && !tls->certificates)
		return bm_fail(error, BM_E_USAGE, "--tls-verify-peer needs --tls-certificates DIR");
	return 0;
}

static int check_arguments(struct arguments *args, int mode, int rest, char **words,
			   struct bm_error *error)
{
	int r;

	if (!rest)
		return bm_fail(error, BM_E_USAGE, "which image? The URI is missing; see --help");
	if (rest > 1)
		return bm_fail(error, BM_E_USAGE, "one image is served, not several (%s)",
			       words[1]);
	args->uri = strdup(words[0]);
	if (!args->uri)
		return bm_fail_errno(error, ENOMEM, "cannot start");
	bm_uri_hide(words[0]);
	r = check_ways(args, error);
	if (!r)
		r = check_tls(args, mode, error);
	if (!r && args->create && (args->read_only || !bm_uri_path(args->uri)))
		r = bm_fail(error, BM_E_USAGE, "--create is for files, and not for --read-only");
	return r;
}

/* Options whose argument is kept as it is. */
static const char **text_option(struct arguments *args, int option)
{
	switch (option) {
	case 'u':
		return &args->unix_path;
	case 'e':
		return &args->export_name;
	case 'p':
		return &args->pid_file;
	case 'R':
		return &args->run;
	case 'a':
		return &args->acl;
	case 'C':
		return &args->tls.certificates;
	case 'P':
		return &args->tls.psk;
	case 'Y':
		return &args->tls.priority;
	default:
		return NULL;
	}
}

static bool *flag_option(struct arguments *args, int option)
{
	switch (option) {
	case 'r':
		return &args->read_only;
	case 's':
		return &args->stdio;
	case 'i':
		return &args->insecure;
	case 'f':
		return &args->fork;
	case 'v':
		return &args->tls.verify_peer;
	default:
		return NULL;
	}
}

/* The others. Returns 0, 1 when all is done, or -errno. */
static int other_option(struct arguments *args, int option, const char *name, int *tls,
			struct bm_error *error)
{
	switch (option) {
	case 'l':
		return parse_listen(args, optarg, error);
	case 'c':
		return parse_create(args, optarg, error);
	case 't':
		return parse_tls(optarg, tls, error);
	case 'L':
		return nbd_server_set_limit(&args->limits, name, optarg, error);
	case 'h':
		fputs(usage, stdout);
		return 1;
	case 'V':
		puts("blockmirror-nbd " BM_VERSION);
		return 1;
	default:
		error->code = BM_E_USAGE;
		return -EINVAL;
	}
}

int arguments_parse(struct arguments *args, int argc, char **argv, struct bm_error *error)
{
	static const struct option options[] = {
		{"unix", required_argument, NULL, 'u'},
		{"listen", required_argument, NULL, 'l'},
		{"stdio", no_argument, NULL, 's'},
		{"run", required_argument, NULL, 'R'},
		{"export-name", required_argument, NULL, 'e'},
		{"read-only", no_argument, NULL, 'r'},
		{"create", required_argument, NULL, 'c'},
		{"tls", required_argument, NULL, 't'},
		{"tls-certificates", required_argument, NULL, 'C'},
		{"tls-verify-peer", no_argument, NULL, 'v'},
		{"tls-psk", required_argument, NULL, 'P'},
		{"tls-priority", required_argument, NULL, 'Y'},
		{"acl", required_argument, NULL, 'a'},
		{"insecure", no_argument, NULL, 'i'},
		{"max-connections", required_argument, NULL, 'L'},
		{"max-requests", required_argument, NULL, 'L'},
		{"max-data", required_argument, NULL, 'L'},
		{"handshake-timeout", required_argument, NULL, 'L'},
		{"idle-timeout", required_argument, NULL, 'L'},
		{"fork", no_argument, NULL, 'f'},
		{"pid-file", required_argument, NULL, 'p'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{NULL, 0, NULL, 0},
	};
	int option, which = 0, tls = -1, r = 0;

	while (!r && (option = getopt_long(argc, argv, "", options, &which)) != -1) {
		const char **text = text_option(args, option);
		bool *flag = flag_option(args, option);

		if (text)
			*text = optarg;
		else if (flag)
			*flag = true;
		else
			r = other_option(args, option, options[which].name, &tls, error);
	}
	return r ? r : check_arguments(args, tls, argc - optind, argv + optind, error);
}
