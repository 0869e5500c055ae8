/* SPDX-License-Identifier: BSD-3-Clause */
/* drain: what was asked for, checked. */
#include "blockmirror/cli/drain.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"

enum {
	OPT_TO = 256,
	OPT_DELETE,
	OPT_KEEP,
	OPT_DRY,
	OPT_MAP,
	OPT_RESERVE,
	OPT_PARALLEL,
	OPT_RATE,
	OPT_LATENCY,
	OPT_WINDOW,
	OPT_INCLUDE,
	OPT_FLATTEN,
	OPT_DENY
};

/* VMware's limits for the same work: two a host, eight a datastore. */
enum { PARALLEL = 2, PER_STORE = 8, MOST = 64 };

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
		return cli_usage(q->d->cli, "--map %s: IMAGE=FOLDER is wanted", value);
	if (json_object_get(q->d->map, name))
		return cli_usage(q->d->cli, "--map %s: it was given twice", name);
	if (json_object_set_new(q->d->map, name, json_string(equals + 1)) < 0)
		return cli_usage(q->d->cli, "--map %s: the name is not UTF-8", value);
	return 0;
}

static int take_window(struct request *q, const char *value)
{
	int a, b, c, e, n = 0;

	if (sscanf(value, "%d:%2d-%d:%2d%n", &a, &b, &c, &e, &n) != 4 || value[n] || a < 0 ||
	    a > 23 || b < 0 || b > 59 || c < 0 || c > 24 || e < 0 || e > 59)
		return cli_usage(q->d->cli, "--window %s: times like 22:00-06:00 are wanted",
				 value);
	q->d->begin = a * 60 + b;
	q->d->end = c * 60 + e;
	return 0;
}

static int take_parallel(struct request *q, const char *value)
{
	char *end;
	unsigned long n = strtoul(value, &end, 10);

	if (*value < '0' || *value > '9' || *end || !n || n > MOST)
		return cli_usage(q->d->cli, "--parallel %s: a number from 1 to %d is wanted", value,
				 MOST);
	q->d->plan.parallel = (unsigned)n;
	return 0;
}

static int take_text(struct request *q, json_t *list, const char *option, const char *value)
{
	if (json_array_append_new(list, json_string(value)) < 0)
		return cli_usage(q->d->cli, "%s %s: the name is not UTF-8", option, value);
	return 0;
}

static int take(int option, const char *value, void *arg)
{
	struct request *q = arg;
	struct drain *d = q->d;

	switch (option) {
	case OPT_TO:
		return take_text(q, q->to, "--to", value);
	case OPT_INCLUDE:
		return take_text(q, d->include, "--include", value);
	case OPT_DENY:
		if (!d->deny)
			d->deny = json_array();
		return *value ? take_text(q, d->deny, "--deny", value) : 0;
	case OPT_FLATTEN:
		d->flatten = true;
		return 0;
	case OPT_DELETE:
		d->delete_source = true;
		return 0;
	case OPT_KEEP:
		q->keep = true;
		return 0;
	case OPT_DRY:
		d->dry_run = true;
		return 0;
	case OPT_MAP:
		return take_map(q, value);
	case OPT_RESERVE:
		return cli_size(d->cli, "--reserve", value, &d->reserve);
	case OPT_PARALLEL:
		return take_parallel(q, value);
	case OPT_RATE:
		return cli_size(d->cli, "--rate", value, &d->rate);
	case OPT_LATENCY:
		json_decref(d->latency);
		return cli_latency(d->cli, value, &d->latency);
	default:
		return take_window(q, value);
	}
}

