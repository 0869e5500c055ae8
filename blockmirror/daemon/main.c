/* SPDX-License-Identifier: BSD-3-Clause */
/* Program blockmirrord: starts the disks' processes, and starts them again. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/config.h"
#include "blockmirror/base/dirs.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/signals.h"
#include "blockmirror/base/units.h"
#include "blockmirror/daemon/machine.h"

#define LOCK_WAIT 1000000000ull /* ns: a daemon that was killed is gone sooner */
#define LOCK_STEP 10000000ull

static const char help[] =
	"usage: blockmirrord [options]\n"
	"\n"
	"Serves disks: starts blockmirror-disk(8) for each, and again when it ends.\n"
	"\n"
	"What is not given is taken from blockmirror.conf(5).\n"
	"\n"
	"  --run-dir DIR    sockets (default $BLOCKMIRROR_RUN_DIR, then /run/blockmirror)\n"
	"  --state-dir DIR  records (default $BLOCKMIRROR_STATE_DIR, then /var/lib/blockmirror)\n"
	"  --hooks DIR      programs that are asked, and told, when a disk moves (default\n"
	"                   $BLOCKMIRROR_HOOKS, then /etc/blockmirror/hooks.d; none: none)\n"
	"  --hook-timeout T how long each of them may take (default 30s)\n"
	"  --name NAME      of this host, for other hosts (default: its host name)\n"
	"  --listen ADDRESS:PORT  other hosts that are paired with this one come there, under TLS\n"
	"  --bind ADDRESS   where the data of their disks comes to (default: that of --listen)\n"
	"  --tls-dir DIR    certificates, for hosts that are known by them: ca-cert.pem,\n"
	"                   server-cert.pem, server-key.pem; client-cert.pem, client-key.pem and\n"
	"                   ca-crl.pem if there are\n"
	"  --resume-with PROGRAM  is run as PROGRAM NAME when disk NAME is served again whose "
	"process\n"
	"                   had died, to have a machine go on that was stopped for it; default: "
	"what\n"
	"                   asks libvirt; none: nothing\n"
	"  --machine-hooks DIR  for machines that come here and name none of their own (default\n"
	"                   " MACHINE_HOOKS ")\n"
	"  --help, --version\n"
	"\n"
	"\"blockmirror serve\" adds a disk. On SIGTERM it ends, and the disks go on.\n";

struct signals {
	struct bm_signals signals;
	struct bm_loop *loop;
};

static void on_signal(struct bm_signals *signals, int number)
{
	(void)number;
	bm_loop_stop(bm_container(signals, struct signals, signals)->loop);
}

