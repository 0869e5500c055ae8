/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Headers of frames and the HELLO.
 *
 *	0 magic (4), version, type, flags, 0     8 length (4), plain (4), weight (4), 0 (4)
 *	24 number (8)    32 content (8)          40 check (8)
 *
 * check is xxh3 of the payload, seeded with xxh3 of the 40 bytes before it: one pass over what is
 * large, and neither part can be taken for that of another frame.
 */
#include "blockmirror/ram/wire.h"

#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

enum { MAGIC = 0x424d5241, CHECKED = 40 };

static uint64_t check_of(const uint8_t *header, const uint8_t *payload, size_t length)
{
	static const uint8_t nothing;

	return XXH3_64bits_withSeed(length ? payload : &nothing, length,
				    XXH3_64bits(header, CHECKED));
}

void bm_ram_header_put(uint8_t *to, const struct bm_ram_header *header, const uint8_t *payload)
{
	memset(to, 0, BM_RAM_HEADER);
	bm_put32(to, MAGIC);
	to[4] = BM_RAM_VERSION;
	to[5] = header->type;
	to[6] = header->flags;
	bm_put32(to + 8, header->length);
	bm_put32(to + 12, header->plain);
	bm_put32(to + 16, header->weight);
	bm_put64(to + 24, header->number);
	bm_put64(to + 32, header->content);
	bm_put64(to + CHECKED, check_of(to, payload, header->length));
}

static bool plausible(const struct bm_ram_header *h)
{
	if (!h->type || h->type >= BM_RAM_TYPES || h->length > BM_RAM_PAYLOAD ||
	    h->plain > BM_RAM_PAYLOAD || h->weight > BM_RAM_WEIGHT)
		return false;
	if (h->flags & ~BM_RAM_ZSTD || (!h->flags && h->plain != h->length))
		return false;
	return h->type == BM_RAM_FRAME_BATCH || (!h->flags && !h->weight);
}

int bm_ram_header_get(struct bm_ram_header *header, const uint8_t *from, struct bm_error *error)
{
	if (bm_get32(from) != MAGIC)
		return bm_fail(error, BM_E_UNREACHABLE,
			       "the other host does not speak our RAM protocol: a frame begins "
			       "with %08x",
			       bm_get32(from));
	if (from[4] != BM_RAM_VERSION)
		return bm_fail(error, BM_E_UNREACHABLE,
			       "the other host speaks version %u of the RAM protocol, we speak %u: "
			       "install one version on both",
			       from[4], BM_RAM_VERSION);
	header->type = from[5];
	header->flags = from[6];
	header->length = bm_get32(from + 8);
	header->plain = bm_get32(from + 12);
	header->weight = bm_get32(from + 16);
	header->number = bm_get64(from + 24);
	header->content = bm_get64(from + 32);
	if (from[7] || bm_get32(from + 20) || !plausible(header))
		return bm_fail(error, BM_E_UNREACHABLE,
			       "the other host sends a frame that cannot be: type %u, flags %u, "
			       "%u bytes for %u for %u",
			       header->type, header->flags, header->length, header->plain,
			       header->weight);
	return 0;
}

int bm_ram_payload_check(const struct bm_ram_header *header, const uint8_t *from,
			 const uint8_t *payload, struct bm_error *error)
{
	if (check_of(from, payload, header->length) == bm_get64(from + CHECKED))
		return 0;
	return bm_fail(error, BM_E_UNREACHABLE,
		       "frame %llu of type %u was damaged on its way: its checksum is wrong",
		       (unsigned long long)header->number, header->type);
}

void bm_ram_hello_put(uint8_t *to, const struct bm_ram_hello *hello)
{
	memset(to, 0, BM_RAM_HELLO);
	memcpy(to, hello->id, BM_RAM_ID);
	to[16] = hello->link;
	to[17] = hello->links;
	to[18] = hello->page_bits;
	bm_put32(to + 20, hello->slots);
}

int bm_ram_hello_get(struct bm_ram_hello *hello, const uint8_t *from, size_t length,
		     struct bm_error *error)
{
	if (length != BM_RAM_HELLO)
		return bm_fail(error, BM_E_UNREACHABLE, "the other host's HELLO has %zu bytes",
			       length);
	memcpy(hello->id, from, BM_RAM_ID);
	hello->link = from[16];
	hello->links = from[17];
	hello->page_bits = from[18];
	hello->slots = bm_get32(from + 20);
	if (!hello->links || hello->links > BM_RAM_LINKS || hello->link >= hello->links)
		return bm_fail(error, BM_E_UNREACHABLE,
			       "the other host's HELLO is of connection %u of %u", hello->link,
			       hello->links);
	return 0;
}
