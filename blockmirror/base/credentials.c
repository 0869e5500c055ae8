/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Certificates, keys, ciphers.
 *
 * Ciphers: the keys of TLS 1.3 sessions by pre-shared key are bound to SHA-256, and GnuTLS ranks
 * ChaCha20 before the one AES suite that goes with it. Where the processor has instructions for
 * AES that costs two thirds of the throughput, so there ChaCha20 comes last, for clients that have
 * nothing else, and the server's order decides.
 *
 * Key exchanges: those that there are credentials for, since under TLS 1.2 GnuTLS would choose one
 * that there are none for and fail; by key before by certificate, since who offers both has a key
 * for us; and none without forward secrecy.
 */
#include "blockmirror/base/credentials.h"

#include <errno.h>
#include <gnutls/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#ifdef __aarch64__
#include <asm/hwcap.h>
#endif

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/psk.h"

enum { CA, CRL, CERTIFICATE, KEY, FILES_X509, PSK = FILES_X509, FILES };
enum { LONGEST_PEM = 4 << 20 };

static const char *const names[FILES_X509] = {
	[CA] = "ca-cert.pem",
	[CRL] = "ca-crl.pem",
	[CERTIFICATE] = "server-cert.pem",
	[KEY] = "server-key.pem",
};

struct bm_credentials {
	unsigned refs;
	bool verify_peer;
	gnutls_certificate_credentials_t x509;      /* NULL: none */
	gnutls_psk_server_credentials_t gnutls_psk; /* NULL: none */
	gnutls_priority_t priority;
	struct bm_psk *psk;
};

struct bm_keyring {
	bool verify_peer, only_1_3;
	char *priority;    /* NULL: the default */
	char *path[FILES]; /* NULL: not used */
	struct bm_stamp stamp[FILES];
	struct bm_credentials *current;
};

/* Ciphers */

static bool processor_has_aes(void)
{
#if defined(__x86_64__) || defined(__i386__)
	return __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul");
#elif defined(__aarch64__)
	return getauxval(AT_HWCAP) & HWCAP_AES;
#else
	return false;
#endif
}

const char *bm_tls_priority(bool aes)
{
	return aes ? "NORMAL:-CHACHA20-POLY1305:+CHACHA20-POLY1305:%SERVER_PRECEDENCE" : "NORMAL";
}

/* Whatever string is given: no version before 1.2 (proto.md, "TLS versions"). */
static int set_priority(struct bm_credentials *c, const struct bm_keyring *k,
			struct bm_error *error)
{
	const char *wrong = "";
	bm_free char *text = NULL;
	int r;

	if (asprintf(&text, "%s:-VERS-TLS1.0:-VERS-TLS1.1%s:-KX-ALL%s%s",
		     k->priority ? k->priority : bm_tls_priority(processor_has_aes()),
		     k->only_1_3 ? ":-VERS-TLS1.2" : "",
		     c->gnutls_psk ? ":+ECDHE-PSK:+DHE-PSK" : "",
		     c->x509 ? ":+ECDHE-ECDSA:+ECDHE-RSA:+DHE-RSA" : "") < 0)
		return bm_fail_errno(error, ENOMEM, "cannot use TLS");
	r = gnutls_priority_init(&c->priority, text, &wrong);
	if (r < 0)
		return bm_fail(error, BM_E_USAGE, "TLS priority %s: %s, from \"%.40s\" on", text,
			       gnutls_strerror(r), wrong);
	return 0;
}

/* Files */

static void warn_if_open(const char *path)
{
	struct stat st;

	if (!stat(path, &st) && st.st_mode & S_IROTH)
		bm_log(BM_LOG_WARN, "everybody on this host can read the secrets in %s", path);
}

static int read_pem(const char *path, gnutls_datum_t *pem, struct bm_error *error)
{
	char *text = NULL;
	int r = bm_read_text(path, LONGEST_PEM, &text);

	if (r < 0)
		return bm_fail_errno(error, r, "cannot read %s", path);
	pem->data = (unsigned char *)text;
	pem->size = (unsigned)strlen(text);
	return 0;
}

