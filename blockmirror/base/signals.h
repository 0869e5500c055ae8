/* SPDX-License-Identifier: BSD-3-Clause */
/* Signals as events of a loop. Before threads are started, in the loop's thread. */
#ifndef BM_BASE_SIGNALS_H
#define BM_BASE_SIGNALS_H

#include "blockmirror/loop.h"

/* Embedded in who is told; zero before bm_signals_watch(). */
struct bm_signals {
	struct bm_watch watch;
	void (*run)(struct bm_signals *signals, int number); /* in the loop */
};

/*
 * From now on SIGTERM, SIGINT and, where it means something, SIGHUP are blocked, and told to run(),
 * which is set; SIGPIPE is ignored. Returns 0 or -errno.
 */
int bm_signals_watch(struct bm_signals *signals, struct bm_loop *loop, bool hangup);

/* What was never watched is left alone. The signals stay blocked. */
void bm_signals_close(struct bm_signals *signals, struct bm_loop *loop);

#endif
