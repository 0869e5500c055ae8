/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The engine against a model: the real order device and the real mirror, on disks that do what the
 * worst disk may do (fake_disk.h), under simulated time, with random guests, errors, cuts, crashes,
 * switches and detachments; and an oracle that knows what the guest was promised (oracle.h).
 *
 *	mirror_test [-n SEEDS] [-s FIRST] [-v] [-q]
 *
 * Checked all the time and at the end of every seed:
 *   I1  every acknowledged write is on the authoritative copy; no read goes back in time
 *   I2  clean and idle means equal
 *   I3  an acknowledged flush survives a power cut
 *   I4  one record write at a time, generations in order
 *   I5  the settled map never claims equal what differs, also after crash and power cut
 *   and: when faults end, everything is answered and the copy gets in sync.
 *
 * tests/model/mutants.txt breaks each rule of the engine in turn; "make check-mutants" shows that
 * every one of them is caught here.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/list.h"
#include "blockmirror/mirror/engine.h"
#include "tests/model/fake_disk.h"
#include "tests/model/oracle.h"

enum {
	GUESTS = 8,
	GRANULE = 4 * SECTOR,
	GRANULES = SECTORS * SECTOR / GRANULE,
	STEPS = 2400,
	DRAIN_STEPS = 60000,
};

struct guest {
	struct bm_request rq;
	struct bm_buf *buf;
	bool used;
	int id, issue; /* of the operation in the oracle */
	struct bm_extents extents;
	struct bm_extent v[SECTORS];
};

static struct world {
	struct bm_loop *loop;
	struct bm_mirror *m;
	struct bm_dev *order;
	struct bm_pool *pool;
	struct guest guest[GUESTS];
	struct fake_disk disk[2];
	struct bm_dev *fitted[2]; /* the disks, made to fit the mirror's block */
	int base;                 /* disk of side 0 */
	bool alive, attached, reopen, local, faults, draining;
	bool resumable;       /* the process that is gone had two sides */
	bool parking;         /* it is about to end, and nothing is written any more */
	bool flush_failed[2]; /* and this process has not told the guest, or written it all again */
	bool power; /* the authority of the next start lost power: only what was durable is owed */
	bool cut;   /* ... just now: all that it holds is durable */
	bool target_power;
	bool verifies;    /* both sides are compared now and then, one is damaged before that */
	bool calm;        /* no guest goes to the second half: what is zero there stays so */
	bool sound;       /* errors hit the other side only */
	bool guest_wrote; /* since a flush of the target was asked for */
	uint8_t damaged;  /* bit per granule of the other side: changed behind the mirror's back */
	bool damage_done; /* ... since the target was attached */
	uint8_t settled[8];
	int record, generation;
	bool record_pending, record_applied;
	int record_side;
	int error_percent, fault_permille, depth;
	uint32_t block1;
	int step;
	char failure[256];
} w;

static struct {
	long guest_ops, switches, switch_failures, losses, crashes, power_cuts, fulls, detaches,
		holds, abandoned, verified, mismatches, heals, mirrored, held_answers, settled,
		reads, aborted_records, resumes, kept, parks;
} total;

static struct oracle oracle;
static uint64_t seed_state;
static bool verbose;

