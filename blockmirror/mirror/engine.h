/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The mirror's inside, shared by the files of this folder and by nobody else.
 *
 *   mirror.c    life: attach, loss, reattach, detach, events, statistics
 *   write.c     guest requests: what goes where, and what an answer means
 *   copy.c      the baseline copy, and the bounded wait of a write for it
 *   unreadable.c  what cannot be read of the authority
 *   check.c     comparing both sides while the guest writes
 *   again.c     the other side comes back: whether it is the same, and done with its past
 *   flush.c     flushes: unstable becomes settled
 *   switch.c    the switchover
 *   cut.c       the other side becomes a copy as of one instant
 *   governor.c  how much the copy may take
 *   claims.c    the durable checkpoint of the settled map
 *   dirty.c     the dirty map, for others to read
 */
#ifndef BM_MIRROR_ENGINE_H
#define BM_MIRROR_ENGINE_H

#include "blockmirror/base/hist.h"
#include "blockmirror/base/list.h"
#include "blockmirror/dev/later.h"
#include "blockmirror/mirror.h"
#include "blockmirror/mirror/map.h"

enum {
	OPS = 512,     /* guest requests; twice what the order device lets through, because as
			  many again may have been given up and not ended */
	COPIES = 32,   /* copies in flight at most; one more is kept for the held granule */
	MASK = 64,     /* granules of one request at most: they fit a word */
	WINDOW = 4096, /* granules asked for extents at once, at most */
	EVENTS = 32,
	CHECKS = 4,        /* comparisons in flight; one more is kept for the held granule */
	SCAN_LIMIT = 4096, /* granules looked at in one go */
	RECENT = 64,       /* granules that were flushed last, of which is known */
};

/* Where the other side is. */
enum link {
	LINK_NONE, /* there is none */
	LINK_UP,
	LINK_LOST,    /* failed; its requests are ending */
	LINK_GONE,    /* failed; they have ended, the host was told */
	LINK_PROVING, /* here again; a sample is read from it, nothing else is sent */
	LINK_LEAVING  /* being detached */
};

/* Where the switchover is. In REC and ABORT authority is not settled ("D" in docs/mirror.md). */
enum phase {
	PHASE_IDLE,
	PHASE_WAIT,  /* wanted; waits for sync */
	PHASE_PRE,   /* flushes to make the last one short */
	PHASE_DRAIN, /* FUA and FLUSH go to both from here on; waits for those that did not */
	PHASE_FLUSH, /* the flush that counts */
	PHASE_REC,   /* the record "other side" is being written */
	PHASE_ABORT  /* the record "authority as before" is being written, after that */
};

/* Where a copy as of one instant is; cut.c tells more. */
enum cut_state {
	CUT_NONE,
	CUT_WAIT,  /* wanted; waits for sync */
	CUT_DRAIN, /* made: what was sent to both ends, what comes goes to the authority alone */
	CUT_FLUSH,
	CUT_DONE /* the host was told, and lets go */
};

enum op_state {
	OP_FREE,
	OP_RUNNING,
	OP_HELD,     /* legs have ended, the answer waits until authority is settled */
	OP_ABANDONED /* answered without its other leg, which has not ended */
};

/* A guest request in flight. Sides index all arrays. */
struct op {
	struct mirror_leg {
		struct bm_request rq;
		struct op *op;
		int side;
		bool used, ended;
		int error;
	} leg[2];
	struct bm_mirror *mirror;
	struct bm_request *rq; /* the guest's; not ours any more when abandoned */
	struct bm_buf *buf;    /* our reference while the other leg may read from it */
	struct bm_list link;   /* in mirror->running, or in mirror->free */
	enum op_state state;
	bool writes;      /* WRITE ZERO TRIM */
	bool flushes;     /* FLUSH */
	bool counted;     /* in the map's busy counts */
	bool late;        /* the other leg ran into the deadline */
	bool early;       /* dispatched before FUA and FLUSH went to both */
	bool plain_fua;   /* FUA here, but not on the other leg */
	int authority;    /* at dispatch */
	uint64_t session; /* of the other side, at dispatch */
	uint64_t started;
	uint64_t written; /* FLUSH: mirror->authority_written at dispatch */
	uint64_t first;   /* granule */
	unsigned granules;
	uint64_t both, heal; /* bit n: granule first + n goes to both; would become clean by it */
	unsigned next;       /* the granule the other leg goes on with */
};

