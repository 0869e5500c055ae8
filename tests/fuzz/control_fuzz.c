/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The control socket of a disk: lines of JSON, and the methods' parameters. The first byte chooses
 * what the disk is doing, the rest is what a client sends. The disk is real as far as the methods
 * look at it; what they begin (jobs, which touch files) ends here.
 */
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/log.h"
#include "blockmirror/dev/open.h"
#include "blockmirror/disk/control.c"
#include "tests/fuzz/fuzz.h"

enum {
	JOB = 1,
	STOPPING = 2,
	PAST = 4,
	MOVED = 8,
	PHASE = 4 /* bits to the right of it */,
	TURNS = 1 << 16
};

static struct disk disk;
static struct job job;
static bool gone;

json_t *report_job(const struct job *j)
{
	return json_pack("{s:i}", "number", (int)j->number);
}

json_t *report_disk(struct disk *d)
{
	return json_pack("{s:s}", "name", d->name);
}

void daemon_adopt(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	demand(arg == &disk);
	bm_rpc_reply(call, NULL);
}

void upgrade_begin(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void beside_claim(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void beside_let_go(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

bool back_is_pair(const struct disk *d, const char *host)
{
	(void)d;
	(void)host;
	return false;
}

void offer_method(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void yield_begin(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void promote_arm(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void promote_take(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void move_join(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void move_witness(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void move_settle(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void move_let_go(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void move_leave(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

void move_retire(void *arg, struct bm_rpc_call *call, json_t *params)
{
	daemon_adopt(arg, call, params);
}

int move_allows(const struct disk *d, const char *id, struct bm_error *error)
{
	(void)d;
	(void)id;
	(void)error;
	return 0;
}

bool remote_is(const char *uri)
{
	(void)uri;
	return false;
}

void job_begin(struct disk *d, struct job_options *options, struct bm_rpc_call *call)
{
	(void)d;
	demand(options->target && options->latency != 1 && options->kind <= JOB_COPY);
	free(options->target);
	json_decref(options->request);
	bm_rpc_reply(call, NULL);
}

bool hooks_agree(struct job *j, enum hook_step step, enum job_event event)
{
	demand(j == &job && step == BEFORE_RELEASE && event == EV_RELEASE);
	return true;
}

bool hooks_run(const struct disk *d)
{
	demand(d == &disk);
	return false;
}

bool request_answer(struct disk *d, struct bm_rpc_call *call, const json_t *params)
{
	demand(d == &disk && call && params);
	return false;
}

struct job *request_job(const struct disk *d, const char *id)
{
	return *id == '2' ? d->job : NULL;
}

json_t *request_past(const struct disk *d, const char *id)
{
	return *id == '1' ? json_incref(json_array_get(d->past, 0)) : NULL;
}

void job_event(struct job *j, enum job_event event)
{
	bool window = j->switched && j->options.window;

	demand(j == &job);
	demand(event == EV_SWITCH || (window && (event == EV_UNDO || event == EV_RELEASE)));
}

void job_stop(struct job *j, enum bm_code code, const char *text)
{
	demand(j == &job && code == BM_E_CANCELLED && text);
	j->phase = PHASE_ENDED;
}

bool job_in_sync(const struct job *j)
{
	return j->phase == PHASE_IN_SYNC;
}

void job_pause(struct job *j, bool paused)
{
	j->paused = paused;
}

void job_set_limits(const struct job *j)
{
	demand(j == &job);
}

void host_keep(struct job *j)
{
	demand(j == &job && j->options.latency != 1);
}

void away_chosen(struct job *j)
{
	demand(j == &job);
}

void away_resumed(struct job *j)
{
	demand(j == &job && !j->paused);
}

bool storage_is_lost(const struct disk *d)
{
	demand(d == &disk);
	return false;
}

/* Half of those who wait are answered at once, the others at the end. */
void job_tell_waiters(struct job *j)
{
	bm_list_each_safe(node, &j->waiters) {
		struct job_waiter *w = bm_container(node, struct job_waiter, link);

		if (w->goal == GOAL_SYNC && !gone)
			continue;
		bm_list_remove(node);
		bm_rpc_reply(w->call, report_job(j));
		free(w);
	}
}

void disk_stop(struct disk *d)
{
	d->stopping = true;
}

static void client_gone(void *arg)
{
	(void)arg;
	gone = true;
}

static void open_once(void)
{
	static const struct bm_mirror_config config;
	static const struct bm_mirror_host host;

	if (disk.loop)
		return;
	bm_log_setup("fuzz", BM_LOG_ERROR);
	disk.loop = bm_loop_new();
	disk.nbd = nbd_server_new(disk.loop, NULL);
	disk.name = strdup("disk");
	disk.record.uri = strdup("/nowhere/disk.img");
	demand(disk.loop && disk.nbd && disk.name && disk.record.uri);
	demand(!bm_dev_open("mem:1M", NULL, &disk.side[0], NULL));
	bm_dev_start(disk.side[0], disk.loop);
	demand(!bm_mirror_new(disk.loop, disk.side[0], &config, &host, NULL, &disk.mirror));
}

static void begin(unsigned what)
{
	open_once();
	gone = false;
	disk.stopping = what & STOPPING;
	disk.past = json_array();
	if (what & PAST)
		json_array_append_new(disk.past, json_pack("{s:i}", "number", 1));
	job = (struct job){.disk = &disk, .number = 2, .phase = (what >> PHASE) % PHASES};
	job.options.kind = what & PAST ? JOB_COPY : JOB_RELOCATE;
	job.switched = what & MOVED;
	job.options.window = what & MOVED ? 1 : 0;
	bm_list_init(&job.waiters);
	disk.job = what & JOB ? &job : NULL;
}

/* Answers and events: a line each, and objects. Returns whether the connection lives. */
static bool read_answers(int fd)
{
	static char answers[1 << 20];
	static size_t used;
	ssize_t n = recv(fd, answers + used, sizeof(answers) - used, MSG_DONTWAIT);
	char *at = answers, *newline;

	if (n <= 0) {
		used = n < 0 && errno == EAGAIN ? used : 0;
		return n < 0 && errno == EAGAIN;
	}
	used += (size_t)n;
	while ((newline = memchr(at, '\n', used))) {
		json_t *object = json_loadb(at, (size_t)(newline - at), 0, NULL);

		demand(json_is_object(object));
		demand(!json_object_get(object, "result") != !json_object_get(object, "error"));
		json_decref(object);
		used -= (size_t)(newline + 1 - at);
		at = newline + 1;
	}
	memmove(answers, at, used);
	return true;
}

static void talk(int fd, struct input *in)
{
	bool open = true;

	for (unsigned turns = 0; open; turns++) {
		ssize_t n = in->left ? send(fd, in->at, in->left, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

		if (n > 0)
			input_take(in, &(size_t){(size_t)n});
		if (!in->left || (n < 0 && errno == EPIPE))
			shutdown(fd, SHUT_WR);
		demand(bm_loop_turn(disk.loop, 0) >= 0 && turns < TURNS);
		open = read_answers(fd);
		/* Who has sent all it has, waits for those calls only that we hold. */
		if (open && !in->left && turns % 8 == 7) {
			gone = true;
			job_tell_waiters(&job);
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	int fds[2];

	begin(input_u8(&in));
	demand(!bm_rpc_new(disk.loop, methods, &disk, &disk.rpc));
	demand(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
	demand(!bm_rpc_serve_fd(disk.rpc, fds[0], client_gone));
	talk(fds[1], &in);
	gone = true;
	job_tell_waiters(&job);
	demand(bm_loop_turn(disk.loop, 0) >= 0);
	bm_rpc_free(disk.rpc);
	json_decref(disk.past);
	close(fds[1]);
	return 0;
}
