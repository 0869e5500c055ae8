/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Parses QEMU's migration stream. Each state has a function that looks at what is there: it takes
 * a whole piece of it, or nothing. NEED_MORE and FULL leave everything as it was, so that the
 * piece is looked at again from its first byte.
 *
 * QEMU's own names are in migration/savevm.c (sections) and migration/ram.c (records).
 */
#include "blockmirror/ram/stream.h"

#include <errno.h>
#include <string.h>

enum { NEED_MORE = 0, FULL = -1, REFUSED = -2 }; /* else: how many bytes were taken */

enum {
	QEMU_EOF = 0,
	SECTION_START = 1,
	SECTION_PART = 2,
	SECTION_END = 3,
	SECTION_FULL = 4,
	SUBSECTION = 5,
	VMDESCRIPTION = 6,
	CONFIGURATION = 7,
	COMMAND = 8,
	FOOTER = 0x7e,
};

enum {
	COMMAND_POSTCOPY_ADVISE = 3,
	COMMAND_RECV_BITMAP = 10,
};

enum {
	RAM_ZERO = 0x02,
	RAM_MEM_SIZE = 0x04,
	RAM_PAGE = 0x08,
	RAM_EOS = 0x10,
	RAM_CONTINUE = 0x20,
	RAM_XBZRLE = 0x40,
	RAM_HOOK = 0x80,
	RAM_COMPRESS_PAGE = 0x100,
	RAM_MULTIFD_FLUSH = 0x200,
};

#define MAGIC_QEVM    0x5145564du
#define MAGIC_MULTIFD 0x11223344u

struct piece {
	struct bm_stream *s;
	struct bm_encoder *e;
	const uint8_t *at;
	size_t length;
	struct bm_error *error;
};

void bm_stream_init(struct bm_stream *s)
{
	memset(s, 0, sizeof(*s));
	s->block = -1;
}

/* From here on nobody looks: as good as a stream of a version that we have never seen. */
static void pass_rest(struct bm_stream *s, const char *why)
{
	if (!s->why) {
		s->why = why;
		s->why_offset = s->offset;
	}
	s->state = BM_STREAM_REST;
}

static ssize_t give_up(struct piece *p, const char *why)
{
	size_t n;

	pass_rest(p->s, why);
	n = bm_encode_bytes(p->e, p->at, p->length);
	return n ? (ssize_t)n : FULL;
}

/* A piece that is bytes and no more, all of it or nothing. */
static ssize_t as_bytes(struct piece *p, size_t length)
{
	if (length > p->length)
		return NEED_MORE;
	if (length > bm_encoder_room(p->e))
		return FULL;
	return (ssize_t)bm_encode_bytes(p->e, p->at, length);
}

/* The same, and what follows it: count bytes that nobody looks at, then a state. */
static ssize_t with_body(struct piece *p, size_t length, uint64_t count, enum bm_stream_state then)
{
	ssize_t n = as_bytes(p, length);

	if (n > 0) {
		p->s->state = count ? BM_STREAM_BODY : then;
		p->s->then = then;
		p->s->count = count;
	}
	return n;
}

/* The same, and a list follows; count says how long it is. */
static ssize_t with_list(struct piece *p, size_t length, uint64_t count, enum bm_stream_state list,
			 enum bm_stream_state then)
{
	ssize_t n = as_bytes(p, length);

	if (n > 0) {
		p->s->state = count ? list : then;
		p->s->count = count;
	}
	return n;
}

static ssize_t refuse(struct piece *p, const char *what)
{
	bm_fail(p->error, BM_E_UNSUPPORTED, "QEMU's migration stream, offset %llu: %s",
		(unsigned long long)p->s->offset, what);
	return REFUSED;
}

