/* SPDX-License-Identifier: BSD-3-Clause */
/* A server that our NBD client connects to. */
#include "tests/fuzz/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct peer peers[PEERS];
unsigned peer_count;
static struct peer_words words;

uint8_t *peer_put(uint8_t *at, uint64_t value, unsigned bytes)
{
	while (bytes--)
		*at++ = (uint8_t)(value >> 8 * bytes);
	return at;
}

void peer_hang_up(struct peer *peer)
{
	if (peer->fd >= 0)
		shutdown(peer->fd, SHUT_WR);
}

void peers_reset(const struct peer_words *new)
{
	for (unsigned i = 0; i < peer_count; i++)
		if (peers[i].fd >= 0)
			close(peers[i].fd);
	memset(peers, 0, sizeof(peers));
	peer_count = 0;
	words = *new;
}

bool peers_exhausted(void)
{
	int unread = 0;

	for (unsigned i = 0; i < peer_count; i++) {
		demand(!ioctl(peers[i].fd, SIOCOUTQ, &unread));
		if (unread)
			return false;
	}
	return true;
}

void peer_say(struct peer *peer, const void *bytes, size_t length)
{
	const uint8_t *at = bytes;

	while (length && peer->fd >= 0) {
		ssize_t n = send(peer->fd, at, length, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0) /* the client has gone, or does not read: what it gets then is cut */
			return;
		at += n;
		length -= (size_t)n;
	}
}

/* The handshake, all of it at once: what libnbd asks for is known */

static uint8_t *option_reply(uint8_t *at, unsigned option, uint32_t type, size_t length)
{
	at = peer_put(at, 0x0003e889045565a9, 8);
	return peer_put(peer_put(peer_put(at, option, 4), type, 4), length, 4);
}

static uint8_t *say_contexts(uint8_t *at)
{
	if (words.context) {
		at = peer_put(option_reply(at, 10, 4, 4 + 15), 7, 4);
		memcpy(at, "base:allocation", 15);
		at += 15;
	}
	return option_reply(at, 10, 1, 0);
}

static uint8_t *say_export(uint8_t *at, bool first)
{
	uint64_t size = words.size + (first || !words.multi_conn_differs ? 0 : 512);

	at = peer_put(peer_put(option_reply(at, 7, 3, 12), 0, 2), size, 8);
	at = peer_put(at, words.flags, 2);
	if (words.sizes) {
		at = peer_put(option_reply(at, 7, 3, 14), 3, 2);
		at = peer_put(at, words.block_minimum, 4);
		at = peer_put(at, words.block_preferred, 4);
		at = peer_put(at, words.block_maximum, 4);
	}
	return option_reply(at, 7, 1, 0);
}

static void greet(struct peer *peer)
{
	uint8_t said[256], *at = said;

	if (words.raw.at) {
		peer_say(peer, words.raw.at, words.raw.left);
		peer_hang_up(peer);
		return;
	}
	memcpy(at, "NBDMAGICIHAVEOPT\0\3", 18);
	at = option_reply(at + 18, 8, words.structured ? 1 : 0x80000001, 0);
	if (words.structured)
		at = say_contexts(at);
	at = say_export(at, peer == peers);
	peer_say(peer, said, (size_t)(at - said));
}

/* Stands before that of the C library; libnbd calls it, too. */
__attribute__((visibility("default"))) int connect(int fd, __CONST_SOCKADDR_ARG address,
						   socklen_t length)
{
	struct peer *peer = &peers[peer_count];
	int ends[2];

	(void)address, (void)length;
	if (peer_count == PEERS) {
		errno = ECONNREFUSED;
		return -1;
	}
	demand(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends));
	demand(dup3(ends[0], fd, O_CLOEXEC) == fd);
	close(ends[0]);
	peer_count++;
	*peer = (struct peer){.fd = ends[1]};
	greet(peer);
	return 0;
}

/* Requests */

static uint64_t number(const uint8_t *at, unsigned bytes)
{
	uint64_t value = 0;

	while (bytes--)
		value = value << 8 | *at++;
	return value;
}

static void take_request(struct peer *peer)
{
	const uint8_t *at = peer->header;
	struct peer_request request = {.flags = (uint16_t)number(at + 4, 2),
				       .type = (uint16_t)number(at + 6, 2),
				       .cookie = number(at + 8, 8),
				       .offset = number(at + 16, 8),
				       .length = (uint32_t)number(at + 24, 4)};

	demand(number(at, 4) == 0x25609513);
	peer->skip = request.type == 1 ? request.length : 0;
	if (request.type != 2 && peer->count < PEER_ASKED)
		peer->asked[peer->count++] = request;
}

static void take_bytes(struct peer *peer, const uint8_t *at, size_t length)
{
	while (length) {
		size_t part = peer->skip ? peer->skip : sizeof(peer->header) - peer->used;

		part = part < length ? part : length;
		if (peer->skip) {
			peer->skip -= part;
		} else {
			memcpy(peer->header + peer->used, at, part);
			peer->used += part;
		}
		if (peer->used == sizeof(peer->header)) {
			peer->used = 0;
			take_request(peer);
		}
		at += part;
		length -= part;
	}
}

void peers_listen(bool handshake)
{
	static uint8_t bytes[1 << 16];
	ssize_t n;

	for (unsigned i = 0; i < peer_count; i++)
		while ((n = recv(peers[i].fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
			if (!handshake)
				take_bytes(&peers[i], bytes, (size_t)n);
}
