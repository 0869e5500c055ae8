/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How many bytes a second all processes of a host may send to others together: one page that they
 * share (RUN/cap), without a lock. Who sends takes his bytes' time out of what is left of it; who
 * finds none left comes again. It can be set at any time, by anybody who may write to the file.
 */
#ifndef BM_BASE_CAP_H
#define BM_BASE_CAP_H

#include <stdbool.h>
#include <stdint.h>

struct bm_cap; /* mapped */

/* Of RUN, created where it is not there. Blocks a little; any thread. 0 or -errno. */
int bm_cap_open(const char *run, struct bm_cap **cap);
void bm_cap_close(struct bm_cap *cap); /* NULL is allowed */

/* Bytes a second; 0: no limit. Any thread of any process. */
uint64_t bm_cap_rate(const struct bm_cap *cap);
void bm_cap_set(struct bm_cap *cap, uint64_t rate);

/*
 * Whether bytes may be sent now (ns of CLOCK_MONOTONIC); else *again is when to ask. What may be is
 * taken.
 */
bool bm_cap_admit(struct bm_cap *cap, uint64_t bytes, uint64_t now, uint64_t *again);

/* bytes are sent, whatever there is left: others wait for it. */
void bm_cap_charge(struct bm_cap *cap, uint64_t bytes, uint64_t now);

#endif
