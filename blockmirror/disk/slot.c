/* SPDX-License-Identifier: BSD-3-Clause */
/* A device that passes requests on to whichever is in it. */
#include "blockmirror/disk/slot.h"

#include <errno.h>
#include <stdlib.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/later.h"

struct slot {
	struct bm_dev dev;
	struct bm_dev *lower; /* NULL: it is empty */
	bool reads; /* the gate is what bars writes, and a guest is to see a disk that takes them */
	bool cancelled;
	struct bm_later later;
};

static struct slot *of(struct bm_dev *dev)
{
	return bm_container(dev, struct slot, dev);
}

static void take_flags(struct slot *s)
{
	s->dev.geometry.flags = s->lower->geometry.flags & ~(s->reads ? BM_DEV_READ_ONLY : 0);
}

static void slot_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct slot *s = of(dev);

	if (s->lower) {
		take_flags(s);
		bm_submit(s->lower, rq);
	} else {
		bm_later_done(&s->later, rq, -ESHUTDOWN);
	}
}

static void slot_start(struct bm_dev *dev)
{
	struct slot *s = of(dev);

	bm_later_init(&s->later, dev->loop);
	bm_dev_start(s->lower, dev->loop);
}

static void slot_cancel(struct bm_dev *dev)
{
	struct slot *s = of(dev);

	s->cancelled = true;
	if (s->lower)
		bm_dev_cancel(s->lower);
}

static void slot_close(struct bm_dev *dev)
{
	struct slot *s = of(dev);

	if (dev->loop)
		bm_later_fini(&s->later);
	bm_dev_close(s->lower);
	free(s);
}

static int slot_descriptor(const struct bm_dev *dev)
{
	const struct slot *s = bm_container(dev, const struct slot, dev);

	return s->lower ? bm_dev_descriptor(s->lower) : -1;
}

static const struct bm_dev_ops ops = {
	.name = "slot",
	.start = slot_start,
	.submit = slot_submit,
	.cancel = slot_cancel,
	.close = slot_close,
	.descriptor = slot_descriptor,
};

struct bm_dev *slot_new(struct bm_dev *lower, bool reads)
{
	struct slot *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	*s = (struct slot){
		.dev = {.ops = &ops, .geometry = lower->geometry}, .lower = lower, .reads = reads};
	take_flags(s);
	return &s->dev;
}

void slot_put(struct bm_dev *dev, struct bm_dev *lower)
{
	struct slot *s = of(dev);

	bm_dev_close(s->lower);
	s->lower = lower;
	s->reads = false;
	if (!lower)
		return;
	take_flags(s);
	if (s->cancelled)
		bm_dev_cancel(lower);
}