/* A copy of up to MASK granules in flight. */
struct copy {
	struct bm_request rq;
	struct bm_mirror *mirror;
	struct bm_list link; /* in mirror->copies, or in mirror->copies_free */
	struct bm_buf *buf;
	uint64_t first;
	unsigned granules;
	uint64_t collided;    /* bit n: a guest write was sent to granule first + n meanwhile */
	uint64_t zero;        /* bit n: granule first + n of the target was known to be zero */
	bool hold;            /* the one that a write waits for */
	bool wrote;           /* something was sent to the other side */
	uint64_t offset, end; /* bytes of the disk */
	uint64_t pos;         /* up to where it is done */
	uint64_t started;     /* the request in flight, ns */
	uint64_t begun;       /* the copy, ns */
};

/* What a comparison is for, and so what a difference means. */
enum check_kind {
	CHECK_ASKED,  /* somebody wants to know */
	CHECK_BACK,   /* of quarantined granules: whether an old write came after the copy */
	CHECK_SAMPLE, /* whether the other side is the one that was here */
};

/* A comparison of up to MASK granules in flight. */
struct check {
	enum check_kind kind;
	struct check_leg {
		struct bm_request rq;
		struct check *check;
		struct bm_buf *buf;
		int error;
	} leg[2]; /* by side */
	struct bm_mirror *mirror;
	unsigned pending; /* legs in flight; 0: free */
	unsigned number;  /* ASKED: of the comparison that it belongs to */
	uint64_t first, session;
	unsigned granules;
	uint64_t collided; /* bit n: a guest write was sent to granule first + n meanwhile */
};

/* What EXTENTS said about a stretch of the authority, as far as no write has touched it since. */
struct window {
	struct bm_request rq;
	struct bm_extents extents;
	struct bm_extent v[128];
	bool asked;               /* the question is in flight, … */
	int side;                 /* … to this one */
	uint64_t first, granules; /* asked for; then: answered */
	uint64_t zero[WINDOW / 64];
	uint64_t touched[WINDOW / 64];
};

/* Flushes of the other side, one at a time. */
struct flusher {
	struct bm_request rq;
	bool active;
	int side;
	uint64_t session, started;
	uint64_t took;    /* ns, the last one */
	uint64_t dirtied; /* mirror->dirtied at the submission */
	struct bm_timer timer;
};

/* Requests over a limit, and all, of the recent past. */
struct bm_share {
	double over, all;
};

struct governor {
	struct bm_timer timer;           /* looks at what the guest feels */
	struct bm_timer start_timer;     /* the next copy may start then */
	uint64_t budget;                 /* as set: BM_LATENCY_… or ns */
	struct bm_hist before;           /* of the guest alone, until a target is attached */
	uint64_t p99_before, p50_before; /* ns, 0: not known */
	struct bm_hist shown;            /* since shown_since */
	uint64_t p99, p50;               /* of the last half second */
	uint64_t span_since, shown_since, probe_until;
	bool probing;   /* no copy starts: what would the guest feel without? */
	bool found;     /* the window was too large once */
	unsigned stuck; /* ticks over the limit at the least pace */
	struct bm_share share50, share99;
	double window;                    /* bytes in flight that the guest's latency allows */
	double service;                   /* ns that a copy takes */
	bool limits, rate_limits;         /* what kept the last copy from starting */
	uint64_t rate, tokens, filled_at; /* the cap: bytes/s, bytes, ns */
	uint64_t next_start;              /* ns, after pace */
	uint64_t speed, best, metered,
		metered_since; /* bytes/s over the last second, ever; bytes; ns */
	uint64_t track_dirty;  /* granules dirty when this round of tracking began */
	bool tracked_out;      /* tracking does not get nearer the end any more */
	struct bm_hist leg[2]; /* latency of guest writes' legs, by side */
};

