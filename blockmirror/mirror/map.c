/* SPDX-License-Identifier: BSD-3-Clause */
/* The granule map of a mirror. */
#include "blockmirror/mirror/map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int bm_map_init(struct bm_map *map, uint64_t size, unsigned shift, uint8_t *settled, bool resumed)
{
	uint64_t granules = bm_map_granules(size, shift);

	memset(map, 0, sizeof(*map));
	map->size = size;
	map->shift = shift;
	map->granules = granules;
	map->granule = calloc(granules, sizeof(*map->granule));
	if (!map->granule || bm_bitmap_init(&map->dirty, granules) ||
	    bm_bitmap_init(&map->copying, granules) || bm_bitmap_init(&map->zero, granules) ||
	    bm_bitmap_init(&map->alone, granules) || bm_bitmap_init(&map->unreadable, granules) ||
	    bm_bitmap_init(&map->open, granules) || bm_bitmap_init(&map->closed, granules) ||
	    bm_bitmap_init(&map->flushed, granules) || bm_bitmap_init(&map->covered, granules) ||
	    bm_bitmap_init(&map->quarantine, granules) || bm_bitmap_init(&map->sample, granules)) {
		bm_map_fini(map);
		return -ENOMEM;
	}
	map->settled = settled;
	bm_bitmap_set_all(&map->dirty);
	if (!resumed)
		bm_map_unsettle_all(map);
	for (uint64_t g = 0; resumed && g < granules; g++)
		if (bm_map_is_settled(map, g))
			bm_bitmap_clear(&map->dirty, g);
	return 0;
}

void bm_map_fini(struct bm_map *map)
{
	free(map->granule);
	bm_bitmap_fini(&map->dirty);
	bm_bitmap_fini(&map->copying);
	bm_bitmap_fini(&map->zero);
	bm_bitmap_fini(&map->alone);
	bm_bitmap_fini(&map->unreadable);
	bm_bitmap_fini(&map->open);
	bm_bitmap_fini(&map->closed);
	bm_bitmap_fini(&map->flushed);
	bm_bitmap_fini(&map->covered);
	bm_bitmap_fini(&map->quarantine);
	bm_bitmap_fini(&map->sample);
	memset(map, 0, sizeof(*map));
}

bool bm_map_next_change(const struct bm_map *map, uint64_t at, uint64_t end, uint64_t *next)
{
	uint64_t g = at >> map->shift, last = ((end - 1) >> map->shift) + 1;
	bool dirty = bm_bitmap_test(&map->dirty, g);

	g = dirty ? bm_bitmap_next_clear(&map->dirty, g, last) : bm_bitmap_next(&map->dirty, g);
	*next = g < last ? g << map->shift : end;
	return dirty;
}

void bm_map_unsettle_all(struct bm_map *map)
{
	if (map->settled)
		memset(map->settled, 0, (map->granules + 7) / 8);
}

void bm_map_move(struct bm_bitmap *to, struct bm_bitmap *from)
{
	if (!to->count) {
		bm_bitmap_swap(to, from);
		return;
	}
	bm_bitmap_each(g, from) {
		bm_bitmap_clear(from, g);
		bm_bitmap_set(to, g);
	}
}

/* Whether nothing is known, or under way, that makes granule g different or less than durable. */
static bool at_rest(const struct bm_map *map, uint64_t g)
{
	if (bm_bitmap_test(&map->dirty, g))
		return false;
	if (map->granule[g].busy)
		return false;
	if (bm_bitmap_test(&map->quarantine, g))
		return false;
	if (bm_bitmap_test(&map->open, g) || bm_bitmap_test(&map->closed, g))
		return false;
	return !bm_bitmap_test(&map->flushed, g);
}

void bm_map_settle(struct bm_map *map, struct bm_bitmap *set)
{
	bool settles = map->settled && !(map->doubtful && *map->doubtful);

	bm_bitmap_each(g, set) {
		bm_bitmap_clear(set, g);
		if (settles && at_rest(map, g))
			map->settled[g / 8] |= (uint8_t)(1u << g % 8);
	}
}
