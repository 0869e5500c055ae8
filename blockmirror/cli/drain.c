/* SPDX-License-Identifier: BSD-3-Clause */
/* drain: what was asked for, checked. */
#include "blockmirror/cli/drain.h"

#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/cli/cli.h"

enum { OPT_TO = 256, OPT_DELETE, OPT_KEEP, OPT_MAP, OPT_FLATTEN };

struct request {
	struct drain *d;
	json_t *to;
	bool keep;
};

static int take_map(struct request *q, const char *value)
{
	const char *equals = strrchr(value, '=');
	bm_free char *name = equals ? strndup(value, (size_t)(equals - value)) : NULL;

	if (!name || !*name || !equals[1])
		return cli_usage(q->d->cli, "--map %s: IMAGE=DATASTORE is wanted", value);
	if (json_object_get(q->d->map, name))
		return cli_usage(q->d->cli, "--map %s: it was given twice", name);
	if (json_object_set_new(q->d->map, name, json_string(equals + 1)) < 0)
		return cli_usage(q->d->cli, "--map %s: the name is not UTF-8", value);
	return 0;
}

static int take(int option, const char *value, void *arg)
{
	struct request *q = arg;
	struct drain *d = q->d;

	switch (option) {
	case OPT_TO:
		return drain_take_text(d, q->to, "--to", value);
	case OPT_FLATTEN:
		d->flatten = true;
		return 0;
	case OPT_DELETE:
		d->delete_source = true;
		return 0;
	case OPT_KEEP:
		q->keep = true;
		return 0;
	case OPT_MAP:
		return take_map(q, value);
	default:
		return drain_take(d, option, value);
	}
}

static bool is_in(const char *path, const char *folder)
{
	size_t n = strlen(folder);

	return !strncmp(path, folder, n) && (!path[n] || path[n] == '/');
}

static int open_stores(struct request *q, const char *from, struct bm_error *error)
{
	struct drain *d = q->d;
	size_t n = json_array_size(q->to);
	int r = drain_store_open(d->cli, &d->from, from, error);

	if (!r && d->from.host)
		r = bm_fail(error, BM_E_UNSUPPORTED, "%s is another host's: drain it there", from);
	d->to = bm_need(calloc(n, sizeof(*d->to)));
	d->plan.stores = bm_need(calloc(n, sizeof(*d->plan.stores)));
	for (size_t i = 0; !r && i < n; i++) {
		const char *given = json_string_value(json_array_get(q->to, i));

		r = drain_store_open(d->cli, &d->to[i], given, error);
		d->plan.n_stores += !r;
		if (!r)
			r = drain_store_may_land(d->cli, &d->to[i], error);
		if (!r &&
		    (is_in(d->to[i].path, d->from.path) || is_in(d->from.path, d->to[i].path)))
			r = bm_fail(error, BM_E_SAME, "%s and %s are one, or in one another", given,
				    from);
	}
	return r;
}

static int find_store(const struct drain *d, const char *given, struct bm_error *error)
{
	struct drain_store store = {0};
	int found = -1;

	if (!drain_store_open(d->cli, &store, given, NULL))
		for (size_t i = 0; i < d->plan.n_stores; i++)
			if (!strcmp(store.path, d->to[i].path))
				found = (int)i;
	drain_store_close(&store);
	return found >= 0 ? found
			  : bm_fail(error, BM_E_USAGE, "--map: %s was not given with --to", given);
}

static int put_wanted(struct drain *d, struct bm_error *error)
{
	const char *name;
	json_t *folder;

	json_object_foreach(d->map, name, folder) {
		size_t i = 0;
		int store = find_store(d, json_string_value(folder), error);

		while (i < d->n && strcmp(d->image[i].name, name) != 0)
			i++;
		if (store >= 0 && i == d->n)
			return bm_fail(error, BM_E_NOT_FOUND, "--map: there is no %s in %s", name,
				       d->from.path);
		if (store < 0)
			return store;
		d->plan.items[i].wanted = store;
	}
	return 0;
}

static int make_plan(struct drain *d, struct bm_error *error)
{
	json_t *disks = cli_all_disks(d->cli);
	int r = drain_scan(d, disks, error);

	json_decref(disks);
	if (r < 0)
		return r;
	drain_make_items(d);
	r = put_wanted(d, error);
	if (!r)
		r = drain_measure(d, error);
	if (!r) {
		drain_set_stores(d);
		drain_check_pairs(d);
		plan_make(&d->plan);
	}
	return r;
}

static int run(struct request *q, const char *from)
{
	struct drain *d = q->d;
	struct bm_error error;
	int r;

	if (d->delete_source == q->keep)
		return cli_usage(d->cli, "one of --delete-source and --keep-source is wanted");
	if (!json_array_size(q->to) || json_array_size(q->to) > DRAIN_MOST)
		return cli_usage(d->cli, "--to DATASTORE is wanted, up to %d times", DRAIN_MOST);
	r = open_stores(q, from, &error);
	if (!r)
		r = drain_check_stores(d, &error);
	if (!r)
		r = make_plan(d, &error);
	if (r < 0)
		return cli_fail(d->cli, &error);
	if (d->dry_run || !d->cli->json)
		tell_plan(d);
	return d->dry_run ? 0 : drain_run(d);
}

int cmd_drain(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {{"to", required_argument, NULL, OPT_TO},
					    {"delete-source", no_argument, NULL, OPT_DELETE},
					    {"keep-source", no_argument, NULL, OPT_KEEP},
					    {"map", required_argument, NULL, OPT_MAP},
					    {"flatten", no_argument, NULL, OPT_FLATTEN},
					    DRAIN_OPTIONS,
					    {0}};
	struct drain d = {0};
	struct request q = {.d = &d, .to = json_array()};
	int r;

	drain_begin(&d, cli);
	r = cli_options(cli, argc, argv, own, take, &q);
	if (!r)
		r = cli_arguments(cli, argc, 1, 1);
	if (!r)
		r = cli_wants_config(cli);
	if (!r)
		r = run(&q, argv[optind]);
	json_decref(q.to);
	drain_free(&d);
	return r < 0 ? 0 : r;
}
