/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The sender's way back: what the target's QEMU answers goes to the source's, but for the SHUT,
 * which waits for the gate. With it the source's QEMU knows that the target has all, and from then
 * on it never runs its guest again by itself.
 */
#include <errno.h>
#include <sys/socket.h>

#include "blockmirror/ram/relay_send.h"

void bm_sender_flush(struct bm_sender *s)
{
	struct bm_link *link = s->answer_link;

	while (s->answer_at < s->answer_end && !s->over) {
		ssize_t n = send(s->setup.qemu, s->answer + s->answer_at,
				 s->answer_end - s->answer_at, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) {
			bm_sender_qemu_failed(s, errno, "tell it what the target's has answered");
			return;
		}
		s->answer_at += (size_t)n;
	}
	s->answer_at = s->answer_end = 0;
	s->answer_link = NULL;
	if (link && !s->over)
		bm_link_resume(link);
}

static void release(struct bm_sender *s)
{
	bm_return_release(&s->back, s->answer + s->answer_end);
	s->answer_end += 8;
	s->passed = true;
}

static bool too_much(struct bm_sender *s)
{
	struct bm_error error;

	bm_fail(&error, BM_E_UNREACHABLE,
		"the target's QEMU, or its host, answers more than it should");
	bm_sender_fail(s, &error);
	return true;
}

/* Nothing else was sent to QEMU since the last answer was flushed: the link was held until then. */
bool bm_sender_answered(struct bm_sender *s, struct bm_link *link)
{
	const uint8_t *data = link->payload;
	size_t length = link->header.length;

	if (length > BM_LINK_OWN || link->number || s->passed || s->held)
		return too_much(s);
	s->answer_end = bm_return_pass(&s->back, &data, &length, s->answer);
	if (length)
		return too_much(s);
	if (s->back.shut && s->gate_open) {
		release(s);
	} else if (s->back.shut) {
		s->held = true;
		s->held_at = bm_loop_now(s->setup.loop);
		bm_loop_soon(s->setup.loop, &s->event);
	}
	s->answer_link = link;
	bm_sender_flush(s);
	bm_sender_pump(s);
	/* False keeps it, and bm_link_resume() has nothing to do yet when all was taken at once. */
	return s->answer_link != link;
}

void bm_sender_open_gate(struct bm_sender *s)
{
	s->gate_open = true;
	if (s->over || !s->back.shut)
		return;
	s->held = false;
	release(s);
	bm_sender_flush(s);
	bm_sender_pump(s);
}
