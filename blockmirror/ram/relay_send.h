/* SPDX-License-Identifier: BSD-3-Clause */
/* The sender's inside, for relay_send.c, relay_pump.c and relay_back.c alone. */
#ifndef BM_RAM_RELAY_SEND_H
#define BM_RAM_RELAY_SEND_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/worker.h"
#include "blockmirror/ram/link.h"
#include "blockmirror/ram/relay.h"
#include "blockmirror/ram/stream.h"

enum {
	SEND_BATCHES = 32, /* what the widest window is made of */
	SEND_READ = 128 << 10,
	SEND_INPUT = BM_STREAM_ITEM_MAX + SEND_READ,
	COMPRESS_LEAST = 1 << 10, /* bytes */
};

enum batch_state { BATCH_FREE, BATCH_FILLING, BATCH_WORKING, BATCH_READY, BATCH_SENDING };

struct send_batch {
	struct bm_sender *sender;
	enum batch_state state;
	struct bm_batch plain, packed;
	bool smaller; /* packed is what is sent */
	uint64_t content, ns;
	void *zstd;
	struct bm_work work;
};

struct bm_sender {
	struct bm_relay_setup setup;
	struct bm_link links[BM_RAM_LINKS];
	struct send_batch *on_link[BM_RAM_LINKS];
	uint8_t hello[BM_RAM_LINKS][BM_RAM_HELLO];
	unsigned greeted, last_link;
	uint64_t hello_wait;

	struct bm_watch watch; /* of the QEMU */
	struct bm_timer tick, capped;
	struct bm_task event;

	uint8_t *in;
	size_t in_end;
	bool eof, stalled;
	struct bm_stream stream;
	struct bm_encoder *encoder;
	XXH3_state_t *hash; /* of what the batch that is filled stands for */

	struct send_batch batches[SEND_BATCHES];
	uint64_t next_fill, next_send;
	unsigned taken, working; /* batches that are not free; that a worker has */
	struct bm_workers *workers;
	struct bm_pace pace;

	struct bm_return back;
	uint8_t answer[BM_LINK_OWN + 16]; /* to QEMU: what it has not taken yet */
	size_t answer_at, answer_end;
	struct bm_link *answer_link; /* waits for that */
	bool gate_open, held, passed, closed;

	uint64_t read, sent, marked, deadline, compressed;
	uint64_t device_at, held_at;
	bool has_mark, ended, over, told_held, told_over, freed;
	struct bm_error error;
};

/* relay_send.c */
void bm_sender_fail(struct bm_sender *s, const struct bm_error *error);
void bm_sender_finish(struct bm_sender *s);
void bm_sender_released(struct bm_sender *s); /* its memory, when nothing uses it any more */
void bm_sender_qemu_failed(struct bm_sender *s, int err, const char *what);

/* relay_pump.c: whatever has changed, all that can be done is done. */
void bm_sender_pump(struct bm_sender *s);
void bm_sender_sent(struct bm_sender *s, unsigned link); /* what was on it is gone */

/* relay_back.c */
bool bm_sender_answered(struct bm_sender *s, struct bm_link *link); /* as bm_link_ops.frame */
void bm_sender_flush(struct bm_sender *s);

#endif