static int open_store(struct drain_store *store, const char *given, struct bm_error *error)
{
	struct stat st;

	store->path = realpath(given, NULL);
	if (!store->path || stat(store->path, &st) < 0)
		return bm_fail_errno(error, errno, "%s", given);
	if (!S_ISDIR(st.st_mode))
		return bm_fail(error, BM_E_NOT_IMAGE, "%s is no folder", given);
	store->dev = st.st_dev;
	return 0;
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
	int r = open_store(&d->from, from, error);

	d->to = bm_need(calloc(n, sizeof(*d->to)));
	d->plan.stores = bm_need(calloc(n, sizeof(*d->plan.stores)));
	for (size_t i = 0; !r && i < n; i++) {
		const char *given = json_string_value(json_array_get(q->to, i));

		if (!strncmp(given, "bm:", 3))
			return bm_fail(
				error, BM_E_UNSUPPORTED,
				"%s: a drain goes to folders of this host; \"blockmirror relocate "
				"NAME %s\" moves one disk to another one",
				given, given);
		r = open_store(&d->to[i], given, error);
		if (!r &&
		    (is_in(d->to[i].path, d->from.path) || is_in(d->from.path, d->to[i].path)))
			r = bm_fail(error, BM_E_SAME, "%s and %s are one, or in one another", given,
				    from);
		d->plan.n_stores += !r;
	}
	for (size_t i = 0; i < d->plan.n_stores; i++)
		for (size_t k = 0; k <= i; k++)
			if (d->to[k].dev == d->to[i].dev) {
				d->plan.stores[i].pool = k;
				break;
			}
	return r;
}

static int find_store(const struct drain *d, const char *given, struct bm_error *error)
{
	bm_free char *real = realpath(given, NULL);

	for (size_t i = 0; real && i < d->plan.n_stores; i++)
		if (!strcmp(real, d->to[i].path))
			return (int)i;
	return bm_fail(error, BM_E_USAGE, "--map: %s was not given with --to", given);
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
	d->plan.n_items = d->n;
	d->plan.items = bm_need(calloc(d->n + 1, sizeof(*d->plan.items)));
	d->plan.order = bm_need(calloc(d->n + 1, sizeof(*d->plan.order)));
	for (size_t i = 0; i < d->n; i++)
		d->plan.items[i] =
			(struct plan_item){.need = d->image[i].need,
					   .wanted = -1,
					   .store = -1,
					   .state = d->image[i].why.code ? PLAN_OVER : PLAN_WAITS};
	r = put_wanted(d, error);
	if (!r)
		r = drain_measure(d, error);
	if (!r) {
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
	if (!json_array_size(q->to) || json_array_size(q->to) > MOST)
		return cli_usage(d->cli, "--to FOLDER is wanted, up to %d times", MOST);
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

static void drain_free(struct drain *d)
{
	drain_forget(d);
	for (size_t i = 0; d->to && i < d->plan.n_stores; i++)
		free(d->to[i].path);
	free(d->to);
	free(d->from.path);
	free(d->plan.items);
	free(d->plan.order);
	free(d->plan.stores);
	json_decref(d->include);
	json_decref(d->deny);
	json_decref(d->map);
	json_decref(d->latency);
}

int cmd_drain(struct cli *cli, int argc, char **argv)
{
	static const struct option own[] = {{"to", required_argument, NULL, OPT_TO},
					    {"delete-source", no_argument, NULL, OPT_DELETE},
					    {"keep-source", no_argument, NULL, OPT_KEEP},
					    {"dry-run", no_argument, NULL, OPT_DRY},
					    {"map", required_argument, NULL, OPT_MAP},
					    {"reserve", required_argument, NULL, OPT_RESERVE},
					    {"parallel", required_argument, NULL, OPT_PARALLEL},
					    {"rate", required_argument, NULL, OPT_RATE},
					    {"guest-latency", required_argument, NULL, OPT_LATENCY},
					    {"window", required_argument, NULL, OPT_WINDOW},
					    {"include", required_argument, NULL, OPT_INCLUDE},
					    {"flatten", no_argument, NULL, OPT_FLATTEN},
					    {"deny", required_argument, NULL, OPT_DENY},
					    {0}};
	struct drain d = {.cli = cli,
			  .include = json_array(),
			  .map = json_object(),
			  .reserve = UINT64_MAX,
			  .begin = -1,
			  .plan = {.parallel = PARALLEL, .per_store = PER_STORE},
			  .started = tell_now()};
	struct request q = {.d = &d, .to = json_array()};
	int r = cli_options(cli, argc, argv, own, take, &q);

	if (!r)
		r = cli_arguments(cli, argc, 1, 1);
	if (!r)
		r = run(&q, argv[optind]);
	json_decref(q.to);
	drain_free(&d);
	return r < 0 ? 0 : r;
}