/* What the host's durable checkpoint may say. A bit per extent; claims.c has the rule. */
struct claims {
	bool active;                /* there may be a checkpoint */
	bool kept;                  /* it stays as it is: this process ends */
	unsigned shift;             /* an extent is 1 << shift granules */
	struct bm_bitmap claimed;   /* it may call something in there settled */
	struct bm_bitmap asked;     /* ... and something is to be sent there */
	struct bm_bitmap taken;     /* ... and the host is withdrawing it */
	struct bm_bitmap hot, warm; /* something was sent there in this interval, the one before */
	struct bm_list waiting;     /* guest requests that wait for a withdrawal */
	bool due; /* extents from cursor on are to be claimed where they are cold */
	uint64_t cursor;
	unsigned ticks, patience; /* of how many intervals one is made */
	uint64_t writes, waits;   /* of the guest, in this interval */
	struct bm_timer timer;
	struct bm_task tell;
};

struct bm_mirror {
	struct bm_dev dev;       /* what the order device sees */
	struct bm_dev dirty_dev; /* bm_mirror_dirty_dev() */
	struct bm_loop *loop;
	struct bm_mirror_config config;
	const struct bm_mirror_host *host;
	struct bm_cap *cap; /* the host's, or NULL */
	void *arg;
	uint64_t size;
	uint32_t block;
	unsigned granule_shift;

	struct bm_dev *side[2];
	int authority;
	unsigned in_flight[2]; /* requests of ours on each side */
	uint64_t heard[2];     /* ns: its last answer, or when it had none to give any more */
	enum link link;
	bool tracking; /* writes go to the authority alone */
	bool paused, full;
	bool trim_zeroes; /* TRIM: zeroes on both; else dropped on both */
	bool detach_wanted;
	uint64_t session; /* of the other side: counts losses and returns */

	struct bm_map map;
	uint64_t dirtied; /* counts whatever became dirty */
	bool doubtful;    /* a flush of the authority failed, with or without another side */
	unsigned doubted; /* bit per side: a flush of it failed while it was the authority */

	struct op op[OPS];
	struct bm_list free, running;
	struct bm_list waiting; /* guest requests without an op (there is always one, but …) */
	struct bm_list held;    /* guest requests that wait for the copy of the held granule */
	struct bm_later later;
	struct bm_timer deadline;
	uint64_t authority_written; /* counts guest writes that ended on the authority */
	uint64_t authority_flushed; /* up to which of them the guest has flushed */
	struct op *covering;        /* the guest's flush that covers map.covered */

	struct copy copy[COPIES + 1];
	struct bm_list copies, copies_free;
	unsigned copying; /* in flight */
	uint64_t cursor;
	uint64_t next_miss; /* ns */
	bool hold;          /* writes to hold_granule wait */
	uint64_t hold_granule, hold_since;
	struct copy *hold_copy; /* kept for it */
	struct bm_pool *pool;   /* the copies' buffers */
	struct window window;
	struct bm_task kick; /* something changed: copy on, switch on */
	uint64_t failing;    /* the granule that cannot be read, so far */
	unsigned failures;   /* … and how often in a row */
	bool rest_told;
	struct bm_timer source_retry, unreadable_timer;
	struct bm_timer full_timer;

	struct {
		struct check slot[CHECKS + 1];
		struct bm_bitmap left;   /* granules not compared yet */
		struct bm_bitmap mended; /* that differed once, and were copied again */
		uint64_t cursor;
		unsigned running;
		unsigned number; /* of bm_mirror_verify() calls */
		int failed;      /* the authority cannot be read, or it differs again */
		void (*done)(void *arg, int error); /* NULL: nobody wants to know */
		void *arg;
	} check;

	uint64_t recent[RECENT]; /* granules that were flushed on the other side, the last ones */
	unsigned recents;        /* that were ever put there */
	bool grace;              /* old requests may be carried out yet */
	struct bm_timer grace_timer;
	bool foreign; /* the sample differs */

	struct claims claims;