static uint64_t chance(void)
{
	uint64_t z = seed_state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static int below(int n)
{
	return (int)(chance() % (unsigned)n);
}

static bool percent(int p)
{
	return below(100) < p;
}

__attribute__((format(printf, 1, 2))) static void trace(const char *format, ...)
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

__attribute__((format(printf, 1, 2))) static void violation(const char *format, ...)
{
	va_list args;

	if (w.failure[0])
		return;
	va_start(args, format);
	vsnprintf(w.failure, sizeof(w.failure), format, args);
	va_end(args);
	trace("*** %s", w.failure);
}

static struct fake_disk *disk_of(int side)
{
	return &w.disk[side ^ w.base];
}

/* What must hold */

static bool is_damaged(int g);

static bool equal(int g)
{
	int first = g * GRANULE / SECTOR, last = first + GRANULE / SECTOR;

	for (int s = first; s < last; s++)
		if (w.disk[0].current[s] != w.disk[1].current[s])
			return false;
	return true;
}

/* Damage ends when the granule was written to, by whomever. */
static bool is_damaged(int g)
{
	if (equal(g))
		w.damaged &= (uint8_t) ~(1u << g);
	return w.damaged >> g & 1;
}

static bool damaged(void)
{
	for (int g = 0; g < GRANULES; g++)
		if (is_damaged(g))
			return true;
	return false;
}

static bool stale(void)
{
	return fake_disk_has_stale(&w.disk[0]) || fake_disk_has_stale(&w.disk[1]);
}

static void check_clean(const char *when)
{
	const struct bm_map *map = &w.m->map;

	if (!w.alive || w.m->link == LINK_NONE || stale())
		return;
	for (int g = 0; g < GRANULES; g++)
		if (!bm_bitmap_test(&map->dirty, g) && !bm_bitmap_test(&map->copying, g) &&
		    !map->granule[g].busy && !equal(g) && !is_damaged(g))
			violation("I2 %s: granule %d is clean and differs", when, g);
}

static void check_settled(const char *when)
{
	for (int g = 0; g < GRANULES; g++)
		if (w.settled[0] >> g & 1) {
			total.settled++;
			if (!equal(g) && !is_damaged(g))
				violation("I5 %s: granule %d is settled and differs", when, g);
		}
}

static void check_authority(int disk, bool power, const char *when)
{
	for (int s = 0; s < SECTORS; s++)
		if (!oracle_allows(&oracle, s, w.disk[disk].current[s], power))
			violation("%s %s: sector %d of the authority (disk %d) holds %d",
				  power ? "I3" : "I1", when, s, disk, w.disk[disk].current[s]);
}

/* A damaged side must not become the authority before it was compared. */
static bool may_switch(void)
{
	return !damaged() && !w.m->check.done && !w.calm;
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
		break;
	case BM_MIRROR_IN_SYNC:
		if (!w.draining && percent(50) && may_switch())
			bm_mirror_switch(w.m);
		break;
	default:
		break;
	}
}

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

static void start(void)
{
	const struct bm_mirror_config config = {
		.granule = GRANULE,
		.chunk = (unsigned)(1 + below(2)) * GRANULE,
		.window = (unsigned)(1 + below(GRANULES)),
		.misses = (unsigned)(1 + below(3)),
		.flush_every = percent(50) ? 0 : 200000000,
	};

	w.base = w.record;
	w.loop = bm_loop_new_simulated();
	w.pool = bm_pool_new(w.loop, 1 << 20);
	if (bm_mirror_new(w.loop, open_disk(w.base, 0), &config, &host, NULL, &w.m) ||
	    bm_order_new(bm_mirror_dev(w.m), 2 * SECTOR, NULL, &w.order))
		abort();
	bm_dev_start(w.order, w.loop);
	w.alive = true;
	w.attached = w.reopen = w.record_pending = w.parking = false;
	w.power = w.target_power = false;
	w.flush_failed[0] = w.flush_failed[1] = false;
}

