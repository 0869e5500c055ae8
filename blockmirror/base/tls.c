/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * TLS over a transport, by GnuTLS, which neither reads nor writes the socket itself.
 *
 *	socket -> in: whole records -> GnuTLS -> the caller's buffers
 *	the caller's buffers (small parts by way of part) -> GnuTLS -> out -> socket
 *
 * Receiving: one system call takes up to 128 KiB. GnuTLS is given whole records only: what it holds
 * between calls is then either nothing or decrypted, and "is there more without the socket having
 * become readable" has an exact answer (bm_tls_pending()).
 *
 * Sending: a long reply is encrypted from where it lies, 16 KiB at a time. Short ones, and the ends
 * of long ones, are put together in part until they fill a record. Eight records leave in one
 * system call. So a record costs what it must, and there is nothing to cork. Since there is room
 * before a record is made, GnuTLS is never interrupted in one.
 */
#include "blockmirror/base/tls.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/certificate.h"
#include "blockmirror/base/transport.h"

enum {
	RECORD = 16384,   /* data in a record, at most (RFC 8446 5.1) */
	HEADER = 5,       /* type, version, length */
	EXPANSION = 2048, /* a record is longer than its data by at most that (RFC 5246 6.2.3) */
	OVERHEAD = 512,   /* ours are so by far less */
	IN = 128 << 10,   /* several records, or GnuTLS would starve */
	OUT = 8 * (RECORD + OVERHEAD),
	FIRST_TYPE = 20, /* change_cipher_spec, alert, handshake, application_data */
	LAST_TYPE = 23,
};

struct bm_tls {
	struct bm_transport raw; /* its descriptors: the transport itself may be moved */
	struct bm_credentials *credentials;
	void (*release)(void *arg); /* NULL: the session is ours */
	void *arg;
	gnutls_session_t session;
	bool established;
	bool hung_up;       /* nothing more comes from the socket */
	bool over;          /* there is nothing more to receive: end says why */
	int end;            /* 0: the client said so; -errno */
	size_t start, used; /* in in */
	size_t whole;       /* bytes of it, from start on, that are whole records */
	size_t out_start, out_used;
	char why[BM_CERTIFICATE_TEXT + 60];
	uint8_t part[RECORD];
	uint8_t in[IN];
	uint8_t out[OUT];
};

static int fail(struct bm_tls *tls, const char *what, const char *why)
{
	snprintf(tls->why, sizeof(tls->why), "%s: %s", what, why);
	tls->established = false; /* nothing is to be said any more */
	tls->over = true;
	tls->end = -EPROTO;
	return -EPROTO;
}

const char *bm_tls_why(const struct bm_tls *tls)
{
	return tls->why;
}

/* What GnuTLS calls */

static ssize_t pull(gnutls_transport_ptr_t arg, void *data, size_t size)
{
	struct bm_tls *tls = arg;
	size_t n = size < tls->whole ? size : tls->whole;

	if (!n && tls->hung_up)
		return 0;
	if (!n) {
		gnutls_transport_set_errno(tls->session, EAGAIN);
		return -1;
	}
	memcpy(data, tls->in + tls->start, n);
	tls->start += n;
	tls->used -= n;
	tls->whole -= n;
	return (ssize_t)n;
}

static int pull_timeout(gnutls_transport_ptr_t arg, unsigned ms)
{
	const struct bm_tls *tls = arg;

	(void)ms; /* nobody waits here */
	return tls->whole || tls->hung_up;
}

static ssize_t push(gnutls_transport_ptr_t arg, const void *data, size_t size)
{
	struct bm_tls *tls = arg;
	size_t room = OUT - tls->out_used, n = size < room ? size : room;

	if (!n) {
		gnutls_transport_set_errno(tls->session, EAGAIN);
		return -1;
	}
	memcpy(tls->out + tls->out_used, data, n);
	tls->out_used += n;
	return (ssize_t)n;
}

/* Opening and closing */

static void use_buffers(struct bm_tls *tls)
{
	gnutls_transport_set_ptr(tls->session, tls);
	gnutls_transport_set_pull_function(tls->session, pull);
	gnutls_transport_set_pull_timeout_function(tls->session, pull_timeout);
	gnutls_transport_set_push_function(tls->session, push);
}

struct bm_tls *bm_tls_new(const struct bm_transport *raw, struct bm_credentials *credentials)
{
	struct bm_tls *tls = calloc(1, sizeof(*tls));

