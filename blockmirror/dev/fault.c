/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A fault injector around another device, for tests: fault:SPEC;URI
 *
 * SPEC is rules joined by "|", a rule is words joined by ",". The first rule that matches a request
 * and whose turn it is decides. Words that choose the request:
 *
 *	op=read|write|zero|trim|flush|extents    (default: any)
 *	range=START-END     bytes, it touches them
 *	skip=N              let N matching ones pass first
 *	count=N             then act on N of them, and never again
 *	share=P seed=S      act on P percent of them, by chance; the same seed, the same chances
 *	while=PATH          only while that file exists
 *
 * and what happens to it:
 *
 *	error=EIO|ENOSPC|ENOTSUP|EPERM|ENOTCONN  it fails and changes nothing
 *	delay=TIME          it is carried out that much later
 *	short               half of it is carried out, then it fails with EIO
 *	drop                it is never answered, until the device is cancelled
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/units.h"
#include "blockmirror/dev/later.h"
#include "blockmirror/dev/open.h"

enum { MAX_RULES = 16, SLOTS = 256 };
enum action { ACT_PASS, ACT_ERROR, ACT_DELAY, ACT_SHORT, ACT_DROP };

struct rule {
	unsigned ops; /* a bit per enum bm_op; 0: any */
	uint64_t start, end;
	uint64_t skip, count;
	unsigned share;
	uint64_t seed;
	char *while_path;
	enum action action;
	int error;
	uint64_t delay_ns;
};

/* A request that passes through late, or by half. */
struct detour {
	struct bm_request sub;
	struct bm_timer timer;
	struct bm_list link;
	struct fault *fault;
	struct bm_request *rq;
	bool half;
};

struct fault {
	struct bm_dev dev;
	struct bm_dev *lower;
	struct bm_later later;
	struct bm_list free, waiting, dropped;
	bool cancelled;
	unsigned rules;
	struct rule rule[MAX_RULES];
	struct detour slot[SLOTS];
};

/* splitmix64 */
static uint64_t chance(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static bool matches(const struct rule *r, const struct bm_request *rq)
{
	if (r->ops && !(r->ops & 1u << rq->op))
		return false;
	if (r->end &&
	    (rq->op == BM_FLUSH || rq->offset >= r->end || rq->offset + rq->length <= r->start))
		return false;
	return !r->while_path || !access(r->while_path, F_OK);
}

static const struct rule *find_rule(struct fault *f, const struct bm_request *rq)
{
	for (unsigned i = 0; i < f->rules; i++) {
		struct rule *r = &f->rule[i];

		if (!matches(r, rq))
			continue;
		if (r->share && chance(&r->seed) % 100 >= r->share)
			continue;
		if (r->skip) {
			r->skip--;
			continue;
		}
		if (!r->count)
			continue;
		if (r->count != UINT64_MAX)
			r->count--;
		return r;
	}
	return NULL;
}

static void start_detour(struct detour *d)
{
	d->sub.op = d->rq->op;
	d->sub.flags = d->rq->flags;
	d->sub.offset = d->rq->offset;
	d->sub.length = d->half ? d->rq->length / 2 & ~(uint64_t)511 : d->rq->length;
	d->sub.data = d->rq->data;
	d->sub.buf = d->rq->buf;
	d->sub.extents = d->rq->extents;
	bm_submit(d->fault->lower, &d->sub);
}

static void take_detour(struct fault *f, struct bm_request *rq, bool half, uint64_t delay_ns)
{
	struct bm_list *node = bm_list_take(&f->free);
	struct detour *d;

	if (!node) { /* as many as there can be are late already: one more waits for them */
		bm_list_append(&f->waiting, &rq->link);
		return;
	}
	d = bm_container(node, struct detour, link);
	d->rq = rq;
	d->half = half;
	if (!delay_ns || bm_timer_set(f->dev.loop, &d->timer, bm_loop_now(f->dev.loop) + delay_ns))
		start_detour(d);
}

static void detour_due(struct bm_timer *timer)
{
	start_detour(bm_container(timer, struct detour, timer));
}

static void fault_submit(struct bm_dev *dev, struct bm_request *rq);

static void detour_done(struct bm_request *sub, int error)
{
	struct detour *d = bm_container(sub, struct detour, sub);
	struct fault *f = d->fault;
	struct bm_request *rq = d->rq;
	struct bm_list *node;

	if (d->half)
		error = -EIO;
	bm_list_append(&f->free, &d->link);
	node = bm_list_take(&f->waiting);
	if (node)
		fault_submit(&f->dev, bm_container(node, struct bm_request, link));
	rq->done(rq, error);
}

static void fault_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct fault *f = bm_container(dev, struct fault, dev);
	const struct rule *r = f->cancelled ? NULL : find_rule(f, rq);

	switch (r ? r->action : ACT_PASS) {
	case ACT_PASS:
		bm_submit(f->lower, rq);
		break;
	case ACT_ERROR:
		bm_later_done(&f->later, rq, -r->error);
		break;
	case ACT_DELAY:
		take_detour(f, rq, false, r->delay_ns);
		break;
	case ACT_SHORT:
		if (rq->op == BM_FLUSH || rq->length < 1024)
			bm_later_done(&f->later, rq, -EIO);
		else
			take_detour(f, rq, true, r->delay_ns);
		break;
	case ACT_DROP:
		bm_list_append(&f->dropped, &rq->link);
		break;
	}
}

