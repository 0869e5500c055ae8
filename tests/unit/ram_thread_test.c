/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The relay in threads, as a program uses it that blocks; and over connections under TLS, whose
 * sessions were begun by calls that block. Under ThreadSanitizer, too.
 */
#include "tests/unit/ram_relay_rig.h"

#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <pthread.h>

#include "blockmirror/base/tls.h"

static void *feed(void *arg)
{
	const struct bytes *in = ((void **)arg)[0];
	int fd = *(int *)((void **)arg)[1];

	fcntl(fd, F_SETFL, 0);
	for (size_t at = 0; at < in->used;) {
		ssize_t n = send(fd, in->data + at, in->used - at, MSG_NOSIGNAL);

		if (n <= 0)
			break;
		at += (size_t)n;
	}
	return NULL;
}

static void start_both(struct both *b, struct bm_relay **near, struct bm_relay **far)
{
	struct bm_error error;
	int fds[2];

	make_pair(fds, 65536);
	b->from.qemu = fds[0];
	b->setup.qemu = fds[1];
	assert_int_equal(bm_relay_start(true, &b->setup, b->near, near, &error), 0);
	make_pair(fds, 65536);
	b->to.qemu = fds[0];
	b->setup.qemu = fds[1];
	assert_int_equal(bm_relay_start(false, &b->setup, b->far, far, &error), 0);
	fcntl(b->to.qemu, F_SETFL, 0);
}

static void receive_all(struct both *b, size_t length)
{
	uint8_t piece[65536];

	while (b->out.used < length) {
		ssize_t n = recv(b->to.qemu, piece, sizeof(piece), 0);

		assert_true(n > 0);
		add(&b->out, piece, (size_t)n);
	}
}

/* Connections under TLS: what has shaken hands by calls that block goes on in the loop. */

static const char tls_1_3[] = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK:+DHE-PSK";
static const char secret[] = "0123456789abcdef0123456789abcdef";

struct peer {
	gnutls_session_t session;
	gnutls_psk_server_credentials_t server; /* NULL: it is the client */
	gnutls_psk_client_credentials_t client;
	int fd;
};

static int find_key(gnutls_session_t session, const char *user, gnutls_datum_t *key)
{
	(void)session;
	(void)user;
	key->size = sizeof(secret) - 1;
	key->data = gnutls_malloc(key->size);
	memcpy(key->data, secret, key->size);
	return 0;
}

static void *shake_hands(void *arg)
{
	struct peer *p = arg;
	int r;

	do {
		r = gnutls_handshake(p->session);
	} while (r == GNUTLS_E_INTERRUPTED || r == GNUTLS_E_AGAIN);
	return r < 0 ? p : NULL;
}

static struct peer *new_peer(int fd, bool server)
{
	const gnutls_datum_t key = {(unsigned char *)(uintptr_t)secret, sizeof(secret) - 1};
	struct peer *p = calloc(1, sizeof(*p));

	p->fd = fd;
	fcntl(fd, F_SETFL, 0);
	gnutls_init(&p->session, (server ? GNUTLS_SERVER : GNUTLS_CLIENT) | GNUTLS_NO_TICKETS);
	if (server) {
		gnutls_psk_allocate_server_credentials(&p->server);
		gnutls_psk_set_server_credentials_function(p->server, find_key);
		gnutls_credentials_set(p->session, GNUTLS_CRD_PSK, p->server);
	} else {
		gnutls_psk_allocate_client_credentials(&p->client);
		gnutls_psk_set_client_credentials(p->client, "test", &key, GNUTLS_PSK_KEY_RAW);
		gnutls_credentials_set(p->session, GNUTLS_CRD_PSK, p->client);
	}
	assert_int_equal(gnutls_priority_set_direct(p->session, tls_1_3, NULL), 0);
	gnutls_transport_set_int(p->session, fd);
	return p;
}

static void free_peer(void *arg)
{
	struct peer *p = arg;

	gnutls_deinit(p->session);
	if (p->server)
		gnutls_psk_free_server_credentials(p->server);
	if (p->client)
		gnutls_psk_free_client_credentials(p->client);
	free(p);
}

