/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * balance: several datastores, none of which is to be fuller than asked for. Which images move, and
 * where to, is balance_plan.c's; how, is the drains'.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/config.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/units.h"
#include "blockmirror/cli/balance_plan.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

_Static_assert((int)BALANCE_STORES >= (int)DRAIN_MOST, "one bit for each");

enum { OPT_FILL = 256 };

struct balance {
	struct drain d;
	const char *fill; /* as given; NULL */
	struct balance_store stores[BALANCE_STORES];
	uint64_t limit[BALANCE_STORES]; /* bytes that may be in use */
	uint64_t left;                  /* bytes that are left too much, by the plan */
	int exact;
};

static int take(int option, const char *value, void *arg)
{
	struct balance *b = arg;
	uint64_t bytes;

	if (option != OPT_FILL)
		return drain_take(&b->d, option, value);
	b->fill = value;
	return strchr(value, '%') && bm_parse_share(value, 1, &bytes)
		       ? 0
		       : cli_usage(b->d.cli, "--fill %s: a share like 80%% is wanted", value);
}

static int open_stores(struct drain *d, int n, char **names, struct bm_error *error)
{
	int r = 0;

	d->to = bm_need(calloc((size_t)n, sizeof(*d->to)));
	d->plan.stores = bm_need(calloc((size_t)n, sizeof(*d->plan.stores)));
	for (int i = 0; !r && i < n; i++) {
		r = drain_store_open(d->cli, &d->to[i], names[i], error);
		d->plan.n_stores += !r;
	}
	if (!r)
		r = drain_measure(d, error);
	if (r < 0)
		return r;
	drain_set_stores(d);
	for (size_t i = 0; i < d->plan.n_stores; i++)
		if (d->plan.stores[i].pool != i)
			return bm_fail(error, BM_E_SAME, "%s and %s are on one file system",
				       d->to[d->plan.stores[i].pool].path, d->to[i].path);
	return 0;
}

/* All images of all of this host's; each scan adds its own. */
static int scan(struct drain *d, struct bm_error *error)
{
	json_t *disks = cli_all_disks(d->cli);
	int r = 0;

	for (size_t i = 0; !r && i < d->plan.n_stores; i++) {
		if (d->to[i].host)
			continue;
		json_decref(d->machines);
		json_decref(d->plans);
		d->machines = d->plans = NULL;
		d->from.path = d->to[i].path;
		r = drain_scan(d, disks, error);
	}
	d->from.path = NULL;
	json_decref(disks);
	return r;
}

static int origin_of(const struct drain *d, const struct drain_image *image)
{
	size_t n = (size_t)(image->name - image->path) - 1;

	for (size_t i = 0; i < d->plan.n_stores; i++)
		if (strlen(d->to[i].path) == n && !strncmp(d->to[i].path, image->path, n))
			return (int)i;
	return -1;
}

/* What is in use of each, and what of it is too much, or may come still. */
static void set_stores(struct balance *b)
{
	struct drain *d = &b->d;

	for (size_t i = 0; i < d->plan.n_stores; i++) {
		const struct drain_store *store = &d->to[i];
		const char *own = json_string_value(json_object_get(store->entry, "fill"));
		uint64_t used = store->used, room;

		bm_parse_share(b->fill ? b->fill : own ? own : "80%", store->size, &b->limit[i]);
		room = b->limit[i] > used ? b->limit[i] - used : 0;
		if (room > d->plan.stores[i].room)
			room = d->plan.stores[i].room;
		if (drain_store_may_land(d->cli, store, NULL) < 0)
			room = 0;
		b->stores[i] = (struct balance_store){
			.excess = used > b->limit[i] ? used - b->limit[i] : 0, .room = room};
	}
}

static uint64_t may_go(const struct drain *d, size_t which)
{
	uint64_t may = 0;

	if (d->image[which].why.code)
		return 0;
	for (size_t i = 0; i < d->plan.n_stores; i++)
		if ((int)i != d->plan.items[which].from &&
		    drain_store_takes(&d->image[which], &d->to[i], NULL))
			may |= 1ull << i;
	return may;
}

static void make_plan(struct balance *b)
{
	struct drain *d = &b->d;
	bm_free struct balance_item *items = bm_need(calloc(d->n + 1, sizeof(*items)));

	set_stores(b);
	for (size_t i = 0; i < d->n; i++) {
		d->plan.items[i].from = origin_of(d, &d->image[i]);
		items[i] =
			(struct balance_item){.need = d->image[i].need,
					      .from = (size_t)d->plan.items[i].from,
					      .may = d->plan.items[i].from < 0 ? 0 : may_go(d, i)};
		if (d->plan.items[i].from < 0)
			items[i].from = 0;
	}
	b->left = balance_make(b->stores, d->plan.n_stores, items, d->n, &b->exact);
	for (size_t i = 0; i < d->n; i++) {
		d->plan.items[i].store = d->plan.items[i].wanted = items[i].to;
		if (items[i].to < 0)
			d->plan.items[i].state = PLAN_OVER;
		else
			d->plan.stores[items[i].to].room -= d->image[i].need;
	}
	plan_order(&d->plan);
}

static double percent(uint64_t part, uint64_t whole)
{
	return whole ? (double)part * 100 / (double)whole : 0;
}

/* What each store is now, and will be. */
static void tell_stores(const struct balance *b)
{
	const struct drain *d = &b->d;
	char text[BM_UNITS_TEXT];

	if (d->cli->json)
		return;
	for (size_t i = 0; i < d->plan.n_stores; i++) {
		uint64_t used = d->to[i].used, then = used;

		for (size_t k = 0; k < d->n; k++) {
			const struct plan_item *item = &d->plan.items[k];

			if (item->store == (int)i)
				then += item->need;
			else if (item->store >= 0 && item->from == (int)i)
				then -= item->need;
		}
		printf("%s: %.0f%% full, %.0f%% after that; at most %.0f%%\n", d->to[i].path,
		       percent(used, d->to[i].size), percent(then, d->to[i].size),
		       percent(b->limit[i], d->to[i].size));
	}
	if (b->left)
		printf("%s stay too much: there is no room for more, or what is there cannot "
		       "move\n",
		       bm_format_size(text, b->left));
	if (!b->exact)
		puts("There may be a plan with fewer bytes; all of them were too many to look at.");
}

static int run(struct balance *b, int n, char **names)
{
	struct drain *d = &b->d;
	struct bm_error error;
	int r = open_stores(d, n, names, &error);

	if (!r)
		r = drain_check_stores(d, &error);
	if (!r)
		r = scan(d, &error);
	if (r < 0)
		return cli_fail(d->cli, &error);
	drain_make_items(d);
	make_plan(b);
	if (d->dry_run || !d->cli->json)
		tell_plan(d);
	tell_stores(b);
	r = d->dry_run ? 0 : drain_run(d);
	return r ? r : b->left && !d->dry_run;
}

int cmd_balance(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {
		{"fill", required_argument, NULL, OPT_FILL}, DRAIN_OPTIONS, {0}};
	struct balance b = {0};
	int r;

	drain_begin(&b.d, cli);
	b.d.balances = b.d.delete_source = true;
	r = cli_options(cli, argc, argv, own, take, &b);
	if (!r)
		r = cli_arguments(cli, argc, 2, DRAIN_MOST);
	if (!r)
		r = cli_wants_config(cli);
	if (!r)
		r = run(&b, argc - optind, argv + optind);
	drain_free(&b.d);
	return r < 0 ? 0 : r;
}
