/* SPDX-License-Identifier: BSD-3-Clause */
/* The server: its exports, its clients, its end. */
#include "nbd-server/server.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/credentials.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "nbd-server/internal.h"

static void stopped(struct bm_task *task)
{
	struct nbd_server *server = bm_container(task, struct nbd_server, stopped);

	bm_timer_clear(server->loop, &server->stop_timer);
	server->done(server->done_arg);
}

static void stop_timeout(struct bm_timer *timer)
{
	struct nbd_server *server = bm_container(timer, struct nbd_server, stop_timer);

	bm_list_each(node, &server->conns) {
		struct nbd_conn *conn = bm_container(node, struct nbd_conn, link);

		nbd_conn_violated(conn, "the server stops, and it did not come to an end in time");
	}
}

static void accept_again(struct bm_timer *timer)
{
	nbd_listen_update(bm_container(timer, struct nbd_server, accept_timer));
}

struct nbd_server *nbd_server_new(struct bm_loop *loop, const struct nbd_server_options *options)
{
	struct nbd_server *server = calloc(1, sizeof(*server));

	if (!server)
		return NULL;
	server->loop = loop;
	if (options)
		server->options = *options;
	nbd_limits_init(server);
	nbd_handover_init(server);
	server->stop_timer.run = stop_timeout;
	server->accept_timer.run = accept_again;
	server->stopped.run = stopped;
	server->last_context = NBD_CONTEXT_ID;
	bm_list_init(&server->conns);
	return server;
}

static void offer_fini(struct nbd_offer *offer)
{
	nbd_contexts_fini(offer);
	free(offer->name);
	free(offer->description);
}

void nbd_server_free(struct nbd_server *server)
{
	if (!server)
		return;
	assert(bm_list_empty(&server->conns));
	nbd_listen_close(server);
	bm_keyring_free(server->keyring);
	bm_timer_clear(server->loop, &server->stop_timer);
	bm_timer_clear(server->loop, &server->accept_timer);
	bm_timer_clear(server->loop, &server->freeze_timer);
	bm_task_cancel(&server->freeze_look);
	nbd_limits_fini(server);
	bm_task_cancel(&server->stopped);
	for (unsigned i = 0; i < server->offers; i++)
		offer_fini(&server->offer[i]);
	free(server);
}

/* TLS */

int nbd_server_set_tls(struct nbd_server *server, enum nbd_tls_mode mode,
		       const struct bm_tls_options *options, struct bm_error *error)
{
	int r;

	assert(!server->keyring && !server->listeners);
	if (mode == NBD_TLS_OFF)
		return 0;
	if (!options->certificates && !options->psk)
		return bm_fail(error, BM_E_USAGE, "TLS needs certificates or pre-shared keys");
	if (options->verify_peer && !options->certificates)
		return bm_fail(error, BM_E_USAGE,
			       "clients' certificates are verified by an authority's: name the "
			       "folder of certificates");
	r = bm_keyring_new(options, &server->keyring, error);
	if (!r)
		server->tls = mode;
	return r;
}

int nbd_server_reload_tls(struct nbd_server *server, struct bm_error *error)
{
	return server->keyring ? bm_keyring_reload(server->keyring, error) : 0;
}

/* Exports */

const struct nbd_offer *nbd_offer_find(const struct nbd_server *server, const uint8_t *name,
				       size_t length)
{
	for (unsigned i = 0; i < server->offers; i++)
		if (strlen(server->offer[i].name) == length &&
		    !memcmp(server->offer[i].name, name, length))
			return &server->offer[i];
	return NULL;
}

static bool serves_bytes(const struct bm_geometry *geometry)
{
	return geometry->block == 1 && geometry->max_transfer >= BM_BUF_MAX &&
	       geometry->max_zero >= geometry->size;
}

int nbd_server_add_export(struct nbd_server *server, const struct nbd_export *export,
			  struct bm_error *error)
{
	const char *description = export->description ? export->description : "";
	struct nbd_offer *offer;

