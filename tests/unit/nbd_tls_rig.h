/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the tests of TLS share: a client of nbd_client.h goes over to TLS by way of a bridge, which
 * encrypts what he says, and shares the server's loop. He himself goes on as before.
 *
 *	client -- plain -- bridge (GnuTLS, client) -- secure -- server
 */
#ifndef TESTS_UNIT_NBD_TLS_RIG_H
#define TESTS_UNIT_NBD_TLS_RIG_H

#include "tests/unit/nbd_certs.h"
#include "tests/unit/nbd_client.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/epoll.h>

#define POLICY   0x80000002u
#define TLS_REQD 0x80000005u
#define NORMAL   "NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK" /* what libnbd and QEMU ask for */
#define KEY_1    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define KEY_2    "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

/* A flow of bytes in one direction. */
struct flow {
	uint8_t bytes[65536];
	size_t start, end;
	bool ended;
};

struct bridge {
	struct rig *rig;
	gnutls_session_t session;
	gnutls_certificate_credentials_t x509;
	gnutls_psk_client_credentials_t psk;
	int plain, secure;
	struct bm_watch plain_watch, secure_watch;
	struct flow to_server, to_client;
	bool good_bye; /* the server has closed TLS before the connection */
	int error;     /* GnuTLS's, when it ended otherwise */
};

/* How a client wants it. */
struct manner {
	const char *priority; /* NULL: NORMAL */
	const char *user, *key;
	const char *folder, *name; /* of his certificate; name NULL: he has none */
};

/* From the client: encrypted. Returns whether something has happened. */
static inline bool bridge_send(struct bridge *b)
{
	struct flow *f = &b->to_server;
	ssize_t n;

	if (f->start == f->end && !f->ended) {
		n = recv(b->plain, f->bytes, sizeof(f->bytes), MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			return false;
		f->start = 0;
		f->end = n > 0 ? (size_t)n : 0;
		f->ended = n <= 0;
		if (f->ended)
			gnutls_bye(b->session, GNUTLS_SHUT_WR);
		return true;
	}
	if (f->start == f->end)
		return false;
	n = gnutls_record_send(b->session, f->bytes + f->start, f->end - f->start);
	if (n == GNUTLS_E_AGAIN)
		return false;
	if (n < 0) {
		f->ended = true;
		f->start = f->end;
		return true;
	}
	f->start += (size_t)n;
	return true;
}

/* To the client: in the clear. */
static inline bool bridge_recv(struct bridge *b)
{
	struct flow *f = &b->to_client;
	ssize_t n;

	if (f->start == f->end && !f->ended) {
		n = gnutls_record_recv(b->session, f->bytes, sizeof(f->bytes));
		if (n == GNUTLS_E_AGAIN)
			return false;
		f->start = 0;
		f->end = n > 0 ? (size_t)n : 0;
		f->ended = n <= 0;
		b->good_bye = n == 0;
		b->error = n < 0 ? (int)n : 0;
		if (f->ended)
			shutdown(b->plain, SHUT_WR);
		return true;
	}
	if (f->start == f->end)
		return false;
	n = send(b->plain, f->bytes + f->start, f->end - f->start, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && errno == EAGAIN)
		return false;
	f->start = n < 0 ? f->end : f->start + (size_t)n;
	return true;
}

static inline void bridge_run(struct bridge *b)
{
	const struct flow *out = &b->to_server, *in = &b->to_client;
	bool outward, inward;

	do {
		outward = bridge_send(b);
		inward = bridge_recv(b);
	} while (outward || inward);
	outward = out->start < out->end;
	inward = in->start < in->end;
	bm_watch_set(b->rig->loop, &b->plain_watch, b->plain,
		     (outward || out->ended ? 0 : EPOLLIN) | (inward ? EPOLLOUT : 0));
	bm_watch_set(b->rig->loop, &b->secure_watch, b->secure,
		     (inward || in->ended ? 0 : EPOLLIN) | (outward ? EPOLLOUT : 0));
}

static inline void bridge_plain_ready(struct bm_watch *watch, uint32_t events)
{
	(void)events;
	bridge_run(bm_container(watch, struct bridge, plain_watch));
}

static inline void bridge_secure_ready(struct bm_watch *watch, uint32_t events)
{
	(void)events;
	bridge_run(bm_container(watch, struct bridge, secure_watch));
}

static inline void bridge_identity(struct bridge *b, const struct manner *m)
{
	gnutls_datum_t key = {(unsigned char *)(uintptr_t)m->key, m->key ? 64 : 0};
	char certificate[200], path[200];

	assert_int_equal(gnutls_certificate_allocate_credentials(&b->x509), 0);
	if (m->name) {
		snprintf(certificate, sizeof(certificate), "%s/%s-cert.pem", m->folder, m->name);
		snprintf(path, sizeof(path), "%s/%s-key.pem", m->folder, m->name);
		assert_int_equal(gnutls_certificate_set_x509_key_file(b->x509, certificate, path,
								      GNUTLS_X509_FMT_PEM),
				 0);
	}
	gnutls_credentials_set(b->session, GNUTLS_CRD_CERTIFICATE, b->x509);
	if (!m->user)
		return;
	assert_int_equal(gnutls_psk_allocate_client_credentials(&b->psk), 0);
	gnutls_psk_set_client_credentials(b->psk, m->user, &key, GNUTLS_PSK_KEY_HEX);
	gnutls_credentials_set(b->session, GNUTLS_CRD_PSK, b->psk);
}

/* A client's side of TLS on c's connection, and no word said yet. */
static inline struct bridge *bridge_new(struct client *c, const struct manner *m)
{
	struct bridge *b = calloc(1, sizeof(*b));

	b->rig = c->rig;
	b->secure = c->fd;
	b->plain = -1;
	b->plain_watch.run = bridge_plain_ready;
	b->secure_watch.run = bridge_secure_ready;
	assert_int_equal(
		gnutls_init(&b->session, GNUTLS_CLIENT | GNUTLS_NONBLOCK | GNUTLS_NO_SIGNAL), 0);
	assert_int_equal(
		gnutls_priority_set_direct(b->session, m->priority ? m->priority : NORMAL, NULL),
		0);
	bridge_identity(b, m);
	assert_int_equal(fcntl(b->secure, F_SETFL, O_NONBLOCK), 0);
	gnutls_transport_set_int(b->session, b->secure);
	return b;
}

/* Returns 0 or GnuTLS's error. */
static inline int bridge_handshake(struct bridge *b)
{
	int r, idle = 0;

	do {
		r = gnutls_handshake(b->session);
		if (r == GNUTLS_E_AGAIN)
			turn(b->rig);
		assert_true(++idle < 5000);
	} while (r < 0 && !gnutls_error_is_fatal(r));
	return r;
}

/* The client speaks through it from here on. */
static inline void bridge_open(struct bridge *b, struct client *c)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	b->plain = fds[0];
	c->fd = fds[1];
	bridge_run(b);
}

