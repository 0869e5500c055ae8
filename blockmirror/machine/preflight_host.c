/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a host has: by the kernel's word, and then by that of its hook host-facts, whose members
 * count more. Blocks.
 *
 *	arch, page_size, cpus, memory_available, cpu_features, overcommit {mode, ratio}, bridges
 *	by a hook beside these: cpus_free, machine_types, accelerators
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/run.h"
#include "blockmirror/machine/preflight.h"

enum { LARGEST = 4 << 20, FEW = 64 };

/* The first line of file that begins with name: what is behind its colon; NULL: none. */
static char *line_of(const char *file, const char *name)
{
	bm_free char *text = NULL;
	char *at, *end;

	if (bm_read_text(file, LARGEST, &text) < 0)
		return NULL;
	for (at = text; at && strncmp(at, name, strlen(name)) != 0;) {
		at = strchr(at, '\n');
		at = at ? at + 1 : NULL;
	}
	at = at ? strchr(at, ':') : NULL;
	if (!at)
		return NULL;
	end = strchr(at, '\n');
	if (end)
		*end = '\0';
	return bm_need(strdup(at + 1));
}

static json_t *available(void)
{
	bm_free char *text = line_of("/proc/meminfo", "MemAvailable");

	return text ? json_integer(strtoll(text, NULL, 10) * 1024) : NULL;
}

/* "flags" of x86, "Features" of ARM, "features" of s390. */
static json_t *cpu_features(void)
{
	bm_free char *x86 = line_of("/proc/cpuinfo", "flags"),
		     *arm = line_of("/proc/cpuinfo", "Features"),
		     *s390 = line_of("/proc/cpuinfo", "features");
	char *text = x86 ? x86 : arm ? arm : s390, *rest = NULL;
	json_t *list = json_array();

	for (char *word = text ? strtok_r(text, " \t", &rest) : NULL; word;
	     word = strtok_r(NULL, " \t", &rest))
		json_array_append_new(list, json_string(word));
	return list;
}

static json_int_t number_in(const char *path)
{
	bm_free char *text = NULL;

	return bm_read_text(path, FEW, &text) < 0 ? -1 : strtoll(text, NULL, 10);
}

static json_t *overcommit(void)
{
	return json_pack("{s:I s:I}", "mode", number_in("/proc/sys/vm/overcommit_memory"), "ratio",
			 number_in("/proc/sys/vm/overcommit_ratio"));
}

/* Not by /sys: that is of the network namespace that it was mounted in. */
json_t *preflight_links(const char *kind, const char *what)
{
	char *argv[] = {(char *)"ip", (char *)"-j", (char *)"link", (char *)"show", (char *)kind,
			(char *)what, NULL};
	bm_free char *output = NULL;
	char why[100];

	if (bm_run(argv, NULL, NULL, &output, why, sizeof(why)) != 0)
		return NULL;
	return output && *output ? json_loads(output, 0, NULL) : json_array();
}

static json_t *bridges(void)
{
	json_t *links = preflight_links("type", "bridge"), *list = links ? json_array() : NULL,
	       *link;
	size_t i;

	json_array_foreach(links, i, link)
		if (json_object_get(link, "ifname"))
			json_array_append(list, json_object_get(link, "ifname"));
	json_decref(links);
	return list;
}

json_t *preflight_facts(struct move *m, struct bm_error *error)
{
	struct utsname name = {0};
	json_t *facts, *said = NULL;
	int r;

	uname(&name);
	facts = json_pack("{s:s s:I s:I s:o* s:o s:o s:o*}", "arch", name.machine, "page_size",
			  (json_int_t)sysconf(_SC_PAGESIZE), "cpus",
			  (json_int_t)sysconf(_SC_NPROCESSORS_ONLN), "memory_available",
			  available(), "cpu_features", cpu_features(), "overcommit", overcommit(),
			  "bridges", bridges());
	r = move_hook(m, "host-facts",
		      json_pack("{s:O*}", "need", json_object_get(m->plan, "need")), &said, error);
	if (!r)
		json_object_update(facts, said);
	json_decref(said);
	if (!r || r == -ENOENT)
		return facts;
	error->code = BM_E_HOOK;
	json_decref(facts);
	return NULL;
}
