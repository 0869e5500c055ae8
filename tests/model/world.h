/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The world that the engine is tested in: two disks, a process that comes and goes, a guest, and
 * what has happened so far. One at a time, so it is global.
 */
#ifndef WORLD_H
#define WORLD_H

#include <stdbool.h>
#include <stdint.h>

#include "blockmirror/base/list.h"
#include "blockmirror/mirror/engine.h"
#include "tests/model/fake_disk.h"
#include "tests/model/oracle.h"

enum {
	GUESTS = 8,
	GRANULE = 4 * SECTOR,
	GRANULES = SECTORS * SECTOR / GRANULE,
};

struct guest {
	struct bm_request rq;
	struct bm_buf *buf;
	bool used;
	int id, issue; /* of the operation in the oracle */
	struct bm_extents extents;
	struct bm_extent v[SECTORS];
};

/* The durable checkpoint of the settled map. */
struct checkpoint {
	bool on;      /* in this seed */
	bool valid;   /* the next process would believe it */
	bool writing; /* these changes are under way, any part of them may be there */
	bool broken;  /* it cannot be written to */
	bool marking; /* ... and that is being said where the next process will look */
	struct bm_claim claim[GRANULES];
	unsigned count;
	uint8_t bits; /* as a power cut leaves them */
};

/* The last cut that was made, and the copy that came of it. */
struct copied {
	uint64_t number; /* as the engine counts them since the target was attached */
	uint64_t before; /* … when it was asked for one */
	int expected[SECTORS], disk, clock;
	uint8_t damaged;
	bool busy; /* writes were in flight */
	bool done; /* the copy is there, and nobody writes to it */
};

struct world {
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
	bool doubtful;        /* a flush has failed, and not both have lost their power since */
	bool flush_failed[2]; /* and this process has not told the guest, or written it all again */
	bool power; /* the authority of the next start lost power: only what was durable is owed */
	bool cut;   /* ... just now: all that it holds is durable */
	bool target_power;
	bool verifies;    /* both sides are compared now and then, one is damaged before that */
	bool calm;        /* no guest goes to the second half: what is zero there stays so */
	bool sound;       /* errors hit the other side only */
	bool foreign;     /* disk 1's server does not tell when old requests are over */
	bool swaps;       /* the target comes back with another content, now and then */
	uint8_t damaged;  /* bit per granule of the other side: changed behind the mirror's back */
	bool damage_done; /* ... since the target was attached */
	uint8_t settled[8];
	struct checkpoint checkpoint;
	struct copied copied;
	bool from_checkpoint; /* the settled map of the next process is */
	bool let_go;          /* the target is, but the record may not say so yet */
	int record, generation;
	bool record_pending, record_applied;
	int record_side;
	int error_percent, fault_permille, depth;
	uint32_t block1;
	int step;
	char failure[256];
};

/* How often what happened, in all seeds. */
struct totals {
	long guest_ops, switches, switch_failures, losses, crashes, power_cuts, fulls, detaches,
		holds, abandoned, verified, mismatches, heals, mirrored, held_answers, settled,
		reads, aborted_records, resumes, kept, parks, backs, strangers, late_writes,
		overtaken, claims, withdrawals, voids, claimed, kept_by_checkpoint, copies,
		copies_busy, copies_again, copies_late;
};

extern struct world w;
extern struct totals total;
extern struct oracle oracle;
extern uint64_t seed_state;
extern bool verbose;

/* world.c: chance, and what is said about it. */
uint64_t chance(void);
int below(int n);
bool percent(int p);
__attribute__((format(printf, 1, 2))) void trace(const char *format, ...);
__attribute__((format(printf, 1, 2))) void violation(const char *format, ...);

/* world.c: the process, and what becomes of it. */
struct fake_disk *disk_of(int side);
void start(void);
void stop(void);
void crash(bool host_power, bool target_power);
void restart(void);
void attach(bool zeroed);
void reopen(void);
bool reads_fly(void); /* the old authority may still answer what it was asked before a flip */
void lose_target(bool power); /* the connection to it breaks, or its host loses power */

/* invariants.c: what must hold, now. */
bool is_damaged(int g);
bool damaged(void);
bool stale(void);
void check_clean(const char *when);
void check_settled(const char *when);
void check_proving(void);
void check_authority(int disk, bool power, const char *when);
bool may_switch(void); /* a damaged side must not become the authority before it was compared */

/* guest.c */
void guest_op(void);
int live(void); /* its requests in flight */

/* cut.c */
void cut_ask(void);
void cut_step(void);
void cut_over(void); /* a target is attached, or comes back to who follows a dead process */

/* checkpoint.c */
extern uint64_t fate_state;
uint64_t fate(void); /* chances that a seed without a checkpoint does not take */
void checkpoint_take(void *arg);
void checkpoint_step(void);
void checkpoint_crash(void);
void checkpoint_park(void);
void checkpoint_forget(void);
uint8_t checkpoint_bits(void);
void check_checkpoint(const char *when);

#endif
