/* SPDX-License-Identifier: BSD-3-Clause */
/* What drain and balance are both asked for: by options, or by the configuration. */
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/config.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

/* VMware's limits for the same work: two a host, eight a datastore. */
enum { PER_HOST = 2, PER_STORE = 8 };

void drain_begin(struct drain *d, const struct cli *cli)
{
	const char *window = bm_config_text(cli->config, "limits", "window");
	const char *latency = bm_config_text(cli->config, "defaults", "guest-latency");
	uint64_t per_host = bm_config_number(cli->config, "limits", "per-host");
	uint64_t per_store = bm_config_number(cli->config, "limits", "per-datastore");

	*d = (struct drain){.cli = cli,
			    .include = json_array(),
			    .map = json_object(),
			    .reserve = UINT64_MAX,
			    .rate = bm_config_number(cli->config, "limits", "rate"),
			    .deny = json_incref(json_object_get(
				    json_object_get(cli->config, "limits"), "deny-storage")),
			    .started = tell_now()};
	d->plan.per_host = per_host ? (unsigned)per_host : PER_HOST;
	d->plan.parallel = d->plan.per_host;
	d->plan.per_store = per_store ? (unsigned)per_store : PER_STORE;
	if (window)
		(void)bm_day_window_parse(window, &d->window);
	if (latency)
		cli_latency(cli, latency, &d->latency);
}

int drain_take_text(const struct drain *d, json_t *list, const char *option, const char *value)
{
	if (json_array_append_new(list, json_string(value)) < 0)
		return cli_usage(d->cli, "%s %s: the name is not UTF-8", option, value);
	return 0;
}

static int take_parallel(struct drain *d, const char *value)
{
	char *end;
	unsigned long n = strtoul(value, &end, 10);

	if (*value < '0' || *value > '9' || *end || !n || n > DRAIN_MOST)
		return cli_usage(d->cli, "--parallel %s: a number from 1 to %d is wanted", value,
				 DRAIN_MOST);
	d->plan.parallel = d->plan.per_host = (unsigned)n;
	return 0;
}

/* The first one takes the place of what the configuration says. */
static int take_deny(struct drain *d, const char *value)
{
	if (d->deny == json_object_get(json_object_get(d->cli->config, "limits"), "deny-storage")) {
		json_decref(d->deny);
		d->deny = json_array();
	}
	return *value ? drain_take_text(d, d->deny, "--deny", value) : 0;
}

int drain_take(struct drain *d, int option, const char *value)
{
	switch (option) {
	case DRAIN_INCLUDE:
		return drain_take_text(d, d->include, "--include", value);
	case DRAIN_DENY:
		return take_deny(d, value);
	case DRAIN_DRY:
		d->dry_run = true;
		return 0;
	case DRAIN_RESERVE:
		return cli_size(d->cli, "--reserve", value, &d->reserve);
	case DRAIN_PARALLEL:
		return take_parallel(d, value);
	case DRAIN_RATE:
		return cli_size(d->cli, "--rate", value, &d->rate);
	case DRAIN_LATENCY:
		json_decref(d->latency);
		d->latency = NULL;
		return cli_latency(d->cli, value, &d->latency);
	case DRAIN_WINDOW:
		return cli_window(d->cli, value, &d->window);
	default:
		return -1;
	}
}

/* What leaves one datastore is read from it, all of it: its limit holds for that, too. */
void drain_make_items(struct drain *d)
{
	unsigned own = (unsigned)cli_number(d->from.entry, "parallel");
	unsigned most = own ? own : d->plan.per_store;

	if (!d->balances && d->plan.parallel > most)
		d->plan.parallel = most;
	d->plan.n_items = d->n;
	d->plan.items = bm_need(calloc(d->n + 1, sizeof(*d->plan.items)));
	d->plan.order = bm_need(calloc(d->n + 1, sizeof(*d->plan.order)));
	for (size_t i = 0; i < d->n; i++)
		d->plan.items[i] =
			(struct plan_item){.need = d->image[i].need,
					   .wanted = -1,
					   .store = -1,
					   .from = -1,
					   .state = d->image[i].why.code ? PLAN_OVER : PLAN_WAITS};
}

void drain_free(struct drain *d)
{
	drain_forget(d);
	for (size_t i = 0; d->to && i < d->plan.n_stores; i++)
		drain_store_close(&d->to[i]);
	free(d->to);
	drain_store_close(&d->from);
	free(d->plan.items);
	free(d->plan.order);
	free(d->plan.stores);
	json_decref(d->include);
	json_decref(d->deny);
	json_decref(d->map);
	json_decref(d->latency);
}
