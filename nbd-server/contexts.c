/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Metadata contexts (proto.md, "Metadata querying"): what an export offers, what a query names, and
 * what a client has selected. Selected ones are known by their ids alone: a context may go away
 * while clients are connected, and its place in the table may be taken by another one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "nbd-server/internal.h"

static_assert(NBD_MAX_CONTEXTS + 2 < 32, "a bit for each");

int nbd_contexts_init(struct nbd_offer *offer)
{
	char *name = strdup("base:allocation");

	if (!name)
		return -ENOMEM;
	offer->context[0] = (struct nbd_context){name, offer->dev, NBD_CONTEXT_ID};
	offer->contexts = 1;
	return 0;
}

void nbd_contexts_fini(struct nbd_offer *offer)
{
	for (unsigned i = 0; i < offer->contexts; i++)
		free(offer->context[i].name);
	offer->contexts = 0;
}

/*
 * A query names the context whose name it is. One that ends with a colon names all that begin with
 * it, but only in LIST_META_CONTEXT: SET selects nothing by it. What nobody here knows names
 * nothing: other namespaces may exist elsewhere.
 */
bool nbd_context_named(const char *name, const uint8_t *query, size_t length, bool listing)
{
	size_t whole = strlen(name);

	if (length > whole || memcmp(name, query, length) != 0)
		return false;
	return length == whole || (listing && length && query[length - 1] == ':');
}

uint32_t nbd_contexts_named(const struct nbd_offer *offer, const uint8_t *query, size_t length,
			    bool listing)
{
	uint32_t named = 0;

	for (unsigned i = 0; i < offer->contexts; i++)
		if (!query || nbd_context_named(offer->context[i].name, query, length, listing))
			named |= 1u << i;
	return named;
}

void nbd_contexts_select(struct nbd_conn *conn, const struct nbd_offer *offer, uint32_t chosen,
			 const struct nbd_session_id *session, bool compressed)
{
	struct nbd_selection *selected = &conn->selected;

	*selected = (struct nbd_selection){0};
	for (unsigned i = 0; i < offer->contexts; i++)
		if (chosen >> i & 1)
			selected->id[selected->count++] = offer->context[i].id;
	if (session && nbd_session_join(conn, offer, session))
		selected->id[selected->count++] = NBD_SESSION_CONTEXT;
	if (compressed && nbd_compressed_select(conn))
		selected->id[selected->count++] = NBD_COMPRESSED_CONTEXT;
	if (selected->count)
		selected->offer = offer;
}

struct bm_dev *nbd_contexts_dev(const struct nbd_offer *offer, uint32_t id)
{
	for (unsigned i = 0; i < offer->contexts; i++)
		if (offer->context[i].id == id)
			return offer->context[i].dev;
	return NULL;
}

/* Adding and removing */

static struct nbd_offer *find_offer(struct nbd_server *server, const char *name)
{
	for (unsigned i = 0; i < server->offers; i++)
		if (!strcmp(server->offer[i].name, name))
			return &server->offer[i];
	return NULL;
}

static struct nbd_context *find_context(struct nbd_offer *offer, const char *name)
{
	for (unsigned i = 0; i < offer->contexts; i++)
		if (!strcmp(offer->context[i].name, name))
			return &offer->context[i];
	return NULL;
}

/* "The name MUST consist of a namespace, followed by a colon, followed by a leaf-name" */
static bool well_formed(const char *name)
{
	const char *colon = strchr(name, ':');

	return colon && colon > name && name[strlen(name) - 1] != ':' &&
	       strlen(name) <= NBD_MAX_NAME;
}

int nbd_server_add_context(struct nbd_server *server, const char *export, const char *name,
			   struct bm_dev *dev, struct bm_error *error)
{
	struct nbd_offer *offer = find_offer(server, export);
	char *copy;

	if (!offer)
		return bm_fail(error, BM_E_USAGE, "there is no export \"%s\"", export);
	if (!well_formed(name))
		return bm_fail(error, BM_E_USAGE, "\"%s\" is no name of a metadata context", name);
	if (find_context(offer, name))
		return bm_fail(error, BM_E_USAGE, "export \"%s\" has a context \"%s\" already",
			       export, name);
	if (offer->contexts == NBD_MAX_CONTEXTS)
		return bm_fail(error, BM_E_USAGE, "export \"%s\": more than %d contexts", export,
			       NBD_MAX_CONTEXTS);
	if (dev->geometry.block != 1 || dev->geometry.size < offer->dev->geometry.size)
		return bm_fail(error, BM_E_USAGE,
			       "context \"%s\": the device does not answer for every byte", name);
	copy = strdup(name);
	if (!copy)
		return bm_fail_errno(error, ENOMEM, "context \"%s\"", name);
	offer->context[offer->contexts++] = (struct nbd_context){copy, dev, ++server->last_context};
	return 0;
}

void nbd_server_set_devs(struct nbd_server *server, const char *export, struct bm_dev *dev,
			 const char *name, struct bm_dev *context_dev)
{
	struct nbd_offer *offer = find_offer(server, export);
	struct nbd_context *context = find_context(offer, name);

	offer->dev = offer->context[0].dev = dev;
	if (context)
		context->dev = context_dev;
}

void nbd_server_remove_context(struct nbd_server *server, const char *export, const char *name)
{
	struct nbd_offer *offer = find_offer(server, export);
	struct nbd_context *context = offer ? find_context(offer, name) : NULL;

	if (!context || context == offer->context)
		return;
	free(context->name);
	memmove(context, context + 1,
		(size_t)(offer->context + --offer->contexts - context) * sizeof(*context));
}
