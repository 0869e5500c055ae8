/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk for the model tests. */
#include "tests/model/fake_disk.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "blockmirror/base/list.h"

void sector_fill(uint8_t *data, int value)
{
	for (int i = 0; i < SECTOR; i += (int)sizeof(value))
		memcpy(data + i, &value, sizeof(value));
}

int sector_value(const uint8_t *data)
{
	int first, last;

	memcpy(&first, data, sizeof(first));
	memcpy(&last, data + SECTOR - sizeof(last), sizeof(last));
	return first == last ? first : -1;
}

static bool is_write(enum bm_op op)
{
	return op == BM_WRITE || op == BM_ZERO || op == BM_TRIM;
}

static void set_history(struct fake_disk *d, int s, int value)
{
	d->histories[s] = 1;
	d->history[s][0].value = value;
	d->history[s][0].io = 0;
	d->history[s][0].ended = true;
}

/* The newest effect on the sector that had ended: what a flush submitted now makes durable. */
static unsigned newest_ended(const struct fake_disk *d, int s)
{
	unsigned io = 0;

	for (int i = 0; i < d->histories[s]; i++)
		if (d->history[s][i].ended)
			io = d->history[s][i].io;
	return io;
}

/* Effects older than that of io can not come back any more. */
static void raise_floor(struct fake_disk *d, int s, unsigned io)
{
	for (int i = d->histories[s] - 1; i > 0; i--)
		if (d->history[s][i].io == io) {
			d->histories[s] -= i;
			memmove(d->history[s], d->history[s] + i,
				(size_t)d->histories[s] * sizeof(d->history[s][0]));
			return;
		}
}

static void add_history(struct fake_disk *d, int s, int value, unsigned io)
{
	int n = d->histories[s];

	if (n == HISTORY) { /* forget one in the middle: one chance less, none wrong */
		memmove(d->history[s] + 1, d->history[s] + 2,
			(size_t)(n - 2) * sizeof(d->history[s][0]));
		n--;
	}
	d->history[s][n].value = value;
	d->history[s][n].io = io;
	d->history[s][n].ended = false;
	d->histories[s] = n + 1;
}

static int sent_value(const struct fake_io *io, int i)
{
	if (io->op != BM_WRITE)
		return 0;
	return io->rq ? sector_value(io->rq->data + (size_t)i * SECTOR) : io->value[i];
}

void fake_io_apply(struct fake_io *io)
{
	struct fake_disk *d = io->disk;
	int skip, i, s, value;

	if (!io->left)
		return;
	skip = (int)(d->chance() % (unsigned)io->left);
	for (i = 0; i < io->n; i++)
		if (!(io->applied >> i & 1) && skip-- == 0)
			break;
	s = io->first + i;
	io->applied |= 1u << i;
	io->left--;
	if (!is_write(io->op)) {
		io->value[i] = d->current[s];
		return;
	}
	if (io->op == BM_TRIM && d->chance() & 1)
		return; /* a hint */
	value = sent_value(io, i);
	d->current[s] = value;
	add_history(d, s, value, io->id);
}

static void free_io(struct fake_io *io)
{
	io->used = false;
	io->disk->pending--;
}

static void mark_ended(struct fake_io *io)
{
	struct fake_disk *d = io->disk;

	for (int s = io->first; s < io->first + io->n; s++)
		for (int i = 0; i < d->histories[s]; i++)
			if (d->history[s][i].io == io->id)
				d->history[s][i].ended = true;
}

static void give_data(const struct fake_io *io)
{
	for (int i = 0; i < io->n; i++)
		sector_fill(io->rq->data + (size_t)i * SECTOR, io->value[i]);
}

