/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a machine needs of the host that it goes to, by its VMM's word, and what keeps it from going
 * at all. Nothing is changed by asking.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockmirror/base/address.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/machine/cmdline.h"
#include "blockmirror/machine/graph.h"
#include "blockmirror/machine/move_tpm.h"
#include "blockmirror/machine/preflight.h"

#define OVERHEAD (64ull << 20) /* of a VMM beside its guest's memory, at least */
enum { MENDED = 9, AT_ONCE = 64 * 4096 };

static json_t *ask(struct source *s, const char *command, json_t *arguments)
{
	json_t *result = NULL;
	struct bm_error error;

	if (bm_qmp_call(s->vm.qmp, command, arguments, &result, &error) < 0)
		return NULL;
	return result;
}

static json_t *property(struct source *s, const char *path, const char *name)
{
	return ask(s, "qom-get", json_pack("{s:s s:s}", "path", path, "property", name));
}

static bool has_kvm(struct source *s)
{
	json_t *kvm = ask(s, "query-kvm", NULL);
	bool has = json_is_true(json_object_get(kvm, "enabled"));

	json_decref(kvm);
	return has;
}

/* What it cannot take along */

static bool is_passed_through(const char *type)
{
	static const char *const types[] = {"child<vfio-", "child<usb-host", "child<vhost-vdpa",
					    "child<scsi-generic", "child<scsi-block"};

	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
		if (!strncmp(type, types[i], strlen(types[i])))
			return true;
	return false;
}

static void find_passed_through(struct source *s, json_t *list)
{
	static const char *const folders[] = {"/machine/peripheral", "/machine/peripheral-anon"};
	json_t *device;
	size_t i;

	for (int k = 0; k < 2; k++) {
		json_t *devices = ask(s, "qom-list", json_pack("{s:s}", "path", folders[k]));

		json_array_foreach(devices, i, device) {
			const char *type = graph_text(device, "type");

			if (is_passed_through(type))
				preflight_refuse(list, BM_E_UNSUPPORTED,
						 "machine %s has a device of this host passed "
						 "through to it, which cannot go along: %s (%.*s); "
						 "unplug it first",
						 s->m->machine, graph_text(device, "name"),
						 (int)strcspn(type + 6, ">"), type + 6);
		}
		json_decref(devices);
	}
}

void preflight_blockers(struct source *s, json_t *list)
{
	struct bm_error error = {0};
	json_t *info = NULL, *reason;
	bm_free char *status = vm_status(&s->vm, &error),
		     *migration = status ? vm_migration(&s->vm, &info, &error) : NULL;
	size_t i;

	if (!migration) {
		preflight_refuse_error(list, &error);
		return;
	}
	if (strcmp(status, "running") != 0)
		preflight_refuse(list, BM_E_NOT_READY, "machine %s does not run: it is \"%s\"",
				 s->m->machine, status);
	if (!strcmp(migration, "active") || !strcmp(migration, "setup"))
		preflight_refuse(list, BM_E_BUSY, "machine %s is being migrated by somebody else",
				 s->m->machine);
	json_array_foreach(json_object_get(info, "blocked-reasons"), i, reason)
		preflight_refuse(list, BM_E_UNSUPPORTED, "its VMM cannot move machine %s: %s",
				 s->m->machine, json_string_value(reason));
	json_decref(info);
	find_passed_through(s, list);
}

/*
 * Without KVM QEMU notes what its guest writes by the entries of the emulated TLB: an entry that
 * says "noted already" has to be reset when the note is taken away. Before 9.0 that is forgotten
 * where notes are taken 64 pages at a time, which is where the size of the memory is a multiple of
 * that (QEMU 03bfc2188f, of 2024): what the guest writes by such an entry afterwards is never sent.
 */
