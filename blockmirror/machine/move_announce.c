/* SPDX-License-Identifier: BSD-3-Clause */
/* RARP and gratuitous ARP for a machine's interfaces, from a packet socket. */
#include "blockmirror/machine/move_announce.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/machine/graph.h"

enum { ROUNDS = 3, MOST = 64, ETHERNET = 1, ARP_REQUEST = 1, REVERSE_REQUEST = 3, BODY = 14 };
#define BETWEEN 50000000ull /* ns */

int announce_parse(const json_t *entry, struct announcement *a, struct bm_error *error)
{
	const char *interface = graph_text(entry, "interface"), *mac = graph_text(entry, "mac"),
		   *address = graph_text(entry, "address");
	unsigned byte[ANNOUNCE_MAC];
	char rest;

	*a = (struct announcement){.has_address = *address};
	if (!*interface || strlen(interface) >= sizeof(a->interface))
		return bm_fail(error, BM_E_HOOK, "hook announce: \"%.40s\" is no interface",
			       interface);
	memcpy(a->interface, interface, strlen(interface) + 1);
	if (strlen(mac) != ANNOUNCE_MAC * 3 - 1 ||
	    sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x%c", &byte[0], &byte[1], &byte[2], &byte[3],
		   &byte[4], &byte[5], &rest) != ANNOUNCE_MAC ||
	    byte[0] & 1)
		return bm_fail(error, BM_E_HOOK,
			       "hook announce: \"%.40s\" is no address of one network card", mac);
	for (int i = 0; i < ANNOUNCE_MAC; i++)
		a->mac[i] = (unsigned char)byte[i];
	if (*address && inet_pton(AF_INET, address, &a->address) != 1)
		return bm_fail(error, BM_E_HOOK, "hook announce: \"%.40s\" is no IPv4 address",
			       address);
	return 0;
}

/* RFC 826, RFC 903: to all, from a; a asks about itself. */
static void make(const struct announcement *a, unsigned protocol, unsigned operation,
		 const void *address, unsigned char frame[ANNOUNCE_FRAME])
{
	const unsigned char head[] = {(unsigned char)(protocol >> 8),
				      (unsigned char)protocol,
				      0,
				      ETHERNET,
				      ETHERTYPE_IP >> 8,
				      ETHERTYPE_IP & 0xff,
				      ANNOUNCE_MAC,
				      sizeof(struct in_addr),
				      0,
				      (unsigned char)operation};
	unsigned char *at = frame + BODY + 8;

	memset(frame, 0, ANNOUNCE_FRAME);
	memset(frame, 0xff, ANNOUNCE_MAC);
	memcpy(frame + ANNOUNCE_MAC, a->mac, ANNOUNCE_MAC);
	memcpy(frame + (size_t)2 * ANNOUNCE_MAC, head, sizeof(head));
	for (int i = 0; i < 2; i++, at += ANNOUNCE_MAC + sizeof(struct in_addr)) {
		/* A gratuitous ARP does not ask for the card. */
		if (!i || operation == REVERSE_REQUEST)
			memcpy(at, a->mac, ANNOUNCE_MAC);
		if (address)
			memcpy(at + ANNOUNCE_MAC, address, sizeof(struct in_addr));
	}
}

void announce_rarp(const struct announcement *a, unsigned char frame[ANNOUNCE_FRAME])
{
	make(a, ETHERTYPE_REVARP, REVERSE_REQUEST, NULL, frame);
}

void announce_arp(const struct announcement *a, unsigned char frame[ANNOUNCE_FRAME])
{
	make(a, ETHERTYPE_ARP, ARP_REQUEST, &a->address, frame);
}

json_t *announce_ask(struct move *m, const char *qmp)
{
	json_t *result = NULL, *list = json_array(), *entry;
	struct announcement a;
	struct bm_error error;
	size_t i;

	if (move_hook(m, "announce", json_pack("{s:s}", "qmp", qmp), &result, &error) < 0 &&
	    error.code != BM_E_NOT_FOUND)
		bm_log(BM_LOG_WARN, "%s: %s", m->id, error.text);
	json_array_foreach(json_object_get(result, "interfaces"), i, entry) {
		if (announce_parse(entry, &a, &error) < 0)
			bm_log(BM_LOG_WARN, "%s: %s", m->id, error.text);
		else if (i < MOST)
			json_array_append(list, entry);
	}
	json_decref(result);
	return list;
}

static int send_frame(int fd, const struct announcement *a, const unsigned char *frame)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET,
				 .sll_ifindex = (int)if_nametoindex(a->interface),
				 .sll_halen = ANNOUNCE_MAC};

	memset(to.sll_addr, 0xff, ANNOUNCE_MAC);
	if (!to.sll_ifindex ||
	    sendto(fd, frame, ANNOUNCE_FRAME, 0, (const struct sockaddr *)&to, sizeof(to)) < 0)
		return -errno;
	return 0;
}

static int say(int fd, const struct announcement *a)
{
	unsigned char frame[ANNOUNCE_FRAME];
	int r;

	announce_rarp(a, frame);
	r = send_frame(fd, a, frame);
	if (r || !a->has_address)
		return r;
	announce_arp(a, frame);
	return send_frame(fd, a, frame);
}

void announce_send(const struct move *m, const json_t *list)
{
	/* No protocol: nothing is received. */
	bm_close int fd =
		json_array_size(list) ? socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0) : -1;
	struct announcement a;
	struct bm_error error;
	json_t *entry;
	size_t i;

	if (!json_array_size(list))
		return;
	for (int round = 0; round < ROUNDS; round++) {
		if (round)
			move_sleep(BETWEEN);
		json_array_foreach(list, i, entry) {
			int r = fd < 0 || announce_parse(entry, &a, &error) < 0 ? -EIO
										: say(fd, &a);

			if (r < 0 && !round)
				bm_log(BM_LOG_WARN, "%s: %s cannot be announced at %s: %s", m->id,
				       m->machine, graph_text(entry, "interface"), strerror(-r));
		}
	}
}
