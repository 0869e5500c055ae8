/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The life of a disk's process. The sockets are ours as long as the disk is to be served: between
 * the end of a process and the next one's readiness clients wait in their queues, and none is
 * refused. A process that has ended is followed at once: it is known to be gone with all its
 * threads (its pidfd says so), and the next one takes no request before the kernel has let go of
 * the image's lock. Those that end again and again without having lived are given time.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/daemon/daemon.h"

#define LIFE        500000000ull /* ns: who lived longer did not die of its start */
#define DELAY_FIRST 100000000ull
#define DELAY_MOST  10000000000ull

uint64_t served_delay(unsigned quick)
{
	unsigned doubled = quick < 2 ? 0 : quick - 2 < 10 ? quick - 2 : 10;
	uint64_t delay = quick < 2 ? 0 : DELAY_FIRST << doubled;

	return delay < DELAY_MOST ? delay : DELAY_MOST;
}

const char *served_state_name(const struct served *s)
{
	static const char *const names[] = {
		[SERVED_STOPPED] = "stopped",   [SERVED_ADOPTING] = "adopting",
		[SERVED_STARTING] = "starting", [SERVED_RUNNING] = "running",
		[SERVED_WAITING] = "waiting",
	};

	return names[s->state];
}

static void set_state(struct served *s, enum served_state state)
{
	s->state = state;
	control_tell(s);
}

void served_close_watch(struct served *s, struct bm_watch *watch)
{
	int fd = watch->fd;

	if (fd < 0)
		return;
	bm_watch_set(s->daemon->loop, watch, fd, 0);
	close(fd);
	watch->fd = -1;
}

static void close_socket(struct bm_unix_listener *socket)
{
	if (socket->fd >= 0)
		bm_unix_close(socket);
	socket->fd = -1;
}

static void close_sockets(struct served *s)
{
	close_socket(&s->nbd);
	close_socket(&s->control);
}

static void fail_call(struct bm_rpc_call **call, const struct bm_error *error)
{
	struct bm_rpc_call *waiting = bm_steal(*call);

	if (waiting)
		bm_rpc_fail(waiting, error);
}

static void forget_first(struct served *s)
{
	free(s->first.image);
	json_decref(s->first.answer);
	s->first = (struct first_start){0};
}

static void answer_serve(struct served *s)
{
	struct bm_rpc_call *call = bm_steal(s->serve_call);

	bm_rpc_reply(call, s->first.answer
				   ? bm_steal(s->first.answer)
				   : json_pack("{s:s s:s*}", "name", s->name, "nbd", s->uri));
	forget_first(s);
}

/* Nothing is in the registry and nothing runs: there is no such disk. */
static void remove_if_unknown(struct served *s)
{
	if (s->saved || s->working || s->state != SERVED_STOPPED)
		return;
	bm_list_remove(&s->link);
	served_free(s);
}

