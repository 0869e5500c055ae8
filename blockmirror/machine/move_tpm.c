/* SPDX-License-Identifier: BSD-3-Clause */
/* A machine's TPM, on both hosts. */
#include "blockmirror/machine/move_tpm.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/dirs.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/machine/cmdline.h"
#include "blockmirror/machine/graph.h"

enum { LARGEST = 1 << 16 };

static const char *word(const json_t *arguments, size_t i)
{
	const char *text = json_string_value(json_array_get(arguments, i));

	return text ? text : "";
}

/* Source */

/* Where QEMU reaches who emulates it; it does not say so itself. */
static char *socket_of(const json_t *arguments, const char *chardev)
{
	for (size_t i = 1; i < json_array_size(arguments); i++) {
		const char *before = word(arguments, i - 1);
		bm_free char *id = bm_cmdline_option(word(arguments, i), "id");

		if (id && !strcmp(id, chardev) && !strncmp(word(arguments, i), "socket,", 7) &&
		    (!strcmp(before, "-chardev") || !strcmp(before, "--chardev")))
			return bm_cmdline_option(word(arguments, i), "path");
	}
	return NULL;
}

/* A process's words; NULL: it is gone, or not for us to see. */
static json_t *words_of(const char *pid)
{
	bm_free char *path = NULL, *text = bm_need(malloc(LARGEST + 1));
	json_t *list = json_array();
	bm_close int fd = -1;
	ssize_t n;

	if (asprintf(&path, "/proc/%s/cmdline", pid) < 0)
		path = bm_need(NULL);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, LARGEST);
	text[n > 0 ? n : 0] = '\0';
	for (const char *at = text; at < text + n; at += strlen(at) + 1)
		json_array_append_new(list, json_string(at));
	return list;
}

static bool is_emulator_of(const json_t *words, const char *socket)
{
	const char *slash = strrchr(word(words, 0), '/');

	if (strcmp(slash ? slash + 1 : word(words, 0), "swtpm") != 0)
		return false;
	for (size_t i = 1; i < json_array_size(words); i++) {
		bm_free char *path = bm_cmdline_option(word(words, i), "path");

		if (path && !strcmp(path, socket))
			return true;
	}
	return false;
}

/*
 * Any user can have a process with such words, and its folder would be renamed by us: so it has to
 * be root's or the VMM's user's.
 */
static bool is_trusted(const char *pid, uid_t vmm, uid_t *uid)
{
	bm_free char *path = NULL;
	struct stat st;

	if (asprintf(&path, "/proc/%s", pid) < 0)
		path = bm_need(NULL);
	if (stat(path, &st) < 0 || (st.st_uid && st.st_uid != vmm))
		return false;
	*uid = st.st_uid;
	return true;
}

/* The words of the swtpm that is at socket, and whose process it is; NULL: there is none. */
static json_t *emulator_of(const char *socket, uid_t vmm, uid_t *uid)
{
	DIR *all = opendir("/proc");
	json_t *words = NULL;

	for (struct dirent *entry; all && !words && (entry = readdir(all));) {
		if (!isdigit((unsigned char)*entry->d_name) || !is_trusted(entry->d_name, vmm, uid))
			continue;
		words = words_of(entry->d_name);
		if (!is_emulator_of(words, socket)) {
			json_decref(words);
			words = NULL;
		}
	}
	if (all)
		closedir(all);
	return words;
}

static bool has_word(const json_t *words, const char *name)
{
	for (size_t i = 1; i < json_array_size(words); i++)
		if (!strncmp(word(words, i), name, strlen(name)))
			return true;
	return false;
}

static char *folder_of(const json_t *words)
{
	char *folder = NULL;

	for (size_t i = 1; i < json_array_size(words) && !folder; i++)
		if (!strcmp(word(words, i - 1), "--tpmstate"))
			folder = bm_cmdline_option(word(words, i), "dir");
	return folder;
}

/* One of that user's, with what swtpm keeps: nothing else is taken away. */
static bool is_state(const char *folder, uid_t uid)
{
	bm_close int fd = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	return fd >= 0 && !fstat(fd, &st) && st.st_uid == uid &&
	       (!faccessat(fd, "tpm2-00.permall", F_OK, 0) ||
		!faccessat(fd, "tpm-00.permall", F_OK, 0));
}

