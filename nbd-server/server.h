/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD server: exports block devices to NBD clients, over unix and TCP sockets, in one event
 * loop. It knows nothing of what the devices are made of.
 *
 * Threads: everything here belongs to the thread of the loop. Listening on a host name looks it up
 * and may block; all else never does.
 *
 * Memory: a connection holds at most max_requests requests and max_data bytes of buffers; when
 * either is used up its socket is not read from until replies have gone out. TLS adds 300 KiB to
 * it, and what GnuTLS needs. The number of connections is limited, too: nbd_server_bound() tells
 * what all of them may come to.
 */
#ifndef NBD_SERVER_SERVER_H
#define NBD_SERVER_SERVER_H

#include "blockmirror/base/tls_options.h"
#include "blockmirror/blockdev.h"

struct nbd_server;

enum {
	NBD_MAX_EXPORTS = 64,
	NBD_MAX_NAME = 256,   /* bytes of an export's or a context's name (proto.md: SHOULD) */
	NBD_MAX_CONTEXTS = 8, /* metadata contexts of an export */
	NBD_PEER_TEXT = 64,
	NBD_LEAST_DATA = 2 << 20,
	NBD_IDENTITY_TEXT = 128,
};

/* Whether clients may, or must, go over to TLS before all else (proto.md, "TLS support"). */
enum nbd_tls_mode {
	NBD_TLS_OFF,
	NBD_TLS_ON,      /* offered: SELECTIVETLS */
	NBD_TLS_REQUIRE, /* FORCEDTLS */
};

enum nbd_access { NBD_ACCESS_NONE, NBD_ACCESS_READ, NBD_ACCESS_WRITE };

struct nbd_server_options {
	unsigned max_connections; /* 0: 100. More wait in the backlog of the socket */
	unsigned max_requests;    /* 0: 128, and no more than that. In flight on a connection */
	uint64_t max_data;        /* 0: 16 MiB; at least NBD_LEAST_DATA. Buffers of a connection */
	uint64_t handshake_ns; /* 0: 10 s. A client that has chosen no export by then is closed */
	uint64_t idle_ns;      /* 0: never. A client is closed that has asked nothing for so long */
	uint64_t stop_ns;      /* 0: 10 s. What clients get to take their last replies */
	/* A client connected or left; called from the loop. May stop the server. NULL is allowed */
	void (*changed)(void *arg);
	/*
	 * What who may do with that export; called whenever a client names or lists it. What he may
	 * not open is unknown to him. NULL: everybody may do everything.
	 */
	enum nbd_access (*access)(void *arg, const struct bm_identity *who, const char *export);
	void *arg;
	bool insecure; /* plain TCP from other hosts, too */
};

struct nbd_export {
	const char *name;        /* "" is the default export */
	const char *description; /* for people; "" or NULL: none */
	struct bm_dev *dev;      /* not owned; outlives the server */
	bool read_only;          /* also when dev is not */
	unsigned max_clients;    /* 0: as many as the server has. More are refused */
};

struct nbd_client_info {
	char peer[NBD_PEER_TEXT]; /* "10.0.0.1:40000", "[::1]:40000", "unix:PID", "stdio" */
	const char *export; /* its name; NULL: still in the handshake. As long as the server */
	uint64_t requests;  /* answered, errors too */
	uint64_t bytes_read, bytes_written;
	unsigned in_flight; /* requests not yet answered */
	bool gone;          /* but the device has requests of it */
	bool tls;
	char identity[NBD_IDENTITY_TEXT]; /* "psk:NAME", "dn:DN", or "" */
};

/* What all clients take together. */
struct nbd_server_usage {
	uint64_t bound;   /* bytes of memory that they never exceed */
	uint64_t memory;  /* bytes that they have now */
	uint64_t buffers; /* of these, bytes in which data of requests is */
	unsigned max_connections;
	unsigned connections; /* closed ones count as long as the device has requests of theirs */
	unsigned in_flight;   /* requests not yet answered */
	uint64_t changes; /* writes, zeroes and trims that were answered, of all that ever came */
};

/*
 * Sets one limit from what a user has written: "max-connections", "max-requests", "max-data",
 * "handshake-timeout" or "idle-timeout" (whole seconds). Errors: BM_E_USAGE.
 */
int nbd_server_set_limit(struct nbd_server_options *options, const char *limit, const char *text,
			 struct bm_error *error);

/* Bytes of memory that a server with these options takes at most for its clients. */
uint64_t nbd_server_bound(const struct nbd_server_options *options);

/* A server without exports that does not listen. options NULL: the defaults. NULL: no memory. */
struct nbd_server *nbd_server_new(struct bm_loop *loop, const struct nbd_server_options *options);

/*
 * Sets up TLS, once and before the server listens. Fails with a text when a file is missing or
 * wrong, and when clients could not prove a thing (neither certificates nor keys).
 *
 * Files that change are read again at the next client's handshake; when they are not all right then
 * what was read before stays in use. Sessions are never touched.
 */
int nbd_server_set_tls(struct nbd_server *server, enum nbd_tls_mode mode,
		       const struct bm_tls_options *options, struct bm_error *error);

/* Reads the files of TLS again, now. What is in use stays so on failure. Without TLS: nothing. */
int nbd_server_reload_tls(struct nbd_server *server, struct bm_error *error);

/*
 * Offers export to the clients that come from now on; the texts are copied. The device is started
 * and serves any offset and length (what bm_order_new() makes does). Fails with BM_E_USAGE when it
 * does not, when a text is too long or the name is taken, and when there are too many.
 */