void served_stopped(struct served *s)
{
	bm_close int mark = -1;
	struct bm_rpc_call *call = bm_steal(s->stop_call);

	bm_timer_clear(s->daemon->loop, &s->retry);
	close_sockets(s);
	s->stopping = s->wanted = false;
	s->quick = 0;
	set_state(s, SERVED_STOPPED);
	if (s->saved)
		mark = open(s->stopped, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (s->saved && mark < 0)
		bm_log(BM_LOG_WARN, "%s: cannot write %s: %s; the next blockmirrord starts it",
		       s->name, s->stopped, strerror(errno));
	if (call)
		bm_rpc_reply(call, NULL);
	s->erasing = s->discard_call;
	if (s->discard_call)
		served_forget(s, bm_steal(s->discard_call));
	else
		remove_if_unknown(s);
}

/* Guests wait in the queue as long as it takes; who gives an order is told that nobody hears it. */
static void turn_callers_away(const struct served *s)
{
	int fd;

	while (s->control.fd >= 0 && (fd = accept4(s->control.fd, NULL, NULL, SOCK_CLOEXEC)) >= 0)
		close(fd);
}

/* Nobody serves it, and s->error says why. May free s. */
static void down(struct served *s, bool quick)
{
	if (s->error.code == BM_E_RETIRED && s->saved && !s->working && !s->serve_call) {
		/* It was passed to another host. */
		served_forget(s, NULL);
		return;
	}
	fail_call(&s->serve_call, &s->error);
	if (s->first.made)
		unlink(s->first.image);
	forget_first(s);
	if (!s->wanted && s->control.fd >= 0) { /* a first start that came to nothing */
		served_stopped(s);
		return;
	}
	s->quick = quick ? s->quick + 1 : 0;
	(void)bm_timer_set(s->daemon->loop, &s->retry,
			   bm_loop_now(s->daemon->loop) + served_delay(s->quick));
	if (served_delay(s->quick))
		turn_callers_away(s);
	set_state(s, SERVED_WAITING);
}

void served_later(struct served *s)
{
	down(s, true);
}

/* The end of a process */

static void find_reason(struct served *s)
{
	siginfo_t info = {0};
	int status;

	/* One that was adopted is another one's child, and leaves its status there. */
	if (waitid(P_PIDFD, (id_t)s->process.fd, &info, WEXITED | WNOHANG) < 0 || !info.si_pid) {
		bm_fail(&s->error, BM_E_INTERRUPTED, "its process ended");
		return;
	}
	status = info.si_code == CLD_EXITED ? info.si_status << 8 : info.si_status;
	bm_spawn_failure(s->log, status, &s->error);
}

static void process_ended(struct bm_watch *watch, uint32_t events);

int served_watch_process(struct served *s, int fd)
{
	s->process.run = process_ended;
	return bm_watch_set(s->daemon->loop, &s->process, fd, EPOLLIN);
}

static void process_ended(struct bm_watch *watch, uint32_t events)
{
	struct served *s = bm_container(watch, struct served, process);
	uint64_t now = bm_loop_now(s->daemon->loop);
	bool quick = s->state != SERVED_RUNNING || now - s->since < LIFE;

	(void)events;
	ask_finish(&s->ask);
	if (adopt_succeed(s))
		return;
	find_reason(s);
	bm_log(s->stopping ? BM_LOG_NOTICE : BM_LOG_WARN, "%s: process %d: %s%s", s->name,
	       (int)s->pid, s->error.text,
	       s->stopping || !s->wanted || s->error.code == BM_E_RETIRED
		       ? ""
		       : "; another one follows");
	served_close_watch(s, &s->process);
	served_close_watch(s, &s->output);
	s->pid = 0;
	s->ended = now;
	if (s->stopping) {
		s->error.code = BM_OK;
		served_stopped(s);
	} else {
		s->restarts += s->wanted;
		down(s, quick);
	}
}

/* The start of one */

static void runs(struct served *s)
{
	s->since = bm_loop_now(s->daemon->loop);
	s->wanted = true;
	unlink(s->stopped);
	set_state(s, SERVED_RUNNING);
	if (!s->saved)
		served_save(s);
}

static void is_ready(struct served *s)
{
	free(s->uri);
	s->uri = strdup(s->line + strlen("ready "));
	s->back = s->ended ? bm_loop_now(s->daemon->loop) - s->ended : 0;
	s->ended = 0;
	s->first.made = false;
	served_close_watch(s, &s->output);
	runs(s);
	if (s->back)
		bm_log(BM_LOG_NOTICE, "%s: process %d serves it, after %" PRIu64 " ms", s->name,
		       (int)s->pid, s->back / 1000000);
	if (!s->serve_call)
		resume_begin(s);
	if (s->serve_call && !s->working) /* else once it is in the registry */
		answer_serve(s);
	else if (!s->serve_call)
		forget_first(s);
}

static void output_ready(struct bm_watch *watch, uint32_t events)
{
	struct served *s = bm_container(watch, struct served, output);
	ssize_t n = read(watch->fd, s->line + s->line_used, sizeof(s->line) - 1 - s->line_used);
	char *newline;

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) { /* it ends; or said more than there is to say */
		served_close_watch(s, &s->output);
		return;
	}
	s->line_used += (size_t)n;
	s->line[s->line_used] = '\0';
	newline = strchr(s->line, '\n');
	if (newline && !strncmp(s->line, "ready ", strlen("ready "))) {
		*newline = '\0';
		is_ready(s);
	}
}

