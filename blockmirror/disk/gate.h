/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The gate: a block device on top of a disk's others, which does with its guest's requests what the
 * disk's role asks for. What does not pass is held, in order, or answered here; held requests are
 * looked at anew when the role changes. It costs a request that passes a branch, and no more. What
 * the mirror of another host writes to a standby comes in below it. Loop thread only.
 */
#ifndef BM_DISK_GATE_H
#define BM_DISK_GATE_H

#include "blockmirror/blockdev.h"

enum gate_role {
	GATE_ACTIVE,
	GATE_STANDBY, /* a VMM probes it; what it reads is whatever is there by now */
	GATE_ARMED,   /* a standby that is in sync: a guest's first write asks for the disk */
	GATE_WAITING, /* one that is not in sync, or has asked */
	GATE_FENCED,  /* a move decides who has the disk */
	GATE_RETIRED, /* another host has it */
	GATE_ROLES
};

struct gate_host {
	void (*wanted)(void *arg);  /* GATE_ARMED: a write came; each time */
	void (*refused)(void *arg); /* GATE_STANDBY: a write was refused */
};

/* Does not own lower. host's functions are called inside of bm_submit(). NULL: no memory. */
struct bm_dev *gate_new(struct bm_dev *lower, const struct gate_host *host, void *arg);

void gate_set_role(struct bm_dev *dev, enum gate_role role);
enum gate_role gate_get_role(const struct bm_dev *dev);
const char *gate_role_name(enum gate_role role);
unsigned gate_held_changes(const struct bm_dev *dev); /* writes, zeroes and trims of these */
unsigned gate_held(const struct bm_dev *dev);         /* requests */
uint64_t gate_held_since(const struct bm_dev *dev);   /* ns of the loop; 0: none is held */

#endif
