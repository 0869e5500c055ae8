/* SPDX-License-Identifier: BSD-3-Clause */
/* A client for the tests of the NBD server: it speaks bytes, and knows nothing of that one's code.
 */
#ifndef TESTS_UNIT_NBD_CLIENT_H
#define TESTS_UNIT_NBD_CLIENT_H

#include "tests/unit/nbd_rig.h"

enum { EXPORT_NAME = 1, ABORT, LIST, STARTTLS = 5, INFO, GO, SR, LIST_META, SET_META, EXTENDED };
enum { READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS };
enum { FUA = 1, NO_HOLE = 2, DF = 4, REQ_ONE = 8, FAST_ZERO = 16, PAYLOAD_LEN = 32 };
enum { ACK = 1, REP_SERVER, REP_INFO, REP_META };
enum { NONE, DATA, BLOCK_STATUS = 5, BLOCK_STATUS_EXT, ERROR = 0x8001, ERROR_OFFSET, DONE = 1 };
#define UNSUP    0x80000001u
#define INVALID  0x80000003u
#define UNKNOWN  0x80000006u
#define TOO_BIG  0x80000009u
#define EXT_REQD 0x8000000au

/* What a session may have negotiated. */
enum mode { SIMPLE_REPLIES, STRUCTURED_REPLIES, EXTENDED_HEADERS, MODES };

struct client {
	struct rig *rig;
	int fd;
	bool structured; /* replies are chunks */
	bool extended;   /* … with extended headers, as requests are */
};

struct chunk {
	uint16_t flags, type;
	uint64_t cookie;
	uint64_t offset; /* extended: as in the request */
	uint32_t length;
	uint8_t *payload; /* valid until the next one */
};

/* Bytes */

static inline struct client client_new(struct rig *rig)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(nbd_server_accept_fd(rig->server, fds[0], fds[0]), 0);
	return (struct client){.rig = rig, .fd = fds[1]};
}

static inline void client_close(struct client *c)
{
	close(c->fd);
	turns(c->rig, 5);
}