/* A child that we cannot watch must not live on unseen. */
static int start_process(struct served *s)
{
	bm_close int output = -1, process = -1;
	int pid = served_spawn(s, &output), r = 0;

	if (pid < 0)
		return pid;
	process = pidfd_open(pid, 0);
	if (process < 0)
		r = -errno;
	else
		r = served_watch_process(s, process);
	if (!r && fcntl(output, F_SETFL, O_NONBLOCK) < 0)
		r = -errno;
	s->line_used = 0;
	s->output.run = output_ready;
	if (!r)
		r = bm_watch_set(s->daemon->loop, &s->output, output, EPOLLIN);
	if (r < 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		bm_watch_set(s->daemon->loop, &s->process, process, 0);
		s->process.fd = s->output.fd = -1;
		return bm_fail_errno(&s->error, r, "cannot start " BM_DISK_PROGRAM);
	}
	bm_steal_fd(output);
	bm_steal_fd(process);
	s->pid = pid;
	return 0;
}

static int socket_path(const struct served *s, const char *suffix, char **path)
{
	return asprintf(path, "%s/%s.%s", s->daemon->sockets, s->name, suffix) < 0 ? -ENOMEM : 0;
}

static int listen_on(struct served *s, const char *suffix, struct bm_unix_listener *socket)
{
	bm_free char *path = NULL;

	if (socket_path(s, suffix, &path) < 0)
		return bm_fail_errno(&s->error, ENOMEM, "disk %s", s->name);
	return bm_unix_listen(socket, path, &s->error);
}

void served_begin(struct served *s)
{
	int r;

	if (s->control.fd < 0) {
		if (adopt_ask(s)) {
			set_state(s, SERVED_ADOPTING);
			return;
		}
		if (!s->wanted && !s->serve_call) { /* it is stopped, or was a stranger */
			served_stopped(s);
			return;
		}
		r = listen_on(s, "nbd", &s->nbd);
		if (!r)
			r = listen_on(s, "sock", &s->control);
		if (r < 0) {
			close_sockets(s);
			down(s, true);
			return;
		}
	}
	r = start_process(s);
	if (r < 0) {
		down(s, true);
		return;
	}
	set_state(s, SERVED_STARTING);
}

static void try_again(struct bm_timer *timer)
{
	served_begin(bm_container(timer, struct served, retry));
}

/* Takes fd over when it succeeds. */
static int take_over(struct served *s, const char *suffix, struct bm_unix_listener *socket, int fd)
{
	bm_free char *path = NULL;
	int r = socket_path(s, suffix, &path);

	return r ? r : bm_unix_take(socket, path, fd);
}

/* Its paths are its own still: it goes on as it was. */
static void not_adopted(struct served *s, int r)
{
	ask_cancel(&s->ask);
	s->process.fd = -1;
	bm_unix_leave(&s->nbd);
	close_socket(&s->nbd);
	bm_unix_leave(&s->control);
	close_socket(&s->control);
	bm_fail_errno(&s->error, r, "cannot adopt its process");
	down(s, true);
}

void served_adopted(struct served *s, pid_t pid, int process, int nbd, int control)
{
	bm_close int watched = process, nbd_fd = nbd, control_fd = control;
	struct bm_error error;
	int r = take_over(s, "nbd", &s->nbd, nbd_fd);

	if (!r) {
		bm_steal_fd(nbd_fd);
		r = take_over(s, "sock", &s->control, control_fd);
	}
	if (!r) {
		bm_steal_fd(control_fd);
		r = served_watch_process(s, watched);
	}
	if (r < 0) {
		not_adopted(s, r);
		return;
	}
	bm_steal_fd(watched);
	s->pid = pid;
	if (s->successor_pid == pid)
		served_close_watch(s, &s->successor);
	bm_log(BM_LOG_NOTICE, "%s: process %d is adopted", s->name, (int)pid);
	bm_fail(&error, BM_E_BUSY, "disk %s is served already", s->name);
	fail_call(&s->serve_call, &error);
	runs(s);
}

