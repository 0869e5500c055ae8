/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client of QEMU's QMP socket (QEMU's docs/interop/qmp-spec.rst): blocking, one command at a
 * time, one thread. It knows the protocol and nothing of what commands mean.
 *
 * A QMP socket serves one client; the next one is accepted by the kernel and hears nothing until
 * the first has gone. So silence for 2 s means that it is taken.
 */
#ifndef BM_MACHINE_QMP_H
#define BM_MACHINE_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "blockmirror/error.h"

struct bm_qmp;

/*
 * Connects and negotiates. BM_E_QMP_BUSY: taken. BM_E_QMP: not QEMU. BM_E_NOT_FOUND (-ENOENT),
 * BM_E_UNREACHABLE (-ECONNREFUSED): nobody listens.
 */
int bm_qmp_connect(const char *path, struct bm_qmp **qmp, struct bm_error *error);

/* NULL is allowed. */
void bm_qmp_close(struct bm_qmp *qmp);

/* QEMU's version, as 702 for 7.2. */
int bm_qmp_version(const struct bm_qmp *qmp);

/* Who listens, as it is now. pid is 0 when that is not known. */
struct ucred bm_qmp_peer(const struct bm_qmp *qmp);

/* While an answer is waited for: called every 100 ms or so. NULL: not any more. */
void bm_qmp_set_guard(struct bm_qmp *qmp, void (*guard)(void *arg), void *arg);

/*
 * Executes a command. arguments (NULL: none) is always taken over; result (NULL is allowed) is the
 * caller's. BM_E_QMP with QEMU's own words (-EPROTO): it has refused, and done nothing.
 * BM_E_UNREACHABLE: QEMU has ended, or does not answer; what it does of the command is not known.
 */
int bm_qmp_call(struct bm_qmp *qmp, const char *command, json_t *arguments, json_t **result,
		struct bm_error *error);

/*
 * Events, with their data and the time that QEMU gives them (ns since 1970), as they are read by
 * any of the functions here. NULL: nobody wants them.
 */
void bm_qmp_set_events(struct bm_qmp *qmp,
		       void (*event)(void *arg, const char *name, const json_t *data, uint64_t at),
		       void *arg);

/* Reads events, and returns when there was one, or after ms. -errno: QEMU has ended. */
int bm_qmp_listen(struct bm_qmp *qmp, int ms, struct bm_error *error);

/* Whether QEMU has closed the connection: it has ended. Does not wait. */
bool bm_qmp_ended(struct bm_qmp *qmp);

#endif
