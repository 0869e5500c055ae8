/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A connection goes over to TLS (proto.md, "TLS support"): after the ACK to STARTTLS, before any
 * other option. What was negotiated in plain text is forgotten by handshake.c. The time limit of
 * the handshake covers this, too.
 */
#include <errno.h>
#include <string.h>

#include "blockmirror/base/log.h"
#include "blockmirror/base/tls.h"
#include "nbd-server/internal.h"

void nbd_secure_begin(struct nbd_conn *conn)
{
	int r = bm_transport_start_tls(&conn->transport, bm_keyring_current(conn->server->keyring));

	if (r < 0) {
		bm_log(BM_LOG_WARN, "NBD client %s: cannot begin TLS: %s", conn->peer,
		       strerror(-r));
		nbd_conn_close(conn);
		return;
	}
	conn->state = NBD_TLS_HELLO;
	conn->paused = false;
	nbd_conn_parse(conn);
}

void nbd_secure_step(struct nbd_conn *conn)
{
	struct bm_tls *tls = conn->transport.tls;
	int r = bm_tls_handshake(tls);

	if (!r)
		r = bm_tls_identify(tls, &conn->identity);
	if (r == -EPROTO) {
		nbd_conn_violated(conn, bm_tls_why(tls));
		return;
	}
	if (r < 0 && r != -EAGAIN) {
		nbd_conn_close(conn);
		return;
	}
	if (!r)
		conn->state = NBD_OPTION;
	nbd_conn_send(conn); /* the rest of what TLS has to say */
	if (!r && conn->state != NBD_DEAD)
		nbd_conn_parse(conn); /* the first option may have come with it */
}