	struct flusher flusher;
	uint64_t settles; /* until then; bm_mirror_settle() */
	enum phase phase;
	bool both_durable; /* FUA and FLUSH go to both */
	bool abort_needed; /* in D: the switch cannot succeed any more */
	unsigned pre_rounds;
	unsigned slow_flushes;        /* guest flushes that the other side was too slow for */
	uint64_t switch_after;        /* ns: not begun before */
	struct bm_timer switch_timer; /* … and then */
	unsigned plain_fuas;          /* ops in flight with plain_fua */
	bool in_sync_told;
	struct bm_timer commit_retry;
	unsigned commit_failures;
	bool committing;
	struct {
		enum cut_state state;
		void (*done)(void *arg, int error);
		void *arg;
	} cut;

	struct governor governor;

	struct bm_task tell;
	enum bm_mirror_event event[EVENTS];
	unsigned events;

	struct bm_hist read_latency, write_latency; /* of copies */
	struct bm_mirror_stats stats;               /* the counters in it */
};

static inline int other(const struct bm_mirror *m)
{
	return !m->authority;
}

static inline bool unsettled(const struct bm_mirror *m)
{
	return m->phase == PHASE_REC || m->phase == PHASE_ABORT;
}

static inline bool cut_made(const struct bm_mirror *m)
{
	return m->cut.state >= CUT_DRAIN;
}

/* mirror.c */
void mirror_tell(struct bm_mirror *m, enum bm_mirror_event event);
void mirror_kick(struct bm_mirror *m);
bool mirror_in_sync(const struct bm_mirror *m);
/* They differ there; and that is no cut any more, unless it is by what a guest wrote after it. */
void mirror_mark_dirty(struct bm_mirror *m, uint64_t granule);
void mirror_note_dirty(struct bm_mirror *m, uint64_t granule);
void mirror_mark_clean(struct bm_mirror *m, uint64_t granule);
/* The other side failed with error: tracking, until it is back. */
void mirror_lose(struct bm_mirror *m, int error);
/* What an error of the other side asks for: a pause when it is full, a loss when not. */
void mirror_other_failed(struct bm_mirror *m, int error);
/* Every request of ours to a side goes out and comes back through these two. */
void mirror_send(struct bm_mirror *m, int side, struct bm_request *rq);
void mirror_received(struct bm_mirror *m, int side);

/* What can be done now is what both devices can do. */
void mirror_changed(struct bm_mirror *m);
bool mirror_fits_target(const struct bm_mirror *m, const struct bm_dev *target);
/* The other side is here. */
void mirror_take_target(struct bm_mirror *m, struct bm_dev *target, enum link link);

/* write.c */
void write_submit(struct bm_dev *dev, struct bm_request *rq);
void write_arrive(struct bm_mirror *m, struct bm_request *rq); /* again, after a wait */
void write_release_answers(struct bm_mirror *m);               /* authority is settled */
void write_release_held(struct bm_mirror *m);                  /* the held granule is free */
void write_count_in_flight(struct bm_mirror *m);               /* a target is being attached */
void write_init(struct bm_mirror *m);
void write_check_deadline(struct bm_timer *timer);

/* copy.c */
int copy_init(struct bm_mirror *m);
void copy_fini(struct bm_mirror *m);
void copy_run(struct bm_mirror *m);
void copy_collide(struct bm_mirror *m, uint64_t granule); /* a guest write goes to it now */
void copy_end_hold(struct bm_mirror *m);
void copy_forget_window(struct bm_mirror *m);

/* A copy or a comparison of the granule was spoiled: it is held after too many. */
void copy_miss(struct bm_mirror *m, uint64_t granule);
/* Of set only granules that are written to are left. */
void copy_miss_busy(struct bm_mirror *m, const struct bm_bitmap *set);

/* unreadable.c */
void unreadable_init(struct bm_mirror *m);
void unreadable_fini(struct bm_mirror *m);
bool unreadable_may_copy(const struct bm_mirror *m, uint64_t granule);
void unreadable_forget(struct bm_mirror *m, uint64_t granule);  /* it is equal on both sides */
void unreadable_written(struct bm_mirror *m, uint64_t granule); /* a guest write goes to it */
void unreadable_failed(struct bm_mirror *m, uint64_t first, unsigned granules, int error);
void unreadable_run(struct bm_mirror *m);