static void stop(void)
{
	const struct bm_mirror_stats *s = &w.m->stats;

	total.holds += (long)s->holds;
	total.abandoned += (long)s->abandoned;
	total.mirrored += (long)s->mirrored_writes;
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

static void crash(bool host_power, bool target_power)
{
	trace("CRASH%s%s", host_power ? " host power" : "", target_power ? " target power" : "");
	total.crashes++;
	total.power_cuts += host_power || target_power;
	w.resumable = w.attached;
	stop();
	settle_record();
	oracle_crash(&oracle);
	if (w.flush_failed[w.record])
		oracle_doubt(&oracle);
	if (host_power) {
		fake_disk_power_cut(&w.disk[0]);
		memset(w.settled, 0, sizeof(w.settled)); /* it was on tmpfs */
	}
	if (target_power)
		fake_disk_power_cut(&w.disk[1]);
	w.cut = w.record == 0 ? host_power : target_power;
	w.power = w.cut || (w.record == 1 && w.target_power);
	check_settled("after the crash");
}

static void restart(void)
{
	if (fake_disk_has_stale(&w.disk[w.record])) /* the image is still locked */
		return;
	trace("RESTART authority disk %d", w.record);
	check_settled("before the restart");
	check_authority(w.record, w.power, "after the restart");
	oracle_rebase(&oracle, w.disk[w.record].current, SECTORS, w.cut);
	if (!w.resumable || percent(30)) /* the job is over, nobody keeps its map up to date */
		w.resumable = false, memset(w.settled, 0, sizeof(w.settled));
	start();
	if (!w.resumable)
		return;
	trace("RESUME");
	if (bm_mirror_resume(w.m, w.settled))
		abort();
	w.attached = w.reopen = true;
	total.resumes++;
	for (int g = 0; g < GRANULES; g++)
		total.kept += !bm_bitmap_test(&w.m->map.dirty, g);
}

static void attach(bool zeroed)
{
	if (w.attached || fake_disk_has_stale(disk_of(other(w.m))))
		return;
	if (!bm_mirror_attach(w.m, open_disk(other(w.m) ^ w.base, w.m->block), zeroed, w.settled)) {
		w.attached = true;
		w.damage_done = false;
		w.damaged = 0;
		trace("attach disk %d", other(w.m) ^ w.base);
	}
}

static void reopen(void)
{
	struct fake_disk *d = disk_of(other(w.m));

	if (!w.reopen || fake_disk_has_stale(d))
		return;
	w.reopen = false;
	trace("reattach: %d", bm_mirror_reattach(w.m, open_disk(other(w.m) ^ w.base, w.m->block)));
}

/* The connection to the target breaks, or its host loses power. */
static void lose_target(bool power)
{
	struct fake_disk *d = &w.disk[1];

	if (!w.attached || w.m->link != LINK_UP || disk_of(other(w.m)) != d)
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

/* The guest */

static void guest_done(struct bm_request *rq, int error)
{
	struct guest *g = bm_container(rq, struct guest, rq);
	int first = (int)(rq->offset / SECTOR);

	trace("guest op %d [%d,+%d) done %d", (int)rq->op, first, (int)(rq->length / SECTOR),
	      error);
	if (error && w.sound)
		violation("an error of the other side reached the guest: %d", error);
	if (rq->op == BM_FLUSH) {
		oracle_flushed(&oracle, g->id, !error);
		if (error)
			w.flush_failed[w.m->authority ^ w.base] = false;
	} else if (rq->op == BM_READ && !error) {
		oracle.clock++;
		total.reads++;
		for (int i = 0; i < (int)(rq->length / SECTOR); i++) {
			int value = sector_value(rq->data + (size_t)i * SECTOR);

			if (!oracle_read(&oracle, g->issue, first + i, value))
				violation("I1: a read of sector %d returned %d", first + i, value);
		}
		oracle.clock++;
	} else if (rq->op == BM_WRITE || rq->op == BM_ZERO || rq->op == BM_TRIM) {
		oracle_written(&oracle, g->id, !error);
		if (g->buf && g->buf->refs == 1)
			memset(g->buf->data, 0x5a, g->buf->size); /* it is the guest's again */
	}
	bm_buf_unref(g->buf);
	g->buf = NULL;
	g->used = false;
}

static int live(void)
{
	int n = 0;

	for (int i = 0; i < GUESTS; i++)
		n += w.guest[i].used;
	return n;
}

static void choose_range(struct bm_request *rq)
{
	int all = w.calm ? SECTORS / 2 : SECTORS, n = 1 + below(percent(25) ? 8 : 3),
	    first = below(all - n + 1);

	if (percent(20)) {
		n = GRANULE / SECTOR;
		first = below(all / n) * n;
	}
	rq->offset = (uint64_t)first * SECTOR;
	rq->length = (uint64_t)n * SECTOR;
}

static enum bm_op choose_op(void)
{
	int x = below(100);

	return x < 12   ? BM_FLUSH
	       : x < 30 ? BM_READ
	       : x < 32 ? BM_EXTENTS
	       : x < 40 ? BM_ZERO
	       : x < 44 ? BM_TRIM
			: BM_WRITE;
}

static void guest_op(void)
{
	struct guest *g = w.guest;
	int value = 0;

	while (g->used)
		g++;
	memset(g, 0, sizeof(*g));
	g->used = true;
	g->rq.op = choose_op();
	g->rq.done = guest_done;
	total.guest_ops++;
	if (g->rq.op == BM_FLUSH) {
		g->id = oracle_flush(&oracle);
	} else {
		choose_range(&g->rq);
		g->buf = bm_buf_get(w.pool, SECTORS * SECTOR);
		g->rq.data = g->buf->data;
		g->rq.buf = g->buf;
	}
	g->extents = (struct bm_extents){.v = g->v, .room = SECTORS};
	g->rq.extents = g->rq.op == BM_EXTENTS ? &g->extents : NULL;
	if (g->rq.op == BM_READ)
		g->issue = oracle_now(&oracle);
	if (g->rq.op == BM_WRITE || g->rq.op == BM_ZERO || g->rq.op == BM_TRIM) {
		int n = (int)(g->rq.length / SECTOR);

		if (g->rq.op == BM_WRITE && !percent(8))
			value = ++oracle.next_value;
		if (percent(10))
			g->rq.flags = BM_FUA;
		w.guest_wrote = true;
		for (int i = 0; g->rq.op == BM_WRITE && i < n; i++)
			sector_fill(g->rq.data + (size_t)i * SECTOR, value);
		g->id = oracle_write(&oracle, value, (int)(g->rq.offset / SECTOR), n,
				     g->rq.flags & BM_FUA, g->rq.op == BM_TRIM);
	}
	trace("guest op %d [%d,+%d) value %d%s", (int)g->rq.op, (int)(g->rq.offset / SECTOR),
	      (int)(g->rq.length / SECTOR), value, g->rq.flags & BM_FUA ? " FUA" : "");
	bm_submit(w.order, &g->rq);
}

/* The world moves */

/* In some seeds the authority is sound: then the guest never sees an error. */
static bool may_fail(const struct fake_disk *d)
{
	return !w.sound || !w.alive || d != disk_of(w.m->authority);
}

static void disk_step(void)
{
	struct fake_disk *d = &w.disk[below(2)];
	struct fake_io *io = d->pending ? fake_disk_pick(d, below(d->pending)) : NULL;
	int rounds = 1 + below(5);

	if (!io)
		return;
	while (rounds-- && io->left)
		fake_io_apply(io);
	if (io->rq && w.faults && percent(w.error_percent) && may_fail(d)) {
		trace("disk %d: op %d [%d,+%d) fails", (int)(d - w.disk), (int)io->op, io->first,
		      io->n);
		w.flush_failed[d - w.disk] |= io->op == BM_FLUSH;
		fake_io_end(io, percent(20) ? -ENOSPC : -EIO);
	} else if (!io->left && percent(60)) {
		trace("disk %d: op %d [%d,+%d) ends", (int)(d - w.disk), (int)io->op, io->first,
		      io->n);
		fake_io_end(io, 0);
	}
}

static void record_step(void)
{
	if (!w.record_pending)
		return;
	if (!w.record_applied && percent(60)) {
		w.record_applied = true;
		w.record = w.record_side;
		w.generation++;
		trace("record: generation %d, disk %d, durable", w.generation, w.record);
	} else if (w.record_applied || (w.faults && percent(20))) {
		bool ok = w.record_applied && !(w.faults && w.error_percent && percent(15));

		total.aborted_records += !ok;
		w.record_pending = false;
		trace("record: %s", ok ? "ok" : "failed");
		bm_mirror_committed(w.m, ok ? 0 : -EIO);
	}
}

static void flush_target_done(void *arg, int error)
{
	(void)arg;
	if (error || !w.alive)
		return;
	if (!mirror_in_sync(w.m))
		violation("flush of the target done and not in sync");
	if (!w.guest_wrote && !fake_disk_durable(disk_of(other(w.m))))
		violation("flush of the target done and not durable");
}

static void verified(void *arg, int error)
{
	(void)arg;
	trace("verified: %d, %d mismatches", error, (int)w.m->stats.mismatches);
	if (error)
		return;
	total.verified++;
	total.mismatches += (long)w.m->stats.mismatches;
	if (w.m->stats.mismatches && !w.damage_done)
		violation("a difference was found where there is none");
	for (int g = 0; g < GRANULES; g++)
		if (is_damaged(g) && !bm_bitmap_test(&w.m->map.dirty, g) &&
		    !w.m->map.granule[g].busy)
			violation("verified, and granule %d is damaged", g);
}

/* After a flip the old authority still answers what it was asked before. */
static bool reads_fly(void)
{
	for (int i = 0; i < GUESTS; i++)
		if (w.guest[i].used && w.guest[i].rq.op == BM_READ)
			return true;
	return false;
}

/* Somebody changes a sector of the other side; then both are compared. */
static void damage_and_verify(void)
{
	int g = below(GRANULES), s = g * GRANULE / SECTOR + below(GRANULE / SECTOR);
	struct fake_disk *d = disk_of(other(w.m));

	if (!w.attached || w.m->phase != PHASE_IDLE || w.m->check.done)
		return;
	if (w.m->link == LINK_UP && percent(50) && !reads_fly() &&
	    !bm_bitmap_test(&w.m->map.dirty, g) && !bm_bitmap_test(&w.m->map.copying, g) &&
	    !w.m->map.granule[g].busy && !stale()) {
		trace("DAMAGE disk %d sector %d", (int)(d - w.disk), s);
		fake_disk_damage(d, s, 1000000 + w.step);
		w.damaged |= (uint8_t)(1u << g);
		w.damage_done = true;
	}
	(void)bm_mirror_verify(w.m, verified, NULL);
}

/* The process ends in good order, and its map is of use to the next one. */
static void park(void)
{
	if (!w.attached || live())
		return;
	trace("PARK");
	bm_mirror_keep_map(w.m);
	bm_mirror_detach(w.m);
	w.parking = true;
}

static void parking_step(void)
{
	if (!w.attached) {
		crash(false, false);
		w.resumable = true;
		total.parks++;
	} else if (percent(50)) {
		disk_step();
	} else if (percent(50)) {
		record_step();
	} else {
		bm_loop_turn(w.loop, percent(10) ? 1000000000 : 0);
	}
}

static void host_step(void)
{
	int x = below(w.draining ? 8 : 20);

	if (w.verifies && !w.draining && percent(20))
		damage_and_verify();
	else if (x < 4)
		reopen();
	else if (x < 6)
		record_step();
	else if (w.draining)
		bm_mirror_pause(w.m, false);
	else if (x < 10)
		attach(false);
	else if (x < 14 && w.attached && may_switch())
		bm_mirror_switch(w.m);
	else if (x == 14)
		bm_mirror_pause(w.m, percent(30));
	else if (x == 15 && percent(20) && !w.calm)
		bm_mirror_detach(w.m);
	else if (x == 16)
		bm_mirror_switch_cancel(w.m);
	else if (x == 17 && !bm_mirror_flush_target(w.m, flush_target_done, NULL))
		w.guest_wrote = live() != 0;
	else if (x == 18 && w.fault_permille)
		park();
}

static void fault_step(void)
{
	switch (below(4)) {
	case 0:
		crash(false, percent(30) && !w.local);
		break;
	case 1:
		crash(true, w.local);
		break;
	case 2:
		if (!w.local)
			lose_target(false);
		break;
	case 3:
		if (!w.local)
			lose_target(true);
		break;
	}
}

static bool quiet(void)
{
	return w.alive && !live() && !w.disk[0].pending && !w.disk[1].pending &&
	       !w.record_pending && bm_loop_turn(w.loop, 0) == 0 &&
	       (!w.attached || (mirror_in_sync(w.m) && !w.m->check.done));
}

static void dead_step(void)
{
	if (percent(50))
		disk_step();
	else if (!w.local && w.faults && percent(3)) { /* the target's host, while we are dead */
		fake_disk_power_cut(&w.disk[1]);
		w.power |= w.record == 1;
		w.cut |= w.record == 1;
		total.power_cuts++;
		check_settled("after the target's power cut");
	} else if (percent(10))
		restart();
}

static void advance(uint64_t ns)
{
	uint64_t end = bm_loop_now(w.loop) + ns;

	while (bm_loop_now(w.loop) < end)
		bm_loop_turn(w.loop, end - bm_loop_now(w.loop));
}

static void live_step(void)
{
	int x = below(100);

	if (w.faults && below(1000) < w.fault_permille)
		fault_step();
	else if (w.parking)
		parking_step();
	else if (x < 25 && !w.draining && live() < w.depth)
		guest_op();
	else if (x < 62)
		disk_step();
	else if (x < 90)
		bm_loop_turn(w.loop, 0);
	else if (x < 92)
		advance(percent(50) ? 100000000 : chance() % 6000000000u);
	else
		host_step();
}

static void run_seed(uint64_t seed)
{
	int value[2][SECTORS];

	memset(&w, 0, sizeof(w));
	/* Hashed: states that differ by the generator's step would give one sequence, shifted. */
	seed_state = seed;
	seed_state = chance();
	oracle_reset(&oracle);
	for (int s = 0; s < SECTORS; s++) {
		value[0][s] = s / 4 % 2 ? 0 : s + 1;
		value[1][s] = 0;
	}
	w.local = percent(50);
	w.block1 = percent(50) ? SECTOR : 2 * SECTOR;
	w.fault_permille = percent(30) ? 0 : 10;
	w.error_percent = percent(50) ? 0 : percent(50) ? 2 : 8;
	w.sound = percent(30);
	w.verifies = percent(30);
	w.calm = w.verifies && percent(30);
	if (w.calm) /* nor is the target lost, after which nothing is known to be zero */
		w.fault_permille = w.error_percent = 0;
	w.depth = 1 + below(GUESTS);
	fake_disk_init(&w.disk[0], value[0], SECTOR, chance);
	fake_disk_init(&w.disk[1], value[1], w.block1, chance);
	w.disk[1].remote = !w.local;
	oracle_rebase(&oracle, value[0], SECTORS, true);
	start();
	if (percent(80))
		attach(true);
	for (w.step = 0; !w.failure[0]; w.step++) {
		w.draining = w.step > STEPS;
		w.faults = !w.draining;
		if (w.alive)
			live_step();
		else
			dead_step();
		check_clean("running");
		check_settled("running");
		if (w.alive && w.m->hold && w.m->paused)
			violation("a write waits for a copy while copying is paused");
		if (w.draining && quiet())
			break;
		if (w.step > STEPS + DRAIN_STEPS)
			violation("no end: %d requests, state %d, phase %d, dirty %d", live(),
				  w.alive ? (int)w.m->link : -1, w.alive ? (int)w.m->phase : -1,
				  w.alive ? (int)w.m->map.dirty.count : -1);
	}
	check_clean("at the end");
	if (w.alive) {
		check_authority(w.m->authority ^ w.base, false, "at the end");
		stop();
	}
}

/* A test that never came to the dangerous places proves nothing. */
static bool covered(void)
{
	printf("# guest operations %ld, reads checked %ld, mirrored writes %ld, switches %ld, "
	       "failed "
	       "%ld, records in doubt %ld\n# losses %ld, full %ld, detached %ld, abandoned legs "
	       "%ld, "
	       "holds %ld, crashes %ld, power cuts %ld, settled granules checked %ld\n"
	       "# comparisons %ld, differences found %ld, parked %ld, resumed %ld, granules "
	       "not copied again %ld\n",
	       total.guest_ops, total.reads, total.mirrored, total.switches, total.switch_failures,
	       total.aborted_records, total.losses, total.fulls, total.detaches, total.abandoned,
	       total.holds, total.crashes, total.power_cuts, total.settled, total.verified,
	       total.mismatches, total.parks, total.resumes, total.kept);
	return total.switches && total.switch_failures && total.losses && total.fulls &&
	       total.detaches && total.abandoned && total.holds && total.crashes &&
	       total.power_cuts && total.settled && total.mirrored && total.verified &&
	       total.mismatches && total.parks && total.resumes && total.kept;
}

int main(int argc, char **argv)
{
	uint64_t first = 1, seeds = 10000, bad = 0;
	bool quick = false;
	int c;

	while ((c = getopt(argc, argv, "n:s:vq")) != -1) {
		if (c == 'n')
			seeds = strtoull(optarg, NULL, 10);
		else if (c == 's')
			first = strtoull(optarg, NULL, 10);
		else if (c == 'v')
			verbose = true;
		else if (c == 'q')
			quick = true; /* the first violation is enough */
		else
			return 2;
	}
	for (uint64_t seed = first; seed < first + seeds; seed++) {
		run_seed(seed);
		if (!w.failure[0])
			continue;
		printf("# seed %" PRIu64 " step %d: %s\n", seed, w.step, w.failure);
		if (w.alive)
			stop();
		bad++;
		if (quick || bad >= 20)
			break;
	}
	printf("%sok 1 - %" PRIu64 " seeds from %" PRIu64 " keep the invariants\n",
	       bad ? "not " : "", seeds, first);
	if (!quick && seeds >= 1000)
		printf("%sok 2 - every kind of event took place\n", covered() ? "" : "not ");
	printf("1..%d\n", !quick && seeds >= 1000 ? 2 : 1);
	return bad != 0;
}
