/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which requests are refused, and how (proto.md, "Command flags", "Error values", and each command
 * under "Request types"). Nothing here reads or sends: the payload of what is refused is
 * request.c's.
 */
#include <errno.h>

#include "nbd-server/internal.h"

/* Longer than what we advertise: some clients do not keep to it, and streaming costs nothing. */
static_assert(NBD_LONGEST > 32 << 20, "what INFO_BLOCK_SIZE advertises is served");

const struct nbd_command_rule nbd_commands[NBD_COMMANDS] = {
	[NBD_CMD_READ] = {BM_READ, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF, 0, false, -EINVAL},
	[NBD_CMD_WRITE] = {BM_WRITE, NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_PAYLOAD_LEN, true, -ENOSPC},
	[NBD_CMD_FLUSH] = {BM_FLUSH, NBD_CMD_FLAG_FUA, 0, false, -EINVAL},
	[NBD_CMD_TRIM] = {BM_TRIM, NBD_CMD_FLAG_FUA, 0, true, -EINVAL},
	[NBD_CMD_CACHE] = {BM_READ, NBD_CMD_FLAG_FUA, 0, false, -EINVAL},
	[NBD_CMD_WRITE_ZEROES] = {BM_ZERO,
				  NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
				  0, true, -ENOSPC},
	[NBD_CMD_BLOCK_STATUS] = {BM_EXTENTS, NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE,
				  NBD_CMD_FLAG_PAYLOAD_LEN, false, -EINVAL},
};

int nbd_refuse(struct nbd_request *request, int error, const char *text)
{
	request->text = text;
	return error;
}

static int check_read(const struct nbd_conn *conn, struct nbd_request *request)
{
	if (request->flags & NBD_CMD_FLAG_DF && conn->mode == NBD_SIMPLE)
		return nbd_refuse(request, -EINVAL, "structured replies were not negotiated");
	if (request->flags & NBD_CMD_FLAG_DF && request->length > BM_BUF_MAX)
		return nbd_refuse(request, -EOVERFLOW, "too long to be read unfragmented");
	return 0;
}

/* What only one kind of request has to fulfil. */
static int check_kind(const struct nbd_conn *conn, struct nbd_request *request)
{
	bool transfers = request->command == NBD_CMD_READ || request->command == NBD_CMD_WRITE;

	if (transfers && request->length > NBD_LONGEST)
		return nbd_refuse(request, -EOVERFLOW, "more than 64 MiB");
	switch (request->command) {
	case NBD_CMD_READ:
		return check_read(conn, request);
	case NBD_CMD_FLUSH:
		if (request->offset || request->length)
			return nbd_refuse(request, -EINVAL, "a flush has no offset and no length");
		break;
	case NBD_CMD_BLOCK_STATUS:
		if (!conn->selected.count)
			return nbd_refuse(request, -EINVAL, "no metadata context was selected");
		if (request->payload) /* nbd_check_query() has not taken it */
			return nbd_refuse(request, -EINVAL, "the payload is no list of contexts");
		if (!request->length)
			return nbd_refuse(request, -EINVAL, "a block status of nothing");
		break;
	default:
		break;
	}
	return 0;
}

/* "Command flags" */
static int check_flags(const struct nbd_conn *conn, struct nbd_request *request)
{
	const struct nbd_command_rule *rule = &nbd_commands[request->command];
	bool extended = conn->mode == NBD_EXTENDED;

	if (request->flags & ~(rule->flags | (extended ? rule->extended_flags : 0)))
		return nbd_refuse(request, -EINVAL, "a flag that the command does not have");
	/* "the flag MUST be set"; without it "there is no payload after the header" */
	if (extended && request->command == NBD_CMD_WRITE &&
	    !(request->flags & NBD_CMD_FLAG_PAYLOAD_LEN))
		return nbd_refuse(request, -EINVAL, "a write without PAYLOAD_LEN");
	return 0;
}

/* "Error values" says which error is whose. */
int nbd_check(const struct nbd_conn *conn, struct nbd_request *request)
{
	const struct nbd_offer *offer = conn->offer;
	const struct bm_geometry *geometry = &offer->dev->geometry;
	const struct nbd_command_rule *rule;
	int r;

	if (request->command >= NBD_COMMANDS)
		return nbd_refuse(request, -EINVAL, "the command is not known");
	rule = &nbd_commands[request->command];
	r = check_flags(conn, request);
	if (r < 0)
		return r;
	if (rule->writes && (conn->read_only || geometry->flags & BM_DEV_READ_ONLY))
		return nbd_refuse(request, -EPERM, "the export is read-only");
	/* By subtraction: the sum may wrap. */
	if (request->offset > geometry->size || request->length > geometry->size - request->offset)
		return nbd_refuse(request, rule->past_end, "beyond the end of the export");
	return check_kind(conn, request);
}

/*
 * "64 bits, effect length; n * 32 bits, list of metacontext ids to use"; duplicate or unknown ids
 * fail. Only ids that were selected are known.
 */
bool nbd_check_query(const struct nbd_conn *conn, struct nbd_request *request, struct nbd_reader *r)
{
	const struct nbd_selection *selected = &conn->selected;
	unsigned which;

	request->length = nbd_read_u64(r);
	request->contexts = 0;
	while (r->left && !r->failed) {
		uint32_t id = nbd_read_u32(r);

		for (which = 0; which < selected->count && selected->id[which] != id; which++)
			;
		if (which == selected->count || request->contexts >> which & 1)
			return false;
		request->contexts |= 1u << which;
	}
	return !r->failed;
}