/* Each side of it in a thread, as on two hosts. */
static void secure(struct bm_transport *near, struct bm_transport *far)
{
	struct peer *client = new_peer(near->in, false), *server = new_peer(far->in, true);
	void *failed;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, shake_hands, server), 0);
	assert_null(shake_hands(client));
	pthread_join(thread, &failed);
	assert_null(failed);
	near->tls = bm_tls_adopt(near, client->session, free_peer, client);
	far->tls = bm_tls_adopt(far, server->session, free_peer, server);
	assert_true(near->tls && far->tls);
}

static void migration(unsigned links, bool tls)
{
	struct bytes in = recorded(&all, "return");
	struct bm_relay *near, *far;
	struct bm_relay_stats stats;
	struct bm_error error;
	uint8_t back[16];
	pthread_t feeder;
	struct both b;

	both_begin(&b, links, 65536);
	for (unsigned i = 0; tls && i < links; i++)
		secure(&b.near[i], &b.far[i]);
	b.setup.gate = true;
	b.setup.compress = BM_PACE_ALWAYS;
	start_both(&b, &near, &far);
	void *arg[] = {&in, &b.from.qemu};
	assert_int_equal(pthread_create(&feeder, NULL, feed, arg), 0);
	receive_all(&b, in.used);
	pthread_join(feeder, NULL);
	same_as(&b, &in);
	assert_int_equal(bm_relay_wait(near, BM_RELAY_HOLDS, 50, &error), BM_RELAY_RUNS);
	assert_int_equal(send(b.to.qemu, pong_and_shut, 16, 0), 16);
	assert_int_equal(bm_relay_wait(near, BM_RELAY_HOLDS, 20000, &error), BM_RELAY_HOLDS);
	assert_int_equal(recv(b.from.qemu, back, 16, MSG_DONTWAIT), 8);
	bm_relay_open_gate(near);
	assert_int_equal(recv(b.from.qemu, back + 8, 8, MSG_WAITALL), 8);
	assert_memory_equal(back, pong_and_shut, 16);
	close(b.from.qemu);
	b.from.qemu = -1;
	assert_int_equal(bm_relay_wait(near, BM_RELAY_OVER, 20000, &error), BM_RELAY_OVER);
	assert_int_equal(error.code, BM_OK);
	assert_int_equal(bm_relay_wait(far, BM_RELAY_OVER, 20000, &error), BM_RELAY_OVER);
	assert_int_equal(error.code, BM_OK);
	bm_relay_stats(near, &stats);
	assert_int_equal(stats.stream, in.used);
	bm_relay_stop(near);
	bm_relay_stop(far);
	both_close(&b);
}

static void a_migration_by_threads(void **state)
{
	(void)state;
	migration(3, false);
}

/* Dropped in the middle, with batches in workers; and one whose time is over. */
static void threads_that_are_dropped(void **state)
{
	struct bytes in = {0};
	struct bm_error error;

	(void)state;
	make_noise(&in, 3000);
	for (int late = 0; late < 2; late++) {
		struct bm_relay *near, *far;
		pthread_t feeder;
		struct both b;

		both_begin(&b, 2, 65536);
		b.setup.compress = BM_PACE_ALWAYS;
		start_both(&b, &near, &far);
		void *arg[] = {&in, &b.from.qemu};
		assert_int_equal(pthread_create(&feeder, NULL, feed, arg), 0);
		receive_all(&b, 1 << 20);
		if (late) {
			bm_relay_mark(near);
			bm_relay_deadline(near, 20 * MS);
			assert_int_equal(bm_relay_wait(near, BM_RELAY_OVER, 20000, &error),
					 BM_RELAY_OVER);
			assert_int_equal(error.code, BM_E_BUDGET);
		}
		bm_relay_stop(near);
		pthread_join(feeder, NULL);
		assert_int_equal(bm_relay_wait(far, BM_RELAY_OVER, 20000, &error), BM_RELAY_OVER);
		assert_int_equal(error.code, BM_E_UNREACHABLE);
		bm_relay_stop(far);
		both_close(&b);
	}
	free(in.data);
}

static void a_migration_under_tls(void **state)
{
	(void)state;
	migration(3, true);
	migration(1, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_migration_by_threads),
		cmocka_unit_test(a_migration_under_tls),
		cmocka_unit_test(threads_that_are_dropped),
	};

	return cmocka_run_group_tests(tests, load, unload);
}