int nbd_server_add_export(struct nbd_server *server, const struct nbd_export *export,
			  struct bm_error *error);

/*
 * A metadata context of an export, beside base:allocation, which is the export's own device: name
 * is NAMESPACE:LEAF, as in "qemu:dirty-bitmap:web", and is copied. What dev, which is not owned and
 * outlives the server, answers to BM_EXTENTS, for any offset and length, is what clients read that
 * have selected it; the flags are the context's own. Both calls may come at any time. Clients that
 * have selected one that is removed get EINVAL when they ask. Errors: BM_E_USAGE.
 */
int nbd_server_add_context(struct nbd_server *server, const char *export, const char *name,
			   struct bm_dev *dev, struct bm_error *error);
/* One that is not there is none the less gone. */
void nbd_server_remove_context(struct nbd_server *server, const char *export, const char *name);

/*
 * Listens on a unix socket, mode 0660. A socket that a dead server left behind is replaced; one
 * that somebody listens on is BM_E_BUSY, and what is no socket is BM_E_EXISTS.
 */
int nbd_server_listen_unix(struct nbd_server *server, const char *path, struct bm_error *error);

/*
 * Listens on all addresses of host (NULL or "": all of this machine's). port "0": the kernel
 * chooses; nbd_server_uri() tells. Unless TLS is required or options.insecure is set, addresses
 * that other hosts reach are BM_E_USAGE.
 */
int nbd_server_listen_tcp(struct nbd_server *server, const char *host, const char *port,
			  struct bm_error *error);

/* Takes over a socket that listens already; the same holds for TCP. On failure it stays the
 * caller's. */
int nbd_server_listen_fd(struct nbd_server *server, int fd, struct bm_error *error);

/* The first listening socket was taken over with its path, which goes with the server. */
int nbd_server_own(struct nbd_server *server, const char *path);

/*
 * The first listening socket, for another process to hold, too, which its path is left to from now
 * on; -1 when there is none.
 */
int nbd_server_share(struct nbd_server *server);

/*
 * Takes over a client that is connected already, beyond max_connections if need be: we read from
 * in and write to out, which are one socket (the same number twice) or two pipes. On failure
 * (-errno) both stay the caller's.
 */
int nbd_server_accept_fd(struct nbd_server *server, int in, int out);

/*
 * The URI of the named export on the first socket that the server listens on; there is one. nbds:
 * when TLS is required; whom to trust is for the client to add. malloc()ed; NULL: no memory.
 */
char *nbd_server_uri(const struct nbd_server *server, const char *name);

/*
 * How many clients are connected; what fits room is told about them in info, longest connected
 * first.
 */
unsigned nbd_server_clients(const struct nbd_server *server, struct nbd_client_info *info,
			    unsigned room);

void nbd_server_get_usage(const struct nbd_server *server, struct nbd_server_usage *usage);

/*
 * Listens and reads no more; requests in flight are carried out and answered, then connections are
 * closed. Those that still come are not answered with ESHUTDOWN, which a guest would see as an
 * error, but not at all: a client that reconnects sends them again, to whoever serves then. Then
 * done(arg) is called, from the loop.
 * A device that does not let go of a request holds this up (bm_dev_cancel() helps); a client that
 * does not take its replies does so for stop_ns. Once only.
 */
void nbd_server_stop(struct nbd_server *server, void (*done)(void *arg), void *arg);

/*
 * Handing the clients over to a server of another process, which has the same exports (handover.c).
 *
 *	old: freeze(); when it is done: pack(), pass(); when the new one has taken all: abandon()
 *	new: freeze() without done, before it listens; unpack(), take() each; thaw()
 *
 * Freezing: nobody is accepted, no request is begun; those in flight are carried out and answered.
 * Then, or after limit ns, done(arg, busy) is called from the loop: busy is the peer of a client
 * that is in the middle of something, or NULL. While done(NULL) stands no device is used, and none
 * is needed. Clients notice nothing but that it takes long. -ENOMEM.
 */
enum {
	NBD_HANDOVER = 1,       /* the version of what is packed */
	NBD_PARCEL = 128 << 10, /* bytes that it has at most */
};
int nbd_server_freeze(struct nbd_server *server, uint64_t limit,
		      void (*done)(void *arg, const char *busy), void *arg);
void nbd_server_thaw(struct nbd_server *server);

/* What all clients share: sessions, ids of contexts. NBD_PARCEL bytes of room; what it has; 0. */
size_t nbd_server_pack(const struct nbd_server *server, uint8_t *parcel);
/* Calls send() for each client in clear. The first -errno of it, or 0. */
int nbd_server_pass(const struct nbd_server *server,
		    int (*send)(void *arg, int fd, const uint8_t *parcel, size_t length),
		    void *arg);
/* Lets go of all clients: those that were passed do not notice, those under TLS see the end. */
void nbd_server_abandon(struct nbd_server *server);

/* How many clients will follow, or -EPROTO. */
int nbd_server_unpack(struct nbd_server *server, const uint8_t *parcel, size_t length);
/* Takes fd over when it returns 0; -EPROTO, -ENOMEM, -errno. */
int nbd_server_take(struct nbd_server *server, int fd, const uint8_t *parcel, size_t length);

/* A frozen server's export, and a context of it, have other devices from now on. */
void nbd_server_set_devs(struct nbd_server *server, const char *export, struct bm_dev *dev,
			 const char *name, struct bm_dev *context_dev);

/* No client is connected: none ever came, or nbd_server_stop() is done. NULL is allowed. */
void nbd_server_free(struct nbd_server *server);

#endif
