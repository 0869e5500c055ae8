/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One connection that carries frames (wire.h), both ways, for relay_send.c and relay_receive.c and
 * whoever else has batches to send. One frame is sent at a time and one received; who holds the
 * received one back holds back the other host, and nobody else. Loop thread only, nothing blocks.
 * Memory is that of one payload, for what comes.
 */
#ifndef BM_RAM_LINK_H
#define BM_RAM_LINK_H

#include <stdbool.h>
#include <sys/uio.h>

#include "blockmirror/base/transport.h"
#include "blockmirror/loop.h"
#include "blockmirror/ram/wire.h"

enum {
	BM_LINK_OWN = 4096, /* bytes of a payload that it keeps itself */
};

/* What those who have links use, in ns: how often they look, speak, and how long they wait. */
#define BM_LINK_TICK    100000000ull
#define BM_LINK_BEAT    500000000ull
#define BM_LINK_SILENCE 1500000000ull
#define BM_LINK_ALONE   4
#define BM_LINK_HELLO   10000000000ull

struct bm_link;

struct bm_link_ops {
	/* A frame has come: link->header, link->payload. True: it is done with; false: it stays,
	   and nothing is read, until bm_link_resume(). */
	bool (*frame)(struct bm_link *link);
	/* What was sent is gone, and its payload the owner's again. */
	void (*idle)(struct bm_link *link);
	/* It is of no use any more; error says why. Once. */
	void (*failed)(struct bm_link *link, const struct bm_error *error);
};

struct bm_link {
	struct bm_loop *loop;
	struct bm_transport transport;
	const struct bm_link_ops *ops;
	unsigned number; /* the owner's */
	void *arg;       /* the owner's */
	bool greeted;    /* the owner's: its HELLO has come */

	bool open, held, dead;
	struct bm_watch watch;
	struct bm_task again; /* something is received already, and no event will tell */

	struct iovec out[2];
	uint8_t out_head[BM_RAM_HEADER], own[BM_LINK_OWN];
	bool sending;

	struct bm_ram_header header; /* of the frame that comes */
	uint8_t in_head[BM_RAM_HEADER];
	uint32_t have; /* bytes of it, header and payload */
	uint8_t *payload;

	uint64_t heard, said; /* when something came, or a frame was begun */
	uint64_t bytes_out;
};

/* The transport, which is one socket, is taken over when it returns 0. */
int bm_link_open(struct bm_link *link, struct bm_loop *loop, const struct bm_transport *transport,
		 const struct bm_link_ops *ops, void *arg);

/* Nothing is called any more. Twice is once. */
void bm_link_close(struct bm_link *link);

/* Whether a frame can be sent now. */
static inline bool bm_link_idle(const struct bm_link *link)
{
	return link->open && !link->dead && !link->sending;
}

/*
 * Sends a frame. The payload is kept by the caller until idle(), which is never called inside; or,
 * if it has no more than BM_LINK_OWN bytes and keep is false, copied.
 */
void bm_link_send(struct bm_link *link, const struct bm_ram_header *header, const uint8_t *payload,
		  bool keep);

/* The frame that was held is done with. */
void bm_link_resume(struct bm_link *link);

/*
 * The other host's silence, and ours, on all connections to it: to be called every BM_LINK_TICK.
 * Says something where nothing was said for BM_LINK_BEAT. It fails them when nothing was heard by
 * any of them for silence: on a way that has become slow TCP lets one of several wait for seconds,
 * and the others show that the host lives. One alone gets BM_LINK_ALONE times as much, and so do
 * all as long as some are held, which would not be heard. One that is not greeted yet is failed
 * after hello. All ns.
 */
void bm_links_beat(struct bm_link *links, unsigned count, uint64_t silence, uint64_t hello);

/* Tells the other host why we give up, if that can be done at once. Then bm_link_close(). */
void bm_link_give_up(struct bm_link *link, const char *why);

#endif
