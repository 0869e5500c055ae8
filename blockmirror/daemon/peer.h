/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hosts that trust each other, shared by the files about them. Two hosts have a key of their own,
 * or certificates of one authority, by which TLS proves each to the other; nobody else gets in.
 *
 *   peer.c        which there are
 *   peer_trust.c  by what they prove to be themselves
 *   peer_file.c   STATE/peers: NAME.json of each, and their keys as TLS reads them
 *   peer_port.c   what they may ask of us
 *   receive.c     of that: disks of theirs that come here
 *   share.c       of these: those whose storage we reach ourselves
 *   space.c       of these: how much room there is
 *   probe.c       what their images' place can do
 *   peer_call.c   what we ask of them
 *   remote.c      of that: disks of ours that go there
 *   pass.c        disks that pass from one to the other
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

/*
 * What may wait for what: a call waits for those of higher levels alone, on this host and the
 * other, and each level has threads of its own. With one pool for all, hand-overs of four disks at
 * a time would take all threads of both hosts, and wait for the calls that they need themselves.
 */
enum errand_level {
	ERRAND_OURS,   /* somebody of this host wants something of another one */
	ERRAND_THEIRS, /* another one of us */
	ERRAND_ASK,    /* a standby asks for the disk */
	ERRAND_YIELD,  /* and is answered */
	ERRAND_LEVELS
};

/* One host. What is known of it changes only as a whole, in a new one. */
struct peer {
	struct bm_list link;
	char *name;      /* by which it comes to us, and we speak of it */
	char *address;   /* HOST:PORT */
	char *key;       /* hexadecimal; NULL: it has a certificate */
	char *identity;  /* which is for that name (base/identity.h); NULL: it has a key */
	json_t *receive; /* folders of ours that disks of its may come to; strings */
	json_t *shared;  /* paths and URIs that it may have us open (share.c) */
};

struct peers {
	struct daemon *daemon;
	char *name;                 /* ours, by which we go to others */
	char *listen;               /* ADDRESS:PORT; NULL: nobody comes to us */
	char *bind;                 /* ADDRESS that disks come to; NULL: that of listen */
	char *folder, *keys;        /* STATE/peers, and the file of all keys in it */
	char *acl;                  /* there: who is who, as disks' processes read it */
	char *certificates;         /* --tls-dir; NULL: we have none */
	char *links;                /* STATE/peers/x509: what is in there, as TLS wants it */
	struct bm_list list;        /* struct peer, by name */
	struct bm_rpc *rpc;         /* of those who come */
	struct bm_keyring *keyring; /* NULL: there are no peers */
	bool incomplete;            /* it lacks certificates, which could not be read */
	struct bm_workers *callers[ERRAND_LEVELS]; /* calls to them, and for them, which block */
	struct peer_change *change;                /* files are being written; NULL */
	struct bm_list errands;                    /* calls to them, for calls to us */
	struct bm_list receipts; /* disks that they want to put here, and that are looked at */
};

/* What the command line says; NULL: nothing. */
struct peers_options {
	const char *name, *listen, *bind, *certificates;
};

/* peer.c */
int peers_open(struct daemon *d, const struct peers_options *options, struct bm_error *error);
void peers_close(struct daemon *d);
struct peer *peer_find(const struct peers *p, const char *name);
/* A copy; receive, shared NULL: nothing may come. NULL: no memory. */
struct peer *peer_copy(const struct peer *from);
void peer_free(struct peer *peer); /* NULL is allowed */
int peer_check(const struct peer *peer, struct bm_error *error);
/* A new key, hexadecimal, malloc()ed. */
char *peer_make_key(void);
/* What was written counts from now on; peer is taken over. */
void peer_changed(struct peers *p, struct peer *peer, const char *removed);

/* peer_trust.c */
void peer_trust_use(struct peers *p);
/* For bm_rpc_secure(); arg is the peers. */
struct bm_keyring *peer_trust_keyring(void *arg);
/* Who that is; NULL: none of ours. */
struct peer *peer_of(const struct peers *p, const struct bm_identity *who);
/* How we go to peer; any thread. BM_E_USAGE: we have no certificate. */
struct bm_tls_trust;
int peer_trust_of(const struct peers *p, const struct peer *peer, struct bm_tls_trust *trust,
		  struct bm_error *error);
/* Makes STATE/peers/x509. */
int peer_trust_link(struct peers *p, struct bm_error *error);

/*
 * peer_file.c: all block. Writes what is to be: text is what the files of all shall be, peer the
 * one that is added, or NULL, and then removed is the name of one that goes. Blocks, in any thread.
 */
struct peer_text {
	char *keys, *acl;
};
int peer_write(const struct peers *p, const struct peer *peer, const char *removed,
	       const struct peer_text *text, struct bm_error *error);
/* With peer instead of who has its name, and without removed. false: no memory. */
bool peer_text_make(const struct peers *p, const struct peer *peer, const char *removed,
		    struct peer_text *text);
