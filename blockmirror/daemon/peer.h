/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hosts that trust each other, shared by the files about them. Two hosts have a key of their own,
 * by which TLS proves each to the other; nobody else gets in.
 *
 *   peer.c        which there are: STATE/peers/NAME.json, and their keys as TLS reads them
 *   peer_port.c   what they may ask of us
 *   peer_call.c   what we ask of them
 *   peer_admin.c  the control socket's methods about them
 */
#ifndef BM_DAEMON_PEER_H
#define BM_DAEMON_PEER_H

#include "blockmirror/base/credentials.h"
#include "blockmirror/client.h"
#include "blockmirror/daemon/daemon.h"

enum {
	PEER_OLDEST = 1, /* versions of what hosts say to each other: the newest, and one before */
	PEER_NEWEST = 1,
	PEER_KEY = 32, /* bytes */
	PEER_KEY_TEXT = 2 * PEER_KEY,
};

/* One host. Where it is, and its key, change only as a whole, in a new one. */
struct peer {
	struct bm_list link;
	char *name;    /* by which it comes to us */
	char *address; /* HOST:PORT */
	char *key;     /* hexadecimal */
};

struct peers {
	struct daemon *daemon;
	char *name;                 /* ours, by which we go to others */
	char *listen;               /* ADDRESS:PORT; NULL: nobody comes to us */
	char *folder, *keys;        /* STATE/peers, and the file of all keys in it */
	struct bm_list list;        /* struct peer, by name */
	struct bm_rpc *rpc;         /* of those who come */
	struct bm_keyring *keyring; /* NULL: there are no peers */
	struct bm_workers *callers; /* calls to them, which block */
	struct peer_change *change; /* files are being written; NULL */
	struct bm_list errands;     /* calls to them, for calls to us */
};

/* peer.c */
int peers_open(struct daemon *d, const char *name, const char *listen, struct bm_error *error);
void peers_close(struct daemon *d);
struct peer *peer_find(const struct peers *p, const char *name);
/* Copies; NULL: no memory. */
struct peer *peer_new(const char *name, const char *address, const char *key);
void peer_free(struct peer *peer); /* NULL is allowed */
int peer_check(const char *name, const char *address, const char *key, struct bm_error *error);
/* A new key, hexadecimal, malloc()ed. */
char *peer_make_key(void);
/*
 * Writes what is to be: text is the file of all keys as it shall be, peer the one that is added, or
 * NULL, and then removed is the name of one that goes. Blocks, in any thread.
 */
int peer_write(const struct peers *p, const struct peer *peer, const char *removed,
	       const char *text, struct bm_error *error);
/* The file of all keys, with peer instead of who has its name, and without removed. malloc()ed. */
char *peer_keys_text(const struct peers *p, const struct peer *peer, const char *removed);
/* What was written counts from now on; peer is taken over. */
void peer_changed(struct peers *p, struct peer *peer, const char *removed);

/* peer_port.c */
int peer_listen(struct peers *p, struct bm_error *error);

/*
 * peer_call.c: blocks; in any thread. A connection to a peer on which a version is agreed on;
 * hello: what it said, the caller's to release.
 */
int peer_connect(const struct peer *peer, const char *our_name, struct bm_client **client,
		 json_t **hello, struct bm_error *error);
/* How it is reached: as peer.check tells it (docs/protocol.md). */
int peer_measure(const struct peer *peer, const char *our_name, json_t **result,
		 struct bm_error *error);

/* peer_admin.c: methods of the control socket; arg is the daemon. */
bm_rpc_method method_peer_add, method_peer_pair, method_peer_remove, method_peer_list,
	method_peer_check;
/* No worker has anything of ours any more. */
void peer_admin_close(struct peers *p);

#endif