/* sd_notify(3). The disks' processes shall not be taken for us. */
static void notify(const char *socket_path, const char *text)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	size_t length = socket_path ? strlen(socket_path) : 0;

	if (fd < 0 || !length || length >= sizeof(address.sun_path))
		return;
	memcpy(address.sun_path, socket_path, length);
	if (*socket_path == '@')
		address.sun_path[0] = '\0';
	if (sendto(fd, text, strlen(text), MSG_NOSIGNAL, (const struct sockaddr *)&address,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
		bm_log(BM_LOG_WARN, "cannot notify %s: %s", socket_path, strerror(errno));
}

/* Makes folder/name, and where it really is. */
static int make_folder(const char *folder, const char *name, char **real, struct bm_error *error)
{
	bm_free char *path = NULL;
	int r;

	if (asprintf(&path, "%s%s", folder, name) < 0)
		return bm_fail_errno(error, ENOMEM, "%s", folder);
	r = bm_make_folders(path);
	*real = r < 0 ? NULL : realpath(path, NULL);
	return *real ? 0 : bm_fail_errno(error, r < 0 ? r : errno, "cannot create %s", path);
}

/* One daemon for a state directory. It goes with the process, however that ends. */
static int lock_registry(struct daemon *d, struct bm_error *error)
{
	d->lock = open(d->registry, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->lock < 0)
		return bm_fail_errno(error, errno, "cannot open %s", d->registry);
	for (uint64_t waited = 0; flock(d->lock, LOCK_EX | LOCK_NB) < 0; waited += LOCK_STEP) {
		const struct timespec step = {.tv_nsec = LOCK_STEP};

		if (waited >= LOCK_WAIT)
			return bm_fail(error, BM_E_BUSY,
				       "another blockmirrord has its records in %s", d->state);
		nanosleep(&step, NULL);
	}
	return 0;
}

static void found(void *arg, const char *name, json_t *limits, json_t *received)
{
	struct daemon *d = arg;
	struct served *s = served_new(d, name);

	if (!s) {
		bm_log(BM_LOG_ERROR, "%s: it is not served: out of memory", name);
		return;
	}
	s->saved = true;
	s->limits = json_incref(limits);
	s->received = json_incref(received);
	s->wanted = access(s->stopped, F_OK) < 0;
	served_begin(s); /* one that was stopped may have been started without us */
}

/* What the command line says. */
struct arguments {
	const char *run, *state, *resume_with, *hooks, *hook_limit;
	struct peers_options peers;
	const char *machine_hooks;
};

static int daemon_open(struct daemon *d, const struct arguments *args, struct bm_error *error)
{
	int r = make_folder(args->run, "", &d->run, error);

	bm_list_init(&d->disks);
	d->lock = d->adopt.fd = -1;
	d->writer = bm_workers_new(1);
	if (!d->writer)
		return bm_fail_errno(error, ENOMEM, "blockmirrord");
	if (!r)
		r = make_folder(args->run, "/disks", &d->sockets, error);
	if (!r)
		r = make_folder(args->state, "", &d->state, error);
	if (!r)
		r = make_folder(args->state, "/serve", &d->registry, error);
	if (!r)
		r = lock_registry(d, error);
	if (!r)
		r = peers_open(d, &args->peers, error);
	if (!r)
		r = machines_open(d, error);
	if (!r)
		r = moves_open(d, error);
	if (!r)
		r = control_listen(d, error);
	if (!r)
		r = adopt_listen(d, error);
	if (!r)
		r = registry_read(d->registry, found, d, error);
	if (!r)
		adopt_strangers(d);
	return r;
}

/* The disks go on, and so do their sockets. */
static void daemon_close(struct daemon *d)
{
	struct bm_list *node;

	bm_workers_free(d->writer);
	machines_close(d);
	peers_close(d);
	moves_close(d);
	while ((node = bm_list_take(&d->disks)))
		served_free(bm_container(node, struct served, link));
	adopt_close(d);
	bm_rpc_free(d->rpc);
	if (d->lock >= 0)
		close(d->lock);
	free(d->run);
	free(d->sockets);
	free(d->state);
	free(d->registry);
}

static int serve(struct bm_loop *loop, const struct arguments *args)
{
	bm_free char *manager = getenv("NOTIFY_SOCKET") ? strdup(getenv("NOTIFY_SOCKET")) : NULL;
	struct daemon d = {.loop = loop,
			   .resume_with = args->resume_with,
			   .hooks = args->hooks,
			   .hook_limit = args->hook_limit,
			   .machine_hooks = args->machine_hooks};
	struct bm_error error = {0};
	int r;

	unsetenv("NOTIFY_SOCKET");
	r = daemon_open(&d, args, &error);
	if (!r) {
		printf("ready %s/blockmirrord.sock\n", d.run);
		fflush(stdout);
		notify(manager, "READY=1");
		r = bm_loop_run(loop);
		notify(manager, "STOPPING=1");
	} else {
		fprintf(stderr, "blockmirrord: %s: %s\n", bm_code_name(error.code), error.text);
		r = bm_code_exit(error.code);
	}
	daemon_close(&d);
	return r < 0 ? 1 : r;
}

static int usage(void)
{
	fputs("Try 'blockmirrord --help'.\n", stderr);
	return 2;
}

/* What each disk's process would refuse. */
static int check_hooks(const struct arguments *args)
{
	uint64_t ns;

	if (args->hooks && args->hooks[0] != '/' && strcmp(args->hooks, "none") != 0) {
		fprintf(stderr, "blockmirrord: --hooks %s: a path that begins with / is wanted\n",
			args->hooks);
		return -1;
	}
	if (args->hook_limit && (bm_parse_duration(args->hook_limit, &ns) < 0 || !ns)) {
		fprintf(stderr, "blockmirrord: --hook-timeout %s: a time like 30s is wanted\n",
			args->hook_limit);
		return -1;
	}
	return 0;
}

/* With mistakes in it the daemon might look for its records where they are not. */
static int configure(json_t *config, json_t *errors, struct arguments *args)
{
	const struct {
		const char *key, **to;
	} keys[] = {{"hook-timeout", &args->hook_limit},   {"machine-hooks", &args->machine_hooks},
		    {"resume-with", &args->resume_with},   {"name", &args->peers.name},
		    {"listen", &args->peers.listen},       {"bind", &args->peers.bind},
		    {"tls-dir", &args->peers.certificates}};
	const json_t *e;
	size_t i;

	json_array_foreach(errors, i, e)
		fprintf(stderr, "blockmirrord: %s:%lld: %s\n",
			json_string_value(json_object_get(e, "file")),
			(long long)json_integer_value(json_object_get(e, "line")),
			json_string_value(json_object_get(e, "message")));
	if (i)
		return -1;
	bm_config_use_folders(config);
	args->run = bm_run_dir();
	args->state = bm_state_dir();
	for (i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		const char *value = bm_config_text(config, "defaults", keys[i].key);

		if (value)
			*keys[i].to = value;
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"run-dir", required_argument, NULL, 'r'},
		{"state-dir", required_argument, NULL, 's'},
		{"hooks", required_argument, NULL, 'H'},
		{"hook-timeout", required_argument, NULL, 'W'},
		{"name", required_argument, NULL, 'n'},
		{"listen", required_argument, NULL, 'l'},
		{"bind", required_argument, NULL, 'b'},
		{"tls-dir", required_argument, NULL, 't'},
		{"resume-with", required_argument, NULL, 'R'},
		{"machine-hooks", required_argument, NULL, 'k'},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{0},
	};
	struct arguments args = {.machine_hooks = MACHINE_HOOKS};
	struct signals signals = {.signals.run = on_signal};
	struct bm_loop *loop;
	json_t *config, *errors;
	int c, status;

	bm_json_needs_memory();
	bm_config_read(NULL, &config, &errors);
	if (configure(config, errors, &args) < 0)
		return 2;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'r':
			args.run = optarg;
			break;
		case 's':
			args.state = optarg;
			break;
		case 'H':
			args.hooks = optarg;
			break;
		case 'W':
			args.hook_limit = optarg;
			break;
		case 'n':
			args.peers.name = optarg;
			break;
		case 'l':
			args.peers.listen = optarg;
			break;
		case 'b':
			args.peers.bind = optarg;
			break;
		case 't':
			args.peers.certificates = optarg;
			break;
		case 'R':
			args.resume_with = optarg;
			break;
		case 'k':
			args.machine_hooks = optarg;
			break;
		case 'h':
			fputs(help, stdout);
			return 0;
		case 'V':
			puts("blockmirrord " BM_VERSION);
			return 0;
		default:
			return usage();
		}
	}
	if (argc > optind || check_hooks(&args) < 0)
		return usage();
	bm_log_setup("blockmirrord", BM_LOG_NOTICE);
	signals.loop = loop = bm_loop_new();
	if (!loop || bm_signals_watch(&signals.signals, loop, false) < 0) {
		perror("blockmirrord");
		return 1;
	}
	status = serve(loop, &args);
	bm_loop_free(loop);
	return status;
}
