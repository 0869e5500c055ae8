/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A connection from its first to its last byte: receiving, the parser's loop, sending, closing.
 *
 * One receive takes as much as there is: the rest of a WRITE's payload straight into its buffer,
 * and what follows, many requests at a time, into the receive buffer. Replies gather during a turn
 * of the loop and leave in one send just before it waits.
 *
 * A connection is freed from a task of its own, when it is closed and the device has let go of its
 * last piece: nothing that is still on the stack or in flight ever points to freed memory.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/tls.h"
#include "nbd-server/internal.h"

static void set_watch(struct nbd_conn *conn, struct bm_watch *watch, int fd, uint32_t events)
{
	if (conn->state != NBD_DEAD && watch->events != events &&
	    bm_watch_set(conn->server->loop, watch, fd, events) < 0)
		nbd_conn_close(conn);
}

static void update_watches(struct nbd_conn *conn)
{
	struct bm_transport *t = &conn->transport;
	uint32_t in = conn->state < NBD_ENDED && !conn->paused ? EPOLLIN : 0;
	uint32_t out = conn->blocked ? EPOLLOUT : 0;

	if (t->in == t->out) {
		set_watch(conn, &conn->in, t->in, in | out);
	} else {
		set_watch(conn, &conn->in, t->in, in);
		set_watch(conn, &conn->out_watch, t->out, out);
	}
}

/* Closing */

static void end(struct bm_task *task)
{
	struct nbd_conn *conn = bm_container(task, struct nbd_conn, end);

	for (int i = 0; i < NBD_PIECES; i++)
		bm_buf_unref(conn->piece[i].buf);
	bm_pool_free(conn->pool);
	bm_identity_free(conn->identity);
	nbd_compressed_deselect(conn);
	nbd_server_left(conn);
}

void nbd_conn_close(struct nbd_conn *conn)
{
	struct bm_loop *loop = conn->server->loop;

	if (conn->state == NBD_DEAD)
		return;
	conn->state = NBD_DEAD;
	bm_watch_set(loop, &conn->in, conn->transport.in, 0);
	bm_watch_set(loop, &conn->out_watch, conn->transport.out, 0);
	bm_transport_close(&conn->transport);
	bm_timer_clear(loop, &conn->handshake);
	bm_buf_wait_cancel(&conn->memory);
	bm_task_cancel(&conn->send);
	bm_task_cancel(&conn->resume);
	bm_task_cancel(&conn->more);
	if (!conn->at_device)
		bm_loop_soon(loop, &conn->end);
}

void nbd_conn_violated(struct nbd_conn *conn, const char *what)
{
	bm_log(BM_LOG_NOTICE, "NBD client %s is disconnected: %s", conn->peer, what);
	nbd_conn_close(conn);
}

void nbd_conn_finish(struct nbd_conn *conn)
{
	if (conn->state >= NBD_ENDED)
		return;
	conn->state = NBD_ENDED;
	if (conn->current)
		nbd_request_abandon(conn);
	bm_loop_before_wait(conn->server->loop, &conn->send); /* which closes it, too */
}

static void handshake_timeout(struct bm_timer *timer)
{
	struct nbd_conn *conn = bm_container(timer, struct nbd_conn, handshake);

	nbd_conn_violated(conn, nbd_session_waits(conn)
					? "requests of its earlier session do not end"
					: "it took too long to choose an export");
}

/* Pieces */

struct nbd_piece *nbd_piece_get(struct nbd_conn *conn, struct nbd_request *request, size_t size)
{
	struct bm_buf *buf = NULL;
	struct nbd_piece *piece;

	if (bm_list_empty(&conn->free_pieces))
		return NULL;
	if (size) {
		buf = bm_buf_get(conn->pool, size);
		if (!buf) {
			bm_buf_wait(conn->pool, &conn->memory);
			return NULL;
		}
	}
	piece = bm_container(bm_list_take(&conn->free_pieces), struct nbd_piece, link);
	piece->request = request;
	piece->buf = buf;
	piece->filled = 0;
	piece->ready = false;
	piece->header_length = piece->data_length = 0;
	return piece;
}

void nbd_piece_drop_buf(struct nbd_piece *piece)
{
	bm_buf_unref(piece->buf);
	piece->buf = NULL;
}

void nbd_piece_free(struct nbd_piece *piece)
{
	struct nbd_conn *conn = piece->conn;

	nbd_piece_drop_buf(piece);
	bm_list_push(&conn->free_pieces, &piece->link);
	if (conn->paused)
		bm_loop_soon(conn->server->loop, &conn->resume);
}

