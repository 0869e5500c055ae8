/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A machine's TPM that swtpm(8) emulates. What it knows goes with the memory: QEMU asks for it
 * here, and gives it to another swtpm there, which hook start-target has started, with a folder
 * that nothing was in. What is kept of it here is nobody's afterwards: two TPMs with the same
 * secrets, of which one counts backwards, must not be. For blockmirror-move alone; all block.
 */
#ifndef BM_MACHINE_MOVE_TPM_H
#define BM_MACHINE_MOVE_TPM_H

#include "blockmirror/machine/move_source.h"

/*
 * Source: *list is what there is, {from: its socket, folder: its state, version: 1 or 2}. An error
 * says why one cannot come along. arguments: the VMM's command line.
 */
int tpm_find(struct vm *vm, const json_t *arguments, json_t **list, struct bm_error *error);
/* Source, when the machine is there for good: FOLDER is FOLDER.away from now on. */
void tpm_leave(struct move *m);

/*
 * Target: for its hooks {from, to: its socket here, folder, version}, by the plan's description.
 * keep: what is in these folders is durable. undo: they are gone, after hook stop-target.
 */
json_t *tpm_here(struct move *m);
int tpm_keep(struct move *m, struct bm_error *error);
void tpm_undo(struct move *m);

#endif
