/* SPDX-License-Identifier: BSD-3-Clause */
/* Names of disks, and the sockets that go by them. Any thread. */
#ifndef BM_BASE_DISK_NAME_H
#define BM_BASE_DISK_NAME_H

#include "blockmirror/error.h"

/*
 * A disk's name is 1 to 100 letters, digits, and . _ - and does not begin with a dot: it is a
 * file's name, an export's name, and part of a job's id. 0, or BM_E_USAGE.
 */
int bm_disk_name_check(const char *name, struct bm_error *error);

#endif
