/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How NBD connections and servers begin and end: sockets, clients that go at the worst moment, the
 * server that stops. "rule N" is reference/nbd.md's, names are proto.md's.
 */
#include "tests/unit/nbd_client.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/un.h>

static struct rig rig;
static char folder[64], path[96];

static int set_up(void **state)
{
	rig_open(&rig, NULL);
	*state = &rig;
	strcpy(folder, "/tmp/nbd_life_test.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof(path), "%s/socket", folder);
	return 0;
}

static int set_up_narrow(void **state)
{
	const struct nbd_server_options options = {.max_connections = 2, .stop_ns = 50000000};
	int r = set_up(state);

	rig_close(&rig);
	rig_open(&rig, &options);
	return r;
}

static int set_up_insecure(void **state)
{
	const struct nbd_server_options options = {.insecure = true};
	int r = set_up(state);

	rig_close(&rig);
	rig_open(&rig, &options);
	return r;
}

static int tear_down(void **state)
{
	(void)state;
	rig_close(&rig);
	unlink(path);
	return rmdir(folder);
}

static unsigned clients(void)
{
	return nbd_server_clients(rig.server, NULL, 0);
}

/* DISC: the server MUST handle all outstanding requests; rule 23 */
static void disc_waits_for_requests_in_flight_and_their_replies(void **state)
{
	struct client c = connected(*state, "slow", true);

	request(&c, WRITE, 0, 1, 0, 4096);
	payload(&c, 0, 4096);
	request(&c, READ, 0, 2, 0, 4096);
	request(&c, FLUSH, 0, 3, 0, 0);
	request(&c, DISC, 0, 4, 0, 0);
	request(&c, TRIM, 0, 5, 0, 4096); /* MUST NOT send anything after it: not looked at */
	expect_silence(&c);
	assert_int_equal(rig.slow.count, 3);
	while (rig.slow.count)
		slow_release(&rig.slow, false);
	expect_simple(&c, 1, 0);
	expect_chunk(&c, 2, DATA, 8 + 4096);
	expect_simple(&c, 3, 0);
	expect_end(&c);
	client_close(&c);
	assert_int_equal(clients(), 0);
}

static void disc_of_an_idle_client_just_ends(void **state)
{
	struct client c = connected(*state, "", true);

	request(&c, DISC, 0xffff, 0, 1, 1);
	expect_end(&c);
	assert_int_equal(clients(), 0);
	client_close(&c);
}

/* rule 24: the connection outlives its socket until the device has let go of the last request */
static void a_client_may_vanish_with_requests_in_flight(void **state)
{
	for (unsigned left = 0; left < 4; left++) {
		struct client c = connected(*state, "slow", left % 2);

		request(&c, READ, 0, 1, 0, 3 * MIB);
		request(&c, WRITE, 0, 2, 0, 2 * MIB);
		payload(&c, 0, 2 * MIB - left); /* cut off, but for the first time */
		turns(&rig, 5);
		client_close(&c);
		assert_int_equal(clients(), 1);
		assert_true(rig.slow.count >= 4);
		while (rig.slow.count) {
			slow_release(&rig.slow, left > 1);
			turns(&rig, 2);
		}
		turns(&rig, 5);
		assert_int_equal(clients(), 0);
	}
}

static void a_client_may_go_wrong_with_requests_in_flight(void **state)
{
	struct client c = connected(*state, "slow", true);

	for (unsigned i = 0; i < 3; i++)
		request(&c, READ, 0, i, 0, 4096);
	put(&c, "NBD request magic is something else", 28);
	expect_end(&c);
	while (rig.slow.count) {
		assert_int_equal(clients(), 1);
		slow_release(&rig.slow, true);
		turns(&rig, 2);
	}
	assert_int_equal(clients(), 0);
	client_close(&c);
}

static void a_client_may_vanish_with_replies_queued(void **state)
{
	struct client c = connected(*state, "slow", true);

	rig.slow.at_once = true;
	for (unsigned i = 0; i < 20; i++)
		request(&c, READ, 0, i, 0, MIB);
	turns(&rig, 20);
	client_close(&c);
	turns(&rig, 20);
	assert_int_equal(clients(), 0);
}

static void a_client_may_vanish_in_the_handshake(void **state)
{
	struct client c = client_new(*state);

	put(&c, "\0\0\0\3IHAVEOPT\0\0\0\7\0\0", 18);
	turns(&rig, 5);
	client_close(&c);
	assert_int_equal(clients(), 0);
}

/* A client that has closed its sending half still takes what is owed to it. */
static void a_half_closed_client_gets_its_replies(void **state)
{
	struct client c = connected(*state, "slow", true);

	request(&c, READ, 0, 1, 0, 4096);
	shutdown(c.fd, SHUT_WR);
	expect_silence(&c);
	slow_release(&rig.slow, false);
	expect_chunk(&c, 1, DATA, 8 + 4096);
	expect_end(&c);
	client_close(&c);
	c = connected(*state, "slow", true);
	request(&c, WRITE, 0, 2, 0, 2 * MIB);
	payload(&c, 0, MIB + 1);
	shutdown(c.fd, SHUT_WR);
	turns(&rig, 5);
	slow_release(&rig.slow, false);
	expect_error(&c, 2, EIO); /* it did not come whole: no success is reported */
	expect_end(&c);
	client_close(&c);
}

/* NBD_FLAG_CAN_MULTI_CONN: a flush covers what was answered on other connections; rule 22 */
static void a_flush_goes_to_the_device_of_all_connections(void **state)
{
	struct client c = connected(*state, "slow", true), d = connected(*state, "slow", false);

	request(&c, WRITE, 0, 1, 0, 512);
	payload(&c, 0, 512);
	turns(&rig, 5);
	slow_release(&rig.slow, false);
	expect_simple(&c, 1, 0);
	request(&d, FLUSH, 0, 2, 0, 0);
	expect_silence(&d); /* not answered by itself */
	assert_int_equal(rig.slow.count, 1);
	slow_release(&rig.slow, false);
	expect_simple(&d, 2, 0);
	client_close(&c), client_close(&d);
}

static void clients_are_told_of(void **state)
{
	struct client c = connected(*state, "slow", true), d = client_new(*state);
	struct nbd_client_info info[3];

	rig.slow.at_once = true;
	request(&c, READ, 0, 1, 0, 8192);
	expect_chunk(&c, 1, DATA, 8 + 8192);
	request(&c, WRITE, 0, 2, 0, 512);
	payload(&c, 0, 512);
	expect_simple(&c, 2, 0);
	request(&c, READ, 0, 3, DISK, 512);
	expect_error(&c, 3, EINVAL);
	assert_int_equal(nbd_server_clients(rig.server, info, 3), 2);
	assert_string_equal(info[0].export, "slow");
	assert_string_equal(info[0].peer, "stdio");
	assert_int_equal(info[0].requests, 3);
	assert_int_equal(info[0].bytes_read, 8192);
	assert_int_equal(info[0].bytes_written, 512);
	assert_null(info[1].export);
	assert_int_equal(nbd_server_clients(rig.server, info, 1), 2);
	client_close(&c), client_close(&d);
}

/* "Terminating the transmission phase": requests in flight are served, later ones not answered */
static void stopping_finishes_what_is_in_flight(void **state)
{
	struct client c = connected(*state, "slow", true), idle = connected(*state, "", true);
	struct client early = client_new(*state);

	request(&c, READ, 0, 1, 0, 4096);
	request(&c, WRITE, 0, 2, 0, 4096);
	payload(&c, 0, 1024);
	turns(&rig, 5);
	rig_stop(&rig);
	assert_false(rig.stopped); /* never inside */
	expect_end(&idle);
	payload(&c, 1024, 3072); /* the WRITE had not come whole */
	request(&c, READ, 0, 3, 0, 512);
	turns(&rig, 5);
	assert_int_equal(rig.slow.count, 1);
	assert_false(rig.stopped);
	slow_release(&rig.slow, false);
	expect_chunk(&c, 1, DATA, 8 + 4096);
	expect_end(&c);
	turns(&rig, 5);
	assert_true(rig.stopped);
	client_close(&c), client_close(&idle), client_close(&early);
}

static void stopping_does_not_wait_for_a_client_that_does_not_read(void **state)
{
	struct client c = connected(*state, "slow", true), d = connected(*state, "slow", true);

	rig.slow.at_once = true;
	for (unsigned i = 0; i < 10; i++)
		request(&c, READ, 0, i, 0, MIB);
	turns(&rig, 10);
	rig.slow.at_once = false;
	request(&d, FLUSH, 0, 1, 0, 0);
	turns(&rig, 5);
	rig_stop(&rig);
	turns(&rig, 5);
	assert_int_equal(clients(), 2);
	for (int i = 0; i < 500 && clients() > 1; i++)
		turn(&rig);
	assert_int_equal(clients(), 1);
	turns(&rig, 5);
	assert_false(rig.stopped); /* but for the device it does wait */
	slow_release(&rig.slow, false);
	turns(&rig, 5);
	assert_true(rig.stopped);
	client_close(&c), client_close(&d);
}

/* Sockets */

static struct client dial(const struct sockaddr *address, socklen_t length)
{
	int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(connect(fd, address, length), 0);
	return (struct client){.rig = &rig, .fd = fd};
}

static struct client dial_unix(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	strcpy(address.sun_path, path);
	return dial((struct sockaddr *)&address, sizeof(address));
}

static void a_unix_socket_has_mode_0660_and_goes_away(void **state)
{
	struct nbd_client_info info;
	struct client c;
	struct stat st;
	char *uri;

	(void)state;
	assert_int_equal(nbd_server_listen_unix(rig.server, path, NULL), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0660);
	uri = nbd_server_uri(rig.server, "a b/%");
	assert_int_equal(strncmp(uri, "nbd+unix:///a%20b/%25?socket=/tmp/nbd_life_test.", 48), 0);
	free(uri);
	c = dial_unix();
	start(&c, 3);
	go(&c, "");
	nbd_server_clients(rig.server, &info, 1);
	assert_int_equal(strtol(info.peer + 5, NULL, 10), getpid()); /* "unix:PID" */
	client_close(&c);
	rig_stop(&rig);
	assert_int_equal(stat(path, &st), -1);
}

static void a_stale_unix_socket_is_replaced_and_no_other(void **state)
{
	struct nbd_server *other = nbd_server_new(rig.loop, NULL);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct bm_error error;
	struct stat st;
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char longest[200];
	struct client waiting;

	(void)state;
	strcpy(address.sun_path, path);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd); /* as a server that was killed leaves it */
	assert_int_equal(nbd_server_listen_unix(rig.server, path, NULL), 0);
	assert_true(nbd_server_listen_unix(other, path, &error) < 0);
	assert_int_equal(error.code, BM_E_BUSY);
	unlink(path);
	close(open(path, O_CREAT | O_WRONLY, 0600));
	assert_true(nbd_server_listen_unix(other, path, &error) < 0);
	assert_int_equal(error.code, BM_E_EXISTS);
	assert_int_equal(stat(path, &st), 0);
	unlink(path);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(fd, 0), 0);
	waiting = dial_unix(); /* its backlog is full now */
	assert_true(nbd_server_listen_unix(other, path, &error) < 0);
	assert_int_equal(error.code, BM_E_BUSY);
	close(waiting.fd), close(fd);
	memset(longest, 'x', sizeof(longest));
	longest[sizeof(longest) - 1] = '\0';
	assert_true(nbd_server_listen_unix(other, longest, &error) < 0);
	assert_int_equal(error.code, BM_E_USAGE);
	nbd_server_free(other);
	rig_stop(&rig);
	assert_int_equal(stat(path, &st), 0); /* what is there now is not the server's */
}