static void fault_start(struct bm_dev *dev)
{
	struct fault *f = bm_container(dev, struct fault, dev);

	bm_later_init(&f->later, dev->loop);
	bm_dev_start(f->lower, dev->loop);
}

static void fault_cancel(struct bm_dev *dev)
{
	struct fault *f = bm_container(dev, struct fault, dev);
	struct bm_list *node;

	f->cancelled = true;
	while ((node = bm_list_take(&f->dropped)))
		bm_later_done(&f->later, bm_container(node, struct bm_request, link), -ECANCELED);
	while ((node = bm_list_take(&f->waiting)))
		bm_later_done(&f->later, bm_container(node, struct bm_request, link), -ECANCELED);
	for (int i = 0; i < SLOTS; i++)
		if (bm_timer_armed(&f->slot[i].timer)) {
			bm_timer_clear(dev->loop, &f->slot[i].timer);
			bm_later_done(&f->later, f->slot[i].rq, -ECANCELED);
			bm_list_append(&f->free, &f->slot[i].link);
		}
	bm_dev_cancel(f->lower);
}

static void fault_free(struct fault *f)
{
	for (unsigned i = 0; i < f->rules; i++)
		free(f->rule[i].while_path);
	bm_dev_close(f->lower);
	free(f);
}

static void fault_close(struct bm_dev *dev)
{
	struct fault *f = bm_container(dev, struct fault, dev);

	if (dev->loop)
		bm_later_fini(&f->later);
	fault_free(f);
}

static const struct bm_dev_ops fault_ops = {
	.name = "fault",
	.start = fault_start,
	.submit = fault_submit,
	.cancel = fault_cancel,
	.close = fault_close,
};

/* Parsing */

static int parse_op(struct rule *r, const char *name)
{
	static const char *const names[BM_OPS] = {"read", "write", "zero",
						  "trim", "flush", "extents"};

	for (int i = 0; i < BM_OPS; i++)
		if (!strcmp(names[i], name)) {
			r->ops |= 1u << i;
			return 0;
		}
	return -EINVAL;
}

static int parse_error(struct rule *r, const char *name)
{
	static const struct {
		const char *name;
		int err;
	} errors[] = {{"EIO", EIO},
		      {"ENOSPC", ENOSPC},
		      {"ENOTSUP", ENOTSUP},
		      {"EPERM", EPERM},
		      {"ENOTCONN", ENOTCONN}};

	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (!strcmp(errors[i].name, name)) {
			r->action = ACT_ERROR;
			r->error = errors[i].err;
			return 0;
		}
	return -EINVAL;
}

