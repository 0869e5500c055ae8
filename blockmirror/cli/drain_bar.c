/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How far a drain is, on a terminal: a bar for all of it, below it a line for each image that moves
 * just now. Elsewhere the lines of what begins and is over are what people read. Drawn over itself;
 * d->line is how many lines are there.
 */
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

enum { WIDTH = 24, NAME = 28, LINES = 16, LINE = 512, COLUMNS = 80 };

struct far {
	uint64_t done, all, rate;
	size_t moved, moving;
};

static bool is_shown(const struct drain *d)
{
	return !d->cli->json && (d->cli->progress == PROGRESS_BAR ||
				 (d->cli->progress == PROGRESS_AUTO && isatty(STDOUT_FILENO)));
}

static size_t columns(void)
{
	struct winsize size;

	return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || !size.ws_col ? COLUMNS : size.ws_col;
}

static double share_of(const struct drain_image *image)
{
	const json_t *p = json_object_get(image->job, "progress");
	double total = (double)cli_number(p, "total");

	return total > 0 ? (double)cli_number(p, "done") / total : 0;
}

static void add_up(const struct drain *d, struct far *far)
{
	*far = (struct far){0};
	for (size_t i = 0; i < d->n; i++) {
		const struct drain_image *image = &d->image[i];
		bool runs = d->plan.items[i].state == PLAN_RUNS;

		if (d->plan.items[i].store < 0 || (image->why.code && !runs))
			continue;
		far->moving++;
		far->moved += image->moved;
		far->all += image->need;
		if (image->moved)
			far->done += image->need;
		if (!runs)
			continue;
		far->done += (uint64_t)((double)image->need * share_of(image));
		far->rate += cli_number(json_object_get(image->job, "progress"), "rate");
	}
}

static void draw_all(const struct far *far, char *line)
{
	char bar[WIDTH + 1], all[BM_UNITS_TEXT], rate[BM_UNITS_TEXT], left[BM_UNITS_TEXT] = "";
	double share = far->all ? (double)far->done / (double)far->all : 1;
	int filled = (int)(share * WIDTH);

	for (int i = 0; i < WIDTH; i++)
		bar[i] = i < filled ? '=' : i == filled ? '>' : ' ';
	bar[WIDTH] = '\0';
	if (far->rate && far->all > far->done)
		bm_format_duration(
			left, (uint64_t)((double)(far->all - far->done) * 1e9 / (double)far->rate));
	snprintf(line, LINE, "[%s] %3.0f%% of %s, %zu of %zu, %s/s%s%s", bar, share * 100,
		 bm_format_size(all, far->all), far->moved, far->moving,
		 bm_format_size(rate, far->rate), *left ? ", left " : "", left);
}

static void draw_one(const struct drain_image *image, char *line)
{
	char text[LINE - NAME - 8];

	if (image->job)
		cli_progress_line(image->job, text, sizeof(text));
	else
		snprintf(text, sizeof(text), "begins");
	snprintf(line, LINE, "  %-*.*s %s", NAME, NAME, image->name, text);
}

static void put(const char *line, size_t width)
{
	printf("\r%.*s\033[K\n", (int)width - 1, line);
}

void tell_progress(struct drain *d)
{
	char line[LINE];
	size_t width = columns();
	struct far far;
	unsigned lines = 1;

	if (!is_shown(d))
		return;
	if (d->line)
		printf("\033[%uA", d->line);
	add_up(d, &far);
	draw_all(&far, line);
	put(line, width);
	for (size_t i = 0; i < d->n && lines < LINES; i++) {
		if (d->plan.items[i].state != PLAN_RUNS)
			continue;
		draw_one(&d->image[i], line);
		put(line, width);
		lines++;
	}
	fputs("\033[J", stdout);
	fflush(stdout);
	d->line = lines;
}

void tell_clear(struct drain *d)
{
	if (d->line)
		printf("\033[%uA\r\033[J", d->line);
	d->line = 0;
}