static void tcp_serves_both_families_on_one_port(void **state)
{
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htobe32(0x7f000001)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
	struct nbd_client_info info[2];
	struct bm_error error;
	struct client c, d;
	unsigned port;
	char *uri, text[16];

	(void)state;
	assert_int_equal(nbd_server_listen_tcp(rig.server, NULL, "0", &error), 0);
	uri = nbd_server_uri(rig.server, "");
	assert_int_equal(sscanf(strrchr(uri, ':'), ":%u/", &port), 1);
	free(uri);
	v4.sin_port = v6.sin6_port = htobe16((uint16_t)port);
	c = dial((struct sockaddr *)&v4, sizeof(v4));
	d = dial((struct sockaddr *)&v6, sizeof(v6));
	start(&c, 3), start(&d, 3);
	go(&c, ""), go(&d, "small");
	assert_int_equal(nbd_server_clients(rig.server, info, 2), 2);
	assert_memory_equal(info[0].peer, "127.0.0.1:", 10);
	assert_memory_equal(info[1].peer, "[::1]:", 6);
	snprintf(text, sizeof(text), "%u", port);
	assert_true(nbd_server_listen_tcp(rig.server, "127.0.0.1", text, &error) < 0);
	assert_true(nbd_server_listen_tcp(rig.server, "127.0.0.1", "no port", &error) < 0);
	assert_int_equal(error.code, BM_E_USAGE);
	client_close(&c), client_close(&d);
}

