/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Preflight: whether a machine can move, and what speaks against it, before anything is changed;
 * and again before its memory goes. Each thing that does is a refusal: one line, with its code.
 * For the files of blockmirror-move alone. All block.
 *
 *   preflight_need.c  the host that the machine comes from: what it needs, what it cannot do
 *   preflight.c       there: asks the other host; what a move would take
 *   preflight_host.c  what a host has, by itself and by its hook host-facts
 *   preflight_fit.c   the host that it goes to: whether that is enough; and it is kept for it
 *
 * Need and facts are JSON (docs/machine.md, Preflight).
 */
#ifndef BM_MACHINE_PREFLIGHT_H
#define BM_MACHINE_PREFLIGHT_H

#include "blockmirror/machine/move_source.h"

/* One more refusal in list. Without bm_: for these files. */
void preflight_refuse(json_t *list, enum bm_code code, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void preflight_refuse_error(json_t *list, const struct bm_error *why);
/* 0: there are none. Else the first one is the error, and all are told. */
int preflight_result(struct move *m, const json_t *list, struct bm_error *error);

/* preflight_need.c: what the machine says itself; its disks are found, and what it needs. */
int preflight_here(struct source *s, struct bm_error *error);
/* Refusals that may have come since. Into list. */
void preflight_blockers(struct source *s, json_t *list);

/* preflight.c: the other host is asked; talk is open. again: it has kept for it what it needs. */
int preflight_there(struct source *s, struct bm_error *error);
int preflight_again(struct source *s, struct bm_error *error);
/* How long the way is, and what the move would take: in the report. */
int preflight_measure(struct source *s, struct bm_error *error);
void preflight_forecast(struct source *s);

/* preflight_host.c: NULL: its hook does not say. */
json_t *preflight_facts(struct move *m, struct bm_error *error);
/* What ip(8) says of network interfaces: "type" "bridge", or "dev" NAME. NULL: nothing. */
json_t *preflight_links(const char *kind, const char *what);

/* preflight_fit.c: {refusals, facts}; when there are none it is kept for the move, as long as its
 * folder is there. NULL: that cannot be done. */
json_t *preflight_check(struct move *m, json_t *need, struct bm_error *error);
/* E_MAINTENANCE, or 0. */
int preflight_serviced(const struct move *m, struct bm_error *error);

#endif