static ssize_t parse_magic(struct piece *p)
{
	if (p->length < 8)
		return NEED_MORE;
	if (bm_get32(p->at) == MAGIC_MULTIFD)
		return refuse(p, "a connection of multifd, which the relay does not carry; switch "
				 "the capability multifd off");
	if (bm_get32(p->at) != MAGIC_QEVM || bm_get32(p->at + 4) != 3)
		return give_up(p, "it does not begin as a migration stream of version 3");
	return with_body(p, 8, 0, BM_STREAM_BETWEEN);
}

static bool is_name(const uint8_t *at, size_t length, const char *name)
{
	return length == strlen(name) && !memcmp(at, name, length);
}

/* Of the configuration: 5, length, name, version (4), body. */
static ssize_t parse_subsection(struct piece *p)
{
	size_t name = p->length > 1 ? p->at[1] : 0, head = 6 + name;

	if (p->length < 2 || p->length < head)
		return NEED_MORE;
	if (is_name(p->at + 2, name, "configuration/uuid"))
		return with_body(p, head, 16, BM_STREAM_BETWEEN);
	if (is_name(p->at + 2, name, "configuration/target-page-bits")) {
		if (p->length < head + 4)
			return NEED_MORE;
		if (bm_get32(p->at + head) != bm_encoder_page_bits(p->e))
			return give_up(p, "pages of another size");
		return with_body(p, head + 4, 0, BM_STREAM_BETWEEN);
	}
	if (is_name(p->at + 2, name, "configuration/capabilities")) {
		if (p->length < head + 4)
			return NEED_MORE;
		return with_list(p, head + 4, bm_get32(p->at + head), BM_STREAM_CAPABILITIES,
				 BM_STREAM_BETWEEN);
	}
	return give_up(p, "a part of the configuration that we do not know");
}

/* How many are left is in count. */
static ssize_t parse_capability(struct piece *p)
{
	size_t length = p->length ? p->at[0] : 0;
	ssize_t n;

	if (!p->length || p->length < 1 + length)
		return NEED_MORE;
	if (is_name(p->at + 1, length, "mapped-ram"))
		return refuse(p, "mapped-ram, which is for files; switch the capability off");
	n = as_bytes(p, 1 + length);
	if (n <= 0)
		return n;
	if (is_name(p->at + 1, length, "x-ignore-shared"))
		p->s->ignore_shared = true;
	if (!--p->s->count)
		p->s->state = BM_STREAM_BETWEEN;
	return n;
}

/* 8, command (2), length (2), body. */
static ssize_t parse_command(struct piece *p)
{
	unsigned command;

	if (p->length < 5)
		return NEED_MORE;
	command = bm_get16(p->at + 1);
	/* After them a source that dies takes the guest with it; and they change the list of
	 * blocks. */
	if (command >= COMMAND_POSTCOPY_ADVISE && command <= COMMAND_RECV_BITMAP)
		return refuse(p, "post-copy or COLO, which are not offered; switch the "
				 "capabilities off");
	return with_body(p, 5, bm_get16(p->at + 3), BM_STREAM_BETWEEN);
}

/* 1, number (4), length, name, instance (4), version (4), body. */
static ssize_t parse_start(struct piece *p)
{
	size_t name = p->length > 5 ? p->at[5] : 0, head = 14 + name;
	uint32_t number;
	ssize_t n;

	if (p->length < 6 || p->length < head)
		return NEED_MORE;
	if (!is_name(p->at + 6, name, "ram") || bm_get32(p->at + head - 4) != 4)
		return give_up(p, "a section of something else than RAM, or of another version");
	number = bm_get32(p->at + 1);
	n = with_body(p, head, 0, BM_STREAM_RECORDS);
	if (n > 0) {
		p->s->has_ram = true;
		p->s->ram = number;
	}
	return n;
}

static ssize_t parse_part(struct piece *p)
{
	if (p->length < 5)
		return NEED_MORE;
	if (!p->s->has_ram || bm_get32(p->at + 1) != p->s->ram)
		return give_up(p, "a section of something else than RAM");
	return with_body(p, 5, 0, BM_STREAM_RECORDS);
}

