/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * iSCSI: the requests of a device that is logged in.
 *
 * libiscsi's callbacks run inside iscsi_service() or iscsi_destroy_context(): they only note the
 * status and move the request to `ended`; deliver() does the rest, later, from the loop.
 *
 * No reconnection. libiscsi could log in again and send all commands again without a word; but
 * what the target had acknowledged and not flushed may be gone by then, and the mirror above
 * would never hear of it. So a lost session takes the device with it, and so does a reset of the
 * unit (unit attention 29h) and a command that times out (it may be carried out at any time
 * later). The mirror opens the device again, with a fence, and starts over from what was not
 * flushed.
 *
 * Whose memory: until its command has ended at the target, libiscsi sends a write straight from
 * the caller's buffer and from the task. A command that fails or times out early can leave
 * DATA-OUT PDUs behind, in the queue, that still point to both. So neither is let go of before
 * libiscsi cannot touch them: the queue is empty (`limbo`, drained()), or the context is destroyed
 * (lose()). A callback may come twice (the queue's PDUs and the command's own time out each); the
 * second is ignored.
 */
#include "blockmirror/dev/iscsi.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/dev/open.h"

enum {
	SMALL = 64 << 10,
	BACKOFF_SHIFT_MAX = 9,
};
#define BACKOFF    5000000ull    /* ns, doubled with each try */
#define TICK       1000000000ull /* ns; libiscsi looks at its timeouts only when it is called */
#define TICK_NO_FD 100000000ull

_Static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLERR == POLLERR &&
		       EPOLLHUP == POLLHUP,
	       "epoll's events are passed to libiscsi as poll's");

static void start_waiting(struct iscsi *d);

/* The end of the device */

static void end(struct iscsi_io *io)
{
	struct iscsi *d = io->iscsi;

	bm_list_remove(&io->link);
	bm_list_append(&d->ended, &io->link);
	bm_loop_soon(d->dev.loop, &d->deliver);
}

static void end_all(struct bm_list *list)
{
	while (!bm_list_empty(list)) {
		struct iscsi_io *io = bm_container(list->next, struct iscsi_io, link);

		if (!io->answered) /* or it keeps the answer it got */
			io->status = SCSI_STATUS_CANCELLED;
		bm_timer_clear(io->iscsi->dev.loop, &io->timer);
		end(io);
	}
}

void bm_iscsi_drop(struct iscsi_session *s)
{
	if (s->context)
		iscsi_destroy_context(s->context);
	s->context = NULL;
}

static void drop_sessions(struct iscsi *d)
{
	for (unsigned i = 0; i < d->sessions; i++) {
		struct iscsi_session *s = &d->session[i];

		if (s->context && d->dev.loop)
			bm_watch_set(d->dev.loop, &s->watch, s->watch.fd, 0);
		bm_iscsi_drop(s);
	}
}

/* All that is in flight ends with error, once; so does all that comes later. */
static void lose(struct iscsi *d, int error)
{
	struct bm_list *node;

	if (d->dead)
		return;
	d->dead = error;
	bm_timer_clear(d->dev.loop, &d->tick);
	/* Destroyed first, ended then: from here on nobody reads or writes a buffer. */
	drop_sessions(d);
	end_all(&d->flight);
	end_all(&d->backoff);
	end_all(&d->limbo);
	while ((node = bm_list_take(&d->waiting)))
		bm_later_done(&d->later, bm_container(node, struct bm_request, link), error);
}

static void on_answer(struct iscsi_context *context, int status, void *data, void *user)
{
	struct iscsi_io *io = user;

	(void)context, (void)data;
	if (status == SCSI_STATUS_CANCELLED || status == (int)SCSI_STATUS_TIMEOUT)
		io->session->lost = true;
	if (io->answered)
		return;
	io->answered = true;
	io->status = status;
	io->session->load -= io->weight;
	end(io);
}

/* Sessions */

/* Whether libiscsi has nothing left to send, not even half a PDU. */
static bool drained(const struct iscsi_session *s)
{
	return !iscsi_out_queue_length(s->context) && !(iscsi_which_events(s->context) & POLLOUT);
}

/* Lets go of the failed writes that waited for this. */
static void leave_limbo(struct iscsi_session *s)
{
	struct iscsi *d = s->iscsi;

	if (bm_list_empty(&d->limbo) || !drained(s))
		return;
	bm_list_each_safe(node, &d->limbo) {
		struct iscsi_io *io = bm_container(node, struct iscsi_io, link);

		if (io->session == s)
			end(io);
	}
}

static void set_tick(struct iscsi *d, uint64_t in)
{
	bm_timer_set(d->dev.loop, &d->tick, bm_loop_now(d->dev.loop) + in);
}

static void rearm(struct iscsi_session *s)
{
	struct iscsi *d = s->iscsi;
	uint32_t events = (uint32_t)iscsi_which_events(s->context);
	int fd = iscsi_get_fd(s->context), r;

	if (!events)
		set_tick(d, TICK_NO_FD);
	/* The descriptor cannot change its identity: that happens when libiscsi reconnects. */
	if (s->watch.fd == fd && s->watch.events == events)
		return;
	r = bm_watch_set(d->dev.loop, &s->watch, fd, events);
	if (r < 0)
		lose(d, -ENOTCONN);
}

