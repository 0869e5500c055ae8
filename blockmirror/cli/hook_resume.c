/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hook resume DISK: what blockmirrord calls when a disk is served again whose process had died. A
 * libvirt before 9.2 cannot have QEMU wait for the connection: the request that found none has
 * stopped the machine (error_policy='stop'), and nobody but us knows when it may go on. QEMU may
 * find out late: a guest that does nothing sends no request. So this looks again and again, until
 * the machine runs and is connected.
 *
 * What is resumed is a domain that is paused, for an I/O error and nothing else, on disks of ours
 * and no others, all of which are served. A domain that an administrator has paused is paused for
 * another reason. An error that is there again while the disk is served and connected is one of its
 * storage: the machine stays stopped after a few times, as its policy says.
 *
 * Never called from a hook of libvirt's: it asks libvirt.
 */
#include <errno.h>
#include <libxml/parser.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/run.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/cli/hook.h"

#define VIRSH_LIMIT  20000u  /* ms: a libvirtd that does not answer is asked again */
#define ABSENT_LIMIT 10000u  /* ms for which there is no libvirtd: none comes; */
#define AWAY_LIMIT   600000u /* but one that has the domain is awaited */
#define SETTLED \
	2000u /* ms: what ran and was connected for so long will not stop of this any more */

enum { DELAY_FIRST = 100, DELAY_MOST = 2000, IN_VAIN = 3, LONGEST_NAME = 256 };

enum verdict {
	NOTHING_TO_DO, /* no domain has the disk, or the disk is not to be served */
	WAITS,         /* for a request, a process, or an administrator */
	RESUMED,
	RUNS, /* and is connected */
	FAILS,
	NO_ANSWER, /* of libvirt's */
};

struct resume {
	const struct cli *cli;
	const char *disk;
	char *domain;       /* that has it, once that is known */
	json_int_t process; /* of the disk */
	unsigned in_vain;   /* it was connected to that one, and yet stopped again */
	uint64_t deadline;
};

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool takes_too_long(void *arg)
{
	struct resume *r = arg;

	return now_ms() >= r->deadline;
}

/* virsh COMMAND OPTION DOMAIN (those that are not NULL). What it prints, or NULL. */
static char *virsh(struct resume *r, const char *command, const char *option, const char *domain,
		   int *status)
{
	const char *uri = getenv("LIBVIRT_DEFAULT_URI");
	char *argv[] = {(char *)"virsh", (char *)"-q",
			(char *)"-c",    (char *)(uri ? uri : "qemu:///system"),
			(char *)command, (char *)option,
			(char *)domain,  NULL};
	char *output = NULL, why[LONGEST_NAME];

	if (!option) {
		argv[5] = (char *)domain;
		argv[6] = NULL;
	}
	r->deadline = now_ms() + VIRSH_LIMIT;
	*status = bm_run(argv, takes_too_long, r, &output, why, sizeof(why));
	if (*status) {
		free(output);
		output = NULL;
	}
	return output;
}

/* A domain's disks of ours */

struct disks {
	const struct resume *resume;
	char devices[16][LONGEST_NAME]; /* "vda": those that are ours, and served */
	size_t n;
	bool has_ours, waits; /* it has the disk; QEMU waits for its connection by itself */
};

static xmlNodePtr child_of(xmlNodePtr parent, const char *name)
{
	for (xmlNodePtr n = parent->children; n; n = n->next)
		if (n->type == XML_ELEMENT_NODE && !strcmp((const char *)n->name, name))
			return n;
	return NULL;
}

/* What a disk says of itself if it is active; NULL. */
static json_t *ask(const struct cli *cli, const char *name)
{
	struct bm_client *client;
	json_t *shown = NULL;

	if (cli_connect(cli, name, &client, NULL) < 0)
		return NULL;
	if (bm_client_call(client, "show", NULL, &shown, NULL) < 0 ||
	    strcmp(cli_text(shown, "role"), "active") != 0) {
		json_decref(shown);
		shown = NULL;
	}
	bm_client_close(client);
	return shown;
}

static bool is_active(const struct cli *cli, const char *name)
{
	json_t *shown = ask(cli, name);

	json_decref(shown);
	return shown;
}

static int take_disk(void *arg, xmlNodePtr host, const char *name)
{
	struct disks *d = arg;
	xmlNodePtr source = host->parent, target = child_of(source->parent, "target");
	xmlChar *device = target ? xmlGetProp(target, BAD_CAST "dev") : NULL;

	if (device && hook_is_ours(d->resume->cli, host, name)) {
		if (!strcmp(name, d->resume->disk)) {
			d->has_ours = true;
			d->waits = child_of(source, "reconnect");
		}
		if (d->n < sizeof(d->devices) / sizeof(d->devices[0]) &&
		    is_active(d->resume->cli, name))
			snprintf(d->devices[d->n++], LONGEST_NAME, "%s", (const char *)device);
	}
	xmlFree(device);
	return 0;
}

static void find_disks(struct resume *r, const char *domain, struct disks *d)
{
	int status;
	bm_free char *text = virsh(r, "dumpxml", NULL, domain, &status);
	xmlDocPtr doc =
		text ? xmlReadMemory(text, (int)strlen(text), "domain.xml", NULL,
				     XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING)
		     : NULL;

	*d = (struct disks){.resume = r};
	if (doc)
		hook_each_disk(doc, take_disk, d);
	xmlFreeDoc(doc);
}

