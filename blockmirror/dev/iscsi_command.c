/* SPDX-License-Identifier: BSD-3-Clause */
/* iSCSI: from requests to SCSI commands (SBC-3), and what their answers mean. */
#include <errno.h>

#include "blockmirror/dev/extents.h"
#include "blockmirror/dev/iscsi.h"

enum {
	MOST_TRIES = 12, /* of one command; the waits between them add up to 20 s */
	LBA_STATUS_HEAD = 8,
	LBA_STATUS_EACH = 16,
	LBA_STATUS_MOST = 1024,
	LBA_DEALLOCATED = 1,
};

/* Commands */

static void cut(struct iscsi_io *io, uint64_t most)
{
	if (io->end - io->pos > most)
		io->end = io->pos + most;
}

static struct scsi_task *send_transfer(struct iscsi_io *io, iscsi_command_cb cb, bool write,
				       const uint8_t *data)
{
	const struct iscsi *d = io->iscsi;
	int block = (int)d->dev.geometry.block;
	uint64_t lba = io->pos / (unsigned)block;
	uint32_t length = (uint32_t)(io->end - io->pos);

	io->transfers = true;
	io->iov = (struct scsi_iovec){.iov_base = (void *)data, .iov_len = length};
	if (!write)
		return iscsi_read16_iov_task(io->session->context, d->lun, lba, length, block, 0, 0,
					     0, 0, 0, cb, io, &io->iov, 1);
	io->sends = true;
	return iscsi_write16_iov_task(io->session->context, d->lun, lba, NULL, length, block, 0, 0,
				      io->rq->flags & BM_FUA && d->can_fua, 0, 0, cb, io, &io->iov,
				      1);
}

static struct scsi_task *send_zero(struct iscsi_io *io, iscsi_command_cb cb)
{
	const struct iscsi *d = io->iscsi;
	uint32_t block = d->dev.geometry.block;

	if (!d->can_same) {
		cut(io, d->dev.geometry.max_transfer);
		return send_transfer(io, cb, true, bm_zeros());
	}
	cut(io, d->max_same);
	io->same = io->sends = true;
	io->unmaps = d->can_same_unmap && !(io->rq->flags & BM_NO_HOLE);
	io->iov = (struct scsi_iovec){.iov_base = (void *)bm_zeros(), .iov_len = block};
	/* Without data beside the vector libiscsi would announce none. */
	return iscsi_writesame16_iov_task(
		io->session->context, d->lun, io->pos / block, io->iov.iov_base, block,
		(uint32_t)((io->end - io->pos) / block), 0, io->unmaps, 0, 0, cb, io, &io->iov, 1);
}

static struct scsi_task *send_unmap(struct iscsi_io *io, iscsi_command_cb cb)
{
	const struct iscsi *d = io->iscsi;
	uint32_t block = d->dev.geometry.block;
	struct unmap_list list;

	cut(io, d->max_unmap);
	io->sends = true;
	list = (struct unmap_list){.lba = io->pos / block,
				   .num = (uint32_t)((io->end - io->pos) / block)};
	return iscsi_unmap_task(io->session->context, d->lun, 0, 0, &list, 1, cb, io);
}

struct scsi_task *bm_iscsi_send(struct iscsi_io *io, iscsi_command_cb cb)
{
	const struct iscsi *d = io->iscsi;
	struct iscsi_context *context = io->session->context;
	const struct bm_request *rq = io->rq;
	unsigned most;

	io->transfers = io->sends = io->same = io->unmaps = false;
	io->end = rq->offset + rq->length;
	if (rq->op == BM_FLUSH || io->flushing) /* 0, 0: all of the unit's cache */
		return iscsi_synchronizecache16_task(context, d->lun, 0, 0, 0, 0, cb, io);
	switch (rq->op) {
	case BM_READ:
		return send_transfer(io, cb, false, rq->data);
	case BM_WRITE:
		return send_transfer(io, cb, true, rq->data);
	case BM_ZERO:
		return send_zero(io, cb);
	case BM_TRIM:
		return send_unmap(io, cb);
	default:
		most = rq->extents->room < LBA_STATUS_MOST ? rq->extents->room : LBA_STATUS_MOST;
		return iscsi_get_lba_status_task(context, d->lun, io->pos / d->dev.geometry.block,
						 LBA_STATUS_HEAD + LBA_STATUS_EACH * most, cb, io);
	}
}

/* Answers */

bool bm_iscsi_known(const struct iscsi *d, struct bm_request *rq, int *result)
{
	bool writes = rq->op == BM_WRITE || rq->op == BM_ZERO || rq->op == BM_TRIM;

	*result = 0;
	if (d->dead)
		*result = d->dead;
	else if (writes && d->dev.geometry.flags & BM_DEV_READ_ONLY)
		*result = -EPERM;
	else if (rq->op == BM_ZERO && rq->flags & BM_FAST &&
		 !(d->dev.geometry.flags & BM_DEV_FAST_ZERO))
		*result = -ENOTSUP;
	else if (rq->op == BM_EXTENTS && !d->can_extents)
		bm_iscsi_all_data(rq);
	else
		return rq->op == BM_TRIM && !d->max_unmap;
	return true;
}