static void find_lossy_log(struct source *s, json_t *list)
{
	json_t *version = ask(s, "query-version", NULL), *memory, *block;
	json_int_t major =
		json_integer_value(json_object_get(json_object_get(version, "qemu"), "major"));
	size_t i;

	json_decref(version);
	if (major >= MENDED || has_kvm(s))
		return;
	memory = ask(s, "query-memdev", NULL);
	json_array_foreach(memory, i, block) {
		json_int_t size = json_integer_value(json_object_get(block, "size"));

		if (size % AT_ONCE == 0)
			preflight_refuse(
				list, BM_E_UNSUPPORTED,
				"machine %s would lose what its guest writes while its memory is "
				"sent: QEMU before %d.0 does not note all of that without KVM, "
				"when the size of a memory is a multiple of 256 KiB, as that of %s "
				"is; start it with %lldk, or with KVM, or a newer QEMU",
				s->m->machine, MENDED, graph_text(block, "id"),
				(long long)size / 1024 + 8);
	}
	json_decref(memory);
}

/* What it needs */

static json_int_t memory_of(struct source *s)
{
	json_t *sizes = ask(s, "query-memory-size-summary", NULL);
	json_int_t bytes = json_integer_value(json_object_get(sizes, "base-memory")) +
			   json_integer_value(json_object_get(sizes, "plugged-memory"));

	json_decref(sizes);
	return bytes;
}

/* "pc-i440fx-7.2", as -machine has it. */
static json_t *machine_type(struct source *s)
{
	static const char suffix[] = "-machine";
	json_t *type = property(s, "/machine", "type"), *name = NULL;
	const char *text = json_string_value(type);
	size_t n = text ? strlen(text) : 0, tail = sizeof(suffix) - 1;

	if (n > tail)
		name = json_stringn(text, strcmp(text + n - tail, suffix) ? n : n - tail);
	json_decref(type);
	return name;
}

/* cpuinfo says sse4_1 where QEMU has a property "sse4.1", or "sse4-1". */
static bool same_feature(const char *here, const char *there)
{
	for (; *here && *there; here++, there++)
		if (*here != *there && !(*here == '_' && (*there == '-' || *there == '.')))
			return false;
	return !*here && !*there;
}

/*
 * Those of this host's features that the guest sees. One that QEMU makes up by itself this host
 * need not have, and the other one neither.
 */
static json_t *guest_features(struct source *s, const json_t *facts)
{
	json_t *cpus = ask(s, "query-cpus-fast", NULL), *known, *list = json_array(), *entry;
	const char *path = graph_text(json_array_get(cpus, 0), "qom-path");
	const json_t *host = json_object_get(facts, "cpu_features");
	size_t i;

	known = ask(s, "qom-list", json_pack("{s:s}", "path", path));
	json_array_foreach(known, i, entry) {
		const char *name = graph_text(entry, "name");
		json_t *on = NULL;

		for (size_t k = 0; k < json_array_size(host) && !on; k++) {
			json_t *feature = json_array_get(host, k);

			if (strcmp(graph_text(entry, "type"), "bool") != 0 ||
			    !same_feature(json_string_value(feature), name))
				continue;
			on = property(s, path, name);
			if (json_is_true(on))
				json_array_append(list, feature);
		}
		json_decref(on);
	}
	json_decref(known);
	json_decref(cpus);
	return list;
}

static json_int_t cpus_of(struct source *s)
{
	json_t *cpus = ask(s, "query-cpus-fast", NULL);
	size_t n = json_array_size(cpus);

	json_decref(cpus);
	return (json_int_t)n;
}

/* Bridges */

/* The bridge that an interface of ours is in. */
static char *bridge_of(const char *interface)
{
	json_t *links = preflight_links("dev", interface);
	const char *master = graph_text(json_array_get(links, 0), "master");
	char *bridge = *master ? bm_need(strdup(master)) : NULL;

	json_decref(links);
	return bridge;
}