static ssize_t parse_between(struct piece *p)
{
	switch (p->at[0]) {
	case CONFIGURATION:
		if (p->length < 5)
			return NEED_MORE;
		return with_body(p, 5, bm_get32(p->at + 1), BM_STREAM_BETWEEN);
	case SUBSECTION:
		return parse_subsection(p);
	case COMMAND:
		return parse_command(p);
	case SECTION_START:
		return parse_start(p);
	case SECTION_PART:
	case SECTION_END:
		return parse_part(p);
	case FOOTER:
		return with_body(p, 5, 0, BM_STREAM_BETWEEN);
	case SECTION_FULL:
	case QEMU_EOF:
	case VMDESCRIPTION:
		/* Device state says nowhere how long it is, and RAM has ended. */
		p->s->devices = true;
		return give_up(p, "device state");
	default:
		return give_up(p, "a section of a type that we do not know");
	}
}

/* length, name, size (8), and with x-ignore-shared where it is (8); count: bytes to be named. */
static ssize_t parse_block(struct piece *p)
{
	size_t name = p->length ? p->at[0] : 0, head = 9 + name;
	uint64_t size;
	ssize_t n;

	if (p->s->ignore_shared)
		head += 8;
	if (!p->length || p->length < head)
		return NEED_MORE;
	size = bm_get64(p->at + 1 + name);
	if (!name || size > p->s->count)
		return give_up(p, "a list of blocks that does not add up");
	n = as_bytes(p, head);
	if (n > 0) {
		p->s->count -= size;
		if (!p->s->count)
			p->s->state = BM_STREAM_RECORDS;
	}
	return n;
}

/* The number of a block; its name goes before its first page. -1: there are too many. */
static int number_of(struct piece *p, const uint8_t *name, size_t length)
{
	struct bm_stream *s = p->s;
	unsigned i;

	for (i = 0; i < s->blocks; i++)
		if (s->lengths[i] == length && !memcmp(s->names[i], name, length))
			return (int)i;
	if (i == BM_RAM_BLOCKS)
		return -1;
	if (!bm_encode_block(p->e, (uint16_t)i, (const char *)name, length))
		return FULL - 1;
	memcpy(s->names[i], name, length);
	s->lengths[i] = (uint8_t)length;
	s->blocks++;
	return (int)i;
}

/* A record of a page whose block is known: head bytes, then the data. */
static ssize_t parse_content(struct piece *p, unsigned flags, size_t head, int block)
{
	struct bm_stream *s = p->s;
	size_t size = (size_t)1 << bm_encoder_page_bits(p->e);
	struct bm_page page = {.block = (uint16_t)block, .named = !(flags & RAM_CONTINUE)};
	bool taken;

	page.index = bm_get64(p->at) >> bm_encoder_page_bits(p->e);
	if (flags & RAM_PAGE) {
		taken = bm_encode_page(p->e, &page, p->at + head);
		head += size;
	} else {
		taken = bm_encode_fill(p->e, &page, p->at[head]);
		head++;
	}
	if (!taken)
		return FULL;
	s->block = block;
	return (ssize_t)head;
}

static ssize_t parse_page(struct piece *p, unsigned flags, size_t head)
{
	size_t data = flags & RAM_PAGE ? (size_t)1 << bm_encoder_page_bits(p->e) : 1;
	int block = p->s->block;

	if (p->length < head + data)
		return NEED_MORE;
	if (!(flags & RAM_CONTINUE)) {
		block = number_of(p, p->at + 9, p->at[8]);
		if (block < -1)
			return FULL;
	}
	if (block < 0)
		return give_up(p, "a page of no block, or more blocks than we know");
	return parse_content(p, flags, head, block);
}

