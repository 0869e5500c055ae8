/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD protocol as bytes: its numbers and the layouts of its fixed headers, after proto.md. All
 * members are big-endian on the wire; they are copied in and out whole (wire.h), never cast.
 */
#ifndef NBD_SERVER_PROTO_H
#define NBD_SERVER_PROTO_H

#include <assert.h>
#include <stdint.h>

/* "Newstyle negotiation" */
#define NBD_MAGIC              0x4e42444d41474943u /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC       0x49484156454f5054u /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9u

/* "Handshake flags" and "Client flags": the same bits both ways */
#define NBD_FIXED_NEWSTYLE 1u
#define NBD_NO_ZEROES      2u

enum { NBD_ZEROES = 124 /* reserved bytes after EXPORT_NAME's answer */ };

/* "Option types" */
enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
	NBD_OPT_EXTENDED_HEADERS = 11,
};

/* "Option reply types" */
#define NBD_REP_ACK                 1u
#define NBD_REP_SERVER              2u
#define NBD_REP_INFO                3u
#define NBD_REP_META_CONTEXT        4u
#define NBD_REP_ERR_UNSUP           0x80000001u
#define NBD_REP_ERR_POLICY          0x80000002u
#define NBD_REP_ERR_INVALID         0x80000003u
#define NBD_REP_ERR_TLS_REQD        0x80000005u
#define NBD_REP_ERR_UNKNOWN         0x80000006u
#define NBD_REP_ERR_TOO_BIG         0x80000009u
#define NBD_REP_ERR_EXT_HEADER_REQD 0x8000000au

enum nbd_info {
	NBD_INFO_EXPORT = 0,
	NBD_INFO_NAME = 1,
	NBD_INFO_DESCRIPTION = 2,
	NBD_INFO_BLOCK_SIZE = 3,
};

/* "Transmission flags" */
#define NBD_FLAG_HAS_FLAGS            (1u << 0)
#define NBD_FLAG_READ_ONLY            (1u << 1)
#define NBD_FLAG_SEND_FLUSH           (1u << 2)
#define NBD_FLAG_SEND_FUA             (1u << 3)
#define NBD_FLAG_ROTATIONAL           (1u << 4)
#define NBD_FLAG_SEND_TRIM            (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES    (1u << 6)
#define NBD_FLAG_SEND_DF              (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN       (1u << 8)
#define NBD_FLAG_SEND_CACHE           (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO       (1u << 11)
#define NBD_FLAG_BLOCK_STATUS_PAYLOAD (1u << 12)

/* "Request message" and "Request types" */
#define NBD_REQUEST_MAGIC          0x25609513u
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u

enum nbd_command {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_CACHE = 5,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
	NBD_COMMANDS
};

/* "Command flags" */
#define NBD_CMD_FLAG_FUA         (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE     (1u << 1)
#define NBD_CMD_FLAG_DF          (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE     (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO   (1u << 4)
#define NBD_CMD_FLAG_PAYLOAD_LEN (1u << 5)
#define NBD_CMD_FLAG_COMPRESSED  (1u << 15) /* not the standard's: docs/nbd.md */

/* "Simple reply message", "Structured reply chunk message", "Extended reply chunk message" */
#define NBD_SIMPLE_REPLY_MAGIC     0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REPLY_MAGIC   0x6e8a278cu
#define NBD_REPLY_FLAG_DONE        1u

enum nbd_chunk {
	NBD_CHUNK_NONE = 0,
	NBD_CHUNK_OFFSET_DATA = 1,
	NBD_CHUNK_BLOCK_STATUS = 5,
	NBD_CHUNK_BLOCK_STATUS_EXT = 6,
	NBD_CHUNK_ERROR = 0x8001,
	NBD_CHUNK_ERROR_OFFSET = 0x8002,
};

/* "Error values" */
enum nbd_error {
	NBD_EPERM = 1,
	NBD_EIO = 5,
	NBD_EINVAL = 22,
	NBD_ENOSPC = 28,
	NBD_EOVERFLOW = 75,
	NBD_ENOTSUP = 95,
	NBD_ESHUTDOWN = 108,
};

enum {
	NBD_MAX_STRING = 4096, /* "Conventions": a string MUST be no longer */
	NBD_CONTEXT_ID = 1,    /* of base:allocation; those of others are larger */
};

struct nbd_wire_greeting {
	uint64_t magic, option_magic;
	uint16_t flags;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_greeting) == 18, "greeting");

struct nbd_wire_option {
	uint64_t magic;
	uint32_t option, length;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_option) == 16, "option");

struct nbd_wire_option_reply {
	uint64_t magic;
	uint32_t option, type, length;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_option_reply) == 20, "option reply");

struct nbd_wire_export {
	uint64_t size;
	uint16_t flags;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_export) == 10, "export");

struct nbd_wire_request {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset; /* the cookie is opaque: it goes back as it came */
	uint32_t length;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_request) == 28, "request");

struct nbd_wire_extended_request {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint64_t length; /* of the payload with PAYLOAD_LEN, else of the range */
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_extended_request) == 32, "extended request");

struct nbd_wire_simple {
	uint32_t magic, error;
	uint64_t cookie;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_simple) == 16, "simple reply");

struct nbd_wire_chunk {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie;
	uint32_t length;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_chunk) == 20, "structured reply chunk");

struct nbd_wire_extended_chunk {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset; /* both of the request */
	uint64_t length;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_extended_chunk) == 32, "extended reply chunk");

struct nbd_wire_extent {
	uint32_t length, flags;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_extent) == 8, "block status descriptor");

struct nbd_wire_extended_extent {
	uint64_t length, flags;
} __attribute__((packed));
static_assert(sizeof(struct nbd_wire_extended_extent) == 16, "extended descriptor");

#endif