void nbd_piece_send(struct nbd_piece *piece)
{
	struct nbd_conn *conn = piece->conn;
	bool hold = conn->stream && conn->stream->started && conn->stream != piece->request;

	bm_list_append(hold ? &conn->held : &conn->out, &piece->link);
	if (!conn->blocked)
		bm_loop_before_wait(conn->server->loop, &conn->send);
}

/* Sending */

/* What is left of length bytes when skip are gone; nothing is no part. */
static int add_part(struct iovec *v, uint8_t *bytes, size_t length, size_t skip)
{
	*v = (struct iovec){bytes + skip, length - skip};
	return skip < length;
}

static int gather(const struct nbd_conn *conn, struct iovec *v)
{
	size_t skip = conn->sent;
	int count = 0;

	bm_list_each(node, &conn->out) {
		struct nbd_piece *piece = bm_container(node, struct nbd_piece, link);
		size_t header = skip < piece->header_length ? skip : piece->header_length;
		size_t data = skip - header;

		count += add_part(v + count, piece->header, piece->header_length, header);
		if (piece->data_length)
			count += add_part(v + count, piece->buf->data, piece->data_length, data);
		skip = 0;
	}
	return count;
}

static void count_sent(struct nbd_conn *conn, size_t sent)
{
	conn->sent += sent;
	while (!bm_list_empty(&conn->out)) {
		struct nbd_piece *piece = bm_container(conn->out.next, struct nbd_piece, link);
		size_t whole = piece->header_length + piece->data_length;

		if (conn->sent < whole)
			break;
		conn->sent -= whole;
		bm_list_remove(&piece->link);
		nbd_piece_free(piece);
	}
}

/* Returns 0 when all of out is with the client, -EAGAIN when he does not take it, or -errno. */
static int send_out(struct nbd_conn *conn)
{
	struct iovec v[2 * NBD_PIECES];

	while (!bm_list_empty(&conn->out)) {
		ssize_t n = bm_transport_send(&conn->transport, v, gather(conn, v));

		if (n < 0)
			return (int)n;
		count_sent(conn, (size_t)n);
	}
	return bm_transport_flush(&conn->transport);
}

void nbd_conn_send(struct nbd_conn *conn)
{
	bool was_blocked = conn->blocked;
	int r = send_out(conn);

	conn->blocked = r == -EAGAIN;
	if (was_blocked && !r && conn->state == NBD_TLS_HELLO) /* which has more to say */
		bm_loop_soon(conn->server->loop, &conn->more);
	if (r < 0 && r != -EAGAIN) /* the client is gone */
		nbd_conn_close(conn);
	else if (!r && conn->state == NBD_ENDED && !conn->busy)
		nbd_conn_close(conn);
	else if (!r && conn->state == NBD_TLS_ACK)
		nbd_secure_begin(conn);
	else
		update_watches(conn);
	nbd_handover_look(conn->server);
}

static void before_wait(struct bm_task *task)
{
	nbd_conn_send(bm_container(task, struct nbd_conn, send));
}

/* Receiving */

const uint8_t *nbd_input(const struct nbd_conn *conn, size_t length)
{
	return length <= conn->used ? conn->input + conn->start : NULL;
}

void nbd_input_take(struct nbd_conn *conn, size_t length)
{
	conn->start += length;
	conn->used -= length;
}

enum nbd_step nbd_input_skip(struct nbd_conn *conn)
{
	size_t part = conn->skip < conn->used ? conn->skip : conn->used;

	nbd_input_take(conn, part);
	conn->skip -= (uint32_t)part;
	return conn->skip ? NBD_MORE_INPUT : NBD_GO_ON;
}

void nbd_conn_parse(struct nbd_conn *conn)
{
	enum nbd_step step = NBD_GO_ON;

	while (step == NBD_GO_ON && conn->state < NBD_ENDED)
		step = nbd_handover_holds(conn)    ? NBD_WAIT
		       : conn->state < NBD_REQUEST ? nbd_handshake_step(conn)
						   : nbd_request_step(conn);
	conn->paused = step == NBD_WAIT;
	if (!conn->paused && conn->state < NBD_ENDED && bm_transport_pending(&conn->transport))
		bm_loop_soon(conn->server->loop, &conn->more);
	update_watches(conn);
	nbd_handover_look(conn->server);
}

