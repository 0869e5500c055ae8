/* SPDX-License-Identifier: BSD-3-Clause */
/* How a server answers our NBD client, in good and in bad order. */
#include <string.h>

#include "tests/fuzz/peer.h"

static uint8_t *chunk(uint8_t *at, unsigned flags, unsigned type, uint64_t cookie, size_t length)
{
	at = peer_put(peer_put(peer_put(at, 0x668e33ef, 4), flags, 2), type, 2);
	return peer_put(peer_put(at, cookie, 8), length, 4);
}

static void say_simple(struct peer *peer, const struct peer_request *r, uint32_t error, bool data)
{
	static uint8_t said[16 + PEER_DATA];

	peer_put(peer_put(peer_put(said, 0x67446698, 4), error, 4), r->cookie, 8);
	peer_say(peer, said, 16 + (data && !error && r->length <= PEER_DATA ? r->length : 0));
}

static void say_status(struct peer *peer, const struct peer_request *r, struct input *in)
{
	uint8_t said[256], *at, count = input_u8(in);

	at = peer_put(chunk(said, count >> 7, 5, r->cookie, 4 + 8 * (count & 15)), 7, 4);
	for (unsigned i = 0; i < (count & 15); i++) {
		unsigned length = input_u16(in), flags = input_u8(in);

		at = peer_put(at, length << (flags >> 4), 4);
		at = peer_put(at, flags & 15, 4);
	}
	peer_say(peer, said, (size_t)(at - said));
}

void peer_answer(struct peer *peer, uint32_t error, struct input *in, bool structured)
{
	static uint8_t data[20 + 8 + PEER_DATA];
	struct peer_request r = {0};

	if (!peer->count)
		return;
	r = peer->asked[0];
	memmove(peer->asked, peer->asked + 1, --peer->count * sizeof(r));
	if (r.type == 7 && !error) {
		say_status(peer, &r, in);
	} else if (r.type == 0 && structured && r.length <= PEER_DATA && !error) {
		peer_put(chunk(data, 1, 1, r.cookie, 8 + r.length), r.offset, 8);
		peer_say(peer, data, 28 + r.length);
	} else if (structured) {
		peer_put(peer_put(chunk(data, 1, error ? 0x8001 : 0, r.cookie, error ? 6 : 0),
				  error, 4),
			 0, 2);
		peer_say(peer, data, error ? 26 : 20);
	} else {
		say_simple(peer, &r, error, r.type == 0);
	}
}

void peer_any_chunk(struct peer *peer, struct input *in)
{
	uint8_t said[20 + 256], flags = input_u8(in);
	unsigned type = input_u16(in), cookie = input_u8(in);
	size_t length = input_u8(in), there = length;
	const uint8_t *payload = input_take(in, &there);

	chunk(said, flags & 3, type, cookie || !peer->count ? cookie : peer->asked[0].cookie,
	      flags & 128 ? length << 8 : length);
	memset(said + 20, 0, length);
	memcpy(said + 20, payload, there);
	peer_say(peer, said, 20 + length);
}
