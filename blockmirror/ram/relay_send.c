/* SPDX-License-Identifier: BSD-3-Clause */
/* The sender as a whole: how it begins, what it hears of its connections, how it ends. */
#include "blockmirror/ram/relay_send.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>
#include <zstd.h>

#include "blockmirror/base/list.h"

enum { PAGE_BITS = 12, MOST_WORKERS = 4 };

static void on_event(struct bm_task *task)
{
	struct bm_sender *s = bm_container(task, struct bm_sender, event);
	bool done = s->over && !s->error.code;

	if (s->held && !s->told_held && !s->over) {
		s->told_held = true;
		s->setup.event(s->setup.arg, BM_RELAY_HELD, NULL);
	} else if (s->over && !s->told_over) {
		s->told_over = true;
		s->setup.event(s->setup.arg, done ? BM_RELAY_DONE : BM_RELAY_FAILED,
			       done ? NULL : &s->error);
	}
}

static void close_all(struct bm_sender *s)
{
	if (s->closed)
		return;
	s->closed = true;
	bm_watch_set(s->setup.loop, &s->watch, s->setup.qemu, 0);
	close(s->setup.qemu);
	bm_timer_clear(s->setup.loop, &s->tick);
	bm_timer_clear(s->setup.loop, &s->capped);
	for (unsigned i = 0; i < s->setup.links; i++)
		bm_link_close(&s->links[i]);
}

void bm_sender_finish(struct bm_sender *s)
{
	if (s->over)
		return;
	s->over = true;
	if (s->error.code)
		for (unsigned i = 0; i < s->setup.links; i++)
			bm_link_give_up(&s->links[i], s->error.text);
	close_all(s);
	bm_loop_soon(s->setup.loop, &s->event);
}

void bm_sender_fail(struct bm_sender *s, const struct bm_error *error)
{
	if (s->over)
		return;
	s->error = *error;
	bm_sender_finish(s);
}

void bm_sender_qemu_failed(struct bm_sender *s, int err, const char *what)
{
	struct bm_error error;

	bm_fail_errno(&error, err, "the source's QEMU: cannot %s", what);
	bm_sender_fail(s, &error);
}

/* Connections */

static void on_idle(struct bm_link *link)
{
	struct bm_sender *s = link->arg;

	bm_sender_sent(s, link->number);
	bm_sender_pump(s);
}

static void on_failed(struct bm_link *link, const struct bm_error *error)
{
	bm_sender_fail(link->arg, error);
}

static void refuse(struct bm_sender *s, const struct bm_link *link, const char *why)
{
	struct bm_error error;

	bm_fail(&error, BM_E_UNREACHABLE, "connection %u to the other host: %s", link->number, why);
	bm_sender_fail(s, &error);
}

static void greet(struct bm_sender *s, struct bm_link *link)
{
	if (link->header.length != BM_RAM_HELLO ||
	    memcmp(link->payload, s->hello[link->number], BM_RAM_HELLO) != 0) {
		refuse(s, link, "it leads to another move");
		return;
	}
	link->greeted = true;
	s->greeted++;
	bm_sender_pump(s);
}

static bool on_frame(struct bm_link *link)
{
	struct bm_sender *s = link->arg;

	if (!link->greeted && link->header.type == BM_RAM_FRAME_HELLO)
		greet(s, link);
	else if (link->greeted && link->header.type == BM_RAM_FRAME_BACK)
		return bm_sender_answered(s, link);
	else if (s->ended && link->header.type == BM_RAM_FRAME_END)
		bm_sender_finish(s);
	else
		refuse(s, link, "a frame came out of turn");
	return true;
}

static const struct bm_link_ops link_ops = {on_frame, on_idle, on_failed};

/* QEMU and time */

static void on_qemu(struct bm_watch *watch, uint32_t events)
{
	struct bm_sender *s = bm_container(watch, struct bm_sender, watch);

	if (events & EPOLLOUT)
		bm_sender_flush(s);
	bm_sender_pump(s);
}

static void on_tick(struct bm_timer *timer)
{
	struct bm_sender *s = bm_container(timer, struct bm_sender, tick);

	bm_timer_set(s->setup.loop, timer, bm_loop_now(s->setup.loop) + BM_LINK_TICK);
	bm_links_beat(s->links, s->setup.links, s->setup.silence, s->hello_wait);
	bm_sender_pump(s);
}

static void on_capped(struct bm_timer *timer)
{
	bm_sender_pump(bm_container(timer, struct bm_sender, capped));
}

/* The beginning */

static int make_batches(struct bm_sender *s)
{
	for (unsigned i = 0; i < SEND_BATCHES; i++) {
		struct send_batch *b = &s->batches[i];

		b->sender = s;
		b->plain.data = malloc(BM_RAM_PAYLOAD);
		b->packed.data = malloc(BM_RAM_PAYLOAD);
		b->zstd = ZSTD_createCCtx();
		if (!b->plain.data || !b->packed.data || !b->zstd)
			return -ENOMEM;
	}
	return 0;
}