static inline void bridge_close(struct bridge *b)
{
	bm_watch_set(b->rig->loop, &b->plain_watch, b->plain, 0);
	bm_watch_set(b->rig->loop, &b->secure_watch, b->secure, 0);
	gnutls_deinit(b->session);
	gnutls_certificate_free_credentials(b->x509);
	if (b->psk)
		gnutls_psk_free_client_credentials(b->psk);
	if (b->plain >= 0)
		close(b->plain);
	close(b->secure);
	free(b);
}

/* STARTTLS, acknowledged, and not a byte of TLS yet. */
static inline void ask_for_tls(struct client *c)
{
	uint8_t payload[16];
	uint32_t length;

	option(c, STARTTLS, NULL, 0);
	assert_int_equal(option_reply(c, STARTTLS, payload, &length), ACK);
	assert_int_equal(length, 0);
}

/* c goes over to TLS. *result: as the client sees it, when somebody wants to know. */
static inline struct bridge *secure(struct client *c, const struct manner *m, int *result)
{
	struct bridge *b;
	int r;

	ask_for_tls(c);
	b = bridge_new(c, m);
	r = bridge_handshake(b);
	if (result)
		*result = r;
	else
		assert_int_equal(r, 0);
	if (!r)
		bridge_open(b, c);
	return b;
}

static inline struct client new_secure_client(struct rig *rig, const struct manner *m,
					      struct bridge **b)
{
	struct client c = client_new(rig);

	start(&c, 3);
	*b = secure(&c, m, NULL);
	return c;
}

/* What is negotiated goes for the rest of the session. */
static inline void choose_mode(struct client *c, enum mode mode)
{
	uint32_t number = mode == EXTENDED_HEADERS ? EXTENDED : SR;

	c->structured = mode != SIMPLE_REPLIES;
	c->extended = mode == EXTENDED_HEADERS;
	if (!c->structured)
		return;
	option(c, number, NULL, 0);
	assert_int_equal(final_reply(c, number), ACK);
}

/* In the transmission phase, over TLS. */
static inline struct client secured(struct rig *rig, const struct manner *m, struct bridge **b,
				    const char *name, enum mode mode)
{
	struct client c = new_secure_client(rig, m, b);

	choose_mode(&c, mode);
	go(&c, name);
	return c;
}

static inline void secure_close(struct client *c, struct bridge *b)
{
	close(c->fd);
	turns(c->rig, 5);
	bridge_close(b);
	turns(c->rig, 5);
}

/* What the server made of a client. */
static inline struct nbd_client_info last_client(struct rig *rig)
{
	struct nbd_client_info info[8];
	unsigned count = nbd_server_clients(rig->server, info, 8);

	assert_in_range(count, 1, 8);
	return info[count - 1];
}

static inline void remove_folder(const char *folder)
{
	DIR *dir = opendir(folder);
	char path[400];

	for (struct dirent *entry; (entry = readdir(dir));) {
		snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
		unlink(path);
	}
	closedir(dir);
	rmdir(folder);
}

#endif
