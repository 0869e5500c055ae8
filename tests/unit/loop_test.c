/* SPDX-License-Identifier: BSD-3-Clause */
/* The event loop: order of tasks, timers, descriptors, posts from other threads, workers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/worker.h"

static char trace[64];

static void note(char c)
{
	size_t n = strlen(trace);

	assert_true(n + 1 < sizeof(trace));
	trace[n] = c;
	trace[n + 1] = '\0';
}

struct step {
	struct bm_task task;
	struct bm_timer timer;
	struct bm_loop *loop;
	char name;
	struct step *then;
};

static void run_step(struct bm_task *task)
{
	struct step *s = bm_container(task, struct step, task);

	note(s->name);
	if (s->then)
		bm_loop_soon(s->loop, &s->then->task);
}

static void run_timer(struct bm_timer *timer)
{
	note(bm_container(timer, struct step, timer)->name);
}

static void tasks_run_before_the_wait_and_in_order(void **state)
{
	struct bm_loop *loop = bm_loop_new();
	struct step c = {.task.run = run_step, .name = 'c', .loop = loop};
	struct step a = {.task.run = run_step, .name = 'a', .loop = loop, .then = &c};
	struct step b = {.task.run = run_step, .name = 'b', .loop = loop};
	struct step last = {.task.run = run_step, .name = 'L', .loop = loop};

	(void)state;
	trace[0] = '\0';
	bm_loop_before_wait(loop, &last.task);
	bm_loop_soon(loop, &a.task);
	bm_loop_soon(loop, &a.task);
	bm_loop_soon(loop, &b.task);
	assert_int_equal(bm_loop_turn(loop, 0), 1);
	assert_string_equal(trace, "abcL");
	bm_loop_soon(loop, &b.task);
	bm_task_cancel(&b.task);
	assert_int_equal(bm_loop_turn(loop, 0), 0);
	bm_loop_free(loop);
}

static void tasks_that_never_end_do_not_starve_descriptors(void **state)
{
	struct bm_loop *loop = bm_loop_new();
	struct step b = {.task.run = run_step, .name = '.', .loop = loop};
	struct step a = {.task.run = run_step, .name = '.', .loop = loop, .then = &b};

	(void)state;
	trace[0] = '\0';
	b.then = &a;
	bm_loop_soon(loop, &a.task);
	assert_int_equal(bm_loop_turn(loop, UINT64_MAX), 1); /* returns at all */
	assert_true(strlen(trace) >= 2 && strlen(trace) < 40);
	bm_loop_free(loop);
}

static void timers_fire_in_time_order(void **state)
{
	struct bm_loop *loop = bm_loop_new_simulated();
	struct step s[50];
	uint64_t rnd = 1, last = 0;

	(void)state;
	memset(s, 0, sizeof(s));
	trace[0] = '\0';
	for (int i = 0; i < 50; i++) {
		rnd = rnd * 6364136223846793005u + 1442695040888963407u;
		s[i].timer.run = run_timer;
		s[i].name = '.';
		assert_int_equal(bm_timer_set(loop, &s[i].timer, rnd >> 50), 0);
	}
	for (int i = 0; i < 50; i += 3)
		bm_timer_clear(loop, &s[i].timer);
	for (int i = 1; i < 50; i += 3)
		bm_timer_set(loop, &s[i].timer, (uint64_t)(60 - i));
	while (bm_loop_turn(loop, UINT64_MAX) > 0) {
		assert_true(bm_loop_now(loop) >= last);
		last = bm_loop_now(loop);
	}
	assert_int_equal(strlen(trace), 33);
	for (int i = 0; i < 50; i++)
		assert_false(bm_timer_armed(&s[i].timer));
	bm_loop_free(loop);
}

struct pipe_watch {
	struct bm_watch watch;
	int seen;
};

static void pipe_ready(struct bm_watch *watch, uint32_t events)
{
	char c;

	assert_true(events & EPOLLIN);
	assert_int_equal(read(watch->fd, &c, 1), 1);
	bm_container(watch, struct pipe_watch, watch)->seen++;
}

static void a_descriptor_may_change_under_its_number(void **state)
{
	struct bm_loop *loop = bm_loop_new();
	struct pipe_watch w = {.watch.run = pipe_ready};
	int a[2], b[2];

	(void)state;
	assert_int_equal(pipe(a), 0);
	assert_int_equal(pipe(b), 0);
	assert_int_equal(bm_watch_set(loop, &w.watch, a[0], EPOLLIN), 0);
	assert_int_equal(write(a[1], "x", 1), 1);
	bm_loop_turn(loop, 0);
	assert_int_equal(w.seen, 1);
	assert_int_equal(dup2(b[0], a[0]), a[0]); /* what libiscsi does at a reconnect */
	assert_int_equal(bm_watch_set(loop, &w.watch, a[0], EPOLLIN), 0);
	assert_int_equal(write(b[1], "x", 1), 1);
	bm_loop_turn(loop, 0);
	assert_int_equal(w.seen, 2);
	assert_int_equal(bm_watch_set(loop, &w.watch, a[0], 0), 0);
	assert_int_equal(write(b[1], "x", 1), 1);
	bm_loop_turn(loop, 0);
	assert_int_equal(w.seen, 2);
	close(a[0]), close(a[1]), close(b[0]), close(b[1]);
	bm_loop_free(loop);
}

struct job {
	struct bm_work work;
	int input, output;
	struct bm_loop *loop;
	int *left;
};

static void double_it(struct bm_work *work)
{
	struct job *j = bm_container(work, struct job, work);

	j->output = j->input * 2;
}

static void job_done(struct bm_work *work)
{
	struct job *j = bm_container(work, struct job, work);

	assert_int_equal(j->output, j->input * 2);
	if (!--*j->left)
		bm_loop_stop(j->loop);
}

static void workers_post_every_result_back(void **state)
{
	enum { JOBS = 2000 };
	static struct job jobs[JOBS];
	struct bm_loop *loop = bm_loop_new();
	struct bm_workers *workers = bm_workers_new(4);
	int left = JOBS;

	(void)state;
	for (int i = 0; i < JOBS; i++) {
		jobs[i] = (struct job){.work = {.run = double_it, .done = job_done},
				       .input = i,
				       .loop = loop,
				       .left = &left};
		bm_workers_submit(workers, loop, &jobs[i].work);
	}
	assert_int_equal(bm_loop_run(loop), 0);
	assert_int_equal(left, 0);
	bm_workers_free(workers);
	bm_loop_free(loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tasks_run_before_the_wait_and_in_order),
		cmocka_unit_test(tasks_that_never_end_do_not_starve_descriptors),
		cmocka_unit_test(timers_fire_in_time_order),
		cmocka_unit_test(a_descriptor_may_change_under_its_number),
		cmocka_unit_test(workers_post_every_result_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
