/* SPDX-License-Identifier: BSD-3-Clause */
/* Program blockmirror-disk: serves one disk. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/dirs.h"
#include "blockmirror/base/hooks.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/signals.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/disk.h"
#include "blockmirror/disk/oneoff.h"

static const char help[] =
	"usage: blockmirror-disk --name NAME [options] [IMAGE]\n"
	"\n"
	"Serves one disk over NBD, and moves it when asked to (blockmirror(1)).\n"
	"\n"
	"  --name NAME      the disk's name\n"
	"  --run-dir DIR    sockets (default $BLOCKMIRROR_RUN_DIR, then /run/blockmirror)\n"
	"  --state-dir DIR  records (default $BLOCKMIRROR_STATE_DIR, then /var/lib/blockmirror)\n"
	"  --create SIZE    make the image, a file, of that size\n"
	"  --force          serve IMAGE though it is an old or an incomplete copy\n"
	"  --beside         IMAGE is open in a running QEMU, which lets go of it when its guest\n"
	"                   is connected here, or whose guest is here no more (blockmirror adopt)\n"
	"  --flatten        serve IMAGE though it is a linked clone\n"
	"  --max-connections N    clients at a time (default 100); more wait\n"
	"  --max-requests N       requests of a client in flight (default, and most: 128)\n"
	"  --max-data SIZE        memory for the data of a client's requests (default 16M)\n"
	"  --handshake-timeout S  seconds that a client has to choose the export (default 10)\n"
	"  --idle-timeout S       seconds after which a client that asks nothing is\n"
	"                         disconnected (default 0: never)\n"
	"  --take-over FD   take the place of the process at that socket (blockmirror upgrade)\n"
	"  --hooks DIR      programs that are asked, and told, when it moves (default\n"
	"                   $BLOCKMIRROR_HOOKS, then /etc/blockmirror/hooks.d; none: none)\n"
	"  --hook-timeout T how long each of them may take (default 30s)\n"
	"  --reconnect-timeout T  how long requests wait for storage that is lost (s, m, h;\n"
	"                         default: for ever), then they fail\n"
	"  --standby-of HOST  a new disk is another host's, and this is its copy here\n"
	"  --disk-id ID       the identity that it has there\n"
	"  --size SIZE        of a new disk, whose image may be larger\n"
	"  --shared           HOST has the disk on IMAGE, too: it is only read until HOST passes\n"
	"                     the disk on\n"
	"  --peer-keys FILE   by which that host is known (blockmirrord); or\n"
	"  --peer-tls DIR     certificates, and\n"
	"  --peer-acl FILE    which one is whose\n"
	"  --one-off FD     no disk: copy or compare, as asked over that socket, and end\n"
	"  --help, --version\n"
	"\n"
	"IMAGE is a path or a URI (file: nbd: nbd+unix: iscsi: qcow2: and other formats); once the "
	"disk\n"
	"has a record it may be left out. Prints \"ready URI\" when clients may connect. Ends on "
	"SIGTERM.\n";

struct signals {
	struct bm_signals signals;
	struct bm_loop *loop;
	struct disk *disk;
	int control; /* of a one-off */
};

/* A one-off ends as when its caller has gone: after what is in flight. */
static void on_signal(struct bm_signals *signals, int number)
{
	struct signals *s = bm_container(signals, struct signals, signals);

	(void)number;
	if (s->disk)
		disk_stop(s->disk);
	else if (s->control >= 0)
		shutdown(s->control, SHUT_RDWR);
	else
		bm_loop_stop(s->loop);
}

static int fail(const struct bm_error *error)
{
	fprintf(stderr, "blockmirror-disk: %s: %s\n", bm_code_name(error->code), error->text);
	return bm_code_exit(error->code);
}

static int serve(struct bm_loop *loop, struct signals *signals, const struct disk_options *options)
{
	struct bm_error error = {0};
	char *uri;
	int r = disk_open(loop, options, &signals->disk, &error);

	if (r < 0)
		return fail(&error);
	uri = nbd_server_uri(signals->disk->nbd, options->name);
	printf("ready %s\n", uri ? uri : "");
	fflush(stdout);
	free(uri);
	r = bm_loop_run(loop);
	if (signals->disk->abandoned)
		_exit(signals->disk->record.role == BM_ROLE_RETIRED ? 3 : 0);
	if (signals->disk->record.role == BM_ROLE_RETIRED)
		bm_fail(&error, BM_E_RETIRED, "disk %s is on host %s now", options->name,
			signals->disk->record.peer);
	disk_close(signals->disk);
	return error.code ? fail(&error) : r < 0;
}

static int usage(void)
{
	fputs("Try 'blockmirror-disk --help'.\n", stderr);
	return 2;
}

static const struct option known[] = {
	{"name", required_argument, NULL, 'n'},
	{"run-dir", required_argument, NULL, 'r'},
	{"state-dir", required_argument, NULL, 's'},
	{"create", required_argument, NULL, 'c'},
	{"force", no_argument, NULL, 'f'},
	{"beside", no_argument, NULL, 'b'},
	{"flatten", no_argument, NULL, 'F'},
	{"max-connections", required_argument, NULL, 'L'},
	{"max-requests", required_argument, NULL, 'L'},
	{"max-data", required_argument, NULL, 'L'},
	{"handshake-timeout", required_argument, NULL, 'L'},
	{"idle-timeout", required_argument, NULL, 'L'},
	{"reconnect-timeout", required_argument, NULL, 'R'},
	{"hooks", required_argument, NULL, 'H'},
	{"hook-timeout", required_argument, NULL, 'W'},
	{"standby-of", required_argument, NULL, 'S'},
	{"disk-id", required_argument, NULL, 'I'},
	{"size", required_argument, NULL, 'Z'},
	{"shared", no_argument, NULL, 'M'},
	{"peer-keys", required_argument, NULL, 'K'},
	{"peer-tls", required_argument, NULL, 'T'},
	{"peer-acl", required_argument, NULL, 'A'},
	{"one-off", required_argument, NULL, 'o'},
	{"take-over", required_argument, NULL, 't'},
	{"help", no_argument, NULL, 'h'},
	{"version", no_argument, NULL, 'V'},
	{0},
};

