/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The slot: what a disk's image stands in, below the mirror, so that it can be let go of, or
 * another device for it be put in, while all above stays. Storage that both hosts reach needs that:
 * who passes the disk on closes it, and a standby that read it opens it for writing. Costs a
 * request one call. Loop thread only.
 */
#ifndef BM_DISK_SLOT_H
#define BM_DISK_SLOT_H

#include "blockmirror/blockdev.h"

/*
 * Owns lower, which is not started, once it succeeds. reads: it was opened for reading alone, until
 * another one is put in; who is above does not see that. NULL: no memory.
 */
struct bm_dev *slot_new(struct bm_dev *lower, bool reads);

/*
 * No request is in flight. What was in it is closed; lower, started and fit for the same block, is
 * from now on. NULL: nothing is, and requests end with -ESHUTDOWN.
 */
void slot_put(struct bm_dev *slot, struct bm_dev *lower);

#endif
