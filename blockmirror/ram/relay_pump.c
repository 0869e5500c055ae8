/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The sender's data path. What comes from QEMU goes, in this order, through the input buffer, the
 * parser, a batch, perhaps a worker that compresses it, a connection. Batches are in a ring, by
 * number: those from next_send to next_fill wait to be sent; those before are on connections, or
 * free.
 *
 * Only the batch that is next may be sent, so that the receiver finds the one that it waits for at
 * the head of some connection, never behind one that waits.
 *
 * Nothing is read from QEMU while the window of batches is full. That is the back-pressure, all of
 * it: QEMU's own socket fills up, and it measures what the connections take.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/base/list.h"
#include "blockmirror/ram/relay_send.h"

enum { READS = 8 /* before others have their turn */ };

static struct send_batch *batch_of(struct bm_sender *s, uint64_t number)
{
	return &s->batches[number % SEND_BATCHES];
}

/* In a worker. */
static void compress_run(struct bm_work *work)
{
	struct send_batch *b = bm_container(work, struct send_batch, work);
	struct timespec begun, ended;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	b->smaller = bm_batch_compress(b->zstd, &b->plain, &b->packed);
	clock_gettime(CLOCK_MONOTONIC, &ended);
	b->ns = (uint64_t)(ended.tv_sec - begun.tv_sec) * 1000000000 + (uint64_t)ended.tv_nsec -
		(uint64_t)begun.tv_nsec;
}

static void compress_done(struct bm_work *work)
{
	struct send_batch *b = bm_container(work, struct send_batch, work);
	struct bm_sender *s = b->sender;

	s->working--;
	b->state = BATCH_READY;
	s->compressed += b->smaller;
	bm_pace_compressed(&s->pace, b->plain.used, b->ns);
	if (s->freed)
		bm_sender_released(s);
	else
		bm_sender_pump(s);
}

/* The batch that is being filled is full, or what is in it shall not wait. */
static void seal(struct bm_sender *s)
{
	struct send_batch *b = batch_of(s, s->next_fill++);

	b->content = XXH3_64bits_digest(s->hash);
	XXH3_64bits_reset(s->hash);
	b->smaller = false;
	b->state = BATCH_READY;
	if (b->plain.used < COMPRESS_LEAST ||
	    !bm_pace_compress(&s->pace, bm_loop_now(s->setup.loop)))
		return;
	b->state = BATCH_WORKING;
	s->working++;
	b->work.run = compress_run;
	b->work.done = compress_done;
	bm_workers_submit(s->workers, s->setup.loop, &b->work);
}

/* Whether there is a batch to fill, which is begun if it has to be. */
static bool have_batch(struct bm_sender *s)
{
	struct send_batch *b = batch_of(s, s->next_fill);

	if (b->state == BATCH_FILLING)
		return true;
	if (b->state != BATCH_FREE || s->taken >= bm_pace_window(&s->pace) / BM_RAM_WEIGHT)
		return false;
	b->state = BATCH_FILLING;
	s->taken++;
	bm_encoder_begin(s->encoder, &b->plain);
	return true;
}

/* Parses what is in the input buffer, as far as there are batches for it. */
static void parse(struct bm_sender *s)
{
	struct bm_error error;
	size_t at = 0;

	s->stalled = false;
	while (at < s->in_end) {
		size_t used;
		int r;

		s->stalled = !have_batch(s);
		if (s->stalled)
			break;
		r = bm_stream_parse(&s->stream, s->encoder, s->in + at, s->in_end - at, &used,
				    &error);
		if (r < 0) {
			bm_sender_fail(s, &error);
			return;
		}
		XXH3_64bits_update(s->hash, s->in + at, used);
		at += used;
		if (s->stream.why && !s->device_at)
			s->device_at = bm_loop_now(s->setup.loop);
		if (r == 1)
			seal(s);
		else if (s->eof && at < s->in_end)
			bm_stream_end(&s->stream);
		else
			break;
	}
	if (at && s->in_end > at)
		memmove(s->in, s->in + at, s->in_end - at);
	s->in_end -= at;
}

/*
 * A QEMU that closes its stream has ended its migration. Before the gate was opened that can only
 * be because it failed or was cancelled, and the other end must not take what it has for the whole.
 */
static void stream_ends(struct bm_sender *s)
{
	struct bm_error error;

	s->eof = true;
	if (!s->setup.gate || s->passed)
		return;
	bm_fail(&error, BM_E_CANCELLED,
		"the source's QEMU has closed its stream after %" PRIu64
		" bytes: its migration has failed or was cancelled",
		s->read);
	bm_sender_fail(s, &error);
}