static int parse_range(struct rule *r, char *text)
{
	char *dash = strchr(text, '-');

	if (!dash)
		return -EINVAL;
	*dash = '\0';
	return bm_parse_size(text, &r->start) || bm_parse_size(dash + 1, &r->end) ? -EINVAL : 0;
}

static int parse_word(struct rule *r, char *word)
{
	char *value = strchr(word, '=');

	if (!value) {
		r->action = !strcmp(word, "short") ? ACT_SHORT : ACT_DROP;
		return !strcmp(word, "short") || !strcmp(word, "drop") ? 0 : -EINVAL;
	}
	*value++ = '\0';
	if (!strcmp(word, "op"))
		return parse_op(r, value);
	if (!strcmp(word, "error"))
		return parse_error(r, value);
	if (!strcmp(word, "range"))
		return parse_range(r, value);
	if (!strcmp(word, "delay")) {
		r->action = r->action == ACT_PASS ? ACT_DELAY : r->action;
		return bm_parse_duration(value, &r->delay_ns);
	}
	if (!strcmp(word, "skip"))
		return bm_parse_size(value, &r->skip);
	if (!strcmp(word, "count"))
		return bm_parse_size(value, &r->count);
	if (!strcmp(word, "seed"))
		return bm_parse_size(value, &r->seed);
	if (!strcmp(word, "share")) {
		r->share = (unsigned)atoi(value);
		return r->share && r->share <= 100 ? 0 : -EINVAL;
	}
	if (!strcmp(word, "while")) {
		free(r->while_path);
		r->while_path = strdup(value);
		return r->while_path ? 0 : -ENOMEM;
	}
	return -EINVAL;
}

static int parse_rule(struct rule *r, char *text, struct bm_error *error)
{
	char *save;

	r->count = UINT64_MAX;
	for (char *word = strtok_r(text, ",", &save); word; word = strtok_r(NULL, ",", &save))
		if (parse_word(r, word) < 0)
			return bm_fail(error, BM_E_URI, "fault: \"%s\" is not understood", word);
	return 0;
}

static int parse_spec(struct fault *f, char *spec, struct bm_error *error)
{
	char *save;
	int r = 0;

	for (char *text = strtok_r(spec, "|", &save); text && !r;
	     text = strtok_r(NULL, "|", &save)) {
		if (f->rules == MAX_RULES)
			return bm_fail(error, BM_E_URI, "fault: more than %d rules", MAX_RULES);
		r = parse_rule(&f->rule[f->rules++], text, error);
	}
	return r;
}

int bm_fault_open(const struct bm_uri *uri, const struct bm_open_options *options,
		  struct bm_dev **dev, struct bm_error *error)
{
	struct fault *f = calloc(1, sizeof(*f));
	bm_free char *spec = strdup(uri->rest);
	char *lower;
	int r;

	if (!f || !spec) {
		free(f);
		return bm_fail_errno(error, ENOMEM, "%s", uri->text);
	}
	lower = strchr(spec, ';');
	r = lower ? 0 : bm_fail(error, BM_E_URI, "%s: fault:SPEC;URI is expected", uri->text);
	if (r < 0)
		goto fail;
	*lower++ = '\0';
	r = parse_spec(f, spec, error);
	if (r < 0)
		goto fail;
	r = bm_dev_open(lower, options, &f->lower, error);
	if (r < 0)
		goto fail;
	f->dev.ops = &fault_ops;
	f->dev.geometry = f->lower->geometry;
	bm_list_init(&f->free);
	bm_list_init(&f->waiting);
	bm_list_init(&f->dropped);
	for (int i = 0; i < SLOTS; i++) {
		f->slot[i].fault = f;
		f->slot[i].sub.done = detour_done;
		f->slot[i].timer.run = detour_due;
		bm_list_append(&f->free, &f->slot[i].link);
	}
	*dev = &f->dev;
	return 0;
fail:
	fault_free(f);
	return r;
}
