/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is wrong with a certificate, in words, for either side of TLS. Where it is about time both
 * times are told: as often as a certificate is too old, one of the two clocks is wrong. Any thread.
 */
#ifndef BM_BASE_CERTIFICATE_H
#define BM_BASE_CERTIFICATE_H

#include <gnutls/gnutls.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>

enum { BM_CERTIFICATE_TEXT = 400 };

/* When a certificate is good. */
struct bm_validity {
	time_t from, until;
};

/*
 * Pure: status is what gnutls_certificate_verify_peers() has found, not 0; the certificate is good
 * in that time; now is what our clock says. "its certificate …". Returns text, which has room for
 * BM_CERTIFICATE_TEXT bytes.
 */
char *bm_certificate_words(unsigned status, const struct bm_validity *validity, time_t now,
			   char *text);

/* The same of what the other side of a session has shown. */
char *bm_certificate_explain(gnutls_session_t session, unsigned status, char *text);

/* Of ours, and of theirs. Returns 0 or GnuTLS's error. */
int bm_certificate_ours(gnutls_session_t session, struct bm_validity *validity);

/* The alert by which the other side learns what is wrong with what it has shown. */
gnutls_alert_description_t bm_certificate_alert(unsigned status);

/* A time as certificates have it, UTC. Returns text. */
enum { BM_CERTIFICATE_TIME = 32 };
char *bm_certificate_time(time_t time, char *text);

#endif
