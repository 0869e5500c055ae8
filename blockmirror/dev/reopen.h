/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device whose backend is reached by a session, and is opened again when that is lost (a request
 * ends with -ENOTCONN): what is above sees requests that take longer. It owns the device inside.
 * The races and rules: docs/mirror.md, "Storage that is lost".
 */
#ifndef BM_DEV_REOPEN_H
#define BM_DEV_REOPEN_H

#include "blockmirror/blockdev.h"

enum bm_reopen_role {
	BM_REOPEN_FAIL,  /* a lost session is lost: the device as it is inside */
	BM_REOPEN_READY, /* the same; but what is not flushed is kept, for it may be HOLD soon */
	BM_REOPEN_HOLD   /* requests wait for the next session */
};

/* Called from the loop. */
struct bm_reopen_host {
	/* Open it again, off the loop, fenced; answer by bm_reopen_opened(), not before returning.
	 */
	void (*open)(void *arg);
	void (*event)(void *arg); /* lost, back, given up: see the status */
	/* The device is gone, and calls no more; nobody wants what is being opened. */
	void (*gone)(void *arg);
};

struct bm_reopen_status {
	bool lost;
	bool gave_up;   /* the time is over: requests fail, it is tried all the same */
	uint64_t since; /* ns on the loop's clock: lost since then */
	unsigned attempts, losses;
	uint64_t rewritten; /* bytes that were written again, in all */
	char why[200];      /* of the last attempt, or the loss */
};

/* inner is not started, and is taken over on success. Its role is FAIL. 0 or -ENOMEM. */
int bm_reopen_new(struct bm_dev *inner, const struct bm_reopen_host *host, void *arg,
		  struct bm_dev **dev);

void bm_reopen_set_role(struct bm_dev *dev, enum bm_reopen_role role);

/* How long requests wait for a next session (UINT64_MAX, the default: for ever), then -EIO. */
void bm_reopen_set_timeout(struct bm_dev *dev, uint64_t ns);

/* The answer to host->open(): inner, not started, is taken over; NULL: why not. */
void bm_reopen_opened(struct bm_dev *dev, struct bm_dev *inner, const char *why);

void bm_reopen_get_status(const struct bm_dev *dev, struct bm_reopen_status *status);

#endif
