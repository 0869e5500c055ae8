/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The event loop: tasks, timers (a binary heap), watched descriptors (epoll), and posts from other
 * threads (a lock-free stack and an eventfd).
 *
 * A turn is: posted tasks and due timers, ready descriptors, the tasks they made ("soon"), then
 * the tasks that wait for the turn's end ("before wait"), which may make new ones. The loop waits
 * only when all queues are empty.
 *
 * The eventfd is written only by the post that finds the stack empty: a burst of completions costs
 * one system call.
 */
#include "blockmirror/loop.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/list.h"

enum { EVENTS_PER_WAIT = 64, PASSES_PER_TURN = 8 };
#define MOST_MS 1000000000ull

struct bm_loop {
	int epoll;
	struct bm_watch wakeup;
	bool simulated, stop;
	uint64_t now;
	struct bm_list soon, before_wait;
	_Atomic(struct bm_task *) posted;

	struct bm_timer **heap; /* heap[1..timers], heap[0] unused */
	size_t timers, room;

	/* Events of the wait that is being worked off: a watch that goes away takes its own out. */
	struct epoll_event ready[EVENTS_PER_WAIT];
	int ready_count, ready_next;
};

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void on_wakeup(struct bm_watch *watch, uint32_t events)
{
	uint64_t count;

	(void)events;
	/* A failed read means there was nothing to take; the posts themselves are on the stack. */
	(void)!read(watch->fd, &count, sizeof(count));
}

static struct bm_loop *loop_alloc(bool simulated)
{
	struct bm_loop *loop = calloc(1, sizeof(*loop));

	if (!loop)
		return NULL;
	loop->epoll = -1;
	loop->wakeup.fd = -1;
	loop->simulated = simulated;
	bm_list_init(&loop->soon);
	bm_list_init(&loop->before_wait);
	return loop;
}

struct bm_loop *bm_loop_new_simulated(void)
{
	return loop_alloc(true);
}

struct bm_loop *bm_loop_new(void)
{
	struct bm_loop *loop = loop_alloc(false);
	int fd;

	if (!loop)
		return NULL;
	loop->now = clock_ns();
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll < 0)
		goto fail;
	fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		goto fail;
	loop->wakeup.run = on_wakeup;
	if (bm_watch_set(loop, &loop->wakeup, fd, EPOLLIN) < 0) {
		close(fd);
		goto fail;
	}
	return loop;
fail:
	bm_loop_free(loop);
	return NULL;
}

void bm_loop_free(struct bm_loop *loop)
{
	if (!loop)
		return;
	if (loop->wakeup.fd >= 0)
		close(loop->wakeup.fd);
	if (loop->epoll >= 0)
		close(loop->epoll);
	free(loop->heap);
	free(loop);
}

uint64_t bm_loop_now(const struct bm_loop *loop)
{
	return loop->now;
}

void bm_loop_stop(struct bm_loop *loop)
{
	loop->stop = true;
}

/* Tasks */

void bm_loop_soon(struct bm_loop *loop, struct bm_task *task)
{
	if (!bm_list_linked(&task->link))
		bm_list_append(&loop->soon, &task->link);
}

void bm_loop_before_wait(struct bm_loop *loop, struct bm_task *task)
{
	if (!bm_list_linked(&task->link))
		bm_list_append(&loop->before_wait, &task->link);
}

void bm_task_cancel(struct bm_task *task)
{
	if (bm_list_linked(&task->link))
		bm_list_remove(&task->link);
}

void bm_loop_post(struct bm_loop *loop, struct bm_task *task)
{
	struct bm_task *head = atomic_load_explicit(&loop->posted, memory_order_relaxed);
	const uint64_t one = 1;

	do {
		task->posted = head;
	} while (!atomic_compare_exchange_weak_explicit(
		&loop->posted, &head, task, memory_order_release, memory_order_relaxed));
	/* Whoever found the stack empty wakes the loop. Full (EAGAIN) means it is awake already. */
	if (!head && loop->wakeup.fd >= 0)
		(void)!write(loop->wakeup.fd, &one, sizeof(one));
}

