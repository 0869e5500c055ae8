// SPDX-License-Identifier: BSD-3-Clause
/*
 * The target: pages into RAM, the devices' state to load(), answers back. When it has LOADED the
 * pipe is nothing to it any more: whether it ever runs is for an order to say.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/buf.h"
#include "blockmirror/ram/precopy_inside.h"
#include "blockmirror/ram/wire.h"

static void say(struct bm_precopy *p, uint8_t kind, const void *data, size_t length)
{
	/* Without memory for an answer there is none; the source does not wait for ever. */
	if (!bm_pipe_message(p->pipe, kind, data, length))
		bm_pipe_push(p->pipe);
}

/* The source says it to whoever moves the machine; here it is kept for status. */
static void refuse(struct bm_precopy *p, const struct bm_error *error)
{
	char text[sizeof(error->text) + 32];

	p->error = *error;
	snprintf(text, sizeof(text), "%s %s", bm_code_name(error->code), error->text);
	say(p, BM_ANSWER_REFUSED, text, strlen(text));
}

static int same_regions(const struct bm_precopy *p, json_t *theirs, struct bm_error *error)
{
	const struct bm_precopy_machine *m = &p->machine;
	json_int_t size;
	const char *name;

	if (json_array_size(theirs) != m->count)
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "the machine has %zu regions of RAM there, %u here",
			       json_array_size(theirs), m->count);
	for (unsigned i = 0; i < m->count; i++) {
		name = "";
		size = 0;
		json_unpack(json_array_get(theirs, i), "{s:s s:I}", "name", &name, "size", &size);
		if (strcmp(name, m->regions[i].name) || (uint64_t)size != m->regions[i].size)
			return bm_fail(error, BM_E_UNSUPPORTED,
				       "region %u of the machine's RAM is %s of %lld bytes there, "
				       "%s of %llu here",
				       i, name, (long long)size, m->regions[i].name,
				       (unsigned long long)m->regions[i].size);
	}
	return 0;
}

static int same_machine(const struct bm_precopy *p, json_t *theirs, struct bm_error *error)
{
	const struct bm_precopy_machine *m = &p->machine;
	const char *move = "", *machine = "";
	int v = 0, version = 0, page = 0;
	json_t *regions = NULL;

	if (json_unpack(theirs, "{s:i s:s s:s s:i s:i s:o}", "v", &v, "move", &move, "machine",
			&machine, "version", &version, "page", &page, "regions", &regions) ||
	    v != 1)
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "what it says of its machine cannot be understood here");
	if (strcmp(move, p->move))
		return bm_fail(error, BM_E_USAGE, "the move is %s there, %s here", move, p->move);
	if (strcmp(machine, m->name))
		return bm_fail(error, BM_E_UNSUPPORTED, "the machine is a %s there, a %s here",
			       machine, m->name);
	if (version < 0 || (uint32_t)version < m->oldest || (uint32_t)version > m->version)
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "the state of a %s has version %d there; here %u to %u are known",
			       machine, version, m->oldest, m->version);
	if (page != (int)BM_RAM_PAGE)
		return bm_fail(error, BM_E_UNSUPPORTED, "pages have %d bytes there, %u here", page,
			       BM_RAM_PAGE);
	return same_regions(p, regions, error);
}

static void hear_machine(struct bm_precopy *p, const uint8_t *data, size_t length)
{
	json_t *theirs = json_loadb((const char *)data, length, 0, NULL);
	struct bm_error error;

	p->fits = !same_machine(p, theirs, &error);
	json_decref(theirs);
	if (p->fits)
		say(p, BM_ANSWER_MACHINE, NULL, 0);
	else
		refuse(p, &error);
}

static void hear_state(struct bm_precopy *p, const uint8_t *data, size_t length)
{
	struct bm_error error;
	int r;

	bm_fail(&error, BM_E_IO, "the state of its devices cannot be loaded");
	r = p->ops->load(p->arg, bm_get32(data), data + 4, length - 4, &error);
	if (r < 0) {
		refuse(p, &error);
		return;
	}
	bm_precopy_enter(p, BM_PRECOPY_LOADED);
	say(p, BM_ANSWER_LOADED, NULL, 0);
}

static int message(void *arg, uint8_t kind, const uint8_t *data, size_t length,
		   struct bm_error *error)
{
	struct bm_precopy *p = arg;
	bool receiving = p->state == BM_PRECOPY_RECEIVING;

	if (kind == BM_SAY_MACHINE && receiving && !p->fits)
		hear_machine(p, data, length);
	else if (kind == BM_SAY_ROUND && receiving && p->fits && length == 4)
		say(p, BM_ANSWER_ROUND, data, length);
	else if (kind == BM_SAY_STATE && receiving && p->fits && length >= 4)
		hear_state(p, data, length);
	else
		return bm_fail(error, BM_E_UNREACHABLE,
			       "the source says %u (%zu bytes), which nobody expects", kind,
			       length);
	return 0;
}

static int page(void *arg, unsigned region, uint64_t index, const uint8_t *data,
		struct bm_error *error)
{
	struct bm_precopy *p = arg;
	const struct bm_ram_region *r =
		region < p->machine.count ? &p->machine.regions[region] : NULL;
	uint8_t *to;

	if (!p->fits || p->state != BM_PRECOPY_RECEIVING || !r || index >= r->size / BM_RAM_PAGE)
		return bm_fail(error, BM_E_UNREACHABLE,
			       "the source sends page %llu of region %u, which is none of ours",
			       (unsigned long long)index, region);
	to = r->host + index * BM_RAM_PAGE;
	/* Memory that nobody has touched stays so: it costs nothing. */
	if (!bm_is_zero(data, BM_RAM_PAGE) || !bm_is_zero(to, BM_RAM_PAGE))
		memcpy(to, data, BM_RAM_PAGE);
	p->received++;
	return 0;
}

static void failed(void *arg, const struct bm_error *error)
{
	struct bm_precopy *p = arg;

	bm_precopy_close_pipe(p);
	if (p->state != BM_PRECOPY_RECEIVING)
		return;
	if (!p->error.code)
		p->error = *error;
	bm_precopy_enter(p, BM_PRECOPY_WAITING);
}

int bm_precopy_receive(struct bm_precopy *p, const char *path, unsigned connections,
		       struct bm_error *error)
{
	static const struct bm_pipe_ops ops = {NULL, page, message, failed};
	int r = bm_pipe_open(p->loop, path, connections, p->move, false, &ops, p, &p->pipe, error);

	if (r < 0)
		return r;
	p->fits = false;
	p->received = 0;
	p->error = (struct bm_error){0};
	bm_precopy_enter(p, BM_PRECOPY_RECEIVING);
	return 0;
}
