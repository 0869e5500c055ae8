/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hook libvirt: what libvirt calls, through etc/libvirt/qemu.d/blockmirror, when a domain starts,
 * comes or ends. Its disks are those whose source is one of our sockets: RUN/disks/NAME.nbd. They
 * are started before it, found under this host's RUN when it comes from another one, and stopped
 * after it.
 *
 * A hook must be quick, may be called again, and must not call libvirt (libvirt waits for it).
 */
#include <errno.h>
#include <libxml/parser.h>
#include <libxml/xpath.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/cli/hook.h"

enum { LARGEST = 4 << 20 };

/* The socket's host elements of disks of ours. */
static const char sockets[] = "/domain/devices/disk[@type='network']/source[@protocol='nbd']/"
			      "host[@transport='unix'][@socket]";

struct hook {
	const struct cli *cli;
	const char *domain;
	bool changed;
	struct bm_error error;
};

static void free_doc(xmlDocPtr *doc)
{
	xmlFreeDoc(*doc);
}
static void free_text(xmlChar **text)
{
	xmlFree(*text);
}
#define doc_auto  __attribute__((cleanup(free_doc)))
#define text_auto __attribute__((cleanup(free_text)))

/* NAME of a socket like …/disks/NAME.nbd, malloc()ed; NULL: it is not like that. */
char *hook_disk_name(const char *socket)
{
	const char *slash = strrchr(socket, '/'), *name = slash ? slash + 1 : NULL;
	size_t n = name ? strlen(name) : 0;
	char *copy;

	if (n <= 4 || strcmp(name + n - 4, ".nbd") != 0 || slash - socket < 6 ||
	    strncmp(slash - 6, "/disks", 6) != 0)
		return NULL;
	copy = strndup(name, n - 4);
	if (copy && bm_disk_name_check(copy, NULL) < 0) {
		free(copy);
		copy = NULL;
	}
	return copy;
}

static char *our_socket(const struct cli *cli, const char *name)
{
	bm_free char *run = realpath(cli->run_dir, NULL);
	char *socket;

	return asprintf(&socket, "%s/disks/%s.nbd", run ? run : cli->run_dir, name) < 0 ? NULL
											: socket;
}

/* What a disk is here, or NULL: "active", "standby" … */
static char *role_of(const struct cli *cli, const char *name, bool *busy)
{
	struct bm_client *client;
	struct bm_error error;
	json_t *shown = NULL;
	char *role = NULL;

	if (cli_connect(cli, name, &client, &error) < 0)
		return NULL;
	if (bm_client_call(client, "show", NULL, &shown, &error) >= 0)
		role = strdup(cli_text(shown, "role"));
	*busy = !strcmp(cli_text(json_object_get(shown, "job"), "state"), "running");
	json_decref(shown);
	bm_client_close(client);
	return role;
}

static int not_here(struct hook *h, const char *name)
{
	return bm_fail(
		&h->error, BM_E_NOT_FOUND,
		"domain %s has disk %s, which this host does not: before it comes from "
		"another host, there \"blockmirror migrate arm %s --to THIS-HOST\"; a new one "
		"is served by \"blockmirror serve %s IMAGE\"",
		h->domain, name, name, name);
}

/* Whatever state it was left in. */
static int start(struct hook *h, const char *name)
{
	json_t *shown = cli_supervision(h->cli, name);
	bool known = shown, runs = !strcmp(cli_text(shown, "state"), "running");
	int r;

	json_decref(shown);
	if (runs || cli_is_served(h->cli, name))
		return 0;
	if (!known)
		return not_here(h, name);
	r = cli_daemon_call(h->cli, "serve", json_pack("{s:s}", "name", name), NULL, &h->error);
	/* Another call of this hook may have been quicker. */
	return r < 0 && h->error.code == BM_E_BUSY && cli_is_served(h->cli, name) ? 0 : r;
}

/* By whichever way; it need not be there yet. Another RUN is another instance's. */
bool hook_is_ours(const struct cli *cli, xmlNodePtr host, const char *name)
{
	xmlChar *socket text_auto = xmlGetProp(host, BAD_CAST "socket");
	char *slash = strrchr((char *)socket, '/');
	bm_free char *ours = our_socket(cli, name), *folder = NULL;

	*slash = '\0';
	folder = realpath((const char *)socket, NULL);
	return ours && folder && !strncmp(ours, folder, strlen(folder)) &&
	       ours[strlen(folder)] == '/';
}

