/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One end of a relay in a thread of its own. What other threads want is noted under the lock, and
 * the loop is told to look; what they ask is a copy. The relay itself belongs to the thread.
 */
#include "blockmirror/ram/relay_thread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/list.h"

#define STATS_EVERY 100000000ull /* ns */

struct bm_relay {
	struct bm_loop *loop;
	struct bm_sender *sender;
	struct bm_receiver *receiver;
	struct bm_timer timer;
	pthread_t thread;

	pthread_mutex_t lock; /* of all that follows */
	pthread_cond_t changed;
	struct bm_task look;
	bool looking; /* it is posted */
	bool open, mark, deadline, stop;
	uint64_t deadline_ns;
	enum bm_relay_state state;
	struct bm_error error;
	struct bm_relay_stats stats;
};

static void copy_stats(struct bm_relay *r)
{
	struct bm_relay_stats stats;

	if (r->sender)
		bm_sender_stats(r->sender, &stats);
	else
		bm_receiver_stats(r->receiver, &stats);
	pthread_mutex_lock(&r->lock);
	r->stats = stats;
	pthread_mutex_unlock(&r->lock);
}

static void on_timer(struct bm_timer *timer)
{
	struct bm_relay *r = bm_container(timer, struct bm_relay, timer);

	copy_stats(r);
	bm_timer_set(r->loop, timer, bm_loop_now(r->loop) + STATS_EVERY);
}

static void on_event(void *arg, enum bm_relay_event event, const struct bm_error *error)
{
	struct bm_relay *r = arg;

	copy_stats(r);
	pthread_mutex_lock(&r->lock);
	r->state = event == BM_RELAY_HELD ? BM_RELAY_HOLDS : BM_RELAY_OVER;
	if (error)
		r->error = *error;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

/* In the relay's thread: what the others want. */
static void on_look(struct bm_task *task)
{
	struct bm_relay *r = bm_container(task, struct bm_relay, look);
	bool open, mark, deadline, stop;
	uint64_t at;

	pthread_mutex_lock(&r->lock);
	r->looking = false;
	open = r->open;
	mark = r->mark;
	deadline = r->deadline;
	stop = r->stop;
	at = r->deadline_ns ? bm_loop_now(r->loop) + r->deadline_ns : 0;
	r->open = r->mark = r->deadline = false;
	pthread_mutex_unlock(&r->lock);
	if (r->sender && open)
		bm_sender_open_gate(r->sender);
	if (r->sender && mark)
		bm_sender_mark(r->sender);
	if (r->sender && deadline)
		bm_sender_deadline(r->sender, at);
	copy_stats(r);
	if (stop)
		bm_loop_stop(r->loop);
}

/* The lock is held. */
static void look(struct bm_relay *r)
{
	if (!r->looking)
		bm_loop_post(r->loop, &r->look);
	r->looking = true;
}

static void *run(void *arg)
{
	struct bm_relay *r = arg;

	bm_loop_run(r->loop);
	return NULL;
}

/* Signals are for the program's own threads. */
static int start_thread(struct bm_relay *r)
{
	sigset_t set, old;
	int e;

	sigfillset(&set);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	e = pthread_create(&r->thread, NULL, run, r);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -e;
}

static void release(struct bm_relay *r)
{
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
	bm_loop_free(r->loop);
	free(r);
}

static struct bm_relay *make(void)
{
	struct bm_relay *r = calloc(1, sizeof(*r));
	pthread_condattr_t attributes;

	if (!r)
		return NULL;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&r->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	pthread_mutex_init(&r->lock, NULL);
	r->look.run = on_look;
	r->timer.run = on_timer;
	r->loop = bm_loop_new();
	if (r->loop && !bm_timer_set(r->loop, &r->timer, bm_loop_now(r->loop)))
		return r;
	release(r);
	return NULL;
}

static void close_sockets(const struct bm_relay_setup *setup, const struct bm_transport *links)
{
	close(setup->qemu);
	for (unsigned i = 0; i < setup->links; i++) {
		struct bm_transport link = links[i];

		bm_transport_close(&link);
	}
}

int bm_relay_start(bool sender, const struct bm_relay_setup *setup,
		   const struct bm_transport *links, struct bm_relay **relay,
		   struct bm_error *error)
{
	struct bm_relay_setup own = *setup;
	struct bm_relay *r = make();
	int e;

	if (!r) {
		close_sockets(setup, links);
		return bm_fail(error, BM_E_INTERNAL, "no memory to carry a machine's RAM");
	}
	own.loop = r->loop;
	own.event = on_event;
	own.arg = r;
	e = sender ? bm_sender_new(&own, links, &r->sender, error)
		   : bm_receiver_new(&own, links, &r->receiver, error);
	if (e) {
		close_sockets(setup, links);
		release(r);
		return e;
	}
	e = start_thread(r);
	if (e) {
		bm_sender_free(r->sender);
		bm_receiver_free(r->receiver);
		release(r);
		return bm_fail_errno(error, e, "cannot start a thread to carry a machine's RAM");
	}
	*relay = r;
	return 0;
}

void bm_relay_stop(struct bm_relay *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	r->stop = true;
	look(r);
	pthread_mutex_unlock(&r->lock);
	pthread_join(r->thread, NULL);
	/* What workers have yet comes back in the loop. */
	bm_timer_clear(r->loop, &r->timer);
	while (r->sender && !bm_sender_drop(r->sender))
		bm_loop_turn(r->loop, STATS_EVERY);
	bm_sender_free(r->sender);
	bm_receiver_free(r->receiver);
	release(r);
}

enum bm_relay_state bm_relay_wait(struct bm_relay *r, enum bm_relay_state until, unsigned ms,
				  struct bm_error *error)
{
	enum bm_relay_state state;
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += ms / 1000;
	end.tv_nsec += ms % 1000 * 1000000l;
	if (end.tv_nsec >= 1000000000) {
		end.tv_sec++;
		end.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&r->lock);
	while (r->state < until && !pthread_cond_timedwait(&r->changed, &r->lock, &end))
		;
	state = r->state;
	if (error)
		*error = r->error;
	pthread_mutex_unlock(&r->lock);
	return state;
}

void bm_relay_open_gate(struct bm_relay *r)
{
	pthread_mutex_lock(&r->lock);
	r->open = true;
	look(r);
	pthread_mutex_unlock(&r->lock);
}

void bm_relay_mark(struct bm_relay *r)
{
	pthread_mutex_lock(&r->lock);
	r->mark = true;
	look(r);
	pthread_mutex_unlock(&r->lock);
}

void bm_relay_deadline(struct bm_relay *r, uint64_t ns)
{
	pthread_mutex_lock(&r->lock);
	r->deadline = true;
	r->deadline_ns = ns;
	look(r);
	pthread_mutex_unlock(&r->lock);
}

void bm_relay_stats(struct bm_relay *r, struct bm_relay_stats *stats)
{
	pthread_mutex_lock(&r->lock);
	*stats = r->stats;
	pthread_mutex_unlock(&r->lock);
}
