/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The granule map of a mirror: what is known about each granule of the disk.
 *
 *   dirty     the other copy may differ, by more than the writes in flight; the baseline copy or
 *             a write over the whole granule makes it clean
 *   busy      guest writes in flight (also those whose other leg was given up and has not ended)
 *   copying   a copy of it is in flight
 *   unstable  written, and not flushed on both sides since: a power cut may take it back on one
 *             of them. Four sets, in this order: `open` collects; a flush of the other side moves
 *             it to `closed` at its submission and to `flushed` at its success; a flush of the
 *             authority moves that to `covered` and, at its success, out.
 *   zero      nothing was ever sent to the other copy here, which was all zeros when it was made
 *   quarantine  a request to the other side was in flight when its session was cut, and may still
 * be carried out (again.c) sample    to be compared before the other side, which is back, is sent
 * anything misses    attempts to copy it that a guest write spoiled settled   not dirty, not busy,
 * not unstable: equal, and equal after a power cut. The only thing kept outside this process: 1
 * means settled, so that lost pages read as "may differ". Withdrawn before a write is dispatched,
 * given after flushes of both.
 */
#ifndef BM_MIRROR_MAP_H
#define BM_MIRROR_MAP_H

#include "blockmirror/mirror/bitmap.h"

enum { BM_MISSES_MAX = 15 };

struct bm_granule {
	uint16_t busy : 12;
	uint16_t misses : 4;
};

struct bm_map {
	uint64_t size; /* bytes of the disk; its end is the end of the last granule */
	uint64_t granules;
	unsigned shift; /* granule = 1 << shift bytes */
	struct bm_bitmap dirty, copying, zero;
	struct bm_bitmap alone, unreadable; /* dirty: is copied by itself; is not copied */
	struct bm_bitmap open, closed, flushed, covered; /* unstable */
	struct bm_bitmap quarantine, sample;
	struct bm_granule *granule;
	uint8_t *settled;     /* the host's memory, bit n % 8 of byte n / 8; may be NULL */
	const bool *doubtful; /* a flush of the authority failed: nothing more is ever settled */
};

/*
 * Nothing is set but dirty: every granule; of a map that is resumed, those that settled does not
 * say are settled. settled has a bit per granule and outlives the map; all its bits are cleared,
 * unless it is resumed. Returns 0 or -ENOMEM.
 */
int bm_map_init(struct bm_map *map, uint64_t size, unsigned shift, uint8_t *settled, bool resumed);
void bm_map_fini(struct bm_map *map);

static inline uint64_t bm_map_granules(uint64_t size, unsigned shift)
{
	return (size + (1ull << shift) - 1) >> shift;
}

static inline bool bm_map_is_settled(const struct bm_map *map, uint64_t g)
{
	return map->settled && map->settled[g / 8] >> g % 8 & 1;
}

static inline void bm_map_unsettle(struct bm_map *map, uint64_t g)
{
	if (map->settled)
		map->settled[g / 8] &= (uint8_t) ~(1u << g % 8);
}

/*
 * Whether the granule at byte at is dirty; *next becomes where that changes, at most end, which is
 * behind at.
 */
bool bm_map_next_change(const struct bm_map *map, uint64_t at, uint64_t end, uint64_t *next);

void bm_map_unsettle_all(struct bm_map *map);

/* A leg of a write to granule g ended: it is unstable until a flush that comes after. */
static inline void bm_map_unstable(struct bm_map *map, uint64_t g)
{
	bm_map_unsettle(map, g);
	bm_bitmap_set(&map->open, g);
}

/* Moves all of one set of unstable granules to another one. */
void bm_map_move(struct bm_bitmap *to, struct bm_bitmap *from);

/* The granules of set were flushed on both sides: those left alone since are settled. */
void bm_map_settle(struct bm_map *map, struct bm_bitmap *set);

#endif
