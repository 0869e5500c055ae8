/* SPDX-License-Identifier: BSD-3-Clause */
/* A pipe's inside, for pipe.c, pipe_send.c and pipe_receive.c alone. */
#ifndef BM_RAM_PIPE_INSIDE_H
#define BM_RAM_PIPE_INSIDE_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/worker.h"
#include "blockmirror/ram/codec.h"
#include "blockmirror/ram/link.h"
#include "blockmirror/ram/pace.h"
#include "blockmirror/ram/pipe.h"

enum {
	PIPE_BATCHES = 16,
	PIPE_SLOTS = 1 << 14, /* pages that both ends keep: 64 MiB, touched as they are used */
	PIPE_HEAD = 5         /* of a message: kind, length (4) */
};

enum pipe_state { BATCH_FREE, BATCH_FILLING, BATCH_WORKING, BATCH_READY, BATCH_SENDING };

struct pipe_batch {
	struct bm_pipe *pipe;
	enum pipe_state state;
	struct bm_batch plain, packed;
	bool smaller; /* packed is what is sent */
	uint64_t content, ns;
	void *zstd;
	struct bm_work work;
};

/* Bytes that wait: of messages. */
struct pipe_queue {
	uint8_t *data;
	size_t at, end, room;
};

struct bm_pipe {
	struct bm_loop *loop;
	const struct bm_pipe_ops *ops;
	void *arg;
	bool source, dead, told, freed, hungry;
	unsigned count, greeted;
	struct bm_link links[BM_RAM_LINKS];
	struct bm_timer tick;
	struct bm_task later; /* ready() and failed(), which are never called inside a call */
	uint8_t id[BM_RAM_ID];
	struct bm_error error;
	struct pipe_queue out, in; /* messages: that are to go, and what has come of one */

	/* Source. */
	struct bm_encoder *encoder;
	struct pipe_batch batches[PIPE_BATCHES];
	struct pipe_batch *on_link[BM_RAM_LINKS];
	uint64_t next_fill, next_send;
	unsigned taken, working, last_link; /* batches that are not free; that a worker has */
	bool pushed;                        /* nothing is to wait for more */
	uint64_t named;                     /* bits: regions that the target knows */
	struct bm_workers *workers;
	struct bm_cap *cap; /* NULL: none */
	struct bm_timer capped;
	struct bm_pace pace;
	XXH3_state_t *hash; /* of what the batch that is filled stands for */
	uint8_t page[BM_RAM_PAGE];

	/* Target. */
	struct bm_decoder *decoder;
	struct bm_link *back; /* the source's first one: answers go there */
	struct bm_task next;
	uint32_t seen; /* bits: which of the source's connections */
	uint64_t number;
	uint8_t *plain; /* a batch, decompressed */
	void *unzstd;
};

/* pipe.c */
void bm_pipe_fail(struct bm_pipe *p, const struct bm_error *error);
void bm_pipe_refuse(struct bm_pipe *p, const struct bm_link *link, const char *why);
int bm_queue_add(struct pipe_queue *q, const void *data, size_t length);
void bm_queue_take(struct pipe_queue *q, size_t length);
/* Bytes of messages have come; hands out those that are whole. */
int bm_pipe_hear(struct bm_pipe *p, const uint8_t *data, size_t length, struct bm_error *error);
void bm_pipe_free_all(struct bm_pipe *p);

/* What a page adds to a batch's content: where it is, and what. */
static inline void bm_pipe_hash(XXH3_state_t *hash, const struct bm_page *page, const uint8_t *data)
{
	uint8_t at[10];

	bm_put16(at, page->block);
	bm_put64(at + 2, page->index);
	XXH3_64bits_update(hash, at, sizeof(at));
	XXH3_64bits_update(hash, data, BM_RAM_PAGE);
}

/* pipe_send.c */
int bm_pipe_make_sender(struct bm_pipe *p);
void bm_pipe_greet(struct bm_pipe *p); /* HELLO on all connections */
bool bm_pipe_source_frame(struct bm_link *link);
void bm_pipe_source_idle(struct bm_link *link);
void bm_pipe_pump(struct bm_pipe *p);
void bm_pipe_capped(struct bm_timer *timer);

/* pipe_receive.c */
int bm_pipe_make_receiver(struct bm_pipe *p);
bool bm_pipe_target_frame(struct bm_link *link);
void bm_pipe_target_idle(struct bm_link *link);
void bm_pipe_answer(struct bm_pipe *p);
void bm_pipe_next(struct bm_task *task);

#endif
