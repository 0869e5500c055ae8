/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The mirror: a block device made of one device, and for a while of two. Requests go through it
 * from the first to the last day of a disk; when a target is attached, writes land on both, the
 * baseline is copied behind the guest's back, and authority passes from one to the other, or the
 * other one stays behind as a copy, without a request being held. The rules and the races they
 * answer: docs/mirror.md.
 *
 * All functions are for the loop's thread. The mirror owns neither device: the host opened them,
 * and closes one when it is told that the mirror is done with it. What the mirror cannot do itself
 * because it blocks or must be durable (writing the record, opening a target again) the host does
 * off the loop and answers by a call.
 *
 * Above the mirror there is an order device (bm_order_new()): no two overlapping writes, and no
 * read and write that overlap, are ever in flight together. Everything here relies on it.
 */
#ifndef BLOCKMIRROR_MIRROR_H
#define BLOCKMIRROR_MIRROR_H

#include "blockmirror/blockdev.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct bm_mirror;

/* The two devices are side 0 (the one it was made with) and side 1, for good. */

enum bm_mirror_event {
	BM_MIRROR_IN_SYNC,       /* no granule is dirty, every write goes to both */
	BM_MIRROR_LOST,          /* the other side failed: tracking; its requests are being ended */
	BM_MIRROR_LOST_IDLE,     /* ... and have ended: close it, call bm_mirror_reattach() */
	BM_MIRROR_FULL,          /* the other side has no space: paused */
	BM_MIRROR_RESUMED,       /* by itself, after BM_MIRROR_FULL */
	BM_MIRROR_TRACKING,      /* writes go to the authority alone, to spare the guest */
	BM_MIRROR_MIRRORING,     /* ... and to both again */
	BM_MIRROR_SOURCE_ERROR,  /* a granule of the authority cannot be read, and is left out: see
				    the statistics */
	BM_MIRROR_SWITCHED,      /* authority passed; still mirroring, the other way round */
	BM_MIRROR_SWITCH_FAILED, /* authority stayed; ask again, with new records */
	BM_MIRROR_DETACHED,      /* the mirror is done with the other side: close it */
	BM_MIRROR_DOUBTFUL,      /* a flush of the authority failed: see bm_mirror_config */
	BM_MIRROR_BACK,          /* after bm_mirror_reattach(): it is the one that was here */
	BM_MIRROR_FOREIGN,       /* ... it is another one: nothing was written; detach */
	BM_MIRROR_REST_COPIED,   /* all is copied but what cannot be read: it is not in sync */
	BM_MIRROR_CUT            /* the cut was made; the copy is not durable yet */
};

/* What the host does for the mirror. Called from the loop, never inside a call of the host's. */
struct bm_mirror_host {
	/*
	 * Make durable that side is the authority, in a record of a generation one higher than the
	 * last. One at a time. Answer by bm_mirror_committed(), never before this returns. A commit
	 * that reports an error may have become durable all the same.
	 */
	void (*commit)(void *arg, int side);
	void (*event)(void *arg, enum bm_mirror_event event);
	/*
	 * The checkpoint is to be changed: bm_mirror_take_claims(), at once or when the changes
	 * taken before have been answered. NULL: there is no checkpoint.
	 */
	void (*claims)(void *arg);
};

#define BM_MIRROR_DEADLINE 2000000000ull
#define BM_MIRROR_SILENCE  30 /* deadlines without any answer: the other side is lost */

struct bm_mirror_config {
	uint64_t size;          /* of the disk in bytes; 0: all of the source */
	unsigned granule;       /* bytes, a power of two ≥ 4096 (tests: ≥ 512); 0: 64 KiB */
	unsigned chunk;         /* most bytes of one copy; 0: 1 MiB */
	unsigned window;        /* granules asked for extents at once, ≤ 4096; 0: 4096 */
	unsigned misses;        /* spoiled copies of a granule before a write waits; 0: 3 */
	uint64_t deadline;      /* ns a write waits for the other side; 0: BM_MIRROR_DEADLINE */
	uint64_t flush_every;   /* ns between flushes of the target while mirroring; 0: 5 s */
	uint64_t full_retry;    /* ns before a full target is tried again; 0: 10 s */
	uint64_t grace;         /* ns that a target without BM_DEV_FENCED may take to end old
				   requests; 0: 5 s */
	unsigned extent;        /* granules, a power of two up to 64; 0: 64 */
	uint64_t claim_every;   /* ns that an extent must be left alone to be claimed; 0: 5 s */
	bool doubtful;          /* a flush failed that this process does not know of: what it was
				   to make durable no later one will, so nothing is settled */
	struct bm_meter *meter; /* what the guest feels; NULL: the governor does nothing */
};

