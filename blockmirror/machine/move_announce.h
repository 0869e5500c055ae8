/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Switches learn where a machine is by what it sends. For machines whose VMM does not say it for
 * them, hook announce names their interfaces on this host, and we send: a RARP frame, as QEMU does,
 * and a gratuitous ARP, where an address is given. Only where the guest is, and after that is
 * decided. For blockmirror-move; blocks, some milliseconds.
 */
#ifndef BM_MACHINE_MOVE_ANNOUNCE_H
#define BM_MACHINE_MOVE_ANNOUNCE_H

#include <net/if.h>
#include <netinet/in.h>

#include "blockmirror/machine/move.h"

enum { ANNOUNCE_MAC = 6, ANNOUNCE_FRAME = 60 }; /* the shortest frame, without its checksum */

struct announcement {
	char interface[IF_NAMESIZE];
	unsigned char mac[ANNOUNCE_MAC];
	bool has_address;
	struct in_addr address;
};

/* {interface, mac, address?} */
int announce_parse(const json_t *entry, struct announcement *a, struct bm_error *error);
void announce_rarp(const struct announcement *a, unsigned char frame[ANNOUNCE_FRAME]);
void announce_arp(const struct announcement *a, unsigned char frame[ANNOUNCE_FRAME]);

/* What hook announce prints, checked: a list, empty without a hook. It says nothing to anybody. */
json_t *announce_ask(struct move *m, const char *qmp);
/* Says it, several times. */
void announce_send(const struct move *m, const json_t *list);

#endif
