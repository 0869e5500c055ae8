/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A server that our NBD client connects to, without a listener and without a second thread:
 * connect(2) is ours in this program, and gives the client one end of a socket pair in which all
 * that the server says in the handshake waits already. What it says then is the target's.
 */
#ifndef TESTS_FUZZ_PEER_H
#define TESTS_FUZZ_PEER_H

#include "tests/fuzz/fuzz.h"

enum { PEERS = 4, PEER_ASKED = 64, PEER_DATA = 1 << 16 };

struct peer_request {
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint32_t length;
};

struct peer {
	int fd;        /* -1: closed */
	uint64_t skip; /* of a payload */
	size_t used;   /* of header */
	uint8_t header[28];
	unsigned count; /* of requests that it got and has not answered, oldest first */
	struct peer_request asked[PEER_ASKED];
};

extern struct peer peers[PEERS];
extern unsigned peer_count;

/* What it says when a client connects; with bytes left out it is a server of few words. */
struct peer_words {
	struct input raw; /* where it has any: all that is said, and no more */
	bool structured, context, sizes, multi_conn_differs;
	uint64_t size;
	uint16_t flags;
	uint32_t block_minimum, block_preferred, block_maximum;
};

/* Nobody is connected; to those who will be, words are said. */
void peers_reset(const struct peer_words *words);

/* Whether a client that is still connecting waits for words that will not come. */
bool peers_exhausted(void);

/* Takes what the client sent: options, which nobody looks at, or requests. */
void peers_listen(bool handshake);

void peer_say(struct peer *peer, const void *bytes, size_t length);

/* answers.c: a well-formed answer to the oldest request; what an extent says comes from in. */
void peer_answer(struct peer *peer, uint32_t error, struct input *in, bool structured);

/* Any chunk, of the oldest request or another one, as in has it. */
void peer_any_chunk(struct peer *peer, struct input *in);

/* A number, big-endian; returns what follows it. */
uint8_t *peer_put(uint8_t *at, uint64_t value, unsigned bytes);

void peer_hang_up(struct peer *peer);

#endif