/* What other hosts reach is not served in plain text by mistake, however the socket came to be. */
static void plain_tcp_is_for_this_host(void **state)
{
	static const char *const local[] = {"127.0.0.1", "127.9.8.7", "::1", "localhost"};
	static const char *const open[] = {NULL, "0.0.0.0", "::", "::ffff:0.0.0.0"};
	struct sockaddr_in any = {.sin_family = AF_INET};
	struct bm_error error;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)state;
	for (size_t i = 0; i < sizeof(open) / sizeof(open[0]); i++) {
		error.code = BM_OK;
		assert_true(nbd_server_listen_tcp(rig.server, open[i], "0", &error) < 0);
		assert_int_equal(error.code, BM_E_USAGE);
		assert_non_null(strstr(error.text, "insecure"));
	}
	assert_int_equal(bind(fd, (struct sockaddr *)&any, sizeof(any)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_true(nbd_server_listen_fd(rig.server, fd, &error) < 0);
	assert_int_equal(error.code, BM_E_USAGE);
	close(fd);
	for (size_t i = 0; i < sizeof(local) / sizeof(local[0]); i++)
		assert_int_equal(nbd_server_listen_tcp(rig.server, local[i], "0", &error), 0);
}

static void connections_are_limited_and_the_rest_wait(void **state)
{
	struct client c[3];

	(void)state;
	assert_int_equal(nbd_server_listen_unix(rig.server, path, NULL), 0);
	for (int i = 0; i < 3; i++)
		c[i] = dial_unix();
	start(&c[0], 3), start(&c[1], 3);
	expect_silence(&c[2]);
	assert_int_equal(bm_loop_turn(rig.loop, 0), 0); /* and the loop sleeps */
	assert_int_equal(clients(), 2);
	client_close(&c[0]);
	start(&c[2], 3);
	client_close(&c[1]), client_close(&c[2]);
	assert_int_equal(clients(), 0);
}

static void sockets_may_be_passed(void **state)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0), plain = socket(AF_UNIX, SOCK_STREAM, 0);
	struct bm_error error;
	struct client c;

	(void)state;
	strcpy(address.sun_path, path);
	assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(nbd_server_listen_fd(rig.server, fd, &error), 0);
	assert_true(nbd_server_listen_fd(rig.server, plain, &error) < 0);
	assert_int_equal(error.code, BM_E_USAGE);
	close(plain);
	c = dial_unix();
	start(&c, 3);
	go(&c, "");
	client_close(&c);
}

