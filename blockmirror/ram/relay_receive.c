/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The receiver. A batch that has come whole waits on its connection, which is not read meanwhile,
 * until it is the next; then it is decompressed, decoded, held against the hash of what the sender
 * had, and only then given to QEMU. One batch at a time: what QEMU does not take holds back all.
 *
 * Of what it is told it believes nothing: see wire.c, decode.c. What it allocates is the cache, of
 * the size that the sender asks for and at most setup.cache, as it is touched, and a batch.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zstd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/list.h"
#include "blockmirror/ram/link.h"
#include "blockmirror/ram/relay.h"
#include "blockmirror/ram/stream.h"

/*
 * A QEMU that has loaded all says SHUT and closes its side, and then waits for as long as it takes.
 * One that closes it without has no return path, and the stream ends soon; or it has died.
 */
#define GRACE 2000000000ull

struct bm_receiver {
	struct bm_relay_setup setup;
	struct bm_link links[BM_RAM_LINKS];
	struct bm_link *back; /* the sender's first one: answers go there */
	uint32_t seen;        /* bits: which of the sender's connections */
	uint32_t slots;
	uint64_t hello_wait;
	struct bm_watch watch;
	struct bm_timer tick;
	struct bm_task event, next;

	struct bm_builder builder;
	uint8_t *plain; /* a batch, decompressed */
	void *zstd;
	size_t out_at; /* in what was built: what QEMU has taken */
	uint64_t number, taken, batches, compressed;

	uint8_t answer[BM_LINK_OWN];
	struct bm_return answers;
	bool loaded;          /* it has said SHUT */
	uint64_t qemu_closed; /* when */
	bool ended, answered, over, told_over, closed;
	struct bm_error error;
};

static void on_event(struct bm_task *task)
{
	struct bm_receiver *r = bm_container(task, struct bm_receiver, event);
	bool done = !r->error.code;

	if (r->told_over)
		return;
	r->told_over = true;
	r->setup.event(r->setup.arg, done ? BM_RELAY_DONE : BM_RELAY_FAILED,
		       done ? NULL : &r->error);
}

static void close_all(struct bm_receiver *r)
{
	if (r->closed)
		return;
	r->closed = true;
	bm_watch_set(r->setup.loop, &r->watch, r->setup.qemu, 0);
	close(r->setup.qemu);
	bm_timer_clear(r->setup.loop, &r->tick);
	bm_task_cancel(&r->next);
	for (unsigned i = 0; i < r->setup.links; i++)
		bm_link_close(&r->links[i]);
}

static void finish(struct bm_receiver *r)
{
	if (r->over)
		return;
	r->over = true;
	if (r->error.code)
		for (unsigned i = 0; i < r->setup.links; i++)
			bm_link_give_up(&r->links[i], r->error.text);
	close_all(r);
	bm_loop_soon(r->setup.loop, &r->event);
}

static void fail(struct bm_receiver *r, const struct bm_error *error)
{
	if (r->over)
		return;
	r->error = *error;
	finish(r);
}

static void fail_qemu(struct bm_receiver *r, int err, const char *what)
{
	struct bm_error error;

	bm_fail_errno(&error, err, "the target's QEMU: cannot %s", what);
	error.code = BM_E_QMP;
	fail(r, &error);
}

static void refuse(struct bm_receiver *r, const struct bm_link *link, const char *why)
{
	struct bm_error error;

	bm_fail(&error, BM_E_UNREACHABLE, "connection %u to the other host: %s", link->number, why);
	fail(r, &error);
}

/* QEMU's side */

static void set_watch(struct bm_receiver *r)
{
	bool answers = r->back && !r->qemu_closed && bm_link_idle(r->back);
	uint32_t events = answers ? EPOLLIN : 0;

	if (r->out_at < r->builder.used)
		events |= EPOLLOUT;
	if (!r->closed && events != r->watch.events)
		bm_watch_set(r->setup.loop, &r->watch, r->setup.qemu, events);
}

static void write_out(struct bm_receiver *r)
{
	while (r->out_at < r->builder.used && !r->over) {
		ssize_t n = send(r->setup.qemu, r->builder.data + r->out_at,
				 r->builder.used - r->out_at, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) {
			fail_qemu(r, errno, "give it the machine's state");
			return;
		}
		r->out_at += (size_t)n;
		r->taken += (uint64_t)n;
	}
}

/* What it says passes as it is; it is only listened for the SHUT. */
static void listen_in(struct bm_receiver *r, size_t length)
{
	uint8_t scratch[BM_LINK_OWN + 16];
	const uint8_t *data = r->answer;

	bm_return_pass(&r->answers, &data, &length, scratch);
	r->loaded |= r->answers.shut;
}

