/* SPDX-License-Identifier: BSD-3-Clause */
/* Program blockmirror-disk: serves one disk. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "blockmirror/base/dirs.h"
#include "blockmirror/base/log.h"
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
	"  --one-off FD     no disk: copy or compare, as asked over that socket, and end\n"
	"  --help, --version\n"
	"\n"
	"IMAGE is a path or a URI (file: nbd: nbd+unix: iscsi:); once the disk has a record it may "
	"be\n"
	"left out. Prints \"ready URI\" when clients may connect. Ends on SIGTERM.\n";

struct signals {
	struct bm_watch watch;
	struct bm_loop *loop;
	struct disk *disk;
};

static void on_signal(struct bm_watch *watch, uint32_t events)
{
	struct signals *s = bm_container(watch, struct signals, watch);
	struct signalfd_siginfo info;

	(void)events;
	if (read(watch->fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (s->disk)
		disk_stop(s->disk);
	else
		bm_loop_stop(s->loop);
}

static int watch_signals(struct signals *s, struct bm_loop *loop)
{
	sigset_t set;
	int fd;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	s->loop = loop;
	s->watch.run = on_signal;
	return bm_watch_set(loop, &s->watch, fd, EPOLLIN);
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
	disk_close(signals->disk);
	return r < 0;
}

static int usage(void)
{
	fputs("Try 'blockmirror-disk --help'.\n", stderr);
	return 2;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"name", required_argument, NULL, 'n'},
		{"run-dir", required_argument, NULL, 'r'},
		{"state-dir", required_argument, NULL, 's'},
		{"create", required_argument, NULL, 'c'},
		{"force", no_argument, NULL, 'f'},
		{"one-off", required_argument, NULL, 'o'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{0},
	};
	struct disk_options disk = {.run_dir = bm_run_dir(), .state_dir = bm_state_dir()};
	struct signals signals = {0};
	struct bm_error error = {0};
	struct bm_loop *loop;
	char *image = NULL;
	int c, control = -1, status;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'n':
			disk.name = optarg;
			break;
		case 'r':
			disk.run_dir = optarg;
			break;
		case 's':
			disk.state_dir = optarg;
			break;
		case 'c':
			if (bm_parse_size(optarg, &disk.create) < 0 || !disk.create) {
				fprintf(stderr,
					"blockmirror-disk: --create %s: a size like 10G is "
					"wanted\n",
					optarg);
				return 2;
			}
			break;
		case 'f':
			disk.force = true;
			break;
		case 'o':
			control = atoi(optarg);
			break;
		case 'h':
			fputs(help, stdout);
			return 0;
		case 'V':
			puts("blockmirror-disk " BM_VERSION);
			return 0;
		default:
			return usage();
		}
	}
	if (argv[optind]) { /* with its passwords it is for nobody to see */
		disk.uri = image = strdup(argv[optind]);
		bm_uri_hide(argv[optind]);
	}
	if (argc - optind > 1 || (!disk.name && control < 0)) {
		fputs(disk.name ? "blockmirror-disk: one image is served\n"
				: "blockmirror-disk: --name is wanted\n",
		      stderr);
		return usage();
	}
	/* A one-off writes to its caller's terminal. */
	bm_log_setup("blockmirror-disk", control >= 0 ? BM_LOG_WARN : BM_LOG_NOTICE);
	loop = bm_loop_new();
	if (!loop || watch_signals(&signals, loop) < 0) {
		perror("blockmirror-disk");
		return 1;
	}
	if (control >= 0)
		status = oneoff_run(loop, control, disk.state_dir, &error) < 0 ? fail(&error) : 0;
	else
		status = serve(loop, &signals, &disk);
	bm_loop_free(loop);
	free(image);
	return status;
}
