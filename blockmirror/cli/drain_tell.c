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
#include <unistd.h>

#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

#define SECOND 1000000000ull

uint64_t tell_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static const char *kind_of(const struct drain_image *image)
{
	return image->disk ? "live" : "cold";
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
	return json_pack("{s:s s:s s:s* s:I s:I s:s* s:b s:o*}", "image", image->path, "kind",
			 kind_of(image), "disk", image->disk, "size", (json_int_t)image->size,
			 "allocated", (json_int_t)image->need, "store", store_of(d, image), "moved",
			 (int)image->moved, "why", why_of(image));
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

static void put_row(const struct drain *d, const struct drain_image *image)
{
	char size[BM_UNITS_TEXT], need[BM_UNITS_TEXT];
	const char *store = store_of(d, image);

	printf("%-28s %10s %10s  %-4s  ", image->name, bm_format_size(size, image->size),
	       bm_format_size(need, image->need), kind_of(image));
	if (store)
		printf("%s\n", store);
	else if (image->why.code)
		printf("stays: %s: %s\n", bm_code_name(image->why.code), image->why.text);
	else
		printf("stays: E_ENOSPC: no target has the room for it\n");
}

void tell_plan(const struct drain *d)
{
	uint64_t bytes = 0;
	size_t moving = 0;
	char text[BM_UNITS_TEXT];

	if (d->cli->json) {
		json_t *images = json_array();

		for (size_t i = 0; i < d->n; i++)
			json_array_append_new(images, object_of(d, &d->image[i]));
		put_event("plan", json_pack("{s:s s:o s:o}", "datastore", d->from.path, "images",
					    images, "stores", stores(d)));
		return;
	}
	printf("%-28s %10s %10s  %-4s  %s\n", "IMAGE", "SIZE", "ALLOCATED", "KIND", "GOES TO");
	for (size_t i = 0; i < d->n; i++) {
		put_row(d, &d->image[i]);
		if (store_of(d, &d->image[i])) {
			bytes += d->image[i].need;
			moving++;
		}
	}
	for (size_t i = 0; i < d->plan.n_stores; i++)
		if (d->plan.stores[i].pool == i)
			printf("%s: %s left after that, beside what it keeps free\n", d->to[i].path,
			       bm_format_size(text, d->plan.stores[i].room));
	printf("%zu of %zu move, %s\n", moving, d->n, bm_format_size(text, bytes));
}

/* What happens */

static void end_line(struct drain *d)
{
	if (d->line)
		fputs("\r\033[K", stdout);
	d->line = false;
}

void tell_begun(struct drain *d, const struct drain_image *image)
{
	end_line(d);
	if (d->cli->json)
		put_event("begun", object_of(d, image));
	else
		printf("%s: moves to %s\n", image->name, store_of(d, image));
	fflush(stdout);
}

void tell_over(struct drain *d, const struct drain_image *image)
{
	end_line(d);
	if (d->cli->json)
		put_event("over", object_of(d, image));
	else if (image->moved)
		printf("%s: has moved, both copies compared\n", image->name);
	else
		printf("%s: stays: %s: %s\n", image->name, bm_code_name(image->why.code),
		       image->why.text);
	fflush(stdout);
}

static uint64_t done_of(const struct drain *d, size_t i)
{
	const struct drain_image *image = &d->image[i];
	const json_t *p = json_object_get(image->job, "progress");
	double total = (double)cli_number(p, "total");

	if (image->moved)
		return image->need;
	if (d->plan.items[i].state != PLAN_RUNS || total <= 0)
		return 0;
	return (uint64_t)((double)image->need * (double)cli_number(p, "done") / total);
}

/* On a terminal alone: elsewhere the lines of what begins and is over are what people read. */
void tell_progress(struct drain *d)
{
	uint64_t done = 0, all = 0, rate = 0;
	char a[BM_UNITS_TEXT], b[BM_UNITS_TEXT];
	size_t moved = 0, moving = 0;

	if (d->cli->json || d->cli->progress == PROGRESS_NONE ||
	    d->cli->progress == PROGRESS_PLAIN ||
	    (d->cli->progress == PROGRESS_AUTO && !isatty(STDOUT_FILENO)))
		return;
	for (size_t i = 0; i < d->n; i++) {
		bool runs = d->plan.items[i].state == PLAN_RUNS;
		const json_t *p = json_object_get(d->image[i].job, "progress");

		if (d->plan.items[i].store < 0 || (d->image[i].why.code && !runs))
			continue;
		moving++;
		moved += d->image[i].moved;
		all += d->image[i].need;
		done += done_of(d, i);
		rate += runs ? cli_number(p, "rate") : 0;
	}
	printf("\r\033[K%zu of %zu, %.0f%% of %s, %s/s, %u at a time", moved, moving,
	       all ? (double)done * 100 / (double)all : 0, bm_format_size(a, all),
	       bm_format_size(b, rate), d->plan.running);
	fflush(stdout);
	d->line = true;
}

void tell_interrupted(struct drain *d)
{
	end_line(d);
	if (d->cli->json) {
		put_event("interrupted", json_object());
		return;
	}
	for (size_t i = 0; i < d->n; i++)
		if (d->plan.items[i].state == PLAN_RUNS)
			printf(d->image[i].disk
				       ? "%s: its move goes on; \"blockmirror job cancel %s\" "
					 "ends it\n"
				       : "%s: stays; its copy is given up\n",
			       d->image[i].name, d->image[i].disk);
	puts("The same command goes on where this one was.");
}

/* The end */

static int totals(const struct drain *d, size_t *moved, uint64_t *bytes)
{
	size_t left = 0;

	*moved = 0;
	*bytes = 0;
	for (size_t i = 0; i < d->n; i++) {
		*moved += d->image[i].moved;
		*bytes += d->image[i].moved ? d->image[i].need : 0;
		left += !d->image[i].moved &&
			(d->delete_source || d->image[i].why.code != BM_E_RETIRED);
	}
	return left > 0;
}

int tell_summary(struct drain *d)
{
	bool empty = drain_is_empty(d);
	char size[BM_UNITS_TEXT], took[BM_UNITS_TEXT];
	uint64_t bytes, ns = tell_now() - d->started;
	size_t moved;
	int left = totals(d, &moved, &bytes);

	end_line(d);
	if (d->cli->json) {
		json_t *images = json_array();

		for (size_t i = 0; i < d->n; i++)
			json_array_append_new(images, object_of(d, &d->image[i]));
		put_event("summary", json_pack("{s:o s:b s:I}", "images", images, "empty",
					       (int)empty, "took_ns", (json_int_t)ns));
		return left;
	}
	printf("\n%zu of %zu moved, %s, in %s\n", moved, d->n, bm_format_size(size, bytes),
	       bm_format_duration(took, ns));
	for (size_t i = 0; i < d->n; i++)
		if (!d->image[i].moved)
			printf("  %s stays: %s: %s\n", d->image[i].name,
			       bm_code_name(d->image[i].why.code), d->image[i].why.text);
	if (empty)
		printf("%s is empty, and what was there was compared\n", d->from.path);
	else if (!left)
		printf("%s has old copies alone: they are marked so, and nobody uses them\n",
		       d->from.path);
	else
		printf("%s is not empty. Mend what is said above, and run this again\n",
		       d->from.path);
	return left;
}
