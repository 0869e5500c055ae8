/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client's view of the handshake: what it sent and what it got, side by side. Knows the protocol
 * (proto.md, "Newstyle negotiation") and nothing of the server.
 */
#ifndef TESTS_FUZZ_TALK_H
#define TESTS_FUZZ_TALK_H

#include "tests/fuzz/fuzz.h"

enum { TALK_CONTEXTS = 8 };

struct talk {
	struct input sent, got; /* what was not looked at yet */
	bool no_zeroes, structured, extended;
	unsigned contexts; /* metadata contexts that the last SET_META_CONTEXT has selected */
	uint32_t context[TALK_CONTEXTS]; /* their ids */
	bool stopped;                    /* the connection ends here */
	bool violated;     /* ... for what the client did: also what was said before may be lost */
	bool cut;          /* something was not said */
	bool tls;          /* what follows is encrypted */
	bool transmission; /* ... or belongs to the transmission phase */
	unsigned options;
	uint64_t size;  /* of the chosen export */
	uint16_t flags; /* its transmission flags */
};

/* All there is to be seen of the handshake. Whether the server may say such things is demanded. */
void talk_follow(struct talk *talk);

#endif