static void service(struct iscsi_session *s, uint32_t events)
{
	struct iscsi *d = s->iscsi;
	int r;

	if (!s->context)
		return;
	r = iscsi_service(s->context, (int)events);
	if (r < 0 || s->lost || iscsi_get_fd(s->context) < 0) {
		bm_log(BM_LOG_NOTICE, "%s: the session is lost: %s", d->name,
		       iscsi_get_error(s->context));
		lose(d, -ENOTCONN);
		return;
	}
	leave_limbo(s);
	rearm(s);
}

static void on_ready(struct bm_watch *watch, uint32_t events)
{
	service(bm_container(watch, struct iscsi_session, watch),
		events & (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP));
}

static void on_tick(struct bm_timer *timer)
{
	struct iscsi *d = bm_container(timer, struct iscsi, tick);

	set_tick(d, TICK);
	for (unsigned i = 0; i < d->sessions; i++)
		service(&d->session[i], 0);
}

/* What this turn of the loop has queued goes out at once, not after another wait. */
static void send_queued(struct bm_task *task)
{
	struct iscsi *d = bm_container(task, struct iscsi, send);

	for (unsigned i = 0; i < d->sessions; i++) {
		struct iscsi_session *s = &d->session[i];

		if (!s->queued)
			continue;
		s->queued = false;
		service(s, POLLOUT);
	}
}

/*
 * The first session is for what is small, so that a guest's 4 KiB write does not stand behind the
 * megabytes of a copy; the others share the bulk.
 */
static struct iscsi_session *choose(struct iscsi *d, uint64_t weight)
{
	struct iscsi_session *best = &d->session[d->sessions > 1];

	if (weight < SMALL)
		return &d->session[0];
	for (unsigned i = 2; i < d->sessions; i++)
		if (d->session[i].load < best->load)
			best = &d->session[i];
	return best;
}

static uint64_t weigh(const struct iscsi_io *io)
{
	if (io->flushing || io->rq->op == BM_FLUSH)
		return 0;
	/* Nobody waits for an extent, and finding it can take the target long. */
	return io->rq->op == BM_EXTENTS ? SMALL : io->rq->length;
}

static void issue(struct iscsi_io *io)
{
	struct iscsi *d = io->iscsi;
	struct iscsi_session *s;

	io->weight = weigh(io);
	io->session = s = choose(d, io->weight);
	io->answered = false;
	s->load += io->weight;
	bm_list_append(&d->flight, &io->link);
	io->task = bm_iscsi_send(io, on_answer);
	if (!io->task) { /* not queued, no callback */
		on_answer(s->context, SCSI_STATUS_ERROR, NULL, io);
		return;
	}
	s->queued = true;
	bm_loop_before_wait(d->dev.loop, &d->send);
}

static void backoff_over(struct bm_timer *timer)
{
	struct iscsi_io *io = bm_container(timer, struct iscsi_io, timer);

	bm_list_remove(&io->link);
	issue(io);
}

static void issue_later(struct iscsi_io *io)
{
	struct iscsi *d = io->iscsi;
	unsigned shift = io->tries < BACKOFF_SHIFT_MAX ? io->tries : BACKOFF_SHIFT_MAX;

	io->answered = false;
	io->timer.run = backoff_over;
	bm_list_append(&d->backoff, &io->link);
	if (bm_timer_set(d->dev.loop, &io->timer, bm_loop_now(d->dev.loop) + (BACKOFF << shift)) <
	    0)
		backoff_over(&io->timer);
}

/* Answers */

static void finish(struct iscsi_io *io, int result)
{
	struct iscsi *d = io->iscsi;
	struct bm_request *rq = io->rq;

	bm_list_push(&d->free, &io->link);
	start_waiting(d);
	rq->done(rq, result);
}

/* The command was carried out: the rest of the request, its flush, or its end. */
static void go_on(struct iscsi_io *io)
{
	const struct iscsi *d = io->iscsi;
	const struct bm_request *rq = io->rq;
	bool pieces = rq->op == BM_ZERO || rq->op == BM_TRIM;
	bool more = pieces && !io->flushing && io->end < rq->offset + rq->length &&
		    (rq->op == BM_ZERO || d->max_unmap);
	bool flush = (pieces || (rq->op == BM_WRITE && !d->can_fua)) && rq->flags & BM_FUA;

	if (!more && (!flush || io->flushing)) {
		finish(io, 0);
	} else if (d->dead) {
		finish(io, d->dead);
	} else {
		io->pos = io->end;
		io->flushing = !more;
		io->tries = 0;
		issue(io);
	}
}

static void fail(struct iscsi_io *io, int error)
{
	const struct iscsi *d = io->iscsi;
	struct bm_request *rq = io->rq;

	if (rq->op == BM_EXTENTS && !d->dead) {
		bm_iscsi_all_data(rq);
		error = 0;
	}
	if (rq->op == BM_TRIM && !io->flushing && !d->dead) /* a hint */
		error = 0;
	finish(io, error);
}

