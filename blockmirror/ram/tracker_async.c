// SPDX-License-Identifier: BSD-3-Clause
/*
 * Tracking by the kernel alone: userfaultfd write-protects without telling anybody
 * (UFFD_FEATURE_WP_ASYNC), PAGEMAP_SCAN finds the pages whose protection a write has taken away,
 * and protects them again in the same step. Linux 6.7. A page that is not there and is not marked
 * counts as written to: memory that was dropped is found, too.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/ram/tracker.h"

/* include/uapi/linux/userfaultfd.h and fs.h of Linux 6.7 */
#define FEATURE_WP_HUGETLBFS_SHMEM (1u << 12)
#define FEATURE_WP_UNPOPULATED     (1u << 13)
#define FEATURE_WP_ASYNC           (1u << 15)
#define IS_WRITTEN                 (1u << 1)
#define SCAN_WP_MATCHING           (1u << 0)
#define SCAN_CHECK_WPASYNC         (1u << 1)

struct scan_region {
	uint64_t start, end, categories;
};

struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
		category_mask, category_anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct scan_arg)

enum { VECTOR = 4096 };

struct async {
	struct bm_tracker tracker;
	int uffd, pagemap;
	bool started;
	unsigned count;
	struct bm_ram_area area[BM_RAM_REGIONS];
	struct scan_region vector[VECTOR];
};

static struct async *of(struct bm_tracker *tracker)
{
	return bm_container(tracker, struct async, tracker);
}

/* One piece of the walk; *at is how far it came. */
static int scan(struct async *a, const struct bm_ram_area *area, uint64_t *at, uint64_t *bits)
{
	struct scan_arg arg = {
		.size = sizeof(arg),
		.flags = SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
		.start = *at,
		.end = area->start + area->size,
		.vec = (uintptr_t)a->vector,
		.vec_len = VECTOR,
		.category_mask = IS_WRITTEN,
		.return_mask = IS_WRITTEN,
	};
	int n = ioctl(a->pagemap, SCAN, &arg);

	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -errno;
	for (int i = 0; bits && i < n; i++)
		bm_ram_set(bits, (a->vector[i].start - area->start) / BM_RAM_PAGE,
			   (a->vector[i].end - a->vector[i].start) / BM_RAM_PAGE);
	*at = arg.walk_end;
	return 0;
}

static int take(struct bm_tracker *tracker, unsigned region, uint64_t *bits, struct bm_error *error)
{
	struct async *a = of(tracker);
	const struct bm_ram_area *area = &a->area[region];

	for (uint64_t at = area->start; at < area->start + area->size;) {
		int r = scan(a, area, &at, bits);

		if (r < 0)
			return bm_fail_errno(error, r, "PAGEMAP_SCAN");
	}
	return 0;
}

static void stop(struct bm_tracker *tracker)
{
	struct async *a = of(tracker);

	for (unsigned i = 0; a->started && i < a->count; i++)
		bm_uffd_unregister(a->uffd, &a->area[i]);
	a->started = false;
}

static int start(struct bm_tracker *tracker, struct bm_error *error)
{
	struct async *a = of(tracker);
	int r = 0;

	a->started = true;
	for (unsigned i = 0; !r && i < a->count; i++) {
		const struct bm_ram_area *area = &a->area[i];

		r = bm_uffd_register(a->uffd, area);
		if (!r)
			r = bm_uffd_protect(a->uffd, area->start, area->size, true);
	}
	if (!r)
		return 0;
	stop(tracker);
	return bm_fail_errno(error, r, "cannot track the memory's pages by userfaultfd");
}

static void free_async(struct bm_tracker *tracker)
{
	struct async *a = of(tracker);

	if (a->uffd >= 0)
		close(a->uffd);
	if (a->pagemap >= 0)
		close(a->pagemap);
	free(a);
}

static const struct bm_tracker_ops ops = {"userfaultfd-async", start, take, stop, free_async};

/* Whether the kernel has PAGEMAP_SCAN is known only by one that works on memory so registered. */
static int try(struct async *a, struct bm_error *error)
{
	const struct bm_ram_area *area = &a->area[0];
	uint64_t at = area->start;
	int r = bm_uffd_register(a->uffd, area);

	if (!r) {
		r = scan(a, &(struct bm_ram_area){area->start, BM_RAM_PAGE}, &at, NULL);
		bm_uffd_unregister(a->uffd, area);
	}
	return r < 0 ? bm_fail(error, BM_E_UNSUPPORTED,
			       "this kernel does not track writes by itself (PAGEMAP_SCAN: error "
			       "%d): Linux 6.7 does",
			       -r)
		     : 0;
}

int bm_tracker_new_async(const struct bm_ram_region *regions, unsigned count,
			 struct bm_tracker **tracker, struct bm_error *error)
{
	struct async *a;
	int r = bm_ram_check(regions, count, error);

	if (r < 0)
		return r;
	a = calloc(1, sizeof(*a));
	if (!a)
		return bm_fail_errno(error, ENOMEM, "tracker");
	a->tracker.ops = &ops;
	a->count = count;
	for (unsigned i = 0; i < count; i++)
		a->area[i] = (struct bm_ram_area){(uintptr_t)regions[i].host, regions[i].size};
	a->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	a->uffd = bm_uffd_open(
		FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_WP_HUGETLBFS_SHMEM, true);
	if (a->uffd < 0)
		r = bm_fail(error, BM_E_UNSUPPORTED,
			    "this kernel does not track writes by itself (userfaultfd: error %d): "
			    "Linux 6.7 does",
			    -a->uffd);
	else if (a->pagemap < 0)
		r = bm_fail_errno(error, errno, "/proc/self/pagemap");
	else
		r = try(a, error);
	if (r < 0) {
		free_async(&a->tracker);
		return r;
	}
	*tracker = &a->tracker;
	return 0;
}