static int make(struct bm_sender *s)
{
	uint32_t slots = (uint32_t)((s->setup.cache >> PAGE_BITS) > BM_RAM_SLOTS_MAX
					    ? BM_RAM_SLOTS_MAX
					    : s->setup.cache >> PAGE_BITS);
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned workers = cores > MOST_WORKERS ? MOST_WORKERS : cores > 1 ? (unsigned)cores : 1;

	for (unsigned i = 0; i < s->setup.links; i++) {
		struct bm_ram_hello hello = {.link = (uint8_t)i,
					     .links = (uint8_t)s->setup.links,
					     .page_bits = PAGE_BITS,
					     .slots = slots};

		memcpy(hello.id, s->setup.id, BM_RAM_ID);
		bm_ram_hello_put(s->hello[i], &hello);
	}
	bm_pace_init(&s->pace, s->setup.compress, workers, bm_loop_now(s->setup.loop));
	bm_stream_init(&s->stream);
	bm_return_init(&s->back);
	s->encoder = bm_encoder_new(PAGE_BITS, slots);
	s->workers = bm_workers_new(workers);
	s->in = malloc(SEND_INPUT);
	s->hash = XXH3_createState();
	if (!s->encoder || !s->workers || !s->in || !s->hash)
		return -ENOMEM;
	XXH3_64bits_reset(s->hash);
	return make_batches(s);
}

static int open_links(struct bm_sender *s, const struct bm_transport *links)
{
	struct bm_ram_header header = {
		.type = BM_RAM_FRAME_HELLO, .length = BM_RAM_HELLO, .plain = BM_RAM_HELLO};

	for (unsigned i = 0; i < s->setup.links; i++) {
		int r = bm_link_open(&s->links[i], s->setup.loop, &links[i], &link_ops, s);

		/* They are the caller's still. */
		if (r < 0) {
			while (i--) {
				s->links[i].transport = (struct bm_transport){.in = -1, .out = -1};
				bm_link_close(&s->links[i]);
			}
			return r;
		}
		s->links[i].number = i;
	}
	for (unsigned i = 0; i < s->setup.links; i++)
		bm_link_send(&s->links[i], &header, s->hello[i], false);
	return 0;
}

int bm_sender_new(const struct bm_relay_setup *setup, const struct bm_transport *links,
		  struct bm_sender **sender, struct bm_error *error)
{
	struct bm_sender *s = calloc(1, sizeof(*s));
	int r = -ENOMEM;

	if (!s)
		goto fail;
	s->setup = *setup;
	s->setup.silence = setup->silence ? setup->silence : BM_LINK_SILENCE;
	s->hello_wait = s->setup.silence > BM_LINK_HELLO ? s->setup.silence : BM_LINK_HELLO;
	s->gate_open = !setup->gate;
	s->event.run = on_event;
	s->watch.run = on_qemu;
	s->tick.run = on_tick;
	s->capped.run = on_capped;
	r = make(s);
	if (!r)
		r = bm_timer_set(setup->loop, &s->tick, bm_loop_now(setup->loop) + BM_LINK_TICK);
	/* Reserves its place, so that it cannot fail later. */
	if (!r)
		r = bm_timer_set(setup->loop, &s->capped, bm_loop_now(setup->loop));
	if (!r)
		r = open_links(s, links);
	if (r < 0)
		goto fail;
	*sender = s;
	return 0;
fail:
	if (s) {
		bm_timer_clear(setup->loop, &s->tick);
		bm_timer_clear(setup->loop, &s->capped);
		s->closed = true;
		bm_sender_released(s);
	}
	return bm_fail(error, BM_E_INTERNAL, "no memory to carry a machine's RAM");
}

void bm_sender_released(struct bm_sender *s)
{
	if (s->working)
		return;
	bm_workers_free(s->workers);
	for (unsigned i = 0; i < SEND_BATCHES; i++) {
		free(s->batches[i].plain.data);
		free(s->batches[i].packed.data);
		ZSTD_freeCCtx(s->batches[i].zstd);
	}
	bm_encoder_free(s->encoder);
	XXH3_freeState(s->hash);
	free(s->in);
	free(s);
}

void bm_sender_free(struct bm_sender *s)
{
	if (!s)
		return;
	s->freed = true;
	bm_sender_drop(s);
	bm_sender_released(s);
}

bool bm_sender_drop(struct bm_sender *s)
{
	s->over = s->told_over = true;
	close_all(s);
	bm_task_cancel(&s->event);
	return !s->working;
}

void bm_sender_mark(struct bm_sender *s)
{
	s->has_mark = true;
	s->marked = s->read;
	bm_sender_pump(s);
}

void bm_sender_deadline(struct bm_sender *s, uint64_t at)
{
	s->deadline = at;
}

void bm_sender_stats(const struct bm_sender *s, struct bm_relay_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	stats->stream = s->read;
	stats->held = s->read - s->sent;
	stats->marked = s->has_mark ? s->read - s->marked : 0;
	stats->rate = (uint64_t)s->pace.raw_rate;
	stats->steady = (uint64_t)bm_pace_steady(&s->pace);
	stats->batches = s->next_fill;
	stats->compressed = s->compressed;
	stats->pages = *bm_encoder_stats(s->encoder);
	stats->sections = s->stream.sections;
	stats->device_at = s->device_at;
	stats->held_at = s->held_at;
	stats->why = s->stream.why;
	stats->why_offset = s->stream.why_offset;
	for (unsigned i = 0; i < s->setup.links; i++)
		stats->wire += s->links[i].bytes_out;
}
