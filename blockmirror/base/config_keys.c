/* SPDX-License-Identifier: BSD-3-Clause */
/* The keys that there are, and what their values may be. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/config.h"
#include "blockmirror/base/day_window.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"

enum { MOST = 64 };

bool bm_parse_share(const char *text, uint64_t whole, uint64_t *bytes)
{
	char *end;
	double percent = strtod(text, &end);

	if (*text < '0' || *text > '9' || end == text || strcmp(end, "%") != 0)
		return !bm_parse_size(text, bytes);
	*bytes = (uint64_t)((double)whole * percent / 100);
	return percent <= 100;
}

static const char *as_text(const char *value, json_t **out)
{
	*out = json_string(value);
	return *out ? NULL : "UTF-8 is wanted";
}

static const char *as_folder(const char *value, json_t **out)
{
	return *value == '/' ? as_text(value, out) : "a path that begins with / is wanted";
}

static const char *as_folder_or_none(const char *value, json_t **out)
{
	return *value == '/' || !strcmp(value, "none")
		       ? as_text(value, out)
		       : "a path that begins with /, or none, is wanted";
}

static const char *as_store(const char *value, json_t **out)
{
	bm_free char *host = NULL, *path = NULL;

	if (*value == '/' || (!strncmp(value, "bm:", 3) && !bm_uri_peer(value, &host, &path, NULL)))
		return as_text(value, out);
	return "a path that begins with /, or bm://HOST/FOLDER, is wanted";
}

static const char *as_address(const char *value, json_t **out)
{
	const char *colon = strrchr(value, ':');
	char *end;
	unsigned long port = colon ? strtoul(colon + 1, &end, 10) : 0;

	if (!colon || colon == value || colon[1] < '0' || colon[1] > '9' || *end || !port ||
	    port > 65535)
		return "ADDRESS:PORT is wanted";
	return as_text(value, out);
}

static const char *as_number(const char *value, json_t **out)
{
	char *end;
	unsigned long n = strtoul(value, &end, 10);

	if (*value < '0' || *value > '9' || *end || !n || n > MOST)
		return "a number from 1 to 64 is wanted";
	*out = json_integer((json_int_t)n);
	return NULL;
}

static const char *as_size(const char *value, json_t **out)
{
	uint64_t bytes;

	if (bm_parse_size(value, &bytes) < 0 || !bytes)
		return "a size like 64M is wanted";
	*out = json_integer((json_int_t)bytes);
	return NULL;
}

static const char *as_share(const char *value, json_t **out)
{
	uint64_t bytes;

	return bm_parse_share(value, 1, &bytes) ? as_text(value, out)
						: "a size like 20G, or a share like 5%, is wanted";
}

static const char *as_percent(const char *value, json_t **out)
{
	uint64_t bytes;

	return strchr(value, '%') && bm_parse_share(value, 1, &bytes)
		       ? as_text(value, out)
		       : "a share like 80% is wanted";
}

static const char *as_window(const char *value, json_t **out)
{
	struct bm_day_window window;

	return bm_day_window_parse(value, &window) < 0 ? "times like 22:00-06:00 are wanted"
						       : as_text(value, out);
}

static bool is_time(const char *value, uint64_t least)
{
	uint64_t ns;

	return !bm_parse_duration(value, &ns) && ns >= least;
}

static const char *as_time(const char *value, json_t **out)
{
	return is_time(value, 1) ? as_text(value, out) : "a time like 30s is wanted";
}

static const char *as_latency(const char *value, json_t **out)
{
	return !strcmp(value, "off") || !strcmp(value, "auto") || is_time(value, 1)
		       ? as_text(value, out)
		       : "milliseconds, auto or off is wanted";
}

static const char *as_deadline(const char *value, json_t **out)
{
	return is_time(value, 10000000) ? as_text(value, out) : "a time of 10ms or more is wanted";
}

static const char *as_loss(const char *value, json_t **out)
{
	return !strcmp(value, "wait") || !strcmp(value, "pause") || is_time(value, 1)
		       ? as_text(value, out)
		       : "wait, pause or a time is wanted";
}

static const char *as_kind(const char *value, json_t **out)
{
	static const char *const kinds[] = {"live", "cold", "raw", "qcow2"};

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (!strcmp(value, kinds[i]))
			return as_text(value, out);
	return "live, cold, raw or qcow2 is wanted";
}

static const struct config_key keys[] = {
	{"defaults", "run-dir", as_folder, false},
	{"defaults", "state-dir", as_folder, false},
	{"defaults", "hooks", as_folder_or_none, false},
	{"defaults", "hook-timeout", as_time, false},
	{"defaults", "machine-hooks", as_folder, false},
	{"defaults", "resume-with", as_folder_or_none, false},
	{"defaults", "name", as_text, false},
	{"defaults", "listen", as_address, false},
	{"defaults", "bind", as_text, false},
	{"defaults", "tls-dir", as_folder, false},
	{"defaults", "guest-latency", as_latency, false},
	{"defaults", "target-deadline", as_deadline, false},
	{"defaults", "on-target-loss", as_loss, false},
	{"limits", "per-host", as_number, false},
	{"limits", "per-datastore", as_number, false},
	{"limits", "rate", as_size, false},
	{"limits", "window", as_window, false},
	{"limits", "reserve", as_share, false},
	{"limits", "deny-storage", as_text, true},
	{"datastore", "path", as_store, false},
	{"datastore", "reserve", as_share, false},
	{"datastore", "parallel", as_number, false},
	{"datastore", "fill", as_percent, false},
	{"datastore", "deny", as_kind, true},
	{"peer", "address", as_address, false},
	{"peer", "receive", as_folder, true},
	{"peer", "shared", as_text, true},
};

const struct config_key *config_find_key(const char *section, const char *name, char *known,
					 size_t size)
{
	size_t used = 0;

	*known = '\0';
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (strcmp(keys[i].section, section) != 0)
			continue;
		if (!strcmp(keys[i].name, name))
			return &keys[i];
		used += (size_t)snprintf(known + used, used < size ? size - used : 0, "%s%s",
					 used ? ", " : "", keys[i].name);
	}
	return NULL;
}
