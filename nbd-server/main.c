/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blockmirror-nbd: serves one image over NBD, in the foreground, until it is told to end. What is
 * in flight then is finished and answered.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/dev/open.h"
#include "nbd-server/server.h"

enum { FIRST_PASSED_FD = 3, MAX_PASSED_FDS = 16 };

static const char usage[] =
	"Usage: blockmirror-nbd [OPTION]... URI\n"
	"Serves the image URI to NBD clients until SIGTERM or SIGINT.\n"
	"\n"
	"  --unix PATH         listen on the unix socket PATH\n"
	"  --listen ADDR:PORT  listen on TCP; no ADDR: on all addresses; port 0: any free one\n"
	"  --stdio             serve one client, on standard input and output\n"
	"  --export-name NAME  the export's name (default: the empty one)\n"
	"  --read-only         open the image read-only\n"
	"  --create SIZE       create the image, SIZE bytes (k, M, G, T), unless it exists\n"
	"  --pid-file FILE     write the process ID to FILE when clients may connect\n"
	"  --help              show this text and exit\n"
	"  --version           show the version and exit\n"
	"\n"
	"Limits; what clients send beyond them waits:\n"
	"\n"
	"  --max-connections N    clients at a time (default 100)\n"
	"  --max-requests N       requests of a client in flight (default, and most: 128)\n"
	"  --max-data SIZE        memory for the data of a client's requests (default 16M)\n"
	"  --handshake-timeout S  seconds that a client has to choose an export (default 10)\n"
	"  --idle-timeout S       seconds after which a client that asks nothing is disconnected\n"
	"                         (default 0: never)\n"
	"\n"
	"URI is PATH, file:PATH, nbd://, nbd+unix://, iscsi://, or mem:SIZE. One of --unix, "
	"--listen,\n"
	"--stdio is needed, unless sockets are passed by socket activation (LISTEN_FDS).\n"
	"\n"
	"When clients may connect to --unix or --listen, the line \"ready URI\" is printed.\n";

struct arguments {
	char *uri; /* ours */
	const char *unix_path, *export_name, *pid_file;
	char *host, *port; /* of --listen */
	bool stdio, read_only;
	uint64_t create; /* bytes; 0: no */
	int passed;      /* sockets, from FIRST_PASSED_FD on */
	struct nbd_server_options limits;
};

struct program {
	struct arguments args;
	struct bm_loop *loop;
	struct bm_dev *lower, *order;
	struct nbd_server *server;
	struct bm_watch signals;
	bool stopping, pid_written, created;
};

/* Arguments */

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

static int check_arguments(struct arguments *args, int rest, char **words, struct bm_error *error)
{
	int ways = !!args->unix_path + !!args->host + args->stdio + !!args->passed;

	if (!rest)
		return bm_fail(error, BM_E_USAGE, "which image? The URI is missing; see --help");
	if (rest > 1)
		return bm_fail(error, BM_E_USAGE, "one image is served, not several (%s)",
			       words[1]);
	args->uri = strdup(words[0]);
	if (!args->uri)
		return bm_fail_errno(error, ENOMEM, "cannot start");
	bm_uri_hide(words[0]);
	if (!ways)
		return bm_fail(
			error, BM_E_USAGE,
			"nobody could connect: give --unix PATH, --listen ADDR:PORT or --stdio");
	if (ways > 1)
		return bm_fail(error, BM_E_USAGE, "only one of --unix, --listen, --stdio%s",
			       args->passed ? ", and none with LISTEN_FDS" : "");
	if (args->create && (args->read_only || !bm_uri_path(args->uri)))
		return bm_fail(error, BM_E_USAGE, "--create is for files, and not for --read-only");
	return 0;
}

static const struct option known[] = {
	{"unix", required_argument, NULL, 'u'},
	{"listen", required_argument, NULL, 'l'},
	{"export-name", required_argument, NULL, 'e'},
	{"read-only", no_argument, NULL, 'r'},
	{"create", required_argument, NULL, 'c'},
	{"pid-file", required_argument, NULL, 'p'},
	{"stdio", no_argument, NULL, 's'},
	{"max-connections", required_argument, NULL, 'L'},
	{"max-requests", required_argument, NULL, 'L'},
	{"max-data", required_argument, NULL, 'L'},
	{"handshake-timeout", required_argument, NULL, 'L'},
	{"idle-timeout", required_argument, NULL, 'L'},
	{"help", no_argument, NULL, 'h'},
	{"version", no_argument, NULL, 'V'},
	{NULL, 0, NULL, 0},
};