/* Queues what other threads posted, oldest first. */
static void take_posted(struct bm_loop *loop)
{
	struct bm_task *task = atomic_exchange_explicit(&loop->posted, NULL, memory_order_acquire);
	struct bm_task *oldest = NULL;

	while (task) {
		struct bm_task *next = task->posted;

		task->posted = oldest;
		oldest = task;
		task = next;
	}
	while (oldest) {
		task = oldest;
		oldest = task->posted;
		bm_loop_soon(loop, task);
	}
}

/* Runs what is in the queue now; what that adds is left for the next pass. */
static bool run_tasks(struct bm_list *queue)
{
	struct bm_list batch, *node;
	bool any = false;

	bm_list_init(&batch);
	bm_list_move_all(&batch, queue);
	while ((node = bm_list_take(&batch))) {
		struct bm_task *task = bm_container(node, struct bm_task, link);

		task->run(task);
		any = true;
	}
	return any;
}

/*
 * Works off the queues. Tasks that go on making tasks get a few passes, then the descriptors have
 * their turn: two devices that answer each other at once shall not starve the sockets.
 */
static bool run_queues(struct bm_loop *loop)
{
	bool any = false;

	for (int pass = 0; pass < PASSES_PER_TURN; pass++) {
		while (pass < PASSES_PER_TURN && run_tasks(&loop->soon)) {
			any = true;
			pass++;
		}
		any |= run_tasks(&loop->before_wait);
		if (bm_list_empty(&loop->soon) && bm_list_empty(&loop->before_wait))
			break;
	}
	return any;
}

static bool queues_empty(const struct bm_loop *loop)
{
	return bm_list_empty(&loop->soon) && bm_list_empty(&loop->before_wait) &&
	       !atomic_load_explicit(&loop->posted, memory_order_relaxed);
}

/* Timers */

static void heap_put(struct bm_loop *loop, size_t slot, struct bm_timer *timer)
{
	loop->heap[slot] = timer;
	timer->slot = slot;
}

static void heap_settle(struct bm_loop *loop, size_t slot, struct bm_timer *timer)
{
	while (slot > 1 && loop->heap[slot / 2]->at > timer->at) {
		heap_put(loop, slot, loop->heap[slot / 2]);
		slot /= 2;
	}
	for (;;) {
		size_t child = slot * 2;

		if (child > loop->timers)
			break;
		if (child < loop->timers && loop->heap[child + 1]->at < loop->heap[child]->at)
			child++;
		if (loop->heap[child]->at >= timer->at)
			break;
		heap_put(loop, slot, loop->heap[child]);
		slot = child;
	}
	heap_put(loop, slot, timer);
}

int bm_timer_set(struct bm_loop *loop, struct bm_timer *timer, uint64_t at)
{
	timer->at = at;
	if (timer->slot) {
		heap_settle(loop, timer->slot, timer);
		return 0;
	}
	if (loop->timers + 2 > loop->room) {
		size_t room = loop->room ? loop->room * 2 : 64;
		struct bm_timer **heap = realloc(loop->heap, room * sizeof(*heap));

		if (!heap)
			return -ENOMEM;
		loop->heap = heap;
		loop->room = room;
	}
	heap_settle(loop, ++loop->timers, timer);
	return 0;
}

void bm_timer_clear(struct bm_loop *loop, struct bm_timer *timer)
{
	struct bm_timer *last;

	if (!timer->slot)
		return;
	last = loop->heap[loop->timers--];
	if (last != timer)
		heap_settle(loop, timer->slot, last);
	timer->slot = 0;
}

static bool run_timers(struct bm_loop *loop)
{
	bool any = false;

	while (loop->timers && loop->heap[1]->at <= loop->now) {
		struct bm_timer *timer = loop->heap[1];

		bm_timer_clear(loop, timer);
		timer->run(timer);
		any = true;
	}
	return any;
}

/* Descriptors */

static void forget_ready(struct bm_loop *loop, const struct bm_watch *watch)
{
	for (int i = loop->ready_next; i < loop->ready_count; i++)
		if (loop->ready[i].data.ptr == watch)
			loop->ready[i].data.ptr = NULL;
}

