/* SPDX-License-Identifier: BSD-3-Clause */
/* What a role does to which request, as a table. */
#include "blockmirror/disk/gate.h"

#include <errno.h>
#include <stdlib.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/later.h"

enum act {
	PASS,
	FINE,   /* answered: there is nothing to do */
	REFUSE, /* EPERM, and the host is told */
	ASK,    /* held, and the host is told */
	HOLD,
	END, /* ESHUTDOWN, which lets a VMM quit */
};
enum kind { LOOKS, CHANGES, FLUSHES, KINDS };

/*
 * A standby flushes: its guest may have come from the other host, with writes that were
 * acknowledged there, and be told that they are durable here. A fenced disk flushes: what was
 * acknowledged before the fence must be durable when its guest says so, also when the move comes to
 * nothing. A retired one has nothing any more that it could flush, and a VMM that was stopped
 * flushes before it quits.
 */
static const enum act table[GATE_ROLES][KINDS] = {
	[GATE_ACTIVE] = {[LOOKS] = PASS, [CHANGES] = PASS, [FLUSHES] = PASS},
	[GATE_STANDBY] = {[LOOKS] = PASS, [CHANGES] = REFUSE, [FLUSHES] = PASS},
	[GATE_ARMED] = {[LOOKS] = PASS, [CHANGES] = ASK, [FLUSHES] = PASS},
	[GATE_WAITING] = {[LOOKS] = HOLD, [CHANGES] = HOLD, [FLUSHES] = HOLD},
	[GATE_FENCED] = {[LOOKS] = HOLD, [CHANGES] = HOLD, [FLUSHES] = PASS},
	[GATE_RETIRED] = {[LOOKS] = END, [CHANGES] = END, [FLUSHES] = FINE},
};
static const enum kind kinds[BM_OPS] = {
	[BM_READ] = LOOKS,   [BM_EXTENTS] = LOOKS, [BM_WRITE] = CHANGES,
	[BM_ZERO] = CHANGES, [BM_TRIM] = CHANGES,  [BM_FLUSH] = FLUSHES,
};
static const char *const names[] = {
	[GATE_ACTIVE] = "active",   [GATE_STANDBY] = "standby", [GATE_ARMED] = "armed",
	[GATE_WAITING] = "waiting", [GATE_FENCED] = "fenced",   [GATE_RETIRED] = "retired",
};

struct gate {
	struct bm_dev dev;
	struct bm_dev *lower;
	const struct gate_host *host;
	void *arg;
	enum gate_role role;
	bool cancelled;
	struct bm_list held;        /* in the order of arrival */
	unsigned n_held, n_changes; /* in it, and those that change something */
	uint64_t since;
	struct bm_later later;
};

static struct gate *of(struct bm_dev *dev)
{
	return bm_container(dev, struct gate, dev);
}

const char *gate_role_name(enum gate_role role)
{
	return names[role];
}

static void hold(struct gate *g, struct bm_request *rq)
{
	g->n_changes += kinds[rq->op] == CHANGES;
	if (!g->n_held++)
		g->since = bm_loop_now(g->dev.loop);
	bm_list_append(&g->held, &rq->link);
}

static void gate_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct gate *g = of(dev);
	enum act act = table[g->role][kinds[rq->op]];

	dev->geometry.flags = g->lower->geometry.flags;
	if (act == PASS) {
		bm_submit(g->lower, rq);
	} else if (g->cancelled || act == END) {
		bm_later_done(&g->later, rq, -ESHUTDOWN);
	} else if (act == FINE) {
		bm_later_done(&g->later, rq, 0);
	} else if (act == REFUSE) {
		bm_later_done(&g->later, rq, -EPERM);
		g->host->refused(g->arg);
	} else {
		hold(g, rq);
		if (act == ASK)
			g->host->wanted(g->arg);
	}
}

/* What was held is as if it came now. What is held again stays in its order. */
static void look_again(struct gate *g)
{
	struct bm_list batch, *node;

	bm_list_init(&batch);
	bm_list_move_all(&batch, &g->held);
	g->n_held = g->n_changes = 0;
	while ((node = bm_list_take(&batch)))
		gate_submit(&g->dev, bm_container(node, struct bm_request, link));
}

void gate_set_role(struct bm_dev *dev, enum gate_role role)
{
	struct gate *g = of(dev);
	uint64_t since = g->since;

	if (g->role == role)
		return;
	g->role = role;
	look_again(g);
	if (g->n_held)
		g->since = since;
}

enum gate_role gate_get_role(const struct bm_dev *dev)
{
	return bm_container(dev, const struct gate, dev)->role;
}

unsigned gate_held(const struct bm_dev *dev)
{
	return bm_container(dev, const struct gate, dev)->n_held;
}

unsigned gate_held_changes(const struct bm_dev *dev)
{
	return bm_container(dev, const struct gate, dev)->n_changes;
}

uint64_t gate_held_since(const struct bm_dev *dev)
{
	const struct gate *g = bm_container(dev, const struct gate, dev);

	return g->n_held ? g->since : 0;
}

static void gate_start(struct bm_dev *dev)
{
	bm_later_init(&of(dev)->later, dev->loop);
}

static void gate_cancel(struct bm_dev *dev)
{
	struct gate *g = of(dev);

	g->cancelled = true;
	look_again(g);
	bm_dev_cancel(g->lower);
}

static void gate_close(struct bm_dev *dev)
{
	struct gate *g = of(dev);

	bm_task_cancel(
		&g->later.task); /* as with the order device, what is in flight is forgotten */
	free(g);
}

static const struct bm_dev_ops ops = {
	.name = "gate",
	.start = gate_start,
	.submit = gate_submit,
	.cancel = gate_cancel,
	.close = gate_close,
};

struct bm_dev *gate_new(struct bm_dev *lower, const struct gate_host *host, void *arg)
{
	struct gate *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	*g = (struct gate){.dev = {.ops = &ops, .geometry = lower->geometry},
			   .lower = lower,
			   .host = host,
			   .arg = arg};
	bm_list_init(&g->held);
	return &g->dev;
}
