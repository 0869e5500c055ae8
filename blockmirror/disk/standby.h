/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk that another host has, and of which this host has the copy that its mirror writes to, or
 * reaches the storage itself.
 */
#ifndef BM_DISK_STANDBY_H
#define BM_DISK_STANDBY_H

#include "blockmirror/disk/disk.h"
#include "blockmirror/disk/gate.h"

/* What the gate asks; arg is the disk. */
extern const struct gate_host standby_gate;

/* What the record's role lets a guest do. */
enum gate_role standby_gate_role(const struct disk *disk);

/* The disk was offered to us, or no more: its gate does as that has it. */
void standby_armed(struct disk *disk);

/*
 * offer.c: holds: to or from that host (NULL: whichever), and now. read, write, remove: the file;
 * these block. set, begin: of a copy. begin: it is written, and the call (NULL: there is none)
 * answered with result, which is taken over; until 0: it is no more. withdraw: before its time.
 */
bool offer_holds(const struct disk *disk, const char *host);
void offer_clear(struct disk *disk);
void offer_set(struct disk *disk, const struct offer *offer);
void offer_read(struct disk *disk);
int offer_write(const struct disk *disk, const struct offer *offer, struct bm_error *error);
void offer_remove(const struct disk *disk);
void offer_begin(struct disk *disk, struct bm_rpc_call *call, const struct offer *offer,
		 json_t *result);
void offer_withdraw(struct disk *disk);
bm_rpc_method offer_method;
void offer_close(struct disk *disk);

/*
 * back.c: a disk with an image on each of two hosts. pair: one here, the other on that host.
 * in_sync: what one has the other has. local, remote: which. hold, go_on: the
 * job stays as it is meanwhile. past: what the record says of it afterwards, where the disk goes;
 * job: where it comes to, and goes on with it, the other way round. take: that job, here; map:
 * what says that both are equal, of a record of that generation.
 */
bool back_is_pair(const struct disk *disk, const char *host);
bool back_in_sync(const struct disk *disk);
const char *back_local(const struct job *job), *back_remote(const struct job *job);
uint64_t back_window(const struct disk *disk); /* ns that there will be two of them */
void back_hold(struct disk *disk);
void back_go_on(struct disk *disk);
json_t *back_past(const struct disk *disk);
json_t *back_job(const struct disk *disk, uint64_t generation);
uint8_t *back_map(const struct disk *disk, uint64_t generation);
int back_take(struct disk *disk, uint8_t *map, uint64_t generation, struct bm_error *error);

/* yield.c */
bm_rpc_method yield_begin;
void yield_clients_changed(void *arg); /* of the disk: one that was passed on ends with the last */
void yield_close(struct disk *disk);

/* Whether its storage is there. take_back: one that a machine's move has fenced goes on. */
bool yield_is_on(const struct disk *disk, const char *host);
bool yield_stays(const struct disk *disk); /* it is fenced for one, and flushed */
void yield_take_back(struct disk *disk);
void yield_retire(struct disk *disk); /* its record says so */

/*
 * move.c: a disk of a machine that moves. find: blocks; has_port: for a standby. fences: it is not
 * known yet where it is. is: that one. keeps: its copy stays here. shares: it is on storage that
 * this host (NULL: whichever it goes to) reaches, too. allows: what that move (NULL: somebody else)
 * wants of it.
 */
int move_find(struct disk *disk, bool has_port, struct bm_error *error);
bool move_fences(const struct disk *disk);
bool move_is(const struct disk *disk, const char *id);
const char *move_id(const struct disk *disk); /* of one that is in a move */
bool move_keeps(const struct disk *disk);
bool move_shares(const struct disk *disk, const char *host);
bool move_has_let_go(const struct disk *disk); /* of that storage, or is about to */
int move_allows(const struct disk *disk, const char *id, struct bm_error *error);
bm_rpc_method move_witness, move_join, move_settle, move_let_go, move_leave, move_retire;
void move_clear(struct disk *disk);
void move_close(struct disk *disk);

/* promote.c. call: NULL, or who wants it. alone: the other host is not asked. */
void promote(struct disk *disk, struct bm_rpc_call *call, bool alone);
bm_rpc_method promote_arm, promote_take;
void promote_close(struct disk *disk);

/*
 * shared.c: only_reads, reads: that a standby opens storage which the other host writes to, and
 * how; and the next process of a disk whose machine moves, since it may be let go of. reach, open
 * block, in a worker: whether it could be opened for writing; opening it so, when the other host
 * has let go, or (alone) is dead. put: *dev, which was opened so, takes the reader's place; taken
 * over when it succeeds. let_go: nothing is in flight, and nothing will be.
 */
bool shared_only_reads(const struct disk *disk);
void shared_reads(struct bm_open_options *options);
int shared_reach(const struct disk *disk, struct bm_error *error);
int shared_open(const struct disk *disk, bool alone, struct bm_dev **dev, struct bm_error *error);
int shared_put(struct disk *disk, struct bm_dev **dev, struct bm_error *error);
void shared_let_go(struct disk *disk);

/*
 * witness.c: both end in the offer and the call's answer: take with the witness of what this host
 * has the disk on (offer NULL: in the answer alone), check when what a standby of this host reaches
 * is that (given is its own).
 */
void witness_take(struct disk *disk, struct bm_rpc_call *call, const struct offer *offer);
void witness_check(struct disk *disk, struct bm_rpc_call *call, const struct offer *offer,
		   json_t *given);
void witness_close(struct disk *disk);

/* Lets the other host in, when the disk is its. Takes the socket over. */
int standby_open(struct disk *disk, const struct disk_options *options, struct bm_error *error);

#endif
