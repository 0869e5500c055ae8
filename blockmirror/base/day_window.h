/* SPDX-License-Identifier: BSD-3-Clause */
/* A part of each day, by this host's clock: what is long may begin in it. */
#ifndef BM_BASE_DAY_WINDOW_H
#define BM_BASE_DAY_WINDOW_H

#include <stdbool.h>

struct bm_day_window {
	int begin, end; /* minutes of the day; equal: never; end before begin: over midnight */
	bool given;     /* else it is always open */
};

/* "22:00-06:00"; -EINVAL: it is something else. */
int bm_day_window_parse(const char *text, struct bm_day_window *window);

/* Whether it is open now. */
bool bm_day_window_open(const struct bm_day_window *window);

#endif