int bm_watch_set(struct bm_loop *loop, struct bm_watch *watch, int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = watch};
	bool same = watch->events && watch->fd == fd;
	int r = 0;

	/*
	 * With an empty mask epoll still reports errors and hang-ups, again and again: what is not
	 * wanted is taken out (io-libraries.md 0.5: 2.1 M idle wakeups in 2.2 s).
	 */
	if (watch->events && (!same || !events)) {
		epoll_ctl(loop->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
		forget_ready(loop, watch);
	}
	if (events) {
		r = epoll_ctl(loop->epoll, same ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
		/* The number is the same, the file behind it is another one. */
		if (r < 0 && same && errno == ENOENT)
			r = epoll_ctl(loop->epoll, EPOLL_CTL_ADD, fd, &event);
		else if (r < 0 && !same && errno == EEXIST)
			r = epoll_ctl(loop->epoll, EPOLL_CTL_MOD, fd, &event);
	}
	watch->fd = fd;
	watch->events = r < 0 ? 0 : events;
	return r < 0 ? -errno : 0;
}

static int wait_ready(struct bm_loop *loop, uint64_t timeout_ns)
{
	struct timespec t, *timeout = NULL;
	int n;

	if (timeout_ns != UINT64_MAX) {
		t.tv_sec = (time_t)(timeout_ns / 1000000000u);
		t.tv_nsec = (long)(timeout_ns % 1000000000u);
		timeout = &t;
	}
	n = epoll_pwait2(loop->epoll, loop->ready, EVENTS_PER_WAIT, timeout, NULL);
	if (n < 0 && errno == ENOSYS) /* Linux before 5.11, valgrind: milliseconds, rounded up */
		n = epoll_wait(loop->epoll, loop->ready, EVENTS_PER_WAIT,
			       timeout_ns > MOST_MS * 1000000
				       ? -1
				       : (int)((timeout_ns + 999999) / 1000000));
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	loop->ready_count = n;
	loop->ready_next = 0;
	return n;
}

static void run_ready(struct bm_loop *loop)
{
	while (loop->ready_next < loop->ready_count) {
		struct epoll_event *event = &loop->ready[loop->ready_next++];
		struct bm_watch *watch = event->data.ptr;

		if (watch)
			watch->run(watch, event->events);
	}
}

/* Turns */

static int turn_simulated(struct bm_loop *loop, uint64_t timeout_ns)
{
	uint64_t until = timeout_ns == UINT64_MAX ? UINT64_MAX : loop->now + timeout_ns;

	take_posted(loop);
	if (run_queues(loop))
		return 1;
	if (!loop->timers || loop->heap[1]->at > until) {
		if (until != UINT64_MAX)
			loop->now = until;
		return 0;
	}
	if (loop->heap[1]->at > loop->now)
		loop->now = loop->heap[1]->at;
	run_timers(loop);
	run_queues(loop);
	return 1;
}

int bm_loop_turn(struct bm_loop *loop, uint64_t timeout_ns)
{
	bool any;
	int n;

	if (loop->simulated)
		return turn_simulated(loop, timeout_ns);
	any = run_queues(loop);
	if (any || !queues_empty(loop))
		timeout_ns = 0;
	loop->now = clock_ns();
	if (loop->timers) {
		uint64_t at = loop->heap[1]->at;
		uint64_t left = at > loop->now ? at - loop->now : 0;

		if (left < timeout_ns)
			timeout_ns = left;
	}
	n = wait_ready(loop, timeout_ns);
	if (n < 0)
		return n;
	loop->now = clock_ns();
	take_posted(loop);
	any |= run_timers(loop);
	run_ready(loop);
	any |= run_queues(loop);
	return any || n > 0;
}

int bm_loop_run(struct bm_loop *loop)
{
	loop->stop = false;
	while (!loop->stop) {
		int r = bm_loop_turn(loop, UINT64_MAX);

		if (r < 0)
			return r;
	}
	return 0;
}
