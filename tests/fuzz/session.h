/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client's view of the transmission phase: requests that it sends, each with a cookie of its own,
 * and the replies it got. Knows the protocol (proto.md, "Transmission phase") and nothing of the
 * server. Demanded is that every request whose whole message was sent is answered once, and no
 * other; that a reply has the form that was negotiated; and that what succeeds was allowed.
 */
#ifndef TESTS_FUZZ_SESSION_H
#define TESTS_FUZZ_SESSION_H

#include "tests/fuzz/host.h"
#include "tests/fuzz/talk.h"

enum { SESSION_MOST = 1000, SESSION_BYTES = 32 << 20 };

enum {
	CMD_READ,
	CMD_WRITE,
	CMD_DISC,
	CMD_FLUSH,
	CMD_TRIM,
	CMD_CACHE,
	CMD_WRITE_ZEROES,
	CMD_BLOCK_STATUS,
};
enum { FLAG_REQ_ONE = 8, FLAG_PAYLOAD_LEN = 32 };

struct asked {
	uint16_t type, flags;
	uint64_t offset, length, got;
	unsigned contexts; /* BLOCK_STATUS: those that it is about, a bit each; 0: it cannot be */
	unsigned status;   /* those that were told */
	bool whole;        /* all of it was sent */
	bool answered, failed;
};

struct session {
	struct host *host;
	struct talk talk;
	bool loose;           /* the server may close before it has answered all */
	unsigned dirty, gone; /* HOST_DIRTY; contexts that were removed, a bit each */
	/* What is said of a part of the export, in one of the selected contexts. NULL is allowed */
	void (*check_extent)(unsigned context, uint64_t offset, uint64_t length, uint32_t flags);
	unsigned count;
	uint64_t bytes; /* read and written */
	struct asked asked[SESSION_MOST];
};

struct message {
	uint16_t type, flags;
	uint64_t offset, length;
	bool wrong_magic;
	struct input *input; /* where the payload comes from; NULL: it is made up */
};

/*
 * Negotiates: bit 0 structured replies, 1 extended headers, 2 base:allocation, 3 EXPORT_NAME,
 * 4 HOST_DIRTY, 5 HOST_OTHER.
 */
void session_open(struct session *session, struct host *host, unsigned what);

/* Bytes of a request's header. */
size_t session_header(const struct session *session);

/* The server has HOST_DIRTY no more: who asks for it from now on fails. */
void session_remove_dirty(struct session *session);

/* Whether more may be sent. */
bool session_ask(struct session *session, const struct message *message);

/*
 * A BLOCK_STATUS with a payload, under extended headers: the message's length is what is asked
 * about. what: 1, 2, 4 in that context, 8 in the first one once more, 16 in one that was not
 * selected, 32 the list is cut short, 64 so is the message.
 */
bool session_query(struct session *session, const struct message *message, unsigned what);

/* All that was said is there. */
void session_check(struct session *session);

#endif