static void free_pem(gnutls_datum_t *pem)
{
	if (pem->data)
		explicit_bzero(pem->data, pem->size);
	free(pem->data);
}

static int wrong_pem(const char *path, int r, struct bm_error *error)
{
	return bm_fail(error, BM_E_USAGE, "cannot use %s: %s", path,
		       r ? gnutls_strerror(r) : "there is no certificate in it");
}

/* Whom to believe: the authority, less what it has revoked. */
static int load_authority(struct bm_credentials *c, char *const *path, struct bm_error *error)
{
	gnutls_datum_t ca = {0}, crl = {0};
	int r = read_pem(path[CA], &ca, error), n;

	if (r < 0)
		return r;
	n = gnutls_certificate_set_x509_trust_mem(c->x509, &ca, GNUTLS_X509_FMT_PEM);
	free_pem(&ca);
	if (n <= 0)
		return wrong_pem(path[CA], n, error);
	r = read_pem(path[CRL], &crl, error);
	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return r;
	n = gnutls_certificate_set_x509_crl_mem(c->x509, &crl, GNUTLS_X509_FMT_PEM);
	free_pem(&crl);
	return n < 0 ? wrong_pem(path[CRL], n, error) : 0;
}

static int load_x509(struct bm_credentials *c, char *const *path, struct bm_error *error)
{
	gnutls_datum_t certificate = {0}, key = {0};
	int r;

	if (gnutls_certificate_allocate_credentials(&c->x509) < 0)
		return bm_fail_errno(error, ENOMEM, "cannot use TLS");
	r = load_authority(c, path, error);
	if (!r)
		r = read_pem(path[CERTIFICATE], &certificate, error);
	if (!r)
		r = read_pem(path[KEY], &key, error);
	if (!r) {
		int n = gnutls_certificate_set_x509_key_mem(c->x509, &certificate, &key,
							    GNUTLS_X509_FMT_PEM);

		if (n < 0)
			r = bm_fail(error, BM_E_USAGE, "cannot use %s with %s: %s",
				    path[CERTIFICATE], names[KEY], gnutls_strerror(n));
		warn_if_open(path[KEY]);
	}
	free_pem(&certificate);
	free_pem(&key);
	if (!r)
		gnutls_certificate_set_known_dh_params(c->x509, GNUTLS_SEC_PARAM_MEDIUM);
	return r;
}

/* For GnuTLS. 1: there is no such user; it goes on with a key that nobody has. */
static int find_key(gnutls_session_t session, const gnutls_datum_t *user, gnutls_datum_t *key)
{
	const struct bm_credentials *c = gnutls_session_get_ptr(session);
	int r = bm_psk_find(c->psk, user, key);

	return r == -ENOENT ? 1 : r;
}

static int load_psk(struct bm_credentials *c, const char *path, struct bm_error *error)
{
	int r = bm_psk_read(path, &c->psk, error);

	if (r < 0)
		return r;
	warn_if_open(path);
	if (gnutls_psk_allocate_server_credentials(&c->gnutls_psk) < 0)
		return bm_fail_errno(error, ENOMEM, "cannot use TLS");
	gnutls_psk_set_server_credentials_function2(c->gnutls_psk, find_key);
	gnutls_psk_set_server_known_dh_params(c->gnutls_psk, GNUTLS_SEC_PARAM_MEDIUM);
	return 0;
}

/* One state of the files */

struct bm_credentials *bm_credentials_ref(struct bm_credentials *c)
{
	c->refs++;
	return c;
}

void bm_credentials_unref(struct bm_credentials *c)
{
	if (!c || --c->refs)
		return;
	if (c->x509)
		gnutls_certificate_free_credentials(c->x509);
	if (c->gnutls_psk)
		gnutls_psk_free_server_credentials(c->gnutls_psk);
	gnutls_priority_deinit(c->priority);
	bm_psk_free(c->psk);
	free(c);
}

