/* SPDX-License-Identifier: BSD-3-Clause */
/* A client's view of the transmission phase. */
#include "tests/fuzz/session.h"

#include <string.h>

enum { DONE = 1, LONGEST_TEXT = 4096 };
enum { NONE, DATA, HOLE, STATUS = 5, STATUS_EXT = 6, ERROR = 0x8001, ERROR_OFFSET = 0x8002 };
#define SIMPLE     0x67446698u
#define STRUCTURED 0x668e33efu
#define EXTENDED   0x6e8a278cu
#define COOKIE     0xc00c1e00abcd0000u

static uint8_t *put(uint8_t *at, uint64_t value, unsigned bytes)
{
	while (bytes--)
		*at++ = (uint8_t)(value >> 8 * bytes);
	return at;
}

static uint64_t number(struct input *in, unsigned bytes)
{
	uint64_t value = 0;

	demand(in->left >= bytes);
	while (bytes--)
		value = value << 8 | input_u8(in);
	return value;
}

/* The handshake */

static uint8_t *option(uint8_t *at, unsigned what, size_t length)
{
	memcpy(at, "IHAVEOPT", 8);
	return put(put(at + 8, what, 4), length, 4);
}

/* SET_META_CONTEXT with those that what names. */
static uint8_t *select_contexts(struct session *s, uint8_t *at, unsigned what)
{
	static const char *const names[] = {"base:allocation", HOST_DIRTY, HOST_OTHER};
	unsigned chosen = (what >> 2 & 1) | (what >> 3 & 6);
	uint8_t *begin = at;

	if (!chosen)
		return at;
	at = put(put(option(at, 10, 0), 0, 4), (unsigned)__builtin_popcount(chosen), 4);
	for (unsigned i = 0; i < 3; i++) {
		if (!(chosen >> i & 1))
			continue;
		at = put(at, strlen(names[i]), 4);
		memcpy(at, names[i], strlen(names[i]));
		at += strlen(names[i]);
	}
	option(begin, 10, (size_t)(at - begin - 16));
	s->dirty = chosen & 2 ? 1u << (chosen & 1) : 0;
	return at;
}

void session_open(struct session *s, struct host *host, unsigned what)
{
	uint8_t sent[256], *at = put(sent, what & 8 ? 1 : 3, 4);

	memset(s, 0, sizeof(*s));
	s->host = host;
	if (what & 2)
		at = option(at, 11, 0);
	if (what & 1)
		at = option(at, 8, 0);
	at = select_contexts(s, at, what);
	/* After extended headers EXPORT_NAME is forbidden. */
	if (what & 8 && !(what & 2))
		at = option(at, 1, 0);
	else
		at = put(option(at, 7, 6), 0, 6);
	demand(host_send(host, sent, (size_t)(at - sent)));
	host_rest(host);
	s->talk.sent = (struct input){sent, (size_t)(at - sent)};
	s->talk.got = (struct input){host->output, host->got};
	talk_follow(&s->talk);
	demand(s->talk.transmission && !s->talk.got.left);
	demand(s->talk.size == host->dev->geometry.size);
	demand(!(what & 3) == !(s->talk.structured || s->talk.extended));
	demand(s->talk.contexts ==
	       (what & 3 ? (unsigned)__builtin_popcount(what & (4 | 16 | 32)) : 0));
}

void session_remove_dirty(struct session *s)
{
	nbd_server_remove_context(s->host->server, "", HOST_DIRTY);
	s->gone = s->dirty;
}

/* Requests */

size_t session_header(const struct session *s)
{
	return s->talk.extended ? 32 : 28;
}

static bool send_payload(struct session *s, const struct message *m)
{
	static const uint8_t made_up[1 << 16];
	uint64_t left = m->length;

	while (left) {
		size_t part = left < sizeof(made_up) ? left : sizeof(made_up);
		const uint8_t *bytes = m->input ? input_take(m->input, &part) : made_up;

		if (!part || !host_send(s->host, bytes, part))
			return false;
		left -= part;
	}
	return true;
}

static unsigned bit_of(const struct session *s, uint32_t id)
{
	for (unsigned i = 0; i < s->talk.contexts; i++)
		if (s->talk.context[i] == id)
			return 1u << i;
	return 0;
}

/* "64 bits, effect length; n * 32 bits, list of metacontext ids to use" */
static void take_query(const struct session *s, struct asked *a, const struct message *m)
{
	struct input in = m->input ? *m->input : (struct input){0};

	a->contexts = 0;
	if (m->length < 12 || m->length % 4 || in.left < m->length)
		return;
	in.left = m->length;
	a->length = number(&in, 8);
	while (in.left) {
		unsigned bit = bit_of(s, (uint32_t)number(&in, 4));

		if (!bit || a->contexts & bit) {
			a->contexts = 0;
			return;
		}
		a->contexts |= bit;
	}
}

