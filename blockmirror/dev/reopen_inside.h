/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The inside of a device that is opened again: reopen.c has the requests and the loss,
 * reopen_back.c the way back.
 */
#ifndef BM_DEV_REOPEN_INSIDE_H
#define BM_DEV_REOPEN_INSIDE_H

#include "blockmirror/dev/later.h"
#include "blockmirror/dev/reopen.h"
#include "blockmirror/dev/unflushed.h"

enum {
	SLOTS = 640, /* requests in flight; more wait */
	HELPERS = 32,
};
enum stage { UP, ENDING, WAITING, OPENING, CHECKING, REWRITING };

struct slot {
	struct bm_request sub;
	struct reopen *reopen;
	struct bm_request *rq;
	struct bm_list link; /* free */
	bool reserved;       /* room in unflushed */
	uint64_t stamp;      /* FLUSH: what it covers */
};

/* A request of our own: reads a sample, or writes a page again. */
struct helper {
	struct bm_request rq;
	struct reopen *reopen;
	const struct unflushed_sample *sample;
	const struct unflushed_page *page;
	unsigned from; /* the unit of the page to go on with */
	uint8_t *buffer;
	bool busy;
};

struct reopen {
	struct bm_dev dev;
	struct bm_dev *inner; /* NULL while it is lost */
	const struct bm_reopen_host *host;
	void *arg;
	enum bm_reopen_role role;
	enum stage stage;
	bool cancelled, closing;
	int latched; /* what the next flush of above has to be told */
	struct bm_reopen_status status;
	uint64_t timeout;
	struct bm_timer timeout_timer, attempt_timer;
	struct bm_task next; /* nothing of ours is in flight: the next stage */
	struct bm_later later;
	struct bm_list free, waiting;
	unsigned in_flight; /* all that is inside */
	struct unflushed unflushed;
	uint64_t stamp;
	/* Not all that was written is kept, until a flush of that stamp or a later one. */
	bool gap;
	uint64_t gap_stamp;
	struct bm_request flush; /* of our own, to make room and to close the gap */
	bool flushing;
	uint64_t flush_stamp;
	unsigned checked; /* samples */
	const struct unflushed_page *rewritten;
	bool failed; /* an attempt: see status.why */
	uint8_t *buffers;
	struct helper helper[HELPERS];
	struct slot slot[SLOTS];
};

/* reopen.c: something ended; what is next is done from the loop. */
void bm_reopen_go_on(struct reopen *r);
void bm_reopen_set_timeout_timer(struct reopen *r);
void bm_reopen_send_waiting(struct reopen *r);

/* reopen_back.c */
void bm_reopen_back_init(struct reopen *r);
void bm_reopen_wait_for_attempt(struct reopen *r);
void bm_reopen_attempt_failed(struct reopen *r, const char *why);
/* Goes on with what is on its way back. */
void bm_reopen_come_back(struct reopen *r);

#endif
