/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory as a block device: mem:SIZE. Gone when it is closed; for tests and benchmarks, where it
 * shows what all the rest costs.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/units.h"
#include "blockmirror/dev/extents.h"
#include "blockmirror/dev/later.h"
#include "blockmirror/dev/open.h"

enum { EXTENT_STEP = 4096, EXTENTS_AT_ONCE = 4 << 20 };

struct mem {
	struct bm_dev dev;
	struct bm_later later;
	uint8_t *bytes;
	bool cancelled;
};

static void find_extents(const struct mem *m, struct bm_request *rq)
{
	uint64_t end = rq->offset + rq->length;
	struct bm_extents *x = rq->extents;

	if (end - rq->offset > EXTENTS_AT_ONCE)
		end = rq->offset + EXTENTS_AT_ONCE;
	x->count = 0;
	for (uint64_t at = rq->offset, n; at < end; at += n) {
		uint32_t flags;

		n = end - at < EXTENT_STEP ? end - at : EXTENT_STEP;
		flags = bm_is_zero(m->bytes + at, n) ? BM_EXTENT_HOLE | BM_EXTENT_ZERO : 0;
		if (!bm_extents_add(x, n, flags))
			break;
	}
}

static int carry_out(struct mem *m, struct bm_request *rq)
{
	if (m->cancelled)
		return -ESHUTDOWN;
	switch (rq->op) {
	case BM_READ:
		memcpy(rq->data, m->bytes + rq->offset, rq->length);
		return 0;
	case BM_EXTENTS:
		find_extents(m, rq);
		return 0;
	case BM_FLUSH:
		return 0;
	default:
		break;
	}
	if (m->dev.geometry.flags & BM_DEV_READ_ONLY)
		return -EPERM;
	if (rq->op == BM_WRITE)
		memcpy(m->bytes + rq->offset, rq->data, rq->length);
	else
		memset(m->bytes + rq->offset, 0, rq->length);
	return 0;
}

static void mem_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct mem *m = bm_container(dev, struct mem, dev);

	bm_later_done(&m->later, rq, carry_out(m, rq));
}

static void mem_start(struct bm_dev *dev)
{
	bm_later_init(&bm_container(dev, struct mem, dev)->later, dev->loop);
}

static void mem_cancel(struct bm_dev *dev)
{
	bm_container(dev, struct mem, dev)->cancelled = true;
}

static void mem_close(struct bm_dev *dev)
{
	struct mem *m = bm_container(dev, struct mem, dev);

	if (dev->loop)
		bm_later_fini(&m->later);
	munmap(m->bytes, m->dev.geometry.size);
	free(m);
}

static const struct bm_dev_ops mem_ops = {
	.name = "mem",
	.start = mem_start,
	.submit = mem_submit,
	.cancel = mem_cancel,
	.close = mem_close,
};

int bm_mem_open(const struct bm_uri *uri, const struct bm_open_options *options,
		struct bm_dev **dev, struct bm_error *error)
{
	bm_free struct mem *m = calloc(1, sizeof(*m));
	uint64_t size;
	int r;

	if (bm_parse_size(uri->rest, &size) < 0)
		return bm_fail(error, BM_E_URI, "%s: mem: is followed by a size, as in mem:64M",
			       uri->text);
	r = bm_check_size(uri->text, size, error);
	if (r < 0)
		return r;
	if (!m)
		return bm_fail_errno(error, ENOMEM, "%s", uri->text);
	m->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->bytes == MAP_FAILED)
		return bm_fail_errno(error, errno, "%s", uri->text);
	m->dev.ops = &mem_ops;
	m->dev.geometry = (struct bm_geometry){
		.size = size,
		.block = 1,
		.max_transfer = 32 << 20,
		.max_zero = BM_MAX_ZERO,
		.flags = BM_DEV_FAST_ZERO | BM_DEV_TRIM | BM_DEV_EXTENTS,
	};
	if (options->read_only)
		m->dev.geometry.flags |= BM_DEV_READ_ONLY;
	*dev = &bm_steal(m)->dev;
	return 0;
}
