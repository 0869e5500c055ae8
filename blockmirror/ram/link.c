/* SPDX-License-Identifier: BSD-3-Clause */
/* One connection that carries frames. */
#include "blockmirror/ram/link.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "blockmirror/base/list.h"

enum {
	/* What the kernel holds and has not sent yet is part of what QEMU believes to be gone: it
	   is as little as keeps the connection busy. */
	NOT_SENT = 128 << 10,
	ROUNDS = 16, /* frames or pieces of one, before others have their turn */
};

static void link_watch(struct bm_link *link)
{
	uint32_t events = 0;

	if (link->open && !link->dead) {
		events |= link->held ? 0 : EPOLLIN;
		events |= link->sending ? EPOLLOUT : 0;
	}
	if (events != link->watch.events)
		bm_watch_set(link->loop, &link->watch, link->transport.in, events);
}

static void link_fail(struct bm_link *link, const struct bm_error *error)
{
	if (link->dead)
		return;
	link->dead = true;
	link_watch(link);
	bm_task_cancel(&link->again);
	link->ops->failed(link, error);
}

static void fail_errno(struct bm_link *link, int err, const char *what)
{
	struct bm_error error;

	bm_fail_errno(&error, err, "connection %u to the other host: cannot %s", link->number,
		      what);
	error.code = BM_E_UNREACHABLE;
	link_fail(link, &error);
}

static void receive(struct bm_link *link);

/* An end that has given up has closed its side, and said why before: that tells more. */
static void send_failed(struct bm_link *link, int err)
{
	receive(link);
	if (link->open)
		fail_errno(link, err, "send");
}

static void send_more(struct bm_link *link)
{
	int flushed;

	while (link->out[0].iov_len + link->out[1].iov_len) {
		int first = link->out[0].iov_len ? 0 : 1;
		ssize_t n = bm_transport_send(&link->transport, link->out + first, 2 - first);

		if (n == -EAGAIN)
			break;
		if (n < 0) {
			send_failed(link, (int)n);
			return;
		}
		link->bytes_out += (uint64_t)n;
		for (int i = first; i < 2; i++) {
			size_t part =
				(size_t)n < link->out[i].iov_len ? (size_t)n : link->out[i].iov_len;

			link->out[i].iov_base = (uint8_t *)link->out[i].iov_base + part;
			link->out[i].iov_len -= part;
			n -= (ssize_t)part;
		}
	}
	flushed = bm_transport_flush(&link->transport);
	if (flushed < 0 && flushed != -EAGAIN) {
		send_failed(link, flushed);
		return;
	}
	link->sending = flushed < 0 || link->out[0].iov_len + link->out[1].iov_len;
}

void bm_link_send(struct bm_link *link, const struct bm_ram_header *header, const uint8_t *payload,
		  bool keep)
{
	if (!keep && header->length) {
		memcpy(link->own, payload, header->length);
		payload = link->own;
	}
	bm_ram_header_put(link->out_head, header, payload);
	link->out[0] = (struct iovec){link->out_head, BM_RAM_HEADER};
	link->out[1] = (struct iovec){(void *)payload, header->length};
	link->sending = true;
	link->said = bm_loop_now(link->loop);
	/* The socket says when it takes it, even if that is at once: idle() is not called here. */
	link_watch(link);
}

/* Bytes that are still to come of the frame; 0: it is whole. */
static size_t missing(const struct bm_link *link)
{
	if (link->have < BM_RAM_HEADER)
		return BM_RAM_HEADER - link->have;
	return BM_RAM_HEADER + (size_t)link->header.length - link->have;
}

/* 1: went on; 0: nothing more now; -1: failed. */
static int receive_some(struct bm_link *link)
{
	struct bm_error error;
	struct iovec v;
	ssize_t n;

	v.iov_base = link->have < BM_RAM_HEADER ? link->in_head + link->have
						: link->payload + link->have - BM_RAM_HEADER;
	v.iov_len = missing(link);
	n = bm_transport_recv(&link->transport, &v, 1);
	if (n == -EAGAIN)
		return 0;
	if (n <= 0) {
		fail_errno(link, n ? (int)n : ECONNRESET, "receive");
		return -1;
	}
	link->heard = bm_loop_now(link->loop);
	link->have += (uint32_t)n;
	if (link->have == BM_RAM_HEADER &&
	    bm_ram_header_get(&link->header, link->in_head, &error) < 0) {
		link_fail(link, &error);
		return -1;
	}
	return 1;
}

static bool frame_is_good(struct bm_link *link)
{
	struct bm_error error;

	if (bm_ram_payload_check(&link->header, link->in_head, link->payload, &error) < 0) {
		link_fail(link, &error);
		return false;
	}
	if (link->header.type == BM_RAM_FRAME_FAIL) {
		bm_fail(&error, BM_E_UNREACHABLE, "the other host has given up: %.*s",
			(int)link->header.length, (const char *)link->payload);
		link_fail(link, &error);
		return false;
	}
	return true;
}