/*
 * A mirror of source alone. source is started and stays the host's; its block becomes the disk's
 * for as long as the mirror lives, and every device is made to fit it (bm_order_fit()). config is
 * copied. Returns 0, -EINVAL (size, granule, limits) or -ENOMEM.
 */
int bm_mirror_new(struct bm_loop *loop, struct bm_dev *source,
		  const struct bm_mirror_config *config, const struct bm_mirror_host *host,
		  void *arg, struct bm_mirror **mirror);

/*
 * Frees the mirror as a killed process would: requests in flight are forgotten, not ended. A host
 * that wants them ended detaches and drains first. NULL is allowed.
 */
void bm_mirror_free(struct bm_mirror *mirror);

/* The mirror as a device, for bm_order_new(). It lives as long as the mirror; closing it is void.
 */
struct bm_dev *bm_mirror_dev(struct bm_mirror *mirror);

/*
 * What the two sides differ in, as a device that answers BM_EXTENTS and nothing else (-ENOTSUP):
 * flags are BM_MIRROR_DIRTY where a granule is dirty, 0 where it is not; without another side
 * nothing is dirty. It lives as long as the mirror; closing it is void.
 */
#define BM_MIRROR_DIRTY 1u
struct bm_dev *bm_mirror_dirty_dev(struct bm_mirror *mirror);

/*
 * Bytes of the settled map of a disk: a bit per granule, rounded up. The host gives memory for it
 * (a mapped file, so that it outlives this process; docs/record.md) to bm_mirror_attach().
 */
uint64_t bm_mirror_map_bytes(uint64_t size, unsigned granule);

/*
 * Attaches a target (started, at least as large as the disk) and begins to mirror and to copy. No
 * request of an earlier session with it may still be carried out.
 * zeroed: it is known to hold nothing but zeros, durably. settled: see bm_mirror_map_bytes(), NULL
 * for none. Returns 0; -EBUSY when there is another side; -EINVAL when it is too small, read-only,
 * or not made to fit; -ENOMEM.
 */
int bm_mirror_attach(struct bm_mirror *mirror, struct bm_dev *target, bool zeroed,
		     uint8_t *settled);

/*
 * Goes on where a process was that is gone: as bm_mirror_attach(), but what settled, which that one
 * left, calls settled is not copied again. checkpoint is what the checkpoint says now, if it is
 * (still) to be believed by who comes next; NULL: nothing. It is not kept. The other side is not
 * here yet: writes are noted until bm_mirror_reattach() brings it. -EBUSY, -ENOMEM.
 */
int bm_mirror_resume(struct bm_mirror *mirror, uint8_t *settled, const uint8_t *checkpoint);

/* After bm_mirror_resume(): what was taken for equal may not be. All is copied again. */
void bm_mirror_distrust(struct bm_mirror *mirror);

/*
 * The checkpoint: a copy of the settled map that outlives a power cut. The host changes it when it
 * is told to (host->claims), an extent at a time: its bits are replaced by settled, all of them, or
 * none (0: the claim is withdrawn, and a guest may wait for that). Where something goes wrong any
 * bit may have the old or the new value. Takes at most room changes; returns how many, 0 when there
 * is nothing to do. All that was taken is answered before more is: by _durable() when it is on
 * stable storage; or by _void() when nobody will believe that checkpoint, whatever it says, any
 * more: that may be called at any time, and what was taken before counts as answered.
 */
struct bm_claim {
	uint64_t extent;  /* the number of the extent */
	uint64_t settled; /* bit n: granule n of it */
};
unsigned bm_mirror_take_claims(struct bm_mirror *mirror, struct bm_claim *v, unsigned room);
void bm_mirror_claims_durable(struct bm_mirror *mirror);
void bm_mirror_claims_void(struct bm_mirror *mirror);
/* Whether something waits for a withdrawal. */
bool bm_mirror_claims_awaited(const struct bm_mirror *mirror);

