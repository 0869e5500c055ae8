/* SPDX-License-Identifier: BSD-3-Clause */
/* Certificates of a control client: for tls_client.c alone. Reading blocks. */
#ifndef BM_BASE_TLS_CLIENT_X509_H
#define BM_BASE_TLS_CLIENT_X509_H

#include <gnutls/gnutls.h>
#include <stdbool.h>

#include "blockmirror/error.h"

/* What is in folder (struct bm_tls_trust). credentials are the caller's. */
int bm_x509_load(const char *folder, gnutls_certificate_credentials_t *credentials,
		 struct bm_error *error);

/* Before the handshake: the other side's has to be one of a server, by that authority. */
int bm_x509_apply(gnutls_session_t tls, gnutls_certificate_credentials_t credentials);

/* After it: for whom the other side's has to be. */
int bm_x509_check_name(gnutls_session_t tls, const char *address, const char *name,
		       struct bm_error *error);
bool bm_x509_covers(gnutls_session_t tls, const char *host);

/* What we have against the other side's certificate. */
int bm_x509_refuse(gnutls_session_t tls, const char *address, struct bm_error *error);

/* The other side has sent that alert: false: it is not about our certificate. */
bool bm_x509_refused(gnutls_session_t tls, const char *address, gnutls_alert_description_t alert,
		     struct bm_error *error);

#endif