static void read_answer(struct bm_receiver *r)
{
	struct bm_ram_header header = {.type = BM_RAM_FRAME_BACK};
	ssize_t n;

	if (!r->back || r->qemu_closed || !bm_link_idle(r->back))
		return;
	n = recv(r->setup.qemu, r->answer, sizeof(r->answer), MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		r->qemu_closed = bm_loop_now(r->setup.loop);
		return;
	}
	listen_in(r, (size_t)n);
	header.length = header.plain = (uint32_t)n;
	bm_link_send(r->back, &header, r->answer, false);
}

/* Batches */

/* The batch on that connection is rebuilt. */
static int build(struct bm_receiver *r, const struct bm_link *link, struct bm_error *error)
{
	const struct bm_ram_header *h = &link->header;
	const uint8_t *payload = link->payload;
	int e;

	if (h->flags & BM_RAM_ZSTD) {
		e = bm_batch_expand(r->zstd, payload, h->length, r->plain, h->plain, error);
		if (e)
			return e;
		payload = r->plain;
		r->compressed++;
	}
	e = bm_stream_build(&r->builder, payload, h->plain, h->weight, error);
	if (e)
		return e;
	if (XXH3_64bits(r->builder.data, r->builder.used) == h->content)
		return 0;
	return bm_fail(error, BM_E_DIFFERED,
		       "batch %llu of RAM came out as something else than the source's QEMU had "
		       "sent",
		       (unsigned long long)h->number);
}

static void take_batch(struct bm_receiver *r, struct bm_link *link)
{
	struct bm_error error;

	r->out_at = r->builder.used = 0;
	if (build(r, link, &error) < 0) {
		fail(r, &error);
		return;
	}
	r->number++;
	r->batches++;
	bm_link_resume(link);
	write_out(r);
}

static void answer_end(struct bm_receiver *r)
{
	struct bm_ram_header header = {.type = BM_RAM_FRAME_END};

	if (!r->back || !bm_link_idle(r->back))
		return;
	r->answered = true;
	bm_link_send(r->back, &header, NULL, false);
}

static void take_end(struct bm_receiver *r, struct bm_link *link)
{
	r->ended = true;
	bm_link_resume(link);
	shutdown(r->setup.qemu, SHUT_WR);
	answer_end(r);
}

static struct bm_link *next_link(struct bm_receiver *r)
{
	for (unsigned i = 0; i < r->setup.links; i++) {
		struct bm_link *link = &r->links[i];

		if (link->open && link->held && link->header.number == r->number)
			return link;
	}
	return NULL;
}

/* Goes on with whatever is next, when QEMU has taken what was before. */
static void go_on(struct bm_receiver *r)
{
	struct bm_link *link;

	write_out(r);
	while (!r->over && !r->ended && r->out_at == r->builder.used && (link = next_link(r))) {
		if (link->header.type == BM_RAM_FRAME_END)
			take_end(r, link);
		else
			take_batch(r, link);
	}
	if (!r->over) {
		read_answer(r);
		set_watch(r);
	}
}

static void on_next(struct bm_task *task)
{
	go_on(bm_container(task, struct bm_receiver, next));
}

/* Connections */

static int make_decoder(struct bm_receiver *r, const struct bm_ram_hello *hello,
			const struct bm_link *link)
{
	struct bm_error error;

	if (hello->page_bits < BM_RAM_PAGE_BITS_MIN || hello->page_bits > BM_RAM_PAGE_BITS_MAX ||
	    hello->slots > r->setup.cache >> hello->page_bits) {
		refuse(r, link, "it wants pages, or a cache of them, that are too large");
		return -EPROTO;
	}
	r->slots = hello->slots;
	r->builder.decoder = bm_decoder_new(hello->page_bits, hello->slots);
	if (r->builder.decoder)
		return 0;
	bm_fail_errno(&error, ENOMEM, "cannot keep pages of the machine's RAM");
	fail(r, &error);
	return -ENOMEM;
}

static void greet(struct bm_receiver *r, struct bm_link *link)
{
	struct bm_ram_header header = {
		.type = BM_RAM_FRAME_HELLO, .length = BM_RAM_HELLO, .plain = BM_RAM_HELLO};
	struct bm_ram_hello hello;
	struct bm_error error;

	if (bm_ram_hello_get(&hello, link->payload, link->header.length, &error) < 0) {
		fail(r, &error);
		return;
	}
	if (memcmp(hello.id, r->setup.id, BM_RAM_ID) != 0 || hello.links != r->setup.links ||
	    r->seen & 1u << hello.link) {
		refuse(r, link, "it is of another move");
		return;
	}
	if (!r->builder.decoder && make_decoder(r, &hello, link) < 0)
		return;
	if (hello.slots != r->slots ||
	    hello.page_bits != bm_decoder_page_bits(r->builder.decoder)) {
		refuse(r, link, "it wants another cache than the first one");
		return;
	}
	r->seen |= 1u << hello.link;
	if (!hello.link)
		r->back = link;
	link->greeted = true;
	bm_link_send(link, &header, link->payload, false);
}