/*
 * What settled says stays as it is, and the checkpoint: nothing is written any more, and this
 * process ends. A detach that follows does not clear them.
 */
void bm_mirror_keep_map(struct bm_mirror *mirror);

/*
 * After BM_MIRROR_LOST_IDLE, or bm_mirror_resume(): the other side (again), freshly opened. With
 * BM_DEV_FENCED no request of an earlier session will still be carried out; without, what was in
 * flight is in quarantine until it was read back. A sample is compared first: BM_MIRROR_BACK, and
 * what differs is copied; or BM_MIRROR_FOREIGN. -EINVAL as above, -ENOTCONN.
 */
int bm_mirror_reattach(struct bm_mirror *mirror, struct bm_dev *target);

/*
 * Gives up the other side: no copy, no mirroring, its requests are cancelled. In the middle of a
 * switch the authority is settled first. BM_MIRROR_DETACHED follows (never inside this call).
 * -ENOTCONN when there is no other side.
 */
int bm_mirror_detach(struct bm_mirror *mirror);

/*
 * Passes authority to the other side as soon as both are in sync; tried again when something
 * interferes, until it succeeded, bm_mirror_switch_cancel(), or BM_MIRROR_SWITCH_FAILED: then a
 * record was asked for. -ENOTCONN without other side, -EBUSY when a cut is asked for.
 */
int bm_mirror_switch(struct bm_mirror *mirror);

/* -EBUSY once the record is being written: then the switch succeeds or BM_MIRROR_SWITCH_FAILED. */
int bm_mirror_switch_cancel(struct bm_mirror *mirror);

/* The answer to host->commit(): 0 = durable, -errno = not known. */
void bm_mirror_committed(struct bm_mirror *mirror, int error);

/*
 * A copy as of one instant. As soon as both are in sync the cut is made, without holding a request:
 * what was sent to both before ends on both, what comes after goes to the authority alone. When the
 * other side has all of that, and nothing else, durably, calls done(arg, 0), and sends nothing to
 * it any more: then detach. Where the other side fails before, all is made equal and it is cut
 * again. -ECANCELED when it is let go before.
 *
 * The copy holds every write that was answered before the instant, none that was begun after it,
 * and those in flight whole; what the guest was told to have failed may be there or not. Not begun
 * while paused. -ENOTCONN, -EBUSY (one is asked for, a switch is on), -EINVAL (the other
 * side was the authority, and a flush of it failed: no later one makes that good).
 */
int bm_mirror_cut(struct bm_mirror *mirror, void (*done)(void *arg, int error), void *arg);

/*
 * The guest is about to write no more, and both sides are to be durable soon after: what the other
 * side was sent and has not flushed is flushed at once, and again with each flush of the guest's,
 * not after it: for so many ns, since what it is done for may come to nothing; 0: no more. A cut
 * then finds that there is nothing left to flush.
 */
void bm_mirror_settle(struct bm_mirror *mirror, uint64_t ns);

/* Whether the guest's last flush covers all that was written to the authority. */
bool bm_mirror_authority_flushed(const struct bm_mirror *mirror);

/* It is not wanted any more: done() is not called, and both are kept equal as before. */
void bm_mirror_cut_end(struct bm_mirror *mirror);

/*
 * Compares all of both sides, while the guest writes, as soon as they are in sync; then calls
 * done(arg, 0), or with -errno when the authority cannot be read, -ECANCELED when the other side is
 * let go before. What differed (statistics: mismatches) was copied again and is equal then; -EILSEQ
 * when it still was not: one of them does not keep, or not tell, what it holds.
 * -ENOTCONN, -EBUSY, -ENOMEM.
 */
int bm_mirror_verify(struct bm_mirror *mirror, void (*done)(void *arg, int error), void *arg);

/* Copying and comparing stop and go on; mirroring does not. */
void bm_mirror_pause(struct bm_mirror *mirror, bool paused);

/* How long a write waits for the other side, ns; 0: BM_MIRROR_DEADLINE. */
void bm_mirror_set_deadline(struct bm_mirror *mirror, uint64_t deadline);

