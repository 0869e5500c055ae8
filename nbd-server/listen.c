/* SPDX-License-Identifier: BSD-3-Clause */
/* The sockets that clients come to: unix, TCP, and those that another process has opened. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/uri.h"
#include "nbd-server/internal.h"

enum { BACKLOG = 128, ACCEPTS_AT_ONCE = 16, HOST_TEXT = 256, PORT_TEXT = 32 };
#define ACCEPT_PAUSE 100000000u /* ns, when descriptors or memory are used up */

/* Accepting */

/* "HOST:PORT" of a TCP address, in numbers; an IPv6 host in brackets. */
static void host_and_port(const struct sockaddr *address, socklen_t length, char *text, size_t size)
{
	char host[HOST_TEXT] = "", port[PORT_TEXT] = "";

	if (getnameinfo(address, length, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(text, size, "?");
	else
		snprintf(text, size, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

static void describe_peer(int fd, const struct sockaddr_storage *address, socklen_t length,
			  char *text)
{
	struct ucred peer = {0};
	socklen_t peer_length = sizeof(peer);

	if (address->ss_family != AF_UNIX) {
		host_and_port((const struct sockaddr *)address, length, text, NBD_PEER_TEXT);
		return;
	}
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_length);
	snprintf(text, NBD_PEER_TEXT, "unix:%" PRIdMAX, (intmax_t)peer.pid);
}

/* Returns 0, -EAGAIN when nobody waits, or -errno. */
static int accept_one(struct nbd_listener *listener)
{
	struct nbd_server *server = listener->server;
	struct sockaddr_storage address = {0};
	socklen_t length = sizeof(address);
	bm_close int fd =
		accept4(listener->socket.fd, (struct sockaddr *)&address, &length, SOCK_CLOEXEC);
	char peer[NBD_PEER_TEXT];
	int r;

	if (fd < 0)
		return -errno;
	describe_peer(fd, &address, length, peer);
	r = nbd_conn_new(server, fd, fd, peer);
	if (r < 0)
		return r;
	bm_steal_fd(fd);
	return 0;
}

static void pause_accepting(struct nbd_server *server, int r)
{
	bm_log(BM_LOG_WARN, "cannot accept a client: %s", strerror(-r));
	for (unsigned i = 0; i < server->listeners; i++)
		bm_watch_set(server->loop, &server->listener[i].watch,
			     server->listener[i].socket.fd, 0);
	(void)bm_timer_set(server->loop, &server->accept_timer,
			   bm_loop_now(server->loop) + ACCEPT_PAUSE);
}

static void client_waits(struct bm_watch *watch, uint32_t events)
{
	struct nbd_listener *listener = bm_container(watch, struct nbd_listener, watch);
	struct nbd_server *server = listener->server;
	unsigned before = server->connected;
	int r = 0;

	(void)events;
	for (int i = 0; i < ACCEPTS_AT_ONCE && !r; i++) {
		if (server->connected >= server->options.max_connections || server->frozen)
			break;
		r = accept_one(listener);
	}
	/* The rest are errors of the one client that is not there any more (accept(2)). */
	if (r == -EMFILE || r == -ENFILE || r == -ENOMEM || r == -ENOBUFS)
		pause_accepting(server, r);
	else
		nbd_listen_update(server);
	if (server->connected != before && server->options.changed)
		server->options.changed(server->options.arg);
}

void nbd_listen_update(struct nbd_server *server)
{
	bool room = server->connected < server->options.max_connections && !server->frozen;

	if (bm_timer_armed(&server->accept_timer))
		return;
	for (unsigned i = 0; i < server->listeners; i++) {
		struct nbd_listener *listener = &server->listener[i];
		uint32_t events = room ? EPOLLIN : 0;

		if (listener->watch.events != events)
			bm_watch_set(server->loop, &listener->watch, listener->socket.fd, events);
	}
}

/* Listening */

static void close_listeners(struct nbd_server *server, unsigned first)
{
	for (unsigned i = first; i < server->listeners; i++) {
		struct nbd_listener *listener = &server->listener[i];

		bm_watch_set(server->loop, &listener->watch, listener->socket.fd, 0);
		bm_unix_close(&listener->socket);
	}
	server->listeners = first;
}

void nbd_listen_close(struct nbd_server *server)
{
	close_listeners(server, 0);
}

/* Whether only this host reaches the address. */
static bool is_local(const struct sockaddr *address)
{
	const struct sockaddr_in *v4 = (const void *)address;
	const struct sockaddr_in6 *v6 = (const void *)address;

	if (address->sa_family == AF_INET)
		return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
	if (address->sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
		return v6->sin6_addr.s6_addr[12] == IN_LOOPBACKNET;
	return address->sa_family != AF_INET6 || IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

/* Nobody from another host is served in plain text by mistake. */
static int check_address(const struct nbd_server *server, const struct sockaddr *address,
			 socklen_t length, struct bm_error *error)
{
	char text[HOST_TEXT + PORT_TEXT];

	if (server->tls == NBD_TLS_REQUIRE || server->options.insecure || is_local(address))
		return 0;
	host_and_port(address, length, text, sizeof(text));
	return bm_fail(error, BM_E_USAGE,
		       "%s: other hosts reach it, and whoever does could read and write without "
		       "proving who he is: require TLS, or say that it is to be insecure",
		       text);
}

static int add_listener(struct nbd_server *server, int fd, struct bm_error *error)
{
	struct nbd_listener *listener;
	int r;

	if (server->listeners == NBD_MAX_LISTENERS)
		return bm_fail(error, BM_E_USAGE, "more than %d listening sockets",
			       NBD_MAX_LISTENERS);
	listener = &server->listener[server->listeners];
	*listener =
		(struct nbd_listener){.server = server, .socket.fd = fd, .watch.run = client_waits};
	r = bm_watch_set(server->loop, &listener->watch, fd, EPOLLIN);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot watch a listening socket");
	server->listeners++;
	nbd_listen_update(server);
	return 0;
}

int nbd_server_listen_fd(struct nbd_server *server, int fd, struct bm_error *error)
{
	int listening = 0, flags = fcntl(fd, F_GETFL), r;
	socklen_t length = sizeof(listening);
	struct sockaddr_storage address = {0};
	socklen_t address_length = sizeof(address);

	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0 || !listening)
		return bm_fail(error, BM_E_USAGE, "descriptor %d is not a listening socket", fd);
	if (getsockname(fd, (struct sockaddr *)&address, &address_length) < 0)
		return bm_fail_errno(error, errno, "descriptor %d", fd);
	r = check_address(server, (const struct sockaddr *)&address, address_length, error);
	if (r < 0)
		return r;
	if (fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return bm_fail_errno(error, errno, "descriptor %d", fd);
	return add_listener(server, fd, error);
}

int nbd_server_listen_unix(struct nbd_server *server, const char *path, struct bm_error *error)
{
	struct bm_unix_listener socket;
	int r = bm_unix_listen(&socket, path, error);

	if (r < 0)
		return r;
	r = add_listener(server, socket.fd, error);
	if (r < 0)
		bm_unix_close(&socket);
	else
		server->listener[server->listeners - 1].socket = socket;
	return r;
}

int nbd_server_own(struct nbd_server *server, const char *path)
{
	struct bm_unix_listener *socket = &server->listener[0].socket;

	return bm_unix_take(socket, path, socket->fd);
}

int nbd_server_share(struct nbd_server *server)
{
	if (!server->listeners)
		return -1;
	bm_unix_leave(&server->listener[0].socket);
	return server->listener[0].socket.fd;
}

static in_port_t *port_of(struct sockaddr *address)
{
	return address->sa_family == AF_INET6 ? &((struct sockaddr_in6 *)(void *)address)->sin6_port
					      : &((struct sockaddr_in *)(void *)address)->sin_port;
}

/* *port is the port that the kernel chose for the first address, and is to be used for all. */
static int listen_on(struct nbd_server *server, struct addrinfo *info, in_port_t *port,
		     struct bm_error *error)
{
	const int on = 1;
	bm_close int fd = socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_storage bound;
	socklen_t length = sizeof(bound);
	char text[HOST_TEXT + PORT_TEXT];
	int r;

	if (!*port_of(info->ai_addr))
		*port_of(info->ai_addr) = *port;
	host_and_port(info->ai_addr, info->ai_addrlen, text, sizeof(text));
	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot listen on %s", text);
	r = check_address(server, info->ai_addr, info->ai_addrlen, error);
	if (r < 0)
		return r;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (info->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	if (bind(fd, info->ai_addr, info->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0 ||
	    getsockname(fd, (struct sockaddr *)&bound, &length) < 0)
		return bm_fail_errno(error, errno, "cannot listen on %s", text);
	r = add_listener(server, fd, error);
	if (r < 0)
		return r;
	bm_steal_fd(fd);
	*port = *port_of((struct sockaddr *)&bound);
	return 0;
}

int nbd_server_listen_tcp(struct nbd_server *server, const char *host, const char *port,
			  struct bm_error *error)
{
	const struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
	struct addrinfo *list;
	in_port_t chosen = 0;
	unsigned before = server->listeners;
	int r = getaddrinfo(host && *host ? host : NULL, port, &hints, &list);

	if (r)
		return bm_fail(error, BM_E_USAGE, "cannot listen on %s:%s: %s", host ? host : "",
			       port, r == EAI_SYSTEM ? strerror(errno) : gai_strerror(r));
	for (struct addrinfo *info = list; info; info = info->ai_next) {
		r = listen_on(server, info, &chosen, error);
		/* A kernel without IPv6 still finds "::" in its books. */
		if (r < 0 && r != -EAFNOSUPPORT && r != -EADDRNOTAVAIL)
			break;
	}
	freeaddrinfo(list);
	if (server->listeners > before && (r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL))
		r = 0;
	if (r < 0)
		close_listeners(server, before);
	return r;
}

/* URIs (uri.md) */

char *nbd_server_uri(const struct nbd_server *server, const char *name)
{
	struct sockaddr_storage address = {0};
	const struct sockaddr_un *un = (const void *)&address;
	socklen_t length = sizeof(address);
	const char *s = server->tls == NBD_TLS_REQUIRE ? "s" : "";
	char text[HOST_TEXT + PORT_TEXT], *uri;
	bm_free char *export = bm_uri_escape(name), *path = NULL;
	int n;

	if (server->listeners)
		getsockname(server->listener[0].socket.fd, (struct sockaddr *)&address, &length);
	if (address.ss_family == AF_UNIX) {
		path = bm_uri_escape(un->sun_path);
		n = !export || !path
			    ? -1
			    : asprintf(&uri, "nbd%s+unix:///%s?socket=%s", s, export, path);
	} else {
		host_and_port((const struct sockaddr *)&address, length, text, sizeof(text));
		n = !export ? -1 : asprintf(&uri, "nbd%s://%s/%s", s, text, export);
	}
	return n < 0 ? NULL : uri;
}
