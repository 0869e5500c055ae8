/* SPDX-License-Identifier: BSD-3-Clause */
/* iSCSI: opening, in a worker's thread; what the unit is and what it can do. */
#include <errno.h>
#include <stdlib.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/iscsi_open.h"
#include "blockmirror/dev/open.h"

enum {
	DEFAULT_SESSIONS = 4,
	MOST_ATTENTIONS = 20, /* unit attentions in a row */
	REPLY_ROOM = 255,
	SMALLEST_BLOCK = 512,
	LARGEST_BLOCK = 4096,
	WRITE_PROTECT = 0x80, /* mode parameter header, byte 2 (SBC-3 6.4.1) */
	DPO_FUA = 0x10,
	LBPME = 0x80, /* READ CAPACITY(16), byte 14 (SBC-3 5.16.2) */
	LBPRZ = 0x40,
	LBPU = 0x80, /* VPD page B2h, byte 5 (SBC-3 6.6.6) */
	LBPWS = 0x40,
	NO_SUCH_UNIT = 0x2500, /* additional sense codes and qualifiers (SPC-4 D.2) */
	BECOMING_READY = 0x0401,
};
#define FIRST_LIMIT   10000000000ull /* ns for the first session */
#define MORE_LIMIT    3000000000ull  /* for all others together: one can do without them */
#define DEFAULT_FENCE 30000000000ull
#define BUSY_WAIT     50000000ull

/* Commands */

enum query { READY, IDENTITY, CAPACITY, LIMITS, PROVISIONING, MODE };

static struct scsi_task *send_query(struct iscsi_opening *o, struct iscsi_session *s,
				    enum query query)
{
	struct iscsi_context *c = s->context;
	int lun = o->iscsi->lun;

	switch (query) {
	case READY:
		return iscsi_testunitready_task(c, lun, bm_iscsi_on_answer, o);
	case IDENTITY:
		return iscsi_inquiry_task(c, lun, 0, 0, REPLY_ROOM, bm_iscsi_on_answer, o);
	case CAPACITY:
		return iscsi_readcapacity16_task(c, lun, bm_iscsi_on_answer, o);
	case LIMITS:
		return iscsi_inquiry_task(c, lun, 1, 0xb0, REPLY_ROOM, bm_iscsi_on_answer, o);
	case PROVISIONING:
		return iscsi_inquiry_task(c, lun, 1, 0xb2, REPLY_ROOM, bm_iscsi_on_answer, o);
	default:
		return iscsi_modesense6_task(c, lun, 1, SCSI_MODESENSE_PC_CURRENT,
					     SCSI_MODEPAGE_RETURN_ALL_PAGES, 0, REPLY_ROOM,
					     bm_iscsi_on_answer, o);
	}
}

static bool busy(const struct iscsi_opening *o)
{
	if (o->status == SCSI_STATUS_BUSY || o->status == SCSI_STATUS_TASK_SET_FULL)
		return true;
	return o->status == SCSI_STATUS_CHECK_CONDITION &&
	       o->task->sense.key == SCSI_SENSE_NOT_READY && o->task->sense.ascq == BECOMING_READY;
}

static void forget_task(struct iscsi_opening *o)
{
	if (o->task)
		scsi_free_scsi_task(o->task);
	o->task = NULL;
}

/*
 * Asks, past the unit attentions that each new session meets, and as long as the unit is busy.
 * Returns 0 with the answer in o->task, 1 when the target refuses, or -errno.
 */
static int ask(struct iscsi_opening *o, struct iscsi_session *s, enum query query)
{
	for (int attentions = 0; attentions < MOST_ATTENTIONS;) {
		int r;

		forget_task(o);
		o->answered = false;
		o->task = send_query(o, s, query);
		if (!o->task)
			return bm_iscsi_not_sent(o, s);
		r = bm_iscsi_wait(o, s);
		if (r < 0)
			return r;
		if (o->status == SCSI_STATUS_GOOD)
			return 0;
		if (o->status == SCSI_STATUS_CANCELLED || o->status == (int)SCSI_STATUS_TIMEOUT)
			return bm_iscsi_failed(o, BM_E_UNREACHABLE, o->why);
		if (busy(o))
			bm_wait_a_while(o->options, BUSY_WAIT);
		else if (o->status == SCSI_STATUS_CHECK_CONDITION &&
			 o->task->sense.key == SCSI_SENSE_UNIT_ATTENTION)
			attentions++;
		else
			return 1;
	}
	return 1;
}

static int ask_ready(struct iscsi_opening *o, struct iscsi_session *s)
{
	int r = ask(o, s, READY);

	if (r <= 0)
		return r;
	if (o->status == SCSI_STATUS_RESERVATION_CONFLICT)
		return bm_iscsi_failed(o, BM_E_LOCKED, "another initiator has reserved the unit");
	if (o->status == SCSI_STATUS_CHECK_CONDITION && o->task->sense.ascq == NO_SUCH_UNIT)
		return bm_iscsi_failed(o, BM_E_NOT_FOUND, "the target has no such logical unit");
	return bm_iscsi_failed(o, BM_E_IO, o->why);
}