static void give_extents(const struct fake_io *io)
{
	struct bm_extents *x = io->rq->extents;
	int n = 1 + (int)(io->disk->chance() % (unsigned)io->n); /* the answer may stop short */

	x->count = 0;
	for (int i = 0; i < n; i++) {
		uint32_t flags = io->value[i] ? 0 : BM_EXTENT_HOLE | BM_EXTENT_ZERO;

		if (x->count && x->v[x->count - 1].flags == flags)
			x->v[x->count - 1].length += SECTOR;
		else if (x->count == x->room)
			break;
		else
			x->v[x->count++] = (struct bm_extent){.length = SECTOR, .flags = flags};
	}
}

/*
 * A failed flush, as the kernel has it: what it was to make durable counts as written back, and
 * no later flush will see to it.
 */
static void lose_flush(struct fake_disk *d)
{
	for (int s = 0; s < SECTORS; s++)
		for (int i = 1; i < d->histories[s]; i++)
			d->history[s][i].ended = false;
}

void fake_io_end(struct fake_io *io, int error)
{
	struct fake_disk *d = io->disk;
	struct bm_request *rq = io->rq;

	assert(error || !io->left);
	if (is_write(io->op))
		mark_ended(io);
	if (error && io->op == BM_FLUSH)
		lose_flush(d);
	for (int s = 0; !error && s < SECTORS; s++) {
		if (io->op == BM_FLUSH)
			raise_floor(d, s, io->floor[s]);
		else if (io->fua && s >= io->first && s < io->first + io->n)
			raise_floor(d, s, io->id);
	}
	if (rq && !error && io->op == BM_READ)
		give_data(io);
	if (rq && !error && io->op == BM_EXTENTS)
		give_extents(io);
	free_io(io);
	if (rq)
		rq->done(rq, error);
}

struct fake_io *fake_disk_pick(struct fake_disk *d, int n)
{
	for (int i = 0; i < PENDING; i++)
		if (d->io[i].used && n-- == 0)
			return &d->io[i];
	return NULL;
}

/* Reads of a whole granule: a block that is read, merged and written proves nothing. */
enum { WHOLE = 4 };

static void end_old(struct fake_disk *d, const struct bm_request *rq)
{
	int first = (int)(rq->offset / SECTOR), end = first + (int)(rq->length / SECTOR);

	if (!d->old_until || bm_loop_now(d->dev.loop) < d->old_until || end - first < WHOLE)
		return;
	for (int i = 0; i < PENDING; i++) {
		struct fake_io *io = &d->io[i];

		if (!io->used || io->rq || io->first >= end || io->first + io->n <= first)
			continue;
		while (io->left && d->chance() % 3)
			fake_io_apply(io);
		io->left = 0;
		fake_io_end(io, 0);
	}
}

static void fake_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct fake_disk *d = bm_container(dev, struct fake_disk, dev);
	struct fake_io *io = d->io;

	if (d->cancelled) {
		rq->result = -ESHUTDOWN;
		bm_list_append(&d->ended, &rq->link);
		bm_loop_soon(dev->loop, &d->end_task);
		return;
	}
	assert(!((rq->offset | rq->length) & (dev->geometry.block - 1)));
	assert(rq->offset + rq->length <= dev->geometry.size);
	if (rq->op == BM_READ)
		end_old(d, rq);
	while (io->used) {
		io++;
		assert(io < d->io + PENDING);
	}
	memset(io, 0, sizeof(*io));
	io->disk = d;
	io->rq = rq;
	io->used = true;
	io->op = rq->op;
	io->fua = is_write(rq->op) && rq->flags & BM_FUA;
	io->id = ++d->ids;
	io->first = (int)(rq->offset / SECTOR);
	io->n = io->left = (int)(rq->length / SECTOR);
	for (int s = 0; rq->op == BM_FLUSH && s < SECTORS; s++)
		io->floor[s] = newest_ended(d, s);
	d->pending++;
}

/* What was sent and not answered may still be carried out; nothing else of it remains. */
static void make_stale(struct fake_io *io)
{
	if (!is_write(io->op)) {
		free_io(io);
		return;
	}
	for (int i = 0; i < io->n; i++)
		io->value[i] = sent_value(io, i);
	io->rq = NULL;
}

