/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * blockmirror-nbd: serves one image over NBD until it is told to end, or until the command that it
 * was started for has ended. What is in flight then is finished and answered.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/signals.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/dev/open.h"
#include "nbd-server/acl.h"
#include "nbd-server/main.h"

struct program {
	struct arguments args;
	struct bm_loop *loop;
	struct bm_dev *lower, *order;
	struct nbd_server *server;
	struct nbd_acl *acl; /* NULL: none was given */
	struct bm_signals signals;
	struct command command;
	char *folder, *socket; /* made for the command; NULL: none was */
	int release;           /* --fork: the parent waits at the other end. -1: nobody does */
	bool stopping, pid_written, created;
	bool told; /* the command, that it is to end */
};

/* The program's life */

static void stopped(void *arg)
{
	struct program *p = arg;

	bm_loop_stop(p->loop);
}

static void stop(struct program *p)
{
	if (!p->stopping) {
		start_notify("STOPPING=1");
		nbd_server_stop(p->server, stopped, p);
	}
	p->stopping = true;
}

/* What the files said before stays when they are not all right now. */
static void reload(struct program *p)
{
	struct bm_error error;
	struct timespec now;
	char state[80];

	clock_gettime(CLOCK_MONOTONIC, &now);
	snprintf(state, sizeof(state), "RELOADING=1\nMONOTONIC_USEC=%lld",
		 (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000);
	start_notify(state);
	if (nbd_server_reload_tls(p->server, &error) < 0)
		bm_log(BM_LOG_WARN, "TLS goes on with what it had before: %s", error.text);
	if (p->acl && nbd_acl_reload(p->acl, &error) < 0)
		bm_log(BM_LOG_WARN, "access goes on with what was given before: %s", error.text);
	start_notify("READY=1");
}

static void command_ended(struct command *command)
{
	stop(bm_container(command, struct program, command));
}

/*
 * The first signal lets requests in flight end, after the command, if there is one, has; the second
 * one no longer waits for the device.
 */
static void on_signal(struct bm_signals *signals, int number)
{
	struct program *p = bm_container(signals, struct program, signals);

	if (number == SIGHUP) {
		reload(p);
		return;
	}
	if (p->stopping)
		bm_dev_cancel(p->order);
	if (p->command.pid && !p->told) {
		kill(p->command.pid, number);
	} else {
		if (p->command.pid)
			p->command.status = 128 + number;
		stop(p);
	}
	p->told = true;
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
	int r = -ENOMEM;

	p->loop = bm_loop_new();
	p->signals.run = on_signal;
	if (p->loop)
		r = bm_signals_watch(&p->signals, p->loop, true);
	return r < 0 ? bm_fail_errno(error, r, "cannot start") : 0;
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
	int r = args->create ? bm_image_create(args->uri, args->create, error) : 0;

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

static enum nbd_access access_of(void *arg, const struct bm_identity *who, const char *export)
{
	struct program *p = arg;

	return nbd_acl_access(p->acl, who, export);
}

/* A line that nobody could ever fulfil is a mistake. */
static int open_acl(struct program *p, struct bm_error *error)
{
	const struct bm_tls_options *tls = &p->args.tls;
	bool on = p->args.tls_mode != NBD_TLS_OFF;
	int r = nbd_acl_open(p->args.acl, &p->acl, error);

	if (r < 0)
		return r;
	if (nbd_acl_names_keys(p->acl) && !(on && tls->psk))
		return bm_fail(error, BM_E_USAGE,
			       "%s names pre-shared keys: they need --tls-psk FILE", p->args.acl);
	if (nbd_acl_names_certificates(p->acl) && !(on && tls->verify_peer))
		return bm_fail(error, BM_E_USAGE,
			       "%s names certificates: they need --tls-verify-peer", p->args.acl);
	return 0;
}

/* In a folder that is ours alone. */
static int listen_for_command(struct program *p, struct bm_error *error)
{
	const char *parent = getenv("TMPDIR");

	if (asprintf(&p->folder, "%s/blockmirror-nbd.XXXXXX", parent ? parent : "/tmp") < 0)
		p->folder = NULL;
	if (!p->folder || !mkdtemp(p->folder)) {
		int r = bm_fail_errno(error, p->folder ? errno : ENOMEM, "cannot create %s",
				      p->folder ? p->folder : "a folder");

		free(p->folder);
		p->folder = NULL;
		return r;
	}
	if (asprintf(&p->socket, "%s/socket", p->folder) < 0) {
		p->socket = NULL;
		return bm_fail_errno(error, ENOMEM, "cannot start");
	}
	return nbd_server_listen_unix(p->server, p->socket, error);
}

static int let_clients_in(struct program *p, struct bm_error *error)
{
	const struct arguments *args = &p->args;
	int r = 0;

	if (args->unix_path)
		r = nbd_server_listen_unix(p->server, args->unix_path, error);
	else if (args->host)
		r = nbd_server_listen_tcp(p->server, args->host, args->port, error);
	else if (args->run)
		r = listen_for_command(p, error);
	for (int fd = FIRST_PASSED_FD; !r && fd < FIRST_PASSED_FD + args->passed; fd++)
		r = nbd_server_listen_fd(p->server, fd, error);
	if (!r && args->stdio) {
		r = nbd_server_accept_fd(p->server, STDIN_FILENO, STDOUT_FILENO);
		if (r < 0)
			bm_fail_errno(error, r, "cannot serve on standard input and output");
	}
	return r;
}

static int start_server(struct program *p, struct bm_error *error)
{
	const struct arguments *args = &p->args;
	struct nbd_server_options options = args->limits;
	const struct nbd_export export = {
		.name = args->export_name, .dev = p->order, .read_only = args->read_only};
	int r;

	options.changed = client_changed;
	options.access = p->acl ? access_of : NULL;
	options.arg = p;
	options.insecure = args->insecure;
	p->server = nbd_server_new(p->loop, &options);
	if (!p->server)
		return bm_fail_errno(error, ENOMEM, "cannot start");
	r = nbd_server_add_export(p->server, &export, error);
	if (!r)
		r = nbd_server_set_tls(p->server, args->tls_mode, &args->tls, error);
	return r ? r : let_clients_in(p, error);
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

static int run_command(struct program *p, const char *uri, struct bm_error *error)
{
	const char *path = p->args.unix_path ? p->args.unix_path : p->socket;
	bm_free char *address = command_uri(uri, &p->args.tls);

	if (!address || setenv("uri", address, 1) < 0 ||
	    setenv("unixsocket", path ? path : "", 1) < 0)
		return bm_fail_errno(error, ENOMEM, "cannot run the command");
	p->command.ended = command_ended;
	return command_start(&p->command, p->loop, p->args.run, error);
}

/* Who started us may be waiting for this. Passed sockets could be connected to all along. */
static int announce(struct program *p, struct bm_error *error)
{
	bm_free char *uri = NULL;
	char state[40];
	int r = p->args.pid_file ? write_pid(p, error) : 0;

	if (r < 0)
		return r;
	snprintf(state, sizeof(state), "READY=1\nMAINPID=%d", getpid());
	start_notify(state);
	if (!p->args.stdio && !p->args.passed) {
		uri = nbd_server_uri(p->server, p->args.export_name);
		if (!uri)
			return bm_fail_errno(error, ENOMEM, "cannot start");
		if (p->args.run)
			return run_command(p, uri, error);
		printf("ready %s\n", uri);
		fflush(stdout);
	}
	return p->release < 0 ? 0 : start_release(p->release, error);
}

static int start(struct program *p, struct bm_error *error)
{
	int r = watch_signals(p, error);

	if (!r)
		r = open_image(p, error);
	if (!r && p->args.acl)
		r = open_acl(p, error);
	if (!r)
		r = start_server(p, error);
	return r ? r : announce(p, error);
}

static void tear_down(struct program *p, bool failed)
{
	nbd_server_free(p->server);
	nbd_acl_free(p->acl);
	bm_dev_close(p->order);
	bm_dev_close(p->lower);
	bm_dev_settle();
	if (failed && p->created)
		unlink(bm_uri_path(p->args.uri));
	if (p->pid_written)
		unlink(p->args.pid_file);
	if (p->folder)
		rmdir(p->folder);
	free(p->folder);
	free(p->socket);
	free(p->args.uri);
	bm_signals_close(&p->signals, p->loop);
	bm_loop_free(p->loop);
}

/* Serves until the end. Returns the exit status. */
static int serve(struct program *p)
{
	struct bm_error error = {0};
	int r = start(p, &error);

	if (r < 0 && *error.text)
		fprintf(stderr, "blockmirror-nbd: %s: %s\n", bm_code_name(error.code), error.text);
	if (r < 0 && p->server)
		stop(p);
	if (p->server && bm_loop_run(p->loop) < 0) {
		bm_log(BM_LOG_ERROR, "the event loop failed");
		return bm_code_exit(BM_E_INTERNAL); /* clients and requests are beyond our reach */
	}
	tear_down(p, r < 0);
	return r < 0 ? bm_code_exit(error.code) : p->command.status;
}

int main(int argc, char **argv)
{
	struct program p = {.args = {.export_name = "", .passed = start_passed_sockets()},
			    .release = -1};
	struct bm_error error = {0};
	int r;

	bm_log_setup("blockmirror-nbd", BM_LOG_NOTICE);
	r = arguments_parse(&p.args, argc, argv, &error);
	if (r > 0)
		return 0;
	if (r < 0 && *error.text)
		fprintf(stderr, "blockmirror-nbd: %s: %s\n", bm_code_name(error.code), error.text);
	if (r < 0)
		return bm_code_exit(error.code);
	r = p.args.fork ? start_fork(&p.release) : 0;
	if (r < 0)
		perror("blockmirror-nbd: cannot go to the background");
	if (r)
		return r < 0 ? bm_code_exit(BM_E_INTERNAL) : start_await(p.release, r);
	return serve(&p);
}