static void pipes_do_as_well(void **state)
{
	int to[2], from[2];
	uint8_t bytes[65536];
	size_t got = 0;

	(void)state;
	assert_int_equal(pipe(to), 0);
	assert_int_equal(pipe(from), 0);
	fcntl(from[0], F_SETFL, O_NONBLOCK);
	assert_int_equal(nbd_server_accept_fd(rig.server, to[0], from[1]), 0);
	assert_int_equal(write(to[1], "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\0", 20), 20);
	pack_request(bytes, READ, 0, 1, 0, 3 * MIB); /* more than a pipe holds */
	pack_request(bytes + 28, DISC, 0, 2, 0, 0);
	assert_int_equal(write(to[1], bytes, 56), 56);
	for (int i = 0; i < 5000 && got < 18 + 10 + 16 + 3 * MIB; i++) {
		ssize_t n = read(from[0], bytes, sizeof(bytes));

		if (n > 0)
			got += (size_t)n;
		turns(&rig, 1);
	}
	assert_int_equal(got, 18 + 10 + 16 + 3 * MIB);
	turns(&rig, 5);
	assert_int_equal(read(from[0], bytes, 1), 0);
	close(to[1]), close(from[0]);
}

static void exports_are_checked(void **state)
{
	struct nbd_export export = {.name = "slow", .dev = &rig.slow.dev};
	char name[NBD_MAX_NAME + 2] = "";
	struct bm_error error;

	(void)state;
	assert_true(nbd_server_add_export(rig.server, &export, &error) < 0); /* is there already */
	assert_int_equal(error.code, BM_E_USAGE);
	memset(name, 'n', NBD_MAX_NAME + 1);
	export.name = name;
	assert_true(nbd_server_add_export(rig.server, &export, &error) < 0);
	name[NBD_MAX_NAME] = '\0';
	assert_int_equal(nbd_server_add_export(rig.server, &export, &error), 0);
	export.name = "blocks";
	rig.slow.dev.geometry.block = 512;
	assert_true(nbd_server_add_export(rig.server, &export, &error) < 0);
	rig.slow.dev.geometry.block = 1;
	for (int i = 4; i < NBD_MAX_EXPORTS; i++) {
		snprintf(name, sizeof(name), "%d", i);
		export.name = name;
		assert_int_equal(nbd_server_add_export(rig.server, &export, &error), 0);
	}
	export.name = "one too many";
	assert_true(nbd_server_add_export(rig.server, &export, &error) < 0);
}

