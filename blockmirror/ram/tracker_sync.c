// SPDX-License-Identifier: BSD-3-Clause
/*
 * Tracking by a thread: userfaultfd stops the first writer of a protected page, the thread here
 * notes the page, takes the protection away and lets the writer go on. For kernels that cannot
 * note it by themselves (tracker_async.c).
 *
 * The race: the thread notes page P; take() collects P and protects it again; the thread takes the
 * protection away, late; the next write to P is not noticed. So noting and unprotecting are one
 * step for take(), which is the one use of the lock.
 */
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "blockmirror/base/list.h"
#include "blockmirror/ram/tracker.h"

#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM (1u << 12)
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1u << 13)
#endif

enum { MESSAGES = 64 };

struct sync {
	struct bm_tracker tracker;
	int uffd, end; /* end: an eventfd */
	bool started, populate;
	unsigned count;
	struct bm_ram_area area[BM_RAM_REGIONS];
	pthread_t thread;
	pthread_mutex_t lock; /* of bits and failed; no other is taken under it */
	int failed;
	uint64_t *bits[BM_RAM_REGIONS];
};

static struct sync *of(struct bm_tracker *tracker)
{
	return bm_container(tracker, struct sync, tracker);
}

static void note(struct sync *s, uint64_t address)
{
	int r = 0;

	address -= address % BM_RAM_PAGE;
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->count; i++)
		if (address - s->area[i].start < s->area[i].size)
			bm_ram_set(s->bits[i], (address - s->area[i].start) / BM_RAM_PAGE, 1);
	r = bm_uffd_protect(s->uffd, address, BM_RAM_PAGE, false);
	/* ENOENT: the page has gone meanwhile; its writer has to begin anew, and was noted. */
	if (r < 0 && r != -ENOENT)
		s->failed = r;
	pthread_mutex_unlock(&s->lock);
}

static void *handle(void *arg)
{
	struct sync *s = arg;
	struct pollfd fds[2] = {{s->uffd, POLLIN, 0}, {s->end, POLLIN, 0}};
	struct uffd_msg messages[MESSAGES];

	while (!(fds[1].revents & POLLIN)) {
		ssize_t n = read(s->uffd, messages, sizeof(messages));

		if (n < 0 && errno != EAGAIN && errno != EINTR)
			break;
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(*messages); i++)
			if (messages[i].event == UFFD_EVENT_PAGEFAULT)
				note(s, messages[i].arg.pagefault.address);
		if (n < 0)
			poll(fds, 2, -1);
	}
	return NULL;
}

static int take(struct bm_tracker *tracker, unsigned region, uint64_t *bits, struct bm_error *error)
{
	struct sync *s = of(tracker);
	uint64_t *noted = s->bits[region], first = 0, count = 0;
	const struct bm_ram_area *area = &s->area[region];
	int r;

	pthread_mutex_lock(&s->lock);
	r = s->failed;
	for (uint64_t page = 0; !r && page <= area->size / BM_RAM_PAGE; page++) {
		bool set = page < area->size / BM_RAM_PAGE && noted[page / 64] >> page % 64 & 1;

		if (set && !count++)
			first = page;
		if (set || !count)
			continue;
		r = bm_uffd_protect(s->uffd, area->start + first * BM_RAM_PAGE, count * BM_RAM_PAGE,
				    true);
		bm_ram_set(bits, first, count);
		count = 0;
	}
	for (uint64_t i = 0; !r && i < bm_ram_words(area->size); i++)
		noted[i] = 0;
	pthread_mutex_unlock(&s->lock);
	return r < 0 ? bm_fail_errno(error, r, "userfaultfd") : 0;
}

