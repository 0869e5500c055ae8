/* SPDX-License-Identifier: BSD-3-Clause */
/* Certificates and keys for the tests of TLS, made on the spot. */
#ifndef TESTS_UNIT_NBD_CERTS_H
#define TESTS_UNIT_NBD_CERTS_H

#include "tests/unit/nbd_rig.h"

#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <time.h>

struct authority {
	gnutls_x509_privkey_t key;
	gnutls_x509_crt_t certificate;
};

static inline void write_file(const char *folder, const char *name, const void *data, size_t size)
{
	char path[200];
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(fwrite(data, 1, size, file), size);
	assert_int_equal(fclose(file), 0);
}

static inline void write_text(const char *folder, const char *name, const char *text)
{
	write_file(folder, name, text, strlen(text));
}

static inline void write_certificate(const char *folder, const char *name, gnutls_x509_crt_t crt)
{
	gnutls_datum_t pem;

	assert_int_equal(gnutls_x509_crt_export2(crt, GNUTLS_X509_FMT_PEM, &pem), 0);
	write_file(folder, name, pem.data, pem.size);
	gnutls_free(pem.data);
}

static inline gnutls_x509_privkey_t new_key(void)
{
	gnutls_x509_privkey_t key;

	assert_int_equal(gnutls_x509_privkey_init(&key), 0);
	assert_int_equal(
		gnutls_x509_privkey_generate(key, GNUTLS_PK_ECDSA,
					     GNUTLS_CURVE_TO_BITS(GNUTLS_ECC_CURVE_SECP256R1), 0),
		0);
	return key;
}

static inline gnutls_x509_crt_t new_certificate(gnutls_x509_privkey_t key, const char *dn, int days)
{
	static uint8_t serial;
	gnutls_x509_crt_t crt;

	serial++;
	assert_int_equal(gnutls_x509_crt_init(&crt), 0);
	assert_int_equal(gnutls_x509_crt_set_version(crt, 3), 0);
	assert_int_equal(gnutls_x509_crt_set_serial(crt, &serial, 1), 0);
	assert_int_equal(gnutls_x509_crt_set_dn(crt, dn, NULL), 0);
	gnutls_x509_crt_set_activation_time(crt, time(NULL) - 10 * 86400);
	gnutls_x509_crt_set_expiration_time(crt, time(NULL) + days * 86400);
	assert_int_equal(gnutls_x509_crt_set_key(crt, key), 0);
	return crt;
}

static inline void authority_new(struct authority *a, const char *dn)
{
	a->key = new_key();
	a->certificate = new_certificate(a->key, dn, 10);
	gnutls_x509_crt_set_ca_status(a->certificate, 1);
	gnutls_x509_crt_set_key_usage(a->certificate,
				      GNUTLS_KEY_KEY_CERT_SIGN | GNUTLS_KEY_CRL_SIGN);
	assert_int_equal(
		gnutls_x509_crt_sign2(a->certificate, a->certificate, a->key, GNUTLS_DIG_SHA256, 0),
		0);
}

static inline void authority_free(struct authority *a)
{
	gnutls_x509_privkey_deinit(a->key);
	gnutls_x509_crt_deinit(a->certificate);
}

struct wanted {
	const char *name; /* NAME-cert.pem, NAME-key.pem */
	const char *dn;
	int days;            /* from now; negative: it has expired */
	const char *purpose; /* NULL: any */
	const char *dns, *uri;
	const void *san; /* instead: the extension's DER */
	size_t san_length;
};

static inline void name_it(gnutls_x509_crt_t crt, const struct wanted *w)
{
	if (w->san) {
		assert_int_equal(gnutls_x509_crt_set_extension_by_oid(crt, "2.5.29.17", w->san,
								      w->san_length, 0),
				 0);
		return;
	}
	if (w->dns)
		gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_DNSNAME, w->dns,
						     (unsigned)strlen(w->dns), GNUTLS_FSAN_APPEND);
	if (w->uri)
		gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_URI, w->uri,
						     (unsigned)strlen(w->uri), GNUTLS_FSAN_APPEND);
	gnutls_x509_crt_set_subject_alt_name(crt, GNUTLS_SAN_IPADDRESS, "\177\0\0\1", 4,
					     GNUTLS_FSAN_APPEND);
}

/* The certificate is the caller's. */
static inline gnutls_x509_crt_t issue(const struct authority *a, const char *folder,
				      const struct wanted *w)
{
	gnutls_x509_privkey_t key = new_key();
	gnutls_x509_crt_t crt = new_certificate(key, w->dn, w->days ? w->days : 10);
	gnutls_datum_t pem;
	char name[64];

	if (w->purpose)
		gnutls_x509_crt_set_key_purpose_oid(crt, w->purpose, 0);
	name_it(crt, w);
	assert_int_equal(gnutls_x509_crt_sign2(crt, a->certificate, a->key, GNUTLS_DIG_SHA256, 0),
			 0);
	snprintf(name, sizeof(name), "%s-cert.pem", w->name);
	write_certificate(folder, name, crt);
	snprintf(name, sizeof(name), "%s-key.pem", w->name);
	assert_int_equal(gnutls_x509_privkey_export2(key, GNUTLS_X509_FMT_PEM, &pem), 0);
	write_file(folder, name, pem.data, pem.size);
	gnutls_free(pem.data);
	gnutls_x509_privkey_deinit(key);
	return crt;
}

/* The authority's list of what it has revoked: that one. */
static inline void write_revoked(const struct authority *a, const char *folder,
				 gnutls_x509_crt_t crt)
{
	gnutls_x509_crl_t crl;
	gnutls_datum_t pem;

	assert_int_equal(gnutls_x509_crl_init(&crl), 0);
	assert_int_equal(gnutls_x509_crl_set_version(crl, 2), 0);
	gnutls_x509_crl_set_this_update(crl, time(NULL) - 86400);
	gnutls_x509_crl_set_next_update(crl, time(NULL) + 86400);
	assert_int_equal(gnutls_x509_crl_set_crt(crl, crt, time(NULL) - 3600), 0);
	assert_int_equal(gnutls_x509_crl_set_number(crl, "\1", 1), 0);
	assert_int_equal(gnutls_x509_crl_set_authority_key_id(crl, "\1", 1), 0);
	assert_int_equal(gnutls_x509_crl_sign2(crl, a->certificate, a->key, GNUTLS_DIG_SHA256, 0),
			 0);
	assert_int_equal(gnutls_x509_crl_export2(crl, GNUTLS_X509_FMT_PEM, &pem), 0);
	write_file(folder, "ca-crl.pem", pem.data, pem.size);
	gnutls_free(pem.data);
	gnutls_x509_crl_deinit(crl);
}

#endif
