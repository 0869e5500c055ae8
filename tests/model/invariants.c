/* SPDX-License-Identifier: BSD-3-Clause */
/* What must hold in the world of the model test. */
#include "tests/model/world.h"

static bool equal(int g)
{
	int first = g * GRANULE / SECTOR, last = first + GRANULE / SECTOR;

	for (int s = first; s < last; s++)
		if (w.disk[0].current[s] != w.disk[1].current[s])
			return false;
	return true;
}

/* Damage ends when the granule was written to, by whomever. */
bool is_damaged(int g)
{
	if (equal(g))
		w.damaged &= (uint8_t) ~(1u << g);
	return w.damaged >> g & 1;
}

bool damaged(void)
{
	for (int g = 0; g < GRANULES; g++)
		if (is_damaged(g))
			return true;
	return false;
}

/* With a foreign server that is no excuse: what stale requests write is in quarantine. */
bool stale(void)
{
	return fake_disk_has_stale(&w.disk[0]) || (!w.foreign && fake_disk_has_stale(&w.disk[1]));
}

void check_clean(const char *when)
{
	const struct bm_map *map = &w.m->map;

	if (!w.alive || w.m->link == LINK_NONE || stale())
		return;
	for (int g = 0; g < GRANULES; g++)
		if (!bm_bitmap_test(&map->dirty, g) && !bm_bitmap_test(&map->copying, g) &&
		    !map->granule[g].busy && !bm_bitmap_test(&map->quarantine, g) && !equal(g) &&
		    !is_damaged(g))
			violation("I2 %s: granule %d is clean and differs", when, g);
}

/* While it is not known to be the one that was here, nothing is written to the other side. */
void check_proving(void)
{
	const struct fake_disk *d;

	if (!w.alive || w.m->link != LINK_PROVING)
		return;
	d = disk_of(other(w.m));
	for (int i = 0; i < PENDING; i++)
		if (d->io[i].used && d->io[i].rq && d->io[i].op != BM_READ)
			violation("something is sent to a target before it was looked at");
}

void check_settled(const char *when)
{
	for (int g = 0; g < GRANULES; g++)
		if (w.settled[0] >> g & 1) {
			total.settled++;
			if (!equal(g) && !is_damaged(g))
				violation("I5 %s: granule %d is settled and differs", when, g);
		}
}

void check_authority(int disk, bool power, const char *when)
{
	for (int s = 0; s < SECTORS; s++)
		if (!oracle_allows(&oracle, s, w.disk[disk].current[s], power))
			violation("%s %s: sector %d of the authority (disk %d) holds %d",
				  power ? "I3" : "I1", when, s, disk, w.disk[disk].current[s]);
}

bool may_switch(void)
{
	return !damaged() && !w.m->check.done && !w.calm;
}
