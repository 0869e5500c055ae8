/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A drive of a running QEMU, as QMP tells: a format node (raw, qcow2, luks) over a protocol node
 * (file, host_device) that has the image. What is on top of the format node is QEMU's business. A
 * device may have the protocol node without a format node between.
 * Finding it changes nothing, and refuses what cannot be slipped out of under its guest
 * (docs/slip.md).
 */
#ifndef BM_MACHINE_DRIVE_H
#define BM_MACHINE_DRIVE_H

#include <stdint.h>

#include "blockmirror/machine/qmp.h"

struct bm_drive {
	/*
	 * What the image is below: a node and its driver. The node may have a name that QEMU has
	 * made, "#block123"; or be a device, as a path in QEMU's object tree, with driver raw.
	 */
	char *format, *format_driver;
	char *file, *file_driver; /* the same of its "file" child */
	char *path;               /* that has the image: absolute, without links */
	json_t *reopen;           /* arguments of blockdev-reopen for format, but for "file" */
	json_t *add;              /* of blockdev-add for file, but for "node-name" and "filename" */
	char *backing;            /* the image that it needs, as it names it; NULL: none */
	uint64_t size;            /* that the guest sees */
};

/*
 * name: a device's id, a -drive's, a path in QEMU's object tree, or a node's name. BM_E_NOT_FOUND,
 * BM_E_UNSUPPORTED, BM_E_ACCESS (read-only), BM_E_BUSY (a block job, a migration), BM_E_QMP.
 */
int bm_drive_find(struct bm_qmp *qmp, const char *name, struct bm_drive *drive,
		  struct bm_error *error);
void bm_drive_clear(struct bm_drive *drive);

/*
 * Puts node in the place of what is below format (a bm_drive's), with reopen's other options. QEMU
 * does it whole, or not at all: what is in flight ends, the other node takes its place, what comes
 * goes there. Errors are bm_qmp_call()'s.
 */
int bm_drive_exchange(struct bm_qmp *qmp, const char *format, const json_t *reopen,
		      const char *node, struct bm_error *error);

/*
 * The "file" child of a node, or what a device has: its name, driver and image's path (or whatever
 * it is of another driver), all malloc()ed. BM_E_NOT_FOUND: there is no such node, or device.
 */
struct bm_child {
	char *name, *driver, *path;
};
int bm_drive_child(struct bm_qmp *qmp, const char *format, struct bm_child *child,
		   struct bm_error *error);
void bm_child_clear(struct bm_child *child);

/* Whether a node of that name is there. 1, 0 or -errno. */
int bm_drive_has_node(struct bm_qmp *qmp, const char *node, struct bm_error *error);

/* Bytes that its image may come to have while it cannot be told to grow. 0: it does not grow. */
uint64_t bm_drive_room(const struct bm_drive *drive);

/* Whether the image would find what it needs if it were at path. BM_E_LINKED. */
int bm_drive_reaches(const struct bm_drive *drive, const char *path, struct bm_error *error);

#endif