int main(void)
{
#define TEST(name)        cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_NARROW(name) cmocka_unit_test_setup_teardown(name, set_up_narrow, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(disc_waits_for_requests_in_flight_and_their_replies),
		TEST(disc_of_an_idle_client_just_ends),
		TEST(a_client_may_vanish_with_requests_in_flight),
		TEST(a_client_may_go_wrong_with_requests_in_flight),
		TEST(a_client_may_vanish_with_replies_queued),
		TEST(a_client_may_vanish_in_the_handshake),
		TEST(a_half_closed_client_gets_its_replies),
		TEST(a_flush_goes_to_the_device_of_all_connections),
		TEST(clients_are_told_of),
		TEST(stopping_finishes_what_is_in_flight),
		TEST_NARROW(stopping_does_not_wait_for_a_client_that_does_not_read),
		TEST(a_unix_socket_has_mode_0660_and_goes_away),
		TEST(a_stale_unix_socket_is_replaced_and_no_other),
		cmocka_unit_test_setup_teardown(tcp_serves_both_families_on_one_port,
						set_up_insecure, tear_down),
		TEST(plain_tcp_is_for_this_host),
		TEST_NARROW(connections_are_limited_and_the_rest_wait),
		TEST(sockets_may_be_passed),
		TEST(pipes_do_as_well),
		TEST(exports_are_checked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
