// SPDX-License-Identifier: BSD-3-Clause
/*
 * The source's end: pages and messages into batches, batches over whichever connection is free. A
 * page is copied first, since the guest writes to it all the time, and the codec looks at it more
 * than once.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/ram/pipe_inside.h"

enum { PAGE_BITS = 12, MOST_WORKERS = 4, COMPRESS_LEAST = 1 << 10 };
_Static_assert(1u << PAGE_BITS == BM_RAM_PAGE, "the codec's pages are ours");

static struct pipe_batch *batch_of(struct bm_pipe *p, uint64_t number)
{
	return &p->batches[number % PIPE_BATCHES];
}

/* Compression, in a worker */

static void compress_run(struct bm_work *work)
{
	struct pipe_batch *b = bm_container(work, struct pipe_batch, work);
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	b->smaller = bm_batch_compress(b->zstd, &b->plain, &b->packed);
	clock_gettime(CLOCK_MONOTONIC, &to);
	b->ns = (uint64_t)((to.tv_sec - from.tv_sec) * 1000000000 + to.tv_nsec - from.tv_nsec);
}

static void compress_done(struct bm_work *work)
{
	struct pipe_batch *b = bm_container(work, struct pipe_batch, work);
	struct bm_pipe *p = b->pipe;

	p->working--;
	b->state = BATCH_READY;
	bm_pace_compressed(&p->pace, b->plain.used, b->ns);
	if (p->freed)
		bm_pipe_free_all(p);
	else
		bm_pipe_pump(p);
}

/* The batch that is being filled is full, or shall not wait. */
static void seal(struct bm_pipe *p)
{
	struct pipe_batch *b = batch_of(p, p->next_fill++);

	b->content = XXH3_64bits_digest(p->hash);
	b->smaller = false;
	b->state = BATCH_READY;
	if (b->plain.used < COMPRESS_LEAST || !bm_pace_compress(&p->pace, bm_loop_now(p->loop)))
		return;
	b->state = BATCH_WORKING;
	b->work.run = compress_run;
	b->work.done = compress_done;
	p->working++;
	bm_workers_submit(p->workers, p->loop, &b->work);
}

/* Whether there is a batch to fill, which is begun if it has to be. */
static bool have_batch(struct bm_pipe *p)
{
	struct pipe_batch *b = batch_of(p, p->next_fill);

	if (b->state == BATCH_FILLING)
		return true;
	if (b->state != BATCH_FREE || p->taken >= bm_pace_window(&p->pace) / BM_RAM_WEIGHT + 1)
		return false;
	b->state = BATCH_FILLING;
	p->taken++;
	bm_encoder_begin(p->encoder, &b->plain);
	XXH3_64bits_reset(p->hash);
	return true;
}

/* Messages go into batches; pages come behind them. */
static void encode_messages(struct bm_pipe *p)
{
	struct pipe_queue *q = &p->out;

	while (q->at < q->end && have_batch(p)) {
		size_t n = bm_encode_bytes(p->encoder, q->data + q->at, q->end - q->at);

		XXH3_64bits_update(p->hash, q->data + q->at, n);
		bm_queue_take(q, n);
		if (!n)
			seal(p);
	}
}

/* A region's name is its number: the decoder wants one before its first page. */
static bool name_region(struct bm_pipe *p, unsigned region)
{
	const char name = (char)('0' + region);

	if (p->named & 1ull << region)
		return true;
	if (!bm_encode_block(p->encoder, (uint16_t)region, &name, 1))
		return false;
	p->named |= 1ull << region;
	return true;
}

bool bm_pipe_page(struct bm_pipe *p, unsigned region, uint64_t index, const uint8_t *data)
{
	const struct bm_page page = {.block = (uint16_t)region, .index = index};

	encode_messages(p);
	if (p->dead || p->out.at < p->out.end || !have_batch(p)) {
		p->hungry = true;
		bm_pipe_pump(p);
		return false;
	}
	memcpy(p->page, data, BM_RAM_PAGE);
	while (!name_region(p, region) || !bm_encode_page(p->encoder, &page, p->page)) {
		seal(p);
		bm_pipe_pump(p);
		if (!have_batch(p)) {
			p->hungry = true;
			return false;
		}
	}
	bm_pipe_hash(p->hash, &page, p->page);
	p->pushed = false;
	return true;
}

/* Connections */

static struct bm_link *idle_link(struct bm_pipe *p)
{
	for (unsigned i = 1; i <= p->count; i++) {
		struct bm_link *link = &p->links[(p->last_link + i) % p->count];

		if (bm_link_idle(link))
			return link;
	}
	return NULL;
}

static const struct bm_batch *what_is_sent(const struct pipe_batch *b)
{
	return b->smaller ? &b->packed : &b->plain;
}

void bm_pipe_cap(struct bm_pipe *p, struct bm_cap *cap)
{
	p->cap = cap;
}

void bm_pipe_capped(struct bm_timer *timer)
{
	bm_pipe_pump(bm_container(timer, struct bm_pipe, capped));
}

/* Whether the cap lets that batch go; else the timer says when to ask again. */
static bool admitted(struct bm_pipe *p, const struct pipe_batch *b)
{
	uint64_t bytes = BM_RAM_HEADER + (uint64_t)what_is_sent(b)->used, again;

	if (bm_timer_armed(&p->capped))
		return false;
	if (!p->cap || bm_cap_admit(p->cap, bytes, bm_loop_now(p->loop), &again))
		return true;
	bm_timer_set(p->loop, &p->capped, again);
	return false;
}