/* Returns 0, 1 when all is done (--help), or -errno; error is without text when getopt said it. */
static int parse_arguments(struct arguments *args, int argc, char **argv, struct bm_error *error)
{
	int option, which = 0, r = 0;

	while (!r && (option = getopt_long(argc, argv, "", known, &which)) != -1) {
		switch (option) {
		case 'u':
			args->unix_path = optarg;
			break;
		case 'l':
			r = parse_listen(args, optarg, error);
			break;
		case 'e':
			args->export_name = optarg;
			break;
		case 'r':
			args->read_only = true;
			break;
		case 'c':
			r = parse_create(args, optarg, error);
			break;
		case 'p':
			args->pid_file = optarg;
			break;
		case 's':
			args->stdio = true;
			break;
		case 'L':
			r = nbd_server_set_limit(&args->limits, known[which].name, optarg, error);
			break;
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
	return r ? r : check_arguments(args, argc - optind, argv + optind, error);
}

/*
 * Socket activation, as sd_listen_fds(3) has it: how many sockets were passed to this very process.
 * Children do not inherit them or the word of them.
 */
static int passed_sockets(void)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	int n = 0;

	if (pid && count && strtol(pid, NULL, 10) == getpid())
		n = (int)strtol(count, NULL, 10);
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	if (n < 0 || n > MAX_PASSED_FDS)
		n = 0;
	return n;
}

/* The program's life */

static void stopped(void *arg)
{
	struct program *p = arg;

	bm_loop_stop(p->loop);
}

static void stop(struct program *p)
{
	if (!p->stopping)
		nbd_server_stop(p->server, stopped, p);
	p->stopping = true;
}

/* The first signal lets requests in flight end; the second one no longer waits for the device. */
static void on_signal(struct bm_watch *watch, uint32_t events)
{
	struct program *p = bm_container(watch, struct program, signals);
	struct signalfd_siginfo info;

	(void)events;
	if (read(watch->fd, &info, sizeof(info)) < 0)
		return;
	if (p->stopping)
		bm_dev_cancel(p->order);
	stop(p);
}

static void client_changed(void *arg)
{
	struct program *p = arg;

	if (p->args.stdio && !nbd_server_clients(p->server, NULL, 0))
		stop(p);
}

/* Whether a signal waits; asked while opening the image blocks. */
static bool interrupted(void *arg)
{
	sigset_t pending;

	(void)arg;
	return !sigpending(&pending) &&
	       (sigismember(&pending, SIGTERM) || sigismember(&pending, SIGINT));
}

static int watch_signals(struct program *p, struct bm_error *error)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	p->loop = bm_loop_new();
	p->signals.run = on_signal;
	if (fd < 0 || !p->loop || bm_watch_set(p->loop, &p->signals, fd, EPOLLIN) < 0)
		return bm_fail_errno(error, errno, "cannot start");
	return 0;
}

/* An image of a disk's (docs/record.md): who writes to it here should know. */
static void warn_of_mark(const char *uri)
{
	const char *path = bm_uri_path(uri);
	struct bm_mark mark;
	char shown[400];

	if (path && !bm_mark_read(path, &mark) && *mark.state)
		bm_log(BM_LOG_WARN, "%s is marked \"%s\" by the record in %s",
		       bm_uri_redact(uri, shown, sizeof(shown)), mark.state, mark.folder);
}

