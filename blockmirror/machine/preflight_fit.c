/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The host that a machine goes to: whether it has what the machine needs, beside what it keeps for
 * other machines that are on their way here. What a machine needs stands in the plan of its move,
 * which goes when the move is over; who looks and writes it down has the lock of all moves here, so
 * two do not count the same memory. What such a machine uses already is free no more, and is not
 * counted again: of its VMM what is resident, of its images what is allocated.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/units.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/preflight.h"

enum { LARGEST = 4 << 20, FOLDERS = MOVE_DISKS };

struct kept {
	json_int_t memory, cpus;
};

struct place {
	dev_t dev;
	const char *folder;
	json_int_t need;
};

struct check {
	struct move *m;
	const json_t *need, *facts;
	json_t *list;
	struct place places[FOLDERS];
	size_t n;
};

static json_int_t number(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

static bool has(const json_t *list, const char *text)
{
	for (size_t i = 0; i < json_array_size(list); i++)
		if (!strcmp(json_string_value(json_array_get(list, i)), text))
			return true;
	return false;
}

int preflight_serviced(const struct move *m, struct bm_error *error)
{
	bm_free char *path = NULL;
	struct stat st;

	if (asprintf(&path, "%s/maintenance", m->state) < 0)
		path = bm_need(NULL);
	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return 0;
	return bm_fail(error, BM_E_MAINTENANCE,
		       "the other host is in maintenance: no machine goes there");
}

/* What is kept for others */

static json_int_t resident(json_int_t pid)
{
	char path[64];
	bm_free char *text = NULL;
	long long pages = 0;

	snprintf(path, sizeof(path), "/proc/%lld/statm", (long long)pid);
	if (pid <= 0 || bm_read_text(path, LARGEST, &text) < 0 ||
	    sscanf(text, "%*d %lld", &pages) != 1)
		return 0;
	return pages * sysconf(_SC_PAGESIZE);
}

static json_int_t left(json_int_t need, json_int_t used)
{
	return need > used ? need - used : 0;
}

/* What a disk will take yet of the file system that its folder is in. */
static json_int_t disk_left(const json_t *disk, dev_t *dev)
{
	const char *folder = graph_text(disk, "folder");
	bm_free char *path = NULL;
	struct stat st;

	if (!*folder || stat(folder, &st) < 0)
		return 0;
	*dev = st.st_dev;
	if (asprintf(&path, "%s/%s", folder, graph_text(disk, "image")) < 0)
		path = bm_need(NULL);
	if (stat(path, &st) < 0)
		st.st_blocks = 0;
	return left(number(disk, "bytes"), (json_int_t)st.st_blocks * 512);
}

static void count_disks(struct check *c, const json_t *need, bool own)
{
	json_t *disks = json_object_get(need, "disks"), *disk;
	size_t i;

	json_array_foreach(disks, i, disk) {
		dev_t dev = 0;
		json_int_t bytes = disk_left(disk, &dev);
		size_t k = 0;

		while (k < c->n && c->places[k].dev != dev)
			k++;
		if (k == c->n && own && bytes && c->n < FOLDERS)
			c->places[c->n++] =
				(struct place){.dev = dev, .folder = graph_text(disk, "folder")};
		if (k < c->n)
			c->places[k].need += bytes;
	}
}

static void add_other(struct check *c, const char *id, struct kept *kept)
{
	bm_free char *path = NULL, *text = NULL;
	const json_t *need;
	json_t *plan = NULL;

	if (asprintf(&path, "%s/moves/%s/plan", c->m->state, id) < 0)
		path = bm_need(NULL);
	if (*id != '.' && strcmp(id, c->m->id) != 0 && !bm_read_text(path, LARGEST, &text))
		plan = json_loads(text, 0, NULL);
	need = json_object_get(plan, "need");
	if (need && !strcmp(graph_text(plan, "side"), "target")) {
		kept->memory += left(number(need, "memory"), resident(number(plan, "vmm")));
		kept->cpus += number(need, "cpus");
		count_disks(c, need, false);
	}
	json_decref(plan);
}

static struct kept kept_for_others(struct check *c)
{
	struct kept kept = {0};
	bm_free char *path = NULL;
	struct dirent *entry;
	DIR *folder;

	if (asprintf(&path, "%s/moves", c->m->state) < 0)
		path = bm_need(NULL);
	folder = opendir(path);
	while (folder && (entry = readdir(folder)))
		add_other(c, entry->d_name, &kept);
	if (folder)
		closedir(folder);
	return kept;
}

/* What it has */

static void fit_memory(struct check *c, json_int_t kept)
{
	json_int_t need = left(number(c->need, "memory"), resident(number(c->m->plan, "vmm"))),
		   have = left(number(c->facts, "memory_available"), kept);
	const json_t *here = json_object_get(c->facts, "overcommit"),
		     *there = json_object_get(c->need, "overcommit");
	char text[3][BM_UNITS_TEXT];

	if (need > have)
		preflight_refuse(c->list, BM_E_MEMORY,
				 "the other host has too little free memory: the machine needs %s "
				 "more, %s are free, beside %s that are kept for other moves",
				 bm_format_size(text[0], (uint64_t)need),
				 bm_format_size(text[1], (uint64_t)have),
				 bm_format_size(text[2], (uint64_t)kept));
	if (here && there &&
	    (number(here, "mode") != number(there, "mode") ||
	     (number(here, "mode") == 2 && number(here, "ratio") != number(there, "ratio"))))
		preflight_refuse(c->list, BM_E_MEMORY,
				 "the other host commits memory by other rules: "
				 "vm.overcommit_memory is %lld here and %lld there "
				 "(overcommit_ratio %lld and %lld)",
				 (long long)number(there, "mode"), (long long)number(here, "mode"),
				 (long long)number(there, "ratio"),
				 (long long)number(here, "ratio"));
}

static void fit_cpus(struct check *c, json_int_t kept)
{
	const char *all = json_object_get(c->facts, "cpus_free") ? "cpus_free" : "cpus";
	json_t *features = json_object_get(c->need, "cpu_features"), *feature;
	json_int_t need = number(c->need, "cpus"), have = left(number(c->facts, all), kept);
	char missing[200] = "";
	size_t i, n = 0;

	if (need > have)
		preflight_refuse(
			c->list, BM_E_CPU,
			"the other host has too few processors: the machine has %lld, %lld "
			"are free, beside %lld that are kept for other moves",
			(long long)need, (long long)have, (long long)kept);
	json_array_foreach(features, i, feature) {
		if (has(json_object_get(c->facts, "cpu_features"), json_string_value(feature)))
			continue;
		if (n < sizeof(missing))
			n += (size_t)snprintf(missing + n, sizeof(missing) - n, " %s",
					      json_string_value(feature));
	}
	if (n)
		preflight_refuse(c->list, BM_E_CPU,
				 "the other host's processors lack what the machine has seen "
				 "here:%s%s",
				 missing, n >= sizeof(missing) ? " …" : "");
}

static void fit_kind(struct check *c)
{
	const json_t *types = json_object_get(c->facts, "machine_types"),
		     *accelerators = json_object_get(c->facts, "accelerators");
	json_t *bridges = json_object_get(c->need, "bridges"), *bridge;
	const char *arch = graph_text(c->need, "arch"), *type = graph_text(c->need, "machine_type"),
		   *accelerator = graph_text(c->need, "accelerator");
	json_int_t here = number(c->facts, "page_size"), there = number(c->need, "page_size");
	size_t i;

	if (*arch && strcmp(arch, graph_text(c->facts, "arch")) != 0)
		preflight_refuse(c->list, BM_E_HOST,
				 "the other host is of another kind: %s, not %s",
				 graph_text(c->facts, "arch"), arch);
	if (here != there)
		preflight_refuse(c->list, BM_E_HOST,
				 "the other host has pages of another size: %lld bytes, not %lld",
				 (long long)here, (long long)there);
	if (types && *type && !has(types, type))
		preflight_refuse(c->list, BM_E_HOST,
				 "the other host's VMM does not know the machine type %s", type);
	if (accelerators && !has(accelerators, accelerator))
		preflight_refuse(c->list, BM_E_HOST, "the other host has no accelerator %s",
				 accelerator);
	json_array_foreach(bridges, i, bridge) {
		if (json_object_get(c->facts, "bridges") &&
		    !has(json_object_get(c->facts, "bridges"), json_string_value(bridge)))
			preflight_refuse(c->list, BM_E_HOST,
					 "the other host has no network bridge %s",
					 json_string_value(bridge));
	}
}

/* Disks */

/* As the daemon has it, when the disk comes. */
static bool may_be_in(const struct check *c, const char *folder)
{
	bm_free char *real = realpath(folder, NULL);
	json_t *allowed;
	size_t i;

	json_array_foreach(json_object_get(c->m->plan, "receive"), i, allowed) {
		bm_free char *root = realpath(json_string_value(allowed), NULL);
		size_t n = root ? strlen(root) : 0;

		if (real && root && !strncmp(real, root, n) &&
		    (!real[n] || real[n] == '/' || !strcmp(root, "/")))
			return true;
	}
	return false;
}

/* Whose it is there, if it is known there. One that was given back to the host that asks is not. */
static bool is_other(const struct check *c, const char *name)
{
	bm_record_auto struct bm_record record = {0};
	bm_free char *folder = NULL;
	struct bm_error error;

	if (asprintf(&folder, "%s/disks/%s", c->m->state, name) < 0)
		folder = bm_need(NULL);
	return bm_record_read(folder, &record, &error) >= 0 && record.role != BM_ROLE_STANDBY &&
	       !(record.role == BM_ROLE_RETIRED && !strcmp(record.peer, c->m->peer));
}

static void fit_disk(struct check *c, const json_t *disk)
{
	const char *name = graph_text(disk, "name"), *folder = graph_text(disk, "folder"),
		   *image = graph_text(disk, "image");
	bm_free char *path = NULL;

	if (!json_is_true(json_object_get(disk, "copied")) || !*folder)
		return;
	if (!may_be_in(c, folder)) {
		preflight_refuse(c->list, BM_E_ACCESS,
				 "the other host does not let disks into %s: there, \"blockmirror "
				 "peer allow %s --receive %s\" does",
				 folder, c->m->peer, folder);
		return;
	}
	if (is_other(c, name)) {
		preflight_refuse(c->list, BM_E_EXISTS, "the other host has a disk %s itself", name);
		return;
	}
	if (asprintf(&path, "%s/%s", folder, image) < 0)
		path = bm_need(NULL);
	if (*image && !json_is_true(json_object_get(c->need, "overwrite")) && !access(path, F_OK))
		preflight_refuse(c->list, BM_E_EXISTS,
				 "%s exists on the other host: --overwrite gives up what it holds",
				 path);
}

static void fit_disks(struct check *c)
{
	json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(c->need, "disks"), i, disk)
		if (!json_object_get(c->m->plan, "prepared"))
			fit_disk(c, disk);
	for (i = 0; i < c->n; i++) {
		struct statvfs fs;
		char need[BM_UNITS_TEXT], have[BM_UNITS_TEXT];
		uint64_t bytes;

		if (!may_be_in(c, c->places[i].folder) || statvfs(c->places[i].folder, &fs) < 0)
			continue;
		bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
		if ((uint64_t)c->places[i].need > bytes)
			preflight_refuse(
				c->list, BM_E_ENOSPC,
				"%s on the other host: no space: this move and others take "
				"%s there yet, %s are free",
				c->places[i].folder,
				bm_format_size(need, (uint64_t)c->places[i].need),
				bm_format_size(have, bytes));
	}
}

