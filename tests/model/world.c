/* SPDX-License-Identifier: BSD-3-Clause */
/* The world of the model test: chance, the process with its mirror, and its deaths. */
#include "tests/model/world.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct world w;
struct totals total;
struct oracle oracle;
uint64_t seed_state;
bool verbose;

uint64_t chance(void)
{
	uint64_t z = seed_state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

int below(int n)
{
	return (int)(chance() % (unsigned)n);
}

bool percent(int p)
{
	return below(100) < p;
}

void trace(const char *format, ...)
{
	va_list args;

	if (!verbose)
		return;
	printf("%5d ", w.step);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

void violation(const char *format, ...)
{
	va_list args;

	if (w.failure[0])
		return;
	va_start(args, format);
	vsnprintf(w.failure, sizeof(w.failure), format, args);
	va_end(args);
	trace("*** %s", w.failure);
}

struct fake_disk *disk_of(int side)
{
	return &w.disk[side ^ w.base];
}

/* What was equal on both, and is another image's now, is what it was. */
static void right_one_comes(void)
{
	struct fake_disk *d = disk_of(other(w.m)), *a = disk_of(w.m->authority);

	for (int s = 0; s < SECTORS; s++)
		if (is_damaged(s * SECTOR / GRANULE) &&
		    !bm_bitmap_test(&w.m->map.dirty, (uint64_t)(s * SECTOR / GRANULE)))
			fake_disk_damage(d, s, a->current[s]);
	mirror_lose(w.m, -ESTALE);
}

/* The host */

static void host_commit(void *arg, int side)
{
	(void)arg;
	if (w.record_pending)
		violation("I4: a record is written beside another one");
	w.record_pending = true;
	w.record_applied = false;
	w.record_side = side ^ w.base;
	if (side != w.m->authority) /* in sync, and flushed since */
		w.flush_failed[w.record_side] = w.target_power = false;
	trace("record: authority disk %d submitted", w.record_side);
}

static void host_event(void *arg, enum bm_mirror_event event)
{
	(void)arg;
	trace("event %d", (int)event);
	switch (event) {
	case BM_MIRROR_LOST:
		total.losses++;
		break;
	case BM_MIRROR_LOST_IDLE:
		w.reopen = true;
		break;
	case BM_MIRROR_FULL:
		total.fulls++;
		break;
	case BM_MIRROR_SWITCHED:
		total.switches++;
		if (percent(50))
			bm_mirror_detach(w.m);
		break;
	case BM_MIRROR_SWITCH_FAILED:
		total.switch_failures++;
		break;
	case BM_MIRROR_DETACHED:
		total.detaches++;
		w.attached = w.reopen = false;
		w.let_go = !w.parking;
		break;
	case BM_MIRROR_BACK:
		total.backs++;
		for (int g = 0; g < GRANULES; g++)
			if (is_damaged(g) && !bm_bitmap_test(&w.m->map.dirty, g) &&
			    !w.m->map.granule[g].busy)
				violation("another image is taken for the target");
		break;
	case BM_MIRROR_FOREIGN:
		total.strangers++;
		if (!w.damage_done)
			violation("the target is taken for another image");
		if (w.draining || percent(50))
			bm_mirror_detach(w.m);
		else
			right_one_comes();
		break;
	case BM_MIRROR_DOUBTFUL:
		w.doubtful = true;
		break;
	case BM_MIRROR_IN_SYNC:
		if (!w.draining && percent(50) && may_switch())
			bm_mirror_switch(w.m);
		break;
	default:
		break;
	}
}

static const struct bm_mirror_host with_checkpoint = {
	.commit = host_commit, .event = host_event, .claims = checkpoint_take};
static const struct bm_mirror_host host = {.commit = host_commit, .event = host_event};

static void close_fitted(int disk)
{
	bm_dev_close(w.fitted[disk]);
	w.fitted[disk] = NULL;
}

/* A session with a disk; block 0: as it is. */
static struct bm_dev *open_disk(int disk, uint32_t block)
{
	close_fitted(disk);
	fake_disk_open(&w.disk[disk], w.loop);
	w.fitted[disk] = &w.disk[disk].dev;
	if (bm_order_fit(&w.fitted[disk], block ? block : w.fitted[disk]->geometry.block))
		abort();
	bm_dev_start(w.fitted[disk], w.loop);
	return w.fitted[disk];
}

/* After a flip the old authority still answers what it was asked before. */
bool reads_fly(void)
{
	for (int i = 0; i < GUESTS; i++)
		if (w.guest[i].used && w.guest[i].rq.op == BM_READ)
			return true;
	return false;
}

void start(void)
{
	const struct bm_mirror_config config = {
		.granule = GRANULE,
		.chunk = (unsigned)(1 + below(2)) * GRANULE,
		.window = (unsigned)(1 + below(GRANULES)),
		.misses = (unsigned)(1 + below(3)),
		.flush_every = percent(50) ? 0 : 200000000,
		.grace = percent(50) ? 0 : 100000000,
		.extent = 1u << fate() % 2,
		.claim_every = 100000000,
		.doubtful = w.doubtful,
	};

	w.base = w.record;
	w.loop = bm_loop_new_simulated();
	w.pool = bm_pool_new(w.loop, 1 << 20);
	if (bm_mirror_new(w.loop, open_disk(w.base, 0), &config,
			  w.checkpoint.on ? &with_checkpoint : &host, NULL, &w.m) ||
	    bm_order_new(bm_mirror_dev(w.m), 2 * SECTOR, NULL, &w.order))
		abort();
	bm_dev_start(w.order, w.loop);
	w.alive = true;
	w.attached = w.reopen = w.record_pending = w.parking = false;
	w.power = w.target_power = false;
	w.flush_failed[0] = w.flush_failed[1] = false;
}

void stop(void)
{
	const struct bm_mirror_stats *s = &w.m->stats;

	total.holds += (long)s->holds;
	total.abandoned += (long)s->abandoned;
	total.mirrored += (long)s->mirrored_writes;
	total.late_writes += (long)s->late_writes;
	for (int i = 0; i < 2; i++)
		fake_disk_orphan(&w.disk[i]);
	bm_dev_close(w.order);
	bm_mirror_free(w.m);
	for (int i = 0; i < 2; i++)
		close_fitted(i);
	for (int i = 0; i < GUESTS; i++) {
		bm_buf_unref(w.guest[i].buf);
		memset(&w.guest[i], 0, sizeof(w.guest[i]));
	}
	bm_pool_free(w.pool);
	bm_loop_free(w.loop);
	w.alive = false;
}

/* A record write that is under way when the process dies becomes durable or not. */
static void settle_record(void)
{
	if (w.record_pending && !w.record_applied && percent(50)) {
		w.record = w.record_side;
		w.generation++;
	}
	w.record_pending = false;
}

void crash(bool host_power, bool target_power)
{
	trace("CRASH%s%s", host_power ? " host power" : "", target_power ? " target power" : "");
	total.crashes++;
	total.power_cuts += host_power || target_power;
	w.resumable = w.attached || (w.let_go && w.checkpoint.on && fate() % 2);
	checkpoint_crash();
	w.doubtful |= w.m->doubtful;
	if (host_power && target_power)
		w.doubtful = false;
	stop();
	settle_record();
	oracle_crash(&oracle);
	if (w.flush_failed[w.record])
		oracle_doubt(&oracle);
	if (host_power)
		fake_disk_power_cut(&w.disk[0]);
	if (target_power)
		fake_disk_power_cut(&w.disk[1]);
	if (host_power || !w.attached) { /* the map was on tmpfs */
		memset(w.settled, 0, sizeof(w.settled));
		w.from_checkpoint = w.resumable && w.checkpoint.on;
		if (w.from_checkpoint)
			w.settled[0] = checkpoint_bits();
	}
	w.cut = w.record == 0 ? host_power : target_power;
	w.power = w.cut || (w.record == 1 && w.target_power);
	check_settled("after the crash");
}

void restart(void)
{
	if (fake_disk_has_stale(&w.disk[w.record])) /* the image is still locked */
		return;
	trace("RESTART authority disk %d", w.record);
	check_settled("before the restart");
	check_authority(w.record, w.power, "after the restart");
	oracle_rebase(&oracle, w.disk[w.record].current, SECTORS, w.cut);
	if (!w.resumable || percent(30)) /* the job is over, nobody keeps its map up to date */
		w.resumable = false, memset(w.settled, 0, sizeof(w.settled));
	if (!w.resumable)
		checkpoint_forget();
	start();
	if (!w.resumable)
		return;
	cut_over();
	trace("RESUME");
	if (bm_mirror_resume(w.m, w.settled, w.checkpoint.valid ? &w.checkpoint.bits : NULL))
		abort();
	w.attached = w.reopen = true;
	total.resumes++;
	for (int g = 0; g < GRANULES; g++)
		if (!bm_bitmap_test(&w.m->map.dirty, g))
			total.kept++, total.kept_by_checkpoint += w.from_checkpoint;
	w.let_go = w.from_checkpoint = false;
}

void attach(bool zeroed)
{
	if (w.attached || fake_disk_has_stale(disk_of(other(w.m))))
		return;
	checkpoint_forget();
	if (!bm_mirror_attach(w.m, open_disk(other(w.m) ^ w.base, w.m->block), zeroed, w.settled)) {
		w.attached = true;
		cut_over();
		w.damage_done = false;
		w.damaged = 0;
		trace("attach disk %d", other(w.m) ^ w.base);
	}
}

/* Another image is where the target was: it differs in a granule that both had. */
static void swap_target(struct fake_disk *d)
{
	int g = below(GRANULES), s;

	for (int i = 0; i < GRANULES && bm_bitmap_test(&w.m->map.dirty, (uint64_t)g); i++)
		g = (g + 1) % GRANULES;
	s = g * GRANULE / SECTOR + below(GRANULE / SECTOR);
	if (bm_bitmap_test(&w.m->map.dirty, (uint64_t)g) || w.m->map.granule[g].busy ||
	    reads_fly() || w.m->phase != PHASE_IDLE || w.copied.done)
		return;
	trace("SWAPPED disk %d sector %d", (int)(d - w.disk), s);
	fake_disk_damage(d, s, 2000000 + w.step);
	w.damaged |= (uint8_t)(1u << g);
	w.damage_done = true;
}

void reopen(void)
{
	struct fake_disk *d = disk_of(other(w.m));
	bool foreign = w.foreign && d == &w.disk[1];

	if (!w.reopen || (fake_disk_has_stale(d) && !foreign))
		return;
	w.reopen = false;
	total.overtaken += fake_disk_has_stale(d);
	if (foreign)
		d->old_until = bm_loop_now(w.loop) + w.m->config.grace;
	if (w.swaps && !w.draining && percent(50))
		swap_target(d);
	trace("reattach: %d", bm_mirror_reattach(w.m, open_disk(other(w.m) ^ w.base, w.m->block)));
}

/* The connection to the target breaks, or its host loses power. */
void lose_target(bool power)
{
	struct fake_disk *d = &w.disk[1];

	if (!w.attached || (w.m->link != LINK_UP && w.m->link != LINK_PROVING) ||
	    disk_of(other(w.m)) != d)
		return;
	trace("target %s", power ? "POWER" : "LINK");
	total.power_cuts += power;
	bm_dev_cancel(&d->dev);
	if (power) {
		w.target_power |= w.record_pending || w.record == 1;
		fake_disk_power_cut(d);
	}
	/* The engine learns of it by the first request that fails. A session that breaks while
	 * nothing is in flight is told, too. */
	mirror_lose(w.m, -ENOTCONN);
}
