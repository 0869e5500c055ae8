/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The way of a QEMU's migration stream from one host to the other: a sender beside the QEMU that
 * the machine leaves, a receiver beside the one that it goes to, connections between them. The
 * receiver's QEMU gets the very bytes that the sender's has sent, or its stream ends; and what it
 * answers goes back.
 *
 * Anything that fails ends everything: both QEMUs see their connections close, and the sender's
 * lets its guest go on, unless its SHUT was passed on before (the gate, docs/ram.md).
 *
 * The sender takes no more from its QEMU than the connections take from it, but for a bound
 * (bm_pace_window()): a QEMU believes that what it wrote is sent, and stops its guest by that.
 *
 * Loop thread only; nothing blocks. Events are called from the loop, never inside a call, and may
 * free what they are about. What is freed without an event having said DONE is dropped, which the
 * other end sees.
 */
#ifndef BM_RAM_RELAY_H
#define BM_RAM_RELAY_H

#include <stdbool.h>

#include "blockmirror/base/transport.h"
#include "blockmirror/loop.h"
#include "blockmirror/ram/codec.h"
#include "blockmirror/ram/pace.h"

struct bm_cap;
struct bm_sender;
struct bm_receiver;

enum bm_relay_event {
	BM_RELAY_HELD,  /* sender: the target's QEMU has loaded all, and its SHUT is held */
	BM_RELAY_DONE,  /* all is over, and in order */
	BM_RELAY_FAILED /* nothing goes any more; error says why. The last event, like DONE */
};

struct bm_relay_setup {
	struct bm_loop *loop;
	int qemu;              /* a unix socket of it; taken over */
	uint8_t id[BM_RAM_ID]; /* the move's, the same at both ends */
	unsigned links;        /* how many connections there are, 1 to BM_RAM_LINKS */
	uint64_t silence;      /* ns that the other end may say nothing; 0: 1.5 s */
	size_t cache;          /* sender: bytes of pages that both ends keep; receiver: at most */
	bool gate;             /* sender: a SHUT is held until bm_sender_open_gate() */
	enum bm_pace_mode compress; /* sender */
	struct bm_cap *cap;         /* sender: NULL, or what all of this host may send together */
	void (*event)(void *arg, enum bm_relay_event event, const struct bm_error *error);
	void *arg;
};

struct bm_relay_stats {
	uint64_t stream; /* sender: bytes that its QEMU sent; receiver: bytes that its QEMU took */
	uint64_t wire;   /* bytes on the connections, all told */
	uint64_t held;   /* sender: bytes of the stream that no connection has taken yet */
	uint64_t marked; /* sender: bytes of the stream since bm_sender_mark() */
	uint64_t rate;   /* sender: bytes of the stream that the connections take in a second, */
	uint64_t steady; /* and as far as one can reckon with it; 0: they were not waited for */
	uint64_t batches, compressed;
	struct bm_encoder_stats pages; /* sender */
	uint64_t sections;             /* sender: of RAM, complete */
	uint64_t device_at, held_at;   /* sender: when, by the loop's clock, what is behind the RAM
					  began to come, and when the SHUT came; 0: not yet */
	const char *why;               /* sender: why it no longer looks at the stream, or NULL; */
	uint64_t why_offset;           /* and from where on */
};

/*
 * Takes setup->qemu and the connections, which are sockets that lead to the receiver's, in the
 * order of its choice, when it returns 0. Nothing is read before all of them have answered.
 */
int bm_sender_new(const struct bm_relay_setup *setup, const struct bm_transport *links,
		  struct bm_sender **sender, struct bm_error *error);

/* Its memory goes when its workers have come to an end; the loop has to run until then. */
void bm_sender_free(struct bm_sender *s);

/*
 * Drops it: its sockets close now, and no event comes any more. Returns whether its workers have
 * ended, so that bm_sender_free() needs no loop.
 */
bool bm_sender_drop(struct bm_sender *s);

/* The SHUT passes, now or when it comes. Twice is once. */
void bm_sender_open_gate(struct bm_sender *s);

/*
 * The guest was stopped: what comes from now on adds to the pause. It does not wait for the cap any
 * more; others wait for it.
 */
void bm_sender_mark(struct bm_sender *s);

/*
 * All has to be at the other end at that time of the loop's clock; else the sender fails
 * (BM_E_BUDGET), as soon as it sees that what it holds will not be. 0: there is no such time.
 */
void bm_sender_deadline(struct bm_sender *s, uint64_t at);

void bm_sender_stats(const struct bm_sender *s, struct bm_relay_stats *stats);

/* The same for the other end. */
int bm_receiver_new(const struct bm_relay_setup *setup, const struct bm_transport *links,
		    struct bm_receiver **receiver, struct bm_error *error);
void bm_receiver_free(struct bm_receiver *r);
void bm_receiver_stats(const struct bm_receiver *r, struct bm_relay_stats *stats);

#endif