/* The registry */

static void write_registry(struct bm_work *work)
{
	struct served *s = bm_container(work, struct served, work);

	s->work_error.code = BM_OK;
	if (s->erasing && receive_erase(s, &s->work_error) < 0)
		return;
	if (s->forgetting)
		registry_remove(s->daemon->registry, s->name, &s->work_error);
	else
		registry_add(s->daemon->registry, s->name, s->limits, s->received, &s->work_error);
}

static void written(struct served *s)
{
	s->saved = !s->work_error.code;
	if (!s->saved)
		bm_log(BM_LOG_ERROR, "%s: it is served, but not after a boot: %s", s->name,
		       s->work_error.text);
	if (s->serve_call && s->saved)
		answer_serve(s);
	else
		fail_call(&s->serve_call, &s->work_error);
}

static void removed(struct served *s)
{
	struct bm_rpc_call *call = bm_steal(s->stop_call);

	s->forgetting = s->erasing = false;
	if (s->work_error.code) {
		fail_call(&call, &s->work_error);
		return;
	}
	unlink(s->stopped);
	s->saved = false;
	if (call)
		bm_rpc_reply(call, NULL);
	remove_if_unknown(s);
}

static void registry_done(struct bm_work *work)
{
	struct served *s = bm_container(work, struct served, work);

	s->working = false;
	if (s->forgetting)
		removed(s);
	else
		written(s);
}

void served_save(struct served *s)
{
	if (s->working)
		return;
	s->working = true;
	bm_workers_submit(s->daemon->writer, s->daemon->loop, &s->work);
}

void served_forget(struct served *s, struct bm_rpc_call *call)
{
	if (s->state != SERVED_STOPPED)
		served_stopped(s);
	s->stop_call = call;
	s->forgetting = s->working = true;
	bm_workers_submit(s->daemon->writer, s->daemon->loop, &s->work);
}

/* All of them */

struct served *served_find(struct daemon *d, const char *name)
{
	bm_list_each(node, &d->disks) {
		struct served *s = bm_container(node, struct served, link);

		if (!strcmp(s->name, name))
			return s;
	}
	return NULL;
}

struct served *served_new(struct daemon *d, const char *name)
{
	struct served *s = calloc(1, sizeof(*s));
	struct bm_list *after = &d->disks;

	if (!s)
		return NULL;
	s->daemon = d;
	s->nbd.fd = s->control.fd = s->process.fd = s->output.fd = s->successor.fd = -1;
	s->resumer.fd = -1;
	s->retry.run = try_again;
	s->work.run = write_registry;
	s->work.done = registry_done;
	ask_init(&s->ask, d->loop);
	s->name = strdup(name);
	if (!s->name || socket_path(s, "log", &s->log) < 0 ||
	    socket_path(s, "stopped", &s->stopped) < 0) {
		served_free(s);
		return NULL;
	}
	while (after->next != &d->disks &&
	       strcmp(bm_container(after->next, struct served, link)->name, name) < 0)
		after = after->next;
	bm_list_push(after, &s->link);
	return s;
}

/* The process, if there is one, goes on, and its sockets with it. */
void served_free(struct served *s)
{
	const struct bm_error error = {BM_E_INTERRUPTED, "blockmirrord was told to end"};

	fail_call(&s->serve_call, &error);
	fail_call(&s->stop_call, &error);
	ask_cancel(&s->ask);
	bm_timer_clear(s->daemon->loop, &s->retry);
	served_close_watch(s, &s->process);
	served_close_watch(s, &s->successor);
	served_close_watch(s, &s->output);
	served_close_watch(s, &s->resumer);
	bm_unix_leave(&s->nbd);
	bm_unix_leave(&s->control);
	close_sockets(s);
	forget_first(s);
	fail_call(&s->discard_call, &error);
	json_decref(s->limits);
	json_decref(s->received);
	free(s->uri);
	free(s->stopped);
	free(s->log);
	free(s->name);
	free(s);
}
