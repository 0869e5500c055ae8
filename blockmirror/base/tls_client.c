/* SPDX-License-Identifier: BSD-3-Clause */
/* TLS 1.3 by a key that both sides have, or by certificates, over a socket that blocks. */
#include "blockmirror/base/tls_client.h"

#include <errno.h>
#include <gnutls/gnutls.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "blockmirror/base/address.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/tls.h"
#include "blockmirror/base/tls_client_x509.h"

/* What rpc.c's side has for keys, and for certificates: base/credentials.c. */
#define ONLY_1_3 "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL"
static const char for_keys[] = ONLY_1_3 ":+ECDHE-PSK:+DHE-PSK";
static const char for_certificates[] = ONLY_1_3 ":+ECDHE-ECDSA:+ECDHE-RSA:+DHE-RSA";

struct session {
	gnutls_session_t tls;
	gnutls_psk_client_credentials_t key;   /* NULL: by certificates, */
	gnutls_certificate_credentials_t x509; /* which are then not NULL */
	char *address;
	bool alerted;
};

/* GnuTLS's answer as ours: a time-out of the socket is no error of the session's. */
static ssize_t answer_of(ssize_t n)
{
	if (n == GNUTLS_E_PREMATURE_TERMINATION)
		return 0;
	if (n == GNUTLS_E_INTERRUPTED)
		return -EINTR;
	if (n == GNUTLS_E_AGAIN)
		return -EAGAIN;
	return n < 0 ? -EPROTO : n;
}

static ssize_t session_send(void *arg, const void *data, size_t length)
{
	struct session *s = arg;

	return answer_of(gnutls_record_send(s->tls, data, length));
}

static ssize_t session_recv(void *arg, void *data, size_t length)
{
	struct session *s = arg;

	ssize_t n = gnutls_record_recv(s->tls, data, length);

	s->alerted |= n == GNUTLS_E_FATAL_ALERT_RECEIVED;
	return answer_of(n);
}

/*
 * A server learns our certificate when our handshake is over: what it has against that comes with
 * its first answer, or instead of it while we still send.
 */
static bool session_why(void *arg, struct bm_error *error)
{
	struct session *s = arg;
	char rest[64];

	if (!s->x509)
		return false;
	for (int i = 0; !s->alerted && i < 4 && session_recv(s, rest, sizeof(rest)) > 0; i++)
		;
	return s->alerted && bm_x509_refused(s->tls, s->address, gnutls_alert_get(s->tls), error);
}

static void session_close(void *arg)
{
	struct session *s = arg;

	if (s->tls)
		gnutls_deinit(s->tls);
	if (s->key)
		gnutls_psk_free_client_credentials(s->key);
	if (s->x509)
		gnutls_certificate_free_credentials(s->x509);
	free(s->address);
	free(s);
}

static const struct bm_client_io session_io = {session_send, session_recv, session_close,
					       session_why};

static int set_key(struct session *s, const struct bm_tls_trust *trust)
{
	const gnutls_datum_t hex = {(unsigned char *)(uintptr_t)trust->hex,
				    (unsigned)strlen(trust->hex)};
	int r = gnutls_psk_allocate_client_credentials(&s->key);

	if (r >= 0)
		r = gnutls_psk_set_client_credentials(s->key, trust->user, &hex,
						      GNUTLS_PSK_KEY_HEX);
	return r < 0 ? r : gnutls_credentials_set(s->tls, GNUTLS_CRD_PSK, s->key);
}

/* Our certificate is shown also to who seems not to believe its authority, and then says so. */
static int set_up(struct session *s, const struct bm_tls_trust *trust, int fd,
		  struct bm_error *error)
{
	int r = gnutls_init(&s->tls, GNUTLS_CLIENT | GNUTLS_NO_TICKETS | GNUTLS_FORCE_CLIENT_CERT);

	if (r >= 0 && !trust->hex && bm_x509_load(trust->certificates, &s->x509, error) < 0)
		return -EINVAL;
	if (r >= 0)
		r = trust->hex ? set_key(s, trust) : bm_x509_apply(s->tls, s->x509);
	if (r >= 0)
		r = gnutls_priority_set_direct(s->tls, trust->hex ? for_keys : for_certificates,
					       NULL);
	if (r < 0)
		return bm_fail(error, BM_E_INTERNAL, "TLS: %s", gnutls_strerror(r));
	gnutls_transport_set_int(s->tls, fd);
	return 0;
}

