/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of this folder share: the server, its connections, and the requests of these.
 *
 * A connection reads its input as a state machine (enum nbd_state). What a client asks for is a
 * request; what goes to the device, and back to the client, is a piece. Most requests are one
 * piece. A long READ or WRITE is cut, each piece of at most BM_BUF_MAX with a buffer of its own.
 *
 *	free -> parser (a WRITE's is filled) -> device -> [READ: waits for its turn] -> out -> free
 *
 * All requests and pieces are in fixed arrays of their connection. When no piece is free or the
 * connection's pool of buffers is used up, the parser pauses, and goes on when a piece comes back.
 * Pieces come back without the parser's help, so that this always ends.
 */
#ifndef NBD_SERVER_INTERNAL_H
#define NBD_SERVER_INTERNAL_H

#include <sys/stat.h>

#include "blockmirror/base/transport.h"
#include "blockmirror/base/unix_socket.h"
#include "nbd-server/proto.h"
#include "nbd-server/server.h"
#include "nbd-server/wire.h"

enum {
	NBD_PIECES = 128,
	NBD_REQUESTS = NBD_PIECES + 1, /* one has no piece yet: the one the parser is at */
	NBD_INPUT = 64 << 10,          /* receive buffer; also the longest option data we look at */
	NBD_HEADER = 128,              /* room for any reply header, with an error's text */
	NBD_MAX_LISTENERS = 16,
	NBD_LONGEST = 64 << 20, /* bytes of a READ or WRITE */
	NBD_SESSIONS = 64,      /* that are remembered */
	NBD_SESSION_NAME = 64,  /* bytes */
	NBD_SESSION_TEXT = 104,
};

/* The ids of contexts of which there is nothing to tell: for a session, for compressed writes. */
#define NBD_SESSION_CONTEXT    UINT32_MAX
#define NBD_COMPRESSED_CONTEXT (UINT32_MAX - 1)

#define NBD_COMPRESSED_NAME "blockmirror:zstd"
enum {
	NBD_COMPRESSED_HEAD = 4,          /* the data's length */
	NBD_COMPRESSED_MOST = BM_BUF_MAX, /* bytes of a payload, and of its data */
};

struct nbd_conn;
struct nbd_compressed;
struct bm_keyring;

/* What was negotiated: which headers requests and replies have. Later ones can do more. */
enum nbd_mode {
	NBD_SIMPLE,
	NBD_STRUCTURED,
	NBD_EXTENDED /* requests, too, and no simple replies */
};

struct nbd_request {
	struct bm_list link; /* free */
	uint16_t command, flags;
	uint64_t cookie; /* as it came */
	uint64_t offset, at, length;
	uint64_t payload;  /* bytes that follow the header */
	uint32_t contexts; /* BLOCK_STATUS: bit n: conn->selected.id[n] is still to be asked */
	unsigned open;     /* pieces at a device, and one for the parser while it is at it */
	int error;         /* the first one, -errno */
	const char *text;  /* why; NULL: what error says */

	/* READ answered by a simple reply, whose data cannot be taken back (reply.c) */
	struct bm_list pieces; /* not sent yet, in the order of their offsets */
	bool streams, started;
};

struct nbd_piece {
	struct bm_request rq;
	struct nbd_conn *conn;
	struct nbd_request *request; /* NULL: of the handshake */
	struct bm_list link;         /* free, the request's, out or held */
	struct bm_buf *buf;
	struct bm_extents extents;
	uint32_t context;                  /* BLOCK_STATUS: its id */
	size_t filled;                     /* WRITE: bytes received */
	bool ready;                        /* READ: the data is there */
	size_t header_length, data_length; /* to be sent: header, then buf's data */
	uint8_t header[NBD_HEADER];
};

enum nbd_state {
	NBD_FLAGS, /* the handshake: client flags */
	NBD_OPTION,
	NBD_OPTION_DATA,
	NBD_OPTION_SKIP,
	NBD_TLS_ACK,      /* STARTTLS was acknowledged; TLS begins when the client has got that */
	NBD_TLS_HELLO,    /* the TLS handshake */
	NBD_REQUEST,      /* transmission: a request's header */
	NBD_PAYLOAD,      /* of a WRITE */
	NBD_COMPRESSED,   /* the same, compressed */
	NBD_PAYLOAD_SKIP, /* of what was refused */
	NBD_QUERY,        /* the payload of a BLOCK_STATUS */
	NBD_READING,      /* a READ is cut into pieces */
	NBD_STATUS,       /* a BLOCK_STATUS is a piece per metadata context */
	NBD_OTHER,        /* a request that is one piece at once */
	NBD_ENDED,        /* nothing more is read; what is in flight is finished and answered */
	NBD_DEAD          /* closed; freed when the device has let go of all requests */
};

/* What a step of the parser needs next. */
enum nbd_step { NBD_GO_ON, NBD_MORE_INPUT, NBD_WAIT };

/* "Metadata querying": what BLOCK_STATUS tells of an export. dev answers BM_EXTENTS. */
struct nbd_context {
	char *name;
	struct bm_dev *dev;
	uint32_t
		id; /* never given twice, so that one that went away is not taken for a later one */
};

struct nbd_offer {
	char *name, *description;
	struct bm_dev *dev;
	bool read_only;
	unsigned max_clients; /* 0: no limit of its own */
	unsigned contexts;
	struct nbd_context context[NBD_MAX_CONTEXTS]; /* the first one is base:allocation */
};

/* What SET_META_CONTEXT has selected. */
struct nbd_selection {
	const struct nbd_offer *offer; /* NULL: nothing */
	unsigned count;
	uint32_t id[NBD_MAX_CONTEXTS + 2]; /* with those that tell nothing */
};

/* A writer that connects again and again (session.c). */
struct nbd_session {
	const struct nbd_offer *offer; /* NULL: a free place */
	char name[NBD_SESSION_NAME + 1];
	uint64_t newest;  /* epoch that was seen */
	unsigned members; /* connections, also those that have only to end */
	uint64_t left;    /* when the last one left, in nbd_server.sessions_left */
};

struct nbd_session_id {
	char name[NBD_SESSION_NAME + 1];
	uint64_t epoch;
};

struct nbd_conn {
	struct nbd_server *server;
	struct bm_list link;
	struct bm_transport transport;
	struct bm_watch in, out_watch; /* the second one only where there are two descriptors */
	struct bm_pool *pool;
	struct bm_buf_waiter memory;
	struct bm_task send, resume, more, end;
	struct bm_timer handshake;
	char peer[NBD_PEER_TEXT];

	enum nbd_state state;
	bool paused;        /* the parser waits for a piece or for memory */
	bool blocked;       /* the client does not take what is in out */
	size_t start, used; /* the part of input that is not parsed yet */

	bool fixed, no_zeroes;
	enum nbd_mode mode;
	struct bm_identity *identity; /* NULL: the client has proven nothing */
	enum nbd_access access;       /* to what nbd_conn_find() found last */
	bool read_only;               /* for this client */
	unsigned options;             /* so far */
	uint32_t option, skip;        /* the one being read; bytes of it, or of payload, to drop */
	struct nbd_selection selected;
	const struct nbd_offer *offer;     /* the one that was chosen */
	struct nbd_session *session;       /* NULL: of none */
	uint64_t epoch;                    /* in it */
	struct nbd_compressed *compressed; /* NULL: its writes are not */

	struct nbd_request *current; /* the parser is at it */
	struct nbd_piece *filling;   /* its payload goes there */
	struct nbd_request *stream;  /* see reply.c */
	unsigned busy;               /* requests not free */
	unsigned at_device;          /* pieces not done */
	struct bm_list out;          /* pieces to be sent */
	struct bm_list held;         /* to be sent after stream */
	size_t sent;                 /* bytes of the first one in out */
	struct bm_list free_requests, free_pieces;
	uint64_t requests, bytes_read, bytes_written;
	uint64_t seen, active; /* limits.c: requests when it looked last; when it saw one last */

	struct nbd_request request[NBD_REQUESTS];
	struct nbd_piece piece[NBD_PIECES];
	uint8_t input[NBD_INPUT];
};

struct nbd_listener {
	struct nbd_server *server;
	struct bm_watch watch;
	struct bm_unix_listener socket; /* without a path when we did not make it, or it is TCP */
};

struct nbd_server {
	struct bm_loop *loop;
	struct nbd_server_options options;
	enum nbd_tls_mode tls;
	struct bm_keyring *keyring; /* NULL: there is no TLS */
	struct bm_list conns;
	unsigned connected;
	uint64_t changes; /* answered requests that may have changed something */
	bool stopping;
	bool frozen;                                /* handover.c: no connection begins anything */
	void (*froze)(void *arg, const char *busy); /* NULL: nobody waits for it */
	void *froze_arg;
	struct bm_task freeze_look;
	struct bm_timer freeze_timer;
	struct bm_timer stop_timer, accept_timer, idle_timer;
	struct bm_task stopped;
	void (*done)(void *arg);
	void *done_arg;
	unsigned offers, listeners;
	uint32_t last_context; /* the id given last */
	uint64_t sessions_left;
	struct nbd_session session[NBD_SESSIONS];
	struct nbd_offer offer[NBD_MAX_EXPORTS];
	struct nbd_listener listener[NBD_MAX_LISTENERS];
};

/* server.c */

const struct nbd_offer *nbd_offer_find(const struct nbd_server *server, const uint8_t *name,
				       size_t length);
void nbd_server_left(struct nbd_conn *conn); /* the last thing that is done to conn */
/* As nbd_offer_find(), among what the client may open; sets conn->access. */
const struct nbd_offer *nbd_conn_find(struct nbd_conn *conn, const uint8_t *name, size_t length);
/* What the client may do with offer. */
enum nbd_access nbd_conn_access(const struct nbd_conn *conn, const struct nbd_offer *offer);

/* limits.c: what clients may take, and what they have taken */

void nbd_limits_init(struct nbd_server *server); /* its options are complete afterwards */
void nbd_limits_fini(struct nbd_server *server);
/* A client has come. */
void nbd_limits_joined(struct nbd_conn *conn);
/* Whether one more client may open the export. */
bool nbd_limits_admit(const struct nbd_server *server, const struct nbd_offer *offer);

/* contexts.c */

/* base:allocation. Returns 0 or -ENOMEM. */
int nbd_contexts_init(struct nbd_offer *offer);
void nbd_contexts_fini(struct nbd_offer *offer);
/* Whether a query of LIST_ or SET_META_CONTEXT names that context. */
bool nbd_context_named(const char *name, const uint8_t *query, size_t length, bool listing);
/* Those that a query of LIST_ or SET_META_CONTEXT names, a bit each; NULL: the query of all. */
uint32_t nbd_contexts_named(const struct nbd_offer *offer, const uint8_t *query, size_t length,
			    bool listing);
void nbd_contexts_select(struct nbd_conn *conn, const struct nbd_offer *offer, uint32_t chosen,
			 const struct nbd_session_id *session, bool compressed);
/* The device of one that was selected; NULL: it went away. */
struct bm_dev *nbd_contexts_dev(const struct nbd_offer *offer, uint32_t id);

/* session.c */

/* Whether the query of SET_META_CONTEXT says which session the client is of. */
bool nbd_session_query(const uint8_t *query, size_t length, struct nbd_session_id *id);
/* Older epochs are closed at once. False: there is no place to remember the session in. */
bool nbd_session_join(struct nbd_conn *conn, const struct nbd_offer *offer,
		      const struct nbd_session_id *id);
/* The device has nothing of the connection any more, or it is of another session after all. */
void nbd_session_leave(struct nbd_conn *conn);
/* The name of the context that stands for conn's session: NBD_SESSION_TEXT bytes. */
void nbd_session_text(const struct nbd_conn *conn, char *text);
/* Whether older ones have yet to end. conn is resumed when that may have changed. */
bool nbd_session_waits(const struct nbd_conn *conn);
bool nbd_session_is_old(const struct nbd_conn *conn);

/* compressed.c */

/* Whether the query of SET_META_CONTEXT asks for compressed writes, or that of LIST_ for their
 * name. */
bool nbd_compressed_query(const uint8_t *query, size_t length, bool listing);
/* False: there is no memory for it. */
bool nbd_compressed_select(struct nbd_conn *conn);
void nbd_compressed_deselect(struct nbd_conn *conn); /* twice is once */
uint64_t nbd_compressed_cost(void); /* bytes of a connection that has selected it */
/* Whether the request is a write with a compressed payload that can be taken. */
bool nbd_compressed_expects(const struct nbd_conn *conn, const struct nbd_request *request);
/* Takes input, until there are length bytes of payload: true. */
bool nbd_compressed_take(struct nbd_conn *conn, size_t length);
/* Of the whole payload: the length of the data that it says it is; and the data. False: it is not.
 */
uint32_t nbd_compressed_length(const struct nbd_conn *conn);
bool nbd_compressed_expand(struct nbd_conn *conn, uint8_t *data, size_t length);
void nbd_compressed_drop(struct nbd_conn *conn); /* the next one begins */

/* listen.c */

/* Accepts while there is room for clients. */
void nbd_listen_update(struct nbd_server *server);
void nbd_listen_close(struct nbd_server *server);

/* conn.c: a connection from its first to its last byte */

int nbd_conn_new(struct nbd_server *server, int in, int out, const char *peer);
/* The same for one that was greeted already: nothing is sent, and nothing read yet. */
int nbd_conn_open(struct nbd_server *server, int in, int out, const char *peer,
		  struct nbd_conn **opened);
void nbd_conn_finish(struct nbd_conn *conn); /* reads no more, answers what is in flight, closes */
void nbd_conn_close(struct nbd_conn *conn);  /* now; "hard disconnect" */
/* As close, and logs why: what the client did is against the protocol. */
void nbd_conn_violated(struct nbd_conn *conn, const char *what);
void nbd_conn_send(struct nbd_conn *conn);  /* now, what there is for the client */
void nbd_conn_parse(struct nbd_conn *conn); /* what has come, and lets more come */

/* Parsing: the next length bytes of input, or NULL when they have not come yet; then takes them. */
const uint8_t *nbd_input(const struct nbd_conn *conn, size_t length);
void nbd_input_take(struct nbd_conn *conn, size_t length);
/* Drops input, conn->skip bytes in all. NBD_GO_ON: all of it is gone. */
enum nbd_step nbd_input_skip(struct nbd_conn *conn);

/*
 * A piece of request (NULL: of the handshake) with a buffer of at least size bytes (0: without).
 * NULL: the parser has to wait.
 */
struct nbd_piece *nbd_piece_get(struct nbd_conn *conn, struct nbd_request *request, size_t size);
void nbd_piece_drop_buf(struct nbd_piece *piece);
void nbd_piece_free(struct nbd_piece *piece);
void nbd_piece_send(struct nbd_piece *piece);

/* handshake.c */

void nbd_greet(struct nbd_conn *conn);
enum nbd_step nbd_handshake_step(struct nbd_conn *conn);

/* handover.c */

void nbd_handover_init(struct nbd_server *server);
/* The parser must not begin what comes next. */
bool nbd_handover_holds(const struct nbd_conn *conn);
/* Something has come to an end. */
void nbd_handover_look(struct nbd_server *server);

/* check.c */

struct nbd_command_rule {
	enum bm_op op;
	uint32_t flags;          /* that are allowed */
	uint32_t extended_flags; /* … in sessions with extended headers */
	bool writes;
	int past_end; /* the error of a request that is not within the export */
};
extern const struct nbd_command_rule nbd_commands[NBD_COMMANDS];

/* 0, or the error that the request is answered with; request->text says why. */
int nbd_check(const struct nbd_conn *conn, struct nbd_request *request);
/* Takes which contexts are asked, and about how much, from a BLOCK_STATUS's payload. */
bool nbd_check_query(const struct nbd_conn *conn, struct nbd_request *request,
		     struct nbd_reader *payload);
/* Returns error. */
int nbd_refuse(struct nbd_request *request, int error, const char *text);

/* secure.c: a connection goes over to TLS */

void nbd_secure_begin(struct nbd_conn *conn); /* the client has got the ACK */
void nbd_secure_step(struct nbd_conn *conn);  /* in NBD_TLS_HELLO, when the socket is ready */

/* request.c */

enum nbd_step nbd_request_step(struct nbd_conn *conn);
void nbd_request_free(struct nbd_conn *conn, struct nbd_request *request);
/* The input ended in the middle of the request that the parser is at. */
void nbd_request_abandon(struct nbd_conn *conn);

/* reply.c */

/* All of the request is done, or it failed: piece bears its reply. */
void nbd_reply(struct nbd_piece *piece);
/* A piece of a READ is done. */
void nbd_reply_read(struct nbd_piece *piece, int error);
/* A context's part of a BLOCK_STATUS is done. */
void nbd_reply_status(struct nbd_piece *piece);
/* Whether a READ of so many bytes is too long to be kept until all of it is there. */
bool nbd_reply_streams(const struct nbd_conn *conn, uint64_t length);

#endif