/* What the server may end the connection for rather than answer (proto.md). */
static bool is_loose(const struct session *s, const struct message *m, bool payload)
{
	bool wrong = payload ? m->type != CMD_WRITE && m->type != CMD_BLOCK_STATUS
			     : m->type == CMD_WRITE;

	if (m->wrong_magic || m->type == CMD_DISC)
		return true;
	if (s->talk.extended)
		return wrong || (payload && m->length > SESSION_BYTES);
	/* Under simple replies an error in the middle leaves nothing else. */
	return m->type == CMD_READ && !s->talk.structured && s->host->shaky.fails &&
	       m->length > BM_BUF_MAX;
}

bool session_ask(struct session *s, const struct message *m)
{
	bool extended = s->talk.extended, wrong = m->wrong_magic;
	bool payload = extended ? m->flags & FLAG_PAYLOAD_LEN : m->type == CMD_WRITE;
	bool moves = payload || m->type == CMD_READ;
	struct asked *asked = &s->asked[s->count];
	uint8_t header[32], *at;

	/* An input shall not take long: what would is not sent. */
	if (s->count == SESSION_MOST ||
	    (moves && m->length <= s->talk.size && m->length > SESSION_BYTES - s->bytes) ||
	    (payload && !m->input && m->length > SESSION_BYTES - s->bytes))
		return false;
	s->bytes += moves && m->length <= SESSION_BYTES ? m->length : 0;
	*asked = (struct asked){m->type, m->flags, .offset = m->offset, .length = m->length};
	asked->contexts = (1u << s->talk.contexts) - 1;
	if (payload && m->type == CMD_BLOCK_STATUS)
		take_query(s, asked, m);
	if (asked->contexts & s->gone)
		asked->contexts = 0;
	at = put(header, (extended ? 0x21e41c71u : 0x25609513u) ^ wrong, 4);
	at = put(put(at, m->flags, 2), m->type, 2);
	at = put(put(at, COOKIE | s->count++, 8), m->offset, 8);
	put(at, m->length, extended ? 8 : 4);
	s->loose |= is_loose(s, m, payload);
	if (!host_send(s->host, header, session_header(s)))
		return false;
	if (payload && !send_payload(s, m))
		return false;
	asked->whole = !wrong && m->type != CMD_DISC;
	return !wrong;
}

bool session_query(struct session *s, const struct message *message, unsigned what)
{
	uint8_t payload[8 + 5 * 4], *at = put(payload, message->length, 8);
	struct input query = {.at = payload};
	struct message m = *message;

	for (unsigned i = 0; i < 5; i++) {
		unsigned which = i == 3 ? 0 : i;

		if (what >> i & 1)
			at = put(at, which < s->talk.contexts ? s->talk.context[which] : 999, 4);
	}
	m.flags |= FLAG_PAYLOAD_LEN;
	m.length = (size_t)(at - payload) - (what & 32 ? 2 : 0);
	query.left = m.length - (what & 64 ? 1 : 0);
	m.input = &query;
	return session_ask(s, &m);
}

/* Replies */

/* What is said to have been done could be done. */
static void check_allowed(const struct session *s, const struct asked *a)
{
	bool writes = a->type == CMD_WRITE || a->type == CMD_TRIM || a->type == CMD_WRITE_ZEROES;

	demand(a->type != CMD_DISC && a->type <= CMD_BLOCK_STATUS);
	demand(!writes || !(s->host->options & HOST_READ_ONLY));
	demand(a->offset <= s->talk.size && a->length <= s->talk.size - a->offset);
	demand(a->type != CMD_READ || a->got == a->length);
	demand(a->type != CMD_BLOCK_STATUS || (a->status && a->status == a->contexts));
}

static void check_last(const struct session *s, struct asked *a)
{
	/* A WRITE whose payload was cut off may still be told that it failed. */
	demand(a->whole || a->failed);
	a->answered = true;
	if (!a->failed)
		check_allowed(s, a);
}

static struct asked *find(struct session *s, uint64_t cookie)
{
	uint64_t i = cookie ^ COOKIE;

	demand(i < s->count);
	demand(!s->asked[i].answered && s->asked[i].type != CMD_DISC);
	return &s->asked[i];
}

static void check_simple(struct session *s, struct input *in)
{
	uint32_t error = (uint32_t)number(in, 4);
	struct asked *a = find(s, number(in, 8));

	demand(!s->talk.extended && (a->type != CMD_READ || !s->talk.structured));
	demand(a->type != CMD_BLOCK_STATUS || error);
	a->failed = error;
	if (a->type == CMD_READ && !error) {
		a->got = a->length;
		input_take(in, &a->got);
		if (a->got < a->length) { /* an error in the middle leaves nothing but to close */
			demand(s->loose && !in->left);
			return;
		}
	}
	check_last(s, a);
}