static int take(struct vm *vm, const json_t *tpm, const json_t *arguments, json_t *list,
		struct bm_error *error)
{
	const json_t *options = json_object_get(tpm, "options");
	const char *id = graph_text(tpm, "id"),
		   *chardev = graph_text(json_object_get(options, "data"), "chardev");
	bm_free char *socket = NULL, *folder = NULL;
	json_t *words = NULL;
	uid_t uid = 0;
	int r = 0;

	if (!strcmp(graph_text(options, "type"), "emulator"))
		socket = socket_of(arguments, chardev);
	if (socket && *socket == '/')
		words = emulator_of(socket, bm_qmp_peer(vm->qmp).uid, &uid);
	folder = words ? folder_of(words) : NULL;
	if (!folder || *folder != '/' || !is_state(folder, uid))
		r = bm_fail(error, BM_E_UNSUPPORTED,
			    "the machine has a TPM (%s) that cannot come along: only one of swtpm "
			    "can, which runs with \"--tpmstate dir=FOLDER\" at the socket that the "
			    "VMM's command line names, both absolute paths",
			    id);
	else if (has_word(words, "--key") || has_word(words, "--migration-key"))
		r = bm_fail(error, BM_E_UNSUPPORTED,
			    "the machine has a TPM (%s) whose state is encrypted: the other host "
			    "would need that key",
			    id);
	else
		json_array_append_new(list,
				      json_pack("{s:s s:s s:i}", "from", socket, "folder", folder,
						"version", has_word(words, "--tpm2") ? 2 : 1));
	json_decref(words);
	return r;
}

int tpm_find(struct vm *vm, const json_t *arguments, json_t **list, struct bm_error *error)
{
	struct bm_error ignored;
	json_t *known = NULL, *tpm;
	size_t i;
	int r = 0;

	*list = json_array();
	/* A QEMU without TPMs does not know the question. */
	if (bm_qmp_call(vm->qmp, "query-tpm", NULL, &known, &ignored) < 0)
		return 0;
	json_array_foreach(known, i, tpm)
		if (!r)
			r = take(vm, tpm, arguments, *list, error);
	json_decref(known);
	return r;
}

/* What swtpm keeps, and the folder if nothing else is in it. */
static void remove_folder(const char *folder)
{
	int fd = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *all = fd < 0 ? NULL : fdopendir(fd);

	for (struct dirent *entry; all && (entry = readdir(all));)
		if (!strncmp(entry->d_name, "tpm", 3) || !strcmp(entry->d_name, ".lock"))
			(void)unlinkat(dirfd(all), entry->d_name, 0);
	if (all)
		closedir(all);
	else if (fd >= 0)
		close(fd);
	(void)rmdir(folder);
}

void tpm_leave(struct move *m)
{
	json_t *item;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(m->plan, "description"), "tpm"), i,
			   item) {
		const char *folder = graph_text(item, "folder");
		bm_free char *away = NULL;

		if (asprintf(&away, "%s.away", folder) < 0)
			away = bm_need(NULL);
		if (access(folder, F_OK) < 0)
			continue;
		remove_folder(away); /* older still */
		if (bm_rename_durably(folder, away) < 0)
			bm_log(BM_LOG_WARN, "%s: %s is not the machine's any more, and is there",
			       m->id, folder);
	}
}

/* Target */

json_t *tpm_here(struct move *m)
{
	json_t *list = json_array(), *item;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(m->plan, "description"), "tpm"), i,
			   item) {
		bm_free char *to = NULL, *folder = NULL;

		if (asprintf(&to, "%s/machines/%s.tpm%zu", m->run, m->id, i) < 0 ||
		    asprintf(&folder, "%s/tpm/%s.%zu", m->state, m->id, i) < 0)
			bm_need(NULL);
		json_array_append_new(list, json_pack("{s:O s:s s:s s:O}", "from",
						      json_object_get(item, "from"), "to", to,
						      "folder", folder, "version",
						      json_object_get(item, "version")));
	}
	return list;
}

int tpm_keep(struct move *m, struct bm_error *error)
{
	json_t *list = tpm_here(m), *item;
	size_t i;
	int r = 0;

	json_array_foreach(list, i, item) {
		const char *folder = graph_text(item, "folder");
		bm_close int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (!r && (fd < 0 || syncfs(fd) < 0))
			r = bm_fail_errno(error, errno, "the TPM's folder %s", folder);
	}
	json_decref(list);
	return r;
}

void tpm_undo(struct move *m)
{
	json_t *list = tpm_here(m), *item;
	size_t i;

	json_array_foreach(list, i, item)
		remove_folder(graph_text(item, "folder"));
	json_decref(list);
}