static inline void put(struct client *c, const void *bytes, size_t length)
{
	for (size_t done = 0; done < length;) {
		ssize_t n = send(c->fd, (const uint8_t *)bytes + done, length - done,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		assert_true(n >= 0 || errno == EAGAIN);
		if (n < 0)
			turn(c->rig);
		else
			done += (size_t)n;
	}
}

/* Returns false at the end of the connection. */
static inline bool try_get(struct client *c, void *bytes, size_t length)
{
	int idle = 0;

	for (size_t done = 0; done < length;) {
		ssize_t n = recv(c->fd, (uint8_t *)bytes + done, length - done, MSG_DONTWAIT);

		if (n == 0 || (n < 0 && errno == ECONNRESET))
			return false;
		assert_true(n > 0 || errno == EAGAIN);
		if (n > 0) {
			done += (size_t)n;
			idle = 0;
			continue;
		}
		assert_true(++idle < 5000); /* an answer is owed */
		turn(c->rig);
	}
	return true;
}

static inline void get(struct client *c, void *bytes, size_t length)
{
	assert_true(try_get(c, bytes, length));
}

/* The server has closed the connection, and sent nothing more before that. */
static inline void expect_end(struct client *c)
{
	uint8_t byte;

	assert_false(try_get(c, &byte, 1));
}

static inline void expect_silence(struct client *c)
{
	uint8_t byte;

	turns(c->rig, 20);
	assert_int_equal(recv(c->fd, &byte, 1, MSG_DONTWAIT), -1);
	assert_int_equal(errno, EAGAIN);
}

static inline void put16(struct client *c, unsigned value)
{
	uint16_t wire = htobe16((uint16_t)value);

	put(c, &wire, sizeof(wire));
}

static inline void put32(struct client *c, uint32_t value)
{
	value = htobe32(value);
	put(c, &value, sizeof(value));
}

static inline void put64(struct client *c, uint64_t value)
{
	value = htobe64(value);
	put(c, &value, sizeof(value));
}

static inline uint16_t get16(struct client *c)
{
	uint16_t value;

	get(c, &value, sizeof(value));
	return be16toh(value);
}

static inline uint32_t get32(struct client *c)
{
	uint32_t value;

	get(c, &value, sizeof(value));
	return be32toh(value);
}

static inline uint64_t get64(struct client *c)
{
	uint64_t value;

	get(c, &value, sizeof(value));
	return be64toh(value);
}

/* The handshake */

static inline void option(struct client *c, uint32_t number, const void *data, size_t length)
{
	put(c, "IHAVEOPT", 8);
	put32(c, number);
	put32(c, (uint32_t)length);
	put(c, data, length);
}

/* One reply to an option: its type, and its payload's length (the payload has room for 8 KiB). */
static inline uint32_t option_reply(struct client *c, uint32_t number, uint8_t *payload,
				    uint32_t *length)
{
	uint32_t type;

	assert_int_equal(get64(c), 0x0003e889045565a9);
	assert_int_equal(get32(c), number);
	type = get32(c);
	*length = get32(c);
	assert_true(*length <= 8192);
	get(c, payload, *length);
	return type;
}

/* Reads replies to the last one, and returns its type. */
static inline uint32_t final_reply(struct client *c, uint32_t number)
{
	uint8_t payload[8192];
	uint32_t type, length;

	do {
		type = option_reply(c, number, payload, &length);
	} while (type != ACK && !(type & 0x80000000u));
	return type;
}

static inline void start(struct client *c, uint32_t flags)
{
	uint8_t greeting[18];

	get(c, greeting, sizeof(greeting));
	assert_memory_equal(greeting, "NBDMAGICIHAVEOPT\0\3", 18);
	put32(c, flags);
}

static inline size_t info_data(uint8_t *data, const char *name)
{
	uint32_t length = htobe32((uint32_t)strlen(name));

	memcpy(data, &length, 4);
	memcpy(data + 4, name, strlen(name));
	memset(data + 4 + strlen(name), 0, 2);
	return 4 + strlen(name) + 2;
}

/* SET_META_CONTEXT of one query, or LIST_. Returns the final reply; replies before it in *found. */
static inline uint32_t meta(struct client *c, uint32_t number, const char *name, const char *query,
			    unsigned *found, uint32_t *id)
{
	uint8_t payload[8192];
	uint32_t type, length;

	put(c, "IHAVEOPT", 8);
	put32(c, number);
	put32(c, (uint32_t)(4 + strlen(name) + 4 + (query ? 4 + strlen(query) : 0)));
	put32(c, (uint32_t)strlen(name));
	put(c, name, strlen(name));
	put32(c, query ? 1 : 0);
	if (query) {
		put32(c, (uint32_t)strlen(query));
		put(c, query, strlen(query));
	}
	for (*found = 0; (type = option_reply(c, number, payload, &length)) == REP_META; ++*found) {
		memcpy(id, payload, 4);
		*id = be32toh(*id);
		assert_int_equal(length, 4 + 15);
		assert_memory_equal(payload + 4, "base:allocation", 15);
	}
	return type;
}

static inline void go(struct client *c, const char *name)
{
	uint8_t data[300];

	option(c, GO, data, info_data(data, name));
	assert_int_equal(final_reply(c, GO), ACK);
}

/* A client in the transmission phase; but for simple replies with base:allocation, too. */
static inline struct client connected(struct rig *rig, const char *name, enum mode mode)
{
	struct client c = client_new(rig);
	unsigned found;
	uint32_t id;

	start(&c, 3);
	c.structured = mode != SIMPLE_REPLIES;
	c.extended = mode == EXTENDED_HEADERS;
	if (c.structured) {
		uint32_t number = c.extended ? EXTENDED : SR;

		option(&c, number, NULL, 0);
		assert_int_equal(final_reply(&c, number), ACK);
		assert_int_equal(meta(&c, SET_META, name, "base:allocation", &found, &id), ACK);
		assert_int_equal(found, 1);
	}
	go(&c, name);
	return c;
}

/* Transmission */

/* Returns what follows it. */
static inline uint8_t *pack_request(uint8_t *at, unsigned type, unsigned flags, uint64_t cookie,
				    uint64_t offset, uint32_t length)
{
	const uint64_t wire[] = {htobe64(0x25609513ull << 32 | flags << 16 | type), htobe64(cookie),
				 htobe64(offset)};

	memcpy(at, wire, sizeof(wire));
	length = htobe32(length);
	memcpy(at + sizeof(wire), &length, sizeof(length));
	return at + 28;
}

static inline void extended_request(struct client *c, unsigned type, unsigned flags,
				    uint64_t cookie, uint64_t offset, uint64_t length)
{
	const uint64_t wire[] = {htobe64(0x21e41c71ull << 32 | flags << 16 | type), htobe64(cookie),
				 htobe64(offset), htobe64(length)};

	put(c, wire, sizeof(wire));
}

/* In the form that was negotiated; the payload of a WRITE is announced as it should be. */
static inline void request(struct client *c, unsigned type, unsigned flags, uint64_t cookie,
			   uint64_t offset, uint32_t length)
{
	uint8_t bytes[28];

	if (c->extended) {
		flags |= type == WRITE ? PAYLOAD_LEN : 0;
		extended_request(c, type, flags, cookie, offset, length);
		return;
	}
	pack_request(bytes, type, flags, cookie, offset, length);
	put(c, bytes, sizeof(bytes));
}

static inline void payload(struct client *c, uint64_t offset, uint64_t length)
{
	static uint8_t part[65536];

	for (uint64_t done = 0, n; done < length; done += n) {
		n = length - done < sizeof(part) ? length - done : sizeof(part);
		for (uint64_t i = 0; i < n; i++)
			part[i] = pattern(offset + done + i);
		put(c, part, n);
	}
}

static inline void expect_data(struct client *c, uint64_t offset, uint64_t length)
{
	static uint8_t part[65536];

	for (uint64_t done = 0, n; done < length; done += n) {
		bool same = true;

		n = length - done < sizeof(part) ? length - done : sizeof(part);
		get(c, part, n);
		for (uint64_t i = 0; i < n; i++)
			same &= part[i] == pattern(offset + done + i);
		assert_true(same);
	}
}

static inline struct chunk get_chunk_header(struct client *c)
{
	struct chunk chunk = {0};

	assert_int_equal(get32(c), c->extended ? 0x6e8a278c : 0x668e33ef);
	chunk.flags = get16(c);
	chunk.type = get16(c);
	chunk.cookie = get64(c);
	if (c->extended) {
		chunk.offset = get64(c);
		assert_int_equal(get32(c), 0); /* no chunk is so long */
	}
	chunk.length = get32(c);
	return chunk;
}

/* A reply without content: a simple one, and in a session with extended headers an empty chunk. */
static inline void expect_simple(struct client *c, uint64_t cookie, uint32_t error)
{
	struct chunk chunk;

	if (c->extended) {
		assert_int_equal(error, 0);
		chunk = get_chunk_header(c);
		assert_int_equal(chunk.type, NONE);
		assert_int_equal(chunk.flags, DONE);
		assert_int_equal(chunk.cookie, cookie);
		assert_int_equal(chunk.length, 0);
		return;
	}
	assert_int_equal(get32(c), 0x67446698);
	assert_int_equal(get32(c), error);
	assert_int_equal(get64(c), cookie);
}

/* One chunk that is the whole answer. The payload is returned. */
static inline const uint8_t *expect_chunk(struct client *c, uint64_t cookie, unsigned type,
					  uint32_t length)
{
	static uint8_t bytes[2 * MIB];
	struct chunk chunk = get_chunk_header(c);

	assert_int_equal(chunk.type, type);
	assert_int_equal(chunk.cookie, cookie);
	assert_int_equal(chunk.flags, DONE);
	assert_int_equal(chunk.length, length);
	get(c, bytes, length);
	return bytes;
}

/* An error, in whichever form the session has. */
static inline void expect_error(struct client *c, uint64_t cookie, uint32_t error)
{
	uint8_t text[128];
	struct chunk chunk;
	uint16_t length;

	if (!c->structured) {
		expect_simple(c, cookie, error);
		return;
	}
	chunk = get_chunk_header(c);
	assert_int_equal(chunk.type, ERROR);
	assert_int_equal(chunk.cookie, cookie);
	assert_int_equal(chunk.flags, DONE);
	assert_int_equal(get32(c), error);
	length = get16(c);
	assert_int_equal(chunk.length, 6 + length);
	assert_true(length > 0 && length < sizeof(text)); /* a text for people */
	get(c, text, length);
}

#endif
