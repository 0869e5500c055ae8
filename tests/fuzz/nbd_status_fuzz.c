/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the NBD server says of extents, compared with what its devices say: the export's own, and
 * that of two more metadata contexts. Devices answer in any order, and about less than they were
 * asked for. Two bytes choose the host (host.h, HOST_…) and what is negotiated (session_open()).
 * Two maps follow, of the export and of the other contexts: a byte with the number of their parts
 * and three bytes each,
 *
 *   1  the flags (low two bits), and the length's unit, 512 bytes << the rest
 *   2  the length
 *
 * then what is asked, eight bytes each:
 *
 *   1  flags: 1 REQ_ONE, 2 a query, 4 the context HOST_DIRTY goes away first, 8 the server is
 * waited for, 16 the length is one of 64 bits 1  what is queried (session_query()) 3  offset 3
 * length
 */
#include "tests/fuzz/session.h"

enum { OPTIONS = HOST_READ_ONLY | HOST_BLOCKS | HOST_LAZY | HOST_SLICES };
enum { ONE = 1, QUERY = 2, REMOVE = 4, WAIT = 8, LONG = 16, ASK = 8 };

static struct map maps[2];
static bool own_first; /* the first selected context is the export's own */

static uint64_t number(struct input *in, unsigned bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | input_u8(in);
	return value;
}

static void read_map(struct map *map, struct input *in)
{
	uint64_t end = 0;

	map->count = 1 + input_u8(in) % 64;
	for (unsigned i = 0; i < map->count; i++) {
		unsigned what = input_u8(in);

		end += (1 + number(in, 2)) * 512 << (what >> 2) % 8;
		map->part[i].end = end;
		map->part[i].flags = what & 3;
	}
}

static void check_extent(unsigned context, uint64_t offset, uint64_t length, uint32_t flags)
{
	const struct map *map = &maps[context || !own_first];

	for (unsigned i = 0; i < map->count && length; i++) {
		bool last = i + 1 == map->count;
		uint64_t part = last ? length : map->part[i].end - offset;

		if (!last && map->part[i].end <= offset)
			continue;
		part = part < length ? part : length;
		demand(map->part[i].flags == flags);
		offset += part;
		length -= part;
	}
	demand(!length);
}

static bool ask(struct session *s, struct input *in)
{
	unsigned what = input_u8(in), query = input_u8(in);
	struct message m = {.type = CMD_BLOCK_STATUS, .flags = what & ONE ? FLAG_REQ_ONE : 0};

	m.offset = number(in, 3);
	m.length = number(in, 3);
	if (what & LONG)
		m.length = s->talk.extended ? m.length << 39 : UINT32_MAX - m.length;
	if (what & REMOVE)
		session_remove_dirty(s);
	if (what & WAIT)
		host_rest(s->host);
	if (what & QUERY && s->talk.extended)
		return session_query(s, &m, query);
	return session_ask(s, &m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct session session;
	struct input in = {data, size};
	unsigned options = input_u8(&in), what = input_u8(&in);
	struct host host;
	bool more = true;

	read_map(&maps[0], &in);
	read_map(&maps[1], &in);
	own_first = what & 4;
	host_open(&host, HOST_SHAKY | (options & OPTIONS), 0);
	host.shaky.map = &maps[0];
	host.marks.map = &maps[1];
	session_open(&session, &host, what);
	session.check_extent = check_extent;
	while (more && in.left >= ASK)
		more = ask(&session, &in);
	host_finish(&host);
	session_check(&session);
	host_close(&host);
	return 0;
}