int bm_credentials_apply(struct bm_credentials *c, gnutls_session_t session)
{
	/* A certificate that is for other purposes does not make a client. */
	static gnutls_typed_vdata_st purpose = {.type = GNUTLS_DT_KEY_PURPOSE_OID,
						.data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT};
	int r = gnutls_priority_set(session, c->priority);

	gnutls_session_set_ptr(session, c);
	if (r >= 0 && c->x509)
		r = gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, c->x509);
	if (r >= 0 && c->gnutls_psk)
		r = gnutls_credentials_set(session, GNUTLS_CRD_PSK, c->gnutls_psk);
	if (r >= 0 && c->x509 && c->verify_peer) {
		gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUIRE);
		gnutls_session_set_verify_cert2(session, &purpose, 1, 0);
	}
	return r;
}

static int load(const struct bm_keyring *k, struct bm_credentials **out, struct bm_error *error)
{
	struct bm_credentials *c = calloc(1, sizeof(*c));
	int r = 0;

	if (!c)
		return bm_fail_errno(error, ENOMEM, "cannot use TLS");
	c->refs = 1;
	c->verify_peer = k->verify_peer;
	if (k->path[CA])
		r = load_x509(c, k->path, error);
	if (!r && k->path[PSK])
		r = load_psk(c, k->path[PSK], error);
	if (!r)
		r = set_priority(c, k, error);
	if (r < 0)
		bm_credentials_unref(c);
	else
		*out = c;
	return r;
}

/* The files */

void bm_keyring_free(struct bm_keyring *k)
{
	if (!k)
		return;
	bm_credentials_unref(k->current);
	for (int i = 0; i < FILES; i++)
		free(k->path[i]);
	free(k->priority);
	free(k);
}

static bool copy_options(struct bm_keyring *k, const struct bm_tls_options *options)
{
	k->verify_peer = options->verify_peer;
	k->only_1_3 = options->only_1_3;
	if (options->priority && !(k->priority = strdup(options->priority)))
		return false;
	if (options->psk && !(k->path[PSK] = strdup(options->psk)))
		return false;
	for (int i = 0; options->certificates && i < FILES_X509; i++)
		if (asprintf(&k->path[i], "%s/%s", options->certificates, names[i]) < 0) {
			k->path[i] = NULL;
			return false;
		}
	return true;
}

int bm_keyring_new(const struct bm_tls_options *options, struct bm_keyring **keyring,
		   struct bm_error *error)
{
	struct bm_keyring *k = calloc(1, sizeof(*k));
	int r;

	if (!k || !copy_options(k, options)) {
		bm_keyring_free(k);
		return bm_fail_errno(error, ENOMEM, "cannot use TLS");
	}
	r = bm_keyring_reload(k, error);
	if (r < 0)
		bm_keyring_free(k);
	else
		*keyring = k;
	return r;
}

/* Looked at before they are read: what changes meanwhile is read again next time. */
static bool look_at_files(struct bm_keyring *k)
{
	bool changed = false;

	for (int i = 0; i < FILES; i++) {
		struct bm_stamp stamp = {0};

		if (k->path[i])
			stamp = bm_stamp(k->path[i]);
		changed |= !bm_stamp_same(&stamp, &k->stamp[i]);
		k->stamp[i] = stamp;
	}
	return changed;
}

int bm_keyring_reload(struct bm_keyring *k, struct bm_error *error)
{
	struct bm_credentials *fresh = NULL;
	int r;

	look_at_files(k);
	r = load(k, &fresh, error);
	if (r < 0)
		return r;
	bm_credentials_unref(k->current);
	k->current = fresh;
	return 0;
}

struct bm_credentials *bm_keyring_current(struct bm_keyring *k)
{
	struct bm_error error;

	if (!look_at_files(k))
		return k->current;
	if (bm_keyring_reload(k, &error) < 0)
		bm_log(BM_LOG_WARN, "TLS goes on with what it had before: %s", error.text);
	else
		bm_log(BM_LOG_NOTICE, "TLS uses what has changed in its files");
	return k->current;
}
