/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * When to stop the guest: (dirty RAM + disk residue) / bandwidth + fixed cost ≤ budget, and what
 * to do when that never comes. Numbers in, a verdict out: no clock, no I/O.
 */
#ifndef BM_RAM_PRECOPY_RULE_H
#define BM_RAM_PRECOPY_RULE_H

#include "blockmirror/precopy.h"

enum bm_verdict {
	BM_VERDICT_GO_ON,
	BM_VERDICT_PAUSE,  /* what is left fits the budget */
	BM_VERDICT_FORCE,  /* pause, though it does not */
	BM_VERDICT_CANCEL, /* it does not converge */
	BM_VERDICT_LATE    /* the time is up */
};

struct bm_rule {
	/* Set by the caller, at any time. */
	uint64_t budget;  /* ns that the pause may take */
	uint64_t fixed;   /* ns of it that depend on no bytes */
	uint64_t timeout; /* ns for all rounds together; 0: none */
	uint64_t residue; /* bytes that disks have to send in the pause */
	enum bm_precopy_policy policy;

	/* The rule's own. */
	uint64_t began, left, bandwidth, sample_bytes, sample_ns;
	uint64_t not_before;                 /* when a pause may be tried again */
	unsigned stalls, throttle, retreats; /* rounds without gain; percent; pauses given up */
};

/* A copy begins, of so many bytes. The caller's part stays. */
void bm_rule_begin(struct bm_rule *rule, uint64_t now, uint64_t bytes);

/* So many bytes of RAM reached the peer in ns. */
void bm_rule_sent(struct bm_rule *rule, uint64_t bytes, uint64_t ns);

/* The pause, if bytes of RAM were left; UINT64_MAX: nothing is known of the link yet. */
uint64_t bm_rule_predict(const struct bm_rule *rule, uint64_t bytes);

/* After a round, during which bytes became dirty. May raise throttle. */
enum bm_verdict bm_rule_judge(struct bm_rule *rule, uint64_t now, uint64_t bytes);

/* A pause was made: bytes were sent in it, and it took ns in all. */
void bm_rule_learn(struct bm_rule *rule, uint64_t bytes, uint64_t ns);

/* It was given up after ns, when it was seen that it would take too long. */
void bm_rule_retreat(struct bm_rule *rule, uint64_t now, uint64_t ns);

#endif