/* Its answer came in just before the connection was cut. */
static bool answered_already(const struct fake_io *io)
{
	return io->disk->prompt && is_write(io->op) && !io->fua && !io->left && io->id % 2;
}

static void end_cancelled(struct bm_task *task)
{
	struct fake_disk *d = bm_container(task, struct fake_disk, end_task);
	struct bm_list *node;

	while ((node = bm_list_take(&d->ended))) {
		struct bm_request *rq = bm_container(node, struct bm_request, link);

		rq->done(rq, rq->result);
	}
}

static void fake_cancel(struct bm_dev *dev)
{
	struct fake_disk *d = bm_container(dev, struct fake_disk, dev);

	d->cancelled = true;
	for (int i = 0; d->remote && i < PENDING; i++) {
		struct bm_request *rq = d->io[i].rq;

		if (!d->io[i].used || !rq)
			continue;
		if (answered_already(&d->io[i])) {
			mark_ended(&d->io[i]);
			free_io(&d->io[i]);
			rq->result = 0;
		} else {
			make_stale(&d->io[i]);
			rq->result = -ECANCELED;
		}
		bm_list_append(&d->ended, &rq->link);
		bm_loop_soon(dev->loop, &d->end_task);
	}
}

static void fake_start(struct bm_dev *dev)
{
	(void)dev;
}

static void fake_close(struct bm_dev *dev)
{
	(void)dev;
}

const struct bm_dev_ops fake_disk_ops = {
	.name = "fake",
	.start = fake_start,
	.submit = fake_submit,
	.cancel = fake_cancel,
	.close = fake_close,
};

void fake_disk_init(struct fake_disk *d, const int *value, uint32_t block, uint64_t (*chance)(void))
{
	d->dev.ops = &fake_disk_ops;
	d->dev.geometry = (struct bm_geometry){
		.size = SECTORS * SECTOR,
		.block = block,
		.max_transfer = BM_BUF_MAX,
		.max_zero = BM_MAX_ZERO,
		.flags = BM_DEV_FAST_ZERO | BM_DEV_EXTENTS | BM_DEV_TRIM | BM_DEV_FENCED,
	};
	d->chance = chance;
	d->end_task.run = end_cancelled;
	bm_list_init(&d->ended);
	for (int s = 0; s < SECTORS; s++) {
		d->current[s] = value[s];
		set_history(d, s, value[s]);
	}
}

void fake_disk_open(struct fake_disk *d, struct bm_loop *loop)
{
	d->cancelled = false;
	d->dev.loop = loop;
}

void fake_disk_orphan(struct fake_disk *d)
{
	for (int i = 0; i < PENDING; i++)
		if (d->io[i].used && d->io[i].rq)
			make_stale(&d->io[i]);
	bm_list_init(&d->ended);
	bm_task_cancel(&d->end_task);
}

void fake_disk_power_cut(struct fake_disk *d)
{
	for (int i = 0; i < PENDING; i++)
		if (d->io[i].used && !d->io[i].rq)
			free_io(&d->io[i]);
	for (int s = 0; s < SECTORS; s++) {
		int kept = (int)(d->chance() % (unsigned)d->histories[s]);

		d->current[s] = d->history[s][kept].value;
		set_history(d, s, d->current[s]);
	}
}

void fake_disk_damage(struct fake_disk *d, int sector, int value)
{
	d->current[sector] = value;
	set_history(d, sector, value);
}

bool fake_disk_has_stale(const struct fake_disk *d)
{
	for (int i = 0; i < PENDING; i++)
		if (d->io[i].used && !d->io[i].rq)
			return true;
	return false;
}

bool fake_disk_durable(const struct fake_disk *d)
{
	for (int s = 0; s < SECTORS; s++)
		if (d->histories[s] > 1)
			return false;
	return true;
}