/* Where an option that is a word goes; NULL: it is none. */
static const char **text_option(int c, struct disk_options *disk)
{
	switch (c) {
	case 'n':
		return &disk->name;
	case 'r':
		return &disk->run_dir;
	case 's':
		return &disk->state_dir;
	case 'S':
		return &disk->standby_of;
	case 'I':
		return &disk->identity;
	case 'K':
		return &disk->keys;
	case 'T':
		return &disk->certificates;
	case 'A':
		return &disk->acl;
	case 'H':
		return &disk->hooks;
	default:
		return NULL;
	}
}

static int take_time(int which, bool zero, uint64_t *ns)
{
	if (!bm_parse_duration(optarg, ns) && (*ns || zero))
		return 0;
	fprintf(stderr, "blockmirror-disk: --%s %s: a time like 5m is wanted\n", known[which].name,
		optarg);
	return 2;
}

/* It is run from elsewhere. */
static int check_hooks(struct disk_options *disk)
{
	if (!strcmp(disk->hooks, "none"))
		disk->hooks = NULL;
	if (!disk->hooks || disk->hooks[0] == '/')
		return 0;
	fprintf(stderr, "blockmirror-disk: --hooks %s: a path that begins with / is wanted\n",
		disk->hooks);
	return 2;
}

/* One option, the which-th one that is known. Returns 0, -1 when all is done, or an exit status. */
static int take_option(int c, int which, struct disk_options *disk, int *control)
{
	const char **text = text_option(c, disk);
	struct bm_error error = {0};
	uint64_t *size;

	if (text) {
		*text = optarg;
		return 0;
	}
	switch (c) {
	case 'c':
	case 'Z':
		size = c == 'c' ? &disk->create : &disk->size;
		if (!bm_parse_size(optarg, size) && *size)
			return 0;
		fprintf(stderr, "blockmirror-disk: --%s %s: a size like 10G is wanted\n",
			known[which].name, optarg);
		return 2;
	case 'f':
	case 'M':
		*(c == 'f' ? &disk->force : &disk->shared) = true;
		return 0;
	case 'b':
		disk->beside = true;
		return 0;
	case 'F':
		disk->flatten = true;
		return 0;
	case 'L':
		return nbd_server_set_limit(&disk->limits, known[which].name, optarg, &error) < 0
			       ? fail(&error)
			       : 0;
	case 't':
		disk->predecessor = atoi(optarg);
		return 0;
	case 'R':
		return take_time(which, true, &disk->reconnect);
	case 'W':
		return take_time(which, false, &disk->hook_limit);
	case 'o':
		*control = atoi(optarg);
		return 0;
	case 'h':
		fputs(help, stdout);
		return -1;
	case 'V':
		puts("blockmirror-disk " BM_VERSION);
		return -1;
	default:
		return usage();
	}
}

int main(int argc, char **argv)
{
	struct disk_options disk = {.run_dir = bm_run_dir(),
				    .state_dir = bm_state_dir(),
				    .reconnect = UINT64_MAX,
				    .hooks = bm_hooks_dir(),
				    .hook_limit = BM_HOOK_LIMIT};
	struct signals signals = {.signals.run = on_signal};
	struct bm_error error = {0};
	struct bm_loop *loop;
	char *image = NULL;
	int c, which = 0, control = -1, status;

	bm_json_needs_memory();
	while ((c = getopt_long(argc, argv, "", known, &which)) != -1) {
		status = take_option(c, which, &disk, &control);
		if (status)
			return status < 0 ? 0 : status;
	}
	status = check_hooks(&disk);
	if (status)
		return status;
	if (argv[optind]) { /* with its passwords it is for nobody to see */
		disk.uri = image = bm_need(strdup(argv[optind]));
		bm_uri_hide(argv[optind]);
	}
	if (argc - optind > 1 || (!disk.name && control < 0)) {
		fputs(disk.name ? "blockmirror-disk: one image is served\n"
				: "blockmirror-disk: --name is wanted\n",
		      stderr);
		return usage();
	}
	daemon_take_sockets(&disk);
	/* A one-off writes to its caller's terminal. */
	bm_log_setup("blockmirror-disk", control >= 0 ? BM_LOG_WARN : BM_LOG_NOTICE);
	signals.control = control;
	signals.loop = loop = bm_loop_new();
	if (!loop || bm_signals_watch(&signals.signals, loop, false) < 0) {
		bm_fail_errno(&error, errno, "cannot start");
		return fail(&error);
	}
	if (control >= 0)
		status = oneoff_run(loop, control, disk.state_dir, &error) < 0 ? fail(&error) : 0;
	else
		status = serve(loop, &signals, &disk);
	bm_loop_free(loop);
	free(image);
	return status;
}
