/* SPDX-License-Identifier: BSD-3-Clause */
/* Sizes, rates and durations as people write and read them. */
#include "blockmirror/base/units.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char prefixes[] = "kMGTP";

int bm_parse_size(const char *text, uint64_t *bytes)
{
	const char *prefix = NULL;
	unsigned shift = 0;
	uint64_t value;
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	if (*end)
		for (prefix = prefixes; *prefix; prefix++)
			if (tolower((unsigned char)*prefix) == tolower((unsigned char)*end))
				break;
	if (prefix && *prefix) {
		shift = 10 * (unsigned)(prefix - prefixes + 1);
		end++;
		if (!strcasecmp(end, "ib"))
			end += 2;
	}
	if (!strcasecmp(end, "b"))
		end++;
	if (*end)
		return -EINVAL;
	if (value > (uint64_t)INT64_MAX >> shift)
		return -ERANGE;
	*bytes = value << shift;
	return 0;
}

int bm_parse_duration(const char *text, uint64_t *ns)
{
	static const struct {
		const char *name;
		double ns;
	} units[] = {{"", 1e6}, {"ms", 1e6}, {"us", 1e3}, {"s", 1e9}, {"m", 60e9}, {"h", 3600e9}};
	double value, unit = 0;
	char *end;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	value = strtod(text, &end);
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (!strcmp(end, units[i].name))
			unit = units[i].ns;
	if (unit == 0)
		return -EINVAL;
	if (!isfinite(value) || value * unit > 9e18)
		return -ERANGE;
	*ns = (uint64_t)(value * unit);
	return 0;
}

char *bm_format_size(char *text, uint64_t bytes)
{
	double value = (double)bytes;
	int prefix = -1;

	while (value >= 1023.95 && prefix < 4) {
		value /= 1024;
		prefix++;
	}
	if (prefix < 0)
		snprintf(text, BM_UNITS_TEXT, "%" PRIu64 " B", bytes);
	else
		snprintf(text, BM_UNITS_TEXT, value < 10 ? "%.2f %ciB" : "%.1f %ciB", value,
			 "KMGTP"[prefix]);
	return text;
}

char *bm_format_duration(char *text, uint64_t ns)
{
	double s = (double)ns / 1e9;

	if (ns < 1000000)
		snprintf(text, BM_UNITS_TEXT, "%" PRIu64 " us", ns / 1000);
	else if (s < 1)
		snprintf(text, BM_UNITS_TEXT, "%.1f ms", s * 1e3);
	else if (s < 60)
		snprintf(text, BM_UNITS_TEXT, "%.1f s", s);
	else if (s < 3600)
		snprintf(text, BM_UNITS_TEXT, "%.0f min %.0f s", floor(s / 60), floor(fmod(s, 60)));
	else
		snprintf(text, BM_UNITS_TEXT, "%.0f h %.0f min", floor(s / 3600),
			 floor(fmod(s, 3600) / 60));
	return text;
}