static void act(struct iscsi_io *io, enum iscsi_verdict verdict, int error)
{
	struct iscsi *d = io->iscsi;

	io->tries++;
	switch (verdict) {
	case ISCSI_SUCCESS:
		go_on(io);
		break;
	case ISCSI_RETRY:
		issue(io);
		break;
	case ISCSI_RETRY_LATER:
		issue_later(io);
		break;
	case ISCSI_REFUSED:
		if (bm_iscsi_do_without(io))
			issue(io);
		else
			fail(io, io->same ? -ENOTSUP : error);
		break;
	case ISCSI_FATAL:
		bm_log(BM_LOG_NOTICE, "%s: the unit was reset or has changed", d->name);
		lose(d, -ENOTCONN);
		fail(io, -ENOTCONN);
		break;
	case ISCSI_FAILURE:
		fail(io, error);
		break;
	}
}

static void deliver(struct bm_task *task)
{
	struct iscsi *d = bm_container(task, struct iscsi, deliver);
	struct bm_list batch, *node;

	/* The last one's done() may close the device. */
	bm_list_init(&batch);
	bm_list_move_all(&batch, &d->ended);
	while ((node = bm_list_take(&batch))) {
		struct iscsi_io *io = bm_container(node, struct iscsi_io, link);
		enum iscsi_verdict verdict;
		int error;

		if (io->sends && io->status != SCSI_STATUS_GOOD && !d->dead &&
		    !drained(io->session)) {
			bm_list_append(&d->limbo, &io->link);
			continue;
		}
		verdict = bm_iscsi_judge(io, &error);
		if (verdict == ISCSI_SUCCESS && io->rq->op == BM_EXTENTS)
			bm_iscsi_take_extents(io);
		if (io->task)
			scsi_free_scsi_task(io->task);
		io->task = NULL;
		act(io, verdict, error);
	}
}

/* Requests */

static void begin(struct iscsi *d, struct bm_request *rq)
{
	struct iscsi_io *io = bm_container(bm_list_take(&d->free), struct iscsi_io, link);

	io->rq = rq;
	io->pos = rq->offset;
	io->tries = 0;
	io->flushing = false;
	issue(io);
}

static void start_waiting(struct iscsi *d)
{
	struct bm_list *node;
	int result;

	/* Nothing new while something is in limbo: the queues have to run empty. */
	while (bm_list_empty(&d->limbo) && !bm_list_empty(&d->free) &&
	       (node = bm_list_take(&d->waiting))) {
		struct bm_request *rq = bm_container(node, struct bm_request, link);

		if (bm_iscsi_known(d, rq, &result))
			bm_later_done(&d->later, rq, result);
		else
			begin(d, rq);
	}
}

static void iscsi_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct iscsi *d = bm_container(dev, struct iscsi, dev);

	bm_list_append(&d->waiting, &rq->link);
	start_waiting(d);
}

/* The device */

static void iscsi_start(struct bm_dev *dev)
{
	struct iscsi *d = bm_container(dev, struct iscsi, dev);

	bm_later_init(&d->later, dev->loop);
	d->deliver.run = deliver;
	d->send.run = send_queued;
	d->tick.run = on_tick;
	set_tick(d, TICK);
	for (unsigned i = 0; i < d->sessions && !d->dead; i++) {
		d->session[i].watch.run = on_ready;
		rearm(&d->session[i]);
	}
}

static void iscsi_cancel(struct bm_dev *dev)
{
	struct iscsi *d = bm_container(dev, struct iscsi, dev);

	lose(d, -ECANCELED);
	d->dead = -ESHUTDOWN;
}

static void logged_out(struct iscsi_context *context, int status, void *data, void *user)
{
	(void)context, (void)status, (void)data, (void)user;
}

void bm_iscsi_free(struct iscsi *d)
{
	/* Goodbye, as far as the socket takes it; nobody waits for the answer. */
	for (unsigned i = 0; i < d->sessions; i++) {
		struct iscsi_context *context = d->session[i].context;

		if (!context || !iscsi_is_logged_in(context))
			continue;
		bm_abort_on_close(iscsi_get_fd(context), false);
		if (!iscsi_logout_async(context, logged_out, NULL))
			iscsi_service(context, POLLOUT);
	}
	drop_sessions(d);
	free(d);
}

static void iscsi_close(struct bm_dev *dev)
{
	struct iscsi *d = bm_container(dev, struct iscsi, dev);

	if (dev->loop) {
		assert(bm_list_empty(&d->flight) && bm_list_empty(&d->backoff) &&
		       bm_list_empty(&d->limbo) && bm_list_empty(&d->ended));
		bm_timer_clear(dev->loop, &d->tick);
		bm_task_cancel(&d->deliver);
		bm_task_cancel(&d->send);
		bm_later_fini(&d->later);
	}
	bm_iscsi_free(d);
}

const struct bm_dev_ops bm_iscsi_ops = {
	.name = "iscsi",
	.start = iscsi_start,
	.submit = iscsi_submit,
	.cancel = iscsi_cancel,
	.close = iscsi_close,
};
