/* SPDX-License-Identifier: BSD-3-Clause */
/* What the trackers share: ranges of pages as bits, and the ways to userfaultfd. Any thread. */
#ifndef BM_RAM_TRACKER_H
#define BM_RAM_TRACKER_H

#include "blockmirror/precopy.h"

static inline uint64_t bm_ram_words(uint64_t size)
{
	return (size / BM_RAM_PAGE + 63) / 64;
}

/* Sets count bits from first on. */
void bm_ram_set(uint64_t *bits, uint64_t first, uint64_t count);

/* BM_E_USAGE: they are not aligned, empty, or too many. */
int bm_ram_check(const struct bm_ram_region *regions, unsigned count, struct bm_error *error);

enum { BM_RAM_REGIONS = 64 };

/* A copy of what a tracker needs of the regions. */
struct bm_ram_area {
	uint64_t start, size;
};

/*
 * A userfaultfd with those features. user_only: without the right to handle the kernel's faults
 * one is made that handles the user's alone. -errno.
 */
int bm_uffd_open(uint64_t features, bool user_only);

/* So that pages of the area can be protected. -errno. */
int bm_uffd_register(int fd, const struct bm_ram_area *area);
void bm_uffd_unregister(int fd, const struct bm_ram_area *area);

/* The next write to any of those pages is noticed, or (on = false) goes on. -errno. */
int bm_uffd_protect(int fd, uint64_t start, uint64_t length, bool on);

#endif
