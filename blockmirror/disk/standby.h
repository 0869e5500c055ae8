/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk that another host has, and of which this host has the copy that its mirror writes to. */
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
 * these block. begin: it is written, and the call (NULL: there is none) answered; until 0: it is
 * no more.
 */
bool offer_holds(const struct disk *disk, const char *host);
void offer_clear(struct disk *disk);
void offer_read(struct disk *disk);
int offer_write(const struct disk *disk, const char *host, uint64_t until, struct bm_error *error);
void offer_remove(const struct disk *disk);
void offer_begin(struct disk *disk, struct bm_rpc_call *call, const char *host, uint64_t until);
void offer_close(struct disk *disk);

/* yield.c */
bm_rpc_method yield_begin, yield_offer;
void yield_clients_changed(void *arg); /* of the disk: one that was passed on ends with the last */
void yield_close(struct disk *disk);

/* promote.c. call: NULL, or who wants it. alone: the other host is not asked. */
void promote(struct disk *disk, struct bm_rpc_call *call, bool alone);
bm_rpc_method promote_arm, promote_take;
void promote_close(struct disk *disk);

/* Lets the other host in, when the disk is its. Takes the socket over. */
int standby_open(struct disk *disk, const struct disk_options *options, struct bm_error *error);

#endif
