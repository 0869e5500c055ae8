/* SPDX-License-Identifier: BSD-3-Clause */
/* What is wrong with a certificate, as people and the other side are told. */
#include "blockmirror/base/certificate.h"

#include <gnutls/x509.h>
#include <stdio.h>

#define NOT_NOW     (GNUTLS_CERT_EXPIRED | GNUTLS_CERT_NOT_ACTIVATED)
#define NOT_BY_OURS (GNUTLS_CERT_SIGNER_NOT_FOUND | GNUTLS_CERT_SIGNER_NOT_CA)

char *bm_certificate_time(time_t time, char *text)
{
	struct tm parts;

	if (!gmtime_r(&time, &parts) ||
	    !strftime(text, BM_CERTIFICATE_TIME, "%Y-%m-%d %H:%M:%S UTC", &parts))
		snprintf(text, BM_CERTIFICATE_TIME, "(no time)");
	return text;
}

/* Which of them is out of its time is not told: the holder's own, or an authority's. */
static void tell_time(const struct bm_validity *validity, time_t now, char *text)
{
	char told[BM_CERTIFICATE_TIME], clock[BM_CERTIFICATE_TIME];
	bool early = now < validity->from;
	bool late = now > validity->until;

	bm_certificate_time(now, clock);
	if (early || late)
		snprintf(text, BM_CERTIFICATE_TEXT,
			 "its certificate %s %s, and the clock here says %s: a clock is wrong, or "
			 "another certificate is wanted",
			 early ? "is not valid before" : "has expired at",
			 bm_certificate_time(early ? validity->from : validity->until, told),
			 clock);
	else
		snprintf(text, BM_CERTIFICATE_TEXT,
			 "the certificate of the authority that signed its own is not valid at %s, "
			 "as the clock here says",
			 clock);
}

char *bm_certificate_words(unsigned status, const struct bm_validity *validity, time_t now,
			   char *text)
{
	gnutls_datum_t words = {0};

	if (status & GNUTLS_CERT_REVOKED)
		snprintf(text, BM_CERTIFICATE_TEXT,
			 "its certificate was revoked, says ca-crl.pem here");
	else if (status & NOT_BY_OURS)
		snprintf(text, BM_CERTIFICATE_TEXT,
			 "its certificate is not signed by the authority in ca-cert.pem here");
	else if (status & NOT_NOW)
		tell_time(validity, now, text);
	else if (status & GNUTLS_CERT_PURPOSE_MISMATCH)
		snprintf(text, BM_CERTIFICATE_TEXT,
			 "its certificate is for another purpose: clients need tls_www_client, "
			 "servers tls_www_server, or none is said");
	else if (gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &words, 0) >=
		 0)
		snprintf(text, BM_CERTIFICATE_TEXT, "%s", (const char *)words.data);
	else
		snprintf(text, BM_CERTIFICATE_TEXT, "its certificate is not to be trusted");
	gnutls_free(words.data);
	return text;
}

static int validity_of(const gnutls_datum_t *der, struct bm_validity *validity)
{
	gnutls_x509_crt_t certificate;
	int r = der ? gnutls_x509_crt_init(&certificate) : GNUTLS_E_NO_CERTIFICATE_FOUND;

	if (r < 0)
		return r;
	r = gnutls_x509_crt_import(certificate, der, GNUTLS_X509_FMT_DER);
	if (r >= 0)
		*validity = (struct bm_validity){
			.from = gnutls_x509_crt_get_activation_time(certificate),
			.until = gnutls_x509_crt_get_expiration_time(certificate)};
	gnutls_x509_crt_deinit(certificate);
	return r;
}

int bm_certificate_ours(gnutls_session_t session, struct bm_validity *validity)
{
	return validity_of(gnutls_certificate_get_ours(session), validity);
}

char *bm_certificate_explain(gnutls_session_t session, unsigned status, char *text)
{
	struct bm_validity validity = {0};
	unsigned count = 0;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(session, &count);
	time_t now = time(NULL);

	if (validity_of(count ? chain : NULL, &validity) < 0)
		validity = (struct bm_validity){now, now};
	return bm_certificate_words(status, &validity, now, text);
}

gnutls_alert_description_t bm_certificate_alert(unsigned status)
{
	if (status & GNUTLS_CERT_REVOKED)
		return GNUTLS_A_CERTIFICATE_REVOKED;
	if (status & NOT_BY_OURS)
		return GNUTLS_A_UNKNOWN_CA;
	if (status & NOT_NOW)
		return GNUTLS_A_CERTIFICATE_EXPIRED;
	if (status & GNUTLS_CERT_PURPOSE_MISMATCH)
		return GNUTLS_A_UNSUPPORTED_CERTIFICATE;
	return GNUTLS_A_BAD_CERTIFICATE;
}
