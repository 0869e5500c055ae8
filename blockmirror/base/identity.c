/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who a client has proven to be. Names from a certificate are the client's own words, signed by the
 * authority: they are compared, never interpreted, and one with a NUL in it is none.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/tls.h"

enum { NAMES = 64, LONGEST_NAME = 1024 };

struct proven {
	struct bm_identity shown;
	char *psk, *dn, *name[NAMES + 1];
};

void bm_identity_free(struct bm_identity *identity)
{
	struct proven *p = (struct proven *)(void *)identity;

	if (!p)
		return;
	for (int i = 0; p->name[i]; i++)
		free(p->name[i]);
	free(p->psk);
	free(p->dn);
	free(p);
}

/* "dns:…" and so on, malloc()ed; NULL with errno 0: it is none that can be named. */
static char *name_text(int type, const char *bytes, size_t length)
{
	char address[INET6_ADDRSTRLEN], *text;
	const char *kind = NULL;

	errno = 0;
	if (type == GNUTLS_SAN_IPADDRESS) {
		if ((length != 4 && length != 16) ||
		    !inet_ntop(length == 4 ? AF_INET : AF_INET6, bytes, address, sizeof(address)))
			return NULL;
		return asprintf(&text, "ip:%s", address) < 0 ? NULL : text;
	}
	if (type == GNUTLS_SAN_DNSNAME)
		kind = "dns";
	else if (type == GNUTLS_SAN_URI)
		kind = "uri";
	else if (type == GNUTLS_SAN_RFC822NAME)
		kind = "email";
	if (!kind || memchr(bytes, '\0', length))
		return NULL;
	return asprintf(&text, "%s:%.*s", kind, (int)length, bytes) < 0 ? NULL : text;
}

/* Longer names, and more than NAMES, are left out: they give no access. */
static int take_names(struct proven *p, gnutls_x509_crt_t certificate)
{
	unsigned count = 0;

	for (unsigned i = 0; count < NAMES; i++) {
		char bytes[LONGEST_NAME];
		size_t length = sizeof(bytes);
		int type =
			gnutls_x509_crt_get_subject_alt_name(certificate, i, bytes, &length, NULL);

		if (type == GNUTLS_E_REQUESTED_DATA_NOT_AVAILABLE)
			break;
		if (type == GNUTLS_E_SHORT_MEMORY_BUFFER || type == GNUTLS_E_X509_UNKNOWN_SAN)
			continue;
		if (type < 0)
			return -EPROTO;
		p->name[count] = name_text(type, bytes, length);
		if (p->name[count])
			count++;
		else if (errno == ENOMEM)
			return -ENOMEM;
	}
	return 0;
}

static int take_certificate(struct proven *p, gnutls_session_t session)
{
	unsigned count = 0;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &count);
	gnutls_x509_crt_t certificate;
	gnutls_datum_t dn = {0};
	int r = -EPROTO;

	if (!chain || !count) /* none was asked for */
		return 0;
	if (gnutls_x509_crt_init(&certificate) < 0)
		return -ENOMEM;
	if (gnutls_x509_crt_import(certificate, chain, GNUTLS_X509_FMT_DER) >= 0)
		r = take_names(p, certificate);
	if (!r && gnutls_x509_crt_get_dn3(certificate, &dn, 0) >= 0) {
		p->dn = strndup((const char *)dn.data, dn.size);
		r = p->dn ? 0 : -ENOMEM;
	}
	gnutls_free(dn.data);
	gnutls_x509_crt_deinit(certificate);
	return r;
}

int bm_identity_new(gnutls_session_t session, struct bm_identity **identity)
{
	struct proven *p = calloc(1, sizeof(*p));
	const char *user;
	int r = 0;

	if (!p)
		return -ENOMEM;
	switch (gnutls_auth_get_type(session)) {
	case GNUTLS_CRD_PSK:
		user = gnutls_psk_server_get_username(session);
		p->psk = user ? strdup(user) : NULL;
		r = p->psk ? 0 : -ENOMEM;
		break;
	case GNUTLS_CRD_CERTIFICATE:
		r = take_certificate(p, session);
		break;
	default:
		break;
	}
	p->shown = (struct bm_identity){p->psk, p->dn, (const char *const *)p->name};
	if (r < 0)
		bm_identity_free(&p->shown);
	else
		*identity = &p->shown;
	return r;
}
