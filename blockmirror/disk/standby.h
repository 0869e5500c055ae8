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

/* Lets the other host in, when the disk is its. Takes the socket over. */
int standby_open(struct disk *disk, const struct disk_options *options, struct bm_error *error);

#endif
