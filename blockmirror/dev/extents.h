/* SPDX-License-Identifier: BSD-3-Clause */
/* Building the answer to BM_EXTENTS. */
#ifndef BM_DEV_EXTENTS_H
#define BM_DEV_EXTENTS_H

#include "blockmirror/blockdev.h"

/* Adds to the end, merging equal neighbours. false when there is no room: the answer ends here. */
static inline bool bm_extents_add(struct bm_extents *x, uint64_t length, uint32_t flags)
{
	if (!length)
		return true;
	if (x->count && x->v[x->count - 1].flags == flags) {
		x->v[x->count - 1].length += length;
		return true;
	}
	if (x->count == x->room)
		return false;
	x->v[x->count++] = (struct bm_extent){.length = length, .flags = flags};
	return true;
}

#endif