/* Records that are not decoded: the page's content is not needed, only where the record ends. */
static ssize_t parse_coded(struct piece *p, unsigned flags, size_t head)
{
	size_t more = flags & RAM_XBZRLE ? 3 : 4;
	uint64_t length;
	int block = p->s->block;
	ssize_t n;

	if (p->length < head + more)
		return NEED_MORE;
	length = flags & RAM_XBZRLE ? bm_get16(p->at + head + 1) : bm_get32(p->at + head);
	if (!(flags & RAM_CONTINUE)) {
		block = number_of(p, p->at + 9, p->at[8]);
		if (block < -1)
			return FULL;
	}
	n = with_body(p, head + more, length, BM_STREAM_RECORDS);
	if (n > 0)
		p->s->block = block;
	return n;
}

static ssize_t parse_end(struct piece *p)
{
	ssize_t n = with_body(p, 8, 0, BM_STREAM_BETWEEN);

	p->s->sections += n > 0;
	return n;
}

static ssize_t parse_page_record(struct piece *p, unsigned flags)
{
	size_t head = 8;

	if (!(flags & RAM_CONTINUE)) {
		if (p->length < 9)
			return NEED_MORE;
		head = 9 + (size_t)p->at[8];
		if (head == 9)
			return give_up(p, "a block without a name");
	}
	return flags & (RAM_PAGE | RAM_ZERO) ? parse_page(p, flags, head)
					     : parse_coded(p, flags, head);
}

static ssize_t parse_record(struct piece *p)
{
	uint64_t mask = ((uint64_t)1 << bm_encoder_page_bits(p->e)) - 1, word;
	unsigned flags;

	if (p->length < 8)
		return NEED_MORE;
	word = bm_get64(p->at);
	flags = (unsigned)(word & mask);
	switch (flags) {
	case RAM_MEM_SIZE:
		return with_list(p, 8, word & ~mask, BM_STREAM_BLOCKS, BM_STREAM_RECORDS);
	case RAM_EOS:
		return parse_end(p);
	case RAM_HOOK:
	case RAM_MULTIFD_FLUSH:
		return with_body(p, 8, 0, BM_STREAM_RECORDS);
	default:
		break;
	}
	switch (flags & ~(unsigned)RAM_CONTINUE) {
	case RAM_PAGE:
	case RAM_ZERO:
	case RAM_XBZRLE:
	case RAM_COMPRESS_PAGE:
		return parse_page_record(p, flags);
	default:
		return give_up(p, "a RAM record of a kind that we do not know");
	}
}

/* Bytes that nobody looks at: as many as there are, or fit. */
static ssize_t parse_body(struct piece *p)
{
	size_t length = p->s->count < p->length ? (size_t)p->s->count : p->length;
	size_t n = bm_encode_bytes(p->e, p->at, length);

	if (!n)
		return FULL;
	p->s->count -= n;
	if (!p->s->count)
		p->s->state = p->s->then;
	return (ssize_t)n;
}

static ssize_t parse_piece(struct piece *p)
{
	size_t n;

	switch (p->s->state) {
	case BM_STREAM_MAGIC:
		return parse_magic(p);
	case BM_STREAM_BETWEEN:
		return parse_between(p);
	case BM_STREAM_CAPABILITIES:
		return parse_capability(p);
	case BM_STREAM_BLOCKS:
		return parse_block(p);
	case BM_STREAM_RECORDS:
		return parse_record(p);
	case BM_STREAM_BODY:
		return parse_body(p);
	case BM_STREAM_REST:
		break;
	}
	n = bm_encode_bytes(p->e, p->at, p->length);
	return n ? (ssize_t)n : FULL;
}

int bm_stream_parse(struct bm_stream *s, struct bm_encoder *e, const uint8_t *data, size_t length,
		    size_t *used, struct bm_error *error)
{
	*used = 0;
	while (*used < length) {
		struct piece p = {s, e, data + *used, length - *used, error};
		ssize_t n = parse_piece(&p);

		if (n == REFUSED)
			return -EOPNOTSUPP;
		if (n == FULL)
			return 1;
		if (n == NEED_MORE)
			return 0;
		*used += (size_t)n;
		s->offset += (uint64_t)n;
	}
	return 0;
}

void bm_stream_end(struct bm_stream *s)
{
	pass_rest(s, "it ends there");
}