	if (strlen(export->name) > NBD_MAX_NAME || strlen(description) > NBD_MAX_NAME)
		return bm_fail(error, BM_E_USAGE,
			       "the export's name and description are limited to %d bytes",
			       NBD_MAX_NAME);
	if (nbd_offer_find(server, (const uint8_t *)export->name, strlen(export->name)))
		return bm_fail(error, BM_E_USAGE, "there is an export \"%s\" already",
			       export->name);
	if (server->offers == NBD_MAX_EXPORTS)
		return bm_fail(error, BM_E_USAGE, "more than %d exports", NBD_MAX_EXPORTS);
	if (!serves_bytes(&export->dev->geometry))
		return bm_fail(error, BM_E_USAGE,
			       "export \"%s\": the device does not serve single bytes",
			       export->name);
	offer = &server->offer[server->offers];
	*offer = (struct nbd_offer){
		.name = strdup(export->name),
		.description = strdup(description),
		.dev = export->dev,
		.read_only = export->read_only,
		.max_clients = export->max_clients,
	};
	if (!offer->name || !offer->description || nbd_contexts_init(offer) < 0) {
		offer_fini(offer);
		return bm_fail_errno(error, ENOMEM, "export \"%s\"", export->name);
	}
	server->offers++;
	return 0;
}

/* Clients */

/* "psk:NAME", "dn:DN", or nothing. */
static void describe_identity(const struct bm_identity *who, char *text)
{
	*text = '\0';
	if (who && who->psk)
		snprintf(text, NBD_IDENTITY_TEXT, "psk:%s", who->psk);
	else if (who && who->dn)
		snprintf(text, NBD_IDENTITY_TEXT, "dn:%s", who->dn);
}

enum nbd_access nbd_conn_access(const struct nbd_conn *conn, const struct nbd_offer *offer)
{
	static const char *const no_names[1];
	static const struct bm_identity nobody = {.names = no_names};
	const struct nbd_server_options *options = &conn->server->options;

	if (!options->access)
		return NBD_ACCESS_WRITE;
	return options->access(options->arg, conn->identity ? conn->identity : &nobody,
			       offer->name);
}

const struct nbd_offer *nbd_conn_find(struct nbd_conn *conn, const uint8_t *name, size_t length)
{
	const struct nbd_offer *offer = nbd_offer_find(conn->server, name, length);
	char text[NBD_IDENTITY_TEXT];

	if (!offer)
		return NULL;
	conn->access = nbd_conn_access(conn, offer);
	if (conn->access != NBD_ACCESS_NONE)
		return offer;
	describe_identity(conn->identity, text);
	bm_log(BM_LOG_NOTICE, "NBD client %s %s%s%smay not open export \"%s\"", conn->peer,
	       *text ? "(" : "", text, *text ? ") " : "", offer->name);
	return NULL;
}

int nbd_server_accept_fd(struct nbd_server *server, int in, int out)
{
	int r = nbd_conn_new(server, in, out, "stdio");

	if (!r)
		nbd_listen_update(server);
	return r;
}

void nbd_server_left(struct nbd_conn *conn)
{
	struct nbd_server *server = conn->server;

	bm_list_remove(&conn->link);
	nbd_session_leave(conn);
	server->connected--;
	free(conn);
	if (server->stopping && !server->connected)
		bm_loop_soon(server->loop, &server->stopped);
	nbd_listen_update(server);
	nbd_handover_look(server);
	if (server->options.changed)
		server->options.changed(server->options.arg);
}

unsigned nbd_server_clients(const struct nbd_server *server, struct nbd_client_info *info,
			    unsigned room)
{
	unsigned count = 0;

	bm_list_each(node, &server->conns) {
		const struct nbd_conn *conn = bm_container(node, struct nbd_conn, link);

		if (count == room)
			break;
		info[count] = (struct nbd_client_info){
			.export = conn->offer ? conn->offer->name : NULL,
			.requests = conn->requests,
			.bytes_read = conn->bytes_read,
			.bytes_written = conn->bytes_written,
			.in_flight = conn->busy,
			.gone = conn->state >= NBD_ENDED,
			.tls = conn->transport.tls,
		};
		describe_identity(conn->identity, info[count].identity);
		memcpy(info[count++].peer, conn->peer, sizeof(conn->peer));
	}
	return server->connected;
}

/* The end */

void nbd_server_stop(struct nbd_server *server, void (*done)(void *arg), void *arg)
{
	assert(!server->stopping);
	server->stopping = true;
	server->done = done;
	server->done_arg = arg;
	nbd_listen_close(server);
	bm_list_each(node, &server->conns) {
		nbd_conn_finish(bm_container(node, struct nbd_conn, link));
	}
	if (!server->connected)
		bm_loop_soon(server->loop, &server->stopped);
	else /* without it, for want of memory, clients get as long as they like */
		(void)bm_timer_set(server->loop, &server->stop_timer,
				   bm_loop_now(server->loop) + server->options.stop_ns);
}