static void on_reset(struct iscsi_context *context, int status, void *data, void *user)
{
	struct iscsi_opening *o = user;

	if (status == SCSI_STATUS_GOOD)
		o->response = *(uint32_t *)data;
	bm_iscsi_on_answer(context, status, data, user);
}

/* After this nothing that an earlier session of ours sent can still be carried out. */
static int fence(struct iscsi_opening *o, struct iscsi_session *s)
{
	uint64_t limit = o->options->fence_ns ? o->options->fence_ns : DEFAULT_FENCE;
	int r;

	bm_iscsi_limit(o, limit);
	o->answered = false;
	if (iscsi_task_mgmt_lun_reset_async(s->context, (uint32_t)o->iscsi->lun, on_reset, o))
		return bm_iscsi_not_sent(o, s);
	r = bm_iscsi_wait(o, s);
	if (r < 0)
		return r;
	if (o->status != SCSI_STATUS_GOOD || o->response != ISCSI_TMR_FUNC_COMPLETE)
		return bm_iscsi_failed(o, BM_E_UNSUPPORTED,
				       "the target does not reset the logical unit");
	bm_iscsi_limit(o, FIRST_LIMIT);
	return ask_ready(o, s);
}

/* What the unit is and can do */

static int read_capacity(struct iscsi_opening *o, struct iscsi_session *s, struct bm_geometry *g)
{
	uint64_t last, block;
	int r = ask(o, s, CAPACITY);

	if (r)
		return r < 0 ? r
			     : bm_iscsi_failed(o, BM_E_UNSUPPORTED,
					       "the unit has no READ CAPACITY(16)");
	last = bm_iscsi_field(o->task, 0, 8);
	block = bm_iscsi_field(o->task, 8, 4);
	if (block < SMALLEST_BLOCK || block > LARGEST_BLOCK || block & (block - 1))
		return bm_iscsi_failed(o, BM_E_SIZE, "blocks of 512 to 4096 bytes are expected");
	g->block = (uint32_t)block;
	g->size = last < INT64_MAX / block ? (last + 1) * block : UINT64_MAX / 512 * 512;
	return bm_check_size(o->iscsi->name, g->size, o->error);
}

static int check_identity(struct iscsi_opening *o, struct iscsi_session *s)
{
	uint64_t type;
	int r = ask(o, s, IDENTITY);

	if (r)
		return r < 0 ? r : bm_iscsi_failed(o, BM_E_IO, o->why);
	type = bm_iscsi_field(o->task, 0, 1);
	if (type >> 5) /* peripheral qualifier */
		return bm_iscsi_failed(o, BM_E_NOT_FOUND, "the target has no such logical unit");
	return type ? bm_iscsi_failed(o, BM_E_NOT_IMAGE, "the logical unit is not a disk") : 0;
}

static int check_mode(struct iscsi_opening *o, struct iscsi_session *s)
{
	uint64_t parameter;
	int r = ask(o, s, MODE);

	if (r)
		return r < 0 ? r : 0;
	parameter = bm_iscsi_field(o->task, 2, 1);
	if (parameter & WRITE_PROTECT && !o->options->read_only)
		return bm_iscsi_failed(o, BM_E_ACCESS, "the logical unit is write-protected");
	o->iscsi->can_fua = parameter & DPO_FUA;
	return 0;
}

/* Limits in blocks; 0 and all ones mean none. */
static uint64_t limited(uint64_t limit, uint64_t blocks, uint32_t block)
{
	return blocks && blocks < limit / block ? blocks * block : limit;
}

/* VPD page B0h (SBC-3 6.6.4); a target need not have it. */
static int learn_limits(struct iscsi_opening *o, struct iscsi_session *s)
{
	struct iscsi *d = o->iscsi;
	struct bm_geometry *g = &d->dev.geometry;
	uint64_t same;
	int r = ask(o, s, LIMITS);

	g->max_transfer = BM_BUF_MAX;
	g->max_zero = d->max_same = BM_MAX_ZERO;
	if (r)
		return r < 0 ? r : 0;
	same = bm_iscsi_field(o->task, 36, 8);
	g->max_transfer = (uint32_t)limited(BM_BUF_MAX, bm_iscsi_field(o->task, 8, 4), g->block);
	d->max_same = limited(BM_MAX_ZERO, same, g->block);
	if (same)
		g->flags |= BM_DEV_FAST_ZERO;
	if (bm_iscsi_field(o->task, 20, 4) && bm_iscsi_field(o->task, 24, 4))
		d->max_unmap = limited(BM_MAX_ZERO, bm_iscsi_field(o->task, 20, 4), g->block);
	return 0;
}

