/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Machines: VMM processes with disks of ours, and their moves from host to host. Which machines
 * there are stands in STATE/machines; a move that is not over has a folder in STATE/moves, and a
 * process, blockmirror-move, which is started again as long as the folder is there.
 */
#ifndef BM_DAEMON_MACHINE_H
#define BM_DAEMON_MACHINE_H

#include "blockmirror/daemon/peer.h"

#define MACHINE_HOOKS "/etc/blockmirror/hooks"

/* machine.c */
int machines_open(struct daemon *d, struct bm_error *error);
void machines_close(struct daemon *d);
/* What is known of it (name, qmp, hooks, away, last); NULL: nothing. */
const json_t *machine_find(const struct daemon *d, const char *name);
/* Its hooks, or the host's. */
const char *machine_hooks(const struct daemon *d, const char *name);
bm_rpc_method method_machine_add, method_machine_list, method_machine_show, method_machine_remove,
	method_machine_migrate, method_machine_moved;

/* move.c */
int moves_open(struct daemon *d, struct bm_error *error);
void moves_close(struct daemon *d);
/* Looks at what there is to be started, soon. */
void moves_look(struct daemon *d);
/* The same; and the move of which there is a folder is known from now on. */
void moves_take(struct daemon *d, const char *id);
/* The folder of the move that a machine is in, or NULL. */
const char *moves_folder_of(const struct daemon *d, const char *machine);
/* The request (id, digest) that this move came of; NULL: none. */
const json_t *moves_request_of(const struct daemon *d, const char *machine);
/* Makes a folder of that plan, durably. Blocks. */
int moves_make(const struct daemon *d, const char *id, const json_t *plan, struct bm_error *error);
bm_rpc_method method_remote_move, method_remote_move_state; /* of the control socket */
bm_rpc_method method_move_receive, method_move_state;       /* of the port for hosts */

#endif