/* Lengths and flags: each has a part of the range, all but the last one end within. */
static void check_extents(const struct session *s, struct asked *a, struct input in, bool wide)
{
	unsigned bytes = wide ? 8 : 4, context = bit_of(s, (uint32_t)number(&in, 4));
	uint64_t sum = 0, count = 0;

	demand(context && wide == s->talk.extended);
	count = wide ? number(&in, 4) : 0;
	demand(!wide || count == in.left / 16);
	demand(in.left && in.left % (2 * bytes) == 0);
	demand(!(a->flags & FLAG_REQ_ONE) || in.left == 2 * bytes);
	while (in.left) {
		uint64_t length = number(&in, bytes), flags = number(&in, bytes);

		demand(sum < a->length);
		demand(length && length <= s->talk.size - a->offset - sum);
		demand(flags <= 3);
		if (s->check_extent)
			s->check_extent((unsigned)__builtin_ctz(context), a->offset + sum, length,
					(uint32_t)flags);
		sum += length;
	}
	demand(!(a->flags & FLAG_REQ_ONE) || sum <= a->length);
	demand(a->type == CMD_BLOCK_STATUS && !(a->status & context));
	a->status |= context;
}

static void check_content(struct asked *a, unsigned type, struct input in)
{
	uint64_t length = in.left, offset = length >= 8 ? number(&in, 8) : 0;

	demand(a->type == CMD_READ);
	demand(type == HOLE ? length == 12 : length > 8);
	length = type == HOLE ? number(&in, 4) : length - 8;
	demand(offset >= a->offset && offset - a->offset <= a->length);
	demand(length && length <= a->length - (offset - a->offset));
	a->got += length;
	demand(a->got <= a->length);
}

static void check_failure(struct asked *a, unsigned type, struct input in)
{
	uint64_t text;

	demand(number(&in, 4));
	text = number(&in, 2);
	demand(text <= LONGEST_TEXT && in.left == text + (type == ERROR_OFFSET ? 8 : 0));
	in.at += text;
	in.left -= text;
	if (type == ERROR_OFFSET) {
		uint64_t offset = number(&in, 8);

		demand(offset >= a->offset && offset - a->offset < a->length);
	}
	a->failed = true;
}

static void check_chunk(struct session *s, struct input *in, bool extended)
{
	unsigned flags = (unsigned)number(in, 2), type = (unsigned)number(in, 2);
	struct asked *a = find(s, number(in, 8));
	struct input payload;

	demand(extended == s->talk.extended && (extended || s->talk.structured));
	demand(!(flags & ~(unsigned)DONE));
	if (extended)
		demand(number(in, 8) == a->offset);
	payload.left = number(in, extended ? 8 : 4);
	demand(payload.left <= in->left);
	payload.at = input_take(in, &payload.left);
	if (type == NONE)
		demand(!payload.left && flags & DONE);
	else if (type == DATA || type == HOLE)
		check_content(a, type, payload);
	else if (type == STATUS || type == STATUS_EXT)
		check_extents(s, a, payload, type == STATUS_EXT);
	else {
		demand(type == ERROR || type == ERROR_OFFSET);
		check_failure(a, type, payload);
	}
	if (flags & DONE)
		check_last(s, a);
}

/* Whether what is left is not a whole reply; the data of a simple one is looked at elsewhere. */
static bool is_cut(struct input in)
{
	uint32_t magic = in.left < 4 ? SIMPLE : (uint32_t)number(&in, 4);
	size_t header = magic == SIMPLE ? 12 : magic == STRUCTURED ? 16 : 28;
	size_t length = magic == STRUCTURED ? 4 : 8;

	if (in.left < header)
		return true;
	in.at += header - length;
	in.left -= header - length;
	return magic != SIMPLE && number(&in, (unsigned)length) > in.left;
}

void session_check(struct session *s)
{
	struct input *in = &s->talk.got;
	size_t before = (size_t)(in->at - s->host->output);

	*in = (struct input){in->at, s->host->got - before};
	/* Who ends a connection for what the client did may do so in the middle of a reply. */
	while (in->left && !(s->loose && is_cut(*in))) {
		uint32_t magic = (uint32_t)number(in, 4);

		if (magic == SIMPLE)
			check_simple(s, in);
		else if (magic == STRUCTURED)
			check_chunk(s, in, false);
		else {
			demand(magic == EXTENDED);
			check_chunk(s, in, true);
		}
	}
	for (unsigned i = 0; i < s->count && !s->loose; i++)
		demand(s->asked[i].answered || !s->asked[i].whole);
}
