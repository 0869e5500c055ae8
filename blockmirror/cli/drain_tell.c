/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a drain tells: a table of what it will do, a line for each image that begins or is over, how
 * far all of it is, and at the end what came of each. With --json each of these is one line, an
 * object with "event".
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

#define SECOND  1000000000ull
#define ASSUMED (100ull << 20) /* bytes/s of one that moves */

uint64_t tell_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static const char *kind_of(const struct drain_image *image)
{
	return image->qmp ? "qemu" : image->disk ? "live" : "cold";
}

static json_t *why_of(const struct drain_image *image)
{
	return image->why.code ? json_pack("{s:s s:s}", "code", bm_code_name(image->why.code),
					   "message", image->why.text)
			       : NULL;
}

static const char *store_of(const struct drain *d, const struct drain_image *image)
{
	int store = d->plan.items[image - d->image].store;

	return store < 0 || image->why.code ? NULL : d->to[store].path;
}

static json_t *object_of(const struct drain *d, const struct drain_image *image)
{
	return json_pack("{s:s s:s s:s* s:I s:I s:s* s:b s:s* s:o*}", "image", image->path, "kind",
			 kind_of(image), "disk", image->disk, "size", (json_int_t)image->size,
			 "allocated", (json_int_t)image->need, "store", store_of(d, image), "moved",
			 (int)image->moved, "note", *image->note ? image->note : NULL, "why",
			 why_of(image));
}

static void put_event(const char *event, json_t *object)
{
	json_object_set_new(object, "v", json_integer(1));
	json_object_set_new(object, "event", json_string(event));
	json_dumpf(object, stdout, JSON_COMPACT);
	putchar('\n');
	fflush(stdout);
	json_decref(object);
}

/* The plan */

static json_t *stores(const struct drain *d)
{
	json_t *list = json_array();

	for (size_t i = 0; i < d->plan.n_stores; i++)
		json_array_append_new(
			list, json_pack("{s:s s:I s:I}", "path", d->to[i].path, "room",
					(json_int_t)d->plan.stores[d->plan.stores[i].pool].room,
					"reserve", (json_int_t)d->to[i].reserve));
	return list;
}

/* Of several stores there may be two of one name. */
const char *tell_name(const struct drain *d, const struct drain_image *image)
{
	return d->balances ? image->path : image->name;
}

static void put_row(const struct drain *d, const struct drain_image *image)
{
	char size[BM_UNITS_TEXT], need[BM_UNITS_TEXT];
	const char *store = store_of(d, image);

	printf("%-28s %10s %10s  %-4s  ", tell_name(d, image), bm_format_size(size, image->size),
	       bm_format_size(need, image->need), kind_of(image));
	if (store)
		printf("%s%s%s\n", store, *image->note ? ": " : "", image->note);
	else if (image->why.code)
		printf("stays: %s: %s\n", bm_code_name(image->why.code), image->why.text);
	else if (d->balances)
		puts("stays");
	else
		printf("stays: E_ENOSPC: no target has the room for it\n");
}

/* Not more is known than what they may take: the network and the storage tell when they move. */
static uint64_t each_rate(const struct drain *d)
{
	uint64_t share = d->rate / d->plan.parallel;

	return d->rate && share < ASSUMED ? share + !share : ASSUMED;
}

static void put_plan_event(const struct drain *d, uint64_t bytes)
{
	json_t *images = json_array();

	for (size_t i = 0; i < d->n; i++)
		json_array_append_new(images, object_of(d, &d->image[i]));
	put_event("plan", json_pack("{s:s* s:o s:o s:I s:I s:I}", "datastore", d->from.path,
				    "images", images, "stores", stores(d), "bytes",
				    (json_int_t)bytes, "rate_each", (json_int_t)each_rate(d),
				    "seconds", (json_int_t)plan_seconds(&d->plan, each_rate(d))));
}

void tell_plan(const struct drain *d)
{
	char text[BM_UNITS_TEXT], time[BM_UNITS_TEXT], each[BM_UNITS_TEXT], kept[BM_UNITS_TEXT];
	uint64_t bytes = 0;
	size_t moving = 0;

	for (size_t i = 0; i < d->n; i++)
		if (store_of(d, &d->image[i])) {
			bytes += d->image[i].need;
			moving++;
		}
	if (d->cli->json) {
		put_plan_event(d, bytes);
		return;
	}
	if (!d->n) {
		printf("there is nothing in %s\n", d->from.path);
		return;
	}
	printf("%-28s %10s %10s  %-4s  %s\n", "IMAGE", "SIZE", "ALLOCATED", "KIND", "GOES TO");
	for (size_t i = 0; i < d->n; i++)
		put_row(d, &d->image[i]);
	for (size_t i = 0; i < d->plan.n_stores && !d->balances; i++)
		if (d->plan.stores[i].pool == i)
			printf("%s: room for %s more after that; %s are kept free\n", d->to[i].path,
			       bm_format_size(text, d->plan.stores[i].room),
			       bm_format_size(kept, d->to[i].reserve));
	printf("%zu of %zu move, %s", moving, d->n, bm_format_size(text, bytes));
	if (moving)
		printf(", in %s if each has %s/s",
		       bm_format_duration(time, plan_seconds(&d->plan, each_rate(d)) * SECOND),
		       bm_format_size(each, each_rate(d)));
	putchar('\n');
}