	if (!tls)
		return NULL;
	/* Sessions are long and are not resumed: no tickets. */
	if (gnutls_init(&tls->session, GNUTLS_SERVER | GNUTLS_NONBLOCK | GNUTLS_NO_TICKETS) < 0) {
		free(tls);
		return NULL;
	}
	tls->raw = *raw;
	tls->credentials = bm_credentials_ref(credentials);
	use_buffers(tls);
	if (bm_credentials_apply(credentials, tls->session) < 0) {
		bm_tls_free(tls);
		return NULL;
	}
	return tls;
}

struct bm_tls *bm_tls_adopt(const struct bm_transport *raw, gnutls_session_t session,
			    void (*release)(void *arg), void *arg)
{
	struct bm_tls *tls = calloc(1, sizeof(*tls));

	if (!tls)
		return NULL;
	tls->raw = *raw;
	tls->session = session;
	tls->release = release;
	tls->arg = arg;
	tls->established = true;
	use_buffers(tls);
	return tls;
}

void bm_tls_free(struct bm_tls *tls)
{
	if (!tls)
		return;
	/* "Terminating the transmission phase": TLS is closed first. As far as the client takes it.
	 */
	if (tls->established && gnutls_bye(tls->session, GNUTLS_SHUT_WR) == GNUTLS_E_SUCCESS)
		(void)bm_tls_flush(tls);
	if (tls->release) {
		tls->release(tls->arg);
	} else {
		gnutls_deinit(tls->session);
		bm_credentials_unref(tls->credentials);
	}
	free(tls);
}

/* Bytes */

/* Finds out how much of in is whole records, without being misled by what are none. */
static int find_records(struct bm_tls *tls)
{
	while (tls->used - tls->whole >= HEADER) {
		const uint8_t *header = tls->in + tls->start + tls->whole;
		size_t length = HEADER + (size_t)(header[3] << 8 | header[4]);

		if (header[0] < FIRST_TYPE || header[0] > LAST_TYPE || header[1] != 3 ||
		    length > HEADER + RECORD + EXPANSION)
			return fail(tls, "TLS failed", "what it sent is no TLS record");
		if (length > tls->used - tls->whole)
			break;
		tls->whole += length;
	}
	return 0;
}

/* Receives once. 0: there may be something. */
static int fill(struct bm_tls *tls)
{
	struct iovec v;
	ssize_t n;

	if (tls->hung_up)
		return 0;
	memmove(tls->in, tls->in + tls->start, tls->used);
	tls->start = 0;
	v = (struct iovec){tls->in + tls->used, IN - tls->used};
	n = bm_raw_recv(&tls->raw, &v, 1);
	if (n < 0)
		return (int)n;
	tls->hung_up = n == 0;
	tls->used += (size_t)n;
	return find_records(tls);
}

int bm_tls_flush(struct bm_tls *tls)
{
	while (tls->out_used > tls->out_start) {
		struct iovec v = {tls->out + tls->out_start, tls->out_used - tls->out_start};
		ssize_t n = bm_raw_send(&tls->raw, &v, 1);

		if (n < 0)
			return (int)n;
		tls->out_start += (size_t)n;
	}
	tls->out_start = tls->out_used = 0;
	return 0;
}

/* The handshake */

static bool is_interrupted(ssize_t r)
{
	return r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED;
}

/* The client is told what is wrong with its certificate, and so can tell who asked it. */
static int certificate_failed(struct bm_tls *tls, const char *what)
{
	unsigned status = gnutls_session_get_verify_cert_status(tls->session);
	char text[BM_CERTIFICATE_TEXT];

	gnutls_alert_send(tls->session, GNUTLS_AL_FATAL, bm_certificate_alert(status));
	(void)bm_tls_flush(tls);
	return fail(tls, what, bm_certificate_explain(tls->session, status, text));
}

static int handshake_failed(struct bm_tls *tls, int r)
{
	static const char what[] = "the TLS handshake failed";

	if (r == GNUTLS_E_PREMATURE_TERMINATION && tls->hung_up)
		return fail(tls, what, "it closed the connection");
	if (r == GNUTLS_E_FATAL_ALERT_RECEIVED)
		return fail(tls, what, gnutls_alert_get_name(gnutls_alert_get(tls->session)));
	if (r == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR)
		return certificate_failed(tls, what);
	gnutls_alert_send_appropriate(tls->session, r);
	(void)bm_tls_flush(tls);
	if (r == GNUTLS_E_RECEIVED_ILLEGAL_PARAMETER || r == GNUTLS_E_DECRYPTION_FAILED)
		return fail(tls, what, "a wrong pre-shared key, or a broken message");
	return fail(tls, what, gnutls_strerror(r));
}