void peer_text_free(struct peer_text *text);
/* The file by which we prove to be ourselves to that host. malloc()ed. */
char *peer_key_path(const struct peers *p, const char *name);
/* What was cut off is completed. keys: what that comes to; the hosts are known in any case. */
int peer_read_all(struct peers *p, int *keys, struct bm_error *error);

/* peer_port.c */
int peer_listen(struct peers *p, struct bm_error *error);
/* Whether the caller is one of ours, and has said hello; answers when not. */
struct peer *peer_admit(struct peers *p, struct bm_rpc_call *call, bool greeted);
/* A socket that disks come to: *port, or, when that is 0, whichever is free. Its descriptor. */
int peer_listen_data(const struct peers *p, unsigned *port, struct bm_error *error);

/* receive.c: methods of that port; arg is the peers. */
bm_rpc_method method_receive, method_share, method_discard;
/* Whether folder, which has no links any more, is one of those, or in one. Blocks. */
bool receive_allows(const json_t *allowed, const char *folder);
/* No worker has anything of ours any more. */
void receive_close(struct peers *p);

/* space.c: a method of that port. */
bm_rpc_method method_space;

/*
 * share.c. Whether a list may be one that is allowed. find blocks: uri, without links, if the list
 * allows it; -EACCES without touching error if not.
 */
int share_check_list(const json_t *list, struct bm_error *error);
int share_find(const json_t *list, const char *uri, char **found, struct bm_error *error);

/*
 * peer_call.c: blocks; in any thread. A connection to a peer on which a version is agreed on;
 * hello: what it said, the caller's to release.
 */
int peer_connect(const struct peers *p, const struct peer *peer, struct bm_client **client,
		 json_t **hello, struct bm_error *error);
/* from: the address of ours by which data is to leave, which the peer says its own for. Or NULL. */
int peer_connect_from(const struct peers *p, const struct peer *peer, const char *from,
		      struct bm_client **client, json_t **hello, struct bm_error *error);
/* data_host, of a peer that was connected to so; and whether data for there leaves by from. */
char *peer_data_host_from(const struct peer *peer, const char *from, const json_t *hello,
			  struct bm_error *error);
/* Whether what the peer has proven itself by is for that address, too, where data goes to. */
int peer_covers(const struct peer *peer, const struct bm_client *client, const char *host,
		struct bm_error *error);
/* Once more with the rest: connects, calls, closes. limit: ns that the answer may take. */
int peer_ask(const struct peers *p, const struct peer *peer, const char *method, json_t *params,
	     uint64_t limit, json_t **result, struct bm_error *error);
/* How it is reached: as peer.check tells it (docs/protocol.md). from: as above.
 * briefly: with a few megabytes. */
int peer_measure(const struct peers *p, const struct peer *peer, const char *from, bool briefly,
		 json_t **result, struct bm_error *error);
/* Where a peer that has said hello takes disks' data. malloc()ed; NULL: no memory. */
char *peer_data_host(const struct peer *peer, const json_t *hello);

/* peer_admin.c: methods of the control socket; arg is the daemon. */
bm_rpc_method method_peer_add, method_peer_allow, method_peer_pair, method_peer_remove,
	method_peer_list, method_peer_check;
/* The peer that params name; answers and returns NULL when there is none. */
struct peer *peer_wanted(struct peers *p, struct bm_rpc_call *call, json_t *params,
			 const char *member);
/* No worker has anything of ours any more. */
void peer_admin_close(struct peers *p);

/*
 * A call to a peer, for a call to us: run() is called in a worker, sets result or fails; the call
 * (NULL: nobody waits) is answered with that. params is the caller's to have taken a reference to.
 */
struct peer_errand {
	struct bm_work work;
	struct bm_list link;
	struct bm_rpc_call *call;
	struct peer *peer; /* a copy */
	const struct peers *peers;
	json_t *params;
	int (*run)(struct peer_errand *errand);
	const char *arg; /* run()'s */
	json_t *result;
	int failed;
	struct bm_error error;
};
/* Answers the call, too, when it cannot be begun. */
void peer_errand_begin(struct peers *p, struct bm_rpc_call *call, const struct peer *peer,
		       json_t *params, int (*run)(struct peer_errand *errand), const char *arg,
		       enum errand_level level);

/* remote.c: methods of the control socket; arg is the daemon. */
bm_rpc_method method_remote_create, method_remote_share, method_remote_remove, method_remote_keep,
	method_remote_space;
/*
 * Where the errand's peer serves what answer says (path, name, port, address), as any NBD client
 * understands it. Asks the peer; blocks. malloc()ed; NULL: it cannot be reached there.
 */
char *remote_uri(struct peer_errand *errand, const json_t *answer);

/* pass.c: methods of the control socket, whose arg is the daemon; and of the port for hosts. */
bm_rpc_method method_remote_yield, method_remote_arm, method_remote_take, method_received;
bm_rpc_method method_yield, method_arm, method_take;

#endif
