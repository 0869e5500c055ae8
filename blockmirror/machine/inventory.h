/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * All images that a running QEMU has open, as QMP tells. For a drain, which looks for a datastore's
 * among them. It changes nothing.
 */
#ifndef BM_MACHINE_INVENTORY_H
#define BM_MACHINE_INVENTORY_H

#include "blockmirror/machine/qmp.h"

/*
 * *list is an array: "node" (the name of the protocol node; bm_drive_find() takes it), "path" (that
 * has the image, for us), "device" (who has it, a path in QEMU's object tree; absent: nobody),
 * "below" (the node that shows through to it; absent: none), "temporary" (that one is thrown away
 * when QEMU ends: snapshot=on), "unsafe" (flushes end in QEMU: cache=unsafe).
 */
int bm_inventory(struct bm_qmp *qmp, json_t **list, struct bm_error *error);

#endif
