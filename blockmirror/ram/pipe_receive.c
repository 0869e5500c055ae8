// SPDX-License-Identifier: BSD-3-Clause
/*
 * The target's end. A batch that has come whole waits on its connection, which is not read
 * meanwhile, until it is the next. Its pages go straight to where they belong, and what the batch
 * was is held against its hash behind that: when it differs the pipe has failed, and memory that
 * was filled by a pipe that failed is of no use to anybody.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "blockmirror/ram/pipe_inside.h"

/* One batch that is taken apart. */
struct reading {
	struct bm_pipe *pipe;
	struct bm_error *error;
};

static int on_bytes(void *arg, const uint8_t *data, size_t length)
{
	struct reading *r = arg;

	XXH3_64bits_update(r->pipe->hash, data, length);
	return bm_pipe_hear(r->pipe, data, length, r->error);
}

static int on_page(void *arg, const struct bm_page *page, const uint8_t *data)
{
	struct reading *r = arg;

	bm_pipe_hash(r->pipe->hash, page, data);
	return r->pipe->ops->page(r->pipe->arg, page->block, page->index, data, r->error);
}

static int on_fill(void *arg, const struct bm_page *first, uint64_t count, uint8_t value)
{
	struct reading *r = arg;

	(void)first, (void)value;
	return bm_fail(r->error, BM_E_UNREACHABLE,
		       "the source fills %llu pages, which a native machine never does",
		       (unsigned long long)count);
}

static const struct bm_decoder_ops decoder_ops = {on_bytes, on_page, on_fill, NULL};

static int build(struct bm_pipe *p, const struct bm_link *link, struct bm_error *error)
{
	const struct bm_ram_header *h = &link->header;
	const uint8_t *payload = link->payload;
	struct reading reading = {p, error};
	int r = 0;

	if (h->flags & BM_RAM_ZSTD) {
		r = bm_batch_expand(p->unzstd, payload, h->length, p->plain, h->plain, error);
		payload = p->plain;
	}
	XXH3_64bits_reset(p->hash);
	if (!r)
		r = bm_decode(p->decoder, payload, h->plain, h->weight, &decoder_ops, &reading,
			      error);
	if (!r && XXH3_64bits_digest(p->hash) != h->content)
		r = bm_fail(error, BM_E_DIFFERED,
			    "batch %llu of RAM came out as something else than was sent",
			    (unsigned long long)h->number);
	return r;
}

static struct bm_link *next_link(struct bm_pipe *p)
{
	for (unsigned i = 0; i < p->count; i++)
		if (p->links[i].held && p->links[i].header.number == p->number)
			return &p->links[i];
	return NULL;
}

void bm_pipe_next(struct bm_task *task)
{
	struct bm_pipe *p = bm_container(task, struct bm_pipe, next);
	struct bm_link *link = p->dead ? NULL : next_link(p);
	struct bm_error error;

	if (!link)
		return;
	if (build(p, link, &error) < 0) {
		bm_pipe_fail(p, &error);
		return;
	}
	p->number++;
	bm_link_resume(link);
	bm_loop_soon(p->loop, &p->next);
}

void bm_pipe_answer(struct bm_pipe *p)
{
	struct bm_ram_header header = {.type = BM_RAM_FRAME_BACK};
	struct pipe_queue *q = &p->out;
	size_t n = q->end - q->at < BM_LINK_OWN ? q->end - q->at : BM_LINK_OWN;

	if (!n || !p->back || !bm_link_idle(p->back))
		return;
	header.length = header.plain = (uint32_t)n;
	bm_link_send(p->back, &header, q->data + q->at, false);
	bm_queue_take(q, n);
}

void bm_pipe_target_idle(struct bm_link *link)
{
	bm_pipe_answer(link->arg);
}

static void greet(struct bm_pipe *p, struct bm_link *link)
{
	const struct bm_ram_header header = {
		.type = BM_RAM_FRAME_HELLO, .length = BM_RAM_HELLO, .plain = BM_RAM_HELLO};
	struct bm_ram_hello hello;
	struct bm_error error;

	if (bm_ram_hello_get(&hello, link->payload, link->header.length, &error) < 0) {
		bm_pipe_fail(p, &error);
		return;
	}
	if (memcmp(hello.id, p->id, BM_RAM_ID) || hello.links != p->count ||
	    p->seen & 1u << hello.link || 1u << hello.page_bits != BM_RAM_PAGE ||
	    hello.slots > PIPE_SLOTS) {
		bm_pipe_refuse(p, link, "it is of another move, or of another number of them");
		return;
	}
	if (!p->decoder)
		p->decoder = bm_decoder_new(hello.page_bits, hello.slots);
	if (!p->decoder) {
		bm_pipe_refuse(p, link, "no memory to keep pages for it");
		return;
	}
	p->seen |= 1u << hello.link;
	if (!hello.link)
		p->back = link;
	link->greeted = true;
	bm_link_send(link, &header, link->payload, false);
}

/* Numbers are those of batches that can be under way: one on each connection. */
bool bm_pipe_target_frame(struct bm_link *link)
{
	struct bm_pipe *p = link->arg;
	uint64_t number = link->header.number;

	if (!link->greeted && link->header.type == BM_RAM_FRAME_HELLO) {
		greet(p, link);
		return true;
	}
	if (!link->greeted || link->header.type != BM_RAM_FRAME_BATCH || number < p->number) {
		bm_pipe_refuse(p, link, "a frame came out of turn");
		return true;
	}
	bm_loop_soon(p->loop, &p->next);
	return false;
}

int bm_pipe_make_receiver(struct bm_pipe *p)
{
	p->plain = malloc(BM_RAM_PAYLOAD);
	p->unzstd = ZSTD_createDCtx();
	return p->plain && p->unzstd ? 0 : -ENOMEM;
}
