// SPDX-License-Identifier: BSD-3-Clause
/*
 * What the trackers share, and the choice between those of userfaultfd. Kernel headers of the
 * distributions we build on are older than the features: what they lack is defined here, by the
 * kernel's include/uapi/linux/userfaultfd.h.
 */
#include "blockmirror/ram/tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

void bm_ram_set(uint64_t *bits, uint64_t first, uint64_t count)
{
	while (count) {
		uint64_t shift = first % 64, n = 64 - shift < count ? 64 - shift : count;
		uint64_t mask = n == 64 ? UINT64_MAX : (1ull << n) - 1;

		bits[first / 64] |= mask << shift;
		first += n;
		count -= n;
	}
}

int bm_ram_check(const struct bm_ram_region *regions, unsigned count, struct bm_error *error)
{
	if (!count || count > BM_RAM_REGIONS)
		return bm_fail(error, BM_E_USAGE, "%u regions of RAM: 1 to %d can be tracked",
			       count, BM_RAM_REGIONS);
	for (unsigned i = 0; i < count; i++)
		if (!regions[i].size || regions[i].size % BM_RAM_PAGE ||
		    (uintptr_t)regions[i].host % BM_RAM_PAGE)
			return bm_fail(error, BM_E_USAGE,
				       "region %s: address and size must be multiples of %u",
				       regions[i].name, BM_RAM_PAGE);
	return 0;
}

/* What the system call is not allowed to, the device may be: its mode says who. */
static int open_full(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), err = errno;
	bm_close int device = -1;

	if (fd >= 0)
		return fd;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (device >= 0)
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	errno = err;
	return fd;
}

int bm_uffd_open(uint64_t features, bool user_only)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	bm_close int fd = open_full();

	if (fd < 0 && errno == EPERM && user_only)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		return -errno;
	return bm_steal_fd(fd);
}

int bm_uffd_register(int fd, const struct bm_ram_area *area)
{
	struct uffdio_register r = {.range = {area->start, area->size},
				    .mode = UFFDIO_REGISTER_MODE_WP};

	return ioctl(fd, UFFDIO_REGISTER, &r) < 0 ? -errno : 0;
}

void bm_uffd_unregister(int fd, const struct bm_ram_area *area)
{
	struct uffdio_range r = {area->start, area->size};

	ioctl(fd, UFFDIO_UNREGISTER, &r);
	/* Linux wakes those that miss a page by that, and not those that wait to write to one. */
	ioctl(fd, UFFDIO_WAKE, &r);
}

int bm_uffd_protect(int fd, uint64_t start, uint64_t length, bool on)
{
	struct uffdio_writeprotect w = {.range = {start, length},
					.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};

	/* EAGAIN: the process is changing its mappings just now. */
	while (ioctl(fd, UFFDIO_WRITEPROTECT, &w) < 0)
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	return 0;
}

int bm_tracker_new(const struct bm_ram_region *regions, unsigned count, struct bm_tracker **tracker,
		   struct bm_error *error)
{
	if (!bm_tracker_new_async(regions, count, tracker, error))
		return 0;
	if (error && error->code == BM_E_USAGE)
		return -EINVAL;
	return bm_tracker_new_sync(regions, count, tracker, error);
}

void bm_tracker_free(struct bm_tracker *tracker)
{
	if (!tracker)
		return;
	tracker->ops->stop(tracker);
	tracker->ops->free(tracker);
}
