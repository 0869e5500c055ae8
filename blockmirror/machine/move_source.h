/* SPDX-License-Identifier: BSD-3-Clause */
/* The source's side of a move, shared by move_source.c, move_disks.c, move_memory.c, move_end.c. */
#ifndef BM_MACHINE_MOVE_SOURCE_H
#define BM_MACHINE_MOVE_SOURCE_H

#include "blockmirror/machine/move.h"

#define PREPARE 120000000000ull /* ns: a hook, and a VMM that starts */
#define GATE    10000000000ull

/* When the machine changes its memory faster than it is sent (move_memory.c). */
enum move_policy { POLICY_WAIT, POLICY_CANCEL, POLICY_FORCE, POLICY_THROTTLE };

/* As the caller wants it; times in ns, 0: no limit. */
struct move_options {
	const char *into; /* folder of the target; NULL: the one that an image has here */
	const char *bind; /* address of ours by which data leaves; NULL: as the routes have it */
	const json_t *shared; /* disk, or "*": how the target reaches its storage; "": as we do */
	bool overwrite, rehearse, dry_run, keep_copies;
	uint64_t budget, timeout;
	uint64_t rate; /* bytes/s of all that this host sends, meanwhile; 0: as it is */
	enum move_policy policy;
};

struct memory {
	struct bm_relay *relay; /* NULL: does not run */
	uint64_t limit;         /* of QEMU's last round, as it reckons; ns; 0: not known */
	uint64_t allowed, most; /* by our reckoning: now, and in the end; ns */
	uint64_t raised;        /* when that was set */
	uint64_t heard, looked; /* when the target was heard, and QEMU asked */
	unsigned judged;        /* the last round of which it was seen whether it may be the last */
	bool voted;
	int tries;
	unsigned round;                     /* that is told of */
	uint64_t round_at;                  /* when it began */
	json_t *rounds;                     /* those before, the last of them */
	struct bm_relay_stats last, before; /* when the round began; of the tries before */
	json_int_t total, remaining, dirty, throttle; /* as QEMU says */
};

struct source {
	struct move *m;
	struct move_options options;
	struct vm vm;
	json_t *disks; /* the plan's: name, socket; began: its move to the target is ours; joined;
			  shared, said, shares, note: move_shared.c's */
	struct bm_client *disk[MOVE_DISKS]; /* since they have joined */
	int settling[MOVE_DISKS];           /* calls that are not answered yet; 0: none */
	struct bm_client *talk;             /* with the target */
	struct memory memory;
	struct bm_cap *cap; /* of all that this host sends; NULL: none */
	json_t *commit;     /* what the target is to know of each disk */
	uint64_t begun, resumed;
	uint64_t part;  /* when the last part of the pause ended */
	bool rehearsed; /* all that can be tried was, and is to be taken back */
	bool changed;   /* something may have been, on one of the hosts */
	bool told;      /* the target may have heard "commit" */
};

/* move_disks.c. 0 or -errno; which disk it is about the error says. */
int disks_find(struct source *s, struct bm_error *error);
int disks_begin(struct source *s, struct bm_error *error); /* their moves to the target */
int disks_in_sync(struct source *s, bool *all, struct bm_error *error);
int disks_join(struct source *s, struct bm_error *error);
int disks_alive(struct source *s, struct bm_error *error); /* those that have joined */
void disks_settle(struct source *s); /* the guest has stopped: they are fenced soon */
int disks_fence(struct source *s, struct bm_error *error);     /* sets commit */
int disks_ask_again(struct source *s, struct bm_error *error); /* the same, after the decision */
void disks_leave(struct source *s);   /* until each has done what the log says */
void disks_give_up(struct source *s); /* what was begun for the move */

/*
 * move_shared.c. find: sets disk's "shared", if it is such a one; copied: it has a copy at the
 * target. all_known: no other disk was named. look: what the target has against it. begin, give_up:
 * the target's standby. witness: what it is to be known by there. let_go: all of them, after the
 * decision; twice is once. memory_fits: the target, which is dead, has written to none of them.
 */
bool shared_is(const json_t *disk);
int shared_find(struct source *s, json_t *disk, const json_t *shown, bool copied,
		struct bm_error *error);
int shared_all_known(const struct source *s, struct bm_error *error);
void shared_look(struct source *s, json_t *refusals);
int shared_begin(struct source *s, json_t *disk, struct bm_error *error);
int shared_witness(struct source *s, json_t *disk, json_t **witness, struct bm_error *error);
void shared_give_up(struct source *s, const json_t *disk);
int shared_let_go(struct source *s, struct bm_error *error);
bool shared_memory_fits(struct source *s);

/* move_source.c: one more part of the pause is over, now, or was then. */
void source_part(struct source *s, const char *name);
void source_part_until(struct source *s, const char *name, uint64_t until);
/* Whether anything speaks against going on. */
int source_may_go_on(struct source *s, struct bm_error *error);

/*
 * move_memory.c. pass: 0: all of it is at the target, which has voted, and the guest is stopped,
 * but its VMM does not know that all is there. let_go: now it does, and never goes on by itself any
 * more. close: the VMM sees its stream end, if it is not over. Twice is once.
 */
int memory_pass(struct source *s, struct bm_error *error);
int memory_let_go(struct source *s, struct bm_error *error);
void memory_close(struct source *s);

/* move_end.c */
int source_call(struct source *s, const char *method, json_t *params, uint64_t limit,
		json_t **result, struct bm_error *error);
/* The target's process; reach: and says hello. */
int source_connect(struct source *s, struct bm_client **client, struct bm_error *error);
int source_reach(struct source *s, struct bm_client **client, struct bm_error *error);
/* The cap is this move's until it is over; then it is as it was, if nobody has set it since. */
int source_set_rate(struct source *s, struct bm_error *error);
void source_close(struct source *s);
/* The log says that it is passed: until the target runs it, or says that it cannot. true: it does.
 */
bool source_commit(struct source *s, struct bm_error *error);
void source_done(struct source *s);
void source_abort(struct source *s, const struct bm_error *why);
/* A process that has died was at it. */
void source_recover(struct source *s);

#endif