/* "vda: unspecified error": each is one of ours. "no space" is no matter of a connection. */
static bool all_ours(const struct disks *d, char *errors)
{
	char *rest = NULL;
	unsigned count = 0;

	for (char *line = strtok_r(errors, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		char *colon = strchr(line, ':');
		size_t i = 0;

		if (!colon) /* "No errors found" */
			return false;
		*colon = '\0';
		while (i < d->n && strcmp(d->devices[i], line) != 0)
			i++;
		if (i == d->n || strcmp(colon + 1, " unspecified error") != 0)
			return false;
		count++;
	}
	return count;
}

/* One domain */

static enum verdict resume_domain(struct resume *r, const char *domain, const struct disks *d,
				  size_t clients)
{
	int status;
	bm_free char *errors = virsh(r, "domblkerror", NULL, domain, &status), *done = NULL;

	if (!errors)
		return NO_ANSWER;
	if (!all_ours(d, errors))
		return WAITS;
	if (clients && ++r->in_vain > IN_VAIN) {
		fprintf(stderr,
			"blockmirror: domain %s stays stopped: disk %s is served, and yet gives "
			"errors; see 'blockmirror show %s', then 'virsh resume %s'\n",
			domain, r->disk, r->disk, domain);
		return FAILS;
	}
	done = virsh(r, "resume", NULL, domain, &status);
	if (!done)
		return WAITS;
	fprintf(stderr, "blockmirror: domain %s, stopped by an error of disk %s, goes on\n", domain,
		r->disk);
	return RESUMED;
}

static enum verdict look_at(struct resume *r, const char *domain)
{
	struct disks d;
	int status;
	size_t clients;
	json_t *disk;
	bool active;
	bm_free char *state = NULL;

	find_disks(r, domain, &d);
	if (!d.has_ours || d.waits)
		return NOTHING_TO_DO;
	disk = ask(r->cli, r->disk);
	active = disk;
	clients = json_array_size(json_object_get(disk, "clients"));
	if (disk && r->process != (json_int_t)cli_number(disk, "pid")) {
		r->process = (json_int_t)cli_number(disk, "pid");
		r->in_vain = 0;
	}
	json_decref(disk);
	state = virsh(r, "domstate", "--reason", domain, &status);
	if (!state)
		return NO_ANSWER;
	state[strcspn(state, "\n")] = '\0';
	if (!strcmp(state, "paused (I/O error)") && active)
		return resume_domain(r, domain, &d, clients);
	if (!strncmp(state, "shut off", strlen("shut off")))
		return NOTHING_TO_DO;
	return !strncmp(state, "running", strlen("running")) && clients ? RUNS : WAITS;
}

static bool is_to_be_served(const struct resume *r)
{
	json_t *shown = cli_supervision(r->cli, r->disk);
	bool stopped = !shown || !strcmp(cli_text(shown, "state"), "stopped");

	json_decref(shown);
	return !stopped || cli_is_served(r->cli, r->disk);
}

/* At all that run, or are paused: it is one of them that has the disk. */
static enum verdict look(struct resume *r)
{
	enum verdict verdict = NOTHING_TO_DO;
	char *rest = NULL;
	int status;
	bm_free char *names = NULL;

	if (!is_to_be_served(r))
		return NOTHING_TO_DO;
	if (r->domain && (verdict = look_at(r, r->domain)) != NOTHING_TO_DO)
		return verdict;
	names = virsh(r, "list", "--name", NULL, &status);
	if (!names)
		return status == BM_SPAWN_NOT_FOUND ? NOTHING_TO_DO : NO_ANSWER;
	for (char *name = strtok_r(names, "\n", &rest); name && verdict == NOTHING_TO_DO;
	     name = strtok_r(NULL, "\n", &rest)) {
		verdict = look_at(r, name);
		free(r->domain);
		r->domain = verdict == NOTHING_TO_DO ? NULL : strdup(name);
	}
	return verdict;
}

static int watch(struct resume *r)
{
	uint64_t start = now_ms(), answered = start, connected = 0;
	int delay = DELAY_FIRST;

	for (;;) {
		enum verdict verdict = look(r);
		uint64_t now = now_ms();

		if (verdict == NOTHING_TO_DO || verdict == FAILS)
			return verdict == FAILS;
		if (verdict != NO_ANSWER)
			answered = now;
		else if (now - answered > (r->domain ? AWAY_LIMIT : ABSENT_LIMIT))
			return 0;
		if (verdict != RUNS)
			connected = 0;
		else if (!connected)
			connected = now;
		else if (now - connected >= SETTLED)
			return 0;
		if (verdict == RESUMED || verdict == RUNS)
			delay = DELAY_FIRST;
		poll(NULL, 0, delay);
		delay = delay * 2 < DELAY_MOST ? delay * 2 : DELAY_MOST;
	}
}

int hook_resume(const struct cli *cli, int argc, char **argv)
{
	struct resume r = {.cli = cli, .disk = argc > 0 ? argv[0] : ""};
	struct bm_error error;
	int status;

	if (argc != 1)
		return cli_usage(cli, "hook resume DISK");
	if (bm_disk_name_check(r.disk, &error) < 0)
		return cli_fail(cli, &error);
	setenv("LC_ALL", "C", 1); /* virsh's words are looked at */
	status = watch(&r);
	free(r.domain);
	return status;
}
