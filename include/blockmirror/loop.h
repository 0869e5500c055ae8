/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The event loop. One thread owns one loop owns one disk: every function here is for the thread
 * that runs the loop, except bm_loop_post(), which any thread may call. Nothing called by the
 * loop may block; work that would goes to a worker (blockmirror/base/worker.h) and posts back.
 *
 * The nodes (task, timer, watch) are embedded in their owners. They must be zeroed before their
 * first use, are not copied while armed, and are disarmed before their owner's memory goes away.
 */
#ifndef BLOCKMIRROR_LOOP_H
#define BLOCKMIRROR_LOOP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct bm_loop;

/* Intrusive doubly linked list; a node is in no list when next is NULL. */
struct bm_list {
	struct bm_list *prev, *next;
};

/* A call to be made once. */
struct bm_task {
	struct bm_list link;
	struct bm_task *posted; /* the loop's own */
	void (*run)(struct bm_task *task);
};

/* A call to be made once at a point in time. */
struct bm_timer {
	uint64_t at; /* ns on the loop's clock */
	size_t slot; /* the loop's own: 0 when disarmed */
	void (*run)(struct bm_timer *timer);
};

/* A file descriptor that is watched, level-triggered. */
struct bm_watch {
	int fd; /* as last registered; meaningful while events != 0 */
	uint32_t events;
	void (*run)(struct bm_watch *watch, uint32_t events); /* EPOLLIN, EPOLLOUT, EPOLLHUP … */
};

/* A loop on epoll and CLOCK_MONOTONIC. NULL with errno set when descriptors or memory are out. */
struct bm_loop *bm_loop_new(void);

/*
 * A loop whose time is simulated: nothing is polled, and when no task is left the clock jumps to
 * the next timer, at most as far as the turn may wait. Two runs that make the same calls see the
 * same order. For tests.
 */
struct bm_loop *bm_loop_new_simulated(void);

/* Frees the loop. Armed nodes are forgotten, not called. NULL is allowed. */
void bm_loop_free(struct bm_loop *loop);

/* Runs until bm_loop_stop(). Returns 0, or -errno when epoll itself fails. */
int bm_loop_run(struct bm_loop *loop);
void bm_loop_stop(struct bm_loop *loop);

/*
 * One turn: waits at most timeout_ns (UINT64_MAX: as long as it takes) for something to do, and
 * does it. Returns 1 when something ran, 0 when not, -errno when epoll itself fails.
 */
int bm_loop_turn(struct bm_loop *loop, uint64_t timeout_ns);

/* Nanoseconds on a clock that never goes back, read once per turn. */
uint64_t bm_loop_now(const struct bm_loop *loop);

/* Runs task soon: in this turn, after the callback that is running now. Twice is once. */
void bm_loop_soon(struct bm_loop *loop, struct bm_task *task);

/*
 * Runs task just before the loop waits again, when all that this turn has to do is done. What was
 * gathered during a turn goes out in one system call this way. Twice is once.
 */
void bm_loop_before_wait(struct bm_loop *loop, struct bm_task *task);

/* Takes task out of either queue; harmless when it is in none. Not for posted tasks. */
void bm_task_cancel(struct bm_task *task);

/* From any thread: runs task in the loop's thread. A task is not posted again before it ran. */
void bm_loop_post(struct bm_loop *loop, struct bm_task *task);

/*
 * Arms timer for the absolute time at (ns), or moves it if it is armed. Returns 0 or -ENOMEM; a
 * timer that was armed once never fails again.
 */
int bm_timer_set(struct bm_loop *loop, struct bm_timer *timer, uint64_t at);
void bm_timer_clear(struct bm_loop *loop, struct bm_timer *timer);
static inline bool bm_timer_armed(const struct bm_timer *timer)
{
	return timer->slot != 0;
}

/*
 * Watches fd for events; events 0 stops watching. The descriptor may have changed its identity
 * under the same number (dup2 by a library, close and open): that is noticed and mended. Returns
 * 0 or -errno.
 */
int bm_watch_set(struct bm_loop *loop, struct bm_watch *watch, int fd, uint32_t events);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