int bm_tls_handshake(struct bm_tls *tls)
{
	int r = tls->whole ? 0 : fill(tls), flushed = 0;

	if (r < 0 && r != -EAGAIN)
		return r;
	do {
		r = gnutls_handshake(tls->session);
		if (is_interrupted(r))
			flushed = bm_tls_flush(tls);
		/* Certificates that are longer than out go in several steps. */
	} while (r == GNUTLS_E_WARNING_ALERT_RECEIVED ||
		 (is_interrupted(r) && !flushed && gnutls_record_get_direction(tls->session)));
	if (is_interrupted(r))
		return flushed ? flushed : -EAGAIN;
	if (r < 0)
		return handshake_failed(tls, r);
	tls->established = true;
	return 0;
}

int bm_tls_identify(struct bm_tls *tls, struct bm_identity **identity)
{
	int r = bm_identity_new(tls->session, identity);

	return r == -EPROTO ? fail(tls, "TLS failed", "its certificate is not well formed") : r;
}

/* Receiving */

bool bm_tls_pending(const struct bm_tls *tls)
{
	return tls->over || tls->hung_up || tls->whole || gnutls_record_check_pending(tls->session);
}

/* At least 1; 0: the end; -EAGAIN: all whole records are used up. */
static ssize_t recv_some(struct bm_tls *tls, void *data, size_t size)
{
	ssize_t n;

	do {
		n = gnutls_record_recv(tls->session, data, size);
	} while (n == GNUTLS_E_WARNING_ALERT_RECEIVED ||
		 (is_interrupted(n) && tls->whole)); /* that record was TLS's own business */
	if (n > 0)
		return n;
	if (is_interrupted(n))
		return -EAGAIN;
	/*
	 * Without a goodbye, too: NBD says by itself how long everything is, so that nothing that
	 * was cut off passes for whole.
	 */
	tls->over = true;
	if (n == 0 || (n == GNUTLS_E_PREMATURE_TERMINATION && tls->hung_up))
		return 0;
	return fail(tls, "TLS failed", gnutls_strerror((int)n));
}

ssize_t bm_tls_recv(struct bm_tls *tls, const struct iovec *v, int count)
{
	ssize_t got = 0, n = bm_tls_pending(tls) ? 0 : fill(tls);

	if (n < 0)
		return n;
	if (tls->over)
		return tls->end;
	for (int i = 0; i < count; i++)
		for (size_t at = 0; at < v[i].iov_len; at += (size_t)n) {
			n = recv_some(tls, (uint8_t *)v[i].iov_base + at, v[i].iov_len - at);
			if (n <= 0)
				return got ? got : n;
			got += n;
		}
	return got;
}

/* Sending */

struct source {
	const struct iovec *v;
	int count;
	size_t at; /* in the first one */
};

static void skip(struct source *s, size_t length)
{
	s->at += length;
	while (s->count && s->at >= s->v->iov_len) {
		s->at -= s->v->iov_len;
		s->v++;
		s->count--;
	}
}

/* Up to a record's data: from where it lies, when that is a whole record's or all there is. */
static const uint8_t *next_data(struct bm_tls *tls, struct source s, size_t *length)
{
	const uint8_t *first = (const uint8_t *)s.v->iov_base + s.at;

	*length = s.v->iov_len - s.at;
	if (*length >= RECORD)
		*length = RECORD;
	if (*length == RECORD || s.count == 1)
		return first;
	for (*length = 0; s.count && *length < RECORD;) {
		size_t left = s.v->iov_len - s.at, room = RECORD - *length;
		size_t n = left < room ? left : room;

		memcpy(tls->part + *length, (const uint8_t *)s.v->iov_base + s.at, n);
		*length += n;
		skip(&s, n);
	}
	return tls->part;
}

ssize_t bm_tls_send(struct bm_tls *tls, const struct iovec *v, int count)
{
	struct source s = {.v = v, .count = count};
	ssize_t sent = 0;
	int r = bm_tls_flush(tls);

	if (r < 0)
		return r;
	skip(&s, 0);
	while (s.count && OUT - tls->out_used >= RECORD + OVERHEAD) {
		size_t length;
		const uint8_t *data = next_data(tls, s, &length);
		ssize_t n = gnutls_record_send(tls->session, data, length);

		if (n <= 0) /* there was room: it is no interruption */
			return fail(tls, "TLS failed", gnutls_strerror((int)n));
		skip(&s, (size_t)n);
		sent += n;
	}
	r = bm_tls_flush(tls);
	return r < 0 && r != -EAGAIN ? r : sent;
}
