/* SPDX-License-Identifier: BSD-3-Clause */
#include "blockmirror/base/day_window.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>

int bm_day_window_parse(const char *text, struct bm_day_window *window)
{
	int a, b, c, e, n = 0;

	if (sscanf(text, "%d:%2d-%d:%2d%n", &a, &b, &c, &e, &n) != 4 || text[n] || a < 0 ||
	    a > 23 || b < 0 || b > 59 || c < 0 || c > 24 || e < 0 || e > 59)
		return -EINVAL;
	*window = (struct bm_day_window){.begin = a * 60 + b, .end = c * 60 + e, .given = true};
	return 0;
}

bool bm_day_window_open(const struct bm_day_window *window)
{
	time_t now = time(NULL);
	struct tm tm;
	int minute;

	if (!window->given || !localtime_r(&now, &tm))
		return true;
	minute = tm.tm_hour * 60 + tm.tm_min;
	return window->begin <= window->end ? minute >= window->begin && minute < window->end
					    : minute >= window->begin || minute < window->end;
}