/* Writers that wait go on: their area is not registered any more, and they are woken. */
static void stop(struct bm_tracker *tracker)
{
	struct sync *s = of(tracker);
	const uint64_t one = 1;
	uint64_t rest;

	if (!s->started)
		return;
	for (unsigned i = 0; i < s->count; i++)
		bm_uffd_unregister(s->uffd, &s->area[i]);
	if (write(s->end, &one, sizeof(one)) == sizeof(one))
		pthread_join(s->thread, NULL);
	if (read(s->end, &rest, sizeof(rest)) < 0)
		s->failed = -errno;
	s->started = false;
}

/* Protection sticks only to pages that are there, where the kernel has no marks for the others. */
static void populate(const struct bm_ram_area *area)
{
	for (uint64_t at = 0; at < area->size; at += BM_RAM_PAGE)
		(void)*(const volatile uint8_t *)(uintptr_t)(area->start + at);
}

static int begin_thread(struct sync *s)
{
	sigset_t all, before;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	r = pthread_create(&s->thread, NULL, handle, s);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -r;
}

static int start(struct bm_tracker *tracker, struct bm_error *error)
{
	struct sync *s = of(tracker);
	int r;

	s->failed = 0;
	r = begin_thread(s);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot start the tracker's thread");
	s->started = true;
	for (unsigned i = 0; !r && i < s->count; i++) {
		const struct bm_ram_area *area = &s->area[i];

		for (uint64_t word = 0; word < bm_ram_words(area->size); word++)
			s->bits[i][word] = 0;
		if (s->populate)
			populate(area);
		r = bm_uffd_register(s->uffd, area);
		if (!r)
			r = bm_uffd_protect(s->uffd, area->start, area->size, true);
	}
	if (!r)
		return 0;
	stop(tracker);
	return bm_fail_errno(error, r, "cannot track the memory's pages by userfaultfd");
}

static void free_sync(struct bm_tracker *tracker)
{
	struct sync *s = of(tracker);

	if (s->uffd >= 0)
		close(s->uffd);
	if (s->end >= 0)
		close(s->end);
	for (unsigned i = 0; i < s->count; i++)
		free(s->bits[i]);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static const struct bm_tracker_ops ops = {"userfaultfd-sync", start, take, stop, free_sync};

/* The newest that the kernel has: marks for pages that are not there, shared memory, plain. */
static int open_any(struct sync *s)
{
	const uint64_t plain = UFFD_FEATURE_PAGEFAULT_FLAG_WP,
		       shared = plain | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

	s->uffd = bm_uffd_open(shared | UFFD_FEATURE_WP_UNPOPULATED, false);
	s->populate = s->uffd < 0;
	if (s->uffd == -EINVAL)
		s->uffd = bm_uffd_open(shared, false);
	if (s->uffd == -EINVAL)
		s->uffd = bm_uffd_open(plain, false);
	return s->uffd < 0 ? s->uffd : 0;
}

int bm_tracker_new_sync(const struct bm_ram_region *regions, unsigned count,
			struct bm_tracker **tracker, struct bm_error *error)
{
	struct sync *s;
	int r = bm_ram_check(regions, count, error);

	if (r < 0)
		return r;
	s = calloc(1, sizeof(*s));
	if (!s)
		return bm_fail_errno(error, ENOMEM, "tracker");
	s->tracker.ops = &ops;
	s->count = count;
	s->uffd = -1;
	pthread_mutex_init(&s->lock, NULL);
	s->end = eventfd(0, EFD_CLOEXEC);
	for (unsigned i = 0; !r && i < count; i++) {
		s->area[i] = (struct bm_ram_area){(uintptr_t)regions[i].host, regions[i].size};
		s->bits[i] = calloc(bm_ram_words(regions[i].size), sizeof(uint64_t));
		r = s->bits[i] ? 0 : -ENOMEM;
	}
	if (!r && s->end < 0)
		r = -errno;
	if (!r)
		r = open_any(s);
	if (r < 0) {
		free_sync(&s->tracker);
		return bm_fail_errno(error, r,
				     "cannot track writes by userfaultfd: give the process "
				     "CAP_SYS_PTRACE or access to /dev/userfaultfd");
	}
	*tracker = &s->tracker;
	return 0;
}
