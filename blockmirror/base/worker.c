/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Worker threads. The queue is guarded by one mutex, which is held for a few instructions and
 * never while work runs; the way back to the loop is bm_loop_post().
 */
#include "blockmirror/base/worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "blockmirror/base/list.h"

struct bm_workers {
	pthread_mutex_t lock; /* guards all that follows */
	pthread_cond_t wake;
	struct bm_list queue;
	unsigned max, threads, idle, waiting;
	bool stop;
	pthread_t thread[];
};

static void *worker_main(void *arg)
{
	struct bm_workers *workers = arg;
	struct bm_list *node;

	pthread_mutex_lock(&workers->lock);
	for (;;) {
		while (!(node = bm_list_take(&workers->queue)) && !workers->stop) {
			workers->idle++;
			pthread_cond_wait(&workers->wake, &workers->lock);
			workers->idle--;
		}
		if (!node)
			break;
		workers->waiting--;
		pthread_mutex_unlock(&workers->lock);
		struct bm_work *work = bm_container(node, struct bm_work, link);
		work->run(work);
		bm_loop_post(work->loop, &work->task);
		pthread_mutex_lock(&workers->lock);
	}
	pthread_mutex_unlock(&workers->lock);
	return NULL;
}

struct bm_workers *bm_workers_new(unsigned max)
{
	struct bm_workers *workers = calloc(1, sizeof(*workers) + max * sizeof(pthread_t));

	if (!workers)
		return NULL;
	pthread_mutex_init(&workers->lock, NULL);
	pthread_cond_init(&workers->wake, NULL);
	bm_list_init(&workers->queue);
	workers->max = max;
	return workers;
}

void bm_workers_free(struct bm_workers *workers)
{
	if (!workers)
		return;
	pthread_mutex_lock(&workers->lock);
	workers->stop = true;
	pthread_cond_broadcast(&workers->wake);
	pthread_mutex_unlock(&workers->lock);
	for (unsigned i = 0; i < workers->threads; i++)
		pthread_join(workers->thread[i], NULL);
	pthread_cond_destroy(&workers->wake);
	pthread_mutex_destroy(&workers->lock);
	free(workers);
}

/* Signals are for the loop's thread: a worker is started with all of them blocked. */
static bool start_thread(struct bm_workers *workers)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&workers->thread[workers->threads], NULL, worker_main, workers);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r)
		return false;
	workers->threads++;
	return true;
}

static void run_done(struct bm_task *task)
{
	struct bm_work *work = bm_container(task, struct bm_work, task);

	work->done(work);
}

void bm_workers_submit(struct bm_workers *workers, struct bm_loop *loop, struct bm_work *work)
{
	bool inline_run = false;

	work->loop = loop;
	work->task.run = run_done;
	pthread_mutex_lock(&workers->lock);
	if (workers->waiting >= workers->idle && workers->threads < workers->max)
		start_thread(workers);
	if (workers->threads) {
		bm_list_append(&workers->queue, &work->link);
		workers->waiting++;
		pthread_cond_signal(&workers->wake);
	} else {
		inline_run = true;
	}
	pthread_mutex_unlock(&workers->lock);
	if (inline_run) {
		work->run(work);
		bm_loop_post(loop, &work->task);
	}
}