/* With --json, as an event each second; drain_bar.c has it for a terminal. */
void tell_far(struct drain *d)
{
	uint64_t now = tell_now();
	json_t *images;

	if (!d->cli->json || now - d->told < SECOND)
		return;
	d->told = now;
	images = json_array();
	for (size_t i = 0; i < d->n; i++)
		if (d->plan.items[i].state == PLAN_RUNS)
			json_array_append_new(
				images,
				json_pack("{s:s s:O*}", "image", d->image[i].path, "progress",
					  json_object_get(d->image[i].job, "progress")));
	put_event("progress", json_pack("{s:o}", "images", images));
}

/* What happens */

void tell_begun(struct drain *d, const struct drain_image *image)
{
	tell_clear(d);
	if (d->cli->json)
		put_event("begun", object_of(d, image));
	else
		printf("%s: moves to %s\n", tell_name(d, image), store_of(d, image));
	fflush(stdout);
}

void tell_over(struct drain *d, const struct drain_image *image)
{
	tell_clear(d);
	if (d->cli->json)
		put_event("over", object_of(d, image));
	else if (image->moved)
		printf("%s: has moved, both copies compared\n", tell_name(d, image));
	else
		printf("%s: stays: %s: %s\n", tell_name(d, image), bm_code_name(image->why.code),
		       image->why.text);
	fflush(stdout);
}

static void put_interrupted(const struct drain_image *image)
{
	const char *disk = image->qmp ? image->slipped : image->disk;

	if (!image->disk && !image->qmp)
		printf("%s: stays; its copy is given up\n", image->name);
	else
		printf("%s: its move goes on; \"blockmirror job cancel %s\" ends it\n", image->name,
		       disk ? disk : "DISK");
}

void tell_interrupted(struct drain *d)
{
	tell_clear(d);
	if (d->cli->json) {
		put_event("interrupted", json_object());
		return;
	}
	for (size_t i = 0; i < d->n; i++)
		if (d->plan.items[i].state == PLAN_RUNS)
			put_interrupted(&d->image[i]);
	puts("The same command goes on where this one was.");
}

/* The end */

/* Whether it is a failure that it has not moved. */
static bool is_wanted(const struct drain *d, size_t i)
{
	return d->balances ? d->plan.items[i].store >= 0
			   : d->delete_source || d->image[i].why.code != BM_E_RETIRED;
}

static int totals(const struct drain *d, size_t *moved, uint64_t *bytes)
{
	size_t left = 0;

	*moved = 0;
	*bytes = 0;
	for (size_t i = 0; i < d->n; i++) {
		*moved += d->image[i].moved;
		*bytes += d->image[i].moved ? d->image[i].need : 0;
		left += !d->image[i].moved && is_wanted(d, i);
	}
	return left > 0;
}

static size_t left_in(const struct drain *d)
{
	size_t left = 0;

	for (size_t i = 0; i < d->n; i++)
		left += !d->image[i].moved;
	return left;
}

static void put_result(const struct drain *d, const struct drain_image *image)
{
	const char *path = bm_uri_path(cli_text(image->job, "target"));

	if (!image->moved)
		printf("  %-28s stays: %s: %s\n", tell_name(d, image),
		       bm_code_name(image->why.code), image->why.text);
	else
		printf("  %-28s moved to %s, compared\n", tell_name(d, image),
		       image->target ? image->target
		       : path        ? path
				     : "its target");
}

static void put_end(const struct drain *d, bool empty, int left)
{
	if (d->balances)
		return;
	if (empty)
		printf("%s is empty, verified\n", d->from.path);
	else if (!left)
		printf("%s has old copies alone: they are marked so, and nobody uses them\n",
		       d->from.path);
	else
		printf("%s is not empty, %zu left. Mend what is said above, and run this again\n",
		       d->from.path, left_in(d));
}

int tell_summary(struct drain *d)
{
	bool empty = !d->balances && drain_is_empty(d);
	char size[BM_UNITS_TEXT], took[BM_UNITS_TEXT];
	uint64_t bytes, ns = tell_now() - d->started;
	size_t moved;
	int left = totals(d, &moved, &bytes);

	tell_clear(d);
	if (d->cli->json) {
		json_t *images = json_array();

		for (size_t i = 0; i < d->n; i++)
			json_array_append_new(images, object_of(d, &d->image[i]));
		put_event("summary", json_pack("{s:o s:b s:I}", "images", images, "empty",
					       (int)empty, "took_ns", (json_int_t)ns));
		return left;
	}
	if (d->n)
		printf("\n%zu of %zu moved, %s, in %s\n", moved, d->n, bm_format_size(size, bytes),
		       bm_format_duration(took, ns));
	for (size_t i = 0; i < d->n; i++)
		if (!d->balances || d->image[i].moved || d->plan.items[i].store >= 0)
			put_result(d, &d->image[i]);
	put_end(d, empty, left);
	return left;
}
