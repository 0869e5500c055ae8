/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Program blockmirror-move: started by blockmirrord for a folder of STATE/moves. The loop answers
 * at RUN/moves/ID.sock; all there is to do is done by one worker.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/dirs.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/rpc.h"
#include "blockmirror/base/signals.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/worker.h"
#include "blockmirror/machine/move.h"

enum { FIRST_FD = 3, MOST_WAITING = 16 };
#define HOOK_LIMIT 60000000000ull /* ns */

static const char help[] =
	"usage: blockmirror-move --move FOLDER [options]\n"
	"\n"
	"Moves one machine to another host, or takes one in. blockmirrord(8) starts it.\n"
	"\n"
	"  --move FOLDER    STATE/moves/ID: plan and log\n"
	"  --run-dir DIR    sockets (default $BLOCKMIRROR_RUN_DIR, then /run/blockmirror)\n"
	"  --state-dir DIR  records (default $BLOCKMIRROR_STATE_DIR, then /var/lib/blockmirror)\n"
	"  --hook-timeout T how long each hook may take (default 60s)\n"
	"  --help, --version\n";

struct program {
	struct move move;
	struct bm_loop *loop;
	struct bm_rpc *rpc;
	struct bm_workers *workers;
	struct bm_work work;
	struct bm_rpc_call *waiting[MOST_WAITING];
	struct bm_signals signals;
	struct bm_timer leave;
};

static json_t *report(struct program *p)
{
	json_t *copy;

	pthread_mutex_lock(&p->move.lock);
	copy = json_deep_copy(p->move.report);
	pthread_mutex_unlock(&p->move.lock);
	return copy;
}

static void method_show(void *arg, struct bm_rpc_call *call, json_t *params)
{
	(void)params;
	bm_rpc_reply(call, report(arg));
}

/* Answered when it is over. */
static void method_wait(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct program *p = arg;
	struct bm_error error;

	(void)params;
	for (int i = 0; i < MOST_WAITING; i++)
		if (!p->waiting[i]) {
			p->waiting[i] = call;
			return;
		}
	bm_fail(&error, BM_E_BUSY, "too many wait for move %s already", p->move.id);
	bm_rpc_fail(call, &error);
}

static void method_cancel(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct program *p = arg;

	(void)params;
	atomic_store(&p->move.cancelled, true);
	bm_rpc_reply(call, NULL);
}

static void method_recover(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct program *p = arg;
	struct bm_error error;
	json_t *told = NULL;

	if (doubt_recover(&p->move, json_is_true(json_object_get(params, "dead")), &told, &error) <
	    0)
		bm_rpc_fail(call, &error);
	else
		bm_rpc_reply(call, told);
}

static const struct bm_rpc_table methods[] = {{"show", method_show},
					      {"wait", method_wait},
					      {"cancel", method_cancel},
					      {"recover", method_recover},
					      {NULL, NULL}};

static void leave(struct bm_timer *timer)
{
	bm_loop_stop(bm_container(timer, struct program, leave)->loop);
}

/* On a signal its work is left as it is: the next process goes on. */
static void on_signal(struct bm_signals *signals, int number)
{
	(void)signals;
	(void)number;
	_exit(1);
}

static void run(struct bm_work *work)
{
	struct program *p = bm_container(work, struct program, work);

	if (!strcmp(json_string_value(json_object_get(p->move.plan, "side")), "source"))
		move_source(&p->move);
	else
		move_target(&p->move);
}

static void done(struct bm_work *work)
{
	struct program *p = bm_container(work, struct program, work);

	for (int i = 0; i < MOST_WAITING; i++)
		if (p->waiting[i])
			bm_rpc_reply(bm_steal(p->waiting[i]), report(p));
	/* The answers are on their way. */
	p->leave.run = leave;
	(void)bm_timer_set(p->loop, &p->leave, bm_loop_now(p->loop) + 20000000u);
}

static int serve(struct program *p, struct bm_error *error)
{
	bm_free char *path = NULL;
	int r = move_read(&p->move, error);

	if (r < 0)
		return r;
	if (asprintf(&path, "%s/moves/%s.sock", p->move.run, p->move.id) < 0)
		path = bm_need(NULL);
	r = bm_rpc_new(p->loop, methods, p, &p->rpc);
	if (r < 0)
		return bm_fail_errno(error, r, "control socket");
	r = bm_rpc_listen(p->rpc, path, error);
	if (r < 0)
		return r;
	p->workers = bm_workers_new(1);
	if (!p->workers)
		return bm_fail_errno(error, ENOMEM, "worker");
	p->work = (struct bm_work){.run = run, .done = done};
	bm_workers_submit(p->workers, p->loop, &p->work);
	r = bm_loop_run(p->loop);
	bm_workers_free(p->workers);
	return r;
}

static int usage(void)
{
	fputs("Try 'blockmirror-move --help'.\n", stderr);
	return 2;
}

/* The socket that the other host comes to, if the daemon has passed one. */
static int find_door(void)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");

	return pid && count && atoi(pid) == (int)getpid() && atoi(count) > 0 ? FIRST_FD : -1;
}

static int take_options(int argc, char **argv, struct move *m)
{
	static const struct option options[] = {{"move", required_argument, NULL, 'm'},
						{"run-dir", required_argument, NULL, 'r'},
						{"state-dir", required_argument, NULL, 's'},
						{"hook-timeout", required_argument, NULL, 'W'},
						{"help", no_argument, NULL, 'h'},
						{"version", no_argument, NULL, 'V'},
						{0}};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'm') {
			m->folder = optarg;
		} else if (c == 'r') {
			m->run = optarg;
		} else if (c == 's') {
			m->state = optarg;
		} else if (c == 'W' && !bm_parse_duration(optarg, &m->hook_limit) &&
			   m->hook_limit) {
			continue;
		} else if (c == 'h' || c == 'V') {
			fputs(c == 'h' ? help : "blockmirror-move " BM_VERSION "\n", stdout);
			return -1;
		} else {
			return usage();
		}
	}
	if (m->folder && argc == optind)
		return 0;
	fputs("blockmirror-move: --move is wanted, and no arguments\n", stderr);
	return usage();
}

int main(int argc, char **argv)
{
	struct program p = {.move = {.run = bm_run_dir(),
				     .state = bm_state_dir(),
				     .log.fd = -1,
				     .hook_limit = HOOK_LIMIT},
			    .signals.run = on_signal};
	struct bm_error error = {0};
	int status = take_options(argc, argv, &p.move);

	if (status)
		return status < 0 ? 0 : status;
	bm_json_needs_memory();
	pthread_mutex_init(&p.move.lock, NULL);
	p.move.door = find_door();
	bm_log_setup("blockmirror-move", BM_LOG_NOTICE);
	p.loop = bm_loop_new();
	if (!p.loop || bm_signals_watch(&p.signals, p.loop, false) < 0) {
		perror("blockmirror-move");
		return 1;
	}
	if (serve(&p, &error) < 0) {
		fprintf(stderr, "blockmirror-move: %s: %s\n", bm_code_name(error.code), error.text);
		status = bm_code_exit(error.code);
	}
	bm_rpc_free(p.rpc);
	bm_loop_free(p.loop);
	move_clear(&p.move);
	return status;
}
