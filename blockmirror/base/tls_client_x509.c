/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Certificates of a control client. What is wrong with the other side's is seen in the handshake;
 * what the other side has against ours comes as an alert, when our handshake may be over.
 */
#include "blockmirror/base/tls_client_x509.h"

#include <errno.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/certificate.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/identity.h"
#include "blockmirror/base/tls.h"

enum { CA, CRL, CERTIFICATE, KEY, FILES, NAMES_TEXT = 256 };

static const char *const names[FILES] = {
	[CA] = "ca-cert.pem",
	[CRL] = "ca-crl.pem",
	[CERTIFICATE] = "client-cert.pem",
	[KEY] = "client-key.pem",
};

static int failed(const char *path, int r, struct bm_error *error)
{
	if (access(path, R_OK) < 0)
		return bm_fail_errno(error, errno, "cannot read %s", path);
	return bm_fail(error, BM_E_USAGE, "cannot use %s: %s", path,
		       r ? gnutls_strerror(r) : "there is no certificate in it");
}

/* A list of what was revoked that cannot be read is no reason to believe everybody. */
static int load(char *const *path, gnutls_certificate_credentials_t c, struct bm_error *error)
{
	int n = gnutls_certificate_set_x509_trust_file(c, path[CA], GNUTLS_X509_FMT_PEM);

	if (n <= 0)
		return failed(path[CA], n, error);
	if (!access(path[CRL], F_OK)) {
		n = gnutls_certificate_set_x509_crl_file(c, path[CRL], GNUTLS_X509_FMT_PEM);
		if (n < 0)
			return failed(path[CRL], n, error);
	}
	n = gnutls_certificate_set_x509_key_file(c, path[CERTIFICATE], path[KEY],
						 GNUTLS_X509_FMT_PEM);
	if (n >= 0)
		return 0;
	return failed(access(path[KEY], R_OK) < 0 ? path[KEY] : path[CERTIFICATE], n, error);
}

int bm_x509_load(const char *folder, gnutls_certificate_credentials_t *credentials,
		 struct bm_error *error)
{
	char *path[FILES] = {0};
	int r = gnutls_certificate_allocate_credentials(credentials) < 0 ? -ENOMEM : 0;

	for (int i = 0; !r && i < FILES; i++)
		if (asprintf(&path[i], "%s/%s", folder, names[i]) < 0) {
			path[i] = NULL;
			r = -ENOMEM;
		}
	r = r ? bm_fail_errno(error, ENOMEM, "certificates in %s", folder)
	      : load(path, *credentials, error);
	for (int i = 0; i < FILES; i++)
		free(path[i]);
	return r;
}

int bm_x509_apply(gnutls_session_t tls, gnutls_certificate_credentials_t credentials)
{
	static gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID,
						.data = (unsigned char *)GNUTLS_KP_TLS_WWW_SERVER};

	gnutls_session_set_verify_cert2(tls, &purpose, 1, 0);
	return gnutls_credentials_set(tls, GNUTLS_CRD_CERTIFICATE, credentials);
}

int bm_x509_check_name(gnutls_session_t tls, const char *address, const char *name,
		       struct bm_error *error)
{
	struct bm_identity *who = NULL;
	char text[NAMES_TEXT];
	int r = bm_identity_new(tls, &who);

	if (r < 0)
		return bm_fail(error, BM_E_ACCESS, "%s: its certificate cannot be read: %s",
			       address, strerror(-r));
	if (!bm_identity_is(who, name))
		r = bm_fail(error, BM_E_ACCESS,
			    "%s is somebody else: its certificate is not for %s, but for %s",
			    address, name, bm_identity_tell(who, text, sizeof(text)));
	bm_identity_free(who);
	return r;
}

bool bm_x509_covers(gnutls_session_t tls, const char *host)
{
	unsigned count = 0;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(tls, &count);
	gnutls_x509_crt_t certificate;
	bool covers;

	if (!chain || !count || gnutls_x509_crt_init(&certificate) < 0)
		return false;
	covers = gnutls_x509_crt_import(certificate, chain, GNUTLS_X509_FMT_DER) >= 0 &&
		 gnutls_x509_crt_check_hostname2(certificate, host, 0);
	gnutls_x509_crt_deinit(certificate);
	return covers;
}

int bm_x509_refuse(gnutls_session_t tls, const char *address, struct bm_error *error)
{
	unsigned status = gnutls_session_get_verify_cert_status(tls);
	char text[BM_CERTIFICATE_TEXT];

	gnutls_alert_send(tls, GNUTLS_AL_FATAL, bm_certificate_alert(status));
	return bm_fail(error, BM_E_ACCESS, "%s is not to be trusted: %s", address,
		       bm_certificate_explain(tls, status, text));
}

/* Times of ours, since its clock may be the one that is wrong. */
static void not_now(gnutls_session_t tls, const char *address, struct bm_error *error)
{
	char from[BM_CERTIFICATE_TIME], until[BM_CERTIFICATE_TIME], now[BM_CERTIFICATE_TIME];
	struct bm_validity validity;

	if (bm_certificate_ours(tls, &validity) < 0)
		validity = (struct bm_validity){0};
	bm_fail(error, BM_E_ACCESS,
		"%s says that our certificate is not valid now: it is from %s until %s, and the "
		"clock here says %s: a clock is wrong, or another certificate is wanted",
		address, bm_certificate_time(validity.from, from),
		bm_certificate_time(validity.until, until), bm_certificate_time(time(NULL), now));
}

bool bm_x509_refused(gnutls_session_t tls, const char *address, gnutls_alert_description_t alert,
		     struct bm_error *error)
{
	const char *why = NULL;

	if (alert == GNUTLS_A_CERTIFICATE_EXPIRED) {
		not_now(tls, address, error);
		return true;
	}
	if (alert == GNUTLS_A_CERTIFICATE_REVOKED)
		why = "it was revoked, says its ca-crl.pem";
	else if (alert == GNUTLS_A_UNKNOWN_CA)
		why = "the authority in its ca-cert.pem has not signed it";
	else if (alert == GNUTLS_A_UNSUPPORTED_CERTIFICATE)
		why = "it is not for clients (tls_www_client)";
	else if (alert == GNUTLS_A_CERTIFICATE_REQUIRED)
		why = "it was not shown one";
	else if (alert == GNUTLS_A_BAD_CERTIFICATE || alert == GNUTLS_A_CERTIFICATE_UNKNOWN)
		why = "its log says why";
	if (why)
		bm_fail(error, BM_E_ACCESS, "%s does not trust our certificate: %s", address, why);
	return why;
}
