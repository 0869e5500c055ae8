/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The dirty map as a device that answers EXTENTS, so that whoever reads extents can read it: the
 * NBD server offers it as a metadata context. It is asked beside the order device and not through
 * it, and tells what was so when it was asked.
 */
#include <errno.h>

#include "blockmirror/dev/extents.h"
#include "blockmirror/mirror/engine.h"

/* Granules looked at for one answer, so that a map of many TiB does not keep the loop. */
#define AT_ONCE (1ull << 22)

static void find_extents(const struct bm_mirror *m, struct bm_request *rq)
{
	uint64_t at = rq->offset, most = AT_ONCE << m->granule_shift;
	uint64_t end = rq->length < most ? at + rq->length : at + most;
	struct bm_extents *x = rq->extents;

	x->count = 0;
	while (at < end) {
		uint64_t next = end;
		bool dirty = m->link != LINK_NONE && bm_map_next_change(&m->map, at, end, &next);

		if (!bm_extents_add(x, next - at, dirty ? BM_MIRROR_DIRTY : 0))
			break;
		at = next;
	}
}

static void dirty_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct bm_mirror *m = bm_container(dev, struct bm_mirror, dirty_dev);

	if (rq->op == BM_EXTENTS)
		find_extents(m, rq);
	bm_later_done(&m->later, rq, rq->op == BM_EXTENTS ? 0 : -ENOTSUP);
}

/* What it was asked has been answered by the next turn of the loop; it goes with the mirror. */
static void nothing(struct bm_dev *dev)
{
	(void)dev;
}

static const struct bm_dev_ops dirty_ops = {
	.name = "dirty",
	.start = nothing,
	.submit = dirty_submit,
	.cancel = nothing,
	.close = nothing,
};

void dirty_init(struct bm_mirror *m)
{
	m->dirty_dev.ops = &dirty_ops;
	m->dirty_dev.loop = m->loop;
	m->dirty_dev.geometry = (struct bm_geometry){
		.size = m->size,
		.block = 1,
		.max_transfer = BM_BUF_MAX,
		.max_zero = BM_MAX_ZERO,
		.flags = BM_DEV_READ_ONLY | BM_DEV_EXTENTS,
	};
}

struct bm_dev *bm_mirror_dirty_dev(struct bm_mirror *m)
{
	return &m->dirty_dev;
}
