/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD device against a server that says anything (peer.h). libnbd is inside and does the
 * framing; ours are the connecting, the geometry, the extents, and that every request ends once.
 *
 *   1  1 all of the input but three bytes is what the server says in the handshake, else: 2
 *      structured replies, 4 base:allocation, 8 block sizes, 16 read-only, 32 connections differ,
 *      64 the export's size, flags and block sizes follow (22 bytes), 128 it is one sector more
 *   1  connections
 *   1  how many requests are sent at first, five bytes each
 *
 * Then what happens, by the low half of a byte (the connection is in the high half): see act().
 */
#include <string.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/dev/open.h"
#include "tests/fuzz/peer.h"

enum { RAW = 1, STRUCTURED = 2, CONTEXT = 4, SIZES = 8, READ_ONLY = 16, DIFFER = 32, EXPORT = 64 };
enum { MOST = 64, EXTENTS = 8, TURNS = 1 << 14 };

struct client {
	struct bm_request rq;
	struct bm_extents extents;
	struct bm_extent extent[EXTENTS];
	bool ended;
};

static struct client clients[MOST];
static unsigned used, ended;
static struct bm_loop *loop;
static struct bm_dev *dev;

static uint64_t number(struct input *in, unsigned bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | input_u8(in);
	return value;
}

/* The contract of blockdev.h. */
static void check_extents(const struct client *c)
{
	uint64_t sum = 0;

	demand(c->extents.count >= 1 && c->extents.count <= EXTENTS);
	for (unsigned i = 0; i < c->extents.count; i++) {
		const struct bm_extent *e = &c->extent[i];

		demand(e->length && e->length <= c->rq.length - sum);
		demand(e->flags <= 3 && (!i || e->flags != e[-1].flags));
		demand(e->length % dev->geometry.block == 0);
		sum += e->length;
	}
}

static void done(struct bm_request *rq, int error)
{
	struct client *c = bm_container(rq, struct client, rq);

	demand(!c->ended && error <= 0);
	c->ended = true;
	ended++;
	if (rq->op == BM_EXTENTS && !error)
		check_extents(c);
	free(rq->data);
	rq->data = NULL;
}

/* Offset and length as the geometry allows. The memory is just as long as it has to be. */
static void submit(struct input *in)
{
	const struct bm_geometry *g = &dev->geometry;
	struct client *c = &clients[used];
	unsigned op = input_u8(in);
	uint64_t offset = input_u16(in) * (uint64_t)g->block, length;

	length = (1 + input_u16(in)) * (uint64_t)g->block;
	if (used == MOST)
		return;
	used++;
	offset %= g->size;
	length = length < g->size - offset ? length : g->size - offset;
	length = length < PEER_DATA && length < g->max_transfer ? length : g->block;
	memset(c, 0, sizeof(*c));
	c->extents = (struct bm_extents){.v = c->extent, .room = EXTENTS};
	c->rq = (struct bm_request){.op = op % BM_OPS, .flags = op >> 4 & 7, .done = done};
	if (c->rq.op != BM_FLUSH) {
		c->rq.offset = offset;
		c->rq.length = length;
	}
	c->rq.extents = &c->extents;
	if (c->rq.op <= BM_WRITE) {
		c->rq.data = calloc(1, length);
		demand(c->rq.data);
	}
	bm_submit(dev, &c->rq);
	demand(!c->ended);
}

static void turn(void)
{
	demand(bm_loop_turn(loop, 0) >= 0);
	peers_listen(false);
}

/* What happens */

static void act(struct input *in, bool structured)
{
	uint8_t what = input_u8(in);
	struct peer *peer = &peers[(what >> 4 & 3) % peer_count];
	const uint8_t *bytes;
	size_t length;

	switch (what & 7) {
	case 0:
	case 1:
		peer_answer(peer, what & 1 ? input_u8(in) : 0, in, structured);
		break;
	case 2:
		peer_any_chunk(peer, in);
		break;
	case 3:
		length = input_u8(in);
		bytes = input_take(in, &length);
		peer_say(peer, bytes, length);
		break;
	case 4:
		submit(in);
		break;
	case 5:
		turn();
		break;
	case 6:
		peer_hang_up(peer);
		break;
	default:
		if (what & 128)
			bm_dev_cancel(dev);
	}
	if (what & 8)
		turn();
}

/* The device */

/* Asked after each round: who waits for one more though all was said waits for ever. */
static bool interrupted(void *arg)
{
	unsigned *rounds = arg;

	return peers_exhausted() && ++*rounds % 2 == 0;
}

static struct peer_words choose_words(unsigned what, struct input *in)
{
	struct peer_words words = {.structured = what & STRUCTURED,
				   .context = what & CONTEXT,
				   .sizes = what & SIZES,
				   .multi_conn_differs = what & DIFFER,
				   .size = (1 << 20) + (what & 128 ? 512 : 0),
				   .flags = 0x97d,
				   .block_minimum = 512,
				   .block_preferred = 4096,
				   .block_maximum = 1 << 20};

	if (what & RAW)
		words = (struct peer_words){.raw = *in};
	if (what & RAW || !(what & EXPORT))
		return words;
	words.size = number(in, 8);
	words.flags = input_u16(in);
	words.block_minimum = (uint32_t)number(in, 4);
	words.block_preferred = (uint32_t)number(in, 4);
	words.block_maximum = (uint32_t)number(in, 4);
	return words;
}

static bool open_device(unsigned what, unsigned connections, struct input *in)
{
	unsigned rounds = 0;
	const struct bm_open_options options = {.read_only = what & READ_ONLY,
						.connections = 1 + connections % PEERS,
						.interrupted = interrupted,
						.arg = &rounds};
	struct peer_words words = choose_words(what, in);
	struct bm_error error = {0};

	peers_reset(&words);
	if (bm_dev_open("nbd+unix:///?socket=/nowhere", &options, &dev, &error)) {
		demand(error.code && *error.text);
		return false;
	}
	peers_listen(true);
	/* What a device promises (blockdev.h), whatever the server said. */
	demand(dev->geometry.size && dev->geometry.size % 512 == 0);
	demand(dev->geometry.size % dev->geometry.block == 0);
	demand(!(dev->geometry.block & (dev->geometry.block - 1)) && dev->geometry.block);
	demand(dev->geometry.max_transfer && dev->geometry.max_zero);
	demand(dev->geometry.max_transfer % dev->geometry.block == 0);
	demand(dev->geometry.max_zero % dev->geometry.block == 0);
	return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned what = input_u8(&in), connections = input_u8(&in), first = input_u8(&in);

	if (!loop) {
		bm_log_setup("fuzz", BM_LOG_ERROR - 1);
		loop = bm_loop_new();
		demand(loop);
	}
	used = ended = 0;
	if (open_device(what, connections, &in)) {
		bm_dev_start(dev, loop);
		for (first = what & RAW ? 0 : first % 16; first; first--)
			submit(&in);
		turn();
		while (in.left && !(what & RAW))
			act(&in, what & STRUCTURED);
		for (unsigned i = 0; i < peer_count; i++)
			peer_hang_up(&peers[i]);
		for (int turns = 0; ended < used; turns++) {
			demand(turns < TURNS);
			turn();
		}
		bm_dev_close(dev);
	}
	peers_reset(&(struct peer_words){0});
	return 0;
}
