/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The transmission phase of the NBD server. Three bytes choose the host (host.h, HOST_…; 32: the
 * requests are raw, 64: the client leaves without a word), what is negotiated (session_open()), and
 * the seed of a shaky device. Requests follow: raw ones as they are on the wire, with their payload
 * (only the cookie is ours), else seven bytes each:
 *
 *   1  low half: the command, or 8 unknown, 9 the server is stopped, 10 it is waited for, 11 the
 *      context HOST_DIRTY goes away
 *      high half: 1 the flags are of the upper byte, 2 the magic is wrong, 4 PAYLOAD_LEN is not
 *      where it belongs, or a BLOCK_STATUS has a query (session_query()), 8 the offset is near 2^63
 *   1  flags
 *   1  units: of the offset (low half) and the length: bytes, sectors, 64 KiB, from the end
 *   2  offset
 *   2  length
 */
#include "tests/fuzz/session.h"

enum { RAW = 32, LEAVE = 64, STOP_SERVER = 9, WAIT = 10, REMOVE = 11 };
enum { UPPER_FLAGS = 16, WRONG_MAGIC = 32, WRONG_PAYLOAD = 64, FAR = 128 };

static uint64_t in_units(unsigned unit, uint64_t value, uint64_t end)
{
	switch (unit & 3) {
	case 0:
		return value;
	case 1:
		return value << 9;
	case 2:
		return value << 16;
	default:
		return end - value;
	}
}

static bool compact(struct session *s, struct input *in)
{
	unsigned what = input_u8(in), flags = input_u8(in), units = input_u8(in);
	uint64_t most = s->talk.extended ? UINT64_MAX : UINT32_MAX;
	struct message m = {.type = what & 15, .wrong_magic = what & WRONG_MAGIC};

	m.flags = (uint16_t)(what & UPPER_FLAGS ? flags << 8 : flags);
	m.offset = in_units(units, input_u16(in), s->talk.size) ^ (what & FAR ? 1ull << 63 : 0);
	m.length = in_units(units >> 4, input_u16(in), most) & most;
	if (m.type == STOP_SERVER) {
		host_stop(s->host);
		s->loose = true;
		return true;
	}
	if (m.type == WAIT) {
		host_rest(s->host);
		return true;
	}
	if (m.type == REMOVE) {
		session_remove_dirty(s);
		return true;
	}
	if (s->talk.extended && m.type == CMD_BLOCK_STATUS && what & WRONG_PAYLOAD)
		return session_query(s, &m, input_u8(in));
	if (s->talk.extended && (m.type == CMD_WRITE) == !(what & WRONG_PAYLOAD))
		m.flags |= FLAG_PAYLOAD_LEN;
	return session_ask(s, &m);
}

static uint64_t number(struct input *in, unsigned bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | input_u8(in);
	return value;
}

static bool raw(struct session *s, struct input *in)
{
	bool extended = s->talk.extended;
	uint64_t magic = number(in, 4);
	struct message m = {.input = in};

	m.wrong_magic = magic != (extended ? 0x21e41c71u : 0x25609513u);
	m.flags = input_u16(in);
	m.type = input_u16(in);
	number(in, 8); /* the cookie */
	m.offset = number(in, 8);
	m.length = number(in, extended ? 8 : 4);
	return session_ask(s, &m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct session session;
	struct input in = {data, size};
	unsigned options = input_u8(&in), what = input_u8(&in);
	struct host host;
	bool more = true;

	host_open(&host, options, input_u8(&in));
	session_open(&session, &host, what);
	while (more && in.left >= (options & RAW ? session_header(&session) : 7))
		more = options & RAW ? raw(&session, &in) : compact(&session, &in);
	if (options & LEAVE) {
		host_leave(&host);
	} else {
		host_finish(&host);
		session_check(&session);
	}
	host_close(&host);
	return 0;
}