static void receive(struct bm_link *link)
{
	for (int i = 0; i < ROUNDS && !link->held && !link->dead && link->open; i++) {
		if (missing(link)) {
			if (receive_some(link) <= 0)
				return;
			continue;
		}
		if (!frame_is_good(link))
			return;
		if (link->header.type != BM_RAM_FRAME_BEAT && !link->ops->frame(link)) {
			link->held = link->open;
			break;
		}
		link->have = 0;
	}
	if (link->open && !link->dead && !link->held &&
	    (!missing(link) || bm_transport_pending(&link->transport)))
		bm_loop_soon(link->loop, &link->again);
}

static void on_again(struct bm_task *task)
{
	struct bm_link *link = bm_container(task, struct bm_link, again);

	receive(link);
	link_watch(link);
}

static void on_event(struct bm_watch *watch, uint32_t events)
{
	struct bm_link *link = bm_container(watch, struct bm_link, watch);

	if (link->sending && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
		send_more(link);
		if (link->open && !link->dead && !link->sending)
			link->ops->idle(link);
	}
	if (link->open && !link->dead && events & (EPOLLIN | EPOLLERR | EPOLLHUP))
		receive(link);
	link_watch(link);
}

int bm_link_open(struct bm_link *link, struct bm_loop *loop, const struct bm_transport *transport,
		 const struct bm_link_ops *ops, void *arg)
{
	const int not_sent = NOT_SENT;

	memset(link, 0, sizeof(*link));
	link->payload = malloc(BM_RAM_PAYLOAD);
	if (!link->payload)
		return -ENOMEM;
	link->loop = loop;
	link->transport = *transport;
	link->ops = ops;
	link->arg = arg;
	link->open = true;
	link->watch.run = on_event;
	link->again.run = on_again;
	/* TCP's; a unix socket has no such thing. */
	setsockopt(transport->out, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &not_sent, sizeof(not_sent));
	link_watch(link);
	return 0;
}

void bm_link_close(struct bm_link *link)
{
	if (!link->open)
		return;
	link->open = false;
	link_watch(link);
	bm_task_cancel(&link->again);
	bm_transport_close(&link->transport);
	free(link->payload);
	link->payload = NULL;
}

void bm_link_resume(struct bm_link *link)
{
	if (!link->held)
		return;
	link->held = false;
	link->have = 0;
	/* What it said while nobody listened cannot be told from silence. */
	link->heard = bm_loop_now(link->loop);
	if (bm_transport_pending(&link->transport))
		bm_loop_soon(link->loop, &link->again);
	link_watch(link);
}

/* quiet: since when nothing has come by any of them. */
static void judge(struct bm_link *link, uint64_t quiet, uint64_t silence, uint64_t hello)
{
	uint64_t now = bm_loop_now(link->loop), own = now - link->heard;
	struct bm_error error;

	if (link->held)
		return;
	if (link->greeted ? quiet <= silence && own <= silence * BM_LINK_ALONE : own <= hello)
		return;
	bm_fail(&error, BM_E_UNREACHABLE,
		"connection %u: the other host has said nothing for %llu ms", link->number,
		(unsigned long long)(own / 1000000));
	link_fail(link, &error);
}

void bm_links_beat(struct bm_link *links, unsigned count, uint64_t silence, uint64_t hello)
{
	static const struct bm_ram_header beat = {.type = BM_RAM_FRAME_BEAT};
	uint64_t heard = 0, last, now;

	/* Of one that is not listened to nothing is known: it may have spoken just now. */
	for (unsigned i = 0; i < count; i++) {
		struct bm_link *link = &links[i];

		/* Not when it was opened: that may have been before the loop ran, whose clock
		   stands then. */
		if (!link->heard)
			link->heard = bm_loop_now(link->loop);
		last = link->held ? bm_loop_now(link->loop) : link->heard;
		if (link->open && !link->dead && last > heard)
			heard = last;
	}
	for (unsigned i = 0; i < count; i++) {
		struct bm_link *link = &links[i];

		/* The first one that fails may have closed all. */
		if (!link->open || link->dead)
			continue;
		now = bm_loop_now(link->loop);
		judge(link, now - heard, silence, hello);
		if (link->open && !link->dead && link->greeted && bm_link_idle(link) &&
		    now - link->said >= BM_LINK_BEAT)
			bm_link_send(link, &beat, NULL, false);
	}
}

void bm_link_give_up(struct bm_link *link, const char *why)
{
	struct bm_ram_header header = {.type = BM_RAM_FRAME_FAIL};
	size_t length = strnlen(why, BM_LINK_OWN);

	if (!bm_link_idle(link))
		return;
	header.length = header.plain = (uint32_t)length;
	bm_link_send(link, &header, (const uint8_t *)why, false);
	send_more(link);
}