/* check.c */
void check_init(struct bm_mirror *m);
void check_fini(struct bm_mirror *m);
void check_run(struct bm_mirror *m);
void check_stop(struct bm_mirror *m);                      /* the other side is let go */
void check_collide(struct bm_mirror *m, uint64_t granule); /* a guest write goes to it now */
void check_again(struct bm_mirror *m, uint64_t granule);   /* it became dirty */
bool check_wants(const struct bm_mirror *m, uint64_t granule);
void check_sample(struct bm_mirror *m); /* LINK_PROVING */

/* again.c */
void again_init(struct bm_mirror *m);
void again_cut(struct bm_mirror *m);     /* the session is being lost */
void again_resumed(struct bm_mirror *m); /* ... and was, with the process that had it */
void again_flushed(struct bm_mirror *m); /* map.closed is durable on the other side */
void again_proven(struct bm_mirror *m);  /* of the sample all is equal */
void again_foreign(struct bm_mirror *m, uint64_t offset); /* ... or not */

/* flush.c */
void flush_guest_sent(struct bm_mirror *m, struct op *op);
void flush_guest_done(struct bm_mirror *m, struct op *op, bool good);
void flush_roles_changed(struct bm_mirror *m);
void flush_init(struct bm_mirror *m);
bool flush_start(struct bm_mirror *m);
bool flush_other_needed(const struct bm_mirror *m); /* false: one is in flight already */

/* switch.c */
void switch_run(struct bm_mirror *m);
void switch_flushed(struct bm_mirror *m, bool good); /* a flush of the other side ended */
void switch_interrupted(struct bm_mirror *m);        /* the other side is lost, full, leaving */
void switch_too_slow(struct bm_mirror *m);           /* a flush ran into the deadline */
void switch_init(struct bm_mirror *m);

/* cut.c */
void cut_run(struct bm_mirror *m);
void cut_flushed(struct bm_mirror *m, bool good); /* a flush of the other side ended */
void cut_spoiled(struct bm_mirror *m); /* the other side is no copy as of one instant any more */
void cut_forget(struct bm_mirror *m);  /* it is let go of */

/* claims.c */
void claims_init(struct bm_mirror *m);
/* A target is attached; checkpoint (NULL: none) is what the host's says, as the settled map. */
int claims_begin(struct bm_mirror *m, const uint8_t *checkpoint);
void claims_fini(struct bm_mirror *m);
void claims_leave(struct bm_mirror *m);      /* the other side is let go */
bool claims_left(const struct bm_mirror *m); /* ... and may be */
/* Whether a copy may be sent there now; the mirror is kicked when it may. */
bool claims_let_copy(struct bm_mirror *m, uint64_t granule);
/* Whether the request waits until a claim is withdrawn; then it arrives again. */
bool claims_hold(struct bm_mirror *m, struct bm_request *rq);

/* dirty.c */
void dirty_init(struct bm_mirror *m);

/* governor.c */
void governor_init(struct bm_mirror *m);
void governor_start(struct bm_mirror *m);
void governor_stop(struct bm_mirror *m);
void governor_fini(struct bm_mirror *m);
void governor_pass_ended(struct bm_mirror *m); /* the copy has been all round the disk */
/* Copies in flight at most, and the most bytes of one. */
unsigned governor_depth(const struct bm_mirror *m);
unsigned governor_chunk(const struct bm_mirror *m);
/*
 * Whether a copy of bytes may start now (0: one that sends no data), and if so it must; else the
 * mirror is kicked when it may.
 */
bool governor_admit(struct bm_mirror *m, uint64_t bytes);
void governor_took(struct bm_mirror *m, uint64_t ns);     /* a copy, from start to end */
void governor_meter(struct bm_mirror *m, uint64_t bytes); /* the copy moved that much */
const char *governor_limiter(const struct bm_mirror *m);

#endif