static void send_batch(struct bm_pipe *p, struct bm_link *link)
{
	struct pipe_batch *b = batch_of(p, p->next_send);
	struct bm_ram_header header = {
		.type = BM_RAM_FRAME_BATCH,
		.flags = b->smaller ? BM_RAM_ZSTD : 0,
		.length = what_is_sent(b)->used,
		.plain = b->plain.used,
		.weight = b->plain.weight,
		.number = p->next_send++,
		.content = b->content,
	};

	b->state = BATCH_SENDING;
	p->on_link[link->number] = b;
	p->last_link = link->number;
	bm_link_send(link, &header, what_is_sent(b)->data, true);
}

/* A batch that is not full goes when it was asked for, or when a connection has nothing to do. */
static void seal_early(struct bm_pipe *p)
{
	const struct pipe_batch *b = batch_of(p, p->next_fill);

	if (p->pushed && b->state == BATCH_FILLING && b->plain.used)
		seal(p);
}

void bm_pipe_pump(struct bm_pipe *p)
{
	const struct pipe_batch *b;
	struct bm_link *link;
	bool waits, works;

	if (p->dead || p->greeted < p->count)
		return;
	encode_messages(p);
	seal_early(p);
	b = batch_of(p, p->next_send);
	while (p->next_send < p->next_fill && b->state == BATCH_READY && (link = idle_link(p)) &&
	       admitted(p, b)) {
		send_batch(p, link);
		b = batch_of(p, p->next_send);
	}
	waits = p->next_send < p->next_fill;
	works = waits && b->state == BATCH_WORKING;
	bm_pace_waits(&p->pace, bm_loop_now(p->loop), waits && !works,
		      works && p->hungry && idle_link(p));
	if (p->hungry && p->out.at == p->out.end && have_batch(p))
		bm_loop_soon(p->loop, &p->later);
}

void bm_pipe_source_idle(struct bm_link *link)
{
	struct bm_pipe *p = link->arg;
	struct pipe_batch *b = p->on_link[link->number];

	if (b) { /* else it was no batch */
		p->on_link[link->number] = NULL;
		b->state = BATCH_FREE;
		p->taken--;
		bm_pace_sent(&p->pace, what_is_sent(b)->used, b->plain.weight);
	}
	bm_pipe_pump(p);
}

static void make_hello(const struct bm_pipe *p, unsigned link, uint8_t *to)
{
	struct bm_ram_hello hello = {.link = (uint8_t)link,
				     .links = (uint8_t)p->count,
				     .page_bits = PAGE_BITS,
				     .slots = PIPE_SLOTS};

	memcpy(hello.id, p->id, BM_RAM_ID);
	bm_ram_hello_put(to, &hello);
}

void bm_pipe_greet(struct bm_pipe *p)
{
	const struct bm_ram_header header = {
		.type = BM_RAM_FRAME_HELLO, .length = BM_RAM_HELLO, .plain = BM_RAM_HELLO};
	uint8_t hello[BM_RAM_HELLO];

	for (unsigned i = 0; i < p->count; i++) {
		make_hello(p, i, hello);
		bm_link_send(&p->links[i], &header, hello, false);
	}
}

bool bm_pipe_source_frame(struct bm_link *link)
{
	struct bm_pipe *p = link->arg;
	uint8_t hello[BM_RAM_HELLO];
	struct bm_error error;

	make_hello(p, link->number, hello);
	if (link->greeted && link->header.type == BM_RAM_FRAME_BACK) {
		if (bm_pipe_hear(p, link->payload, link->header.length, &error) < 0)
			bm_pipe_fail(p, &error);
	} else if (link->greeted || link->header.type != BM_RAM_FRAME_HELLO) {
		bm_pipe_refuse(p, link, "a frame came out of turn");
	} else if (link->header.length != BM_RAM_HELLO ||
		   memcmp(link->payload, hello, BM_RAM_HELLO)) {
		bm_pipe_refuse(p, link, "it leads to another move");
	} else {
		link->greeted = true;
		p->greeted++;
		bm_pipe_pump(p);
	}
	return true;
}

int bm_pipe_make_sender(struct bm_pipe *p)
{
	long cores = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned workers = cores > MOST_WORKERS ? MOST_WORKERS : cores > 1 ? (unsigned)cores : 1;

	bm_pace_init(&p->pace, BM_PACE_AUTO, workers, bm_loop_now(p->loop));
	p->encoder = bm_encoder_new(PAGE_BITS, PIPE_SLOTS);
	p->workers = bm_workers_new(workers);
	if (!p->encoder || !p->workers)
		return -ENOMEM;
	for (unsigned i = 0; i < PIPE_BATCHES; i++) {
		struct pipe_batch *b = &p->batches[i];

		b->pipe = p;
		b->plain.data = malloc(BM_RAM_PAYLOAD);
		b->packed.data = malloc(BM_RAM_PAYLOAD);
		b->zstd = ZSTD_createCCtx();
		if (!b->plain.data || !b->packed.data || !b->zstd)
			return -ENOMEM;
	}
	return 0;
}
