/* SPDX-License-Identifier: BSD-3-Clause */
/* Log lines on stderr: each is one write(2), so that lines of several threads do not mix. */
#include "blockmirror/base/log.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *ident = "blockmirror";
static enum bm_log_level max_level = BM_LOG_NOTICE;

void bm_log_setup(const char *name, enum bm_log_level max)
{
	ident = name;
	max_level = max;
}

static size_t line_start(char *line, size_t room, enum bm_log_level level)
{
	char when[32];
	struct timespec t;
	struct tm tm;
	int n;

	if (getenv("JOURNAL_STREAM")) {
		n = snprintf(line, room, "<%d>%s: ", (int)level, ident);
	} else {
		clock_gettime(CLOCK_REALTIME, &t);
		localtime_r(&t.tv_sec, &tm);
		strftime(when, sizeof(when), "%F %T", &tm);
		n = snprintf(line, room, "%s.%03ld %s: ", when, t.tv_nsec / 1000000, ident);
	}
	return (size_t)n < room ? (size_t)n : room - 1;
}

void bm_log(enum bm_log_level level, const char *format, ...)
{
	char line[1024];
	size_t used;
	va_list args;
	int n;

	if (level > max_level)
		return;
	used = line_start(line, sizeof(line) - 1, level);
	va_start(args, format);
	n = vsnprintf(line + used, sizeof(line) - 1 - used, format, args);
	va_end(args);
	for (; n > 0 && line[used]; used++) {
		unsigned char c = (unsigned char)line[used];

		if (iscntrl(c)) /* one call is one line, whatever names have in them */
			line[used] = '?';
	}
	line[used++] = '\n';
	/* Nobody is left to tell when stderr is gone. */
	(void)!write(STDERR_FILENO, line, used);
}
