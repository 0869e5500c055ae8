/* SPDX-License-Identifier: BSD-3-Clause */
/* One cap for many processes, on a page that they share. */
#include "blockmirror/base/cap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

#define BURST 100000000ull    /* ns that may be sent at once after a silence */
#define DEBT  1000000000ull   /* ns that a charge may reach ahead: a guest is never held up by it */
#define STALE 600000000000ull /* ns: nobody takes so much at once. It is from before a boot */

enum { PAGE = 4096 };

/*
 * busy_until: ns of CLOCK_MONOTONIC, which is the same for all processes; the time that is given
 * away already.
 */
struct bm_cap {
	_Atomic uint64_t rate, busy_until;
};

int bm_cap_open(const char *run, struct bm_cap **cap)
{
	bm_free char *path = NULL;
	bm_close int fd = -1;
	void *page;
	int r;

	*cap = NULL;
	if (asprintf(&path, "%s/cap", run) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0660);
	if (fd < 0)
		return -errno;
	/* Allocated, and never cut: no access can fail (SIGBUS). */
	r = posix_fallocate(fd, 0, PAGE);
	if (r)
		return -r;
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		return -errno;
	*cap = page;
	return 0;
}

void bm_cap_close(struct bm_cap *cap)
{
	if (cap)
		munmap(cap, PAGE);
}

uint64_t bm_cap_rate(const struct bm_cap *cap)
{
	return atomic_load_explicit(&cap->rate, memory_order_relaxed);
}

void bm_cap_set(struct bm_cap *cap, uint64_t rate)
{
	atomic_store(&cap->rate, rate);
	atomic_store(&cap->busy_until, 0);
}

static uint64_t cost(uint64_t bytes, uint64_t rate)
{
	return (uint64_t)((double)bytes * 1e9 / (double)rate);
}

bool bm_cap_admit(struct bm_cap *cap, uint64_t bytes, uint64_t now, uint64_t *again)
{
	uint64_t rate = bm_cap_rate(cap), busy = atomic_load(&cap->busy_until), from;

	if (!rate)
		return true;
	do {
		if (busy > now && busy < now + STALE) {
			*again = busy;
			return false;
		}
		from = busy <= now && busy + BURST > now ? busy : now - BURST;
	} while (!atomic_compare_exchange_weak(&cap->busy_until, &busy, from + cost(bytes, rate)));
	return true;
}

void bm_cap_charge(struct bm_cap *cap, uint64_t bytes, uint64_t now)
{
	uint64_t rate = bm_cap_rate(cap), busy = atomic_load(&cap->busy_until), until;

	if (!rate)
		return;
	do {
		bool ahead = busy > now && busy < now + STALE;

		until = (ahead ? busy : now) + cost(bytes, rate);
		if (until > now + DEBT)
			until = ahead && busy > now + DEBT ? busy : now + DEBT;
	} while (!atomic_compare_exchange_weak(&cap->busy_until, &busy, until));
}