/* Bytes per second of baseline data; 0: unlimited. */
void bm_mirror_set_rate(struct bm_mirror *mirror, uint64_t rate);

/*
 * What all mirrors of a host, in whichever process, may send together (base/cap.h). Copies wait for
 * it, writes of the guest take from it and do not wait. Outlives the mirror; NULL: nothing of that.
 */
struct bm_cap;
void bm_mirror_set_cap(struct bm_mirror *mirror, struct bm_cap *cap);

/*
 * How much the guest may feel: BM_LATENCY_AUTO, p99 at most twice its own before (the default);
 * BM_LATENCY_OFF, all the copy can take; else p99 in ns, and where the target itself is slower
 * than that, writes go to the authority alone until the end is near.
 */
#define BM_LATENCY_AUTO 0ull
#define BM_LATENCY_OFF  UINT64_MAX
void bm_mirror_set_latency(struct bm_mirror *mirror, uint64_t p99);

enum bm_mirror_state {
	BM_STATE_ALONE, /* one side */
	BM_STATE_COPYING,
	BM_STATE_IN_SYNC,
	BM_STATE_SWITCHING, /* a record is being written, or its fate is not known */
	BM_STATE_LOST,
	BM_STATE_FULL,
	BM_STATE_PAUSED,
	BM_STATE_DETACHING,
	BM_STATE_CUTTING /* after bm_mirror_cut(): the instant is over, it is being made durable */
};

struct bm_mirror_stats {
	enum bm_mirror_state state;
	int authority; /* side */
	bool tracking;
	bool doubtful;    /* a flush of the authority failed: nothing is settled any more */
	bool rest_copied; /* after BM_MIRROR_REST_COPIED, until a guest writes to what is left */
	uint64_t granule, size; /* bytes */
	uint64_t dirty;         /* granules */
	uint64_t unreadable;    /* of them, that the copy cannot read and leaves out */
	uint64_t unstable;      /* granules not flushed on both sides */
	uint64_t copied_bytes;  /* sent to the target by the copy, as data */
	uint64_t zero_bytes;    /* not sent: holes and zeros */
	uint64_t passed_bytes;  /* of the disk that the copy has dealt with, repeats included */
	uint64_t mirrored_writes, mirrored_bytes; /* guest writes sent to both */
	uint64_t source_only_writes;              /* guest writes ahead of the copy */
	uint64_t collisions, holds, held_writes;
	uint64_t losses, abandoned, flushes;
	uint64_t quarantined;                 /* granules that wait to be read back after a loss */
	uint64_t late_writes;                 /* old writes that were found when they were */
	uint64_t foreign_offset;              /* BM_MIRROR_FOREIGN: where it differs */
	uint64_t checkpoint_bytes;            /* in extents that the checkpoint claims */
	uint64_t checkpoint_waits;            /* guest writes that waited for a withdrawal */
	uint64_t checked_bytes;               /* compared and found equal, since it was asked for */
	uint64_t mismatches, mismatch_offset; /* granules that were not; the first one's place */
	uint64_t cuts, cut_at; /* that were made; the last one's instant, loop's ns */
	uint64_t rate;         /* bytes/s over the last second */
	uint64_t guest_p99, guest_p99_before, guest_p50, guest_p50_before; /* ns, 0: not known */
	uint64_t read_p50, write_p50,
		flush_last;    /* ns, of copies, and the other side's last flush */
	unsigned depth;        /* copies in flight at most, as the governor has it */
	const char *limiter;   /* what keeps the copy from being quicker */
	uint64_t error_offset; /* BM_MIRROR_SOURCE_ERROR: where */
	int error;             /* the last error of the other side, or of the source's reading */
};

void bm_mirror_get_stats(const struct bm_mirror *mirror, struct bm_mirror_stats *stats);

/*
 * The next range at or after *offset that the copy cannot read of the authority, in granules; it is
 * tried again when it is written to, and once a minute. False: there is none.
 */
bool bm_mirror_next_unreadable(const struct bm_mirror *mirror, uint64_t *offset, uint64_t *length);

/* "copying", "in sync" … */
const char *bm_mirror_state_name(enum bm_mirror_state state);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