/* Numbers are those of batches that can be under way: at most one on each connection. */
static bool on_frame(struct bm_link *link)
{
	struct bm_receiver *r = link->arg;
	uint8_t type = link->header.type;

	if (!link->greeted && type == BM_RAM_FRAME_HELLO) {
		greet(r, link);
		return true;
	}
	if (!link->greeted || r->ended ||
	    (type != BM_RAM_FRAME_BATCH && type != BM_RAM_FRAME_END) ||
	    link->header.number < r->number) {
		refuse(r, link, "a frame came out of turn");
		return true;
	}
	bm_loop_soon(r->setup.loop, &r->next);
	return false;
}

static void on_idle(struct bm_link *link)
{
	struct bm_receiver *r = link->arg;

	if (r->answered && link == r->back)
		finish(r);
	else if (r->ended)
		answer_end(r);
	else
		go_on(r);
}

static void on_failed(struct bm_link *link, const struct bm_error *error)
{
	fail(link->arg, error);
}

static const struct bm_link_ops link_ops = {on_frame, on_idle, on_failed};

static void on_qemu(struct bm_watch *watch, uint32_t events)
{
	(void)events;
	go_on(bm_container(watch, struct bm_receiver, watch));
}

/*
 * Batches that wait for one that cannot come: all connections hold something else. A sender that
 * keeps to the order never brings that about.
 */
static bool waits_for_ever(struct bm_receiver *r)
{
	for (unsigned i = 0; i < r->setup.links; i++)
		if (!r->links[i].held)
			return false;
	return r->out_at == r->builder.used && !next_link(r);
}

static void on_tick(struct bm_timer *timer)
{
	struct bm_receiver *r = bm_container(timer, struct bm_receiver, tick);
	uint64_t now = bm_loop_now(r->setup.loop);

	bm_timer_set(r->setup.loop, timer, now + BM_LINK_TICK);
	bm_links_beat(r->links, r->setup.links, r->setup.silence, r->hello_wait);
	if (!r->over && waits_for_ever(r))
		refuse(r, &r->links[0], "the batch that is next is on none of them");
	if (r->qemu_closed && !r->loaded && !r->ended && now - r->qemu_closed > GRACE)
		fail_qemu(r, ECONNRESET, "go on: it has closed its connection");
}

/* The beginning */

static int make(struct bm_receiver *r)
{
	r->builder.data = malloc(BM_RAM_WEIGHT);
	r->plain = malloc(BM_RAM_PAYLOAD);
	r->zstd = ZSTD_createDCtx();
	return r->builder.data && r->plain && r->zstd ? 0 : -ENOMEM;
}

static void release(struct bm_receiver *r)
{
	bm_decoder_free(r->builder.decoder);
	free(r->builder.data);
	free(r->plain);
	ZSTD_freeDCtx(r->zstd);
	free(r);
}

int bm_receiver_new(const struct bm_relay_setup *setup, const struct bm_transport *links,
		    struct bm_receiver **receiver, struct bm_error *error)
{
	struct bm_receiver *r = calloc(1, sizeof(*r));
	unsigned opened = 0;

	if (!r)
		return bm_fail(error, BM_E_INTERNAL, "no memory to take a machine's RAM");
	r->setup = *setup;
	r->setup.silence = setup->silence ? setup->silence : BM_LINK_SILENCE;
	r->hello_wait = r->setup.silence > BM_LINK_HELLO ? r->setup.silence : BM_LINK_HELLO;
	r->event.run = on_event;
	r->next.run = on_next;
	r->watch.run = on_qemu;
	r->tick.run = on_tick;
	if (make(r) < 0 ||
	    bm_timer_set(setup->loop, &r->tick, bm_loop_now(setup->loop) + BM_LINK_TICK) < 0)
		goto fail;
	for (; opened < setup->links; opened++) {
		if (bm_link_open(&r->links[opened], setup->loop, &links[opened], &link_ops, r) < 0)
			goto fail;
		r->links[opened].number = opened;
	}
	*receiver = r;
	return 0;
fail:
	while (opened--) {
		/* They are the caller's still. */
		r->links[opened].transport = (struct bm_transport){.in = -1, .out = -1};
		bm_link_close(&r->links[opened]);
	}
	bm_timer_clear(setup->loop, &r->tick);
	release(r);
	return bm_fail(error, BM_E_INTERNAL, "no memory to take a machine's RAM");
}

void bm_receiver_free(struct bm_receiver *r)
{
	if (!r)
		return;
	r->over = true;
	close_all(r);
	bm_task_cancel(&r->event);
	release(r);
}

void bm_receiver_stats(const struct bm_receiver *r, struct bm_relay_stats *stats)
{
	memset(stats, 0, sizeof(*stats));
	stats->stream = r->taken;
	stats->batches = r->batches;
	stats->compressed = r->compressed;
	for (unsigned i = 0; i < r->setup.links; i++)
		stats->wire += r->links[i].bytes_out;
}
