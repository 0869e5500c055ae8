/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One end of a relay (relay.h) in a thread of its own, with a loop of its own, for a program that
 * goes through a protocol step by step and blocks. Any thread may call these, but for start and
 * stop; none of them blocks for longer than it says.
 */
#ifndef BM_RAM_RELAY_THREAD_H
#define BM_RAM_RELAY_THREAD_H

#include "blockmirror/ram/relay.h"

struct bm_relay;

/* In the order in which they come about. */
enum bm_relay_state {
	BM_RELAY_RUNS,
	BM_RELAY_HOLDS, /* the sender's gate is shut, and the target has all */
	BM_RELAY_OVER,  /* done or failed */
};

/*
 * Of setup, loop, event and arg are not used. The sockets are taken over, and closed when it fails.
 */
int bm_relay_start(bool sender, const struct bm_relay_setup *setup,
		   const struct bm_transport *links, struct bm_relay **relay,
		   struct bm_error *error);

/* Drops what is not over, waits for the thread, frees. NULL is allowed. */
void bm_relay_stop(struct bm_relay *r);

/*
 * Waits until that state has come about, or a later one, or for ms; returns which it is. When it is
 * over, error says why it failed, or has the code BM_OK.
 */
enum bm_relay_state bm_relay_wait(struct bm_relay *r, enum bm_relay_state until, unsigned ms,
				  struct bm_error *error);

/* Of the sender, as those of relay.h. */
void bm_relay_open_gate(struct bm_relay *r);
void bm_relay_mark(struct bm_relay *r);
void bm_relay_deadline(struct bm_relay *r, uint64_t ns); /* from now on; 0: none */

/* No older than a tenth of a second. */
void bm_relay_stats(struct bm_relay *r, struct bm_relay_stats *stats);

#endif