static json_t *bridges_of(const json_t *arguments)
{
	json_t *list = json_array();

	for (size_t i = 1; i < json_array_size(arguments); i++) {
		const char *before = json_string_value(json_array_get(arguments, i - 1)),
			   *text = json_string_value(json_array_get(arguments, i));
		bm_free char *bridge = NULL, *interface = NULL;

		if (!text || !before || (!strstr(before, "-netdev") && !strstr(before, "-nic")))
			continue;
		bridge = bm_cmdline_option(text, "br");
		interface = bm_cmdline_option(text, "ifname");
		if (!bridge && interface)
			bridge = bridge_of(interface);
		else if (!bridge && !strncmp(text, "bridge", 6))
			bridge = bm_need(strdup("br0"));
		if (bridge)
			json_array_append_new(list, json_string(bridge));
	}
	return list;
}

/* Disks: where they would go, and how much there is of them. */

static json_int_t allocated(const char *path, json_int_t size)
{
	struct stat st;
	json_int_t bytes;

	if (!path || stat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return size;
	bytes = (json_int_t)st.st_blocks * 512;
	return bytes < size ? bytes : size;
}

static json_t *disk_need(const struct source *s, const json_t *disk)
{
	const char *uri = graph_text(disk, "uri"), *path = bm_uri_path(uri),
		   *slash = path ? strrchr(path, '/') : NULL;
	json_int_t size = json_integer_value(json_object_get(disk, "size"));
	bool copied = json_is_true(json_object_get(disk, "begin"));
	bm_free char *folder = s->options.into ? bm_need(strdup(s->options.into))
			       : slash         ? bm_need(strndup(path, (size_t)(slash - path)))
					       : NULL;

	return json_pack("{s:O s:I s:s* s:s* s:b}", "name", json_object_get(disk, "name"), "bytes",
			 copied ? allocated(path, size) : 0, "folder", copied ? folder : NULL,
			 "image", copied && slash ? slash + 1 : NULL, "copied", (int)copied);
}

static json_t *disks_need(const struct source *s)
{
	json_t *list = json_array();

	for (size_t i = 0; i < json_array_size(s->disks); i++)
		json_array_append_new(list, disk_need(s, json_array_get(s->disks, i)));
	return list;
}

static void find_need(struct source *s, json_t *arguments, const json_t *facts)
{
	json_int_t memory = memory_of(s);
	bool kvm = has_kvm(s);

	json_object_set_new(
		s->m->plan, "need",
		json_pack("{s:I s:I s:I s:o* s:s s:o* s:o s:o s:b s:O* s:O* s:O* s:O*}", "guest",
			  memory, "memory", memory + (json_int_t)OVERHEAD, "cpus", cpus_of(s),
			  "machine_type", machine_type(s), "accelerator", kvm ? "kvm" : "tcg",
			  "cpu_features", kvm ? guest_features(s, facts) : NULL, "bridges",
			  bridges_of(arguments), "disks", disks_need(s), "overwrite",
			  (int)s->options.overwrite, "program", json_array_get(arguments, 0),
			  "arch", kvm ? json_object_get(facts, "arch") : NULL, "page_size",
			  json_object_get(facts, "page_size"), "overcommit",
			  json_object_get(facts, "overcommit")));
}

int preflight_here(struct source *s, struct bm_error *error)
{
	json_t *list = json_array(), *facts, *tpm, *arguments = vm_arguments(&s->vm);
	int r;

	if (s->options.bind && !bm_address_is_ours(s->options.bind))
		preflight_refuse(list, BM_E_HOST, "--bind %s: that is no address of this host",
				 s->options.bind);
	preflight_blockers(s, list);
	find_lossy_log(s, list);
	if (disks_find(s, error) < 0)
		preflight_refuse_error(list, error);
	if (tpm_find(&s->vm, arguments, &tpm, error) < 0)
		preflight_refuse_error(list, error);
	facts = preflight_facts(s->m, error);
	if (!facts)
		preflight_refuse_error(list, error);
	r = preflight_result(s->m, list, error);
	if (!r) {
		find_need(s, arguments, facts);
		json_object_set_new(s->m->plan, "description",
				    json_pack("{s:O s:O* s:O}", "qmp",
					      json_object_get(s->m->plan, "qmp"), "arguments",
					      arguments, "tpm", tpm));
	}
	json_decref(list);
	json_decref(facts);
	json_decref(tpm);
	json_decref(arguments);
	return r;
}