/* VPD page B2h (SBC-3 6.6.6). */
static int learn_provisioning(struct iscsi_opening *o, struct iscsi_session *s)
{
	struct iscsi *d = o->iscsi;
	uint64_t can = 0;
	int r = d->can_extents ? ask(o, s, PROVISIONING) : 1;

	if (r < 0)
		return r;
	if (!r)
		can = bm_iscsi_field(o->task, 5, 1);
	if (!(can & LBPU))
		d->max_unmap = 0;
	d->can_same_unmap = can & LBPWS && d->hole_is_zero;
	if (d->can_same_unmap)
		d->dev.geometry.flags |= BM_DEV_FAST_ZERO;
	if (d->max_unmap)
		d->dev.geometry.flags |= BM_DEV_TRIM;
	return 0;
}

static int learn(struct iscsi_opening *o, struct iscsi_session *s)
{
	struct iscsi *d = o->iscsi;
	int r = check_identity(o, s);

	if (!r)
		r = check_mode(o, s);
	if (!r)
		r = read_capacity(o, s, &d->dev.geometry);
	if (r < 0)
		return r;
	if (o->options->read_only)
		d->dev.geometry.flags |= BM_DEV_READ_ONLY;
	d->can_same = true; /* there is no telling before it is tried */
	d->can_extents = bm_iscsi_field(o->task, 14, 1) & LBPME;
	d->hole_is_zero = bm_iscsi_field(o->task, 14, 1) & LBPRZ;
	if (d->can_extents)
		d->dev.geometry.flags |= BM_DEV_EXTENTS;
	r = learn_limits(o, s);
	return r < 0 ? r : learn_provisioning(o, s);
}

/* The device */

static int open_first(struct iscsi_opening *o)
{
	struct iscsi_session *s = &o->iscsi->session[0];
	int r;

	bm_iscsi_limit(o, FIRST_LIMIT);
	o->iscsi->sessions = 1;
	r = bm_iscsi_log_in(o, s);
	if (!r)
		r = ask_ready(o, s);
	if (!r && o->options->fence)
		r = fence(o, s);
	if (!r)
		r = learn(o, s);
	if (!r && o->options->fence)
		o->iscsi->dev.geometry.flags |= BM_DEV_FENCED;
	return r;
}

/* One more session, of the same unit as it seems. Returns 0, 1 when it cannot be had, or -errno. */
static int open_another(struct iscsi_opening *o, struct iscsi_session *s)
{
	struct bm_geometry geometry = {0}, *expected = &o->iscsi->dev.geometry;
	int r = bm_iscsi_log_in(o, s);

	if (!r)
		r = ask_ready(o, s);
	if (!r)
		r = read_capacity(o, s, &geometry);
	if (r == -ECANCELED)
		return r;
	return r || geometry.size != expected->size || geometry.block != expected->block;
}

static int open_more(struct iscsi_opening *o)
{
	unsigned wanted = o->options->connections ? o->options->connections : DEFAULT_SESSIONS;
	struct iscsi *d = o->iscsi;

	if (wanted > ISCSI_MAX_SESSIONS)
		wanted = ISCSI_MAX_SESSIONS;
	bm_iscsi_limit(o, MORE_LIMIT);
	while (d->sessions < wanted) {
		struct iscsi_session *s = &d->session[d->sessions];
		int r = open_another(o, s);

		if (r) {
			bm_iscsi_drop(s);
			return r < 0 ? r : 0;
		}
		d->sessions++;
	}
	return 0;
}

struct iscsi *bm_iscsi_new(void)
{
	struct iscsi *d = calloc(1, sizeof(*d));

	if (!d)
		return NULL;
	d->dev.ops = &bm_iscsi_ops;
	bm_list_init(&d->free);
	bm_list_init(&d->flight);
	bm_list_init(&d->backoff);
	bm_list_init(&d->ended);
	bm_list_init(&d->limbo);
	bm_list_init(&d->waiting);
	for (int i = 0; i < ISCSI_MAX_SESSIONS; i++)
		d->session[i].iscsi = d;
	for (int i = 0; i < ISCSI_SLOTS; i++) {
		d->io[i].iscsi = d;
		bm_list_append(&d->free, &d->io[i].link);
	}
	return d;
}

int bm_iscsi_open(const struct bm_uri *uri, const struct bm_open_options *options,
		  struct bm_dev **dev, struct bm_error *error)
{
	struct iscsi *d = bm_iscsi_new();
	struct iscsi_opening o = {.iscsi = d, .uri = uri->text, .options = options, .error = error};
	int r;

	if (!d)
		return bm_fail_errno(error, ENOMEM, "cannot open the iSCSI unit");
	bm_uri_redact(uri->text, d->name, sizeof(d->name));
	r = bm_iscsi_prepare(&o);
	if (!r)
		r = open_first(&o);
	if (!r)
		r = open_more(&o);
	if (r < 0)
		bm_iscsi_free(d);
	/* Not before the context that it may still be queued in. */
	forget_task(&o);
	if (!r)
		*dev = &d->dev;
	return r;
}