static int prepare(void *arg, xmlNodePtr host, const char *name)
{
	struct hook *h = arg;

	return hook_is_ours(h->cli, host, name) ? start(h, name) : 0;
}

static int come(void *arg, xmlNodePtr host, const char *name)
{
	struct hook *h = arg;
	bm_free char *ours = our_socket(h->cli, name), *role = NULL;
	xmlChar *socket text_auto = xmlGetProp(host, BAD_CAST "socket");
	bool busy;

	role = role_of(h->cli, name, &busy);
	if (!role)
		return not_here(h, name);
	if (ours && strcmp(ours, (const char *)socket) != 0) {
		xmlSetProp(host, BAD_CAST "socket", BAD_CAST ours);
		h->changed = true;
	}
	return 0;
}

/* A standby goes on: its disk is on another host. So does one that is being moved. */
static int end(void *arg, xmlNodePtr host, const char *name)
{
	struct hook *h = arg;
	bm_free char *role = NULL;
	bool busy = false;

	(void)host;
	role = role_of(h->cli, name, &busy);
	if (!role || strcmp(role, "active") != 0 || busy)
		return 0;
	if (cli_daemon_call(h->cli, "stop", json_pack("{s:s}", "name", name), NULL, &h->error) < 0)
		fprintf(stderr, "blockmirror: %s: disk %s is served still: %s\n", h->domain, name,
			h->error.text);
	return 0;
}

int hook_each_disk(xmlDocPtr doc, int (*act)(void *arg, xmlNodePtr host, const char *name),
		   void *arg)
{
	xmlXPathContextPtr context = xmlXPathNewContext(doc);
	xmlXPathObjectPtr found =
		context ? xmlXPathEvalExpression(BAD_CAST sockets, context) : NULL;
	int r = found ? 0 : -ENOMEM;

	for (int i = 0; !r && found->nodesetval && i < found->nodesetval->nodeNr; i++) {
		xmlNodePtr host = found->nodesetval->nodeTab[i];
		xmlChar *socket text_auto = xmlGetProp(host, BAD_CAST "socket");
		xmlChar *export text_auto = xmlGetProp(host->parent, BAD_CAST "name");
		bm_free char *name = hook_disk_name((const char *)socket);

		if (name && export && !strcmp(name, (const char *)export))
			r = act(arg, host, name);
	}
	xmlXPathFreeObject(found);
	xmlXPathFreeContext(context);
	return r;
}

/* All of standard input. NULL: it is no XML. */
static xmlDocPtr read_domain(struct hook *h)
{
	bm_free char *text = malloc(LARGEST);
	size_t n = text ? fread(text, 1, LARGEST, stdin) : 0;
	xmlDocPtr doc =
		n && n < LARGEST
			? xmlReadMemory(text, (int)n, "domain.xml", NULL,
					XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING)
			: NULL;

	if (!doc)
		bm_fail(&h->error, BM_E_USAGE,
			"the XML of domain %s is wanted on standard input, as libvirt gives it",
			h->domain);
	return doc;
}

int hook_libvirt(const struct cli *cli, int argc, char **argv)
{
	struct hook h = {.cli = cli, .domain = argc > 0 ? argv[0] : ""};
	const char *operation = argc > 1 ? argv[1] : "";
	bool starts = !strcmp(operation, "prepare"), comes = !strcmp(operation, "migrate"),
	     ends = !strcmp(operation, "release");
	xmlDocPtr doc doc_auto = NULL;
	int r;

	if (argc < 2)
		return cli_usage(cli, "hook libvirt DOMAIN OPERATION …, as libvirt calls it");
	if (!starts && !comes && !ends)
		return 0;
	doc = read_domain(&h);
	r = doc ? hook_each_disk(doc, starts ? prepare : comes ? come : end, &h) : -EINVAL;
	if (r == -ENOMEM)
		bm_fail_errno(&h.error, ENOMEM, "domain %s", h.domain);
	if (r < 0)
		return cli_fail(cli, &h.error);
	if (h.changed && xmlDocDump(stdout, doc) < 0)
		return 1;
	return 0;
}