static void receive(struct nbd_conn *conn)
{
	struct nbd_piece *piece = conn->filling;
	size_t payload = piece ? piece->rq.length - piece->filled : 0, part;
	struct iovec v[2];
	int count = 0;
	ssize_t n;

	if (conn->state == NBD_TLS_HELLO) {
		nbd_secure_step(conn);
		return;
	}
	memmove(conn->input, conn->input + conn->start, conn->used);
	conn->start = 0;
	if (payload)
		v[count++] = (struct iovec){piece->rq.data + piece->filled, payload};
	v[count++] = (struct iovec){conn->input + conn->used, NBD_INPUT - conn->used};
	n = bm_transport_recv(&conn->transport, v, count);
	if (n == -EAGAIN)
		return;
	if (n == -EPROTO && conn->transport.tls)
		nbd_conn_violated(conn, bm_tls_why(conn->transport.tls));
	if (n < 0) {
		nbd_conn_close(conn);
		return;
	}
	if (n == 0) {
		nbd_conn_finish(conn);
		return;
	}
	part = (size_t)n < payload ? (size_t)n : payload;
	if (piece)
		piece->filled += part;
	conn->used += (size_t)n - part;
	nbd_conn_parse(conn);
}

/* What TLS has received already, no event tells of. */
static void more_is_there(struct bm_task *task)
{
	struct nbd_conn *conn = bm_container(task, struct nbd_conn, more);

	if (conn->state < NBD_ENDED && !conn->paused)
		receive(conn);
}

static void resume(struct bm_task *task)
{
	nbd_conn_parse(bm_container(task, struct nbd_conn, resume));
}

static void memory_came(struct bm_buf_waiter *waiter)
{
	nbd_conn_parse(bm_container(waiter, struct nbd_conn, memory));
}

/* Both directions, when they share a descriptor. Errors show in the call that fails. */
static void in_ready(struct bm_watch *watch, uint32_t events)
{
	struct nbd_conn *conn = bm_container(watch, struct nbd_conn, in);

	if (conn->blocked && events & ~(uint32_t)EPOLLIN)
		nbd_conn_send(conn);
	if (conn->state < NBD_ENDED && !conn->paused && events & ~(uint32_t)EPOLLOUT)
		receive(conn);
}

static void out_ready(struct bm_watch *watch, uint32_t events)
{
	struct nbd_conn *conn = bm_container(watch, struct nbd_conn, out_watch);

	(void)events;
	nbd_conn_send(conn);
}

/* Opening */

static struct nbd_conn *conn_alloc(struct nbd_server *server)
{
	struct nbd_conn *conn = calloc(1, sizeof(*conn));

	if (!conn)
		return NULL;
	conn->server = server;
	conn->in.run = in_ready;
	conn->out_watch.run = out_ready;
	conn->memory.run = memory_came;
	conn->send.run = before_wait;
	conn->resume.run = resume;
	conn->more.run = more_is_there;
	conn->end.run = end;
	conn->handshake.run = handshake_timeout;
	bm_list_init(&conn->out);
	bm_list_init(&conn->held);
	bm_list_init(&conn->free_requests);
	bm_list_init(&conn->free_pieces);
	for (int i = 0; i < NBD_REQUESTS; i++) {
		bm_list_init(&conn->request[i].pieces);
		bm_list_append(&conn->free_requests, &conn->request[i].link);
	}
	for (int i = 0; i < NBD_PIECES; i++) {
		conn->piece[i].conn = conn;
		bm_list_append(&conn->free_pieces, &conn->piece[i].link);
	}
	return conn;
}

int nbd_conn_open(struct nbd_server *server, int in, int out, const char *peer,
		  struct nbd_conn **opened)
{
	struct nbd_conn *conn = conn_alloc(server);
	int r = -ENOMEM;

	if (!conn)
		return r;
	snprintf(conn->peer, sizeof(conn->peer), "%s", peer);
	conn->pool = bm_pool_new(server->loop, server->options.max_data);
	if (!conn->pool)
		goto fail;
	r = bm_timer_set(server->loop, &conn->handshake,
			 bm_loop_now(server->loop) + server->options.handshake_ns);
	if (r < 0)
		goto fail;
	r = bm_transport_open(&conn->transport, in, out);
	if (r < 0)
		goto fail;
	bm_list_append(&server->conns, &conn->link);
	server->connected++;
	nbd_limits_joined(conn);
	*opened = conn;
	return 0;
fail:
	bm_timer_clear(server->loop, &conn->handshake);
	bm_pool_free(conn->pool);
	free(conn);
	return r;
}

int nbd_conn_new(struct nbd_server *server, int in, int out, const char *peer)
{
	struct nbd_conn *conn;
	int r = nbd_conn_open(server, in, out, peer, &conn);

	if (r < 0)
		return r;
	nbd_greet(conn);
	update_watches(conn);
	return 0;
}