/* All of it */

static int take_lock(const struct move *m, struct bm_error *error)
{
	bm_free char *path = NULL;
	bm_close int fd = -1;

	if (asprintf(&path, "%s/moves/.kept", m->state) < 0)
		path = bm_need(NULL);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || flock(fd, LOCK_EX) < 0)
		return bm_fail_errno(error, errno, "cannot lock %s", path);
	return bm_steal_fd(fd);
}

static void ask_hook(struct check *c)
{
	struct bm_error error = {0};
	int r = move_hook(c->m, "check-target",
			  json_pack("{s:O s:O s:O* s:O*}", "need", c->need, "facts", c->facts,
				    "disks", json_object_get(c->m->plan, "disks"), "description",
				    json_object_get(c->m->plan, "description")),
			  NULL, &error);

	if (r >= 0 || r == -ENOENT)
		return;
	error.code = BM_E_HOOK;
	preflight_refuse_error(c->list, &error);
}

json_t *preflight_check(struct move *m, json_t *need, struct bm_error *error)
{
	struct check c = {.m = m, .need = need, .list = json_array()};
	json_t *facts, *answer;
	bm_close int lock = -1;
	struct kept kept;
	int r = 0;

	json_object_set(m->plan, "need", need);
	if (preflight_serviced(m, error) < 0)
		preflight_refuse_error(c.list, error);
	c.facts = facts = preflight_facts(m, error);
	if (!facts) {
		preflight_refuse_error(c.list, error);
	} else {
		ask_hook(&c); /* it may take its time: others need not wait for it */
		lock = take_lock(m, error);
		if (lock >= 0) {
			count_disks(&c, need, true);
			kept = kept_for_others(&c);
			fit_kind(&c);
			fit_memory(&c, kept.memory);
			fit_cpus(&c, kept.cpus);
			fit_disks(&c);
		}
		r = lock < 0 ? lock : 0;
	}
	if (json_array_size(c.list))
		json_object_del(m->plan, "need");
	if (!r)
		r = move_save(m, error);
	answer = r < 0 ? NULL : json_pack("{s:O s:O*}", "refusals", c.list, "facts", facts);
	json_decref(c.list);
	json_decref(facts);
	return answer;
}
