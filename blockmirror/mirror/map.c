/* SPDX-License-Identifier: BSD-3-Clause */
/* The granule map of a mirror. */
#include "blockmirror/mirror/map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int bm_map_init(struct bm_map *map, uint64_t size, unsigned shift, uint8_t *settled)
{
	uint64_t granules = bm_map_granules(size, shift);

	memset(map, 0, sizeof(*map));
	map->size = size;
	map->shift = shift;
	map->granules = granules;
	map->granule = calloc(granules, sizeof(*map->granule));
	if (!map->granule || bm_bitmap_init(&map->dirty, granules) ||
	    bm_bitmap_init(&map->copying, granules) || bm_bitmap_init(&map->zero, granules) ||
	    bm_bitmap_init(&map->open, granules) || bm_bitmap_init(&map->closed, granules) ||
	    bm_bitmap_init(&map->flushed, granules) || bm_bitmap_init(&map->covered, granules)) {
		bm_map_fini(map);
		return -ENOMEM;
	}
	map->settled = settled;
	bm_map_unsettle_all(map);
	bm_bitmap_set_all(&map->dirty);
	return 0;
}

void bm_map_fini(struct bm_map *map)
{
	free(map->granule);
	bm_bitmap_fini(&map->dirty);
	bm_bitmap_fini(&map->copying);
	bm_bitmap_fini(&map->zero);
	bm_bitmap_fini(&map->open);
	bm_bitmap_fini(&map->closed);
	bm_bitmap_fini(&map->flushed);
	bm_bitmap_fini(&map->covered);
	memset(map, 0, sizeof(*map));
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
	bm_bitmap_each (g, from) {
		bm_bitmap_clear(from, g);
		bm_bitmap_set(to, g);
	}
}

void bm_map_settle(struct bm_map *map, struct bm_bitmap *set)
{
	bm_bitmap_each (g, set) {
		bm_bitmap_clear(set, g);
		if (map->settled && !bm_bitmap_test(&map->dirty, g) && !map->granule[g].busy &&
		    !bm_bitmap_test(&map->open, g) && !bm_bitmap_test(&map->closed, g) &&
		    !bm_bitmap_test(&map->flushed, g))
			map->settled[g / 8] |= (uint8_t)(1u << g % 8);
	}
}
