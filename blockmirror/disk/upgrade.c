/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Another process, of the program that is installed now, takes this one's place, and no client sees
 * it. It starts first and says what it is (successor.c). Then the server freezes, the job is parked
 * as for any end of this process, the devices are closed, and the disk goes over as descriptors:
 * the lock of its folder, the image with its locks, the sockets, each client.
 *
 * One of the two is the disk's process at any time. The new one touches neither image nor clients
 * before it is told "go", or this process is dead; this one, once it has said so, nothing any more.
 * When anything goes wrong before that, the new one is killed, is known to be dead, and this one
 * goes on as a process does that follows a dead one.
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/pass.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/disk/job.h"

#define READY_WITHIN  10000000000ull /* ns from the start of the new process */
#define FROZEN_WITHIN 2000000000ull  /* ns that requests in flight get */
enum {
	TAKEN_WITHIN = 5 /* s that the new process gets for each message */,
	ARGUMENTS = 32,
	NUMBER = 24
};
static_assert(BM_SPAWN_FIRST_FD == 3, "the number in start()");

struct upgrade {
	struct disk *disk;
	struct bm_rpc_call *call;
	int pid, fd; /* of the new process; the socket to it */
	struct bm_watch watch;
	struct bm_timer timer;
	struct bm_task go_on;
	char *log;
	char program[64]; /* its version */
	bool stop;        /* this process was told to end meanwhile */
	uint64_t frozen;  /* since; 0: it is not */
	uint64_t drained; /* no request was in flight any more */
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* The end of it */

static void upgrade_free(struct upgrade *u)
{
	struct disk *d = u->disk;

	bm_watch_set(d->loop, &u->watch, u->fd, 0);
	bm_timer_clear(d->loop, &u->timer);
	bm_task_cancel(&u->go_on);
	if (u->fd >= 0)
		close(u->fd);
	free(u->log);
	free(u);
	d->upgrade = NULL;
}

/* It is dead when this returns. why is replaced by what it said itself, if it ended by itself. */
static void end_successor(struct upgrade *u, struct bm_error *why)
{
	int status = 0;

	if (u->pid <= 0)
		return;
	/* One that ends by itself has closed the socket a moment before. */
	for (int i = 0; why->code == BM_E_INTERRUPTED && i < 100; i++) {
		if (waitpid(u->pid, &status, WNOHANG)) {
			bm_spawn_failure(u->log, status, why);
			u->pid = 0;
			return;
		}
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	kill(u->pid, SIGKILL);
	waitpid(u->pid, &status, 0);
	u->pid = 0;
}

/* The new one is not fit, or cannot have the disk now: all is as before. */
static void give_up(struct upgrade *u, struct bm_error *why)
{
	struct disk *d = u->disk;
	struct bm_error error;
	bool stop = u->stop;

	end_successor(u, why);
	if (u->frozen)
		nbd_server_thaw(d->nbd);
	bm_fail(&error, why->code, "disk %s stays with process %d (version %s): %.400s", d->name,
		(int)getpid(), BM_VERSION, why->text);
	bm_log(BM_LOG_WARN, "upgrade: %s", error.text);
	bm_rpc_fail(u->call, &error);
	upgrade_free(u);
	if (stop)
		disk_stop(d);
}

/* Jobs */

json_t *upgrade_orders(const struct disk *d)
{
	const struct job *job = d->job;

	if (!job_runs(job))
		return json_object();
	return json_pack("{s:b s:b s:b s:b}", "paused", job->paused, "switch", job->switch_wanted,
			 "undo", job->undo_wanted, "release", job->release_wanted);
}

void upgrade_give_orders(struct disk *d, const json_t *orders)
{
	int paused = 0, switching = 0, undo = 0, release = 0;

	if (!job_runs(d->job) ||
	    json_unpack((json_t *)orders, "{s?b s?b s?b s?b}", "paused", &paused, "switch",
			&switching, "undo", &undo, "release", &release))
		return;
	job_pause(d->job, paused);
	if (switching)
		job_event(d->job, EV_SWITCH);
	if (undo)
		job_event(d->job, EV_UNDO);
	if (release)
		job_event(d->job, EV_RELEASE);
}

/* Why the job cannot be parked at this moment, or NULL. */
static const char *obstacle(const struct job *job)
{
	if (!job_runs(job))
		return NULL;
	if (job->reopening)
		return "its target is just being opened";
	if (checkpoint_hangs(job))
		return "the state directory does not answer";
	if (job->preparing_records || job->keeping ||
	    (job->phase != PHASE_COPYING && job->phase != PHASE_VERIFYING &&
	     job->phase != PHASE_IN_SYNC && job->phase != PHASE_WINDOW))
		return report_phase(job);
	return NULL;
}

static int check_disk(const struct disk *d, struct bm_error *error)
{
	const char *what = obstacle(d->job);

	if (storage_is_lost(d))
		return bm_fail(
			error, BM_E_BUSY,
			"its storage is unreachable, and requests wait for it; try again when "
			"it is back");
	if (hooks_run(d))
		return bm_fail(error, BM_E_BUSY, "hooks are being run for it; try again");
	return what ? bm_fail(error, BM_E_BUSY,
			      "its job %s.%u is in the middle of a step (%s); "
			      "try again",
			      d->name, d->job->number, what)
		    : 0;
}

static void park(struct job *job)
{
	if (!job_runs(job))
		return;
	away_clear_timers(job);
	switch_clear_timers(job);
	checkpoint_end(job);
	mapfile_close(job->disk, job->map);
	job->map = NULL;
}

/* Handing over. Blocks: nothing is served meanwhile, by anybody. */

static int tell(const struct upgrade *u, json_t *message, const struct bm_pass *pass)
{
	bm_free char *text = message ? json_dumps(message, JSON_COMPACT) : NULL;

	json_decref(message);
	return text ? bm_pass_send(u->fd, NULL, text, strlen(text), pass, 0) : -ENOMEM;
}

static int pass_client(void *arg, int fd, const uint8_t *parcel, size_t length)
{
	const struct upgrade *u = arg;

	return bm_pass_send(u->fd, NULL, parcel, length, &(struct bm_pass){.fds = {fd}, .n_fds = 1},
			    0);
}

static int pass_disk(struct upgrade *u, json_t *orders)
{
	struct disk *d = u->disk;
	const struct bm_pass pass = {.fds = {d->folder_lock, nbd_server_share(d->nbd),
					     bm_rpc_share(d->rpc), d->image_fd},
				     .n_fds = d->image_fd > 0 ? 4 : 3};
	uint8_t parcel[NBD_PARCEL];
	size_t length = nbd_server_pack(d->nbd, parcel);
	int r = length ? 0 : -EOVERFLOW;

	if (!r)
		r = tell(u,
			 json_pack("{s:i s:b s:O s:O}", "v", 1, "shared", d->shared, "past",
				   d->past, "orders", orders),
			 &pass);
	if (!r)
		r = bm_pass_send(u->fd, NULL, parcel, length, &(struct bm_pass){0}, 0);
	return r ? r : nbd_server_pass(d->nbd, pass_client, u);
}

static int pass(struct upgrade *u, json_t *orders, struct bm_error *error)
{
	struct bm_pass none;
	char text[256];
	ssize_t n;
	int r = pass_disk(u, orders);

	n = r < 0 ? r : bm_pass_receive(u->fd, text, sizeof(text), &none, 0);
	if (n > 0)
		bm_pass_close(&none);
	if (n > 0)
		n = tell(u, json_pack("{s:i s:b}", "v", 1, "go", 1), &(struct bm_pass){0});
	else if (!n)
		n = -EPIPE;
	if (n == -EPIPE || n == -ECONNRESET)
		return bm_fail(error, BM_E_INTERRUPTED, "the new process ended");
	return n < 0 ? bm_fail_errno(error, (int)n, "the new process did not take the disk over")
		     : 0;
}

/* The disk is the new process's, and this one's end nothing but its own. */
static void handed_over(struct upgrade *u)
{
	struct disk *d = u->disk;
	uint64_t stall = now() - u->frozen;
	unsigned clients = nbd_server_clients(d->nbd, NULL, 0);

	bm_log(BM_LOG_NOTICE,
	       "process %d (version %s) takes over; clients: %u, stall %" PRIu64 " us", u->pid,
	       u->program, clients, stall / 1000);
	bm_rpc_reply(u->call,
		     json_pack("{s:i s:s s:i s:s s:i s:I s:I}", "pid", u->pid, "version",
			       u->program, "old_pid", (int)getpid(), "old_version", BM_VERSION,
			       "clients", (int)clients, "stall_ns", (json_int_t)stall, "drain_ns",
			       (json_int_t)(u->drained - u->frozen)));
	if (u->stop)
		kill(u->pid, SIGTERM);
	upgrade_free(u);
	job_forget(d);
	bm_rpc_free(d->rpc);
	d->rpc = NULL;
	disk_leave(d);
}

/* As a process that follows a dead one, but with its clients. */
static int go_back(struct upgrade *u, const json_t *orders, struct bm_error *error)
{
	struct disk *d = u->disk;
	struct job *parked = job_runs(d->job) ? bm_steal(d->job) : NULL;
	int r = disk_take_up(d, error);

	if (!d->shared) {
		nbd_server_own(d->nbd, d->nbd_path);
		bm_rpc_own(d->rpc, d->control_path);
	}
	if (parked && !r)
		r = job_recover(d, error);
	if (parked && d->job)
		bm_list_move_all(&d->job->waiters, &parked->waiters);
	else if (parked) {
		d->job = bm_steal(parked);
		job_forget(d);
	}
	job_free(parked);
	if (!r)
		upgrade_give_orders(d, orders);
	return r;
}

static void hand_over(struct bm_task *task)
{
	struct upgrade *u = bm_container(task, struct upgrade, go_on);
	struct disk *d = u->disk;
	struct bm_error why, error;
	json_t *orders = upgrade_orders(d);

	park(d->job);
	disk_let_go(d);
	if (!pass(u, orders, &why)) {
		json_decref(orders);
		handed_over(u);
		return;
	}
	end_successor(u, &why);
	if (!go_back(u, orders, &error)) {
		give_up(u, &why);
	} else { /* another one has to be started */
		bm_log(BM_LOG_ERROR, "upgrade: %s; then: %s", why.text, error.text);
		bm_rpc_fail(u->call, &error);
		upgrade_free(u);
		bm_rpc_free(d->rpc);
		d->rpc = NULL;
		disk_leave(d);
	}
	json_decref(orders);
}

void upgrade_detached(struct disk *d)
{
	int other = !disk_authority(d);

	bm_dev_close(d->side[other]);
	d->side[other] = NULL;
	bm_loop_soon(d->loop, &d->upgrade->go_on); /* the mirror cannot be closed in its own call */
}

/* No client's request is in flight, or busy has one. */
static void frozen(void *arg, const char *busy)
{
	struct upgrade *u = arg;
	struct disk *d = u->disk;
	struct bm_error error;

	u->drained = now();
	if (busy)
		bm_fail(&error, BM_E_BUSY,
			"its client %s is in the middle of a request, or does not take the "
			"answers; try again",
			busy);
	if (busy || check_disk(d, &error) < 0) {
		give_up(u, &error);
		return;
	}
	if (job_runs(d->job)) {
		d->job->parked = true;
		if (d->job->map)
			bm_mirror_keep_map(d->mirror);
		if (!bm_mirror_detach(d->mirror))
			return; /* upgrade_detached() follows */
	}
	bm_loop_soon(d->loop, &u->go_on);
}

/* The new process */

static int understand(struct upgrade *u, const char *text, size_t length, struct bm_error *error)
{
	json_t *hello = json_loadb(text, length, 0, NULL);
	const char *program = "?";
	int v = 0, state = 0, clients = 0;
	int r = json_unpack(hello, "{s:i s:i s:i s:s}", "v", &v, "state", &state, "clients",
			    &clients, "version", &program);

	snprintf(u->program, sizeof(u->program), "%s", program);
	json_decref(hello);
	if (!r && v == 1 && state == UPGRADE_STATE && clients == NBD_HANDOVER)
		return 0;
	return bm_fail(error, BM_E_UNSUPPORTED,
		       "the new process (version %s) cannot take over from this one (state %d.%d, "
		       "this one's is %d.%d): stop the disk's clients, stop the disk and serve it "
		       "again",
		       u->program, state, clients, UPGRADE_STATE, NBD_HANDOVER);
}

static void says(struct bm_watch *watch, uint32_t events)
{
	struct upgrade *u = bm_container(watch, struct upgrade, watch);
	struct disk *d = u->disk;
	struct bm_error error;
	struct bm_pass pass;
	char text[1024];
	ssize_t n = bm_pass_receive(u->fd, text, sizeof(text), &pass, MSG_DONTWAIT);
	int r;

	(void)events;
	if (n == -EAGAIN)
		return;
	if (n >= 0)
		bm_pass_close(&pass);
	bm_watch_set(d->loop, &u->watch, u->fd, 0);
	bm_timer_clear(d->loop, &u->timer);
	if (n <= 0)
		r = bm_fail(&error, BM_E_INTERRUPTED, "the new process ended");
	else
		r = understand(u, text, (size_t)n, &error);
	if (!r)
		r = check_disk(d, &error);
	if (!r) {
		u->frozen = now();
		r = nbd_server_freeze(d->nbd, FROZEN_WITHIN, frozen, u);
		if (r < 0)
			bm_fail_errno(&error, r, "cannot freeze");
	}
	if (r < 0)
		give_up(u, &error);
}

static void not_ready(struct bm_timer *timer)
{
	struct bm_error error;

	bm_fail(&error, BM_E_UNREACHABLE, "the new process did not say in 10 s that it is ready");
	give_up(bm_container(timer, struct upgrade, timer), &error);
}

/* Unless it is at its default. */
static int put_number(char **argv, int n, const char *option, uint64_t value, char *text)
{
	if (!value)
		return n;
	snprintf(text, NUMBER, "%" PRIu64, value);
	argv[n] = (char *)option;
	argv[n + 1] = text;
	return n + 2;
}

static int spawn(struct upgrade *u, int end)
{
	const struct disk *d = u->disk;
	const struct nbd_server_options *limits = &d->limits;
	/* RUN/disks/NAME.nbd, STATE/disks/NAME */
	const size_t tail = strlen("/disks/") + strlen(d->name);
	bm_free char *run = strndup(d->nbd_path, strlen(d->nbd_path) - tail - strlen(".nbd"));
	bm_free char *state = strndup(d->folder, strlen(d->folder) - tail);
	char *argv[ARGUMENTS] = {(char *)BM_DISK_PROGRAM,
				 (char *)"--name",
				 d->name,
				 (char *)"--run-dir",
				 run,
				 (char *)"--state-dir",
				 state,
				 (char *)"--take-over",
				 (char *)"3"};
	char text[7][NUMBER];
	int n = 9;

	if (!run || !state)
		return -ENOMEM;
	n = put_number(argv, n, "--max-connections", limits->max_connections, text[0]);
	n = put_number(argv, n, "--max-requests", limits->max_requests, text[1]);
	n = put_number(argv, n, "--max-data", limits->max_data, text[2]);
	n = put_number(argv, n, "--handshake-timeout", limits->handshake_ns / 1000000000, text[3]);
	n = put_number(argv, n, "--idle-timeout", limits->idle_ns / 1000000000, text[4]);
	argv[n++] = (char *)"--hooks";
	argv[n++] = (char *)(d->hooks ? d->hooks : "none");
	n = put_number(argv, n, "--hook-timeout", d->hook_limit / 1000000, text[6]);
	if (d->reconnect != UINT64_MAX) /* a number alone is milliseconds */
		n = put_number(argv, n, "--reconnect-timeout", d->reconnect / 1000000, text[5]);
	argv[n] = NULL;
	return bm_spawn_disk(&(struct bm_spawn){
		.argv = argv, .log = u->log, .append = true, .fds = &end, .n_fds = 1});
}

static int start(struct upgrade *u, struct bm_error *error)
{
	struct disk *d = u->disk;
	const struct timeval limit = {.tv_sec = TAKEN_WITHIN};
	bm_close int end = -1;
	int ends[2], r = 0;

	if (asprintf(&u->log, "%.*slog", (int)(strlen(d->nbd_path) - strlen("nbd")), d->nbd_path) <
	    0)
		return bm_fail_errno(error, ENOMEM, "disk %s", d->name);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return bm_fail_errno(error, errno, "cannot make a socket");
	u->fd = ends[0];
	end = ends[1];
	if (setsockopt(u->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0 ||
	    setsockopt(u->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0)
		return bm_fail_errno(error, errno, "cannot set up a socket");
	u->pid = spawn(u, end);
	if (u->pid < 0)
		return bm_fail_errno(error, u->pid, "cannot start " BM_DISK_PROGRAM);
	r = bm_timer_set(d->loop, &u->timer, bm_loop_now(d->loop) + READY_WITHIN);
	if (!r)
		r = bm_watch_set(d->loop, &u->watch, u->fd, EPOLLIN);
	return r < 0 ? bm_fail_errno(error, r, "cannot watch the new process") : 0;
}

void upgrade_begin(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	struct upgrade *u;
	struct bm_error error;

	(void)params;
	if (d->stopping || d->upgrade || d->yield || d->promotion || d->witness || d->lent ||
	    d->move) {
		bm_fail(&error, BM_E_BUSY, "disk %s is being %s already", d->name,
			d->stopping  ? "stopped"
			: d->lent    ? "slipped under its VMM, or taken out,"
			: d->upgrade ? "upgraded"
				     : "passed from host to host");
		bm_rpc_fail(call, &error);
		return;
	}
	/* Its clients are under TLS, and cannot be passed on; or it is a reader of what another
	 * has. */
	if (d->data || d->record.shared) {
		bm_fail(&error, BM_E_UNSUPPORTED,
			"disk %s is a standby of host %s: stop it and serve it again, its guest is "
			"not here",
			d->name, d->record.peer);
		bm_rpc_fail(call, &error);
		return;
	}
	u = calloc(1, sizeof(*u));
	if (!u) {
		bm_fail_errno(&error, ENOMEM, "disk %s", d->name);
		bm_rpc_fail(call, &error);
		return;
	}
	u->disk = d;
	u->call = call;
	u->fd = -1;
	u->watch.run = says;
	u->timer.run = not_ready;
	u->go_on.run = hand_over;
	d->upgrade = u;
	if (check_disk(d, &error) < 0 || start(u, &error) < 0)
		give_up(u, &error);
}

bool upgrade_stops(struct disk *d)
{
	struct upgrade *u = d->upgrade;
	struct bm_error error;

	if (!u)
		return false;
	u->stop = true;
	bm_fail(&error, BM_E_INTERRUPTED, "it was told to end");
	if (!job_runs(d->job) || !d->job->parked) /* else it is a matter of a moment */
		give_up(u, &error);
	return true;
}