static int refused(const char *address, const struct session *s, int r, struct bm_error *error)
{
	if (r == GNUTLS_E_AGAIN || r == GNUTLS_E_INTERRUPTED)
		return bm_fail(error, BM_E_UNREACHABLE, "%s does not answer to TLS", address);
	if (r == GNUTLS_E_PREMATURE_TERMINATION || r == GNUTLS_E_PULL_ERROR ||
	    r == GNUTLS_E_PUSH_ERROR)
		return bm_fail(error, BM_E_ACCESS,
			       "%s closes the connection: it knows no host that has our name, or "
			       "is no blockmirrord",
			       address);
	if (r == GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR)
		return bm_x509_refuse(s->tls, address, error);
	if (r == GNUTLS_E_FATAL_ALERT_RECEIVED && s->x509)
		return bm_fail(error, BM_E_ACCESS,
			       "%s refuses us (%s): it knows no host by a certificate, or was "
			       "started without --tls-dir",
			       address, gnutls_alert_get_name(gnutls_alert_get(s->tls)));
	if (r == GNUTLS_E_FATAL_ALERT_RECEIVED)
		return bm_fail(error, BM_E_ACCESS,
			       "%s refuses us (%s): it has another key for our name; pair the "
			       "hosts again",
			       address, gnutls_alert_get_name(gnutls_alert_get(s->tls)));
	return bm_fail(error, BM_E_ACCESS, "no TLS with %s: %s", address, gnutls_strerror(r));
}

static int shake_hands(struct session *s, const char *address, const char *name,
		       struct bm_error *error)
{
	int r;

	do {
		r = gnutls_handshake(s->tls);
	} while (r == GNUTLS_E_INTERRUPTED || r == GNUTLS_E_WARNING_ALERT_RECEIVED);
	if (r < 0)
		return refused(address, s, r, error);
	return s->x509 ? bm_x509_check_name(s->tls, address, name, error) : 0;
}

/* SO_SNDTIMEO is for connect(2), too. Calls are short, and waited for. */
static void set_up_socket(int fd, uint64_t ns)
{
	const int on = 1;
	const struct timeval t = {.tv_sec = (time_t)(ns / 1000000000u),
				  .tv_usec = (suseconds_t)(ns % 1000000000u / 1000)};

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static int connect_to(const char *address, uint64_t ns, struct bm_error *error)
{
	struct addrinfo *list;
	int fd = -1, why = 0, r = bm_address_lookup(address, false, &list, error);

	if (r < 0)
		return r;
	for (struct addrinfo *info = list; info && fd < 0; info = info->ai_next) {
		fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd >= 0)
			set_up_socket(fd, ns);
		if (fd >= 0 && connect(fd, info->ai_addr, info->ai_addrlen) < 0) {
			why = errno == EINPROGRESS ? ETIMEDOUT : errno;
			close(bm_steal_fd(fd));
		}
	}
	freeaddrinfo(list);
	return fd >= 0 ? fd
		       : bm_fail(error, BM_E_UNREACHABLE, "cannot connect to %s: %s", address,
				 strerror(why));
}

int bm_client_connect_tls(const char *address, const struct bm_tls_trust *trust, uint64_t ns,
			  struct bm_client **client, struct bm_error *error)
{
	struct session *s = calloc(1, sizeof(*s));
	bm_close int fd = -1;
	int r;

	if (s)
		s->address = strdup(address);
	if (!s || !s->address) {
		free(s);
		return bm_fail_errno(error, ENOMEM, "connection to %s", address);
	}
	r = fd = connect_to(address, ns, error);
	if (r >= 0)
		r = set_up(s, trust, fd, error);
	if (!r)
		r = shake_hands(s, address, trust->name, error);
	if (!r)
		r = bm_client_from_io(&session_io, s, fd, client, error);
	if (r < 0)
		session_close(s);
	else
		bm_steal_fd(fd);
	return r;
}

bool bm_client_tls_covers(const struct bm_client *client, const char *host)
{
	const struct session *s = bm_client_io_arg(client, &session_io);

	return s && (!s->x509 || bm_x509_covers(s->tls, host));
}

int bm_client_become_transport(struct bm_client *client, struct bm_transport *transport,
			       struct bm_error *error)
{
	struct session *s = bm_client_io_arg(client, &session_io);
	int fd = -1, r = s ? bm_client_take_apart(client, &fd) : -EINVAL;

	if (r < 0) {
		bm_client_close(client);
		return bm_fail(error, BM_E_UNREACHABLE,
			       "the other host says more than it was asked");
	}
	*transport = (struct bm_transport){.in = fd, .out = fd, .socket = true};
	transport->tls = bm_tls_adopt(transport, s->tls, session_close, s);
	if (transport->tls)
		return 0;
	session_close(s);
	bm_transport_close(transport);
	return bm_fail_errno(error, ENOMEM, "connection to the other host");
}