/* False: there is nothing more now. */
static bool read_stream(struct bm_sender *s)
{
	ssize_t n = recv(s->setup.qemu, s->in + s->in_end, SEND_READ, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	/* A QEMU that dies with answers unread resets the connection. */
	if (n < 0 && errno != ECONNRESET) {
		bm_sender_qemu_failed(s, errno, "read its stream");
		return false;
	}
	if (n <= 0) {
		stream_ends(s);
		return false;
	}
	s->in_end += (size_t)n;
	s->read += (uint64_t)n;
	return true;
}

static struct bm_link *idle_link(struct bm_sender *s)
{
	/* Not always the first one, or it would have all the small ones. */
	for (unsigned i = 1; i <= s->setup.links; i++) {
		struct bm_link *link = &s->links[(s->last_link + i) % s->setup.links];

		if (bm_link_idle(link))
			return link;
	}
	return NULL;
}

static const struct bm_batch *what_is_sent(const struct send_batch *b)
{
	return b->smaller ? &b->packed : &b->plain;
}

static void send_batch(struct bm_sender *s, struct bm_link *link)
{
	struct send_batch *b = batch_of(s, s->next_send);
	struct bm_ram_header header = {
		.type = BM_RAM_FRAME_BATCH,
		.flags = b->smaller ? BM_RAM_ZSTD : 0,
		.length = what_is_sent(b)->used,
		.plain = b->plain.used,
		.weight = b->plain.weight,
		.number = s->next_send++,
		.content = b->content,
	};

	b->state = BATCH_SENDING;
	s->on_link[link->number] = b;
	s->last_link = link->number;
	bm_link_send(link, &header, what_is_sent(b)->data, true);
}

void bm_sender_sent(struct bm_sender *s, unsigned link)
{
	struct send_batch *b = s->on_link[link];

	if (!b)
		return; /* it was no batch */
	s->on_link[link] = NULL;
	b->state = BATCH_FREE;
	s->taken--;
	s->sent += b->plain.weight;
	bm_pace_sent(&s->pace, what_is_sent(b)->used, b->plain.weight);
}

/*
 * Whether the cap lets that many bytes go; else the timer says when to ask again. A guest that is
 * stopped does not wait for it: what it would have to wait is taken from those who come after.
 */
static bool admitted(struct bm_sender *s, uint64_t bytes)
{
	uint64_t again;

	if (s->setup.cap && s->has_mark) {
		bm_cap_charge(s->setup.cap, bytes, bm_loop_now(s->setup.loop));
		return true;
	}
	if (bm_timer_armed(&s->capped))
		return false;
	if (!s->setup.cap || bm_cap_admit(s->setup.cap, bytes, bm_loop_now(s->setup.loop), &again))
		return true;
	bm_timer_set(s->setup.loop, &s->capped, again);
	return false;
}

static void send_batches(struct bm_sender *s)
{
	while (s->next_send < s->next_fill) {
		const struct send_batch *b = batch_of(s, s->next_send);
		struct bm_link *link = idle_link(s);

		if (b->state != BATCH_READY || !link || !admitted(s, what_is_sent(b)->used))
			return;
		send_batch(s, link);
	}
}

/* When all is gone, the other end is told that it was all. */
static void send_end(struct bm_sender *s)
{
	struct bm_ram_header header = {.type = BM_RAM_FRAME_END, .number = s->next_fill};

	if (!s->eof || s->in_end || s->taken || s->ended || !bm_link_idle(&s->links[0]))
		return;
	s->ended = true;
	bm_link_send(&s->links[0], &header, NULL, false);
}

/* A batch that is not full goes when nothing else is to be sent. */
static void seal_early(struct bm_sender *s)
{
	const struct send_batch *b = batch_of(s, s->next_fill);

	if (b->state != BATCH_FILLING || !b->plain.used || s->stalled)
		return;
	if (s->eof ? !s->in_end : s->next_send == s->next_fill && idle_link(s) != NULL)
		seal(s);
}

/* The codec is waited for when QEMU has to wait, too: from a slow one it takes nothing. */
static void tell_pace(struct bm_sender *s)
{
	bool sends = s->next_send < s->next_fill;
	bool works = sends && batch_of(s, s->next_send)->state == BATCH_WORKING && idle_link(s);

	bm_pace_waits(&s->pace, bm_loop_now(s->setup.loop), (s->stalled || sends) && !works,
		      works && s->stalled);
}

/* What is held will take too long: better now than when the time is over. */
static void check_deadline(struct bm_sender *s)
{
	uint64_t now = bm_loop_now(s->setup.loop), left = s->read - s->sent;
	double ns = s->pace.raw_rate > 0 ? (double)left / s->pace.raw_rate * 1e9 : 0;
	struct bm_error error;

	if (!s->deadline || s->held || s->passed || (double)now + ns <= (double)s->deadline)
		return;
	bm_fail(&error, BM_E_BUDGET,
		"the pause would be longer than it may: %" PRIu64 " bytes of RAM are not sent yet, "
		"at %.0f bytes/s",
		left, s->pace.raw_rate);
	bm_sender_fail(s, &error);
}

static void set_watch(struct bm_sender *s)
{
	uint32_t events = s->stalled || s->eof ? 0 : EPOLLIN;

	if (s->answer_at < s->answer_end)
		events |= EPOLLOUT;
	if (events != s->watch.events)
		bm_watch_set(s->setup.loop, &s->watch, s->setup.qemu, events);
}

void bm_sender_pump(struct bm_sender *s)
{
	if (s->over || s->greeted < s->setup.links)
		return;
	parse(s);
	for (int i = 0; i < READS && !s->stalled && !s->eof && !s->over; i++) {
		if (!read_stream(s))
			break;
		parse(s);
	}
	if (!s->over && s->eof)
		parse(s);
	if (s->over)
		return;
	seal_early(s);
	send_batches(s);
	send_end(s);
	tell_pace(s);
	check_deadline(s);
	if (!s->over)
		set_watch(s);
}