static enum iscsi_verdict judge_sense(const struct scsi_sense *sense, int *error)
{
	unsigned asc = (unsigned)sense->ascq >> 8;

	*error = -EIO;
	switch (sense->key) {
	case SCSI_SENSE_RECOVERED_ERROR:
		return ISCSI_SUCCESS;
	case SCSI_SENSE_UNIT_ATTENTION: /* the command was not carried out */
		if (asc == 0x28 || asc == 0x29 || sense->ascq == 0x2a09 || sense->ascq == 0x3f0e)
			return ISCSI_FATAL; /* other medium, reset, capacity, other units */
		return ISCSI_RETRY;
	case SCSI_SENSE_NOT_READY:
		if (sense->ascq == 0x0401 ||
		    sense->ascq == 0x040a) /* becoming ready, path changes */
			return ISCSI_RETRY_LATER;
		return ISCSI_FAILURE;
	case SCSI_SENSE_ILLEGAL_REQUEST:
		return ISCSI_REFUSED;
	case SCSI_SENSE_DATA_PROTECTION:
		*error = sense->ascq == 0x2707 ? -ENOSPC : -EPERM;
		return ISCSI_FAILURE;
	default:
		return ISCSI_FAILURE;
	}
}

enum iscsi_verdict bm_iscsi_judge(const struct iscsi_io *io, int *error)
{
	const struct iscsi *d = io->iscsi;
	const struct scsi_task *task = io->task;
	enum iscsi_verdict verdict = ISCSI_FAILURE;

	*error = -EIO;
	if (io->status == SCSI_STATUS_GOOD) {
		bool all = task->residual_status == SCSI_RESIDUAL_NO_RESIDUAL;

		return all || !io->transfers ? ISCSI_SUCCESS : ISCSI_FAILURE;
	}
	if (d->dead) {
		*error = d->dead;
		return ISCSI_FAILURE;
	}
	if (io->status == SCSI_STATUS_BUSY || io->status == SCSI_STATUS_TASK_SET_FULL)
		verdict = ISCSI_RETRY_LATER;
	else if (io->status == SCSI_STATUS_RESERVATION_CONFLICT)
		*error = -EBUSY;
	else if (io->status == SCSI_STATUS_CHECK_CONDITION && task)
		verdict = judge_sense(&task->sense, error);
	if ((verdict == ISCSI_RETRY || verdict == ISCSI_RETRY_LATER) && io->tries >= MOST_TRIES)
		verdict = ISCSI_FAILURE;
	return verdict;
}

/* What the target refuses it is not asked for again. Whether io's request can go another way. */
bool bm_iscsi_do_without(struct iscsi_io *io)
{
	struct iscsi *d = io->iscsi;
	struct bm_geometry *g = &d->dev.geometry;

	if (io->rq->op == BM_EXTENTS) {
		d->can_extents = false;
		g->flags &= ~BM_DEV_EXTENTS;
	} else if (io->rq->op == BM_TRIM && !io->flushing) {
		d->max_unmap = 0;
		g->flags &= ~BM_DEV_TRIM;
	} else if (io->same && io->unmaps) {
		d->can_same_unmap = false;
		return true;
	} else if (io->same) {
		d->can_same = false;
		g->flags &= ~BM_DEV_FAST_ZERO;
		return !(io->rq->flags & BM_FAST) || io->pos > io->rq->offset;
	}
	return false;
}

void bm_iscsi_all_data(struct bm_request *rq)
{
	rq->extents->count = 0;
	bm_extents_add(rq->extents, rq->length, 0);
}

uint64_t bm_iscsi_field(const struct scsi_task *task, size_t offset, size_t bytes)
{
	size_t size = task->datain.data && task->datain.size > 0 ? (size_t)task->datain.size : 0;
	uint64_t value = 0;

	if (offset > size || bytes > size - offset)
		return 0;
	for (size_t i = 0; i < bytes; i++)
		value = value << 8 | task->datain.data[offset + i];
	return value;
}

/*
 * Descriptors (SBC-3 5.4.3) come from the other end: clamped, and believed only as far as they are
 * seamless.
 */
void bm_iscsi_take_extents(struct iscsi_io *io)
{
	const struct iscsi *d = io->iscsi;
	struct bm_request *rq = io->rq;
	uint64_t block = d->dev.geometry.block, at = rq->offset / block;
	uint64_t end = at + rq->length / block;

	rq->extents->count = 0;
	for (size_t i = LBA_STATUS_HEAD; io->status == SCSI_STATUS_GOOD && at < end;
	     i += LBA_STATUS_EACH) {
		uint64_t first = bm_iscsi_field(io->task, i, 8);
		uint64_t past = first + bm_iscsi_field(io->task, i + 8, 4);
		uint32_t flags = 0;

		if (first > at || past <= at)
			break;
		past = past < end ? past : end;
		if ((bm_iscsi_field(io->task, i + 12, 1) & 15) == LBA_DEALLOCATED)
			flags = BM_EXTENT_HOLE | (d->hole_is_zero ? BM_EXTENT_ZERO : 0);
		if (!bm_extents_add(rq->extents, (past - at) * block, flags))
			break;
		at = past;
	}
	if (!rq->extents->count)
		bm_iscsi_all_data(rq);
}