static int open_image(struct program *p, struct bm_error *error)
{
	const struct arguments *args = &p->args;
	const struct bm_open_options options = {.read_only = args->read_only,
						.interrupted = interrupted};
	int r = args->create ? bm_file_create(bm_uri_path(args->uri), args->create, error) : 0;

	if (r < 0 && error->code != BM_E_EXISTS)
		return r;
	p->created = args->create && !r;
	if (!args->read_only)
		warn_of_mark(args->uri);
	r = bm_dev_open(args->uri, &options, &p->lower, error);
	if (r < 0)
		return r;
	bm_dev_start(p->lower, p->loop);
	if (bm_order_new(p->lower, bm_order_align(p->lower), NULL, &p->order) < 0)
		return bm_fail_errno(error, ENOMEM, "cannot start");
	bm_dev_start(p->order, p->loop);
	return 0;
}

static int start_server(struct program *p, struct bm_error *error)
{
	const struct arguments *args = &p->args;
	struct nbd_server_options limits = args->limits;
	const struct nbd_export export = {
		.name = args->export_name, .dev = p->order, .read_only = args->read_only};
	int r;

	limits.changed = client_changed;
	limits.arg = p;
	p->server = nbd_server_new(p->loop, &limits);
	if (!p->server)
		return bm_fail_errno(error, ENOMEM, "cannot start");
	r = nbd_server_add_export(p->server, &export, error);
	if (!r && args->unix_path)
		r = nbd_server_listen_unix(p->server, args->unix_path, error);
	else if (!r && args->host)
		r = nbd_server_listen_tcp(p->server, args->host, args->port, error);
	for (int fd = FIRST_PASSED_FD; !r && fd < FIRST_PASSED_FD + args->passed; fd++)
		r = nbd_server_listen_fd(p->server, fd, error);
	if (!r && args->stdio) {
		r = nbd_server_accept_fd(p->server, STDIN_FILENO, STDOUT_FILENO);
		if (r < 0)
			bm_fail_errno(error, r, "cannot serve on standard input and output");
	}
	return r;
}

static int write_pid(struct program *p, struct bm_error *error)
{
	const char *path = p->args.pid_file;
	bm_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot write %s", path);
	p->pid_written = true;
	if (dprintf(fd, "%d\n", getpid()) < 0)
		return bm_fail_errno(error, errno, "cannot write %s", path);
	return 0;
}

/* Who started us may be waiting for this. Passed sockets could be connected to all along. */
static int announce(struct program *p, struct bm_error *error)
{
	bm_free char *uri = NULL;
	int r = p->args.pid_file ? write_pid(p, error) : 0;

	if (r < 0 || p->args.stdio || p->args.passed)
		return r;
	uri = nbd_server_uri(p->server, p->args.export_name);
	if (!uri)
		return bm_fail_errno(error, ENOMEM, "cannot start");
	printf("ready %s\n", uri);
	fflush(stdout);
	return 0;
}

static int start(struct program *p, struct bm_error *error)
{
	int r = watch_signals(p, error);

	if (!r)
		r = open_image(p, error);
	if (!r)
		r = start_server(p, error);
	return r ? r : announce(p, error);
}

static void tear_down(struct program *p, bool failed)
{
	nbd_server_free(p->server);
	bm_dev_close(p->order);
	bm_dev_close(p->lower);
	if (failed && p->created)
		unlink(bm_uri_path(p->args.uri));
	if (p->pid_written)
		unlink(p->args.pid_file);
	free(p->args.uri);
	if (p->signals.events)
		close(p->signals.fd);
	bm_loop_free(p->loop);
}

int main(int argc, char **argv)
{
	struct program p = {.args = {.export_name = "", .passed = passed_sockets()}};
	struct bm_error error = {0};
	int r;

	bm_log_setup("blockmirror-nbd", BM_LOG_NOTICE);
	r = parse_arguments(&p.args, argc, argv, &error);
	if (r > 0)
		return 0;
	if (!r)
		r = start(&p, &error);
	if (r < 0 && *error.text)
		fprintf(stderr, "blockmirror-nbd: %s: %s\n", bm_code_name(error.code), error.text);
	if (r < 0 && p.server)
		stop(&p);
	if (p.server && bm_loop_run(p.loop) < 0) {
		bm_log(BM_LOG_ERROR, "the event loop failed");
		return bm_code_exit(BM_E_INTERNAL); /* clients and requests are beyond our reach */
	}
	tear_down(&p, r < 0);
	return r < 0 ? bm_code_exit(error.code) : 0;
}
